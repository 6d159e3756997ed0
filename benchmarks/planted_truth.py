"""How often the analyses recover what was planted in synthetic studies, and find what was not.

`python -m benchmarks.planted_truth --out=benchmarks/results/planted_truth`

Each line: a truth, in how many of so many seeds it lay within the stated interval, and how often
something was found where nothing was. See `benchmarks/README.md`.
"""

import argparse
import time

import numpy as np

from benchmarks import report
from sft_jax.analysis import intrinsic_dim, layers, model_map, predictors
from tests.analysis import studies


def predictor(seed: int, shared: float) -> tuple[bool, bool]:
  """(effect within its interval, finding in a null study of 4 predictors and 3 benchmarks)."""
  settings = predictors.Settings(draws=400, shuffles=1000, seed=seed)
  x, gains, _ = studies.predictor(seed, shared=shared)
  models, datasets = x.shape
  resamples = predictors.Resamples(models, datasets, settings)
  row = predictors.test(x, gains[..., 0], (), resamples)
  inside = row['within_model_low'] <= -0.5 <= row['within_model_high']
  null = {f'p{i}': studies.predictor(10_000 * (i + 1) + seed, shared=shared)[0] for i in range(4)}
  gains = studies.predictor(seed, rho=0, shared=shared, benchmarks=3)[1]
  rows = predictors.tests(null, gains, ['a', 'b', 'c'], settings)
  return inside, any(row['finding'] for row in rows)


def peak(seed: int) -> tuple[bool, bool]:
  """(peak within its set, middle and ends told apart where nothing is planted)."""
  changes, gains, index = studies.peak(seed)
  inside = index in layers.by_depth(changes, gains)['peak_set']
  null = layers.by_depth(*studies.peak(seed, rho=0)[:2])
  return inside, null['middle_low'] > 0 or null['middle_high'] < 0


def dimension(seed: int, truth: int, count: int) -> tuple[bool, None]:
  """(dimension of a Gaussian within its interval, -)."""
  found = intrinsic_dim.estimate(studies.gaussian(seed, truth, count))
  return found['low'] <= truth <= found['high'], None


def divergence(seed: int) -> tuple[bool, None]:
  """(KL of two models within its interval, -)."""
  logliks, true = studies.close_models(seed)
  _, low, high = model_map.kl_interval(model_map.coordinates(logliks, 0), 0, 1)
  return low <= true[0, 1] <= high, None


CASES = {
  'predictor, r = -0.5 within 11 models x 10 data sets': (predictor, (0.0,)),
  'the same, half of all variance common to all models': (predictor, (0.5,)),
  'layer peak at depth 0.45, 10 x 10': (peak, ()),
  'dimension 2, 1000 texts': (dimension, (2, 1000)),
  'dimension 5, 1000 texts': (dimension, (5, 1000)),
  'dimension 10, 3000 texts': (dimension, (10, 3000)),
  'KL of about 0.04 nats, 2000 texts': (divergence, ()),
}


def main() -> None:
  """Prints and writes a Markdown table."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--seeds', type=int, default=200)
  parser.add_argument('--only', default='', help='cases whose name contains this')
  parser.add_argument('--out', default='', help='writes OUT.md and OUT.json')
  given = parser.parse_args()
  lines = ['# Planted truth', '', f'`python -m benchmarks.planted_truth --seeds={given.seeds}`', '']
  lines += [
    f'{given.seeds} seeds. Bars: the truth lies in its 95 % interval (or set) in at least 95 %; '
    'in null studies anything is found in at most 5 %.',
    '',
    '| planted | recovered | found in null studies | s |',
    '|---|---|---|---|',
  ]
  print('\n'.join(lines), flush=True)
  found = {}
  for name, (case, arguments) in CASES.items():
    if given.only not in name:
      continue
    began = time.monotonic()
    results = [case(seed, *arguments) for seed in range(given.seeds)]
    shares = [
      float(np.mean(column)) if column[0] is not None else None
      for column in zip(*results, strict=True)
    ]
    told = ' | '.join('-' if share is None else f'{share:.1%}' for share in shares)
    lines.append(f'| {name} | {told} | {time.monotonic() - began:.0f} |')
    print(lines[-1], flush=True)
    found[name] = dict(zip(('recovered', 'found in null studies'), shares, strict=True))
    report.write(given.out, lines, found)


if __name__ == '__main__':
  main()

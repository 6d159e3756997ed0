"""Whether grafting finds the band of layers that does it.

`python -m benchmarks.planted_grafts --out=benchmarks/results/planted_grafts`

Tiny random Llamas of six layers, and a change of each whose cause is known by construction. A third
of the layers, the cause, is changed at random, and so answers other than the base. Another is
changed most of all and to no effect: what was changed is multiplied by zeros. The third is changed
a little. The right answer of an item is what the cause in the base by itself says, or in some
studies the toss of a coin, so what each band truly gains is known: of many items, of which a
study asks some. Each study goes the way of a real one: `--mode=eval` with `config.eval.graft`, then
what the report tells of `probes/*/grafts.csv`. See `benchmarks/README.md`.
"""

import argparse
import collections
import csv
import functools
import json
import multiprocessing
import os
import pathlib
import shutil
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks import report

LAYERS, BANDS = 6, ('0-1', '2-3', '4-5')
POOL, ASKED = 1000, 200
# Share of the items whose answer is the cause's; the others' is chance.
FOLLOWED = {'planted': 0.6, 'null': 0.0}
# Standard deviations of weights, and of the change of the cause, the idle band and the third.
WEIGHTS, CAUSE, IDLE, LITTLE = 0.2, 0.3, 0.6, 0.03
_READ_OUT = ('o_proj.weight', 'down_proj.weight')
_LETTERS = np.array(list('abcdefghijklmnopqrstuvwxyz'))


def write_pair(template: pathlib.Path, place: pathlib.Path, seed: int) -> tuple[str, str]:
  """Writes `base` and `tuned` below `place`; returns the names of the cause and the idle band.

  Args:
    template: Directory of a Llama, whose shapes, configuration and tokenizer are taken.
    place: Where to.
    seed: Of all weights.
  """
  from safetensors import numpy as safetensors

  rng = np.random.default_rng(seed)
  cause, idle, _ = rng.permutation(len(BANDS))
  size = LAYERS // len(BANDS)
  held = safetensors.load_file(template / 'model.safetensors')
  names = [name for name in held if not name.startswith('model.layers.')]
  first = 'model.layers.0.'
  names += [
    f'model.layers.{i}.{n[len(first) :]}' for i in range(LAYERS) for n in held if first in n
  ]
  base, tuned = {}, {}
  for name in names:
    parts = name.split('.')
    layer = int(parts[2]) if parts[1] == 'layers' else None
    like = held[name if layer is None else '.'.join([*parts[:2], '0', *parts[3:]])]
    weight = np.ones(like.shape) if like.ndim == 1 else rng.normal(0, WEIGHTS, like.shape)
    change = 0.0
    if layer is not None and like.ndim == 2:
      band = layer // size
      change = {cause: CAUSE, idle: IDLE}.get(band, LITTLE)
      if band == idle and name.endswith(_READ_OUT):
        weight, change = np.zeros(like.shape), 0.0
    base[name] = weight.astype(np.float32)
    tuned[name] = (weight + change * rng.normal(size=like.shape)).astype(np.float32)
  config = json.loads((template / 'config.json').read_text()) | {'num_hidden_layers': LAYERS}
  for kind, tensors in (('base', base), ('tuned', tuned)):
    shutil.copytree(template, place / kind)
    (place / kind / 'config.json').write_text(json.dumps(config))
    safetensors.save_file(tensors, place / kind / 'model.safetensors', {'format': 'pt'})
  return BANDS[cause], BANDS[idle]


def questions(seed: int, count: int) -> list[dict[str, Any]]:
  """Items of PIQA's form made of random letters; all are answered by the first solution."""
  rng = np.random.default_rng([seed, 1])
  word = lambda length: ''.join(rng.choice(_LETTERS, length))
  made: list[dict[str, Any]] = []
  while len(made) < count:
    goal, first, second = word(8), word(3), word(3)
    if first != second:  # Solutions that are alike are no question.
      made.append({'goal': goal, 'sol1': first, 'sol2': second, 'label': 0})
  return made


def ask(place: pathlib.Path, items: Iterable[Mapping[str, Any]], out: pathlib.Path) -> str:
  """Scores the grafts of a pair on items; returns the column of the scores."""
  from sft_jax import api
  from sft_jax.execution import evaluate

  bench = place / f'bench-{out.name}'
  bench.mkdir()
  (bench / 'piqa_val.jsonl').write_text(''.join(f'{json.dumps(item)}\n' for item in items))
  changes = {
    'model.path': str(place / 'tuned'),
    'eval.graft_base': str(place / 'base'),
    'eval.graft': str(len(BANDS)),
    'eval.tasks': 'piqa:0shot:ll',
    'eval.template': 'raw',
    'eval.data_dir': str(bench),
    'eval.tokens_per_batch': 8192,
    'cache_dir': str(place / 'cache'),
    'mesh.allow_idle': True,
  }
  told = evaluate.evaluate(api.get_config('eval', changes), str(out))
  return next(name.removesuffix('-n') for name in told['rows'][0] if name.endswith('-n'))


def chosen(out: pathlib.Path) -> dict[str, np.ndarray]:
  """{graft: whether it chose the first solution of each item}."""
  found = {}
  for directory in (out / 'grafts').iterdir():
    (file,) = (directory / 'samples').glob('*.jsonl')
    records = [json.loads(line) for line in file.read_text().splitlines()]
    headline = records[0]['about']['measures'][0]
    found[directory.name] = np.array([bool(record['scores'][headline]) for record in records])
  return found


def told(place: pathlib.Path, column: str) -> dict[str, Any]:
  """What the report of the study at `place` tells of its grafts."""
  from sft_jax.analysis import findings, grafted, table

  rows = [('model_name', 'data_name', 'epoch', column), ('m', table.BASE, 0, 50), ('m', 'd', 1, 60)]
  with open(place / 'results.csv', 'w', newline='') as f:
    csv.writer(f).writerows(rows)
  frame = table.read(place / 'results.csv')
  study = findings.Study(frame, None, table.main(frame), [])
  return grafted.bands(study, place, {})


def studies(seed: int, template: str, draws: int) -> list[tuple[str, bool]]:
  """(what, whether it was so) in `draws` studies of each kind, of one model."""
  out: list[tuple[str, bool]] = []
  with tempfile.TemporaryDirectory(prefix='planted-grafts-') as scratch:
    place = pathlib.Path(scratch)
    cause, idle = write_pair(pathlib.Path(template), place, seed)
    pool = questions(seed, POOL)
    column = ask(place, pool, place / 'pool')
    choices = chosen(place / 'pool')
    rng = np.random.default_rng([seed, 2])
    for draw in range(draws):
      for kind, followed in FOLLOWED.items():
        asked = rng.permutation(POOL)[:ASKED]
        said = np.where(rng.random(POOL) < followed, choices[cause], rng.random(POOL) < 0.5)
        items = [pool[i] | {'label': int(not said[i])} for i in asked]
        study = place / f'{kind}{draw}'
        ask(place, items, study / 'probes' / f'grafts-{kind}{draw}')
        agree = lambda name: np.mean(choices[name] == choices[cause])
        true = {name: 100 * followed * (agree(name) - agree('none')) for name in BANDS}
        (model,) = told(study, column)['models']
        found = {band['graft']: band for band in model['bands']}
        out += _judged(kind, found, true, cause, idle)
  return out


def _judged(
  kind: str,
  found: Mapping[str, Mapping[str, Any]],
  true: Mapping[str, float],
  cause: str,
  idle: str,
) -> list[tuple[str, bool]]:
  without = lambda band: not band['low'] <= 0 <= band['high']
  if kind == 'null':
    return [('nothing planted: interval of a band without 0', without(found[b])) for b in BANDS]
  inside = lambda name: found[name]['low'] <= true[name] <= found[name]['high']
  rest = [name for name in BANDS if name != cause]
  most = lambda key: max(BANDS, key=lambda name: found[name][key])
  return [
    ('effect of the cause within its interval', inside(cause)),
    *(('effect of another band within its interval', inside(name)) for name in rest),
    ('the cause is what does most', most('gain') == cause),
    ('0 outside of the interval of the cause', without(found[cause])),
    (
      'what changed most is not the cause',
      most('change_share') == idle,
    ),
  ]


def page(seen: Mapping[str, Sequence[bool]], seeds: int, draws: int) -> list[str]:
  """What was found, as Markdown."""
  lines = [
    '# Planted causes',
    '',
    f'`python -m benchmarks.planted_grafts --models={seeds} --draws={draws}`',
    '',
    f'{seeds * draws} studies of each kind, {ASKED} items each. Bars: 95 %, and 5 % where nothing '
    'is planted.',
    '',
    '| | said | in |',
    '|---|---|---|',
  ]
  return lines + [f'| {what} | {len(so):,} | {np.mean(so):.1%} |' for what, so in seen.items()]


def main() -> None:
  """Measures and prints."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--models', type=int, default=50)
  parser.add_argument('--draws', type=int, default=4, help='studies of each kind on one model')
  parser.add_argument('--workers', type=int, default=2)
  parser.add_argument('--out', default='', help='writes OUT.md and OUT.json')
  given = parser.parse_args()
  os.environ.setdefault('JAX_PLATFORMS', 'cpu')
  began = time.monotonic()
  seen: dict[str, list[bool]] = collections.defaultdict(list)
  with tempfile.TemporaryDirectory(prefix='planted-template-') as scratch:
    from tests.models.conftest import write_tiny_llama

    template = str(write_tiny_llama(pathlib.Path(scratch) / 'llama'))
    one = functools.partial(studies, template=template, draws=given.draws)
    with multiprocessing.get_context('spawn').Pool(given.workers) as pool:
      for done, some in enumerate(pool.imap(one, range(given.models)), 1):
        for what, so in some:
          seen[what].append(so)
        # What is known by now: it may be stopped at any time.
        lines = page(seen, done, given.draws)
        report.write(given.out, lines, {what: float(np.mean(so)) for what, so in seen.items()})
        print(f'{done} of {given.models}: {time.monotonic() - began:.0f} s', flush=True)
  print('\n'.join(lines))


if __name__ == '__main__':
  main()

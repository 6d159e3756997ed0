"""Choosing data, replayed on a published table: `python -m benchmarks.choose_replay --table=CSV`.

For every model and benchmark of a result table with one run a cell, data are chosen as a race
would, with each run's score looked up instead of trained, and the regret is told: the score of the
best data set at full size less that of the one chosen. What is known beforehand (prior, drift)
comes of the other models. Three replays:

  one size   1k examples, 10 epochs, full fine-tuning, all models: the prior says which to train.
  epochs     1k constant, 1, 3 and 9 epochs as rungs, the models that have them.
  sizes      1k for 9 epochs, then 20k for 1, 3 and 10, of the same models.

How far scores drift from a rung to the last is taken as a high quantile of the other models'
(`careful`). Their root mean square, tried first, missed the bar on `epochs` with 0.98 points, most
of it from one model whose HumanEval collapses after the first epoch; the quantile was put in its
place after that was seen, and regrets with other quantiles stand beside it.

Costs are examples passed; a run at a rung starts anew, as a schedule that decays must. Beside the
race: the first data set by its mean over the other models, as many of the best by mean as the share
lets in, as many at random, and the race without the prior. Scores are of one run a cell, so the
best is partly luck, and regret against it is somewhat too large; 95 % intervals are of a bootstrap
over benchmarks.
"""

import argparse
import contextlib
import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks import report
from sft_jax.analysis import recommend, table
from sft_jax.study.race import Race, Trial
from sft_jax.study.race_data import Field, Observation, Scores
from sft_jax.study.race_evidence import Arm, Prior, Rung
from sft_jax.study.race_rules import Rules
from sft_jax.utils.errors import UserError

SHARE, BAR = 0.4, 0.5
# Quantile of drifts, and others for comparison.
CAREFUL, OTHERS = 0.9, (0.5, 0.75, 0.95, 1.0)
# Stage -> (rows of the table, examples passed).
Stage = tuple[dict[str, Any], float]
_CONSTANT = {'lora': False, 'lr_strategy': 'constant'}
REPLAYS: dict[str, tuple[Stage, ...]] = {
  'one size': (({'lora': False, 'lr_strategy': 'cosine', 'data_size': 1000, 'epoch': 10}, 10.0),),
  'epochs': tuple(
    ({**_CONSTANT, 'data_size': 1000, 'epoch': epoch}, float(epoch)) for epoch in (1, 3, 9)
  ),
  'sizes': (
    ({**_CONSTANT, 'data_size': 1000, 'epoch': 9}, 9.0),
    *(({**_CONSTANT, 'data_size': 20000, 'epoch': e}, 20.0 * e) for e in (1, 3, 10)),
  ),
}
# Items of each benchmark, for the errors of scores.
ITEMS = dict(
  zip(
    table.MAIN, (5000, 1319, 164, 257, 3270, 3610, 817, 14042, 11582, 14042, 160, 805), strict=True
  )
)


def scores_at(frame: Any, stage: Stage, target: str) -> Any:
  """Models × data sets."""
  rows = frame[np.logical_and.reduce([frame[key] == value for key, value in stage[0].items()])]
  rows = rows[table.is_single(rows)]
  return rows.pivot_table(index='model_name', columns='data_name', values=target)


def observed(score: float, target: str, cost: float) -> Observation:
  """A score with the error that its count of items gives."""
  share = min(max(score / 100, 0.02), 0.98)
  stderr = 100 * math.sqrt(share * (1 - share) / ITEMS[target])
  return Observation({target: Scores(mean=score, stderr=stderr)}, cost)


def priors(frame: Any, model: str, target: str, data: Sequence[str]) -> dict[str, Prior]:
  """What the other models' rows of the core lead to expect."""
  known = recommend.scores_of(frame, [target])
  found = recommend.recommend(known, list(data), model)
  return {one.data: Prior(one.mean, one.sd) for one in found}


def drifts(frame: Any, model: str, stages: Sequence[Stage]) -> list[list[float]]:
  """How far scores drift from each stage to the last: one for each other model and benchmark."""
  others = frame[frame['model_name'] != model]
  out = []
  for stage, _ in stages[:-1]:
    cells: list[float] = []
    for _, rows in others.groupby('model_name'):
      for name in table.MAIN:
        with contextlib.suppress(UserError):  # That model was not trained so.
          cells.append(recommend.drift(rows, [name], stage, stages[-1][0]))
    out.append(cells)
  return out


def careful(
  cells: Sequence[Sequence[float]],
  others: Any,
  target: str,
  stages: Sequence[Stage],
  share: float,
) -> list[float]:
  """The drift of each stage that a race reckons with, from other models.

  At least a high quantile over models and benchmarks: most cells hardly drift, since most models
  cannot do most benchmarks, and a few drift by far more than the root mean square says; what the
  next model will do is not known to be of the many.
  """
  own = [recommend.drift(others, [target], stage, stages[-1][0]) for stage, _ in stages[:-1]]
  high = [float(np.quantile(one, share)) for one in cells]
  return [*map(max, own, high), 0.0]


def race(
  values: Sequence[Mapping[str, float]],
  target: str,
  stages: Sequence[Stage],
  drift: Sequence[float],
  prior: Mapping[str, Prior],
) -> tuple[str, float]:
  """(data set chosen, share of the cost of everything fully) of one race."""
  rules = Rules({target: 1.0})
  field = Field(observed(0.0, target, 0.0), rules.targets, {}, most_leak=0.1, ability_only=False)
  arms = [Arm(data) for data in sorted(values[-1])]
  rungs = [Rung(str(i), 1, d) for i, d in enumerate(drift)]
  cost = lambda _, rung: stages[rung][1]
  full = len(arms) * stages[-1][1]
  one = Race(arms, rungs, rules, field, SHARE * full, cost, prior)

  def look_up(trials: Sequence[Trial]) -> dict[Trial, Observation]:
    score = lambda trial: values[trial.rung][trial.arm.candidate]
    return {trial: observed(score(trial), target, stages[trial.rung][1]) for trial in trials}

  one.run(look_up)
  at_last = [arm for arm in one.live if one.evidence.reached.get(arm) == one.last]
  return one.evidence.ranked(at_last)[0].candidate, one.spent / full


def replay(
  frame: Any, name: str, rng: np.random.Generator, share: float = CAREFUL
) -> list[dict[str, Any]]:
  """One row for each model and benchmark; `share` is the quantile of `careful`."""
  stages = REPLAYS[name]
  out = []
  cells: dict[str, list[list[float]]] = {}
  for target in table.MAIN:
    tables = [scores_at(frame, stage, target) for stage in stages]
    for model in tables[-1].index:
      if any(model not in one.index for one in tables):
        continue
      shown = [one.loc[model].dropna() for one in tables]
      data = sorted(set.intersection(*(set(one.index) for one in shown)))
      if len(data) < 3:
        continue
      values = [{d: float(one[d]) for d in data} for one in shown]
      truth = values[-1]
      best = max(truth.values())
      prior = priors(frame, model, target, data)
      order = sorted(data, key=lambda d: -prior[d].mean)
      if model not in cells:
        cells[model] = drifts(frame, model, stages)
      others = frame[frame['model_name'] != model]
      drift = careful(cells[model], others, target, stages, share)
      fits = int(SHARE * len(data))
      row: dict[str, Any] = {'model': model, 'target': target, 'data': len(data)}
      for way, given in (('race', prior), ('race without prior', {})):
        try:
          pick, cost = race(values, target, stages, drift, given)
        except UserError:
          continue
        row[way] = (best - truth[pick], cost)
      row['best by mean'] = (best - truth[order[0]], 1 / len(data))
      row['best few by mean'] = (best - max(truth[d] for d in order[:fits]), fits / len(data))
      drawn = [max(truth[d] for d in rng.permutation(data)[:fits]) for _ in range(500)]
      row['few at random'] = (best - float(np.mean(drawn)), fits / len(data))
      row['one at random'] = (best - float(np.mean(list(truth.values()))), 1 / len(data))
      out.append(row)
  return out


def interval(rows: Sequence[Mapping[str, Any]], way: str, rng: np.random.Generator) -> list[float]:
  """95 % bootstrap interval of the mean regret, benchmarks drawn whole."""
  groups = [
    [row[way][0] for row in rows if row['target'] == target and way in row] for target in table.MAIN
  ]
  groups = [group for group in groups if group]
  means = []
  for _ in range(4000):
    drawn = [groups[i] for i in rng.integers(len(groups), size=len(groups))]
    means.append(np.mean([x for group in drawn for x in group]))
  return [float(q) for q in np.quantile(means, (0.025, 0.975))]


def measure(path: str) -> dict[str, Any]:
  """All replays, and the recommendation by itself."""
  frame = table.read(path)
  rng = np.random.default_rng(0)
  out: dict[str, Any] = {}
  for name in REPLAYS:
    rows = replay(frame, name, rng)
    ways = {}
    for way in dict.fromkeys(key for row in rows for key in row if isinstance(row[key], tuple)):
      held = [row[way] for row in rows if way in row]
      ways[way] = {
        'regret': float(np.mean([regret for regret, _ in held])),
        'interval': interval(rows, way, rng),
        'most': float(np.max([regret for regret, _ in held])),
        'cost': float(np.mean([cost for _, cost in held])),
        'most-cost': float(np.max([cost for _, cost in held])),
        'races': len(held),
      }
    # How much hangs on how careful drift is taken; 'one size' has none.
    quantiles = {
      str(share): float(np.mean([r['race'][0] for r in replay(frame, name, rng, share)]))
      for share in (OTHERS if len(REPLAYS[name]) > 1 else ())
    }
    models = len({row['model'] for row in rows})
    out[name] = {'ways': ways, 'models': models, 'careful': quantiles, 'rows': rows}
  left = [
    row | {'target': target}
    for target in table.MAIN
    for row in recommend.leave_one_out(recommend.scores_of(frame, [target]))
  ]
  keys = [key for key in left[0] if key not in ('model', 'target', 'n')]
  out['recommend'] = {
    key: {
      'mean': float(np.nanmean([row[key] for row in left])),
      'interval': interval(
        [row | {key: (row[key],)} for row in left if row[key] == row[key]], key, rng
      ),
    }
    for key in keys
  }
  return out


def lines(found: Mapping[str, Any]) -> list[str]:
  """As Markdown."""
  out = ['# Choosing data, replayed', '', (__doc__ or '').split('\n', 2)[2].strip(), '']
  for name in REPLAYS:
    one = found[name]
    met = one['ways']['race']
    out += [
      f'## {name}: {one["models"]} models, {met["races"]} races',
      '',
      '| way | regret, points (95 %) | most | cost, share of everything fully (most) |',
      '|---|---|---|---|',
    ]
    for way, row in one['ways'].items():
      low, high = row['interval']
      out.append(
        f'| {way} | {row["regret"]:.2f} ({low:.2f} to {high:.2f}) | {row["most"]:.1f} '
        f'| {row["cost"]:.2f} ({row["most-cost"]:.2f}) |'
      )
    good = met['regret'] <= BAR and met['most-cost'] <= SHARE + 1e-9
    out += ['', f'Bar, regret ≤ {BAR} at a cost ≤ {SHARE}: {"met" if good else "MISSED"}.', '']
    if one['careful']:
      shown = ', '.join(f'{regret:.2f} at {share}' for share, regret in one['careful'].items())
      of = f'Drift is the {CAREFUL} quantile over models and benchmarks'
      out += [f'{of}. Regret with other quantiles: {shown}.', '']
  out += [
    '## The recommendation by itself, one model left out',
    '',
    '| | mean (95 %) |',
    '|---|---|',
  ]
  for key, row in found['recommend'].items():
    low, high = row['interval']
    out.append(f'| {key} | {row["mean"]:.3f} ({low:.3f} to {high:.3f}) |')
  return out


def main() -> None:
  """Measures and prints."""
  parser = argparse.ArgumentParser(description=__doc__)
  home = os.environ.get('SFT_JAX_DATA', '../shared/data')
  parser.add_argument('--table', default=f'{home}/bench/massive_sft_evaluation_result.csv')
  parser.add_argument('--out', default='', help='writes OUT.md and OUT.json')
  args = parser.parse_args()
  found = measure(args.table)
  print('\n'.join(lines(found)))
  report.write(args.out, lines(found), found)


if __name__ == '__main__':
  main()

"""What to expect of a data set on a base before training: from a table of other models' gains.

Within one model and benchmark, a data set's score less the mean over data sets is an effect of the
data set shared by all models, drawn towards nothing as far as models disagree, and the model's own
departure from it. Differences between data sets of one model need no base score, which a table may
have wrong. A prior for a race (`study/race.py`), not in place of one; data sets outside the table
are unknown.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import special

from sft_jax.analysis import table as table_lib
from sft_jax.utils.errors import UserError

if TYPE_CHECKING:
  import pandas as pd

# Data sets that it takes to say what a property of them is worth.
_LEAST_DATA = 5


@dataclasses.dataclass(frozen=True)
class Expected:
  """What is expected of a data set, in points over the mean data set of the table.

  Attributes:
    data: Its name.
    known: Whether the table has it; if not, the rest is what a data set may be at all.
    mean: Expected difference.
    sd: Standard deviation of what a further model may show.
    low, high: 95 % interval of the same.
    models: How many models tell of it.
  """

  data: str
  known: bool
  mean: float
  sd: float
  low: float
  high: float
  models: int


def scores_of(
  frame: 'pd.DataFrame', targets: Sequence[str], lora: bool | None = False
) -> 'pd.DataFrame':
  """Models × data sets: mean of the targets' scores, of the block most is known of.

  Args:
    frame: From `table.read`.
    targets: Score columns.
    lora: Which method; None takes the mean of both.

  Raises:
    UserError: a target the table does not have, or no rows of that method.
  """
  for target in targets:
    if target not in table_lib.benchmarks(frame):
      raise UserError(f'the table has no scores of {target}', 'targets', 'name a column of it')
  if not targets:
    raise UserError('no target given', 'targets', 'name what is to be improved')
  core = table_lib.core(frame)
  if lora is not None:
    core = core[core['lora'] == lora]
  if core.empty:
    raise UserError('the table has no rows of that method', 'lora', 'use the other')
  rows = core.assign(_score=core[list(targets)].mean(axis=1, skipna=False))
  return rows.pivot_table(index='model_name', columns='data_name', values='_score')


def recommend(
  scores: 'pd.DataFrame', candidates: Sequence[str] = (), base: str = '', error: float = 0.05
) -> list[Expected]:
  """Expected effects of data sets on a model, the best first; unknown ones last.

  Two-way layout: score[model, data] = model + effect[data] + own[model, data], effects and own
  parts random with variances estimated by the analysis of variance (Henderson's method 1 of an
  unbalanced table, Biometrics 9, 1953). An effect's best linear predictor is n τ² / (n τ² + σ²)
  of its mean over n models; a further model shows it with variance σ² + τ² σ² / (n τ² + σ²).
  Each data set has its own σ, drawn towards that of all by as many models again.

  Args:
    scores: See `scores_of`.
    candidates: Data sets to tell of; () for all of the table.
    base: The model asked about; rows of it are not used.
    error: Of the intervals.

  Raises:
    UserError: fewer than three models or data sets are left.
  """
  known = scores.drop(index=base, errors='ignore')
  x = known.to_numpy(np.float64)
  if x.shape[0] < 3 or x.shape[1] < 3:
    raise UserError(
      f'{x.shape[0]} other models and {x.shape[1]} data sets tell too little',
      'the table',
      'it takes three of each',
    )
  fitted = _fit(x)
  reach = float(special.stdtrit(fitted.freedom, 1 - error / 2))
  out = []
  for name in candidates or list(known.columns):
    column = known.columns.get_loc(name) if name in known.columns else None
    if column is None or not fitted.counts[column]:
      sd = math.sqrt(fitted.between + fitted.within)
      out.append(Expected(name, False, 0.0, sd, -reach * sd, reach * sd, 0))
      continue
    mean, n = float(fitted.means[column]), int(fitted.counts[column])
    within = float(fitted.own[column])
    shrink = n * fitted.between / (n * fitted.between + within) if fitted.between else 0.0
    left = fitted.between * (1 - shrink)
    sd = math.sqrt(within + left)
    center = shrink * mean
    out.append(Expected(name, True, center, sd, center - reach * sd, center + reach * sd, n))
  return sorted(out, key=lambda one: (not one.known, -one.mean, one.data))


def by_predictor(
  scores: 'pd.DataFrame',
  predictor: 'pd.DataFrame',
  own: Mapping[str, float],
  base: str = '',
  error: float = 0.05,
) -> list[Expected]:
  """What a property of the data leads to expect of data sets outside the table, none if it cannot.

  Effects of the table's data sets (`recommend`) on their mean property, both centred within models,
  by least squares; a new one is predicted with the usual interval of a further observation, widened
  by what a further model departs from an effect. Properties measured under a base are comparable
  through the data sets that were measured there and stand in the table.

  Args:
    scores: See `scores_of`.
    predictor: Models × data sets, such as logarithms of perplexities.
    own: {data set: the same under the model asked about}, of the table and outside it.
    base: The model asked about; rows of it are not used.
    error: Of the intervals.
  """
  known = scores.drop(index=base, errors='ignore').dropna(how='all')
  known = known.drop(columns=[c for c in known if known[c].isna().all()])
  also = predictor.reindex(index=known.index, columns=known.columns)
  shared = [c for c in known if also[c].notna().any()]
  anchors = [c for c in shared if c in own]
  new = [c for c in own if c not in known.columns]
  if len(shared) < _LEAST_DATA or not anchors or not new:
    return []
  fitted, properties = _fit(known[shared].to_numpy(np.float64)), _fit(also[shared].to_numpy(float))
  x, y, n = properties.means, fitted.means, len(shared)
  spread = float(np.square(x - x.mean()).sum())
  if spread <= 0:
    return []
  slope = float((x - x.mean()) @ y) / spread
  line = lambda at: float(y.mean()) + slope * (at - float(x.mean()))
  residual = float(np.square(y - [line(at) for at in x]).sum()) / (n - 2)
  shift = float(np.mean([own[c] - x[shared.index(c)] for c in anchors]))
  reach = float(special.stdtrit(n - 2, 1 - error / 2))
  out = []
  for name in new:
    at = own[name] - shift
    further = residual * (1 + 1 / n + (at - float(x.mean())) ** 2 / spread)
    moved = slope**2 * properties.within * (1 + 1 / len(anchors))
    sd = math.sqrt(further + fitted.within + moved)
    mean = line(at)
    out.append(Expected(name, False, mean, sd, mean - reach * sd, mean + reach * sd, 0))
  return sorted(out, key=lambda one: (-one.mean, one.data))


@dataclasses.dataclass(frozen=True)
class _Fit:
  means: np.ndarray
  counts: np.ndarray
  between: float
  within: float
  own: np.ndarray
  freedom: float


def _fit(x: np.ndarray) -> _Fit:
  there = ~np.isnan(x)
  counts = there.sum(0)
  # Row and column means of an unbalanced table, by least squares: a model that lacks its best data
  # set would else look worse, and so its others better.
  columns = np.zeros(x.shape[1])
  for _ in range(100):
    rows = np.nanmean(x - columns, 1)
    columns = np.where(counts > 0, _mean(np.where(there, x - rows[:, None], 0.0), counts), 0.0)
    columns -= columns[counts > 0].mean()
  rest = np.where(there, x - rows[:, None] - columns, 0.0)
  n, k = int((there.sum(1) > 0).sum()), int((counts > 0).sum())
  freedom = max(float(there.sum() - n - k + 1), 1.0)
  within = float(np.square(rest).sum() / freedom)
  typical = float(1 / np.mean(1 / counts[counts > 0]))
  between = max(float(columns[counts > 0].var(ddof=1)) - within / typical, 0.0)
  # Of a residual's variance (1 − 1/n)(1 − 1/k) is left by the fit of rows and columns.
  lost = (1 - 1 / n) * (1 - 1 / k)
  own = (np.square(rest).sum(0) / lost + n * within) / (counts + n)
  return _Fit(columns, counts, between, within, own, freedom)


def _mean(summed: np.ndarray, counts: np.ndarray) -> np.ndarray:
  return summed.sum(0) / np.maximum(counts, 1)


def drift(frame: 'pd.DataFrame', targets: Sequence[str], early: Any, late: Any) -> float:
  """How far data sets move against each other from one stage of training to a later one, points.

  Standard deviation over data sets, within models, of score[late] − score[early].

  Args:
    frame: From `table.read`.
    targets: Score columns; their mean counts.
    early: {column: value} that picks the rows of a stage, such as size and epoch.
    late: The same of the later one.

  Raises:
    UserError: no model has two data sets at both stages.
  """
  picked = []
  for stage in (early, late):
    rows = frame[np.logical_and.reduce([frame[key] == value for key, value in stage.items()])]
    score = rows[list(targets)].mean(axis=1, skipna=False)
    index = [rows['model_name'], rows['data_name']]
    picked.append(score.groupby(index).mean())
  change = (picked[1] - picked[0]).dropna()
  centred = change - change.groupby(level=0).transform('mean')
  freedom = len(change) - change.index.get_level_values(0).nunique()
  if freedom < 1:
    raise UserError('no model has two data sets at both stages', 'the table', 'give other stages')
  return math.sqrt(float(np.square(centred).sum()) / freedom)


def leave_one_out(scores: 'pd.DataFrame', error: float = 0.05) -> list[dict[str, float]]:
  """For each model, what the others would have recommended, judged by what it then showed.

  Each: `spearman` between expected and shown; `regret` of training the first, of its best data
  set, in points; `regret-3` of training the first three and keeping the best; `cover`, share of
  intervals that hold what was shown; beside them `mean-…`, ordering by the plain mean over models,
  and `random-…`, what any order gives on average. Shown values are centred on the model's mean.
  """
  out = []
  for model in scores.index:
    shown = scores.loc[model].dropna()
    if len(shown) < 3:
      continue
    found = {one.data: one for one in recommend(scores, list(shown.index), model, error)}
    found = {name: one for name, one in found.items() if one.known}
    shown = shown[list(found)]
    expected = np.array([found[name].mean for name in shown.index])
    plain = scores.drop(index=model)[list(shown.index)].mean().to_numpy()
    x = shown.to_numpy(np.float64)
    # Both centred on the same data sets, or a model that lacks one would shift all intervals.
    rest = (x - x.mean()) - (expected - expected.mean())
    half = np.array([(one.high - one.low) / 2 for one in found.values()])
    row = {'model': model, 'cover': float((np.abs(rest) <= half).mean()), 'n': len(x)}
    row |= _judged('', expected, x) | _judged('mean-', plain, x)
    row |= {'random-spearman': 0.0, 'random-regret': float(x.max() - x.mean())}
    row['random-regret-3'] = float(x.max() - _best_of_random(x, 3))
    out.append(row)
  return out


def _judged(prefix: str, expected: np.ndarray, shown: np.ndarray) -> dict[str, float]:
  order = np.argsort(-expected, kind='stable')
  ranks = [np.unique(values, return_inverse=True)[1] for values in (expected, shown)]
  both = all(len(set(rank)) > 1 for rank in ranks)
  spearman = float(np.corrcoef(_ranks(expected), _ranks(shown))[0, 1]) if both else math.nan
  best = float(shown.max())
  return {
    f'{prefix}spearman': spearman,
    f'{prefix}regret': best - float(shown[order[0]]),
    f'{prefix}regret-3': best - float(shown[order[:3]].max()),
  }


def _ranks(values: np.ndarray) -> np.ndarray:
  """Ranks, ties by their mean."""
  _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
  ends = np.cumsum(counts)
  return (ends - (counts - 1) / 2)[inverse]


def _best_of_random(x: np.ndarray, k: int) -> float:
  """Expected maximum of k of the values, drawn without replacement."""
  ordered = np.sort(x)
  total = math.comb(len(x), k)
  return sum(float(v) * math.comb(i, k - 1) / total for i, v in enumerate(ordered) if i >= k - 1)

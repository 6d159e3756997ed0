"""Finds rows that share scores they can hardly share by chance: copies and wrong merges.

Two rows may well have an equal score. How surprising that is depends on how finely the score is
measured and how many rows lie near it: with step r of a column and distance h to the fifth nearest
other row, a row that lies as near as these is equal by chance with probability about r / 2h. The
surprise of a pair is the sum of −log10 of that over its equal columns. What is equal because it is
degenerate (many zeros, the lowest grade of a judge) has many neighbours and so surprises nobody.
Bases are neighbours of bases only, where there are enough: two models have less in common than the
runs of one.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from sft_jax.analysis import table

if TYPE_CHECKING:
  import pandas as pd

_NEIGHBOURS = 5
# Decades of surprise, at least; the tests hold them against clean tables of a thousand rows.
ALONE = 11.0  # A pair by itself.
PART = 5.5  # A pair that is one of several of one kind, such as equal but for the schedule.
TOGETHER = 20.0  # Such pairs, of at least `_SEVERAL`, in all.
BASES = 7.0  # Two bases: few pairs, so less is needed.
_SEVERAL = 3
# Columns a copy has in common at least, each of which surprises (in decades).
_COLUMNS, _COUNTS = 3, 0.3
_BLOCK = 512


class Pair(NamedTuple):
  """Two rows (positions in the frame) with equal scores in `columns`, and how surprising it is."""

  first: int
  second: int
  columns: tuple[str, ...]
  surprise: float


def base_pairs(frame: 'pd.DataFrame', columns: Sequence[str]) -> list[Pair]:
  """Untrained rows of different models that are copies of one another, whole or in part."""
  base = np.flatnonzero(table.is_base(frame))
  first = frame.iloc[base].drop_duplicates('model_name')
  keep = np.isin(frame.index[base], first.index)
  found = _pairs(frame, columns, base[keep], BASES, among=base[keep])
  return [pair for pair in found if len(pair.columns) >= _COLUMNS]


def row_pairs(frame: 'pd.DataFrame', columns: Sequence[str]) -> dict[str, list[Pair]]:
  """Trained rows with copied columns, by what the rows of a pair differ in.

  Returns:
    {kind: pairs}: such as 'lr_strategy: constant / cosine, of OLMo'.
  """
  trained = np.flatnonzero(~table.is_base(frame))
  kinds: dict[str, list[Pair]] = {}
  for pair in _pairs(frame, columns, trained, PART):
    kinds.setdefault(_kind(frame, pair), []).append(pair)
  return {
    kind: pairs
    for kind, pairs in kinds.items()
    if max(pair.surprise for pair in pairs) >= ALONE
    or (len(pairs) >= _SEVERAL and sum(pair.surprise for pair in pairs) >= TOGETHER)
  }


def likelier_owner(
  frame: 'pd.DataFrame', columns: Sequence[str], models: tuple[str, str]
) -> tuple[str | None, float]:
  """Which of two models a base row that both have is likelier of.

  Training moves a score up and down from its base; a base that lies outside all that its model ever
  scores is suspicious. The excess over that range, in sd of the column, is summed for each model.

  Returns:
    The model of less excess, None where the two are within one sd; and the difference.
  """
  trained, base = frame[~table.is_base(frame)], frame[table.is_base(frame)]
  row = base[base['model_name'] == models[0]][list(columns)].iloc[0]
  spread = trained[list(columns)].std(ddof=1)
  excess = []
  for model in models:
    own = trained[trained['model_name'] == model][list(columns)]
    if own.empty:
      return None, 0.0
    outside = np.maximum(row - own.max(), own.min() - row).clip(lower=0)
    excess.append(float((outside / spread.where(spread > 0)).sum()))
  gap = excess[1] - excess[0]
  if abs(gap) < 1:
    return None, gap
  return (models[0] if gap > 0 else models[1]), gap


def surprise(values: np.ndarray, step: float | None = None) -> np.ndarray:
  """−log10 of the chance that a near row equals each value [rows]; 0 where unknown or few.

  Args:
    values: [rows], NaN where unknown.
    step: Between two values that can be told apart; None: the smallest there is.
  """
  out = np.zeros(len(values))
  known = np.flatnonzero(np.isfinite(values))
  x = values[known]
  order = np.argsort(x)
  ordered = x[order]
  step = _step(x) if step is None else step
  if len(x) <= _NEIGHBOURS or step is None:
    return out
  # Of the windows of k + 1 neighbours that hold a value, the one that reaches least far.
  reach = np.full(len(x), np.inf)
  for shift in range(_NEIGHBOURS + 1):
    low, high = np.arange(len(x)) - shift, np.arange(len(x)) - shift + _NEIGHBOURS
    fits = (low >= 0) & (high < len(x))
    far = np.maximum(ordered[fits] - ordered[low[fits]], ordered[high[fits]] - ordered[fits])
    reach[fits] = np.minimum(reach[fits], far)
  decades = -np.log10(np.minimum(1.0, step / np.maximum(2 * reach, step)))
  out[known[order]] = decades
  return out


def _step(x: np.ndarray) -> float | None:
  gaps = np.diff(np.unique(x[np.isfinite(x)]))
  gaps = gaps[gaps > 1e-6]
  return float(gaps.min()) if len(gaps) else None


def _pairs(
  frame: 'pd.DataFrame',
  columns: Sequence[str],
  rows: np.ndarray,
  least: float,
  among: np.ndarray | None = None,
) -> list[Pair]:
  """Pairs of these rows with at least so many decades of surprise among others (None: all)."""
  values = frame[list(columns)].to_numpy(float)
  if not len(columns):
    return []
  if among is not None and len(among) > _NEIGHBOURS + 1:
    near = [surprise(column[among], _step(column)) for column in values.T]
    weights = np.zeros(values.shape)
    weights[among] = np.stack(near, 1)
  else:
    weights = np.stack([surprise(column) for column in values.T], 1)
  values, weights = values[rows], weights[rows]
  found = []
  for start in range(0, len(rows), _BLOCK):
    part = slice(start, start + _BLOCK)
    total = np.zeros((len(values[part]), len(rows)))
    for x, w in zip(values.T, weights.T, strict=True):
      total += (x[part, None] == x[None, :]) * w[part, None]
    for i, j in zip(*np.nonzero(total >= least), strict=True):
      if start + i >= j:
        continue
      equal = values[start + i] == values[j]
      telling = equal & (weights[j] >= _COUNTS)
      if telling.sum() >= _COLUMNS:
        names = tuple(c for c, same in zip(columns, equal, strict=True) if same)
        found.append(Pair(int(rows[start + i]), int(rows[j]), names, float(total[i, j])))
  return found


def _kind(frame: 'pd.DataFrame', pair: Pair) -> str:
  """What the rows differ in; the data set, if both have it, is left out, so that pairs gather."""
  a, b = frame.iloc[pair.first], frame.iloc[pair.second]
  parts = []
  for column in table.META:
    left, right = a[column], b[column]
    if left != right:
      parts.append(f'{column}: {" / ".join(sorted((_word(left), _word(right))))}')
  own = '' if a['model_name'] != b['model_name'] else f', of {a["model_name"]}'
  return ('; '.join(parts) or 'nothing') + own


def _word(value: object) -> str:
  return f'{value:g}' if isinstance(value, float) else str(value)

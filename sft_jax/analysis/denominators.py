"""Finds columns whose values are of different definitions, by the denominators that explain them.

A share of n items is one of k/n, as far as it was rounded; a mean over M subjects, printed in full,
is a multiple of 1/M of what one subject can score. A column that no single denominator explains,
but two do, was measured in two ways. Scores of judges are no such shares, and none explains them.
"""

import dataclasses
import math

import numpy as np

# With more items, two decimals tell too little: half of all shares of 10,042 are shares of 5,021.
_MOST_ITEMS, _MOST_SUBJECTS = 4000, 400
_FEWEST_VALUES = 20
# A denominator must explain so much more than chance that this many decades of doubt are left.
_DECADES = 8.0
# Cells that may stay unexplained (misprints), of all.
_REST = 0.01
# Two denominators differ by at least this share.
_APART = 0.05


@dataclasses.dataclass(frozen=True)
class Mixed:
  """Two definitions in one column.

  Attributes:
    kind: 'subjects' or 'items'.
    first: The denominator of most values.
    second: That of the rest.
    is_second: [rows] True where only the second explains the value.
  """

  kind: str
  first: int
  second: int
  is_second: np.ndarray


def mixed(values: np.ndarray) -> Mixed | None:
  """Tells whether a column on 0–100 is of two definitions.

  Args:
    values: [rows], NaN where unknown.
  """
  known = np.isfinite(values)
  x = values[known]
  if len(np.unique(x)) < _FEWEST_VALUES:
    return None
  rounded = np.abs(x * 100 - np.round(x * 100)) < 1e-6
  if rounded.mean() < 0.5:
    kind, counts, explained, chance = 'subjects', *_subjects(x)
  else:
    kind, counts, explained, chance = 'items', *_items(x)
  total = explained.sum(axis=1)
  enough = len(x) * (1 - _REST)
  if (total >= enough).any():
    return None
  convincing = _decades(total, len(x), chance) >= _DECADES + math.log10(len(counts))
  if not convincing.any():
    return None
  # What explains most beyond chance.
  first = int(np.argmax(np.where(convincing, total - len(x) * chance, -np.inf)))
  left = ~explained[first]
  rest = explained[:, left].sum(axis=1)
  good = _decades(rest, int(left.sum()), chance) >= _DECADES + math.log10(len(counts))
  good &= rest >= left.sum() - len(x) * _REST
  # Small shares of n items are nearly shares of n + 1: that is no other definition.
  good &= np.abs(counts - counts[first]) > _APART * counts[first]
  if not good.any():
    return None
  second = int(np.flatnonzero(good)[0])
  mask = np.zeros(len(values), bool)
  mask[np.flatnonzero(known)[left & explained[second]]] = True
  return Mixed(kind, int(counts[first]), int(counts[second]), mask)


def _subjects(x: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Means over M subjects, each given to two decimals: x·M·100 is whole."""
  counts = np.arange(1, _MOST_SUBJECTS + 1)
  scaled = np.outer(counts * 100.0, x)
  tolerance = 1e-5
  return counts, np.abs(scaled - np.round(scaled)) < tolerance, np.full(len(counts), 2 * tolerance)


def _items(x: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Shares of n items, rounded to two decimals: some k has |100·k/n − x| ≤ 0.005."""
  counts = np.arange(20, _MOST_ITEMS + 1)
  scaled = np.outer(counts / 100.0, x)
  gap = np.abs(scaled - np.round(scaled)) * (100.0 / counts)[:, None]
  return counts, gap <= 0.00501, np.minimum(1.0, counts / 1e4)


def _decades(hits: np.ndarray, n: int, chance: np.ndarray) -> np.ndarray:
  """−log10 of an upper bound of P(at least so many of n by chance) (Chernoff)."""
  if n == 0:
    return np.zeros(len(hits))
  share = hits / n
  with np.errstate(divide='ignore', invalid='ignore'):
    inside = share * np.log(share / chance) + (1 - share) * np.log((1 - share) / (1 - chance))
  at_one = -np.log(chance)
  distance = np.where(share >= 1, at_one, np.nan_to_num(inside, nan=0.0, posinf=0.0))
  return np.where(share > chance, n * distance / math.log(10), 0.0)

"""What the data sets of a single model tell: rank correlations, depths, repeats with other seeds.

Intervals are over data sets; nothing here says how a finding carries over to other models (that is
`predictors.py`, which needs several). Vectors are over data sets, without NaN.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from statistics import NormalDist
from typing import Any

import numpy as np

from sft_jax.analysis import correlations, resampling
from sft_jax.utils.errors import UserError

FEWEST = 4


def rank_correlation(
  x: np.ndarray, y: np.ndarray, shuffles: int = 10_000, seed: int = 0
) -> dict[str, float]:
  """Spearman's rank correlation with its interval and p-value.

  Args:
    x: One value for each data set.
    y: The same.
    shuffles: Permutations for p.
    seed: Of these.

  Returns:
    `n`, `rho`; `low`, `high`, the 95 % interval tanh(atanh rho ± z √((1 + rho²/2) / (n - 3)))
    (Bonett & Wright 2000, Psychometrika 65:23); `p`, two-sided, by permutation.

  Raises:
    UserError: fewer than four values, or one that does not vary.
  """
  x, y = _vectors(x, y)
  rho = correlations.spearman(x, y)
  z = NormalDist().inv_cdf((1 + resampling.LEVEL) / 2)
  half = z * math.sqrt((1 + rho**2 / 2) / (len(x) - 3))
  centre = float(resampling.fisher(np.array(rho)))
  rng = np.random.default_rng(seed)
  index = resampling.permutations(rng, shuffles, 1, len(x), common=True)[:, 0]
  ranks = _ranks(x), _ranks(y)
  chance = np.abs(correlations.rows(ranks[0], ranks[1][index]))
  p = (1 + (chance >= abs(rho) - 1e-12).sum()) / (1 + shuffles)
  low, high = math.tanh(centre - half), math.tanh(centre + half)
  return {'n': len(x), 'rho': rho, 'low': low, 'high': high, 'p': float(p)}


def closer(first: np.ndarray, second: np.ndarray, y: np.ndarray) -> dict[str, float]:
  """Whether one predictor's ranks are closer to `y` than another's: |ρ| less |ρ|.

  Returns:
    `n`, `value`, and its `low, high`: jackknife over data sets, Student's t.
  """
  first, y = _vectors(first, y)
  second, _ = _vectors(second, y)

  def difference(held: np.ndarray) -> float:
    one, two = (correlations.spearman(x[held], y[held]) for x in (first, second))
    return abs(one) - abs(two)

  return jackknife(difference, len(y))


def middle(pairs: Sequence[tuple[np.ndarray, np.ndarray]]) -> dict[str, Any]:
  """Whether change in the middle third of depths goes with gain more than in both outer thirds.

  Args:
    pairs: For each method `[D, P]` changes of D data sets at P depths from 0 to 1, and their `[D]`
      gains; the same data sets in each.

  Returns:
    `r`: for each method Pearson's correlation at each depth; `value`: its mean over the middle
    third less that over the others, mean over methods; `low, high` of the latter, jackknife over
    data sets.

  Raises:
    UserError: see `rank_correlation`.
  """
  held = []
  for values, y in pairs:
    values = np.asarray(values, np.float64)
    held.append((values, _vectors(values[:, 0], y)[1]))
  inner = thirds(held[0][0].shape[1])

  def contrast(chosen: np.ndarray) -> float:
    r = np.array([correlations.rows(values[chosen].T, y[chosen]) for values, y in held])
    return float((r[:, inner].mean(1) - r[:, ~inner].mean(1)).mean())

  found: dict[str, Any] = dict(jackknife(contrast, len(held[0][1])))
  return found | {'r': [correlations.rows(values.T, y).tolist() for values, y in held]}


def thirds(depths: int) -> np.ndarray:
  """Which of so many depths from 0 to 1, at equal steps, lie in the middle third."""
  at = np.linspace(0, 1, depths)
  return (at >= 1 / 3 - 1e-9) & (at <= 2 / 3 + 1e-9)


def seeds(groups: Mapping[str, Sequence[float]]) -> dict[str, float]:
  """Whether data sets differ by more than repeats with other seeds.

  One-way analysis of variance: F test of data sets against repeats, and the intraclass correlation
  ICC(1), the share of variance that is the data sets', with its exact 95 % interval (Shrout &
  Fleiss 1979, Psychological Bulletin 86:420).

  Args:
    groups: {data set: values of its repeats}, as many of each, two or more.

  Returns:
    `groups`, `repeats`, `sd_seeds` (within), `sd_data` (of the data sets' true means; 0 where the
    estimate is negative), `f`, `p`, `icc`, `low`, `high`.

  Raises:
    UserError: fewer than two data sets, or unequal or single repeats.
  """
  from scipy import stats

  sizes = {len(values) for values in groups.values()}
  if len(groups) < 2 or len(sizes) != 1 or min(sizes) < 2:
    raise UserError(
      'seeds are compared over two data sets or more with as many repeats each', 'seeds'
    )
  table = np.array([list(values) for values in groups.values()], np.float64)
  n, k = table.shape
  within = float(np.square(table - table.mean(1, keepdims=True)).sum() / (n * (k - 1)))
  between = float(k * np.square(table.mean(1) - table.mean()).sum() / (n - 1))
  f = between / within if within > 0 else math.inf
  tail = (1 + resampling.LEVEL) / 2
  least = f / stats.f.ppf(tail, n - 1, n * (k - 1))
  most = f * stats.f.ppf(tail, n * (k - 1), n - 1)
  share = lambda ratio: 1.0 if math.isinf(ratio) else (ratio - 1) / (ratio + k - 1)
  return {
    'groups': n,
    'repeats': k,
    'sd_seeds': math.sqrt(within),
    'sd_data': math.sqrt(max(between - within, 0.0) / k),
    'f': f,
    'p': float(stats.f.sf(f, n - 1, n * (k - 1))),
    'icc': share(f),
    'low': share(float(least)),
    'high': share(float(most)),
  }


def mean_interval(values: Sequence[float]) -> dict[str, float]:
  """Mean with its 95 % interval (Student's t), and p of its being 0.

  Raises:
    UserError: fewer than two values.
  """
  x = np.asarray(values, np.float64)
  if len(x) < 2:
    raise UserError(f'{len(x)} values have no interval', 'mean')
  return _student(x.mean(), (x - x.mean()) / len(x))


def jackknife(statistic: Callable[[np.ndarray], float], count: int) -> dict[str, float]:
  """A statistic of data sets with its 95 % interval by leaving each out (Student's t).

  Args:
    statistic: Of the indices of the data sets that count.
    count: How many there are.

  Returns:
    `n`, `value`, `low`, `high`, and `p` of its being 0.
  """
  every = np.arange(count)
  left = np.array([statistic(np.delete(every, one)) for one in every])
  return _student(statistic(every), (left.mean() - left) * (count - 1) / count)


def _student(value: float, influence: np.ndarray) -> dict[str, float]:
  low, high, p = map(float, resampling.students(np.asarray(value), influence))
  return {'n': len(influence), 'value': float(value), 'low': low, 'high': high, 'p': p}


def _vectors(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  x, y = (np.asarray(values, np.float64) for values in (x, y))
  if x.shape != y.shape or x.ndim != 1 or len(x) < FEWEST:
    raise UserError(
      f'{x.shape} and {y.shape} values', 'rank correlation', f'give {FEWEST} or more of each'
    )
  if not (np.isfinite(x).all() and np.isfinite(y).all()) or np.ptp(x) == 0 or np.ptp(y) == 0:
    raise UserError('a variable does not vary, or is not known of all', 'rank correlation')
  return x, y


def _ranks(x: np.ndarray) -> np.ndarray:
  from scipy import stats

  return stats.rankdata(x)

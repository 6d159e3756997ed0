"""How many arms to let into each rung that is left, for the best expected pick within a budget.

Every schedule the budget allows is tried on drawn worlds: true gains from what is known of each
arm, measurements with the noise and drift of each rung. Not for holding a race: `race.py`.
"""

import itertools
import math
from collections.abc import Sequence

import numpy as np

_WORLDS = 400
# Points that all of the budget is worth: what gains less is not paid for.
_THRIFT = 0.05


def best_schedule(
  known: Sequence[tuple[float, float]],
  costs: Sequence[float],
  noise: Sequence[float],
  budget: float,
  first: int = 0,
  least: int = 1,
) -> tuple[int, ...]:
  """Arms at each rung; 0 passes over a rung; () where the budget allows none.

  Args:
    known: (mean, variance) of the gain of each arm at full size, as far as known; best first.
    costs: Of one arm at each rung that is left, all its seeds.
    noise: Variance of a measurement at each of them as a measurement of full size.
    budget: For all of them.
    first: How many arms must be in the first of them; 0 leaves it open.
    least: How many must be in one of them.
  """
  means, variances = np.array(known).T
  options = _feasible(len(known), costs, budget, first, least)
  if not options:
    return ()
  rng = np.random.default_rng(0)
  truth = rng.normal(means, np.sqrt(variances), (_WORLDS, len(known)))
  shown = [truth + rng.normal(0, math.sqrt(max(v, 1e-9)), truth.shape) for v in noise]
  worth = lambda counts: (
    _value(counts, truth, shown, (means, variances), noise)
    - _THRIFT * sum(n * cost for n, cost in zip(counts, costs, strict=True)) / budget
  )
  return max(options, key=worth)


def _feasible(
  arms: int, costs: Sequence[float], budget: float, first: int, least: int
) -> list[tuple[int, ...]]:
  steps = [n for n in (1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 24, 32, 48, 64) if n < arms] + [arms]
  choices = [[first] if i == 0 and first else [0, *steps] for i in range(len(costs) - 1)]
  last = [first] if first and len(costs) == 1 else steps
  out = []
  for counts in itertools.product(*choices, last):
    there = [n for n in counts if n]
    falls = there[0] >= least and all(a >= b for a, b in itertools.pairwise(there))
    if falls and sum(n * cost for n, cost in zip(counts, costs, strict=True)) <= budget:
      out.append(counts)
  return out


def _value(
  counts: Sequence[int],
  truth: np.ndarray,
  shown: Sequence[np.ndarray],
  known: tuple[np.ndarray, np.ndarray],
  noise: Sequence[float],
) -> float:
  """Mean true gain of the arm that a schedule picks."""
  precision = np.broadcast_to(1 / known[1], truth.shape).copy()
  weighted = np.broadcast_to(known[0] / known[1], truth.shape).copy()
  inside = np.ones(truth.shape, bool)
  for n, seen, variance in zip(counts, shown, noise, strict=True):
    if not n:
      continue
    mean = np.where(inside, weighted / precision, -np.inf)
    if n < truth.shape[1]:
      order = np.argsort(-mean, axis=1, kind='stable')[:, :n]
      inside = np.zeros(truth.shape, bool)
      np.put_along_axis(inside, order, True, 1)
    weight = inside / max(variance, 1e-9)
    precision += weight
    weighted += weight * seen
  pick = np.where(inside, weighted / precision, -np.inf).argmax(1)
  return float(truth[np.arange(len(truth)), pick].mean())

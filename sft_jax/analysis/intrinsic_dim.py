"""Intrinsic dimension of sets of vectors by nearest neighbours: TwoNN and Gride.

Formulas: TwoNN, Facco et al. 2017; Gride, Denti et al. 2022 (both as in DADApy). Distances are
Euclidean and exact. Not for where the vectors come from: the probe `hidden_states`.
"""

import itertools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from sft_jax.utils.errors import UserError

SCALES = (1, 2, 4)
_BLOCK_BYTES = 64 << 20
_LEAST = 10
_BRACKET, _HALVINGS = (1e-3, 1e3), 60
_FIT_SHARE = 0.9
# The likelihood takes points as independent, but neighbours share neighbours: over repeated samples
# of Gaussians of 2 to 10 dimensions, estimates scatter up to so many times as much.
_DEPENDENCE = 1.35
# Neighbours looked at besides those wanted, before distances are computed to full precision.
_SPARE = 4


class Dimension(NamedTuple):
  """An intrinsic dimension at one scale; `stderr` is 1 / sqrt(Fisher information), widened."""

  value: float
  stderr: float


def neighbours(vectors: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
  """Exact distances to nearest neighbours, in blocks.

  Args:
    vectors: `[N, H]`; of equal ones, only the first counts.
    count: Neighbours wanted.

  Returns:
    float64 `[n, count]` distances of the n different vectors, ascending, and their indices `[n]`.

  Raises:
    UserError: values that are not finite, or too few different vectors.
  """
  vectors = np.asarray(vectors)
  if vectors.ndim != 2 or not np.isfinite(vectors).all():
    raise UserError('vectors must be a finite table', how='look at the probe that wrote them')
  kept = np.sort(np.unique(vectors, axis=0, return_index=True)[1])
  if len(kept) < max(count + 2, _LEAST):
    raise UserError(
      f'only {len(kept)} different vectors',
      how=f'at least {max(count + 2, _LEAST)} are needed; 1000 texts are usual',
    )
  points = vectors[kept].astype(np.float64)
  points -= points.mean(0)
  squares = np.square(points).sum(1)
  out = np.empty((len(points), count))
  candidates = min(count + _SPARE, len(points) - 1)
  width = max(8 * len(points), 8 * candidates * points.shape[1])
  rows = max(1, _BLOCK_BYTES // width)
  for start in range(0, len(points), rows):
    block = points[start : start + rows]
    rough = squares[None, :] - 2 * (block @ points.T)
    rough[np.arange(len(block)), start + np.arange(len(block))] = np.inf
    near = np.argpartition(rough, candidates - 1, axis=1)[:, :candidates]
    # The expansion above cancels for points that lie close; their differences do not.
    exact = np.sqrt(np.square(points[near] - block[:, None]).sum(2))
    out[start : start + rows] = np.sort(exact, axis=1)[:, :count]
  return out, kept


def two_nn(distances: np.ndarray) -> tuple[float, float]:
  """TwoNN from distances to (at least) two neighbours: the fit, and the form of most likelihood.

  The fit is the slope through the origin of -ln(1 - i/N) over ln μ_(i), on the lowest 90 %; the
  other is (N - 1) / Σ ln μ_i; μ_i = r_i2 / r_i1.
  """
  logs = np.sort(np.log(distances[:, 1] / distances[:, 0]))
  n = len(logs)
  lowest = int(_FIT_SHARE * n)
  x, y = logs[:lowest], -np.log1p(-np.arange(1, lowest + 1) / n)
  with np.errstate(divide='ignore', invalid='ignore'):
    return float((x * y).sum() / np.square(x).sum()), float((n - 1) / logs.sum())


def gride(distances: np.ndarray, k: int) -> Dimension:
  """Gride at scale k, from distances to (at least) 2k neighbours; at k = 1 it is TwoNN-ML.

  The root of (N - 1)/d - Σ ln μ_i [(2k - 1) - (k - 1)/(1 - μ_i^-d)] with μ_i = r_i,2k / r_i,k, by
  bisection on [0.001, 1000].

  Raises:
    UserError: too few neighbours.
  """
  if distances.shape[1] < 2 * k:
    raise UserError(f'{distances.shape[1]} neighbours, scale {k} needs {2 * k}')
  logs = np.log(distances[:, 2 * k - 1] / distances[:, k - 1])
  # Ties (μ = 1) say that d is infinite and would make it so.
  logs = logs[logs > 0]
  n = len(logs)
  if n < _LEAST:
    return Dimension(math.nan, math.nan)

  def slope(d: float) -> float:
    inner = (k - 1) / -np.expm1(-d * logs)
    return float((n - 1) / d - (logs * ((2 * k - 1) - inner)).sum())

  low, high = _BRACKET
  for _ in range(_HALVINGS):
    middle = math.sqrt(low * high)
    low, high = (middle, high) if slope(middle) > 0 else (low, middle)
  d = math.sqrt(low * high)
  # Second derivative of the log-likelihood, in which μ^-d / (1 - μ^-d)² = 1 / (4 sinh²(d ln μ/2)).
  half = np.minimum(d * logs / 2, 300)
  information = n / d**2 + (k - 1) * float(np.square(logs / (2 * np.sinh(half))).sum())
  return Dimension(d, _DEPENDENCE / math.sqrt(information))


def estimate(vectors: np.ndarray, scales: Sequence[int] = SCALES) -> dict[str, Any]:
  """Intrinsic dimension of one set of vectors at several scales.

  Returns:
    `n` different vectors, `two_nn_fit`, `two_nn_ml`, `gride` {k: Dimension}, and `low, high`: from
    the lowest to the highest of the scales, each with two standard errors, and once more what
    separates the largest from the smallest scale beyond the latter. Sampling is the smaller part of
    the doubt; that estimates move with the scale (curvature, uneven density, noise) is the larger.
  """
  distances, _ = neighbours(vectors, 2 * max(scales))
  fit, likely = two_nn(distances)
  by_scale = {k: gride(distances, k) for k in sorted(scales)}
  finest, coarsest = by_scale[min(scales)], by_scale[max(scales)]
  beyond = Dimension(
    2 * finest.value - coarsest.value, math.hypot(2 * finest.stderr, coarsest.stderr)
  )
  ends = [one.value + side * one.stderr for one in (*by_scale.values(), beyond) for side in (-2, 2)]
  return {
    'n': len(distances),
    'two_nn_fit': fit,
    'two_nn_ml': likely,
    'gride': by_scale,
    'low': min(ends),
    'high': max(ends),
  }


def plateau(by_scale: dict[int, Dimension]) -> int:
  """The scale where the estimate changes least to the next, in ratio; the smaller of equals."""
  scales = sorted(by_scale)
  steps = [
    abs(math.log(by_scale[b].value / by_scale[a].value)) for a, b in itertools.pairwise(scales)
  ]
  return scales[int(np.argmin(steps))] if steps else scales[0]


def by_layer(base: np.ndarray, tuned: np.ndarray, k: int = 4) -> list[dict[str, float]]:
  """Change of the intrinsic dimension in each layer.

  The same texts, the same scale and the same number of vectors are used for both.

  Args:
    base: `[L, N, H]` states of the base.
    tuned: Those of a fine-tuned model for the same texts; H may differ, L not.
    k: Scale.

  Returns:
    For each layer: `depth` (0 to 1), `base`, `tuned`, `change`, and `stderr` of each
    (`base_stderr`, `tuned_stderr`, `change_stderr`). That of the change is as if both were
    independent; as they are of the same texts, it is rather too large.

  Raises:
    UserError: shapes that do not fit; see `neighbours`.
  """
  if base.shape[:2] != tuned.shape[:2]:
    raise UserError(
      f'states of {base.shape[:2]} and {tuned.shape[:2]} layers and texts',
      'intrinsic dimension by layer',
      'both models must be of equal depth and see the same texts',
    )
  rows = []
  for layer in range(len(base)):
    before, after = np.asarray(base[layer]), np.asarray(tuned[layer])
    # A text that repeats in either is left out of both.
    first = [np.unique(x, axis=0, return_index=True)[1] for x in (before, after)]
    kept = np.intersect1d(first[0], first[1])
    found = [gride(neighbours(x[kept], 2 * k)[0], k) for x in (before, after)]
    rows.append(
      {
        'depth': layer / max(len(base) - 1, 1),
        'base': found[0].value,
        'tuned': found[1].value,
        'change': found[1].value - found[0].value,
        'base_stderr': found[0].stderr,
        'tuned_stderr': found[1].stderr,
        'change_stderr': math.hypot(found[0].stderr, found[1].stderr),
      }
    )
  return rows

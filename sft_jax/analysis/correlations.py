"""Correlations over models and data sets, for many weightings of both at once.

Everything follows from sums over cells, so that ten thousand bootstrap samples are a few matrix
products. Letters: B weightings, M models, D data sets, V variables.
"""

import math
from collections.abc import Sequence

import numpy as np

from sft_jax.analysis import resampling

# A variance below this share of the whole variable's counts as none.
_NOTHING = 1e-12


class Moments:
  """Weighted sums of variables and their products, over cells that all variables have.

  Each statistic takes weights of models `[B, M]` and of cells (broadcasts to `[B, M, D]`; None: 1
  each) and gives `[B]`, NaN where it is not defined. The first variable is correlated with the
  second; further ones are what `partial` takes out.
  """

  def __init__(self, variables: Sequence[np.ndarray]):
    """Variables are `[M, D]`, NaN for a missing cell."""
    values = np.stack([np.asarray(v, np.float64) for v in variables], -1)
    held = np.asarray(np.isfinite(values).all(-1))
    inner = values[held]
    # Sums of products of standardised values lose nothing to cancellation.
    scale = inner.std(0)
    values = np.where(held[..., None], (values - inner.mean(0)) / np.where(scale > 0, scale, 1), 0)
    ones = held[..., None].astype(np.float64)
    products = values[..., :, None] * values[..., None, :] * ones[..., None]
    self._count = values.shape[-1]
    flat = products.reshape(*held.shape, -1)
    self._cells = np.concatenate([ones, values, flat], -1)  # [M, D, 1 + V + V²]

  def pooled(self, models: np.ndarray, cells: np.ndarray | None = None) -> np.ndarray:
    """r over all cells."""
    return _correlation(self._covariance(self._over_models(models, cells).sum(1)))

  def within_model(self, models: np.ndarray, cells: np.ndarray | None = None) -> np.ndarray:
    """tanh of the mean over models of atanh r over data sets."""
    return _mean_fisher(_correlation(self._covariance(self._over_datasets(cells))), models)

  def within_dataset(self, models: np.ndarray, cells: np.ndarray | None = None) -> np.ndarray:
    """tanh of the mean over data sets of atanh r over models."""
    r = _correlation(self._covariance(self._over_models(models, cells)))
    return _mean_fisher(r, np.ones(r.shape))

  def partial(self, models: np.ndarray, cells: np.ndarray | None = None) -> np.ndarray:
    """r of the first two, given their models' means and the further variables."""
    inner = self._covariance(self._over_datasets(cells))
    inner = np.broadcast_to(inner, (len(models), *inner.shape[1:]))
    covariance = np.einsum('bm,bmuv->buv', models, inner)
    if self._count == 2:
      return _correlation(covariance)
    rest, cross = covariance[:, 2:, 2:], covariance[:, 2:, :2]
    # The pseudo-inverse: in a small sample two predictors may be the same.
    explained = cross.swapaxes(1, 2) @ np.linalg.pinv(rest, hermitian=True) @ cross
    left = covariance[:, :2, :2] - explained
    start = np.einsum('bvv->bv', covariance)[:, :2]
    gone = np.einsum('bvv->bv', left) <= 1e-9 * start
    return np.where(gone.any(1), math.nan, _correlation(left))

  def _over_models(self, models: np.ndarray, cells: np.ndarray | None) -> np.ndarray:
    if cells is None:
      return np.einsum('bm,mdk->bdk', models, self._cells, optimize=True)
    weights = np.broadcast_to(models[:, :, None] * cells, (len(models), *self._cells.shape[:2]))
    return np.einsum('bmd,mdk->bdk', weights, self._cells, optimize=True)

  def _over_datasets(self, cells: np.ndarray | None) -> np.ndarray:
    if cells is None:
      return self._cells.sum(1)[None]
    weights = np.broadcast_to(cells, (len(cells), *self._cells.shape[:2]))
    return np.einsum('bmd,mdk->bmk', weights, self._cells, optimize=True)

  def _covariance(self, sums: np.ndarray) -> np.ndarray:
    """`[..., 1 + V + V²]` sums to `[..., V, V]` sums of products of deviations."""
    v = self._count
    count, first = np.maximum(sums[..., 0], 1e-30), sums[..., 1 : 1 + v]
    second = sums[..., 1 + v :].reshape(*sums.shape[:-1], v, v)
    return second - first[..., :, None] * first[..., None, :] / count[..., None, None]


def _correlation(covariance: np.ndarray) -> np.ndarray:
  """r of the first two variables, NaN where one does not vary."""
  x, y, xy = covariance[..., 0, 0], covariance[..., 1, 1], covariance[..., 0, 1]
  fine = (x > _NOTHING) & (y > _NOTHING)
  r = xy / np.sqrt(np.where(fine, x, 1) * np.where(fine, y, 1))
  return np.where(fine, np.clip(r, -1, 1), math.nan)


def _mean_fisher(r: np.ndarray, weights: np.ndarray) -> np.ndarray:
  """tanh of the weighted mean of atanh over the last axis; NaN do not count."""
  r = np.broadcast_to(r, weights.shape)
  held = np.where(np.isfinite(r), weights, 0.0)
  total = held.sum(-1)
  mean = (held * np.nan_to_num(resampling.fisher(r))).sum(-1) / np.maximum(total, 1e-30)
  return np.where(total > 0, np.tanh(mean), math.nan)


def rows(x: np.ndarray, y: np.ndarray) -> np.ndarray:
  """r over the last axis of two arrays that broadcast; NaN pairs do not count, nor fewer than 3."""
  x, y = np.broadcast_arrays(np.asarray(x, np.float64), np.asarray(y, np.float64))
  held = np.isfinite(x) & np.isfinite(y)
  count = np.maximum(held.sum(-1, keepdims=True), 1)
  deviations = []
  for values in (x, y):
    values = np.where(held, values, 0.0)
    deviations.append(np.where(held, values - values.sum(-1, keepdims=True) / count, 0.0))
  sizes = [np.square(d).sum(-1) for d in deviations]
  largest = [np.square(np.where(held, v, 0)).sum(-1) for v in (x, y)]
  fine = (
    (held.sum(-1) >= 3) & (sizes[0] > _NOTHING * largest[0]) & (sizes[1] > _NOTHING * largest[1])
  )
  fine &= (sizes[0] > 0) & (sizes[1] > 0)
  bottom = np.sqrt(np.where(fine, sizes[0] * sizes[1], 1))
  return np.where(fine, np.clip((deviations[0] * deviations[1]).sum(-1) / bottom, -1, 1), math.nan)


def mean_fisher(x: np.ndarray, y: np.ndarray) -> np.ndarray:
  """Mean over models of atanh r over data sets, of `[..., M, D]` arrays that broadcast."""
  r = rows(x, y)
  held = np.isfinite(r)
  z = np.where(held, resampling.fisher(np.where(held, r, 0)), 0.0)
  count = held.sum(-1)
  return np.where(count > 0, z.sum(-1) / np.maximum(count, 1), math.nan)


def spearman(x: np.ndarray, y: np.ndarray) -> float:
  """Rank correlation of two vectors without NaN, ties at their mean rank."""
  from scipy import stats

  return float(rows(stats.rankdata(x), stats.rankdata(y)))

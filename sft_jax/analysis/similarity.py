"""What moves together: models, data sets and benchmarks by their gains; components; variance.

Correlations are Pearson's over cells that both have.
"""

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from sft_jax.analysis import gains, resampling, table

if TYPE_CHECKING:
  import pandas as pd

_FEWEST = 3  # Cells in common for a correlation.


def correlations(rows: np.ndarray) -> np.ndarray:
  """Pearson's r of each two rows over the columns both know; NaN where undefined.

  Args:
    rows: [things, cells], NaN where unknown.

  Returns:
    [things, things], 1 on the diagonal.
  """
  count = len(rows)
  out = np.eye(count)
  for i in range(count):
    for j in range(i):
      both = np.isfinite(rows[i]) & np.isfinite(rows[j])
      out[i, j] = out[j, i] = pearson(rows[i, both], rows[j, both])
  return out


def pearson(x: np.ndarray, y: np.ndarray) -> float:
  """Pearson's r; NaN of fewer than three values, or of constant ones."""
  if len(x) < _FEWEST or np.ptp(x) == 0 or np.ptp(y) == 0:
    return float('nan')
  a, b = x - x.mean(), y - y.mean()
  return float(a @ b / np.sqrt((a @ a) * (b @ b)))


def centred(values: np.ndarray) -> np.ndarray:
  """Δᶜ[m,D,b] = Δ[m,D,b] − mean over D: a wrong base, and what all data do, cancel."""
  known = np.isfinite(values)
  n = known.sum(axis=1, keepdims=True)
  total = np.where(known, values, 0).sum(axis=1, keepdims=True)
  return values - np.divide(total, n, out=np.full(n.shape, np.nan), where=n > 0)


def order(matrix: np.ndarray) -> list[int]:
  """Order of things by clustering: distance 1 − r, average linkage, optimal leaf order."""
  from scipy.cluster import hierarchy
  from scipy.spatial import distance

  if len(matrix) < 3:
    return list(range(len(matrix)))
  apart = np.clip(1 - np.nan_to_num(matrix, nan=0.0), 0, 2)
  np.fill_diagonal(apart, 0)
  condensed = distance.squareform((apart + apart.T) / 2, checks=False)
  links = hierarchy.linkage(condensed, 'average', optimal_ordering=True)
  return [int(i) for i in hierarchy.leaves_list(links)]


def model_similarity(
  values: np.ndarray, models: Sequence[str], centre: bool = False
) -> dict[str, Any]:
  """Correlation of models over (data, benchmark), and what it says of families and languages.

  Args:
    values: Gains [model, data, benchmark].
    models: Their names.
    centre: Of `centred` gains.

  Raises:
    table.Skip: fewer than two models.
  """
  if len(models) < 2:
    raise table.Skip('needs two models or more')
  form = centred if centre else np.asarray
  matrix = correlations(form(values).reshape(len(models), -1))
  pairs = [(i, j) for i in range(len(models)) for j in range(i)]
  known = [(i, j) for i, j in pairs if np.isfinite(matrix[i, j])]
  if not known:
    raise table.Skip('needs models with gains on the same data and benchmarks')
  of = lambda chosen: [float(matrix[i, j]) for i, j in chosen]
  alike = lambda i, j: table.language(models[i]) == table.language(models[j])
  named = [(i, j) for i, j in known if table.language(models[i]) and table.language(models[j])]
  low, high = _mean_interval(values, form)
  least, most = (int(f(of(known))) for f in (np.argmin, np.argmax))
  return {
    **_spread(of(known)),
    'low': low,
    'high': high,
    'min_pair': [models[k] for k in known[least]],
    'max_pair': [models[k] for k in known[most]],
    'families': {
      f'{models[j]} / {models[i]}': float(matrix[i, j])
      for i, j in known
      if any(models[i] in names and models[j] in names for names in table.FAMILIES.values())
    },
    'same_language': _spread(of(p for p in named if alike(*p))),
    'different_language': _spread(of(p for p in named if not alike(*p))),
    'order': [models[i] for i in order(matrix)],
    'matrix': {
      a: {b: float(matrix[i, j]) for j, b in enumerate(models)} for i, a in enumerate(models)
    },
  }


def _mean_interval(
  values: np.ndarray, form: Callable[[np.ndarray], np.ndarray]
) -> tuple[float | None, float | None]:
  """95 % interval of the mean correlation of two models, over models and data sets."""
  if min(values.shape[:2]) < _FEWEST:
    return None, None
  jackknife = resampling.Jackknife(np.isfinite(values).any(axis=2))
  means = []
  for models, cells in zip(*jackknife.weights, strict=True):
    held = form(np.where(cells[..., None] > 0, values, np.nan)[models > 0])
    matrix = _fast_correlations(held.reshape(len(held), -1))
    off = matrix[np.tril_indices(len(matrix), -1)]
    means.append(off[np.isfinite(off)].mean() if np.isfinite(off).any() else np.nan)
  low, high = jackknife.interval(np.array(means))
  return (float(low), float(high)) if np.isfinite(low) else (None, None)


def _fast_correlations(rows: np.ndarray) -> np.ndarray:
  """As `correlations`, by matrix products over pairwise known cells."""
  known = np.isfinite(rows).astype(float)
  x = np.where(known > 0, rows, 0.0)
  n = known @ known.T
  with np.errstate(invalid='ignore', divide='ignore'):
    mean_x = x @ known.T / n
    cov = x @ x.T / n - mean_x * mean_x.T
    var = (x * x) @ known.T / n - mean_x**2
    return cov / np.sqrt(np.maximum(var, 0) * np.maximum(var.T, 0))


def _spread(values: Sequence[float]) -> dict[str, Any]:
  if not len(values):
    return {'mean': None, 'min': None, 'max': None, 'n': 0}
  x = np.asarray(values)
  return {'mean': float(x.mean()), 'min': float(x.min()), 'max': float(x.max()), 'n': len(x)}


def axis_similarity(values: np.ndarray, axis: int, names: Sequence[str]) -> dict[str, Any]:
  """Correlation of data sets (axis 1) or benchmarks (axis 2) over all else.

  Raises:
    table.Skip: fewer than two of them.
  """
  if len(names) < 2:
    raise table.Skip(f'needs two {"data sets" if axis == 1 else "benchmarks"} or more')
  matrix = correlations(np.moveaxis(values, axis, 0).reshape(len(names), -1))
  off = matrix[np.tril_indices(len(names), -1)]
  return {
    **_spread(off[np.isfinite(off)]),
    'order': [names[i] for i in order(matrix)],
    'matrix': {
      a: {b: float(matrix[i, j]) for j, b in enumerate(names)} for i, a in enumerate(names)
    },
  }


def pca(values: np.ndarray, models: Sequence[str], names: Sequence[str]) -> dict[str, Any]:
  """Components of data sets: rows data, columns model × benchmark, centred, not scaled.

  Models (then benchmarks' columns) with a missing cell are left out and named.

  Args:
    values: Gains [model, data, benchmark].
    models: Their names.
    names: Of the data.

  Raises:
    table.Skip: fewer than three data sets, or no model with all cells.
  """
  if len(names) < 3:
    raise table.Skip('needs three data sets or more')
  whole = np.isfinite(values).all(axis=(1, 2))
  if not whole.any():
    raise table.Skip('needs a model with all its cells')
  x = np.moveaxis(values[whole], 0, 1).reshape(len(names), -1)
  x = x - x.mean(axis=0)
  u, s, _ = np.linalg.svd(x, full_matrices=False)
  total = float((s**2).sum())
  if total == 0:
    raise table.Skip('needs gains that differ between data sets')
  cumulative = np.cumsum(s**2) / total
  return {
    'explained': [float(v) for v in s**2 / total],
    'cumulative': [float(v) for v in cumulative],
    'components_for_90': int(np.argmax(cumulative >= 0.90)) + 1,
    'models': [m for m, ok in zip(models, whole, strict=True) if ok],
    'left_out': [m for m, ok in zip(models, whole, strict=True) if not ok],
    'shape': list(x.shape),
    'scores': {name: [float(v) for v in (u * s)[i, :3]] for i, name in enumerate(names)},
  }


def variance_shares(frame: 'pd.DataFrame', columns: Sequence[str]) -> dict[str, Any]:
  """Shares of the variance of scores in a balanced block by model, data, method.

  For each benchmark: SS_model, SS_data, SS_method, SS_model×data over SS_total (what is left is
  the other interactions, and chance). `model_data_chance` is the share that model × data has if it
  is chance like the rest, and `p` of the F test that it is. Models that lack a cell are left out
  and named.

  Args:
    frame: Scores of one block, such as `table.core`.
    columns: Benchmarks.

  Raises:
    table.Skip: nothing balanced is left.
  """
  held = gains.cells(frame, columns)
  lora = sorted({key[2] for key in held.index})
  names = sorted({key[1] for key in held.index})
  models = sorted({key[0] for key in held.index})
  index = [(m, d, a) for m in models for d in names for a in lora]
  x = held.reindex(index).to_numpy(float)
  x = x.reshape(len(models), len(names), len(lora), len(columns))
  whole = np.isfinite(x).all(axis=(1, 2, 3))
  x = x[whole]
  if len(x) < 2 or len(names) < 2:
    raise table.Skip('needs two models or more that have all data sets, methods and benchmarks')
  out: dict[str, Any] = {
    'models': [m for m, ok in zip(models, whole, strict=True) if ok],
    'left_out': [m for m, ok in zip(models, whole, strict=True) if not ok],
    'n': int(x[..., 0].size),
    'shares': {},
  }
  for j, column in enumerate(columns):
    out['shares'][column] = _shares(x[..., j])
  known = [part for part in out['shares'].values() if part]
  keys = ('model', 'data', 'method', 'model_data', 'rest', 'model_data_chance')
  if not known:
    raise table.Skip('needs scores that are not all equal')
  out['mean'] = {key: float(np.mean([part[key] for part in known])) for key in keys}
  fits = resampling.holm([part['p'] for part in known]) <= 1 - resampling.LEVEL
  named = [c for c in columns if out['shares'][c]]
  out['fit_decided'] = [c for c, sure in zip(named, fits, strict=True) if sure]
  return out


def _shares(y: np.ndarray) -> dict[str, float] | None:
  """Shares of one benchmark's scores [model, data, method]; None where they are all equal."""
  from scipy import stats

  mean = y.mean()
  total = float(((y - mean) ** 2).sum())
  if total == 0:
    return None
  model, data, method = (y.mean(axis=axes) for axes in ((1, 2), (0, 2), (0, 1)))
  pair = y.mean(axis=2) - model[:, None] - data[None, :] + mean
  square = lambda effect, times: float((effect**2).sum() * times) / total
  out = {
    'model': square(model - mean, y.shape[1] * y.shape[2]),
    'data': square(data - mean, y.shape[0] * y.shape[2]),
    'method': square(method - mean, y.shape[0] * y.shape[1]),
    'model_data': square(pair, y.shape[2]),
  }
  rest = 1 - sum(out.values())
  pairs, times = (y.shape[0] - 1) * (y.shape[1] - 1), y.shape[2] - 1
  freedom = (y.shape[0] * y.shape[1] - 1) * times
  chance, p = math.nan, math.nan
  if freedom and rest > 0:
    chance = rest * pairs / freedom
    p = float(stats.f.sf(out['model_data'] / chance, pairs, freedom))
  return out | {'rest': rest, 'model_data_chance': chance, 'p': p}

"""Where in the network training moved weights, and whether that goes with gains.

Changes of models with different numbers of layers are put on one grid of depths from 0 to 1. What
is measured per layer comes from a run's `layers.jsonl`; for any two checkpoints on disk see the
probe `layer_report`.
"""

import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sft_jax.analysis import correlations, resampling
from sft_jax.utils import io
from sft_jax.utils.errors import UserError

GRID = np.linspace(0, 1, 21)
GRID.flags.writeable = False
LEAST_MODELS, LEAST_DATASETS = 2, 4
_NORMAL_DRAWS = 4000


def read(workdir: str | pathlib.Path) -> list[dict[str, Any]]:
  """Changes of every snapshot of a run, or of all runs of a study.

  Returns:
    For each snapshot what its row says of it (`model_name`, `data_name`, `lora`, `epoch`,
    `data_size`, `lr_strategy`, `run-id`, `step`) and `modules`: {module: {'norm': `[L]`,
    'relative': `[L]`}}, 'all' among them.

  Raises:
    UserError: there are none, or a file is damaged.
  """
  place = pathlib.Path(workdir)
  files = [place / 'layers.jsonl', *sorted(place.glob('runs/*/layers.jsonl'))]
  found = []
  for file in files:
    records = io.read_jsonl(file)
    rows = {row.get('step'): row for row in io.read_jsonl(file.parent / 'rows.jsonl')}
    for record in records:
      row = rows.get(record.get('step'), {})
      names = ('model_name', 'data_name', 'lora', 'epoch', 'data_size', 'lr_strategy')
      found.append({name: row.get(name) for name in names} | record)
  if not found:
    raise UserError(
      'no layer changes', str(place), 'give the workdir of a trained run or of a study'
    )
  return found


def on_grid(values: np.ndarray, grid: np.ndarray = GRID) -> np.ndarray:
  """`[..., L]` values of layers to values at depths: layer l (from 0) lies at l / (L - 1)."""
  values = np.asarray(values, np.float64)
  layers = values.shape[-1]
  if layers == 1:
    return np.repeat(values, len(grid), -1)
  at = np.asarray(grid) * (layers - 1)
  low = np.minimum(np.floor(at).astype(int), layers - 2)
  share = at - low
  return values[..., low] * (1 - share) + values[..., low + 1] * share


def cube(
  records: Sequence[Mapping[str, Any]],
  gains: Mapping[tuple[str, str], float],
  measure: str = 'norm',
  module: str = 'all',
) -> tuple[list[str], list[str], np.ndarray, np.ndarray, np.ndarray]:
  """Arrays from records of one method, size and epoch (see `read`); repeats are averaged.

  Args:
    records: What `read` gives, already cut to one block.
    gains: {(model, data set): overall gain}.
    measure: 'norm' or 'relative'; the latter brings models and methods to one scale.
    module: A kind of module, such as 'layers/attn/q', or 'all'.

  Returns:
    Models, data sets, changes on the grid `[M, D, 21]`, total change `[M, D]` (root of the sum of
    squares over layers), gains `[M, D]`; NaN where a pair is missing.

  Raises:
    UserError: no record has a gain, or none has the module.
  """
  held: dict[tuple[str, str], list[np.ndarray]] = {}
  for record in records:
    key = str(record['model_name']), str(record['data_name'])
    if key in gains and module in record['modules']:
      held.setdefault(key, []).append(np.asarray(record['modules'][module][measure], np.float64))
  if not held:
    raise UserError(f'no layer change of {module!r} belongs to a run with a gain')
  models, datasets = (sorted({key[i] for key in held}) for i in range(2))
  shape = len(models), len(datasets)
  values = np.full((*shape, len(GRID)), math.nan)
  total, overall = np.full(shape, math.nan), np.full(shape, math.nan)
  for (model, data), repeats in held.items():
    at = models.index(model), datasets.index(data)
    values[at] = np.mean([on_grid(one) for one in repeats], 0)
    total[at] = np.mean([np.sqrt(np.square(one).sum()) for one in repeats])
    overall[at] = gains[model, data]
  return models, datasets, values, total, overall


def by_depth(
  values: np.ndarray,
  gains: np.ndarray,
  total: np.ndarray | None = None,
  level: float = resampling.LEVEL,
) -> dict[str, Any]:
  """Correlation of change and gain over data sets, by depth.

  Args:
    values: `[M, D, P]` changes at P depths.
    gains: `[M, D]` overall gains.
    total: `[M, D]` whole change, to be taken out in `partial`; None for no `partial`.
    level: Of intervals, which are over models and data sets (`resampling.Jackknife`).

  Returns:
    - `per_model` `[M, P]`: r_m(l), over data sets;
    - `mean`: tanh of its mean atanh over models, `pooled`: r after z-scoring within each model,
      `partial`: the latter given the whole change; all `[P]`, with `_low`, `_high`;
    - `peak`: index of the largest `mean`, `peak_set`: all depths that may have the largest true
      one;
    - `middle`: mean of `mean` over the middle third of depths less that over both outer thirds,
      with `middle_low`, `middle_high`;
    - `n_models`, `n_datasets`, and `reason` where nothing could be said (else '').
  """
  values, gains = np.asarray(values, np.float64), np.asarray(gains, np.float64)
  held = np.isfinite(values).all(-1) & np.isfinite(gains)
  out: dict[str, Any] = {'n_models': int(held.any(1).sum()), 'n_datasets': int(held.any(0).sum())}
  out['reason'] = ''
  if (held.sum(1) >= LEAST_DATASETS).sum() < LEAST_MODELS:
    out['reason'] = f'needs {LEAST_MODELS} models with {LEAST_DATASETS} data sets each'
    return out
  x = np.where(held[..., None], values, math.nan).transpose(2, 0, 1)  # [P, M, D]
  y = np.where(held, gains, math.nan)
  out['per_model'] = correlations.rows(x, y).T
  jackknife = resampling.Jackknife(held)
  scaled = _z(y), [] if total is None else [_z(np.where(held, total, math.nan))]
  curves: dict[str, list[np.ndarray]] = {'mean': [], 'pooled': [], 'partial': []}
  for one in x:
    curves['mean'].append(correlations.Moments([one, y]).within_model(*jackknife.weights))
    pair = [_z(one), scaled[0]]
    curves['pooled'].append(correlations.Moments(pair).pooled(*jackknife.weights))
    if total is not None:
      statistic = correlations.Moments([*pair, *scaled[1]]).partial
      curves['partial'].append(statistic(*jackknife.weights))
  for name, curve in curves.items():
    if curve:
      z = resampling.fisher(np.array(curve).T)
      out[name] = np.tanh(z[0])
      out[f'{name}_low'], out[f'{name}_high'] = np.tanh(jackknife.interval(z, level))
  return out | _peak(np.array(curves['mean']).T, jackknife, level)


def _z(x: np.ndarray) -> np.ndarray:
  """Values less their row's mean, over its standard deviation; a constant row becomes NaN."""
  count = np.isfinite(x).sum(-1, keepdims=True)
  mean = np.nansum(x, -1, keepdims=True) / np.maximum(count, 1)
  size = np.sqrt(np.nansum(np.square(x - mean), -1, keepdims=True) / np.maximum(count, 1))
  return np.where(size > 1e-12 * np.abs(mean), (x - mean) / np.where(size > 0, size, 1), math.nan)


def _peak(curves: np.ndarray, jackknife: resampling.Jackknife, level: float) -> dict[str, Any]:
  """The depth of the largest value, which others may be it, and the middle against the ends.

  A depth leaves the set when another one is above it by too many standard errors. How many is what
  the largest of all such differences has in `level` of cases, where none is (normal deviations with
  the covariance of the replicates), widened as Student's t is to the normal.

  Args:
    curves: `[replicates, P]`, the whole table's first.
    jackknife: What they are replicates of.
    level: Of the set and the interval.
  """
  from scipy import stats

  seen = curves[0]
  if not np.isfinite(curves).all() or not jackknife.freedom:
    return {'peak': None, 'peak_set': []} | dict.fromkeys(
      ('middle', 'middle_low', 'middle_high'), math.nan
    )
  deviations = np.concatenate(jackknife.parts(curves)[:2])
  normal = np.random.default_rng(0).normal(size=(_NORMAL_DRAWS, len(deviations))) @ deviations
  widen = jackknife.quantile(level) / float(stats.norm.ppf((1 + level) / 2))
  stay = []
  for depth in range(len(seen)):
    error = jackknife.stderr(curves - curves[:, [depth]])
    moved = normal - normal[:, [depth]]
    size = moved.std(0)
    ratio = lambda x, by: np.where(by > 1e-12, x / np.where(by > 1e-12, by, 1), 0.0)
    most = np.quantile(ratio(moved, size).max(1), level) * widen
    if ratio(seen - seen[depth], error).max() <= most:
      stay.append(depth)
  depths = np.linspace(0, 1, len(seen))
  inner = (depths >= 1 / 3 - 1e-9) & (depths <= 2 / 3 + 1e-9)
  contrast = curves[:, inner].mean(1) - curves[:, ~inner].mean(1)
  low, high = jackknife.interval(contrast, level)
  out: dict[str, Any] = {'peak': int(seen.argmax()), 'peak_set': stay, 'middle': float(contrast[0])}
  return out | {'middle_low': float(low), 'middle_high': float(high)}


def across_models(values: np.ndarray, level: float = resampling.LEVEL) -> dict[str, np.ndarray]:
  """How alike models are in which data sets move a depth most.

  C(l) is the mean over pairs of models of the correlation, over data sets, of their changes at
  depth l. It needs no equal shapes. Only data sets that all models have count.

  Args:
    values: `[M, D, P]`.
    level: Of intervals, over models and data sets.

  Returns:
    `C`, `low`, `high`, `[P]` each.

  Raises:
    UserError: fewer than two models, or fewer than three data sets that all have.
  """
  values = np.asarray(values, np.float64)
  values = values[:, np.isfinite(values).all((0, 2))]
  models, datasets, depths = values.shape
  if models < 2 or datasets < 3:
    raise UserError(
      f'{models} models with {datasets} data sets in common',
      'similarity of layer changes',
      'at least two models and three data sets are needed',
    )
  jackknife = resampling.Jackknife(np.ones((models, datasets), bool))
  curves = np.array([_mean_pair(values[:, :, p], *jackknife.weights) for p in range(depths)]).T
  low, high = jackknife.interval(curves, level)
  return {'C': curves[0], 'low': low, 'high': high}


def _mean_pair(layer: np.ndarray, models: np.ndarray, cells: np.ndarray) -> np.ndarray:
  """`[B]` mean correlation of two different rows of `[M, D]`, over cells that both have."""
  layer = (layer - layer.mean(1, keepdims=True)) / np.maximum(layer.std(1, keepdims=True), 1e-300)
  both = cells[:, :, None] * cells[:, None] * (models[:, :, None] * models[:, None])[..., None]
  count = np.maximum(both.sum(-1), 1)
  sums = lambda x: np.einsum('bmnd,mnd->bmn', both, np.broadcast_to(x, both.shape[1:]))
  first, second = layer[:, None], layer[None]
  means = sums(first) / count, sums(second) / count
  covariance = sums(first * second) / count - means[0] * means[1]
  sizes = [sums(x * x) / count - mean**2 for x, mean in zip((first, second), means, strict=True)]
  fine = (sizes[0] > 1e-12) & (sizes[1] > 1e-12) & ~np.eye(len(layer), dtype=bool)
  r = np.where(fine, covariance / np.sqrt(np.where(fine, sizes[0] * sizes[1], 1)), 0.0)
  return np.where(fine.any((1, 2)), r.sum((1, 2)) / np.maximum(fine.sum((1, 2)), 1), math.nan)


def lora_norm(a: np.ndarray, b: np.ndarray, scale: float = 1.0) -> float:
  """Frobenius norm of `scale · A B` without the product: s √tr((AᵀA)(B Bᵀ)), in float64.

  Args:
    a: `[in, r]`.
    b: `[r, out]`.
    scale: alpha / r.
  """
  a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
  return abs(scale) * math.sqrt(max(float(np.sum((a.T @ a) * (b @ b.T))), 0.0))

"""Whether gains carry over between languages: MMLU against its Chinese and Japanese versions."""

from typing import TYPE_CHECKING, Any

import numpy as np

from sft_jax.analysis import effects, resampling, similarity, table

if TYPE_CHECKING:
  import pandas as pd

COLUMNS = {'mmlu': 'mmlu-0shot', 'zh': 'cmmlu-0shot', 'jp': 'jmmlu-0shot'}
PAIRS = (('mmlu', 'zh'), ('mmlu', 'jp'), ('zh', 'jp'))


def correlate(rows: 'pd.DataFrame', centre: bool = False) -> dict[str, dict[str, Any]]:
  """{'mmlu_zh', 'mmlu_jp', 'zh_jp': {'pearson', 'spearman', 'n', 'low', 'high'}} over rows.

  The interval is of Pearson's r over models and data sets (`resampling.Jackknife` of atanh r); None
  with fewer than three of either.

  Args:
    rows: Gains or scores.
    centre: Take out each model's mean first.

  Raises:
    table.Skip: fewer than two of the three versions.
  """
  there = {k: c for k, c in COLUMNS.items() if c in rows and rows[c].notna().any()}
  pairs = [(a, b) for a, b in PAIRS if a in there and b in there]
  if not pairs:
    raise table.Skip(f'needs two of {", ".join(COLUMNS.values())}')
  values = {k: rows[c] for k, c in there.items()}
  out = {}
  for a, b in pairs:
    both = values[a].notna() & values[b].notna()
    x, y = (values[k][both].to_numpy(float) for k in (a, b))
    models = rows.loc[both, 'model_name'].to_numpy()
    low, high = _interval(x, y, models, rows.loc[both, 'data_name'].to_numpy(), centre)
    if centre:
      x, y = (_centre(v, models) for v in (x, y))
    r = similarity.pearson(x, y)
    out[f'{a}_{b}'] = {
      'pearson': r if np.isfinite(r) else None,
      'spearman': effects.spearman(x, y),
      'n': int(both.sum()),
      'low': low,
      'high': high,
    }
  return out


def _centre(x: np.ndarray, models: np.ndarray) -> np.ndarray:
  out = x.copy()
  for model in np.unique(models):
    out[models == model] -= x[models == model].mean()
  return out


def _interval(
  x: np.ndarray, y: np.ndarray, models: np.ndarray, datasets: np.ndarray, centre: bool
) -> tuple[float | None, float | None]:
  """95 % interval of Pearson's r; rows of a model go together, and so do those of a data set."""
  names, who = np.unique(models.astype(str), return_inverse=True)
  sets, which = np.unique(datasets.astype(str), return_inverse=True)
  if min(len(names), len(sets)) < 3 or np.ptp(x) == 0 or np.ptp(y) == 0:
    return None, None
  # Sums of products of standardised values lose nothing to cancellation.
  x, y = ((v - v.mean()) / v.std() for v in (x, y))
  sums = np.zeros((len(names), len(sets), 6))
  np.add.at(sums, (who, which), np.stack([np.ones_like(x), x, y, x * x, y * y, x * y], -1))
  jackknife = resampling.Jackknife(sums[..., 0] > 0)
  held = np.einsum('bm,bmd,mdk->bmk', *jackknife.weights, sums, optimize=True)
  held = held if centre else held.sum(1, keepdims=True)
  n, sx, sy, sxx, syy, sxy = np.moveaxis(held, -1, 0)
  n = np.maximum(n, 1)
  xx, yy, xy = ((v - a * b / n).sum(1) for v, a, b in ((sxx, sx, sx), (syy, sy, sy), (sxy, sx, sy)))
  fine = (xx > 1e-9) & (yy > 1e-9)
  r = np.where(fine, xy / np.sqrt(np.where(fine, xx * yy, 1)), np.nan)
  low, high = np.tanh(jackknife.interval(resampling.fisher(r)))
  return (float(low), float(high)) if np.isfinite(low) else (None, None)

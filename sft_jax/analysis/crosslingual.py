"""Whether gains carry over between languages: MMLU against its Chinese and Japanese versions."""

from typing import TYPE_CHECKING, Any

import numpy as np

from sft_jax.analysis import effects, resampling, similarity, table

if TYPE_CHECKING:
  import pandas as pd

COLUMNS = {'mmlu': 'mmlu-0shot', 'zh': 'cmmlu-0shot', 'jp': 'jmmlu-0shot'}
PAIRS = (('mmlu', 'zh'), ('mmlu', 'jp'), ('zh', 'jp'))


def correlate(
  rows: 'pd.DataFrame', centre: bool = False, resamples: int = 0, seed: int = 0
) -> dict[str, dict[str, Any]]:
  """{'mmlu_zh', 'mmlu_jp', 'zh_jp': {'pearson', 'spearman', 'n', 'low', 'high'}} over rows.

  Args:
    rows: Gains or scores.
    centre: Take out each model's mean first.
    resamples: Draws of models for an interval of Pearson's r; 0 for none.
    seed: Of the draws.

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
    if centre:
      x, y = (_centre(v, models) for v in (x, y))
    low, high = _interval(x, y, models, resamples, seed)
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
  x: np.ndarray, y: np.ndarray, models: np.ndarray, resamples: int, seed: int
) -> tuple[float | None, float | None]:
  """95 % bootstrap interval of Pearson's r, drawing models with all their rows."""
  names = np.unique(models)
  if len(names) < 3 or not resamples:
    return None, None
  moments = np.stack(
    [
      [np.sum(k), x[k].sum(), y[k].sum(), (x[k] ** 2).sum(), (y[k] ** 2).sum(), (x[k] * y[k]).sum()]
      for k in (models == name for name in names)
    ]
  )
  weights = resampling.weights(np.random.default_rng(seed), resamples, len(names))
  n, sx, sy, sxx, syy, sxy = (weights @ moments).T
  spread = (sxx - sx * sx / n) * (syy - sy * sy / n)
  with np.errstate(invalid='ignore', divide='ignore'):
    r = np.where(spread > 0, (sxy - sx * sy / n) / np.sqrt(np.maximum(spread, 0)), np.nan)
  low, high = resampling.interval(r, len(names))
  return (low, high) if np.isfinite(low) else (None, None)

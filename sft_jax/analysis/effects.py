"""Effects of single factors on matched rows: method, size, one data set left out; best rows.

Differences of scores of one model need no base: it cancels.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from sft_jax.analysis import gains, resampling, similarity, table

if TYPE_CHECKING:
  import pandas as pd

_FEWEST_TESTED = 6  # Pairs for a Wilcoxon test: with fewer, p cannot be below 0.05.


def paired(
  differences: np.ndarray, clusters: Sequence[str], columns: Sequence[str]
) -> dict[str, dict[str, Any]]:
  """Mean, median, share above zero, an interval and tests of matched differences.

  Args:
    differences: [pairs, columns], NaN where one side is unknown.
    clusters: Model of each pair: those of one model go together.
    columns: Names; besides them 'mean', the mean of a pair over its known columns.

  Returns:
    {column: {'mean', 'median', 'share_positive', 'n'; 'low', 'high', 'p': Student's over models,
    None with fewer than three of them (`resampling.clustered`); 'decided': that the mean is not 0,
    after correction for all columns (Holm), of 'mean' by itself; 'wilcoxon_p': of pairs, as if each
    were independent of the others of its model}}.
  """
  both = np.column_stack([differences, _row_mean(differences)])
  low, high, p = over_models(both, clusters)
  sure = np.append(resampling.holm(p[:-1]), p[-1]) <= 1 - resampling.LEVEL
  out = {}
  for j, column in enumerate((*columns, 'mean')):
    x = both[np.isfinite(both[:, j]), j]
    out[column] = {
      'mean': float(x.mean()) if len(x) else None,
      'median': float(np.median(x)) if len(x) else None,
      'share_positive': float((x > 0).mean()) if len(x) else None,
      'n': len(x),
      'wilcoxon_p': wilcoxon(x),
      'low': finite(low[j]),
      'high': finite(high[j]),
      'p': finite(p[j]),
      'decided': bool(sure[j]),
    }
  return out


def over_models(
  values: np.ndarray, clusters: Sequence[str]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Interval of the mean of each column of [rows, columns], and p that it is 0, rows of one model
  going together; NaN with fewer than three models."""
  names, groups = np.asarray(clusters), sorted(set(clusters))
  known = np.isfinite(values)
  if not groups:
    nothing = np.full(values.shape[1], np.nan)
    return nothing, nothing, nothing
  sums = np.stack([np.where(known, values, 0)[names == g].sum(axis=0) for g in groups])
  counts = np.stack([known[names == g].sum(axis=0) for g in groups])
  few = (counts > 0).sum(axis=0) < 3
  low, high, p = resampling.clustered(sums, counts)
  return np.where(few, np.nan, low), np.where(few, np.nan, high), np.where(few, np.nan, p)


def wilcoxon(x: np.ndarray) -> float | None:
  """Two-sided p of Wilcoxon's signed-rank test; None where it has too few differences."""
  from scipy import stats

  x = x[np.isfinite(x)]
  if np.count_nonzero(x) < _FEWEST_TESTED:
    return None
  return float(stats.wilcoxon(x).pvalue)


def matched(
  left: 'pd.DataFrame', right: 'pd.DataFrame', key: Sequence[str], columns: Sequence[str]
) -> 'pd.DataFrame':
  """left − right of the means of rows that agree in `key`; the index is the key."""
  means = [part.groupby(list(key))[list(columns)].mean() for part in (left, right)]
  common = means[0].index.intersection(means[1].index)
  return means[0].loc[common] - means[1].loc[common]


def full_minus_lora(block: 'pd.DataFrame', columns: Sequence[str]) -> dict[str, Any]:
  """Full fine-tuning less LoRA at equal (model, data), in all and without incomplete models.

  Args:
    block: Scores of one block.
    columns: Benchmarks.

  Returns:
    'benchmarks': see `paired`; 'categories' {name: the same over means of its benchmarks},
    of pairs of models that lack no score; 'n', 'n_complete', 'incomplete_models'.

  Raises:
    table.Skip: one method only.
  """
  full, lora = block[block['lora'] == False], block[block['lora'] == True]  # noqa: E712
  change = matched(full, lora, ('model_name', 'data_name'), columns)
  if change.empty:
    raise table.Skip('needs full and LoRA runs of the same models and data')
  models = [str(key[0]) for key in change.index]
  values = change.to_numpy(float)
  broken = {m for m, row in zip(models, values, strict=True) if np.isnan(row).any()}
  keep = np.array([m not in broken for m in models])
  whole = change[keep]
  used = {c: [b for b in names if b in columns] for c, names in table.CATEGORIES.items()}
  used = {name: part for name, part in used.items() if part}
  kept = [m for m in models if m not in broken]
  means = [whole[part].mean(axis=1) for part in used.values()]
  return {
    'n': len(change),
    'n_complete': len(whole),
    'incomplete_models': sorted(broken),
    'benchmarks': paired(values, models, columns),
    'categories': paired(np.column_stack(means), kept, list(used)) if used and len(whole) else {},
  }


def method_agreement(change: 'pd.DataFrame', columns: Sequence[str]) -> dict[str, dict[str, Any]]:
  """{model: r of full and LoRA gains over (data, benchmark), mean |Δ| of each, n}.

  Args:
    change: Gains of one block.
    columns: Benchmarks.

  Raises:
    table.Skip: no model with both methods.
  """
  out = {}
  for model in table.models(change):
    sides = []
    for lora in (False, True):
      held = gains.cells(change[change['model_name'] == model], columns, lora)
      sides.append(held.droplevel(['model_name', 'lora']))
    common = sides[0].index.intersection(sides[1].index)
    if not len(common):
      continue
    x, y = (side.loc[common].to_numpy(float).ravel() for side in sides)
    both = np.isfinite(x) & np.isfinite(y)
    out[model] = {
      'r': finite(similarity.pearson(x[both], y[both])),
      'n': int(both.sum()),
      **{
        name: float(np.nanmean(np.abs(side.to_numpy(float))))
        if side.notna().any(axis=None)
        else None
        for name, side in zip(('full_mean_abs', 'lora_mean_abs'), sides, strict=True)
      },
    }
  if not out:
    raise table.Skip('needs full and LoRA runs of the same models and data')
  return out


def spearman(x: np.ndarray, y: np.ndarray) -> float | None:
  """Rank correlation; None where one side is constant or fewer than three values are known."""
  from scipy import stats

  both = np.isfinite(x) & np.isfinite(y)
  r = similarity.pearson(stats.rankdata(x[both]), stats.rankdata(y[both]))
  return finite(r)


def larger_minus_smaller(frame: 'pd.DataFrame', columns: Sequence[str]) -> dict[str, Any]:
  """Scores of the largest size less the smallest at equal (model, data, method, schedule, epoch).

  Returns:
    'sizes' [smaller, larger]; 'all_epochs' and 'last_epoch' (of those that both have): `paired`
    with 'by_model' {model: {benchmark or 'mean': mean}}.

  Raises:
    table.Skip: no two sizes at equal factors.
  """
  single = frame[table.is_single(frame)]
  single = single.assign(_size=table.size_classes(single['data_size']))
  key = ('model_name', 'data_name', 'lora', 'lr_strategy', 'epoch')
  best: tuple[int, float, float, Any] | None = None
  sizes = sorted(single['_size'].unique())
  for i, small in enumerate(sizes):
    for large in sizes[i + 1 :]:
      change = matched(
        single[single['_size'] == large], single[single['_size'] == small], key, columns
      )
      if best is None or (len(change), large / max(small, 1)) > best[:2]:
        best = (len(change), large / max(small, 1), small, (large, change))
  if best is None or not best[0]:
    raise table.Skip('needs runs of two sizes with the same model, data, method and epoch')
  small, (large, change) = best[2], best[3]
  epochs = change.index.get_level_values('epoch')
  told: dict[str, Any] = {'sizes': [small, large]}
  for name, part in (('all_epochs', change), ('last_epoch', change[epochs == epochs.max()])):
    models = part.index.get_level_values('model_name').astype(str)
    told[name] = {
      'n': len(part),
      'benchmarks': paired(part.to_numpy(float), list(models), columns),
      'by_model': {model: _means(part[models == model], columns) for model in sorted(set(models))},
    }
  told['epoch'] = float(epochs.max())
  return told


def left_out(frame: 'pd.DataFrame', columns: Sequence[str]) -> dict[str, Any]:
  """Score of all data together less that without X, for each X: above zero, X helps.

  Returns:
    {'full' and 'lora': {X: {benchmark or 'mean': difference}}, 'models', 'n_runs': runs a cell}.

  Raises:
    table.Skip: no run without X beside one with all, of one model and epoch.
  """
  names = frame['data_name'].astype(str)
  without = frame[names.str.startswith(table.WITHOUT)]
  if without.empty:
    raise table.Skip(f'needs rows of all data but one (data_name {table.WITHOUT}NAME)')
  every = frame[names == table.ALL]
  key = ['model_name', 'lora', 'lr_strategy', 'epoch']
  whole = every.groupby(key)[list(columns)].mean()
  out: dict[str, Any] = {'full': {}, 'lora': {}, 'models': table.models(without)}
  runs = 0
  for (name, lora), part in without.groupby(['data_name', without['lora'].astype(bool)]):
    rest = part.groupby(key)[list(columns)].mean()
    common = whole.index.intersection(rest.index)
    if not len(common):
      continue
    runs = max(runs, len(part))
    change = whole.loc[common] - rest.loc[common]
    out['lora' if lora else 'full'][str(name).removeprefix(table.WITHOUT)] = _means(change, columns)
  if not runs:
    raise table.Skip(f'needs rows of {table.ALL!r} of the same model, method and epoch')
  return out | {'n_runs': runs}


def best_rows(
  frame: 'pd.DataFrame', columns: Sequence[str], change: 'pd.DataFrame | None' = None
) -> dict[str, dict[str, Any]]:
  """{benchmark: its best trained row (score, gain, factors, and how many share that score)}.

  Raises:
    table.Skip: no trained row.
  """
  trained = frame[~table.is_base(frame)]
  if trained.empty:
    raise table.Skip('needs rows of trained models')
  out = {}
  for column in columns:
    if not trained[column].notna().any():
      continue
    row = trained.loc[trained[column].idxmax()]
    gain = None if change is None else finite(change.loc[row.name, column])
    out[column] = {
      'score': float(row[column]),
      'gain': gain,
      'model_name': row['model_name'],
      'data_name': row['data_name'],
      'method': 'lora' if row['lora'] else 'full',
      **{name: row[name] for name in ('epoch', 'data_size', 'lr_strategy')},
      'ties': int((trained[column] == row[column]).sum()),
    }
  return out


def _means(part: 'pd.DataFrame', columns: Sequence[str]) -> dict[str, float | None]:
  """Means of columns, and 'mean': the mean over rows of their means over known columns."""
  own = {c: finite(part[c].mean()) for c in columns}
  return own | {'mean': finite(part[list(columns)].mean(axis=1).mean())}


def _row_mean(values: np.ndarray) -> np.ndarray:
  known = np.isfinite(values)
  n = known.sum(axis=1)
  total = np.where(known, values, 0).sum(axis=1)
  return np.divide(total, n, out=np.full(len(values), np.nan), where=n > 0)


def finite(value: Any) -> float | None:
  """A plain number; None for what is none."""
  return float(value) if value is not None and np.isfinite(value) else None

"""Gains against the untrained model: row by row, as dataset × benchmark tables, and their parts.

A gain is a score minus that of its base, in points of 0–100. What is missing stays missing; every
mean skips it and says how many values it is of.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from sft_jax.analysis import resampling, table

if TYPE_CHECKING:
  import pandas as pd

_CELL = ['model_name', 'data_name', 'lora']


def gains(frame: 'pd.DataFrame', columns: Sequence[str] | None = None) -> 'pd.DataFrame':
  """Trained rows with gains in place of scores: Δ[u,b] = s[u,b] − s0[m,b].

  The base of a row is the untrained row of its own run where the table has one (`run-id`), else
  the mean of its model's untrained rows.

  Args:
    frame: As `table.read` gives it.
    columns: Scores to use; default all.

  Raises:
    table.Skip: no row of an untrained model.
  """
  columns = list(table.benchmarks(frame) if columns is None else columns)
  base, trained = frame[table.is_base(frame)], frame[~table.is_base(frame)]
  if base.empty:
    raise table.Skip(f'needs rows of untrained models (data_name {table.BASE!r})')
  means = base.groupby('model_name')[columns].mean()
  start = means.reindex(trained['model_name']).to_numpy(float)
  if 'run-id' in frame:
    own = base.groupby('run-id')[columns].mean().reindex(trained['run-id']).to_numpy(float)
    start = np.where(np.isnan(own), start, own)
  out = trained.copy()
  out[columns] = trained[columns].to_numpy(float) - start
  return out


def cells(
  frame: 'pd.DataFrame', columns: Sequence[str], lora: bool | None = None
) -> 'pd.DataFrame':
  """Mean of each (model, data, method): rows with that index, columns as given.

  Args:
    frame: Scores or gains of one block, such as `table.core`; rows that differ in seeds or other
      factors are averaged.
    columns: What to average.
    lora: Only this method.
  """
  rows = frame if lora is None else frame[frame['lora'] == lora]
  grouped = rows.assign(lora=rows['lora'].astype(bool)).groupby(_CELL, sort=True)
  return grouped[list(columns)].mean()


def overall(frame: 'pd.DataFrame', columns: Sequence[str], kind: str = 'mean') -> 'pd.Series':
  """Overall gain of each row: mean over benchmarks, skipping what is missing.

  Args:
    frame: Gains.
    columns: Benchmarks.
    kind: 'mean'; 'standardised' (each benchmark divided by its sd, so that none dominates); or
      'accuracy' (without what a judge scored).
  """
  used = [c for c in columns if kind != 'accuracy' or c not in table.JUDGED]
  values = frame[used]
  if kind == 'standardised':
    spread = values.std(ddof=1)
    values = values / spread.where(spread > 0)
  return values.mean(axis=1)


def cube(
  frame: 'pd.DataFrame', columns: Sequence[str], lora: bool, models: Sequence[str]
) -> tuple[np.ndarray, list[str]]:
  """Cells as an array [model, data, benchmark], missing ones NaN; and the names of the data."""
  held = cells(frame, columns, lora)
  names = sorted({str(key[1]) for key in held.index})
  index = [(model, name, lora) for model in models for name in names]
  values = held.reindex(index).to_numpy(float)
  return values.reshape(len(models), len(names), len(columns)), names


def summary(
  frame: 'pd.DataFrame', columns: Sequence[str], lora: bool, models: Sequence[str]
) -> dict[str, Any]:
  """H[D,b]: mean gain over models, with n, share of positive ones and a 95 % interval.

  Returns:
    {'mean', 'n', 'positive', 'low', 'high', 'low_joint', 'high_joint'}, each {data: {benchmark:
    value}}; 'overall' {data: {'mean', 'n', 'low', 'high', 'p', 'decided'}}, the mean over
    benchmarks of the means over models. Intervals are Student's over models, and None with fewer
    than three of them; the joint ones hold for all cells together (Bonferroni). `decided` is that
    the mean is not 0, after correction for all data sets (Holm).

  Raises:
    table.Skip: no cell of this method.
  """
  values, names = cube(frame, columns, lora, models)
  if not np.isfinite(values).any():
    raise table.Skip(f'needs gains of {"LoRA" if lora else "full"} runs')
  known = np.isfinite(values)
  n = known.sum(axis=0)
  divided = lambda top: np.divide(top, n, out=np.full(n.shape, np.nan), where=n > 0)
  mean = divided(np.where(known, values, 0).sum(axis=0))
  moved = np.where(known, (values - mean) / np.maximum(n, 1), np.nan)
  bounds = {'': resampling.LEVEL, '_joint': 1 - (1 - resampling.LEVEL) / max((n > 2).sum(), 1)}
  as_table = lambda grid: {
    name: {column: _number(grid[i, j]) for j, column in enumerate(columns)}
    for i, name in enumerate(names)
  }
  out = {
    'mean': as_table(mean),
    'n': {name: dict(zip(columns, map(int, n[i]), strict=True)) for i, name in enumerate(names)},
    'positive': as_table(divided((known & (values > 0)).sum(axis=0))),
  }
  for tail, level in bounds.items():
    low, high, _ = resampling.students(mean, moved, level)
    out[f'low{tail}'] = as_table(np.where(n < 3, np.nan, low))
    out[f'high{tail}'] = as_table(np.where(n < 3, np.nan, high))
  overall = _mean(mean, axis=1)
  units = known.any(axis=2).sum(axis=0)
  # What a model moves the mean over benchmarks by: nothing where it has no value.
  each = np.where(known.any(axis=2), np.nan_to_num(moved).sum(axis=2), np.nan)
  each = each / np.maximum((n > 0).sum(axis=1), 1)
  low, high, p = (np.where(units < 3, np.nan, x) for x in resampling.students(overall, each))
  sure = resampling.holm(p) <= 1 - resampling.LEVEL
  out['overall'] = {
    name: {
      'mean': _number(overall[i]),
      'n': int(units[i]),
      'low': _number(low[i]),
      'high': _number(high[i]),
      'p': _number(p[i]),
      'decided': bool(sure[i]),
    }
    for i, name in enumerate(names)
  }
  return out


def _mean(values: np.ndarray, axis: int) -> np.ndarray:
  """Mean of what is known; NaN, without a warning, where nothing is."""
  known = np.isfinite(values)
  n = known.sum(axis=axis)
  total = np.where(known, values, 0).sum(axis=axis)
  return np.divide(total, n, out=np.full(np.shape(total), np.nan), where=n > 0)


def split(frame: 'pd.DataFrame', columns: Sequence[str]) -> 'pd.DataFrame':
  """Splits gains into format and ability, where the table says how many answers were found.

  A score is (share of answers found) × (score of those). With means of base and trained row,
  Δ = Δfound · mean(score given found) + mean(found) · Δ(score given found): format and ability.
  What a macro score adds to that is `rest`.

  Returns:
    One row for each trained row and benchmark with these columns in the table: the cell's names,
    `benchmark`, `gain`, `format`, `ability`, `rest`.

  Raises:
    table.Skip: no benchmark with `NAME-extracted` and `NAME-given-extracted`.
  """
  import pandas as pd

  able = [c for c in columns if {f'{c}-extracted', f'{c}-given-extracted'} <= set(frame.columns)]
  if not able:
    raise table.Skip('needs records of single items: columns NAME-extracted, NAME-given-extracted')
  parts = []
  for column in able:
    names = [column, f'{column}-extracted', f'{column}-given-extracted']
    numbers = frame.assign(**{c: pd.to_numeric(frame[c], errors='coerce') for c in names})
    # Of no answer found, nothing was right.
    numbers[names[2]] = numbers[names[2]].where(numbers[names[1]] != 0, 0.0)
    change = gains(numbers, names)
    after = numbers.loc[change.index, names]
    middle = after - change[names] / 2
    piece = change[['model_name', 'data_name', 'lora', 'epoch', 'data_size']].copy()
    piece['benchmark'] = column
    piece['gain'] = change[column]
    piece['format'] = change[names[1]] / 100 * middle[names[2]]
    piece['ability'] = change[names[2]] * middle[names[1]] / 100
    piece['rest'] = piece['gain'] - piece['format'] - piece['ability']
    parts.append(piece)
  return pd.concat(parts, ignore_index=True).dropna(subset=['gain'])


def contaminated(frame: 'pd.DataFrame', columns: Sequence[str]) -> 'pd.DataFrame':
  """Pairs of data and benchmark where training data held items of the benchmark.

  Returns:
    Rows of `data_name`, `benchmark`, `items` (the most found in one row).

  Raises:
    table.Skip: nobody looked.
  """
  import pandas as pd

  able = [c for c in columns if f'{c}-contaminated-n' in frame]
  if not able:
    raise table.Skip('needs a search for benchmark items in the data: columns NAME-contaminated-n')
  trained = frame[~table.is_base(frame)]
  found = []
  for column in able:
    counts = pd.to_numeric(trained[f'{column}-contaminated-n'], errors='coerce')
    most = counts.groupby(trained['data_name']).max()
    found += [(name, column, int(n)) for name, n in most.items() if n and n > 0]
  return pd.DataFrame(found, columns=['data_name', 'benchmark', 'items'])


def _number(value: Any) -> float | None:
  """A plain number, None where there is none."""
  return float(value) if np.isfinite(value) else None

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
  frame: 'pd.DataFrame',
  columns: Sequence[str],
  lora: bool,
  models: Sequence[str],
  resamples: int = 2000,
  seed: int = 0,
) -> dict[str, Any]:
  """H[D,b]: mean gain over models, with n, share of positive ones and a 95 % interval.

  Returns:
    {'mean', 'n', 'positive', 'low', 'high'}, each {data: {benchmark: value}}; 'overall' {data:
    {'mean', 'n', 'low', 'high'}}, the mean over benchmarks of the means over models. Intervals are
    of the bootstrap over models, and None with fewer than three of them.

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
  low, high = bootstrap(values, resamples, seed)
  as_table = lambda grid: {
    name: {column: _number(grid[i, j]) for j, column in enumerate(columns)}
    for i, name in enumerate(names)
  }
  few = n < 3
  out = {
    'mean': as_table(mean),
    'n': {name: dict(zip(columns, map(int, n[i]), strict=True)) for i, name in enumerate(names)},
    'positive': as_table(divided((known & (values > 0)).sum(axis=0))),
    'low': as_table(np.where(few, np.nan, low)),
    'high': as_table(np.where(few, np.nan, high)),
  }
  drawn = _resampled(values, resamples, seed)
  means = _mean(drawn, axis=2)
  bounds = _quantiles(means, len(models)) if len(models) > 2 else None
  out['overall'] = {
    name: {
      'mean': _number(_mean(mean[i], axis=0)),
      'n': int(known[:, i].any(axis=1).sum()),
      'low': None if bounds is None else _number(bounds[0, i]),
      'high': None if bounds is None else _number(bounds[1, i]),
    }
    for i, name in enumerate(names)
  }
  return out


def bootstrap(values: np.ndarray, resamples: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
  """95 % interval of means over the first axis, whose members are drawn anew.

  Args:
    values: [models, …], NaN where unknown.
    resamples: How often to draw.
    seed: Of the draws.

  Returns:
    Low and high, of the shape of a mean; NaN where nothing is known.
  """
  low, high = _quantiles(_resampled(values, resamples, seed), len(values))
  return low, high


def interval_of_ratio(
  sums: np.ndarray, counts: np.ndarray, resamples: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
  """95 % interval of Σ sums / Σ counts, both [models, …], over draws of the models."""
  rng = np.random.default_rng(seed)
  weights = resampling.weights(rng, resamples, len(sums))
  top, bottom = weights @ sums, weights @ counts
  ratio = np.divide(top, bottom, out=np.full(top.shape, np.nan), where=bottom > 0)
  low, high = _quantiles(ratio, len(sums))
  return low, high


def _quantiles(drawn: np.ndarray, units: int) -> np.ndarray:
  """[2, …] bounds of 95 % of draws [draws, …], widened for few units (`resampling.tail`)."""
  if units < 2:
    return np.full((2, *drawn.shape[1:]), np.nan)
  nothing = ~np.isfinite(drawn).any(axis=0)
  share = resampling.tail(units)
  filled = np.where(nothing, 0.0, drawn)
  whole = np.isfinite(filled).all()
  bounds = (np.quantile if whole else np.nanquantile)(filled, [share, 1 - share], axis=0)
  return np.where(nothing, np.nan, bounds)


def _resampled(values: np.ndarray, resamples: int, seed: int) -> np.ndarray:
  """Means over the first axis of `resamples` draws of its members, with replacement."""
  rng = np.random.default_rng(seed)
  weights = resampling.weights(rng, resamples, len(values))
  flat = values.reshape(len(values), -1)
  known = np.isfinite(flat)
  total = weights @ known
  out = np.divide(
    weights @ np.where(known, flat, 0), total, out=np.full(total.shape, np.nan), where=total > 0
  )
  return out.reshape(resamples, *values.shape[1:])


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

"""What further epochs do: mean gains by epoch, and whether scores rise or fall along a run."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from sft_jax.analysis import effects, table

if TYPE_CHECKING:
  import pandas as pd


def trajectories(
  change: 'pd.DataFrame', scores: 'pd.DataFrame', columns: Sequence[str]
) -> dict[str, Any]:
  """Mean gain by epoch, and the rank correlation of epoch and score of each trajectory.

  Args:
    change: Gains of rows of one kind at several epochs.
    scores: The scores of the same rows.
    columns: Benchmarks.

  Returns:
    'curve' {epoch: {benchmark or 'mean': {'mean', 'n'}}}; 'spearman' {benchmark or 'mean': {'mean',
    'median', 'share_positive', 'n', 'skipped_constant', 'wilcoxon_p', 'low', 'high', 'p'}} over
    trajectories (model, data), the last three with those of one model together (see
    `effects.paired`); 'models', 'n'.

  Raises:
    table.Skip: no trajectory of three epochs or more.
  """
  key = ['model_name', 'data_name']
  counts = scores.groupby(key)['epoch'].nunique()
  if not len(counts) or counts.max() < 3:
    raise table.Skip('needs runs that were scored at three epochs or more')
  names = (*columns, 'mean')
  held = change.assign(mean=change[list(columns)].mean(axis=1))
  curve = {}
  for epoch, part in held.groupby('epoch'):
    curve[f'{epoch:g}'] = {
      c: {'mean': effects.finite(part[c].mean()), 'n': int(part[c].notna().sum())} for c in names
    }
  ranks: dict[str, list[tuple[str, float]]] = {c: [] for c in names}
  skipped = dict.fromkeys(names, 0)
  whole = scores.assign(mean=scores[list(columns)].mean(axis=1, skipna=False))
  for (model, _), part in whole.groupby(key):
    when, values = part['epoch'].to_numpy(float), part[list(names)].to_numpy(float)
    for column, value in zip(names, values.T, strict=True):
      if len(np.unique(when[np.isfinite(value)])) < 3:
        continue
      r = effects.spearman(when, value)
      if r is None:
        skipped[column] += 1
      else:
        ranks[column].append((model, r))
  told = {}
  for column in names:
    x = np.array([r for _, r in ranks[column]])
    bounds = effects.over_models(x[:, None], [model for model, _ in ranks[column]])
    told[column] = {
      'mean': effects.finite(x.mean()) if len(x) else None,
      'median': effects.finite(np.median(x)) if len(x) else None,
      'share_positive': float((x > 0).mean()) if len(x) else None,
      'n': len(x),
      'skipped_constant': skipped[column],
      'wilcoxon_p': effects.wilcoxon(x),
      **{k: effects.finite(v[0]) for k, v in zip(('low', 'high', 'p'), bounds, strict=True)},
    }
  return {
    'curve': curve,
    'spearman': told,
    'models': table.models(scores),
    'n': len(scores),
  }


def kinds(frame: 'pd.DataFrame') -> dict[str, 'pd.DataFrame']:
  """Rows of each kind that was scored at several epochs: {name: rows}."""
  out: dict[str, Any] = {}
  rows = frame[table.is_single(frame) | (frame['data_name'] == table.ALL)]
  rows = rows.assign(
    _size=table.size_classes(rows['data_size']), _all=rows['data_name'] == table.ALL
  )
  for (every, lora, schedule, size), part in rows.groupby(
    ['_all', rows['lora'].astype(bool), 'lr_strategy', '_size'], dropna=False
  ):
    if part.groupby(['model_name', 'data_name'])['epoch'].nunique().max() < 3:
      continue
    word = table.ALL if every else f'{size:g}'
    name = f'{word}_{schedule}_{"lora" if lora else "full"}'
    out[name] = part.drop(columns=['_size', '_all'])
  return out

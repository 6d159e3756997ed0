"""What bands of layers do by themselves, beside how their change goes with gains.

Reads the tables that `--mode=eval` with `config.eval.graft` leaves below `probes/` of a study.
"""

import math
import pathlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from sft_jax.analysis import findings, table
from sft_jax.analysis import vectors as vector_lib

if TYPE_CHECKING:
  import pandas as pd

# The workdir of an evaluation of grafts is one below the study's `probes/`.
GRAFTS = 'probes/*/grafts.csv'
NONE, ALL = 'none', 'all'


def bands(
  study: findings.Study, place: pathlib.Path | None, correlated: Mapping[str, Any]
) -> dict[str, Any]:
  """Effects of grafted bands.

  Args:
    study: The table, for which scores count.
    place: The study's workdir; None for none.
    correlated: The answer of the question `layers`, perhaps skipped.

  Returns:
    {'models': [{'model_name', 'data_name', 'lora', 'epoch', 'benchmarks', 'bands': [{'graft',
    'first', 'last', 'change_share' (of the squared change of all layers), 'gain' (points over the
    base, mean over benchmarks), 'low' and 'high' (its 95 % interval over items), 'nats' (how much
    the held-out log perplexity fell), 'share' (of what all layers together do, in points or,
    without benchmarks, in nats), 'r' (mean over the band's depths of the correlation of change and
    gain)}]}]}; what is unknown is None.

  Raises:
    table.Skip: no such table, or none that has both ends to compare with.
  """
  out = []
  for file in sorted(place.glob(GRAFTS)) if place else []:
    frame = vector_lib.read_properties(file)
    if {NONE, ALL} <= set(frame.get('graft', ())):
      out.append(_one(frame.set_index('graft'), study.columns, correlated))
  if not out:
    raise table.Skip(
      f'needs {GRAFTS}: --mode=eval with config.eval.graft and a --workdir below probes/ of the '
      'study, see docs/jobs/analyse.md'
    )
  return {'models': out}


def _one(frame: 'pd.DataFrame', columns: list[str], correlated: Mapping[str, Any]) -> dict:
  first = frame.iloc[0]
  used = [c for c in columns if c in frame and frame[c].notna().all()]
  gain = frame[used].sub(frame.loc[NONE, used]).mean(axis=1) if used else None
  nats = None
  if 'ppl-heldout' in frame:
    logs = np.log(frame['ppl-heldout'].astype(float))
    nats = logs[NONE] - logs
  effect = gain if gain is not None else nats
  # A whole model that is no run's says nothing of it.
  lora = str(first.get('lora')).strip().lower() in ('true', '1', '1.0')
  depth = int(frame.loc[ALL, 'layers'])
  rows = []
  for name in frame.index:
    if name == NONE:
      continue
    row = frame.loc[name]
    held = _known(row['first'])
    first_layer, last_layer = (int(row[k]) if held else None for k in ('first', 'last'))
    whole = float(effect[ALL]) if effect is not None else 0.0
    rows.append(
      {
        'graft': str(name),
        'first': first_layer,
        'last': last_layer,
        'change_share': float(row['change-share']),
        'gain': _number(gain, name),
        **_interval(frame, used, name),
        'nats': _number(nats, name),
        'share': float(effect[name]) / whole if effect is not None and whole else None,
        'r': _correlation(correlated, lora, first_layer, last_layer, depth),
      }
    )
  facts = {key: first[key] for key in ('model_name', 'data_name')}
  epoch = float(first['epoch']) if 'epoch' in frame and _known(first['epoch']) else 0.0
  return {**facts, 'lora': lora, 'epoch': epoch, 'benchmarks': used, 'bands': rows}


def _interval(frame: 'pd.DataFrame', used: list[str], name: str) -> dict[str, float | None]:
  """Of the mean over benchmarks, from each one's (MOVER: Zou & Donner, Stat. Med. 27, 2008)."""
  ends: dict[str, float | None] = {}
  for sign, end in ((-1, 'low'), (1, 'high')):
    columns = [f'{c}-change-{end}' for c in used]
    known = bool(used) and all(c in frame and _known(frame.loc[name, c]) for c in columns)
    ends[end] = None
    if known:
      change = frame.loc[name, used].to_numpy(float) - frame.loc[NONE, used].to_numpy(float)
      reach = np.linalg.norm(frame.loc[name, columns].to_numpy(float) - change)
      ends[end] = float(change.mean() + sign * reach / len(used))
  return ends


def _correlation(
  correlated: Mapping[str, Any], lora: bool, first: int | None, last: int | None, layers: int
) -> float | None:
  """Mean correlation of change and gain over the depths of a band."""
  part = correlated.get('lora' if lora else 'full', {})
  found = part.get('by_depth', {'skipped': ''})
  if findings.is_skipped(found) or first is None or last is None:
    return None
  at = np.asarray(part['depths']) * max(layers - 1, 1)
  # A layer reaches half way to its neighbours.
  inside = (at >= first - 0.5) & (at <= last + 0.5)
  values = np.asarray(found['mean'], float)[inside]
  return float(values.mean()) if len(values) and np.isfinite(values).all() else None


def _number(values: Any, name: str) -> float | None:
  return None if values is None or not _known(values[name]) else float(values[name])


def _known(value: Any) -> bool:
  return value is not None and math.isfinite(float(value))

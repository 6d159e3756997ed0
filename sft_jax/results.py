"""Rows of the result table: one for each snapshot of a run, in the released table's columns.

Rows hold nothing that depends on the clock, so that an interrupted and resumed run writes the same
bytes as an undisturbed one. Timings live in `metrics.jsonl`.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from sft_jax import spec as spec_lib

# The header of the published table (1,027 rows), in its order. A column is filled only by the
# published definition of its score; every other score carries its own name, after these.
RELEASED_COLUMNS = (
  'model_name',
  'data_name',
  'mbpp_4shot',
  'math-0shot',
  'gsm8k-4shot',
  'humaneval-0shot',
  'hellaswag-10shot',
  'nq-1shot',
  'BoolQ-5shot',
  'mmlu-5shot',
  'lora',
  'epoch',
  'data_size',
  'lr_strategy',
  'mtbench-total',
  'mtbench-writing',
  'mtbench-roleplay',
  'mtbench-reasoning',
  'mtbench-math',
  'mtbench-coding',
  'mtbench-extraction',
  'mtbench-stem',
  'mtbench-humanities',
  'alpaca_eval_v2-total',
  'mbpp-0shot',
  'gsm8k-0shot',
  'nq-0shot',
  'nq-5shot',
  'nq-25shot',
  'BoolQ-0shot',
  'hellaswag-0shot',
  'mmlu-0shot',
  'Truthful_QA-0shot',
  'LongBench-v2-0shot',
  'jmmlu-0shot',
  'cmmlu-0shot',
)

# What a row says of its model, before any score.
IDENTITY = ('model_name', 'data_name', 'lora', 'epoch', 'data_size', 'lr_strategy', 'train-data')

# What identifies a row within a study.
ROW_KEY = ('run-id', 'step')

# Scores that decide which snapshot is best, the lowest; the first one there is counts.
BEST_BY = ('ppl-heldout-response', 'ppl-heldout')

Row = dict[str, Any]


def make_row(
  spec: spec_lib.RunSpec,
  *,
  run_id: str,
  step: int,
  epoch: float,
  data_size: int,
  names: tuple[str, str],
  scores: Mapping[str, Any],
  counts: Mapping[str, Any],
) -> Row:
  """One row; released columns first, then factors, counts and further scores.

  Args:
    spec: The run's factors.
    run_id: Its identity.
    step: Optimiser steps taken; 0 is the untrained base.
    epoch: Passes over the data.
    data_size: Training records.
    names: Short names of the base and of the data.
    scores: {column: value} of this snapshot.
    counts: Further columns that do not depend on the clock.
  """
  base_row = step == 0
  row: Row = {
    'model_name': names[0],
    'data_name': 'pretrain' if base_row else names[1],
    'lora': None if base_row else spec.method == 'lora',
    'epoch': int(epoch) if epoch == int(epoch) else epoch,
    'data_size': 0 if base_row else data_size,
    'lr_strategy': None if base_row else spec.schedule,
  }
  row |= {column: scores[column] for column in RELEASED_COLUMNS if column in scores}
  row |= {'run-id': run_id, 'step': step, 'train-data': names[1]}
  for field, value in spec.factors().items():
    column = spec_lib.FACTORS[field].column
    if column not in RELEASED_COLUMNS and not base_row:
      row[column] = value
  row |= counts
  return row | {column: value for column, value in scores.items() if column not in row}


def score_columns(rows: Sequence[Row]) -> list[str]:
  """Columns of rows that hold the score of a benchmark: released ones first, then in their order.

  Those of the released table's header, and what has a count of its items (`NAME-n`) beside it.
  """
  found = dict.fromkeys(column for row in rows for column in row)
  factors = {factor.column for factor in spec_lib.FACTORS.values()}
  scores = [c for c in RELEASED_COLUMNS if c in found and c not in {*IDENTITY, *factors}]
  scores += [c for c in found if f'{c}-n' in found and c not in scores]
  return [c for c in scores if any(row.get(c) is not None for row in rows)]


def comparison(rows: Sequence[Row], columns: Sequence[str], most: int = 4) -> list[str]:
  """Lines of a table: each score before training and at snapshots, and its change.

  Args:
    rows: Rows of one run, the base's first.
    columns: Score columns to show, where present.
    most: Snapshots to show, the last ones; a column of … stands for those before.
  """
  left_out = len(rows) > 1 + most
  rows = [*rows[:1], *rows[1:][-most:]]
  columns = [c for c in columns if any(c in row for row in rows)]
  if not rows or not columns:
    return []
  heads = ['base' if row['step'] == 0 else f'epoch {row["epoch"]:g}' for row in rows]
  width = max(len(c) for c in columns)
  cells = [[_number(row, c) for row in rows] for c in columns]
  lines = [_line('', heads, 'change', width, left_out)]
  for column, values in zip(columns, cells, strict=True):
    shown = [f'{value:.2f}' for value in values]
    lines.append(_line(column, shown, f'{values[-1] - values[0]:+.2f}', width, left_out))
  return lines


def _line(name: str, cells: Sequence[str], change: str, width: int, left_out: bool) -> str:
  """A line of the table; where snapshots are left out, … after the base's cell."""
  first, *others = (f'  {cell:>10}' for cell in (*cells, change))
  return f'{name:<{width}}{first}{"  …" * left_out}{"".join(others)}'


def _number(row: Row, column: str) -> float:
  value = row.get(column)
  return math.nan if value is None else float(value)

"""What a study says when it ends: what each data set changed, and what to do next.

A glance, from the rows alone: no interval, no check. That is `--mode=report`.
"""

import math
import os
import shlex
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from etils import epath

from sft_jax import results
from sft_jax import spec as spec_lib
from sft_jax.study import table
from sft_jax.study.directory import StudyDirectory
from sft_jax.utils import words

_MOST_ROWS, _MOST_COLUMNS, _MOST_NAME, _CELL = 7, 4, 40, 8


class _Line(NamedTuple):
  """Runs that differ in their bases and seeds at most."""

  name: str
  runs: int
  changes: Mapping[str, float]


def lines(workdir: epath.PathLike) -> list[str]:
  """At most twelve lines for a terminal: mean change of scores by data and method, and a command.

  Raises:
    UserError: no study is there, or it cannot be read.
  """
  place = StudyDirectory(workdir)
  rows = table.read_rows(place, place.record())
  command = f'--config=configs/report.py --workdir={shlex.quote(os.fspath(workdir))}'
  return [*changes(rows), 'Next:', f'  python -m sft_jax.main --mode=report {command}']


def changes(rows: Sequence[results.Row]) -> list[str]:
  """The table; [] where nothing was scored before and after.

  Those that gained most come first: by the mean over columns, each as a share of its largest
  change.
  """
  columns = results.score_columns(rows)[:_MOST_COLUMNS]
  falls = not columns  # A perplexity is better when it falls.
  columns = columns or [c for c in results.BEST_BY if any(c in row for row in rows)][:1]
  found = [line for line in _grouped(rows, columns) if line.changes]
  if not found:
    return []
  top = {c: max((abs(line.changes.get(c, 0.0)) for line in found), default=0.0) for c in columns}
  worth = lambda line: sum(v / top[c] for c, v in line.changes.items() if top[c]) / len(columns)
  found.sort(key=worth, reverse=not falls)
  shown = found[:_MOST_ROWS]
  names = [_short(line.name) for line in shown]
  width = max(map(len, names))
  several = any(line.runs > 1 for line in found)
  means = ', means over runs' if several else ''
  out = [f'change from the base to the last snapshot{means} (the best first):']
  cells = [f'{column:>{_width(column)}}' for column in columns]
  out.append('  '.join([' ' * width, *([' runs'] if several else []), *cells]))
  for name, line in zip(names, shown, strict=True):
    runs = [f'{line.runs:>5}'] if several else []
    cells = [f'{_number(line.changes.get(c)):>{_width(c)}}' for c in columns]
    out.append('  '.join([f'{name:<{width}}', *runs, *cells]))
  if more := len(found) - len(shown):
    out.append(f'and {words.count(more, "more row")}, in results.csv')
  return out


def _grouped(rows: Sequence[results.Row], columns: Sequence[str]) -> list[_Line]:
  """Means of the changes of runs that share all factors but base and seeds."""
  runs: dict[str, list[results.Row]] = {}
  for row in rows:
    runs.setdefault(row['run-id'], []).append(row)
  grouped: dict[str, list[dict[str, float]]] = {}
  methods = {row['lora'] for row in rows if row['step']}
  varied = _varied([own[-1] for own in runs.values() if own[-1]['step']])
  for own in runs.values():
    first, last = own[0], own[-1]
    if first['step'] or not last['step']:
      continue
    method = '' if len(methods) < 2 else ', LoRA' if last['lora'] else ', full'
    known = [c for c in columns if first.get(c) is not None and last.get(c) is not None]
    factors = ''.join(f', {c}={last[c]}' for c in varied if last.get(c) is not None)
    name = f'{last["data_name"]}{method}{factors}'
    grouped.setdefault(name, []).append({c: last[c] - first[c] for c in known})
  return [_Line(name, len(each), _means(each, columns)) for name, each in grouped.items()]


def _varied(rows: Sequence[results.Row]) -> list[str]:
  """Columns of factors in which runs on one base and data by one method differ, seeds left out."""
  held: dict[tuple[str, ...], set[str]] = {}
  for row in rows:
    for column in (factor.column for factor in spec_lib.FACTORS.values()):
      if column in row and not column.startswith('seed-'):
        cell = (column, *(str(row[name]) for name in ('model_name', 'data_name', 'lora')))
        held.setdefault(cell, set()).add(str(row[column]))
  return list(dict.fromkeys(cell[0] for cell, values in held.items() if len(values) > 1))


def _means(each: Sequence[Mapping[str, float]], columns: Sequence[str]) -> dict[str, float]:
  held = {c: [one[c] for one in each if c in one] for c in columns}
  means = {c: math.fsum(values) / len(values) for c, values in held.items() if values}
  return {c: value for c, value in means.items() if math.isfinite(value)}


def _width(column: str) -> int:
  return max(len(column), _CELL)


def _number(value: float | None) -> str:
  return '–' if value is None else f'{value:+.2f}'


def _short(name: str) -> str:
  """The name, its middle left out where it is long: mixtures end in their method."""
  if len(name) <= _MOST_NAME:
    return name
  half = (_MOST_NAME - 1) // 2
  return f'{name[:half]}…{name[-half:]}'

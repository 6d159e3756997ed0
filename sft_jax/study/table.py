"""The study's tables, made from the runs' own files and from nothing else.

`results.csv` and `results.parquet` hold the same rows and types: the released columns, what
identifies a row, the factors, and all further columns by name. `failures.csv` says which runs were
given up and why. Which processes did which runs in which order leaves no trace in them.
"""

import csv
import io as text_io
import math
from collections.abc import Iterable, Sequence
from typing import Any

from etils import epath

from sft_jax import results
from sft_jax import spec as spec_lib
from sft_jax.study.directory import StudyDirectory, StudyRecord
from sft_jax.utils import io

# done | failed (given up after these rows) | unfinished, of the row's run.
STATE = 'state'
_TEXT = ('model_name', 'data_name', 'lr_strategy')
_FAILURE_COLUMNS = ('run', 'name', 'kind', 'reason', 'attempts', 'cohort')


def collect(workdir: epath.PathLike) -> list[results.Row]:
  """Writes the tables of a study as it is now; returns the rows.

  Each file is whole at any moment. Where runs end meanwhile, it is done again, so that of several
  processes the last to write has seen everything.

  Raises:
    UserError: no study is there, a file cannot be read, or the tables cannot be written.
  """
  place = StudyDirectory(workdir)
  while True:
    record = place.record()
    seen = _fingerprint(place, record)
    rows = read_rows(place, record)
    write(place.path, rows)
    io.write_text_atomic(place.path / 'failures.csv', _failures(place, record))
    if _fingerprint(place, record) == seen:
      return rows


def write(directory: epath.PathLike, rows: Sequence[results.Row]) -> None:
  """Writes `results.csv` and `results.parquet` of any rows.

  Raises:
    UserError: they cannot be written.
  """
  columns = columns_of(rows)
  types = {column: _type(column, [row.get(column) for row in rows]) for column in columns}
  cells = [[_cell(row.get(column), types[column]) for column in columns] for row in rows]
  place = epath.Path(directory)
  io.write_text_atomic(place / 'results.csv', _csv(columns, cells))
  io.write_bytes_atomic(place / 'results.parquet', _parquet(columns, types, cells))


def read_rows(place: StudyDirectory, record: StudyRecord) -> list[results.Row]:
  """The rows of all runs, in the study's order, each run's by step."""
  rows = []
  for run in record.names:
    state = 'done' if place.finished(run) else 'unfinished'
    state = 'failed' if state != 'done' and place.settled(run) else state
    own = io.read_jsonl(place.run(run) / 'rows.jsonl')
    rows += [{**row, STATE: state} for row in sorted(own, key=lambda row: row['step'])]
  return rows


def columns_of(rows: Iterable[results.Row]) -> list[str]:
  """The released header, then what identifies a row, the factors, and the rest by name."""
  factors = [factor.column for factor in spec_lib.FACTORS.values()]
  known = (*results.RELEASED_COLUMNS, *results.ROW_KEY, STATE, *results.IDENTITY, *factors)
  found = {column for row in rows for column in row}
  named = [c for c in dict.fromkeys(known) if c in found or c in results.RELEASED_COLUMNS]
  return [*named, *sorted(found.difference(named))]


def _type(column: str, values: Sequence[Any]) -> str:
  """bool | int | float | string | json, of all values together."""
  kinds = {type(value) for value in values if value is not None}
  if column in _TEXT or kinds == {str}:
    return 'string'
  if column == 'lora' or kinds == {bool}:
    return 'bool'
  if column == 'data_size' or (kinds == {int} and column not in results.RELEASED_COLUMNS):
    return 'int'
  if column == 'epoch':
    return 'int' if kinds <= {int} else 'float'
  return 'float' if kinds <= {int, float} else 'json'


def _cell(value: Any, kind: str) -> Any:
  if value is None:
    return None
  if kind == 'json':
    return io.to_json(value)
  return float(value) if kind == 'float' else value


def _csv(columns: Sequence[str], cells: Sequence[Sequence[Any]]) -> str:
  """As the released file is written: true and false, nothing for nothing, shortest numbers."""
  out = text_io.StringIO()
  writer = csv.writer(out, lineterminator='\n')
  writer.writerow(columns)
  for row in cells:
    writer.writerow([_word(value) for value in row])
  return out.getvalue()


def _word(value: Any) -> Any:
  if value is None:
    return ''
  if isinstance(value, bool):
    return 'true' if value else 'false'
  return repr(value) if isinstance(value, float) and math.isfinite(value) else value


def _parquet(
  columns: Sequence[str], types: dict[str, str], cells: Sequence[Sequence[Any]]
) -> bytes:
  import pyarrow as pa
  from pyarrow import parquet

  arrow = {
    'bool': pa.bool_(),
    'int': pa.int64(),
    'float': pa.float64(),
    'string': pa.string(),
    'json': pa.string(),
  }
  arrays = [
    pa.array([row[i] for row in cells], arrow[types[column]]) for i, column in enumerate(columns)
  ]
  sink = pa.BufferOutputStream()
  parquet.write_table(pa.table(arrays, list(columns)), sink)
  return sink.getvalue().to_pybytes()


def _failures(place: StudyDirectory, record: StudyRecord) -> str:
  cohort = {run: key for key, runs in record.cohorts.items() for run in runs}
  rows = []
  for run, name in record.names.items():
    why = place.failure(run)
    if why is not None and not place.finished(run):
      rows.append([run, name, why['kind'], why['reason'], why['attempts'], cohort[run]])
  return _csv(_FAILURE_COLUMNS, rows)


def _fingerprint(place: StudyDirectory, record: StudyRecord) -> list[Any]:
  """Differs once a row, an end or a run was added."""
  found: list[Any] = [list(record.names)]
  for run in record.names:
    for name in ('rows.jsonl', 'done.json', 'failed.json'):
      file = place.run(run) / name
      try:
        stat = file.stat()
        found.append((run, name, stat.length, stat.mtime))
      except FileNotFoundError:
        continue
  return found

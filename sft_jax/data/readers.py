"""Data sets to raw records with their place. Not for what the fields mean: see `formats.py`.

Nothing is executed or unpickled: files are JSON, JSON lines, CSV or Parquet. `hub_sets.py` and
`tfds_sets.py` read what is no file.
"""

import collections
import csv
import gzip
import io
import json
import os
import pathlib
import re
import stat
import zlib
from collections.abc import Iterator
from typing import Any

from sft_jax.data import hub_sets, json_stream, tfds_sets
from sft_jax.utils.errors import UserError

Raw = tuple[str, Any]  # (where: 'file.jsonl:12', the record); no two records share a place

_PICKLES = ('.pkl', '.pickle', '.pt', '.pth', '.bin', '.joblib', '.npy', '.npz')
_LISTS = ('data', 'records', 'examples', 'rows', 'train')
KINDS = '.json, .jsonl, .csv, .tsv, .parquet (text also .gz), hf:org/name, tfds:name'


def read_raw(path: str, limit: int = 0, cache_dir: str = '', revision: str = '') -> Iterator[Raw]:
  """Raw records of a file, `hf:org/name[:config][@split]` or `tfds:name[:version][@split]`.

  `hf:org/name/file.json` is one file of a hub data set.
  A record's place is 'file:LINE' where it starts; 'file:LINE[INDEX]' (from 0, in the whole list)
  where a line holds several; 'file:KEY' in an object of records; 'file:row N' where rows have no
  lines.

  Args:
    path: See above; the split is 'train' when not given.
    limit: Read at most this many records; 0 reads all.
    cache_dir: Where hub data sets are cached, or the TFDS data directory; '' is their default.
    revision: Branch, tag or commit of a hub data set.

  Raises:
    UserError: A path that is missing, a directory, a pickle, empty or of unknown kind; text that is
      not UTF-8; malformed JSON, CSV or Parquet (with the line), also where a field occurs twice or
      text follows a list; a hub or TFDS failure.
  """
  if hub_sets.file_of(path)[1] and not os.path.isdir(path[3:]):
    found = _read_file(hub_sets.bring_file(path, revision))
  elif path.startswith('hf:'):
    found = hub_sets.read(path, limit, cache_dir, revision)
  elif path.startswith('tfds:'):
    found = tfds_sets.read(path, cache_dir)
  else:
    found = _read_file(path)
  count = 0
  for item in found:
    yield item
    count += 1
    if count == limit:
      return
  if not count:
    raise UserError('no records', where=path, how='the data need at least one record')


def _read_file(path: str) -> Iterator[Raw]:
  kind, name = file_kind(path), os.path.basename(path)
  if kind in _PICKLES:
    raise UserError(
      f'{name} is a pickle or binary file, which could run code when read',
      where=path,
      how=f'convert it to one of: {KINDS}',
    )
  size = require_file(path)
  if kind == '.parquet':
    return _read_parquet(path)
  if kind == '.json' and not name.endswith('.gz') and size > json_stream.LARGE:
    return json_stream.records(path)
  reader = {
    '.json': _read_json,
    '.jsonl': _read_json_lines,
    '.ndjson': _read_json_lines,
    '.csv': _read_csv,
    '.tsv': _read_csv,
  }.get(kind)
  if reader is None:
    raise UserError(f'unknown kind of file {kind or name!r}', where=path, how=f'use {KINDS}')
  return reader(path, read_text(path))


def require_file(path: str) -> int:
  """Bytes of a data file on this machine, of which nothing is read.

  Raises:
    UserError: it is not there, or a directory.
  """
  try:
    status = os.stat(path)
  except (OSError, ValueError) as error:
    raise _unreadable(path, error) from error
  if stat.S_ISDIR(status.st_mode):
    raise UserError('a directory, not a file', where=path, how='name one data file in it')
  return status.st_size


def file_kind(path: str) -> str:
  """The suffix that tells the kind, in lower case and before any .gz: '.jsonl'; '' if none."""
  suffixes = [suffix.lower() for suffix in pathlib.Path(path).suffixes]
  return ([''] + (suffixes[:-1] if suffixes[-1:] == ['.gz'] else suffixes))[-1]


def read_text(path: str) -> str:
  """The text of a file, unpacked if it is .gz. Raises UserError if it is not readable UTF-8."""
  file = pathlib.Path(path)
  try:
    data = file.read_bytes()
    return _decode(path, gzip.decompress(data) if file.suffix.lower() == '.gz' else data)
  except (OSError, ValueError, EOFError, zlib.error) as error:
    raise _unreadable(path, error) from error


def _unreadable(path: str, error: Exception) -> UserError:
  if isinstance(error, FileNotFoundError | NotADirectoryError):
    return UserError('no such file', where=path, how='check the path')
  if isinstance(error, PermissionError):
    return UserError('no permission to read', where=path, how='mend its permissions')
  return UserError(f'cannot be read: {error}', where=path, how='fetch the file again')


def _decode(path: str, data: bytes) -> str:
  try:
    return data.decode('utf-8-sig')
  except UnicodeDecodeError as error:
    line = data.count(b'\n', 0, error.start) + 1
    raise UserError(
      f'not UTF-8: byte 0x{data[error.start]:02x}', where=f'{path}:{line}', how='save it as UTF-8'
    ) from error


def _decoder() -> json.JSONDecoder:
  return json.JSONDecoder(object_pairs_hook=_unique)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
  """Python's own reading keeps the last of two equal keys, without a word."""
  made = dict(pairs)
  if len(made) < len(pairs):
    ((twice, _),) = collections.Counter(key for key, _ in pairs).most_common(1)
    raise ValueError(f'the key {twice!r} occurs twice in one object')
  return made


def _bad_json(path: str, line: int, error: Exception) -> UserError:
  reason, how = str(error), 'mend or remove it'
  if isinstance(error, json.JSONDecodeError):
    reason = f'{error.msg} at column {error.colno}'
    if line == 1 and error.pos == 0 and ',' in error.doc.partition('\n')[0]:
      how += '; if this is CSV, let its name end in .csv'
  return UserError(f'malformed JSON: {reason}', where=f'{path}:{line}', how=how)


def _read_json_lines(path: str, text: str) -> Iterator[Raw]:
  decoder = _decoder()
  # Not splitlines(): JSON strings may hold U+2028 and the like.
  for number, line in enumerate(text.split('\n'), start=1):
    if line.strip():
      try:
        record = decoder.decode(line)
      except (ValueError, RecursionError) as error:
        raise _bad_json(path, number, error) from error
      yield f'{path}:{number}', record


def _read_json(path: str, text: str) -> Iterator[Raw]:
  """A list of records, an object of records, or (in a .json file as well) a record a line."""
  decoder = _decoder()
  start = _skip(text, 0)
  if start == len(text):
    return
  if text[start] == '[':
    yield from _read_json_list(path, text, start, decoder)
    return
  try:
    value, end = decoder.raw_decode(text, start)
  except (ValueError, RecursionError) as error:
    raise _bad_json(path, getattr(error, 'lineno', 1), error) from error
  if _skip(text, end) < len(text):
    yield from _read_json_lines(path, text)
    return
  if not isinstance(value, dict):
    raise UserError(
      f'a JSON {type(value).__name__}, not records', where=path, how='write a list of objects'
    )
  for key in _LISTS:
    if isinstance(value.get(key), list) and not isinstance(value.get('messages'), list):
      _refuse_other_lists(path, value, key)
      for index, record in enumerate(value[key]):
        yield f'{path}:{key}[{index}]', record
      return
  if value and all(isinstance(record, dict) for record in value.values()):
    for key, record in value.items():
      yield f'{path}:{key!r}', record
  else:
    yield f'{path}:1', value


def _refuse_other_lists(path: str, value: dict[str, Any], chosen: str) -> None:
  """An object with both 'train' and 'test' would lose one of them without a word."""
  for key, other in value.items():
    if key != chosen and isinstance(other, list) and any(isinstance(item, dict) for item in other):
      raise UserError(
        f'two lists of records, {chosen!r} and {key!r}', where=path, how='write one list a file'
      )


def _skip(text: str, start: int) -> int:
  match = re.compile(r'[ \t\r\n]*').match(text, start)
  return match.end() if match else start


def _read_json_list(path: str, text: str, start: int, decoder: json.JSONDecoder) -> Iterator[Raw]:
  """One record at a time, to know the line each starts on."""
  index, line, counted = 0, 1, 0
  shared = False  # whether the record before starts on the same line
  at = _skip(text, start + 1)
  while at < len(text) and text[at] != ']':
    line, counted = line + text.count('\n', counted, at), at
    try:
      record, end = decoder.raw_decode(text, at)
    except (ValueError, RecursionError) as error:
      raise _bad_json(path, getattr(error, 'lineno', line), error) from error
    at = _skip(text, end)
    comma = text[at : at + 1] == ','
    if comma:
      at = _skip(text, at + 1)
    followed = comma and text[at : at + 1] != ']' and '\n' not in text[counted:at]
    yield f'{path}:{line}[{index}]' if shared or followed else f'{path}:{line}', record
    index, shared = index + 1, followed
    if not comma:
      break
  if text[at : at + 1] != ']':
    raise _bad_json(path, 1 + text.count('\n', 0, at), ValueError("expected ',' or ']'"))
  after = _skip(text, at + 1)
  if after < len(text):
    reason = ValueError('text after the ] that ends the list')
    raise _bad_json(path, 1 + text.count('\n', 0, after), reason)


def csv_rows(path: str, text: str) -> Iterator[tuple[int, list[str]]]:
  """(line it starts on, fields) of the rows of a .csv or .tsv file; empty lines are left out.

  Raises:
    UserError: Malformed quoting, with the line.
  """
  delimiter = '\t' if file_kind(path) == '.tsv' else ','
  limit = csv.field_size_limit(1 << 30)  # the default refuses fields over 128 KiB
  line = 1
  try:
    rows = csv.reader(io.StringIO(text, newline=''), delimiter=delimiter, strict=True)
    for row in rows:
      if row:
        yield line, row
      line = rows.line_num + 1
  except csv.Error as error:
    raise UserError(
      f'malformed CSV: {error}',
      where=f'{path}:{line}',
      how='close its quotes; a quote inside quotes is doubled',
    ) from error
  finally:
    csv.field_size_limit(limit)


def _read_csv(path: str, text: str) -> Iterator[Raw]:
  names: list[str] = []
  for line, row in csv_rows(path, text):
    where = f'{path}:{line}'
    if not names:
      names = row
      if len(set(names)) != len(names):
        raise UserError('a column name occurs twice', where=where, how='rename one')
    elif len(row) != len(names):
      raise UserError(f'a row without {len(names)} fields', where=where, how='check the quoting')
    else:
      yield where, dict(zip(names, row, strict=True))


def _read_parquet(path: str) -> Iterator[Raw]:
  import pyarrow
  import pyarrow.parquet

  row = 0
  try:
    with pyarrow.parquet.ParquetFile(path) as file:
      names = file.schema_arrow.names
      if len(set(names)) != len(names):
        raise UserError('a column name occurs twice', where=path, how='rename one')
      for batch in file.iter_batches(batch_size=1024):
        for record in batch.to_pylist():
          yield f'{path}:row {row}', record
          row += 1
  except UserError:
    raise
  except Exception as error:  # values that Python has no type for raise many kinds
    raise UserError(
      f'not a readable Parquet file: {error}', where=path, how='fetch the file again'
    ) from error

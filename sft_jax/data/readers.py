"""Files, hub datasets and TFDS to raw records with their place. Not for what the fields mean.

Nothing is executed or unpickled: files are JSON, JSON lines, CSV or Parquet.
"""

import csv
import gzip
import io
import json
import os
import pathlib
import re
import zlib
from collections.abc import Iterator
from typing import Any

from sft_jax.data import hub_sets
from sft_jax.utils.errors import UserError

Raw = tuple[str, Any]  # (where: 'file.jsonl:12', the record)

_PICKLES = ('.pkl', '.pickle', '.pt', '.pth', '.bin', '.joblib', '.npy', '.npz')
_LISTS = ('data', 'records', 'examples', 'rows', 'train')
KINDS = '.json, .jsonl, .csv, .tsv, .parquet (text also .gz), hf:org/name, tfds:name'


def read_raw(path: str, limit: int = 0, cache_dir: str = '', revision: str = '') -> Iterator[Raw]:
  """Raw records of a file, `hf:org/name[:config][@split]` or `tfds:name[:version][@split]`.

  Args:
    path: See above; the split is 'train' when not given.
    limit: Read at most this many records; 0 reads all.
    cache_dir: Where hub data sets are cached, or the TFDS data directory; '' is their default.
    revision: Branch, tag or commit of a hub data set.

  Raises:
    UserError: A path that is missing, a directory, a pickle, empty or of unknown kind; text that is
      not UTF-8; malformed JSON, CSV or Parquet (with the line); a hub or TFDS failure.
  """
  if path.startswith('hf:'):
    found = hub_sets.read(path, limit, cache_dir, revision)
  elif path.startswith('tfds:'):
    found = _read_tfds(path, cache_dir)
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
  file = pathlib.Path(path)
  suffixes = [s.lower() for s in file.suffixes]
  kind = (suffixes[:-1] if suffixes[-1:] == ['.gz'] else suffixes)[-1:] or ['']
  if kind[0] in _PICKLES:
    raise UserError(
      f'{file.name} is a pickle or binary file, which could run code when read',
      where=path,
      how=f'convert it to one of: {KINDS}',
    )
  if file.is_dir():
    raise UserError('a directory, not a file', where=path, how='name one data file in it')
  if not file.exists():
    raise UserError('no such file', where=path, how='check config.data.path')
  if kind[0] == '.parquet':
    return _read_parquet(path)
  reader = {
    '.json': _read_json,
    '.jsonl': _read_json_lines,
    '.ndjson': _read_json_lines,
    '.csv': _read_csv,
    '.tsv': _read_csv,
  }.get(kind[0])
  if reader is None:
    raise UserError(
      f'unknown kind of file {kind[0] or file.name!r}', where=path, how=f'use {KINDS}'
    )
  return reader(path, read_text(path))


def read_text(path: str) -> str:
  """The text of a file, unpacked if it is .gz. Raises UserError if it is not readable UTF-8."""
  file = pathlib.Path(path)
  try:
    data = file.read_bytes()
    return _decode(path, gzip.decompress(data) if file.suffix.lower() == '.gz' else data)
  except FileNotFoundError as error:
    raise UserError('no such file', where=path, how='check config.data.path') from error
  except PermissionError as error:
    raise UserError('no permission to read', where=path, how='mend its permissions') from error
  except (OSError, EOFError, zlib.error) as error:
    raise UserError(f'cannot be read: {error}', where=path, how='fetch the file again') from error


def _decode(path: str, data: bytes) -> str:
  try:
    return data.decode('utf-8-sig')
  except UnicodeDecodeError as error:
    line = data.count(b'\n', 0, error.start) + 1
    raise UserError(
      f'not UTF-8: byte 0x{data[error.start]:02x}', where=f'{path}:{line}', how='save it as UTF-8'
    ) from error


def _bad_json(path: str, line: int, error: Exception) -> UserError:
  reason = getattr(error, 'msg', None) or str(error)
  return UserError(f'malformed JSON: {reason}', where=f'{path}:{line}', how='mend or remove it')


def _read_json_lines(path: str, text: str) -> Iterator[Raw]:
  # Not splitlines(): JSON strings may hold U+2028 and the like.
  for number, line in enumerate(text.split('\n'), start=1):
    if line.strip():
      try:
        record = json.loads(line)
      except (ValueError, RecursionError) as error:
        raise _bad_json(path, number, error) from error
      yield f'{path}:{number}', record


def _read_json(path: str, text: str) -> Iterator[Raw]:
  """A list of records, an object of records, or (in a .json file as well) a record a line."""
  decoder = json.JSONDecoder()
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
      for index, record in enumerate(value[key]):
        yield f'{path}:{key}[{index}]', record
      return
  if value and all(isinstance(record, dict) for record in value.values()):
    for key, record in value.items():
      yield f'{path}:{key}', record
  else:
    yield f'{path}:1', value


def _skip(text: str, start: int) -> int:
  match = re.compile(r'[ \t\r\n]*').match(text, start)
  return match.end() if match else start


def _read_json_list(path: str, text: str, start: int, decoder: json.JSONDecoder) -> Iterator[Raw]:
  """One record at a time, to know the line each starts on."""
  line, counted = 1, 0
  at = _skip(text, start + 1)
  while at < len(text) and text[at] != ']':
    line, counted = line + text.count('\n', counted, at), at
    try:
      record, end = decoder.raw_decode(text, at)
    except (ValueError, RecursionError) as error:
      raise _bad_json(path, getattr(error, 'lineno', line), error) from error
    yield f'{path}:{line}', record
    at = _skip(text, end)
    if text[at : at + 1] == ',':
      at = _skip(text, at + 1)
    elif text[at : at + 1] != ']':
      break
  if text[at : at + 1] != ']':
    raise _bad_json(path, 1 + text.count('\n', 0, at), ValueError("expected ',' or ']'"))


def _read_csv(path: str, text: str) -> Iterator[Raw]:
  delimiter = '\t' if '.tsv' in pathlib.Path(path).suffixes else ','
  limit = csv.field_size_limit(1 << 30)  # the default refuses fields over 128 KiB
  try:
    rows = csv.DictReader(io.StringIO(text, newline=''), delimiter=delimiter, strict=True)
    names = rows.fieldnames or []
    if len(set(names)) != len(names):
      raise UserError('a column name occurs twice', where=f'{path}:1', how='rename one')
    for row in rows:
      where = f'{path}:{rows.line_num}'
      if None in row or None in row.values():
        raise UserError(f'a row without {len(names)} fields', where=where, how='check the quoting')
      yield where, row
  except csv.Error as error:
    raise UserError(
      f'malformed CSV: {error}',
      where=f'{path}:{rows.line_num}',
      how='close its quotes; a quote inside quotes is doubled',
    ) from error
  finally:
    csv.field_size_limit(limit)


def _read_parquet(path: str) -> Iterator[Raw]:
  import pyarrow
  import pyarrow.parquet

  row = 0
  try:
    with pyarrow.parquet.ParquetFile(path) as file:
      for batch in file.iter_batches(batch_size=1024):
        for record in batch.to_pylist():
          yield f'{path}:row {row}', record
          row += 1
  except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
    raise UserError(
      f'not a readable Parquet file: {error}', where=path, how='fetch the file again'
    ) from error


def _read_tfds(path: str, data_dir: str) -> Iterator[Raw]:
  os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '2')
  try:
    import tensorflow_datasets as tfds
  except ImportError as error:
    raise UserError(
      'tensorflow-datasets is not installed',
      where=path,
      how='pip install tensorflow-datasets tensorflow-cpu',
    ) from error
  name, split = hub_sets.split_spec(path)
  try:
    rows = tfds.as_numpy(tfds.load(name, split=split, data_dir=data_dir or None))
    for index, record in enumerate(rows):
      yield f'{path}:row {index}', _plain(record)
  except UserError:
    raise
  except Exception as error:  # the libraries below raise many kinds
    raise UserError(
      f'cannot load the TFDS data set: {str(error).strip().splitlines()[0]}',
      where=path,
      how='check the name, version and split, and TFDS_DATA_DIR',
    ) from error


def _plain(value: Any) -> Any:
  """numpy values and bytes as Python values and text."""
  if isinstance(value, dict):
    return {key: _plain(item) for key, item in value.items()}
  if hasattr(value, 'to_list'):  # ragged
    return _plain(value.to_list())
  if hasattr(value, 'tolist'):
    return _plain(value.tolist())
  if isinstance(value, list | tuple):
    return [_plain(item) for item in value]
  if isinstance(value, bytes):
    return value.decode('utf-8')
  return value

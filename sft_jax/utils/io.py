"""Files, local or remote (`gs://`), that are whole or absent. Not for arrays or model weights.

A file is written beside its place and renamed onto it: a reader sees the old one or the new one.
"""

import contextlib
import errno
import hashlib
import json
import os
import shutil
import socket
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from etils import epath

from sft_jax.utils.errors import UserError

_FULL = (errno.ENOSPC, errno.EDQUOT)
_DENIED = (errno.EROFS, errno.EACCES, errno.EPERM)
# What a library's own error says when it wraps one of the above.
_FULL_WORDS = ('no space left on device', 'disk quota exceeded')
_DENIED_WORDS = ('read-only file system', 'permission denied')


@contextlib.contextmanager
def explain_os_errors(path: epath.PathLike) -> Iterator[None]:
  """Turns a full disk or a forbidden write, raised inside, into a `UserError` that names `path`."""
  try:
    yield
  except Exception as e:
    number = e.errno if isinstance(e, OSError) else None
    text = str(e).lower()
    if number in _FULL or any(words in text for words in _FULL_WORDS):
      raise UserError(
        'the disk is full',
        where=str(path),
        how='free space or choose another --workdir; what was saved before is whole, '
        'and the same command continues from it',
      ) from e
    if number in _DENIED or any(words in text for words in _DENIED_WORDS):
      raise UserError(
        'this place cannot be written',
        where=str(path),
        how='choose another --workdir, or mend its permissions or mount',
      ) from e
    if number in (errno.ENOTDIR, errno.EEXIST):
      raise UserError(
        'a file stands where a directory is needed',
        where=str(path),
        how='remove it or choose another --workdir',
      ) from e
    raise


def is_remote(path: epath.PathLike) -> bool:
  """Whether `path` lies in an object store, where a write is atomic but nothing can be appended."""
  return '://' in os.fspath(path)


def write_bytes_atomic(path: epath.PathLike, data: bytes) -> None:
  """Writes a file whole. Its directory is made.

  Raises:
    UserError: full disk, no permission, read-only file system.
  """
  target = epath.Path(path)
  with explain_os_errors(target):
    target.parent.mkdir(parents=True, exist_ok=True)
    if is_remote(path):
      target.write_bytes(data)
      return
    # Host and process in the name: several writers of one workdir cannot meet in it.
    temporary = target.parent / f'.{target.name}.{socket.gethostname()}-{os.getpid()}.tmp'
    try:
      with open(temporary, 'wb') as f:
        f.write(data)
        f.flush()
        os.fsync(f.fileno())
      os.replace(temporary, target)
    except BaseException:
      temporary.unlink(missing_ok=True)
      raise


def write_text_atomic(path: epath.PathLike, text: str) -> None:
  """Writes UTF-8 text whole; see `write_bytes_atomic`."""
  write_bytes_atomic(path, text.encode())


def to_json(value: Any, indent: int | None = None) -> str:
  """JSON of plain values, numpy scalars and arrays; a number that is not finite becomes null."""
  return json.dumps(_plain(value), ensure_ascii=False, allow_nan=False, indent=indent)


def _plain(value: Any) -> Any:
  if isinstance(value, Mapping):
    return {str(key): _plain(item) for key, item in value.items()}
  if isinstance(value, (list, tuple)):
    return [_plain(item) for item in value]
  if hasattr(value, 'tolist'):
    return _plain(value.tolist())
  if isinstance(value, float) and (value != value or value in (float('inf'), float('-inf'))):
    return None
  if isinstance(value, os.PathLike):
    return os.fspath(value)
  return value


def write_json_atomic(path: epath.PathLike, value: Any) -> None:
  """Writes indented JSON whole; see `write_bytes_atomic`."""
  write_text_atomic(path, to_json(value, indent=2) + '\n')


def read_json(path: epath.PathLike) -> Any:
  """Reads a JSON file.

  Raises:
    UserError: the file is missing, is not UTF-8 or is not JSON.
  """
  try:
    return json.loads(epath.Path(path).read_text())
  except FileNotFoundError as e:
    raise UserError('file not found', where=str(path), how='check the path') from e
  except UnicodeDecodeError as e:
    raise UserError('file is not UTF-8 text', where=str(path), how='save it as UTF-8') from e
  except json.JSONDecodeError as e:
    raise UserError(
      f'file is not JSON: {e.msg}', where=f'{path}:{e.lineno}', how='mend or remove it'
    ) from e


def read_jsonl(path: epath.PathLike) -> list[dict[str, Any]]:
  """Reads the objects of a file we wrote; [] when it is absent.

  Raises:
    UserError: a line is not a JSON object.
  """
  file = epath.Path(path)
  rows: list[dict[str, Any]] = []
  if not file.exists():
    return rows
  for number, line in enumerate(file.read_bytes().split(b'\n'), 1):
    if not line.strip():
      continue
    try:
      row = json.loads(line)
    except ValueError:
      row = None
    if not isinstance(row, dict):
      raise UserError(
        'line is not a JSON object', where=f'{path}:{number}', how='mend or remove the line'
      )
    rows.append(row)
  return rows


def upsert_jsonl(
  path: epath.PathLike, rows: Iterable[Mapping[str, Any]], key: Sequence[str]
) -> None:
  """Puts `rows` into a JSONL file: in place of the row of equal `key` fields, else at the end.

  The whole file is rewritten atomically, so doing it again changes nothing. For one writer.

  Raises:
    KeyError: a new row lacks a key field.
    UserError: the file holds something else than JSON objects, or cannot be written.
  """
  # Compared as JSON: what was read back (lists, null) must equal what is about to be written.
  lines = {to_json([row.get(field) for field in key]): to_json(row) for row in read_jsonl(path)}
  for row in rows:
    lines[to_json([row[field] for field in key])] = to_json(row)
  write_text_atomic(path, ''.join(f'{line}\n' for line in lines.values()))


def sha256_file(path: epath.PathLike) -> str:
  """Returns the SHA-256 of a file's bytes, in hexadecimal."""
  digest = hashlib.sha256()
  with epath.Path(path).open('rb') as f:
    while block := f.read(1 << 20):
      digest.update(block)
  return digest.hexdigest()


def free_bytes(path: epath.PathLike) -> int:
  """Bytes free on the file system that holds (or would hold) `path`; maxsize when remote."""
  if is_remote(path):
    return sys.maxsize
  place = os.path.abspath(os.fspath(path))
  while not os.path.exists(place):
    place = os.path.dirname(place)
  return shutil.disk_usage(place).free


def require_writable(directory: epath.PathLike, need_bytes: int = 0) -> None:
  """Makes `directory` and proves that a file can be written into it.

  Args:
    directory: Local or remote directory.
    need_bytes: What is about to be written there, if known.

  Raises:
    UserError: read-only, forbidden, full, too little space, or a file stands in the way.
  """
  with explain_os_errors(directory):
    place = epath.Path(directory)
    place.mkdir(parents=True, exist_ok=True)
    if is_remote(directory):
      return
    probe = place / f'.probe.{socket.gethostname()}-{os.getpid()}.tmp'
    try:
      # A page, not a byte: a full file system may still take what fits beside its tables.
      write_bytes_atomic(probe, bytes(4096))
    finally:
      with contextlib.suppress(OSError):
        probe.unlink(missing_ok=True)
  free = free_bytes(directory)
  if need_bytes > free:
    raise UserError(
      f'too little disk space: {need_bytes / 1e9:.2f} GB are needed, {free / 1e9:.2f} GB are free',
      where=str(directory),
      how='free space or choose another --workdir',
    )

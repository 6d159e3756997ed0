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
import tempfile
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from etils import epath

from sft_jax.utils import process
from sft_jax.utils.errors import UserError

_DAY_S = 86_400
_FULL = (errno.ENOSPC, errno.EDQUOT)
_DENIED = (errno.EROFS, errno.EACCES, errno.EPERM)
# What a library's own error says when it wraps one of the above.
_FULL_WORDS = ('no space left on device', 'disk quota exceeded')
_DENIED_WORDS = ('read-only file system', 'permission denied')
# Packages that speak to object stores.
_CLIENTS = ('tensorflow', 'fsspec', 'gcsfs', 's3fs', 'adlfs', 'aiohttp', 'botocore', 'google')


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
    if number == errno.EISDIR:
      raise UserError(
        'a directory stands where a file is needed',
        where=str(path),
        how='remove it or choose another --workdir',
      ) from e
    if _is_of_a_bucket(e):
      raise _unusable_bucket(e, path) from e
    raise


def _is_of_a_bucket(error: Exception) -> bool:
  """Whether a client of an object store raised it: those have errors of their own."""
  return type(error).__module__.partition('.')[0] in _CLIENTS


def _unusable_bucket(error: Exception, path: epath.PathLike) -> UserError:
  return UserError(
    f'the bucket cannot be used: {(str(error).splitlines() or [type(error).__name__])[0]}',
    where=str(path),
    how='check its name, the network and your access to it',
  )


@contextlib.contextmanager
def explain_unreadable(path: epath.PathLike) -> Iterator[None]:
  """Turns a file that cannot be opened or read, met inside, into a `UserError` that names it."""
  try:
    yield
  except OSError as e:
    raise UserError(
      f'cannot be read: {e.strerror or e}',
      where=str(e.filename or path),
      how='check what lies there and its permissions',
    ) from e
  except Exception as e:
    if _is_of_a_bucket(e):
      raise _unusable_bucket(e, path) from e
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


def create_text(path: epath.PathLike, text: str) -> bool:
  """Makes a file of UTF-8 text, whole, where none is; False, and nothing done, where one is.

  Of several processes one succeeds. An object store cannot promise that: read the file again.

  Raises:
    UserError: full disk, no permission, read-only file system.
  """
  target = epath.Path(path)
  with explain_os_errors(target):
    if is_remote(path):
      if target.exists():
        return False
      target.write_text(text)
      return True
    temporary = target.parent / f'.{target.name}.{uuid.uuid4().hex}.tmp'
    try:
      write_text_atomic(temporary, text)
      os.link(temporary, target)
      return True
    except FileExistsError:
      return False
    except OSError:  # A file system without links.
      try:
        with open(target, 'x', encoding='utf-8') as f:
          f.write(text)
        return True
      except FileExistsError:
        return False
    finally:
      temporary.unlink(missing_ok=True)


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
    UserError: the file is missing, cannot be read, is not UTF-8 or is not JSON.
  """
  try:
    with explain_unreadable(path):
      text = epath.Path(path).read_text()
    return json.loads(text)
  except UnicodeDecodeError as e:
    raise UserError('file is not UTF-8 text', where=str(path), how='save it as UTF-8') from e
  except json.JSONDecodeError as e:
    raise UserError(
      f'file is not JSON: {e.msg}', where=f'{path}:{e.lineno}', how='mend or remove it'
    ) from e


def read_jsonl(path: epath.PathLike) -> list[dict[str, Any]]:
  """Reads the objects of a file we wrote; [] when it is absent.

  Raises:
    UserError: it cannot be read, or a line is not a JSON object.
  """
  file = epath.Path(path)
  rows: list[dict[str, Any]] = []
  with explain_unreadable(path):
    text = file.read_bytes() if file.exists() else b''
  for number, line in enumerate(text.split(b'\n'), 1):
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


def require_writable(directory: epath.PathLike) -> None:
  """Makes `directory` and proves that a file can be written into it.

  Raises:
    UserError: read-only, forbidden, full, or a file stands in the way.
  """
  with explain_os_errors(directory):
    place = epath.Path(directory)
    try:
      place.mkdir(parents=True, exist_ok=True)
    except FileNotFoundError as e:  # Parents are made: so says a file system that has no places.
      raise PermissionError(errno.EACCES, 'Permission denied') from e
    if is_remote(directory):
      return
    probe = place / f'.probe.{socket.gethostname()}-{os.getpid()}.tmp'
    try:
      # A page, not a byte: a full file system may still take what fits beside its tables.
      write_bytes_atomic(probe, bytes(4096))
    finally:
      with contextlib.suppress(OSError):
        probe.unlink(missing_ok=True)


@contextlib.contextmanager
def scratch_directory(parent: Path, name: str) -> Iterator[Path]:
  """Yields a new local directory beside where `name` is to stand; it is gone afterwards.

  What killed processes left of theirs is removed first; a living one's stays.
  """
  prefix = f'.{name}.partial-'
  for path in parent.iterdir():
    if path.name.startswith(prefix) and _is_left_behind(path):
      shutil.rmtree(path, ignore_errors=True)
  with tempfile.TemporaryDirectory(dir=parent, prefix=prefix) as made:
    write_json_atomic(Path(made) / 'owner.json', process.me())
    yield Path(made)


def _is_left_behind(scratch: Path) -> bool:
  try:
    alive = process.lives(json.loads((scratch / 'owner.json').read_text()))
  except (OSError, ValueError, KeyError, TypeError):
    alive = None
  if alive is not None:
    return not alive
  # Of another machine, or without a name: only time tells.
  with contextlib.suppress(OSError):
    return time.time() - scratch.stat().st_mtime > _DAY_S
  return False

"""The GGUF container: metadata and tensor directory, every count and offset checked.

Written out here (and not left to the `gguf` package) because a corrupt count must be one clear line
before anything is allocated; dequantising is the package's. Layout:
https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

import dataclasses
import math
import mmap
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from sft_jax.utils.errors import UserError

MAGIC = b'GGUF'
VERSIONS = (2, 3)
_SCALARS = {
  0: 'B', 1: 'b', 2: 'H', 3: 'h', 4: 'I', 5: 'i', 6: 'f', 7: '?', 10: 'Q', 11: 'q', 12: 'd',
}  # fmt: skip
_STRING, _ARRAY = 8, 9
_MAX_KEYS, _MAX_TENSORS, _MAX_NAME, _MAX_DIMS = 1 << 16, 1 << 17, 1 << 16, 4


@dataclasses.dataclass(frozen=True)
class Entry:
  """One tensor: shape outermost axis first (ggml writes it innermost first), bytes in the file."""

  shape: tuple[int, ...]
  type_id: int
  type_name: str
  start: int
  size: int


@dataclasses.dataclass(frozen=True)
class Contents:
  """Metadata, tensor directory, and the mapped file."""

  metadata: dict[str, Any]
  tensors: dict[str, Entry]
  data: mmap.mmap


def read(path: Path) -> Contents:
  """Reads everything but the tensor data, which stays on disk behind a memory map.

  Raises:
    UserError: not GGUF, an unknown version, or damaged in any way the header can show.
  """
  import gguf

  size = path.stat().st_size
  if size < 24:
    _fail(path, f'truncated GGUF file of {size} bytes')
  with open(path, 'rb') as f:
    data = mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ)
  cursor = _Cursor(data, path)
  if (magic := cursor.take(4)) != MAGIC:
    _fail(path, f'not a GGUF file: it starts with {magic!r}')
  (version,) = cursor.unpack('I')
  if version not in VERSIONS:
    if version & 0xFFFF == 0:
      raise UserError('big-endian GGUF', str(path), 'convert it to little-endian')
    raise UserError(
      f'GGUF version {version}', str(path), f'versions read: {", ".join(map(str, VERSIONS))}'
    )
  n_tensors, n_keys = cursor.unpack('QQ')
  if n_tensors > _MAX_TENSORS or n_keys > _MAX_KEYS:
    _fail(path, f'absurd GGUF header: {n_tensors} tensors, {n_keys} keys')
  metadata: dict[str, Any] = {}
  for _ in range(n_keys):
    key = cursor.string(_MAX_NAME)
    if key in metadata:
      _fail(path, f'GGUF key {key!r} twice')
    metadata[key] = cursor.value()
  alignment = metadata.get('general.alignment', 32)
  if type(alignment) is not int or alignment <= 0 or alignment & (alignment - 1):
    _fail(path, f'GGUF alignment {alignment!r} is no power of two')
  heads = [_tensor_head(cursor, path) for _ in range(n_tensors)]
  base = -(-cursor.at // alignment) * alignment
  types = {int(t): (t.name, *gguf.GGML_QUANT_SIZES[t]) for t in gguf.GGMLQuantizationType}
  tensors: dict[str, Entry] = {}
  for name, shape, type_id, offset in heads:
    if name in tensors:
      _fail(path, f'tensor {name} is stored twice')
    if type_id not in types:
      _fail(path, f'tensor {name} has the unknown type {type_id}')
    type_name, block, block_bytes = types[type_id]
    if shape[-1] % block:
      _fail(path, f'tensor {name}: rows of {shape[-1]} do not fill {type_name} blocks of {block}')
    stored = math.prod(shape) // block * block_bytes
    if offset % alignment:
      _fail(path, f'tensor {name} is not aligned')
    if base + offset + stored > size:
      _fail(
        path, f'truncated GGUF file: tensor {name} ends at byte {base + offset + stored} of {size}'
      )
    tensors[name] = Entry(shape, type_id, type_name, base + offset, stored)
  if not tensors:
    _fail(path, 'no tensor in it')
  return Contents(metadata, tensors, data)


def _tensor_head(cursor: '_Cursor', path: Path) -> tuple[str, tuple[int, ...], int, int]:
  name = cursor.string(_MAX_NAME)
  (n_dims,) = cursor.unpack('I')
  if not 1 <= n_dims <= _MAX_DIMS:
    _fail(path, f'tensor {name!r} has {n_dims} axes')
  dims = cursor.unpack(f'{n_dims}Q')
  if not all(dims):
    _fail(path, f'tensor {name!r} has an empty axis')
  type_id, offset = cursor.unpack('IQ')
  return name, tuple(reversed(dims)), type_id, offset


class _Cursor:
  """Reads forward through the file and fails instead of running past its end."""

  def __init__(self, data: mmap.mmap, path: Path):
    self._data, self._path, self.at = data, path, 0

  def take(self, count: int) -> bytes:
    if count > len(self._data) - self.at:
      _fail(
        self._path,
        f'truncated GGUF file: {count} bytes wanted at byte {self.at} of {len(self._data)}',
      )
    self.at += count
    return self._data[self.at - count : self.at]

  def unpack(self, code: str) -> tuple[Any, ...]:
    return struct.unpack('<' + code, self.take(struct.calcsize('<' + code)))

  def string(self, limit: int | None = None) -> str:
    (length,) = self.unpack('Q')
    if limit is not None and length > limit:
      _fail(self._path, f'absurd GGUF header: a name of {length} bytes at byte {self.at}')
    try:
      return self.take(length).decode('utf-8')
    except UnicodeDecodeError as e:
      _fail(self._path, f'GGUF text is not UTF-8: {e}')

  def value(self) -> Any:
    (kind,) = self.unpack('I')
    if kind != _ARRAY:
      return self._reader(kind)()
    kind, count = self.unpack('IQ')
    if kind in _SCALARS:
      # struct.calcsize of an absurd count would overflow, so the size is checked by hand.
      code = _SCALARS[kind]
      item = struct.calcsize('<' + code)
      if count * item > len(self._data) - self.at:
        _fail(self._path, f'absurd GGUF header: an array of {count} at byte {self.at}')
      return list(self.unpack(f'{count}{code}'))
    if count * 8 > len(self._data) - self.at:
      _fail(self._path, f'absurd GGUF header: an array of {count} at byte {self.at}')
    read_one = self._reader(kind)
    return [read_one() for _ in range(count)]

  def _reader(self, kind: int) -> Callable[[], Any]:
    if kind == _STRING:
      return self.string
    if kind not in _SCALARS:
      _fail(self._path, f'unknown GGUF value type {kind} at byte {self.at}')
    return lambda: self.unpack(_SCALARS[kind])[0]


def _fail(path: Path, what: str) -> NoReturn:
  raise UserError(what, str(path), 'the file is damaged: download it again')

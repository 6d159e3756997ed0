"""Deltas: a fine-tuned Hugging Face directory as its difference from its base, without loss.

A delta is one file (docs: `FORMAT.md` beside this module). Everything in the directory is stored:
safetensors files tensor by tensor against the base's tensors of the same name and shape, other
files as bytes. Tensors are read, encoded and written in chunks of a million elements, several
threads at a time; no more than a few chunks are in memory. Restoring is `restore.py`, which works
without this package. Not for adapters: they are small as they are.
"""

import collections
import contextlib
import dataclasses
import functools
import hashlib
import json
import os
import shutil
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent import futures
from pathlib import Path
from typing import Any

import numpy as np
import zstandard

from sft_jax.study import delta_codec, restore, tensor_files
from sft_jax.utils import io
from sft_jax.utils.errors import UserError

SUFFIX = '.sftdelta'
# Elements of a chunk.
CHUNK = 1 << 20
# Pairs of types whose values `restore.predict` takes over.
_CONVERTED = (('BF16', 'F32'), ('F32', 'BF16'))


@dataclasses.dataclass(frozen=True)
class Base:
  """What a delta is a difference from.

  Attributes:
    directory: Where it lies, as safetensors.
    hub_id: org/name where it can be had from the hub, or ''.
    revision: The commit there, or ''.
    files: {safetensors file: SHA-256}.
  """

  directory: Path
  hub_id: str
  revision: str
  files: Mapping[str, str]


@dataclasses.dataclass(frozen=True)
class Written:
  """Sizes of a delta: bytes of the directory it stands for, of its tensors alone, of the file."""

  directory_bytes: int
  tensor_bytes: int
  delta_bytes: int


@dataclasses.dataclass(frozen=True)
class _Part:
  """A stretch of a file that is encoded by itself.

  Attributes:
    name: For messages.
    kind: One of `restore.KINDS`.
    start: First byte in its file.
    size: Bytes.
    base: The tensor of the base, or None.
    held: The kind of `base`.
  """

  name: str
  kind: str
  start: int
  size: int
  base: tensor_files.Tensor | None = None
  held: str = ''


def identify(
  base_dir: str | os.PathLike[str], hub_id: str = '', revision: str = '', threads: int = 2
) -> Base:
  """Hashes a base; for many deltas of one base, do it once.

  Raises:
    UserError: no safetensors there, or unreadable.
  """
  directory = Path(base_dir)
  paths = tensor_files.model(directory)
  with io.explain_unreadable(directory), futures.ThreadPoolExecutor(threads) as pool:
    digests = list(pool.map(io.sha256_file, paths))
  files = {path.name: digest for path, digest in zip(paths, digests, strict=True)}
  return Base(directory, hub_id, revision, files)


def write_delta(
  tuned_dir: str | os.PathLike[str],
  base: Base | str | os.PathLike[str],
  out_file: str | os.PathLike[str],
  threads: int = 2,
) -> Written:
  """Writes a directory as a delta against its base; the file is there when it is whole.

  Args:
    tuned_dir: Hugging Face directory; safetensors whole or sharded.
    base: From `identify`, or a directory.
    out_file: Replaced if there.
    threads: Encoders at work; two feed a disk.

  Raises:
    UserError: no safetensors in either directory, a damaged file, a full disk.
  """
  base = base if isinstance(base, Base) else identify(base, threads=threads)
  tuned, out = Path(tuned_dir), Path(out_file)
  tensor_files.weights(tuned)
  held = {
    name: t for path in tensor_files.model(base.directory) for name, t in tensor_files.tensors(path)
  }
  members = sorted(path for path in tuned.rglob('*') if path.is_file())
  files: dict[str, Any] = {}
  tensor_bytes = 0
  with io.explain_os_errors(out):
    out.parent.mkdir(parents=True, exist_ok=True)
    with (
      io.scratch_directory(out.parent, out.name) as scratch,
      futures.ThreadPoolExecutor(threads) as pool,
    ):
      with open(scratch / 'body', 'wb') as body:
        for path in members:
          name = path.relative_to(tuned).as_posix()
          parts = list(_parts(path, held, base.directory, name))
          files[name] = _write_file(path, parts, base.directory, body, pool, 2 * threads)
          tensor_bytes += sum(p.size for p in parts[1:]) if tensor_files.is_weights(path) else 0
      head = _header(base, files)
      with open(scratch / 'whole', 'wb') as whole, open(scratch / 'body', 'rb') as f:
        whole.write(head)
        shutil.copyfileobj(f, whole, 1 << 20)
        whole.flush()
        os.fsync(whole.fileno())
      os.replace(scratch / 'whole', out)
  total = sum(path.stat().st_size for path in members)
  return Written(total, tensor_bytes, out.stat().st_size)


def pack(
  hf_dir: str | os.PathLike[str],
  base: Base | str | os.PathLike[str],
  out_dir: str | os.PathLike[str],
) -> Written:
  """Moves an exported directory into a directory of its delta: `model.sftdelta` and the card.

  Args:
    hf_dir: From `models.export`; gone afterwards.
    base: As for `write_delta`.
    out_dir: Made, or replaced; it is there when it is whole.

  Raises:
    UserError: as `write_delta`; `hf_dir` is then still there.
  """
  out, card = Path(out_dir), Path(hf_dir) / 'README.md'
  with io.explain_os_errors(out):
    out.parent.mkdir(parents=True, exist_ok=True)
    with io.scratch_directory(out.parent, out.name) as scratch:
      new = scratch / 'new'
      written = write_delta(hf_dir, base, new / f'model{SUFFIX}')
      if card.exists():
        shutil.copyfile(card, new / card.name)
      if out.exists():
        os.replace(out, scratch / 'old')
      os.replace(new, out)
  shutil.rmtree(hf_dir)
  return written


def read_header(delta: str | os.PathLike[str]) -> dict[str, Any]:
  """The header of a delta: its base and its files.

  Raises:
    UserError: not a delta, of another format, damaged.
  """
  with explained(delta):
    return restore.header(os.fspath(delta))[0]


def restore_delta(
  delta: str | os.PathLike[str],
  base_dir: str | os.PathLike[str],
  out_dir: str | os.PathLike[str],
  threads: int = 2,
) -> None:
  """Rebuilds the directory, bit for bit; it is there when it is whole.

  Raises:
    UserError: `out_dir` exists; wrong base (naming the tensor), cut or damaged file (naming the
      tensor), another format, a full disk.
  """
  with explained(delta), io.explain_os_errors(out_dir):
    Path(out_dir).absolute().parent.mkdir(parents=True, exist_ok=True)
    restore.restore(os.fspath(delta), os.fspath(base_dir), os.fspath(out_dir), threads)


@contextlib.contextmanager
def explained(delta: str | os.PathLike[str]) -> Iterator[None]:
  """Turns what `restore` raises into a `UserError`."""
  try:
    with io.explain_unreadable(delta):
      yield
  except (ValueError, KeyError, zstandard.ZstdError) as e:
    raise UserError(
      str(e), f'restoring {delta}', 'get the file again, and the base that its header names'
    ) from e


def _parts(
  path: Path, held: Mapping[str, tensor_files.Tensor], base_dir: Path, file: str
) -> Iterator[_Part]:
  """What a file is encoded in: a part of bytes and, of weights, one for each tensor."""
  size, twin = path.stat().st_size, base_dir / file
  tensors = tensor_files.tensors(path) if tensor_files.is_weights(path) else []
  first = tensors[0][1].start if tensors else size
  # The same bytes in the base, if it has them: a tokenizer, the header of a file of tensors.
  same = twin.is_file() and _begin_alike(path, twin, first)
  base = tensor_files.Tensor(twin, 'U8', (first,), 0, first) if same else None
  yield _Part(file, 'U8', 0, first, base, 'U8')
  for name, tensor in tensors:
    kind = tensor.dtype if tensor.dtype in restore.KINDS else 'U8'
    other = held.get(name)
    if other is not None and other.shape == tensor.shape:
      if other.dtype == tensor.dtype:
        yield _Part(name, kind, tensor.start, tensor.size, other, kind)
        continue
      if (other.dtype, kind) in _CONVERTED:
        yield _Part(name, kind, tensor.start, tensor.size, other, other.dtype)
        continue
    yield _Part(name, kind, tensor.start, tensor.size)


def _begin_alike(path: Path, twin: Path, size: int) -> bool:
  if twin.stat().st_size < size:
    return False
  with open(path, 'rb') as one, open(twin, 'rb') as other:
    return one.read(size) == other.read(size)


def _write_file(
  path: Path,
  parts: Sequence[_Part],
  base_dir: Path,
  body: Any,
  pool: futures.Executor,
  window: int,
) -> dict[str, Any]:
  """Encodes one file into `body`; returns its entry of the header."""
  digest, size = hashlib.sha256(), 0
  entries: list[dict[str, Any]] = []

  def jobs() -> Iterator[Callable[[], tuple[int, bytes, bytes, list[int]]]]:
    for number, part in enumerate(parts):
      entries.append({'name': part.name, 'kind': part.kind, 'base': None, 'chunks': []})
      if part.base is not None:
        entries[-1]['base'] = [part.base.path.relative_to(base_dir).as_posix(), part.held]
      width = _width(part.kind)
      for at in range(0, part.size // width, CHUNK):
        count = min(CHUNK, part.size // width - at)
        yield functools.partial(_encode, path, number, part, at, count)

  for number, raw, data, base in _in_order(jobs(), pool, window):
    digest.update(raw)
    size += len(raw)
    chunk = [len(raw) // _width(parts[number].kind), body.tell(), len(data), zlib.crc32(data)]
    entries[number]['chunks'].append([*chunk, *base])
    body.write(data)
  return {'bytes': size, 'sha256': digest.hexdigest(), 'parts': entries}


def _encode(
  path: Path, number: int, part: _Part, at: int, count: int
) -> tuple[int, bytes, bytes, list[int]]:
  """(number, raw, encoded, [first byte, bytes, CRC] of the base) of `count` elements from `at`."""
  code, mantissa = restore.KINDS[part.kind]
  width = _width(part.kind)
  raw = _read(path, part.start + at * width, count * width)
  place = [0, 0, 0]
  bits = np.zeros(count, code)
  if part.base is not None:
    start, size = part.base.start + at * _width(part.held), count * _width(part.held)
    held = _read(part.base.path, start, size)
    place = [start, size, zlib.crc32(held)]
    bits = restore.predict(held, part.held, part.kind)
  return number, raw, delta_codec.encode(np.frombuffer(raw, code), bits, mantissa), place


def _width(kind: str) -> int:
  return np.dtype(restore.KINDS[kind][0]).itemsize


def _read(path: Path, start: int, size: int) -> bytes:
  with io.explain_unreadable(path), open(path, 'rb') as f:
    f.seek(start)
    data = f.read(size)
  if len(data) != size:
    raise UserError('the file has become shorter', str(path), 'leave it alone while it is read')
  return data


def _in_order(
  jobs: Iterator[Callable[[], Any]], pool: futures.Executor, window: int
) -> Iterator[Any]:
  """Results in the order of the jobs, of which at most `window` are under way."""
  waiting: collections.deque[futures.Future[Any]] = collections.deque()
  for job in jobs:
    waiting.append(pool.submit(job))
    if len(waiting) >= window:
      yield waiting.popleft().result()
  while waiting:
    yield waiting.popleft().result()


def _header(base: Base, files: Mapping[str, Any]) -> bytes:
  identity = {'hub_id': base.hub_id, 'revision': base.revision, 'files': dict(base.files)}
  text = json.dumps({'base': identity, 'files': files}, separators=(',', ':'))
  packed = zstandard.ZstdCompressor(level=19).compress(text.encode())
  line = b' '.join([*restore.MAGIC, b'%d %d' % (len(packed), zlib.crc32(packed))])
  return line + b'\n' + packed

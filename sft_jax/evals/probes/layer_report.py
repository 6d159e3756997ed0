"""How far a fine-tuned checkpoint lies from its base, layer by layer, in bounded memory.

Both are read from disk tensor by tensor and in blocks of rows, so that two models of any size need
a few blocks of memory. As in `layer_delta`, embeddings, head, norms and biases are left out, and of
an adapter the product is never formed. Not for parameters on devices: that is `layer_delta`.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from sft_jax.models import families, hf, peft, source
from sft_jax.models.config import ModelConfig
from sft_jax.utils import trees
from sft_jax.utils.errors import UserError

_BLOCK_VALUES = 8 << 20
# Names of matrices in layers of architectures that have no table here.
_LAYERED = re.compile(r'(?:^|\.)(?:layers|h|blocks|block)\.(\d+)\.(.+)\.weight$')

Changes = dict[str, dict[str, list[float]]]


class _Part(NamedTuple):
  """Rows `start` to `stop` of a tensor: a kind of module in a layer."""

  module: str
  layer: int
  tensor: str
  start: int
  stop: int


def layer_report(base: source.Checkpoint, tuned: source.Checkpoint) -> Changes:
  """Weight change of every layer between two checkpoints on disk.

  Args:
    base: Where it began (`source.resolve` opens directories, hub ids, GGUF files, wheels).
    tuned: Fine-tuned from it, stored whole.

  Returns:
    As `layer_delta.layer_delta`: {module: {'norm': `[L]`, 'relative': `[L]`}}, and 'all'. Modules
    are ours where the architecture is known, else they have the names of the checkpoint.

  Raises:
    UserError: a matrix of the base is missing in the other or has another shape there; no matrix
      in layers; values that are not finite.
  """
  sums: dict[tuple[str, int], np.ndarray] = {}
  for part in _parts(base):
    _check(base, tuned, part)
    sums[part.module, part.layer] = _squares(base, tuned, part)
  return _table(sums)


def adapter_report(base: source.Checkpoint, adapter_dir: str) -> Changes:
  """The same for a PEFT adapter (LoRA) in a directory, on the scale of whole models.

  Raises:
    UserError: the base's architecture is not known, or the adapter does not fit it.
  """
  cfg = ModelConfig.from_hf(base.config)
  read = peft.import_peft(adapter_dir, cfg)
  factors = trees.flatten(read.adapter)
  sums: dict[tuple[str, int], np.ndarray] = {}
  for part in _parts(base):
    old = _squares(base, None, part)[1]
    change = 0.0
    if f'{part.module}/lora_a' in factors:
      a, b = (factors[f'{part.module}/lora_{side}'][part.layer].astype(np.float64) for side in 'ab')
      change = read.scale**2 * max(float(((a.T @ a) * (b @ b.T)).sum()), 0.0)
    sums[part.module, part.layer] = np.array([change, old])
  return _table(sums)


def _parts(ckpt: source.Checkpoint) -> Iterator[_Part]:
  """Every matrix in the layers of a checkpoint, in the order they lie in files."""
  raw = ckpt.config
  if not set(raw.get('architectures') or ()) & set(families.FAMILIES):
    found = [(name, _LAYERED.search(name)) for name in ckpt.tensors]
    parts = [
      _Part(match[2], int(match[1]), name, 0, ckpt.tensors[name].shape[0])
      for name, match in found
      if match and len(ckpt.tensors[name].shape) == 2
    ]
    if not parts:
      raise UserError('no matrix in numbered layers', ckpt.name, 'is it a language model?')
    yield from parts
    return
  cfg = ModelConfig.from_hf(ckpt.config)
  hf.check_tensors(ckpt, cfg)
  for row in families.rows(cfg):
    if row.path.startswith('layers/') and row.path.endswith('/kernel'):
      start, length, _ = families.extent(row, cfg)
      for layer, name in enumerate(hf.hf_names(row, cfg)):
        yield _Part(row.path.removesuffix('/kernel'), layer, name, start, start + length)


def _check(base: source.Checkpoint, tuned: source.Checkpoint, part: _Part) -> None:
  shape = base.tensors[part.tensor].shape
  other = tuned.tensors.get(part.tensor)
  if other is None or other.shape != shape:
    found = 'is missing' if other is None else f'has shape {list(other.shape)}, not {list(shape)}'
    raise UserError(
      f'tensor {part.tensor} {found}', tuned.name, f'it is not fine-tuned from {base.name}'
    )


def _squares(base: source.Checkpoint, tuned: source.Checkpoint | None, part: _Part) -> np.ndarray:
  """Sums of squares of the change (0 without `tuned`) and of the base, in float64, by blocks."""
  width = int(np.prod(base.tensors[part.tensor].shape[1:]))
  rows = max(1, _BLOCK_VALUES // width)
  total = np.zeros(2)
  for start in range(part.start, part.stop, rows):
    index = (slice(start, min(start + rows, part.stop)),)
    old = base.read(part.tensor, index).astype(np.float32)
    total[1] += _sum_of_squares(old)
    if tuned is not None:
      # The difference of two float32 numbers that lie close is exact.
      old -= tuned.read(part.tensor, index).astype(np.float32)
      total[0] += _sum_of_squares(old)
  if not np.isfinite(total).all():
    raise UserError(
      f'tensor {part.tensor} holds NaN or infinity',
      base.name if tuned is None or not np.isfinite(total[1]) else tuned.name,
      'use another snapshot',
    )
  return total


def _sum_of_squares(block: np.ndarray) -> float:
  """In float64."""
  return float(np.einsum('ij,ij->i', block, block, dtype=np.float64).sum())


def _table(sums: Mapping[tuple[str, int], np.ndarray]) -> Changes:
  """Norms by module and layer, and of all modules; what a layer lacks counts 0."""
  layers = 1 + max(layer for _, layer in sums)
  squares: dict[str, Any] = {}
  for (module, layer), value in sums.items():
    squares.setdefault(module, np.zeros((2, layers)))[:, layer] += value
  squares['all'] = np.sum(list(squares.values()), axis=0)
  return {
    module: {
      'norm': np.sqrt(change).tolist(),
      'relative': np.sqrt(change / np.maximum(old, 1e-30)).tolist(),
    }
    for module, (change, old) in sorted(squares.items())
  }

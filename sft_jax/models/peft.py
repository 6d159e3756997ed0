"""Low-rank adapters as PEFT writes and reads them. Merged models are written by `export.py`."""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sft_jax.models import export, families, hf, hf_dir, lora, peft_config, source
from sft_jax.models.config import ModelConfig
from sft_jax.utils import trees
from sft_jax.utils.errors import UserError

CONFIG, WEIGHTS = 'adapter_config.json', 'adapter_model.safetensors'


@dataclasses.dataclass(frozen=True)
class Imported:
  """An adapter read from disk: tree without a run axis, and what its config says."""

  adapter: trees.Tree
  rank: int
  alpha: float
  scale: float
  dropout: float
  modules: tuple[str, ...]
  base_name: str


@dataclasses.dataclass(frozen=True)
class _Stored:
  """A linear map as checkpoints have it: one of our modules, or several whose kernels are fused.

  Attributes:
    name: As PEFT users name it, such as `q_proj`.
    modules: Ours, with where each one's outputs begin and how many they are.
    outputs: Of all of them.
    keys: Its full names in transformers' model, layer by layer.
  """

  name: str
  modules: dict[str, tuple[int, int]]
  outputs: int
  keys: list[str]

  @property
  def tensors(self) -> list[tuple[str, str]]:
    """Names of A and B, layer by layer."""
    prefix = 'base_model.model.'
    return [(f'{prefix}{k}.lora_A.weight', f'{prefix}{k}.lora_B.weight') for k in self.keys]


def _stored(cfg: ModelConfig) -> list[_Stored]:
  """Every linear map of the layers."""
  found: dict[str, _Stored] = {}
  for row in families.rows(cfg):
    module = row.path.removesuffix('/kernel')
    if module not in lora.linear_modules(cfg):
      continue
    start, length, outputs = families.extent(row, cfg)
    if row.hf not in found:
      keys = [name.removesuffix('.weight') for name in hf.hf_names(row, cfg)]
      found[row.hf] = _Stored(lora.linear_modules(cfg)[module], {}, outputs, keys)
    found[row.hf].modules[module] = start, length
  return list(found.values())


def export_peft(
  out_dir: str | os.PathLike[str],
  cfg: ModelConfig,
  adapter: trees.Tree,
  rank: int,
  alpha: float,
  dropout: float = 0.0,
  base_name: str = '',
  ckpt: source.Checkpoint | None = None,
  card: Mapping[str, Any] | None = None,
) -> None:
  """Writes the adapter of one run.

  Every process must call it with the same arguments; the first one writes.

  Args:
    out_dir: Made, or replaced when it holds an earlier export.
    cfg: The base model.
    adapter: Factors without a run axis; `[L,in,r]` and `[L,r,out]`, r at least `rank` (factors of a
      cohort are padded with zeros to its widest).
    rank: Rank to store.
    alpha: The scale is alpha/rank.
    dropout: As trained with; recorded only.
    base_name: What `peft` shall load underneath; defaults to the checkpoint's hub id (its revision
      goes into a field of its own) or name.
    ckpt: The base; its tokenizer is written beside the adapter.
    card: Facts for the model card.

  Raises:
    UserError: NaN or infinity, `out_dir` is something else, the disk is full.
    ValueError: padding beyond `rank` is not zero.
  """
  flat = {path: export.to_host(leaf) for path, leaf in trees.flatten(adapter).items()}
  tensors: dict[str, np.ndarray] = {}
  ranks: dict[str, int] = {}
  for stored in _stored(cfg):
    adapted = [module for module in stored.modules if f'{module}/lora_a' in flat]
    if adapted:
      ranks[stored.name] = rank * len(adapted)
      tensors |= _fuse(stored, adapted, flat, rank)
  for name, value in tensors.items():
    export.require_finite(name, value, value, 'float32')
  base, revision = base_name, ''
  if ckpt is not None and base_name in ('', ckpt.name):
    base, revision = ckpt.hub_id or ckpt.name, ckpt.revision
  config = {
    'peft_type': 'LORA',
    'task_type': 'CAUSAL_LM',
    'base_model_name_or_path': base or None,
    'revision': revision or None,
    'inference_mode': True,
    'r': rank,
    'lora_alpha': int(alpha) if float(alpha).is_integer() else alpha,
    'lora_dropout': dropout,
    'target_modules': list(ranks),
    'rank_pattern': {name: own for name, own in ranks.items() if own != rank},
    'alpha_pattern': {name: alpha * own / rank for name, own in ranks.items() if own != rank},
    'bias': 'none',
    'fan_in_fan_out': False,
    'init_lora_weights': True,
    'modules_to_save': None,
    'use_rslora': False,
    'use_dora': False,
  }
  with export.new_directory(out_dir) as directory:
    if directory is None:
      return
    export.save_tensors(tensors, directory / WEIGHTS)
    export.write_json(directory / CONFIG, config)
    if ckpt is not None:
      export.write_tokenizer(directory, ckpt)
    facts = {'library_name': 'peft', 'tags': ['sft', 'lora']}
    facts |= (export.facts_of_base(ckpt) if ckpt else {}) | dict(card or {})
    text = export.model_card(base or 'a base model', facts)
    (directory / 'README.md').write_text(text, encoding='utf-8')


def _fuse(
  stored: _Stored, adapted: Sequence[str], flat: Mapping[str, np.ndarray], rank: int
) -> dict[str, np.ndarray]:
  """Tensors of one linear map. Adapters of fused parts lie side by side: their A stacked, their B
  on the diagonal, so the rank is the sum of theirs."""
  tensors = {}
  for module in adapted:
    a, b = (flat[f'{module}/lora_{side}'] for side in 'ab')
    if a[:, :, rank:].any() and b[:, rank:].any():
      raise ValueError(f'{module}: factors beyond rank {rank} are not zero')
  for layer, (name_a, name_b) in enumerate(stored.tensors):
    parts = [flat[f'{module}/lora_a'][layer, :, :rank].T for module in adapted]
    whole_b = np.zeros((stored.outputs, rank * len(adapted)), np.float32)
    for i, module in enumerate(adapted):
      start, length = stored.modules[module]
      part = flat[f'{module}/lora_b'][layer, :rank].T
      whole_b[start : start + length, i * rank : (i + 1) * rank] = part
    tensors[name_a] = np.ascontiguousarray(np.concatenate(parts), np.float32)
    tensors[name_b] = whole_b
  return tensors


def import_peft(directory: str | os.PathLike[str], cfg: ModelConfig) -> Imported:
  """Reads an adapter that `export_peft` or PEFT wrote.

  Raises:
    UserError: not there, pickled, of a kind we do not compute, for other modules or shapes.
  """
  path = Path(directory)
  if not (path / WEIGHTS).is_file() or not (path / CONFIG).is_file():
    raise UserError(
      f'no PEFT adapter: {WEIGHTS} or {CONFIG} is missing',
      str(path),
      'give the directory of an adapter saved as safetensors (pickled ones are refused)',
    )
  config = hf_dir.read_json(path / CONFIG)
  where = str(path / CONFIG)
  peft_config.check_kind(config, where)
  keys = [key for stored in _stored(cfg) for key in stored.keys]
  scaling = peft_config.Scaling(config, keys, where)
  ranks = {key: scaling.rank(key) for key in peft_config.targets(config, keys, where)}
  flat, modules = _factors(path / WEIGHTS, cfg, scaling, ranks)
  base, widest = str(config.get('base_model_name_or_path') or ''), max(ranks.values())
  return Imported(
    trees.unflatten(flat), widest, scaling.alpha, scaling.scale, scaling.dropout, modules, base
  )


def _factors(
  file: Path, cfg: ModelConfig, scaling: peft_config.Scaling, ranks: Mapping[str, int]
) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
  """Stacked float32 factors; layers that an adapter leaves out are zero.

  A factor A that fused parts share is given to each of them.

  Args:
    file: The weights.
    cfg: The base model.
    scaling: Scales.
    ranks: Of the linear maps that are adapted, by full name.
  """
  from safetensors.numpy import load_file

  shapes = families.shapes(cfg)
  layouts = [
    (stored, shapes[f'{next(iter(stored.modules))}/kernel'][1])
    for stored in _stored(cfg)
    if ranks.keys() & set(stored.keys)
  ]
  _check_factors(file, layouts, ranks)
  tensors: dict[str, Any] = load_file(file)
  widest, flat = max(ranks.values()), {}
  modules: list[str] = []
  for stored, din in layouts:
    a = np.zeros((cfg.num_layers, din, widest), np.float32)
    b = np.zeros((cfg.num_layers, widest, stored.outputs), np.float32)
    for layer, (key, pair) in enumerate(zip(stored.keys, stored.tensors, strict=True)):
      if key not in ranks:
        continue
      for name, into in zip(pair, (a[layer, :, : ranks[key]], b[layer, : ranks[key]]), strict=True):
        value = tensors[name].astype(np.float32)
        if not np.isfinite(value).all():
          raise UserError(f'tensor {name} holds NaN or infinity', str(file), 'train it again')
        into[...] = value.T
      b[layer] *= scaling.relative(key)
    for module, (start, length) in stored.modules.items():
      modules.append(module)
      flat[f'{module}/lora_a'] = a
      flat[f'{module}/lora_b'] = b[:, :, start : start + length]
  return flat, tuple(modules)


def _check_factors(
  file: Path, layouts: Sequence[tuple[_Stored, int]], ranks: Mapping[str, int]
) -> None:
  """Compares names, shapes and types with what the adapter's config says."""
  header = hf_dir.read_header(file)
  expected: dict[str, tuple[int, int]] = {}
  for stored, din in layouts:
    for key, (name_a, name_b) in zip(stored.keys, stored.tensors, strict=True):
      if (rank := ranks.get(key)) is not None:
        expected |= {name_a: (rank, din), name_b: (stored.outputs, rank)}
  for name, shape in expected.items():
    if name not in header:
      raise UserError(f'tensor {name} is missing', str(file), 'the adapter is incomplete')
    if header[name].shape != shape:
      raise UserError(
        f'tensor {name} has shape {list(header[name].shape)}, not {list(shape)}',
        str(file),
        'the adapter is of another base model or rank',
      )
    hf_dir.require_readable(name, header[name].dtype, str(file))
  if extra := sorted(header.keys() - expected.keys()):
    raise UserError(
      f'unexpected tensor {extra[0]}',
      str(file),
      f'{CONFIG} does not name it, or the adapter is of another base model',
    )

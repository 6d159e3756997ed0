"""Low-rank adapters as PEFT writes and reads them. Merged models are written by `export.py`."""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sft_jax.models import export, families, hf_dir, lora, source
from sft_jax.models.config import ModelConfig
from sft_jax.utils import trees
from sft_jax.utils.errors import UserError

CONFIG, WEIGHTS = 'adapter_config.json', 'adapter_model.safetensors'

# Fields of adapter_config.json and the values under which an adapter is what we compute.
_PLAIN = {
  'use_dora': (None, False),
  'fan_in_fan_out': (None, False),
  'bias': (None, 'none'),
  'modules_to_save': (None, []),
  'rank_pattern': (None, {}),
  'alpha_pattern': (None, {}),
  'lora_bias': (None, False),
  'trainable_token_indices': (None,),
  'target_parameters': (None, []),
  'layer_replication': (None,),
}


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


def _tensor_names(cfg: ModelConfig, module: str) -> list[tuple[str, str]]:
  """Names of the A and B tensors of a module, layer by layer."""
  hf = {row.path: row.hf for row in families.rows(cfg)}[f'{module}/kernel'].removesuffix('.weight')
  stems = [f'base_model.model.{hf.format(l=layer)}' for layer in range(cfg.num_layers)]
  return [(f'{stem}.lora_A.weight', f'{stem}.lora_B.weight') for stem in stems]


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
  flat = trees.flatten(adapter)
  modules = [m for m in lora.linear_modules(cfg) if f'{m}/lora_a' in flat]
  tensors = {}
  for module in modules:
    a, b = (export.to_host(flat[f'{module}/lora_{side}']) for side in 'ab')
    if a[:, :, rank:].any() and b[:, rank:].any():
      raise ValueError(f'{module}: factors beyond rank {rank} are not zero')
    for layer, (name_a, name_b) in enumerate(_tensor_names(cfg, module)):
      tensors[name_a] = np.ascontiguousarray(a[layer, :, :rank].T, np.float32)
      tensors[name_b] = np.ascontiguousarray(b[layer, :rank].T, np.float32)
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
    'target_modules': [lora.linear_modules(cfg)[m] for m in modules],
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
    from safetensors.numpy import save_file

    save_file(tensors, directory / WEIGHTS, metadata={'format': 'pt'})
    export.write_json(directory / CONFIG, config)
    if ckpt is not None:
      export.write_tokenizer(directory, ckpt)
    facts = {'library_name': 'peft', 'tags': ['sft', 'lora']}
    facts |= (export.facts_of_base(ckpt) if ckpt else {}) | dict(card or {})
    text = export.model_card(base or 'a base model', facts)
    (directory / 'README.md').write_text(text, encoding='utf-8')


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
  if config.get('peft_type') != 'LORA':
    raise UserError(f'adapter of type {config.get("peft_type")!r}', where, 'only LORA is read')
  for key, allowed in _PLAIN.items():
    if config.get(key) not in allowed:
      raise UserError(f'{key}={config[key]!r} is not implemented', where, 'train without it')
  try:
    rank, alpha = int(config['r']), float(config['lora_alpha'])
    dropout = float(config.get('lora_dropout') or 0.0)
    scale = alpha / (rank**0.5 if config.get('use_rslora') else rank)
  except (KeyError, TypeError, ValueError, ZeroDivisionError) as e:
    raise UserError(f'malformed field: {e}', where, 'restore the file') from e
  flat, modules = _factors(path / WEIGHTS, cfg, rank, config.get('layers_to_transform') is not None)
  base = str(config.get('base_model_name_or_path') or '')
  return Imported(trees.unflatten(flat), rank, alpha, scale, dropout, modules, base)


def _factors(
  file: Path, cfg: ModelConfig, rank: int, some_layers: bool
) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
  """Stacked float32 factors; layers that a partial adapter leaves out are zero."""
  from safetensors.numpy import load_file

  header = hf_dir.read_header(file)
  stored: dict[str, Any] = load_file(file)
  shapes, flat, used = families.shapes(cfg), {}, set()
  modules: Sequence[str] = []
  for module in lora.linear_modules(cfg):
    names = _tensor_names(cfg, module)
    present = {name for pair in names for name in pair} & set(header)
    if not present:
      continue
    layers, din, dout = shapes[f'{module}/kernel']
    a = np.zeros((layers, din, rank), np.float32)
    b = np.zeros((layers, rank, dout), np.float32)
    for layer, pair in enumerate(names):
      if some_layers and not present & set(pair):
        continue
      for name, into in zip(pair, (a[layer], b[layer]), strict=True):
        if name not in header:
          raise UserError(f'tensor {name} is missing', str(file), 'the adapter is incomplete')
        if header[name].shape != into.shape[::-1]:
          raise UserError(
            f'tensor {name} has shape {list(header[name].shape)}, not {list(into.shape[::-1])}',
            str(file),
            'the adapter is of another base model or rank',
          )
        into[...] = stored[name].astype(np.float32).T
    used |= present
    modules = [*modules, module]
    flat[f'{module}/lora_a'], flat[f'{module}/lora_b'] = a, b
  if extra := sorted(set(header) - used):
    raise UserError(
      f'unexpected tensor {extra[0]}', str(file), 'the adapter is of another base model'
    )
  return flat, tuple(modules)

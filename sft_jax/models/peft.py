"""Low-rank adapters as PEFT writes and reads them. Merged models are written by `export.py`."""

import dataclasses
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sft_jax.models import export, families, hf, hf_dir, lora, source
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
  'lora_bias': (None, False),
  'trainable_token_indices': (None,),
  'target_parameters': (None, []),
  'layer_replication': (None,),
  # Other ways to compute with the same factors.
  'alora_invocation_tokens': (None, []),
  'arrow_config': (None,),
  'kasa_config': (None,),
  'monteclora_config': (None,),
  'use_bdlora': (None, False),
  'use_qalora': (None, False),
  # The rest of these (pissa, olora, corda, loftq, …) change the base that the factors go with.
  'init_lora_weights': (None, True, False, 'gaussian', 'eva', 'orthogonal'),
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


@dataclasses.dataclass(frozen=True)
class _Stored:
  """A linear map as checkpoints have it: one of our modules, or several whose kernels are fused.

  Attributes:
    name: As PEFT users name it, such as `q_proj`.
    modules: Ours, with where each one's outputs begin and how many they are.
    outputs: Of all of them.
    tensors: Names of A and B, layer by layer.
  """

  name: str
  modules: dict[str, tuple[int, int]]
  outputs: int
  tensors: list[tuple[str, str]]


def _stored(cfg: ModelConfig) -> list[_Stored]:
  """Every linear map of the layers."""
  found: dict[str, _Stored] = {}
  for row in families.rows(cfg):
    module = row.path.removesuffix('/kernel')
    if module not in lora.linear_modules(cfg):
      continue
    start, length, outputs = families.extent(row, cfg)
    if row.hf not in found:
      stems = [name.removesuffix('.weight') for name in hf.hf_names(row, cfg)]
      names = [
        (f'base_model.model.{stem}.lora_A.weight', f'base_model.model.{stem}.lora_B.weight')
        for stem in stems
      ]
      found[row.hf] = _Stored(lora.linear_modules(cfg)[module], {}, outputs, names)
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
    from safetensors.numpy import save_file

    save_file(tensors, directory / WEIGHTS, metadata={'format': 'pt'})
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
  if config.get('peft_type') != 'LORA':
    raise UserError(f'adapter of type {config.get("peft_type")!r}', where, 'only LORA is read')
  for key, allowed in _PLAIN.items():
    if config.get(key) not in allowed:
      raise UserError(f'{key}={config[key]!r} is not implemented', where, 'train without it')
  scaling = _Scaling(config, where)
  some_layers = config.get('layers_to_transform') is not None
  flat, modules = _factors(path / WEIGHTS, cfg, scaling, some_layers)
  base = str(config.get('base_model_name_or_path') or '')
  return Imported(
    trees.unflatten(flat), scaling.widest, scaling.alpha, scaling.scale, scaling.dropout, modules,
    base,
  )  # fmt: skip


class _Scaling:
  """Ranks and scales that an adapter's config states.

  Attributes:
    alpha: Of modules without a pattern.
    scale: Likewise, alpha over rank (over its root under rsLoRA); the one the tree goes with.
    widest: The largest rank; narrower factors are padded with zeros.
    dropout: As trained with.
  """

  def __init__(self, config: Mapping[str, Any], where: str):
    try:
      self._root = bool(config.get('use_rslora'))
      self._rank, self.alpha = int(config['r']), float(config['lora_alpha'])
      self._ranks = {k: int(v) for k, v in (config.get('rank_pattern') or {}).items()}
      self._alphas = {k: float(v) for k, v in (config.get('alpha_pattern') or {}).items()}
      self.dropout = float(config.get('lora_dropout') or 0.0)
      self.scale = self._scale(self._rank, self.alpha)
      # Every pattern must be a plain module name: PEFT also reads them as regular expressions.
      plain = all(re.fullmatch(r'\w+', key) for key in (*self._ranks, *self._alphas))
      good = plain and min((self._rank, *self._ranks.values())) > 0 and self.scale > 0
    except (KeyError, TypeError, ValueError, AttributeError, ArithmeticError) as e:
      raise UserError(f'malformed field: {e}', where, 'restore the file') from e
    if not good:
      raise UserError('ranks or scales of this kind are not read', where, 'train without patterns')
    self.widest = max((self._rank, *self._ranks.values()))

  def _scale(self, rank: int, alpha: float) -> float:
    return alpha / (rank**0.5 if self._root else rank)

  def rank(self, name: str) -> int:
    """Rank of the module PEFT calls `name`."""
    return self._ranks.get(name, self._rank)

  def relative(self, name: str) -> float:
    """Its scale over `scale`."""
    return self._scale(self.rank(name), self._alphas.get(name, self.alpha)) / self.scale


def _factors(
  file: Path, cfg: ModelConfig, scaling: _Scaling, some_layers: bool
) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
  """Stacked float32 factors; layers that a partial adapter leaves out are zero.

  A factor A that fused parts share is given to each of them.
  """
  from safetensors.numpy import load_file

  header = hf_dir.read_header(file)
  tensors: dict[str, Any] = load_file(file)
  shapes, flat, used = families.shapes(cfg), {}, set()
  modules: list[str] = []
  for stored in _stored(cfg):
    present = {name for pair in stored.tensors for name in pair} & set(header)
    if not present:
      continue
    rank = scaling.rank(stored.name)
    layers, din, _ = shapes[f'{next(iter(stored.modules))}/kernel']
    a = np.zeros((layers, din, scaling.widest), np.float32)
    b = np.zeros((layers, scaling.widest, stored.outputs), np.float32)
    for layer, pair in enumerate(stored.tensors):
      if some_layers and not present & set(pair):
        continue
      for name, into in zip(pair, (a[layer, :, :rank], b[layer, :rank]), strict=True):
        if name not in header:
          raise UserError(f'tensor {name} is missing', str(file), 'the adapter is incomplete')
        if header[name].shape != into.shape[::-1]:
          raise UserError(
            f'tensor {name} has shape {list(header[name].shape)}, not {list(into.shape[::-1])}',
            str(file),
            'the adapter is of another base model or rank',
          )
        value = tensors[name].astype(np.float32)
        if not np.isfinite(value).all():
          raise UserError(f'tensor {name} holds NaN or infinity', str(file), 'train it again')
        into[...] = value.T
    used |= present
    b *= scaling.relative(stored.name)
    for module, (start, length) in stored.modules.items():
      modules.append(module)
      flat[f'{module}/lora_a'] = a
      flat[f'{module}/lora_b'] = b[:, :, start : start + length]
  if extra := sorted(set(header) - used):
    raise UserError(
      f'unexpected tensor {extra[0]}', str(file), 'the adapter is of another base model'
    )
  return flat, tuple(modules)

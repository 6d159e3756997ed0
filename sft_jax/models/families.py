"""One table per Hugging Face architecture: where each of our parameters lives in a checkpoint.

From these rows come loading, export, sharding, adapter targets, the weight-decay mask and layer
statistics. A parameter that stands in no row cannot exist.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any


@dataclasses.dataclass(frozen=True)
class Row:
  """One parameter of ours and its Hugging Face tensor.

  Attributes:
    path: Path in our tree; a path under `layers/` has a leading layer axis.
    hf: Tensor name in the checkpoint; `{l}` stands for the layer number.
    axes: Logical axis names of our array, without the layer axis.
    transposed: Hugging Face stores `[out, in]` where we keep `[in, out]`.
    decay: Whether weight decay applies.
    when: Name of the boolean `ModelConfig` field this row depends on ('!' negates), or ''.
  """

  path: str
  hf: str
  axes: tuple[str, ...]
  transposed: bool = False
  decay: bool = True
  when: str = ''


@dataclasses.dataclass(frozen=True)
class Family:
  """Rows, the config switches whose listed values we implement, and tensors to ignore."""

  rows: tuple[Row, ...]
  switches: Mapping[str, tuple[Any, ...]]
  ignored: tuple[str, ...] = ()


def _linear(path: str, hf: str, axes: tuple[str, str], bias: str) -> tuple[Row, ...]:
  return (
    Row(f'{path}/kernel', f'{hf}.weight', axes, transposed=True),
    Row(f'{path}/bias', f'{hf}.bias', axes[1:], decay=False, when=bias),
  )


_LLAMA_ROWS = (
  Row('embed/embedding', 'model.embed_tokens.weight', ('vocab', 'embed')),
  Row('layers/attn_norm/scale', 'model.layers.{l}.input_layernorm.weight', ('norm',), decay=False),
  *_linear(
    'layers/attn/q', 'model.layers.{l}.self_attn.q_proj', ('embed', 'heads'), 'attention_bias'
  ),
  *_linear(
    'layers/attn/k', 'model.layers.{l}.self_attn.k_proj', ('embed', 'kv_heads'), 'attention_bias'
  ),
  *_linear(
    'layers/attn/v', 'model.layers.{l}.self_attn.v_proj', ('embed', 'kv_heads'), 'attention_bias'
  ),
  *_linear(
    'layers/attn/o', 'model.layers.{l}.self_attn.o_proj', ('heads', 'embed'), 'attention_bias'
  ),
  Row(
    'layers/mlp_norm/scale',
    'model.layers.{l}.post_attention_layernorm.weight',
    ('norm',),
    decay=False,
  ),
  *_linear('layers/mlp/gate', 'model.layers.{l}.mlp.gate_proj', ('embed', 'mlp'), 'mlp_bias'),
  *_linear('layers/mlp/up', 'model.layers.{l}.mlp.up_proj', ('embed', 'mlp'), 'mlp_bias'),
  *_linear('layers/mlp/down', 'model.layers.{l}.mlp.down_proj', ('mlp', 'embed'), 'mlp_bias'),
  Row('final_norm/scale', 'model.norm.weight', ('norm',), decay=False),
  Row('head/kernel', 'lm_head.weight', ('embed', 'vocab'), transposed=True, when='!tie_embeddings'),
)

FAMILIES: dict[str, Family] = {
  'LlamaForCausalLM': Family(
    rows=_LLAMA_ROWS,
    switches={
      'hidden_act': ('silu',),
      'quantization_config': (None,),
      'pretraining_tp': (1,),
    },
    ignored=(r'.*rotary_emb\.inv_freq',),
  ),
}


def rows(cfg: Any) -> Iterator[Row]:
  """The rows of `cfg.architecture` that exist under its switches."""
  for row in FAMILIES[cfg.architecture].rows:
    name = row.when.lstrip('!')
    if not name or bool(getattr(cfg, name)) != row.when.startswith('!'):
      yield row


def shapes(cfg: Any) -> dict[str, tuple[int, ...]]:
  """Shape of every parameter of `cfg`, stacked over layers, by path."""
  sizes = {
    'vocab': cfg.vocab_size,
    'embed': cfg.hidden_size,
    'norm': cfg.hidden_size,
    'heads': cfg.num_heads * cfg.head_dim,
    'kv_heads': cfg.num_kv_heads * cfg.head_dim,
    'mlp': cfg.intermediate_size,
  }
  return {
    row.path: (cfg.num_layers,) * row.path.startswith('layers/')
    + tuple(sizes[axis] for axis in row.axes)
    for row in rows(cfg)
  }

"""One table per Hugging Face architecture: where each of our parameters lives in a checkpoint.

From these rows come loading, export, sharding, adapter targets, the weight-decay mask and layer
statistics. A parameter that stands in no row cannot exist.
"""

import dataclasses
import math
from collections.abc import Iterator, Mapping
from typing import Any, Literal

from sft_jax.models import rows as rows_lib

Window = Literal['', 'all', 'tail', 'pattern', 'no_rope']
Ropes = Literal['one', 'local_global', 'some_layers', 'longrope']


@dataclasses.dataclass(frozen=True)
class Family:
  """What an architecture is.

  Attributes:
    rows: Its parameters.
    defaults: Keys of its config that we read, with the defaults transformers gives them; they add
      to `DEFAULTS`. A key that stands in neither is not the architecture's, whatever a file says.
    switches: Keys of which we implement the listed values only; they add to `SWITCHES`.
    fixed: `ModelConfig` fields that are the same for every model of the architecture.
    scaled_embedding: Embeddings are multiplied by the root of the hidden size.
    window: Which layers have a sliding window, where `layer_types` does not say it: 'all', 'tail'
      (from `max_window_layers` on), 'pattern' (all but every n-th), 'no_rope', or '' for never.
    ropes: 'one' for all layers, 'local_global' (layers with a window have their own),
      'some_layers' (the others have no positions), 'longrope' (one, with Phi-3's names).
    ignored: Patterns of tensors that are no parameters.
  """

  rows: tuple[rows_lib.Row, ...]
  defaults: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  switches: Mapping[str, tuple[Any, ...]] = dataclasses.field(default_factory=dict)
  fixed: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  scaled_embedding: bool = False
  window: Window = ''
  ropes: Ropes = 'one'
  ignored: tuple[str, ...] = (r'.*rotary_emb\.inv_freq',)


# Of every architecture, unless it says otherwise.
DEFAULTS: dict[str, Any] = {
  'max_position_embeddings': 2048,
  'num_key_value_heads': None,
  'rms_norm_eps': 1e-6,
  'rope_theta': 10_000.0,
  'tie_word_embeddings': False,
}
SWITCHES: dict[str, tuple[Any, ...]] = {
  'hidden_act': ('silu',),
  'attention_dropout': (0, None),
  'partial_rotary_factor': (1, None),
}

_GEMMA_DEFAULTS = {
  'attention_bias': False,
  'attn_logit_softcapping': 50.0,
  'final_logit_softcapping': 30.0,
  'head_dim': 256,
  'layer_types': None,
  'max_position_embeddings': 8192,
  'num_key_value_heads': 4,
  'query_pre_attn_scalar': 256,
  'sliding_window': 4096,
  'tie_word_embeddings': True,
}
_GEMMA_SWITCHES = {
  'hidden_act': ('gelu_pytorch_tanh', 'gelu', None),  # of older files; nothing reads it
  'hidden_activation': ('gelu_pytorch_tanh',),
  'use_bidirectional_attention': (None, False),
}
_GEMMA_FIXED = {'norm_order': 'both', 'norm_offset': True, 'activation': 'gelu_tanh'}
_QWEN_DEFAULTS = {
  'layer_types': None,
  'max_position_embeddings': 32_768,
  'max_window_layers': 28,
  'num_key_value_heads': 32,
  'sliding_window': 4096,
  'use_sliding_window': False,
}

FAMILIES: dict[str, Family] = {
  'LlamaForCausalLM': Family(
    rows=rows_lib.LLAMA,
    defaults={'attention_bias': False, 'mlp_bias': False},
    switches={'pretraining_tp': (1,)},
  ),
  'MistralForCausalLM': Family(
    rows=rows_lib.LLAMA,
    defaults={
      'max_position_embeddings': 131_072,
      'num_key_value_heads': 8,
      'sliding_window': 4096,
    },
    window='all',
  ),
  'Qwen2ForCausalLM': Family(
    rows=rows_lib.LLAMA, defaults=_QWEN_DEFAULTS, fixed={'qkv_bias': True}, window='tail'
  ),
  'Qwen3ForCausalLM': Family(
    rows=(*rows_lib.LLAMA, *rows_lib.QK_NORMS),
    defaults={**_QWEN_DEFAULTS, 'attention_bias': False, 'head_dim': 128},
    fixed={'qk_norm': 'head'},
    window='tail',
  ),
  'Gemma2ForCausalLM': Family(
    rows=rows_lib.GEMMA,
    defaults=_GEMMA_DEFAULTS,
    switches=_GEMMA_SWITCHES,
    fixed=_GEMMA_FIXED,
    scaled_embedding=True,
    window='pattern',
  ),
  'Gemma3ForCausalLM': Family(
    rows=(*rows_lib.GEMMA, *rows_lib.QK_NORMS),
    defaults={
      **{k: v for k, v in _GEMMA_DEFAULTS.items() if k != 'attn_logit_softcapping'},
      'final_logit_softcapping': None,
      'max_position_embeddings': 131_072,
      'rope_local_base_freq': 10_000.0,
      'rope_theta': 1_000_000.0,
      'sliding_window_pattern': 6,
    },
    # transformers reads this one and leaves it out of its forward.
    switches={**_GEMMA_SWITCHES, 'attn_logit_softcapping': (None,)},
    fixed={**_GEMMA_FIXED, 'qk_norm': 'head', 'positions_stretched': True},
    scaled_embedding=True,
    window='pattern',
    ropes='local_global',
  ),
  'OlmoForCausalLM': Family(
    rows=(rows_lib.EMBED, *rows_lib.LINEARS, rows_lib.HEAD),
    defaults={'attention_bias': False, 'clip_qkv': None},
    fixed={'norm': 'layer', 'norm_eps': 1e-5},
  ),
  'Olmo2ForCausalLM': Family(
    rows=rows_lib.OLMO2,
    defaults={'attention_bias': False, 'rms_norm_eps': 1e-5},
    fixed={'norm_order': 'post', 'qk_norm': 'projection'},
  ),
  'Olmo3ForCausalLM': Family(
    rows=rows_lib.OLMO2,
    defaults={
      'attention_bias': False,
      'layer_types': None,
      'rms_norm_eps': 1e-5,
      'rope_theta': 500_000.0,
      'sliding_window': 4096,
      'sliding_window_pattern': 4,
    },
    fixed={'norm_order': 'post', 'qk_norm': 'projection'},
    window='pattern',
    ropes='local_global',
  ),
  'SmolLM3ForCausalLM': Family(
    rows=rows_lib.LLAMA,
    defaults={
      'attention_bias': False,
      'layer_types': None,
      'max_position_embeddings': 32_768,
      'mlp_bias': False,
      'no_rope_layer_interval': 4,
      'no_rope_layers': None,
      'num_key_value_heads': 4,
      'rope_theta': 2_000_000.0,
      'sliding_window': None,
      'tie_word_embeddings': True,
      'use_sliding_window': False,
    },
    window='no_rope',
    ropes='some_layers',
  ),
  'Phi3ForCausalLM': Family(
    rows=(
      rows_lib.EMBED,
      *rows_lib.norms(rows_lib.PRE_NORMS),
      *rows_lib.fused(
        'self_attn.qkv_proj', {'attn/q': 'heads', 'attn/k': 'kv_heads', 'attn/v': 'kv_heads'}
      ),
      rows_lib.ATTN_OUT[0],
      *rows_lib.fused('mlp.gate_up_proj', {'mlp/gate': 'mlp', 'mlp/up': 'mlp'}),
      rows_lib.DOWN[0],
      rows_lib.FINAL_NORM,
      rows_lib.HEAD,
    ),
    defaults={
      'max_position_embeddings': 4096,
      'original_max_position_embeddings': 4096,
      'partial_rotary_factor': None,
      'rms_norm_eps': 1e-5,
      'sliding_window': None,
    },
    switches={'resid_pdrop': (0, None), 'embd_pdrop': (0, None)},
    window='all',
    ropes='longrope',
  ),
  'GraniteForCausalLM': Family(
    rows=rows_lib.LLAMA,
    defaults={
      'attention_bias': False,
      'attention_multiplier': 1.0,
      'embedding_multiplier': 1.0,
      'logits_scaling': 1.0,
      'mlp_bias': False,
      'residual_multiplier': 1.0,
    },
  ),
}


def rows(cfg: Any) -> Iterator[rows_lib.Row]:
  """The rows of `cfg.architecture` that exist under its switches."""
  for row in FAMILIES[cfg.architecture].rows:
    name = row.when.lstrip('!')
    if not name or bool(getattr(cfg, name)) != row.when.startswith('!'):
      yield row


def axis_sizes(cfg: Any) -> dict[str, int]:
  """Size of every logical axis."""
  return {
    'vocab': cfg.padded_vocab,
    'embed': cfg.hidden_size,
    'norm': cfg.hidden_size,
    'head': cfg.head_dim,
    'heads': cfg.num_heads * cfg.head_dim,
    'kv_heads': cfg.num_kv_heads * cfg.head_dim,
    'mlp': cfg.intermediate_size,
  }


def shapes(cfg: Any) -> dict[str, tuple[int, ...]]:
  """Shape of every parameter of `cfg`, stacked over layers, by path."""
  sizes = axis_sizes(cfg)
  return {
    row.path: (cfg.num_layers,) * row.path.startswith('layers/')
    + tuple(sizes[axis] for axis in row.axes)
    for row in rows(cfg)
  }


def matmul_params(cfg: Any) -> int:
  """Parameters that multiply activations: all kernels and the head, a tied one too."""
  sizes = {path: math.prod(shape) for path, shape in shapes(cfg).items()}
  kernels = sum(size for path, size in sizes.items() if path.endswith('/kernel'))
  return kernels + (sizes['embed/embedding'] if cfg.tie_embeddings else 0)


def extent(row: rows_lib.Row, cfg: Any) -> tuple[int, int, int]:
  """Where `row` lies along the first axis of its tensor: its start, its length, the tensor's."""
  sizes = axis_sizes(cfg) | {'vocab': cfg.vocab_size}
  outputs = row.fused or (row.axes[-1] if row.transposed else row.axes[0],)
  lengths = [sizes[axis] for axis in outputs]
  return sum(lengths[: row.piece]), lengths[row.piece], sum(lengths)


def stored_shape(row: rows_lib.Row, cfg: Any) -> tuple[int, ...]:
  """Shape of the row's tensor in a checkpoint."""
  rest = row.axes[:-1] if row.transposed else row.axes[1:]
  return (extent(row, cfg)[2], *(axis_sizes(cfg)[axis] for axis in rest))

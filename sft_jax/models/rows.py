"""Parameters and the tensors that hold them in a checkpoint, as rows; sets that families share.

`families.py` says which architecture has which.
"""

import dataclasses
from collections.abc import Mapping


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
    fused: Axes that the tensor holds one after the other along its first axis; this row is the
      one of them called `axes[-1]`, at place `piece`. () where the tensor is the row's alone.
    piece: See `fused`.
  """

  path: str
  hf: str
  axes: tuple[str, ...]
  transposed: bool = False
  decay: bool = True
  when: str = ''
  fused: tuple[str, ...] = ()
  piece: int = 0


_LAYER = 'model.layers.{l}'


def linear(path: str, hf: str, axes: tuple[str, str], bias: str) -> tuple[Row, ...]:
  return (
    Row(f'layers/{path}/kernel', f'{_LAYER}.{hf}.weight', axes, transposed=True),
    Row(f'layers/{path}/bias', f'{_LAYER}.{hf}.bias', axes[1:], decay=False, when=bias),
  )


def fused(hf: str, paths: Mapping[str, str]) -> tuple[Row, ...]:
  """Rows {path: its outputs' axis} of one tensor that holds them all."""
  outputs = tuple(paths.values())
  return tuple(
    Row(
      f'layers/{path}/kernel',
      f'{_LAYER}.{hf}.weight',
      ('embed', axis),
      transposed=True,
      fused=outputs,
      piece=piece,
    )
    for piece, (path, axis) in enumerate(paths.items())
  )


def norms(names: Mapping[str, str], axis: str = 'norm') -> tuple[Row, ...]:
  """Rows of norms {path: name in a layer}."""
  return tuple(
    Row(f'layers/{path}/scale', f'{_LAYER}.{name}.weight', (axis,), decay=False)
    for path, name in names.items()
  )


EMBED = Row('embed/embedding', 'model.embed_tokens.weight', ('vocab', 'embed'))
FINAL_NORM = Row('final_norm/scale', 'model.norm.weight', ('norm',), decay=False)
HEAD = Row(
  'head/kernel', 'lm_head.weight', ('embed', 'vocab'), transposed=True, when='!tie_embeddings'
)
ATTN_OUT = linear('attn/o', 'self_attn.o_proj', ('heads', 'embed'), 'o_bias')
DOWN = linear('mlp/down', 'mlp.down_proj', ('mlp', 'embed'), 'mlp_bias')
LINEARS = (
  *linear('attn/q', 'self_attn.q_proj', ('embed', 'heads'), 'qkv_bias'),
  *linear('attn/k', 'self_attn.k_proj', ('embed', 'kv_heads'), 'qkv_bias'),
  *linear('attn/v', 'self_attn.v_proj', ('embed', 'kv_heads'), 'qkv_bias'),
  *ATTN_OUT,
  *linear('mlp/gate', 'mlp.gate_proj', ('embed', 'mlp'), 'mlp_bias'),
  *linear('mlp/up', 'mlp.up_proj', ('embed', 'mlp'), 'mlp_bias'),
  *DOWN,
)
PRE_NORMS = {'attn_norm': 'input_layernorm', 'mlp_norm': 'post_attention_layernorm'}
_Q_NORM, _K_NORM = {'attn/q_norm': 'self_attn.q_norm'}, {'attn/k_norm': 'self_attn.k_norm'}
QK_NORMS = norms(_Q_NORM | _K_NORM, 'head')

# Sets of several families.
LLAMA = (EMBED, *norms(PRE_NORMS), *LINEARS, FINAL_NORM, HEAD)
GEMMA = (
  EMBED,
  *norms(
    {
      'attn_norm': 'input_layernorm',
      'attn_post_norm': 'post_attention_layernorm',
      'mlp_norm': 'pre_feedforward_layernorm',
      'mlp_post_norm': 'post_feedforward_layernorm',
    }
  ),
  *LINEARS,
  FINAL_NORM,
  HEAD,
)
OLMO2 = (
  EMBED,
  *norms(
    {
      'attn_post_norm': 'post_attention_layernorm',
      'mlp_post_norm': 'post_feedforward_layernorm',
    }
  ),
  *LINEARS,
  *norms(_Q_NORM, 'heads'),
  *norms(_K_NORM, 'kv_heads'),
  FINAL_NORM,
  HEAD,
)

"""`ModelConfig`: shape and switches of a decoder, read from a raw `config.json`."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from sft_jax.models import families
from sft_jax.utils.errors import UserError


@dataclasses.dataclass(frozen=True)
class ModelConfig:
  """Sizes and switches of one decoder. Names follow the Hugging Face config where one exists."""

  architecture: str
  vocab_size: int
  hidden_size: int
  intermediate_size: int
  num_layers: int
  num_heads: int
  num_kv_heads: int
  head_dim: int
  max_positions: int
  norm_eps: float
  rope_theta: float
  tie_embeddings: bool
  attention_bias: bool = False
  mlp_bias: bool = False

  @classmethod
  def from_hf(cls, raw: Mapping[str, Any], where: str = 'config.json') -> 'ModelConfig':
    """Reads a raw `config.json`.

    Raises:
      UserError: an unsupported architecture, a missing size, or a switch we do not implement.
    """
    names = raw.get('architectures') or ()
    known = [name for name in names if name in families.FAMILIES]
    if not known:
      raise UserError(
        f'unsupported architecture {", ".join(names) or "(none named)"}',
        where,
        f'supported: {", ".join(sorted(families.FAMILIES))}',
      )
    family = families.FAMILIES[known[0]]
    for key, allowed in family.switches.items():
      if key in raw and raw[key] not in allowed:
        raise UserError(
          f'{key}={raw[key]!r} is not implemented for {known[0]}',
          where,
          f'supported values: {", ".join(map(repr, allowed))}',
        )
    try:
      hidden, heads = int(raw['hidden_size']), int(raw['num_attention_heads'])
      sizes = {
        'vocab_size': int(raw['vocab_size']),
        'hidden_size': hidden,
        'intermediate_size': int(raw['intermediate_size']),
        'num_layers': int(raw['num_hidden_layers']),
        'num_heads': heads,
        'num_kv_heads': int(raw.get('num_key_value_heads') or heads),
        'head_dim': int(raw.get('head_dim') or hidden // max(heads, 1)),
        'max_positions': int(raw.get('max_position_embeddings') or 2048),
      }
      norm_eps = float(raw.get('rms_norm_eps') or 1e-6)
    except (KeyError, TypeError, ValueError) as e:
      raise UserError(
        f'missing or malformed size: {e}', where, 'restore the original config.json'
      ) from e
    for key, value in sizes.items():
      if value <= 0:
        raise UserError(f'{key} must be positive, not {value}', where, 'restore the file')
    if heads % sizes['num_kv_heads']:
      raise UserError(
        f'num_attention_heads={heads} is no multiple of '
        f'num_key_value_heads={sizes["num_kv_heads"]}',
        where,
        'restore the file',
      )
    return cls(
      architecture=known[0],
      **sizes,
      norm_eps=norm_eps,
      rope_theta=_rope_theta(raw, where),
      tie_embeddings=bool(raw.get('tie_word_embeddings', False)),
      attention_bias=bool(raw.get('attention_bias', False)),
      mlp_bias=bool(raw.get('mlp_bias', False)),
    )


def _rope_theta(raw: Mapping[str, Any], where: str) -> float:
  """Rotary base; newer configs keep it in `rope_parameters`, older ones at the top level."""
  parameters = {**(raw.get('rope_scaling') or {}), **(raw.get('rope_parameters') or {})}
  kind = parameters.get('rope_type', parameters.get('type', 'default'))
  if kind != 'default':
    raise UserError(f'rope_type={kind!r} is not implemented', where, "supported: 'default'")
  return float(parameters.get('rope_theta') or raw.get('rope_theta') or 10_000.0)

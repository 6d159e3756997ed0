"""`ModelConfig`: shape and switches of a decoder, read from a raw `config.json`."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from sft_jax.models import families, rope
from sft_jax.utils.errors import UserError

# A damaged count must not become a list as long.
_MOST_LAYERS = 10_000
# Positions and token ids are int32.
_LARGEST_SIZE = 2**31 - 1
_RESTORE = 'restore the original config.json'


@dataclasses.dataclass(frozen=True)
class ModelConfig:
  """Sizes and switches of one decoder. Names follow the Hugging Face config where one exists.

  Attributes:
    norm: 'rms', or 'layer' for a layer norm without parameters.
    norm_offset: The checkpoint stores the norm's scale minus one.
    norm_order: 'pre', 'post' or 'both': norms before a layer's halves, after them, on both sides.
    qk_norm: '' for none; 'head' or 'projection': what queries and keys are normed over.
    clip_qkv: Largest magnitude of queries, keys and values, or None.
    activation: A name of `layers.ACTIVATIONS`.
    query_scale: What products of queries and keys are multiplied by.
    attn_softcap: Soft cap of attention scores, or None.
    logit_softcap: Soft cap of logits, or None.
    embed_scale: What embeddings are multiplied by.
    residual_scale: What each half of a layer is multiplied by before it is added.
    logit_scale: What logits are multiplied by before any soft cap.
    ropes: The kinds of rotary embedding the layers use.
    layer_ropes: Index into `ropes` for each layer.
    windows: Attention window of each layer, itself included; 0 for none.
    positions_stretched: `max_positions` already counts what linear scaling of positions adds.
    vocab_padding: Rows of zeros added to the token table and the head, so that a mesh divides them;
      no such token is ever predicted and export leaves them out.
  """

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
  tie_embeddings: bool
  ropes: tuple[rope.Rope, ...]
  layer_ropes: tuple[int, ...]
  windows: tuple[int, ...]
  query_scale: float
  norm: str = 'rms'
  norm_offset: bool = False
  norm_order: str = 'pre'
  qkv_bias: bool = False
  o_bias: bool = False
  mlp_bias: bool = False
  qk_norm: str = ''
  clip_qkv: float | None = None
  activation: str = 'silu'
  attn_softcap: float | None = None
  logit_softcap: float | None = None
  embed_scale: float = 1.0
  residual_scale: float = 1.0
  logit_scale: float = 1.0
  positions_stretched: bool = False
  vocab_padding: int = 0

  @property
  def padded_vocab(self) -> int:
    """Rows of the token table."""
    return self.vocab_size + self.vocab_padding

  @property
  def longest_text(self) -> int:
    """Tokens a text may have: the config's positions, or what its rope stretches them to."""
    if self.positions_stretched:
      return self.max_positions
    return max(self.max_positions, *(kind.reach for kind in self.ropes))

  @property
  def length_dependent(self) -> bool:
    """Whether a token's rotation depends on how long its text is."""
    return any(kind.kind in rope.LENGTH_DEPENDENT for kind in self.ropes)

  @classmethod
  def from_hf(cls, raw: Mapping[str, Any], where: str = 'config.json') -> 'ModelConfig':
    """Reads a raw `config.json`; a key it lacks has the default transformers gives it.

    Raises:
      UserError: an unsupported architecture, a missing size, or a switch we do not implement.
    """
    name = _architecture(raw, where)
    family = families.FAMILIES[name]
    # compressed-tensors called it by the second name at first.
    if quantised := raw.get('quantization_config') or raw.get('compression_config'):
      told = quantised if isinstance(quantised, Mapping) else {'quant_method': quantised}
      method = told.get('quant_method') or next(iter(told))  # such as load_in_8bit
      raise UserError(
        f'weights quantised as {str(method)[:40]!r} are not read',
        where,
        'give the unquantised model; config.model.quantize=int8 or int4 makes its base as small',
      )
    for key, allowed in (families.SWITCHES | dict(family.switches)).items():
      if key in raw and key not in family.defaults and raw[key] not in allowed:
        raise UserError(
          f'{key}={raw[key]!r:.200} is not implemented for {name}',
          where,
          f'supported values: {", ".join(map(repr, allowed))}',
        )
    known = {**families.DEFAULTS, **family.defaults}
    known = {key: raw.get(key, default) for key, default in known.items()}
    try:
      sizes = _sizes(raw, known)
      _check_sizes(sizes, where)
      fields = _fields(known, sizes, family, where)
      windows = _windows(known, sizes['num_layers'], family.window, where)
      ropes, layer_ropes = _ropes(raw, known, sizes, family, where)
    except (IndexError, KeyError, TypeError, ValueError, ArithmeticError) as e:
      raise UserError(f'missing or malformed value: {e}', where, _RESTORE) from e
    fields |= sizes | {'ropes': ropes, 'layer_ropes': layer_ropes, 'windows': windows}
    return cls(architecture=name, **fields)


def _architecture(raw: Mapping[str, Any], where: str) -> str:
  names = raw.get('architectures') or ()
  names = names if isinstance(names, list | tuple) else [names]
  known = sorted({str(name) for name in names} & families.FAMILIES.keys())
  if len(known) > 1:
    raise UserError(
      f'two architectures match: {", ".join(known)}', where, 'name one in "architectures"'
    )
  if not known:
    code = ' that needs code of its own' if raw.get('auto_map') else ''
    raise UserError(
      f'unsupported architecture {", ".join(map(str, names)) or "(none named)":.200}{code}',
      where,
      f'supported: {", ".join(sorted(families.FAMILIES))}',
    )
  # transformers goes by this one, and what it then computes may be another architecture.
  kind, wanted = raw.get('model_type'), known[0].removesuffix('ForCausalLM').lower()
  if kind is None and raw.get('auto_map'):
    raise UserError(
      f'{known[0]} without a model_type needs code of its own (auto_map)',
      where,
      'code of a model is never run: give a model of transformers itself',
    )
  if kind is not None and str(kind).removesuffix('_text') != wanted:
    raise UserError(
      f'two families match: architecture {known[0]} and model_type {kind!r:.200}',
      where,
      f'the model_type of {known[0]} is {wanted!r}: {_RESTORE}',
    )
  return known[0]


def _sizes(raw: Mapping[str, Any], known: Mapping[str, Any]) -> dict[str, int]:
  hidden, heads = raw['hidden_size'], raw['num_attention_heads']
  sizes = {
    'vocab_size': raw['vocab_size'],
    'hidden_size': hidden,
    'intermediate_size': raw['intermediate_size'],
    'num_layers': raw['num_hidden_layers'],
    'num_heads': heads,
    'num_kv_heads': raw.get('num_key_value_heads') or known['num_key_value_heads'] or heads,
    'head_dim': raw.get('head_dim') or known.get('head_dim') or hidden // max(heads, 1),
    'max_positions': raw.get('max_position_embeddings') or known['max_position_embeddings'],
  }
  for key, value in sizes.items():
    if type(value) is not int:
      raise TypeError(f'{key}={value!r:.200} is no whole number')
  return sizes


def _check_sizes(sizes: Mapping[str, int], where: str) -> None:
  if sizes['num_layers'] > _MOST_LAYERS:
    raise UserError(f'{sizes["num_layers"]} layers cannot be', where, 'restore the file')
  for key, value in sizes.items():
    if not 0 < value <= _LARGEST_SIZE:
      bound = 'positive' if value <= 0 else f'at most {_LARGEST_SIZE}'
      raise UserError(f'{key} must be {bound}, not {value}', where, 'restore the file')
  if sizes['num_heads'] % sizes['num_kv_heads']:
    raise UserError(
      f'num_attention_heads={sizes["num_heads"]} is no multiple of '
      f'num_key_value_heads={sizes["num_kv_heads"]}',
      where,
      'restore the file',
    )


def _fields(
  known: Mapping[str, Any], sizes: Mapping[str, int], family: families.Family, where: str
) -> dict[str, Any]:
  """Switches of the forward pass, and the architecture's own constants."""

  def positive(key: str) -> float | None:
    value = known.get(key)
    if value is not None and not 0 < float(value) < math.inf:
      raise UserError(f'{key}={value!r:.200} is impossible', where, _RESTORE)
    return None if value is None else float(value)

  if (eps := positive('rms_norm_eps')) is None:
    raise TypeError('rms_norm_eps is missing')
  scalar = positive('query_pre_attn_scalar') or sizes['head_dim']
  flags = ('attention_bias', 'mlp_bias', 'tie_word_embeddings', 'use_sliding_window')
  if wrong := [key for key in flags if known.get(key) not in (None, True, False)]:
    raise TypeError(f'{wrong[0]}={known[wrong[0]]!r:.200} is neither true nor false')
  bias = bool(known.get('attention_bias'))
  fields = {
    'norm_eps': eps,
    'tie_embeddings': bool(known['tie_word_embeddings']),
    'qkv_bias': bias,
    'o_bias': bias,
    'mlp_bias': bool(known.get('mlp_bias')),
    'query_scale': positive('attention_multiplier') or scalar**-0.5,
    'clip_qkv': positive('clip_qkv'),
    'attn_softcap': positive('attn_logit_softcapping'),
    'logit_softcap': positive('final_logit_softcapping'),
    'embed_scale': positive('embedding_multiplier') or 1.0,
    'residual_scale': positive('residual_multiplier') or 1.0,
    'logit_scale': 1.0 / (positive('logits_scaling') or 1.0),
  }
  if family.scaled_embedding:
    fields['embed_scale'] = sizes['hidden_size'] ** 0.5
  return fields | dict(family.fixed)


def _windows(
  known: Mapping[str, Any], layers: int, kind: families.Window, where: str
) -> tuple[int, ...]:
  """The attention window of each layer; 0 for none."""
  if kind == '':
    return (0,) * layers
  size, types = known.get('sliding_window'), known.get('layer_types')
  off = size is None or not known.get('use_sliding_window', True)
  if types is None:
    period = int(known.get('sliding_window_pattern', 2))
    first = int(known.get('max_window_layers', 0))
    slides = {
      'all': lambda i: not off,
      'tail': lambda i: not off and i >= first,
      'pattern': lambda i: (i + 1) % period != 0,
      'no_rope': lambda i: not off and not _uses_rope(known, i),
    }[kind]
    sliding = [slides(i) for i in range(layers)]
  else:
    strange = sorted(set(map(str, types)) - {'sliding_attention', 'full_attention'})
    if strange or len(types) != layers:
      counts = f'{len(types)} layer types, {layers} layers'
      what = f'layer type {strange[0]!r:.200}' if strange else counts
      raise UserError(f'layer_types: {what}', where, _RESTORE)
    sliding = [name == 'sliding_attention' for name in types]
    if kind == 'no_rope':  # transformers' SmolLM3 heeds use_sliding_window only without the types
      off = size is None
  if not any(sliding):
    return (0,) * layers
  if off or type(size) is not int or size < 1:
    unset = 'use_sliding_window is false' if off and size is not None else ''
    unset = unset or f'sliding_window={size!r:.200}'
    raise UserError(f'layers have a sliding window, but {unset}', where, _RESTORE)
  return tuple(size * slides_here for slides_here in sliding)


def _uses_rope(known: Mapping[str, Any], layer: int) -> bool:
  """SmolLM3 leaves positions out of every fourth layer."""
  listed, interval = known['no_rope_layers'], known['no_rope_layer_interval']
  if listed is not None:
    return bool(listed[layer])
  return (layer + 1) % int(interval) != 0


def _ropes(
  raw: Mapping[str, Any],
  known: Mapping[str, Any],
  sizes: Mapping[str, int],
  family: families.Family,
  where: str,
) -> tuple[tuple[rope.Rope, ...], tuple[int, ...]]:
  """Ways to rotate, and which of them each layer uses.

  Newer configs keep them in `rope_parameters`, older ones in `rope_scaling` beside `rope_theta`.
  """
  layers, kind = sizes['num_layers'], family.ropes

  def read(entry: Any, theta: Any) -> rope.Rope:
    if not isinstance(entry, Mapping):
      raise UserError(f'malformed rope entry {entry!r:.200}', where, _RESTORE)
    entry = {'rope_theta': theta, **{k: v for k, v in entry.items() if v is not None}}
    if (original := known.get('original_max_position_embeddings')) is not None:
      entry |= {'original_max_position_embeddings': original}
    if kind == 'longrope' and entry.get('rope_type', entry.get('type')) in ('su', 'yarn'):
      entry |= {'rope_type': 'longrope'}  # as Phi-3's first configs called it
    partial = entry.pop('partial_rotary_factor', None) or known.get('partial_rotary_factor') or 1.0
    if partial != 1 and 'partial_rotary_factor' not in known:
      raise UserError(
        f'partial_rotary_factor={partial!r:.200} is not implemented here', where, 'supported: 1'
      )
    width = int(sizes['head_dim'] * partial)
    return rope.parse(entry, width, sizes['max_positions'], where)

  if kind == 'local_global':
    full, local = _two_entries(raw, where)
    # OLMo-3 has no key for its local layers' base, and takes the class's.
    base = known.get('rope_local_base_freq', family.defaults['rope_theta'])
    both = read(full, known['rope_theta']), read(local, base)
    window = _windows({**known, 'sliding_window': 1}, layers, 'pattern', where)
    return both, window
  one = read(raw.get('rope_scaling') or raw.get('rope_parameters') or {}, known['rope_theta'])
  if kind == 'some_layers':
    used = [_uses_rope(known, layer) for layer in range(layers)]
    nowhere = dataclasses.replace(one, kind='none', settings=())
    return (one, nowhere), tuple(int(not uses) for uses in used)
  return (one,), (0,) * layers


def _two_entries(raw: Mapping[str, Any], where: str) -> tuple[Any, Any]:
  """Rope entries of the layers without and with a window.

  As `convert_rope_params_to_dict` of transformers' Gemma-3 and OLMo-3 configs reads them:
  `rope_scaling` is of the layers without a window alone, and `rope_parameters` counts only where
  it is nested by kind of layer.
  """
  scaling, nested = raw.get('rope_scaling'), raw.get('rope_parameters')
  kinds = ('full_attention', 'sliding_attention')
  for entry in (scaling, nested):
    if not isinstance(entry, Mapping | None):
      raise UserError(f'malformed rope entry {entry!r:.200}', where, _RESTORE)
  full, local = ((nested or {}).get(kind) or {} for kind in kinds)
  if not scaling:
    return full, local
  # transformers 4 reads the older name `type` here, 5 does not.
  if 'rope_type' not in scaling or (nested is not None and not full):
    raise UserError(
      f'malformed rope entry {dict(scaling)!r:.200}, it lacks rope_type or stands beside another',
      where,
      'restore the original config.json',
    )
  if not isinstance(full, Mapping):
    raise UserError(f'malformed rope entry {full!r:.200}', where, _RESTORE)
  return {**full, **scaling}, local

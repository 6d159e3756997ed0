"""`GgufCheckpoint`: a llama.cpp model file seen as a Hugging Face checkpoint.

Tensors are dequantised lazily, one read at a time, to float32; names, row order and config are
those of Hugging Face. Training writes no GGUF.
"""

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from sft_jax.models import gguf_format, rope, source
from sft_jax.utils.errors import UserError

# GGUF architecture -> Hugging Face class. Mixtral is also called 'llama', with experts.
ARCHITECTURES = {'llama': 'LlamaForCausalLM'}

# GGUF tensor name -> Hugging Face tensor name; {l} is the layer.
# Source: https://github.com/ggml-org/llama.cpp/blob/master/gguf-py/gguf/tensor_mapping.py
_TOP = {
  'token_embd.weight': 'model.embed_tokens.weight',
  'output_norm.weight': 'model.norm.weight',
  'output.weight': 'lm_head.weight',
}
_LAYER = {
  'attn_norm': 'input_layernorm',
  'attn_q': 'self_attn.q_proj',
  'attn_k': 'self_attn.k_proj',
  'attn_v': 'self_attn.v_proj',
  'attn_output': 'self_attn.o_proj',
  'ffn_norm': 'post_attention_layernorm',
  'ffn_gate': 'mlp.gate_proj',
  'ffn_up': 'mlp.up_proj',
  'ffn_down': 'mlp.down_proj',
}
_PLAIN = ('F32', 'F16', 'BF16')
# Metadata that change what is computed, and those of them that we read. Source of all names:
# llama.cpp gguf-py/gguf/constants.py
_SWITCHES = r'(attention|rope)\..*|.*_(scale|softcapping)|use_parallel_residual'
_READ = (
  r'attention\.(head_count(_kv)?|key_length|value_length|layer_norm(_rms)?_epsilon|causal)'
  r'|rope\.(dimension_count|freq_base|scaling\.(type|factor|original_context_length|finetuned))'
)
# What llama.cpp divides the rotary frequencies of Llama 3.1 and later by.
_ROPE_FACTORS = 'rope_freqs.weight'


class GgufCheckpoint(source.Checkpoint):
  """One `.gguf` file."""

  def __init__(self, path: Path, name: str):
    self.name, self.files = name, (path,)
    self._tokenizer: Any = None
    self._contents = gguf_format.read(path)
    self.config = _hf_config(self._contents, path)
    self.generation_config = {
      key: self.config[key]
      for key in ('bos_token_id', 'eos_token_id', 'pad_token_id')
      if key in self.config
    }
    if type(turn := self._contents.metadata.get('tokenizer.ggml.eot_token_id')) is int:
      eos = self.config.get('eos_token_id', turn)
      self.generation_config['eos_token_id'] = eos if eos == turn else [eos, turn]
    self.license = str(self._contents.metadata.get('general.license', ''))
    self._entries: dict[str, gguf_format.Entry] = {}
    for raw, entry in self._contents.tensors.items():
      if raw != _ROPE_FACTORS:  # they went into the config
        self._entries[_hf_name(raw, path)] = entry
    self.tensors = {
      key: source.TensorInfo(entry.shape, entry.type_name) for key, entry in self._entries.items()
    }

  def read(self, name: str, index: tuple[slice, ...] = ()) -> np.ndarray:
    entry = self._entries[name]
    cut, *rest = index or (slice(None),)
    heads = self._rotary_heads(name)
    rows: Any = _unpermutation(entry.shape[0], heads)[cut] if heads else cut
    if len(entry.shape) == 1:
      return self._decode(name, entry, self._raw(entry))[rows]
    # Quantised blocks run along rows, so rows can be picked and reordered before decoding.
    raw = self._raw(entry).reshape(*entry.shape[:-1], -1)[rows]
    return self._decode(name, entry, raw)[(slice(None), *rest)]

  def _raw(self, entry: gguf_format.Entry) -> np.ndarray:
    return np.frombuffer(self._contents.data, np.uint8, entry.size, entry.start)

  def _decode(self, name: str, entry: gguf_format.Entry, raw: np.ndarray) -> np.ndarray:
    """Bytes to float32 (the plain 16-bit types are left as they are stored)."""
    import gguf
    import ml_dtypes

    if entry.type_name in _PLAIN:
      plain = {'F32': np.float32, 'F16': np.float16, 'BF16': ml_dtypes.bfloat16}
      return np.ascontiguousarray(raw).view(plain[entry.type_name])
    try:
      return gguf.dequantize(raw, gguf.GGMLQuantizationType(entry.type_id))
    except (NotImplementedError, ValueError) as e:
      raise UserError(
        f'tensor {name} is stored as {entry.type_name}, which is not read: {e}',
        str(self.files[0]),
        'use a file in F32, F16, BF16, Q8_0, Q4_0 or Q4_1',
      ) from e

  def _rotary_heads(self, name: str) -> int:
    """Heads of a tensor whose rows llama.cpp reordered for its rotary embedding, else 0."""
    if '.q_proj.' in name:
      return self.config['num_attention_heads']
    if '.k_proj.' in name:
      return self.config['num_key_value_heads']
    return 0

  def tokenizer(self) -> Any:
    from sft_jax.models import tokenizer, tokenizer_gguf

    if self._tokenizer is None:
      where = str(self.files[0])
      made = tokenizer_gguf.from_gguf(self._contents.metadata, self.config, where)
      tokenizer.know_stops(made, self.generation_config, self.config, where)
      self._tokenizer = made
    return self._tokenizer


def _unpermutation(rows: int, heads: int) -> np.ndarray:
  """Row numbers that undo llama.cpp's reordering: per head, (half, pair) back from (pair, half)."""
  return np.arange(rows).reshape(heads, rows // heads // 2, 2).swapaxes(1, 2).reshape(-1)


def _hf_name(raw: str, path: Path) -> str:
  if raw in _TOP:
    return _TOP[raw]
  parts = raw.split('.')
  if len(parts) == 4 and parts[0] == 'blk' and parts[1].isdigit() and parts[2] in _LAYER:
    return f'model.layers.{parts[1]}.{_LAYER[parts[2]]}.{parts[3]}'
  raise UserError(f'unknown tensor {raw}', str(path), 'this file is no plain Llama model')


def _short(value: float) -> float:
  """The shortest decimal that is this float32: 9.999999747378752e-06 is 1e-5."""
  return float(str(np.float32(value)))


def _hf_config(contents: gguf_format.Contents, path: Path) -> dict[str, Any]:
  """A raw `config.json` from the metadata.

  Raises:
    UserError: another architecture, or a size is missing or of the wrong type.
  """
  metadata = contents.metadata
  kind = metadata.get('general.architecture')
  if kind not in ARCHITECTURES or metadata.get(f'{kind}.expert_count'):
    experts = ' with experts' if kind in ARCHITECTURES else ''
    raise UserError(
      f'unsupported architecture {kind!r}{experts}',
      str(path),
      f'GGUF architectures supported: {", ".join(ARCHITECTURES)}',
    )

  _refuse_uncomputed(metadata, str(kind), path)

  def get(key: str, types: type | tuple[type, ...], default: Any = None) -> Any:
    value = metadata.get(f'{kind}.{key}', default)
    if not isinstance(value, types) or isinstance(value, bool):
      raise UserError(f'GGUF key {kind}.{key} is {value!r}', str(path), 'download the file again')
    return value

  hidden, heads = get('embedding_length', int), get('attention.head_count', int)
  if heads <= 0 or hidden <= 0:
    raise UserError(f'{heads} heads over {hidden}', str(path), 'download the file again')
  kv_heads = get('attention.head_count_kv', int, heads)
  head_dim = get('attention.key_length', int, hidden // heads)
  rotary = get('rope.dimension_count', int, head_dim)
  if rotary != head_dim or get('attention.value_length', int, head_dim) != head_dim:
    raise UserError('partial rotary or unequal head sizes', str(path), 'this is no plain Llama')
  for row, n in (('attn_q.weight', heads), ('attn_k.weight', kv_heads)):
    entry = contents.tensors.get(f'blk.0.{row}')
    if entry is not None and entry.shape[0] != n * head_dim:
      raise UserError(
        f'tensor blk.0.{row} has {entry.shape[0]} rows, the metadata say {n} x {head_dim}',
        str(path),
        'download the file again',
      )
  embedding = contents.tensors.get('token_embd.weight')
  if embedding is None:
    raise UserError('tensor token_embd.weight is missing', str(path), 'download the file again')
  config: dict[str, Any] = {
    'architectures': [ARCHITECTURES[kind]],
    'model_type': kind,
    'vocab_size': embedding.shape[0],
    'hidden_size': hidden,
    'intermediate_size': get('feed_forward_length', int),
    'num_hidden_layers': get('block_count', int),
    'num_attention_heads': heads,
    'num_key_value_heads': kv_heads,
    'head_dim': head_dim,
    'max_position_embeddings': get('context_length', int),
    'rms_norm_eps': _short(get('attention.layer_norm_rms_epsilon', float)),
    'rope_theta': _short(get('rope.freq_base', float, 10_000.0)),
    'hidden_act': 'silu',
    'attention_bias': 'blk.0.attn_q.bias' in contents.tensors,
    'mlp_bias': 'blk.0.ffn_up.bias' in contents.tensors,
    'tie_word_embeddings': 'output.weight' not in contents.tensors,
  }
  scaling = metadata.get(f'{kind}.rope.scaling.type', 'none')
  if scaling != 'none':
    config['rope_scaling'] = {  # ModelConfig refuses what it does not know
      'rope_type': scaling,
      'factor': _short(get('rope.scaling.factor', float)),
      **({'original_max_position_embeddings': get('rope.scaling.original_context_length', int)}
         if scaling == 'yarn' else {}),
    }  # fmt: skip
  elif _ROPE_FACTORS in contents.tensors:
    config['rope_scaling'] = _llama3_scaling(contents, config, path)
  for ours, theirs in (('bos', 'bos'), ('eos', 'eos'), ('pad', 'padding')):
    token = metadata.get(f'tokenizer.ggml.{theirs}_token_id')
    if type(token) is int:
      config[f'{ours}_token_id'] = token
  return config


def _refuse_uncomputed(metadata: Mapping[str, Any], kind: str, path: Path) -> None:
  for key, value in metadata.items():
    name = key.removeprefix(f'{kind}.')
    if name != key and re.fullmatch(_SWITCHES, name) and not re.fullmatch(_READ, name):
      raise UserError(
        f'GGUF key {key}={value!r} is not implemented',
        str(path),
        'give the Hugging Face directory of the model',
      )


def _llama3_scaling(
  contents: gguf_format.Contents, config: Mapping[str, Any], path: Path
) -> dict[str, Any]:
  """The rope entry whose frequencies are the plain ones divided by the file's factors.

  Raises:
    UserError: they are not those of Llama 3.1 or 3.2, whose other numbers the file does not keep.
  """
  stored = contents.tensors[_ROPE_FACTORS]
  width = config['head_dim']
  fail = UserError(
    'rotary factors that are not those of Llama 3.1 or 3.2',
    f'{path}: {_ROPE_FACTORS}',
    'give the Hugging Face directory of the model',
  )
  if stored.type_name != 'F32' or stored.shape != (width // 2,):
    raise fail
  factors = np.frombuffer(contents.data, np.float32, width // 2, stored.start)
  entry: dict[str, Any] = {
    'rope_type': 'llama3',
    'factor': _short(float(factors.max(initial=0))),
    'low_freq_factor': 1.0,
    'high_freq_factor': 4.0,
    'original_max_position_embeddings': 8192,
  }
  if not entry['factor'] > 0:
    raise fail
  scaled = rope.parse({'rope_theta': config['rope_theta'], **entry}, width, 8192, str(path))
  plain = dataclasses.replace(scaled, kind='default')
  nowhere = jnp.zeros((1, 1), jnp.int32)
  ratio = np.asarray(rope.frequencies(plain, nowhere) / rope.frequencies(scaled, nowhere))
  if not np.allclose(ratio.ravel(), factors, rtol=1e-4):
    raise fail
  return entry

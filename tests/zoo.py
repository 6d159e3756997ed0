"""A tiny random model of every family with each of its switches active, as transformers makes it.

`python -m benchmarks.families` prints what `tests/models/test_families.py` asserts.
"""

import dataclasses
import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sft_jax.models import cached, decoder, export, hf, lora, peft, quantize, source
from sft_jax.models.config import ModelConfig
from sft_jax.parallel import mesh as mesh_lib
from sft_jax.utils import trees

SIZES = {
  'vocab_size': 312,
  'hidden_size': 64,
  'intermediate_size': 96,
  'num_hidden_layers': 4,
  'num_attention_heads': 4,
  'num_key_value_heads': 2,
  'max_position_embeddings': 64,
  'initializer_range': 0.2,
  'bos_token_id': 0,
  'eos_token_id': 1,
  'pad_token_id': None,
}
LENGTH = 40  # of the texts: longer than every window below

# Name -> (transformers' config class, what it sets). A family's entry turns every switch of it on.
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
  'llama': ('LlamaConfig', {'rope_theta': 5000.0}),
  'llama tied, biases': (
    'LlamaConfig',
    {'tie_word_embeddings': True, 'attention_bias': True, 'mlp_bias': True, 'head_dim': 24},
  ),
  'llama 3.1 rope': (
    'LlamaConfig',
    {
      'rope_parameters': {
        'rope_type': 'llama3',
        'rope_theta': 500.0,
        'factor': 8.0,
        'low_freq_factor': 1.0,
        'high_freq_factor': 4.0,
        'original_max_position_embeddings': 32,
      }
    },
  ),
  'llama linear rope': (
    'LlamaConfig',
    {'rope_parameters': {'rope_type': 'linear', 'rope_theta': 900.0, 'factor': 2.5}},
  ),
  'llama dynamic rope': (
    'LlamaConfig',
    {
      'max_position_embeddings': 16,
      'rope_parameters': {'rope_type': 'dynamic', 'rope_theta': 900.0, 'factor': 4.0},
    },
  ),
  'llama yarn rope': (
    'LlamaConfig',
    {
      'rope_parameters': {
        'rope_type': 'yarn',
        'rope_theta': 900.0,
        'factor': 4.0,
        'original_max_position_embeddings': 16,
        'beta_fast': 4.0,
      }
    },
  ),
  'mistral': ('MistralConfig', {'sliding_window': 7}),
  'mistral no window': ('MistralConfig', {'sliding_window': None}),
  'qwen2': ('Qwen2Config', {'use_sliding_window': False}),
  'qwen2 tied, window': (
    'Qwen2Config',
    {
      'use_sliding_window': True,
      'sliding_window': 9,
      'max_window_layers': 2,
      'tie_word_embeddings': True,
    },
  ),
  'qwen3': (
    'Qwen3Config',
    {
      'head_dim': 24,
      'attention_bias': True,
      'use_sliding_window': True,
      'sliding_window': 9,
      'max_window_layers': 1,
    },
  ),
  'gemma2': (
    'Gemma2Config',
    {
      'head_dim': 24,
      'sliding_window': 6,
      'attn_logit_softcapping': 3.0,
      'final_logit_softcapping': 5.0,
      'query_pre_attn_scalar': 10,
      'attention_bias': True,
    },
  ),
  'gemma2 untied': ('Gemma2Config', {'head_dim': 16, 'tie_word_embeddings': False}),
  'gemma3': (
    'Gemma3TextConfig',
    {
      'head_dim': 24,
      'sliding_window': 6,
      'query_pre_attn_scalar': 10,
      'final_logit_softcapping': 5.0,
      'layer_types': ['sliding_attention', 'full_attention'] * 2,
      'rope_parameters': {
        'full_attention': {'rope_type': 'linear', 'factor': 8.0, 'rope_theta': 3000.0},
        'sliding_attention': {'rope_type': 'default', 'rope_theta': 50.0},
      },
    },
  ),
  'olmo': ('OlmoConfig', {'clip_qkv': 0.4, 'attention_bias': True}),
  'olmo tied': ('OlmoConfig', {'tie_word_embeddings': True}),
  'olmo2': ('Olmo2Config', {'attention_bias': True}),
  'olmo3': (
    'Olmo3Config',
    {
      'sliding_window': 6,
      'rope_parameters': {
        'full_attention': {
          'rope_type': 'yarn',
          'rope_theta': 900.0,
          'factor': 4.0,
          'original_max_position_embeddings': 16,
        },
        'sliding_attention': {'rope_type': 'default', 'rope_theta': 900.0},
      },
    },
  ),
  'smollm3': ('SmolLM3Config', {'attention_bias': True, 'mlp_bias': True}),
  'smollm3 window': (
    'SmolLM3Config',
    {'use_sliding_window': True, 'sliding_window': 8, 'no_rope_layers': [1, 0, 0, 1]},
  ),
  'phi3': ('Phi3Config', {'sliding_window': 11}),
  'phi3 long': (
    'Phi3Config',
    {
      'max_position_embeddings': 64,
      'original_max_position_embeddings': 16,
      'rope_parameters': {
        'rope_type': 'longrope',
        'rope_theta': 700.0,
        'partial_rotary_factor': 0.75,
        'short_factor': [1.0, 1.1, 1.2, 1.3, 1.4, 1.5],
        'long_factor': [1.0, 1.5, 2.0, 3.0, 4.0, 6.0],
      },
    },
  ),
  'granite': (
    'GraniteConfig',
    {
      'embedding_multiplier': 3.0,
      'logits_scaling': 4.0,
      'residual_multiplier': 0.4,
      'attention_multiplier': 0.11,
      'tie_word_embeddings': True,
      'attention_bias': True,
      'mlp_bias': True,
    },
  ),
}


@dataclasses.dataclass
class Specimen:
  """One tiny model, on both sides.

  Attributes:
    directory: As transformers saved it.
    cfg: As we read it.
    params: Ours, float32.
    model: transformers' own, float32.
  """

  directory: Path
  cfg: ModelConfig
  params: trees.Tree
  model: Any

  def ours(self, tokens: np.ndarray, dtype: Any = jnp.float32, **kwargs: Any) -> np.ndarray:
    """Logits `[B,T,V]` of texts of one length."""
    positions = np.broadcast_to(np.arange(tokens.shape[1], dtype=np.int32), tokens.shape)
    return logits(self.cfg, self.params, tokens, positions, np.ones_like(tokens), dtype, **kwargs)

  def theirs(self, tokens: np.ndarray, model: Any = None) -> np.ndarray:
    """The same from transformers, by a copy: a dynamic rope remembers the longest text so far."""
    import copy

    import torch

    with torch.no_grad():
      out = copy.deepcopy(model or self.model)(torch.tensor(tokens).long(), use_cache=False).logits
    return out.float().numpy()


def build(name: str, directory: Path, tokenizer: Any = None) -> Specimen:
  """Draws a variant at random with torch, saves it and reads it."""
  import torch
  import transformers

  kind, changes = VARIANTS[name]
  config = getattr(transformers, kind)(**(SIZES | changes))
  config._attn_implementation = 'eager'  # the others leave soft caps out
  torch.manual_seed(0)
  model = transformers.AutoModelForCausalLM.from_config(config).eval()
  with torch.no_grad():  # norms and biases too: at their initial values they test nothing
    for weight in model.parameters():
      weight.add_(0.1 * torch.randn(weight.shape))
  model.save_pretrained(directory)
  if tokenizer is not None:
    tokenizer.save_pretrained(directory)
  checkpoint = source.resolve(str(directory))
  cfg = ModelConfig.from_hf(checkpoint.config)
  return Specimen(directory, cfg, hf.load_params(checkpoint, cfg, mesh_lib.make_mesh()), model)


@functools.partial(jax.jit, static_argnames=('cfg', 'dtype'))
def _logits(cfg, params, tokens, positions, segments, dtype, adapter, scale):
  hidden = decoder.forward(
    cfg, params, tokens, positions, segments, dtype=dtype, adapter=adapter, lora_scale=scale
  )
  out = (hidden @ decoder.head_kernel(params).astype(dtype)).astype(jnp.float32)
  if cfg.logit_softcap is not None:
    out = cfg.logit_softcap * jnp.tanh(out / cfg.logit_softcap)
  return out[..., : cfg.vocab_size]


def logits(cfg, params, tokens, positions, segments, dtype, adapter=None, scale=None) -> np.ndarray:
  """Ours, under jit."""
  return np.asarray(
    _logits(cfg, params, tokens, positions, segments, dtype, adapter, scale), np.float32
  )


def texts(rows: int = 2, length: int = LENGTH, seed: int = 1) -> np.ndarray:
  """Random token ids."""
  return np.random.default_rng(seed).integers(0, SIZES['vocab_size'], (rows, length), np.int32)


def distance(got: np.ndarray, want: np.ndarray) -> float:
  """Largest difference, relative to the largest logit."""
  return float(np.abs(got - want).max() / np.abs(want).max())


def packed_distance(specimen: Specimen) -> float:
  """Three texts in one row with padding, against each alone in transformers."""
  parts = [texts(1, n, seed)[0] for n, seed in ((17, 2), (1, 3), (33, 4))]
  pad = 64 - sum(map(len, parts))
  tokens = np.concatenate([*parts, np.full(pad, 7, np.int32)])
  positions = np.concatenate([*(np.arange(len(p)) for p in parts), np.zeros(pad)]).astype(np.int32)
  segments = np.repeat(np.arange(1, 5) % 4, [*map(len, parts), pad]).astype(np.int32)
  row = tokens[None], positions[None], segments[None]
  got = logits(specimen.cfg, specimen.params, *row, jnp.float32)[0]
  ends = np.cumsum([len(p) for p in parts])
  return max(
    distance(got[end - len(part) : end], specimen.theirs(part[None])[0])
    for part, end in zip(parts, ends, strict=True)
  )


def cached_distance(specimen: Specimen) -> float:
  """Prefilled and then decoded token by token, against the forward without a cache.

  A rope that depends on the text's length turns earlier keys anew as the text grows, which a cache
  cannot: there, texts stay on one side of the border.
  """
  cfg, params = specimen.cfg, specimen.params
  length = min(LENGTH, 14) if cfg.length_dependent else LENGTH
  full, start = texts(2, length), length - 6
  want = specimen.ours(full)
  cache = cached.init_cache(cfg, 2, length, jnp.float32)
  positions = np.broadcast_to(np.arange(length, dtype=np.int32), full.shape)
  head = decoder.head_kernel(params)
  cap = cfg.logit_softcap

  @jax.jit
  def run(tokens, positions, cache):
    hidden, new = cached.decode(cfg, params, tokens, positions, cache, dtype=jnp.float32)
    cache = cached.write(cache, new, positions)
    out = hidden @ head
    return (out if cap is None else cap * jnp.tanh(out / cap)), cache

  pieces = []
  for cut in (slice(0, start), *(slice(i, i + 1) for i in range(start, length))):
    out, cache = run(full[:, cut], positions[:, cut], cache)
    pieces.append(np.asarray(out))
  return distance(np.concatenate(pieces, axis=1), want)


def export_distance(specimen: Specimen, out: Path) -> float:
  """Exported and opened by transformers; raises if what we read back is not bit for bit ours."""
  import transformers

  checkpoint = source.resolve(str(specimen.directory))
  export.export_hf(out, specimen.cfg, specimen.params, checkpoint, dtype='float32')
  again = hf.load_params(source.resolve(str(out)), specimen.cfg, mesh_lib.make_mesh())
  for path, leaf in trees.flatten(again).items():
    np.testing.assert_array_equal(leaf, trees.flatten(specimen.params)[path], err_msg=path)
  model = transformers.AutoModelForCausalLM.from_pretrained(out, attn_implementation='eager')
  return distance(specimen.theirs(texts(), model.eval()), specimen.ours(texts()))


def random_adapter(cfg: ModelConfig, targets: str = 'all-linear', rank: int = 3) -> trees.Tree:
  """An adapter of one run whose B is not zero."""
  modules = lora.match_targets(cfg, targets)
  adapter = lora.one_run(lora.init_adapter(cfg, modules, [rank], [0]), 0)
  draw = np.random.default_rng(5)
  noise = lambda x: 0.2 * draw.standard_normal(x.shape, np.float32)
  pick = lambda path, x: x if path.endswith('lora_a') else noise(x)
  return trees.map_with_path(pick, adapter)


def peft_distance(specimen: Specimen, out: Path, targets: str = 'all-linear') -> float:
  """An adapter exported, opened by PEFT over transformers' model, and read back by us."""
  import copy

  import peft as peft_lib

  cfg, rank, alpha = specimen.cfg, 3, 7.0
  adapter = random_adapter(cfg, targets, rank)
  peft.export_peft(out, cfg, adapter, rank, alpha)
  read = peft.import_peft(out, cfg)
  ours = specimen.ours(texts(), adapter=adapter, scale=np.full(cfg.num_layers, alpha / rank, 'f4'))
  back = specimen.ours(
    texts(), adapter=read.adapter, scale=np.full(cfg.num_layers, read.scale, 'f4')
  )
  model = peft_lib.PeftModel.from_pretrained(copy.deepcopy(specimen.model), out)
  theirs = specimen.theirs(texts(), model)
  return max(distance(ours, theirs), distance(back, ours))


def bfloat16_ratio(specimen: Specimen) -> float:
  """Our bfloat16 distance to float32 over transformers' own (root mean squares)."""
  import copy

  import torch

  exact = specimen.theirs(texts(8))
  theirs = specimen.theirs(texts(8), copy.deepcopy(specimen.model).to(torch.bfloat16))
  ours = specimen.ours(texts(8), jnp.bfloat16)
  rms = lambda x: float(np.sqrt(np.mean(np.square(x - exact))))
  return rms(ours) / rms(theirs)


def quantized_distance(specimen: Specimen, kind: str) -> float:
  """Logits over an integer base against those over the kernels these integers stand for."""
  checkpoint = source.resolve(str(specimen.directory))
  mesh = mesh_lib.make_mesh()
  base = quantize.load_params(checkpoint, specimen.cfg, mesh, jnp.float32, kind)
  small = dataclasses.replace(specimen, params=base)
  plain = dataclasses.replace(specimen, params=quantize.dequantized(base))
  return distance(small.ours(texts()), plain.ours(texts()))

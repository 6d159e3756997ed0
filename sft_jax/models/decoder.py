"""The one decoder: parameters in, hidden states out; layers run under one `lax.scan`.

Dimension letters, used as suffixes here, in `train/loss.py` and in `evals/score.py`:
R runs, B batch rows, T tokens, S keys, D model, N query heads, K key/value heads, H head width,
F feed-forward width, V vocabulary, L layers, r rank.

Parameters are plain nested dicts whose paths are listed in `families.py`. Everything here handles
one run; a cohort of R runs is made by `jax.vmap` over the whole step with the base unmapped. Not
for losses or logits: the head is applied by the caller, in chunks.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from sft_jax.models.config import ModelConfig
from sft_jax.models.layers import (
  Attention,
  Embedding,
  GatedMLP,
  Head,
  LoraCall,
  LoraParam,
  RMSNorm,
  rotary,
)

Tree = dict[str, Any]

# What a layer keeps for its backward pass. `none`: everything. `dots`: results of weight
# multiplications. `full`: only its input. `offload`: its input, moved to host memory.
REMAT_POLICIES = {
  'none': None,
  'dots': jax.checkpoint_policies.save_only_these_names('product'),
  'full': jax.checkpoint_policies.nothing_saveable,
  'offload': jax.checkpoint_policies.save_and_offload_only_these_names(
    names_which_can_be_saved=[],
    names_which_can_be_offloaded=['layer_input'],
    offload_src='device',
    offload_dst='pinned_host',
  ),
}


class Layer(nnx.Module):
  """One pre-norm transformer block (or, before the scan slices it, the whole stack of them)."""

  def __init__(self, cfg: ModelConfig, adapted: frozenset[str]):
    stack = cfg.num_layers
    self.attn_norm = RMSNorm((stack,), cfg.hidden_size, cfg.norm_eps)
    self.attn = Attention(cfg, stack, adapted)
    self.mlp_norm = RMSNorm((stack,), cfg.hidden_size, cfg.norm_eps)
    self.mlp = GatedMLP(cfg, stack, adapted)


class Decoder(nnx.Module):
  """Container of all parameters; the forward is `forward` and `decode` below."""

  def __init__(self, cfg: ModelConfig, adapted: frozenset[str]):
    self.embed = Embedding(cfg.vocab_size, cfg.hidden_size)
    self.layers = Layer(cfg, adapted)
    self.final_norm = RMSNorm((), cfg.hidden_size, cfg.norm_eps)
    self.head = None if cfg.tie_embeddings else Head(cfg.hidden_size, cfg.vocab_size)


@functools.lru_cache(maxsize=64)
def _graph(cfg: ModelConfig, adapted: frozenset[str]) -> nnx.GraphDef:
  return nnx.split(nnx.eval_shape(lambda: Decoder(cfg, adapted)), nnx.Param, LoraParam)[0]


def _merge(cfg: ModelConfig, base: Tree, adapter: Tree | None) -> Decoder:
  modules = (adapter or {}).get('layers', {})
  adapted = frozenset(f'{block}/{name}' for block, inner in modules.items() for name in inner)
  return nnx.merge(_graph(cfg, adapted), nnx.State(base), nnx.State(adapter or {}))


def head_kernel(base: Tree) -> jax.Array:
  """The output projection `[D, V]`; the transposed token table where the head is tied."""
  return base['head']['kernel'] if 'head' in base else base['embed']['embedding'].T


def causal_mask(positions: jax.Array, segments: jax.Array) -> jax.Array:
  """`[B,T,T]` mask: a token sees itself and earlier tokens of its own segment.

  Padding (segment 0) sees padding, so that no softmax is empty; its loss weight is 0.
  """
  same = segments[:, :, None] == segments[:, None, :]
  index = jnp.arange(segments.shape[1])
  return same & (index[:, None] >= index[None, :])[None]


def forward(
  cfg: ModelConfig,
  base: Tree,
  tokens: jax.Array,
  positions: jax.Array,
  segments: jax.Array,
  *,
  adapter: Tree | None = None,
  lora_scale: jax.Array | None = None,
  dropout_rate: jax.Array | None = None,
  dropout_key: jax.Array | None = None,
  dtype: jnp.dtype = jnp.bfloat16,
  remat: str = 'none',
  mesh: Mesh | None = None,
) -> jax.Array:
  """Hidden states after the final norm.

  Args:
    cfg: Sizes and switches.
    base: Parameters, any float dtype; cast to `dtype` layer by layer.
    tokens: `[B,T]` int32.
    positions: `[B,T]` int32, restarting at 0 in each segment.
    segments: `[B,T]` int32, 0 for padding; tokens attend within their segment only.
    adapter: Low-rank factors of one run, `layers/<block>/<name>/lora_{a,b}`, or None.
    lora_scale: `[L]` float32, alpha/r per layer; a zero switches the adapter of that layer off.
    dropout_rate: Scalar; used only together with `dropout_key`.
    dropout_key: Key of this step's adapter dropout, or None for none; each token of the step, by
      its (segment, position), and each layer draw for themselves.
    dtype: Compute dtype.
    remat: A name of `REMAT_POLICIES`.
    mesh: When given, activations are kept sharded by rows over its ('data', 'fsdp') axes.

  Returns:
    `[B,T,D]` in `dtype`.
  """
  model = _merge(cfg, base, adapter)
  rope = rotary(positions, cfg.head_dim, cfg.rope_theta, dtype)
  mask = causal_mask(positions, segments)
  constrain = _row_sharded(mesh)
  graph, stacked = nnx.split(model.layers)
  scale = jnp.ones(cfg.num_layers, jnp.float32) if lora_scale is None else lora_scale
  keys = None if dropout_key is None else _token_keys(dropout_key, segments, positions)

  def block(h, slices):
    state, layer_scale, number = slices
    layer = nnx.merge(graph, state)
    fold = jax.vmap(jax.vmap(lambda key: jax.random.fold_in(key, number)))
    lora = LoraCall(layer_scale, dropout_rate, None if keys is None else fold(keys))
    h = checkpoint_name(h, 'layer_input')
    q, k, v = layer.attn.project(layer.attn_norm(h), rope, lora)
    h = constrain(h + layer.attn.attend(q, k, v, mask, lora))
    h = constrain(h + layer.mlp(layer.mlp_norm(h), lora))
    return h, None

  if REMAT_POLICIES[remat] is not None:
    block = jax.checkpoint(block, policy=REMAT_POLICIES[remat], prevent_cse=False)
  h = constrain(model.embed(tokens, dtype))
  h, _ = jax.lax.scan(block, h, (stacked, scale, jnp.arange(cfg.num_layers)))
  return model.final_norm(h)


def _token_keys(key: jax.Array, segments: jax.Array, positions: jax.Array) -> jax.Array:
  """`[B,T]` keys of the tokens of a step."""
  one = lambda segment, position: jax.random.fold_in(jax.random.fold_in(key, segment), position)
  return jax.vmap(jax.vmap(one))(segments, positions)


def init_cache(cfg: ModelConfig, rows: int, slots: int, dtype: jnp.dtype) -> Tree:
  """Empty key/value cache: `k` and `v`, each `[L,B,S,K,H]`."""
  shape = (cfg.num_layers, rows, slots, cfg.num_kv_heads, cfg.head_dim)
  return {'k': jnp.zeros(shape, dtype), 'v': jnp.zeros(shape, dtype)}


def decode(
  cfg: ModelConfig,
  base: Tree,
  tokens: jax.Array,
  positions: jax.Array,
  cache: Tree,
  *,
  adapter: Tree | None = None,
  lora_scale: jax.Array | None = None,
  dtype: jnp.dtype = jnp.bfloat16,
) -> tuple[jax.Array, Tree]:
  """Runs `[B,T]` new tokens against a cache, writing their keys and values into it.

  A row's token at position p lives in slot p and sees slots 0..p, so rows of different lengths
  share one cache and a slot left by padding is overwritten before it can be seen.

  Args:
    positions: `[B,T]` int32 slots to write; equal to each token's position.
    cache: From `init_cache`.

  Returns:
    Hidden states `[B,T,D]` and the updated cache.
  """
  model = _merge(cfg, base, adapter)
  rope = rotary(positions, cfg.head_dim, cfg.rope_theta, dtype)
  slots = jnp.arange(cache['k'].shape[2])
  mask = slots[None, None, :] <= positions[:, :, None]
  rows = jnp.arange(tokens.shape[0])[:, None]
  graph, stacked = nnx.split(model.layers)
  scale = jnp.ones(cfg.num_layers, jnp.float32) if lora_scale is None else lora_scale

  def block(carry, slices):
    h, cache = carry
    state, layer_scale, index = slices
    layer = nnx.merge(graph, state)
    lora = LoraCall(layer_scale, None, None)
    q, k, v = layer.attn.project(layer.attn_norm(h), rope, lora)
    # The cache is a carry, written in place: as a scanned input and output it would be copied.
    cache = {
      'k': cache['k'].at[index, rows, positions].set(k),
      'v': cache['v'].at[index, rows, positions].set(v),
    }
    keys = jax.lax.dynamic_index_in_dim(cache['k'], index, keepdims=False)
    values = jax.lax.dynamic_index_in_dim(cache['v'], index, keepdims=False)
    h = h + layer.attn.attend(q, keys, values, mask, lora)
    h = h + layer.mlp(layer.mlp_norm(h), lora)
    return (h, cache), None

  layers = jnp.arange(cfg.num_layers)
  h = model.embed(tokens, dtype)
  (h, cache), _ = jax.lax.scan(block, (h, cache), (stacked, scale, layers))
  return model.final_norm(h), cache


def _row_sharded(mesh: Mesh | None):
  if mesh is None:
    return lambda x: x
  sharding = NamedSharding(mesh, P(('data', 'fsdp'), None, None))
  return lambda x: jax.lax.with_sharding_constraint(x, sharding)

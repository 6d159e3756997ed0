"""The one decoder: parameters in, hidden states out; layers run under one `lax.scan`.

Dimension letters, used as suffixes here, in `train/loss.py` and in `evals/score.py`:
R runs, B batch rows, T tokens, S keys, D model, N query heads, K key/value heads, H head width,
F feed-forward width, V vocabulary, L layers, r rank.

Parameters are plain nested dicts whose paths are listed in `families.py`. Everything here handles
one run; a cohort of R runs is made by `jax.vmap` over the whole step with the base unmapped. Not
for losses or logits: the head is applied by the caller, in chunks. Not for caches: `cached.py`.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from sft_jax.models import rope as rope_lib
from sft_jax.models.attention import attention
from sft_jax.models.config import ModelConfig
from sft_jax.models.layers import (
  Attention,
  Embedding,
  GatedMLP,
  Head,
  LoraCall,
  LoraParam,
  Variant,
  make_norm,
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
  """One transformer block (or, before the scan slices it, the whole stack of them).

  Norms stand before each half (`pre`), after it (`post`) or on both sides (`both`).
  """

  def __init__(self, cfg: ModelConfig, variant: Variant):
    stack = cfg.num_layers
    norm = lambda wanted: make_norm(cfg, (stack,), cfg.hidden_size) if wanted else None
    before, after = cfg.norm_order != 'post', cfg.norm_order != 'pre'
    self.attn_norm, self.attn_post_norm = norm(before), norm(after)
    self.attn = Attention(cfg, stack, variant)
    self.mlp_norm, self.mlp_post_norm = norm(before), norm(after)
    self.mlp = GatedMLP(cfg, stack, variant)
    self.residual_scale = cfg.residual_scale

  def __call__(
    self,
    h: jax.Array,
    rope: tuple[jax.Array, jax.Array],
    attend: Callable[[jax.Array, jax.Array, jax.Array], jax.Array],
    lora: LoraCall,
    constrain: Callable[[jax.Array], jax.Array] = lambda x: x,
  ) -> jax.Array:
    """`[B,T,D]` to `[B,T,D]`; `attend` turns q, k, v `[B,T,heads,H]` into `[B,T,N*H]`."""
    x = h if self.attn_norm is None else self.attn_norm(h)
    x = self.attn.o(attend(*self.attn.project(x, rope, lora)), lora)
    h = constrain(self._add(h, x if self.attn_post_norm is None else self.attn_post_norm(x)))
    x = h if self.mlp_norm is None else self.mlp_norm(h)
    x = self.mlp(x, lora)
    return constrain(self._add(h, x if self.mlp_post_norm is None else self.mlp_post_norm(x)))

  def _add(self, h: jax.Array, x: jax.Array) -> jax.Array:
    return h + x if self.residual_scale == 1.0 else h + x * self.residual_scale


class Decoder(nnx.Module):
  """Container of all parameters; the forward is `forward` and `decode` below."""

  def __init__(self, cfg: ModelConfig, variant: Variant):
    self.embed = Embedding(cfg.padded_vocab, cfg.hidden_size)
    self.layers = Layer(cfg, variant)
    self.final_norm = make_norm(cfg, (), cfg.hidden_size)
    self.head = None if cfg.tie_embeddings else Head(cfg.hidden_size, cfg.padded_vocab)


@functools.lru_cache(maxsize=64)
def _graph(cfg: ModelConfig, variant: Variant) -> nnx.GraphDef:
  return nnx.split(nnx.eval_shape(lambda: Decoder(cfg, variant)), nnx.Param, LoraParam)[0]


def _merge(cfg: ModelConfig, base: Tree, adapter: Tree | None, whole: bool) -> Decoder:
  modules = (adapter or {}).get('layers', {})
  variant = Variant(
    adapted=frozenset(f'{block}/{name}' for block, inner in modules.items() for name in inner),
    quantized='kernel_scale' in base['layers']['attn']['q'],
    whole=whole,
  )
  return nnx.merge(_graph(cfg, variant), nnx.State(base), nnx.State(adapter or {}))


def head_kernel(base: Tree) -> jax.Array:
  """The output projection `[D, V]`; the transposed token table where the head is tied."""
  return base['head']['kernel'] if 'head' in base else base['embed']['embedding'].T


def causal_mask(segments: jax.Array) -> jax.Array:
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
  kernel: Callable[[jax.Array], Callable[..., jax.Array]] | None = None,
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
    kernel: Segments to a function of q, k, v and window, as `fused_attention.fused` has it; None
      for plain attention.

  Returns:
    `[B,T,D]` in `dtype`.
  """
  lengths = rope_lib.segment_lengths(positions, segments) if cfg.length_dependent else positions
  mask = causal_mask(segments)
  index = jnp.arange(tokens.shape[1])
  distance = (index[:, None] - index[None, :])[None]
  fused = None if kernel is None else kernel(segments)

  def attend(place, q, k, v):
    if fused is not None:
      return fused(q, k, v, place.window), None
    seen = mask if place.window is None else mask & (distance < place.window)
    return attention(q, k, v, seen, scale=cfg.query_scale, softcap=cfg.attn_softcap), None

  keys = None if dropout_key is None else _token_keys(dropout_key, segments, positions)
  options = Options(adapter, lora_scale, dropout_rate, keys, dtype, remat, mesh)
  return run(cfg, base, tokens, positions, lengths, attend, None, options)[0]


@dataclasses.dataclass(frozen=True)
class Options:
  """How layers are run, whatever they attend to.

  Attributes:
    adapter: Low-rank factors of one run, or None.
    lora_scale: `[L]` float32 scale of the adapter, or None for 1.
    dropout_rate: Scalar rate of adapter dropout, used with `dropout_keys`.
    dropout_keys: `[B,T]` keys of the tokens, or None for no dropout.
    dtype: Compute dtype.
    remat: A name of `REMAT_POLICIES`.
    mesh: When given, activations are kept sharded by rows over its ('data', 'fsdp') axes.
    components: Instead, components of each token are divided over `fsdp`, as rows of the matrices
      are: these stay where they lie, and what few tokens give on each device is summed.
    tap: What is kept of the residual stream `[B,T,D]` after each layer, instead of what `attend`
      keeps; None for nothing.
  """

  adapter: Tree | None = None
  lora_scale: jax.Array | None = None
  dropout_rate: jax.Array | None = None
  dropout_keys: jax.Array | None = None
  dtype: Any = jnp.bfloat16
  remat: str = 'none'
  mesh: Mesh | None = None
  components: bool = False
  tap: Callable[[jax.Array], Any] | None = None


class Place(NamedTuple):
  """What a layer that attends has of its own.

  Attributes:
    window: None where no layer of the model has one.
    given: Its slice of what `run` was given.
  """

  window: jax.Array | None
  given: Any


# Place, q `[B,T,N,H]`, k `[B,K,H,T]` and v `[B,K,T,H]` of the new tokens to `[B,T,N*H]` and what is
# kept of this layer.
Attend = Callable[[Place, jax.Array, jax.Array, jax.Array], tuple[jax.Array, Any]]


def run(
  cfg: ModelConfig,
  base: Tree,
  tokens: jax.Array,
  positions: jax.Array,
  lengths: jax.Array,
  attend: Attend,
  given: Any,
  options: Options,
) -> tuple[jax.Array, Any]:
  """All layers over `[B,T]` tokens; what they attend to is up to `attend`.

  Args:
    lengths: `[B,T]` length of each token's text, for the kinds of rope that depend on it.
    given: Leaves `[L,...]` of which each layer gets its own, or None.

  Returns:
    Hidden states after the final norm `[B,T,D]`, and what was kept, `[L,...]`.
  """
  model, dtype = _merge(cfg, base, options.adapter, options.mesh is None), options.dtype
  rope = rope_lib.tables(cfg.ropes, positions, lengths, dtype)
  constrain = _spread(cfg, options)
  graph, stacked = nnx.split(model.layers)
  scale = options.lora_scale
  scale = jnp.ones(cfg.num_layers, jnp.float32) if scale is None else scale

  def block(h, slices):
    parameters, layer_scale, number, (which, window), own = slices
    layer = nnx.merge(graph, parameters)
    h = checkpoint_name(h, 'layer_input')
    fold = jax.vmap(jax.vmap(lambda key: jax.random.fold_in(key, number)))
    keys = None if options.dropout_keys is None else fold(options.dropout_keys)
    kept = None

    def attend_here(q, k, v):
      nonlocal kept
      out, kept = attend(Place(window, own), q, k, v)
      return out

    lora = LoraCall(layer_scale, options.dropout_rate, keys)
    h = layer(h, _pick(rope, which), attend_here, lora, constrain)
    return h, kept if options.tap is None else options.tap(h)

  if REMAT_POLICIES[options.remat] is not None:
    block = jax.checkpoint(block, policy=REMAT_POLICIES[options.remat], prevent_cse=False)
  h = constrain(_embed(cfg, model, tokens, dtype))
  numbers = jnp.arange(cfg.num_layers)
  slices = (stacked, scale, numbers, _layer_switches(cfg), given)
  h, kept = jax.lax.scan(block, h, slices)
  return _finish(cfg, model, h), kept


def _token_keys(key: jax.Array, segments: jax.Array, positions: jax.Array) -> jax.Array:
  """`[B,T]` keys of the tokens of a step."""
  one = lambda segment, position: jax.random.fold_in(jax.random.fold_in(key, segment), position)
  return jax.vmap(jax.vmap(one))(segments, positions)


def _layer_switches(cfg: ModelConfig) -> tuple[jax.Array | None, jax.Array | None]:
  """Which rope and what window each layer has, `[L]` each; None where all layers are alike."""
  which = jnp.asarray(cfg.layer_ropes, jnp.int32) if len(cfg.ropes) > 1 else None
  if not any(cfg.windows):
    return which, None
  widest = jnp.iinfo(jnp.int32).max
  return which, jnp.asarray([window or widest for window in cfg.windows], jnp.int32)


def _pick(
  rope: tuple[jax.Array, jax.Array], which: jax.Array | None
) -> tuple[jax.Array, jax.Array]:
  cos, sin = rope
  return (cos[0], sin[0]) if which is None else (cos[which], sin[which])


def _embed(cfg: ModelConfig, model: Decoder, tokens: jax.Array, dtype: jnp.dtype) -> jax.Array:
  h = model.embed(tokens, dtype)
  # Rounded to the dtype first, as transformers does.
  return h if cfg.embed_scale == 1.0 else h * jnp.asarray(cfg.embed_scale, dtype)


def _finish(cfg: ModelConfig, model: Decoder, h: jax.Array) -> jax.Array:
  """The final norm, and the factor of the logits, which the head is linear in."""
  h = model.final_norm(h)
  return h if cfg.logit_scale == 1.0 else h * jnp.asarray(cfg.logit_scale, h.dtype)


def _spread(cfg: ModelConfig, options: Options) -> Callable[[jax.Array], jax.Array]:
  """Keeps the residual stream `[B,T,D]` divided over the mesh; see `Options`."""
  if options.mesh is None:
    return lambda x: x
  if options.components and cfg.hidden_size % options.mesh.shape['fsdp']:
    return lambda x: x  # Matrices are not cut there either.
  spec = P('data', None, 'fsdp') if options.components else P(('data', 'fsdp'), None, None)
  sharding = NamedSharding(options.mesh, spec)
  return lambda x: jax.lax.with_sharding_constraint(x, sharding)

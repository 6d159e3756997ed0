"""Forward passes for evaluation: rows that hold trees of texts, shared prefixes, key/value caches.

A prefix is `{'k', 'v'}`, `[L,G,K,H,P]` and `[L,G,K,P,H]`: keys and values of G token sequences of
at most P tokens, computed once and looked at by many rows. A cache is the same with a row for each
text that is being written, `[L,B,K,H,S]` and `[L,B,K,S,H]`. Dimension letters: see the legend in
`decoder.py`.

Not for models whose rope depends on the length of the text (`ModelConfig.length_dependent`): there
nothing computed for one text serves another.
"""

from typing import Any

import jax
import jax.numpy as jnp

from sft_jax.models.attention import Past, attention
from sft_jax.models.config import ModelConfig
from sft_jax.models.decoder import Options, Place, Tree, run


def tree_mask(reach: jax.Array) -> jax.Array:
  """`[B,T,T]` mask of rows that hold trees of texts in depth-first order.

  A token at index j is seen by itself and by what descends from it, the indices up to `reach[j]`
  (exclusive). Texts side by side are trees without branches; padding reaches itself only.
  """
  index = jnp.arange(reach.shape[1])
  after = index[:, None] >= index[None, :]
  return after[None] & (index[None, :, None] < reach[:, None, :])


def extend(
  cfg: ModelConfig,
  base: Tree,
  tokens: jax.Array,
  positions: jax.Array,
  reach: jax.Array,
  *,
  prefix: Tree | None = None,
  group: jax.Array | None = None,
  seen: jax.Array | None = None,
  lengths: jax.Array | None = None,
  keep: bool = False,
  adapter: Tree | None = None,
  lora_scale: jax.Array | None = None,
  dtype: Any = jnp.bfloat16,
  mesh: Any = None,
) -> tuple[jax.Array, Tree | None]:
  """Hidden states of rows of trees that go on from shared prefixes.

  Args:
    cfg: Sizes and switches.
    base: Parameters.
    tokens: `[B,T]` int32.
    positions: `[B,T]` int32, of each token in its own text, prefix included.
    reach: `[B,T]` int32, see `tree_mask`.
    prefix: Keys and values of G sequences, or None.
    group: `[B]` int32, the prefix of each row; None where there is one for all.
    seen: `[B,T]` int32, how many tokens of its prefix each token's text begins with.
    lengths: `[B,T]` length of each token's text; for kinds of rope that depend on it.
    keep: Whether keys and values are returned, as a prefix of G = B sequences.
    adapter: Low-rank factors of one run, or None.
    lora_scale: `[L]` scale of the adapter.
    dtype: Compute dtype.
    mesh: See `decoder.Options`.

  Returns:
    `[B,T,D]` in `dtype`, and the new keys and values or None.
  """
  mask = tree_mask(reach)
  distance = positions[:, :, None] - positions[:, None, :]

  def attend(place: Place, q, k, v):
    own = mask if place.window is None else mask & (distance < place.window)
    pasts = () if prefix is None else (_past(place, place.given, group, seen, positions),)
    out = attention(q, k, v, own, scale=cfg.query_scale, softcap=cfg.attn_softcap, pasts=pasts)
    return out, (k, v) if keep else None

  lengths = positions + 1 if lengths is None else lengths
  options = Options(adapter, lora_scale, dtype=dtype, mesh=mesh)
  hidden, kept = run(cfg, base, tokens, positions, lengths, attend, prefix, options)
  return hidden, {'k': kept[0], 'v': kept[1]} if keep else None


def _past(place: Place, prefix: Tree, group: jax.Array | None, seen, positions) -> Past:
  """The prefix, of one layer, as that layer sees it."""
  k, v = prefix['k'], prefix['v']
  slots = jnp.arange(k.shape[-1])[None, None, :]
  mask = slots < seen[:, :, None]
  if place.window is not None:
    mask &= positions[:, :, None] - slots < place.window
  return Past(k[0], v[0], mask) if group is None else Past(k[group], v[group], mask)


def init_cache(cfg: ModelConfig, rows: int, slots: int, dtype: Any) -> Tree:
  """Empty key/value cache: `k` `[L,B,K,H,S]` and `v` `[L,B,K,S,H]`."""
  lead, width = (cfg.num_layers, rows, cfg.num_kv_heads), cfg.head_dim
  k, v = (*lead, width, slots), (*lead, slots, width)
  return {'k': jnp.zeros(k, dtype), 'v': jnp.zeros(v, dtype)}


def decode(
  cfg: ModelConfig,
  base: Tree,
  tokens: jax.Array,
  positions: jax.Array,
  cache: Tree | None,
  *,
  prefix: Tree | None = None,
  seen: jax.Array | None = None,
  adapter: Tree | None = None,
  lora_scale: jax.Array | None = None,
  lengths: jax.Array | None = None,
  dtype: Any = jnp.bfloat16,
  mesh: Any = None,
) -> tuple[jax.Array, Tree]:
  """Runs `[B,T]` new tokens, which follow one another, after those of a cache.

  A row's token at position p belongs in slot p, less the length of the row's prefix, and sees all
  slots before the first new one, so rows of different lengths share one cache and a slot left by
  padding is overwritten before it can be seen.

  Args:
    positions: `[B,T]` int32.
    cache: From `init_cache` and `write`; only read here. None where nothing but a prefix is before.
    prefix: Keys and values of one sequence (G = 1) that all rows share, or None.
    seen: `[B]` int32, how many of its tokens each row begins with.
    lengths: `[B,T]` length of each token's text so far, for the kinds of rope that depend on it;
      by default the token's position and one.
    mesh: Devices that share one copy of the parameters, if they are several: for one token of each
      row, matrices are not put together.

  Returns:
    Hidden states `[B,T,D]`, and keys and values of the new tokens, as a cache of T slots.
  """
  seen = jnp.zeros(tokens.shape[0], jnp.int32) if seen is None else seen
  starts = jnp.broadcast_to(seen[:, None], positions.shape)
  distance = positions[:, :, None] - positions[:, None, :]
  new = distance >= 0

  def attend(place: Place, q, k, v):
    near = lambda mask, apart: mask if place.window is None else mask & (apart < place.window)
    held, shared = place.given
    pasts = []
    if held is not None:
      places = positions - starts
      slots = jnp.arange(held['k'].shape[-1])[None, None, :]
      before = jnp.broadcast_to(slots < places[:, :1, None], (*places.shape, slots.shape[-1]))
      pasts.append(Past(held['k'], held['v'], near(before, places[:, :, None] - slots)))
    if shared is not None:
      pasts.append(_past(place, shared, None, starts, positions))
    scale, cap = cfg.query_scale, cfg.attn_softcap
    out = attention(q, k, v, near(new, distance), scale=scale, softcap=cap, pasts=pasts)
    return out, {'k': k, 'v': v}

  lengths = positions + 1 if lengths is None else lengths
  mesh = mesh if tokens.shape[1] == 1 else None
  options = Options(adapter, lora_scale, dtype=dtype, mesh=mesh, components=True)
  return run(cfg, base, tokens, positions, lengths, attend, (cache, prefix), options)


def write(cache: Tree, new: Tree, slots: jax.Array) -> Tree:
  """Puts new tokens into their slots of a cache, in place where it is donated.

  Args:
    cache: From `init_cache`, or of several runs, with their axis after that of the layers.
    new: From `decode`, the same way.
    slots: `[R?,B,T]` int32; what falls outside of the cache is not written.

  Returns:
    The cache.
  """
  lead = slots.ndim - 1
  # Each row writes into itself.
  rows = [
    jnp.arange(size).reshape(-1, *(1,) * (lead - axis))
    for axis, size in enumerate(slots.shape[:-1])
  ]
  whole, out = slice(None), {}
  for name, before in (('k', (whole, whole)), ('v', (whole,))):
    # Of an index with gaps, what is indexed comes first: rows and tokens, then layers and the rest.
    tokens = jnp.moveaxis(new[name], -1 if name == 'k' else -2, lead + 1)
    tokens = jnp.moveaxis(tokens, 0, lead + 1)
    place = cache[name].at[(whole, *rows, *before, slots)]
    out[name] = place.set(tokens, mode='drop', unique_indices=True)
  return out

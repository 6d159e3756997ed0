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

from sft_jax.models.config import ModelConfig
from sft_jax.models.decoder import Options, Place, Tree, run
from sft_jax.models.layers import Past, attention


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

  def attend(place: Place, q, k, v, carry):
    own = mask if place.window is None else mask & (distance < place.window)
    past = None if prefix is None else _past(prefix, place, group, seen, positions)
    out = attention(q, k, v, own, scale=cfg.query_scale, softcap=cfg.attn_softcap, past=past)
    return out, carry, (k, v) if keep else None

  lengths = positions + 1 if lengths is None else lengths
  options = Options(adapter, lora_scale, dtype=dtype, mesh=mesh)
  hidden, _, kept = run(cfg, base, tokens, positions, lengths, attend, None, options)
  return hidden, {'k': kept[0], 'v': kept[1]} if keep else None


def _past(prefix: Tree, place: Place, group: jax.Array | None, seen, positions) -> Past:
  """The prefix as one layer sees it."""
  k, v = (jax.lax.dynamic_index_in_dim(prefix[n], place.number, keepdims=False) for n in 'kv')
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
  cache: Tree,
  *,
  prefix: Tree | None = None,
  seen: jax.Array | None = None,
  adapter: Tree | None = None,
  lora_scale: jax.Array | None = None,
  lengths: jax.Array | None = None,
  dtype: Any = jnp.bfloat16,
  mesh: Any = None,
) -> tuple[jax.Array, Tree]:
  """Runs `[B,T]` new tokens against a cache, writing their keys and values into it.

  A row's token at position p lives in slot p, less the length of the row's prefix, and sees all
  slots before, so rows of different lengths share one cache and a slot left by padding is
  overwritten before it can be seen. What falls outside of the cache is not written.

  Args:
    positions: `[B,T]` int32.
    cache: From `init_cache`.
    prefix: Keys and values of one sequence (G = 1) that all rows share, or None.
    seen: `[B]` int32, how many of its tokens each row begins with.
    lengths: `[B,T]` length of each token's text so far, for the kinds of rope that depend on it;
      by default the token's position and one.
    mesh: Devices that share one copy of the parameters, if they are several: for one token of each
      row, matrices are not put together.

  Returns:
    Hidden states `[B,T,D]` and the updated cache.
  """
  seen = jnp.zeros(tokens.shape[0], jnp.int32) if seen is None else seen
  places = positions - seen[:, None]
  slots = jnp.arange(cache['k'].shape[-1])
  distance = places[:, :, None] - slots[None, None, :]
  mask = distance >= 0
  rows = jnp.arange(tokens.shape[0])[:, None]
  starts = jnp.broadcast_to(seen[:, None], positions.shape)

  def attend(place: Place, q, k, v, cache):
    own = mask if place.window is None else mask & (distance < place.window)
    # The cache is a carry, written in place: as a scanned input and output it would be copied.
    new_k, new_v = k.transpose(0, 3, 1, 2), v.swapaxes(1, 2)
    cache = {
      'k': cache['k'].at[place.number, rows, :, :, places].set(new_k, mode='drop'),
      'v': cache['v'].at[place.number, rows, :, places].set(new_v, mode='drop'),
    }
    keys, values = (
      jax.lax.dynamic_index_in_dim(cache[name], place.number, keepdims=False) for name in 'kv'
    )
    past = None if prefix is None else _past(prefix, place, None, starts, positions)
    out = attention(
      q, keys, values, own, scale=cfg.query_scale, softcap=cfg.attn_softcap, past=past
    )
    return out, cache, None

  lengths = positions + 1 if lengths is None else lengths
  mesh = mesh if tokens.shape[1] == 1 else None
  options = Options(adapter, lora_scale, dtype=dtype, mesh=mesh, components=True)
  hidden, cache, _ = run(cfg, base, tokens, positions, lengths, attend, cache, options)
  return hidden, cache

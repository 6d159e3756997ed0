"""Softmax attention in plain XLA, over tokens at hand and over caches of earlier ones.

What training computes on accelerators is in `fused_attention.py`, which is held to this.
Dimension letters: see the legend in `decoder.py`.
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp


class Past(NamedTuple):
  """Keys and values of tokens that all rows, or each its own, may look back at.

  Attributes:
    k: `[K,H,P]` shared by all rows, or `[B,K,H,P]`.
    v: `[K,P,H]` or `[B,K,P,H]`.
    mask: bool `[B,T,P]`, true where a query sees a key.
  """

  k: jax.Array
  v: jax.Array
  mask: jax.Array


def attention(
  q: jax.Array,
  k: jax.Array,
  v: jax.Array,
  mask: jax.Array,
  *,
  scale: float,
  softcap: float | None = None,
  pasts: Sequence[Past] = (),
) -> jax.Array:
  """Softmax attention with grouped heads, in plain XLA; softmax in float32.

  Query heads that share a key head are stacked along the rows of one product, which needs no copy
  of keys or scores.

  Args:
    q: `[B,T,N,H]`.
    k: `[B,K,H,S]`, N a multiple of K: what both products read without moving it.
    v: `[B,K,S,H]`.
    mask: bool `[B,T,S]`, true where a query sees a key; no row may be empty.
    scale: What products of queries and keys are multiplied by.
    softcap: Scores become `cap * tanh(scores / cap)` before they are masked.
    pasts: Further keys and values, of tokens before all these.

  Returns:
    `[B,T,N*H]`.
  """
  rows, length, heads, width = q.shape
  shared = k.shape[1]
  groups = heads // shared
  q = q.reshape(rows, length, shared, groups, width).transpose(0, 2, 3, 1, 4)
  q = (q * scale).reshape(rows, shared, groups * length, width)
  wide = (rows, shared, groups, length, -1)

  def scored(k: jax.Array, mask: jax.Array) -> jax.Array:
    spec = 'bkqh,bkhs->bkqs' if k.ndim == 4 else 'bkqh,khs->bkqs'
    scores = jnp.einsum(spec, q, k, preferred_element_type=jnp.float32).reshape(wide)
    if softcap is not None:
      scores = softcap * jnp.tanh(scores / softcap)
    # Not -inf: a whole row of it would make the softmax, and its gradient, NaN.
    return jnp.where(mask[:, None, None], scores, jnp.finfo(jnp.float32).min)

  def seen(weights: jax.Array, v: jax.Array) -> jax.Array:
    spec = 'bkqs,bksh->bkqh' if v.ndim == 4 else 'bkqs,ksh->bkqh'
    return jnp.einsum(spec, weights.astype(v.dtype).reshape(*q.shape[:3], -1), v)

  scores = [scored(k, mask), *(scored(past.k, past.mask) for past in pasts)]
  values = [v, *(past.v for past in pasts)]
  parts = [seen(weights, v) for weights, v in zip(_softmax(scores), values, strict=True)]
  out = functools.reduce(jnp.add, parts)
  out = out.reshape(rows, shared, groups, length, width).transpose(0, 3, 1, 2, 4)
  return out.reshape(rows, length, heads * width)


def _softmax(scores: Sequence[jax.Array]) -> list[jax.Array]:
  """Softmax over the last axes of all arrays together, which are not put together.

  One array of a cache and a token more would have to be written, and of no handy size.
  """
  if len(scores) == 1:
    return [jax.nn.softmax(scores[0], axis=-1)]
  most = functools.reduce(jnp.maximum, (one.max(-1, keepdims=True) for one in scores))
  powers = [jnp.exp(one - most) for one in scores]
  total = sum(one.sum(-1, keepdims=True) for one in powers)
  return [one / total for one in powers]

"""The output head, applied to chosen positions in chunks; no `[B,T,V]` array is ever made.

Shared by the training loss and by evaluation. Dimensions: G batch shards, B batch, T tokens,
C chunk, D model, V vocab.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

Array = jax.Array


class Plan(NamedTuple):
  """Supervised positions first: `order`, `targets`, `weights` [G,padded]; `inverse` [G,N]."""

  order: Array
  inverse: Array
  targets: Array
  weights: Array
  trips: Array


def target_logprobs(
  hidden: Array,
  head: Array,
  targets: Array,
  *,
  chunk: int,
  where: Array | None = None,
  logit_softcap: float | None = None,
  vocab: int | None = None,
  shards: int = 1,
) -> Array:
  """Log-probability of each target, float32 [B,T]; 0 where the mask `where` [B,T] is false.

  Only positions inside the mask are scored; columns of `head` from `vocab` on are no tokens. Not
  differentiable.
  """
  mask = jnp.ones(targets.shape, jnp.float32) if where is None else where.astype(jnp.float32)
  shape = targets.shape
  hidden, targets, mask = (shard(x, shards) for x in (hidden, targets, mask))
  chunk = min(chunk, targets.shape[1])
  plan = make_plan(targets, mask, chunk, None)
  kernel = head.astype(hidden.dtype)

  def body(i: Array, out: Array) -> Array:
    h, t, w = take(hidden, plan, i, chunk)
    logits, _ = logits_of(h, kernel, logit_softcap, vocab)
    picked = pick(logits, t) - jax.nn.logsumexp(logits, axis=-1)
    return jax.lax.dynamic_update_slice_in_dim(out, jnp.where(w > 0, picked, 0.0), i * chunk, 1)

  out = jax.lax.fori_loop(0, plan.trips, body, jnp.zeros(plan.order.shape, jnp.float32))
  return jnp.take_along_axis(out, plan.inverse, axis=1).reshape(shape)


def shard(x: Array, shards: int) -> Array:
  """[B,T,...] -> [G,B/G*T,...]; local to a device when B is divided over G devices."""
  batch, length, *rest = x.shape
  if batch % shards:
    raise ValueError(f'batch of {batch} rows does not divide into {shards} shards')
  return x.reshape(shards, batch // shards * length, *rest)


def make_plan(targets: Array, weights: Array, chunk: int, runs_axis: str | None) -> Plan:
  """Orders positions so that supervised ones come first, in their own order, in each shard."""
  size = targets.shape[1]
  supervised = weights > 0
  order = jnp.argsort(~supervised, axis=1, stable=True).astype(jnp.int32)
  # The place of a position in `order`, without a second sort.
  first = jnp.cumsum(supervised, axis=1, dtype=jnp.int32)
  rest = first[:, -1:] + jnp.cumsum(~supervised, axis=1, dtype=jnp.int32)
  inverse = jnp.where(supervised, first, rest) - 1
  count = first[:, -1].max()
  if runs_axis is not None:
    count = jax.lax.pmax(count, runs_axis)
  pad = ((0, 0), (0, -size % chunk))
  return Plan(
    jnp.pad(order, pad),
    inverse,
    jnp.pad(jnp.take_along_axis(targets, order, axis=1), pad),
    jnp.pad(jnp.take_along_axis(weights, order, axis=1), pad),
    (count + chunk - 1) // chunk,
  )


def take(hidden: Array, plan: Plan, i: Array, chunk: int) -> tuple[Array, Array, Array]:
  """The i-th chunk: hidden [G,C,D], targets [G,C], weights [G,C]."""
  cut = functools.partial(jax.lax.dynamic_slice_in_dim, axis=1)
  index, targets, weights = (
    cut(x, i * chunk, chunk) for x in (plan.order, plan.targets, plan.weights)
  )
  return jnp.take_along_axis(hidden, index[..., None], axis=1), targets, weights


def logits_of(
  h: Array, kernel: Array, softcap: float | None, vocab: int | None
) -> tuple[Array, Array | None]:
  """Float32 logits [G,C,V] and, under a soft cap, their derivative by the raw logits.

  Columns from `vocab` on, which pad the head, get the lowest value there is.
  """
  logits = jnp.einsum('gcd,dv->gcv', h, kernel, preferred_element_type=jnp.float32)
  slope = None
  if softcap is not None:
    tanh = jnp.tanh(logits / softcap)
    logits, slope = softcap * tanh, 1 - jnp.square(tanh)
  return without_padding(logits, vocab), slope


def without_padding(logits: Array, vocab: int | None) -> Array:
  """Logits `[...,V]` under which no column from `vocab` on is ever predicted."""
  if vocab is None or vocab == logits.shape[-1]:
    return logits
  column = jax.lax.broadcasted_iota(jnp.int32, logits.shape, logits.ndim - 1)
  return jnp.where(column < vocab, logits, jnp.finfo(logits.dtype).min)


def is_target(logits: Array, targets: Array) -> Array:
  """A comparison with iota fuses with its neighbours and needs no gather over a sharded vocab."""
  return jax.lax.broadcasted_iota(jnp.int32, logits.shape, logits.ndim - 1) == targets[..., None]


def pick(logits: Array, targets: Array) -> Array:
  return jnp.sum(jnp.where(is_target(logits, targets), logits, 0.0), axis=-1)

"""The output head, applied to chosen positions in chunks; no `[B,T,V]` array is ever made.

Shared by the training loss and by evaluation. Dimensions: G batch shards, B batch, T tokens,
C chunk, D model, V vocab.
"""

import functools
from collections.abc import Callable
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


def score_targets(
  hidden: Array,
  logits: Callable[[Array], Array],
  targets: Array,
  *,
  where: Array,
  chunk: int,
  shards: int = 1,
) -> tuple[Array, Array]:
  """Log-probabilities of several targets at each chosen position, and whether each is the best.

  Not differentiable. A target that shares the first place counts as the best.

  Args:
    hidden: `[B,T,D]`.
    logits: `[G,C,D]` to float32 `[G,C,V]`.
    targets: `[B,T,M]` int32.
    where: bool `[B,T]`, positions to be scored; elsewhere results are 0 and false.
    chunk: Positions of a shard that are worked on at once.
    shards: G, parts that B is divided into over devices.

  Returns:
    float32 `[B,T,M]`, bool `[B,T,M]`.
  """
  batch, length, count = targets.shape
  hidden, targets, mask = (shard(x, shards) for x in (hidden, targets, where))
  size = targets.shape[1]
  chunk = min(chunk, size)
  plan = make_plan(targets[..., 0], mask.astype(jnp.float32), chunk, None)
  targets = jnp.take_along_axis(targets, plan.order[:, :size, None], axis=1)
  targets = jnp.pad(targets, ((0, 0), (0, -size % chunk), (0, 0)))

  def body(i: Array, out: tuple[Array, Array]) -> tuple[Array, Array]:
    h, _, w = take(hidden, plan, i, chunk)
    values = logits(h)
    # The maximum serves the sum and the comparison: neither an argmax nor a second pass is needed.
    most = jnp.max(values, axis=-1)
    total = most + jnp.log(jnp.sum(jnp.exp(values - most[..., None]), axis=-1))
    wanted = jax.lax.dynamic_slice_in_dim(targets, i * chunk, chunk, 1)
    found = jnp.stack([pick(values, wanted[..., m]) for m in range(count)], axis=-1)
    scored = w[..., None] > 0
    scores = jnp.where(scored, found - total[..., None], 0.0)
    best = scored & (found >= most[..., None])
    put = functools.partial(jax.lax.dynamic_update_slice_in_dim, start_index=i * chunk, axis=1)
    return put(out[0], scores), put(out[1], best)

  shape = (*plan.order.shape, count)
  nothing = jnp.zeros(shape, jnp.float32), jnp.zeros(shape, bool)
  scores, best = jax.lax.fori_loop(0, plan.trips, body, nothing)
  scores = jnp.take_along_axis(scores, plan.inverse[..., None], axis=1)
  best = jnp.take_along_axis(best, plan.inverse[..., None], axis=1)
  shape = (batch, length, count)
  return scores.reshape(shape), best.reshape(shape)


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

"""Fused linear cross-entropy over supervised positions. Not for metrics beyond loss and accuracy.

Logits are made once, for `chunk` supervised positions of each batch shard at a time, and gradients
are taken in the same pass: no float32 array of shape [B,T,V] exists, in training or evaluation.

Dimensions: G batch shards, B batch, T tokens, C chunk, D model, V vocab.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from sft_jax.models import head as head_lib

Array = jax.Array


class LossSums(NamedTuple):
  """Float32 sums over supervised positions: weighted nll, weight, weight predicted right."""

  sum: Array
  weight: Array
  correct: Array


def targets_and_weights(tokens: Array, loss_weight: Array) -> tuple[Array, Array]:
  """Position t predicts token t+1 with weight `loss_weight[t+1]`; the last position has weight 0.

  Args:
    tokens: int32 [..., T].
    loss_weight: float32 [..., T], weight of predicting token t from its past.
  """
  targets = jnp.roll(tokens, -1, axis=-1)
  weights = jnp.roll(loss_weight, -1, axis=-1).at[..., -1].set(0)
  return targets, weights.astype(jnp.float32)


class _Static(NamedTuple):
  chunk: int
  train_head: bool
  softcap: float | None
  vocab: int | None
  kernel: str  # order of the kernel's axes, 'dv' or 'vd'
  whole: NamedSharding | None
  cut: NamedSharding | None


def cross_entropy(
  hidden: Array,
  head: Array,
  targets: Array,
  weights: Array,
  *,
  chunk: int,
  train_head: bool,
  logit_softcap: float | None = None,
  vocab: int | None = None,
  transposed: bool = False,
  shards: int = 1,
  runs_axis: str | None = None,
  head_sharding: NamedSharding | None = None,
) -> LossSums:
  """Weighted negative log-likelihood of `targets` under `softmax(hidden @ head)`, summed.

  Matrix products run in the dtype of `hidden` with float32 accumulation; softmax and sums are
  float32. The gradient of `head` is accumulated in float32 whatever the dtype of `hidden`.

  Args:
    hidden: [B,T,D].
    head: [D,V], in the dtype its gradient should have (cast to that of `hidden` inside).
    targets: int32 [B,T].
    weights: float32 [B,T], at least 0; a position of weight 0 costs nothing.
    chunk: Positions of each shard that are scored at a time.
    train_head: Whether the gradient of `head` is computed; without it that gradient is zero.
    logit_softcap: Logits become `cap * tanh(logits / cap)`.
    vocab: Columns of the head from this one on are padding and never predicted.
    transposed: `head` is [V,D], as a tied token table is; saves transposing it and its gradient.
    shards: Number of equal contiguous pieces the batch axis is divided into across devices.
      Supervised positions are gathered within a piece, never across.
    runs_axis: Name of an enclosing vmap axis; the number of chunks is then the largest over it, so
      that the loop's condition is not batched.
    head_sharding: How the head is laid out, where devices share it: it is then put together once,
      not for every chunk, and its gradient is summed into this layout.

  Returns:
    Sums, differentiable in `sum` with respect to `hidden` and `head`.
  """
  hidden, targets, weights = (head_lib.shard(x, shards) for x in (hidden, targets, weights))
  chunk = min(chunk, targets.shape[1])
  plan = head_lib.make_plan(targets, weights, chunk, runs_axis)
  order = 'vd' if transposed else 'dv'
  whole = None if head_sharding is None else _whole(head_sharding)
  static = _Static(chunk, train_head, logit_softcap, vocab, order, whole, head_sharding)
  nll, correct = _fused(static, hidden, head, plan)
  return LossSums(nll, jax.lax.stop_gradient(weights.sum()), correct)


def _whole(sharding: NamedSharding) -> NamedSharding:
  """The same, but for the axis that those who share rows are cut over."""
  spec = (axis if axis == 'tensor' else None for axis in sharding.spec)
  return NamedSharding(sharding.mesh, PartitionSpec(*spec))


def _constrained(x: Array, sharding: NamedSharding | None) -> Array:
  return x if sharding is None else jax.lax.with_sharding_constraint(x, sharding)


def _score(
  static: _Static, h: Array, kernel: Array, targets: Array, weights: Array, grad: bool
) -> tuple[Array, Array, Array | None]:
  """Weighted nll and weight predicted right of one chunk; with `grad` also d nll/d raw logits."""
  # Inside the loop the transpose folds into the product; outside it would be a copy.
  view = kernel.T if static.kernel == 'vd' else kernel
  logits, slope = head_lib.logits_of(h, view, static.softcap, static.vocab)
  top = logits.max(axis=-1)
  exp = jnp.exp(logits - top[..., None])
  total = exp.sum(axis=-1)
  picked = head_lib.pick(logits, targets)
  nll = jnp.where(weights > 0, weights * (jnp.log(total) + top - picked), 0.0).sum()
  correct = jnp.where(picked >= top, weights, 0.0).sum()
  if not grad:
    return nll, correct, None
  delta = exp * (weights / total)[..., None]
  delta = delta - jnp.where(head_lib.is_target(logits, targets), weights[..., None], 0.0)
  return nll, correct, delta if slope is None else delta * slope


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _fused(static: _Static, hidden: Array, head: Array, plan: head_lib.Plan) -> tuple[Array, Array]:
  chunk = static.chunk
  kernel = _constrained(head.astype(hidden.dtype), static.whole)

  def body(i: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
    h, t, w = head_lib.take(hidden, plan, i, chunk)
    nll, correct, _ = _score(static, h, kernel, t, w, grad=False)
    return carry[0] + nll, carry[1] + correct

  zero = jnp.zeros((), jnp.float32)
  return jax.lax.fori_loop(0, plan.trips, body, (zero, zero))


def _fused_fwd(static: _Static, hidden: Array, head: Array, plan: head_lib.Plan) -> tuple:
  chunk, train_head = static.chunk, static.train_head
  kernel = _constrained(head.astype(hidden.dtype), static.whole)
  groups, _, width = hidden.shape

  def body(i: Array, carry: tuple) -> tuple:
    nll, correct, d_hidden, d_head = carry
    h, t, w = head_lib.take(hidden, plan, i, chunk)
    more_nll, more_correct, delta = _score(static, h, kernel, t, w, grad=True)
    assert delta is not None
    delta = delta.astype(hidden.dtype)
    d_h = jnp.einsum(f'gcv,{static.kernel}->gcd', delta, kernel, preferred_element_type=jnp.float32)
    d_hidden = jax.lax.dynamic_update_slice_in_dim(
      d_hidden, d_h.astype(hidden.dtype), i * chunk, axis=1
    )
    if train_head:
      # One sum for each shard: the reduction over devices happens once, after the loop.
      d_head += jnp.einsum(
        f'gcd,gcv->g{static.kernel}', h, delta, preferred_element_type=jnp.float32
      )
    return nll + more_nll, correct + more_correct, d_hidden, d_head

  zero = jnp.zeros((), jnp.float32)
  d_hidden = jnp.zeros((*plan.order.shape, width), hidden.dtype)
  d_head = jnp.zeros((groups, *head.shape), jnp.float32) if train_head else None
  nll, correct, d_hidden, d_head = jax.lax.fori_loop(
    0, plan.trips, body, (zero, zero, d_hidden, d_head)
  )
  d_hidden = jnp.take_along_axis(d_hidden, plan.inverse[..., None], axis=1)
  if train_head:
    d_head = _constrained(d_head.sum(0), static.cut).astype(head.dtype)
  return (nll, correct), (d_hidden, d_head)


def _fused_bwd(static: _Static, saved: tuple, cotangents: tuple) -> tuple:
  d_hidden, d_head = saved
  scale = cotangents[0]
  d_hidden = (scale * d_hidden).astype(d_hidden.dtype)
  if d_head is not None:
    d_head = (scale * d_head).astype(d_head.dtype)
  return d_hidden, d_head, None


_fused.defvjp(_fused_fwd, _fused_bwd)

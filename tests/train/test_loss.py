"""Cross-entropy against a naive formula and torch."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from sft_jax.models import head as head_lib
from sft_jax.train import loss

B, T, D, V = 4, 24, 16, 150


def problem(seed=0, dtype=np.float32):
  rng = np.random.default_rng(seed)
  hidden = rng.normal(size=(B, T, D)).astype(np.float32)
  head = rng.normal(size=(D, V)).astype(np.float32)
  targets = rng.integers(0, V, size=(B, T)).astype(np.int32)
  weights = (rng.random((B, T)) < 0.4).astype(np.float32)
  weights[1] = 0  # a row with nothing supervised
  weights[2] = 1
  weights[3, :5] *= 0.25
  return jnp.asarray(hidden, dtype), jnp.asarray(head), jnp.asarray(targets), jnp.asarray(weights)


def naive(hidden, head, targets, weights, softcap=None):
  logits = hidden.astype(jnp.float32) @ head
  if softcap:
    logits = softcap * jnp.tanh(logits / softcap)
  picked = jnp.take_along_axis(jax.nn.log_softmax(logits), targets[..., None], -1)[..., 0]
  return -(weights * picked).sum()


@pytest.mark.parametrize('transposed', [False, True])
@pytest.mark.parametrize('chunk,shards', [(1, 1), (7, 1), (16, 2), (7, 4), (1000, 1)])
def test_value_and_gradients_equal_the_formula(chunk, shards, transposed):
  args = problem()
  options = {'chunk': chunk, 'train_head': True, 'shards': shards, 'transposed': transposed}

  def fused(hidden, head):
    return loss.cross_entropy(hidden, head.T if transposed else head, *args[2:], **options).sum

  value, grads = jax.jit(jax.value_and_grad(fused, (0, 1)))(*args[:2])
  expected, expected_grads = jax.value_and_grad(naive, (0, 1))(*args)
  np.testing.assert_allclose(value, expected, rtol=1e-6)
  for got, want in zip(grads, expected_grads, strict=True):
    np.testing.assert_allclose(got, want, atol=2e-6)


def test_equals_torch():
  hidden, head, targets, weights = problem(1)
  mask = np.asarray(weights > 0).ravel()
  h = torch.tensor(np.asarray(hidden), requires_grad=True)
  k = torch.tensor(np.asarray(head), requires_grad=True)
  labels = torch.tensor(np.where(mask, np.asarray(targets).ravel(), -100)).long()
  want = torch.nn.functional.cross_entropy((h @ k).view(-1, V), labels, reduction='sum')
  want.backward()

  def fused(hidden, head):
    return loss.cross_entropy(
      hidden, head, targets, (weights > 0).astype(jnp.float32), chunk=16, train_head=True
    ).sum

  value, (dh, dk) = jax.value_and_grad(fused, (0, 1))(hidden, head)
  np.testing.assert_allclose(value, want.item(), rtol=1e-6)
  np.testing.assert_allclose(dh, h.grad.numpy(), atol=2e-6)
  np.testing.assert_allclose(dk, k.grad.numpy(), atol=4e-6)


def test_sums():
  hidden, head, targets, weights = problem()
  out = loss.cross_entropy(hidden, head, targets, weights, chunk=8, train_head=False)
  right = (hidden @ head).argmax(-1) == targets
  np.testing.assert_allclose(out.weight, weights.sum())
  np.testing.assert_allclose(out.correct, (weights * right).sum())
  easy = loss.cross_entropy(
    hidden, head, (hidden @ head).argmax(-1).astype(jnp.int32), weights, chunk=8, train_head=False
  )
  np.testing.assert_allclose(easy.correct, weights.sum())


def test_no_supervised_position_costs_nothing():
  hidden, head, targets, weights = problem()
  fused = lambda h, k: loss.cross_entropy(h, k, targets, 0 * weights, chunk=8, train_head=True).sum
  value, grads = jax.value_and_grad(fused, (0, 1))(hidden, head)
  assert value == 0 and not any(np.any(g) for g in grads)
  assert head_lib.make_plan(targets, 0 * weights, 8, None).trips == 0
  assert head_lib.make_plan(targets, weights, 8, None).trips == 3


def test_softcap():
  hidden, head, targets, weights = problem()
  fused = lambda h, k: (
    loss.cross_entropy(h, k, targets, weights, chunk=8, train_head=True, logit_softcap=5.0).sum
  )
  value, grads = jax.value_and_grad(fused, (0, 1))(hidden, head)
  expected, wanted = jax.value_and_grad(naive, (0, 1))(hidden, head, targets, weights, 5.0)
  np.testing.assert_allclose(value, expected, rtol=1e-6)
  for got, want in zip(grads, wanted, strict=True):
    np.testing.assert_allclose(got, want, atol=2e-6)


def test_bfloat16_hidden_keeps_float32_head_gradient():
  hidden, head, targets, weights = problem(dtype=jnp.bfloat16)
  fused = lambda h, k: loss.cross_entropy(h, k, targets, weights, chunk=8, train_head=True).sum
  value, (dh, dk) = jax.value_and_grad(fused, (0, 1))(hidden, head)
  assert value.dtype == jnp.float32 and dh.dtype == jnp.bfloat16 and dk.dtype == jnp.float32
  np.testing.assert_allclose(value, naive(hidden, head, targets, weights), rtol=5e-3)


def test_frozen_head_has_no_gradient_and_no_buffer():
  hidden, head, targets, weights = problem()

  def fused(h, k, train_head):
    return loss.cross_entropy(h, k, targets, weights, chunk=8, train_head=train_head).sum

  dh, dk = jax.grad(fused, (0, 1))(hidden, head, False)
  want = jax.grad(naive)(hidden, head, targets, weights)
  np.testing.assert_allclose(dh, want, atol=2e-6)
  assert not np.any(dk)
  jaxpr = lambda train: str(jax.make_jaxpr(jax.grad(lambda h: fused(h, head, train)))(hidden))
  count = lambda train: len(re.findall('dot_general', jaxpr(train)))
  assert count(False) == 2 and count(True) == 3  # logits, d hidden, (d head): made once each


def test_runs_are_independent_and_share_the_loop():
  problems = [problem(seed) for seed in range(3)]
  hidden, targets, weights = (jnp.stack([p[i] for p in problems]) for i in (0, 2, 3))
  weights = weights.at[1].set(0)
  head = problems[0][1]

  def fused(h, t, w, axis=None):
    return loss.cross_entropy(h, head, t, w, chunk=8, train_head=False, runs_axis=axis).sum

  value, grads = jax.vmap(lambda *a: jax.value_and_grad(fused)(*a, 'runs'), axis_name='runs')(
    hidden, targets, weights
  )
  for r in range(3):
    want, grad = jax.value_and_grad(fused)(hidden[r], targets[r], weights[r])
    np.testing.assert_allclose(value[r], want, rtol=1e-6)
    np.testing.assert_allclose(grads[r], grad, atol=2e-6)
  for axis in (None, 'runs'):
    batched = jax.vmap(functools.partial(fused, axis=axis), axis_name='runs')
    # A batched condition is reduced over runs, and every carry is then selected in every trip.
    text = jax.jit(batched).lower(hidden, targets, weights).as_text()
    assert ('stablehlo.or' in text) == (axis is None)


@pytest.mark.parametrize('train_head', [False, True])
def test_full_logits_never_exist(train_head):
  hidden, head, targets, weights = problem()

  def fused(h, k):
    return loss.cross_entropy(h, k, targets, weights, chunk=8, train_head=train_head).sum

  text = jax.jit(jax.value_and_grad(fused, (0, 1))).lower(hidden, head).compile().as_text()
  sizes = {
    int(np.prod([int(n) for n in dims.split(',')]))
    for dims in re.findall(r'(?:f32|bf16)\[([\d,]+)\]', text)
  }
  assert 8 * V in sizes and max(sizes) < B * T * V
  text = jax.jit(lambda h, k: naive(h, k, targets, weights)).lower(hidden, head).compile().as_text()
  assert re.search(rf'f32\[(?:{B},{T}|{B * T}),{V}\]', text)  # the check can fail


def test_score_targets():
  hidden, head, targets, weights = problem()
  logprobs = jax.nn.log_softmax(hidden @ head)
  targets = jnp.stack([targets, jnp.argmax(logprobs, axis=-1)], axis=-1)
  want = jnp.take_along_axis(logprobs, targets, -1)
  logits = lambda h: jnp.einsum('gcd,dv->gcv', h, head)
  score = functools.partial(head_lib.score_targets, hidden, logits, targets, chunk=7)
  got, likeliest = jax.jit(lambda: score(where=jnp.ones(weights.shape, bool)))()
  np.testing.assert_allclose(got, want, atol=1e-5)
  np.testing.assert_array_equal(likeliest, targets == targets[..., 1:])
  got, likeliest = score(where=weights > 0, shards=2)
  np.testing.assert_allclose(got, np.where(weights[..., None] > 0, want, 0), atol=1e-5)
  np.testing.assert_array_equal(likeliest, (targets == targets[..., 1:]) & (weights[..., None] > 0))


def test_targets_and_weights():
  tokens = jnp.array([[5, 6, 7, 8]])
  targets, weights = loss.targets_and_weights(tokens, jnp.array([[1.0, 0.0, 1.0, 0.5]]))
  assert targets[0, :3].tolist() == [6, 7, 8]
  assert weights.tolist() == [[0.0, 1.0, 0.5, 0.0]]


@pytest.mark.parametrize('token', [0, 1, 2])
def test_no_token_id_is_special(token):
  """A supervised target counts whatever its id (a pad or BOS id included)."""
  hidden, head, _, weights = problem()
  targets = jnp.full((B, T), token, jnp.int32)
  out = loss.cross_entropy(hidden, head, targets, weights, chunk=8, train_head=False)
  np.testing.assert_allclose(out.sum, naive(hidden, head, targets, weights), rtol=1e-6)
  np.testing.assert_allclose(out.weight, weights.sum())

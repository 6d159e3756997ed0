"""What becomes of small updates under each way of keeping parameters."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sft_jax.train import precision
from sft_jax.utils.errors import UserError
from tests.train import common

STEPS = 60


def test_stochastic_rounding_is_right_on_average():
  step = 2.0**-7  # between neighbours in [1, 2)
  x = jnp.float32(1 + 0.3 * step)
  keys = jax.random.split(jax.random.key(0), 4000)
  drawn = jax.vmap(lambda key: precision.round_stochastically(x, key))(keys).astype(jnp.float32)
  assert set(np.unique(drawn).tolist()) == {1.0, 1 + step}
  assert abs(float((drawn > 1).mean()) - 0.3) < 0.03
  drawn = jax.vmap(lambda key: precision.round_stochastically(-x, key))(keys).astype(jnp.float32)
  assert abs(float((drawn < -1).mean()) - 0.3) < 0.03


def test_values_that_bfloat16_holds_stay():
  values = jnp.asarray(np.random.default_rng(0).normal(size=500), jnp.bfloat16)
  values = values.at[:4].set(jnp.array([0, jnp.inf, -jnp.inf, jnp.nan], jnp.bfloat16))
  out = precision.round_stochastically(values.astype(jnp.float32), jax.random.key(1))
  np.testing.assert_array_equal(out.astype(jnp.float32), values.astype(jnp.float32))


def test_lost_updates_are_counted():
  old = jnp.array([[1.0, 1.0, 1.0], [2.0, 2.0, 2.0]])
  new = jnp.array([[1.0, 1.5, 1.0], [2.0, 2.0, 3.0]])
  change = jnp.array([[0.1, 0.5, 0.0], [0.1, 0.1, 1.0]])
  lost, moved = precision.lost_updates(old, new, change)
  assert (lost, moved) == (3, 5)


def test_what_is_refused():
  precision.check_precision('float32', 'nearest')
  precision.check_precision('bfloat16', 'stochastic')
  precision.check_precision('bfloat16', 'nearest', allow_lost_updates=True)
  with pytest.raises(UserError, match='lose almost every update'):
    precision.check_precision('bfloat16', 'nearest')
  with pytest.raises(UserError, match="'float16'"):
    precision.check_precision('float16', 'nearest')
  with pytest.raises(UserError, match="'up'"):
    precision.check_precision('bfloat16', 'up')


@functools.cache
def tuned(param_dtype, rounding, compute):
  """(losses, mean updates-lost) of 60 steps at 1e-5 from bfloat16 weights of natural size."""
  cfg = common.config(hidden_size=64, intermediate_size=96)
  # Entries near 0.1 have neighbours 5e-4 apart in bfloat16: as in most of a pretrained model,
  # a step of 1e-5 is less than half of that.
  tree = common.params(cfg, size=0.1, dtype=jnp.bfloat16)
  tree = jax.tree.map(lambda x: x.astype(param_dtype), tree)
  hypers = common.hypers(cfg, learning_rate=1e-5, total_steps=STEPS)
  train, fresh = common.make(
    cfg, 'full', tree, [hypers], compute_dtype=compute, param_rounding=rounding
  )
  data = common.batch(common.examples(8, 2), rows=8)
  losses, lost = [], []
  for _ in range(STEPS):
    fresh, metrics = train(None, fresh, data)
    losses.append(float(metrics['loss'][0]))
    lost.append(float(metrics['updates-lost'][0]))
  assert all(x.dtype == param_dtype for x in jax.tree.leaves(fresh.trained))
  assert all(x.dtype == jnp.float32 for x in jax.tree.leaves((fresh.moments.mu, fresh.moments.nu)))
  return np.array(losses), np.mean(lost)


def test_small_updates_arrive():
  want, _ = tuned(jnp.float32, 'nearest', jnp.float32)
  master, master_lost = tuned(jnp.float32, 'nearest', jnp.bfloat16)
  stochastic, _ = tuned(jnp.bfloat16, 'stochastic', jnp.bfloat16)
  gain = want[0] - want[-1]
  assert gain > 0.3
  ends = lambda losses: losses[-5:].mean()
  assert abs(ends(master) - ends(want)) < 0.1 * gain
  assert abs(ends(stochastic) - ends(want)) < 0.1 * gain
  assert master_lost < 0.05


def test_nearest_loses_them():
  want, _ = tuned(jnp.float32, 'nearest', jnp.float32)
  nearest, lost = tuned(jnp.bfloat16, 'nearest', jnp.bfloat16)
  assert lost > 0.9
  assert nearest[0] - nearest[-5:].mean() < 0.2 * (want[0] - want[-5:].mean())

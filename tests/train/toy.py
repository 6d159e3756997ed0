"""A run without a model: quick enough to be killed and resumed many times.

As a program it is the victim: `python -m tests.train.toy WORKDIR`.
"""

import sys

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from sft_jax.train import loop
from sft_jax.train.checkpoint import Checkpoints
from sft_jax.utils import io, log

TOTAL = 12
SNAPSHOTS = {0: 0.0, 4: 1.0, 8: 2.0, 12: 3.0}


def init(size: int = 64):
  """State of the toy: parameters, momentum, step."""
  w = jnp.sin(jnp.arange(size, dtype=jnp.float32))
  return {'step': jnp.int32(0), 'trained': {'w': w}, 'moments': {'w': jnp.zeros_like(w)}}


def batch(step: int, size: int = 64):
  """Batch of a step index: a pure function of it."""
  return {'x': np.random.default_rng(step).normal(size=size).astype(np.float32)}


class Step:
  """Momentum on a quadratic; donates its state as the real step does."""

  def __init__(self, fail_at: int = -1):
    self.traces = 0
    self._fail_at = fail_at
    self._jitted = jax.jit(self._step, donate_argnums=1)

  def __call__(self, base, state, batch):
    return self._jitted(base, state, batch)

  def _step(self, base, state, batch):
    self.traces += 1
    del base
    gradient = state['trained']['w'] - batch['x']
    moment = 0.9 * state['moments']['w'] + gradient
    w = state['trained']['w'] - 0.01 * moment
    bad = state['step'] == self._fail_at
    metrics = {
      'loss': jnp.where(bad, jnp.nan, (gradient**2).mean())[None],
      'tokens': jnp.full((1,), 64.0),
      'supervised': jnp.full((1,), 32.0),
      'nonfinite': bad[None],
    }
    return {'step': state['step'] + 1, 'trained': {'w': w}, 'moments': {'w': moment}}, metrics


class Stop(loop.StopSignal):
  """Asks for a stop after being looked at `after` times."""

  def __init__(self, after: int):
    super().__init__()
    self._after = after

  @property
  def requested(self) -> bool:
    self._after -= 1
    self.reason = 'test' if self._after < 0 else ''
    return bool(self.reason)


def abstract(state):
  """Shapes and shardings of a state."""
  return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)


def run(workdir, stop=None, *, size=64, save_every=3, step=None, on_step=lambda step: None, **rest):
  """Runs the toy in `workdir` to its end, continuing what is there; returns the last state."""
  step = step or Step()
  state, start = init(size), 0
  checkpoints = Checkpoints(workdir, 'toy', save_every_steps=save_every, weights='best')
  run_log = log.RunLog(workdir, tensorboard=False)
  try:
    if checkpoints.latest() is not None:
      start, state = checkpoints.restore(abstract(state))

    def snapshot(state, step):
      score = float(abs(state['trained']['w']).mean())
      checkpoints.save_weights(step, state['trained'], score)
      io.upsert_jsonl(
        epath.Path(workdir) / 'rows.jsonl',
        [{'epoch': SNAPSHOTS[step], 'score': score}],
        key=('epoch',),
      )

    def batches(index):
      on_step(index)
      return batch(index, size)

    with stop or loop.StopSignal() as stop:
      return loop.train(
        step,
        None,
        state,
        batches,
        start_step=start,
        total_steps=TOTAL,
        logs=[run_log],
        progress=log.Progress(TOTAL, quiet=True),
        checkpoints=checkpoints,
        stop=stop,
        snapshot_steps=SNAPSHOTS,
        on_snapshot=snapshot,
        traces=lambda: step.traces,
        **rest,
      )
  finally:
    checkpoints.close()
    run_log.close()


if __name__ == '__main__':
  # Large enough, and saved often enough, that a save is nearly always under way.
  run(sys.argv[1], size=1 << 18, save_every=1, on_step=lambda step: print(step, flush=True))

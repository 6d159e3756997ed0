"""Caches that grow and let slots go while texts are being written."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from sft_jax.evals import caches, generation
from tests.evals.test_generation import ours, theirs
from tests.evals.toy import subject
from tests.train import common


def uneven():
  """Many short texts and three long ones, which outgrow the first caches and all but the last."""
  rng = np.random.default_rng(3)
  lengths = [3] * 14 + [30, 160, 150, 9, 3, 3]
  return [
    generation.Request(rng.integers(0, common.VOCAB, 5 + i).tolist(), n)
    for i, n in enumerate(lengths)
  ]


@pytest.fixture
def sizes(monkeypatch):
  """Slots and room of the caches at each resizing."""
  seen = []
  resize = caches.Caches._resize

  def spy(self, chosen):
    seen.append((self.count, self.room))
    resize(self, chosen)

  monkeypatch.setattr(caches.Caches, '_resize', spy)
  return seen


def test_texts_do_not_notice(sizes):
  requests = uneven()
  # One wave: sizes in between would have caches of their own.
  got = ours(None, requests=[*requests])
  assert got == [theirs([r.prompt], max_new=r.max_new)[0] for r in requests]
  assert max(room for _, room in sizes) == 256, 'texts outgrew their room'


def test_idle_slots_are_let_go(sizes):
  requests = uneven()
  engine = generation.Engine(subject(), lambda prompt, new: '', ())
  one_wave = [(np.zeros(0, np.int32), list(range(len(requests)))[::-1], 256)]
  engine._waves = lambda given: one_wave
  (outputs,) = engine.generate(requests)
  assert [list(o.ids) for o in outputs] == ours(None, requests=requests)
  assert (8, 128) in sizes and (8, 256) in sizes, 'halved, then grown'


@pytest.mark.parametrize('most', [100, 128, 300, 384, 512, 700])
def test_what_a_cache_grew_from(most):
  held = caches.Caches(subject(), 2, most)
  rooms = [0, held.room]
  for longest in range(1, most + 1, 9):
    held.grow(longest)
    rooms += [held.room] if held.room > rooms[-1] else []
  held.grow(most)
  rooms += [held.room] if held.room > rooms[-1] else []
  assert rooms[-1] == most and [caches.smaller(room) for room in rooms[1:]] == rooms[:-1]


@pytest.mark.parametrize('devices', [1, 8])
def test_slots_of_runs_move_apart(devices):
  """Each run keeps its own slots in its own order; devices keep an equal share."""
  model = dataclasses.replace(subject(devices=devices), runs=3)
  held = caches.Caches(model, 32, 256)
  number = jnp.arange(32, dtype=jnp.float32)
  held.cache = {
    name: jnp.broadcast_to(
      number.reshape(1, 1, -1, 1, 1, 1) + 100 * jnp.arange(model.runs).reshape(1, -1, 1, 1, 1, 1),
      leaf.shape,
    )
    for name, leaf in held.cache.items()
  }
  held.state['seed'] = np.tile(np.arange(32, dtype=np.uint32), (model.runs, 1))
  order = np.stack([np.roll(np.arange(32), -3 * run) for run in range(model.runs)])
  chosen = held.narrow(order.tolist(), 5)
  assert held.count == 8 and (chosen == order[:, :8]).all()
  assert (np.asarray(held.state['seed']) == chosen).all()
  want = chosen + 100 * np.arange(model.runs)[:, None]
  assert (np.asarray(held.cache['k'])[0, :, :, 0, 0, 0] == want).all()
  held.grow(200)
  assert held.cache['k'].shape[-1] == 256 and held.room == 256
  assert (np.asarray(held.cache['v'])[1, :, :, 0, 127, 0] == want).all()
  assert (np.asarray(held.cache['v'])[..., 128:, :] == 0).all(), 'new room is empty'
  assert held.cache['k'].sharding.shard_shape(held.cache['k'].shape)[2] == 8 // devices

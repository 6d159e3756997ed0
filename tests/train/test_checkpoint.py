"""Checkpoints: bit exact, two retentions, whole or absent, one run's only."""

import json
import os
import pathlib
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from sft_jax.parallel import mesh as mesh_lib
from sft_jax.train import weights
from sft_jax.train.checkpoint import Checkpoints
from sft_jax.utils.errors import UserError
from tests.train import toy


@pytest.fixture
def opened(tmp_path):
  """Makes Checkpoints in `tmp_path` and closes them."""
  made = []

  def make(run_id='run', workdir=tmp_path, **kwargs):
    made.append(Checkpoints(workdir, run_id, **kwargs))
    return made[-1]

  yield make
  for checkpoints in made:
    checkpoints.close()


def steps(path):
  return sorted(int(p.name) for p in path.iterdir() if p.name.isdigit())


def awkward_state():
  """Every dtype a state holds, with bit patterns that arithmetic would not keep."""
  bits = np.random.default_rng(0).integers(0, 2**32, 4096, dtype=np.uint32)
  return {
    'f32': jnp.asarray(bits.view(np.float32)),
    'bf16': jax.lax.bitcast_convert_type(jnp.asarray(bits.astype(np.uint16)), jnp.bfloat16),
    'opt': optax.adam(1e-3).init({'w': jnp.full((3,), 1e-42)}),
    'key': jax.random.key_data(jax.random.key(7)),
    'step': jnp.int32(5),
    'failed': jnp.array(False),
  }


def test_bit_exact(opened):
  state = awkward_state()
  checkpoints = opened()
  checkpoints.save(5, state)
  step, got = checkpoints.restore(toy.abstract(state))
  assert step == 5
  assert jax.tree.structure(got) == jax.tree.structure(state)
  for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(state), strict=True):
    assert a.dtype == b.dtype
    assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


def test_state_may_be_donated_while_it_is_saved(opened):
  add = jax.jit(lambda x: x + 1, donate_argnums=0)
  x = add(jnp.zeros((1 << 20,)))
  checkpoints = opened(keep=4)
  for step in range(1, 5):
    checkpoints.save(step, {'x': x})
    x = add(x)
  for step in range(1, 5):
    _, got = checkpoints.restore(toy.abstract({'x': x}), step)
    np.testing.assert_array_equal(got['x'], step)


def test_wait_means_on_disk(opened, tmp_path):
  checkpoints = opened()
  checkpoints.save(1, {'x': jnp.zeros((1 << 22,))}, wait=True)
  assert [p.name for p in (tmp_path / 'checkpoints').iterdir()] == ['1']
  meta = json.loads((tmp_path / 'checkpoints' / '1' / '_CHECKPOINT_METADATA').read_text())
  assert meta['commit_timestamp_nsecs']


def test_restores_onto_another_mesh(opened):
  x = jnp.arange(64.0).reshape(8, 8)
  one = mesh_lib.make_mesh(devices=jax.devices()[:1])
  saved = jax.device_put(x, NamedSharding(one, PartitionSpec()))
  checkpoints = opened()
  checkpoints.save(1, {'x': saved})
  eight = NamedSharding(mesh_lib.make_mesh(fsdp=4, tensor=2), PartitionSpec('fsdp', 'tensor'))
  _, got = checkpoints.restore({'x': jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=eight)})
  assert got['x'].sharding == eight and len(got['x'].addressable_shards) == 8
  np.testing.assert_array_equal(got['x'], x)


@pytest.mark.parametrize('keep', [1, 2])
def test_retention_of_state(opened, tmp_path, keep):
  """The newest may turn out to be bad, so it does not count."""
  checkpoints = opened(keep=keep)
  for step in (2, 4, 6, 8):
    checkpoints.save(step, toy.init(), wait=True)
    assert len(steps(tmp_path / 'checkpoints')) <= keep + 1
  assert steps(tmp_path / 'checkpoints') == [2, 4, 6, 8][-keep - 1 :]
  assert checkpoints.latest() == 8
  checkpoints.delete_state()
  assert steps(tmp_path / 'checkpoints') == [] and checkpoints.latest() is None


@pytest.fixture(params=['one file', 'orbax'])
def form(request, monkeypatch):
  """Small weights are one file; large ones are written by Orbax."""
  if request.param == 'orbax':
    monkeypatch.setattr(weights, 'SMALL_BYTES', 0)
  return request.param


@pytest.mark.parametrize(
  'policy, kept', [('all', [1, 2, 3, 4]), ('last', [4]), ('best', [2, 4]), ('none', [])]
)
def test_retention_of_weights(opened, tmp_path, policy, kept, form):
  checkpoints = opened(weights=policy)
  for step, score in zip((1, 2, 3, 4), (3.0, 1.0, float('nan'), 2.0), strict=True):
    checkpoints.save_weights(step, {'w': jnp.full((4,), float(step))}, score)
    # A run that resumes saves again.
    checkpoints.save_weights(step, {'w': jnp.full((4,), float(step))}, score)
  checkpoints.save(4, toy.init())
  checkpoints.wait()
  assert checkpoints.weights_steps() == kept
  assert steps(tmp_path / 'checkpoints') == [4]
  if policy == 'none':
    assert checkpoints.best_step() is None
  else:
    assert checkpoints.best_step() == (4 if policy == 'last' else 2)
    got = checkpoints.restore_weights(4, {'w': jax.ShapeDtypeStruct((4,), jnp.float32)})
    np.testing.assert_array_equal(got['w'], 4.0)
  with pytest.raises(UserError, match='no weights of step 99'):
    checkpoints.restore_weights(99, {})


def test_best_survives_reopening(opened, form):
  first = opened(weights='best')
  for step, score in ((1, 1.0), (2, 2.0)):
    first.save_weights(step, {'w': jnp.ones(2)}, score)
  first.close()
  second = opened(weights='best')
  second.save_weights(3, {'w': jnp.ones(2)}, 3.0)
  second.wait()
  assert second.weights_steps() == [1, 3] and second.best_step() == 1


def test_weights_without_scores_keep_the_last(opened, form):
  checkpoints = opened(weights='best')
  for step in (1, 2):
    checkpoints.save_weights(step, {'w': jnp.ones(2)})
  checkpoints.wait()
  assert checkpoints.weights_steps() == [2] and checkpoints.best_step() is None


def test_small_weights_are_bit_exact_on_any_mesh_and_the_same_file_each_time(opened, tmp_path):
  state = {k: v for k, v in awkward_state().items() if k not in ('opt', 'step', 'failed')}
  one = opened(workdir=tmp_path / 'one')
  one.save_weights(3, state, 1.0)
  assert [p.name for p in (tmp_path / 'one' / 'weights' / '3').iterdir()] == ['weights.safetensors']
  eight = NamedSharding(mesh_lib.make_mesh(fsdp=8), PartitionSpec('fsdp'))
  spread = {'f32': eight, 'bf16': eight}
  abstract = {
    k: jax.ShapeDtypeStruct(v.shape, v.dtype, sharding=spread.get(k, v.sharding))
    for k, v in state.items()
  }
  got = one.restore_weights(3, abstract)
  assert got['f32'].sharding == eight
  for name, leaf in state.items():
    assert got[name].dtype == leaf.dtype
    assert np.asarray(got[name]).tobytes() == np.asarray(leaf).tobytes()
  for number in range(8):
    again = opened(workdir=tmp_path / f'again-{number}')
    again.save_weights(3, got, 1.0)
    file = 'weights/3/weights.safetensors'
    same = (tmp_path / 'one' / file, tmp_path / f'again-{number}' / file)
    assert same[0].read_bytes() == same[1].read_bytes()


@pytest.mark.parametrize('kind', ['torn', 'changed', 'other names', 'other shape'])
def test_small_weights_that_are_not_whole_are_not_used(opened, tmp_path, kind):
  first = opened(weights='all')
  for step in (1, 2):
    first.save_weights(step, {'w': jnp.arange(4.0)})
  file = tmp_path / 'weights' / '2' / 'weights.safetensors'
  abstract = {'w': jax.ShapeDtypeStruct((4,), jnp.float32)}
  raw = file.read_bytes()
  if kind == 'torn':
    file.write_bytes(raw[:20])
    assert opened(weights='all').weights_steps() == [1]
    return
  if kind == 'changed':
    file.write_bytes(raw[:-1] + b'x')
  elif kind == 'other names':
    abstract = {'v': abstract['w']}
  else:
    abstract = {'w': jax.ShapeDtypeStruct((5,), jnp.float32)}
  with pytest.raises(UserError, match='cannot be read'):
    opened(weights='all').restore_weights(2, abstract)


def test_weights_of_an_earlier_attempt_are_removed(opened, form):
  first = opened(weights='all')
  for step in (1, 2):
    first.save_weights(step, {'w': jnp.ones(2)}, 1.0)
  first.close()
  second = opened(weights='all')
  second.weights.delete()
  assert second.weights_steps() == [] and second.best_step() is None
  second.save_weights(1, {'w': jnp.ones(2)}, 2.0)
  second.wait()
  assert second.weights_steps() == [1]


@pytest.mark.parametrize('kind', ['empty', 'no data', 'not committed', 'temporary'])
def test_partial_checkpoint_is_never_read(opened, tmp_path, kind):
  first = opened(keep=2)
  first.save(3, toy.init(), wait=True)
  first.close()
  place = tmp_path / 'checkpoints'
  if kind == 'empty':
    (place / '6').mkdir()
  elif kind == 'temporary':
    shutil.copytree(place / '3', place / '6.orbax-checkpoint-tmp-1')
  else:
    shutil.copytree(place / '3', place / '6')
    meta = json.loads((place / '6' / 'meta' / 'metadata').read_text()) | {'step': 6}
    (place / '6' / 'meta' / 'metadata').write_text(json.dumps(meta))
  if kind == 'no data':
    shutil.rmtree(place / '6' / 'tree')
  if kind == 'not committed':
    path = place / '6' / '_CHECKPOINT_METADATA'
    path.write_text(json.dumps(json.loads(path.read_text()) | {'commit_timestamp_nsecs': None}))
  again = opened(keep=2)
  assert again.latest() == 3
  step, _ = again.restore(toy.abstract(toy.init()))
  assert step == 3
  # Its step can be saved in its place.
  again.save(6, toy.init(), wait=True)
  assert steps(place) == [3, 6]


def test_damaged_checkpoint_falls_back_to_the_one_before(opened, tmp_path):
  first = opened(keep=2)
  for step in (3, 6):
    first.save(step, toy.init(), wait=True)
  first.close()
  damage(tmp_path / 'checkpoints' / '6')
  again = opened(keep=2)
  with pytest.raises(UserError, match='checkpoint cannot be read'):
    again.restore(toy.abstract(toy.init()), step=6)
  step, _ = again.restore(toy.abstract(toy.init()))
  assert step == 3


def damage(checkpoint):
  for file in (checkpoint / 'tree').rglob('*'):
    if file.is_file() and 'd' in file.parts:
      file.write_bytes(file.read_bytes()[:5])


def test_after_falling_back_the_lost_steps_are_saved_again(opened, tmp_path):
  first = opened(keep=2)
  for step in (3, 6, 9):
    first.save(step, toy.init(), wait=True)
  first.close()
  for step in (6, 9):
    damage(tmp_path / 'checkpoints' / str(step))
  again = opened(keep=2)
  assert again.restore(toy.abstract(toy.init()))[0] == 3
  assert steps(tmp_path / 'checkpoints') == [3]
  later = jax.tree.map(lambda x: x + 1, toy.init())
  again.save(5, later, wait=True)
  again.close()
  step, state = opened(keep=2).restore(toy.abstract(toy.init()))
  assert step == 5
  np.testing.assert_array_equal(state['trained']['w'], later['trained']['w'])


def test_a_save_that_was_not_made_is_an_error(opened):
  checkpoints = opened()
  checkpoints.save(6, toy.init(), wait=True)
  with pytest.raises(RuntimeError, match='did not save step 3'):
    checkpoints.save(3, toy.init())


def test_a_state_that_proved_bad_is_taken_back(opened, tmp_path):
  first = opened()
  for step in (2, 4):
    first.save(step, toy.init())
  assert first.reject(4) == 2 and steps(tmp_path / 'checkpoints') == [2]
  assert first.reject(2) is None and steps(tmp_path / 'checkpoints') == []
  first.save(2, toy.init(), wait=True)
  first.close()
  # Of an earlier process and the only one: it may have been good then.
  assert opened().reject(2) == 2


def test_brackets_in_the_path(opened, tmp_path, form):
  workdir = tmp_path / 'x[lr=1e-4]'
  first = opened(workdir=workdir, weights='best')
  for step, score in ((1, 1.0), (2, 2.0)):
    first.save_weights(step, {'w': jnp.ones(2)}, score)
  first.save(2, toy.init(), wait=True)
  first.close()
  (workdir / 'checkpoints' / '6').mkdir()
  second = opened(workdir=workdir, weights='best')
  assert second.best_step() == 1 and second.latest() == 2
  assert not (workdir / 'checkpoints' / '6').exists()


def test_read_only_changes_nothing(opened, tmp_path, form):
  """Beside a run at work: what is being written stays, and is not read."""
  first = opened(weights='all')
  first.save_weights(2, {'w': jnp.ones(2)}, 1.0)
  first.save(2, toy.init(), wait=True)
  first.close()
  for kind in ('checkpoints', 'weights'):
    (tmp_path / kind / '6').mkdir()
    (tmp_path / kind / '4.orbax-checkpoint-tmp-7').mkdir()
  before = sorted(tmp_path.rglob('*'))
  second = opened(weights='none', read_only=True)
  assert second.weights_steps() == [2] and second.best_step() == 2
  got = second.restore_weights(2, {'w': jax.ShapeDtypeStruct((2,), jnp.float32)})
  np.testing.assert_array_equal(got['w'], 1.0)
  second.close()
  assert sorted(tmp_path.rglob('*')) == before


def test_read_only_where_nothing_is(opened, tmp_path):
  assert opened(workdir=tmp_path / 'new', read_only=True).weights_steps() == []
  assert not (tmp_path / 'new').exists()


def test_another_shape_is_refused(opened):
  checkpoints = opened()
  checkpoints.save(1, toy.init(), wait=True)
  with pytest.raises(UserError, match='cannot be read'):
    checkpoints.restore({'other': jax.ShapeDtypeStruct((2,), jnp.float32)})


def test_another_run_is_refused(opened):
  first = opened('aaa')
  first.save(1, toy.init(), wait=True)
  first.close()
  with pytest.raises(UserError, match='holds run aaa, not bbb'):
    opened('bbb')


def test_nothing_to_restore(opened):
  with pytest.raises(UserError, match='no checkpoint'):
    opened().restore({})


def test_bad_policy(opened):
  with pytest.raises(UserError, match=r'config\.checkpoint\.keep_weights'):
    opened(weights='some')


def test_what_is_not_ours_is_left_alone(opened, tmp_path):
  (tmp_path / 'checkpoints' / 'mine').mkdir(parents=True)
  opened()
  assert (tmp_path / 'checkpoints' / 'mine').is_dir()


def test_due(opened, monkeypatch):
  checkpoints = opened(save_every_steps=3)
  assert [step for step in range(1, 8) if checkpoints.due(step)] == [3, 6]
  assert not checkpoints.overdue()
  timed = opened(save_every_seconds=10.0)
  assert not timed.due(3) and not timed.overdue()
  now = __import__('time').monotonic()
  monkeypatch.setattr('time.monotonic', lambda: now + 11)
  assert timed.overdue()


@pytest.mark.skipif(
  not sys.platform.startswith('linux') or os.getuid() != 0,
  reason='mounts a small tmpfs: needs root',
)
def test_full_disk(tmp_path):
  code = (
    'import sys, jax.numpy as jnp\n'
    'from sft_jax.train.checkpoint import Checkpoints\n'
    'from sft_jax.utils.errors import UserError\n'
    'import numpy as np\n'
    'c = Checkpoints(sys.argv[1], "run")\n'
    'c.save(1, {"x": jnp.ones(3)}, wait=True)\n'
    'noise = np.random.default_rng(0).normal(size=1 << 20)\n'
    'try:\n'
    '  c.save(2, {"x": jnp.asarray(noise)}, wait=True)\n'
    'except UserError as e:\n'
    '  print(e)\n'
    'c = Checkpoints(sys.argv[1], "run")\n'
    'print(c.latest())\n'
  )
  mount = f'mount -t tmpfs -o size=1m tmpfs {tmp_path} && exec "$@"'
  done = subprocess.run(
    ['unshare', '-m', 'sh', '-c', mount, 'sh', sys.executable, '-c', code, str(tmp_path)],
    cwd=pathlib.Path(__file__).parents[2],
    capture_output=True,
    text=True,
    check=False,
  )
  if 'unshare' in done.stderr or 'mount' in done.stderr.splitlines()[:1]:
    pytest.skip(f'cannot mount here: {done.stderr[:100]}')
  first, latest = done.stdout.splitlines()
  assert first.startswith('the disk is full (') and str(tmp_path) in first, done.stderr
  assert latest == '1'

"""The loop: whatever stops it, going on gives the same bits as never having stopped."""

import json
import os
import random
import signal
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sft_jax.train import loop
from sft_jax.train.checkpoint import Checkpoints
from sft_jax.utils import log
from sft_jax.utils.errors import Interrupted, UserError
from tests.conftest import REPOSITORY
from tests.train import toy


def assert_equal(got, want):
  jax.tree.map(np.testing.assert_array_equal, got, want)


def losses(workdir):
  lines = (workdir / 'metrics.jsonl').read_text().splitlines()
  return [(row['step'], row['loss']) for row in map(json.loads, lines)]


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
  """An uninterrupted run: its workdir and last state."""
  workdir = tmp_path_factory.mktemp('whole')
  return workdir, jax.device_get(toy.run(workdir))


def test_metrics_of_every_step(whole):
  workdir, _ = whole
  rows = [json.loads(line) for line in (workdir / 'metrics.jsonl').read_text().splitlines()]
  assert [row['step'] for row in rows] == list(range(1, toy.TOTAL + 1))
  state = jax.device_get(toy.init())
  want = [float(((state['trained']['w'] - toy.batch(0)['x']) ** 2).mean())]
  assert rows[0]['loss'] == pytest.approx(want[0], rel=1e-6)
  assert rows[-1]['tokens-per-s'] == pytest.approx(2 * rows[-1]['supervised-tokens-per-s'])
  assert rows[-1]['host-bytes-peak'] >= rows[-1]['host-bytes'] > 1e6


def test_metrics_are_fetched_one_step_late():
  events = []

  class Late:
    def __init__(self, step):
      self.step = step

    def __array__(self, dtype=None, copy=None):
      events.append(f'read {self.step}')
      return np.zeros(1)

  def step_fn(base, state, batch):
    events.append(f'dispatch {state + 1}')
    late = {name: Late(state + 1) for name in ('loss',)}
    return state + 1, {'tokens': 1.0, 'supervised': 1.0, 'nonfinite': False, **late}

  class Quiet:
    def __getattr__(self, name):
      return lambda *args, **kwargs: {} if name == 'update' else None

  class NoSaves(Quiet):
    due = overdue = lambda *args: False

  loop.train(
    step_fn,
    None,
    0,
    lambda step: {},
    start_step=0,
    total_steps=3,
    logs=[Quiet()],
    progress=Quiet(),
    checkpoints=NoSaves(),
    stop=loop.StopSignal(),
  )
  order = [event for i, event in enumerate(events) if event not in events[:i]]
  assert order == ['dispatch 1', 'dispatch 2', 'read 1', 'dispatch 3', 'read 2', 'read 3']


@pytest.mark.parametrize('after', range(toy.TOTAL))
def test_stop_at_each_step_and_resume(whole, tmp_path, after):
  reference, want = whole
  with pytest.raises(Interrupted, match=f'after step {after}'):
    toy.run(tmp_path, toy.Stop(after))
  assert_equal(toy.run(tmp_path), want)
  assert (tmp_path / 'rows.jsonl').read_bytes() == (reference / 'rows.jsonl').read_bytes()
  assert losses(tmp_path) == losses(reference)


def test_metrics_after_the_checkpoint_are_written_again(whole, tmp_path):
  reference, _ = whole

  def die(step):
    if step == 5:
      raise OSError('as a kill would: two steps after the checkpoint of step 3')

  with pytest.raises(OSError, match='kill'):
    toy.run(tmp_path, on_step=die)
  assert len(losses(tmp_path)) == 4
  toy.run(tmp_path)
  assert losses(tmp_path) == losses(reference)


def test_a_finished_run_stays_as_it_is(whole, tmp_path):
  _, want = whole
  toy.run(tmp_path)
  seen = []
  assert_equal(toy.run(tmp_path, on_step=seen.append), want)
  assert seen == []


def victim(workdir):
  return subprocess.Popen(
    [sys.executable, '-m', 'tests.train.toy', str(workdir)],
    cwd=REPOSITORY,
    stdout=subprocess.PIPE,
    stderr=subprocess.DEVNULL,
    text=True,
  )


def test_kill_nine_at_random_moments(tmp_path):
  big = 1 << 18
  reference = tmp_path / 'whole'
  want = jax.device_get(toy.run(reference, size=big))
  rng = random.Random(0)
  steps_at_kill, torn = [], 0
  for _ in range(5):
    process = victim(tmp_path / 'killed')
    # After a random step of this life, then a moment that may fall into a save or a snapshot.
    last = 0
    for _ in range(rng.randrange(2, 5)):
      last = int(process.stdout.readline() or toy.TOTAL)
    time.sleep(rng.random() * 0.05)
    process.kill()
    process.communicate()
    steps_at_kill.append(last)
    names = os.listdir(tmp_path / 'killed' / 'checkpoints')
    torn += sum(not name.isdigit() for name in names)
  assert steps_at_kill == sorted(steps_at_kill), 'it did not continue'
  print(f'killed at steps {steps_at_kill}; {torn} saves were torn')
  assert_equal(jax.device_get(toy.run(tmp_path / 'killed', size=big, save_every=1)), want)
  for name in ('rows.jsonl',):
    assert (tmp_path / 'killed' / name).read_bytes() == (reference / name).read_bytes()
  assert losses(tmp_path / 'killed') == losses(reference)
  # What is on disk, moments too, is what the uninterrupted run has on disk.
  stored = []
  for workdir in (reference, tmp_path / 'killed'):
    checkpoints = Checkpoints(workdir, 'toy', weights='best')
    stored.append(checkpoints.restore(toy.abstract(toy.init(big))))
    stored[-1] += (checkpoints.weights_steps(), checkpoints.best_step())
    checkpoints.close()
  assert stored[0][0] == stored[1][0] == toy.TOTAL
  assert_equal(stored[0][1], stored[1][1])
  assert stored[0][2:] == stored[1][2:]


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT])
def test_signal_saves_and_interrupts(whole, tmp_path, number):
  _, want = whole
  before = signal.getsignal(number)

  def on_step(step):
    if step == 4:
      os.kill(os.getpid(), number)

  with pytest.raises(Interrupted, match=f'{number.name}, after step 5'):
    toy.run(tmp_path, save_every=0, on_step=on_step)
  assert signal.getsignal(number) == before
  assert sorted(p.name for p in (tmp_path / 'checkpoints').iterdir()) == ['4', '5']
  assert_equal(toy.run(tmp_path), want)


def test_second_sigint_kills(tmp_path):
  code = (
    'import os, signal\n'
    'from sft_jax.train import loop\n'
    'with loop.StopSignal() as stop:\n'
    '  os.kill(os.getpid(), signal.SIGINT)\n'
    '  assert stop.requested\n'
    '  print("alive", flush=True)\n'
    '  os.kill(os.getpid(), signal.SIGINT)\n'
    '  print("still alive")\n'
  )
  done = subprocess.run(
    [sys.executable, '-c', code], cwd=REPOSITORY, capture_output=True, text=True, check=False
  )
  assert done.stdout == 'alive\n' and done.returncode == -signal.SIGINT


def test_time_limit(tmp_path):
  with pytest.raises(Interrupted, match=r'time limit of 0.01 s'):
    toy.run(tmp_path, loop.StopSignal(max_seconds=0.01), on_step=lambda step: time.sleep(0.02))
  assert loop.StopSignal(max_seconds=0).requested is False


def test_time_limit_waits_for_progress():
  """Or a run whose start takes longer than the limit would be started again for ever."""
  stop = loop.StopSignal(max_seconds=1e-6)
  time.sleep(1e-3)
  assert not stop.requested
  stop.progress()
  assert stop.requested and 'time limit' in stop.reason


def test_the_end_of_a_terminal_asks_for_a_stop_unless_it_is_ignored():
  before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
  try:
    with loop.StopSignal() as stop:
      os.kill(os.getpid(), signal.SIGHUP)
      assert not stop.requested
    nothing = lambda *_: None
    signal.signal(signal.SIGHUP, nothing)
    with loop.StopSignal() as stop:
      os.kill(os.getpid(), signal.SIGHUP)
      assert stop.requested and stop.reason == 'SIGHUP'
    assert signal.getsignal(signal.SIGHUP) == nothing
  finally:
    signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT])
def test_a_signal_before_anything_is_to_be_saved_ends_it_at_once(number):
  nothing = pytest.raises(Interrupted, match=f'{number.name}, with nothing to be saved')
  with loop.StopSignal() as stop, nothing, stop.at_once():
    os.kill(os.getpid(), number)
    time.sleep(10)
  with loop.StopSignal() as stop:
    with stop.at_once():
      pass
    os.kill(os.getpid(), number)
    assert stop.requested, 'outside of it, it only asks'


def test_state_is_saved_before_a_snapshot_is_evaluated(tmp_path, monkeypatch):
  """A kill in the middle of a long evaluation costs no training."""

  def die(self, step, *rest):
    if step == 8:
      self.wait()
      raise OSError('as a kill would')

  with monkeypatch.context() as patch:
    patch.setattr(Checkpoints, 'save_weights', die)
    with pytest.raises(OSError, match='kill'):
      toy.run(tmp_path, save_every=0)
  seen = []
  toy.run(tmp_path, on_step=seen.append)
  assert seen[0] == 8


def test_interrupted_snapshot_saves_first(whole, tmp_path, monkeypatch):
  _, want = whole
  original = Checkpoints.save_weights

  def save_weights(self, step, *rest):
    if step == 8:
      raise Interrupted('in the middle of an evaluation')
    original(self, step, *rest)

  with monkeypatch.context() as patch:
    patch.setattr(Checkpoints, 'save_weights', save_weights)
    with pytest.raises(Interrupted, match='evaluation'):
      toy.run(tmp_path, save_every=0)
  assert sorted(p.name for p in (tmp_path / 'checkpoints').iterdir()) == ['4', '8']
  seen = []
  assert_equal(toy.run(tmp_path, on_step=seen.append), want)
  assert seen[0] == 8


def test_nonfinite_stops_and_keeps_the_last_good_checkpoint(tmp_path):
  records = lambda index: [f'data.jsonl:{10 * index + i}' for i in range(10)]
  with pytest.raises(UserError) as error:
    # Step index 8 is step number 9, at which a checkpoint is due.
    toy.run(tmp_path, step=toy.Step(fail_at=8), records=records)
  message = str(error.value)
  assert 'not finite at step 9' in message
  assert 'data.jsonl:80' in message and 'data.jsonl:87 and 2 more' in message
  assert 'checkpoint of step 6 is kept' in message
  assert sorted(p.name for p in (tmp_path / 'checkpoints').iterdir()) == ['6']
  assert [row[0] for row in losses(tmp_path)] == list(range(1, 9))


@pytest.mark.parametrize(('save_every', 'kept'), [(1, ['7']), (9, ['4'])])
def test_a_state_whose_loss_is_not_finite_is_not_kept(tmp_path, save_every, kept):
  """Step 9's loss is that of the state after step 8, which was saved before it was known."""
  with pytest.raises(UserError, match=f'checkpoint of step {kept[0]} is kept'):
    toy.run(tmp_path, step=toy.Step(fail_at=8), save_every=save_every)
  assert sorted(p.name for p in (tmp_path / 'checkpoints').iterdir()) == kept
  seen = []
  with pytest.raises(UserError, match='not finite at step 9'):
    toy.run(tmp_path, step=toy.Step(fail_at=8), save_every=0, on_step=seen.append)
  assert seen[0] == int(kept[0]), 'it goes on from a good state, to the same end'


def test_a_finite_loss_clears_the_state_before_its_step(tmp_path):
  """Only the update of step 9 overflowed."""

  class Overflow(toy.Step):
    def _step(self, base, state, batch):
      state, metrics = super()._step(base, state, batch)
      return state, {**metrics, 'nonfinite': (state['step'] == 9)[None]}

  with pytest.raises(UserError, match='checkpoint of step 8 is kept'):
    toy.run(tmp_path, step=Overflow())


def test_nothing_good_to_keep(tmp_path):
  with pytest.raises(UserError, match='no good state was saved before'):
    toy.run(tmp_path, step=toy.Step(fail_at=1), save_every=1)
  assert list((tmp_path / 'checkpoints').iterdir()) == []


def test_out_of_device_memory(tmp_path):
  def step(base, state, batch):
    raise jax.errors.JaxRuntimeError('RESOURCE_EXHAUSTED: Out of memory allocating 12345 bytes.')

  step.traces = 0
  with pytest.raises(UserError, match='the device has too little memory') as e:
    toy.run(tmp_path, step=step)
  for key in ('train.rows_per_micro', 'train.remat', 'train.max_length', 'mesh.fsdp'):
    assert f'config.{key}' in e.value.how
  with pytest.raises(jax.errors.JaxRuntimeError, match='INTERNAL'), loop.explain_memory('', ''):
    raise jax.errors.JaxRuntimeError('INTERNAL: something else')


def test_a_guard_is_asked_before_anything_is_saved(tmp_path):
  def guard():
    if len(seen) == 5:
      raise UserError('lost')

  seen = []
  with pytest.raises(UserError, match='lost'):
    toy.run(tmp_path, save_every=5, on_step=seen.append, guard=guard)
  assert sorted(p.name for p in (tmp_path / 'checkpoints').iterdir()) == ['4']


def test_nonfinite_may_be_handled(tmp_path):
  seen = []
  toy.run(
    tmp_path,
    step=toy.Step(fail_at=4),
    on_nonfinite=lambda step, runs: seen.append((step, runs)),
  )
  assert seen == [(5, [0])]


def test_a_second_trace_is_refused_by_name(tmp_path):
  step = toy.Step()
  # The same step object meets another shape: what a ragged last batch would do.
  step(None, toy.init(32), toy.batch(0, 32))
  with pytest.raises(RuntimeError, match='compiled again'):
    toy.run(tmp_path, step=step)


def test_the_cause_of_a_second_trace_is_named(tmp_path, monkeypatch):
  original = toy.batch

  def ragged(step, size=64):
    return original(step, 1 if step == 2 else size)

  monkeypatch.setattr(toy, 'batch', ragged)
  with (
    pytest.raises(RuntimeError, match=r"\['batch'\]\['x'\] was float32\[64\].* now float32\[1\]"),
    jax.numpy_rank_promotion('allow'),
  ):
    toy.run(tmp_path)


class Two(toy.Step):
  """Two runs, of which the second has three times the loss and may fail."""

  def __init__(self, fail_second_at=-1):
    super().__init__()
    self._fail_second_at = fail_second_at

  def _step(self, base, state, batch):
    step = state['step']
    state, metrics = super()._step(base, state, batch)
    metrics = {k: jnp.concatenate([v, 3 * v]) for k, v in metrics.items()}
    bad = jnp.array([False, True]) & (step == self._fail_second_at)
    return state, metrics | {'nonfinite': bad}


def test_metrics_of_several_runs_go_to_their_own_logs(tmp_path, monkeypatch):
  logs = [log.RunLog(tmp_path / name, tensorboard=False) for name in 'ab']
  run_loop, seen = loop.train, []
  monkeypatch.setattr(loop, 'train', lambda *a, **k: run_loop(*a, **{**k, 'logs': logs}))

  def failed(step, runs):
    seen.append((step, runs))
    logs[1] = None

  toy.run(tmp_path / 'w', step=Two(fail_second_at=4), on_nonfinite=failed)
  rows = [
    [json.loads(line) for line in (tmp_path / name / 'metrics.jsonl').read_text().splitlines()]
    for name in 'ab'
  ]
  assert [len(one) for one in rows] == [toy.TOTAL, 4], 'a failed run is told of no more'
  assert rows[1][0]['loss'] == pytest.approx(3 * rows[0][0]['loss'])
  assert (rows[0][0]['tokens'], rows[1][0]['tokens']) == (64, 192)
  assert (rows[0][0]['runs'], rows[0][-1]['runs']) == (2, 1)
  assert seen == [(5, [1])]


def test_the_loop_ends_when_no_run_is_left(tmp_path, monkeypatch):
  logs = [log.RunLog(tmp_path, tensorboard=False)]
  run_loop, steps = loop.train, []
  monkeypatch.setattr(loop, 'train', lambda *a, **k: run_loop(*a, **{**k, 'logs': logs}))
  failed = lambda step, runs: logs.__setitem__(0, None)
  toy.run(tmp_path, step=toy.Step(fail_at=4), on_nonfinite=failed, on_step=steps.append)
  assert steps == [0, 1, 2, 3, 4, 5], 'metrics are fetched one step late'


def test_an_evaluation_that_is_stopped_saves_where_snapshots_do_not(tmp_path, monkeypatch):
  def stopped(self, step, *rest):
    if step == 8:
      raise Interrupted('in the middle of an evaluation')

  monkeypatch.setattr(Checkpoints, 'save_weights', stopped)
  with pytest.raises(Interrupted, match='evaluation'):
    toy.run(tmp_path, save_every=0, save_at_snapshots=False)
  assert sorted(p.name for p in (tmp_path / 'checkpoints').iterdir()) == ['8']

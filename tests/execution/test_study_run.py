"""A study of a tiny model from its config to its tables, by the real runner."""

import csv
import os
import signal

import pytest

from sft_jax.execution import study_run
from sft_jax.parallel import mesh
from sft_jax.study import status
from sft_jax.utils.errors import Interrupted, UserError
from tests import tiny

SWEEP = (
  {'train.learning_rate': 1e-2},
  {'train.learning_rate': 1e-3},
  {'train.method': 'full', 'train.learning_rate': 1e-3},
)
ROWS = 3 * (1 + 2)  # The base, epochs 0.5 and 1, of three runs.


@pytest.fixture
def config(tiny_files, tmp_path):
  model, data = tiny_files
  copy = tmp_path / 'sums.jsonl'
  copy.write_bytes(data.read_bytes())
  changes = {'train__epochs': 1.0, 'log__tensorboard': False, 'checkpoint__every_steps': 0}
  return lambda **more: tiny.config(model, copy, **changes, **more).lock()


def run(config, workdir, sweep=SWEEP):
  with tiny.on_devices():
    return study_run.run(config, sweep, str(workdir))


def table(workdir):
  with open(workdir / 'results.csv', newline='') as f:
    return list(csv.DictReader(f))


def test_from_config_to_tables(config, tmp_path, capsys):
  workdir = tmp_path / 'w'
  study_run.plan_mode(config(), SWEEP, '')
  assert not workdir.exists()
  value = run(config(), workdir)
  assert (value['runs'], value['done'], value['failed']) == (3, 3, 0)
  rows = table(workdir)
  assert len(rows) == ROWS and {row['state'] for row in rows} == {'done'}
  trained = [row for row in rows if row['step'] != '0']
  assert {(row['lora'], row['learning-rate']) for row in trained} == {
    *[('true', '0.01'), ('true', '0.001'), ('false', '0.001')]
  }
  assert len({row['ppl-heldout'] for row in rows if row['step'] == '0'}) == 1
  assert len({row['ppl-heldout'] for row in trained}) == 6
  # The two LoRA runs were one program, and all of it can be told from the files.
  status = study_run.status_mode(config(), str(workdir))
  assert sorted(c['runs'] for c in status['cohorts']) == [1, 2] and status == value

  before = {p: p.stat().st_mtime_ns for p in workdir.glob('runs/**/*')}
  again = run(config(), workdir)
  assert again == value
  assert {p: p.stat().st_mtime_ns for p in workdir.glob('runs/**/*')} == before
  # One run more joins; the others stay as they are.
  more = run(config(), workdir, [*SWEEP, {'lora.rank': 2}])
  assert more['done'] == 4 and len(table(workdir)) == ROWS + 3


def test_a_machine_that_cannot_work_is_no_fault_of_the_runs(config, tmp_path, monkeypatch):
  def refuse(*_):
    raise UserError('this machine has a TPU but jax runs on the CPU')

  monkeypatch.setattr(mesh, 'check_accelerator', refuse)
  with pytest.raises(UserError, match='has a TPU'):
    run(config(), tmp_path / 'w')
  assert not list(tmp_path.glob('w/**/failed.json')) and not (tmp_path / 'w' / 'runs').exists()


def test_a_run_that_cannot_be_done_is_told_and_the_others_go_on(config, tmp_path):
  workdir = tmp_path / 'w'
  sweep = [*SWEEP[:2], {'train.learning_rate': 1e30}]
  with pytest.raises(UserError, match='1 of 3 runs were given up') as e:
    run(config(train__clip_norm=0.0), workdir, sweep)
  assert '\n' not in str(e.value) and str(workdir / 'failures.csv') == e.value.where
  with open(workdir / 'failures.csv', newline='') as f:
    (failure,) = csv.DictReader(f)
  assert 'config.train.learning_rate' in failure['reason'] and failure['kind'] == 'numbers'
  states = [row['state'] for row in table(workdir)]
  assert states.count('done') == 6 and 0 < states.count('failed') <= 3


@pytest.mark.parametrize('quota', [{'study__quota_gb': 1e-5}, {'study__quota_files': 40}])
def test_a_quota_ends_the_work_before_anything_is_written(config, tmp_path, quota):
  workdir = tmp_path / 'w'
  with pytest.raises(UserError, match='are left') as e:
    run(config(**quota), workdir)
  assert 'config.study.quota_gb' in e.value.how and '\n' not in str(e.value)
  assert not list(workdir.glob('runs/*/rows.jsonl'))
  assert run(config(), workdir)['done'] == 3
  lines, told = status.status(workdir)
  assert lines[-1].startswith('takes ') and told['disk']['weights']['bytes'] > 0
  assert all(len(list(done.parent.rglob('*'))) <= 60 for done in workdir.glob('runs/*/done.json'))


def test_data_that_shrank_are_refused_and_nothing_is_lost(config, tmp_path):
  workdir, data = tmp_path / 'w', tmp_path / 'sums.jsonl'
  run(config(), workdir, SWEEP[:1])
  before, whole = (workdir / 'results.csv').read_bytes(), data.read_text()
  data.write_text('\n'.join(whole.splitlines()[:-3]) + '\n')
  for call in (run, lambda config, workdir: study_run.plan_mode(config, SWEEP, str(workdir))):
    with pytest.raises(UserError, match='has changed since the study began'):
      call(config(), workdir)
  assert len(list(workdir.glob('runs/*'))) == 1
  assert (workdir / 'results.csv').read_bytes() == before
  data.write_text(whole)
  assert run(config(), workdir)['done'] == 3


def test_a_signal_while_the_study_is_prepared(config, tmp_path, monkeypatch):
  """Ends it as a signal at work does, so that launchers start it again."""
  monkeypatch.setattr(study_run, 'expand', lambda *args: os.kill(os.getpid(), signal.SIGTERM))
  unhandled = signal.signal(signal.SIGTERM, lambda *args: pytest.fail('it would have died'))
  try:
    with pytest.raises(Interrupted, match='SIGTERM, with nothing to be saved'):
      run(config(), tmp_path / 'w')
  finally:
    signal.signal(signal.SIGTERM, unhandled)


def test_what_is_no_entry_is_told(config, tmp_path):
  with pytest.raises(UserError, match='None is no entry of a sweep'):
    run(config(), tmp_path / 'w', [None])


def test_another_study_in_the_workdir(config, tmp_path):
  workdir = tmp_path / 'w'
  run(config(), workdir, SWEEP[:1])
  for call in (run, lambda *a: study_run.plan_mode(a[0], a[2], str(a[1]))):
    with pytest.raises(UserError, match='this workdir holds another study') as e:
      call(config(eval__seed=3), workdir, SWEEP[:1])
    assert 'eval.seed was 0, is 3' in str(e.value)


@pytest.mark.slow
def test_on_ray(config, tmp_path, monkeypatch):
  """The worker that Ray starts, in this process, gives the same tables."""
  run(config(), tmp_path / 'here')
  told = []

  def spread(work, stop, wanted, workers):
    told.append((wanted, workers, work.left(), work.busy()))
    with tiny.on_devices():
      assert work.worker(False) == {'error': ''}
    assert work.left() == 0

  monkeypatch.setattr(study_run.ray_engine, 'spread', spread)
  run(config(study__engine='ray', study__workers=2), tmp_path / 'ray')
  assert told == [({'CPU': 1.0}, 2, 2, 0)]
  for name in ('results.csv', 'results.parquet'):
    assert (tmp_path / 'ray' / name).read_bytes() == (tmp_path / 'here' / name).read_bytes()

"""A study worked through by one process or several, with every kind of trouble."""

import collections
import json
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from sft_jax.study import table
from sft_jax.study.directory import StudyDirectory
from sft_jax.train import loop
from sft_jax.utils import io, process
from sft_jax.utils.errors import Interrupted, OutOfMemory, UserError
from tests.conftest import REPOSITORY
from tests.study import fake

TABLES = ('results.csv', 'results.parquet', 'failures.csv')


def tables(workdir):
  table.collect(workdir)
  return {name: (pathlib.Path(workdir) / name).read_bytes() for name in TABLES}


def trace(workdir):
  """{(run, step): how often it was done}."""
  lines = (pathlib.Path(workdir) / 'trace').read_text().splitlines()
  return collections.Counter(
    (line['run'], line['step']) for line in (json.loads(text) for text in lines)
  )


def attempts(workdir, cohort):
  return io.read_json(pathlib.Path(workdir) / 'cohorts' / cohort / 'attempts.json')['log']


def failures(workdir):
  return {
    path.parent.name: io.read_json(path)
    for path in pathlib.Path(workdir).glob('runs/*/failed.json')
  }


def test_all_done_once_and_then_nothing(tmp_path):
  study = fake.make([2, 1, 3])
  report = work(study, tmp_path)
  assert (report.done, report.failed, report.left) == (6, {}, 0)
  assert set(trace(tmp_path).values()) == {1} and len(trace(tmp_path)) == 6 * 4

  def never(*_):
    raise AssertionError

  assert work(study, tmp_path, never) == report
  assert not list(tmp_path.glob('cohorts/*/lease.json'))


def work(study, workdir, run=fake.run_cohort, max_seconds=0.0, **options):
  """The engine in this process."""
  with loop.StopSignal(max_seconds) as stop:
    return fake.work(study, workdir, stop, run, **options)


def start(study, workdir, **options):
  """A process that works on the study, a session of its own."""
  file = fake.dump(study, workdir.parent / f'{workdir.name}.study')
  return subprocess.Popen(
    [sys.executable, '-m', 'tests.study.fake', file, workdir, json.dumps(options)],
    cwd=REPOSITORY,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )


def wait_for(condition, what):
  deadline = time.monotonic() + 60
  while not (value := condition()):
    assert time.monotonic() < deadline, f'no {what}'
    time.sleep(0.01)
  return value


def steps_of(workdir, pid):
  file = workdir / 'trace'
  text = file.read_text() if file.exists() else ''
  return sum(f'"pid": {pid}}}' in line for line in text.splitlines())


def test_three_processes_one_killed_twice(tmp_path):
  """The tables equal those of an undisturbed study to the last byte, in another order of runs."""
  study = fake.make([2] * 7, steps=6, step_s=0.03)
  quiet, shared = tmp_path / 'quiet', tmp_path / 'shared'
  work(fake.make([2] * 7, steps=6), quiet)
  workers = [start(study, shared) for _ in range(3)]
  try:
    for _ in range(2):
      victim = workers.pop(0)
      wait_for(lambda v=victim: steps_of(shared, v.pid) >= 3, 'step of the victim')
      victim.kill()
      victim.communicate()
      workers.append(start(study, shared))
    for worker in workers:
      _, err = worker.communicate(timeout=120)
      assert worker.returncode == 0, err
  finally:
    for worker in workers:
      worker.kill()
      worker.communicate()
  assert tables(shared) == tables(quiet)
  done = trace(shared)
  assert set(done) == set(trace(quiet)), 'a step is missing'
  # Each kill costs at most what was done since the training state was last saved.
  assert sum(done.values()) - len(done) <= 2 * 2 * fake.SAVE_EVERY
  assert not failures(shared)


def test_out_of_memory_halves_until_it_fits(tmp_path):
  study = fake.make([5], trouble={'r03': 'memory:1'})
  report = work(study, tmp_path)
  assert report.done == 5 and not report.failed
  log = [(entry['part'], entry['end'], len(entry['runs'])) for entry in attempts(tmp_path, 'c0')]
  assert log == [
    *[('all', 'failed', 5), ('alla', 'done', 3), ('allb', 'failed', 2)],
    *[('allba', 'done', 1), ('allbb', 'done', 1)],
  ]


def test_a_dissolved_company_leaves_no_training_state(tmp_path):
  calls = []

  def run(members, place, stop, on_progress):
    """Out of memory, but not at once."""
    if len(members) == 2:
      fake.run_cohort(members, place, Soon(3), on_progress)
    calls.append(place)
    return fake.run_cohort(members, place, stop, on_progress)

  class Soon:
    reason = ''

    def __init__(self, steps):
      self.left = steps

    @property
    def requested(self):
      if self.left == 0:
        assert list(tmp_path.glob('cohorts/c0/all/state.json'))
        raise OutOfMemory('the device has too little memory')
      return False

    def progress(self):
      self.left -= 1

  assert work(fake.make([2]), tmp_path, run).done == 2
  assert [pathlib.Path(place).name for place in calls] == ['alla', 'allb']
  assert not (tmp_path / 'cohorts/c0/all').exists()


def test_out_of_memory_alone_is_given_up(tmp_path):
  report = work(fake.make([4, 1], trouble={'r01': 'memory:0'}), tmp_path)
  assert report.done == 4 and list(report.failed) == ['r01']
  assert report.failed['r01']['kind'] == 'memory'
  assert 'too little memory' in report.failed['r01']['reason']


def test_what_passes_is_tried_again(tmp_path):
  report = work(fake.make([1, 2], trouble={'r00': 'missing:2'}), tmp_path, retries=2)
  assert report.done == 3 and not report.failed
  assert [e['end'] for e in attempts(tmp_path, 'c0')] == ['failed', 'failed', 'done']


def test_a_token_in_a_message_is_kept_nowhere(tmp_path, monkeypatch):
  monkeypatch.setenv('HF_TOKEN', 'hf_canary')

  def crash(*_):
    raise RuntimeError('GET https://user:hf_canary@there failed, with hf_canary')

  report = work(fake.make([1]), tmp_path, crash, retries=0)
  assert len(report.failed) == 1
  kept = [path.read_text() for path in tmp_path.rglob('*.json')]
  assert any('there failed' in text for text in kept)
  assert not any('hf_canary' in text for text in kept)


def test_what_stays_is_given_up_and_the_company_goes_on(tmp_path):
  study = fake.make([4, 1], trouble={'r02': 'missing:999', 'r10': 'defect'})
  report = work(study, tmp_path, retries=1)
  assert report.done == 3 and set(report.failed) == {'r02', 'r10'}
  assert 'r02.jsonl' in report.failed['r02']['reason']
  assert report.failed['r10']['reason'] == 'TypeError: r10 is no number'
  assert 'Traceback' in attempts(tmp_path, 'c1')[0]['traceback']
  assert '\n' not in report.failed['r10']['reason']
  # Starting again changes nothing, unless told to.
  again = work(study, tmp_path, retries=1)
  assert again == report and len(attempts(tmp_path, 'c1')) == 2
  mended = fake.make([4, 1])
  assert work(mended, tmp_path).done == 3
  assert work(mended, tmp_path, retry_failed=True).done == 5
  assert not failures(tmp_path)


def test_retrying_what_still_fails_ends(tmp_path):
  study = fake.make([1], trouble={'r00': 'nan'})
  work(study, tmp_path)
  assert set(work(study, tmp_path, retry_failed=True).failed) == {'r00'}
  assert len(attempts(tmp_path, 'c0')) == 2


def test_what_another_process_has_tried_again_is_not_tried_a_third_time(tmp_path):
  trouble = {'r00': 'nan', 'r10': 'nan'}
  study, place = fake.make([1, 1], trouble=trouble), StudyDirectory(tmp_path)
  work(study, tmp_path)
  again = []

  def run(members, directory, stop, on_progress):
    again.append(members[0][0]['key'])
    place.give_up('r10', place.failure('r10'))  # The same, later.
    return fake.run_cohort(members, directory, stop, on_progress)

  assert set(work(study, tmp_path, run, retry_failed=True).failed) == set(trouble)
  assert again == ['r00']


def test_a_loss_that_is_not_finite_is_no_reason_to_try_again(tmp_path):
  report = work(fake.make([3], trouble={'r01': 'nan'}), tmp_path)
  assert report.done == 2 and report.failed['r01']['kind'] == 'numbers'
  assert len(attempts(tmp_path, 'c0')) == 1


def test_a_run_that_kills_its_process_is_found(tmp_path):
  """As the host does when its memory is full: three deaths without anything new, then halves."""
  study = fake.make([2, 1], trouble={'r01': 'die'})
  for _ in range(12):
    worker = start(study, tmp_path / 'w', retries=1)
    _, err = worker.communicate(timeout=60)
    if worker.returncode != -signal.SIGKILL:
      break
  assert worker.returncode == 2, err
  assert set(failures(tmp_path / 'w')) == {'r01'}
  assert failures(tmp_path / 'w')['r01']['kind'] == 'death'
  assert StudyDirectory(tmp_path / 'w').finished('r00')
  assert StudyDirectory(tmp_path / 'w').finished('r10')


def test_a_full_disk_is_no_failure_of_a_run(tmp_path):
  study = fake.make([2, 1], trouble={'r00': 'full:1'})
  with pytest.raises(UserError, match='the disk is full'):
    work(study, tmp_path)
  assert not failures(tmp_path) and not list(tmp_path.glob('cohorts/*/lease.json'))
  assert work(study, tmp_path).done == 3


def test_a_signal_stops_and_the_next_start_goes_on(tmp_path):
  study, workdir = fake.make([1, 1], steps=60, step_s=0.05), tmp_path / 'w'
  worker = start(study, workdir)
  wait_for(lambda: steps_of(workdir, worker.pid) >= 3, 'step')
  worker.send_signal(signal.SIGTERM)
  _, err = worker.communicate(timeout=60)
  assert worker.returncode == 3 and 'SIGTERM' in err and 'Traceback' not in err, err
  assert not list(workdir.glob('cohorts/*/lease.json'))
  assert attempts(workdir, 'c0')[-1]['end'] == 'stopped'
  assert work(fake.make([1, 1], steps=60), workdir).done == 2
  assert max(trace(workdir).values()) == 1, 'a step was done again'


def test_a_time_limit_stops_too(tmp_path):
  with pytest.raises(Interrupted, match=r'time limit of 0\.1 s, after step'):
    work(fake.make([1, 1], steps=400, step_s=0.01), tmp_path, max_seconds=0.1)
  assert 'c1' not in [path.name for path in tmp_path.glob('cohorts/*')]


def test_stopped_while_nothing_is_free(tmp_path):
  study = fake.make([1])
  hold(tmp_path, 'c0')
  with pytest.raises(Interrupted, match='1 of 1 run to do'):
    work(study, tmp_path, max_seconds=0.2)


def hold(workdir, cohort, **changes):
  """A lease of a process on another machine."""
  name = {**process.me(), 'host': 'far', 'place': 'far', 'token': 'x', 'beat': time.time()}
  place = StudyDirectory(workdir).lease(cohort)
  place.parent.mkdir(parents=True, exist_ok=True)
  place.write_text(json.dumps(name | changes))


def test_what_others_do_is_left_to_them(tmp_path):
  hold(tmp_path, 'c0')
  report = work(fake.make([1, 2]), tmp_path, wait=False)
  assert (report.done, report.left) == (2, 1)


@pytest.mark.parametrize('beat', [0.0, time.time() + 1e6], ids=['slow', 'fast'])
def test_a_silent_machine_is_followed_whatever_its_clock_says(tmp_path, beat):
  hold(tmp_path, 'c0', beat=beat)
  began = time.monotonic()
  assert work(fake.make([1, 2]), tmp_path, lease_s=0.5).done == 3
  assert time.monotonic() - began >= 0.5


def test_who_lost_a_cohort_leaves_it(tmp_path):
  """Suspended for long, while another machine took over."""
  lost = []

  def run(members, place, stop, on_progress):
    if not lost and members[0][0]['key'] == 'r00':
      # Again where it met a sign of life that was just being written.
      for _ in range(3):
        hold(tmp_path, 'c0')
        time.sleep(0.2)
      lost.append(1)
    return fake.run_cohort(members, place, stop, on_progress)

  report = work(fake.make([1, 1]), tmp_path, run, wait=False, lease_s=0.3)
  assert lost and (report.done, report.left, report.failed) == (1, 1, {})
  assert json.loads((tmp_path / 'cohorts/c0/lease.json').read_text())['host'] == 'far'
  assert [key for key, _ in trace(tmp_path)].count('r00') <= 1


def test_a_run_that_another_process_is_at_is_no_failure(tmp_path):
  """Such as a run begun by itself in its own workdir."""
  calls = []

  def run(members, place, stop, on_progress):
    calls.append(1)
    if len(calls) == 1:
      return [fake.Outcome(members[0][1], 'failed', 'far, process 1, is at work here (x) — wait')]
    return fake.run_cohort(members, place, stop, on_progress)

  report = work(fake.make([1]), tmp_path, run, retries=0)
  assert report.done == 1 and len(calls) == 2


def test_another_study_is_refused_and_nothing_is_touched(tmp_path):
  work(fake.make([1]), tmp_path)
  before = {path: path.read_bytes() for path in tmp_path.rglob('*') if path.is_file()}
  with pytest.raises(UserError, match='setting was same, is other') as e:
    work(fake.make([1], setting='other'), tmp_path)
  assert '\n' not in str(e.value)
  with pytest.raises(UserError, match='no longer wanted, such as run r00'):
    work(fake.make([0, 1]), tmp_path)
  assert {path: path.read_bytes() for path in tmp_path.rglob('*') if path.is_file()} == before


def test_added_runs_leave_cohorts_as_they_were(tmp_path):
  work(fake.make([2]), tmp_path)
  report = work(fake.make([3, 1]), tmp_path)
  assert report.done == 4 and set(trace(tmp_path).values()) == {1}
  cohorts = StudyDirectory(tmp_path).record().cohorts
  assert cohorts['c0'] == ('r00', 'r01') and cohorts['c1'] == ('r10',)
  assert sorted(run for runs in cohorts.values() for run in runs) == ['r00', 'r01', 'r02', 'r10']


def test_a_place_that_cannot_be_written(tmp_path):
  (tmp_path / 'file').write_text('')
  with pytest.raises(UserError, match='a file stands where a directory is needed'):
    work(fake.make([1]), tmp_path / 'file' / 'study')


def test_a_single_run_is_no_study(tmp_path):
  (tmp_path / 'config.json').write_text('{}')
  with pytest.raises(UserError, match='a single run is here'):
    work(fake.make([1]), tmp_path)


def test_a_file_that_shrank_since_the_study_began(tmp_path):
  data, workdir = tmp_path / 'data.jsonl', tmp_path / 'w'
  data.write_text('a\nb\n')
  work(fake.make([1]), workdir, files=[str(data), 'hf:somebody/else'])
  data.write_text('a\n')
  with pytest.raises(UserError, match='has changed since the study began') as e:
    work(fake.make([1, 1]), workdir, files=[str(data)])
  assert e.value.where == str(data) and not (workdir / 'runs/r10').exists()
  data.write_text('a\nb\n')
  assert work(fake.make([1, 1]), workdir, files=[str(data)]).done == 2


def test_contents_that_differ_between_runs_end_the_work(tmp_path):
  """As of a data set that its hub has changed: nothing of the second run stays."""
  digest = ['before']

  def run(members, place, stop, on_progress):
    factors = {'base': 'm', 'data_name': 'lima', 'max_length': 8}
    contents = {'base': 'b', 'tokenizer': 't', 'template': 't', 'data': digest[0]}
    for config, workdir in members:
      held = {'run-id': config['key'], 'factors': factors, 'contents': contents}
      io.write_json_atomic(pathlib.Path(workdir) / 'config.json', held)
    for number in range(3):
      on_progress(number + 1, 3)
    for _, workdir in members:
      io.write_json_atomic(pathlib.Path(workdir) / 'done.json', {'steps': 3})
    return [fake.Outcome(workdir, 'done') for _, workdir in members]

  work(fake.make([1]), tmp_path, run)
  digest[0] = 'after'
  with pytest.raises(UserError, match='the data of run r10 has changed since the study began'):
    work(fake.make([1, 1]), tmp_path, run)
  assert not (tmp_path / 'runs/r10').exists() and not failures(tmp_path)
  digest[0] = 'before'
  assert work(fake.make([1, 1]), tmp_path, run).done == 2

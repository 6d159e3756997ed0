"""How far a study is, from its files."""

import json
import time

import numpy as np
import pytest

from sft_jax.study import attempts, status
from sft_jax.study.attempts import Part
from sft_jax.study.directory import StudyDirectory
from sft_jax.study.live import Live
from sft_jax.train.checkpoint import Checkpoints
from sft_jax.utils import io, lease, process
from sft_jax.utils.errors import UserError
from tests.study import fake
from tests.study.test_engine import hold, work


@pytest.fixture
def workdir(tmp_path):
  """Cohorts done, partly failed, at work far away, silent, and untouched."""
  study = fake.make([2, 2, 2, 1, 1], trouble={'r11': 'nan'})
  for number in (2, 3, 4):
    hold(tmp_path, f'c{number}')
  work(study, tmp_path, wait=False)
  place = StudyDirectory(tmp_path)
  io.write_json_atomic(place.run('r20') / 'done.json', {})
  io.write_json_atomic(
    place.cohort('c2') / 'progress.json', {'done': 30, 'total': 40, 'seconds-left': 75.0}
  )
  hold(tmp_path, 'c3', beat=time.time() - 1000, expiry=180.0)
  place.lease('c4').unlink()
  return tmp_path


def test_lines(workdir):
  lines, value = status.status(workdir)
  assert lines[0] == 'done    c0  2/2 runs done'
  assert lines[1] == 'failed  c1  1/2 runs done, 1 failed, 1 failed attempt'
  assert lines[2].startswith('running c2  1/2 runs done, step 30/40 (75%), 1:15 left, far, process')
  assert ', last sign ' in lines[2]
  assert lines[3].startswith('silent  c3  0/1 run done') and 'last sign 100' in lines[3]
  assert lines[4] == 'waiting c4  0/1 run done'
  assert lines[5].startswith('4 of 8 runs done, 1 failed, 1 of 5 cohorts at work, about ')
  assert lines[6].startswith('takes ')
  assert lines[7:] == ['failed  run r11 (r11): loss is not finite at step 2']
  assert json.loads(io.to_json(value)) == value
  assert [c['state'] for c in value['cohorts']] == [line.split()[0] for line in lines[:5]]
  assert value['failures'][0]['name'] == 'run r11'


def test_a_stopped_cohort_says_where_it_goes_on(workdir):
  """The state is one of training, told by its files; what a kill left half-written is none."""
  place = StudyDirectory(workdir)
  part = Part('all', ('r40',))
  log = {'parts': attempts.to_json([part]), 'log': []}
  io.write_json_atomic(place.cohort('c4') / 'attempts.json', log)
  states = Checkpoints(place.cohort('c4') / part.name, 'a cohort', keep=2)
  for step in (4, 6, 9):
    states.save(step, {'w': np.zeros(3, np.float32)}, wait=True)
  states.close()
  (place.cohort('c4') / part.name / 'checkpoints/9/_CHECKPOINT_METADATA').unlink()
  lines, value = status.status(workdir)
  assert lines[4] == 'waiting c4  0/1 run done, resumes from step 6'
  assert value['cohorts'][4]['saved'] == 6
  progress = {'done': 8, 'total': 12, 'seconds-left': None}
  io.write_json_atomic(place.cohort('c4') / 'progress.json', progress)
  assert status.status(workdir)[0][4].endswith('resumes from step 6 of 12')
  # Others need the state no more, or are at work.
  assert not any('resumes' in line for line in lines[:4])
  (place.run('r40')).mkdir(parents=True, exist_ok=True)
  io.write_json_atomic(place.run('r40') / 'done.json', {})
  assert 'resumes' not in status.status(workdir)[0][4]


def test_it_writes_nothing(workdir):
  before = {p: p.stat().st_mtime_ns for p in workdir.rglob('*')}
  status.status(workdir)
  assert {p: p.stat().st_mtime_ns for p in workdir.rglob('*')} == before


def test_steps_from_metrics_where_no_progress_was_written(workdir):
  place = StudyDirectory(workdir)
  (place.cohort('c2') / 'progress.json').unlink()
  place.run('r21').mkdir(parents=True, exist_ok=True)
  metrics = place.run('r21') / 'metrics.jsonl'
  metrics.write_text('{"step": 6, "loss": 1}\n{"step": 7, "loss": 1}\n{"step": 8')
  assert status.status(workdir)[1]['cohorts'][2]['steps'] == 7


def test_seconds_left():
  make = lambda state, **known: status.CohortState('c', state, 1, 0, 0, **known)
  done, waiting = make('done', spent_s=10.0), make('waiting')
  half = make('running', steps=5, total=10, left_s=5.0)
  assert status.seconds_left([done]) == 0
  assert status.seconds_left([done, waiting]) is None, 'nobody is at work'
  assert status.seconds_left([done, half]) == 5
  assert status.seconds_left([done, half, half, waiting, waiting]) == (5 + 5 + 10 + 10) / 2
  assert status.seconds_left([half, waiting]) == 5 + 10


def test_live_lines(workdir):
  place = StudyDirectory(workdir)
  live = Live(place, place.record(), 1000.0)
  for _ in range(2):  # The second time from memory, where it is settled.
    lines = live.lines()
    assert [line.split()[:2] for line in lines[:2]] == [['running', 'c2'], ['silent', 'c3']]
    assert lines[2].startswith('4 of 8 runs done') and len(lines) == 3


def test_a_dead_process_of_this_machine_is_nobody(workdir):
  name = {**process.me(), 'born': '1', 'token': 'x', 'beat': time.time()}
  place = StudyDirectory(workdir)
  place.lease('c4').write_text(json.dumps(name))
  assert lease.holder(place.lease('c4')) is None
  assert status.status(workdir)[1]['cohorts'][4]['state'] == 'waiting'


def test_no_study(tmp_path):
  with pytest.raises(UserError, match='no study, run or evaluation is here'):
    status.status(tmp_path)


def test_a_race_is_told_by_its_rungs(tmp_path):
  for name, runs in (('rung-0', 3), ('rung-1', 1)):
    work(fake.make([runs]), tmp_path / name, wait=False)
  lines, value = status.status(tmp_path)
  assert [line for line in lines if 'takes' not in line] == [
    *('rung-0: done    c0  3/3 runs done', 'rung-0: 3 of 3 runs done'),
    *('rung-1: done    c0  1/1 run done', 'rung-1: 1 of 1 run done'),
  ]
  assert (value['runs'], value['done'], value['failed']) == (4, 4, 0)
  assert [rung['runs'] for rung in value['rungs']] == [3, 1]

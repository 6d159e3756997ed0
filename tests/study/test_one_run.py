"""The state of a single run and of an evaluation, from files alone."""

import json

import numpy as np
import pytest

from sft_jax.study import one_run, status
from sft_jax.train.checkpoint import Checkpoints
from sft_jax.utils import io, lease

CONFIG = {
  'model': {'path': 'org/model'},
  'data': {'name': '', 'path': 'my.jsonl'},
  'train': {'batch_size': 4, 'epochs': 2.5},
  'eval': {'tasks': 'gsm8k:4shot'},
}


def begin(place, **more):
  place.mkdir(parents=True)
  io.write_json_atomic(place / 'config.json', {'config': CONFIG, **more})


@pytest.fixture
def run(tmp_path):
  """A workdir at step 3 of 8: 10 examples in batches of 4, for two epochs and a half."""
  place = tmp_path / 'run'
  begin(place, factors={})
  io.write_json_atomic(place / 'audit.json', {'kept': 10})
  lines = [{'step': 1, 'loss': 2.5}, {'step': 3, 'loss': 1.25}, {'step': 3, 'eval/x': 1.0}]
  text = ''.join(f'{json.dumps(line)}\n' for line in lines) + '{"step": 4, "lo'
  (place / 'metrics.jsonl').write_text(text)
  rows = [
    {'step': s, 'epoch': s / 3, 'em': 10.0 * s, 'em-n': 9, 'ppl-heldout': 8 - s} for s in (0, 3)
  ]
  (place / 'rows.jsonl').write_text(''.join(f'{json.dumps(row)}\n' for row in rows))
  return place


def test_interrupted(run):
  lines, value = status.status(run)
  assert lines == [
    'a single run: org/model on my.jsonl',
    'interrupted step 3 of 8, loss 1.25, the same command starts it again',
    '1 snapshot scored; the base and the last:',
    'base        ppl-heldout 8.00, em 0.00',
    'epoch 1     ppl-heldout 5.00, em 30.00',
  ]
  assert json.loads(io.to_json(value)) == value
  assert (value['steps'], value['total'], value['loss']) == (3, 8, 1.25)
  states = Checkpoints(run, 'a run', keep=2)
  states.save(2, {'x': np.zeros(2)})
  states.close()
  assert 'the same command goes on from step 2' in status.status(run)[0][1]


def test_running_done_and_failed(run):
  with lease.Lease(run / 'lease.json'):
    assert status.status(run)[0][1].startswith('running     step 3 of 8, loss 1.25, ')
  io.write_json_atomic(run / 'failed.json', {'reason': 'loss is not finite at step 4'})
  assert status.status(run)[0][1].endswith('loss 1.25, loss is not finite at step 4')
  (run / 'failed.json').unlink()
  io.write_json_atomic(run / 'done.json', {'steps': 7})
  assert status.status(run)[0][1] == 'done        step 3 of 7, loss 1.25'


def test_what_is_selected_counts(run):
  io.write_json_atomic(run / 'selection.json', {'examples': ['a'] * 4})
  assert status.status(run)[1]['total'] == 3


def test_a_run_of_a_study_names_it(run, tmp_path):
  place = tmp_path / 'study' / 'runs' / 'key'
  begin(place, factors={})
  io.write_json_atomic(tmp_path / 'study' / 'study.json', {})
  lines, value = status.status(place)
  assert value['state'] == 'unfinished' and value['total'] == 0
  assert lines[1] == 'unfinished  step 0' and lines[-1].endswith('tells of them all')


def test_an_evaluation(tmp_path, monkeypatch):
  place = tmp_path / 'e'
  begin(place, evaluated={})
  lines, value = status.status(place)
  assert lines[0] == 'an evaluation: org/model on gsm8k:4shot' and value['state'] == 'unfinished'
  with lease.Lease(place / 'lease.json'):
    assert status.status(place)[1]['state'] == 'running'
  monkeypatch.setattr(lease, 'holder', lambda _: {'expired': True})
  assert status.status(place)[1]['state'] == 'unfinished', 'its process was killed'
  (place / 'rows.jsonl').write_text(json.dumps({'step': 0, 'gsm8k-4shot': 4.0}) + '\n')
  assert status.status(place)[0][1] == 'done        gsm8k-4shot 4.00'


def test_another_file_of_that_name_is_no_run(tmp_path):
  (tmp_path / 'config.json').write_text('[]')
  assert not one_run.is_here(tmp_path)

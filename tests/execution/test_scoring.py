"""A time for all benchmarks: the subset that a run's base and snapshots share."""

import json

import pytest

from sft_jax.evals import budget
from sft_jax.evals.benchmark import Generate
from sft_jax.execution import evaluate as evaluate_lib
from sft_jax.utils import io
from sft_jax.utils.errors import UserError
from tests import tiny

TASKS = 'gsm8k:0shot:gen,gsm8k:4shot:gen'


@pytest.fixture(scope='module')
def bench(tmp_path_factory):
  directory = tmp_path_factory.mktemp('bench')
  rows = [{'question': f'{n} birds?', 'answer': f'So.\n#### {n}'} for n in range(24)]
  text = ''.join(f'{json.dumps(row)}\n' for row in rows)
  (directory / 'gsm8k_test.jsonl').write_text(text)
  return directory


@pytest.fixture
def speeds(monkeypatch):
  """Probes take no time and say what is put here; gsm8k's answers are short."""
  told = []
  monkeypatch.setattr(budget, 'measure', lambda *_: told.pop(0))
  monkeypatch.setattr(Generate, 'most_new', lambda self, shots: 4)
  return told


def settings(tiny_files, bench, **changes):
  given = {
    'eval__tasks': TASKS,
    'eval__data_dir': str(bench),
    'eval__template': 'raw',
    'eval__slots': 4,
    'eval__budget_seconds': 10.0,
    'train__epochs': 1.0,
    'train__snapshot_at': '1',
  }
  return tiny.config(*tiny_files, **(given | changes))


def counts(row):
  """Items that were graded, of each task."""
  names = [name for name in row if 'gsm8k' in name and name.endswith('-n')]
  return sorted(row[name] for name in names if not name.endswith('-contaminated-n'))


def test_a_run_and_its_snapshots_are_asked_the_same(tiny_files, bench, tmp_path, speeds):
  # 48 requests of 4 tokens in 4 slots: 48 steps, 19 seconds of which 10 are paid for.
  speeds[:] = [budget.Speed(1e6, 0.4)]
  rows = tiny.run(tmp_path / 'w', settings(tiny_files, bench))
  assert [counts(row) for row in rows] == [[12, 12]] * 2
  assert not speeds, 'measured once'
  held = io.read_json(tmp_path / 'w' / 'budget.json')
  assert held['items'] == {'gsm8k:0shot:gen': 12, 'gsm8k:4shot:gen': 12}
  assert 'gsm8k-0shot-gen-n12' in rows[0]


def test_what_was_chosen_stands(tiny_files, bench, tmp_path, speeds):
  """A slower probe later changes nothing; the same items are a subset of more."""
  given = settings(tiny_files, bench, data__path='')
  speeds[:] = [budget.Speed(1e6, 0.4), budget.Speed(1e6, 0.6)]
  with tiny.on_devices():
    row = evaluate_lib.evaluate(given, str(tmp_path / 'w'))
    assert evaluate_lib.evaluate(given, str(tmp_path / 'w')) == row and len(speeds) == 1
    fewer = evaluate_lib.evaluate(given, str(tmp_path / 'v'))
  ids = {}
  for workdir, one in (('w', row), ('v', fewer)):
    (column,) = (name[:-2] for name in one if name[:11] == 'gsm8k-0shot' and name[-2:] == '-n')
    part = tiny.read_jsonl(tmp_path / workdir / 'samples' / f'{column}-0.jsonl')
    ids[workdir] = {record['id'] for record in part}
  assert ids['v'] < ids['w'] and (len(ids['v']), len(ids['w'])) == (8, 12)


def test_enough_time_takes_all_and_too_little_is_told(tiny_files, bench, tmp_path, speeds):
  speeds[:] = [budget.Speed(1e6, 0.1), budget.Speed(1e6, 1e4)]
  given = settings(tiny_files, bench, data__path='')
  with tiny.on_devices():
    row = evaluate_lib.evaluate(given, str(tmp_path / 'w'))
    assert counts(row) == [24, 24]
    with pytest.raises(UserError, match='do not pay for the fewest items'):
      evaluate_lib.evaluate(given, str(tmp_path / 'v'))
  assert not (tmp_path / 'v' / 'rows.jsonl').exists()


def test_the_cost_is_said_without_a_probe_where_there_is_little_to_do(
  tiny_files, bench, tmp_path, monkeypatch
):
  monkeypatch.setattr(budget, 'measure', lambda *_: 1 / 0)
  monkeypatch.setattr(Generate, 'most_new', lambda self, shots: 4)
  given = settings(tiny_files, bench, data__path='', eval__budget_seconds=0.0)
  with tiny.on_devices():
    row = evaluate_lib.evaluate(given, str(tmp_path / 'w'))
  assert counts(row) == [24, 24] and not (tmp_path / 'w' / 'budget.json').exists()

"""Which study the runs of a rung are in, where the race changes on its way."""

import json
import pathlib

import pytest

from sft_jax.decide import choose_mode, choose_run
from sft_jax.study.directory import StudyDirectory
from sft_jax.study.race import Trial
from sft_jax.study.race_evidence import Arm
from sft_jax.utils.errors import Interrupted
from tests import tiny

NAMES = ('one', 'two', 'three')


@pytest.fixture
def setting(tiny_files, tmp_path):
  for name in NAMES:
    records = [dict(r, output=f'{name} {r["output"]}') for r in tiny.records(24)]
    tiny.write_records(tmp_path / f'{name}.jsonl', records)
  asked = [{'question': f'{i}?', 'choices': ['1', '2'], 'answer': i % 2} for i in range(4)]
  bench = tmp_path / 'mine.jsonl'
  bench.write_text(''.join(f'{json.dumps(one)}\n' for one in asked))
  return tiny.config(
    tiny_files[0],
    '',
    train__epochs=1.0,
    log__tensorboard=False,
    choose__target=str(bench),
    choose__sizes='8,16',
    choose__budget='900 examples',
  )


def started(setting, tmp_path, names, seconds=0.0):
  with setting.unlocked():
    setting.choose.data = ','.join(str(tmp_path / f'{name}.jsonl') for name in names)
    setting.max_seconds = seconds
  return choose_run.Runs(setting, choose_mode.wish_of(setting), str(tmp_path / 'race'))


def trials(names):
  return [Trial(Arm(name), 0, seed) for name in names for seed in (0, 1)]


def begun(setting, tmp_path):
  """Stops within the first step of the runs of all; returns the study of the rung."""
  started(setting, tmp_path, NAMES).base()
  with pytest.raises(Interrupted):
    started(setting, tmp_path, NAMES, 1e-3).evaluate(trials(NAMES))
  study = tmp_path / 'race' / 'rung-0'
  assert len(StudyDirectory(study).record().names) == 6 and not ended(study)
  return study


def ended(study):
  """{run: the data it was trained on, and when} of what is complete."""
  out = {}
  for file in study.glob('runs/*/done.json'):
    data = json.loads((file.parent / 'config.json').read_text())['config']['data']
    out[file.parent.name] = pathlib.Path(data['path']).stem, file.stat().st_mtime_ns
  return out


def test_what_nobody_wants_any_more_is_not_run(setting, tmp_path):
  """Runs that were begun for a larger budget, or for a candidate that was taken away."""
  further = tmp_path / 'race' / 'rung-0-2'
  with tiny.on_devices():
    study = begun(setting, tmp_path)
    runs = started(setting, tmp_path, NAMES[:2])
    assert all(one.scores for one in runs.evaluate(trials(NAMES[:2])).values())
    before = ended(further)
    assert sorted(name for name, _ in before.values()) == ['one', 'one', 'two', 'two']
    assert all('rung-0-2' in one for one in runs.workdirs(Arm('two'), 0))
    # Wanted again, it runs where the others did; these are not done anew.
    again = started(setting, tmp_path, NAMES).evaluate(trials(NAMES))
  assert all(one.scores for one in again.values())
  after = ended(further)
  assert before.items() < after.items() and len(after) == 6
  assert not ended(study), 'its cohorts hold what nobody wanted'
  assert not (tmp_path / 'race' / 'rung-0-3').exists()


def test_a_stop_within_a_rung_goes_on_where_it_was(setting, tmp_path):
  with tiny.on_devices():
    study = begun(setting, tmp_path)
    done = started(setting, tmp_path, NAMES).evaluate(trials(NAMES))
  assert all(one.scores for one in done.values())
  assert len(ended(study)) == 6
  assert not (tmp_path / 'race' / 'rung-0-2').exists()

"""Which study the runs of a rung are in, where the race changes on its way."""

import json

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


def finished(place):
  """{run: the data it was trained on} of a study."""
  files = place.glob('runs/*/done.json')
  of = lambda run: json.loads((run / 'config.json').read_text())['config']['data']['path']
  return {file.parent.name: of(file.parent).split('/')[-1] for file in files}


def test_what_nobody_wants_any_more_is_not_run(setting, tmp_path):
  """Runs that were begun for a larger budget, or for a candidate that was taken away."""
  with tiny.on_devices():
    started(setting, tmp_path, NAMES).base()
    with pytest.raises(Interrupted):
      started(setting, tmp_path, NAMES, 1e-3).evaluate(trials(NAMES))
    first, further = tmp_path / 'race' / 'rung-0', tmp_path / 'race' / 'rung-0-2'
    assert len(StudyDirectory(first).record().names) == 6 and not finished(first)

    runs = started(setting, tmp_path, NAMES[:2])
    assert all(one.scores for one in runs.evaluate(trials(NAMES[:2])).values())
    assert not finished(first), 'with company that nobody wants'
    assert sorted(finished(further).values()) == [
      'one.jsonl',
      'one.jsonl',
      'two.jsonl',
      'two.jsonl',
    ]
    assert all('rung-0-2' in one for one in runs.workdirs(Arm('two'), 0))
    before = {
      run: (further / 'runs' / run / 'rows.jsonl').stat().st_mtime_ns for run in finished(further)
    }

    # Wanted again, it runs where the others did; these are not done anew.
    again = started(setting, tmp_path, NAMES).evaluate(trials(NAMES))
  assert all(one.scores for one in again.values())
  assert list(finished(further).values()).count('three.jsonl') == 2 and not finished(first)
  assert (
    before.items()
    <= {
      run: (further / 'runs' / run / 'rows.jsonl').stat().st_mtime_ns for run in finished(further)
    }.items()
  )
  assert not (tmp_path / 'race' / 'rung-0-3').exists()


def test_a_stop_within_a_rung_goes_on_where_it_was(setting, tmp_path):
  with tiny.on_devices():
    started(setting, tmp_path, NAMES).base()
    with pytest.raises(Interrupted):
      started(setting, tmp_path, NAMES, 1e-3).evaluate(trials(NAMES))
    done = started(setting, tmp_path, NAMES).evaluate(trials(NAMES))
  assert all(one.scores for one in done.values())
  assert len(finished(tmp_path / 'race' / 'rung-0')) == 6
  assert not (tmp_path / 'race' / 'rung-0-2').exists()

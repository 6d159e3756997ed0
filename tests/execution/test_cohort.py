"""Many runs as one program leave what each leaves by itself, whatever ends or stops them."""

import json
import math
import multiprocessing
import shutil

import jax
import pytest

from sft_jax.execution import evaluate, runner
from sft_jax.execution.session import Session
from sft_jax.train import loop, step
from sft_jax.utils.errors import Interrupted, OutOfMemory
from tests import tiny

# What differs between the eight runs. Dropout has to be off where losses are compared with runs by
# themselves only if its rate were drawn per cohort; it is drawn per run.
RUNS = (
  {},
  {'train__learning_rate': 3e-3, 'train__schedule': 'linear'},
  {'train__epochs': 1.0, 'lora__rank': 2, 'train__snapshot_at': '1'},
  {'data': 1, 'lora__rank': 8, 'lora__alpha': 8.0},
  {'data': 1, 'train__epochs': 3.0, 'train__schedule': 'constant', 'train__snapshot_at': 's3,3'},
  {'train__batch_size': 4, 'lora__dropout': 0.0},
  {'train__seeds__data': 1, 'train__seeds__init': 2, 'train__seeds__dropout': 3},
  {'data': 1, 'data__size': 9, 'train__layers': '1:3', 'train__weight_decay': 0.1},
)


@pytest.fixture(scope='module')
def files(tiny_files, tmp_path_factory):
  """The model, and two data sets."""
  other = tmp_path_factory.mktemp('other') / 'products.jsonl'
  records = [
    {'instruction': f'{a} times {b}?', 'input': '', 'output': f'it is {a * b}'}
    for a in range(2, 8)
    for b in range(3, 8)
  ]
  return tiny_files[0], (tiny_files[1], tiny.write_records(other, records))


def configs(files, runs=RUNS, **common):
  model, data = files
  quiet = {'log__tensorboard': False, 'checkpoint__every_steps': 0}
  given = [quiet | {'data': 0} | own | common for own in runs]
  return [tiny.config(model, data[own.pop('data')], **own) for own in given]


def members(configs, directory):
  return [runner.Member(config, str(directory / str(i))) for i, config in enumerate(configs)]


def run_cohort(configs, directory, session=None, stop=None, **rest):
  with tiny.on_devices(), stop or loop.StopSignal() as stop:
    return runner.run_cohort(
      members(configs, directory), str(directory / 'place'), session or Session(), stop, **rest
    )


def metrics(workdir):
  return [line for line in tiny.read_jsonl(workdir / 'metrics.jsonl') if 'loss' in line]


@pytest.fixture(scope='module')
def alone(files, tmp_path_factory):
  """The directory of the eight runs, each done by itself."""
  directory = tmp_path_factory.mktemp('alone')
  for member in members(configs(files), directory):
    tiny.run(member.workdir, member.config)
  return directory


@pytest.fixture(scope='module')
def together(files, tmp_path_factory):
  """(directory, session, outcomes, progress) of the eight runs done as one."""
  directory, session, told = tmp_path_factory.mktemp('together'), Session(), []
  outcomes = run_cohort(
    configs(files), directory, session, on_progress=lambda *counts: told.append(counts)
  )
  return directory, session, outcomes, told


def assert_same_results(got, want):
  """Losses at every step, scores at every snapshot, weights that are kept."""
  steps = [(line['step'], line['tokens'], line['supervised']) for line in metrics(got)]
  assert steps == [(line['step'], line['tokens'], line['supervised']) for line in metrics(want)]
  for name in ('loss', 'learning-rate', 'grad-norm'):
    values = [line[name] for line in metrics(got)]
    assert values == pytest.approx([line[name] for line in metrics(want)], rel=1e-5, abs=1e-5)
  rows, expected = (tiny.read_jsonl(d / 'rows.jsonl') for d in (got, want))
  assert len(rows) == len(expected)
  for row, other in zip(rows, expected, strict=True):
    assert row.keys() == other.keys()
    for column, value in other.items():
      near = pytest.approx(value, rel=2e-4) if isinstance(value, float) else value
      assert row[column] == near, column
  kept = [sorted(p.name for p in (d / 'weights').iterdir()) for d in (got, want)]
  assert kept[0] == kept[1]
  for name in ('audit.json', 'done.json'):
    assert (got / name).read_bytes() == (want / name).read_bytes()


def test_each_run_of_a_cohort_is_as_by_itself(alone, together):
  directory, session, outcomes, _ = together
  assert [one.state for one in outcomes] == ['done'] * len(RUNS)
  assert len({one.run_id for one in outcomes}) == len(RUNS)
  for i, one in enumerate(outcomes):
    assert json.loads((alone / str(i) / 'config.json').read_text())['run-id'] == one.run_id
    assert_same_results(directory / str(i), alone / str(i))
  assert session.traces == 1 and session.bases.reads == 1


def test_runs_end_at_their_own_length(together):
  directory = together[0]
  lengths = [len(metrics(directory / str(i))) for i in range(len(RUNS))]
  most = max(lengths)
  assert len(set(lengths)) > 3 and together[3] == [(i + 1, most) for i in range(most)]


def test_little_is_left_of_a_run(together):
  directory = together[0]
  for i in range(len(RUNS)):
    files = [p for p in (directory / str(i)).rglob('*') if p.is_file()]
    assert len(files) <= 12, files
  assert not any(p.is_file() for p in (directory / 'place').rglob('*')), 'no state of finished runs'


def test_a_finished_cohort_is_left_alone(files, together):
  directory, session, outcomes, _ = together
  before = {p: p.read_bytes() for p in directory.rglob('*') if p.is_file()}
  assert run_cohort(configs(files), directory, session) == outcomes
  assert {p: p.read_bytes() for p in directory.rglob('*') if p.is_file()} == before


def test_a_run_of_a_cohort_is_exported_and_scored_as_one_by_itself(files, together, tmp_path):
  """Its weights have its own rank; its workdir is one that `run` takes for finished."""
  safetensors = pytest.importorskip('safetensors.numpy')
  index = 2
  workdir = shutil.copytree(together[0] / str(index), tmp_path / 'w')
  config = configs(files, export__format='peft')[index]
  with tiny.on_devices():
    out = runner.export(config, str(workdir))
  held = safetensors.load_file(f'{out}/adapter_model.safetensors')
  assert {leaf.shape[0] for name, leaf in held.items() if 'lora_A' in name} == {2}
  rows = tiny.read_jsonl(workdir / 'rows.jsonl')
  assert tiny.run(workdir, configs(files)[index]) == rows
  config = configs(files)[index]
  config.model.path = f'run:{workdir}@last'
  with tiny.on_devices():
    row = evaluate.evaluate(config, str(tmp_path / 'scores'))
  assert row['step'] == rows[-1]['step'] and row['run-id'] == rows[-1]['run-id']
  assert row['ppl-heldout'] == pytest.approx(rows[-1]['ppl-heldout'], rel=1e-5)


class Stop(loop.StopSignal):
  """Asks for a stop after being looked at `after` times."""

  def __init__(self, after):
    super().__init__()
    self._after = after

  @property
  def requested(self):
    self._after -= 1
    self.reason = 'test' if self._after < 0 else ''
    return bool(self.reason)


def assert_equal_files(got, want):
  """Bit for bit, but for what the clock says."""
  for i in range(len(RUNS)):
    for name in ('rows.jsonl', 'layers.jsonl'):
      assert (got / str(i) / name).read_bytes() == (want / str(i) / name).read_bytes(), (i, name)
    for kept in (want / str(i) / 'weights').iterdir():
      for file in kept.iterdir():
        assert (got / str(i) / 'weights' / kept.name / file.name).read_bytes() == file.read_bytes()
    lines = [[(x['step'], x['loss']) for x in metrics(d / str(i))] for d in (got, want)]
    assert lines[0] == lines[1]


def test_stopped_again_and_again_it_ends_alike(files, together, tmp_path):
  """Also where some of the runs had ended before the stop, and where one was in mid-evaluation."""
  lives = 0
  while lives < 40:
    try:
      run_cohort(configs(files), tmp_path, together[1], Stop(4 + 7 * (lives % 3)))
      break
    except Interrupted:
      lives += 1
  assert lives > 3
  assert_equal_files(tmp_path, together[0])


def test_with_other_company_runs_begin_anew(files, together, tmp_path):
  with pytest.raises(Interrupted):
    run_cohort(configs(files), tmp_path, together[1], Stop(40))
  assert (tmp_path / 'place' / 'cohort.json').exists()
  mine = [0, 3]
  few = [configs(files)[i] for i in mine]
  given = [runner.Member(c, str(tmp_path / str(i))) for c, i in zip(few, mine, strict=True)]
  with tiny.on_devices(), loop.StopSignal() as stop:
    outcomes = runner.run_cohort(given, str(tmp_path / 'place'), together[1], stop)
  assert [one.state for one in outcomes] == ['done', 'done']
  for i in mine:
    assert_same_results(tmp_path / str(i), together[0] / str(i))


HOT = {'train__learning_rate': 1e30, 'train__schedule': 'constant'}


def test_runs_that_diverge_fail_alone(files, together, tmp_path):
  """One is found out by its loss, one by the scores of a snapshot."""
  late, early = HOT | {'train__snapshot_at': '2'}, HOT | {'train__seeds__data': 9}
  given = configs(files, [*RUNS[:3], late, early])
  outcomes = run_cohort(given, tmp_path, together[1])
  assert [one.state for one in outcomes] == ['done'] * 3 + ['failed'] * 2
  for i, word in ((3, 'not finite at step'), (4, 'is not a number after step 2')):
    told = json.loads((tmp_path / str(i) / 'failed.json').read_text())
    assert told['reason'] == outcomes[i].reason and word in told['reason']
    assert 'config.train.learning_rate' in told['reason']
    assert len(metrics(tmp_path / str(i))) <= told['step']
    assert not (tmp_path / str(i) / 'done.json').exists()
  assert 'sums.jsonl:' in outcomes[3].reason, 'the records of that step'
  for i in range(3):
    assert_same_results(tmp_path / str(i), together[0] / str(i))
  # They are not tried again until somebody takes that back.
  assert run_cohort(given, tmp_path, together[1]) == outcomes


def test_a_failure_survives_a_stop(files, together, tmp_path):
  changed = [RUNS[4], HOT]
  # Without scores, which would tell as well.
  given = configs(files, changed, train__snapshot_at='3', eval__tasks='')
  stop = loop.StopSignal()
  given[1].train.snapshot_at = '2'

  def later(done, total):
    stop.reason = 'test' if done == 5 else ''

  with pytest.raises(Interrupted):
    run_cohort(given, tmp_path, together[1], stop, on_progress=later)
  assert (tmp_path / '1' / 'failed.json').exists()
  (tmp_path / '1' / 'failed.json').unlink()  # Forgiven; it cannot come out otherwise.
  outcomes = run_cohort(given, tmp_path, together[1])
  assert [one.state for one in outcomes] == ['done', 'failed']
  assert (tmp_path / '1' / 'failed.json').exists()


def test_bad_input_fails_alone_and_leaves_nothing(files, together, tmp_path):
  given = configs(files, RUNS[:3])
  given[1].data.path = str(tmp_path / 'missing.jsonl')
  outcomes = run_cohort(given, tmp_path, together[1])
  assert [one.state for one in outcomes] == ['done', 'failed', 'done']
  assert 'missing.jsonl' in outcomes[1].reason and not (tmp_path / '1').exists()
  given[1].data.path = str(files[1][0])
  outcomes = run_cohort(given, tmp_path, together[1])
  assert [one.state for one in outcomes] == ['done'] * 3
  for i in range(3):
    assert_same_results(tmp_path / str(i), together[0] / str(i))


def test_runs_of_several_cohorts_are_refused(files, tmp_path):
  given = configs(files, ({}, {'lora__targets': 'q_proj'}))
  with pytest.raises(ValueError, match='2 runs of 2 cohorts'):
    run_cohort(given, tmp_path)
  with pytest.raises(ValueError, match='the same run'):
    run_cohort(configs(files, ({}, {})), tmp_path)


def test_too_little_memory_is_told_apart(files, tmp_path, monkeypatch):
  """Whoever called may try fewer at once; no run is to blame, and all begin again."""

  def full(self, *args):
    raise jax.errors.JaxRuntimeError('RESOURCE_EXHAUSTED: Out of memory allocating 12345 bytes.')

  given = configs(files, RUNS[:2], eval__tasks='')
  with monkeypatch.context() as patch, pytest.raises(OutOfMemory, match='too little memory'):
    patch.setattr(step.TrainStep, '__call__', full)
    run_cohort(given, tmp_path)
  assert not any((tmp_path / str(i) / 'failed.json').exists() for i in range(2))
  assert [one.state for one in run_cohort(given[:1], tmp_path)] == ['done']


def live(configs, directory, pipe):
  """A life of a cohort, to be killed; reports each step."""
  run_cohort(configs, directory, on_progress=lambda done, total: pipe.send(done))


def test_kill_nine_loses_nothing(files, together, tmp_path):
  given = configs(files, checkpoint__every_steps=2)
  context = multiprocessing.get_context('spawn')
  for after in (3, 8):
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=live, args=(given, tmp_path, theirs))
    process.start()
    theirs.close()
    while ours.poll(300) and ours.recv() < after:
      pass
    process.kill()
    process.join(60)
    assert process.exitcode == -9
  outcomes = run_cohort(given, tmp_path, together[1])
  assert [one.state for one in outcomes] == ['done'] * len(RUNS)
  for i in range(len(RUNS)):
    assert_same_results(tmp_path / str(i), together[0] / str(i))
    assert not math.isnan(metrics(tmp_path / str(i))[-1]['loss'])

"""What runs of one process share: programs, bases, data, questions, what a base scores."""

import json

import numpy as np
import pytest

from sft_jax.evals import generation, loglik
from sft_jax.execution import inputs, runner
from sft_jax.execution import session as session_lib
from sft_jax.execution.session import Session
from sft_jax.train import loop
from tests import tiny


@pytest.fixture(scope='module')
def datasets(tmp_path_factory):
  """Ten data sets of unlike lengths."""
  directory, files = tmp_path_factory.mktemp('ten'), []
  for number in range(10):
    rng = np.random.default_rng(number)
    records = [
      {
        'instruction': f'question {number} {i}?',
        'input': '',
        'output': ' '.join(['so'] * int(rng.integers(1, 3 + 4 * number))) + f' {i}',
      }
      for i in range(40)
    ]
    files.append(tiny.write_records(directory / f'{number}.jsonl', records))
  return files


def config(model, data, **changes):
  given = {
    'train__row_length': 0,
    'train__rows_per_micro': 0,
    'train__epochs': 1.0,
    'train__snapshot_at': '1',
    'data__template': 'chat',
    'eval__tasks': '',
    'log__tensorboard': False,
    'checkpoint__every_steps': 0,
  }
  return tiny.config(model, data, **{**given, **changes})


def run_cohort(session, place, configs):
  """Outcomes; workdirs are numbered below `place`."""
  members = [runner.Member(c, str(place / str(i))) for i, c in enumerate(configs)]
  with tiny.on_devices(), loop.StopSignal() as stop:
    return runner.run_cohort(members, str(place / 'place'), session, stop)


def test_a_study_compiles_few_programs(tiny_files, datasets, tmp_path):
  """Ten data sets, two methods, two sizes."""
  session, model = Session(), tiny_files[0]
  for size in (8, 20):
    every = [config(model, data, data__size=size) for data in datasets]
    outcomes = run_cohort(session, tmp_path / f'lora-{size}', every)
    for number, data in enumerate(datasets if size == 20 else datasets[::4]):
      full = config(model, data, data__size=size, train__method='full')
      outcomes += run_cohort(session, tmp_path / f'full-{size}-{number}', [full])
    assert {one.state for one in outcomes} == {'done'}, outcomes
  assert session.traces <= 10
  assert all(step.traces == 1 and step.executables == 1 for step in session.steps.values())
  # To stay on the devices, until a full run comes; then to train copies of one on the host.
  assert session.bases.reads == 2


def test_full_runs_start_from_the_base_each_time(tiny_files, datasets, tmp_path):
  """The copy they start from is not what the one before has trained."""
  session, model = Session(), tiny_files[0]
  given = [config(model, data, train__method='full') for data in datasets[:2]]
  for number in (0, 1, 0):
    place = tmp_path / f'{len(list(tmp_path.iterdir()))}'
    assert run_cohort(session, place, [given[number]])[0].state == 'done'
  first, again = (
    (tmp_path / name / '0' / 'metrics.jsonl').read_text().splitlines() for name in ('0', '2')
  )
  losses = [[json.loads(line).get('loss') for line in lines] for lines in (first, again)]
  assert losses[0] == losses[1] and session.bases.reads == 1
  with tiny.on_devices():
    tiny.run(tmp_path / 'alone', given[0])
  lines = tiny.read_jsonl(tmp_path / 'alone' / 'metrics.jsonl')
  alone = [line['loss'] for line in lines if 'loss' in line]
  assert [x for x in losses[0] if x is not None] == pytest.approx(alone, rel=1e-5)


def test_data_are_prepared_once_and_by_any_process(tiny_files, datasets, tmp_path, monkeypatch):
  loads, load = [], inputs.load_data
  monkeypatch.setattr(inputs, 'load_data', lambda *a: loads.append(a[0].data_path) or load(*a))
  prepared = tmp_path / 'prepared'
  given = [
    config(tiny_files[0], datasets[0], train__learning_rate=lr, train__seeds__data=seed)
    for lr, seed in ((1e-3, 1), (2e-3, 1), (1e-3, 2))
  ]
  run_cohort(Session(str(prepared)), tmp_path / 'a', given)
  assert len(loads) == 1 and len(list(prepared.iterdir())) == 1
  outcomes = run_cohort(Session(str(prepared)), tmp_path / 'b', given)
  assert len(loads) == 1 and len({one.run_id for one in outcomes}) == 3
  # A subset depends on the seed; a file that changes is another.
  some = [config(tiny_files[0], datasets[0], data__size=9, train__seeds__data=s) for s in (1, 2)]
  run_cohort(Session(str(prepared)), tmp_path / 'c', some)
  assert len(loads) == 3
  copy = tmp_path / 'copy.jsonl'
  copy.write_bytes(datasets[0].read_bytes())
  session = Session(str(prepared))
  (before,) = run_cohort(session, tmp_path / 'd', [config(tiny_files[0], copy)])
  tiny.write_records(copy, tiny.records(40))
  (after,) = run_cohort(session, tmp_path / 'e', [config(tiny_files[0], copy)])
  assert before.run_id != after.run_id and len(loads) == 5


def test_few_data_sets_are_held(tiny_files, datasets, tmp_path, monkeypatch):
  """A mapped array keeps its file open, and a study may have thousands of data sets."""
  monkeypatch.setattr(session_lib, '_SETS', 2)
  session = Session(str(tmp_path / 'prepared'))
  given = [config(tiny_files[0], data, data__size=8) for data in datasets[:4]]
  run_cohort(session, tmp_path / 'runs', given)
  assert len(session._data) == 2


@pytest.fixture
def questions(tmp_path):
  """Benchmark files of our own: one to choose in, one to write, one item seen in training."""
  letters = list(enumerate('abcdefgh'))
  choose = [
    {'question': f'what is {a} {i}?', 'choices': ['yes', 'no'], 'answer': i % 2} for i, a in letters
  ]
  say = [{'question': f'say {a} {i}', 'answer': a, 'max_new': 4} for i, a in letters]
  sums = tiny.write_records(tmp_path / 'choose.jsonl', choose)
  write = tiny.write_records(tmp_path / 'write.jsonl', say)
  return f'perplexity,custom:{sums},custom:{write}'


def asked(monkeypatch):
  """Counts texts that models score and prompts they go on from, by number of runs at once."""
  counts = {}
  score, generate = loglik.score, generation.Engine.generate

  def counted_score(subject, texts, *rest):
    counts[subject.runs] = counts.get(subject.runs, 0) + len(texts)
    return score(subject, texts, *rest)

  def counted_generate(self, requests, *rest):
    counts[self.subject.runs] = counts.get(self.subject.runs, 0) + len(requests)
    return generate(self, requests, *rest)

  monkeypatch.setattr(loglik, 'score', counted_score)
  monkeypatch.setattr(generation.Engine, 'generate', counted_generate)
  return counts


def test_a_base_is_asked_once_and_snapshots_at_once(
  tiny_files, datasets, questions, tmp_path, monkeypatch
):
  """And what comes of it is what each run finds by itself."""
  given = [
    config(tiny_files[0], data, eval__tasks=questions, eval__train_limit=4, train__learning_rate=lr)
    for data, lr in ((datasets[0], 1e-2), (datasets[1], 1e-2), (datasets[1], 3e-3))
  ]
  counts, session = asked(monkeypatch), Session()
  run_cohort(session, tmp_path / 'together', given)
  heldout = [
    tiny.read_jsonl(tmp_path / 'together' / str(i) / 'rows.jsonl')[0]['heldout-n'] for i in range(3)
  ]
  # Of the base: 8 x 2 continuations, 8 prompts, own data of two runs (the third has the second's).
  # Of the snapshots: three runs are asked as one; own data one by one.
  own = heldout[0] + heldout[1] + 2 * 4
  assert counts == {0: 16 + 8 + own + sum(heldout), 3: 16 + 8}
  run_cohort(session, tmp_path / 'later', [given[0].copy_and_resolve_references()])
  assert counts[3] == 24 and counts[0] == 16 + 8 + own + sum(heldout) + heldout[0] + 16 + 8

  for i, one in enumerate(given):
    rows = tiny.run(tmp_path / f'alone-{i}', one)
    held = tiny.read_jsonl(tmp_path / 'together' / str(i) / 'rows.jsonl')
    for row, want in zip(held, rows, strict=True):
      assert row.keys() == want.keys()
      for column, value in want.items():
        near = pytest.approx(value, rel=2e-4) if isinstance(value, float) else value
        assert row[column] == near, column
    for name in (p.name for p in (tmp_path / f'alone-{i}' / 'samples').iterdir()):
      mine = tiny.read_jsonl(tmp_path / 'together' / str(i) / 'samples' / name)
      theirs = tiny.read_jsonl(tmp_path / f'alone-{i}' / 'samples' / name)
      for a, b in zip(mine, theirs, strict=True):
        assert a.keys() == b.keys()
        assert {k: a[k] for k in a if k != 'logprobs'} == {k: b[k] for k in b if k != 'logprobs'}
        assert a.get('logprobs', []) == pytest.approx(b.get('logprobs', []), abs=1e-4)

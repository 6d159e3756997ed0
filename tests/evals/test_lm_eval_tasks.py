"""`lm_eval:TASK` beside our benchmarks: the columns are what lm_eval gives for its own model."""

import json
import sys

import pytest

from sft_jax.evals import compare, core, lm_eval_tasks, records
from sft_jax.evals.answers import Answers
from sft_jax.execution import evaluate as evaluate_lib
from sft_jax.utils.errors import UserError
from tests import tiny

CHOICE = """
task: ours
dataset_path: json
dataset_kwargs:
  data_files:
    test: {data}
    train: {data}
test_split: test
fewshot_split: train
output_type: multiple_choice
doc_to_text: "{{{{q}}}}"
doc_to_choice: choices
doc_to_target: gold
num_fewshot: {shots}
metric_list:
  - {{metric: acc, aggregation: mean, higher_is_better: true}}
  - {{metric: acc_norm, aggregation: mean, higher_is_better: true}}
metadata: {{version: 3.0}}
"""
WRITE = """
task: written
dataset_path: json
dataset_kwargs:
  data_files:
    test: {data}
test_split: test
output_type: generate_until
doc_to_text: "{{{{q}}}}"
doc_to_target: "{{{{gold}}}}"
generation_kwargs: {{until: ["x"], max_gen_toks: 6}}
filter_list:
  - {{name: whole, filter: [{{function: take_first}}]}}
  - name: digits
    filter: [{{function: regex, regex_pattern: "([0-9]+)"}}, {{function: take_first}}]
metric_list:
  - {{metric: exact_match, aggregation: mean, higher_is_better: true}}
"""


@pytest.fixture(scope='module')
def yaml(tmp_path_factory):
  """{name: path} of tasks on local data."""
  pytest.importorskip('lm_eval')
  directory = tmp_path_factory.mktemp('harness')
  rows = [
    {'q': f'{i} and {i + 1} make', 'choices': [str(i), str(2 * i + 1)], 'gold': i % 2}
    for i in range(12)
  ]
  data = directory / 'x.jsonl'
  data.write_text(''.join(json.dumps(row) + '\n' for row in rows))
  texts = {'choice': CHOICE, 'written': WRITE}
  for name, text in texts.items():
    (directory / f'{name}.yaml').write_text(text.format(data=data, shots=2))
  return {name: directory / f'{name}.yaml' for name in texts}


def settings(tiny_files, tasks, **changes):
  given = {'eval__tasks': tasks, 'eval__template': 'raw', 'data__path': ''}
  return tiny.config(*tiny_files, **(given | changes))


def evaluate(workdir, given):
  with tiny.on_devices():
    return evaluate_lib.evaluate(given, str(workdir))


@pytest.fixture(scope='module')
def theirs(tiny_files, yaml):
  """Results of lm_eval with its own model of the same weights."""
  pytest.importorskip('torch')
  import lm_eval
  from lm_eval.models.huggingface import HFLM
  from lm_eval.tasks import TaskManager

  model = HFLM(str(tiny_files[0]), device='cpu', dtype='float32', batch_size=2)
  out = {}
  for path in yaml.values():
    out |= lm_eval.simple_evaluate(
      model=model,
      tasks=[str(path)],
      task_manager=TaskManager(include_defaults=False),
      log_samples=False,
    )['results']
  return out


def test_columns_are_what_lm_eval_gives(tiny_files, yaml, theirs, tmp_path):
  tasks = ','.join(f'lm_eval:{path}' for path in yaml.values())
  row = evaluate(tmp_path / 'w', settings(tiny_files, tasks))
  names = {
    **{f'lm_eval-ours-{m}': ('ours', f'{m},none') for m in ('acc', 'acc_norm')},
    **{f'lm_eval-ours-{m}-stderr': ('ours', f'{m}_stderr,none') for m in ('acc', 'acc_norm')},
    **{
      f'lm_eval-written-exact_match-{way}': ('written', f'exact_match,{way}')
      for way in ('whole', 'digits')
    },
  }
  for column, (task, key) in names.items():
    assert row[column] == pytest.approx(theirs[task][key], abs=1e-6), column
  assert row['lm_eval-ours-n'] == 12 and row['lm_eval-ours-version'] == 3
  assert evaluate(tmp_path / 'w', settings(tiny_files, tasks)) == row
  # Records are comparable, the task with itself to begin with.
  read = records.read(str(tmp_path / 'w'))
  assert set(read.tasks) == {f'lm_eval:{path}' for path in yaml.values()}
  for name, part in read.tasks.items():
    assert len(part) == 12 and part[1]['prompt'].startswith('1 and 2 make'), name
  one = compare.compare(read, read)[0]
  assert one.scores[0] == pytest.approx(100 * row['lm_eval-ours-acc'])
  written = read.tasks[f'lm_eval:{yaml["written"]}'][0]
  assert written['about']['measures'] == ['exact_match-whole', 'exact_match-digits']
  assert isinstance(written['output'], str) and written['output-tokens'] > 0


def test_in_a_run_with_other_shots_and_fewer_items(tiny_files, yaml, tmp_path):
  given = tiny.config(
    *tiny_files,
    eval__tasks=f'perplexity,lm_eval:{yaml["choice"]}:1shot',
    eval__template='raw',
    eval__limit=5,
    train__epochs=1.0,
    train__snapshot_at='1',
  )
  rows = tiny.run(tmp_path / 'w', given)
  label = 'lm_eval-ours-1shot-n5'
  assert len(rows) == 2 and all(0 <= row[f'{label}-acc'] <= 1 for row in rows)
  assert [row[f'{label}-n'] for row in rows] == [5, 5]
  base, last = (records.read(f'{tmp_path}/w@{step}') for step in ('base', 'last'))
  (one,) = compare.compare(base, last)
  assert one.n == 5 and one.left_out == 0


def test_nothing_is_asked_twice(tiny_files, yaml, tmp_path, monkeypatch):
  """A process that dies while lm_eval counts: all answers are at hand when it starts again."""
  put, kept = Answers.put, []

  def noted(self, key, value):
    kept.append(key)
    put(self, key, value)

  monkeypatch.setattr(Answers, 'put', noted)
  given = settings(tiny_files, f'lm_eval:{yaml["choice"]}')
  with monkeypatch.context() as patch:
    patch.setattr(lm_eval_tasks, '_columns', lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
      evaluate(tmp_path / 'w', given)
  asked = len(kept)
  assert asked == 24
  evaluate(tmp_path / 'w', given)
  assert len(kept) == asked


@pytest.mark.parametrize(
  'tasks, changes, match',
  [
    ('lm_eval:/nowhere/x.yaml', {}, 'no such file'),
    ('lm_eval:{broken}', {}, 'lm_eval cannot load it'),
    ('lm_eval:{choice}', {'eval__template': 'study'}, "under the template 'study'"),
    ('lm_eval:{choice}', {'eval__budget_seconds': 5.0}, 'config.eval.budget_seconds'),
    ('lm_eval:{choice},lm_eval:{choice}', {}, 'named twice'),
  ],
)
def test_refused_before_anything_is_written(tiny_files, yaml, tmp_path, tasks, changes, match):
  (tmp_path / 'broken.yaml').write_text('task: [')
  tasks = tasks.format(**yaml, broken=tmp_path / 'broken.yaml')
  with pytest.raises(UserError, match=match) as e:
    evaluate(tmp_path / 'w', settings(tiny_files, tasks, **changes))
  assert '\n' not in str(e.value) and not (tmp_path / 'w').exists()


def test_without_lm_eval(tiny_files, yaml, tmp_path, monkeypatch):
  monkeypatch.setitem(sys.modules, 'lm_eval', None)
  given = settings(tiny_files, f'lm_eval:{yaml["choice"]}')
  with pytest.raises(UserError, match=r'lm_eval is not installed .*pip install'):
    evaluate(tmp_path / 'w', given)


def test_names_in_a_directory(yaml):
  """`DIR/NAME`: a name that its YAML files give."""
  loaded = lm_eval_tasks._load(f'{yaml["choice"].parent}/ours')
  assert list(loaded['tasks']) == ['ours']
  assert core.task_names('lm_eval:a:3shot,builtin')[0] == ['lm_eval:a:3shot', 'builtin']

"""Benchmarks inside a run: columns, records, resuming, what is refused before anything is done."""

import json
import math
import pathlib

import numpy as np
import pytest

from sft_jax.evals import benchmarks, loglik, suite
from sft_jax.evals.answers import Answers
from sft_jax.evals.benchmark import Services
from sft_jax.evals.files import LocalFiles
from sft_jax.evals.judge import CallableJudge
from sft_jax.evals.questions import Options
from sft_jax.execution import evaluate as evaluate_lib
from sft_jax.execution import runner, scoring
from sft_jax.utils.errors import UserError
from tests import tiny
from tests.evals.judge_server import JudgeServer
from tests.evals.tasks import choice_files
from tests.models.conftest import tiny_tokenizer

TASKS = 'perplexity,arc_easy:2shot:ll,boolq:0shot:ll,boolq:gen,gsm8k:0shot'


@pytest.fixture(scope='module')
def bench(tmp_path_factory):
  directory = tmp_path_factory.mktemp('bench')
  choice_files.write(directory)
  known = tiny.records()[0]
  questions = [known['instruction'], *(f'{n} birds and {n} more?' for n in range(5))]
  rows = [{'question': q, 'answer': f'So.\n#### {n}'} for n, q in enumerate(questions)]
  (directory / 'gsm8k_test.jsonl').write_text(''.join(json.dumps(r) + '\n' for r in rows))
  return directory


def settings(tiny_files, bench, **changes):
  given = {
    'eval__tasks': TASKS,
    'eval__data_dir': str(bench),
    'eval__template': 'raw',
    'train__epochs': 1.0,
    'train__snapshot_at': '1',
  }
  return tiny.config(*tiny_files, **(given | changes))


@pytest.fixture(scope='module')
def finished(tiny_files, bench, tmp_path_factory):
  workdir = tmp_path_factory.mktemp('run') / 'w'
  return workdir, tiny.run(workdir, settings(tiny_files, bench))


def evaluate(workdir, given):
  with tiny.on_devices():
    return evaluate_lib.evaluate(given, str(workdir))


def columns(row):
  return {name for name in row if name.startswith(('arc', 'boolq', 'BoolQ', 'gsm8k'))}


def is_count(name):
  return name.endswith('-n') and not name.endswith('-contaminated-n')


def test_rows_have_the_benchmarks_columns(finished):
  _, rows = finished
  for row in rows:
    heads = [name for name in columns(row) if is_count(name)]
    assert len(heads) == 4, columns(row)
    for head in heads:
      name = head.removesuffix('-n')
      assert 0 <= row[name] <= 100 and row[f'{name}-low'] <= row[name] <= row[f'{name}-high']
  assert columns(rows[0]) == columns(rows[1])
  assert not {'gsm8k-0shot', 'BoolQ-0shot'} & columns(rows[0]), 'these are not the published data'


def test_records_of_each_item_are_kept(finished):
  workdir, rows = finished
  for head in filter(is_count, columns(rows[0])):
    name = head.removesuffix('-n')
    for row in rows:
      records = tiny.read_jsonl(workdir / 'samples' / f'{name}-{row["step"]}.jsonl')
      assert len(records) == row[head] + row[f'{name}-missing']
      measure = records[0]['about']['measures'][0]
      mean = 100 * np.mean([record['scores'][measure] for record in records])
      assert mean == pytest.approx(row[name])
      assert all(math.isfinite(x) for r in records for x in r.get('logprobs', ()))
  assert not list(workdir.glob('answers-*')), 'kept only until an evaluation is done'


@pytest.mark.parametrize('tasks', ['boolq:ll', 'boolq:gen'])
def test_nothing_is_asked_twice(tiny_files, bench, tmp_path, monkeypatch, tasks):
  """A process that dies between two batches: what was answered is not asked again."""
  kept, checks = [], []
  put, go_on = Answers.put, scoring.Scoring.go_on

  def noted(self, key, value):
    kept.append(key)
    put(self, key, value)

  def fourth_time_dead(self):
    checks.append(len(kept))
    if len(checks) == 4:
      raise RuntimeError('died')
    go_on(self)

  monkeypatch.setattr(loglik, 'ROW', 32)
  monkeypatch.setattr(Answers, 'put', noted)
  monkeypatch.setattr(scoring.Scoring, 'go_on', fourth_time_dead)
  given = settings(
    tiny_files, bench, eval__tasks=tasks, eval__tokens_per_batch=32, eval__slots=2, eval__limit=8
  )
  with pytest.raises(RuntimeError, match='died'):
    tiny.run(tmp_path / 'w', given)
  assert kept and list((tmp_path / 'w').glob('answers-0.jsonl'))
  rows = tiny.run(tmp_path / 'w', given)
  assert len(rows) == 2
  undisturbed = tiny.run(tmp_path / 'v', given)
  # Of the base and of the snapshot, in the first workdir and in the second: each key once.
  base = kept[: len(kept) // 4]
  assert len(set(base)) == len(base) and len(kept) == 4 * len(base)
  same_scores(rows[0], undisturbed[0])


@pytest.mark.parametrize(
  'changes, match',
  [
    ({'eval__tasks': 'gsm9k'}, "no task 'gsm9k'.*did you mean gsm8k"),
    ({'eval__tasks': 'MMLU'}, "no task 'MMLU'.*did you mean mmlu"),
    ({'eval__tasks': 'gsm8k:ll'}, "'ll' is no reading of gsm8k"),
    ({'eval__tasks': 'gsm8k:-1shot'}, 'no number of shots'),
    ({'eval__tasks': 'arc_easy,arc_easy:ll'}, 'named twice'),
    ({'eval__tasks': 'arc_easy:999shot'}, '999 shots, and the data'),
    ({'eval__tasks': 'humaneval'}, 'config.eval.run_code'),
    ({'eval__tasks': 'mt_bench'}, 'SFT_JAX_JUDGE_URL'),
    ({'eval__tasks': 'hellaswag', 'eval__data_dir': '/nowhere'}, 'no such directory'),
    ({'eval__tasks': 'triviaqa'}, 'no file triviaqa'),
    ({'eval__template': 'poem'}, 'eval.template'),
  ],
)
def test_refused_before_anything_is_written(tiny_files, bench, tmp_path, changes, match):
  with pytest.raises(UserError, match=match) as e:
    tiny.run(tmp_path / 'w', settings(tiny_files, bench, **changes))
  assert '\n' not in str(e.value) and not (tmp_path / 'w').exists()


def test_a_judge_that_is_too_dear(tiny_files, bench, tmp_path, monkeypatch):
  """Told before the model has written anything."""
  monkeypatch.setenv('SFT_JAX_JUDGE_URL', 'http://127.0.0.1:9')
  monkeypatch.setenv('SFT_JAX_JUDGE_MODEL', 'stern')
  rows = [
    {'dataset': 'd', 'instruction': f'Do {i}.', 'output': 'Done.', 'generator': 'g'}
    for i in range(6)
  ]
  text = json.dumps(rows)
  (tmp_path / 'alpaca_eval_gpt4_baseline.json').write_text(text)
  given = settings(
    tiny_files,
    tmp_path,
    eval__tasks='alpaca_eval',
    eval__judge_budget='5 requests',
  )
  with pytest.raises(UserError, match='stern would cost up to 6 requests'):
    tiny.run(tmp_path / 'w', given)
  assert not (tmp_path / 'w').exists()


def test_a_judge_that_tells_no_probabilities(tmp_path):
  """It says who wins of all but one item, and the weighted rate of none."""
  rows = [
    {'dataset': 'd', 'instruction': f'Do {i}.', 'output': 'Done.', 'generator': 'g'}
    for i in range(6)
  ]
  (tmp_path / 'alpaca_eval_gpt4_baseline.json').write_text(json.dumps(rows))
  said = iter(['m', 'm', 'M', '?', 'M', 'm'])
  services = Services(judge=CallableJudge(lambda messages: next(said), 'stern'))
  options = Options(tiny_tokenizer(), 'raw', (), 512, services=services)
  wanted = benchmarks.parse('alpaca_eval')
  task = suite.BenchmarkTask(wanted, LocalFiles(str(tmp_path)), options)
  outputs = [[{'text': 'Did.', 'tokens': 2, 'finish': 'end'}] for _ in rows]
  scores = task.scores(*task._graded(outputs))
  name = 'alpaca_eval-0shot-gen@stern'
  assert (scores[f'{name}-n'], scores[f'{name}-missing']) == (5, 1)
  mark = '@stern-n6'
  assert scores[f'alpaca_eval_v2-missing{mark}'] == 1 and 0 < scores[name] < 100
  assert scores[f'alpaca_eval_v2-total{mark}'] == scores[name]
  assert f'{name}-weighted' not in scores and f'alpaca_eval_v2-weighted{mark}' not in scores


def test_what_a_judge_owes_is_asked_for_again(tiny_files, tmp_path, monkeypatch):
  """A judge that refused some items: they are missing, and asked for at the next start, alone."""
  rows = [
    {'dataset': 'd', 'instruction': f'Do {i}.', 'output': 'Done.', 'generator': 'g'}
    for i in range(4)
  ]
  (tmp_path / 'alpaca_eval_gpt4_baseline.json').write_text(json.dumps(rows))
  kept = []
  put = Answers.put
  monkeypatch.setattr(Answers, 'put', lambda self, *what: kept.append(what) or put(self, *what))
  given = settings(tiny_files, tmp_path, eval__tasks='alpaca_eval', data__path='')
  name = 'alpaca_eval-0shot-gen@stern'
  with JudgeServer(lambda body: 'm') as server:
    monkeypatch.setenv('SFT_JAX_JUDGE_URL', server.url)
    monkeypatch.setenv('SFT_JAX_JUDGE_MODEL', 'stern')
    server.troubles = ['400'] * 7  # Each item is asked for twice: all but the last time.
    first = evaluate(tmp_path / 'e', given)
    owed = first[f'{name}-missing']
    assert owed == 3 and first[f'{name}-n'] == 1
    asked, written = len(server.requests), len(kept)
    again = evaluate(tmp_path / 'e', given)
    assert again[f'{name}-missing'] == 0 and again[f'{name}-n'] == 4
    assert len(server.requests) == asked + owed and len(kept) == written == 4
    assert evaluate(tmp_path / 'e', given) == again and len(server.requests) == asked + owed
  assert not list((tmp_path / 'e').glob('answers-*'))


def test_a_limit_is_in_the_column_s_name(tiny_files, bench, tmp_path):
  given = settings(tiny_files, bench, eval__tasks='gsm8k:0shot', eval__limit=3)
  rows = tiny.run(tmp_path / 'w', given)
  assert rows[0]['gsm8k-0shot-gen-n3-n'] == 3


def test_every_benchmark_is_known_by_its_own_name():
  for name, benchmark in benchmarks.BENCHMARKS.items():
    assert benchmark.name == name
    for reading in benchmark.readings:
      wanted = benchmarks.parse(f'{name}:{benchmark.shots[-1]}shot:{reading}')
      assert (wanted.reading, wanted.shots) == (reading, benchmark.shots[-1])
      assert benchmarks.parse(wanted.name) == wanted


def same_scores(row, other):
  assert columns(row) == columns(other)
  for name in columns(row):
    assert row[name] == pytest.approx(other[name], abs=1e-4), name


def test_a_model_by_itself_scores_as_in_a_run(finished, tiny_files, bench, tmp_path):
  """But that nothing was trained on, so nothing can be contaminated."""
  _, rows = finished
  given = settings(tiny_files, bench, eval__tasks='arc_easy:2shot:ll,gsm8k:0shot', data__path='')
  row = evaluate(tmp_path / 'e', given)
  assert row['data_name'] == 'pretrain' and columns(row) < columns(rows[0])
  assert row['template'] == 'raw', 'that of the questions, not of config.data'
  for name in columns(row):
    assert row[name] == pytest.approx(rows[0][name], abs=1e-4), name
  assert tiny.read_jsonl(tmp_path / 'e' / 'rows.jsonl') == [row]
  assert evaluate(tmp_path / 'e', given) == row
  # Another task in the same workdir adds to the row; another model or template is refused.
  given.eval.tasks = 'boolq:0shot:ll'
  more = evaluate(tmp_path / 'e', given)
  assert more.items() >= row.items() and more.keys() > row.keys()
  assert tiny.read_jsonl(tmp_path / 'e' / 'rows.jsonl') == [more]
  given.eval.template = 'study'
  with pytest.raises(UserError, match="another evaluation: template was 'raw', is 'study'"):
    evaluate(tmp_path / 'e', given)
  given.eval.template, given.model.path = 'raw', f'run:{finished[0]}'
  with pytest.raises(UserError, match='another evaluation: run-id was'):
    evaluate(tmp_path / 'e', given)
  with pytest.raises(UserError, match='not a run'):
    tiny.run(tmp_path / 'e', settings(tiny_files, bench))


def test_few_items_have_no_error_shown():
  row = {'a-4shot': 25.0, 'a-4shot-stderr': 22.0, 'a-4shot-n': 4, 'a-4shot-contaminated-n': 30}
  row |= {'ppl-heldout-response': 9.0, 'ppl-heldout-response-stderr': 0.25, 'heldout-n': 16}
  shown = lambda name: ' '.join(evaluate_lib._line(row, name).split())
  assert shown('a-4shot') == 'a-4shot 25.00 (n=4, too few for ±)'
  assert shown('ppl-heldout-response') == 'ppl-heldout-response 9.00 ± 0.25'
  row['heldout-n'], row['a-4shot-n'] = 9, 10
  assert shown('ppl-heldout-response') == 'ppl-heldout-response 9.00 (n=9, too few for ±)'
  assert shown('a-4shot') == 'a-4shot 25.00 ± 22.00'
  assert shown('b') == 'b not graded'


def test_a_snapshot_and_its_adapter(finished, tiny_files, bench, tmp_path):
  workdir, rows = finished
  given = settings(tiny_files, bench, model__path=f'run:{workdir}@last')
  row = evaluate(tmp_path / 'e', given)
  same_scores(row, rows[1])
  assert row['step'] == rows[1]['step'] and row['epoch'] == 1 and row['run-id'] == rows[1]['run-id']
  trained = settings(tiny_files, bench)
  trained.export.format = 'peft'
  with tiny.on_devices():
    adapter = runner.export(trained, str(workdir))
  given = settings(tiny_files, bench, data__path='', model__adapter=adapter)
  given.eval.tasks = 'arc_easy:2shot:ll,gsm8k:0shot'
  row = evaluate(tmp_path / 'p', given)
  for name in columns(row):
    assert row[name] == pytest.approx(rows[1][name], abs=1e-4), name
  # The same factors at another scale are another model.
  file = pathlib.Path(adapter) / 'adapter_config.json'
  file.write_text(json.dumps(json.loads(file.read_text()) | {'lora_alpha': 1}))
  with pytest.raises(UserError, match='another'):
    evaluate(tmp_path / 'p', given)


@pytest.mark.parametrize(
  'changes, match',
  [
    ({'model__path': 'run:/nowhere'}, '/nowhere'),
    ({'model__path': 'run:{workdir}@7'}, 'no weights of step 7'),
    ({'model__path': 'run:{workdir}@first'}, "'first' is no step"),
    ({'model__adapter': '/nowhere'}, 'no PEFT adapter'),
    ({'data__path': '', 'eval__tasks': 'perplexity'}, 'nothing to score'),
  ],
)
def test_evaluations_that_cannot_be(finished, tiny_files, bench, tmp_path, changes, match):
  changes = {k: v.format(workdir=finished[0]) for k, v in changes.items()}
  with pytest.raises(UserError, match=match) as e:
    evaluate(tmp_path / 'e', settings(tiny_files, bench, **changes))
  assert '\n' not in str(e.value) and not (tmp_path / 'e').exists()


def test_an_evaluation_in_a_run_s_workdir(finished, tiny_files, bench):
  with pytest.raises(UserError, match='choose another --workdir'):
    evaluate(finished[0], settings(tiny_files, bench))

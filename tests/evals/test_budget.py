"""What benchmarks cost: counts by hand and by the engines, and subsets that fit a time."""

import json

import numpy as np
import pytest

from sft_jax.evals import benchmarks, budget, layout, loglik, subset
from sft_jax.evals.files import LocalFiles
from sft_jax.evals.questions import Options
from sft_jax.evals.suite import BenchmarkTask
from sft_jax.utils.errors import UserError
from tests.evals import toy
from tests.evals.tasks import choice_files
from tests.models.conftest import tiny_tokenizer


@pytest.fixture(scope='module')
def tasks(tmp_path_factory):
  directory = tmp_path_factory.mktemp('bench')
  choice_files.write(directory)
  rows = [{'question': f'{n} birds?', 'answer': f'So.\n#### {n}'} for n in range(40)]
  (directory / 'gsm8k_test.jsonl').write_text(''.join(json.dumps(r) + '\n' for r in rows))
  options = Options(tiny_tokenizer(), 'raw', (), 4096, slots=4)
  make = lambda name: BenchmarkTask(benchmarks.parse(name), LocalFiles(str(directory)), options)
  return {name: make(name) for name in ('gsm8k:0shot', 'gsm8k:4shot', 'boolq:ll')}


def test_generation_is_counted_at_its_most(tasks):
  task = tasks['gsm8k:0shot']
  found = budget.work(task, task.questions, 'nothing')
  lengths = [len(question.ids) for question in task.questions]
  padding = sum(layout.width_class(length, 32) - length for length in lengths)
  total = sum(lengths)
  assert found == budget.Work(40, total, total, 40 * 512 / 4, 40 * 512, padding=padding)


def test_shots_are_read_once_where_beginnings_are_shared(tasks):
  task = tasks['gsm8k:4shot']
  shared = budget.work(task, task.questions, 'beginnings')
  alone = budget.work(task, task.questions, 'rows')
  assert shared.asked == alone.asked == alone.shared
  # All 40 go on from the four shots; what follows them is short.
  assert alone.shared / 40 < shared.shared < alone.shared / 10
  groups = layout.beginnings([q.ids for q in task.questions])
  own = sum(len(task.questions[i].ids) - len(prefix) for prefix, part in groups for i in part)
  assert shared.shared == own + sum(len(prefix) for prefix, _ in groups)


def test_choices_are_counted_as_the_engine_lays_them_out(tasks, monkeypatch):
  task = tasks['boolq:ll']
  found = budget.work(task, task.questions, 'beginnings')
  pairs = [(q.ids, more) for q in task.questions for more in q.continuations]
  assert found.requests == len(pairs) == 2 * len(task.questions)
  assert found.asked == sum(len(ids) + len(more) - 1 for ids, more in pairs)
  assert found.shared < 0.8 * found.asked and found.new == 0
  # Yes and no stand behind the same position, and go on from the same as far as they are equal.
  before = [
    {tuple(ids[:k]) for ids in question.continuations for k in range(len(ids))}
    for question in task.questions
  ]
  assert found.scored == sum(map(len, before)) < sum(len(more) for _, more in pairs)
  texts = [layout.Text(np.concatenate([ids, more]), len(ids)) for ids, more in pairs]
  assert found.shared + found.padding == sum(layout.plan(texts, loglik.ROW).widths)


def test_seconds_are_tokens_over_rates():
  work = budget.Work(1, 9999, 200, 3.0, 12, 50)
  assert budget.Speed(100.0, 0.5).seconds(work) == 2 + 1.5
  assert budget.Speed(100.0, 0.5, 0.25).seconds(work) == 2 + 1.5 + 12.5
  assert budget.Speed(100.0, 0.5).seconds(work._replace(padding=100)) == 3 + 1.5


def test_measuring_runs_the_engines(tasks, monkeypatch):
  texts, requests = [], []
  score, generate = loglik.score, budget.Engine.generate
  monkeypatch.setattr(loglik, 'ROW', 64)
  monkeypatch.setattr(
    loglik,
    'score',
    lambda s, t, *a: texts.append((len(t), len(t[0].ids) - t[0].start)) or score(s, t, *a),
  )
  monkeypatch.setattr(
    budget.Engine, 'generate', lambda s, r, *a: requests.append(r) or generate(s, r, *a)
  )
  small = [tasks['gsm8k:0shot'], tasks['boolq:ll']]
  for task in small:
    monkeypatch.setattr(
      task, 'options', Options(tiny_tokenizer(), 'raw', (), 96, slots=4, tokens_per_batch=128)
    )
  speed = budget.measure(toy.subject(), small)
  # Twice with one token of each text scored, twice with all.
  assert texts == [(2, 1)] * 2 + [(2, 64)] * 2 and [len(r) for r in requests] == [4, 4]
  assert all(one.max_new == 17 for one in requests[0])
  assert 0 < speed.tokens_per_s < np.inf and 0 < speed.step_s < 60 and 0 <= speed.scored_s < 1
  assert budget.measure(toy.subject(), small[1:]).step_s == 0


def test_subsets_that_fit_are_nested_and_equally_sure(tasks):
  speed = budget.Speed(1e4, 0.01)
  some = [tasks['gsm8k:0shot'], tasks['gsm8k:4shot']]
  whole = speed.seconds(budget.total(some, 'beginnings'))
  assert budget.fitting(some, 'beginnings', speed, whole + 1) == ({}, 0.0)
  counts, width = budget.fitting(some, 'beginnings', speed, whole / 2)
  assert len({*counts.values()}) == 1 and 15 <= counts['gsm8k:0shot:gen'] <= 20
  spent = 0.0
  for task in some:
    items = [question.item for question in task.questions]
    first = subset.order(items, 0, False)[: counts[task.wanted.name]]
    kept = {item.id for item in first}
    part = [question for question in task.questions if question.item.id in kept]
    spent += speed.seconds(budget.work(task, part, 'beginnings'))
    assert subset.half_width(first, {'': 40}, False) <= width
  # One more item of each, of 512 new tokens in 4 slots at most, would not fit.
  assert whole / 2 - 2 * 512 / 4 * 0.01 - 0.3 < spent <= whole / 2
  with pytest.raises(UserError, match='do not pay for the fewest'):
    budget.fitting(some, 'beginnings', speed, 1e-3)


def test_the_line(tasks):
  work = budget.Work(12, 3000, 1000, 50.0, 200)
  assert budget.line(work, None) == (
    '12 requests, 1,000 tokens to read (3,000 as asked), at most 200 to write'
  )
  assert budget.line(work, budget.Speed(500.0, 0.2)).endswith(
    '; at most about 0:12 (500 tokens/s read, 20 written)'
  )
  assert budget.line(work._replace(new=0, steps=0.0), budget.Speed(500.0, 0.0)).endswith(
    '(3,000 as asked); about 0:02 (500 tokens/s read)'
  )

"""What runs on one base share."""

import json

from sft_jax.evals import benchmarks, suite
from sft_jax.evals.answers import Answers
from sft_jax.evals.benchmark import Services
from sft_jax.evals.files import LocalFiles
from sft_jax.evals.judge import CallableJudge
from sft_jax.evals.model import Subject
from sft_jax.evals.questions import Options
from sft_jax.execution import joint
from tests.models.conftest import tiny_tokenizer


class Scoring:
  """As far as a base is concerned, of one task."""

  def __init__(self, task, judge):
    self.task, self.judge, self.puts = task, judge, []

  def go_on(self):
    pass

  def reckon(self, subject):
    pass

  def open_tasks(self, step):
    return [self.task]

  def answers(self, step):
    return Answers()

  def unanswered(self):
    return self.judge.unanswered

  def put(self, task, step, found, done=True):
    self.puts.append((found[0], done))


def test_what_a_judge_owes_of_a_base_is_not_done_with(tmp_path, monkeypatch):
  """Nor handed to the other runs; what it gave later is."""
  rows = [
    {'dataset': 'd', 'instruction': f'Do {i}.', 'output': 'Done.', 'generator': 'g'}
    for i in range(3)
  ]
  (tmp_path / 'alpaca_eval_gpt4_baseline.json').write_text(json.dumps(rows))
  said = ['m', None, 'M', 'm', 'm', 'M']
  judge = CallableJudge(lambda messages: said.pop(0), 'stern')
  options = Options(tiny_tokenizer(), 'raw', (), 512, services=Services(judge=judge))
  task = suite.BenchmarkTask(benchmarks.parse('alpaca_eval'), LocalFiles(str(tmp_path)), options)
  one = {'text': 'Did.', 'tokens': 2, 'finish': 'end'}
  monkeypatch.setattr(suite, 'written', lambda *_, **__: [[dict(one) for _ in rows]])
  scoring, found = Scoring(task, judge), {}
  missing = f'{task.column}-missing'
  for owed in (1, 0, 0):
    joint.give_base(scoring, Subject(None, {}, None), 'base', found, {})
    columns, done = scoring.puts[-1]
    assert (columns[missing], done, bool(found)) == (owed, not owed, not owed)
  assert not said, 'asked twice, and not a third time'

"""What a benchmark makes of its own records, read back."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sft_jax.evals import benchmarks, core, suite
from sft_jax.evals.answers import Answers
from sft_jax.evals.benchmark import Grade, Services
from sft_jax.evals.files import LocalFiles
from sft_jax.evals.judge import CallableJudge
from sft_jax.evals.model import Plain, Subject
from sft_jax.evals.questions import Options
from sft_jax.evals.suite import BenchmarkTask
from sft_jax.parallel import mesh as meshes
from tests.evals.tasks import choice_files
from tests.models.conftest import tiny_tokenizer


@pytest.fixture
def make(tmp_path):
  """A benchmark by name, and what it finds where every output is as given."""
  choice_files.write(tmp_path)
  maths = [{'question': f'{n} birds?', 'answer': f'So.\n#### {n}'} for n in range(4)]
  asked = [
    {'dataset': 'd', 'instruction': f'Do {n}.', 'output': 'Done.', 'generator': 'g'}
    for n in range(4)
  ]
  (tmp_path / 'gsm8k_test.jsonl').write_text(''.join(json.dumps(row) + '\n' for row in maths))
  (tmp_path / 'alpaca_eval_gpt4_baseline.json').write_text(json.dumps(asked))

  def task(name, text, limit=0, template='raw'):
    # A judge that gives no item the same.
    said = iter('mMmm')
    services = Services(judge=CallableJudge(lambda messages: next(said), 'stern'))
    options = Options(tiny_tokenizer(), template, (), 512, limit=limit, services=services)
    one = BenchmarkTask(benchmarks.parse(name), LocalFiles(str(tmp_path)), options)
    outputs = [[{'text': text, 'tokens': 1, 'finish': 'end'}] for _ in one.questions]
    return one, one.scores(*one._graded(outputs))

  task.files = LocalFiles(str(tmp_path))
  return task


def records_of(scores):
  (records,) = (value for key, value in scores.items() if key.endswith('-items'))
  return json.loads(json.dumps(records))


@pytest.mark.parametrize('name', ['gsm8k:0shot', 'alpaca_eval', 'boolq:1shot:gen'])
def test_its_records_give_its_scores(make, name):
  task, scores = make(name, 'The answer is 2')
  # Whatever another run was trained on is none of this one's.
  records = [record | {'contaminated': True} for record in records_of(scores)]
  assert json.loads(json.dumps(task.scores(*task.taken_over(records)))) == json.loads(
    json.dumps(scores)
  )
  seen = task.adapted(task.options, [True, *[False] * (len(records) - 1)])
  own = seen.scores(*seen.taken_over(records))
  assert [record['contaminated'] for record in records_of(own)] == seen.contaminated


def test_records_of_other_questions_are_not_taken(make):
  task, scores = make('gsm8k:0shot', '2')
  good = records_of(scores)
  assert task.taken_over(good) is not None and task.taken_over(good[:3]) is None
  for change in (
    {'id': 'other'},
    {'digest': 'other'},
    {'prompt': 'other'},
    {'shots': 3},
    {'cut': 1},
    {'about': good[0]['about'] | {'version': 99}},
    {'about': good[0]['about'] | {'template': 'chat'}},
  ):
    assert task.taken_over([good[0] | change, *good[1:]]) is None, change
  lost = {key: value for key, value in good[0].items() if key != 'scores'}
  assert task.taken_over([lost | {'missing': True}, *good[1:]]) is None, 'one is not graded'
  for other in (make('gsm8k:4shot', '2')[0], make('gsm8k:0shot', '2', limit=2)[0]):
    assert other.taken_over(good) is None
  options = dataclasses.replace(task.options, template='study')
  assert task.adapted(options, None).taken_over(good) is None


@pytest.mark.parametrize('name', ['arc_easy:0shot:ll', 'boolq:0shot:gen', 'gsm8k:0shot'])
def test_a_model_that_computes_no_numbers_has_no_score(make, name):
  """The first choice, or an empty text, would pass for its answer."""
  one, _ = make('gsm8k:0shot', '1')
  tokenizer = one.options.tokenizer
  nothing = lambda params, tokens: jnp.full((*tokens.shape, len(tokenizer)), params)
  mesh = meshes.make_mesh(1, 1, 1, devices=jax.devices()[:1])
  if name == 'gsm8k:0shot':
    subject = Subject(Plain(nothing, len(tokenizer), 512), jnp.float32(np.nan), mesh)
    found = core.BuiltinShort(core.Writer(tokenizer, 'study', 4), 2).run(subject, Answers())
    assert found.keys() == {'builtin-em'} and np.isnan(found['builtin-em'])
  task = BenchmarkTask(benchmarks.parse(name), make.files, one.options)
  for value in (np.nan, 0.0) if name.endswith('ll') else (np.nan,):
    subject = Subject(Plain(nothing, len(tokenizer), 512), jnp.float32(value), mesh)
    scores = task.run(subject, Answers())
    if value == 0:
      assert scores[f'{task.column}-n'] == len(task.questions)
    else:
      assert scores.keys() == {task.column} and np.isnan(scores[task.column])


def test_a_conversation_too_long_for_the_window_is_counted(make, monkeypatch):
  """Its second turn is asked with the room an answer needs, not with what happens to be left."""
  one, _ = make('gsm8k:0shot', '1')
  window = len(one.questions[0].ids) + 40
  options = dataclasses.replace(one.options, window=window)
  wanted = benchmarks.parse('gsm8k:0shot')
  reading = dataclasses.replace(
    wanted.benchmark.readings['gen'], turns=lambda item: ['And twice that?'], max_new=20,
    grade=None, grade_all=lambda texts, items, services: [Grade({'acc': 1.0}, 'x') for _ in items],
  )  # fmt: skip
  benchmark = dataclasses.replace(wanted.benchmark, readings={'gen': reading})
  task = BenchmarkTask(dataclasses.replace(wanted, benchmark=benchmark), make.files, options)
  seen = []

  def written(subject, requests, answers, *args, **more):
    seen.append(requests)
    text = 'word ' * 60 if len(seen) == 1 else 'short'
    return [[{'text': text, 'tokens': 60, 'finish': 'length'} for _ in requests]]

  monkeypatch.setattr(suite, 'written', written)
  scores = task.run(Subject(None, {}, None), Answers())
  first, second = seen
  assert all(request.max_new == 20 for request in [*first, *second])
  assert {len(request.prompt) for request in second} == {window - 20}
  assert second[0].prompt[:20] == first[0].prompt[:20]
  assert [record['cut'] for record in records_of(scores)] == [True] * 4
  assert scores[f'{task.column}-cut'] == 4

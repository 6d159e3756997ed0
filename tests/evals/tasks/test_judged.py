"""MT-Bench and AlpacaEval with a judge on this machine: both countings, order, what is missing."""

import json
import math
import re

import pytest

from sft_jax.evals import judge, prompts
from sft_jax.evals.benchmark import Services
from sft_jax.evals.chats import Amount, Cache, Target
from sft_jax.evals.endpoint import Endpoint
from sft_jax.evals.files import HubFiles, LocalFiles
from sft_jax.evals.judge import CallableJudge, EndpointJudge
from sft_jax.evals.tasks import alpaca_eval, mt_bench
from sft_jax.utils.errors import UserError
from tests.evals.judge_server import JudgeServer
from tests.evals.test_judge import records

BENCHMARKS = [mt_bench.BENCHMARK, alpaca_eval.BENCHMARK]


@pytest.fixture
def files(tmp_path):
  """Two questions of MT-Bench, one with references, and three of AlpacaEval."""

  def write(name, *rows):
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text('\n'.join(json.dumps(row) for row in rows))

  write('mt_bench/judge_prompts.jsonl', *(row for row, _ in records()))
  write(
    'mt_bench/question.jsonl',
    {'question_id': 81, 'category': 'writing', 'turns': ['Write.', 'Again.']},
    {'question_id': 111, 'category': 'math', 'turns': ['1+1?', 'And 2+2?'], 'reference': ['x']},
  )
  write(
    'mt_bench/reference_answer/gpt-4.jsonl',
    {'question_id': 111, 'choices': [{'index': 0, 'turns': ['two', 'four']}]},
  )
  baseline = [
    {'dataset': 'koala', 'instruction': f'Do {i}.', 'output': f'Done {i}.', 'generator': 'gpt4'}
    for i in range(3)
  ]
  (tmp_path / 'alpaca_eval_gpt4_baseline.json').write_text(json.dumps(baseline))
  return LocalFiles(str(tmp_path))


@pytest.mark.parametrize('benchmark', BENCHMARKS, ids=lambda benchmark: benchmark.name)
def test_without_a_judge_or_data_there_is_one_line(benchmark):
  item, _ = benchmark.example
  with pytest.raises(UserError, match='needs a judge model'):
    benchmark.readings['gen'].grade_all([('a', 'b')], [item], Services())
  with pytest.raises(UserError, match='not on the hub'):
    benchmark.read(HubFiles())


def test_mt_bench_asks_the_model_two_turns(files):
  (writing, maths), shots = mt_bench.read(files)
  reading = mt_bench.BENCHMARK.readings['gen']
  assert not shots and (writing.id, writing.group) == ('81', 'writing')
  assert prompts.messages(reading.ask(maths, ())) == [{'role': 'user', 'content': '1+1?'}]
  assert list(reading.turns(maths)) == ['And 2+2?']
  assert (reading.temperature(writing), reading.temperature(maths)) == (0.7, 0.0)


def test_mt_bench_asks_the_judge_with_references_where_there_are_any(files):
  writing, maths = mt_bench.read(files)[0]
  first, second = mt_bench.judged(writing, ('one', 'two'))
  assert first == [
    {'role': 'system', 'content': 'sys single-v1'},
    {'role': 'user', 'content': 'one Write.'},
  ]
  assert second[0]['content'] == 'sys single-v1-multi-turn'
  assert second[1]['content'] == 'one two Write. Again.'
  first, second = mt_bench.judged(maths, ('2', '4'))
  assert (first[0]['content'], first[1]['content']) == ('sys single-math-v1', '2 1+1? two')
  assert second[0]['content'] == 'sys single-math-v1-multi-turn'
  assert second[1]['content'] == '2 4 1+1? And 2+2? two four'


@pytest.mark.parametrize(
  ('name', 'old', 'new', 'what'),
  [
    ('question.jsonl', '"writing"', '"poetry"', "is 'poetry', none of"),
    ('question.jsonl', '["Write.", "Again."]', '["Write."]', 'has 1 entries, needs 2'),
    ('question.jsonl', '111', '112', '112 has no reference answer'),
    ('reference_answer/gpt-4.jsonl', '"choices": [', '"choices": [3, ', 'is no list of answers'),
  ],
)
def test_mt_bench_data_are_checked(files, tmp_path, name, old, new, what):
  path = tmp_path / 'mt_bench' / name
  path.write_text(path.read_text().replace(old, new))
  with pytest.raises(UserError, match=what):
    mt_bench.read(files)


def test_both_countings_by_hand(files):
  items = mt_bench.read(files)[0]
  # By question: first turn, second turn. The second of 111 has a rating for FastChat only.
  answers = iter(['Rating: [[4]]', 'Rating: [[7]]', '[[9]]', 'I give it [[2]].'])
  judged = CallableJudge(lambda messages: next(answers), 'judge-1')
  grades = mt_bench.grade_all([('a', 'b'), ('c', 'd')], items, Services(judged))
  assert [grade.scores for grade in grades] == [
    {'turn1': 4.0, 'turn2': 7.0, 'turn2-oc': 7.0},
    {'turn1': 9.0, 'turn2': 2.0},
  ]
  assert [grade.extracted for grade in grades] == ['4 7', '9 2']
  assert grades[0].notes['judgments'] == ['Rating: [[4]]', 'Rating: [[7]]']
  assert mt_bench.summary(items, grades) == {
    'mtbench160-total': (4 + 7 + 9 + 2) / 4,
    'mtbench160-writing': 5.5,
    'mtbench160-math': 5.5,
    'mtbench160-missing': 0,
    'mtbench-total': 7.0,
    'mtbench-writing': 7.0,
    'mtbench-missing': 1,
    'mtbench-judge': 'judge-1',
  }
  columns = mt_bench.summary(items * 40, grades * 40)
  assert (columns['mtbench-total'], columns['mtbench-writing']) == (7.0, 7.0)
  assert 'mtbench-math' not in columns and columns['mtbench-missing'] == 40


def test_missing_ratings_are_counted_never_zero(files):
  items = mt_bench.read(files)[0]
  answers = iter([None, 'nonsense', 'Rating: [[3]]', None])
  judged = CallableJudge(lambda messages: next(answers), 'judge-1')
  grades = mt_bench.grade_all([('a', 'b')] * 2, items, Services(judged))
  assert grades[0] is None
  assert grades[1].scores == {'turn1': 3.0} and grades[1].extracted == '3 ?'
  columns = mt_bench.summary(items, grades)
  assert columns['mtbench160-total'] == 3.0 and columns['mtbench160-missing'] == 3
  assert mt_bench.summary(items, [None] * 2) == {'mtbench160-missing': 4, 'mtbench-missing': 2}


def longer(body):
  """Prefers the longer output; of m and M."""
  outputs = re.findall(r'"output": "(.*)"\n', body['messages'][-1]['content'])
  return 'm' if len(outputs[0]) > len(outputs[1]) else 'M'


def test_alpaca_eval_undoes_its_order(files):
  items = alpaca_eval.read(files)[0] * 7
  items = [item.__class__(str(i), item.fields, item.group) for i, item in enumerate(items)]
  outputs = ['Longer than that one is.' if i % 3 else 'No.' for i in range(len(items))]
  orders = []
  for seed in (0, 1):
    judged = CallableJudge(lambda messages: longer({'messages': messages}), 'judge-2', seed)
    grades = alpaca_eval.grade_all(outputs, items, Services(judged))
    assert [grade.scores['win'] for grade in grades] == [float(i % 3 > 0) for i in range(21)]
    orders.append([grade.notes['output-first'] for grade in grades])
  assert orders[0] != orders[1] and len(set(orders[0])) == 2
  columns = alpaca_eval.summary(items, grades)
  assert columns == {
    'alpaca_eval_v2-missing': 0,
    'alpaca_eval_v2-total': pytest.approx(200 / 3),
    'alpaca_eval_v2-length': (7 * 3 + 14 * 24) / 21,
    'alpaca_eval_v2-length-baseline': 7.0,
    'alpaca_eval_v2-judge': 'judge-2',
  }
  whole = alpaca_eval.summary([items[0]] * 805, [grades[1], *[grades[0]] * 3, *[None] * 801])
  assert whole['alpaca_eval_v2-total'] == 25.0 and whole['alpaca_eval_v2-missing'] == 801


def test_alpaca_eval_over_http(files, tmp_path):
  items = alpaca_eval.read(files)[0]
  with JudgeServer(longer) as server:
    server.top = lambda body: [
      ('m', math.log(0.6 if longer(body) == 'm' else 0.2)),
      ('M', math.log(0.2 if longer(body) == 'm' else 0.6)),
    ]
    server.troubles = ['500', 'html']

    def graded():
      cache = Cache(tmp_path / 'judgments.jsonl')
      endpoint = Endpoint(Target(server.url, 'judge-3'), cache=cache, backoff_s=0.01)
      return alpaca_eval.grade_all(['Long enough.'] * 3, items, Services(EndpointJudge(endpoint)))

    grades = graded()
    assert len(server.requests) == 3 + 2
    assert graded() == grades and len(server.requests) == 5
    # A judge that names neither: no winner, but its log-probabilities are there.
    server.rule = lambda body: 'Both.'
    (grade,) = alpaca_eval.grade_all(
      ['Something else.'], items[:1], Services(EndpointJudge(Endpoint(Target(server.url, 'j'))))
    )
  assert [grade.scores for grade in grades] == [{'win': 1.0, 'weighted': pytest.approx(0.75)}] * 3
  assert 'win' not in grade.scores and 'weighted' in grade.scores
  columns = alpaca_eval.summary(items, grades)
  assert columns['alpaca_eval_v2-weighted'] == pytest.approx(75.0)
  assert columns['alpaca_eval_v2-judge'] == 'judge-3'


def test_another_wording_for_the_judge_is_named(files, real, tmp_path):
  """The published columns are of FastChat's own prompts."""
  assert mt_bench.BENCHMARK.variant(mt_bench.read(real)[0]) == ''
  names = {mt_bench.BENCHMARK.variant(mt_bench.read(files)[0])}
  path = tmp_path / 'mt_bench' / 'judge_prompts.jsonl'
  path.write_text(path.read_text().replace('{answer}', '{answer} Be kind.'))
  names.add(mt_bench.BENCHMARK.variant(mt_bench.read(files)[0]))
  assert len(names) == 2 and all(re.fullmatch('mt_bench-judged[0-9a-f]{8}', n) for n in names)


def test_the_real_questions_of_mt_bench(real, tmp_path):
  items, _ = mt_bench.read(real)
  assert len(items) == 80 and len({item.id for item in items}) == 80
  outputs = [(f'First {item.id}.', f'Second {{answer}} {item.id}.') for item in items]
  with JudgeServer() as server:
    path = tmp_path / 'judgments.jsonl'

    def graded(budget):
      endpoint = Endpoint(Target(server.url, 'judge-4'), cache=Cache(path), budget=budget)
      return mt_bench.grade_all(outputs, items, Services(EndpointJudge(endpoint)))

    with pytest.raises(UserError, match=r'up to 160 requests and .* tokens, the budget is 159'):
      graded(Amount(159, math.inf))
    assert not server.requests
    grades = graded(Amount(160, math.inf))
    assert len(server.requests) == 160
    assert graded(Amount(0, 0)) == grades and len(server.requests) == 160
    asked = {body['messages'][-1]['content'] for body, _ in server.requests}
  # What the server's rule says, by hand.
  rate = lambda messages: len(messages[-1]['content']) % 10 + 1
  expected = [
    [rate(part) for part in mt_bench.judged(item, out)]
    for item, out in zip(items, outputs, strict=True)
  ]
  columns = mt_bench.summary(items, grades)
  assert columns['mtbench-total'] == pytest.approx(sum(second for _, second in expected) / 80)
  assert columns['mtbench160-total'] == pytest.approx(sum(map(sum, expected)) / 160)
  stem = [pair for item, pair in zip(items, expected, strict=True) if item.group == 'stem']
  assert columns['mtbench-stem'] == pytest.approx(sum(second for _, second in stem) / 10)
  assert columns['mtbench160-stem'] == pytest.approx(sum(map(sum, stem)) / 20)
  assert columns['mtbench-missing'] == columns['mtbench160-missing'] == 0
  assert len([name for name in columns if re.match('mtbench-(?!judge|missing)', name)]) == 9
  assert sum('[The Start of Reference Answer]' in text for text in asked) == 30
  assert sum('<|The Start of Reference Answer|>' in text for text in asked) == 30
  assert sum('Second {answer}' in text for text in asked) == 80


def test_the_real_instructions_of_alpaca_eval(real):
  items, _ = alpaca_eval.read(real)
  assert len(items) == alpaca_eval.BENCHMARK.size == 805
  same = CallableJudge(lambda messages: 'm', 'always the first')
  columns = alpaca_eval.summary(items, alpaca_eval.grade_all(['Yes.'] * 805, items, Services(same)))
  first = sum(judge.model_first(0, item.id) for item in items)
  assert columns['alpaca_eval_v2-total'] == pytest.approx(100 * first / 805)
  assert columns['alpaca_eval_v2-length'] == 4.0
  assert 1500 < columns['alpaca_eval_v2-length-baseline'] < 2500

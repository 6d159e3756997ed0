"""HumanEval and MBPP: prompts, what is extracted, and programs that are run for their grades."""

import csv
import functools
import json
import random
import re

import pytest

from sft_jax.evals import prompts, sandbox
from sft_jax.evals.benchmark import Services
from sft_jax.evals.files import HubFiles, LocalFiles
from sft_jax.evals.tasks import humaneval, mbpp
from sft_jax.utils.errors import UserError

PROBLEMS = [
  {
    'task_id': 'HumanEval/0',
    'prompt': 'def add(a: int, b: int) -> int:\n    """ The sum of two.\n    """\n',
    'entry_point': 'add',
    'canonical_solution': '    c = a\n    c += b\n    return c\n',
    'test': '\n\nMETADATA = {}\n\n\ndef check(candidate):\n    assert candidate(1, 2) == 3\n',
  },
  {
    'task_id': 'HumanEval/1',
    'prompt': 'import math\n\n\ndef root(x: float) -> float:\n    """ A square root. """\n',
    'entry_point': 'root',
    'canonical_solution': '    return math.sqrt(x)\n',
    'test': 'def check(candidate):\n    assert abs(candidate(2.0) ** 2 - 2) < 1e-6\n',
  },
]
SANITIZED = [
  {
    'task_id': number,
    'prompt': f'Write a function to add {number}.',
    'code': f'def add(x):\n  return x + {number}',
    'test_imports': [],
    'test_list': [f'assert add(1) == {number + 1}', f'assert add(0) == {number}'],
  }
  for number in (2, 11, 510, 511)
]
FULL = [
  {
    'task_id': 126,
    'text': 'Write a python function to add two numbers.',
    'code': 'def sum(a, b):\r\n  return a + b',
    'test_setup_code': '',
    'test_list': ['assert sum(1, 2) == 3'],
    'challenge_test_list': [],
  }
]


@pytest.fixture
def write(tmp_path):
  def write(name, records):
    (tmp_path / name).write_text('\n'.join(json.dumps(record) for record in records))
    return LocalFiles(str(tmp_path))

  return write


@pytest.fixture(scope='module')
def services():
  missing = sandbox.capabilities()
  if missing:
    pytest.skip(f'the sandbox lacks {missing}')
  return Services(run_programs=sandbox.run_all)


@pytest.fixture(scope='module')
def bench(data_dir):
  return LocalFiles(str(data_dir / 'bench'))


def scores(benchmark, reading, outputs, items, services):
  grades = benchmark.readings[reading].grade_all(outputs, items, services)
  return [grade.scores['acc'] for grade in grades]


def test_columns_are_those_of_the_published_table(data_dir):
  with open(data_dir / 'bench' / 'massive_sft_evaluation_result.csv') as file:
    header = next(csv.reader(file))
  for benchmark in (humaneval.BENCHMARK, mbpp.BENCHMARK):
    assert set(benchmark.readings['gen'].released.values()) <= set(header)
  assert not humaneval.BENCHMARK.readings['raw'].released


# HumanEval.


def test_humaneval_prompts(write):
  (item, _), pool = humaneval.read(write('HumanEval.jsonl', PROBLEMS))
  assert pool == [] and item.id == 'HumanEval/0'
  raw = prompts.raw_text(humaneval.ask_raw(item, ()))
  assert raw == PROBLEMS[0]['prompt']
  assert prompts.raw_text(humaneval.ask(item, ())) == f'Complete the following python code:\n{raw}'
  stops = humaneval.BENCHMARK.readings['raw'].stops(0)
  assert stops == ('\nclass', '\ndef', '\n#', '\nif', '\nprint')


@pytest.mark.parametrize(
  'output, code',
  [
    ('    return x+1', 'return x+1'),
    ('def f():\n  return 1', 'def f():\n  return 1'),
    ('Here:\n```python\n  x = 1\n```\nand\n```\ny = 2\n```', 'x = 1\n'),
    ('```\nx\n```', 'x\n'),
    # Not a fence as its regular expression has it, and one never closed.
    ('```python3.10\nx\n```', '```python3.10\nx\n```'),
    ('```python\nx', '```python\nx'),
    ('', ''),
  ],
)
def test_humaneval_takes_the_first_block_and_strips_what_is_white_before_it(output, code):
  assert humaneval.code(output) == code


def test_humaneval_is_settled_when_the_first_block_is_closed():
  rng = random.Random(0)
  parts = ('```', '```python\n', '```\n', 'x = 1\n', '`', '\n', 'python', ' ')
  settled = 0
  for _ in range(3000):
    text, more = (''.join(rng.choices(parts, k=rng.randint(0, 8))) for _ in range(2))
    if humaneval.settled(text):
      settled += 1
      assert humaneval.code(text + more) == humaneval.code(text)
  assert settled > 300


def test_humaneval_grades(write, services):
  items, _ = humaneval.read(write('HumanEval.jsonl', PROBLEMS))
  gold = [item.fields['canonical_solution'] for item in items]
  whole = [f'```python\n{item.fields["prompt"]}{gold[i]}```' for i, item in enumerate(items)]
  wrong = ['    return 0\n'] * 2
  run = functools.partial(scores, humaneval.BENCHMARK, services=services)
  assert run('raw', gold, items) == [1, 1]
  assert run('gen', gold, items) == [0, 0]
  assert run('gen', whole, items) == [1, 1]
  assert run('raw', wrong, items) == [0, 0]
  assert run('gen', [f'```python\n{text}```' for text in wrong], items) == [0, 0]


def test_humaneval_bare_completion_is_a_syntax_error(write, services):
  items, _ = humaneval.read(write('HumanEval.jsonl', PROBLEMS))
  outputs = ['    return a + b', '']
  bare, empty = humaneval.BENCHMARK.readings['gen'].grade_all(outputs, items, services)
  assert bare.notes['reason'] == 'error' and bare.notes['detail'].startswith('SyntaxError')
  assert bare.extracted == 'return a + b'
  assert empty.extracted is None and empty.scores == {'acc': 0}


def test_nothing_is_run_unless_it_may_be(write):
  items, _ = humaneval.read(write('HumanEval.jsonl', PROBLEMS))
  grade_all = humaneval.BENCHMARK.readings['gen'].grade_all
  assert grade_all(['', ''], items, Services()) == [None, None]


def test_humaneval_canonical_solutions(bench, services):
  """All pass as they are, none after OpenCompass's postprocessor."""
  items, _ = humaneval.read(bench)
  assert len(items) == humaneval.BENCHMARK.size
  gold = [item.fields['canonical_solution'] for item in items]
  assert sum(scores(humaneval.BENCHMARK, 'raw', gold, items, services)) == 164
  assert sum(scores(humaneval.BENCHMARK, 'gen', gold, items, services)) == 0


# MBPP.

QUERY = (
  'You are an expert Python programmer, and here is your task:{0}Write a function to add 11.{0}'
  'Your code should pass these tests:\n\n{1}assert add(1) == 12\nassert add(0) == 11'
)


def test_mbpp_prompts(write):
  items, shots = mbpp.read(write('sanitized-mbpp.jsonl', SANITIZED))
  none, three = mbpp.ask(items[0], ()), mbpp.ask(items[0], shots)
  assert prompts.raw_text(none) == QUERY.format('\n', '') + (
    '\n You should submit your final solution in the following format: ```python\n\n```'
  )
  text = prompts.raw_text(three)
  assert text.endswith('[DONE] \n\n \n' + QUERY.format(' ', ' ') + '  \n\n[BEGIN]\n')
  assert text.count('[BEGIN]') == 4 and text.count('\r\n') == 11
  assert "(13, 14) \n\n[BEGIN]\n 'def similar_elements(test_tup1, test_tup2):\r\n  res = " in text
  # Under a template the answer begins where the brackets would.
  last = prompts.messages(three)[-1]
  assert last['role'] == 'user' and last['content'].endswith('== 11  \n')


def test_mbpp_shots_are_right(services):
  _, shots = mbpp.BENCHMARK.example
  programs = [sandbox.Program(shot.fields['code'], shot.fields['tests']) for shot in shots]
  assert [verdict.passed for verdict in sandbox.run_all(programs, 3.0)] == [True] * 3


def test_mbpp_sets(write):
  items, _ = mbpp.read(write('mbpp.jsonl', FULL))
  assert mbpp.variant(items) == 'mbpp-full' and items[0].fields['names'] == ('sum',)
  # The sanitized set comes first where both are there.
  items, _ = mbpp.read(write('sanitized-mbpp.jsonl', SANITIZED))
  assert [item.id for item in items] == ['11', '510'] and mbpp.variant(items) == ''


def test_mbpp_on_the_hub_is_the_sanitized_set(monkeypatch):
  def rows(self, path, *, hub='', columns=()):
    assert hub == 'google-research-datasets/mbpp:sanitized@test'
    return [(record, '') for record in SANITIZED]

  monkeypatch.setattr(HubFiles, 'rows', rows)
  items, _ = mbpp.read(HubFiles())
  assert len(items) == 2 and mbpp.variant(items) == ''


@pytest.mark.parametrize(
  'output, code',
  [
    ("[BEGIN]\n 'def f():\n  return 1' \n[DONE]", 'def f():\n  return 1'),
    ('[BEGIN]\ndef f(): pass\n[DONE]\n', 'def f(): pass'),
    ("'def f(): pass'\n[DONE]\n", 'def f(): pass'),
    ('```python\ndef f(): pass\n```', 'def f(): pass'),
    ('```python\nx = 1\n```\nor\n```python\nx = 2\n```', 'x = 1'),
    ('Sure.\n```python\ndef f(): pass', 'def f(): pass'),
    # A fence that only ends opens an empty block.
    ('def f(): pass\n```', ''),
    ("[BEGIN] 'def f(): pass", 'def f(): pass'),
    ('def my\\_f(): pass', 'def my_f(): pass'),
    ('def f(): pass\n', 'def f(): pass'),
    ("def f(): pass' [DONE] more", 'def f(): pass'),
    ('', ''),
  ],
)
def test_mbpp_answers(output, code):
  assert mbpp.code(output) == code


def test_mbpp_takes_a_second_task_for_the_answer(write, services):
  """What a base model that goes on writes is graded by OpenCompass, not its answer."""
  items, _ = mbpp.read(write('sanitized-mbpp.jsonl', SANITIZED))
  answer = items[0].fields['code']
  going_on = f"'{answer}'\n[DONE]\n\nYou are ...\n[BEGIN]\n 'def other(): pass'\n[DONE]"
  assert mbpp.code(going_on) == 'def other(): pass'
  outputs = [going_on, f"'{items[1].fields['code']}'\n[DONE]"]
  assert scores(mbpp.BENCHMARK, 'gen', outputs, items, services) == [0, 1]


def test_mbpp_shortcuts_change_nothing():
  """Patterns that are skipped for want of a word would not have matched."""
  rng = random.Random(1)
  parts = ('[BEGIN]', 'BEGIN', '[DONE]', 'DONE', '```', '```python', "'", ' ', '\n', 'x', '\\_')
  for _ in range(3000):
    text = ''.join(rng.choices(parts, k=rng.randint(0, 9)))
    plain = text
    for _, pattern in mbpp._PATTERNS:
      found = pattern.search(text)
      if found:
        plain = found.group(1)
        break
    plain = re.split(r"'?\s*\[?DONE\]?", plain.split('```')[0])[0].replace('\\_', '_').strip()
    assert mbpp.code(text) == plain


def test_mbpp_grades(write, services):
  items, _ = mbpp.read(write('mbpp.jsonl', FULL))
  run = functools.partial(scores, mbpp.BENCHMARK, 'gen', items=items, services=services)
  # `sum` is what is asked for: the program's own is the one that is tested.
  assert run([f'```python\n{FULL[0]["code"]}\n```']) == [1]
  assert run(['```python\ndef sum(a, b):\n  return a - b\n```']) == [0]
  assert run(['```python\ndef add(a, b):\n  return a + b\n```']) == [0]


def test_mbpp_reference_code(bench, services):
  """All of the 500 but 367, whose assertions need the set-up code that OpenCompass does not run."""
  items, _ = mbpp.read(bench)
  assert len(items) == 500 and mbpp.variant(items) == 'mbpp-full'
  codes = [f'[BEGIN]\n{item.fields["code"]}\n[DONE]' for item in items]
  # Problem 123 takes most of the time that MBPP gives: on a busy machine, more.
  patient = Services(run_programs=lambda programs, seconds: sandbox.run_all(programs, 6 * seconds))
  right = scores(mbpp.BENCHMARK, 'gen', codes, items, patient)
  assert [item.id for item, score in zip(items, right, strict=True) if not score] == ['367']


@pytest.mark.parametrize(
  'name, record, what',
  [
    ('HumanEval.jsonl', {**PROBLEMS[0], 'entry_point': 'a b'}, "'entry_point' is no name"),
    ('HumanEval.jsonl', {**PROBLEMS[0], 'test': None}, "'test' is missing"),
    ('sanitized-mbpp.jsonl', {**SANITIZED[1], 'code': 'def ('}, 'is no Python'),
    ('sanitized-mbpp.jsonl', {**SANITIZED[1], 'test_list': []}, 'has 0 entries'),
    ('sanitized-mbpp.jsonl', {**SANITIZED[1], 'task_id': 'x'}, 'no whole number'),
    ('mbpp.jsonl', SANITIZED[1], "'text' is missing"),
  ],
)
def test_bad_records_are_named(name, record, what, write):
  read = humaneval.read if name.startswith('Human') else mbpp.read
  with pytest.raises(UserError, match=what) as error:
    read(write(name, [record]))
  assert name in str(error.value)


def test_a_directory_without_the_data(tmp_path):
  with pytest.raises(UserError, match=r'no file HumanEval\.jsonl'):
    humaneval.read(LocalFiles(str(tmp_path)))
  with pytest.raises(UserError, match=r'no file sanitized-mbpp\.jsonl'):
    mbpp.read(LocalFiles(str(tmp_path)))

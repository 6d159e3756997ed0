"""Benchmarks with free answers: gold ones score 1, wrong ones 0, and the traps of their graders."""

import json

import pytest

from sft_jax.evals import prompts
from sft_jax.evals.benchmark import Item
from sft_jax.evals.files import LocalFiles
from sft_jax.evals.tasks import gsm8k, hendrycks_math, nq, triviaqa
from sft_jax.utils.errors import UserError

BENCHMARKS = [module.BENCHMARK for module in (gsm8k, hendrycks_math, nq, triviaqa)]


def raw(benchmark, item, shots=()):
  return prompts.raw_text(benchmark.readings['gen'].ask(item, shots))


def golds(benchmark, item):
  """Outputs that must score 1."""
  if benchmark.name == 'gsm8k':
    # Not the published text: OpenCompass reads '1,234' as 234.
    return [f'The answer is {item.fields["gold"]}.']
  if benchmark.name == 'math':
    return [f'First $x$. Then $\\boxed{{{item.fields["gold"]}}}$.']
  # Some have hundreds of aliases.
  return [f' {answer}\n' for answer in item.fields['answers'][:3]]


@pytest.fixture
def write(tmp_path):
  def write(name, *records):
    (tmp_path / name).write_text('\n'.join(json.dumps(record) for record in records))
    return LocalFiles(str(tmp_path))

  return write


@pytest.mark.parametrize('benchmark', BENCHMARKS, ids=lambda benchmark: benchmark.name)
def test_gold_and_wrong_of_the_example(benchmark):
  item, _ = benchmark.example
  reading = benchmark.readings['gen']
  for gold in golds(benchmark, item):
    grade = reading.grade(gold, item)
    assert grade.scores == dict.fromkeys(reading.measures, 1.0) and grade.extracted
  for wrong in ('', '\n', 'qqq zzz', '-7777'):
    grade = reading.grade(wrong, item)
    assert grade.scores == dict.fromkeys(reading.measures, 0.0)
    nothing = not any(map(str.isdigit, wrong)) if benchmark.name == 'gsm8k' else not wrong.strip()
    assert (grade.extracted is None) == nothing


@pytest.mark.parametrize('benchmark', BENCHMARKS, ids=lambda benchmark: benchmark.name)
def test_every_real_item(benchmark, real):
  items, pool = benchmark.read(real)
  reading = benchmark.readings['gen']
  assert len(items) == {'triviaqa': 3000}.get(benchmark.name, benchmark.size)
  assert len({item.id for item in [*items, *pool]}) == len(items) + len(pool)
  assert benchmark.variant(items) == {'triviaqa': 'triviaqa-part'}.get(benchmark.name, '')
  always = 0
  for item in items:
    for gold in golds(benchmark, item):
      assert all(score == 1 for score in reading.grade(gold, item).scores.values()), item
    wrong = reading.grade(
      {'gsm8k': '-7777', 'math': '$\\boxed{-7777}$'}.get(benchmark.name, 'ж'), item
    )
    headline = wrong.scores[reading.measures[0]]
    assert headline in (0, 1)
    always += headline
  # NQ-open: golds that OpenCompass cuts to nothing; see the next test but one.
  assert always == (8 if benchmark.name == 'nq' else 0)


def test_nq_floor(real):
  items, _ = nq.read(real)
  grades = [nq.grade('', item) for item in items]
  assert sum(grade.scores['acc'] for grade in grades) == 8
  assert round(100 * 8 / len(items), 2) == 0.22
  assert sum(grade.scores['em'] for grade in grades) == 0
  assert {grade.extracted for grade in grades} == {None}


def test_math_levels_and_types(real):
  items, _ = hendrycks_math.read(real)
  assert len({item.group for item in items}) == 7
  notes = hendrycks_math.grade('\\boxed{2}', items[0]).notes
  assert notes == {'level': 'Level 3', 'type': 'Algebra', 'found': 'box'}


# GSM8K


def test_gsm8k_prompts():
  item, shots = gsm8k.BENCHMARK.example
  assert raw(gsm8k.BENCHMARK, item) == (
    'A ferry takes 12 cars. How many trips do 60 cars need?\n'
    'Please reason step by step, and put your final answer within \\boxed{}.'
  )
  text = raw(gsm8k.BENCHMARK, item, shots)
  assert text.startswith('Question: Angelo and Melanie want')
  assert "all the time they need.\nThe answer is 4\n\nQuestion: Mark's basketball team" in text
  assert 'also scores 6 3 pointers, meaning they scored 8*3= 24 points' in text
  assert text.endswith("60 cars need?\nLet's think step by step\nAnswer:")
  assert text.count('Question: ') == 5
  chat = prompts.messages(gsm8k.ask(item, shots))
  assert [message['role'] for message in chat] == ['user', 'assistant'] * 4 + ['user']
  stops = gsm8k.BENCHMARK.readings['gen'].stops
  assert list(stops(0)) == [] and list(stops(4)) == ['Question']


@pytest.mark.parametrize(
  'output, extracted, right',
  [
    ('so 5', '5', True),
    ('5.0', '5.0', True),
    ('#### 5\n\nQuestion: what is 3?', '5', True),
    ('5. Question 6', '6', False),
    ('10-5', '-5', False),
    ('1,005', '005', True),
    ('5,000', '000', False),
    ('$\\boxed{5}$ in 2 hours', '2', False),
    ('five', None, False),
  ],
)
def test_gsm8k_last_number(output, extracted, right):
  item, _ = gsm8k.BENCHMARK.example
  grade = gsm8k.grade(output, item)
  assert (grade.extracted, grade.scores['acc']) == (extracted, right)


def test_gsm8k_thousands(write):
  files = write('gsm8k_test.jsonl', {'question': 'q', 'answer': '#### 1,234'})
  (item,), shots = gsm8k.read(files)
  assert item.fields['gold'] == '1234' and len(shots) == 4
  assert gsm8k.grade('1234', item).scores['acc'] == 1
  assert gsm8k.grade('1,234', item) == ({'acc': 0.0}, '234', {})


def test_settled_is_exact():
  for module, item, text in (
    (gsm8k, gsm8k.BENCHMARK.example[0], 'It is 5. Question: 7?\nQuestion: 8'),
    (nq, nq.BENCHMARK.example[0], ' \n\tThe answer is Galileo \n the answer is\nKepler'),
  ):
    ends = [cut for cut in range(len(text)) if module.settled(text[:cut])]
    assert ends
    for cut in ends:
      assert module.grade(text[:cut], item) == module.grade(text, item)
    assert module.grade(text, item).scores['acc'] == 1


@pytest.mark.parametrize(
  'record, message',
  [
    ({'question': 'q', 'answer': '5'}, "'answer' does not end in"),
    ({'question': 'q', 'answer': '#### five'}, "'answer' does not end in"),
    ({'answer': '#### 5'}, "'question' is missing"),
    ({'question': ' ', 'answer': '#### 5'}, "'question' is empty"),
  ],
)
def test_gsm8k_refuses(write, record, message):
  with pytest.raises(UserError, match=f'{message}.*gsm8k_test.jsonl:1'):
    gsm8k.read(write('gsm8k_test.jsonl', record))


# MATH


def test_math_prompt():
  item, shots = hendrycks_math.BENCHMARK.example
  assert raw(hendrycks_math.BENCHMARK, item, shots) == (
    'What is half of $\\frac{2}{3}$?\n'
    'Please reason step by step, and put your final answer within \\boxed{}.'
  )


@pytest.mark.parametrize(
  'output, found',
  [
    (r'\boxed{1}. The final answer is 2', ('1', 'box')),
    (r'\boxed{1} then \boxed{\sqrt{2}}', (r'\sqrt{2}', 'box')),
    (r'\boxed{{7}}', ('7', 'box')),
    (r'\boxed{{a}+{b}}', ('a}+{b', 'box')),  # what stripping double braces does to these
    (r'\boxed{1} or \boxed{2', (r'\boxed{1}or2', 'first')),
    ('We add. So the answer is $12$. Good', ('12', 'phrase')),
    ('The final answer is 8 cm', ('8', 'phrase')),
    ('The final answer is: 8', (':8', 'phrase')),  # but not with 'The answer is: 8'
    ('The answer is: 8', ('8', 'phrase')),
    ('the answer is 3.5', ('3', 'phrase')),
    ('The answer is 1. The final answer is 2', ('1', 'phrase')),
    ('1,200. Done', ('1200', 'first')),
    ('', ('', 'first')),
  ],
)
def test_math_answer(output, found):
  if found[0].startswith(r'\boxed'):
    found = (hendrycks_math._final(output), 'first')
  assert hendrycks_math.answer(output) == found


EQUAL = [
  ('5', ' 5.\n'),
  (r'1\!000', '1000'),
  (r'\frac12', r'\frac{1}{2}'),
  (r'\frac1{72}', r'\frac{1}{72}'),
  (r'\dfrac{1}{2}', r'\tfrac{1}{2}'),
  ('1/2', r'\frac{1}{2}'),
  (r'\sqrt3', r'\sqrt{3}'),
  (r'\sqrt12', r'\sqrt{12}'),
  (r'\left(1, 2\right)', '(1,2)'),
  (r'5\text{ miles}', '5'),
  (r'\text{Evelyn}', 'Evelyn'),
  (r'90^\circ', '90'),
  (r'90^{\circ}', '90'),
  (r'\$5', '5'),
  ('$5$', '5'),
  (r'x\in[0,1]', '[0,1]'),
  (r'50\%', '50'),
  ('50%', '50'),
  ('.5', '0.5'),
  ('{.5}', '{0.5}'),
  (r'2\cdot3', '23'),
  ('infinity', r'\infty'),
  ('inf', r'\infty'),
  ('1 and 2', '12'),
  (r'\mathbf{v}', '{v}'),
  (r'5\mbox{ cm}', '5'),
  ('1+2j', '1+2i'),
  ('5.000', '5'),
  ('5.0x', '5x'),
  ('k=5', '5'),
  ('x=5', 'y=5'),
  ('10,000', '10000'),
  ('5 degrees', '5'),
  (r'\text{(C)}', 'C'),
  (r'\textbf{5}', '5'),
  (r'\overline{AB}', 'AB'),
  (r'\\frac{1}{2}', r'\frac{1}{2}'),
  ('brandy', 'bry'),  # 'and' goes anywhere
  ('a/b units', 'a/b'),  # a ValueError in the first rewriting; the last one still counts
]
UNEQUAL = [
  ('0.5', r'\frac{1}{2}'),
  ('0.5', '1/2'),
  (r'2\sqrt{3}', r'\sqrt{12}'),
  ('2+3', '3+2'),
  ('5.01', '5'),
  ('abc=5', '5'),
  ('k=1=5', '5'),
  ('1/2/3', r'\frac{1}{2}'),
  ('01/2', r'\frac{1}{2}'),
  ('ij', 'ii'),
  (r'\frac1', r'\frac{1}'),
  (r'50\%+a/b', '50+a/b'),  # the ValueError again: the percent sign stays
  ('4', '5'),
]


@pytest.mark.parametrize('one, other', EQUAL)
def test_math_equivalent(one, other):
  assert hendrycks_math.equivalent(one, other)
  assert hendrycks_math.equivalent(other, one)


@pytest.mark.parametrize('one, other', UNEQUAL)
def test_math_not_equivalent(one, other):
  assert not hendrycks_math.equivalent(one, other)
  assert not hendrycks_math.equivalent(other, one)


def test_math_refuses_a_solution_without_box(write):
  record = {'problem': 'p', 'solution': '\\boxed 5', 'level': 'Level 1', 'type': 'Algebra'}
  with pytest.raises(UserError, match=r"'solution' has no answer .*math_test.jsonl:1"):
    hendrycks_math.read(write('math_test.jsonl', record))


# NQ-open


def nq_item(*answers):
  return Item('0', {'question': 'q', 'answers': list(answers)})


def test_nq_prompts():
  item, shots = nq.BENCHMARK.example
  assert raw(nq.BENCHMARK, item) == 'Q: who drew the first map of the moon?\nA:'
  assert raw(nq.BENCHMARK, item, shots) == (
    'Q: where is lake inari?\nA: Finland.\n\n'
    'Q: how many strings has a cello??\nA: four.\n\n'
    'Q: who drew the first map of the moon?\nA:'
  )
  # Under a template the answer's beginning is left out of the question, not of the shots.
  chat = prompts.messages(nq.ask(item, shots[:1]))
  assert [message['content'] for message in chat] == [
    'Q: where is lake inari?',
    'A: Finland.\n',
    'Q: who drew the first map of the moon?',
  ]
  stops = nq.BENCHMARK.readings['gen'].stops
  assert list(stops(0)) == [] and list(stops(1)) == list(stops(25)) == ['Q:', '\n']


@pytest.mark.parametrize(
  'output, answers, acc, em',
  [
    (' South Carolina.', ['South Carolina'], 1, 1),
    ('the south carolina gamecocks', ['South Carolina'], 1, 0),
    ('It was 1999, in the city', ['1999'], 1, 0),
    ('\n 1988\nor 1989', ['1988'], 1, 1),
    ('or 1989\n1988', ['1988'], 0, 0),
    ('1989. No, 1988', ['1988'], 0, 0),  # cut at the full stop
    ('1988 is wrong, the answer is 1989', ['1989'], 1, 1),
    ('The answer is a: the answer is 5', ['5'], 1, 1),
    ('Robert', ['R. H. Thomson'], 1, 0),  # the gold is cut to 'r'
    ('R. H. Thomson', ['R. H. Thomson'], 1, 1),
    ('', ['---'], 1, 0),
    ('---', ['---'], 1, 1),
    ('Kepler', ['Galileo', 'Johannes Kepler'], 0, 0),
  ],
)
def test_nq_grades(output, answers, acc, em):
  assert nq.grade(output, nq_item(*answers)).scores == {'acc': acc, 'em': em}


def test_nq_shots(write):
  record = {'question': 'q', 'answer': ['a']}
  items, pool = nq.read(write('nq_open_dev.jsonl', record))
  assert (len(items), pool) == (1, [])
  items, pool = nq.read(write('nq_open_shots.jsonl', record, record))
  assert len(pool) == 2 and nq.BENCHMARK.variant(items) == ''
  assert nq.BENCHMARK.variant([*items, pool[0]]) == 'nq-ownshots'
  items, pool = nq.read(write('nq_open_train.jsonl', record, record, record))
  assert len(pool) == 3 and nq.BENCHMARK.variant([*items, *pool]) == ''
  with pytest.raises(UserError, match=r"'answer' has 0 entries, needs 1 .*nq_open_train.jsonl:1"):
    nq.read(write('nq_open_train.jsonl', {'question': 'q', 'answer': []}))


# TriviaQA


def test_triviaqa_prompts():
  item, shots = triviaqa.BENCHMARK.example
  assert raw(triviaqa.BENCHMARK, item, shots) == (
    'Question: Who built the Rocket, a locomotive?\nAnswer: Stephenson\n\n'
    'Question: Which planet has a storm called the Great Red Spot??\nAnswer:'
  )
  chat = prompts.messages(triviaqa.ask(item, shots))
  assert chat[-1]['content'].endswith('\nAnswer:') and chat[1]['content'] == 'Stephenson'
  assert list(triviaqa.BENCHMARK.readings['gen'].stops(0)) == ['\n', '.', ',']


def test_triviaqa_grades():
  item, _ = triviaqa.BENCHMARK.example
  assert triviaqa.grade(' the planet JUPITER!', item).scores == {'em': 1, 'f1': 1}
  # The alias with two words: 2 * 2 / (4 + 2).
  grade = triviaqa.grade('Planet Jupiter of course', item)
  assert grade.scores == {'em': 0, 'f1': pytest.approx(2 / 3)}
  assert triviaqa.grade('', item) == ({'em': 0, 'f1': 0}, None, {})


def test_triviaqa_files(write):
  record = {'question': 'q', 'answer': {'value': 'A b', 'aliases': ['a']}}
  write('triviaqa_val_1.jsonl', record)
  items, pool = triviaqa.read(write('triviaqa_val_2.jsonl', record, record))
  assert [item.id for item in items] == ['0', '1', '2'] and pool == []
  assert items[2].source == 'triviaqa_val_2.jsonl:2'
  assert triviaqa.BENCHMARK.variant(items) == 'triviaqa-part'
  write('triviaqa_train.jsonl', record)
  items, pool = triviaqa.read(write('triviaqa_val.jsonl', record))
  assert triviaqa.BENCHMARK.variant([*items, *pool]) == '' and (len(items), len(pool)) == (1, 1)
  assert items[0].fields['answers'] == ['A b', 'a']
  with pytest.raises(UserError, match=r"'answer' is no object .*triviaqa_val.jsonl:1"):
    triviaqa.read(write('triviaqa_val.jsonl', {'question': 'q', 'answer': 'a'}))


def test_triviaqa_missing(tmp_path):
  with pytest.raises(UserError, match=r'no file triviaqa_val.jsonl'):
    triviaqa.read(LocalFiles(str(tmp_path)))

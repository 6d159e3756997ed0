"""Multiple-choice benchmarks: gold answers score 1, wrong ones 0; traps of data and graders.

That `ll` prompts are lm-eval's is in `test_choices_lm_eval.py`.
"""

import json
import random

import numpy as np
import pytest

from sft_jax.evals import benchmarks, prompts, questions
from sft_jax.evals.benchmark import Choices, Choose
from sft_jax.evals.files import LocalFiles
from sft_jax.evals.tasks import arc, boolq, cmmlu, hellaswag, jmmlu, mmlu, piqa, truthfulqa
from sft_jax.utils.errors import UserError
from tests.evals.tasks import choice_files

BENCHMARKS = {
  benchmark.name: benchmark
  for benchmark in (
    *(module.BENCHMARK for module in (hellaswag, boolq, mmlu, cmmlu, jmmlu, truthfulqa, piqa)),
    *(arc.EASY, arc.CHALLENGE),
  )
}
READINGS = [(name, reading) for name in BENCHMARKS for reading in BENCHMARKS[name].readings]
# name: (items, pool, variant) of the data at hand.
REAL = {
  'hellaswag': (5000, 0, 'hellaswag5000'),
  'boolq': (3270, 5, 'boolq-notitle'),
  'mmlu': (14042, 285, ''),
  'cmmlu': (11582, 335, ''),
  'jmmlu': (7097, 0, 'jmmlu53'),
  'truthfulqa': (817, 0, ''),
  'piqa': (1838, 0, ''),
  'arc_easy': (570, 0, 'arc_easy570'),
  'arc_challenge': (299, 0, 'arc_challenge299'),
}


def thought(texts, favourites):
  """What a model thinks that finds some texts very likely and all others very unlikely."""
  logprobs = np.where([text in favourites for text in texts], -1e-3, -1e6)
  ones = np.ones(len(texts), np.int64)
  return Choices(texts, logprobs, logprobs > -1, ones)


def letter(item):
  return ('BA' if 'passage' in item.fields else 'ABCD')[item.fields['gold']]


def other(item):
  return (
    'BA'[letter(item) == 'B'] if 'passage' in item.fields else 'BCDA'['ABCD'.index(letter(item))]
  )


def written(name, text):
  """An output whose answer is a letter."""
  return {
    'cmmlu': f'我想想。\n答案: {text}',
    'boolq': f' {text}',
    'mmlu': f'because of it. The answer is ({text}).',
  }.get(name, text)


def check_ll(reading, item):
  texts = reading.choices(item)
  assert len(texts) == len(set(texts)) >= 2
  if 'correct' in item.fields:
    gold = {item.fields['best'], *item.fields['correct']}
    assert reading.grade(item, thought(texts, gold)).scores == {'mc1': 1.0, 'mc2': 1.0}
    wrong = reading.grade(item, thought(texts, set(texts) - gold))
    assert wrong.scores == {'mc1': 0.0, 'mc2': 0.0} and wrong.extracted not in gold
    return
  gold = texts[item.fields['gold']]
  right = reading.grade(item, thought(texts, {gold}))
  assert right.scores == dict.fromkeys(reading.measures, 1.0) and right.extracted == gold
  wrong = reading.grade(item, thought(texts, set(texts) - {gold}))
  assert wrong.scores == dict.fromkeys(reading.measures, 0.0) and wrong.extracted != gold


def check_gen(name, reading, item):
  if name == 'truthfulqa':
    best = max(item.fields['correct'], key=lambda text: len(truthfulqa.tokens_13a(text)))
    outputs = (f'{best}\n', 'I have no comment.', 'zzz', ' \n')
    right, comment, wrong, nothing = reading.grade_all(outputs, [item] * 4, None)
    assert comment.scores['bleu-max'] == 1 and wrong.scores['bleu-max'] == 0 and nothing is None
    assert wrong.scores['bleu-acc'] == 0
    # A reference of under four tokens has no BLEU, not even with itself.
    long = len(truthfulqa.tokens_13a(best)) >= 4
    assert right.scores['bleu-max'] == pytest.approx(float(long))
    return
  right = reading.grade(written(name, letter(item)), item)
  assert right.scores == {'acc': 1.0} and right.extracted == letter(item), item
  wrong = reading.grade(written(name, other(item)), item)
  assert wrong.scores == {'acc': 0.0} and wrong.extracted == other(item), item
  for nothing in ('', '\n', 'q z'):
    grade = reading.grade(nothing, item)
    assert grade.scores == {'acc': 0.0} and grade.extracted is None


@pytest.fixture
def ours(tmp_path):
  choice_files.write(tmp_path)
  return LocalFiles(str(tmp_path))


@pytest.mark.parametrize('name', BENCHMARKS)
def test_every_real_item(name, real):
  benchmark = BENCHMARKS[name]
  items, pool = benchmark.read(real)
  assert (len(items), len(pool), benchmark.variant(items)) == REAL[name]
  # Neither a subset nor shots of the same release change what the data are.
  assert benchmark.variant(items[:7]) == REAL[name][2]
  assert benchmark.variant([*items, *pool[:5]]) == REAL[name][2]
  assert len({item.id for item in items}) == len(items)
  for reading in benchmark.readings.values():
    for item in items:
      if isinstance(reading, Choose):
        check_ll(reading, item)
      else:
        check_gen(name, reading, item)
  for item in items[:: max(1, len(items) // 50)]:
    chosen = prompts.same_group(item, pool, max(benchmark.shots))
    assert {shot.group for shot in chosen} <= {item.group}
    for reading in benchmark.readings.values():
      text = prompts.raw_text(reading.ask(item, chosen))
      assert item.fields.get('question', '').strip() in text and '{' not in text.split('\n')[0]


@pytest.mark.parametrize('name', ['mmlu', 'cmmlu'])
def test_shots_are_of_the_subject_or_missed(name, ours, tmp_path):
  """A dev file that is not there: nothing is asked with the shots of other subjects instead."""
  file, *others = sorted((tmp_path / name / 'dev').glob('*.csv'))
  assert others
  file.unlink()
  items, pool = BENCHMARKS[name].read(ours)
  subject = file.stem.removesuffix('_dev')
  pick = questions.shots_of(benchmarks.parse(f'{name}:1shot:ll'), pool)
  for item in items:
    if item.group != subject:
      assert [shot.group for shot in pick(item)] == [item.group]
      continue
    with pytest.raises(UserError, match=f'1 shots, and the data of {name} have 0 of {subject}'):
      pick(item)


@pytest.mark.parametrize('name', BENCHMARKS)
def test_our_items_and_the_hub_give_the_same(name, ours):
  benchmark = BENCHMARKS[name]
  items, pool = benchmark.read(ours)
  assert items and bool(pool) == (name not in ('jmmlu', 'truthfulqa'))
  for reading in benchmark.readings.values():
    for item in items:
      if isinstance(reading, Choose):
        check_ll(reading, item)
      else:
        check_gen(name, reading, item)
  hub_items, hub_pool = benchmark.read(choice_files.Hub())
  there = {(item.id, item.group): item.fields for item in (*hub_items, *hub_pool)}
  if name == 'jmmlu':
    # One file has a row more.
    items = [item for item in items if item.group == 'japanese_history']
  for item in (*items, *pool):
    # The hub has all subjects, so another variant.
    fields = {**there[item.id, item.group], 'variant': ''}
    assert fields == {**item.fields, 'variant': ''}


def test_a_byte_order_mark_before_a_quote(ours):
  items, _ = jmmlu.BENCHMARK.read(ours)
  item = next(item for item in items if item.group == 'world_history')
  assert item.fields['question'] == choice_files.EXAM[1][0]
  assert item.fields['choices'] == ('T, T', 'T, F', 'F, T', 'F, F')
  assert item.source == 'jmmlu/world_history.csv:1'


def test_part_of_the_subjects_is_named_so(ours):
  items, pool = mmlu.BENCHMARK.read(ours)
  assert mmlu.BENCHMARK.variant(items[:1]) == mmlu.BENCHMARK.variant([*items, *pool]) == 'mmlu2'
  assert cmmlu.BENCHMARK.variant(cmmlu.BENCHMARK.read(ours)[0]) == 'cmmlu2'
  assert len(jmmlu.SUBJECTS) == 56 and len(cmmlu.SUBJECTS) == 67


def test_means_of_exams():
  for name in ('mmlu', 'cmmlu'):
    readings = BENCHMARKS[name].readings
    assert readings['gen'].macro and not readings['ll'].macro
  # What the published table calls mmlu-5shot is a mean over other exams too.
  assert set(mmlu.BENCHMARK.readings['gen'].released) == {0}
  released = {
    column
    for benchmark in BENCHMARKS.values()
    for reading in benchmark.readings.values()
    for column in reading.released.values()
  }
  assert released == {
    *(
      'hellaswag-0shot',
      'hellaswag-10shot',
      'BoolQ-0shot',
      'BoolQ-5shot',
      'mmlu-0shot',
      'cmmlu-0shot',
    ),
    'Truthful_QA-0shot',
  }


def test_parts_and_other_files(tmp_path, ours):
  """A part of HellaSwag, shots in the form query/choices/gold, ARC's validation split."""
  (tmp_path / 'hellaswag_val.jsonl').rename(tmp_path / 'hellaswag_val_2.jsonl')
  olmes = {'query': 'Rest: A cat naps. It', 'choices': ['wakes.', 'b', 'c', 'd'], 'gold': 0}
  (tmp_path / 'hellaswag_train.jsonl').unlink()
  (tmp_path / 'hellaswag_train_1.olmes.jsonl').write_text(json.dumps(olmes))
  items, pool = hellaswag.BENCHMARK.read(ours)
  assert hellaswag.BENCHMARK.variant(items) == 'hellaswag2'
  assert hellaswag.BENCHMARK.variant([*items, *pool]) == 'hellaswag2'
  assert hellaswag.BENCHMARK.variant(pool) == 'hellaswag-ownshots'
  assert (pool[0].fields['query'], pool[0].fields['gold']) == (olmes['query'], 0)
  assert pool[0].fields['endings'] == tuple(olmes['choices'])
  # OpenCompass's own file is preferred, and fills the published column.
  (tmp_path / 'hellaswag_train_sampled25.jsonl').write_text(json.dumps({**olmes, 'gold': 2}))
  _, pool = hellaswag.BENCHMARK.read(ours)
  assert hellaswag.BENCHMARK.variant(pool) == '' and pool[0].fields['gold'] == 2
  (tmp_path / 'arc_easy_test.jsonl').rename(tmp_path / 'arc_easy_val.jsonl')
  items, _ = arc.EASY.read(ours)
  assert arc.EASY.variant(items) == 'arc_easy2'
  (tmp_path / 'arc_easy_train.jsonl').unlink()
  assert arc.EASY.read(ours)[1] == []


@pytest.mark.parametrize(
  'name, file, old, new, message',
  [
    ('hellaswag', 'hellaswag_val.jsonl', '"label": "0"', '"label": "4"', 'outside of 0 to 3'),
    ('hellaswag', 'hellaswag_val.jsonl', '"falls.", ', '', 'has 3 entries'),
    ('boolq', 'boolq_val.jsonl', 'false', '"no"', 'neither true nor false'),
    ('mmlu', 'mmlu/test/anatomy_test.csv', ',lead,B', ',lead,E', "is 'E', none of ABCD"),
    ('mmlu', 'mmlu/test/anatomy_test.csv', ',lead,B', ',B', 'a row of 5 fields'),
    (
      'cmmlu',
      'cmmlu/dev/logical.csv',
      'Question',
      'question',
      "'answer' is missing",
    ),
    ('jmmlu', 'jmmlu/japanese_history.csv', 'iron', ' ', "field 'A' is empty"),
    (
      'truthfulqa',
      'TruthfulQA.csv',
      'Yes; Owls bark at night, often',
      'No',
      'nothing of their own',
    ),
    (
      'arc_easy',
      'arc_easy_test.jsonl',
      '"answerKey": "1"',
      '"answerKey": "A"',
      "is 'A'; there are",
    ),
    ('piqa', 'piqa_val.jsonl', '"sol2": "With soup"', '"sol2": 5', 'is int, not text'),
  ],
)
def test_bad_rows_name_file_and_row(name, file, old, new, message, tmp_path, ours):
  path = tmp_path / file
  text = path.read_bytes().decode()
  assert old in text
  path.write_bytes(text.replace(old, new).encode())
  with pytest.raises(UserError, match=message) as caught:
    BENCHMARKS[name].read(ours)
  assert f'{file}:' in caught.value.where and caught.value.where.rsplit(':', 1)[1].isdigit()


@pytest.mark.parametrize('name', BENCHMARKS)
def test_missing_data(name, tmp_path):
  with pytest.raises(UserError, match='no file'):
    BENCHMARKS[name].read(LocalFiles(str(tmp_path)))


def test_unknown_subject(tmp_path, ours):
  (tmp_path / 'jmmlu/astrology.csv').write_text('q,a,b,c,d,A\n')
  with pytest.raises(UserError, match="'astrology', no subject"):
    jmmlu.BENCHMARK.read(ours)


def test_extraction_is_what_it_was():
  """Oddities the published scores measure."""
  item, _ = boolq.BENCHMARK.example
  assert boolq.grade('Yes', item).extracted == 'Y' and boolq.grade('Yes', item).scores['acc'] == 0
  assert boolq.grade('answer: A', item).scores['acc'] == 1
  item, _ = cmmlu.BENCHMARK.example
  assert letter(item) == 'B'
  assert cmmlu.grade('答案：B', item).extracted is None, 'a full-width colon must not match'
  assert cmmlu.grade('答案: **B**', item).scores['acc'] == 1
  assert cmmlu.grade('答案: b', item) == ({'acc': 0.0}, 'b', {})
  assert cmmlu.grade('答案: A\n答案: B', item).scores['acc'] == 0
  item, _ = mmlu.BENCHMARK.example
  assert mmlu.BENCHMARK.readings['gen'].grade('Based on this', item).extracted == 'B'


@pytest.mark.parametrize('name', ['boolq', 'cmmlu'])
def test_settled_is_exact(name):
  item, _ = BENCHMARKS[name].example
  reading = BENCHMARKS[name].readings['gen']
  draw = random.Random(0)
  parts = ['答案', ':', '：', ' ', '*', '\n', 'A', 'B', 'b', 'd', 'e', '是', '(', 'yes']
  settled = 0
  for _ in range(2000):
    text = ''.join(draw.choices(parts, k=12))
    for end in range(len(text)):
      if reading.settled(text[:end]):
        settled += 1
        assert reading.grade(text[:end], item) == reading.grade(text, item), text
  assert settled > 100
  for name in ('hellaswag', 'mmlu', 'jmmlu', 'truthfulqa'):
    assert BENCHMARKS[name].readings['gen'].settled is None


def test_ends_of_prompts_and_messages():
  """White space at the end of raw prompts, and the beginning of an answer that chats drop."""
  item, shots = hellaswag.BENCHMARK.example
  few = hellaswag.ask_gen(item, shots)
  assert prompts.raw_text(few).endswith('What is the right option?\n\n')
  talk = prompts.messages(few)
  assert [message['role'] for message in talk] == ['user', 'assistant'] * 2 + ['user']
  assert talk[0]['content'].startswith('Continue the following text')
  assert talk[1]['content'] == 'B\n' and talk[-1]['content'].endswith('option?')
  item, shots = mmlu.BENCHMARK.example
  assert prompts.raw_text(mmlu.ask_gen(item, ())).endswith("\nLet's think step by step. A: ")
  assert prompts.raw_text(mmlu.ask_gen(item, shots)).endswith('\nD. Four\nAnswer: ')
  item, shots = boolq.BENCHMARK.example
  assert '\nAnswer:\nB\nTin -- ' in prompts.raw_text(boolq.ask_gen(item, shots))


def test_how_much_is_written_for_boolq():
  """OpenCompass says 50 in the configuration with shots, and leaves its default without."""
  reading = boolq.BENCHMARK.readings['gen']
  assert [reading.most_new(shots) for shots in (0, 1, 5)] == [256, 50, 50]


def test_leaked_shots_of_boolq(real):
  items, pool = boolq.BENCHMARK.read(real)
  assert [shot.id for shot in pool] == ['0', '2', '4', '6', '8'] and pool[0] is items[0]


def test_titles_of_boolq(real, data_dir, tmp_path):
  """SuperGLUE's passages begin with a title; files without it are other data."""
  lines = (data_dir / 'train/boolq_train_2000.jsonl').read_text()
  (tmp_path / 'boolq_val.jsonl').write_text(lines)
  items, _ = boolq.BENCHMARK.read(LocalFiles(str(tmp_path)))
  assert boolq.BENCHMARK.variant(items) == ''


def test_olmes_shots(data_dir, tmp_path):
  name = 'hellaswag_train_2000.olmes.jsonl'
  (tmp_path / 'hellaswag_val_1.jsonl').write_text(json.dumps(choice_files.HELLASWAG[0]))
  (tmp_path / name).write_bytes((data_dir / 'train' / name).read_bytes())
  items, pool = hellaswag.BENCHMARK.read(LocalFiles(str(tmp_path)))
  assert len(pool) == 2000
  assert prompts.raw_text(hellaswag.ask_gen(items[0], pool[:10])).count('right option?') == 11


def test_bleu_of_short_answers(real):
  """'Nothing happens' is a correct answer of the first question and scores 0."""
  items, _ = truthfulqa.BENCHMARK.read(real)
  assert 'Nothing happens' in items[0].fields['correct']
  (grade,) = truthfulqa.grade_all(['Nothing happens'], items[:1])
  assert grade.scores['bleu-max'] == 0


def test_bleu_equals_sacrebleu():
  sacrebleu = pytest.importorskip('sacrebleu')
  draw = random.Random(1)
  words = [
    'the',
    'cat',
    '3.5',
    '1955.',
    'U.S.',
    'sat,',
    '"so"',
    '&amp;',
    '5-6',
    'a-\nb',
    '(x)',
    "it's",
  ]
  above = 0
  for _ in range(500):
    output, reference = (
      ' '.join(draw.choices(words[: draw.randint(3, 12)], k=draw.randint(1, 9))) for _ in 'ab'
    )
    theirs = sacrebleu.sentence_bleu(
      output, [reference], smooth_method='none', tokenize='13a', use_effective_order=False
    )
    assert truthfulqa.bleu(output, reference) == pytest.approx(theirs.score / 100, abs=1e-9)
    above += theirs.score > 0
  assert above > 50
  assert truthfulqa.bleu('<skipped>', 'a b c d') == 0


def test_mc2_of_hopeless_answers():
  """Sums far below what exp can hold."""
  item, _ = truthfulqa.BENCHMARK.example
  texts = truthfulqa.answers(item)
  assert texts[:3] == ('At most one half of it lives on', 'It dies', 'Often it dies')
  logprobs = np.array([-5000.0, -5001, -9000, -5000, -8000])
  grade = truthfulqa.choose(item, Choices(texts, logprobs, logprobs > 0, np.ones(5, np.int64)))
  assert grade.scores['mc1'] == 1 and grade.extracted == texts[0]
  assert grade.scores['mc2'] == pytest.approx((1 + np.exp(-1)) / (2 + np.exp(-1)))

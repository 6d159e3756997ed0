"""The built-in exact-match task: gold answers score 100, wrong ones 0, and formats are read."""

import json
import math
import statistics
from pathlib import Path

import pytest

import sft_jax
from sft_jax.evals.tasks import builtin_short
from sft_jax.utils.errors import UserError

PATH = Path(sft_jax.__file__).parent / 'data' / 'builtin' / 'quickstart.jsonl'


@pytest.fixture(scope='module')
def records():
  return [json.loads(line) for line in PATH.read_text(encoding='utf-8').splitlines()]


def record(question, answer, category='short', split='heldout'):
  turns = [{'role': 'user', 'content': question}, {'role': 'assistant', 'content': answer}]
  return {'messages': turns, 'category': category, 'split': split}


def test_items_are_the_heldout_short_and_maths(records):
  wanted = [r for r in records if r['split'] == 'heldout' and r['category'] in ('short', 'maths')]
  found = builtin_short.items(records)
  assert len(found) == len(wanted) == 45
  for item, r in zip(found, wanted, strict=True):
    assert item.prompt == r['messages'][:-1]
    assert item.prompt[-1]['role'] == 'user'
    assert item.category == r['category']
    assert item.gold == r['messages'][-1]['content'].split('Answer: ')[-1].lower()
  train = {m['content'] for r in records if r['split'] == 'train' for m in r['messages'][:1]}
  assert not train & {item.prompt[0]['content'] for item in found}


def test_gold_scores_100_and_wrong_scores_0(records):
  found = builtin_short.items(records)
  gold = [
    r['messages'][-1]['content']
    for r in records
    if r['split'] == 'heldout' and r['category'] in builtin_short.CATEGORIES
  ]
  right = builtin_short.score(gold, found)
  assert right['builtin-em'] == 100 and right['builtin-em-stderr'] == 0
  assert right['builtin-em-n'] == len(right['builtin-em-items']) == 45
  assert all(row['correct'] for row in right['builtin-em-items'])
  for wrong in ('', 'nonsense\nAnswer: 999999', 'Answer:'):
    assert builtin_short.score([wrong] * 45, found)['builtin-em'] == 0
  # The gold of the neighbour is wrong nearly everywhere: the task is no constant.
  assert builtin_short.score(gold[1:] + gold[:1], found)['builtin-em'] < 10


def test_mean_and_standard_error_against_the_definition():
  found = builtin_short.items([record(f'q{i}', w) for i, w in enumerate('abcde')])
  out = builtin_short.score(['a', 'b', 'x', 'x', 'e'], found)
  hits = [1, 1, 0, 0, 1]
  assert out['builtin-em'] == pytest.approx(100 * statistics.mean(hits))
  expected = 100 * statistics.stdev(hits) / math.sqrt(len(hits))
  assert out['builtin-em-stderr'] == pytest.approx(expected)
  assert [row['correct'] for row in out['builtin-em-items']] == [True, True, False, False, True]
  assert out['builtin-em-items'][2] == {
    'category': 'short',
    'gold': 'c',
    'extracted': 'x',
    'output': 'x',
    'correct': False,
  }
  assert builtin_short.score(['a'], found[:1])['builtin-em-stderr'] == 0


@pytest.mark.parametrize(
  ('text', 'expected'),
  [
    ('Paris', 'paris'),
    ('  \n "Paris." \nIt is in France.', 'paris'),
    ('“carbon dioxide”.', 'carbon dioxide'),
    ("'Yes'", 'yes'),
    ('STRASSE', 'strasse'),
    ('Straße', 'strasse'),
    ('3.5', '3.5'),
    ('The capital is Paris.', 'the capital is paris'),
    ('', ''),
    (' \n ', ''),
    ('"."', ''),
  ],
)
def test_extract_short(text, expected):
  assert builtin_short.extract(text, 'short') == expected


@pytest.mark.parametrize(
  ('text', 'expected'),
  [
    ('7 + 5 = 12.\nAnswer: 12', '12'),
    ('Answer: 3\nNo, wait.\nAnswer: 4', '4'),
    ('Answer: 1,200.50 metres', '1200.5'),
    ('Answer: $12.00.', '12'),
    ('**Answer:** 9', '9'),
    ('Answer:-4', '-4'),
    ('Answer: −4', '-4'),
    ('Answer: -0.0', '0'),
    ('Answer: 007', '7'),
    ('Answer: .5', '0.5'),
    ('Answer:\n16', '16'),
    ('12', ''),
    ('The answer is 12', ''),
    ('Answer: 3\nAnswer: unknown', ''),
    ('Answer: about 12', ''),
    ('', ''),
  ],
)
def test_extract_maths(text, expected):
  assert builtin_short.extract(text, 'maths') == expected


def test_multi_turn_prompt_keeps_the_earlier_turns():
  r = record('One box?', 'boxes')
  r['messages'] += [{'role': 'user', 'content': 'Fox?'}, {'role': 'assistant', 'content': 'foxes'}]
  (item,) = builtin_short.items([r])
  assert [m['content'] for m in item.prompt] == ['One box?', 'boxes', 'Fox?']
  assert item.gold == 'foxes'
  item.prompt[0]['content'] = 'changed'
  assert r['messages'][0]['content'] == 'One box?'


@pytest.mark.parametrize('bad', [record('q', '12', 'maths'), record('q', '"."'), record('q', ' ')])
def test_a_record_without_an_answer_is_named(bad):
  with pytest.raises(UserError, match='record 2'):
    builtin_short.items([record('q', 'a'), bad])
  assert builtin_short.items([{**bad, 'split': 'train'}]) == []


def test_misuse_raises():
  found = builtin_short.items([record('q', 'a')])
  with pytest.raises(ValueError, match='2 outputs for 1 items'):
    builtin_short.score(['a', 'b'], found)
  with pytest.raises(ValueError, match='0 items'):
    builtin_short.score([], [])
  with pytest.raises(ValueError, match='general'):
    builtin_short.extract('a', 'general')

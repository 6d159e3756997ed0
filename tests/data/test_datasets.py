"""Held-out split and choice of records."""

import pytest

from sft_jax.data.datasets import choose, first_turns, load_records, split_heldout
from sft_jax.data.formats import EMPTY, Record
from sft_jax.utils.errors import UserError


def make(count, text='record {}'):
  return [Record((), f'f:{i}', text=text.format(i)) for i in range(count)]


def texts(records):
  return [record.text for record in records]


def test_share_is_about_right_and_does_not_depend_on_order():
  records = make(2000)
  train, heldout = split_heldout(records, 0.1)
  assert 150 < len(heldout) < 250 and len(train) + len(heldout) == 2000
  moved = [Record((), f'other:{i}', text=r.text) for i, r in enumerate(records[::-1])]
  _, backwards = split_heldout(moved, 0.1)
  assert texts(backwards[::-1]) == texts(heldout)
  assert not split_heldout(records, 0)[1]


def test_duplicates_fall_on_the_same_side():
  records = make(300) + make(300, 'Record  {} ')
  train, heldout = split_heldout(records, 0.3)
  assert heldout and not {r.key for r in train} & {r.key for r in heldout}


def test_named_split_is_honoured():
  records = [Record((), 'a', text=str(i), split='heldout' if i < 3 else 'train') for i in range(9)]
  train, heldout = split_heldout(records, 0.5)
  assert texts(heldout) == ['0', '1', '2'] and len(train) == 6


def test_choice_is_deterministic_nested_and_skips_problems():
  records = make(100)
  records[5] = Record((), 'f:5', problem=EMPTY)
  small, large = choose(records, 20, seed=1), choose(records, 60, seed=1)
  assert texts(small) == texts(choose(records, 20, seed=1))
  assert set(texts(small)) < set(texts(large))
  assert texts(small) != texts(choose(records, 20, seed=2))
  assert [records.index(r) for r in large] == sorted(records.index(r) for r in large)
  assert len(choose(records, 99, seed=0)) == 99
  with pytest.raises(UserError, match='100 records are wanted, 99 are there'):
    choose(records, 100, seed=0)


def test_first_turns_keeps_whole_answers():
  def say(role):
    return {'role': role, 'content': role}

  messages = tuple(map(say, ('system', 'user', 'assistant', 'assistant', 'user', 'assistant')))
  record = Record(messages, 'a')
  assert len(first_turns(record, 1).messages) == 4
  assert first_turns(record, 2) == record == first_turns(record, 5)


def test_builtin_data():
  train, heldout = load_records('builtin')
  assert heldout and len(train) + len(heldout) >= 300
  assert {r.split for r in train} == {'train'} and {r.split for r in heldout} == {'heldout'}
  assert not any(r.problem for r in [*train, *heldout])
  few, same = load_records('builtin', size=10, seed=3)
  assert len(few) == 10 and same == heldout


def test_bad_requests(tmp_path):
  for bad in ({}, {'name': 'builtin', 'path': 'x.jsonl'}):
    with pytest.raises(UserError, match='either a data set name or a path'):
      load_records(**bad)
  with pytest.raises(UserError, match=r'unknown data set .*builtin'):
    load_records('builtins')
  with pytest.raises(UserError, match=r'the held-out share is 1\.0 — use 0 or more'):
    split_heldout(make(3), 1.0)
  path = tmp_path / 'a.jsonl'
  path.write_text('{"text": "a", "split": "heldout"}')
  with pytest.raises(UserError, match='all records are held out'):
    load_records(path=str(path))

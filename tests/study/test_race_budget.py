"""Budgets as they are written, and a clock that survives kills."""

import os
import time

import pytest

from sft_jax.study import race_budget
from sft_jax.study.race_budget import Budget, Clock
from sft_jax.utils import io
from sft_jax.utils.errors import UserError


@pytest.mark.parametrize(
  'text, amount, unit',
  [
    ('6h', 21600.0, 'seconds'),
    (' 90 m ', 5400.0, 'seconds'),
    ('2d', 172800.0, 'seconds'),
    ('.5h', 1800.0, 'seconds'),
    ('3e6 tokens', 3e6, 'tokens'),
    ('1.5E17FLOPs', 1.5e17, 'flops'),
    ('20000 examples', 2e4, 'examples'),
  ],
)
def test_budgets(text, amount, unit):
  assert race_budget.parse(text, 'here') == Budget(amount, unit)


@pytest.mark.parametrize('text', ['', '6', 'h', '-1h', '1e999h', '3 tokens more', 'nan h'])
def test_what_is_no_budget(text):
  with pytest.raises(UserError, match='no budget'):
    race_budget.parse(text, 'here')


def test_amounts_for_people():
  told = [race_budget.told(x, 'seconds') for x in (7.0, 90.0, 5400.0)]
  assert told == ['7 s', '1.5 min', '1.5 h']
  enough = [race_budget.told(x, 'seconds', up=True) for x in (3601.0, 5400.0, 61.0)]
  assert enough == ['1.01 h', '1.5 h', '1.02 min']
  assert race_budget.told(12344.1, 'tokens', up=True) == '1.235e+04 tokens'
  assert race_budget.told(3e6, 'tokens') == '3e+06 tokens' and race_budget.told(5, '') == '5'


def test_the_clock_counts_over_starts(tmp_path):
  clock = Clock(tmp_path)
  with clock.counting({'a': 3.0, 'b': 1.0}):
    time.sleep(0.02)
  with pytest.raises(ZeroDivisionError), clock.counting({'b': 1.0}):
    1 / 0  # noqa: B018
  first = dict(clock.seconds)
  assert first['a'] >= 0.015 and first['b'] >= 0.005
  assert clock.note('speed', 2.0) == 2.0 == clock.note('speed', 3.0)
  clock.move('a', 'c', 0.01)
  assert clock.seconds == pytest.approx(first | {'a': first['a'] - 0.01, 'c': 0.01})
  first = dict(clock.seconds)
  again = Clock(tmp_path)
  assert again.seconds == first and again.notes == {'speed': 2.0}


def test_what_a_killed_process_had_spent_is_told_by_its_files(tmp_path):
  since = time.time() - 100
  held = {
    'seconds': {'a': 5.0},
    'notes': {},
    'open': {'since': since, 'shares': {'a': 0.5, 'b': 0.5}},
  }
  io.write_json_atomic(tmp_path / 'clock.json', held)
  (tmp_path / 'rung-0').mkdir()
  (tmp_path / 'rung-0' / 'metrics.jsonl').touch()
  for file in (tmp_path / 'clock.json', tmp_path / 'rung-0', tmp_path / 'rung-0' / 'metrics.jsonl'):
    os.utime(file, (since + 40, since + 40))
  clock = Clock(tmp_path)
  assert clock.seconds == pytest.approx({'a': 25.0, 'b': 20.0}, abs=0.01)
  assert Clock(tmp_path).seconds == clock.seconds

"""The time of a race: counted over all of its starts, and kept."""

import time

import pytest

from sft_jax.decide.choose_time import BudgetIsOver, Time
from sft_jax.study.race_budget import Budget
from sft_jax.utils.errors import Interrupted, UserError

HOUR = Budget(3600.0, 'seconds')


def stopped():
  raise Interrupted('stopped by the time limit')


def test_what_is_done_once_counts_once(tmp_path):
  own = Time(str(tmp_path), HOUR, 0.0)
  with own.once('base') as seconds:
    assert 3590 < seconds <= 3600
    time.sleep(0.02)
  spent = own.before()
  assert spent >= 0.02 and own.left(60.0) == 3540 - spent
  assert own.planned() == 0.9 * (3600 - spent)
  assert own.given(own.planned()) == pytest.approx(3600)
  # Another start reads it again: that is no part of the budget, nor limited by it.
  again = Time(str(tmp_path), Budget(spent / 2, 'seconds'), 0.0)
  with again.once('base') as seconds:
    assert seconds == 0
    time.sleep(0.02)
  assert again.before() == spent and again.clock.seconds['again'] >= 0.02


def test_the_base_has_no_more_time_than_the_budget(tmp_path):
  for _ in range(2):  # Time adds up over starts.
    own = Time(str(tmp_path), Budget(0.05, 'seconds'), 0.0)
    with (
      pytest.raises(UserError, match=r'0\.\d+ s are spent, on asking the base too .*budget'),
      own.once('base') as seconds,
    ):
      time.sleep(max(seconds, 0.01))
      stopped()
  assert own.before() >= 0.06 and 'base is done' not in own.clock.notes
  # Nor is a race begun with what is over by then.
  with pytest.raises(UserError, match='on reading the data too'), own.once('read'):
    pass
  with Time(str(tmp_path), HOUR, 0.0).once('base') as seconds:
    assert seconds > 3590


def test_an_interruption_for_another_reason_is_one(tmp_path):
  own = Time(str(tmp_path), HOUR, 0.05)
  with pytest.raises(Interrupted), own.once('base') as seconds:
    assert 0 < seconds <= 0.05
    time.sleep(0.06)
    stopped()
  with pytest.raises(Interrupted), own.within(3600.0):
    stopped()
  with pytest.raises(BudgetIsOver), Time(str(tmp_path), HOUR, 10.0).within(0.01):
    time.sleep(0.02)
    stopped()
  # An amount of training limits no time.
  other = Time(str(tmp_path), Budget(1.0, 'tokens'), 0.0)
  with other.once('read') as seconds:
    assert seconds == 0
  assert (other.before(), other.planned(), other.given(2.0)) == (0.0, 1.0, 2.0)

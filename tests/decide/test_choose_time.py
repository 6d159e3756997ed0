"""The time of a race: counted over all of its starts, and kept."""

import time

import pytest

from sft_jax.decide.choose_time import BudgetIsOver, Time
from sft_jax.study.race_budget import Budget
from sft_jax.train import loop
from sft_jax.utils.errors import Interrupted, UserError

HOUR = Budget(3600.0, 'seconds')


def timed_out(seconds):
  """What a time limit raises where something was done by then."""
  with loop.StopSignal(seconds) as stop:
    stop.progress()
    while not stop.requested:
      time.sleep(0.001)
    raise Interrupted(f'{stop.reason}, after step 1')


def test_what_is_done_once_counts_once(tmp_path):
  own = Time(str(tmp_path), HOUR, 0.0)
  with own.once('base', 'some tasks') as seconds:
    assert 3590 < seconds <= 3600
    time.sleep(0.02)
  spent = own.before()
  assert spent >= 0.02 and own.left() == 3600 - spent
  assert own.planned() == 0.9 * (3600 - spent)
  assert own.given(own.planned()) == pytest.approx(3600)
  # Another start reads it again: that is no part of the budget, nor limited by it.
  again = Time(str(tmp_path), Budget(spent / 2, 'seconds'), 0.0)
  with again.once('base', 'some tasks') as seconds:
    assert seconds == 0
    time.sleep(0.02)
  assert again.before() == again.spent() == spent and again.clock.seconds['again'] >= 0.02
  # Anything else was not done before.
  with pytest.raises(UserError, match='the budget is over'), again.once('base', 'another task'):
    pytest.fail('nothing is begun when the budget is over')
  with Time(str(tmp_path), HOUR, 0.0).once('base', 'another task') as seconds:
    assert 3590 < seconds < 3600
    time.sleep(0.02)
  assert Time(str(tmp_path), HOUR, 0.0).before() > spent + 0.02


def test_what_comes_later_leaves_the_plan_as_it_was(tmp_path):
  own = Time(str(tmp_path), HOUR, 0.0)
  with own.once('read', 'data'):
    time.sleep(0.01)
  own.begin()
  planned = own.planned()
  with own.once('endpoint', 'm@http://x'):
    time.sleep(0.02)
  own.begin()
  assert own.planned() == planned and own.left() < 3600 - own.before() - 0.02
  with own.clock.counting({'a run': 1.0}):
    time.sleep(0.02)
  assert own.planned() == planned and own.left() < 3600 - own.before() - 0.04
  assert Time(str(tmp_path), HOUR, 0.0).planned() == planned


def test_the_base_has_no_more_time_than_the_budget(tmp_path):
  own = Time(str(tmp_path), Budget(0.05, 'seconds'), 0.0)
  with (
    pytest.raises(UserError, match=r'over: 0\.\d+ s are spent, the last of it on asking the b'),
    own.once('base', 'tasks') as seconds,
  ):
    timed_out(seconds)
  assert own.before() >= 0.05
  # Another start begins nothing.
  for name in ('base', 'read'):
    again = Time(str(tmp_path), Budget(0.05, 'seconds'), 0.0)
    with pytest.raises(UserError, match='the budget is over'), again.once(name, 'tasks'):
      pytest.fail('nothing is begun when the budget is over')
  with Time(str(tmp_path), HOUR, 0.0).once('base', 'tasks') as seconds:
    assert seconds > 3590
  # What cannot be stopped is told when it is done, and not read as if it were for nothing.
  slow = Time(str(tmp_path / 'other'), Budget(0.01, 'seconds'), 0.0)
  with pytest.raises(UserError, match='the last of it on reading'), slow.once('read', 'data'):
    time.sleep(0.02)


def test_an_interruption_for_another_reason_is_one(tmp_path):
  own = Time(str(tmp_path), HOUR, 0.05)
  with pytest.raises(Interrupted), own.once('base', 'tasks') as seconds:
    assert 0 < seconds <= 0.05
    timed_out(seconds)
  with pytest.raises(Interrupted), Time(str(tmp_path), HOUR, 10.0).within(0.01):
    time.sleep(0.02)
    raise Interrupted('SIGTERM, after step 3')
  with pytest.raises(BudgetIsOver), Time(str(tmp_path), HOUR, 10.0).within(0.01) as seconds:
    timed_out(seconds)
  # An amount of training limits no time.
  other = Time(str(tmp_path), Budget(1.0, 'tokens'), 0.0)
  with other.once('read', 'data') as seconds:
    assert seconds == 0
  assert (other.before(), other.planned(), other.given(2.0)) == (0.0, 1.0, 2.0)

"""Races in which something is in the way: guards, form, prices, small budgets."""

import re

import numpy as np
import pytest

from benchmarks.planted import TASK, Candidate, World
from sft_jax.study import choose
from sft_jax.study.race import Race
from sft_jax.study.race_data import Field, Observation, Scores
from sft_jax.study.race_evidence import Arm, Evidence, Prior, Rung
from sft_jax.study.race_rules import Rules
from sft_jax.utils.errors import UserError
from tests.study.test_race import clear, race


def test_a_loss_of_form_is_a_loss():
  """Of four items one can no longer be read, and one is read and right for the first time."""
  ids, now = tuple('abcd'), np.array([True, False, True, True])
  read = np.array([True, True, True, False])
  base = Observation({TASK: Scores(ids, np.array([100.0, 100.0, 0.0, 0.0]), read)})
  runs = [Observation({TASK: Scores(ids, np.array([100.0, 0.0, 0.0, 100.0]), now)})]
  field = Field(base, {TASK: 1.0}, {}, most_leak=0.1, ability_only=True)
  assert field.sample(runs, {TASK: 1.0}).gains.tolist() == [[0.0, -100.0, 0.0, 0.0]]
  evidence = Evidence(field, [Rung('all')], {}, 1.0)
  evidence.add(Arm('a'), 0, runs)
  # A guard is the score, whatever moved it.
  assert evidence.gains(0)[Arm('a')].mean == -25 and evidence.gains(0, TASK)[Arm('a')].mean == 0


def guarded(world, falls):
  """The callback of a world with a guard, which falls by `falls(trial)`."""
  ids, own = tuple('xyz'), np.array([0.1, -0.1, 0.0])
  guard = lambda change: Scores(ids, 50.0 + change + own)
  world.base = Observation({**world.base.scores, 'guard': Scores(ids, np.full(3, 50.0))})
  return lambda trials: {
    trial: Observation({**one.scores, 'guard': guard(-falls(trial))}, one.cost)
    for trial, one in world.evaluate(trials).items()
  }


def test_worse_than_what_is_out_is_not_out():
  """The best breaks a guard, but only in full; the second, shown to be worse, is tried instead."""
  names = {'best': Candidate(40.0), 'fair': Candidate(10.0), 'bad': Candidate(-4.0)}
  world = World(names, 3, items=1200)
  breaks = lambda trial: 9.0 * (trial.arm == Arm('best') and trial.rung == 2)
  evaluate = guarded(world, breaks)
  one = race(world, 190.0, guards={'guard': -1.0})
  decision = choose.choose(one, evaluate)
  assert one.state[Arm('best')] == 'guard' and decision.pick == Arm('fair')
  assert any(step.startswith('all that ran at full size are out') for step in one.steps)
  assert decision.spent == sum(world.costs[trial.rung] for trial in world.trials) <= 190


def test_a_tie_names_no_rate_that_breaks_a_guard():
  names = {'a': Candidate(9.0), 'b': Candidate(9.0), 'c': Candidate(-9.0)}
  world = World(names, 6, items=1200)
  lifted = lambda scores: Scores(scores.ids, scores.values + 3.0)
  breaks = lambda trial: 9.0 * (trial.arm.rate > 1e-4)
  evaluate = guarded(world, breaks)

  def lift(trials):
    return {
      t: Observation({**o.scores, TASK: lifted(o.scores[TASK])}, o.cost) if t.arm.rate > 1e-4 else o
      for t, o in evaluate(trials).items()
    }

  one = race(world, 500.0, guards={'guard': -1.0}, rates=(1e-4, 1e-3))
  decision = choose.choose(one, lift)
  assert set(decision.members) == {Arm('a', 1e-4), Arm('b', 1e-4)}
  assert set(decision.members) <= {standing.arm for standing in decision.standings}


def priced(cost, budget, rungs=None, given=float, unit='', leaks=None):
  """A race of `a` and `b` with prices of their own; nothing is run."""
  base = Observation({TASK: Scores(tuple('abc'), np.array([0.0, 100.0, 0.0]))})
  field = Field(base, {TASK: 1.0}, leaks or {}, most_leak=0.1, ability_only=True)
  rungs = rungs or [Rung('few'), Rung('all')]
  arms, rules = [Arm('a'), Arm('b')], Rules({TASK: 1.0})
  return Race(arms, rungs, rules, field, budget, cost, None, unit, given)


@pytest.mark.parametrize('before, careful', [(0.0, 1.0), (1234.5, 0.9)])
def test_what_a_too_small_budget_would_take_is_enough(before, careful):
  """Of arms of unequal price, and where time went before the race: what is said suffices."""
  cost = lambda arm, rung: (333.3 if arm == Arm('a') else 4444.4) * (rung + 1)
  left = lambda amount: careful * (amount - before)
  given = lambda amount: before + amount / careful
  make = lambda amount: priced(cost, left(amount), given=given, unit='seconds')
  with pytest.raises(UserError, match=r'budget of 16\.7 min is too small') as caught:
    make(1000.0)
  told = re.search(r'takes ([0-9.]+) h', caught.value.what)[1]
  assert make(3600 * float(told)).live == [Arm('a'), Arm('b')]
  with pytest.raises(UserError, match='too small'):
    make(3600 * float(told) * 0.95)


def test_whoever_is_left_alone_by_leaks_is_no_matter_of_the_budget():
  one = priced(lambda *_: 1.0, 10.0, rungs=[Rung('all')], leaks={'a': {TASK: ['a', 'b']}})
  assert one.live == [Arm('b')]


@pytest.mark.parametrize('longer', [0.8, 1.25])
def test_the_budget_is_kept_where_runs_are_longer_than_the_mean(longer):
  """What the first rung draws is short and what later ones draw long, or the other way about."""
  world = clear()
  exact = lambda trial: world.costs[trial.rung] * (longer if trial.rung else 1 / longer)

  def evaluate(trials):
    found = world.evaluate(trials)
    return {t: Observation(one.scores, exact(t)) for t, one in found.items()}

  for budget in range(76, 300, 7):
    world.trials.clear()
    one = race(world, float(budget))
    one = Race(one.arms, one.rungs, one.rules, one.field, budget, one._cost, exact=exact)
    one.run(evaluate)
    assert one.spent == pytest.approx(sum(map(exact, world.trials))) and one.spent <= budget


def test_a_prior_that_is_sure_of_one_is_no_matter_of_the_budget():
  prior = {'best': Prior(20.0, 0.1), 'fair': Prior(0.0, 0.1), 'bad': Prior(0.0, 0.1)}
  assert len(race(clear(), 1e4, prior=prior).live) >= 2


def test_what_cannot_be_paid_for_in_full_leaves_room_for_what_can():
  world = World({'best': Candidate(20.0), 'fair': Candidate(10.0)}, 3, items=1200)
  one = race(world, 500.0)
  one._cost = lambda arm, rung: 200.0 if rung == 2 and arm == Arm('best') else world.costs[rung]
  decision = choose.choose(one, world.evaluate)
  assert one.state[Arm('best')] == 'cut' and decision.pick == Arm('fair')


def test_seeds_that_were_not_measured_are_told():
  world = clear()
  rules = Rules({TASK: 1.0})
  field = Field(world.base, rules.targets, {}, most_leak=0.1, ability_only=True)
  arms = [Arm(name) for name in world.candidates]
  one = Race(arms, [Rung('full', 1)], rules, field, 9.0, lambda *_: 1.0)
  told = 'no candidate was trained with two seeds: .* taken to be 1.5 points'
  assert any(re.match(told, fact) for fact in choose.choose(one, world.evaluate).shared)


def test_a_guard_of_one_item_is_told():
  scores = Scores(('x',), np.array([0.0]))
  base = Observation({TASK: Scores(tuple('ab'), np.array([0.0, 100.0])), 'guard': scores})
  with pytest.raises(UserError, match=r'one item decides nothing .guard.'):
    Field(base, {TASK: 1.0}, {}, most_leak=0.1, ability_only=True)


def short(world, budget, exact=None):
  """A race of one rung of two seeds, 100 a run as far as is known before."""
  field = Field(world.base, {TASK: 1.0}, {}, most_leak=0.1, ability_only=True)
  arms = [Arm(name) for name in world.candidates]
  cost = lambda arm, rung: 100.0
  return Race(arms, [Rung('all', 2)], Rules({TASK: 1.0}), field, budget, cost, exact=exact)


def test_who_was_never_measured_is_not_called_worse():
  """Whether its exact price is too high, or the time is over before it."""
  world = clear()
  one = short(world, 600.0, lambda trial: 100.0 if trial.arm == Arm('best') else 230.0)
  decision = choose.choose(one, world.evaluate)
  others = {standing.why for standing in decision.standings if standing.arm != Arm('best')}
  assert others == {'not tried'} and 'budget does not reach for it: fair' in ' '.join(one.steps)
  one = short(world, 600.0)
  undone = Observation({}, 10.0, ended=False)
  late = lambda trials: {
    t: done if t.arm == Arm('best') else undone for t, done in world.evaluate(trials).items()
  }
  decision = choose.choose(one, late)
  assert {s.why for s in decision.standings if s.arm != Arm('best')} == {'not tried'}


def test_failures_are_failures_however_much_is_spent():
  one = short(clear(), 600.0)
  one.run(lambda trials: {t: Observation({}, 100.0) for t in trials})
  assert one.spent == one.budget and set(one.state.values()) == {'failed'}

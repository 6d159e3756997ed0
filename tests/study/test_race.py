"""Races of planted worlds: what is named, what is dropped, what is spent, and its errors."""

import dataclasses
import math
import re

import numpy as np
import pytest
from scipy import stats as reference

from benchmarks import choose_races
from benchmarks.planted import TASK, Candidate, World
from sft_jax.study import choose, race_plan
from sft_jax.study import race_stats as stats
from sft_jax.study.race import Race
from sft_jax.study.race_data import Field, Observation, Scores
from sft_jax.study.race_evidence import Arm, Prior, Rung
from sft_jax.study.race_rules import Rules
from sft_jax.utils.errors import Interrupted, UserError


def race(world, budget=150.0, leaks=None, prior=None, guards=None, ability_only=True, rates=(0.0,)):
  rules = Rules({TASK: 1.0}, guards or {}, ability_only=ability_only)
  field = Field(
    world.base, rules.targets, leaks or {}, most_leak=0.1, ability_only=rules.ability_only
  )
  arms = [Arm(name, rate) for name in world.candidates for rate in rates]
  cost = lambda _, rung: world.costs[rung]
  return Race(arms, choose_races.RUNGS, rules, field, budget, cost, prior)


def clear(**more):
  """One candidate is far better than the others."""
  names = {'best': Candidate(12.0), 'fair': Candidate(3.0), 'bad': Candidate(-4.0)}
  return World(names | more, 3, items=1200)


def test_the_clear_best_wins_and_the_budget_is_kept():
  world = clear()
  one = race(world, 150.0)
  decision = choose.choose(one, world.evaluate)
  assert decision.kind == choose.WINNER and decision.pick == Arm('best')
  assert decision.spent == sum(world.costs[trial.rung] for trial in world.trials) <= 150.0
  assert decision.full == 3 * 4 * 16
  first = decision.standings[0]
  assert first.arm == Arm('best') and first.gain.low() < 12 < first.gain.high()


def test_every_run_has_a_seed_no_other_rung_had():
  world = clear()
  choose.choose(race(world), world.evaluate)
  rungs = {}
  for trial in world.trials:
    rungs.setdefault(trial.seed, set()).add(trial.rung)
  assert all(len(at) == 1 for at in rungs.values()) and len(set(map(min, rungs.values()))) > 1


def test_the_same_observations_make_the_same_decision_and_nothing_is_asked_twice():
  world, known = clear(), {}

  def remember(trials):
    new = [trial for trial in trials if trial not in known]
    known.update(world.evaluate(new))
    return {trial: known[trial] for trial in trials}

  first = race(world)
  before = choose.as_json(choose.choose(first, remember), first)
  asked = len(world.trials)
  again = race(world)
  assert choose.as_json(choose.choose(again, remember), again) == before
  assert len(world.trials) == asked


def test_a_new_candidate_runs_only_what_is_new():
  names = {'best': Candidate(12.0), 'fair': Candidate(3.0), 'bad': Candidate(-4.0)}
  first = World(names, 3, items=1200)
  choose.choose(race(first, 400.0), first.evaluate)
  second = World(names | {'new': Candidate(0.0)}, 3, items=1200)
  choose.choose(race(second, 400.0), second.evaluate)
  ran = [{t for t in world.trials if t.arm == Arm('best')} for world in (first, second)]
  rungs = {trial.rung for trial in ran[0]}
  again = {trial for trial in ran[1] if trial.rung in rungs}
  assert again and again <= ran[0]


def test_stopped_at_any_moment_it_comes_to_the_same():
  world, known = clear(), {}
  whole = race(world)
  expected = choose.as_json(choose.choose(whole, world.evaluate), whole)
  once = len(world.trials)
  stops = iter([1, 2, 5, 9, 12])

  def evaluate(trials, until):
    for trial in trials:
      if trial not in known:
        if len(known) == until:
          raise Interrupted('SIGTERM')
        known.update(world.evaluate([trial]))
    return {trial: known[trial] for trial in trials}

  for until in stops:
    with pytest.raises(Interrupted):
      race(world).run(lambda trials, until=until: evaluate(trials, until))
  last = race(world)
  found = choose.choose(last, lambda trials: evaluate(trials, -1))
  assert choose.as_json(found, last) == expected
  assert len(world.trials) == 2 * once


def test_nothing_beats_the_base_is_said():
  world = World({name: Candidate(0.0) for name in 'abc'}, 5, items=1200)
  held = race(world)
  decision = choose.choose(held, world.evaluate)
  assert decision.kind == choose.NONE and decision.pick is None and not decision.members
  # The bound that decided is told, as the interval of one candidate by itself may lie above.
  last = [one for one in decision.standings if one.rung == held.last]
  told = [
    re.search(r'with 3 tried .* in 1% of races.* above ([+-][\d.]+)$', one.why) for one in last
  ]
  bounds = [one.gain.mean - one.gain.reach(0.01 / 3) for one in last]
  assert last and [float(found[1]) for found in told] == [round(bound, 1) for bound in bounds]
  assert all(bound < one.gain.low() and bound <= 0 for bound, one in zip(bounds, last, strict=True))


def test_equals_are_a_tie():
  world = World({'a': Candidate(9.0), 'b': Candidate(9.0), 'c': Candidate(-9.0)}, 6, items=1200)
  decision = choose.choose(race(world, 400.0), world.evaluate)
  assert decision.kind == choose.TIE
  assert {arm.candidate for arm in decision.members} == {'a', 'b'}


def test_planted_races():
  """A small version of `benchmarks/choose_races.py`."""
  found = choose_races.measure(8)
  assert found['true best is the winner or in the tie']['hits'] >= 7
  assert found['nothing helps: none beats the base']['hits'] >= 7
  assert found['intervals cover: finalists']['percent'] > 75
  assert found['cost, share of everything fully']['max'] <= choose_races.SHARE + 1e-9
  traps = {name: row for name, row in found.items() if name.startswith('trap')}
  assert len(traps) == 10 and all(row['hits'] == 0 for row in traps.values())


def test_a_leaky_candidate_is_out_and_leaked_items_count_for_nobody():
  world = clear(much=Candidate(0.0, leaked=0.5), some=Candidate(0.0, leaked=0.05))
  leaks = choose_races.found_leaks(world)
  one = race(world, 250.0, leaks)
  decision = choose.choose(one, world.evaluate)
  assert decision.pick == Arm('best')
  assert one.state[Arm('much')] == 'leak' and not any(
    trial.arm.candidate == 'much' for trial in world.trials
  )
  held = int(world.leaked['some'].sum())
  assert one.field.items(TASK) == (1200, 1200 - held)
  assert any(f'{held} of 1,200 items' in fact for fact in decision.shared)


def test_form_is_told_from_ability():
  names = {'form': Candidate(0.0, form=1.0), 'able': Candidate(8.0), 'none': Candidate(0.0)}
  world = World(names, 8, items=1500, unread=0.3)
  one = race(world)
  decision = choose.choose(one, world.evaluate)
  assert decision.pick == Arm('able')
  form = next(s for s in decision.standings if s.arm == Arm('form'))
  assert form.form > 10 and abs(form.gain.mean) < 5
  total = choose.choose(race(world, ability_only=False), world.evaluate)
  assert total.pick == Arm('form')


def guarded(world, changes):
  """An evaluation of the world with three questions more, on which candidates change so much."""
  ids, noise = tuple('xyz'), np.array([0.1, -0.1, 0.0])
  world.base = Observation({**world.base.scores, 'guard': Scores(ids, np.full(3, 50.0))})

  def evaluate(trials):
    return {
      trial: Observation(
        {**one.scores, 'guard': Scores(ids, 50.0 + changes[trial.arm.candidate] + noise)}, one.cost
      )
      for trial, one in world.evaluate(trials).items()
    }

  return evaluate


def test_a_guard_that_falls_is_out():
  world = clear()
  evaluate = guarded(world, {'best': -9.0, 'fair': 0.5, 'bad': 0.5})
  one = race(world, guards={'guard': -1.0})
  decision = choose.choose(one, evaluate)
  assert one.state[Arm('best')] == 'guard' and decision.pick != Arm('best')


def test_a_guard_that_does_not_move_is_kept():
  world = clear()
  evaluate = guarded(world, dict.fromkeys(world.candidates, -1e-13))
  decision = choose.choose(race(world, guards={'guard': 0.0}), evaluate)
  assert decision.pick == Arm('best')


def test_runs_that_change_nothing_prove_nothing():
  world = clear()
  same = lambda trials: {
    trial: Observation(world.base.scores, one.cost) for trial, one in world.evaluate(trials).items()
  }
  decision = choose.choose(race(world), same)
  assert decision.kind == choose.NONE
  assert any('no run in full won or lost a question' in fact for fact in decision.shared)
  assert not any('a true gain of' in fact for fact in decision.shared)
  whys = [one.why for one in decision.standings if one.rung == 2]
  assert whys and all(why.endswith('no question was won or lost') for why in whys)


def test_of_learning_rates_the_better_one_is_picked():
  world = clear()
  good = world.evaluate

  def evaluate(trials):
    done = good(trials)
    low = lambda one: Scores(one.ids, one.values - 15.0)
    return {
      t: Observation({TASK: low(o.scores[TASK])}, o.cost) if t.arm.rate > 1e-4 else o
      for t, o in done.items()
    }

  decision = choose.choose(race(world, 220.0, rates=(1e-4, 1e-3)), evaluate)
  assert decision.pick == Arm('best', 1e-4)
  assert len({arm.candidate for arm in decision.members}) == len(decision.members)


def test_runs_that_fail_are_left_out():
  world = clear()
  evaluate = lambda trials: {
    t: o for t, o in world.evaluate(trials).items() if t.arm != Arm('best')
  }
  one = race(world)
  choose.choose(one, evaluate)
  assert one.state[Arm('best')] == 'failed'


def test_what_failed_runs_cost_is_spent():
  world = clear()
  evaluate = lambda trials: {
    t: Observation({}, o.cost) if t.arm == Arm('best') else o
    for t, o in world.evaluate(trials).items()
  }
  one = race(world)
  choose.choose(one, evaluate)
  assert one.state[Arm('best')] == 'failed'
  assert one.spent == sum(world.costs[trial.rung] for trial in world.trials)


def test_what_costs_nothing_tells_nothing_of_prices():
  """Runs that were done for another arm, of the same data in another size."""
  world = clear()
  evaluate = lambda trials: {
    t: dataclasses.replace(o, cost=0.0) if t.arm == Arm('best') else o
    for t, o in world.evaluate(trials).items()
  }
  one = race(world)
  one.run(evaluate)
  assert 'best' in {arm.candidate for arm in one.evidence.reached}
  assert one.price([Arm('best')], 0) == one.rungs[0].seeds * world.costs[0]


def test_runs_that_the_budget_ended_did_not_fail():
  world = clear()

  def evaluate(trials):
    done = world.evaluate(trials)
    if trials[0].rung:  # The time is over, and nothing came to its end.
      return {t: Observation({}, 1000.0, ended=False) for t in done}
    return done

  one = race(world)
  one.run(evaluate)
  assert set(one.state.values()) <= {'cut', 'worse'} and one.spent > one.budget


def test_the_prior_says_whom_a_small_budget_lets_in():
  world = clear(**{f'other-{i}': Candidate(0.0) for i in range(9)})
  prior = {name: Prior(0.0, 3.0) for name in world.candidates} | {'best': Prior(9.0, 3.0)}
  one = race(world, 90.0, prior=prior)
  decision = choose.choose(one, world.evaluate)
  assert decision.pick == Arm('best') and decision.spent <= 90
  assert 'skipped' in one.state.values()


@pytest.mark.parametrize(
  'make, words',
  [
    (lambda: race(World({'a': Candidate(1.0)}, 1)), 'one candidate is no choice'),
    (lambda: race(clear(), 20.0), 'too small for a first rung .* takes 70'),
    (lambda: Field(clear().base, {}, {}, most_leak=0.1, ability_only=True), 'no target'),
    (lambda: Field(clear().base, {'x': 1.0}, {}, most_leak=0.1, ability_only=True), 'no score'),
  ],
)
def test_bad_input(make, words):
  with pytest.raises(UserError, match=words):
    make()


def test_a_constant_metric_is_refused():
  world = clear()
  same = Scores(world.ids, np.full(len(world.ids), 100.0))
  world.base = Observation({TASK: same})
  with pytest.raises(UserError, match='the same for every model'):
    race(world).run(lambda trials: {t: Observation({TASK: same}, 1.0) for t in trials})


def sample(gains):
  items = gains.shape[1]
  return stats.Sample(gains, np.full(items, 1 / items), np.zeros(items, int))


def test_the_error_of_a_gain_is_that_of_a_two_way_layout():
  """Planted seed, item and own parts: stderr² is the variance of the mean, on average."""
  rng = np.random.default_rng(0)
  seeds, items, found, means = 3, 60, [], []
  for _ in range(3000):
    gains = rng.normal(0, 2.0, (seeds, 1)) + rng.normal(0, 9.0, items)
    gains = gains + rng.normal(0, 12.0, (seeds, items))
    one = sample(gains)
    noise = stats.Noise(one.seed_variance, one.freedom)
    found.append(stats.gain(one, noise).stderr ** 2)
    means.append(gains.mean())
  # A negative part is taken as 0, which makes it a little too large.
  assert 0.97 < np.mean(found) / np.var(means) < 1.12


def test_a_single_run_without_items_has_the_error_it_says():
  one = stats.Sample(np.array([[3.0]]), np.ones(1), np.zeros(1, int), known=4.0)
  assert stats.gain(one, stats.Noise(0.0, math.inf)).stderr == 2.0


def test_moderated_variances_are_those_of_the_model():
  """Drawn from Smyth's model: the fit finds scale and freedom, and helps every group."""
  rng = np.random.default_rng(1)
  prior, scale, own, groups = 6.0, 4.0, 3, 20000
  true = prior * scale / rng.chisquare(prior, groups)
  seen = true * rng.chisquare(own, groups) / own
  found = stats.moderate(list(seen), [own] * groups)
  assert found[0].freedom - own == pytest.approx(prior, rel=0.1)
  exact = (prior * scale + own * seen[0]) / (prior + own)
  assert found[0].variance == pytest.approx(exact, rel=0.03)


def test_equal_variances_are_pooled():
  found = stats.moderate([2.0, 2.0, 2.0], [2, 2, 2])
  assert [one.variance for one in found] == pytest.approx([2.0] * 3)
  assert {one.freedom for one in found} == {6}


def test_bounds_are_students():
  gain = stats.Gain(1.0, 2.0, 5.0)
  assert gain.low() == pytest.approx(1 - 2 * reference.t.ppf(0.975, 5))
  assert gain.high(0.01) == pytest.approx(1 + 2 * reference.t.ppf(0.99, 5))


def test_the_probability_of_being_the_best():
  known = [(1.0, 1.0), (0.0, 4.0), (-1.0, 0.25)]
  rng = np.random.default_rng(2)
  drawn = rng.normal([m for m, _ in known], [v**0.5 for _, v in known], (200000, 3)).argmax(1)
  exact = stats.best_probability(known)
  assert exact == pytest.approx(np.bincount(drawn, minlength=3) / 200000, abs=0.005)
  assert stats.best_probability([(0.0, 1.0)] * 4) == pytest.approx([0.25] * 4)


def test_schedules():
  known = [(0.0, 25.0)] * 6
  counts = race_plan.best_schedule(known, (1.0, 4.0, 16.0), (4.0, 2.0, 1.0), 60.0, first=6)
  assert counts[0] == 6 and 1 <= counts[-1] <= 3
  assert sum(n * c for n, c in zip(counts, (1, 4, 16), strict=True)) <= 60
  # A rung that tells nothing is passed over, where nobody has to be in it.
  assert race_plan.best_schedule(known, (5.0, 16.0), (1e6, 1.0), 64.0) == (0, 4)
  assert race_plan.best_schedule(known, (1.0, 16.0), (1.0, 1.0), 10.0) == ()


def test_drift_widens_a_contrast():
  gains = np.random.default_rng(3).normal(0, 10, (3, 200))
  pair = (sample(gains), stats.Noise(1.0, 10.0)), (sample(gains[::-1] + 1), stats.Noise(1.0, 10.0))
  near, far = (stats.contrast(*pair, drift) for drift in (0.0, 3.0))
  assert near.mean == far.mean == pytest.approx(-1.0)
  assert far.stderr**2 - near.stderr**2 == pytest.approx(18.0)


def test_a_rung_has_a_name_and_seeds():
  assert Rung('full').seeds == 2 and Rung('full').drift == 0

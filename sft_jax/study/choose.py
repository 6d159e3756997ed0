"""What a finished race says: a winner, a tie, or that nothing beats the base; and how sure that is.

With the probability the rules promise, the best candidate is among those named (a subset that holds
the best: Gupta, Technometrics 7, 1965), and what is said to beat the base does. Not for pages:
`decision_page.py`.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

from sft_jax.study import race as race_lib
from sft_jax.study import race_stats as stats
from sft_jax.study.race import Race
from sft_jax.study.race_evidence import Arm
from sft_jax.utils import words

WINNER, TIE, NONE = 'winner', 'tie', 'none beats the base'

# Why a candidate is not among those named; {by} is who was shown to be better.
_WORDS = {
  race_lib.WORSE: 'shown to be worse than {by}',
  race_lib.CUT: 'dropped for what it would cost, not shown to be worse',
  race_lib.GUARD: 'falls on a guarded benchmark by more than is allowed',
  race_lib.LEAK: 'holds too much of a benchmark',
  race_lib.FAILED: 'every run of it failed',
  race_lib.SKIPPED: 'not tried',
}


@dataclasses.dataclass(frozen=True)
class Standing:
  """What was found of one candidate, trained in its best way.

  Attributes:
    arm: The candidate and its learning rate.
    state: What became of it, see `race.py`.
    why: The same in words; '' of those that are named.
    rung: Where it was last seen; -1 for never.
    runs: At that rung.
    gain: Over the base at that rung, of what counts (None if never seen).
    form: Points of all change that come of answers found where none was before.
    guards: {task: change}.
  """

  arm: Arm
  state: str
  why: str
  rung: int
  runs: int
  gain: stats.Gain | None
  form: float | None
  guards: Mapping[str, stats.Gain]


@dataclasses.dataclass(frozen=True)
class Decision:
  """The outcome.

  Attributes:
    kind: WINNER, TIE or NONE.
    pick: The candidate to train, of a tie the one with the best expectation; None of NONE.
    members: Those among which the best is; empty of NONE.
    open: Those of the members that were dropped, for what they would cost, before that was settled.
    standings: Of every candidate, the best first.
    spent: In the unit of the budget.
    full: What running everything at full size would have cost.
    shared: Further facts a reader needs, a sentence each.
  """

  kind: str
  pick: Arm | None
  members: tuple[Arm, ...]
  open: tuple[Arm, ...]
  standings: tuple[Standing, ...]
  spent: float
  full: float
  shared: tuple[str, ...]


def choose(race: Race, evaluate: race_lib.Evaluate) -> Decision:
  """Holds a race and concludes.

  Args:
    race: Not yet held.
    evaluate: See `Race.run`.

  Raises:
    UserError: see `Race.run`.
  """
  race.run(evaluate)
  return decide(race)


def decide(race: Race) -> Decision:
  """What a finished race says."""
  finalists = [arm for arm in race.live if race.evidence.reached.get(arm) == race.last]
  facts = _facts(race)
  pick = race.evidence.ranked(finalists)[0] if finalists else None
  if pick is None or not beats_base(race, pick):
    better = [arm for arm in finalists if beats_base(race, arm)]
    pick = race.evidence.ranked(better)[0] if better else None
  if pick is None:
    standings = _standings(race, ())
    return Decision(NONE, None, (), (), standings, race.spent, race.full_price(), facts)
  members = _members(race, pick)
  open_ = tuple(arm for arm in members if race.state[arm] == race_lib.CUT)
  kind = WINNER if len(members) == 1 else TIE
  standings = _standings(race, members)
  return Decision(kind, pick, members, open_, standings, race.spent, race.full_price(), facts)


def _members(race: Race, pick: Arm) -> tuple[Arm, ...]:
  """The pick, and as many others as it takes to hold the best with `1 - error / 2`.

  By the posterior that all rungs give, learning rates of a candidate together. What was shown to be
  worse is out; a test that does that may err with `error` in all.
  """
  left = [arm for arm in race.arms if race.state[arm] in (race_lib.CUT, race_lib.RUNNING)]
  chance: dict[str, float] = {}
  for arm, p in race.evidence.best_probability(left).items():
    chance[arm.candidate] = chance.get(arm.candidate, 0.0) + p
  seen = [arm for arm in left if arm in race.evidence.reached]
  arms = {arm.candidate: arm for arm in _best_of_each(race, seen)}
  out, held = [pick], chance.pop(pick.candidate, 0.0)
  for candidate in sorted(chance, key=lambda name: (-chance[name], name)):
    if held >= 1 - race.rules.error / 2:
      break
    out.append(arms[candidate])
    held += chance[candidate]
  return tuple(out)


def beats_base(race: Race, arm: Arm) -> bool:
  """Whether an arm is shown to gain more than `least_gain` at full size.

  The seeds of the last rung chose nothing; the items did, so that every arm counts as tried
  (Bonferroni).
  """
  return _surely(race, arm) > race.rules.least_gain


def _surely(race: Race, arm: Arm) -> float:
  """The gain at full size that an arm has at least, but for `base_error` over all arms."""
  error = race.rules.base_error / len(race.arms)
  return race.evidence.gains(race.last)[arm].low(error)


def _best_of_each(race: Race, arms: Sequence[Arm]) -> list[Arm]:
  found: dict[str, Arm] = {}
  for arm in race.evidence.ranked(arms) if arms else ():
    found.setdefault(arm.candidate, arm)
  return list(found.values())


def _standings(race: Race, members: Sequence[Arm]) -> tuple[Standing, ...]:
  seen = _best_of_each(race, [arm for arm in race.arms if arm in race.evidence.reached])
  first = list(members)
  rest = [arm for arm in seen if arm.candidate not in {one.candidate for one in first}]
  rest.sort(key=lambda arm: -race.evidence.reached[arm])
  named = {arm.candidate for arm in (*first, *rest)}
  unseen = {arm.candidate: arm for arm in race.arms if arm.candidate not in named}
  return tuple(_standing(race, arm, members) for arm in (*first, *rest, *unseen.values()))


def _standing(race: Race, arm: Arm, members: Sequence[Arm]) -> Standing:
  state = race.state[arm]
  why = ''
  if arm not in members:
    by = race.beaten_by.get(arm)
    why = _WORDS.get(state, 'not shown to beat the base').format(by=by.candidate if by else '')
    if state == race_lib.RUNNING and race.evidence.reached.get(arm) == race.last:
      why += _how_sure(race, arm)
    if state in (race_lib.CUT, race_lib.RUNNING) and members:
      why = f'shown to be worse than {members[0].candidate}'
  rung = race.evidence.reached.get(arm, -1)
  if rung < 0:
    return Standing(arm, state, why, -1, 0, None, None, {})
  sample, everything = (
    race.evidence.sample(arm, rung),
    race.evidence.sample(arm, rung, ability=False),
  )
  form = float(
    everything.by_seed.mean() - race.evidence.sample(arm, rung, ability=True).by_seed.mean()
  )
  guards = {task: race.evidence.gains(rung, task)[arm] for task in race.rules.guards}
  gain = race.evidence.gains(rung)[arm]
  return Standing(arm, state, why, rung, len(sample.gains), gain, form, guards)


def _how_sure(race: Race, arm: Arm) -> str:
  """What is known of the gain of an arm that ran in full and is not shown to beat the base."""
  gain = race.evidence.gains(race.last)[arm]
  if stats.nothing_changed(gain.mean, gain.stderr):
    return ': no question was won or lost'
  # The interval beside it is of one arm by itself, at 95 %, and may lie above.
  tried, error = len(race.arms), race.rules.base_error
  surely = round(_surely(race, arm), 1) + 0.0
  return (
    f': with {tried} tried and an error in {error:.0%} of races, its gain is sure only to be above '
    f'{surely:+.1f}'
  )


def _power(race: Race) -> str:
  """Which gain such a race shows; of runs that changed nothing, no error can be reckoned."""
  gains = race.evidence.gains(race.last).values()
  found = [gain for gain in gains if not stats.nothing_changed(gain.mean, gain.stderr)]
  if not found:
    return (
      'no run in full won or lost a question, which says little of the data: train longer or at a '
      'larger config.train.learning_rate, or ask more questions'
    )
  error = race.rules.base_error / len(race.arms)
  shown = race.rules.least_gain + min(gain.reach(error) + gain.reach(0.2) for gain in found)
  return (
    f'a true gain of {shown:.1f} points or more over the base would be shown in four of five such '
    'races'
  )


def _facts(race: Race) -> tuple[str, ...]:
  out = []
  at_last = [arm for arm, rung in race.evidence.reached.items() if rung == race.last]
  if at_last:
    out.append(_power(race))
  if at_last and not race.evidence.repeated:
    out.append(
      f'no candidate was trained with two seeds: how much seeds differ is not measured, and taken '
      f'to be {race.rules.seed_sd:g} points (standard deviation)'
    )
  for task in race.field.targets:
    items, clean = race.field.items(task)
    if clean < items:
      out.append(
        f'{items - clean} of {words.count(items, "item")} of {task} found in the training data of '
        'a candidate: counted for none'
      )
    if race.rules.ability_only and (share := race.field.form_limited(task)) > 0.25:
      out.append(
        f'no answer is found in {share:.0%} of what the base writes on {task}: whether a candidate '
        'can answer these better, or only in a form that is read, is not told apart; they count '
        'as no gain'
      )
  for candidate, tasks in sorted(race.field.leaks.items()):
    for task, leak in tasks.items():
      barred = ', and it is out of the race for that' if leak.barred else ''
      if leak.found:
        held = words.count(leak.found, 'item')
        out.append(f'{candidate} holds {held} of {task} ({leak.share:.1%}){barred}')
  return tuple(out)


def estimate(gain: stats.Gain | None) -> dict[str, Any] | None:
  """A gain as plain values with its 95 % interval; None where there is none."""
  if gain is None:
    return None
  return {
    'mean': gain.mean,
    'stderr': gain.stderr,
    'low': gain.low(),
    'high': gain.high(),
    'freedom': gain.freedom if math.isfinite(gain.freedom) else None,
  }


def as_json(decision: Decision, race: Race) -> dict[str, Any]:
  """The decision as plain values; numbers that are not known are None."""
  arm = lambda one: {'candidate': one.candidate, 'learning-rate': one.rate or None}
  return {
    'decision': decision.kind,
    'pick': decision.pick and arm(decision.pick),
    'members': [arm(one) for one in decision.members],
    'open': [arm(one) for one in decision.open],
    'targets': dict(race.field.targets),
    'guard-limits': dict(race.rules.guards),
    'questions': {
      task: race.field.items(task)[1] for task in (*race.field.targets, *race.rules.guards)
    },
    'spent': decision.spent,
    'budget': race.budget if math.isfinite(race.budget) else None,
    'full-cost': decision.full,
    'form-counts': not race.rules.ability_only,
    'steps': list(race.steps),
    'facts': list(decision.shared),
    'candidates': [
      arm(one.arm)
      | {
        'state': one.state,
        'why': one.why,
        'rung': race.rungs[one.rung].name if one.rung >= 0 else None,
        'runs': one.runs,
        'gain': estimate(one.gain),
        'form': one.form,
        'guards': {task: estimate(gain) for task, gain in one.guards.items()},
        'curve': [
          {'rung': race.rungs[at].name} | (estimate(found[one.arm]) or {})
          for at in range(len(race.rungs))
          if one.arm in (found := race.evidence.gains(at))
        ],
      }
      for one in decision.standings
    ],
  }

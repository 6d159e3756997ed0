"""A race of candidates within a budget: rungs of growing size, the worse dropped on the way.

As in successive halving (Jamieson and Talwalkar, AISTATS 2016) fewer run at each rung, as many as
pays (`race_plan.py`); racing by confidence (Maron and Moore, Artificial Intelligence Review 11,
1997) drops earlier what is shown to be worse. Every rung draws fresh seeds, so that luck is not
carried along. What is dropped to keep the budget is not thereby called worse. Knows nothing of
models: a callback does the runs. The same observations give the same race, so a race is resumed by
running it again with a callback that remembers. Not for what is concluded: `choose.py`.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence

from sft_jax.study import race_budget, race_plan
from sft_jax.study.race_data import Field, Observation
from sft_jax.study.race_evidence import Arm, Evidence, Prior, Rung
from sft_jax.study.race_rules import Rules
from sft_jax.utils.errors import UserError

# What became of an arm.
RUNNING, WORSE, CUT, GUARD, LEAK, FAILED, SKIPPED = (
  *('running', 'worse', 'cut', 'guard', 'leak', 'failed', 'skipped'),
)

# Points: of a score that did not move, sums of shares differ by less.
_ROUNDING = 1e-9


@dataclasses.dataclass(frozen=True, order=True)
class Trial:
  """One run; `rung` counts from 0, `seed` over all rungs."""

  arm: Arm
  rung: int
  seed: int


Evaluate = Callable[[Sequence[Trial]], Mapping[Trial, Observation]]


class Race:
  """The state of a race; `run` holds it.

  Attributes:
    field: The base and the items that count.
    state: {arm: what became of it}.
    evidence: What the runs showed.
    beaten_by: {arm: the one that was shown to be better}.
    spent: In the unit of the budget.
    steps: What happened, in words, in order.
  """

  def __init__(
    self,
    arms: Sequence[Arm],
    rungs: Sequence[Rung],
    rules: Rules,
    field: Field,
    budget: float,
    cost: Callable[[Arm, int], float],
    prior: Mapping[str, Prior] | None = None,
    unit: str = '',
    given: Callable[[float], float] = float,
    exact: Callable[[Trial], float] | None = None,
  ):
    """Runs nothing.

    Args:
      arms: Two candidates or more, each in one way of training or several.
      rungs: From the smallest to the full size.
      rules: How the race is held.
      field: See `race_data`.
      budget: What all runs together may cost.
      cost: Of one run of an arm at a rung, as far as known before.
      prior: {candidate: expectation}; candidates without one may be anything.
      unit: Of the budget, for people.
      given: What people have to give for an amount to be left for runs.
      exact: What a run that is about to be begun will cost; None where that is not to be told, and
        what runs cost so far corrects what others are expected to.

    Raises:
      UserError: one candidate, or a budget that does not reach.
    """
    if len({arm.candidate for arm in arms}) < 2:
      raise UserError('one candidate is no choice', 'config.choose.data', 'give two or more')
    if not rungs:
      raise UserError('no rung given', 'config.choose.rungs', 'give at least the full size')
    self.arms, self.rungs, self.rules, self.field = list(arms), list(rungs), rules, field
    self.budget, self.prior, self._cost = budget, dict(prior or {}), cost
    self.unit, self._given, self._exact = unit, given, exact
    self.state = dict.fromkeys(self.arms, RUNNING)
    self.evidence = Evidence(field, self.rungs, self.prior, rules.seed_sd)
    self.beaten_by: dict[Arm, Arm] = {}
    self.spent = 0.0
    self.steps: list[str] = []
    self._planned = 0.0
    self._from = 0
    self._counts: tuple[int, ...] = ()
    for arm in self.arms:
      if field.barred(arm.candidate):
        self.state[arm] = LEAK
    self._enter()

  @property
  def live(self) -> list[Arm]:
    """Arms that are still running."""
    return [arm for arm in self.arms if self.state[arm] == RUNNING]

  @property
  def last(self) -> int:
    """The number of the last rung."""
    return len(self.rungs) - 1

  def price(self, arms: Sequence[Arm], rung: int) -> float:
    """What the runs of these arms at a rung will cost, corrected by what runs cost so far."""
    factor = self.spent / self._planned if self._planned and self._exact is None else 1.0
    return factor * sum(self.rungs[rung].seeds * self._cost(arm, rung) for arm in arms)

  def due(self, arm: Arm, rung: int) -> float:
    """What the runs of an arm at a rung will cost, where they are about to be begun."""
    if self._exact is None:
      return self.price([arm], rung)
    return sum(map(self._exact, self._trials(arm, rung)))

  def told(self, amount: float) -> str:
    """An amount of the budget's unit for people."""
    return race_budget.told(amount, self.unit)

  def to_give(self, amount: float) -> str:
    """What to give, for people, if runs are to have an amount."""
    return race_budget.told(self._given(amount), self.unit, up=True)

  def full_price(self) -> float:
    """What it would cost to run every arm at the last rung."""
    return sum(self.rungs[self.last].seeds * self._cost(arm, self.last) for arm in self.arms)

  def _enter(self) -> None:
    """Settles who runs first; without a prior that is everyone.

    Raises:
      UserError: the budget does not reach.
    """
    order = sorted(self.live, key=lambda arm: (-self._expected(arm), arm))
    if not order:
      return
    # However sure the prior is of one: of fewer than two nothing is measured against another.
    first, least = 0 if self.prior else len(order), min(2, len(order))
    self._counts = self._schedule(order, 0, first, least)
    if not self._counts:
      # Which of them it will be is not known: planned with is the mean.
      full = self.price(order, self.last) / len(order) if self.last else 0.0
      budget = self.told(self._given(self.budget))
      raise UserError(
        f'the budget of {budget} is too small for a first rung of all candidates '
        f'and one of them at full size: that takes {self.to_give(self.price(order, 0) + full)}',
        'config.choose.budget',
        'give more, fewer candidates or a smaller first rung',
      )
    entering = next(n for n in self._counts if n)
    for arm in order[entering:]:
      self.state[arm] = SKIPPED
    if order[entering:]:
      names = ', '.join(_name(arm) for arm in order[entering:])
      self.steps.append(f'not tried, as little is expected of them for the budget: {names}')

  def _schedule(
    self, arms: Sequence[Arm], rung: int, first: int = 0, least: int = 1
  ) -> tuple[int, ...]:
    """Arms at each rung from this one on; see `race_plan`."""
    known = (
      self.evidence.expected()
      if self.evidence.reached
      else {arm: self._before(arm) for arm in arms}
    )
    left = range(rung, len(self.rungs))
    # Of one run: what the newest rung showed, else what the rules assume.
    one = self.rules.seed_sd**2
    if self.evidence.reached:
      at = max(self.evidence.reached.values())
      found = self.evidence.gains(at).values()
      one = self.rungs[at].seeds * sum(gain.stderr**2 for gain in found) / len(found)
    noise = [one / self.rungs[i].seeds + self.rungs[i].drift ** 2 for i in left]
    costs = [self.price(arms, i) / len(arms) for i in left]
    budget = self.budget - self.spent
    return race_plan.best_schedule([known[arm] for arm in arms], costs, noise, budget, first, least)

  def _before(self, arm: Arm) -> tuple[float, float]:
    """(mean, variance) expected before anything ran; where nothing is known, much may be."""
    known = self.prior.get(arm.candidate)
    if known:
      return known.mean, known.sd**2
    return self._expected(arm), max((p.sd for p in self.prior.values()), default=5.0) ** 2

  def _expected(self, arm: Arm) -> float:
    known = self.prior.get(arm.candidate)
    return known.mean if known else max((p.mean for p in self.prior.values()), default=0.0)

  def run(self, evaluate: Evaluate) -> None:
    """Holds the race to its end.

    Args:
      evaluate: Does runs and returns what came of them; a run that failed is left out, or has a
        cost and no scores. All runs of a rung are given at once, so that they may train together.

    Raises:
      UserError: a target that never changes, or what `evaluate` raises.
    """
    rung = 0
    while self.live:
      while rung < self.last and not self._counts[rung - self._from]:
        rung += 1
      if rung == self.last:
        self._one_rate_each()
      live = self._affordable(rung)
      if not live:
        break
      self._do(live, rung, evaluate)
      self._drop(rung)
      if rung < self.last:
        rung += 1
        self._cut(rung)
      elif self.live or not self._recall():
        break

  def _one_rate_each(self) -> None:
    ranked = self.evidence.ranked(self.live) if self.evidence.reached else self.live
    seen: set[str] = set()
    for arm in ranked:
      if arm.candidate in seen and self.evidence.reached:
        self.state[arm] = CUT
      seen.add(arm.candidate)

  def _affordable(self, rung: int) -> list[Arm]:
    """The best that fit; whoever does not fit is cut."""
    fits: list[Arm] = []
    paid = 0.0
    for arm in self.evidence.ranked(self.live) if self.evidence.reached else self.live:
      price = self.due(arm, rung)
      if paid + price > (self.budget - self.spent) * (1 + 1e-9):
        self.state[arm] = self._out(arm)
      else:
        fits.append(arm)
        paid += price
    return fits

  def _out(self, arm: Arm) -> str:
    """What becomes of an arm that the budget does not reach for."""
    if arm in self.evidence.reached:
      return CUT
    self.steps.append(f'not tried, as the budget does not reach for it: {_name(arm)}')
    return SKIPPED

  def _trials(self, arm: Arm, rung: int) -> list[Trial]:
    # The same of a rung in every race, so that a candidate more runs only what is new.
    first = sum(before.seeds for before in self.rungs[:rung])
    return [Trial(arm, rung, first + number) for number in range(self.rungs[rung].seeds)]

  def _do(self, arms: Sequence[Arm], rung: int, evaluate: Evaluate) -> None:
    trials = [trial for arm in arms for trial in self._trials(arm, rung)]
    done = evaluate(trials)
    # What costs nothing was done for another arm, or not at all: it tells nothing of prices.
    self._planned += sum(self._cost(trial.arm, rung) for trial, one in done.items() if one.cost)
    self.spent += sum(one.cost for one in done.values())
    for arm in arms:
      own = [done[t] for t in trials if t.arm == arm and t in done and done[t].scores]
      if own:
        self.evidence.add(arm, rung, own)
      else:
        undone = any(not done[t].ended for t in trials if t.arm == arm and t in done)
        self.state[arm] = self._out(arm) if undone else FAILED
    fresh = set(self.evidence.reached) == set(arms)
    if fresh and (same := self.field.constant([one for one in done.values() if one.scores])):
      raise UserError('the score is the same for every model', same[0], 'give another target')
    spent = self.told(self.spent)
    self.steps.append(f'{self.rungs[rung].name}: {len(arms)} ran, {spent} spent on runs so far')

  def _drop(self, rung: int) -> None:
    """Drops what is shown to be worse than the leader, and what breaks a guard."""
    for guard, least in self.rules.guards.items():
      for arm, change in self.evidence.gains(rung, guard).items():
        shown = change.mean if rung == self.last else change.high(self.rules.error / 2)
        if self.state[arm] == RUNNING and shown < least - _ROUNDING:
          self.state[arm] = GUARD
    self._release()
    if not self.live:
      return
    leader = self.evidence.ranked(self.live)[0]
    error = self.error_of_one()
    for arm in self.live:
      if arm != leader and self.evidence.contrast(leader, arm).low(error) > 0:
        self.state[arm], self.beaten_by[arm] = WORSE, leader

  def _release(self) -> None:
    """Who was shown to be worse only than what is out by now is not shown to be out itself."""
    for arm, by in list(self.beaten_by.items()):
      if self.state[by] in (GUARD, FAILED):
        self.state[arm] = CUT
        del self.beaten_by[arm]

  def _recall(self) -> bool:
    """Lets those that were cut run in full, where all that did are out; whether there are any."""
    again = [
      arm
      for arm in self.arms
      if self.state[arm] == CUT and self.evidence.reached.get(arm, self.last) < self.last
    ]
    for arm in again:
      self.state[arm] = RUNNING
    self._cut(self.last)
    fits = self._affordable(self.last)
    if fits:
      names = ', '.join(map(_name, fits))
      self.steps.append(f'all that ran at full size are out; in their place: {names}')
    return bool(fits)

  def error_of_one(self) -> float:
    """Of one comparison: there may be one with each other arm at each rung (Bonferroni)."""
    return self.rules.error / (len(self.rungs) * (len(self.arms) - 1))

  def _cut(self, rung: int) -> None:
    """Plans the rungs left anew and cuts to as many as enter the next of them."""
    # Who cannot be paid for at full size by itself cannot be picked.
    left = (self.budget - self.spent) * (1 + 1e-9)
    if fits := [arm for arm in self.live if self.price([arm], self.last) <= left]:
      self.state |= {arm: CUT for arm in self.live if arm not in fits}
    if not self.live:
      return
    arms = self.evidence.ranked(self.live)
    # Where the budget reaches for none, `_affordable` ends the race.
    self._counts = self._schedule(arms, rung) or (*[0] * (self.last - rung), 1)
    self._from = rung
    for arm in arms[next(n for n in self._counts if n) :]:
      self.state[arm] = CUT


def _name(arm: Arm) -> str:
  return f'{arm.candidate} at {arm.rate:g}' if arm.rate else arm.candidate

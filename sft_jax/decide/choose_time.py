"""The time of a race: what was spent of it before the race itself, and what may be spent yet.

Not for amounts of training, or for how long a run takes (`choose_run.py`).
"""

import contextlib
import time
from collections.abc import Iterator

from sft_jax.study import race_budget
from sft_jax.study.race_budget import Budget, Clock
from sft_jax.utils.errors import Interrupted, UserError

# Of the time that is left, planned with: how long runs take is known only nearly.
_CAREFUL = 0.9
_ONCE = {
  'read': 'reading the data',
  'base': 'asking the base',
  'endpoint': 'asking the endpoint',
}
_AGAIN = 'again'


class BudgetIsOver(Exception):
  """The time of the budget is over."""


class Time:
  """The time of a race, over all of its starts.

  Attributes:
    clock: Seconds by what they were spent on.
    limited: Whether the budget is a time.
  """

  def __init__(self, workdir: str, budget: Budget, limit: float):
    """Reads what earlier starts have spent.

    Args:
      workdir: Of the race.
      budget: Of the race.
      limit: Seconds after which this process is to end; 0 is no limit.
    """
    self.clock = Clock(workdir)
    self.limited = budget.unit == race_budget.SECONDS
    self._budget = budget
    self._end = time.monotonic() + limit if limit else float('inf')

  def before(self) -> float:
    """Seconds of the budget that were spent before the race began; 0 of other units."""
    names = (*_ONCE, 'alone')
    spent = sum(self.clock.seconds.get(name, 0.0) for name in names)
    return self.clock.notes.get('before', spent) if self.limited else 0.0

  def begin(self) -> None:
    """Says that the race begins: what is read or asked later is no part of `before`."""
    self.clock.note('before', self.before())

  def spent(self) -> float:
    """Seconds of the budget that were spent on anything."""
    return sum(seconds for name, seconds in self.clock.seconds.items() if name != _AGAIN)

  def left(self) -> float:
    """Seconds that the budget has left; inf of other units."""
    return self._budget.amount - self.spent() if self.limited else float('inf')

  def planned(self) -> float:
    """The amount of the budget that the race itself may plan with."""
    return _CAREFUL * (self._budget.amount - self.before()) if self.limited else self._budget.amount

  def given(self, amount: float) -> float:
    """The budget that leaves an amount for the race itself; see `planned`."""
    return self.before() + amount / _CAREFUL if self.limited else amount

  @contextlib.contextmanager
  def once(self, name: str, what: str) -> Iterator[float]:
    """Counts what is done once; what is only read again counts for nothing.

    Args:
      name: What the seconds are counted to.
      what: Of that; anything else is not done yet.

    Yields:
      Seconds that it may take; 0 is no limit.

    Raises:
      UserError: the time of the budget is over.
    """
    note = f'{name} of {what} is done'
    again = note in self.clock.notes
    budget = float('inf') if again else self.left()
    over = budget <= 0
    if not over:
      try:
        with self.within(budget) as seconds, self.clock.counting({_AGAIN if again else name: 1.0}):
          yield seconds
        over = not again and self.left() <= 0
      except BudgetIsOver:
        over = True
    if over:
      raise UserError(
        f'the budget is over: {race_budget.told(self.spent(), race_budget.SECONDS)} are spent, the '
        f'last of it on {_ONCE[name]}',
        'config.choose.budget',
        'give many times that: the same command goes on from what is done',
      )
    self.clock.note(note, 1.0)

  @contextlib.contextmanager
  def within(self, budget: float) -> Iterator[float]:
    """Yields the seconds that something may take; 0 is no limit.

    Args:
      budget: What is left of the budget, in seconds; more than 0.

    Raises:
      BudgetIsOver: stopped since the time of the budget is over.
      Interrupted: stopped for another reason.
    """
    left = self._end - time.monotonic()
    least = min(left, budget)
    try:
      yield max(least, 1e-3) if least < float('inf') else 0.0
    except Interrupted as e:
      if not e.timed_out or budget > left:
        raise
      raise BudgetIsOver from e

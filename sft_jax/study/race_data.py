"""What a race is told: scores of the base and of each run, as items or as means; made comparable.

All runs answer the same items as the base. Items found in the training data of any candidate are
left out for all of them, so that comparisons stay paired. Not for deciding: `race.py`.
"""

import dataclasses
from collections.abc import Collection, Mapping, Sequence

import numpy as np

from sft_jax.study.race_stats import Sample
from sft_jax.utils.errors import UserError


@dataclasses.dataclass(frozen=True)
class Scores:
  """Of one model on one task, in points. Either items or a mean.

  Attributes:
    ids: Of the items, each once; () where only a mean is known.
    values: `[items]` scores.
    extracted: `[items]` whether an answer was found in what the model wrote; None where nothing is
      written (log-likelihoods) or nobody looked.
    weights: `[items]` of each item in the score, sum 1; None weighs all alike.
    mean: Where there are no items.
    stderr: Of that mean.
  """

  ids: tuple[str, ...] = ()
  values: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0))
  extracted: np.ndarray | None = None
  weights: np.ndarray | None = None
  mean: float = 0.0
  stderr: float = 0.0


@dataclasses.dataclass(frozen=True)
class Observation:
  """What came of one run.

  Attributes:
    scores: By task; empty of a run that failed, or did not end.
    cost: In the unit of the budget.
    ended: Whether it came to its end or failed; not where the time of the budget was over before.
  """

  scores: Mapping[str, Scores]
  cost: float = 0.0
  ended: bool = True


@dataclasses.dataclass(frozen=True)
class Leak:
  """Items of a task that stand in the training data of a candidate.

  Attributes:
    found: How many.
    share: Of all items.
    barred: Whether they are so many that the candidate is out of the race for it.
  """

  found: int
  share: float
  barred: bool


class Field:
  """Turns scores of runs into gains over the base, on the items that count."""

  def __init__(
    self,
    base: Observation,
    targets: Mapping[str, float],
    leaks: Mapping[str, Mapping[str, Collection[str]]],
    *,
    most_leak: float,
    ability_only: bool,
  ):
    """Reads the base.

    Args:
      base: Scores of the base on every task.
      targets: {task: weight} of what is to be improved.
      leaks: {candidate: {task: ids of items that stand in its training data}}.
      most_leak: Candidates that hold a larger share of a task are barred, and their items stay.
      ability_only: Count no gain of an item in which no answer was found before; a loss counts
        also where none is found any more.

    Raises:
      UserError: no target; a constant one; a task the base has no scores of; all items leaked.
    """
    if not targets:
      raise UserError('no target given', 'config.choose.target', 'name what is to be improved')
    total = sum(targets.values())
    self.targets = {task: weight / total for task, weight in targets.items()}
    self._base, self._ability_only = base, ability_only
    for task in {**self.targets, **base.scores}:
      self._check(task)
    self.leaks = {
      candidate: {task: self._leak(task, ids, most_leak) for task, ids in tasks.items() if ids}
      for candidate, tasks in leaks.items()
    }
    self._clean = {task: self._clean_items(task, leaks) for task in base.scores}

  def _check(self, task: str) -> None:
    if task not in self._base.scores:
      raise UserError('the base has no score', task, 'evaluate the base on every target')
    scores = self._base.scores[task]
    if scores.ids and len(scores.ids) < 2:
      raise UserError('one item decides nothing', task, 'give a target of at least some hundred')

  def _leak(self, task: str, ids: Collection[str], most: float) -> Leak:
    held = len(set(self._base.scores[task].ids) & set(ids)) if task in self._base.scores else 0
    share = held / max(len(self._base.scores[task].ids), 1) if held else 0.0
    return Leak(held, share, share > most)

  def barred(self, candidate: str) -> bool:
    """Whether too much of a target or guard stands in its training data."""
    return any(leak.barred for leak in self.leaks.get(candidate, {}).values())

  def _clean_items(
    self, task: str, leaks: Mapping[str, Mapping[str, Collection[str]]]
  ) -> np.ndarray:
    gone: set[str] = set()
    for candidate, tasks in leaks.items():
      if not self.barred(candidate):
        gone |= set(tasks.get(task, ()))
    ids = self._base.scores[task].ids
    clean = np.array([item not in gone for item in ids], bool)
    if len(ids) and clean.sum() < 2:
      raise UserError(
        'no item is left that no candidate was trained on', task, 'give another target'
      )
    return clean

  def items(self, task: str) -> tuple[int, int]:
    """(items of a task, those that count)."""
    return len(self._clean[task]), int(self._clean[task].sum())

  def counts(self, task: str) -> np.ndarray:
    """`[items]` whether each counts."""
    return self._clean[task].copy()

  def form_limited(self, task: str) -> float:
    """Share of items in which no answer was found in what the base wrote."""
    found = self._base.scores[task].extracted
    return float(1 - found.mean()) if found is not None and len(found) else 0.0

  def sample(
    self, runs: Sequence[Observation], tasks: Mapping[str, float], ability: bool | None = None
  ) -> Sample:
    """Gains of the runs of one arm at one rung on some tasks together.

    Args:
      runs: One for each seed.
      tasks: {task: weight}, sum 1.
      ability: Whether to leave out gains of items without an answer found before; None is the rule
        of the race.

    Raises:
      UserError: a run was not asked what the base was asked.
    """
    only = self._ability_only if ability is None else ability
    gains, weights, blocks, known = [], [], [], 0.0
    for number, (task, weight) in enumerate(tasks.items()):
      base, clean = self._base.scores[task], self._clean[task]
      own = [self._scores(run, task) for run in runs]
      if not base.ids:
        gains.append(np.array([[scores.mean - base.mean] for scores in own]))
        weights.append(np.array([weight]))
        known += weight**2 * float(np.mean([scores.stderr**2 for scores in own]))
      else:
        change = np.stack([self._change(scores, base, only) for scores in own])
        inner = np.ones(len(base.ids)) if base.weights is None else base.weights
        kept = inner[clean] / inner[clean].sum()
        gains.append(change[:, clean])
        weights.append(weight * kept)
      blocks.append(np.full(gains[-1].shape[1], number))
    return Sample(np.concatenate(gains, 1), np.concatenate(weights), np.concatenate(blocks), known)

  def _scores(self, run: Observation, task: str) -> Scores:
    if task not in run.scores or run.scores[task].ids != self._base.scores[task].ids:
      raise UserError('a run was not asked the items of the base', task, 'evaluate all alike')
    return run.scores[task]

  def _change(self, scores: Scores, base: Scores, only: bool) -> np.ndarray:
    change = scores.values - base.values
    if only and scores.extracted is not None and base.extracted is not None:
      # What can no longer be read is lost to whoever asks: only a gain may be one of form alone.
      return np.where(base.extracted, change, np.minimum(change, 0.0))
    return change

  def constant(self, runs: Sequence[Observation]) -> list[str]:
    """Targets on which the base and all runs have one and the same score on every item."""
    found = []
    for task in self.targets:
      base = self._base.scores[task]
      rows = [base, *(self._scores(run, task) for run in runs)]
      values = np.concatenate([row.values if row.ids else np.array([row.mean]) for row in rows])
      if np.ptp(values) == 0:
        found.append(task)
    return found

"""Planted worlds for races: models whose true gains are known. Used by `choose_races.py` and tests.

An item is right with a probability of its own, which a candidate moves by its true gain, an effect
of its own on each item, and an effect of the seed on all of them. Models mostly agree on an item
beyond its probability, as paired answers do. All effects have mean 0, so the true gain at full size
is the planted one.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from sft_jax.study.race import Trial
from sft_jax.study.race_data import Observation, Scores

TASK = 'target'


@dataclasses.dataclass(frozen=True)
class Candidate:
  """What is true of a data set; all in points.

  Attributes:
    gain: Of ability at full size.
    seed_sd: Over seeds.
    form: Share of the answers not read of the base that are read after training on it.
    leaked: Share of the items that it holds, and always answers right.
    lucky: Points that one seed in five gains, and the others lose a quarter of.
  """

  gain: float
  seed_sd: float = 1.0
  form: float = 0.0
  leaked: float = 0.0
  lucky: float = 0.0


class World:
  """The base, candidates and their runs; the same seed is the same world."""

  def __init__(
    self,
    candidates: Mapping[str, Candidate],
    seed: int,
    *,
    items: int = 3000,
    unread: float = 0.0,
    share_at: Sequence[float] = (0.5, 0.8, 1.0),
    drift: Sequence[float] = (1.5, 0.75, 0.0),
    costs: Sequence[float] = (1.0, 4.0, 16.0),
    item_sd: float = 8.0,
  ):
    """Draws what belongs to the world: items, effects of candidates on them, the base's answers.

    Args:
      candidates: By name.
      seed: Of everything.
      items: Of the target.
      unread: Share of items in which no answer is found in what the base writes.
      share_at: Of the full gain, at each rung.
      drift: Standard deviation of what a candidate departs from that.
      costs: Of a run at each rung.
      item_sd: Of a candidate's own effect on an item, in points.
    """
    self.candidates, self.costs, self._seed = dict(candidates), costs, seed
    rng = np.random.default_rng([seed, 1])
    self._chance = rng.uniform(0.3, 0.7, items)
    self._common = rng.random(items)
    self.unread = rng.random(items) < unread
    self._own = {name: rng.normal(0, item_sd / 100, items) for name in candidates}
    self._form = {name: rng.random(items) < c.form for name, c in self.candidates.items()}
    self.leaked = {name: rng.random(items) < c.leaked for name, c in self.candidates.items()}
    self._at = {
      name: [c.gain * share + rng.normal(0, sd) for share, sd in zip(share_at, drift, strict=True)]
      for name, c in self.candidates.items()
    }
    self.ids = tuple(f'item-{i}' for i in range(items))
    right = self._right(rng, self._chance)
    self.base = Observation({TASK: self._scores(right, ~self.unread)})
    self.trials: list[Trial] = []

  def _right(self, rng: np.random.Generator, chance: np.ndarray) -> np.ndarray:
    """Answers: seven in ten fall as all models' do, so that models agree; the others anew."""
    draw = np.where(rng.random(len(chance)) < 0.7, self._common, rng.random(len(chance)))
    return draw < chance

  def _scores(self, right: np.ndarray, read: np.ndarray) -> Scores:
    found = read if self.unread.any() else None
    return Scores(self.ids, np.where(read, 100.0 * right, 0.0), found)

  def evaluate(self, trials: Sequence[Trial]) -> dict[Trial, Observation]:
    """The callback of a race."""
    return {trial: self._observe(trial) for trial in trials}

  def _observe(self, trial: Trial) -> Observation:
    self.trials.append(trial)
    name = trial.arm.candidate
    about = self.candidates[name]
    who = list(self.candidates).index(name)
    rng = np.random.default_rng([self._seed, 2, who, trial.rung, trial.seed])
    move = self._at[name][trial.rung] + rng.normal(0, about.seed_sd)
    if about.lucky:
      move += about.lucky if rng.random() < 0.2 else -about.lucky / 4
    right = self._right(rng, self._chance + move / 100 + self._own[name])
    right = right | self.leaked[name]
    read = ~self.unread | self._form[name]
    return Observation({TASK: self._scores(right, read)}, self.costs[trial.rung])

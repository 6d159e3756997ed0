"""What the runs of a race show: gains of arms, their differences, and what to expect at full size.

Not for what is run next or dropped: `race.py`.
"""

import dataclasses
import math
from collections.abc import Collection, Mapping, Sequence

from sft_jax.study import race_stats as stats
from sft_jax.study.race_data import Field, Observation


@dataclasses.dataclass(frozen=True, order=True)
class Arm:
  """A candidate trained in one way."""

  candidate: str
  rate: float = 0.0


@dataclasses.dataclass(frozen=True)
class Rung:
  """A size at which arms are compared.

  Attributes:
    name: For people, such as '1000 examples'.
    seeds: Runs of each arm.
    drift: Points (standard deviation) that an arm's gain moves, against the others', from here to
      the last rung; 0 of the last.
  """

  name: str
  seeds: int = 2
  drift: float = 0.0


@dataclasses.dataclass(frozen=True)
class Prior:
  """What is expected of a candidate's gain, in points, before anything is run."""

  mean: float
  sd: float


class Evidence:
  """All runs so far.

  Attributes:
    reached: {arm: the last rung it has runs of}.
  """

  def __init__(
    self, field: Field, rungs: Sequence[Rung], prior: Mapping[str, Prior], seed_sd: float
  ):
    """None so far.

    Args:
      field: The base and the items that count.
      rungs: All of the race.
      prior: {candidate: expectation}.
      seed_sd: Points between runs of different seeds, where no arm has two runs of a rung.
    """
    self.field, self._rungs, self._prior, self._seed_sd = field, rungs, prior, seed_sd
    self.reached: dict[Arm, int] = {}
    self._runs: dict[tuple[Arm, int], list[Observation]] = {}

  def add(self, arm: Arm, rung: int, runs: Sequence[Observation]) -> None:
    """Adds the runs of an arm at a rung, one for each seed."""
    self._runs[arm, rung] = list(runs)
    self.reached[arm] = rung

  def sample(self, arm: Arm, rung: int, ability: bool | None = None) -> stats.Sample:
    """Combined gains of an arm's runs at a rung."""
    return self.field.sample(self._runs[arm, rung], self.field.targets, ability)

  def noise(self, rung: int, guard: str = '') -> dict[Arm, stats.Noise]:
    """Seed noise of every arm that ran at a rung; runs of a candidate at all rungs tell it."""
    groups: dict[str, list[stats.Sample]] = {}
    for (arm, _), runs in self._runs.items():
      groups.setdefault(arm.candidate, []).append(self._asked(runs, guard))
    freedoms = [sum(s.freedom for s in samples) for samples in groups.values()]
    pooled = [
      sum(s.freedom * s.seed_variance for s in samples) / freedom if freedom else 0.0
      for samples, freedom in zip(groups.values(), freedoms, strict=True)
    ]
    if not any(freedoms):
      found = [stats.Noise(self._seed_sd**2, math.inf)] * len(groups)
    else:
      found = stats.moderate(pooled, freedoms)
    by_name = dict(zip(groups, found, strict=True))
    return {arm: by_name[arm.candidate] for arm, at in self._runs if at == rung}

  def gains(self, rung: int, guard: str = '') -> dict[Arm, stats.Gain]:
    """Gains over the base at a rung, of the targets together or of one guard."""
    return {
      arm: stats.gain(self._asked(self._runs[arm, rung], guard), noise)
      for arm, noise in self.noise(rung, guard).items()
    }

  def _asked(self, runs: Sequence[Observation], guard: str) -> stats.Sample:
    """Of the targets by the rule of the race; a guard is its score, whatever moved that."""
    if guard:
      return self.field.sample(runs, {guard: 1.0}, ability=False)
    return self.field.sample(runs, self.field.targets)

  @property
  def repeated(self) -> bool:
    """Whether any arm has two runs at a rung, so that seeds were measured."""
    return any(len(runs) > 1 for runs in self._runs.values())

  def contrast(self, one: Arm, other: Arm) -> stats.Gain:
    """Of one arm over another at the last rung both ran at, as it bears on the last rung."""
    rung = max(at for arm, at in self._runs if arm == other and (one, at) in self._runs)
    noise = self.noise(rung)
    first, second = ((self.sample(arm, rung), noise[arm]) for arm in (one, other))
    return stats.contrast(first, second, self._rungs[rung].drift)

  def expected(self) -> dict[Arm, tuple[float, float]]:
    """{arm: (mean, variance)} of its gain at full size, all evidence and the prior together.

    Only for ranking and for sharing out the budget: no error is promised. Gains at a rung count
    against the mean of those that ran there, as the level grows with size for all alike.
    """
    rungs = sorted({at for _, at in self._runs})
    gains = {at: self.gains(at) for at in rungs}
    newest = gains[rungs[-1]]
    spreads = [
      stats.spread_of({str(arm): gain.mean for arm, gain in found.items()}, self._errors(found, 0))
      for found in gains.values()
    ]
    level, between = spreads[-1][0], max(spread[1] for spread in spreads)
    evidence: dict[Arm, list[tuple[float, float]]] = {arm: [] for arm in self.reached}
    for at, found in gains.items():
      both = [arm for arm in found if arm in newest]
      shift = sum(newest[arm].mean - found[arm].mean for arm in both) / max(len(both), 1)
      errors = self._errors(found, self._rungs[at].drift)
      for arm, gain in found.items():
        evidence[arm].append((gain.mean + shift, errors[str(arm)]))
    center = [p.mean for arm, p in self._priors(newest).items()]
    offset = level - sum(center) / len(center) if center else 0.0
    out = {}
    for arm, found_here in evidence.items():
      known = self._prior.get(arm.candidate)
      prior = (known.mean + offset, known.sd**2) if known else (level, between)
      out[arm] = stats.combined(found_here, prior)
    return out

  def _errors(self, gains: Mapping[Arm, stats.Gain], drift: float) -> dict[str, float]:
    """Variances, of a normal law with the 95 % interval that few degrees of freedom give."""
    reach = {arm: gain.reach(0.025) / stats.Z for arm, gain in gains.items()}
    return {str(arm): max(reach[arm] ** 2 + drift**2, 1e-9) for arm in gains}

  def best_probability(self, arms: Collection[Arm]) -> dict[Arm, float]:
    """{arm: probability that it is the best of these at full size}."""
    known = {arm: x for arm, x in self.expected().items() if arm in arms}
    return dict(zip(known, stats.best_probability(list(known.values())), strict=True))

  def _priors(self, arms: Mapping[Arm, stats.Gain]) -> dict[Arm, Prior]:
    return {arm: self._prior[arm.candidate] for arm in arms if arm.candidate in self._prior}

  def ranked(self, arms: Sequence[Arm]) -> list[Arm]:
    """Best first, as far as is known."""
    known = self.expected()
    return sorted(arms, key=lambda arm: (-known[arm][0] if arm in known else math.inf, arm))

"""How a race is held: what counts, and how sure it has to be."""

import dataclasses
from collections.abc import Mapping


@dataclasses.dataclass(frozen=True)
class Rules:
  """How a race is held.

  Attributes:
    targets: {task: weight} of what is to be improved.
    guards: {task: least change in points}, such as -1.0.
    error: Most probability that the best candidate is shown to be worse than another.
    base_error: Most probability that a candidate no better than the base is said to beat it.
    least_gain: Points over the base that are worth having.
    most_leak: Candidates that hold a larger share of a task are out.
    ability_only: Count no gain of an item in which no answer was found before; losses all count.
    seed_sd: Points between runs of different seeds, taken where no arm has two runs of a rung.
  """

  targets: Mapping[str, float]
  guards: Mapping[str, float] = dataclasses.field(default_factory=dict)
  error: float = 0.05
  base_error: float = 0.01
  least_gain: float = 0.0
  most_leak: float = 0.1
  ability_only: bool = True
  seed_sd: float = 1.5

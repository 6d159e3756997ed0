"""What the engine asks of others: the study that is to be done, and what does a cohort of it."""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

# Called with the steps done and the steps in all, after each step of a cohort.
OnProgress = Callable[[int, int], None]


class Stop(Protocol):
  """Says whether this process was asked to stop."""

  reason: str

  @property
  def requested(self) -> bool: ...

  def progress(self) -> None:
    """Something was done which the next start will not have to do again."""


class Outcome(Protocol):
  """What became of one run of a cohort."""

  @property
  def workdir(self) -> str: ...

  @property
  def state(self) -> str:
    """done | failed"""

  @property
  def reason(self) -> str: ...


class RunCohort(Protocol):
  """Does the runs of a cohort as one, from where they were left.

  Called with the (config, workdir) of each, also of those that are complete, in the same order
  whenever it is called with the same `place`, where training state may be kept. A run's workdir
  has `done.json` once it is complete.
  """

  def __call__(
    self, members: Sequence[tuple[Any, str]], place: str, stop: Any, on_progress: OnProgress
  ) -> Sequence[Outcome]: ...


class Planned(Protocol):
  """A run of a study."""

  @property
  def key(self) -> str: ...

  @property
  def name(self) -> str: ...

  @property
  def config(self) -> Any: ...


class Company(Protocol):
  """A cohort of a study."""

  @property
  def key(self) -> str: ...

  @property
  def runs(self) -> Sequence[Planned]: ...


class Study(Protocol):
  """What is to be done."""

  @property
  def runs(self) -> Sequence[Planned]: ...

  @property
  def cohorts(self) -> Sequence[Company]: ...

  def definition(self) -> dict[str, Any]:
    """For comparison with what a directory holds."""

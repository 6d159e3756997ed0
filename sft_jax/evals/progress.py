"""How far the requests of an evaluation are, told while they take longer than a few seconds."""

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, TextIO

from sft_jax.utils import log, peers

if TYPE_CHECKING:  # Clients of endpoints need no jax.
  from sft_jax.evals.model import Subject


class Asked(log.Bar):
  """Requests that are answered, of all; short evaluations tell nothing.

  The rate is a mean from the end of the first batch that answers some, as what comes before is
  mostly compilation; until another does it is not known.
  """

  def __init__(self, name: str, total: int, stream: TextIO | None = None, every_s: float = 10.0):
    """Tells nothing yet.

    Args:
      name: Of the task.
      total: Requests.
      stream: Default standard error.
      every_s: Seconds before anything is told, and between plain lines.
    """
    super().__init__(stream, quiet=not peers.is_first(), every_s=every_s)
    self._name, self._total, self._done = name, total, 0.0
    self._first: tuple[float, float] | None = None
    self._begin = time.monotonic()

  def add(self, requests: float) -> None:
    """Counts requests as answered."""
    self._done += requests

  def tell(self) -> None:
    """Tells how far they are, when it is time to; to be called before each batch."""
    now = time.monotonic()
    if self._first is None and self._done:
      self._first = now, self._done
    if now - self._begin < self._every:
      return
    numbers = []
    if self._first is not None and self._done > self._first[1] and now > self._first[0]:
      rate = (self._done - self._first[1]) / (now - self._first[0])
      numbers = [f'{log.clock((self._total - self._done) / rate)} left']
    count = f'{int(self._done)}/{self._total}'
    self.show(
      lambda: self.bar(self._name, count, self._done / max(self._total, 1), numbers),
      lambda: ', '.join([f'{self._name}: {count} answered', *numbers]),
      last=False,
    )


@contextlib.contextmanager
def telling(
  subject: 'Subject', name: str, requests: int
) -> Iterator[tuple['Subject', Callable[[], None]]]:
  """Context of an evaluation: the subject to ask, and what to call with each answer of a run."""
  asked = Asked(name, requests)
  runs = max(subject.runs, 1)

  def check() -> None:
    asked.tell()
    subject.check()

  try:
    yield dataclasses.replace(subject, check=check), lambda: asked.add(1 / runs)
  finally:
    asked.close()

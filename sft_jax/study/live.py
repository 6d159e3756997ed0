"""The study as it goes on, on the terminal: a line for each cohort at work, and one for all."""

import contextlib
import threading
from types import TracebackType

from sft_jax.study import status
from sft_jax.study.directory import StudyDirectory, StudyRecord
from sft_jax.utils import log
from sft_jax.utils.errors import UserError


class Live:
  """Context in which the study's state is told every so often.

  In a thread, as the files of a thousand runs on a network disk take seconds to look at.
  """

  def __init__(self, place: StudyDirectory, record: StudyRecord, every_s: float):
    self._place, self._record, self._every_s = place, record, every_s
    self._settled: dict[str, status.CohortState] = {}
    self._ended = threading.Event()
    self._thread = threading.Thread(target=self._keep, name='live', daemon=True)

  def __enter__(self) -> 'Live':
    self._thread.start()
    return self

  def __exit__(
    self, kind: type | None, error: BaseException | None, trace: TracebackType | None
  ) -> None:
    self._ended.set()
    self._thread.join()

  def lines(self) -> list[str]:
    """What there is to tell now."""
    states = []
    for key, runs in self._record.cohorts.items():
      state = self._settled.get(key) or status.cohort_state(self._place, key, runs)
      if state.state in ('done', 'failed'):
        self._settled[key] = state
      states.append(state)
    at_work = [status.line(state) for state in states if state.state in ('running', 'silent')]
    return [*at_work, status.summary(states)]

  def _keep(self) -> None:
    while not self._ended.wait(self._every_s):
      with contextlib.suppress(UserError, OSError):
        for line in self.lines():
          log.say(line)

"""A study in several processes of one program: the first leads, the others do the same beside it.

Process 0 alone works through the study (`study/engine.py`): it holds leases, decides and writes. It
tells the others each cohort, which all train as one program. Alone, a process leads nobody.
"""

import contextlib
import json
import os
from collections.abc import Iterator, Sequence
from typing import Any

from sft_jax.execution import runner
from sft_jax.execution.session import Session
from sft_jax.study import contract
from sft_jax.study.directory import StudyDirectory
from sft_jax.utils import peers
from sft_jax.utils.errors import Interrupted

_ROOM = 'study'
# Seconds in which all processes come to the same end of a cohort that failed.
_APART_S = 60.0


class Together:
  """What a process does of a study, beside the others of its program."""

  def __init__(self, study: contract.Study, workdir: str, session: Session | None = None):
    """Reads nothing yet; `session` may be shared with other studies."""
    self._place = StudyDirectory(workdir)
    self._configs = {run.key: run.config for run in study.runs}
    self._session = session or Session(os.fspath(self._place.path / 'prepared'))
    self._told = 0

  @property
  def programs(self) -> int:
    """Train programs that were compiled so far."""
    return self._session.traces

  @contextlib.contextmanager
  def leading(self) -> Iterator[None]:
    """Context in which process 0 leads; the others hear of its end."""
    try:
      yield
    finally:
      self._told += 1
      peers.put_word(f'{_ROOM}/{self._told}', '')

  def run_cohort(
    self,
    members: Sequence[tuple[Any, str]],
    place: str,
    stop: Any,
    on_progress: contract.OnProgress | None,
  ) -> Sequence[contract.Outcome]:
    """Does a cohort, here and in the other processes; see `contract.RunCohort`."""
    self._told += 1
    runs = [os.path.basename(os.path.normpath(path)) for _, path in members]
    peers.put_word(f'{_ROOM}/{self._told}', json.dumps({'runs': runs, 'place': place}))
    return self._do(members, place, stop, on_progress)

  def _do(
    self,
    members: Sequence[tuple[Any, str]],
    place: str,
    stop: Any,
    on_progress: contract.OnProgress | None,
  ) -> Sequence[contract.Outcome]:
    given = [runner.Member(config, path) for config, path in members]
    end = f'{_ROOM}/{self._told}/end'
    try:
      done = runner.run_cohort(given, place, self._session, stop, on_progress)
    except Exception as e:
      peers.await_verdict(e)
      # Of a failure that only some met, the others know nothing: they wait in a collective.
      peers.require_end(end, type(e).__name__, _APART_S)
      raise
    peers.require_end(end, 'done', _APART_S)
    return done

  def follow(self, stop: contract.Stop) -> None:
    """Does what process 0 tells, until it ends.

    Raises:
      Interrupted: this process was asked to stop.
    """
    while True:
      self._told += 1
      while (word := peers.word(f'{_ROOM}/{self._told}', 1.0)) is None:
        if stop.requested:
          raise Interrupted(f'{stop.reason}, between two cohorts; start again to go on')
      if not word:
        return
      told = json.loads(word)
      members = [(self._configs[run], os.fspath(self._place.run(run))) for run in told['runs']]
      # How it ended is process 0's to tell.
      with contextlib.suppress(Exception):
        self._do(members, told['place'], stop, None)

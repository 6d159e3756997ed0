"""A cohort's own files, written by whoever holds its lease: parts, attempts, progress."""

import contextlib
import hashlib
import os
import time
from collections.abc import Callable, Sequence
from typing import Any

from etils import epath

from sft_jax.study import attempts
from sft_jax.study.attempts import Part
from sft_jax.study.directory import StudyDirectory
from sft_jax.utils import io, lease, log, process
from sft_jax.utils.errors import UserError

_LOG_ENTRIES = 100
# What a start writes in any case, so that it tells of nothing done.
_VOLATILE = ('metrics.jsonl', 'lease.json', 'events.out', '.')
_TOLD_BY_NAME = ('checkpoints', 'weights', 'samples')


class Cohort:
  """The files of one cohort, under its lease."""

  def __init__(self, place: StudyDirectory, key: str, runs: Sequence[str], held: lease.Lease):
    self.key, self.runs, self.held = key, runs, held
    self._place = place
    self._file = place.cohort(key) / 'attempts.json'
    there = io.read_json(self._file) if self._file.exists() else None
    self._parts = attempts.from_json(there['parts']) if there else [attempts.whole(runs)]
    self._log: list[dict[str, Any]] = there['log'] if there else []

  def next(self) -> Part | None:
    """The first part with something left to do; None when the cohort is settled."""
    left = [run for run in self.runs if not self._place.settled(run)]
    self._parts = [part for part in self._parts if any(run in left for run in part.runs)]
    for run in left:
      self.add(run)
    return self._parts[0] if self._parts else None

  def add(self, run: str) -> None:
    """Makes sure that a run is in a part."""
    if not any(run in part.runs for part in self._parts):
      one = len(self.runs) == 1
      self._parts.append(attempts.whole(self.runs) if one else attempts.alone(run))

  def current(self, name: str) -> Part:
    """The part of this name, as it stands."""
    return next(part for part in self._parts if part.name == name)

  def replace(self, part: Part, parts: Sequence[Part]) -> None:
    """Puts parts in place of one, behind all others, and writes that down."""
    self._parts = [other for other in self._parts if other.name != part.name] + list(parts)
    self._write()
    moved = any(run in new.runs for new in parts for run in part.runs)
    if moved and part.name not in [new.name for new in parts]:
      # Nobody can use the training state of a company that has been dissolved.
      with contextlib.suppress(OSError):
        epath.Path(self.training_state(part)).rmtree(missing_ok=True)

  def tell(
    self, end: str, part: Part, reason: str = '', seconds: float = 0.0, trace: str = ''
  ) -> None:
    """Adds an attempt to the log.

    Args:
      end: done | failed | stopped | died.
      part: What was tried.
      reason: Why it ended so.
      seconds: How long it took.
      trace: Where a defect of ours was met.
    """
    me = process.me()
    entry = {'end': end, 'part': part.name, 'runs': list(part.runs), 'seconds': round(seconds, 3)}
    entry |= {'reason': reason, 'host': me['host'], 'pid': me['pid']}
    entry |= {'traceback': trace} if trace else {}
    self._log = [*self._log, entry][-_LOG_ENTRIES:]
    self._write()

  def _write(self) -> None:
    self.held.check()
    io.write_json_atomic(self._file, {'parts': attempts.to_json(self._parts), 'log': self._log})

  def put_progress(self, done: int, total: int, left_s: float | None) -> None:
    """Writes how far the part at work is."""
    file = self._file.parent / 'progress.json'
    io.write_json_atomic(file, {'done': done, 'total': total, 'seconds-left': left_s})

  def training_state(self, part: Part) -> str:
    """Where a part's training state may be kept. Not made."""
    return os.fspath(self._place.cohort(self.key) / part.name)

  def undo(self, part: Part, runs: Sequence[str]) -> None:
    """Removes runs that were begun with what they should not have been made of."""
    self.held.check()
    places = [self._place.run(run) for run in runs]
    if len(runs) == len(part.runs):
      places.append(epath.Path(self.training_state(part)))
    with contextlib.suppress(OSError):
      for place in places:
        place.rmtree(missing_ok=True)

  def mark(self, part: Part) -> str:
    """Equal to an earlier one if no attempt has left anything new since."""
    found: list[str] = []
    for run in part.runs:
      found += _names(self._place.run(run), sizes=True)
      for name in _TOLD_BY_NAME:
        found += _names(self._place.run(run) / name)
    found += _names(epath.Path(self.training_state(part)))
    return hashlib.sha256('\n'.join(found).encode()).hexdigest()[:16]


def _names(directory: epath.Path, sizes: bool = False) -> list[str]:
  if not directory.exists():
    return []
  found = sorted(path for path in directory.iterdir() if not path.name.startswith(_VOLATILE))
  return [
    f'{path.parent.name}/{path.name} {path.stat().length if sizes and path.is_file() else ""}'
    for path in found
  ]


class Reporter(log.Bar):
  """Called after each step: looks after the lease, and tells how far it is: a bar and a file."""

  def __init__(self, cohort: Cohort, every_s: float, at_first: Callable[[], None]):
    """Writes nothing yet.

    Args:
      cohort: At work.
      every_s: Seconds between reports.
      at_first: Called after the first step, when all runs have recorded their contents.
    """
    super().__init__(None, False, every_s)
    self._cohort, self._every_s, self._at_first = cohort, every_s, at_first
    self._first: tuple[float, int] | None = None
    self._written = float('-inf')

  def __call__(self, done: int, total: int) -> None:
    """Tells that `done` of `total` steps are done.

    Raises:
      lease.Held: another process has taken the cohort.
      UserError: from `at_first`.
    """
    self._cohort.held.check()
    if self._first is None:
      self._at_first()
    now = time.monotonic()
    # The first call comes after compilation, which is no measure.
    self._first = self._first or (now, done)
    since, before = self._first
    left = (now - since) / (done - before) * (total - done) if done > before else None
    numbers = [] if left is None else [f'{log.clock(left)} left']
    name, count = f'cohort {self._cohort.key}', f'{done:>{len(str(total))}}/{total}'
    self.show(
      lambda: self.bar(name, count, done / max(total, 1), numbers),
      lambda: ', '.join([f'{name}: step {done}/{total}', *numbers]),
      last=done >= total,
    )
    if now - self._written < self._every_s and done < total:
      return
    self._written = now
    # A disk that is full for a while is no reason to give up here: results will tell.
    with contextlib.suppress(UserError):
      self._cohort.put_progress(done, total, left)

"""Works through a study, in one process of any number that share its directory.

A process takes one cohort after another, each under a lease, until none is left. It knows neither
models nor data: what a cohort is done by is handed to it. What may be tried again stands in
`attempts.py`. Nothing here decides who works where: every process takes what is free.
"""

import contextlib
import dataclasses
import os
import time
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence

from etils import epath

from sft_jax.study import attempts, contents
from sft_jax.study.attempts import Failure, Part
from sft_jax.study.cohort import Cohort, Reporter
from sft_jax.study.contract import Outcome, RunCohort, Stop, Study
from sft_jax.study.directory import Compare, Json, StudyDirectory, StudyRecord
from sft_jax.study.live import Live
from sft_jax.utils import hub_errors, io, lease, log, process, words
from sft_jax.utils.errors import Interrupted, UserError


@dataclasses.dataclass(frozen=True)
class Options:
  """How to work; none of it changes a result.

  Attributes:
    retries: How often a failure that may pass is tried again.
    wait: Whether to stay, when nothing is free, for cohorts that others are at: to follow them if
      they die.
    lease_s: Seconds of silence after which a process on another machine counts as dead.
    retry_failed: Whether to try runs again that were given up before this start.
    room: Called with the keys of runs before they are tried; raises UserError where the disk or a
      quota has no room for them, which ends the work.
    poll_s: Seconds between looks for free cohorts.
    pause_s: Seconds before the first retry; each further one waits four times as long.
    report_s: Seconds between reports of progress, to files and to people.
  """

  retries: int = 2
  wait: bool = True
  lease_s: float = lease.EXPIRY_S
  retry_failed: bool = False
  room: Callable[[Sequence[str]], None] = lambda runs: None
  poll_s: float = 5.0
  pause_s: float = 10.0
  report_s: float = 10.0


@dataclasses.dataclass(frozen=True)
class Report:
  """What a process leaves when it goes.

  Attributes:
    done: Runs that are complete, by whomever.
    failed: {run key: why it was given up}.
    left: Runs that others are at.
  """

  done: int
  failed: Mapping[str, Json]
  left: int


def open_study(
  study: Study, workdir: epath.PathLike, compare: Compare, files: Iterable[str] = ()
) -> StudyRecord:
  """Makes or joins the directory of a study.

  Args:
    study: The study.
    workdir: Its directory.
    compare: Says what was changed of a study.
    files: Paths of what its runs are made of; those that are local may not change any more.

  Raises:
    UserError: another study is there, a file has changed, the place cannot be written.
  """
  given = StudyRecord(
    names={run.key: run.name for run in study.runs},
    cohorts={cohort.key: tuple(run.key for run in cohort.runs) for cohort in study.cohorts},
    definition=study.definition(),
    files=contents.file_digests(files),
  )
  record = StudyDirectory(workdir).open(given, compare)
  contents.check_files(record.files, given.files)
  return record


def work(
  study: Study,
  workdir: epath.PathLike,
  run_cohort: RunCohort,
  stop: Stop,
  *,
  compare: Compare,
  files: Iterable[str] = (),
  options: Options | None = None,
) -> Report:
  """Takes cohorts one after another until none is left that this process could do.

  Args:
    study: The study.
    workdir: Its directory, which other processes may be at work in.
    run_cohort: Does a cohort.
    stop: Looked at between cohorts; `run_cohort` is given it.
    compare: Says what was changed of a study.
    files: See `open_study`.
    options: How to work.

  Raises:
    UserError: another study is here, what runs are made of has changed, the place cannot be written
      or is full.
    Interrupted: asked to stop; the same call continues.
  """
  record = open_study(study, workdir, compare, files)
  place, options = StudyDirectory(workdir), options or Options()
  with Live(place, record, 6 * options.report_s):
    return Worker(study, place, record, run_cohort, stop, options).work()


class Worker:
  """One process at work on a study."""

  def __init__(
    self,
    study: Study,
    place: StudyDirectory,
    record: StudyRecord,
    run_cohort: RunCohort,
    stop: Stop,
    options: Options,
  ):
    self._place, self._record, self._options = place, record, options
    self._run_cohort, self._stop = run_cohort, stop
    self._configs = {run.key: run.config for run in study.runs}
    self._contents = contents.Contents(place, record.names)
    self._contents.check(record.names)
    self._watch = lease.Watch()
    self._settled: set[str] = set()
    # When a cohort may be tried again, by our own clock.
    self._later: dict[str, float] = {}
    # Of other processes with the same wish, each forgives what it found, never what came of it.
    self._forgivable = {
      run: when for run in record.names if options.retry_failed and (when := place.given_up(run))
    }

  def work(self) -> Report:
    """See the function of this name."""
    while True:
      if self._stop.requested:
        left = sum(not self._place.settled(run) for run in self._record.names)
        if left:
          runs = words.count(len(self._record.names), 'run')
          raise Interrupted(
            f'{self._stop.reason}, with {left} of {runs} to do; start again to go on'
          )
      waiting, others = self._turn()
      if not waiting and (not others or not self._options.wait):
        return self._report()
      self._stop.progress()  # Or a time limit would not count while nothing is free.
      self._sleep(self._options.poll_s)

  def _turn(self) -> tuple[int, int]:
    """Does what is free; returns how many cohorts are due later, and how many others are at."""
    later = others = 0
    for key, runs in self._record.cohorts.items():
      if self._stop.requested:
        break
      if key in self._settled:
        continue
      if all(self._place.settled(run) and run not in self._forgivable for run in runs):
        self._settled.add(key)
      elif self._later.get(key, 0.0) > time.monotonic():
        later += 1
      else:
        try:
          self._take(key)
        except lease.Held:
          others += 1
        else:
          later += key not in self._settled
    return later, others

  def _take(self, key: str) -> None:
    """Works on a cohort as far as it goes now.

    Raises:
      lease.Held: another process has it.
    """
    file = self._place.lease(key)
    with io.explain_os_errors(file):
      file.parent.mkdir(parents=True, exist_ok=True)
    expiry = self._options.lease_s
    with lease.Lease(file, min(lease.BEAT_S, expiry / 9), expiry, self._watch) as held:
      cohort = Cohort(self._place, key, self._record.cohorts[key], held)
      self._forgive(cohort)
      while part := cohort.next():
        if part.open:
          left = [run for run in part.runs if not self._place.settled(run)]
          mark, retries = cohort.mark(part), self._options.retries
          self._conclude(cohort, part, *attempts.died(part, left, mark, retries))
          cohort.tell('died', part, 'the process that worked on it is gone')
        elif self._stop.requested or self._later.get(key, 0.0) > time.monotonic():
          return
        else:
          self._attempt(cohort, part)
      self._settled.add(key)

  def _forgive(self, cohort: Cohort) -> None:
    for run in cohort.runs:
      when = self._forgivable.pop(run, None)
      if when is not None and self._place.given_up(run) == when:
        self._place.forgive(run)
        cohort.add(run)

  def _attempt(self, cohort: Cohort, part: Part) -> None:
    """Tries a part once."""
    members = [(self._configs[run], os.fspath(self._place.run(run))) for run in part.runs]
    self._options.room(part.runs)
    log.say(f'cohort {cohort.key}: {self._describe(part)}')
    cohort.replace(part, [attempts.begin(part, cohort.mark(part))])
    part, began = cohort.current(part.name), time.monotonic()
    fresh = [run for run in part.runs if not self._place.begun(run)]
    reporter = Reporter(cohort, self._options.report_s, lambda: self._contents.check(part.runs))
    finish = lambda end, reason='', trace='': cohort.tell(
      end, part, reason, time.monotonic() - began, trace
    )
    try:
      with contextlib.closing(reporter):
        outcomes = self._run_cohort(members, cohort.training_state(part), self._stop, reporter)
      failures = self._failures(part, outcomes)
      as_one, trace = False, ''
    except (Interrupted, KeyboardInterrupt):
      cohort.replace(part, [attempts.stopped(part)])
      finish('stopped')
      raise
    except Exception as e:
      why = attempts.failure(e)
      if why.kind in attempts.ENDING:
        with contextlib.suppress(UserError):
          cohort.replace(part, [attempts.stopped(part)])
          if why.kind == attempts.CHANGED:
            cohort.undo(part, fresh)
        raise self._ending(why) from e
      text = hub_errors.without_token(traceback.format_exc())
      as_one, trace = True, '' if isinstance(e, UserError) else text
      failures = {run: why for run in part.runs if not self._place.settled(run)}
    cohort.held.check()
    self._stop.progress()
    self._end(cohort, part, failures, as_one)
    reasons = '; '.join(dict.fromkeys(why.reason for why in failures.values()))
    finish('failed' if failures else 'done', reasons, trace)

  def _failures(self, part: Part, outcomes: Sequence[Outcome]) -> dict[str, Failure]:
    """By run; empty when all are done."""
    told = {
      os.path.basename(os.path.normpath(outcome.workdir)): outcome.reason
      for outcome in outcomes
      if outcome.state != 'done'
    }
    left = [run for run in part.runs if not self._place.settled(run)]
    if left and self._stop.requested and not any(run in told for run in left):
      raise Interrupted(self._stop.reason)
    return {run: attempts.failure(told.get(run, 'it ended without being done')) for run in left}

  def _end(self, cohort: Cohort, part: Part, failures: Mapping[str, Failure], as_one: bool) -> None:
    """Decides how to go on after an attempt."""
    for run, why in failures.items():
      if why.kind in attempts.ENDING:
        cohort.replace(part, [attempts.stopped(part)])
        raise self._ending(why, self._record.names[run])
    if any(why.kind == attempts.TAKEN for why in failures.values()):
      cohort.replace(part, [attempts.stopped(part)])
      self._later[cohort.key] = time.monotonic() + self._options.poll_s
      return
    if not failures:
      cohort.replace(part, [])
      return
    rest, given_up = attempts.failed(part, failures, as_one, self._options.retries)
    if any(new.tries for new in rest):
      pause = self._options.pause_s * 4 ** min(part.tries, 4)
      self._later[cohort.key] = time.monotonic() + pause
    self._conclude(cohort, part, rest, given_up)

  def _ending(self, why: Failure, run: str = '') -> UserError:
    """What ends the work of this process; the reason says how to mend it, if it is ours."""
    if ' — ' in why.reason:
      return UserError(f'{run}: {why.reason}' if run else why.reason)
    how = 'mend it; the same command then continues'
    return UserError(why.reason, run or str(self._place.path), how)

  def _conclude(
    self, cohort: Cohort, part: Part, rest: Sequence[Part], given_up: Mapping[str, Failure]
  ) -> None:
    for run, why in given_up.items():
      log.warn(f'{self._record.names[run]} ({run}) is given up: {why.reason}')
      tries = {'kind': why.kind, 'reason': why.reason, 'attempts': part.tries + part.deaths + 1}
      self._place.give_up(run, {**tries, 'cohort': cohort.key, 'by': process.me()['host']})
    for new in rest:
      if new.name != part.name:
        apart = words.count(len(new.runs), 'run')
        log.warn(f'cohort {cohort.key}: {apart} of it to be tried apart from the others')
    cohort.replace(part, rest)

  def _describe(self, part: Part) -> str:
    names = [self._record.names[run] for run in part.runs]
    shown = ', '.join(names[:4]) + (f' and {len(names) - 4} more' if len(names) > 4 else '')
    return f'{words.count(len(names), "run")}: {shown}'

  def _sleep(self, seconds: float) -> None:
    until = time.monotonic() + seconds
    while not self._stop.requested and (left := until - time.monotonic()) > 0:
      time.sleep(min(left, 0.5))

  def _report(self) -> Report:
    done = sum(self._place.finished(run) for run in self._record.names)
    failed = {
      run: why
      for run in self._record.names
      if not self._place.finished(run) and (why := self._place.failure(run))
    }
    return Report(done, failed, len(self._record.names) - done - len(failed))

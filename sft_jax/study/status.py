"""How far a study is, read from its files alone, so from any machine and beside any work."""

import dataclasses
import os
from collections.abc import Mapping, Sequence

from etils import epath

from sft_jax.study import archive, one_run
from sft_jax.study.directory import Json, StudyDirectory, StudyRecord
from sft_jax.utils import io, lease, log, words
from sft_jax.utils.errors import UserError
from sft_jax.utils.transfer import as_size

_SHOWN_FAILURES = 20


@dataclasses.dataclass(frozen=True)
class CohortState:
  """How far one cohort is.

  Attributes:
    key: Of the cohort.
    state: done | failed (nothing left to do, some runs were given up) | running | silent (its
      worker, elsewhere, gives no sign) | waiting.
    runs: Number of runs.
    done: Of them, complete.
    failed: Of them, given up.
    steps: Steps done of the part at work.
    total: Steps of that part; 0 if not known.
    left_s: Seconds left of that part, or None.
    spent_s: Seconds worked on it so far.
    worker: Who works on it, '' if nobody.
    silent_s: Seconds since the worker's last sign of life, or None.
    attempts: Attempts that ended in a failure or without a word.
    saved: Step that the part whose turn it is goes on from; 0 if nothing was saved of it.
  """

  key: str
  state: str
  runs: int
  done: int
  failed: int
  steps: int = 0
  total: int = 0
  left_s: float | None = None
  spent_s: float = 0.0
  worker: str = ''
  silent_s: float | None = None
  attempts: int = 0
  saved: int = 0


def cohort_state(place: StudyDirectory, key: str, runs: Sequence[str]) -> CohortState:
  """Reads how far a cohort is."""
  done = sum(place.finished(run) for run in runs)
  failed = sum(place.settled(run) for run in runs) - done
  steps, total, left = _progress(place, key, runs)
  past = _attempts(place, key)['log']
  bad = sum(entry['end'] in ('failed', 'died') for entry in past)
  spent = sum(entry['seconds'] for entry in past)
  state = CohortState(
    key, 'waiting', len(runs), done, failed, steps, total, None, spent, '', None, bad
  )
  if done + failed == len(runs):
    return dataclasses.replace(state, state='failed' if failed else 'done')
  state = dataclasses.replace(state, saved=_saved_step(place, key))
  holder = lease.holder(place.lease(key))
  if holder is None:
    return state
  return dataclasses.replace(
    state,
    state='silent' if holder['expired'] else 'running',
    left_s=left,
    worker=f'{holder["host"]}, process {holder["pid"]}',
    silent_s=holder['silent-s'],
  )


def cohort_states(place: StudyDirectory, record: StudyRecord) -> list[CohortState]:
  """Of all cohorts, in the study's order."""
  return [cohort_state(place, key, runs) for key, runs in record.cohorts.items()]


def status(workdir: epath.PathLike) -> tuple[list[str], Json]:
  """Lines for people, and the same as JSON; of a single run, an evaluation or a race too.

  Raises:
    UserError: nothing of the kind is there, or it cannot be read.
  """
  place = StudyDirectory(workdir)
  with io.explain_unreadable(place.path):
    single = not (place.path / 'study.json').exists()
  if single and one_run.is_here(workdir):
    return one_run.status(workdir)
  if single:
    rungs = sorted(str(path.parent) for path in place.path.glob('rung-*/study.json'))
    if rungs:
      return _rungs(workdir, rungs)
    how = 'give the --workdir of one'
    raise UserError('no study, run or evaluation is here', os.fspath(workdir), how)
  record = place.record()
  states = cohort_states(place, record)
  failures = {
    run: why for run in record.names if (why := place.failure(run)) and not place.finished(run)
  }
  value = {
    'workdir': os.fspath(workdir),
    'runs': sum(s.runs for s in states),
    'done': sum(s.done for s in states),
    'failed': sum(s.failed for s in states),
    'running-cohorts': sum(s.state == 'running' for s in states),
    'seconds-left': seconds_left(states),
    'cohorts': [dataclasses.asdict(s) for s in states],
    'failures': [{'run': run, 'name': record.names[run], **why} for run, why in failures.items()],
  }
  lines = [line(s) for s in states] + [summary(states)]
  if not io.is_remote(workdir):
    uses = archive.usage(workdir)
    lines.append(_disk(uses))
    value['disk'] = {kind: dataclasses.asdict(use) for kind, use in uses.items()}
  for run, why in list(failures.items())[:_SHOWN_FAILURES]:
    lines.append(f'failed  {record.names[run]} ({run}): {why["reason"]}')
  if more := len(failures) - _SHOWN_FAILURES:
    lines += [f'and {more} more, in {place.path / "failures.csv"}'] if more > 0 else []
  return lines, value


def _rungs(workdir: epath.PathLike, rungs: Sequence[str]) -> tuple[list[str], Json]:
  """Of a race, whose rungs are studies."""
  found = {os.path.basename(rung): status(rung) for rung in rungs}
  lines = [f'{name}: {line}' for name, (own, _) in found.items() for line in own]
  values = [value for _, value in found.values()]
  total = {key: sum(value[key] for value in values) for key in ('runs', 'done', 'failed')}
  return lines, {'workdir': os.fspath(workdir), **total, 'rungs': values}


def _disk(uses: Mapping[str, archive.Use]) -> str:
  """What the study takes, in one line."""
  total, most = archive.together(uses), max(uses, key=lambda kind: uses[kind].bytes)
  part = f', {as_size(uses[most].bytes)} of it {most}' if uses[most].bytes else ''
  return f'takes {as_size(total.bytes)} in {total.files:,} files and directories{part}'


def line(state: CohortState) -> str:
  """One cohort, in one line."""
  parts = [f'{state.done}/{words.count(state.runs, "run")} done']
  if state.failed:
    parts.append(f'{state.failed} failed')
  if state.state in ('running', 'silent'):
    if state.total:
      parts.append(f'step {state.steps}/{state.total} ({state.steps / state.total:.0%})')
    elif state.steps:
      parts.append(f'step {state.steps}')
    if state.left_s is not None:
      parts.append(f'{log.clock(state.left_s)} left')
    parts.append(f'{state.worker}, last sign {state.silent_s:.0f} s ago')
  if state.saved and state.state in ('waiting', 'silent'):
    of_total = f' of {state.total}' if state.total else ''
    parts.append(f'resumes from step {state.saved}{of_total}')
  if state.attempts:
    parts.append(words.count(state.attempts, 'failed attempt'))
  return f'{state.state:<8}{state.key}  {", ".join(parts)}'


def summary(states: Sequence[CohortState]) -> str:
  """The study, in one line."""
  runs, done = sum(s.runs for s in states), sum(s.done for s in states)
  failed, running = sum(s.failed for s in states), sum(s.state == 'running' for s in states)
  parts = [f'{done} of {words.count(runs, "run")} done']
  if failed:
    parts.append(f'{failed} failed')
  if done + failed < runs:
    parts.append(f'{running} of {words.count(len(states), "cohort")} at work')
    left = seconds_left(states)
    if left is not None:
      parts.append(f'about {log.clock(left)} left')
  return ', '.join(parts)


def seconds_left(states: Sequence[CohortState]) -> float | None:
  """Time to the end at today's number of workers; cohorts not begun count as the mean of others.

  None where nothing is at work or no cohort's time is known.
  """
  open_ = [s for s in states if s.state not in ('done', 'failed')]
  if not open_:
    return 0.0
  workers = sum(s.state == 'running' for s in open_)
  known = [s.spent_s for s in states if s.state == 'done' and s.spent_s]
  known += [s.left_s / (1 - s.steps / s.total) for s in open_ if s.left_s and 0 < s.steps < s.total]
  if not workers or not known:
    return None
  mean = sum(known) / len(known)
  return sum(mean if s.left_s is None else s.left_s for s in open_) / workers


def _progress(
  place: StudyDirectory, key: str, runs: Sequence[str]
) -> tuple[int, int, float | None]:
  """(steps done, steps in all or 0, seconds left or None)."""
  file = place.cohort(key) / 'progress.json'
  if file.exists():
    held = io.read_json(file)
    return held['done'], held['total'], held['seconds-left']
  steps = (one_run.last_step(place.run(run) / 'metrics.jsonl') for run in runs)
  return max((line['step'] for line in steps if line), default=0), 0, None


def _saved_step(place: StudyDirectory, key: str) -> int:
  """The latest whole training state of the part whose turn it is; 0 if there is none."""
  parts = _attempts(place, key)['parts']
  turn = (part for part in parts if not all(place.settled(run) for run in part['runs']))
  if (part := next(turn, None)) is None:
    return 0
  return one_run.saved_step(place.cohort(key) / part['name'] / 'checkpoints')


def _attempts(place: StudyDirectory, key: str) -> Json:
  """Parts to be tried and the log of what was tried, as the cohort's worker has left them."""
  file = place.cohort(key) / 'attempts.json'
  return io.read_json(file) if file.exists() else {'parts': [], 'log': []}

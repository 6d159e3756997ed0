"""What a config, or several, ask to be done: runs from their data to their rows, and exports.

A study calls `run_cohort` for each of its cohorts; nothing here knows of studies.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from etils import epath

from sft_jax import results
from sft_jax import spec as spec_lib
from sft_jax.execution import summary
from sft_jax.execution.driver import Driver, Options
from sft_jax.execution.job import Run
from sft_jax.execution.session import Session
from sft_jax.execution.workdir import Workdir
from sft_jax.train import loop
from sft_jax.utils import lease, log
from sft_jax.utils.errors import UserError

__all__ = ['Member', 'Outcome', 'Run', 'export', 'run', 'run_cohort']


def run(config: Any, workdir: str) -> list[results.Row]:
  """Does what a config describes, from where it was left; returns the rows, the base's first.

  Raises:
    UserError: bad input; nothing was half-written.
    Interrupted: stopped after saving.
  """
  # Its data need not be read to say so; processes of one run come by here before any holds it.
  lease.refuse_if_held(epath.Path(workdir) / 'lease.json')
  with loop.StopSignal(config.max_seconds) as stop:
    with stop.at_once():
      job = Run(config, workdir, stop)
    if not job.workdir.finished():
      Driver([job], [], Options(workdir, alone=True, save_at_snapshots=True), stop).train()
    elif config.export.format != 'none' and not job.export_path().exists():
      job.export_kept()
    else:
      log.say(f'{workdir}: already done, nothing to do')
    about = {'workdir': workdir, 'format': config.export.format}
    about |= {'method': job.spec.method, 'base': job.spec.base, 'data': config.data.path}
    about['weights'] = config.checkpoint.keep_weights
    for line in summary.lines(job.workdir, job.scoring.headline, about):
      log.say(line)
    return job.workdir.rows()


def export(config: Any, workdir: str, out: str = '') -> str:
  """Writes weights kept in a workdir as `config.export` says; returns the directory.

  Changes nothing else there: the run may be at work.

  Args:
    config: That of the run.
    workdir: The run's.
    out: Where to; '' is `export/FORMAT` in the workdir.

  Raises:
    UserError: no format given, or no weights kept.
    Interrupted: stopped; nothing was half-written.
  """
  with loop.StopSignal() as stop, stop.at_once():
    job = Run(config, workdir, stop)
    if config.export.format == 'none':
      raise UserError('no format given', 'config.export.format', 'use hf or peft')
    return job.export_kept(out)


@dataclasses.dataclass(frozen=True)
class Member:
  """One run of a cohort: what it is and where it is done."""

  config: Any
  workdir: str


@dataclasses.dataclass(frozen=True)
class Outcome:
  """What became of a run.

  Attributes:
    workdir: Its member's.
    run_id: Its identity; '' where its input was bad.
    state: 'done' or 'failed'.
    reason: Why it failed; '' if it is done.
  """

  workdir: str
  run_id: str
  state: str
  reason: str


def run_cohort(
  members: Sequence[Member],
  place: str,
  session: Session,
  stop: loop.StopSignal,
  on_progress: Callable[[int, int], None] | None = None,
  *,
  save_at_snapshots: bool = False,
) -> list[Outcome]:
  """Does runs as one program, from where they were left; each leaves what it leaves by itself.

  LoRA runs with equal `spec.cohort_key` are trained together; a full fine-tune is a cohort of one.
  Settings that are no factors and shape the program or its state (config.train.{layout, row_length,
  rows_per_micro, remat, loss_chunk}, config.checkpoint.{every_*, keep_states}, config.mesh) are
  those of the first member that has something to do; all others are each run's own.

  A run that is complete, or has a `failed.json` in its workdir, is not touched. One whose loss or
  scores stop being numbers gets a `failed.json` (reason, step), and the others go on. One whose
  input is bad fails alone, before the others start, and leaves nothing: it may be tried again.

  The training state lies in `place`, under the identity of the company: called again with the same
  members, runs go on where they were; with others, those that are not complete start anew.

  Args:
    members: The runs.
    place: A directory for training state; only one process may be at work there (the workdirs are
      held under leases, this is the caller's).
    session: What is shared with other cohorts of this process.
    stop: Looked at after each step and during evaluations.
    on_progress: Called after each step with steps done and steps of the longest run.
    save_at_snapshots: Whether the state is saved before each snapshot, besides when it is due by
      `config.checkpoint.every_seconds` or `every_steps` and when stopping.

  Returns:
    One for each member, in order.

  Raises:
    OutOfMemory: fewer runs at once may fit.
    UserError: something that concerns all runs: the model's weights, the disk, another process.
    Interrupted: stopped after saving.
  """
  jobs: list[Run | None] = []
  outcomes: dict[int, Outcome] = {}
  for index, member in enumerate(members):
    job = None
    with stop.at_once():
      try:
        job = Run(member.config, member.workdir, stop, session)
      except UserError as e:
        outcomes[index] = Outcome(member.workdir, '', 'failed', str(e))
    jobs.append(job)
    if job is None:
      continue
    if job.workdir.finished():
      outcomes[index] = Outcome(member.workdir, job.run_id, 'done', '')
    elif why := job.workdir.failure():
      outcomes[index] = Outcome(member.workdir, job.run_id, 'failed', why)
  to_do = [job for index, job in enumerate(jobs) if job is not None and index not in outcomes]
  if to_do:
    _require_company(to_do)
    known = [job.run_id for index, job in enumerate(jobs) if job is not None and index in outcomes]
    options = Options(place, False, save_at_snapshots, on_progress)
    driver = Driver(to_do, known, options, stop)
    driver.train()
    for index, member in enumerate(members):
      job = jobs[index]
      if job is not None and index not in outcomes:
        why = driver.failures.get(job.run_id, '')
        state = 'failed' if why else 'done'
        outcomes[index] = Outcome(member.workdir, job.run_id, state, why)
  return [outcomes[index] for index in range(len(members))]


def _require_company(jobs: Sequence[Run]) -> None:
  """Raises ValueError for runs that cannot be trained as one: a defect of the caller."""
  keys = {spec_lib.cohort_key(job.spec, job.contents) for job in jobs}
  if len(keys) > 1:
    raise ValueError(f'{len(jobs)} runs of {len(keys)} cohorts')
  places = {str(Workdir(job.workdir.path).path) for job in jobs}
  ids = {job.run_id for job in jobs}
  if len(places) < len(jobs) or len(ids) < len(jobs):
    raise ValueError('two members are the same run, or share a workdir')

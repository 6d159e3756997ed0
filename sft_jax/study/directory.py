"""A study's workdir: what lies where, and the record of what the study is.

    study.json              the definition, which runs there are and which cohort each is in
    runs/KEY/               a run's own workdir; `failed.json` in it once it was given up
    cohorts/KEY/            lease.json, attempts.json, progress.json, and a place for each part
    results.csv, .parquet   derived from the runs' rows, with failures.csv

Everything is a whole file of one writer, so any number of processes may work on one directory.
"""

import contextlib
import dataclasses
import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from etils import epath

from sft_jax.utils import io, lease, words
from sft_jax.utils.errors import UserError

Json = dict[str, Any]
# (definition as recorded, definition as given) -> what was changed, in words; [] if at most added.
Compare = Callable[[Json, Json], Sequence[str]]

# Who writes study.json is done within moments.
_PATIENCE_S = 60.0


@dataclasses.dataclass(frozen=True)
class StudyRecord:
  """What study.json says.

  Attributes:
    names: {run key: name for people}.
    cohorts: {cohort key: its run keys}. A run stays in its cohort for good: the cohort's training
      state is worth nothing to other company.
    definition: What the study is, for comparison.
    files: {local path: digest} of what the runs are made of.
  """

  names: Mapping[str, str]
  cohorts: Mapping[str, tuple[str, ...]]
  definition: Json
  files: Mapping[str, str] = dataclasses.field(default_factory=dict)


class StudyDirectory:
  """Paths and the files that are written once. Making one touches nothing."""

  def __init__(self, path: epath.PathLike):
    self.path = epath.Path(path)

  def run(self, key: str) -> epath.Path:
    """The workdir of a run."""
    return self.path / 'runs' / key

  def cohort(self, key: str) -> epath.Path:
    """Where a cohort's lease, attempts, progress and training state lie."""
    return self.path / 'cohorts' / key

  def lease(self, key: str) -> epath.Path:
    """The lease of a cohort."""
    return self.cohort(key) / 'lease.json'

  def begun(self, run: str) -> bool:
    """Whether a run has claimed its workdir."""
    return (self.run(run) / 'config.json').exists()

  def finished(self, run: str) -> bool:
    """Whether a run is complete."""
    return (self.run(run) / 'done.json').exists()

  def failure(self, run: str) -> Json | None:
    """Why a run was given up, or None.

    The runner gives up what is no number any more by itself, and says no more than the reason.
    """
    file = self.run(run) / 'failed.json'
    if not file.exists():
      return None
    return {'kind': 'numbers', 'attempts': 1, **io.read_json(file)}

  def given_up(self, run: str) -> tuple[Any, ...] | None:
    """When a run was given up: equal to an earlier one if it was not tried again since."""
    file = self.run(run) / 'failed.json'
    if not file.exists():
      return None
    return file.read_text(), file.stat().mtime

  def give_up(self, run: str, failure: Json) -> None:
    """Records that a run failed for good, and when."""
    io.write_json_atomic(self.run(run) / 'failed.json', {**failure, 'at': time.time()})

  def forgive(self, run: str) -> None:
    """Takes back that a run failed for good."""
    (self.run(run) / 'failed.json').unlink(missing_ok=True)

  def settled(self, run: str) -> bool:
    """Whether there is nothing left to do for a run."""
    return self.finished(run) or (self.run(run) / 'failed.json').exists()

  def record(self) -> StudyRecord:
    """What study.json says.

    Raises:
      UserError: there is none, or it is no study's.
    """
    file = self.path / 'study.json'
    with io.explain_unreadable(file):
      there = file.exists()
    if not there:
      raise UserError('no study here', str(self.path), 'give the --workdir of a study')
    held = io.read_json(file)
    try:
      cohorts = {key: tuple(runs) for key, runs in held['cohorts'].items()}
      names, definition, files = held['runs'], held['definition'], held['files']
      return StudyRecord(dict(names), cohorts, dict(definition), dict(files))
    except (KeyError, TypeError, AttributeError, ValueError) as e:
      raise UserError('not a study', str(file), 'choose another --workdir') from e

  def open(self, given: StudyRecord, compare: Compare) -> StudyRecord:
    """Makes the study's directory, or joins one that holds this study or a smaller one.

    Returns:
      The record to work by: cohorts of before stay as they are, added runs form further ones.

    Raises:
      UserError: another study is here, or the place cannot be written.
    """
    file = self.path / 'study.json'
    if not file.exists() and (self.path / 'config.json').exists():
      raise UserError(
        'a single run is here', str(self.path), 'choose another --workdir for the study'
      )
    io.require_writable(self.path)
    if io.create_text(file, _text(given)):
      return given
    before = self.record()
    if self._joined(before, given, compare) == before:
      return before
    with self._writing():
      record = self._joined(self.record(), given, compare)
      io.write_text_atomic(file, _text(record))
    return record

  def _joined(self, before: StudyRecord, given: StudyRecord, compare: Compare) -> StudyRecord:
    changed = list(compare(before.definition, given.definition))
    gone = [name for key, name in before.names.items() if key not in given.names]
    if gone and not changed:
      changed = [f'it has {words.count(len(gone), "run")} no longer wanted, such as {gone[0]}']
    if changed:
      raise UserError(
        f'this workdir holds another study: {"; ".join(changed)}',
        str(self.path),
        'undo the change or choose another --workdir; runs may be added, but not changed',
      )
    files = {**given.files, **before.files}
    return StudyRecord(given.names, _joined_cohorts(before, given), given.definition, files)

  @contextlib.contextmanager
  def _writing(self) -> Any:
    """Context in which no other process writes study.json."""
    until = time.monotonic() + _PATIENCE_S
    while True:
      try:
        with lease.Lease(self.path / 'study.lease.json'):
          yield
        return
      except lease.Held:
        if time.monotonic() > until:
          raise
        time.sleep(0.2)


def _joined_cohorts(before: StudyRecord, given: StudyRecord) -> dict[str, tuple[str, ...]]:
  cohorts = dict(before.cohorts)
  taken = {run for runs in cohorts.values() for run in runs}
  for key, runs in given.cohorts.items():
    added = tuple(run for run in runs if run not in taken)
    if not added:
      continue
    if key in cohorts:
      key = f'{key}-{hashlib.sha256(" ".join(added).encode()).hexdigest()[:6]}'
    cohorts[key] = added
  return cohorts


def _text(record: StudyRecord) -> str:
  value = {'definition': record.definition, 'runs': record.names}
  return io.to_json({**value, 'cohorts': record.cohorts, 'files': record.files}, indent=2) + '\n'

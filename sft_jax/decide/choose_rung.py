"""The studies that the runs of a rung are in.

A rung is one study that grows with the race. What a study has begun it would also end: where the
race has changed since, by a smaller budget or a candidate less, runs that nobody wants any more are
left where they are, and what is wanted goes on in a further study.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from sft_jax.study.directory import StudyDirectory
from sft_jax.utils import io

# (study, run key) -> whether there is nothing left to do for the run.
IsOver = Callable[[StudyDirectory, str], bool]


def directory(workdir: str, rung: int, number: int = 1) -> StudyDirectory:
  """The study of a rung by its number, from 1."""
  further = f'-{number}' if number > 1 else ''
  return StudyDirectory(os.path.join(workdir, f'rung-{rung}{further}'))


def homes(
  workdir: str, rung: int, keys: Sequence[str], is_over: IsOver
) -> dict[str, StudyDirectory]:
  """Where each run of a rung is, or is to be; all that are not over are to be in one study.

  Args:
    workdir: Of the race.
    rung: From 0.
    keys: Of the runs that are wanted.
    is_over: Of a run in a study.
  """
  there = [directory(workdir, rung)]
  while (further := directory(workdir, rung, len(there) + 1)).path.exists():
    there.append(further)
  last = there[-1]
  if any(key not in keys and not is_over(last, key) for key in _runs(last)):
    last = further
  return {key: next((one for one in there if is_over(one, key)), last) for key in keys}


def grown(study: StudyDirectory, wanted: Sequence[Mapping[str, Any]]) -> list[Any]:
  """All entries of a study when it is to have those that are wanted, too; remembers them."""
  file = study.path / 'entries.json'
  # Without a study, these are of a start that ended before it made one.
  before = io.read_json(file) if file.exists() and _runs(study) else []
  every = [*before, *(entry for entry in wanted if entry not in before)]
  io.write_json_atomic(file, every)
  return every


def _runs(study: StudyDirectory) -> list[str]:
  if not (study.path / 'study.json').exists():
    return []
  return [run for runs in study.record().cohorts.values() for run in runs]

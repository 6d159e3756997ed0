"""What is tried again, in which company, and what is given up. Files and processes are elsewhere.

A cohort is worked on in parts, at first one of all its runs. What failed is put into smaller parts
until the runs that cannot be done stand alone:

  out of memory      halves at once; a run alone is given up
  numbers            (a loss that is not finite) the run is given up: it would come out the same
  anything else      (network, missing file, a defect) again, `retries` times, then halves of what
                     failed as one, each tried once, down to single runs, which are given up
  death              a process that died without a word, `retries` + 1 times in a row without
                     leaving anything new: as out of memory, which is how a host ends that
  the disk           no failure of a run: the work ends (and goes on once there is space)
  changed            what a run is made of is no longer what it was: the work ends, or the study
                     would hold runs that differ in more than their factors
  taken              no failure: another process is at the run
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from sft_jax.utils import hub_errors, lease, words
from sft_jax.utils.errors import Diverged, OutOfMemory, UserError

MEMORY, NUMBERS, OTHER, DEATH = 'memory', 'numbers', 'other', 'death'
DISK, CHANGED, TAKEN = 'disk', 'changed', 'taken'
# Failures that no other run would escape.
ENDING = (DISK, CHANGED)
# Words, in lower case, that tell a kind of failure: reasons come as text, also from libraries.
_WORDS = (
  (MEMORY, ('too little memory', 'resource_exhausted', 'out of memory')),
  (DISK, ('the disk is full', 'cannot be written', 'no space left', 'quota exceeded')),
  (NUMBERS, ('not finite', 'not a number')),
  (TAKEN, ('is at work here',)),
  (CHANGED, ('holds another run', 'has changed since the study began')),
)


@dataclasses.dataclass
class Part:
  """Runs of a cohort that are tried together.

  Attributes:
    name: Of its place; equal names mean equal company, so training state may be used again.
    runs: Keys.
    tries: Failed attempts.
    deaths: Attempts in a row that ended without a word and left nothing new.
    mark: What lay in the places of its runs when the last attempt began; equal if nothing is new.
    open: Whether an attempt has begun and not ended.
  """

  name: str
  runs: tuple[str, ...]
  tries: int = 0
  deaths: int = 0
  mark: str = ''
  open: bool = False


@dataclasses.dataclass(frozen=True)
class Failure:
  """Why a run, or all runs of an attempt as one, failed."""

  kind: str
  reason: str


def failure(error: BaseException | str) -> Failure:
  """The kind of a failure, by its class or its words, and one line of reason."""
  lines = hub_errors.without_token(' '.join(str(error).split()))
  if isinstance(error, BaseException) and not isinstance(error, UserError):
    lines = f'{type(error).__name__}: {lines}'
  low = lines.lower()
  for kind, classes in (
    (MEMORY, (MemoryError, OutOfMemory)),
    (NUMBERS, (Diverged,)),
    (TAKEN, (lease.Held,)),
  ):
    if isinstance(error, classes):
      return Failure(kind, lines)
  return Failure(
    next((kind for kind, words in _WORDS if any(w in low for w in words)), OTHER), lines
  )


def begin(part: Part, mark: str) -> Part:
  """The part while an attempt is under way."""
  return dataclasses.replace(part, open=True, mark=mark)


def stopped(part: Part) -> Part:
  """The part after an attempt that ended because it was asked to."""
  return dataclasses.replace(part, open=False, deaths=0)


def died(
  part: Part, left: Sequence[str], mark: str, retries: int
) -> tuple[list[Part], dict[str, Failure]]:
  """After an attempt of which nothing is known but that it was begun.

  Args:
    part: What was tried.
    left: Its runs that are not settled.
    mark: What lies in the places of its runs now.
    retries: How often a failure that may pass is tried again.

  Returns:
    The parts to go on with, and the runs to give up.
  """
  deaths = part.deaths + 1 if mark == part.mark else 0
  after = dataclasses.replace(part, open=False, deaths=deaths)
  if deaths <= retries:
    return [after], {}
  reason = (
    f'the process died {words.count(deaths, "time")} without a word, and had done nothing new'
  )
  return _smaller(after, left, Failure(DEATH, reason))


def failed(
  part: Part, failures: Mapping[str, Failure], as_one: bool, retries: int
) -> tuple[list[Part], dict[str, Failure]]:
  """After an attempt in which some runs failed and the others are done.

  Args:
    part: What was tried.
    failures: By run key.
    as_one: Whether the attempt failed as a whole, so that one run may have failed the others.
    retries: How often a failure that may pass is tried again.

  Returns:
    The parts to go on with, and the runs to give up.
  """
  part = stopped(part)
  part.tries += 1
  if as_one:
    why = next(iter(failures.values()))
    if why.kind == OTHER and part.tries <= retries:
      return [part], {}
    return _smaller(part, list(failures), why)
  parts: list[Part] = []
  given_up: dict[str, Failure] = {}
  short = tuple(run for run in part.runs if run in failures and failures[run].kind == MEMORY)
  if short:
    rest, up = _smaller(part, short, failures[short[0]])
    parts, given_up = parts + rest, given_up | up
  for run in part.runs:
    if run not in failures or run in short:
      continue
    if failures[run].kind == OTHER and part.tries <= retries:
      parts.append(part if len(part.runs) == 1 else alone(run, part.tries))
    else:
      given_up[run] = failures[run]
  return parts, given_up


def whole(runs: Sequence[str]) -> Part:
  """All runs of a cohort."""
  return Part('all', tuple(runs))


def alone(run: str, tries: int = 0) -> Part:
  """One run of several, which starts again: the training state of before was its company's too."""
  return Part(f'alone-{run}', (run,), tries)


def _smaller(
  part: Part, left: Sequence[str], why: Failure
) -> tuple[list[Part], dict[str, Failure]]:
  """Halves of what is left of a part, or nothing of what cannot be halved."""
  left = tuple(left)
  if len(left) == 1:
    return [], {left[0]: why}
  middle = (len(left) + 1) // 2
  halves = (left[:middle], left[middle:])
  # Retries were used up by the whole: each half is tried once.
  tries = part.tries if why.kind == OTHER else 0
  return [
    Part(f'{part.name}{letter}', runs, tries) for letter, runs in zip('ab', halves, strict=True)
  ], {}


def from_json(value: Any) -> list[Part]:
  """Parts as `to_json` wrote them."""
  return [Part(**{**item, 'runs': tuple(item['runs'])}) for item in value]


def to_json(parts: Sequence[Part]) -> list[dict[str, Any]]:
  """For a file."""
  return [dataclasses.asdict(part) for part in parts]

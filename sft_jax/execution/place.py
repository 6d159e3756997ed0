"""The files of a cohort besides those of its runs: who stands where, and its training state.

`cohort.json` names the runs by slot and what they are padded to; `checkpoints/` holds the state. A
run alone has its state in its own workdir, and no plan.
"""

import dataclasses
import hashlib
from collections.abc import Mapping
from typing import Any

import jax
from etils import epath

from sft_jax.execution.cohort import Size
from sft_jax.train.checkpoint import Checkpoints
from sft_jax.utils import io, peers

_PLAN = 'cohort.json'


@dataclasses.dataclass(frozen=True)
class Plan:
  """Who stands where, in what shapes.

  Attributes:
    runs: Identities by slot.
    size: What they are padded to.
    shape: (lanes, microbatches, rows, tokens) of a batch.
  """

  runs: tuple[str, ...]
  size: Size
  shape: tuple[int, int, int, int]

  @property
  def identity(self) -> str:
    """Of a training state: one of another plan is of no use."""
    return hashlib.sha256(io.to_json(dataclasses.asdict(self)).encode()).hexdigest()[:12]


def find(place: str, ids: set[str], known: set[str]) -> Plan | None:
  """The plan that was left here if it has all of `ids`, and no others that are not known.

  Args:
    place: Directory of the cohort.
    ids: Runs that are to be trained.
    known: Runs of the cohort that have ended.
  """
  file = epath.Path(place) / _PLAN
  held = peers.from_first(io.read_json(file) if file.exists() else None)
  if held is None or not ids <= set(held['runs']) <= ids | known:
    return None
  lanes, micros, rows, tokens = held['shape']
  return Plan(tuple(held['runs']), Size(**held['size']), (lanes, micros, rows, tokens))


def open_states(place: str, plan: Plan, config: Any) -> Checkpoints:
  """The training states of a plan; those of another, and their plan, are removed.

  Args:
    place: Directory of the cohort.
    plan: Who stands where.
    config: `config.checkpoint`.
  """
  directory = epath.Path(place)
  wanted = io.to_json(dataclasses.asdict(plan))
  file = directory / _PLAN
  held = io.to_json(io.read_json(file)) if file.exists() else ''
  if held != wanted and jax.process_index() == 0:
    with io.explain_os_errors(directory):
      (directory / 'checkpoints').rmtree(missing_ok=True)
    io.write_json_atomic(file, dataclasses.asdict(plan))
  return Checkpoints(
    directory,
    plan.identity,
    keep=config.keep_states,
    weights='none',
    save_every_steps=config.every_steps,
    save_every_seconds=config.every_seconds,
  )


def leave(place: str) -> None:
  """Removes the plan of a cohort that has come to its end, once its states are gone."""
  if jax.process_index() == 0:
    (epath.Path(place) / _PLAN).unlink(missing_ok=True)


class States:
  """Training states of a cohort: none is saved before the weights of its runs are on disk."""

  def __init__(self, states: Checkpoints, weights: Mapping[int, Checkpoints]):
    """States of all, and the checkpoints of each run that is at work; the mapping may change."""
    self._states, self._weights = states, weights
    self.due, self.overdue, self.reject = states.due, states.overdue, states.reject

  def save(self, step: int, state: Any, wait: bool = False) -> None:
    """See `Checkpoints.save`."""
    self._wait_for_weights()
    self._states.save(step, state, wait)

  def wait(self) -> None:
    """See `Checkpoints.wait`."""
    self._wait_for_weights()
    self._states.wait()

  def _wait_for_weights(self) -> None:
    for checkpoints in self._weights.values():
      checkpoints.weights.wait()

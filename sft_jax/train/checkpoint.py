"""Checkpoints of one run: training state to continue from, and weights of snapshots to keep.

Two kinds with separate retention: `checkpoints/<step>` holds the whole training state (large, the
latest suffices; written by Orbax in the background), `weights/<step>` what an evaluation or export
needs (`weights.py`). One that was not committed is never read. A state is known to be good only
when the next step's loss is finite, so one more than asked for is kept, and `reject` takes the
newest back. The states of a cohort lie in a place of their own, under its identity; its runs have
weights only.
"""

import time
from typing import Any

from etils import epath

from sft_jax.train import orbax_io
from sft_jax.train.weights import Weights
from sft_jax.utils import io, log, peers
from sft_jax.utils.errors import UserError


class Checkpoints:
  """Saves and restores pytrees of arrays, bit for bit, onto any mesh.

  A checkpoint belongs to a `run_id`; another run's is refused. What was saved is on disk after
  `wait` or `close`; a kill before that leaves the checkpoints of before.
  """

  def __init__(
    self,
    workdir: epath.PathLike,
    run_id: str,
    *,
    keep: int = 1,
    weights: str = 'last',
    save_every_steps: int = 0,
    save_every_seconds: float = 0.0,
    read_only: bool = False,
  ):
    """Opens the checkpoints of a workdir and removes those that were never completed.

    Args:
      workdir: Directory of the run.
      run_id: Identity of the run.
      keep: Number of latest good training states kept, at least 1.
      weights: Which snapshots' weights are kept: 'all', 'last', 'best' (and the last) or 'none'.
      save_every_steps: Training state is due at multiples of this; 0 = never for that reason.
      save_every_seconds: Training state is due this long after the last one; 0 = never.
      read_only: Change nothing on disk: a run may be at work there.

    Raises:
      UserError: the workdir holds another run's checkpoints, or cannot be written.
    """
    self._run_id, self._keep, self._read_only = run_id, max(keep, 1), read_only
    self._every_steps, self._every_seconds = save_every_steps, save_every_seconds
    self._saved_at = time.monotonic()
    # Orbax wants an absolute path.
    root = epath.Path(workdir) if io.is_remote(workdir) else epath.Path(workdir).resolve()
    self._state_dir = root / 'checkpoints'
    self._manager: Any = None
    with io.explain_os_errors(root):
      peers.wait_for_all('before a sweep')  # Others may still be reading.
      orbax_io.sweep(self._state_dir, run_id, orbax_io.metadata, read_only)
      self.weights = Weights(root / 'weights', run_id, weights, read_only)
      peers.wait_for_all('after a sweep')
    self._own: set[int] = set()

  @property
  def _state(self) -> Any:
    """The manager of states, opened when first used: runs of a cohort have none."""
    if self._manager is None:
      with io.explain_os_errors(self._state_dir):
        # Which states go is decided in `save`.
        self._manager = orbax_io.manager(self._state_dir, lambda steps: steps, self._read_only)
    return self._manager

  def due(self, step: int) -> bool:
    """Whether training state should be saved after `step` steps, whatever the time."""
    return bool(self._every_steps) and step % self._every_steps == 0

  def overdue(self) -> bool:
    """Whether the last save (or the start of this process) is too long ago."""
    passed = time.monotonic() - self._saved_at
    return bool(self._every_seconds) and passed >= self._every_seconds

  def latest(self) -> int | None:
    """Step of the latest complete training state, or None."""
    found = peers.from_first(bool(orbax_io.steps(self._state_dir)))
    return self._state.latest_step() if found else None

  def save(self, step: int, state: Any, wait: bool = False) -> None:
    """Saves the training state after `step` steps; the arrays may be donated at once.

    States of earlier steps count as good: training went on from them.

    Args:
      step: Number of finished steps.
      state: Pytree of arrays.
      wait: Return when it is complete on disk, instead of in the background.

    Raises:
      UserError: the disk is full or read-only; possibly for the save before this one.
    """
    with io.explain_os_errors(self._state_dir):
      if step not in self._state.all_steps():
        # A state on disk means that the snapshots before it are: a resumed run does not come to
        # them again.
        self.weights.wait()
        # Before the save and not after it, so that the disk never holds more than `keep` + 1.
        self._state.wait_until_finished()
        for old in sorted(self._state.all_steps())[: -self._keep]:
          self._state.delete(old)
        meta = {'run_id': self._run_id, 'step': step, 'score': None}
        orbax_io.save(self._state, step, orbax_io.arguments(state, meta))
        self._own.add(step)
      if wait:
        self._state.wait_until_finished()
    self._saved_at = time.monotonic()

  def restore(self, abstract: Any, step: int | None = None) -> tuple[int, Any]:
    """Returns (step, training state) and removes later states, which could not be read.

    Args:
      abstract: Pytree of `jax.ShapeDtypeStruct` with shardings, which may be of another mesh than
        the one that saved.
      step: Default the latest that can be read.

    Raises:
      UserError: there is none, or it does not fit `abstract`.
    """
    steps = sorted(self._state.all_steps(), reverse=True) if step is None else [step]
    for candidate in steps:
      try:
        state = orbax_io.restore(self._state, self._state_dir, candidate, abstract)
      except UserError as e:
        if candidate == steps[-1]:
          raise
        log.warn(f'{e}; trying the one before')
        continue
      for unreadable in steps[: steps.index(candidate)]:
        self._state.delete(unreadable)
      return candidate, state
    raise UserError('no checkpoint', where=str(self._state_dir), how='start without resuming')

  def reject(self, step: int) -> int | None:
    """Deletes states after `step` or more steps, which turned out to be bad.

    One that this process did not save stays if there is no other: it may have been good before.

    Returns:
      The latest step left, on disk; None if there is none.
    """
    self.wait()
    steps = self._state.all_steps()
    for bad in steps:
      if bad >= step and (bad in self._own or min(steps) < step):
        self._state.delete(bad)
    return self.latest()

  def save_weights(self, step: int, weights: Any, score: float | None = None) -> None:
    """Saves the weights of a snapshot, as the policy says; saving a step again changes nothing.

    Args:
      step: Number of finished steps.
      weights: Pytree of arrays.
      score: Lower is better; decides what the policy 'best' keeps.
    """
    self.weights.save(step, weights, score)

  def restore_weights(self, step: int, abstract: Any) -> Any:
    """Restores the weights of a snapshot into the shardings of `abstract`.

    Raises:
      UserError: that step was not kept, or it does not fit `abstract`.
    """
    return self.weights.restore(step, abstract)

  def weights_steps(self) -> list[int]:
    """Steps whose weights are kept."""
    return self.weights.steps()

  def best_step(self) -> int | None:
    """The kept step of the lowest score (the latest of equals); None without scores."""
    return self.weights.best()

  def delete_state(self) -> None:
    """Deletes all training state: a finished run needs none."""
    with io.explain_os_errors(self._state_dir):
      self.wait()
      if orbax_io.steps(self._state_dir):
        for step in self._state.all_steps():
          self._state.delete(step)

  def wait(self) -> None:
    """Returns when everything saved is complete on disk.

    Raises:
      UserError: a save in the background met a full or read-only disk.
    """
    with io.explain_os_errors(self._state_dir):
      if self._manager is not None:
        self._manager.wait_until_finished()
      self.weights.wait()

  def close(self) -> None:
    """Waits for saves and releases threads."""
    with io.explain_os_errors(self._state_dir):
      if self._manager is not None:
        self._manager.close()
      self.weights.close()

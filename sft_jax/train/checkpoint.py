"""Checkpoints of one run: training state to continue from, and weights of snapshots to keep.

Two kinds with separate retention: `checkpoints/<step>` holds the whole training state (large, the
latest suffices), `weights/<step>` what an evaluation or export needs. Orbax writes both
asynchronously; one that was not committed is never read. A state is known to be good only when the
next step's loss is finite, so one more than asked for is kept, and `reject` takes the newest back.
Not for leaving sft_jax: `models/export.py`.
"""

import dataclasses
import json
import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
from etils import epath

from sft_jax.utils import io, log
from sft_jax.utils.errors import UserError

WEIGHTS_POLICIES = ('all', 'last', 'best', 'none')


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
    if weights not in WEIGHTS_POLICIES:
      raise UserError(
        f'unknown policy {weights!r}',
        where='config.checkpoint.keep_weights',
        how=f'choose one of {", ".join(WEIGHTS_POLICIES)}',
      )
    self._run_id, self._policy, self._keep, self._read_only = (
      run_id,
      weights,
      max(keep, 1),
      read_only,
    )
    self._every_steps, self._every_seconds = save_every_steps, save_every_seconds
    self._saved_at = time.monotonic()
    # Orbax wants an absolute path.
    root = epath.Path(workdir) if io.is_remote(workdir) else epath.Path(workdir).resolve()
    self._state_dir, self._weights_dir = root / 'checkpoints', root / 'weights'
    with io.explain_os_errors(root):
      for directory in (self._state_dir, self._weights_dir):
        self._check(directory)
      # Which states go is decided in `save`.
      self._state = _manager(self._state_dir, lambda steps: steps, read_only)
      self._scores = _scores(self._weights_dir)
      unused = not self._weights_dir.exists() if read_only else weights == 'none'
      self._weights = None if unused else _manager(self._weights_dir, self._kept_weights, read_only)
    self._own: set[int] = set()

  def _check(self, directory: epath.Path) -> None:
    """Removes uncommitted checkpoints and refuses another run's."""
    for path in _entries(directory):
      # Orbax removes its own temporary directories; what is not named like a step is not ours.
      if not path.name.isdigit() or not path.is_dir():
        continue
      meta = _metadata(path)
      if meta is None:
        # Left by a kill. It would never be read, and stands where its step is saved again.
        if jax.process_index() == 0 and not self._read_only:
          log.say(f'removing an incomplete checkpoint: {path}')
          path.rmtree(missing_ok=True)
      elif meta['run_id'] != self._run_id:
        raise UserError(
          f'this workdir holds run {meta["run_id"]}, not {self._run_id}',
          where=str(path),
          how='choose another --workdir, or undo the change of the configuration',
        )

  def due(self, step: int) -> bool:
    """Whether training state should be saved after `step` steps, whatever the time."""
    return bool(self._every_steps) and step % self._every_steps == 0

  def overdue(self) -> bool:
    """Whether the last save (or the start of this process) is too long ago."""
    passed = time.monotonic() - self._saved_at
    return bool(self._every_seconds) and passed >= self._every_seconds

  def latest(self) -> int | None:
    """Step of the latest complete training state, or None."""
    return self._state.latest_step()

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
        if self._weights is not None:
          self._weights.wait_until_finished()
        # Before the save and not after it, so that the disk never holds more than `keep` + 1.
        self._state.wait_until_finished()
        for old in sorted(self._state.all_steps())[: -self._keep]:
          self._state.delete(old)
        _save(self._state, step, self._args(step, state))
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
        state = _restore(self._state, self._state_dir, candidate, abstract)
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
    manager = self._weights
    # A resumed run comes to its snapshots again, with the same weights. One that is older than the
    # latest was kept or dropped then.
    if manager is None or step <= (-1 if (last := manager.latest_step()) is None else last):
      return
    if score is not None and math.isfinite(score):
      self._scores[step] = float(score)
    with io.explain_os_errors(self._weights_dir):
      _save(manager, step, self._args(step, weights, self._scores.get(step)))

  def restore_weights(self, step: int, abstract: Any) -> Any:
    """Restores the weights of a snapshot into the shardings of `abstract`.

    Raises:
      UserError: that step was not kept, or it does not fit `abstract`.
    """
    if self._weights is None or step not in self._weights.all_steps():
      raise UserError(
        f'no weights of step {step}',
        where=str(self._weights_dir),
        how=f'kept are {self.weights_steps() or "none"}; see config.checkpoint.keep_weights',
      )
    return _restore(self._weights, self._weights_dir, step, abstract)

  def weights_steps(self) -> list[int]:
    """Steps whose weights are kept."""
    steps = sorted(self._weights.all_steps()) if self._weights is not None else []
    # Who may not remove what was never completed must not take it for kept.
    return [s for s in steps if not self._read_only or _metadata(self._weights_dir / str(s))]

  def best_step(self) -> int | None:
    """The kept step of the lowest score (the latest of equals); None without scores."""
    return self._best(self.weights_steps())

  def _best(self, steps: Sequence[int]) -> int | None:
    scored = [step for step in steps if step in self._scores]
    return min(scored, key=lambda step: (self._scores[step], -step)) if scored else None

  def _kept_weights(self, steps: Sequence[int]) -> Sequence[int | None]:
    """Which of `steps`, in order, stay when one was added."""
    if self._policy == 'all':
      return steps
    return [*steps[-1:], *([self._best(steps)] if self._policy == 'best' else [])]

  def delete_state(self) -> None:
    """Deletes all training state: a finished run needs none."""
    with io.explain_os_errors(self._state_dir):
      self.wait()
      for step in self._state.all_steps():
        self._state.delete(step)

  def wait(self) -> None:
    """Returns when everything saved is complete on disk.

    Raises:
      UserError: a save in the background met a full or read-only disk.
    """
    with io.explain_os_errors(self._state_dir):
      for manager in (self._state, self._weights):
        if manager is not None:
          manager.wait_until_finished()

  def close(self) -> None:
    """Waits for saves and releases threads."""
    with io.explain_os_errors(self._state_dir):
      for manager in (self._state, self._weights):
        if manager is not None:
          manager.close()

  def _args(self, step: int, tree: Any, score: float | None = None) -> Any:
    import orbax.checkpoint as ocp

    meta = {'run_id': self._run_id, 'step': step, 'score': score}
    return ocp.args.Composite(
      tree=ocp.args.StandardSave(tree),
      meta=ocp.args.JsonSave(json.loads(io.to_json(meta))),
    )


@dataclasses.dataclass
class _Keep:
  """Orbax preservation policy: after a save is committed, `choose(steps)` stay."""

  choose: Callable[[Sequence[int]], Sequence[int | None]]

  def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> Sequence[bool]:
    del context
    kept = self.choose([info.step for info in checkpoints])
    return [info.step in kept for info in checkpoints]


def _manager(
  directory: epath.Path, choose: Callable[[Sequence[int]], Sequence[int | None]], read_only: bool
) -> Any:
  # Imported here: orbax takes a second.
  import orbax.checkpoint as ocp
  from orbax.checkpoint import checkpoint_managers

  return ocp.CheckpointManager(
    directory,
    options=ocp.CheckpointManagerOptions(
      preservation_policy=_Keep(choose),
      # Every call means it: the loop decides when.
      save_decision_policy=checkpoint_managers.FixedIntervalPolicy(1),
      enable_async_checkpointing=not read_only,
      cleanup_tmp_directories=not read_only,
      create=not read_only,
      read_only=read_only,
    ),
  )


def _save(manager: Any, step: int, args: Any) -> None:
  if not manager.save(step, args=args):
    raise RuntimeError(f'orbax did not save step {step}; it holds {manager.all_steps()}')


def _entries(directory: epath.Path) -> list[epath.Path]:
  """What lies in a directory, in order; not by `glob`, which takes [ in its name for a pattern."""
  return sorted(directory.iterdir()) if directory.exists() else []


def _scores(directory: epath.Path) -> dict[int, float]:
  """{step: score} of the weights that are kept."""
  metas = [_metadata(path) for path in _entries(directory)]
  return {m['step']: m['score'] for m in metas if m is not None and m['score'] is not None}


def _metadata(path: epath.Path) -> dict[str, Any] | None:
  """The JSON saved beside a committed checkpoint; None when it is not committed."""
  try:
    committed = json.loads((path / '_CHECKPOINT_METADATA').read_text())
    meta = json.loads((path / 'meta' / 'metadata').read_text())
    if not committed['commit_timestamp_nsecs'] or not (path / 'tree' / '_METADATA').exists():
      return None
    return meta if str(meta['step']) == path.name and 'run_id' in meta else None
  except (OSError, ValueError, KeyError, TypeError):
    return None


def _restore(manager: Any, directory: epath.Path, step: int, abstract: Any) -> Any:
  import orbax.checkpoint as ocp

  try:
    args = ocp.args.Composite(tree=ocp.args.StandardRestore(abstract))
    return manager.restore(step, args=args)['tree']
  except Exception as e:  # orbax and tensorstore raise many kinds
    reason = str(e).strip().splitlines()
    raise UserError(
      f'checkpoint cannot be read: {type(e).__name__}: {reason[0][:200] if reason else ""}',
      where=str(directory / str(step)),
      how='remove that directory to continue from an earlier checkpoint, or start anew elsewhere',
    ) from e

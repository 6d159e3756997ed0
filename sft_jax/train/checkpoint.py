"""Checkpoints of one run: training state to continue from, and weights of snapshots to keep.

Two kinds with separate retention: `checkpoints/<step>` holds the whole training state (large, the
latest suffices), `weights/<step>` what an evaluation or export needs. Orbax writes both
asynchronously; one that was not committed is never read. Not for leaving sft_jax: `models/hf.py`.
"""

import dataclasses
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
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
    layout: Mapping[str, Any] | None = None,
  ):
    """Opens the checkpoints of a workdir and removes those that were never completed.

    Args:
      workdir: Directory of the run.
      run_id: Identity of the run.
      keep: Number of latest training states kept, at least 1.
      weights: Which snapshots' weights are kept: 'all', 'last', 'best' (and the last) or 'none'.
      save_every_steps: Training state is due at multiples of this; 0 = never for that reason.
      save_every_seconds: Training state is due this long after the last one; 0 = never.
      layout: Plain values kept beside every checkpoint (stacking, dtype policy, versions).

    Raises:
      UserError: the workdir holds another run's checkpoints, or cannot be written.
    """
    if weights not in WEIGHTS_POLICIES:
      raise UserError(
        f'unknown policy {weights!r}',
        where='config.checkpoint.keep_weights',
        how=f'choose one of {", ".join(WEIGHTS_POLICIES)}',
      )
    self._run_id, self._policy, self._layout = run_id, weights, dict(layout or {})
    self._every_steps, self._every_seconds = save_every_steps, save_every_seconds
    self._saved_at = time.monotonic()
    # Orbax wants an absolute path.
    root = epath.Path(workdir) if io.is_remote(workdir) else epath.Path(workdir).resolve()
    self._state_dir, self._weights_dir = root / 'checkpoints', root / 'weights'
    with io.explain_os_errors(root):
      for directory in (self._state_dir, self._weights_dir):
        self._check(directory)
      self._state = _manager(self._state_dir, lambda steps: steps[-max(keep, 1) :])
      self._scores = _scores(self._weights_dir)
      self._weights = None if weights == 'none' else _manager(self._weights_dir, self._kept_weights)

  def _check(self, directory: epath.Path) -> None:
    """Removes uncommitted checkpoints and refuses another run's."""
    for path in sorted(directory.glob('*')) if directory.exists() else []:
      # Orbax removes its own temporary directories; what is not named like a step is not ours.
      if not path.name.isdigit() or not path.is_dir():
        continue
      meta = _metadata(path)
      if meta is None:
        # Left by a kill. It would never be read, and stands where its step is saved again.
        if jax.process_index() == 0:
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
        self._state.save(step, args=self._args(step, state))
      if wait:
        self._state.wait_until_finished()
    self._saved_at = time.monotonic()

  def restore(self, abstract: Any, step: int | None = None) -> tuple[int, Any]:
    """Restores training state.

    Args:
      abstract: Pytree of `jax.ShapeDtypeStruct` with shardings, which may be of another mesh than
        the one that saved.
      step: Default the latest that can be read.

    Returns:
      (step, state).

    Raises:
      UserError: there is none, or it does not fit `abstract`.
    """
    steps = sorted(self._state.all_steps(), reverse=True) if step is None else [step]
    for candidate in steps:
      try:
        return candidate, _restore(self._state, self._state_dir, candidate, abstract)
      except UserError as e:
        if candidate == steps[-1]:
          raise
        log.warn(f'{e}; trying the one before')
    raise UserError('no checkpoint', where=str(self._state_dir), how='start without resuming')

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
    if score is not None and not math.isnan(score):
      self._scores[step] = float(score)
    with io.explain_os_errors(self._weights_dir):
      manager.save(step, args=self._args(step, weights, self._scores.get(step)))

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
    return sorted(self._weights.all_steps()) if self._weights is not None else []

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
    self.wait()
    for step in list(self._state.all_steps()):
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

    meta = {'run_id': self._run_id, 'step': step, 'score': score, 'layout': self._layout}
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


def _manager(directory: epath.Path, choose: Callable[[Sequence[int]], Sequence[int | None]]) -> Any:
  # Imported here: orbax takes a second.
  import orbax.checkpoint as ocp
  from orbax.checkpoint import checkpoint_managers

  return ocp.CheckpointManager(
    directory,
    options=ocp.CheckpointManagerOptions(
      preservation_policy=_Keep(choose),
      # Every call means it: the loop decides when.
      save_decision_policy=checkpoint_managers.FixedIntervalPolicy(1),
      enable_async_checkpointing=True,
      cleanup_tmp_directories=True,
    ),
  )


def _scores(directory: epath.Path) -> dict[int, float]:
  """{step: score} of the weights that are kept."""
  metas = [_metadata(path) for path in directory.glob('*')] if directory.exists() else []
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

"""The training loop: one optimiser step after another, until done or told to stop.

Knows no data format, model or evaluation: it is handed `batches` and `on_snapshot`. What it trains
is one run or several side by side, each with a log of its own.

What makes a kill at any moment harmless: a batch depends on its step alone, training state is saved
only after its own metrics were seen to be finite, and everything a snapshot writes is keyed by its
step, so that doing it again writes the same. A run resumed at a snapshot's step takes it again.
A loss tells of the state before its step, so a saved state is taken back when the next loss is bad.
"""

import contextlib
import dataclasses
import os
import signal
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from types import FrameType, TracebackType
from typing import Any, Protocol

import jax
import numpy as np

from sft_jax.train import orbax_io
from sft_jax.utils import chips, log, peers
from sft_jax.utils.errors import TIME_LIMIT, Diverged, Interrupted, OutOfMemory

Tree = Any
StepFn = Callable[[Tree, Tree, Mapping[str, Any]], tuple[Tree, Mapping[str, Any]]]

_MEMORY_HELP = (
  'set config.train.rows_per_micro=1, config.train.remat=full or a smaller '
  'config.train.max_length, or use more devices (config.mesh.fsdp)'
)


class StopSignal:
  """Context in which SIGTERM, SIGINT, the end of its terminal (SIGHUP, unless it is ignored, as by
  nohup) or a time limit asks for a stop instead of killing.

  A second SIGINT kills. Outside the main thread only the time limit works. The limit waits for the
  first `progress`, or a run whose start takes longer than it would be started again for ever.
  """

  def __init__(self, max_seconds: float = 0.0):
    """Starts the clock; `max_seconds` of 0 is no limit."""
    self.reason = ''
    self._at_once, self._progress = False, False
    self._deadline = time.monotonic() + max_seconds if max_seconds > 0 else float('inf')
    self._limit = max_seconds
    self._previous: dict[int, Any] = {}

  def __enter__(self) -> 'StopSignal':
    if threading.current_thread() is threading.main_thread():
      for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        if number != signal.SIGHUP or signal.getsignal(number) not in (signal.SIG_IGN, None):
          self._previous[number] = signal.signal(number, self._handle)
    return self

  def __exit__(
    self, kind: type | None, error: BaseException | None, trace: TracebackType | None
  ) -> None:
    for number, handler in self._previous.items():
      signal.signal(number, handler)

  def _handle(self, number: int, frame: FrameType | None) -> None:
    del frame
    self.reason = signal.Signals(number).name
    if number == signal.SIGINT:
      signal.signal(signal.SIGINT, signal.SIG_DFL)
      if not self._at_once:
        # Not by `print` or a logger: one of them may hold its lock just now.
        os.write(2, b'\nstopping: what is done will be saved; Ctrl-C again ends at once\n')
    if self._at_once:
      # Not caught by what takes any `Exception` for bad input, and a child is killed on the way.
      raise KeyboardInterrupt

  @contextlib.contextmanager
  def at_once(self) -> Iterator[None]:
    """Context in which a signal ends what is under way: there is nothing yet to be saved.

    Raises:
      Interrupted: instead of the end of the block.
    """
    self._at_once = True
    try:
      yield
      if self.reason:
        raise KeyboardInterrupt
    except KeyboardInterrupt:
      why = self.reason or 'SIGINT'
      raise Interrupted(f'{why}, with nothing to be saved; start again to go on') from None
    finally:
      self._at_once = False

  def progress(self) -> None:
    """Tells that something was done which the next start will not have to do again."""
    self._progress = True

  @property
  def requested(self) -> bool:
    """Whether this process was asked to stop; long evaluations may look too."""
    if not self.reason and self._progress and time.monotonic() >= self._deadline:
      self.reason = f'{TIME_LIMIT} of {self._limit:g} s'
    return bool(self.reason)


@contextlib.contextmanager
def explain_memory(where: str, how: str) -> Iterator[None]:
  """Turns a device that is out of memory, met inside, into an `OutOfMemory`."""
  try:
    yield
  except jax.errors.JaxRuntimeError as e:
    if 'RESOURCE_EXHAUSTED' not in str(e):
      raise
    raise OutOfMemory('the device has too little memory', where, how) from e


class States(Protocol):
  """Where training state is saved: `checkpoint.Checkpoints`, or those of a cohort."""

  def due(self, step: int) -> bool: ...
  def overdue(self) -> bool: ...
  def save(self, step: int, state: Any, wait: bool = False) -> None: ...
  def wait(self) -> None: ...
  def reject(self, step: int) -> int | None: ...


class OnSnapshot(Protocol):
  """Evaluates and keeps a state; must do the same again when called again."""

  def __call__(self, state: Tree, step: int) -> None: ...


def not_finite(step: int, names: Sequence[str]) -> tuple[str, str]:
  """What happened at a step whose batch held these records, and where; for a message."""
  shown = ', '.join(names[:8]) + (f' and {len(names) - 8} more' if len(names) > 8 else '')
  what = f'loss, gradient or update is not finite at step {step}'
  return what, shown and f'records of that step: {shown}'


@dataclasses.dataclass
class _Reporter:
  """Looks at the metrics of a finished step: stops on non-finite ones, logs the others."""

  logs: Sequence[log.RunLog | None]
  progress: log.Progress
  records: Callable[[int], Sequence[str]] | None
  on_nonfinite: Callable[[int, list[int]], None] | None
  reject: Callable[[int], int | None]
  flops_per_token: float

  def __call__(self, step: int, metrics: Mapping[str, Any]) -> None:
    """Waits for step number `step` (from 1) to finish."""
    with explain_memory('train step', _MEMORY_HELP):
      metrics = jax.device_get(dict(metrics))
    values = {name: np.atleast_1d(value) for name, value in metrics.items()}
    bad = np.flatnonzero(values.pop('nonfinite')).tolist()
    bad = [run for run in bad if self.logs[run] is not None]
    if bad and self.on_nonfinite is not None:
      self.on_nonfinite(step, bad)
    elif bad:
      self._stop(step, values['loss'])
    at = [i for i, one in enumerate(self.logs) if one is not None]
    if not at:
      return
    sums = {name: float(values[name][at].sum()) for name in ('tokens', 'supervised')}
    loss = float(values['loss'][at].mean())
    rates = self.progress.update(step, loss, sums['tokens'], sums['supervised'])
    if rates and self.flops_per_token:
      per_chip = rates['tokens-per-s'] * self.flops_per_token / jax.device_count()
      share = chips.mfu(per_chip, jax.devices()[0].device_kind)
      rates |= {} if share is None else {'mfu': share}
    # Of all runs together, by which the shares of their time can be told.
    rates |= {'runs': float(len(at))} if len(self.logs) > 1 else {}
    common = {**rates, **chips.memory_stats()}
    for run in at:
      scalars = {name: float(value[run]) for name, value in values.items()}
      run_log = self.logs[run]
      assert run_log is not None
      run_log.write(step, {**scalars, **common})

  def _stop(self, step: int, loss: np.ndarray) -> None:
    names = list(self.records(step - 1)) if self.records is not None else []
    what, where = not_finite(step, names)
    # A finite loss clears the state before this step.
    saved = self.reject(step if np.isfinite(loss).all() else step - 1)
    raise Diverged(
      what,
      where,
      how='lower config.train.learning_rate or look at these records; '
      + (f'the checkpoint of step {saved} is kept' if saved else 'no good state was saved before'),
    )


def train(
  step_fn: StepFn,
  base: Tree,
  state: Tree,
  batches: Callable[[int], Mapping[str, Any]],
  *,
  start_step: int,
  total_steps: int,
  logs: Sequence[log.RunLog | None],
  progress: log.Progress,
  checkpoints: States,
  stop: StopSignal,
  snapshot_steps: Collection[int] = (),
  on_snapshot: OnSnapshot | None = None,
  records: Callable[[int], Sequence[str]] | None = None,
  on_nonfinite: Callable[[int, list[int]], None] | None = None,
  traces: Callable[[], int] | None = None,
  guard: Callable[[], None] = lambda: None,
  flops_per_token: float = 0.0,
  save_at_snapshots: bool = True,
) -> Tree:
  """Trains from `start_step` to `total_steps`, or until no run is left.

  Args:
    step_fn: `(base, state, batch) -> (state, metrics)`; may donate the state. Metrics are arrays
      `[R]` or scalars: `loss`, `tokens`, `supervised`, `nonfinite` and any others to log.
    base: First argument of `step_fn`.
    state: State after `start_step` steps.
    batches: Batch of the step with index 0, 1, …; a pure function of the index.
    start_step: Number of steps done before.
    total_steps: Number of steps when finished.
    logs: Of each run; metrics of later steps than `start_step` are removed from it first. The
      caller puts None in the place of a run that has ended: nothing is told of it from then on.
    progress: Bar.
    checkpoints: Says when training state is due; it is also saved when stopping.
    stop: Looked at after each step.
    snapshot_steps: Numbers of steps done at which `on_snapshot` is called. 0 is before training.
    on_snapshot: Called with the state, which it must not donate.
    records: Names of the records in the batch of a step index, for the message about a non-finite
      step.
    on_nonfinite: Called with the step and the runs that failed, instead of stopping.
    traces: How often `step_fn` was traced in this process.
    guard: Raises when this process may not go on; called before anything is saved.
    flops_per_token: For MFU; 0 = not logged. See `chips.flops_per_token`.
    save_at_snapshots: Whether the state is saved before each snapshot and at the end, too. Without,
      what a kill during an evaluation costs is the training since the last save.

  Returns:
    The state after `total_steps` steps, saved.

  Raises:
    Interrupted: asked to stop; the state is saved and starting again continues.
    Diverged: a loss, gradient or update is not finite.
    OutOfMemory: the device's memory is full.
    UserError: the disk is full.
    RuntimeError: the step was compiled more than once.
  """
  report = _Reporter(logs, progress, records, on_nonfinite, checkpoints.reject, flops_per_token)
  for run_log in filter(None, logs):
    run_log.truncate_after(start_step)
  done = start_step
  pending: Mapping[str, Any] | None = None
  shapes: dict[str, str] = {}
  agreement = peers.Agreement()
  orbax_io.load()

  while True:
    stopping, overdue = agreement(stop.requested, checkpoints.overdue(), done)
    # Before an evaluation too, which may take longer than what ends this process allows.
    pausing = done in snapshot_steps or done == total_steps
    saving = overdue or checkpoints.due(done) or (save_at_snapshots and pausing)
    guard()
    if pending is not None and (stopping or saving or pausing):
      # Nothing is saved or evaluated before its own step is known to be finite.
      report(done, pending)
      pending = None
    if stopping and done < total_steps:
      checkpoints.save(done, state, wait=True)
      why = stop.reason or 'another process'
      raise Interrupted(f'{why}, after step {done}; start again to go on')
    if saving and done > start_step:
      checkpoints.save(done, state)
    if on_snapshot is not None and done in snapshot_steps:
      try:
        on_snapshot(state, done)
      except Interrupted:
        if done > start_step:
          checkpoints.save(done, state)
        checkpoints.wait()  # Or it would be told too early that it was saved.
        raise
      progress.resume()
    if done == total_steps or not any(logs):
      break

    given = state
    with explain_memory('train step', _MEMORY_HELP):
      batch = batches(done)
      shapes = shapes or _shapes(state, batch)
      state, metrics = step_fn(base, given, batch)
    if traces is not None and traces() > 1:
      raise RuntimeError(f'the step was compiled again: {_difference(shapes, given, batch)}')
    del given  # or a step that does not donate would hold two states
    if pending is not None:
      # The metrics of the step before, now that the device has its next work.
      report(done, pending)
    done, pending = done + 1, metrics
    stop.progress()

  checkpoints.wait()
  for run_log in filter(None, logs):
    run_log.flush()
  return state


def _shapes(state: Tree, batch: Tree) -> dict[str, str]:
  """{path: shape and dtype} of what a step is traced for."""
  leaves = jax.tree_util.tree_flatten_with_path({'state': state, 'batch': batch})[0]
  return {
    jax.tree_util.keystr(path): f'{leaf.dtype}{list(leaf.shape)} {getattr(leaf, "sharding", "")}'
    for path, leaf in ((p, leaf) for p, leaf in leaves if hasattr(leaf, 'shape'))
  }


def _difference(first: Mapping[str, str], state: Tree, batch: Tree) -> str:
  now = _shapes(state, batch)
  changed = [
    f'{path} was {first.get(path, "absent")}, now {now.get(path, "absent")}'
    for path in sorted(first.keys() | now.keys())
    if first.get(path) != now.get(path)
  ]
  return '; '.join(changed) or 'no shape, dtype or sharding changed, so its arguments differ'

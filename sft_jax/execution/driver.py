"""Trains the runs of a cohort, from where they were left, to the last snapshot of each.

What makes a kill at any moment harmless is told in `train/loop.py`. Not for what the runs start
from (`job.py`) or for what is done with those that fail (`runner.py`).
"""

import contextlib
import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
from etils import epath

from sft_jax import results
from sft_jax.data.loader import Prefetch
from sft_jax.execution import joint, place
from sft_jax.execution.cohort import Cohort, size_of
from sft_jax.execution.job import Run, make_loader
from sft_jax.execution.session import Session
from sft_jax.train import loop
from sft_jax.train.checkpoint import Checkpoints
from sft_jax.train.state import TrainState
from sft_jax.utils import log, peers, profile, words
from sft_jax.utils.errors import Diverged

Tree = dict[str, Any]

_MEMORY_HELP = 'use more devices (config.mesh.fsdp) or a smaller model'
_PLAN = 'cohort.json'


@dataclasses.dataclass(frozen=True)
class Options:
  """How a cohort is trained; none of it changes a result.

  Attributes:
    place: Directory of the training state; the workdir itself of a run alone.
    alone: One run by itself: what goes wrong is raised, the state lies in its own workdir, and much
      is said.
    save_at_snapshots: Whether the state is saved before each snapshot is evaluated, too.
    on_progress: Called with steps done and steps in all after each step, instead of a bar.
  """

  place: str
  alone: bool
  save_at_snapshots: bool
  on_progress: Callable[[int, int], None] | None = None


class _Progress(log.Progress):
  """Tells somebody else, who has a bar of their own."""

  def __init__(self, total: int, done: int, quiet: bool, tell: Callable[[int, int], None] | None):
    super().__init__(total, done=done, quiet=quiet or tell is not None)
    self._tell = tell

  def update(self, step: int, loss: float, tokens: float, supervised: float) -> dict[str, float]:
    rates = super().update(step, loss, tokens, supervised)
    if self._tell is not None:
      self._tell(step, self._total)
    return rates


class Driver:
  """A cohort at work. Runs are named by their slots; a slot is empty once its run has ended."""

  def __init__(
    self, runs: Sequence[Run], known: Sequence[str], options: Options, stop: loop.StopSignal
  ):
    """Decides who stands where, and writes nothing.

    Args:
      runs: To be trained, with equal cohort keys.
      known: Identities of runs that belong to the cohort and have ended before.
      options: How.
      stop: Looked at after each step and during evaluations.
    """
    self._options, self._stop = options, stop
    self._session: Session = runs[0].session
    few = self._session.shared
    by_id = {run.run_id: run for run in runs}
    plan = None if options.alone else place.find(options.place, set(by_id), set(known))
    names = plan.runs if plan else tuple(by_id)
    size = plan.size if plan else size_of([run.program for run in runs], few)
    self.runs: list[Run | None] = [by_id.get(name) for name in names]
    self._loader = make_loader(self.runs, size.slots, few, plan.shape if plan else None)
    self._plan = place.Plan(names, size, self._loader.shape)
    self._cohort = Cohort(
      [run.program if run else None for run in self.runs],
      [run.total_steps if run else 0 for run in self.runs],
      size,
    )
    self.failures: dict[str, str] = {}
    self._logs: list[log.RunLog | None] = [None] * size.slots
    self._weights: dict[int, Checkpoints] = {}
    self._guards: list[Callable[[], None]] = []

  @property
  def _alive(self) -> list[tuple[int, Run]]:
    return [(slot, run) for slot, run in enumerate(self.runs) if run is not None]

  def train(self) -> None:
    """Trains to the end; see the module.

    Raises:
      Diverged: the numbers of a run alone are no numbers any more.
      OutOfMemory: fewer at once may fit.
      UserError: something that concerns all runs.
      Interrupted: stopped; the state is saved.
    """
    what = [[run and run.run_id for run in self.runs], self._loader.shape, self._session.shared]
    peers.require_same('what they are to train', what)
    if self._options.alone:
      self._introduce()
    with contextlib.ExitStack() as stack:
      with self._stop.at_once(), loop.explain_memory('loading the model', _MEMORY_HELP):
        self._guards = [
          stack.enter_context(run.workdir.taken(run.config.study.lease_seconds))
          for _, run in self._alive
        ]
        # Before workdirs are claimed: weights may turn out to be bad only when they are read.
        base, state = self._cohort.start()
      for _, run in self._alive:
        run.claim()
      states = self._open()
      try:
        self._train(base, state, states)
        self._leave(states)
      except BaseException:
        with contextlib.suppress(Exception):  # What came first is what is told.
          self._close(states)
        raise
      self._close(states)

  def _open(self) -> Checkpoints:
    """Opens the checkpoints of runs and those of their common state."""
    for slot, run in self._alive:
      self._weights[slot] = run.checkpoints()
    if self._options.alone:
      return self._weights[0]
    config = self._alive[0][1].config.checkpoint
    return place.open_states(self._options.place, self._plan, config)

  def _leave(self, states: Checkpoints) -> None:
    """Removes the training state: finished runs need none."""
    states.delete_state()
    if not self._options.alone:
      place.leave(self._options.place)

  def _close(self, states: Checkpoints) -> None:
    for checkpoints in self._weights.values():
      checkpoints.close()
    states.close()

  def _guard(self) -> None:
    for check in self._guards:
      check()

  def _train(self, base: Tree | None, state: TrainState, states: Checkpoints) -> None:
    start, state = self._restored(state, states)
    self._score_bases(base, state)
    shape, documents = self._loader.shape, self._loader.documents
    key = self._cohort.step_key(state, shape, documents)
    step = self._session.step(key, lambda: self._cohort.make_step(state, documents))
    first, alone = jax.process_index() == 0, self._options.alone
    total = max(run.total_steps for _, run in self._alive)
    progress = _Progress(total, start, not first, self._options.on_progress)
    for slot, run in self._alive:
      tensorboard = run.config.log.tensorboard
      self._logs[slot] = log.RunLog(run.workdir.path, quiet=not first, tensorboard=tensorboard)
    prefetch = Prefetch(self._place, total)
    wanted = profile.steps(self._alive[0][1].config.profile)
    recorded = profile.Recorded(step, start, wanted, epath.Path(self._options.place) / 'profile')
    snapshots = {at for _, run in self._alive for at in run.snapshots}
    try:
      loop.train(
        recorded,
        base,
        state,
        prefetch,
        start_step=start,
        total_steps=total,
        logs=self._logs,
        progress=progress,
        checkpoints=place.States(states, self._weights),
        stop=self._stop,
        snapshot_steps=snapshots,
        on_snapshot=lambda state, at: self._snapshot(base, state, at),
        records=self._alive[0][1].sources if alone else None,
        on_nonfinite=None if alone else self._not_finite,
        traces=lambda: max(step.traces, step.executables),
        guard=self._guard,
        flops_per_token=self._cohort.first.flops_per_token(self._loader),
        save_at_snapshots=self._options.save_at_snapshots,
      )
    finally:
      recorded.close()
      prefetch.close()
      progress.close()
      for run_log in filter(None, self._logs):
        run_log.close()

  def _restored(self, state: TrainState, states: Checkpoints) -> tuple[int, TrainState]:
    """Steps done and the state after them."""
    if states.latest() is None:
      for slot, run in self._alive:
        run.workdir.begin_again()
        self._weights[slot].weights.delete()
      return 0, state
    abstract = jax.tree.map(
      lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
    )
    del state
    start, state = states.restore(abstract)
    total = max(run.total_steps for _, run in self._alive)
    log.say(f'resuming after step {start} of {total}')
    failed = jax.device_get(state.failed).reshape(-1)
    for slot, _ in self._alive:
      if failed[slot] and not self._options.alone:
        # Somebody forgave what cannot come out otherwise.
        self._fail(slot, start, Diverged('its numbers were not finite at an earlier step'))
    return start, state

  def _place(self, index: int) -> dict[str, Any]:
    return self._loader.put(self._loader.batch(index), self._cohort.first.mesh)

  def _introduce(self) -> None:
    """Says what is about to happen to a run alone."""
    _, run = self._alive[0]
    _, micros, rows, length = self._loader.shape
    log.say(f'run {run.run_id}: {run.model.name}, {run.spec.method}, on {run.data.name}')
    for line in run.data.audit.lines():
      log.say(line)
    padded = self._loader.padded(0)[0]
    share = padded / (padded + self._loader.tokens(0)[0])
    steps = words.count(run.total_steps, 'step')
    log.say(
      f'{steps} of up to {run.spec.batch_size} examples, laid out in '
      f'{micros} x {rows} {run.config.train.layout} rows of {length} tokens '
      f'({share:.0%} padding in the first)'
    )
    for sentence in run.program.not_cut():
      log.say(f'sharding     {sentence}')

  def _score_bases(self, base: Tree | None, state: TrainState) -> None:
    """Rows of the untrained base, for runs that have none."""
    to_do = [
      (slot, run)
      for slot, run in self._alive
      if not any(row['step'] == 0 for row in run.workdir.rows())
    ]
    shared = self._cohort.base_key, self._session.base_scores, self._session.base_records
    known = lambda run: not self._options.alone and joint.base_is_known(run.scoring, *shared)
    if not all(known(run) for _, run in to_do):
      log.say('evaluating the base')
    subject = self._cohort.subject(base, state.trained if base is None else None, [0])
    for slot, run in to_do:
      if not self._options.alone:
        joint.give_base(run.scoring, subject, *shared)
      run.put_row(0, run.scoring.run(subject, 0, self._reject(slot)))

  def _snapshot(self, base: Tree | None, state: TrainState, step: int) -> None:
    """Evaluates the runs that have a snapshot here; the same if done again."""
    due = [(slot, run) for slot, run in self._alive if step in run.snapshots]
    subject_of = lambda slots: self._cohort.subject(base, state.trained, slots)
    joint.give_snapshots([(slot, run.scoring) for slot, run in due], subject_of, step)
    for slot, run in due:
      try:
        self._snapshot_of(slot, run, base, state, step)
      except Diverged as e:
        if self._options.alone:
          raise
        self._fail(slot, step, e)

  def _snapshot_of(
    self, slot: int, run: Run, base: Tree | None, state: TrainState, step: int
  ) -> None:
    """Evaluates a run, measures its weight change, keeps its weights, and ends it at its last."""
    began = time.monotonic()
    checkpoints = self._weights[slot]
    subject = self._cohort.subject(base, state.trained, [slot])
    scores = run.with_base(run.scoring.run(subject, step, self._reject(slot)))
    run.put_row(step, scores)
    change = self._cohort.layer_delta(base, state.trained, slot)
    epoch = run.snapshots[step]
    run.workdir.put_layers({'run-id': run.run_id, 'step': step, 'epoch': epoch, 'modules': change})
    ranked = [scores[name] for name in results.BEST_BY if name in scores]
    weights = self._cohort.weights(state.trained, slot)
    checkpoints.save_weights(step, weights, score=ranked[0] if ranked else None)
    numbers = {
      f'eval/{name}': float(v) for name, v in scores.items() if isinstance(v, (int, float))
    }
    for layer, value in enumerate(change['all']['relative']):
      numbers[f'layer-change/{layer:02d}'] = value
    run_log = self._logs[slot]
    assert run_log is not None
    run_log.write(step, numbers | {'eval/seconds': time.monotonic() - began})
    if step == run.total_steps:
      self._finish(slot, run, weights)

  def _reject(self, slot: int) -> Callable[[int], int | None] | None:
    return self._weights[slot].reject if self._options.alone else None

  def _finish(self, slot: int, run: Run, weights: Tree) -> None:
    """What a run leaves at its end; then its slot is empty."""
    checkpoints = self._weights[slot]
    if run.config.export.format != 'none':
      run.export(checkpoints, weights)
    self._guard()
    checkpoints.weights.wait()
    run.workdir.finish(run.total_steps)
    self._end(slot)

  def _not_finite(self, step: int, slots: list[int]) -> None:
    for slot in slots:
      run = self.runs[slot]
      assert run is not None
      what, where = loop.not_finite(step, run.sources(step - 1))
      how = 'lower config.train.learning_rate or look at these records'
      self._fail(slot, step, Diverged(what, where, how))

  def _fail(self, slot: int, step: int, why: Diverged) -> None:
    """Marks a run as given up; the others go on."""
    run = self.runs[slot]
    assert run is not None
    log.warn(f'{run.workdir.path}: {why}')
    self.failures[run.run_id] = str(why)
    self._guard()
    run.workdir.fail(str(why), step)
    self._end(slot)

  def _end(self, slot: int) -> None:
    run_log = self._logs[slot]
    if run_log is not None:
      run_log.close()
    self._logs[slot] = None
    if not self._options.alone:
      self._weights.pop(slot).close()
    self.runs[slot] = None

"""One run from its config to its rows: data, model, training, snapshots, evaluation, export.

A study calls this for each of its cohorts; it knows nothing of studies.
"""

import contextlib
import functools
import os
import time
from collections.abc import Callable
from typing import Any

import jax
from etils import epath

from sft_jax import inputs, results, scoring, summary
from sft_jax import spec as spec_lib
from sft_jax.data import datasets
from sft_jax.data.loader import Loader, Prefetch
from sft_jax.data.sampler import Sampler
from sft_jax.evals import core
from sft_jax.models import source
from sft_jax.parallel import compile as compile_lib
from sft_jax.parallel import mesh as mesh_lib
from sft_jax.program import Program, by_backend
from sft_jax.train import loop, precision
from sft_jax.train.checkpoint import Checkpoints
from sft_jax.train.state import TrainState
from sft_jax.utils import log
from sft_jax.utils.errors import UserError
from sft_jax.workdir import Workdir

Tree = dict[str, Any]

_MEMORY_HELP = 'use more devices (config.mesh.fsdp) or a smaller model'
# Scores that decide which snapshot is best, lower first; the first one there is counts.
_BEST_BY = ('ppl-heldout-response', 'ppl-heldout')
# Measured once, on the base, and repeated in every row: what predicts before training.
_BASE_ONLY = (
  'ppl-train',
  'ppl-doc-train',
  'ppl-doc-median-train',
  'bits-per-byte-train',
  'train-n',
)


def run(config: Any, workdir: str) -> list[results.Row]:
  """Does what a config describes, from where it was left; returns the rows, the base's first.

  Raises:
    UserError: bad input; nothing was half-written.
    Interrupted: stopped after saving.
  """
  with loop.StopSignal(config.max_seconds) as stop:
    with stop.at_once():
      job = Run(config, workdir, stop)
    if not job.workdir.finished():
      job.train()
    elif config.export.format != 'none' and not job.export_path().exists():
      job.export_kept()
    else:
      log.say(f'{workdir}: already done, nothing to do')
    about = {'workdir': workdir, 'format': config.export.format, 'method': job.spec.method}
    for line in summary.lines(job.workdir, job.scoring.headline, about):
      log.say(line)
    return job.workdir.rows()


def export(config: Any, workdir: str) -> str:
  """Writes weights kept in a workdir as `config.export` says; returns the directory.

  Changes nothing else there: the run may be at work.

  Raises:
    UserError: no format given, or no weights kept.
    Interrupted: stopped; nothing was half-written.
  """
  with loop.StopSignal() as stop, stop.at_once():
    job = Run(config, workdir, stop)
    if config.export.format == 'none':
      raise UserError('no format given', 'config.export.format', 'use hf or peft')
    return job.export_kept()


class Run:
  """A run whose input has been read and found good. Making one writes nothing."""

  def __init__(self, config: Any, workdir: str, stop: loop.StopSignal):
    self.config, self.stop = config, stop
    mesh_lib.init_distributed()
    mesh_lib.check_accelerator(config.mesh.allow_idle)
    compile_lib.keep_programs(source.cache_root(config.cache_dir) / 'compiled')
    spec = self.spec = spec_lib.from_config(config, jax.default_backend())
    spec_lib.check_settings(config)
    precision.check_precision(
      spec.param_dtype, spec.rounding, allow_lost_updates=config.train.allow_lost_updates
    )
    core.task_names(config.eval.tasks)  # refuse bad ones now
    mesh = mesh_lib.make_mesh(config.mesh.data, config.mesh.fsdp, config.mesh.tensor)
    self.workdir = Workdir(workdir)
    self.model = inputs.load_model(spec.base, config.cache_dir, spec.max_length).cut_over(mesh)
    self.program = Program(spec, config.train, self.model, mesh)
    self.program.modules(), self.program.band()  # refuse bad ones now
    bench = [path.strip() for path in config.data.bench_files.split(',') if path.strip()]
    self.data = inputs.load_data(spec, self.model.tokenizer, bench)
    self.contents = inputs.contents(self.model, self.data, spec.template)
    self.run_id = spec_lib.run_id(spec, self.contents)
    self.workdir.check(spec, self.run_id)
    self.loader = self._make_loader()
    self.total_steps = self.loader.total_steps
    self.snapshots = spec_lib.snapshot_steps(
      config.train.snapshot_at, self.loader.runs[0][1].steps_per_epoch, self.total_steps
    )
    self.writer = core.Writer(self.model.tokenizer, spec.template, config.eval.max_new_tokens)
    self.scoring = scoring.Scoring(
      config.eval, self.data, self.writer, self.model.cfg.longest_text, self.workdir, stop
    )
    if config.export.format != 'none' and config.export.snapshot == 'best':
      self._refuse_no_best()

  def _make_loader(self) -> Loader:
    spec, train = self.spec, self.config.train
    sampler = Sampler(len(self.data.train), spec.batch_size, spec.epochs, spec.seed_data)
    return Loader(
      [(self.data.train, sampler)],
      layout=train.layout,
      row_length=train.row_length,
      rows_per_micro=train.rows_per_micro,
      tokens_per_micro=by_backend(cpu=1024, other=8192) * self.program.shards,
      row_shards=self.program.shards,
    )

  def _refuse_no_best(self) -> None:
    if not self.scoring.ranks or self.config.checkpoint.keep_weights not in ('best', 'all'):
      raise UserError(
        'no best snapshot will be known and kept',
        'config.export.snapshot',
        'use config.checkpoint.keep_weights=best, perplexity in config.eval.tasks and held-out '
        'records (config.data.heldout_share), or export the last',
      )

  def checkpoints(self, read_only: bool = False) -> Checkpoints:
    """The checkpoints of this workdir."""
    config = self.config.checkpoint
    return Checkpoints(
      self.workdir.path,
      self.run_id,
      keep=config.keep_states,
      weights=config.keep_weights,
      save_every_steps=config.every_steps,
      save_every_seconds=config.every_seconds,
      read_only=read_only,
    )

  def train(self) -> None:
    """Trains from the latest checkpoint, or from the base, to the end."""
    self._introduce()
    with contextlib.ExitStack() as stack:
      with self.stop.at_once(), loop.explain_memory('loading the model', _MEMORY_HELP):
        guard = stack.enter_context(self.workdir.taken())
        # Before the workdir is claimed: weights may turn out to be bad only when they are read.
        base, state = self.program.start(self.total_steps)
      self.workdir.claim(self.config, self.spec, self.contents, self.run_id)
      self.workdir.put_json('audit.json', self.data.audit.as_json())
      checkpoints = self.checkpoints()
      try:
        state = self._train(base, state, checkpoints, guard)
        if self.config.export.format != 'none':
          self.export(checkpoints, state.trained)
        guard()
        self.workdir.finish(self.total_steps)
        checkpoints.delete_state()
      except BaseException:
        with contextlib.suppress(Exception):  # What came first is what is told.
          checkpoints.close()
        raise
      checkpoints.close()

  def _train(
    self,
    base: Tree | None,
    state: TrainState,
    checkpoints: Checkpoints,
    guard: Callable[[], None],
  ) -> TrainState:
    """The state after the last step."""
    start = 0
    if checkpoints.latest() is not None:
      abstract = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
      )
      del state
      start, state = checkpoints.restore(abstract)
      log.say(f'resuming after step {start} of {self.total_steps}')
    if not any(row['step'] == 0 for row in self.workdir.rows()):
      log.say('evaluating the base')
      subject = self.program.subject(base, state.trained if base is None else None)
      self._put_row(0, 0.0, self.scoring.run(subject, 0, checkpoints.reject))
    step = self.program.make_step(state)
    first = jax.process_index() == 0
    progress = log.Progress(self.total_steps, done=start, quiet=not first)
    run_log = log.RunLog(self.workdir.path, quiet=not first)
    prefetch = Prefetch(self._place, self.total_steps)
    try:
      return loop.train(
        step,
        base,
        state,
        prefetch,
        start_step=start,
        total_steps=self.total_steps,
        run_log=run_log,
        progress=progress,
        checkpoints=checkpoints,
        stop=self.stop,
        snapshot_steps=self.snapshots,
        on_snapshot=functools.partial(self._snapshot, base, checkpoints, run_log),
        records=lambda index: self.loader.sources(index)[0],
        traces=lambda: max(step.traces, step.executables),
        guard=guard,
        flops_per_token=self.program.flops_per_token(self.loader),
      )
    finally:
      prefetch.close()
      progress.close()
      run_log.close()

  def _place(self, index: int) -> dict[str, Any]:
    return self.loader.put(self.loader.batch(index), self.program.mesh)

  def _introduce(self) -> None:
    """Says what is about to happen."""
    _, micros, rows, length = self.loader.shape
    log.say(f'run {self.run_id}: {self.model.name}, {self.spec.method}, on {self.data.name}')
    for line in self.data.audit.lines():
      log.say(line)
    padded = self.loader.padded(0)[0]
    share = padded / (padded + self.loader.tokens(0)[0])
    log.say(
      f'{self.total_steps} steps of up to {self.spec.batch_size} examples, laid out in '
      f'{micros} x {rows} {self.config.train.layout} rows of {length} tokens '
      f'({share:.0%} padding in the first)'
    )
    for sentence in self.program.not_cut():
      log.say(f'sharding     {sentence}')

  def _snapshot(
    self,
    base: Tree | None,
    checkpoints: Checkpoints,
    run_log: log.RunLog,
    state: TrainState,
    step: int,
    epoch: float,
  ) -> None:
    """Evaluates, measures the weight change and keeps the weights; the same if done again."""
    began = time.monotonic()
    subject = self.program.subject(base, state.trained)
    scores = self.scoring.run(subject, step, checkpoints.reject)
    before = self.workdir.rows()[0]
    scores |= {name: value for name, value in before.items() if name.startswith(_BASE_ONLY)}
    self._put_row(step, epoch, scores)
    change = self.program.layer_delta(base, state.trained)
    record = {'run-id': self.run_id, 'step': step, 'epoch': epoch, 'modules': change}
    self.workdir.put_layers(record)
    ranked = [scores[name] for name in _BEST_BY if name in scores]
    checkpoints.save_weights(step, state.trained, score=ranked[0] if ranked else None)
    numbers = {
      f'eval/{name}': float(v) for name, v in scores.items() if isinstance(v, (int, float))
    }
    for layer, value in enumerate(change['all']['relative']):
      numbers[f'layer-change/{layer:02d}'] = value
    run_log.write(step, numbers | {'eval/seconds': time.monotonic() - began})

  def _put_row(self, step: int, epoch: float, scores: core.Scores) -> None:
    count = lambda per_step: int(sum(per_step(index)[0] for index in range(step)))
    counts = {
      'train-tokens': count(self.loader.tokens),
      'supervised-tokens': count(self.loader.supervised),
    }
    row = results.make_row(
      self.spec,
      run_id=self.run_id,
      step=step,
      epoch=epoch,
      data_size=len(self.data.train),
      names=(self.model.name, self.data.name),
      scores=scores,
      counts=counts,
    )
    self.workdir.put_row(row)

  def export_path(self) -> epath.Path:
    """Where `config.export` puts weights."""
    return self.workdir.path / 'export' / self.config.export.format

  def export_kept(self) -> str:
    """Exports from what is kept in the workdir; returns the directory.

    Raises:
      UserError: no weights are kept.
    """
    nothing = UserError(
      'no weights are kept here',
      str(self.workdir.path),
      'run it first, in a new --workdir, with config.checkpoint.keep_weights=last or best',
    )
    if not self.workdir.claimed():
      raise nothing
    with contextlib.closing(self.checkpoints(read_only=True)) as checkpoints:
      if not checkpoints.weights_steps():
        raise nothing
      return self.export(checkpoints, None)

  def export(self, checkpoints: Checkpoints, last: Tree | None) -> str:
    """Writes the chosen snapshot's weights below `export/`; returns the directory.

    Args:
      checkpoints: Where weights are kept.
      last: The weights after the last step, if at hand.
    """
    config, kept = self.config.export, checkpoints.weights_steps()
    step = self.total_steps if last is not None else kept[-1]
    if config.snapshot == 'best':
      best = checkpoints.best_step()
      if best is None:
        log.warn(
          f'no snapshot that is kept has a finite perplexity: the last, step {step}, is taken'
        )
      step = best or step
    if last is not None and step == self.total_steps:
      weights = last
    else:
      weights = checkpoints.restore_weights(step, self.program.abstract_weights())
    out, spec = os.fspath(self.export_path()), self.spec
    data = spec.data_path or datasets.DATASETS[spec.data_name]['path']
    self.program.export(
      out,
      weights,
      format=config.format,
      dtype=config.dtype,
      card=summary.card(self.model.name, self.data.name, data, self.workdir.rows(), spec, step),
      stop_ids=self.writer.stop_ids,
    )
    log.say(f'exported step {step} to {out}')
    return out

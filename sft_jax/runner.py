"""One run from its config to its rows: data, model, training, snapshots, evaluation, export.

A study calls this for each of its cohorts; it knows nothing of studies.
"""

import contextlib
import functools
import os
import time
from typing import Any

import jax

from sft_jax import inputs, results, summary
from sft_jax import spec as spec_lib
from sft_jax.data.loader import Loader, Prefetch
from sft_jax.data.sampler import Sampler
from sft_jax.evals import core, score
from sft_jax.models import source
from sft_jax.parallel import mesh as mesh_lib
from sft_jax.program import Program, by_backend
from sft_jax.train import loop, precision
from sft_jax.train.checkpoint import Checkpoints
from sft_jax.train.state import TrainState
from sft_jax.utils import log
from sft_jax.utils.errors import Interrupted, UserError
from sft_jax.workdir import Workdir

Tree = dict[str, Any]

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
    job = Run(config, workdir, stop)
    if job.workdir.finished():
      log.say(f'{workdir}: already done, nothing to do')
    else:
      job.train()
    for line in summary.lines(job.workdir, job.headline(), _command(job, workdir)):
      log.say(line)
    return job.workdir.rows()


def export(config: Any, workdir: str) -> str:
  """Writes weights kept in a workdir as `config.export` says; returns the directory.

  Raises:
    UserError: no format given, or no weights kept.
  """
  job = Run(config, workdir, loop.StopSignal())
  if config.export.format == 'none':
    raise UserError('no format given', 'config.export.format', 'use hf or peft')
  nothing = UserError('no weights are kept here', workdir, 'run it first; see config.checkpoint')
  if not job.workdir.claimed():
    raise nothing
  checkpoints = job.checkpoints()
  if not checkpoints.weights_steps():
    raise nothing
  out = job.export(checkpoints, None)
  checkpoints.close()
  return out


class Run:
  """A run whose input has been read and found good. Making one writes nothing."""

  def __init__(self, config: Any, workdir: str, stop: loop.StopSignal):
    self.config, self.stop = config, stop
    mesh_lib.init_distributed()
    mesh_lib.check_accelerator(config.mesh.allow_idle)
    _use_compilation_cache(config.cache_dir)
    spec = self.spec = spec_lib.from_config(config, jax.default_backend())
    spec_lib.check_settings(config)
    precision.check_precision(
      spec.param_dtype, spec.rounding, allow_lost_updates=config.train.allow_lost_updates
    )
    self.task_names = core.task_names(config.eval.tasks)
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
    self.tasks = self._make_tasks()

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

  def _make_tasks(self) -> list[core.Task]:
    budget, limit = self.config.eval.tokens_per_batch, self.config.eval.limit
    tasks: list[core.Task] = []
    if 'perplexity' in self.task_names and self.data.heldout:
      tasks.append(core.Perplexity(self.data.heldout[: limit or None], 'heldout', budget))
    if 'builtin' in self.task_names:
      tasks.append(core.BuiltinShort(self.writer, limit))
    return tasks

  def headline(self) -> list[str]:
    """Columns worth showing first."""
    return [column for task in self.tasks for column in task.headline]

  def checkpoints(self) -> Checkpoints:
    """The checkpoints of this workdir."""
    config = self.config.checkpoint
    return Checkpoints(
      self.workdir.path,
      self.run_id,
      keep=config.keep_states,
      weights=config.keep_weights,
      save_every_steps=config.every_steps,
      save_every_seconds=config.every_seconds,
    )

  def train(self) -> None:
    """Trains from the latest checkpoint, or from the base, to the end."""
    self.workdir.claim(self.config, self.spec, self.contents, self.run_id)
    self._introduce()
    base, state = self.program.start(self.total_steps)
    checkpoints = self.checkpoints()
    start = 0
    if checkpoints.latest() is not None:
      abstract = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
      )
      del state
      start, state = checkpoints.restore(abstract)
      log.say(f'resuming after step {start} of {self.total_steps}')
    if not any(row['step'] == 0 for row in self.workdir.rows()):
      self._base_row(base, state)
    step = self.program.make_step(state)
    first = jax.process_index() == 0
    progress = log.Progress(self.total_steps, done=start, quiet=not first)
    run_log = log.RunLog(self.workdir.path, quiet=not first)
    prefetch = Prefetch(self._place, self.total_steps)
    try:
      state = loop.train(
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
        flops_per_token=self.program.flops_per_token(self.loader),
      )
    except BaseException:
      with contextlib.suppress(Exception):  # What came first is what is told.
        checkpoints.close()
      raise
    finally:
      prefetch.close()
      progress.close()
      run_log.close()
    if self.config.export.format != 'none':
      self.export(checkpoints, state.trained)
    self.workdir.finish(self.total_steps)
    checkpoints.close()

  def _place(self, index: int) -> dict[str, Any]:
    return self.loader.put(self.loader.batch(index), self.program.mesh)

  def _introduce(self) -> None:
    """Says what is about to happen, and writes the audit."""
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
    self.workdir.put_json('audit.json', self.data.audit.as_json())

  def _evaluate(self, subject: score.Subject, step: int, tasks: list[core.Task]) -> core.Scores:
    """Scores of all tasks; per-item records and sample answers go to files."""
    scores: core.Scores = {}
    for task in tasks:
      if self.stop.requested:
        raise Interrupted(f'{self.stop.reason}, during an evaluation; start again to go on')
      columns, items = core.evaluate(task, subject)
      scores |= columns
      for name, records in items.items():
        self.workdir.put_items(step, name.removesuffix('-items'), records)
    shown = [r for r in self.data.heldout_records if len(r.messages) == 2]
    if shown := shown[: self.config.eval.samples]:
      self.workdir.put_items(step, 'samples', self.writer.samples(subject, shown))
    return scores

  def _base_row(self, base: Tree | None, state: TrainState) -> None:
    log.say('evaluating the base')
    tasks = list(self.tasks)
    if 'perplexity' in self.task_names and (limit := self.config.eval.train_limit):
      tasks.append(
        core.Perplexity(self.data.train[:limit], 'train', self.config.eval.tokens_per_batch)
      )
    weights = state.trained if base is None else None
    self._put_row(0, 0.0, self._evaluate(self.program.subject(base, weights), 0, tasks))

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
    scores = self._evaluate(self.program.subject(base, state.trained), step, self.tasks)
    before = self.workdir.rows()[0]
    scores |= {name: value for name, value in before.items() if name.startswith(_BASE_ONLY)}
    self._put_row(step, epoch, scores)
    change = self.program.layer_delta(base, state.trained)
    record = {'run-id': self.run_id, 'step': step, 'epoch': epoch, 'modules': change}
    self.workdir.put_layers(record)
    ranked = [scores[name] for name in _BEST_BY if name in scores]
    checkpoints.save_weights(step, state.trained, score=ranked[0] if ranked else None)
    numbers = {f'eval/{name}': float(v) for name, v in scores.items() if v is not None}
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

  def export(self, checkpoints: Checkpoints, last: Tree | None) -> str:
    """Writes the chosen snapshot's weights below `export/`; returns the directory.

    Args:
      checkpoints: Where weights are kept.
      last: The weights after the last step, if at hand.
    """
    config, kept = self.config.export, checkpoints.weights_steps()
    best = checkpoints.best_step() if config.snapshot == 'best' else None
    step = best or (kept[-1] if last is None else self.total_steps)
    if last is not None and step == self.total_steps:
      weights = last
    else:
      weights = checkpoints.restore_weights(step, self.program.abstract_weights())
    out = os.fspath(self.workdir.path / 'export' / config.format)
    self.program.export(
      out,
      weights,
      format=config.format,
      dtype=config.dtype,
      card=summary.card(self.model.name, self.data.name, self.workdir.rows(), self.spec, step),
      stop_ids=self.writer.stop_ids,
    )
    log.say(f'exported step {step} to {out}')
    return out


def _use_compilation_cache(cache_dir: str) -> None:
  """Compiled programs are kept across runs, unless the environment says where or not."""
  if 'JAX_COMPILATION_CACHE_DIR' not in os.environ:
    directory = source.cache_root(cache_dir) / 'compiled'
    jax.config.update('jax_compilation_cache_dir', os.fspath(directory))
    jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.5)


def _command(job: Run, workdir: str) -> dict[str, str]:
  """What the summary's advice refers to."""
  return {'workdir': workdir, 'format': job.config.export.format, 'method': job.spec.method}

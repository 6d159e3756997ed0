"""One run by itself: what it starts from, what it asks, its rows and its export.

Not for training it, alone or among others (`driver.py`), or for what a config asks to be done
(`runner.py`).
"""

import contextlib
import functools
import os
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from sft_jax import results
from sft_jax import spec as spec_lib
from sft_jax.data import datasets
from sft_jax.data import loader as loader_lib
from sft_jax.data.sampler import Sampler
from sft_jax.evals import core
from sft_jax.evals.model import Subject
from sft_jax.execution import delta_export, scoring, selected, summary
from sft_jax.execution.cohort import Cohort, size_of
from sft_jax.execution.program import Program, tokens_per_micro
from sft_jax.execution.session import Session
from sft_jax.execution.workdir import Workdir
from sft_jax.models import export as export_lib
from sft_jax.models import source
from sft_jax.parallel import compile as compile_lib
from sft_jax.parallel import mesh as mesh_lib
from sft_jax.train import loop, precision
from sft_jax.train.checkpoint import Checkpoints
from sft_jax.utils import log, profile
from sft_jax.utils.errors import UserError

Tree = dict[str, Any]

# Measured once, on the base, and repeated in every row: what predicts before training.
_BASE_ONLY = (
  'ppl-train',
  'ppl-doc-train',
  'ppl-doc-median-train',
  'bits-per-byte-train',
  'train-n',
)


class Run:
  """A run whose input has been read and found good. Making one writes nothing into its workdir.

  Attributes:
    config, spec, workdir, run_id, contents: Who it is, and where its files lie.
    model, data, program, scoring, writer: What it works with.
    sampler, total_steps, snapshots: Its steps; {step: epoch} of its snapshots.
    session: What it shares with other runs of the process.
  """

  def __init__(
    self, config: Any, workdir: str, stop: loop.StopSignal, session: Session | None = None
  ):
    """Reads and checks.

    Args:
      config: What to do.
      workdir: Where it is done.
      stop: Looked at by evaluations.
      session: None for a run by itself.

    Raises:
      UserError: bad input.
    """
    self.config = config
    self.session = session = session or Session(shared=False)
    mesh_lib.init_distributed(config.mesh.wait_seconds)
    mesh_lib.check_accelerator(config.mesh.allow_idle)
    compile_lib.keep_programs(source.cache_root(config.cache_dir) / 'compiled')
    spec = self.spec = spec_lib.from_config(config, jax.default_backend())
    spec_lib.check_settings(config)
    precision.check_precision(
      spec.param_dtype, spec.rounding, allow_lost_updates=config.train.allow_lost_updates
    )
    core.task_names(config.eval.tasks), profile.steps(config.profile)  # refuse bad ones now
    mesh = mesh_lib.make_mesh(config.mesh.data, config.mesh.fsdp, config.mesh.tensor)
    self.workdir = Workdir(workdir)
    self.model = session.model(
      spec.base, config.cache_dir, spec.max_length, config.model.name, mesh
    )
    self.program = Program(spec, config.train, self.model, mesh, session.bases)
    self.program.modules(), self.program.band()  # refuse bad ones now
    bench = [path.strip() for path in config.data.bench_files.split(',') if path.strip()]
    self.data = session.data(spec, self.model, bench, config.data.dir)
    self.contents = session.contents(self.model, self.data, spec.template)
    self._selected: dict[str, Any] = {}
    if spec.data_select:
      self._select()
    self.run_id = spec_lib.run_id(spec, self.contents)
    self.workdir.check(spec, self.run_id)
    self.sampler = Sampler(len(self.data.train), spec.batch_size, spec.epochs, spec.seed_data)
    loader_lib.check_row_length(config.train.row_length, max(map(len, self.data.train)))
    self.total_steps = self.sampler.total_steps
    self.snapshots = spec_lib.snapshot_steps(
      config.train.snapshot_at, self.sampler.steps_per_epoch, self.total_steps
    )
    self.writer = core.Writer(self.model.tokenizer, spec.template, config.eval.max_new_tokens)
    self.scoring = scoring.Scoring(
      config.eval,
      self.data,
      self.writer,
      self.model.cfg.longest_text,
      self.workdir,
      stop,
      session if session.shared else None,
      source.cache_root(config.cache_dir) / 'tokenised',
    )
    if config.export.format != 'none' and config.export.snapshot == 'best':
      self._refuse_no_best()

  def _refuse_no_best(self) -> None:
    if not self.scoring.ranks or self.config.checkpoint.keep_weights not in ('best', 'all'):
      raise UserError(
        'no best snapshot will be known and kept',
        'config.export.snapshot',
        'use config.checkpoint.keep_weights=best, perplexity in config.eval.tasks and held-out '
        'records (config.data.heldout_share), or export the last',
      )

  def _select(self) -> None:
    """Leaves in the data what `config.data.select` takes."""
    program = self.program

    def base() -> Subject:
      params = program.bases.frozen(program.model, program.mesh, program.dtype, self.spec.quantize)
      return program.subject(params, None)

    prepared = self.session.prepared_dir
    self.data, self._selected = selected.select(
      self.data,
      self.spec,
      self.contents,
      base,
      Path(prepared or source.cache_root(self.config.cache_dir)) / 'perplexity',
      self.config.eval.tokens_per_batch,
    )
    self.contents = self.session.contents(self.model, self.data, self.spec.template)

  @functools.cached_property
  def loader(self) -> loader_lib.Loader:
    """Its batches where it is trained by itself."""
    return make_loader([self], 1, self.session.shared)

  def alone(self) -> Cohort:
    """The cohort of this run by itself."""
    size = size_of([self.program], self.session.shared)
    return Cohort([self.program], [self.total_steps], size)

  def checkpoints(self, read_only: bool = False) -> Checkpoints:
    """The checkpoints of its workdir."""
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

  def claim(self) -> None:
    """Writes who it is into its workdir, which belongs to it from here on."""
    provenance = self.session.provenance()
    self.workdir.claim(self.config, self.spec, self.contents, self.run_id, provenance)
    self.workdir.put_json('audit.json', self.data.audit.as_json())
    if self._selected:
      self.workdir.put_json('selection.json', self._selected)

  def sources(self, index: int) -> list[str]:
    """Where the examples of the step with this index came from."""
    return [self.data.train[i].source for i in self.sampler.indices(index)]

  @functools.cached_property
  def _counts(self) -> np.ndarray:
    """int64 `[steps + 1, 2]`: tokens and supervised tokens seen after so many steps."""
    sizes = np.array([(len(e), int((e.loss_weight > 0).sum())) for e in self.data.train], np.int64)
    steps = [sizes[self.sampler.indices(i)].sum(axis=0) for i in range(self.total_steps)]
    return np.cumsum([np.zeros(2, np.int64), *steps], axis=0)

  def put_row(self, step: int, scores: core.Scores) -> None:
    """Writes the row of a snapshot; of the base at step 0."""
    tokens, supervised = self._counts[step]
    row = results.make_row(
      self.spec,
      run_id=self.run_id,
      step=step,
      epoch=self.snapshots[step] if step else 0.0,
      data_size=len(self.data.train),
      names=(self.model.name, self.data.name),
      scores=scores,
      counts={'train-tokens': int(tokens), 'supervised-tokens': int(supervised)},
    )
    self.workdir.put_row(row)

  def with_base(self, scores: core.Scores) -> core.Scores:
    """Scores of a snapshot with those of the base that every row repeats."""
    before = self.workdir.rows()[0]
    return scores | {name: value for name, value in before.items() if name.startswith(_BASE_ONLY)}

  def export_path(self) -> epath.Path:
    """Where `config.export` puts weights."""
    step = f'-{self.config.export.step}' if self.config.export.step else ''
    return self.workdir.path / 'export' / f'{self.config.export.format}{step}'

  def export_kept(self, out: str = '') -> str:
    """Exports from what is kept in the workdir; returns the directory.

    Args:
      out: Where to; '' is below the workdir.

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
      return self.export(checkpoints, None, out)

  def export(self, checkpoints: Checkpoints, last: Tree | None, out: str = '') -> str:
    """Writes the chosen snapshot's weights; returns the directory.

    Args:
      checkpoints: Where weights are kept.
      last: The weights after the last step, if at hand.
      out: Where to; '' is below `export/` of the workdir.

    Raises:
      UserError: a step that is not kept, or a directory that is no earlier export.
    """
    config, kept = self.config.export, checkpoints.weights_steps()
    out, spec = out or os.fspath(self.export_path()), self.spec
    # Before weights are read; here a delta's directory too, and the base's is known.
    export_lib.check_place(out, self.model.checkpoint.files)
    step = self.total_steps if last is not None else kept[-1]
    if config.step:
      step = config.step
      if step not in kept and not (last is not None and step == self.total_steps):
        raise UserError(
          f'no weights of step {step} are kept in {self.workdir.path}',
          'config.export.step',
          f'kept are {", ".join(map(str, kept)) or "none"} (config.checkpoint.keep_weights)',
        )
    elif config.snapshot == 'best':
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
    data = datasets.source(spec.data_name, spec.data_path)
    card = summary.card(self.model.name, self.data.name, data, self.workdir.rows(), spec, step)

    def write(directory: str, kind: str) -> None:
      self.program.export(
        directory,
        weights,
        format=kind,
        dtype=config.dtype,
        card=card,
        stop_ids=self.writer.stop_ids,
      )

    if config.format == 'delta':
      delta_export.write(out, lambda directory: write(directory, 'hf'), self._delta_base)
    else:
      write(out, config.format)
    log.say(f'exported step {step} to {out}')
    return out

  def _delta_base(self) -> Any:
    """What a delta of this run is a difference from."""
    return delta_export.base_of(
      self.model.checkpoint,
      self.model.cfg,
      lambda: self.program.load_base(jnp.float32),
      source.cache_root(self.config.cache_dir),
      self.config.export.dtype,
    )


def make_loader(
  runs: list[Run | None],
  slots: int,
  few_shapes: bool,
  shape: tuple[int, int, int, int] | None = None,
) -> loader_lib.Loader:
  """Batches of runs that are trained as one program, in so many slots.

  Args:
    runs: None where nothing is to be trained any more.
    slots: At least as many as runs.
    few_shapes: See `Loader`.
    shape: That of a loader made before, of these runs and others.
  """
  first = next(run for run in runs if run is not None)
  train, shards = first.config.train, first.program.shards
  given = [None if run is None else (run.data.train, run.sampler) for run in runs]
  return loader_lib.Loader(
    [*given, *[None] * (slots - len(given))],
    layout=train.layout,
    row_length=train.row_length,
    rows_per_micro=train.rows_per_micro,
    # Runs side by side share the memory of one.
    tokens_per_micro=0 if train.rows_per_micro else tokens_per_micro() * shards,
    row_shards=shards,
    few_shapes=few_shapes,
    shape=shape,
  )

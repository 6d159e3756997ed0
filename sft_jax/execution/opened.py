"""Models that a config names, opened to be asked: a base, a base with an adapter, a run's snapshot.

Not for data or training (`job.py`), nor for models that somebody else serves (`evals/served.py`).
"""

import dataclasses
import os
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from sft_jax import config_file
from sft_jax import spec as spec_lib
from sft_jax.evals import model as eval_model
from sft_jax.execution import inputs
from sft_jax.execution.program import Program
from sft_jax.execution.workdir import Workdir
from sft_jax.models import peft, source
from sft_jax.models import quantize as quantize_lib
from sft_jax.parallel import compile as compile_lib
from sft_jax.parallel import mesh as mesh_lib
from sft_jax.train import precision
from sft_jax.train.checkpoint import Checkpoints
from sft_jax.utils import io
from sft_jax.utils.errors import UserError

_RUN = re.compile(r'run:(.+?)(?:@(\w+))?')


@dataclasses.dataclass(frozen=True)
class Opened:
  """A model whose parts were found to fit; nothing but their headers has been read.

  Attributes:
    name: What it is called.
    digest: Of a base (and its adapter): hash of their contents. Of a run: its identity.
    spec: Factors; of a base those of its config.
    model: Files, sizes, tokenizer.
    load: Reads the weights onto the devices.
    step: Steps of the run at this snapshot; 0 for what is no run.
  """

  name: str
  digest: str
  spec: spec_lib.RunSpec
  model: inputs.Model
  load: Callable[[], eval_model.Subject]
  step: int = 0


def split_run(path: str) -> tuple[str, str] | None:
  """(workdir, step or '') of `run:WORKDIR[@STEP]`; None for any other path."""
  found = _RUN.fullmatch(path)
  return (found[1], found[2] or '') if found else None


def open_model(config: Any) -> Opened:
  """What `config.model` names, a run's snapshot among it.

  Raises:
    UserError: nothing usable there, or parts that do not fit.
  """
  run = split_run(config.model.path)
  return of_run(config, *run) if run else of_base(config)


def of_base(config: Any) -> Opened:
  """A model by itself, with the adapter in `config.model.adapter` or without."""
  _use_devices(config)
  mesh = mesh_lib.make_mesh(config.mesh.data, config.mesh.fsdp, config.mesh.tensor)
  spec = spec_lib.from_config(_with_data(config), jax.default_backend())
  # Without data nothing is as long as config.train.max_length.
  longest = spec.max_length if config.data.name or config.data.path else 1
  model = inputs.load_model(spec.base, config.cache_dir, longest).cut_over(mesh)
  name, digest = config.model.name or model.name, model.checkpoint.fingerprint()[:12]
  if config.model.adapter:
    name = f'{name}+{os.path.basename(os.path.abspath(config.model.adapter))}'
    # Opened now, so that a bad one is refused before other work.
    imported = peft.import_peft(config.model.adapter, model.cfg)
    # Its config too: the same factors at another scale are another model.
    files = (os.path.join(config.model.adapter, name) for name in (peft.WEIGHTS, peft.CONFIG))
    digest += ''.join(io.sha256_file(file)[:12] for file in files)
  else:
    imported = None

  def load() -> eval_model.Subject:
    dtype = precision.DTYPES[spec.compute_dtype]
    base = quantize_lib.load_params(model.checkpoint, model.cfg, mesh, dtype, spec.quantize)
    adapter = scale = None
    if imported is not None:
      adapter = jax.tree.map(jnp.asarray, imported.adapter)
      scale = jnp.full(model.cfg.num_layers, imported.scale, jnp.float32)
    return eval_model.single(model.cfg, base, dtype, mesh, adapter, scale)

  return Opened(name, digest, spec, model, load)


def of_run(config: Any, directory: str, step: str = '') -> Opened:
  """A snapshot that a run has kept; neither its data nor its rows are needed.

  Args:
    config: Devices and caches; all else is the run's own.
    directory: Its workdir.
    step: A number, 'best', or 'last' (also '').

  Raises:
    UserError: no run, nothing kept, or a base that is not the one it was trained from.
  """
  held = config_of(directory)
  its = ConfigDict(held['config'])
  its.mesh, its.cache_dir = config.mesh, config.cache_dir
  _use_devices(config)
  mesh = mesh_lib.make_mesh(config.mesh.data, config.mesh.fsdp, config.mesh.tensor)
  spec = spec_lib.from_config(its, jax.default_backend())
  model = inputs.load_model(spec.base, config.cache_dir, spec.max_length, its.model.name)
  model = model.cut_over(mesh)
  if held['contents']['base'] != model.checkpoint.fingerprint()[:16]:
    raise UserError(
      'the base is not the one this run was trained from',
      f'{directory}: {spec.base}',
      'bring that version back, or open what the run has exported',
    )
  program = Program(spec, its.train, model, mesh)
  # Opened and closed before the weights are read, so that a wrong step is refused at once.
  number = _with_kept(directory, held['run-id'], lambda kept: choose_step(kept, step, directory))

  def load() -> eval_model.Subject:
    read = lambda kept: kept.restore_weights(number, program.abstract_weights())
    weights = _with_kept(directory, held['run-id'], read)
    base = program.load_base(program.dtype, spec.quantize) if program.is_lora else None
    return program.subject(base, weights)

  name = f'{os.path.basename(os.path.abspath(directory))}@{number}'
  return Opened(name, held['run-id'], spec, model, load, number)


def config_of(directory: str) -> dict[str, Any]:
  """`config.json` of a run's workdir, with keys that came later at their defaults.

  Raises:
    UserError: it is not the workdir of a run.
  """
  if not Workdir(directory).claimed():
    raise UserError('no run has begun here', directory, 'name the workdir of a run')
  held = io.read_json(os.path.join(directory, 'config.json'))
  if not isinstance(held, dict) or not {'config', 'run-id', 'contents'} <= held.keys():
    raise UserError('not a run', directory, 'name the workdir of a run')
  return held | {'config': config_file.completed(held['config']).to_dict()}


def choose_step(kept: Checkpoints, step: str, directory: str) -> int:
  """The kept step that is meant: a number, 'best' (the last where none is known), or the last.

  Raises:
    UserError: nothing is kept, or `step` names none.
  """
  steps = kept.weights_steps()
  if not steps:
    raise UserError('no weights are kept here', directory, 'see config.checkpoint.keep_weights')
  if step not in ('', 'best', 'last') and not step.isdecimal():
    raise UserError(f'{step!r} is no step', 'config.model.path', 'write run:DIR@best or @120')
  if step.isdecimal() and int(step) not in steps:
    raise UserError(
      f'no weights of step {step}',
      directory,
      f'kept are {", ".join(map(str, steps))}; see config.checkpoint.keep_weights',
    )
  best = kept.best_step() if step == 'best' else None
  return int(step) if step.isdecimal() else best or steps[-1]


def without_adapter(subject: eval_model.Subject) -> eval_model.Subject | None:
  """The frozen base that an adapter stands on, without reading it again; None if there is none."""
  if subject.params['adapter'] is None:
    return None
  params = {'base': subject.params['base'], 'adapter': None, 'scale': None}
  return dataclasses.replace(subject, params=params)


def _with_kept(directory: str, run_id: str, call: Callable[[Checkpoints], Any]) -> Any:
  checkpoints = Checkpoints(directory, run_id, read_only=True)
  try:
    return call(checkpoints)
  finally:
    checkpoints.close()


def _use_devices(config: Any) -> None:
  mesh_lib.init_distributed(config.mesh.wait_seconds)
  mesh_lib.check_accelerator(config.mesh.allow_idle)
  compile_lib.keep_programs(source.cache_root(config.cache_dir) / 'compiled')


def _with_data(config: Any) -> Any:
  """The config with some name of data where there is none: factors are checked together."""
  config = ConfigDict(config.to_dict())
  if not config.data.name and not config.data.path:
    config.data.name = 'builtin'
  # A base in integers is refused where it would be trained.
  config.train.method = 'lora' if config.model.quantize != 'none' else config.train.method
  return config

"""`--mode=eval`: scores of one model, in a workdir of their own.

The model is whatever `config.model.path` names, with the PEFT adapter in `config.model.adapter` or
without; as `run:DIR[@STEP]`, a snapshot that a run has kept; or, as `endpoint:MODEL@URL`, one that
somebody serves. Tasks are those of a run's snapshots, in the same columns. Not for training
(`runner.py`).
"""

import dataclasses
import hashlib
import os
from typing import Any

import jax
from ml_collections import ConfigDict

from sft_jax import results
from sft_jax import spec as spec_lib
from sft_jax.evals import chats, core, served, stats
from sft_jax.evals import model as eval_model
from sft_jax.evals.endpoint import Endpoint
from sft_jax.execution import delta_export, graft, inputs, opened, runner, scoring
from sft_jax.execution.session import Session
from sft_jax.execution.workdir import Workdir
from sft_jax.models import source
from sft_jax.train import loop, precision
from sft_jax.utils import io, log, peers, tables
from sft_jax.utils.errors import Interrupted, UserError

_ANY = 2**30
_MEMORY_HELP = 'use more devices (config.mesh.fsdp) or config.model.quantize=int8'


@dataclasses.dataclass(frozen=True)
class _Evaluated:
  """A model to score and what its row says of it."""

  subject: eval_model.Subject | served.Served
  writer: core.Writer
  data: inputs.Data | None
  row: results.Row
  change: graft.Change | None = None

  @property
  def window(self) -> int:
    """Longest text in tokens; of an endpoint it is the endpoint's affair."""
    subject = self.subject
    return _ANY if isinstance(subject, served.Served) else subject.model.max_length


def evaluate(config: Any, workdir: str) -> results.Row:
  """Scores a model on `config.eval.tasks` and writes one row; goes on where it was stopped.

  Raises:
    UserError: bad input; nothing was half-written.
    Interrupted: stopped; what was answered is kept.
  """
  with loop.StopSignal(config.max_seconds) as stop:
    with stop.at_once(), loop.explain_memory('loading the model', _MEMORY_HELP):
      if target := served.target(config.model.path, os.environ):
        # Before the first use of a device: who serves it may need those of this machine.
        jax.config.update('jax_platforms', 'cpu')
      place = Workdir(workdir)
      spec_lib.check_settings(config)
      core.task_names(config.eval.tasks)
      run = opened.split_run(config.model.path)
      if target:
        one = _served(config, target, place, stop)
      else:
        one = _snapshot(config, *run, stop) if run else _model(config)
      made = one.change.grafts(config.eval.graft) if one.change else []
      identity = _identity(config, one)
      _refuse_others(place, identity)
      cache = source.cache_root(config.cache_dir) / 'tokenised'
      tasks = scoring.Scoring(
        config.eval, one.data, one.writer, one.window, place, stop, cache=cache
      )
      if not tasks.tasks:
        raise UserError(
          'nothing to score', 'config.eval.tasks', 'name benchmarks, or give data for perplexity'
        )
      if isinstance(one.subject, served.Served):
        tasks.afford(one.subject)
    with place.taken():
      _refuse_others(place, identity)
      place.put_json('config.json', {'evaluated': identity, 'config': config.to_dict()})
      if made:
        return _score_grafts(config, one, made, place, stop, cache)
      scores = tasks.run(one.subject, 0, lambda step: None)
      # What other tasks have given before stays.
      before = next(iter(place.rows()), {})
      row = before | one.row | scores
      place.put_row(row)
  for name in tasks.headline:
    log.say(_line(row, name))
  log.say(f'rows.jsonl and samples/ are in {workdir}')
  return row


def _line(row: results.Row, name: str) -> str:
  """One score as people read it, with its standard error where there are items enough for one."""
  if name not in row:
    return f'{name:<32} not graded'
  out, error = f'{name:<32} {row[name]:.2f}', row.get(f'{name}-stderr')
  if not isinstance(error, float):
    return out
  # What counts the items may serve several columns: heldout-n those of ppl-heldout-response.
  parts = f'{name.removeprefix("ppl-")}-'
  counts = [key for key in row if key.endswith('-n') and parts.startswith(key[:-1])]
  items = row[max(counts, key=len)] if counts else stats.FEWEST
  return f'{out} (n={items}, too few for ±)' if items < stats.FEWEST else f'{out} ± {error:.2f}'


def _score_grafts(
  config: Any,
  one: _Evaluated,
  made: list[graft.Graft],
  place: Workdir,
  stop: loop.StopSignal,
  cache: Any,
) -> results.Row:
  """Scores each graft in a workdir of its own below `grafts/`, and writes `grafts.csv`."""
  if one.change is None:
    raise ValueError('nothing to graft')
  session, norms = Session(), one.change.norms()
  rows: dict[str, results.Row] = {}
  for which in made:
    own = Workdir(str(place.path / 'grafts' / which.name))
    asked = scoring.Scoring(
      config.eval, one.data, one.writer, one.window, own, stop, session, cache
    )
    scores = asked.run(one.change.subject(which), 0, lambda step: None)
    rows[which.name] = one.row | {'graft': which.name} | scores
    own.put_row(rows[which.name])
    told = ', '.join(f'{name} {scores[name]:.2f}' for name in asked.headline if name in scores)
    log.say(f'{which.name:<10} {told}')
  file = place.path / 'grafts.csv'
  sure = peers.from_first(graft.intervals(place.path / 'grafts', made) if peers.is_first() else {})
  table = graft.table(made, {name: row | sure.get(name, {}) for name, row in rows.items()}, norms)
  if peers.is_first():
    about = {'probe': 'grafts', 'format': graft.FORMAT, 'graft': config.eval.graft}
    tables.write_rows(file, table, about | {'layer-norms': norms.tolist()})
  log.say(f'what each band does by itself is in {file}')
  return {'grafts': os.fspath(file), 'rows': table}


def _identity(config: Any, one: _Evaluated) -> dict[str, Any]:
  """What all scores in one workdir share: the model, and how all tasks are asked."""
  names = ('run-id', 'step', 'compute-dtype', 'quantize')
  asked = {name: config.eval[name] for name in ('template', 'seed')}
  if config.eval.graft:
    asked |= {'graft': config.eval.graft, 'graft-base': config.eval.graft_base}
  return {name: one.row.get(name) for name in names} | asked


def _refuse_others(place: Workdir, identity: dict[str, Any]) -> None:
  """Raises UserError for the workdir of a run, or of another evaluation."""
  if not place.claimed():
    return
  held = io.read_json(place.path / 'config.json')
  evaluated = held.get('evaluated') if isinstance(held, dict) else None
  if evaluated == identity:
    return
  what = 'the workdir of a run'
  if evaluated:
    names = evaluated | identity
    pairs = ((name, evaluated.get(name), identity.get(name)) for name in names)
    differ = (f'{name} was {old!r}, is {new!r}' for name, old, new in pairs if old != new)
    what = f'this workdir holds another evaluation: {"; ".join(differ)}'
  raise UserError(what, str(place.path), 'choose another --workdir')


def _model(config: Any) -> _Evaluated:
  """What `config.model` names; a delta is restored first."""
  if file := delta_export.file_in(config.model.path):
    with delta_export.restored(file, config.eval.graft_base, config.cache_dir) as whole:
      own = ConfigDict(config.to_dict())
      own.model.path, own.model.name = str(whole), config.model.name or file.absolute().parent.name
      return _model(own)
  one = opened.of_base(config)
  spec, model = one.spec, one.model
  # Perplexity and the built-in questions are asked as a run would be; all else as eval.template.
  names, wanted = core.task_names(config.eval.tasks)
  others = bool(wanted) or any(name not in core.TASK_NAMES for name in names)
  asked = others and config.eval.template != 'train'
  if config.data.select:
    log.warn('config.data.select is of training: perplexity is of all the data')
  if config.data.name or config.data.path:
    data = inputs.load_data(spec, model.tokenizer, [], config.data.dir)
  else:
    data = inputs.no_data(model.tokenizer, spec.template)
  row = {
    'model_name': one.name,
    'data_name': 'pretrain',
    'run-id': one.digest,
    'step': 0,
    'template': config.eval.template if asked else spec.template,
    'compute-dtype': spec.compute_dtype,
    'quantize': spec.quantize,
  }
  writer = core.Writer(model.tokenizer, spec.template, config.eval.max_new_tokens)
  subject, change = one.load(), None
  if config.eval.graft:
    change = graft.Change(subject, _graft_base(config, one))
  return _Evaluated(subject, writer, data, row, change)


def _graft_base(config: Any, tuned: opened.Opened) -> Any:
  """Parameters that a whole model was trained from; None where none are named."""
  if not config.eval.graft_base:
    return None
  own = ConfigDict(config.to_dict())
  own.model.path, own.model.adapter = config.eval.graft_base, ''
  base = opened.of_base(own)
  if base.model.cfg != tuned.model.cfg or config.model.adapter:
    raise UserError(
      f'{tuned.name} is no whole model of the shape of {base.name}',
      'config.eval.graft_base',
      'name the base it was fine-tuned from; an adapter needs none',
    )
  return base.load().params['base']


def _served(config: Any, target: chats.Target, place: Workdir, stop: loop.StopSignal) -> _Evaluated:
  """A model behind an endpoint. Its answers are kept in the workdir, request by request."""
  served.require_writing(*core.task_names(config.eval.tasks))
  for key, wrong, how in (
    ('eval.template', config.eval.template not in ('chat', 'train'), 'use chat'),
    ('eval.budget_seconds', bool(config.eval.budget_seconds), 'use config.eval.limit'),
    ('eval.samples', bool(config.eval.samples), 'use 0'),
    ('eval.graft', bool(config.eval.graft), 'leave it out'),
    ('model.adapter', bool(config.model.adapter), 'let the endpoint serve it'),
    ('data', bool(config.data.name or config.data.path), 'leave config.data.name and .path empty'),
  ):
    if wrong:
      raise UserError('this has no meaning for an endpoint', f'config.{key}', how)

  def go_on() -> None:
    if len(answers) > held:
      stop.progress()
    if stop.requested:
      raise Interrupted(f'{stop.reason}, during an evaluation; start again to go on')

  budget = chats.parse_budget(config.eval.endpoint_budget, 'config.eval.endpoint_budget')
  answers = chats.Cache(place.path / 'answers-endpoint.jsonl')
  held = len(answers)
  endpoint = Endpoint(target, cache=answers, budget=budget, allow_empty=True, check=go_on)
  row = {
    'model_name': config.model.name or target.model,
    'data_name': 'pretrain',
    'run-id': hashlib.sha256(f'{target.model}@{target.url}'.encode()).hexdigest()[:12],
    'step': 0,
    'template': 'chat',
    'endpoint': target.url,
  }
  return _Evaluated(served.Served(endpoint), served.Writer(config.eval.max_new_tokens), None, row)


def _snapshot(config: Any, directory: str, step: str, stop: loop.StopSignal) -> _Evaluated:
  """Weights that the run in `directory` has kept: of a step, `best`, or the last."""
  its = ConfigDict(opened.config_of(directory)['config'])
  # What is asked, and on what devices, is ours to say; what the weights are is the run's.
  its.eval, its.mesh, its.cache_dir = config.eval, config.mesh, config.cache_dir
  its.export.format = 'none'
  job = runner.Run(its, directory, stop)
  checkpoints = job.checkpoints(read_only=True)
  number = opened.choose_step(checkpoints, step, directory)
  weights = checkpoints.restore_weights(number, job.program.abstract_weights())
  checkpoints.close()
  base = None
  if job.program.is_lora:
    base = job.program.load_base(job.program.dtype, job.spec.quantize)
  before = next((row for row in job.workdir.rows() if row['step'] == number), {})
  row = {name: value for name, value in before.items() if name in results.IDENTITY}
  factors = {spec_lib.FACTORS[f].column: value for f, value in job.spec.factors().items()}
  row = {**factors, **row, 'run-id': job.run_id, 'step': number}
  subject, change = job.program.subject(base, weights), None
  if config.eval.graft:
    # In the type training began from: a coarser one would graft its rounding.
    dtype = precision.DTYPES[job.spec.param_dtype]
    whole = None if job.program.is_lora else job.program.load_base(dtype)
    change = graft.Change(subject, whole)
  return _Evaluated(subject, job.writer, job.data, row, change)

"""`--mode=probe`: writes what the report of a study reads beside its scores.

Below `probes/` of the study: properties of its data under its bases and how alike they and the
benchmarks are; log-likelihoods and states of probe texts under its bases and its runs' snapshots.
What is there is not done again. Not for the probes themselves: `probed.py`, `evals/probes/`.
"""

import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from sft_jax import spec as spec_lib
from sft_jax.evals import core
from sft_jax.evals.files import HubFiles, LocalFiles
from sft_jax.evals.probes import hidden_states, loglik_vector, probe_texts
from sft_jax.execution import finished, opened, probed
from sft_jax.execution.finished import Finished
from sft_jax.train import loop
from sft_jax.train.checkpoint import Checkpoints
from sft_jax.utils import log, tables, words
from sft_jax.utils.errors import Interrupted, UserError

_MEMORY_HELP = 'set a smaller config.eval.tokens_per_batch, or use more devices (config.mesh.fsdp)'


def probe(config: Any, workdir: str) -> dict[str, Any]:
  """Probes a study's bases, data and models.

  Args:
    config: `config.probe`; the benchmarks of `config.eval` that probe texts are of; devices.
    workdir: The study's.

  Returns:
    {'bases', 'data', 'models': how many of each, 'files': tables that are there}.

  Raises:
    UserError: no study, none of its runs is finished, no probe texts; tables of other texts.
    Interrupted: stopped; what was written is kept.
  """
  spec_lib.check_settings(config)
  # Of these first: texts are perhaps fetched.
  runs = finished.runs(workdir, config.probe.only, 'config.probe.only')
  texts = _texts(config)
  bases = {run.held['contents']['base']: run for run in runs}
  data = {(run.held['contents']['base'], run.held['contents']['data']): run for run in runs}
  models = [
    f'run:{run.path}@{step}' for run in runs for step in _steps(run, config.probe.snapshots)
  ]
  counts = {'bases': len(bases), 'data': len(data), 'models': len(models)}
  told = words.count(len(models), 'model'), words.count(len(data), 'data set')
  log.say(f'{" and ".join(told)} to probe, with {words.count(len(texts), "text")}')
  files: list[str] = []
  with loop.StopSignal(config.max_seconds) as stop:
    steps = _steps_of_work(config, workdir, texts, bases, data, models)
    for number, step in enumerate(steps):
      if stop.requested:
        raise Interrupted(f'{stop.reason}, after {number} of {len(steps)}; start again to go on')
      with loop.explain_memory('probing', _MEMORY_HELP):
        files += step()
      stop.progress()
  log.say(f'the tables are in {os.path.join(workdir, "probes")}: see --mode=report')
  return {**counts, 'files': files}


def _steps_of_work(
  config: Any,
  workdir: str,
  texts: Sequence[loglik_vector.ProbeText],
  bases: dict[str, Finished],
  data: dict[tuple[str, str], Finished],
  models: Sequence[str],
) -> list[Callable[[], list[str]]]:
  """One call a table, in order: those of data need those of their base."""
  pooling, most = config.probe.states, config.probe.records
  questions: dict[str, dict[str, np.ndarray]] = {}

  def base(key: str, run: Finished) -> list[str]:
    own = _config_of(run, config)
    own.data.name = own.data.path = ''
    files = probed.probe_model(own, texts, workdir, pooling)
    questions[key] = _questions(own, texts, files)
    return files

  def data_set(key: str, run: Finished) -> list[str]:
    return [probed.probe_data(_config_of(run, config), workdir, most, questions[key])]

  def model(path: str) -> list[str]:
    own = ConfigDict(config.to_dict())
    own.model.path = path
    return probed.probe_model(own, texts, workdir, pooling)

  return [
    *(lambda k=key, r=run: base(k, r) for key, run in bases.items()),
    *(lambda k=key, r=run: data_set(k, r) for (key, _), run in data.items()),
    *(lambda p=path: model(p) for path in models),
  ]


def _config_of(run: Finished, config: Any) -> Any:
  """The run's model and data, on our devices."""
  own = ConfigDict(config.to_dict())
  for name in ('model', 'data', 'train', 'lora'):
    own[name] = ConfigDict(run.held['config'][name])
  return own


def _questions(
  config: Any, texts: Sequence[loglik_vector.ProbeText], files: Sequence[str]
) -> dict[str, np.ndarray]:
  """{task: mean states of its probe texts after the base's middle layer}."""
  tasks = np.array([text.task for text in texts])
  states = None
  for file in files:
    if os.path.basename(file).startswith('hidden_states'):
      arrays, about = tables.read_arrays(file)
      if about['pooling'] == 'mean':
        states = arrays['states']
  if states is None:
    one = opened.of_base(config)
    subject = one.load()
    encoded, _ = loglik_vector.encode(texts, one.model.tokenizer, subject.model.max_length)
    ids = [text.ids for text in encoded]
    states = hidden_states.hidden_states(subject, ids, 'mean', config.eval.tokens_per_batch)
  middle = states[len(states) // 2]
  return {str(task): middle[tasks == task] for task in dict.fromkeys(tasks)}


def _texts(config: Any) -> list[loglik_vector.ProbeText]:
  """Probe texts, the same whatever the machine.

  Raises:
    UserError: there are none, or too few of a task.
  """
  if config.probe.texts:
    found = probe_texts.read(config.probe.texts)
  else:
    _, wanted = core.task_names(config.eval.tasks)
    if not wanted:
      raise UserError(
        'no probe texts',
        'config.probe.texts, config.eval.tasks',
        'give a file, or benchmarks whose questions are taken, such as arc_easy:ll,piqa:ll',
      )
    files = LocalFiles(config.eval.data_dir) if config.eval.data_dir else HubFiles()
    found = probe_texts.of_benchmarks(wanted, files)
  return loglik_vector.choose(found, config.probe.each)


def _steps(run: Finished, snapshots: str) -> list[int]:
  """Steps whose weights the run has kept and whose rows are written; [] where none are kept."""
  checkpoints = Checkpoints(run.path, run.held['run-id'], read_only=True)
  try:
    kept = checkpoints.weights_steps()
  finally:
    checkpoints.close()
  scored = {row['step'] for row in run.rows}
  steps = [step for step in kept if step in scored]
  if not steps:
    log.warn(f'{run.path}: no weights are kept; see config.checkpoint.keep_weights')
  return steps if snapshots == 'all' else steps[-1:]

"""Probes of models and data for the report of a study, written where it looks for them.

What runs leave by themselves (layer changes, perplexities) needs none of this. What the tables are
for: `analysis/measured.py`. Of a whole study: `probe_mode.py`.
"""

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sft_jax.analysis import predictors
from sft_jax.evals.probes import dataset_properties, hidden_states, loglik_vector
from sft_jax.execution import inputs, opened
from sft_jax.utils import io, log, tables
from sft_jax.utils.errors import UserError

# Of a row, what a probe's table says of its model.
_FACTS = ('model_name', 'data_name', 'lora', 'epoch', 'data_size')
POOLINGS = (*hidden_states.POOLINGS, 'none')


def probe_model(
  config: Any, texts: Sequence[loglik_vector.ProbeText], study: str, pooling: str = 'mean'
) -> list[str]:
  """Log-likelihoods and states of probe texts under a base or a run's snapshot.

  What is there already, of the same texts, is left as it is.

  Args:
    config: `config.model` names the model, such as run:DIR@STEP.
    texts: The same for all models of a study; 1,000 and more are usual.
    study: The study's workdir; the tables go below its `probes/`.
    pooling: See `hidden_states.hidden_states`; 'none' for no states.

  Returns:
    The files.

  Raises:
    UserError: no such model, a run without the row of that snapshot, no texts; other texts than
      those of the tables that are there.
  """
  if not texts:
    raise UserError('no probe texts', how='give texts, such as questions of benchmarks')
  one = opened.open_model(config)
  about = _about(config, one) | {'texts': loglik_vector.digest(texts)}
  stem = f'{one.digest[:12]}-{one.step}'
  kinds = ('loglik_vector', 'hidden_states')[: 1 if pooling == 'none' else 2]
  files = {kind: os.path.join(study, 'probes', f'{kind}-{stem}.npz') for kind in kinds}
  held = {kind: _is_there(file, about['texts'], pooling) for kind, file in files.items()}
  if not all(held.values()):
    subject, tokens = one.load(), config.eval.tokens_per_batch
    tokenizer = one.model.tokenizer
    encoded, _ = loglik_vector.encode(texts, tokenizer, subject.model.max_length)
    os.makedirs(os.path.join(study, 'probes'), exist_ok=True)
    if not held['loglik_vector']:
      file = files['loglik_vector']
      loglik_vector.write(file, subject, tokenizer, texts, about, tokens_per_batch=tokens)
    if not held.get('hidden_states', True):
      ids = [text.ids for text in encoded]
      hidden_states.write(files['hidden_states'], subject, ids, about, pooling, tokens)
    log.say(f'{one.name}: {len(texts)} texts probed, {" and ".join(files.values())}')
  return list(files.values())


def _is_there(file: str, digest: str, pooling: str) -> bool:
  """Whether a table has been written, in the way that is now in use.

  Raises:
    UserError: it is of other texts.
  """
  if not os.path.exists(file):
    return False
  about = io.read_json(f'{file}.json')
  if about['probe'] == 'hidden_states' and about['format'] != hidden_states.FORMAT:
    return False
  same = {'texts': digest, 'pooling': pooling}
  if any(about[key] != same[key] for key in same if key in about):
    raise UserError(
      'probes of other texts are here', file, f'remove {os.path.dirname(file)}, or give those'
    )
  return True


def _about(config: Any, one: opened.Opened) -> dict[str, Any]:
  """What the model is, as in its row."""
  run = opened.split_run(config.model.path)
  if run is None:
    return {'model_name': one.name, 'data_name': 'pretrain', 'epoch': 0, 'run-id': one.digest}
  rows = io.read_jsonl(os.path.join(run[0], 'rows.jsonl'))
  row = next((row for row in rows if row.get('step') == one.step), None)
  if row is None:
    raise UserError(f'no row of step {one.step}', run[0], 'let the run finish its evaluation')
  return {name: row.get(name) for name in _FACTS} | {'run-id': one.digest}


def probe_data(
  config: Any, study: str, most: int = 0, questions: Mapping[str, np.ndarray] | None = None
) -> str:
  """Properties of the data in `config.data` under the base in `config.model`.

  A table that is there already, of as many examples, is left as it is.

  Args:
    config: Data, template and length as in the runs of the study.
    study: The study's workdir.
    most: Examples that count at most; 0 for all.
    questions: {benchmark: `[J, D]` mean states of its texts after the base's middle layer}; given
      these, how alike data and benchmarks are is written too, as a table of its own.

  Returns:
    The table of properties, of one row.

  Raises:
    UserError: no data, or a model that is no base.
  """
  if opened.split_run(config.model.path) or config.model.adapter:
    raise UserError('data are probed under a base', 'config.model', 'name the base')
  one = opened.of_base(config)
  data = inputs.load_data(one.spec, one.model.tokenizer, [], config.data.dir)
  records = [data.train_records[index] for index in data.records_of]
  count = min(most or len(records), len(records))
  stem = '-'.join((one.digest[:12], data.fingerprint))
  file, alike = (
    os.path.join(study, 'probes', f'{kind}-{stem}.csv')
    for kind in ('dataset_properties', 'similarity')
  )
  about = {'base': one.digest, 'data': data.fingerprint, 'examples': count}
  if _of_as_many(file, count) and (questions is None or _of_as_many(alike, count)):
    return file
  row, arrays = dataset_properties.dataset_properties(
    one.load(), records[:count], data.train[:count], config.eval.tokens_per_batch
  )
  names = {'model_name': one.name, 'data_name': data.name}
  os.makedirs(os.path.dirname(file), exist_ok=True)
  if questions is not None and 'states' in arrays:
    rows = [names | found for found in similarities(arrays['states'], questions)]
    tables.write_rows(
      alike, rows, about | {'probe': 'similarity', 'format': dataset_properties.FORMAT}
    )
  # Last: it is what tells that all is done.
  dataset_properties.write(file, [names | row], about)
  log.say(f'{data.name} under {one.name}: {count} examples, {file}')
  return file


def _of_as_many(file: str, count: int) -> bool:
  wanted = {'examples': count, 'format': dataset_properties.FORMAT}
  return os.path.exists(file) and wanted.items() <= io.read_json(f'{file}.json').items()


def similarities(states: np.ndarray, questions: Mapping[str, np.ndarray]) -> list[dict[str, Any]]:
  """How alike a data set and each benchmark are; see `predictors.similarity`.

  Nothing is taken off before: the mean over benchmarks would leave vectors that sum to nothing, so
  that the mean of similarities over benchmarks would tell no data sets apart.

  Args:
    states: `[N, D]`, of the data.
    questions: {benchmark: `[J, D]`}.
  """
  return [
    {'benchmark': name, 'texts': len(part)} | predictors.similarity(states, part)
    for name, part in questions.items()
  ]

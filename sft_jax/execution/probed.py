"""Probes of models and data for the report of a study, written where it looks for them.

What runs leave by themselves (layer changes, perplexities) needs none of this. What the tables are
for: `analysis/measured.py`.
"""

import os
from collections.abc import Sequence
from typing import Any

from sft_jax.evals.probes import dataset_properties, hidden_states, loglik_vector
from sft_jax.execution import inputs, opened
from sft_jax.utils import io, log
from sft_jax.utils.errors import UserError

# Of a row, what a probe's table says of its model.
_FACTS = ('model_name', 'data_name', 'lora', 'epoch', 'data_size')


def probe_model(
  config: Any, texts: Sequence[loglik_vector.ProbeText], study: str, pooling: str = 'mean'
) -> list[str]:
  """Log-likelihoods and states of probe texts under a base or a run's snapshot.

  Args:
    config: `config.model` names the model, such as run:DIR@STEP.
    texts: The same for all models of a study; 1,000 and more are usual.
    study: The study's workdir; the tables go below its `probes/`.
    pooling: See `hidden_states.hidden_states`.

  Returns:
    The two files.

  Raises:
    UserError: no such model, a run without the row of that snapshot, no texts.
  """
  if not texts:
    raise UserError('no probe texts', how='give texts, such as questions of benchmarks')
  one = opened.open_model(config)
  about = _about(config, one)
  subject, tokens = one.load(), config.eval.tokens_per_batch
  encoded, _ = loglik_vector.encode(texts, one.model.tokenizer, subject.model.max_length)
  stem = f'{one.digest[:12]}-{one.step}'
  files = [
    os.path.join(study, 'probes', f'{kind}-{stem}.npz')
    for kind in ('loglik_vector', 'hidden_states')
  ]
  os.makedirs(os.path.dirname(files[0]), exist_ok=True)
  loglik_vector.write(files[0], subject, one.model.tokenizer, texts, about, tokens_per_batch=tokens)
  hidden_states.write(files[1], subject, [text.ids for text in encoded], about, pooling, tokens)
  log.say(f'{one.name}: {len(texts)} texts probed, {" and ".join(files)}')
  return files


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


def probe_data(config: Any, study: str, most: int = 0) -> str:
  """Properties of the data in `config.data` under the base in `config.model`.

  Args:
    config: Data, template and length as in the runs of the study.
    study: The study's workdir.
    most: Examples that count at most; 0 for all.

  Returns:
    The table, of one row.

  Raises:
    UserError: no data, or a model that is no base.
  """
  if opened.split_run(config.model.path) or config.model.adapter:
    raise UserError('data are probed under a base', 'config.model', 'name the base')
  one = opened.of_base(config)
  data = inputs.load_data(one.spec, one.model.tokenizer, [], config.data.dir)
  records = [data.train_records[index] for index in data.records_of]
  most = most or len(records)
  row, _ = dataset_properties.dataset_properties(
    one.load(), records[:most], data.train[:most], config.eval.tokens_per_batch
  )
  names = {'model_name': one.name, 'data_name': data.name}
  stem = '-'.join((one.digest[:12], data.fingerprint))
  file = os.path.join(study, 'probes', f'dataset_properties-{stem}.csv')
  os.makedirs(os.path.dirname(file), exist_ok=True)
  dataset_properties.write(file, [names | row], {'base': one.digest, 'data': data.fingerprint})
  log.say(f'{data.name} under {one.name}: {min(most, len(records))} examples, {file}')
  return file

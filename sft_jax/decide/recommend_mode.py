"""`--mode=recommend`: what to expect of data sets before any training, and how sure that is.

From a table of other models' results, and, where `config.model.path` names the base, from what the
data look like to it. With `config.data.select` candidates are what it takes of each data set, and
are called as runs on that, NAME+SELECT. A prior for a race (`choose_mode.py`), not in its place.
"""

import dataclasses
import functools
import math
import os
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from sft_jax import spec as spec_lib
from sft_jax.analysis import recommend, table
from sft_jax.analysis.recommend import Expected
from sft_jax.data import readers
from sft_jax.decide import choose_data
from sft_jax.evals.model import Subject
from sft_jax.evals.probes import dataset_properties
from sft_jax.execution import inputs, opened, selected
from sft_jax.models import source as model_source
from sft_jax.utils import io, log, select, words
from sft_jax.utils.errors import UserError

if TYPE_CHECKING:
  import pandas as pd

_METHODS = {'full': False, 'lora': True, 'both': None}
# Columns of a table, and of data measured here, that are the same.
_PERPLEXITY, _OWN = 'ppl-train', 'ppl-data'
_SHOWN = ('ppl-data', 'ppl-data-response', 'tokens', 'hard-tokens', 'distinct-1')


def run(config: Any, workdir: str = '') -> dict[str, Any]:
  """Tells what to expect of each candidate, the best first; unknown ones last.

  Args:
    config: `config.recommend`; with `config.model.path` data are measured under that base.
    workdir: Where `recommend.json` is written; '' for nowhere.

  Returns:
    'candidates': {'data', 'from' (table, perplexity, or unknown), 'mean', 'low', 'high' (points
    over the mean data set of the table, 95 %), 'sd', 'models', 'properties'} each; 'reliability':
    what the same would have been worth for each model of the table, told from the others.

  Raises:
    UserError: bad input, a table that tells too little.
  """
  spec_lib.check_settings(config)
  asked = config.recommend
  if not asked.table:
    raise UserError('no table given', 'config.recommend.table', 'give a csv or parquet of results')
  frame = table.read(asked.table)
  targets = choose_data.split(asked.target, 'config.recommend.target')
  known = ', '.join(table.main(frame))
  if not targets or (wrong := [t for t in targets if t not in table.benchmarks(frame)]):
    what = f'the table has no scores of {wrong[0]}' if targets else 'no target given'
    raise UserError(what, 'config.recommend.target', f'name columns, such as {known}')
  data = choose_data.labelled(choose_data.split(asked.data, 'config.recommend.data'))
  known_data = {*frame['data_name'].astype(str)}
  for source in data.values():
    own_file = choose_data.kind(source) == 'path' and not source.startswith(('hf:', 'tfds:'))
    if own_file and source not in known_data:
      readers.require_file(source)
  part = select.canonical(config.data.select)
  names = [f'{name}+{part}' if part else name for name in data]
  try:
    scores = recommend.scores_of(frame, targets, _METHODS[asked.method])
  except table.Skip as e:
    raise UserError(f'the table {e}', asked.table) from e
  if asked.base and asked.base not in scores.index:
    log.warn(f'the table has no model {asked.base!r}: all of its models tell')
  found = recommend.recommend(scores, names, asked.base)
  properties = measured(config, data) if config.model.path and data else {}
  predicted = _predicted(frame, scores, properties, asked.base)
  candidates = sorted(
    (_row(one, predicted, properties) for one in found),
    key=lambda row: (row['from'] == 'unknown', -row['mean']),
  )
  value = {
    'table': asked.table,
    'targets': targets,
    'base': asked.base or config.model.path,
    'candidates': candidates,
    'reliability': reliability(scores),
  }
  for line in lines(value):
    log.say(line)
  if workdir:
    io.write_json_atomic(os.path.join(workdir, 'recommend.json'), value)
  return value


def _row(
  one: Expected, predicted: Mapping[str, Expected], properties: Mapping[str, Mapping[str, float]]
) -> dict[str, Any]:
  source = 'table' if one.known else 'unknown'
  if one.data in predicted and not one.known:
    one, source = predicted[one.data], 'perplexity'
  value = dataclasses.asdict(one)
  del value['known']
  return {**value, 'from': source, 'properties': dict(properties.get(one.data, {}))}


def measured(config: Any, data: Mapping[str, str]) -> dict[str, dict[str, float]]:
  """{candidate: properties under the base}, of those that can be read as data.

  `config.eval.train_limit` examples of each count, as of `ppl-train` in a table. With
  `config.data.select` they are told of all examples and of those that it takes.
  """
  model = opened.of_base(config)
  subject = functools.cache(model.load)
  out: dict[str, dict[str, float]] = {}
  most = config.eval.train_limit or None
  for name, source in data.items():
    own = config.copy_and_resolve_references()
    with own.unlocked():
      own.data.name = own.data.path = ''
      own.data[choose_data.kind(source)] = source
    try:
      spec = spec_lib.from_config(own, '')
      spec = dataclasses.replace(spec, compute_dtype=model.spec.compute_dtype)
      found = inputs.load_data(spec, model.model.tokenizer, [], config.data.dir)
    except UserError as e:
      # A name of the table alone need not be at hand.
      log.warn(f'{name} is not measured: {e}')
      continue
    parts = {name: found}
    if spec.data_select:
      parts[f'{name}+{spec.data_select}'] = _selected(config, model, spec, found, subject)
    for one, held in parts.items():
      out[one], _ = dataset_properties.dataset_properties(
        subject(), held.train_records[:most], held.train[:most], config.eval.tokens_per_batch
      )
  return out


def _selected(
  config: Any,
  model: opened.Opened,
  spec: spec_lib.RunSpec,
  data: inputs.Data,
  subject: Callable[[], Subject],
) -> inputs.Data:
  """What a run would train on; scores of examples are kept where runs keep theirs."""
  contents = inputs.contents(model.model, data, spec.template)
  if config.model.adapter:
    # Scores under another model than the base by itself.
    contents = dataclasses.replace(contents, base=model.digest)
  place = model_source.cache_root(config.cache_dir) / 'perplexity'
  tokens = config.eval.tokens_per_batch
  return selected.select(data, spec, contents, subject, place, tokens)[0]


def _predicted(
  frame: 'pd.DataFrame',
  scores: 'pd.DataFrame',
  properties: Mapping[str, Mapping[str, float]],
  base: str,
) -> dict[str, Expected]:
  """What perplexity leads to expect, where the table has it too."""
  if _PERPLEXITY not in frame or not properties:
    return {}
  rows = table.core(frame)
  logs = rows.assign(_log=np.log(rows[_PERPLEXITY].astype(float)))
  predictor = logs.pivot_table(index='model_name', columns='data_name', values='_log')
  own = {name: math.log(row[_OWN]) for name, row in properties.items()}
  return {one.data: one for one in recommend.by_predictor(scores, predictor, own, base)}


def reliability(scores: 'pd.DataFrame') -> dict[str, float]:
  """Means over models, each told from the others: see `recommend.leave_one_out`."""
  if len(scores) < 4:
    return {}
  rows = recommend.leave_one_out(scores)
  keys = ('spearman', 'regret', 'regret-3', 'random-regret', 'cover')
  out = {key: float(np.nanmean([row[key] for row in rows])) for key in keys} if rows else {}
  return out | {'models': float(len(rows))}


def lines(value: Mapping[str, Any]) -> list[str]:
  """A recommendation for a terminal."""
  of = f' on {value["base"]}' if value['base'] else ''
  out = [
    f'{", ".join(value["targets"])}{of}: points over the mean data set of the table, 95 % interval'
  ]
  width = max(len(row['data']) for row in value['candidates'])
  for row in value['candidates']:
    told = f'{row["mean"]:+7.1f}  {row["low"]:+7.1f} to {row["high"]:+.1f}'
    how = words.count(row['models'], 'model') if row['from'] == 'table' else f'from {row["from"]}'
    if row['from'] == 'unknown':
      told, how = '      ?', f'unknown: anything from {row["low"]:+.1f} to {row["high"]:+.1f}'
    facts = [f'{k} {row["properties"][k]:.3g}' for k in _SHOWN if k in row['properties']]
    out.append('  '.join([row['data'].ljust(width), told, how, ', '.join(facts)]).rstrip())
  if sure := value['reliability']:
    out.append(
      f'How far to trust it, by telling each of the {sure["models"]:.0f} models of the table from '
      f'the others: the order is right to a rank correlation of {sure["spearman"]:.2f}; the data '
      f'set told first is {sure["regret"]:.1f} points below the best one, the best of the first '
      f'three {sure["regret-3"]:.1f}, one at random {sure["random-regret"]:.1f}; '
      f'{sure["cover"]:.0%} of the intervals hold the truth.'
    )
  out.append('A race decides: --mode=choose.')
  return out

"""What a study's weights and data tell beside its scores: five questions more, where tables exist.

A study leaves `runs/*/layers.jsonl` and perplexities in its rows by itself; the other tables are
written by probes (`evals/probes/`) below `probes/` of its workdir. A question whose table is absent
is skipped with what it needs. Not for how the answers are shown: `measured_told.py`.
"""

import functools
import math
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from sft_jax.analysis import (
  findings,
  gains,
  grafted,
  intrinsic_dim,
  layers,
  measured_alone,
  model_map,
  predictors,
  table,
)
from sft_jax.analysis import vectors as vector_lib
from sft_jax.utils import io, tables
from sft_jax.utils.errors import UserError

if TYPE_CHECKING:
  import pandas as pd

# Where probes' tables lie below a study's workdir.
PROPERTIES = 'probes/dataset_properties*.csv'
SIMILARITY = 'probes/similarity*.csv'
STATES = 'probes/hidden_states*.npz'
VECTORS = 'probes/loglik_vector*.npz'
# What may predict a gain, one of a kind: perplexity and what it is held against. Perplexities are
# taken as logarithms.
PREDICTORS = (
  *('log_ppl-train', 'log_ppl-train-response', 'bits-per-byte-train', 'early-drop'),
  *('hard-tokens', 'response-entropy', 'diversity', 'near-duplicates', 'distinct-2', 'tokens'),
  *('words-response', 'similarity'),
)
_MAIN = PREDICTORS[0]
OVERALL = 'overall'
_DIMENSION_SCALE = 4
_HOW = 'see docs/jobs/analyse.md, “What needs weights”'


def answers(study: findings.Study, place: str) -> dict[str, Any]:
  """{'predictors', 'layers', 'dimension', 'map', 'grafts'}, each perhaps {'skipped': why}.

  Args:
    study: The table, made ready.
    place: The workdir of the study it is of; '' for none.
  """
  out = {key: findings.attempt(_ask, ask, study, place) for key, ask in QUESTIONS.items()}
  bands = lambda one, where: grafted.bands(one, where, out['layers'])
  return out | {'grafts': findings.attempt(_ask, bands, study, place)}


def _ask(
  ask: Callable[[findings.Study, pathlib.Path | None], dict[str, Any]],
  study: findings.Study,
  place: str,
) -> dict[str, Any]:
  """An answer; bad input of a further table leaves out its question alone."""
  try:
    return ask(study, pathlib.Path(place) if place else None)
  except UserError as e:
    raise table.Skip(str(e)) from e


def _found(place: pathlib.Path | None, pattern: str) -> list[pathlib.Path]:
  return sorted(place.glob(pattern)) if place else []


def predict(study: findings.Study, place: pathlib.Path | None) -> dict[str, Any]:
  """Predictors known before training against gains, for each method.

  Returns:
    {method: {'tests': rows of `predictors.tests`, of `OVERALL` and each benchmark; 'rivals':
    `predictors.rivals` of perplexity, on the overall gain}}; of a single model, which has no such
    tests, what `measured_alone.predict` gives.
  """
  change = study.core(study.gains())
  known = _properties(study, place)
  if known is None:
    raise table.Skip(
      'needs perplexities of the training data under the base (ppl-train, which runs with '
      f'perplexity in config.eval.tasks leave) or the table {PROPERTIES}: {_HOW}'
    )
  out: dict[str, Any] = {}
  for name, lora in findings.METHODS.items():
    rows = change[change['lora'] == lora]
    if len(rows):
      out[name] = findings.attempt(_tests, rows, known, study, place)
  if all(findings.is_skipped(part) for part in out.values()):
    raise table.Skip(next(iter(out.values()))['skipped'] if out else 'needs gains')
  return out


def _tests(
  rows: 'pd.DataFrame', known: 'pd.DataFrame', study: findings.Study, place: pathlib.Path | None
) -> dict[str, Any]:
  import pandas as pd

  columns = [OVERALL, *study.columns] if len(study.columns) > 1 else [OVERALL]
  frame = rows.assign(**{OVERALL: gains.overall(rows, study.columns)})
  models, datasets, held, values = predictors.cube(frame, known, columns)
  if files := _found(place, SIMILARITY):
    alike = pd.concat([vector_lib.read_properties(file) for file in files])
    held['similarity'] = measured_alone.similarity(alike, models, datasets, columns)
  # One that is the same everywhere, or known of too few, tests nothing.
  used = {k: held[k] for k in PREDICTORS if k in held and np.isfinite(held[k]).any()}
  if not used:
    raise table.Skip(f'needs one of {", ".join(PREDICTORS)}: {_HOW}')
  if len(models) == 1:
    alone = measured_alone.predict(used, values, columns, _MAIN, study.seed)
    if not alone['alone']:
      enough = len(datasets) >= predictors.LEAST_DATASETS
      needs = 'gains that differ between data sets' if enough else ''
      raise table.Skip(f'needs {needs or f"{predictors.LEAST_DATASETS} data sets"}')
    return alone
  settings = predictors.Settings(draws=study.resamples, seed=study.seed)
  tests = predictors.tests(used, values, columns, settings)
  if all(row['reason'] for row in tests):
    raise table.Skip(tests[0]['reason'])
  rivals = predictors.rivals(used, _MAIN, values[:, :, 0])
  return {'tests': tests, 'rivals': rivals}


def _properties(study: findings.Study, place: pathlib.Path | None) -> 'pd.DataFrame | None':
  """One row for each model and data set: what rows of runs and the probe's table say."""
  import pandas as pd

  keys = ['model_name', 'data_name']
  trained = study.scores[~table.is_base(study.scores)]
  said = [
    c
    for c in trained.columns
    if c.startswith(('ppl-train', 'bits-per-byte-train')) and not c.endswith('-stderr')
  ]
  parts = []
  if said:
    numbers = trained[said].apply(pd.to_numeric, errors='coerce')
    parts.append(trained[keys].join(numbers).groupby(keys).mean())
  if drops := _early_drops(study.scores):
    parts.append(pd.DataFrame(drops).groupby(keys).mean())
  for file in _found(place, PROPERTIES):
    held = vector_lib.read_properties(file).groupby(keys).mean(numeric_only=True)
    # Perplexities of the same data, there of all examples.
    parts.append(held.rename(columns=lambda name: name.replace('-data', '-train')))
  if not parts:
    return None
  # What rows say themselves comes first; a table fills what they lack.
  return functools.reduce(lambda one, two: one.combine_first(two), parts).reset_index()


def _early_drops(scores: 'pd.DataFrame') -> list[dict[str, Any]]:
  """How much the first 20 steps of each run lowered the held-out log perplexity."""
  if not {'run-id', 'step', 'ppl-heldout'} <= set(scores.columns):
    return []
  out = []
  for _, rows in scores.groupby('run-id'):
    trained = rows[~table.is_base(rows)]
    held = rows[rows['ppl-heldout'].notna()]
    drop = predictors.early_drop(held[['step', 'ppl-heldout']].to_dict('records'))
    if len(trained) and math.isfinite(drop):
      one = trained.iloc[0]
      out.append({k: one[k] for k in ('model_name', 'data_name')} | {'early-drop': drop})
  return out


def where(study: findings.Study, place: pathlib.Path | None) -> dict[str, Any]:
  """Where training moved weights, and whether that goes with the overall gain, for each method.

  Returns:
    {method: {'models', 'datasets', 'depths'; 'change': mean relative change by depth; 'modules':
    the same for each kind of module; 'by_depth': see `layers.by_depth`; 'across': see
    `layers.across_models`; 'alone': see `measured_alone.depths`}}; 'by_depth' and 'across' perhaps
    {'skipped': …}, 'alone' None of several models.
  """
  if not (_found(place, 'layers.jsonl') or _found(place, 'runs/*/layers.jsonl')) or place is None:
    raise table.Skip('needs layers.jsonl of runs: give the workdir of the study')
  records = layers.read(place)
  change = study.core(study.gains())
  if 'run-id' not in change or 'step' not in change:
    raise table.Skip('needs the columns run-id and step')
  overall = gains.overall(change, study.columns)
  row_of = {_key(row): index for index, row in change[['run-id', 'step']].iterrows()}
  out: dict[str, Any] = {}
  for name, lora in findings.METHODS.items():
    mine = lambda key, lora=lora: key in row_of and change.loc[row_of[key], 'lora'] == lora
    held = [r for r in records if mine(_key(r))]
    if held:
      rows = [row_of[_key(r)] for r in held]
      means = overall.loc[rows].groupby([change.loc[rows, k] for k in ('model_name', 'data_name')])
      out[name] = _layers(held, {(str(m), str(d)): v for (m, d), v in means.mean().items()})
  if not out:
    raise table.Skip('no run of the table has left a layers.jsonl')
  return out


def _key(row: Mapping[str, Any]) -> tuple[str, int]:
  return str(row['run-id']), int(row['step'])


def _layers(
  records: Sequence[Mapping[str, Any]], overall: Mapping[tuple[str, str], float]
) -> dict[str, Any]:
  models, datasets, values, total, gain = layers.cube(records, overall, 'relative')
  mean = lambda cube: np.nanmean(cube, axis=(0, 1)).tolist()
  modules = sorted({module for r in records for module in r['modules'] if module != 'all'})
  by_module = {m: layers.cube(records, overall, 'relative', m)[2] for m in modules}
  found = layers.by_depth(values, gain, total)
  if found['reason']:
    found = {'skipped': found['reason']}
  return {
    'models': models,
    'datasets': datasets,
    'depths': layers.GRID.tolist(),
    'change': mean(values),
    'modules': {m.removeprefix('layers/'): mean(v) for m, v in by_module.items()},
    'by_depth': _plain(found),
    'alone': measured_alone.depths(values, gain) if len(models) == 1 else None,
    'across': findings.attempt(_across, values),
  }


def _across(values: np.ndarray) -> dict[str, Any]:
  try:
    return _plain(layers.across_models(values))
  except UserError as e:
    raise table.Skip(str(e)) from e


def dimension(study: findings.Study, place: pathlib.Path | None) -> dict[str, Any]:
  """Intrinsic dimension by layer of each fine-tuned model whose base was probed on the same texts.

  Returns:
    {'k', 'models': [{'model_name', 'data_name', 'lora', 'epoch', 'n', 'layers': rows of
    `intrinsic_dim.by_layer`}]}.
  """
  # States are large: those of a base and of one other model are held at a time.
  facts = {file: io.read_json(f'{file}.json') for file in _found(place, STATES)}
  bases = {str(about['model_name']): file for file, about in facts.items() if _is_base(about)}
  out = []
  for model, file in bases.items():
    base, _ = tables.read_arrays(file)
    for other, about in facts.items():
      if _is_base(about) or str(about['model_name']) != model:
        continue
      arrays, _ = tables.read_arrays(other)
      if not np.array_equal(base['lengths'], arrays['lengths']):
        raise table.Skip(f'{other.name}: states of other texts than those of its base')
      rows = intrinsic_dim.by_layer(base['states'], arrays['states'], _DIMENSION_SCALE)
      names = ('model_name', 'data_name', 'lora', 'epoch')
      one: dict[str, Any] = {name: about.get(name) for name in names}
      out.append(one | {'n': int(arrays['states'].shape[1]), 'layers': rows})
  if not out:
    raise table.Skip(f'needs {STATES} of a base and of a model trained from it: {_HOW}')
  return {'k': _DIMENSION_SCALE, 'models': out}


def _is_base(about: Mapping[str, Any]) -> bool:
  return not about.get('epoch')


def model_points(study: findings.Study, place: pathlib.Path | None) -> dict[str, Any]:
  """The model map: where models lie, how far apart they are, and its claims as numbers.

  Returns:
    {'layout': how it was made, 'n_texts', 'models': [{…, 'x', 'y', 'kl_from_base', 'kl_low',
    'kl_high'}], 'kl': matrix in nats a text, 'claims': see `model_map.claims`}.
  """
  files = _found(place, VECTORS)
  if len(files) < 2:
    raise table.Skip(f'needs {VECTORS} of two models or more: {_HOW}')
  matrix, facts = vector_lib.read_matrix([str(file) for file in files])
  names = ('model_name', 'data_name', 'lora', 'data_size')
  rows = [{n: f.get(n) for n in names} | {'epoch': f.get('epoch') or 0} for f in facts]
  for row in rows:
    row['data_size'] = row['data_size'] or 0
  q = model_map.coordinates(matrix)
  places, how = model_map.layout(q)
  bases = {row['model_name']: i for i, row in enumerate(rows) if not row['epoch']}
  for i, row in enumerate(rows):
    row |= {'x': float(places[i, 0]), 'y': float(places[i, 1])}
    if row['epoch'] and row['model_name'] in bases:
      kl = model_map.kl_interval(q, i, bases[row['model_name']])
      row |= dict(zip(('kl_from_base', 'kl_low', 'kl_high'), kl, strict=True))
  return {
    'layout': how,
    'n_texts': int(matrix.shape[1]),
    'models': rows,
    'kl': model_map.kl(q).tolist(),
    'claims': model_map.claims(q, rows, min(study.resamples, 500), study.seed),
  }


def _plain(found: Mapping[str, Any]) -> dict[str, Any]:
  """Arrays as lists."""
  return {k: v.tolist() if isinstance(v, np.ndarray) else v for k, v in found.items()}


QUESTIONS: dict[str, Callable[[findings.Study, pathlib.Path | None], dict[str, Any]]] = {
  'predictors': predict,
  'layers': where,
  'dimension': dimension,
  'map': model_points,
}

"""The ten questions asked of a result table, each answered as plain values; `answers` does all.

Keys of the answers are those of `report/findings.json`. An analysis that the table does not allow
is {'skipped': what it needs}. Every mean says of how many values it is. Scores are on 0–100; a
missing value is skipped. `strict` is without models whose bases the checks doubt.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from sft_jax.analysis import checks, crosslingual, effects, gains, similarity, table
from sft_jax.analysis import epochs as epoch_lib

if TYPE_CHECKING:
  import pandas as pd

METHODS = {'full': False, 'lora': True}
_ROUNDING = 1e-9  # A mean this near to zero has no sign.


@dataclasses.dataclass(frozen=True)
class Study:
  """A table made ready for analysis.

  Attributes:
    scores: All rows, on 0–100.
    change: Gains of the trained rows; None without untrained rows.
    columns: Benchmarks that averages are of.
    strict: Models whose bases are their own.
    resamples: Draws where intervals are of such.
    seed: Of the draws.
  """

  scores: 'pd.DataFrame'
  change: 'pd.DataFrame | None'
  columns: list[str]
  strict: list[str]
  resamples: int = 2000
  seed: int = 0

  @functools.cached_property
  def block(self) -> 'pd.DataFrame':
    """The core block of `scores`; see `table.core`."""
    return table.core(self.scores)

  def core(self, frame: 'pd.DataFrame') -> 'pd.DataFrame':
    """The rows of the core block of `scores`, taken of `frame`."""
    return frame.loc[self.block.index]

  def mixed(self, frame: 'pd.DataFrame') -> 'pd.DataFrame':
    """The rows of mixtures that are like the core block, taken of `frame`."""
    return frame.loc[table.mixtures(self.scores, self.block).index]

  def gains(self) -> 'pd.DataFrame':
    """Gains, or `Skip` with what is missing."""
    if self.change is None:
      raise table.Skip(f'needs rows of untrained models (data_name {table.BASE!r})')
    return self.change

  def sets(self) -> dict[str, list[str]]:
    """{'': all models, '_strict': those of sound bases}."""
    return {'': table.models(self.scores), '_strict': self.strict}


def study(
  scores: 'pd.DataFrame',
  found: Sequence[checks.Finding],
  resamples: int = 2000,
  seed: int = 0,
  trust_bases: bool = False,
) -> Study:
  """Makes a table ready; `trust_bases` counts every model as strict.

  Args:
    scores: As `table.read` or `mend.mend` gives it.
    found: What the checks say of it.
    resamples: Draws where intervals are of such.
    seed: Of the draws.
    trust_bases: Leave no model out of the strict set.
  """
  try:
    change = gains.gains(scores)
  except table.Skip:
    change = None
  strict = table.models(scores) if trust_bases else checks.strict_models(scores, found)
  return Study(scores, change, table.main(scores), strict, resamples, seed)


def answers(study: Study) -> dict[str, Any]:
  """{'Q1': …, …, 'Q10': …}."""
  return {key: attempt(ask, study) for key, ask in QUESTIONS.items()}


def attempt(ask: Callable[..., dict[str, Any]], *given: Any) -> dict[str, Any]:
  """What `ask` answers to what is given, or {'skipped': why}."""
  try:
    return ask(*given)
  except table.Skip as e:
    return {'skipped': str(e)}


def is_skipped(answer: Mapping[str, Any]) -> bool:
  """Whether it is no answer but the reason why there is none."""
  return 'skipped' in answer


def mean_gains(study: Study) -> dict[str, Any]:
  """Q1: tables `full`, `full_strict`, `lora`, `lora_strict`, their n, shares, intervals, signs.

  Mixtures that are like the core block have rows too.
  """
  import pandas as pd

  every = study.gains()
  change = pd.concat([study.core(every), study.mixed(every)])
  parts = {
    f'{name}{tail}': attempt(gains.summary, change, study.columns, lora, models)
    for name, lora in METHODS.items()
    for tail, models in study.sets().items()
  }
  made = {name: part for name, part in parts.items() if not is_skipped(part)}
  if not made:
    raise table.Skip(next(iter(parts.values()))['skipped'])
  rows = change[['data_size', 'lr_strategy', 'epoch']].iloc[0]
  out: dict[str, Any] = {
    'block': {k: rows[k] for k in rows.index},
    'models': table.models(change),
    'strict': [m for m in table.models(change) if m in study.strict],
    'scale': '0-100',
  }
  out |= {name: part['mean'] for name, part in made.items()}
  out |= {name: part for name, part in parts.items() if is_skipped(part)}
  for key in ('n', 'positive', 'low', 'high', 'low_joint', 'high_joint', 'overall'):
    out[key] = {name: part[key] for name, part in made.items()}
  out['sign_differs'] = {
    name: _sign_changes(out[name], out[f'{name}_strict'])
    for name in METHODS
    if name in made and f'{name}_strict' in made
  }
  out['per_model'] = {
    name: per_model(change, study.columns, lora) for name, lora in METHODS.items() if name in made
  }
  return out


def per_model(
  change: 'pd.DataFrame', columns: Sequence[str], lora: bool
) -> dict[str, dict[str, dict[str, float]]]:
  """{model: {data: {benchmark: gain}}}."""
  out: dict[str, dict[str, dict[str, float]]] = {}
  for (model, data, _), row in gains.cells(change, columns, lora).iterrows():
    out.setdefault(model, {})[data] = {c: float(row[c]) for c in columns}
  return out


def _sign_changes(one: Mapping[str, Any], two: Mapping[str, Any]) -> list[dict[str, Any]]:
  """Cells whose means have opposite signs in the two tables."""
  out = []
  for data, cells in one.items():
    for column, a in cells.items():
      b = two.get(data, {}).get(column)
      if a is None or b is None or min(abs(a), abs(b)) < _ROUNDING or (a > 0) == (b > 0):
        continue
      out.append({'data': data, 'benchmark': column, 'all': a, 'strict': b})
  return out


def shares(study: Study) -> dict[str, Any]:
  """Q2: variance shares of scores."""
  return similarity.variance_shares(study.block, study.columns)


def likeness(study: Study) -> dict[str, Any]:
  """Q3: correlation of models (raw, centred; strict), of data sets and of benchmarks."""
  change = study.core(study.gains())
  out: dict[str, Any] = {'models': {}, 'datasets': {}, 'benchmarks': {}}
  for name, lora in METHODS.items():
    if not (change['lora'] == lora).any():
      continue
    present = table.models(change[change['lora'] == lora])
    for tail, models in study.sets().items():
      held = [m for m in present if m in models]
      if not held:
        continue
      values, _ = gains.cube(change, study.columns, lora, held)
      for form, centre in (('raw', False), ('centred', True)):
        out['models'][f'{name}_{form}{tail}'] = attempt(
          similarity.model_similarity, values, held, centre
        )
    complete = _complete(change, study.columns, lora, present)
    values, names = gains.cube(change, study.columns, lora, complete)
    for axis, key, labels in ((1, 'datasets', names), (2, 'benchmarks', study.columns)):
      part = attempt(similarity.axis_similarity, values, axis, labels)
      out[key][name] = part | {'models_used': complete}
  return out


def _complete(
  change: 'pd.DataFrame', columns: Sequence[str], lora: bool, models: Sequence[str]
) -> list[str]:
  """Models that have every run of the block with either method; all, where none has."""
  names = change['data_name'].unique()
  methods = [v for v in (False, True) if (change['lora'] == v).any()]
  runs = change[['model_name', 'data_name', 'lora']].drop_duplicates()
  counts = runs.groupby('model_name').size()
  whole = [m for m in models if counts[m] == len(names) * len(methods)]
  return whole or list(models)


def components(study: Study) -> dict[str, Any]:
  """Q4: principal components of data sets."""
  change = study.core(study.gains())
  out = {}
  for name, lora in METHODS.items():
    rows = change[change['lora'] == lora]
    for tail, models in study.sets().items():
      held = [m for m in table.models(rows) if m in models]
      values, names = gains.cube(change, study.columns, lora, held) if held else (None, [])
      if values is not None:
        out[f'{name}{tail}'] = attempt(similarity.pca, values, held, names)
  if all(is_skipped(part) for part in out.values()):
    raise table.Skip(next(iter(out.values()))['skipped'] if out else 'needs gains')
  return out


def methods(study: Study) -> dict[str, Any]:
  """Q5: full fine-tuning less LoRA: the core block, mixtures like it, all data together."""
  block = study.block
  ask = lambda rows: effects.full_minus_lora(rows, study.columns)
  out = {'core': attempt(ask, block), 'mixtures': attempt(ask, study.mixed(study.scores))}
  every = study.scores[study.scores['data_name'] == table.ALL]
  last = every[every['epoch'] == every['epoch'].max()]
  out['all'] = attempt(ask, last)
  if all(is_skipped(part) for part in out.values()):
    raise table.Skip(out['core']['skipped'])
  strict = block[block['model_name'].isin(study.strict)]
  out['core_strict'] = attempt(ask, strict)
  out['agreement'] = attempt(
    lambda: effects.method_agreement(study.core(study.gains()), study.columns)
  )
  return out


def epochs(study: Study) -> dict[str, Any]:
  """Q6: mean gain by epoch and rank correlation of epoch and score, of each kind of runs."""
  parts = epoch_lib.kinds(study.scores)
  if not parts:
    raise table.Skip('needs runs that were scored at three epochs or more')
  change = study.gains()
  out = {}
  for name, rows in parts.items():
    out[name] = attempt(epoch_lib.trajectories, change.loc[rows.index], rows, study.columns)
  return out


def sizes(study: Study) -> dict[str, Any]:
  """Q7: scores of the larger size less the smaller."""
  return effects.larger_minus_smaller(study.scores, study.columns)


def languages(study: Study) -> dict[str, Any]:
  """Q8: correlation of gains on MMLU, MMLU-zh and MMLU-jp, over several sets of rows."""
  change = study.gains()
  core = study.core(change)
  strict = core[core['model_name'].isin(study.strict)]
  group = lambda code: core[core['model_name'].map(table.language) == code]
  sets = {
    'all': (change, False),
    'core': (core, False),
    'core_full': (core[core['lora'] == False], False),  # noqa: E712
    'core_lora': (core[core['lora'] == True], False),  # noqa: E712
    'core_strict': (strict, False),
    'core_centred': (core, True),
    'core_raw_scores': (study.core(study.scores), False),
    **{f'core_{code}': (group(code), False) for code in table.LANGUAGES},
    **{f'core_model:{m}': (core[core['model_name'] == m], False) for m in table.models(core)},
  }
  out = {name: attempt(crosslingual.correlate, *given) for name, given in sets.items()}
  if is_skipped(out['core']):
    raise table.Skip(out['core']['skipped'])
  return out


def leave_one_out(study: Study) -> dict[str, Any]:
  """Q9: all data together less all but X."""
  return effects.left_out(study.scores, study.columns)


def best(study: Study) -> dict[str, Any]:
  """Q10: the best row of each benchmark."""
  return effects.best_rows(study.scores, study.columns, study.change)


def parts_of_gains(study: Study) -> dict[str, Any]:
  """Gains split into format and ability, and pairs of data and benchmark that share items."""

  def split() -> dict[str, Any]:
    rows = gains.split(study.scores, study.columns)
    means = rows.groupby(['data_name', 'benchmark'])[['gain', 'format', 'ability', 'rest']].mean()
    n = rows.groupby(['data_name', 'benchmark']).size()
    out: dict[str, Any] = {}
    for (data, column), row in means.iterrows():
      numbers = {k: float(v) if np.isfinite(v) else None for k, v in row.items()}
      out.setdefault(data, {})[column] = numbers | {'n': int(n[(data, column)])}
    return out

  def shared() -> dict[str, Any]:
    rows = gains.contaminated(study.scores, study.columns)
    return {'pairs': rows.to_dict('records')}

  return {'split': attempt(split), 'contaminated': attempt(shared)}


QUESTIONS: dict[str, Callable[[Study], dict[str, Any]]] = {
  'Q1': mean_gains,
  'Q2': shares,
  'Q3': likeness,
  'Q4': components,
  'Q5': methods,
  'Q6': epochs,
  'Q7': sizes,
  'Q8': languages,
  'Q9': leave_one_out,
  'Q10': best,
}
TITLES = {
  'Q1': 'Which data help with which task',
  'Q2': 'What scores depend on',
  'Q3': 'What is alike: models, data sets, benchmarks',
  'Q4': 'How many directions there are',
  'Q5': 'Full fine-tuning and LoRA',
  'Q6': 'Epochs',
  'Q7': 'Size of the data',
  'Q8': 'Across languages',
  'Q9': 'One data set left out',
  'Q10': 'Best rows',
  # Answered where a study's weights and data were measured (`measured.py`).
  'predictors': 'What predicts a gain',
  'layers': 'Where weights moved, and whether that goes with gains',
  'dimension': 'Intrinsic dimension by layer',
  'map': 'The map of models',
  'grafts': 'What bands of layers do by themselves',
}

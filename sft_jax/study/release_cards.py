"""The texts of a release: cards of models and of the whole, and the list of licences."""

import dataclasses
import json
import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

from sft_jax import results
from sft_jax.study import licences

Json = dict[str, Any]

# What stands behind a score's name in the columns that say how sure it is.
_ABOUT = ('-stderr', '-low', '-high', '-n')
_ALWAYS = ('ppl-heldout', 'ppl-heldout-response', 'builtin-em')
# What the hub takes as `license`.
_IDS = (
  *('apache-2.0', 'mit', 'cc-by-4.0', 'cc-by-sa-3.0', 'cc-by-sa-4.0'),
  *('cc-by-nc-4.0', 'cc-by-nc-sa-4.0', 'llama3', 'llama3.1', 'llama3.2', 'gemma'),
)


@dataclasses.dataclass(frozen=True)
class Model:
  """A model of a release.

  Attributes:
    key: Its directory below `models/`.
    form: delta | peft | hf.
    base: Name of its base.
    hub_id: org/name of the base on the hub, or ''.
    revision: The base's commit there, or ''.
    base_dir: Its directory below `bases/`, or ''.
    base_licence: As published, or ''.
    data: Name of its data.
    datasets: Of them, what is on the hub, by id.
    data_licences: {data set: licence as published, or ''}.
    factors: {config key: value} it was trained with.
    row: Its row of the results.
    base_row: The base's.
  """

  key: str
  form: str
  base: str
  hub_id: str
  revision: str
  base_dir: str
  base_licence: str
  data: str
  datasets: Sequence[str]
  data_licences: Mapping[str, str]
  factors: Mapping[str, Any]
  row: results.Row
  base_row: results.Row

  @property
  def method(self) -> str:
    """full | lora"""
    return str(self.factors.get('train.method', ''))

  @property
  def licences(self) -> dict[str, str]:
    """Of everything that went into it."""
    data = {f'data {name}': text for name, text in self.data_licences.items()}
    return {f'model {self.base}': self.base_licence, **data}


def public(value: Any) -> Any:
  """A value as it may leave: a path of this machine is its last part alone."""
  if isinstance(value, str) and value.startswith(('/', '.', '~')):
    return os.path.basename(value.rstrip('/'))
  return value


def scores(row: results.Row) -> list[str]:
  """Columns of a row that are scores."""
  named = {column.removesuffix(end) for column in row for end in _ABOUT if column.endswith(end)}
  return [c for c in row if (c in named or c in _ALWAYS) and _number(row[c]) is not None]


def model_card(model: Model) -> str:
  """README.md of one model."""
  head = {
    'base_model': model.hub_id,
    'datasets': list(model.datasets),
    'license': _license_id(model.licences),
    'library_name': 'peft' if model.form == 'peft' else 'transformers',
    'pipeline_tag': 'text-generation',
    'tags': ['sft', 'sft_jax', model.method],
  }
  factors = [f'| {key} | {_cell(public(value))} |' for key, value in model.factors.items()]
  lines = [
    *_head(head),
    f'# {model.base}, fine-tuned on {model.data}',
    '',
    _base_sentence(model),
    '',
    *_load(model),
    '',
    '## Licences',
    '',
    *(f'- {whose}: {text or "none stated"}' for whose, text in model.licences.items()),
    '',
    f'The one that binds most: {licences.strictest(model.licences)}.',
    '',
    '## Scores',
    '',
    *_score_table(model),
    '',
    '## Training',
    '',
    f'Step {model.row["step"]}, epoch {model.row["epoch"]:g}, {model.row["data_size"]} records.',
    '',
    '| factor | |',
    '|---|---|',
    *factors,
    '',
  ]
  return '\n'.join(lines)


def release_card(name: str, models: Sequence[Model], left_out: Mapping[str, str]) -> str:
  """README.md of the whole.

  Args:
    name: Of the release.
    models: What is in it.
    left_out: {run: why it is not in it}.
  """
  every = {whose: text for model in models for whose, text in model.licences.items()}
  head = {
    'base_model': sorted({m.hub_id for m in models if m.hub_id}),
    'datasets': sorted({d for m in models for d in m.datasets}),
    'license': _license_id(every),
    'library_name': 'transformers',
    'tags': ['sft', 'sft_jax'],
  }
  columns = [
    c for c in dict.fromkeys(c for m in models for c in scores(m.row)) if c in _first(models)
  ]
  titles = ['model', 'base', 'data', 'method', 'step', 'as', *columns]
  rows = [
    [
      *(f'[{m.key}](models/{m.key})', m.base, m.data, m.method, m.row['step'], m.form),
      *(_short(m.row.get(column)) for column in columns),
    ]
    for m in models
  ]
  lines = [
    *_head(head),
    f'# {name}',
    '',
    f'{len(models)} fine-tuned models, with every score of every snapshot in `results.csv` and '
    '`results.parquet`. `manifest.json` has the SHA-256 of every file.',
    '',
    *_table(titles, rows),
    '',
    *(
      ['Not here:', '', *(f'- {run}: {why}' for run, why in left_out.items()), '']
      if left_out
      else []
    ),
    '## How to load them',
    '',
    *(line for form in dict.fromkeys(m.form for m in models) for line in _ways(form)),
    '## Licences',
    '',
    f'See `LICENSES.md`. The one that binds most: {licences.strictest(every)}.',
    '',
  ]
  return '\n'.join(lines)


def licence_list(models: Sequence[Model]) -> str:
  """LICENSES.md."""
  every = {whose: text for model in models for whose, text in model.licences.items()}
  rows = [[whose, text or 'none stated', licences.kind(text)[1]] for whose, text in every.items()]
  lines = [
    '# Licences of what these models were made from',
    '',
    *_table(['whose', 'licence as published', 'meaning'], rows),
    '',
    f'The one that binds most: {licences.strictest(every)}.',
    '',
    'Names of licences as their publishers state them; this is no legal advice.',
    '',
  ]
  return '\n'.join(lines)


def _first(models: Sequence[Model]) -> list[str]:
  """At most five scores to show for all: those most models have."""
  counts: dict[str, int] = {}
  for model in models:
    for column in scores(model.row):
      counts[column] = counts.get(column, 0) + 1
  return sorted(counts, key=lambda column: -counts[column])[:5]


def _base_sentence(model: Model) -> str:
  if not model.hub_id:
    return f'Supervised fine-tuning of `{model.base}` with sft_jax.'
  at = f' at commit `{model.revision}`' if model.revision else ''
  page = f'https://huggingface.co/{model.hub_id}'
  return f'Supervised fine-tuning of [{model.hub_id}]({page}){at} with sft_jax.'


def _load(model: Model) -> list[str]:
  if model.form != 'delta':
    return _ways(model.form)[:-1]
  if not model.hub_id:
    fetch, base = [], f'../../bases/{model.base_dir}'
  else:
    at = f' --revision {model.revision}' if model.revision else ''
    fetch, base = [f'hf download {model.hub_id}{at} --local-dir BASE'], 'BASE'
  return [
    'Stored as the difference from its base. To rebuild it, bit for bit:',
    '',
    '```sh',
    'pip install numpy zstandard',
    *fetch,
    f'python ../../restore.py model.sftdelta {base} MODEL',
    '```',
    '',
    '`transformers` opens `MODEL`.',
  ]


def _ways(form: str) -> list[str]:
  """How models of a form are opened."""
  return {
    'delta': [
      'Deltas: `python restore.py models/KEY/model.sftdelta BASE_DIR MODEL` rebuilds a Hugging '
      'Face directory bit for bit; each model says what `BASE_DIR` is. The format: `FORMAT.md`.',
      '',
    ],
    'peft': ['Adapters: `peft.PeftModel.from_pretrained(base, DIRECTORY)`.', ''],
    'hf': ['Whole models: `transformers.AutoModelForCausalLM.from_pretrained(DIRECTORY)`.', ''],
  }[form]


def _score_table(model: Model) -> list[str]:
  columns = scores(model.row)
  if not columns:
    return ['None were measured.']
  rows = []
  for column in columns:
    low, high = (_number(model.row.get(f'{column}{end}')) for end in ('-low', '-high'))
    error = _number(model.row.get(f'{column}-stderr'))
    value = model.row[column]
    if (low is None or high is None) and error is not None:
      low, high = value - 1.96 * error, value + 1.96 * error
    interval = '' if low is None or high is None else f'{_short(low)} to {_short(high)}'
    count = model.row.get(f'{column}-n', '')
    rows.append([column, _short(model.base_row.get(column)), _short(value), interval, count])
  return _table(['score', 'base', 'this model', '95 % interval', 'n'], rows)


def _table(titles: Sequence[str], rows: Sequence[Sequence[Any]]) -> list[str]:
  out = [titles, ['---'] * len(titles), *rows]
  return ['| ' + ' | '.join(_cell(cell) for cell in row) + ' |' for row in out]


def _head(facts: Mapping[str, Any]) -> list[str]:
  # JSON scalars and lists are YAML as well.
  return ['---', *(f'{key}: {json.dumps(v)}' for key, v in facts.items() if v), '---', '']


def _license_id(named: Mapping[str, str]) -> str:
  """As the hub names it, if all agree on the strictest; else 'other'."""
  rank = min(licences.kind(text)[0] for text in named.values())
  strict = [text for text in named.values() if licences.kind(text)[0] == rank]
  found = {text.lower().replace(' ', '-') for text in strict}
  return found.pop() if len(found) == 1 and found <= {*_IDS} else 'other'


def _number(value: Any) -> float | None:
  good = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
  return float(value) if good else None


def _short(value: Any) -> str:
  number = _number(value)
  return '' if number is None else f'{number:.4g}'


def _cell(value: Any) -> str:
  text = value if isinstance(value, str) else json.dumps(value, default=str)
  return ' '.join(text.replace('|', '\\|').split())

"""Checks of a table: which of its numbers are not what they seem, found from the numbers alone.

Nothing here knows a model by name. A `fault` makes numbers wrong, a `gap` makes them missing, a
`note` limits what they can tell. What is found is always reported; whether it changes what analyses
use (`mend.py`) is for the caller to say.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from sft_jax import spec as spec_lib
from sft_jax.analysis import copies, denominators, table
from sft_jax.utils import words

if TYPE_CHECKING:
  import pandas as pd

# Score of who guesses, for questions with options.
_CHANCE = {'mmlu': 25.0, 'cmmlu': 25.0, 'jmmlu': 25.0, 'hellaswag': 25.0, 'BoolQ': 50.0}
_CONSTANT, _RARE = 0.9, 0.1
# Gains over a base that cannot be of ability alone: see `_format_limited`.
_BELOW, _JUMP, _RISE = 0.95, 10.0, 1.4
_TIMES, _PLUS = 3.0, 10.0
_LISTED = 8


@dataclasses.dataclass(frozen=True)
class Finding:
  """What one check found.

  Attributes:
    check: A key of `CHECKS`.
    severity: 'fault' | 'gap' | 'note'.
    text: A sentence or two for people.
    models: Models whose bases, and so whose gains, cannot be trusted.
    columns: Scores it is about.
    rows: Labels of the rows in the frame.
  """

  check: str
  severity: str
  text: str
  models: tuple[str, ...] = ()
  columns: tuple[str, ...] = ()
  rows: tuple[int, ...] = ()


def run(frame: 'pd.DataFrame') -> list[Finding]:
  """All findings about a table, faults first."""
  found = [finding for check in CHECKS.values() for finding in check(frame)]
  order = ('fault', 'gap', 'note')
  return sorted(found, key=lambda finding: order.index(finding.severity))


def strict_models(frame: 'pd.DataFrame', findings: Sequence[Finding]) -> list[str]:
  """Models whose bases are their own, as far as the checks can tell."""
  doubtful = {model for finding in findings for model in finding.models}
  return [model for model in table.models(frame) if model not in doubtful]


def scores(frame: 'pd.DataFrame') -> list[str]:
  """Score columns with a value."""
  return [c for c in table.benchmarks(frame) if frame[c].notna().any()]


def _duplicate_bases(frame: 'pd.DataFrame') -> list[Finding]:
  columns = scores(frame)
  out = []
  for pair in copies.base_pairs(frame, columns):
    names = (str(frame['model_name'].iloc[pair.first]), str(frame['model_name'].iloc[pair.second]))
    both = frame.iloc[[pair.first, pair.second]][columns].notna().all()
    whole = len(pair.columns) == int(both.sum())
    owner, gap = copies.likelier_owner(frame, pair.columns, names)
    text = (
      f'The untrained rows of {names[0]} and {names[1]} are equal in '
      f'{"every score" if whole else f"{len(pair.columns)} of {int(both.sum())} scores"}: one is a '
      f'copy (chance of that about 10^-{pair.surprise:.0f}).'
    )
    # Where only some columns are copied, each may have come from either.
    if whole and owner is not None:
      other = names[1] if owner == names[0] else names[0]
      text += (
        f' It is likelier that of {owner}: it lies {abs(gap):.1f} sd further outside all scores of '
        f'{other}; weak evidence. Gains of {other} are not to be trusted.'
      )
      doubtful: tuple[str, ...] = (other,)
    else:
      text += ' Whose they are cannot be told. Gains of both are not to be trusted.'
      doubtful = names
    rows = (int(frame.index[pair.first]), int(frame.index[pair.second]))
    out.append(Finding('base_copy', 'fault', text, doubtful, pair.columns, rows))
  return out


def _copied_rows(frame: 'pd.DataFrame') -> list[Finding]:
  out = []
  for kind, pairs in copies.row_pairs(frame, scores(frame)).items():
    shared = [c for c in pairs[0].columns if all(c in pair.columns for pair in pairs)]
    rows = [int(frame.index[i]) for pair in pairs for i in (pair.first, pair.second)]
    text = (
      f'{len(pairs)} pairs of rows that differ only in {kind} share the same values of '
      f'{_list(shared)}, but not the other scores: one side was filled in from the other, as by a '
      f'merge that ignored what they differ in. They are no repeats of a measurement.'
    )
    out.append(Finding('row_copy', 'fault', text, (), tuple(shared), tuple(dict.fromkeys(rows))))
  return out


def _mixed(frame: 'pd.DataFrame') -> list[Finding]:
  out = []
  for column in scores(frame):
    found = denominators.mixed(frame[column].to_numpy(float))
    if found is None:
      continue
    rows = frame.index[found.is_second]
    names = frame.loc[rows, 'model_name'].value_counts()
    text = (
      f'{column} is of two definitions: {int(frame[column].notna().sum()) - len(rows)} values are '
      f'shares of {found.first} {found.kind}, {len(rows)} are of {found.second} '
      f'({", ".join(f"{name} {n}" for name, n in names.items())}). They do not compare.'
    )
    out.append(Finding('mixed', 'fault', text, (), (column,), tuple(map(int, rows))))
  return out


def _scales(frame: 'pd.DataFrame') -> list[Finding]:
  """Scores on 0–1: whole columns, or nearly all scores of one model."""
  out = []
  columns = [c for c in scores(frame) if len(frame[c].dropna().unique()) >= 5]
  small = {}
  for column in columns:
    x = frame[column].dropna()
    # As many different values under 1 as under a hundred: no benchmark that all fail at.
    if x.max() <= 1 and x.median() > 0.05 and x.nunique() > 0.3 * len(x):
      small[column] = x.index
  if small:
    rows = sorted(set().union(*small.values()))
    text = f'{_list(list(small))}: all scores are at most 1: shares, not percent.'
    out.append(Finding('scale', 'fault', text, (), tuple(small), tuple(map(int, rows))))
  rest = [c for c in columns if c not in small]
  for model, part in frame.groupby('model_name'):
    used = [c for c in rest if part[c].nunique() >= 3]
    others = frame[frame['model_name'] != model]
    low = [c for c in used if part[c].max() <= 1 and others[c].median() > 5]
    if len(low) >= 3 and len(low) >= 0.6 * len(used):
      text = f'Scores of {model} are at most 1 in {_list(low)}, where other models have percents.'
      out.append(Finding('scale', 'fault', text, (), tuple(low), tuple(map(int, part.index))))
  return out


def _range(frame: 'pd.DataFrame') -> list[Finding]:
  out = []
  for column in scores(frame):
    wrong = frame.index[(frame[column] < 0) | (frame[column] > 100)]
    if len(wrong):
      text = f'{column} has {words.count(len(wrong), "score")} outside 0–100.'
      out.append(Finding('range', 'fault', text, (), (column,), tuple(map(int, wrong))))
  return out


def _doubled(frame: 'pd.DataFrame') -> list[Finding]:
  """Rows of one identity: equal ones, and ones that differ in scores only."""
  factors = [factor.column for factor in spec_lib.FACTORS.values()]
  known = dict.fromkeys((*table.META, *factors, 'run-id', 'step', 'train-data'))
  key = [c for c in known if c in frame]
  again = frame[key].astype(str).duplicated(keep='first')
  if not again.any():
    return []
  twice = frame.astype(str).duplicated(keep='first')
  out = []
  if twice.any():
    text = f'Twice in the table: {words.count(int(twice.sum()), "row")}.'
    rows = tuple(map(int, frame.index[twice]))
    out.append(Finding('doubled', 'fault', text, (), (), rows))
  other = again & ~twice
  if other.any():
    text = (
      f'{words.count(int(other.sum()), "row")} with the same model, data and factors as another '
      'row but other scores: a factor has no column. Analyses average them.'
    )
    out.append(Finding('unnamed', 'fault', text, (), (), tuple(map(int, frame.index[other]))))
  return out


def _bases(frame: 'pd.DataFrame') -> list[Finding]:
  base = frame[table.is_base(frame)]
  lacking = [m for m in table.models(frame) if m not in set(base['model_name'])]
  if not lacking:
    return []
  text = f'No untrained row of {_list(lacking)}: no gains of theirs.'
  return [Finding('no_base', 'gap', text, tuple(lacking))]


def _missing(frame: 'pd.DataFrame') -> list[Finding]:
  """Cells that are empty, gathered by rows that lack the same columns; and absent runs."""
  columns = [c for c in scores(frame) if frame[c].notna().mean() >= _RARE]
  lacks = frame[columns].isna()
  out = []
  patterns = lacks[lacks.any(axis=1)].apply(lambda row: tuple(row.index[row]), axis=1)
  for pattern, rows in patterns.groupby(patterns).groups.items() if len(patterns) else ():
    part = frame.loc[rows]
    who = part.groupby(['model_name', part['lora'].map(_method)], dropna=False).size()
    named = ', '.join(f'{name} {method} ({n})' for (name, method), n in who.items())
    text = f'{words.count(len(rows), "row")} without {_list(list(pattern))}: {named}.'
    out.append(Finding('missing', 'gap', text, (), tuple(pattern), tuple(map(int, rows))))
  try:
    block = table.core(frame)
  except table.Skip:
    return out
  for lora, part in block.groupby(block['lora'].astype(bool)):
    there = set(zip(part['model_name'], part['data_name'], strict=True))
    wanted = [(m, d) for m in part['model_name'].unique() for d in part['data_name'].unique()]
    absent = [f'{m} on {d}' for m, d in wanted if (m, d) not in there]
    if absent:
      runs = words.count(len(absent), 'run')
      text = f'Of the core block ({_method(lora)}), {runs} absent: {_list(absent)}.'
      out.append(Finding('missing', 'gap', text))
  return out


def _constant(frame: 'pd.DataFrame') -> list[Finding]:
  out = []
  # Of a study all released columns are there, most of them empty.
  empty = [column for column in table.benchmarks(frame) if not frame[column].notna().any()]
  several = frame['model_name'].nunique() > 1  # Of one, see `_unmoved`.
  if empty:
    text = f'No value: {words.listed(empty)}.'
    out.append(Finding('constant', 'gap', text, (), tuple(empty)))
  for column in table.benchmarks(frame):
    x = frame[column].dropna()
    share = x.value_counts(normalize=True).iloc[0] if len(x) else 1.0
    if column in empty:
      continue
    if len(x) < _RARE * len(frame):
      text = f'{column} has values in {len(x)} of {len(frame)} rows only'
      text += f', of which {share:.0%} are equal.'
    elif share >= _CONSTANT and len(x) > 2 and several:
      text = f'{column} is nearly constant: {share:.0%} of its values are {x.mode().iloc[0]:g}.'
    else:
      continue
    out.append(Finding('constant', 'gap', text, (), (column,)))
  return out


def _unmoved(frame: 'pd.DataFrame') -> list[Finding]:
  """Of one model equal scores are what training did to it, and no fault of the column."""
  if frame['model_name'].nunique() != 1:
    return []
  base = frame[table.is_base(frame)]
  kinds: tuple[list[str], list[str]] = ([], [])
  ends: list[str] = []
  for column in scores(frame):
    share = frame[column].value_counts(normalize=True)
    if share.iloc[0] < _CONSTANT or frame[column].notna().sum() < 3:
      continue
    held = base[column].dropna()
    kinds[0 if len(held) and (held == share.index[0]).all() else 1].append(column)
    ends += [column] if share.index[0] in (0, 100) else []
  said = ('Training moved {} in hardly any row.', '{} tells hardly any data apart.')
  out = []
  for columns, text in zip(kinds, said, strict=True):
    text = text.format(_list(columns))
    if extreme := [c for c in columns if c in ends]:
      text += (
        f' All or none is right in {_list(extreme)}: too easy, too hard, or answers not found.'
      )
    if columns:
      out.append(Finding('unmoved', 'note', text, (), tuple(columns)))
  return out


def _format_limited(frame: 'pd.DataFrame') -> list[Finding]:
  """Bases that score low for want of the answer's form: hardly any data fails to mend it."""
  try:
    block, columns = table.core(frame), scores(frame)
  except table.Skip:
    return []
  start = frame[table.is_base(frame)].groupby('model_name')[columns].mean()
  found: dict[str, list[str]] = {}
  for model, part in block.groupby('model_name'):
    if model not in start.index or part['data_name'].nunique() < 3:
      continue
    for column in (c for c in columns if not c.startswith('mtbench') and c not in table.JUDGED):
      base, after = start.loc[model, column], part[column].dropna()
      chance = _CHANCE.get(column.split('-')[0])
      if not len(after) or not np.isfinite(base):
        continue
      guess = chance is not None and base <= _BELOW * chance
      guess = guess and after.median() >= max(base + _JUMP, _RISE * base)
      if guess or after.quantile(0.75) >= _TIMES * base + _PLUS:
        found.setdefault(str(model), []).append(f'{table.short(column)} {base:.1f}')
  if not found:
    return []
  parts = [f'{model} ({", ".join(names)})' for model, names in found.items()]
  text = (
    'Untrained models score at or below chance, or near nothing, where most data lift them far: '
    f'{"; ".join(parts)}. Gains there are largely of learning the form of the answer.'
  )
  return [Finding('format', 'note', text)]


def _repeats(frame: 'pd.DataFrame') -> list[Finding]:
  seeds = [c for c in ('seed-data', 'seed-init', 'seed-dropout') if c in frame]
  if any(frame[c].dropna().nunique() > 1 for c in seeds) or table.is_base(frame).all():
    return []
  text = 'No run was repeated with another seed: how much of a difference is chance is not known.'
  return [Finding('repeats', 'note', text)]


def _method(lora: Any) -> str:
  return 'untrained' if lora is None or lora != lora else 'LoRA' if lora else 'full'


def _list(names: Sequence[str]) -> str:
  more = f' and {len(names) - _LISTED} more' if len(names) > _LISTED else ''
  return ', '.join(str(name) for name in names[:_LISTED]) + more


CHECKS: dict[str, Callable[['pd.DataFrame'], list[Finding]]] = {
  'base_copy': _duplicate_bases,
  'row_copy': _copied_rows,
  'mixed': _mixed,
  'scale': _scales,
  'range': _range,
  'doubled': _doubled,
  'no_base': _bases,
  'missing': _missing,
  'constant': _constant,
  'unmoved': _unmoved,
  'format': _format_limited,
  'repeats': _repeats,
}


def as_json(findings: Sequence[Finding]) -> list[dict[str, Any]]:
  """Findings as plain values."""
  return [{k: v for k, v in dataclasses.asdict(f).items() if v != ()} for f in findings]

"""A result table as all analyses read it: scores on 0–100, rows told apart by what they are.

A table has the released header (`results.RELEASED_COLUMNS`), perhaps with further columns: the
released 1,027 rows, the `results.csv` of a study, or both together. Nothing here judges the rows
(`checks.py`) or computes with them (`gains.py` and after).
"""

import csv
import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from etils import epath

from sft_jax import results
from sft_jax.utils import io, words
from sft_jax.utils.errors import UserError

if TYPE_CHECKING:
  import pandas as pd

META = ('model_name', 'data_name', 'lora', 'epoch', 'data_size', 'lr_strategy')
# The complete 0-shot set, in the order of figures.
MAIN = (
  'math-0shot',
  'gsm8k-0shot',
  'humaneval-0shot',
  'mbpp-0shot',
  'BoolQ-0shot',
  'nq-0shot',
  'Truthful_QA-0shot',
  'mmlu-0shot',
  'cmmlu-0shot',
  'jmmlu-0shot',
  'mtbench-total',
  'alpaca_eval_v2-total',
)
CATEGORIES = {
  'Math': ('math-0shot', 'gsm8k-0shot'),
  'Coding': ('humaneval-0shot', 'mbpp-0shot'),
  'Knowledge': ('BoolQ-0shot', 'nq-0shot', 'Truthful_QA-0shot'),
  'Examination': ('mmlu-0shot', 'cmmlu-0shot', 'jmmlu-0shot'),
  'Instruction': ('mtbench-total', 'alpaca_eval_v2-total'),
}
# Scores that a model gave, which have no right answer.
JUDGED = ('mtbench-total', 'alpaca_eval_v2-total')
# Language of pre-training, as the study groups its models; other models have no group.
LANGUAGES = {
  'en': ('OLMo-7B-hf', 'Meta-Llama-3-8B', 'Mistral-7B-v0.1', 'Gemma2-9B'),
  'zh': ('Qwen2.5-7B', 'llama-3-chinese-8b', 'Chinese-Mistral-7B-v0.1', 'Yi-1.5-9B'),
  'ja': ('LLM-jp-3-7B', 'Llama-3-Swallow-8B-v0.1', 'Sarashina2-7B'),
}
# Models that were trained on from one of the others.
FAMILIES = {
  'Llama3': ('Meta-Llama-3-8B', 'llama-3-chinese-8b', 'Llama-3-Swallow-8B-v0.1'),
  'Mistral': ('Mistral-7B-v0.1', 'Chinese-Mistral-7B-v0.1'),
}
_NAMES = ('model_name', 'data_name', 'lr_strategy')  # Words, though one may be a number.
BASE = 'pretrain'  # What a base's row has for data.
ALL = 'all'  # All data sets together.
WITHOUT = 'w/o-'  # All but the one named after it.

# How the published scores become 0–100: column (or its beginning) -> the largest value there may
# be as written, and the factor.
_SCALES = {'Truthful_QA': (1.0, 100.0), 'mtbench-': (10.0, 10.0)}
# Parts of other scores, and a column that is almost empty: never in an average.
_PARTS = ('mtbench-', 'LongBench')
_SHOTS = re.compile(r'[-_]\d+shot(-ll|-gen)?$')
# Sizes that differ by less than this factor are one size: data of n records, less what is held out.
_SIZE_RATIO = 1.5
_ABSURD = 1e6  # No score on any scale is so large.


class Skip(Exception):
  """An analysis cannot be made of this table; the text is what it needs."""


def read(path: epath.PathLike) -> 'pd.DataFrame':
  """Reads a result table (csv or parquet).

  Scores are numbers on 0–100 (TruthfulQA × 100, MT-Bench × 10), `lora` is True, False or None.
  `frame.attrs['notes']` says what was missing or amended, in sentences.

  Raises:
    UserError: no such file, no table, or no column that names models, data or scores.
  """
  frame = _frame(path)
  notes: list[str] = []
  frame = _one_of_each(frame, notes)
  if missing := [c for c in ('model_name', 'data_name') if c not in frame]:
    raise UserError(
      f'the table has no column {" and no ".join(missing)}',
      str(path),
      'give a results.csv of a study, or a table with the released header',
    )
  if not len(frame):
    raise UserError('the table has no rows', str(path), 'give one with results')
  frame = _complete(frame, notes)
  columns = benchmarks(frame)
  if not columns:
    raise UserError(
      'the table has no scores', str(path), f'name them as released, such as {MAIN[0]}'
    )
  frame = _as_numbers(frame, columns, notes)
  _to_percent(frame, columns, notes)
  frame.attrs['notes'] = notes
  return frame


def benchmarks(frame: 'pd.DataFrame') -> list[str]:
  """Its score columns: the released ones in their order, then others by name.

  A score that is not of the released table is one that has a count of items (`NAME-n`) beside it,
  or is named after its shots. Perplexities are no scores.
  """
  released = [c for c in results.RELEASED_COLUMNS if c in frame and c not in META]
  own = [
    c
    for c in frame.columns
    if c not in results.RELEASED_COLUMNS
    and (f'{c}-n' in frame or _SHOTS.search(str(c)))
    and not str(c).startswith(('ppl-', 'bits-per-byte'))
  ]
  return [*released, *sorted(own)]


def main(frame: 'pd.DataFrame') -> list[str]:
  """The scores that averages are made of: of each benchmark one, as far as it has values.

  Of the released scores the twelve of `MAIN`; where some are absent, others of the same table
  stand in for what would go unseen. Scores with names of their own all count.
  """
  filled = [c for c in benchmarks(frame) if frame[c].notna().any()]
  chosen = [c for c in MAIN if c in filled]
  chosen += [c for c in filled if c not in results.RELEASED_COLUMNS]
  if len(chosen) < len(MAIN) or not set(MAIN) <= set(chosen):
    seen = {_stem(c) for c in chosen}
    for column in filled:
      if column not in chosen and not column.startswith(_PARTS) and _stem(column) not in seen:
        seen.add(_stem(column))
        chosen.append(column)
  return chosen


def is_base(frame: 'pd.DataFrame') -> 'pd.Series':
  """True for rows of untrained models."""
  return frame['data_name'] == BASE


def is_single(frame: 'pd.DataFrame') -> 'pd.Series':
  """True for rows trained on one data set."""
  names = frame['data_name'].astype(str)
  merged = (names == ALL) | names.str.startswith((WITHOUT, 'mix:', 'without:', f'{ALL}+'))
  return ~is_base(frame) & ~merged


def core(frame: 'pd.DataFrame') -> 'pd.DataFrame':
  """The block most is known of: single data sets of one size, one schedule, at one epoch.

  Of all (size, schedule, epoch) the one that has most (model, data, method), the latest epoch
  where several do. On the released table: 1k, cosine, epoch 10.

  Raises:
    Skip: no model was trained on a single data set.
  """
  single = frame[is_single(frame)]
  if single.empty:
    raise Skip('needs rows of models trained on one data set')
  blocks = single.assign(_size=size_classes(single['data_size'])).groupby(
    ['_size', 'lr_strategy', 'epoch'], dropna=False, sort=True
  )
  count = lambda part: len(part[['model_name', 'data_name', 'lora']].drop_duplicates())
  best = max(((count(part), part['epoch'].iloc[0], key) for key, part in blocks))[2]
  return blocks.get_group(best).drop(columns='_size')


def mixtures(frame: 'pd.DataFrame', block: 'pd.DataFrame') -> 'pd.DataFrame':
  """Rows trained on mixtures that differ from a core block in nothing but the data."""
  names = frame['data_name'].astype(str)
  mixed = ~is_base(frame) & ~is_single(frame) & (names != ALL) & ~names.str.startswith(WITHOUT)
  first, ratio = block.iloc[0], frame['data_size'] / max(block['data_size'].max(), 1.0)
  like = (frame['lr_strategy'] == first['lr_strategy']) & (frame['epoch'] == first['epoch'])
  return frame[mixed & like & ratio.between(1 / _SIZE_RATIO, _SIZE_RATIO)]


def size_classes(sizes: 'pd.Series') -> 'pd.Series':
  """The largest of the sizes that count as one, for each."""
  ordered = sorted(sizes.dropna().unique())
  top: dict[float, float] = {}
  group: list[float] = []
  for size in ordered:
    if group and size > group[-1] * _SIZE_RATIO:
      top |= dict.fromkeys(group, group[-1])
      group = []
    group.append(size)
  top |= dict.fromkeys(group, group[-1] if group else 0.0)
  return sizes.map(top).fillna(0.0)


def language(model: str) -> str:
  """'en', 'zh', 'ja', or '' for a model in no group."""
  return next((key for key, names in LANGUAGES.items() if model in names), '')


def models(frame: 'pd.DataFrame') -> list[str]:
  """Names of its models, sorted."""
  return sorted(frame['model_name'].astype(str).unique())


def short(column: str) -> str:
  """A benchmark's name for figures."""
  named = {'Truthful_QA-0shot': 'TruthfulQA', 'mtbench-total': 'MT-Bench'}
  named |= {'alpaca_eval_v2-total': 'AlpacaEval', 'cmmlu-0shot': 'MMLU-zh'}
  named |= {'jmmlu-0shot': 'MMLU-jp', 'math-0shot': 'MATH', 'gsm8k-0shot': 'GSM8K'}
  named |= {'humaneval-0shot': 'HumanEval', 'mbpp-0shot': 'MBPP', 'BoolQ-0shot': 'BoolQ'}
  named |= {'nq-0shot': 'NQ', 'mmlu-0shot': 'MMLU'}
  return named.get(column, column)


def _stem(column: str) -> str:
  return re.split(r'[-_]\d+shot|-total', column)[0]


def _frame(path: epath.PathLike) -> 'pd.DataFrame':
  """The file's cells; doubled columns get their own names `NAME.1`."""
  import pandas as pd

  file = epath.Path(path)
  if not file.exists():
    raise UserError('no such table', str(path), 'give a results.csv, or the workdir of a study')
  try:
    with io.explain_unreadable(path):
      if file.suffix == '.parquet':
        return pd.read_parquet(file)
      with file.open('r') as f:
        header = next(csv.reader(f), [])
      if not header or (len(header) == 1 and re.search(r'[;\t|]', header[0])):
        what = 'one column' if header else 'an empty file'
        raise UserError(what, str(path), 'give comma-separated values with a header')
      with file.open('r') as f:
        kinds: Any = dict.fromkeys((*_NAMES, 'run-id'), str)
        return pd.read_csv(f, names=_own_names(header), skiprows=1, low_memory=False, dtype=kinds)
  except (ValueError, csv.Error) as e:
    reason = str(e).splitlines()[0]
    raise UserError(f'not a table: {reason}', str(path), 'give a csv or parquet file') from e


def _own_names(header: Sequence[str]) -> list[str]:
  """The header, where a name that comes again carries a number; the index has none."""
  seen: dict[str, int] = {}
  out = []
  for name in header:
    name = name.strip('\ufeff \t')  # Spreadsheets begin a file with a mark of its encoding.
    again = seen.get(name, 0)
    seen[name] = again + 1
    out.append(f'{name}\n{again}' if again else name)
  return out


def _one_of_each(frame: 'pd.DataFrame', notes: list[str]) -> 'pd.DataFrame':
  """Drops the index, and of doubled columns the later one; where they differ, both."""
  drop = [c for c in frame.columns if str(c) == '' or str(c).startswith('Unnamed: ')]
  for column in [c for c in frame.columns if '\n' in str(c)]:
    first = str(column).split('\n')[0]
    drop.append(column)
    if first == '' or first not in frame:
      continue
    if frame[first].equals(frame[column]):
      notes.append(f'Column {first} stands twice, with the same values: one is used.')
    else:
      notes.append(f'Column {first} stands twice, with different values: neither is used.')
      drop.append(first)
  return frame.drop(columns=list(dict.fromkeys(drop)))


def _complete(frame: 'pd.DataFrame', notes: list[str]) -> 'pd.DataFrame':
  """Adds what a table may lack of `META`, and gives each its type."""
  import pandas as pd

  frame = frame.copy()
  base = is_base(frame)
  given = {
    'lora': ('method', 'all rows are taken as full fine-tuning', False),
    'epoch': ('epoch', 'all rows are taken as of one epoch', 1),
    'data_size': ('size', 'all data are taken as of one size', 0),
    'lr_strategy': ('schedule', 'all rows are taken as of one schedule', 'unknown'),
  }
  for column, (word, then, value) in given.items():
    if column not in frame:
      notes.append(f'The table has no column {column} ({word}): {then}.')
      frame[column] = value
  said = frame['lora'].map(lambda v: str(v).strip().lower())
  lora = said.map({'true': True, 'false': False, '1': True, '0': False, '1.0': True, '0.0': False})
  frame['lora'] = lora.astype(object).where(lora.notna() & ~base, None)
  for column in ('epoch', 'data_size'):
    frame[column] = pd.to_numeric(frame[column], errors='coerce').fillna(0.0)
  for column in _NAMES:
    there = frame[column].notna()
    frame[column] = frame[column].astype(str).astype(object).where(there, None)
  unnamed = frame['model_name'].isna() | frame['data_name'].isna()
  if unnamed.any():
    rows = words.count(int(unnamed.sum()), 'row')
    notes.append(f'Left out: {rows} without the name of a model or of data.')
    frame = frame[~unnamed]
  unknown = frame['lora'].isna() & ~is_base(frame)
  if unknown.any():
    rows = words.count(int(unknown.sum()), 'trained row')
    notes.append(f'{rows} not saying whether by LoRA: taken as full.')
    frame.loc[unknown, 'lora'] = False
  absent = [c for c in MAIN if c not in frame]
  if absent:
    notes.append(f'The table has no column {", ".join(absent)}.')
  return frame.reset_index(drop=True)


def _as_numbers(frame: 'pd.DataFrame', columns: Iterable[str], notes: list[str]) -> 'pd.DataFrame':
  import pandas as pd

  numbers: dict[str, Any] = {}
  for column in columns:
    value = pd.to_numeric(frame[column], errors='coerce').astype(float)
    value = value.where(value.abs() <= _ABSURD)
    if lost := int((value.isna() & frame[column].notna()).sum()):
      cells = words.count(lost, 'cell')
      notes.append(f'{column}: no score in {cells}, taken as missing.')
    numbers[column] = value
  rest = frame.drop(columns=list(numbers))
  return pd.concat([rest, pd.DataFrame(numbers)], axis=1)[frame.columns]


def _to_percent(frame: 'pd.DataFrame', columns: Iterable[str], notes: list[str]) -> None:
  for column in columns:
    for start, (top, factor) in _SCALES.items():
      if not column.startswith(start) or not frame[column].notna().any():
        continue
      if frame[column].max() > top:
        notes.append(f'{column} exceeds {top:g}, as released at most: taken as 0–100 already.')
      else:
        frame[column] *= factor

"""Named data sets, the choice of records, and the held-out part. Not for reading: `formats.py`."""

import dataclasses
import hashlib
import importlib.resources
from collections.abc import Sequence
from typing import Any

from sft_jax.data.formats import Record, read_records
from sft_jax.utils.errors import UserError

# path: what `formats.read_records` takes, or builtin:FILE. turns: keep so many questions (0: all).
# columns: {field in the data: field of the format}. The licence is the one published with the data.
DATASETS: dict[str, dict[str, Any]] = {
  'builtin': {
    'path': 'builtin:quickstart.jsonl',
    'format': 'messages',
    'licence': 'Apache-2.0',
    'note': 'written for this project: general, code, maths, short answers; has a held-out part',
  },
  'alpaca_cleaned': {
    'path': 'hf:yahma/alpaca-cleaned',
    'format': 'alpaca',
    'licence': 'CC BY-NC 4.0',
    'note': '52k instructions',
  },
  'lima': {
    'path': 'hf:GAIR/lima',
    'format': 'sharegpt',
    'turns': 1,
    'licence': 'CC BY-NC-SA 4.0 or stricter',
    'note': '1,030 conversations; the first turn of each; gated',
  },
  'ultrachat': {
    'path': 'hf:HuggingFaceH4/ultrachat_200k@train_sft',
    'format': 'messages',
    'turns': 1,
    'licence': 'MIT',
    'note': '208k of the dialogues; the first turn of each',
  },
  'code_alpaca': {
    'path': 'hf:sahil2801/CodeAlpaca-20k',
    'format': 'alpaca',
    'licence': 'CC BY 4.0',
    'note': '20k code instructions',
  },
  'magicoder': {
    'path': 'hf:ise-uiuc/Magicoder-Evol-Instruct-110K',
    'format': 'alpaca',
    'licence': 'Apache-2.0',
    'note': '111k code instructions, decontaminated by its authors',
  },
  'openmath': {
    'path': 'hf:nvidia/OpenMathInstruct-1',
    'format': 'question_answer',
    'columns': {'generated_solution': 'answer'},
    'licence': 'NVIDIA licence',
    'note': '1.8M solutions with Python code',
  },
  'math': {
    'path': 'hf:TIGER-Lab/MathInstruct',
    'format': 'alpaca',
    'licence': 'mixed, see its card',
    'note': '262k from 13 sources, reasoning in words and in programs',
  },
  'numina': {
    'path': 'hf:AI-MO/NuminaMath-CoT',
    'format': 'messages',
    'licence': 'Apache-2.0',
    'note': '860k competition problems',
  },
  'gsm8k': {
    'path': 'hf:openai/gsm8k:main',
    'format': 'question_answer',
    'licence': 'MIT',
    'note': '7,473 word problems',
  },
  'boolq': {
    'path': 'hf:google/boolq',
    'format': 'question_answer',
    'licence': 'CC BY-SA 3.0',
    'note': '9,427 yes/no questions on a passage',
  },
  'nq_open': {
    'path': 'hf:google-research-datasets/nq_open',
    'format': 'question_answer',
    'licence': 'CC BY-SA 3.0',
    'note': '87,925 questions; the first answer is trained',
  },
  'trivia_qa': {
    'path': 'hf:mandarjoshi/trivia_qa:rc.nocontext',
    'format': 'question_answer',
    'licence': 'Apache-2.0 (release)',
    'note': '138k questions without their documents',
  },
  'arc_easy': {
    'path': 'hf:allenai/ai2_arc:ARC-Easy',
    'format': 'question_answer',
    'licence': 'CC BY-SA 4.0',
    'note': '2,251 questions; the right option is trained, options are not shown',
  },
  'arc_challenge': {
    'path': 'hf:allenai/ai2_arc:ARC-Challenge',
    'format': 'question_answer',
    'licence': 'CC BY-SA 4.0',
    'note': '1,119 questions; the right option is trained, options are not shown',
  },
  'squad_v2': {
    'path': 'hf:rajpurkar/squad_v2',
    'format': 'question_answer',
    'licence': 'CC BY-SA 4.0',
    'note': '130k questions on a passage; those without an answer are dropped',
  },
}


def load_records(
  name: str = '',
  path: str = '',
  fmt: str = 'auto',
  size: int = 0,
  seed: int = 0,
  heldout_share: float = 0.05,
  turns: int = 0,
  revision: str = '',
  cache_dir: str = '',
) -> tuple[list[Record], list[Record]]:
  """The training and the held-out records of a named data set or a path.

  The held-out part is cut first and depends on contents alone, so it is the same for every `size`
  and `seed`. A smaller `size` with the same seed is a subset of a larger one.

  Args:
    name: A key of DATASETS; or give `path`.
    path: See `formats.read_records`.
    fmt: See `formats.read_records`; 'auto' takes the named row's format.
    size: Training records to choose among those that can be trained on; 0 keeps all records.
    seed: Seed of the choice.
    heldout_share: Share of the records held out; 0 holds none out but those the data name.
    turns: Keep so many questions of each conversation; 0 keeps what the row says, or all.
    revision: Branch, tag or commit of a hub data set; '' takes the row's.
    cache_dir: See `readers.read_raw`.

  Raises:
    UserError: No or two sources, an unknown name, a size that the data do not have, or all records
      held out.
  """
  row = described(name, path)
  records = read_records(
    _builtin(row['path']),
    row.get('format', 'auto') if fmt == 'auto' else fmt,
    cache_dir=cache_dir,
    revision=revision or row.get('revision', ''),
    columns=row.get('columns'),
  )
  turns = turns or row.get('turns', 0)
  if turns:
    records = [first_turns(record, turns) for record in records]
  train, heldout = split_heldout(records, heldout_share)
  if not train:
    raise UserError(
      'all records are held out', where=name or path, how='lower config.data.heldout_share'
    )
  return (choose(train, size, seed, name or path) if size else train), heldout


def described(name: str, path: str) -> dict[str, Any]:
  """The row of a named data set, or one that has nothing but the path.

  Raises:
    UserError: no or two sources, an unknown name.
  """
  if bool(name) == bool(path):
    raise UserError('give either a data set name or a path', where='config.data')
  if name and name not in DATASETS:
    raise UserError(
      f'unknown data set {name!r}', 'config.data.name', f'known: {", ".join(DATASETS)}'
    )
  return DATASETS[name] if name else {'path': path}


def _builtin(path: str) -> str:
  if not path.startswith('builtin:'):
    return path
  return str(importlib.resources.files('sft_jax.data') / 'builtin' / path.removeprefix('builtin:'))


def first_turns(record: Record, turns: int) -> Record:
  """The record up to its `turns`-th answered question."""
  answered = 0
  for index, message in enumerate(record.messages):
    following = record.messages[index + 1 : index + 2]
    if message['role'] == 'assistant' and not (following and following[0]['role'] == 'assistant'):
      answered += 1
      if answered == turns:
        return dataclasses.replace(record, messages=record.messages[: index + 1])
  return record


def _draw(text: str) -> float:
  """A number in [0, 1) from a hash."""
  digest = hashlib.sha256(text.encode('utf-8')).digest()
  return int.from_bytes(digest[:6], 'big') / 2**48


def split_heldout(
  records: Sequence[Record], share: float, salt: str = 'heldout'
) -> tuple[list[Record], list[Record]]:
  """Splits by a hash of the evened-out content, so duplicates fall on the same side.

  Data that name a held-out part keep it, and nothing else is held out. Raises UserError for a
  share outside [0, 1).
  """
  if not 0 <= share < 1:
    raise UserError(f'the held-out share is {share}', how='use 0 or more, and less than 1')
  named = any(record.split == 'heldout' for record in records)
  train: list[Record] = []
  heldout: list[Record] = []
  for record in records:
    out = record.split == 'heldout' if named else _draw(f'{salt}/{record.key}') < share
    (heldout if out else train).append(record)
  return train, heldout


def choose(records: Sequence[Record], size: int, seed: int, where: str = '') -> list[Record]:
  """`size` records without a problem, by hash of seed and content, in their own order."""
  usable = [(index, record) for index, record in enumerate(records) if not record.problem]
  if not 0 < size <= len(usable):
    raise UserError(
      f'{size} records are wanted, {len(usable)} are there to choose from',
      where=where,
      how='lower config.data.size (0 takes all)',
    )
  ranked = sorted(usable, key=lambda item: (_draw(f'{seed}/{item[1].key}'), item[0]))
  return [record for _, record in sorted(ranked[:size], key=lambda item: item[0])]

"""Exact match on the held-out short and maths questions of the built-in instruction set.

A quick look at whether training took hold: it rewards the form of an answer (bare, or ending in
`Answer: N`) as much as its content. Not a benchmark, and no model is called here: the caller
generates one output for each prompt.
"""

import importlib.resources
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from sft_jax.utils.errors import UserError

CATEGORIES = ('short', 'maths')

_QUOTES = '"\'`“”‘’«»'
_NUMBER = re.compile(r'\s*[*_]*\s*[$€£]?\s*([-−]?(?:\d[\d,]*(?:\.\d+)?|\.\d+))')


class Item(NamedTuple):
  """One question: the messages to put to the model, its gold answer, and its category."""

  prompt: list[dict[str, str]]
  gold: str
  category: str


def read_records() -> list[dict[str, Any]]:
  """The objects of the built-in file."""
  file = importlib.resources.files('sft_jax.data') / 'builtin' / 'quickstart.jsonl'
  return [json.loads(line) for line in file.read_text('utf-8').splitlines()]


def items(records: Iterable[Mapping[str, Any]]) -> list[Item]:
  """Questions of the task: the held-out records of the categories short and maths, in file order.

  Args:
    records: Objects of a built-in file: `messages` (ending with the assistant's), `category`,
      `split` ('train' or 'heldout').

  Returns:
    Items whose prompt is every message but the last and whose gold is `extract` of the last.

  Raises:
    UserError: A record of the task has no answer to extract.
  """
  out = []
  for number, record in enumerate(records, start=1):
    category = record['category']
    if record['split'] != 'heldout' or category not in CATEGORIES:
      continue
    *prompt, last = record['messages']
    gold = extract(last['content'], category) if last['role'] == 'assistant' else ''
    if not prompt or not gold:
      raise UserError(
        f'a held-out record of category {category} has no answer',
        f'record {number}',
        'end it with an assistant message: a bare word (short) or a line "Answer: N" (maths)',
      )
    out.append(Item([dict(message) for message in prompt], gold, category))
  return out


def extract(text: str, category: str) -> str:
  """The comparable answer in a model's output; '' when there is none.

  short: the first non-empty line, case-folded, without surrounding quotes and final full stop.
  maths: the number after the last 'Answer:', without currency sign, thousands commas and
  redundant zeros ('1,200.50' gives '1200.5').

  Raises:
    ValueError: `category` is neither short nor maths.
  """
  if category == 'short':
    lines = text.strip().splitlines()
    return _bare(lines[0]).casefold() if lines else ''
  if category == 'maths':
    _, marker, rest = text.rpartition('Answer:')
    found = _NUMBER.match(rest) if marker else None
    return _plain_number(found.group(1)) if found else ''
  raise ValueError(f'category {category!r} is not one of {CATEGORIES}')


def score(outputs: Sequence[str], items: Sequence[Item]) -> dict[str, Any]:
  """Exact-match accuracy of one output for each item.

  Returns:
    'builtin-em' (percent), 'builtin-em-stderr' (standard error of that mean in points, with the
    sample variance as lm-eval takes it; 0 for a single item), 'builtin-em-n' (items), and
    'builtin-em-items': for each item its category, gold, extracted answer, output and 'correct'.

  Raises:
    ValueError: There are no items, or not one output for each.
  """
  if not items or len(outputs) != len(items):
    raise ValueError(f'{len(outputs)} outputs for {len(items)} items: need one each, at least one')
  rows: list[dict[str, Any]] = []
  for output, item in zip(outputs, items, strict=True):
    answer = extract(output, item.category)
    rows.append(
      {
        'category': item.category,
        'gold': item.gold,
        'extracted': answer,
        'output': output,
        'correct': answer == item.gold,
      }
    )
  n = len(rows)
  mean = sum(row['correct'] for row in rows) / n
  return {
    'builtin-em': 100 * mean,
    'builtin-em-stderr': 100 * math.sqrt(mean * (1 - mean) / (n - 1)) if n > 1 else 0.0,
    'builtin-em-n': n,
    'builtin-em-items': rows,
  }


def _bare(text: str) -> str:
  """`text` without surrounding space, quotes and full stop, in whatever order they nest."""
  return text.strip(_QUOTES + '. \t')


def _plain_number(text: str) -> str:
  """One spelling for equal decimals: no commas, no leading or trailing zeros, no '-0'."""
  text = text.replace(',', '').replace('−', '-')
  sign, digits = ('-', text[1:]) if text.startswith('-') else ('', text)
  whole, _, fraction = digits.partition('.')
  whole, fraction = whole.lstrip('0') or '0', fraction.rstrip('0')
  plain = f'{whole}.{fraction}' if fraction else whole
  return plain if plain == '0' else sign + plain

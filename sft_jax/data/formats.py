"""Raw records of public data sets to conversations. Not for reading files: see `readers.py`."""

import dataclasses
import functools
import hashlib
import math
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from sft_jax.data.readers import read_raw
from sft_jax.utils.errors import UserError

Message = dict[str, str]

ROLES = {
  'system': 'system',
  'developer': 'system',
  'human': 'user',
  'user': 'user',
  'prompter': 'user',
  'gpt': 'assistant',
  'chatgpt': 'assistant',
  'bard': 'assistant',
  'bing': 'assistant',
  'assistant': 'assistant',
  'model': 'assistant',
  'tool': 'tool',
  'function': 'tool',
  'observation': 'tool',
  'ipython': 'tool',
}

EMPTY = 'empty response'


@dataclasses.dataclass(frozen=True)
class Record:
  """A conversation or a plain text.

  Attributes:
    messages: {'role': system|user|assistant|tool, 'content': str}; empty for plain text.
    source: Where it was read: 'file.jsonl:12'.
    text: The text, when there are no messages.
    split: 'train' or 'heldout' where the data say so, else ''.
    problem: Why it cannot be trained on (such as an empty response), else ''.
  """

  messages: tuple[Message, ...]
  source: str
  text: str = ''
  split: str = ''
  problem: str = ''

  @functools.cached_property
  def key(self) -> str:
    """Hash of the content with case, spacing and Unicode form evened out."""
    parts = [f'{m["role"]}\x1f{_even(m["content"])}' for m in self.messages] or [_even(self.text)]
    return hashlib.sha256('\x1e'.join(parts).encode('utf-8')).hexdigest()[:32]

  @property
  def contents(self) -> tuple[str, ...]:
    """The texts of the record."""
    return tuple(m['content'] for m in self.messages) or (self.text,)


def _even(text: str) -> str:
  return ' '.join(unicodedata.normalize('NFKC', text).casefold().split())


class _Bad(Exception):
  """A field that is missing or of the wrong type."""


def _text(raw: Mapping[str, Any], *names: str, default: str | None = None) -> str:
  """The first of the named fields that is there. None counts as absent when there is a default."""
  for name in names:
    if name in raw and not (raw[name] is None and default is not None):
      return _as_text(raw[name], name)
  if default is None:
    raise _Bad(f'field {names[0]!r} is missing')
  return default


def _as_text(value: Any, name: str) -> str:
  if not isinstance(value, str):
    raise _Bad(f'field {name!r} is {_kind(value)}, not text')
  return value


def _kind(value: Any) -> str:
  return 'null' if value is None else f'a {type(value).__name__}'


def _system(raw: Mapping[str, Any]) -> list[Message]:
  system = _text(raw, 'system', default='')
  return [_say('system', system)] if system.strip() else []


def _say(role: str, content: str) -> Message:
  return {'role': role, 'content': content}


def _alpaca(raw: Mapping[str, Any]) -> list[Message]:
  messages = _system(raw)
  history = raw.get('history') or ()
  for turn in history if isinstance(history, list | tuple) else [history]:
    if not isinstance(turn, list | tuple) or len(turn) != 2:
      raise _Bad("field 'history' is not a list of [question, answer]")
    messages.append(_say('user', _as_text(turn[0], 'history')))
    messages.append(_say('assistant', _as_text(turn[1], 'history')))
  asked = _text(raw, 'instruction')
  extra = _text(raw, 'input', 'context', default='')
  messages.append(_say('user', f'{asked}\n{extra}' if extra.strip() else asked))
  messages.append(_say('assistant', _text(raw, 'output', 'response')))
  return messages


def _turns(
  value: Any, name: str, role_keys: Sequence[str], text_keys: Sequence[str]
) -> list[Message]:
  """A list of {role, content}, a dict of lists (as TFDS gives it), or alternating texts."""
  if isinstance(value, Mapping):
    columns = {key: column for key, column in value.items() if isinstance(column, list)}
    if len(set(map(len, columns.values()))) != 1:
      raise _Bad(f'field {name!r} is an object without lists of one length')
    value = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
  if not isinstance(value, list | tuple):
    raise _Bad(f'field {name!r} is {_kind(value)}, not a list')
  messages = []
  for index, turn in enumerate(value):
    if isinstance(turn, str):
      messages.append(_say('assistant' if index % 2 else 'user', turn))
      continue
    if not isinstance(turn, Mapping):
      raise _Bad(f'{name}[{index}] is {_kind(turn)}, not an object')
    role = _text(turn, *role_keys)
    if role.lower() not in ROLES:
      raise _Bad(f'{name}[{index}] has the unknown role {role!r} (known: {", ".join(ROLES)})')
    messages.append(_say(ROLES[role.lower()], _content(turn, f'{name}[{index}]', text_keys)))
  return messages


def _content(turn: Mapping[str, Any], name: str, text_keys: Sequence[str]) -> str:
  """Text, or a list of {'type': 'text', 'text': …} parts."""
  parts = next((turn[key] for key in text_keys if key in turn), None)
  if not isinstance(parts, list):
    try:
      return _text(turn, *text_keys)
    except _Bad as error:
      raise _Bad(f'{name}: {error}') from error
  if not all(isinstance(p, Mapping) and p.get('type', 'text') == 'text' for p in parts):
    raise _Bad(f'{name} holds something other than text')
  return ''.join(_text(part, 'text') for part in parts)


def _messages(raw: Mapping[str, Any]) -> list[Message]:
  return _turns(raw['messages'], 'messages', ('role', 'from'), ('content', 'value'))


def _sharegpt(raw: Mapping[str, Any]) -> list[Message]:
  name = 'conversations' if 'conversations' in raw else 'conversation'
  return _system(raw) + _turns(raw[name], name, ('from', 'role'), ('value', 'content'))


def _prompt_completion(raw: Mapping[str, Any]) -> list[Message]:
  messages: list[Message] = []
  for name, role in (('prompt', 'user'), ('completion', 'assistant')):
    if isinstance(raw[name], list):
      messages += _turns(raw[name], name, ('role', 'from'), ('content', 'value'))
    else:
      messages.append(_say(role, _text(raw, name)))
  return messages


def _question_answer(raw: Mapping[str, Any]) -> list[Message]:
  context = _text(raw, 'passage', 'context', default='')
  asked = _text(raw, 'question')
  return [
    _say('user', f'{context}\n{asked}' if context.strip() else asked),
    _say('assistant', _answer(raw)),
  ]


def _answer(raw: Mapping[str, Any]) -> str:
  """Text, first of a list, yes or no, number, 'value' or 'text' of an object, or the choice."""
  if 'choices' in raw and 'answerKey' in raw:
    return _choice(raw['choices'], raw['answerKey'])
  name = next((n for n in ('answer', 'answers', 'label') if n in raw), 'answer')
  value = raw.get(name)
  if isinstance(value, Mapping):
    value = next((value[key] for key in ('value', 'text', 'answer') if key in value), None)
  if isinstance(value, list | tuple):
    value = value[0] if value else ''
  if isinstance(value, Mapping):
    value = value.get('text')
  if isinstance(value, bool):
    return 'yes' if value else 'no'
  if isinstance(value, int | float):
    if isinstance(value, float) and not math.isfinite(value):
      raise _Bad(f'field {name!r} is {value}, not a finite number')
    return str(value)
  return _as_text(value, name)


def _choice(choices: Any, answer: Any) -> str:
  """The text of {'label': […], 'text': […]} whose label is `answer`."""
  if not isinstance(choices, Mapping):
    choices = {}
  labels, texts = choices.get('label'), choices.get('text')
  if not (isinstance(labels, list) and isinstance(texts, list) and len(labels) == len(texts)):
    raise _Bad("field 'choices' is not an object of two lists, 'label' and 'text', of one length")
  if answer not in labels:
    raise _Bad("field 'answerKey' names no label of 'choices'")
  return _as_text(texts[labels.index(answer)], 'choices')


def _plain_text(raw: Mapping[str, Any]) -> str:
  return _text(raw, 'text')


# name: (any of these sets of keys tells it, what a record looks like, conversion); first match.
FORMATS: dict[str, tuple[tuple[tuple[str, ...], ...], str, Callable[..., Any]]] = {
  'messages': ((('messages',),), 'messages[{role, content}]', _messages),
  'sharegpt': ((('conversations',), ('conversation',)), 'conversations[{from, value}]', _sharegpt),
  'alpaca': (
    (('instruction', 'output'), ('instruction', 'response')),
    'instruction, input, output (and history)',
    _alpaca,
  ),
  'prompt_completion': (
    (('prompt', 'completion'),),
    'prompt, completion (texts or messages)',
    _prompt_completion,
  ),
  'question_answer': (
    (
      ('question', 'answer'),
      ('question', 'answers'),
      ('question', 'choices', 'answerKey'),
      ('question', 'passage', 'label'),
    ),
    'question, answer (and passage or context)',
    _question_answer,
  ),
  'text': ((('text',),), 'text', _plain_text),
}


def detect(raw: Any, where: str) -> str:
  """The name of the format whose keys a raw record has. Raises UserError if there is none."""
  if not isinstance(raw, Mapping):
    raise UserError(
      f'a record is {_kind(raw)}, not an object', where, 'write an object with named fields a line'
    )
  for name, (options, _, _) in FORMATS.items():
    if any(all(key in raw for key in keys) for keys in options):
      return name
  known = '; '.join(f'{name}: {shape}' for name, (_, shape, _) in FORMATS.items())
  found = ', '.join(map(str, list(raw)[:12]))
  raise UserError(
    f'no known format has the fields of this record ({found})', where=where, how=f'known: {known}'
  )


def convert(raw: Any, fmt: str, where: str) -> Record:
  """A raw record as a Record; what follows the last answer is cut off.

  Raises:
    UserError: A missing field, a wrong type, an unknown role, or text that is not Unicode.
  """
  if not isinstance(raw, Mapping):
    raise UserError(
      f'a record is {_kind(raw)}, not an object', where, 'write an object with named fields a line'
    )
  options, shape, conversion = FORMATS[fmt]
  try:
    if not any(all(key in raw for key in keys) for keys in options):
      missing = [key for key in options[0] if key not in raw]
      raise _Bad(f'field {missing[0]!r} is missing' if missing else 'fields are missing')
    made = conversion(raw)
    split = raw.get('split')
    record = Record(
      messages=() if isinstance(made, str) else _answered(made),
      source=where,
      text=made if isinstance(made, str) else '',
      split=split if split in ('train', 'heldout') else '',
    )
    for content in record.contents:
      content.encode('utf-8')
  except (_Bad, ValueError) as error:
    what = 'text with a lone surrogate' if isinstance(error, UnicodeEncodeError) else str(error)
    raise UserError(what, where=where, how=f'{fmt} records have {shape}') from error
  return dataclasses.replace(record, problem=_problem(record))


def _answered(messages: list[Message]) -> tuple[Message, ...]:
  last = max((i for i, m in enumerate(messages) if m['role'] == 'assistant'), default=-1)
  return tuple(messages[: last + 1])


def _problem(record: Record) -> str:
  answers = [m['content'] for m in record.messages if m['role'] == 'assistant'] or [record.text]
  return '' if all(answer.strip() for answer in answers) else EMPTY


def read_records(
  path: str,
  fmt: str = 'auto',
  limit: int = 0,
  empty: str = 'drop',
  cache_dir: str = '',
  revision: str = '',
  columns: Mapping[str, str] | None = None,
  where: Mapping[str, Sequence[str]] | None = None,
) -> list[Record]:
  """Reads a data set.

  Args:
    path: A .json, .jsonl, .csv, .tsv or .parquet file (text also .gz),
      `hf:org/name[:config][@split]` or `tfds:name[:version][@split]`.
    fmt: A key of FORMATS, or 'auto': told from the first record, and then all must have it.
    limit: Read at most this many records; 0 reads all.
    empty: 'drop' marks records with an empty response (tokenising drops them), 'error' refuses.
    cache_dir, revision: See `readers.read_raw`.
    columns: {field in the data: field of the format}.
    where: {field in the data: values}: records with others are left out.

  Raises:
    UserError: See `readers.read_raw` and `convert`; also an unknown format or choice.
  """
  if fmt != 'auto' and fmt not in FORMATS:
    raise UserError(
      f'unknown format {fmt!r}', 'config.data.format', f'use auto or one of: {", ".join(FORMATS)}'
    )
  if empty not in ('drop', 'error'):
    raise UserError(f'unknown choice {empty!r} for empty responses', how='use drop or error')
  records, columns, where = [], columns or {}, where or {}
  for place, raw in read_raw(path, limit, cache_dir, revision):
    if isinstance(raw, Mapping):
      if any(raw.get(key) not in values for key, values in where.items()):
        continue
      raw = {columns.get(key, key): value for key, value in raw.items()}
    if fmt == 'auto':
      fmt = detect(raw, place)
    record = convert(raw, fmt, place)
    if record.problem and empty == 'error':
      raise UserError(record.problem, where=place, how='fill it in or remove the record')
    records.append(record)
  return records

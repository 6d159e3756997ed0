r"""A benchmark of one's own, without code: `custom:PATH`, a file of JSON lines, one record a line.

The task is called as the file's stem (letters, digits, `_` and `-`, made lower case). A record:

  {"question": "What is 6 times 7?", "kind": "numeric", "answer": 42}

Fields of all kinds: `question` (text, put to the model as it stands), `kind` (`choice` where there
are `choices`, else `exact`), `id` (text; by default the line number), `group` (text), `max_new`
(most new tokens; the largest of all records counts, 512 where there is none), `shot` (true: a
solved example put before the questions of its group, or of groups without any, and not one of
them), `solution` (text: what a shot answers, where that is more than the bare answer), `note`
(yours). A field that no kind has is an error, as a misspelt one would be passed over.

  choice    `choices` (2 to 26 texts), `answer` (a letter, an index from 0, or one of the choices).
            `gen` shows the choices with letters and looks for a letter: "answer is B", "Answer: B",
            a letter that begins the output, or a choice written out. `ll` shows none and takes the
            likeliest behind "Answer:" (`acc`; `acc-norm`: log-likelihood by character). `ll` is the
            default, and at hand only, where all records are of this kind.
  exact     `answer` (a text, or a list of which one is enough). Right is an output whose first line
            that is not blank equals it, white space and case aside; `case` (true) heeds case.
  contains  `answer` (a text or a list): right is an output that holds one of them, or with `all`
            (true) all; `case` as above.
  regex     `pattern` (Python's syntax), looked for anywhere in the output; `case` as above. Found
            is its first group, or else all of it; right is what was found, or, where there is an
            `answer` (as for exact), what equals that. Where a pattern backtracks for more than five
            seconds the output is not graded, which is told and counted as missing.
  numeric   `answer` (a number), `tolerance` (absolute, default 0) or `relative` (a share of the
            answer). The last number of the output counts, without its thousands separators (1,234).
  json      `schema`, and `answer` (any value) where it must be that very value. The output's JSON
            is all of it, or what a ``` fence holds, or the first object or list in it. Of JSON
            Schema: type, enum, const, anyOf, properties, required, additionalProperties (a
            boolean), items, minItems, maxItems, minLength, maxLength, pattern, minimum, maximum;
            title, description and $schema are passed over; any other keyword is an error.

Under `raw`, "Answer:" stands on the line after a question. Shots are answered "Answer: …" under any
template; an output may begin so too. Between shots is an empty line, and where none of them holds
one, an output ends there. Not for tasks that need a program or a judge.
"""

import dataclasses
import hashlib
import json
import math
import pathlib
import re
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any

from sft_jax.evals import custom_grades, json_schema, parse, prompts
from sft_jax.evals.benchmark import (
  Benchmark,
  Choices,
  Choose,
  Generate,
  Grade,
  Item,
  Prompt,
  Round,
)
from sft_jax.utils import io
from sft_jax.utils.errors import UserError

PREFIX = 'custom:'
# Raised with any change here that can change a score; the file's content counts besides.
_VERSION = 1
_DEEPEST = 100  # Objects and lists in one another; what reads them is recursive.

_COMMON = ('question', 'kind', 'id', 'group', 'max_new', 'shot', 'solution', 'note', 'answer')
_KINDS: dict[str, tuple[str, ...]] = {
  'choice': ('choices',),
  'exact': ('case',),
  'contains': ('case', 'all'),
  'regex': ('pattern', 'case'),
  'numeric': ('tolerance', 'relative'),
  'json': ('schema',),
}


def load(path: str) -> Benchmark:
  """The benchmark of a file.

  Its version is made of the file's content, so that rows of different contents are not compared.

  Args:
    path: A file of JSON lines, with or without 'custom:' before it.

  Raises:
    UserError: it cannot be read, or a record is not as described above; names file and line.
  """
  path = path.removeprefix(PREFIX)
  with io.explain_unreadable(path):
    data = pathlib.Path(path).read_bytes()
  name = pathlib.Path(path).stem.lower()
  if not re.fullmatch(r'[a-z0-9][a-z0-9_-]*', name):
    raise UserError(f'{name!r} is no name for a task', path, 'use letters, digits, _ and -')
  items: list[Item] = []
  pool: list[Item] = []
  sizes: list[int] = []
  for record, source in _records(path, data):
    item = _item(record, source)
    (pool if record.get('shot') else items).append(item)
    if 'max_new' in record:
      sizes.append(parse.whole(record, 'max_new', source, 1))
  if not items:
    raise UserError('no questions', path, 'give at least one record that is no shot')
  first: dict[str, str] = {}
  for item in (*items, *pool):
    if item.id in first:
      how = 'give every record an id of its own'
      raise UserError(f'id {item.id!r} is that of {first[item.id]} too', item.source, how)
    first[item.id] = item.source
  readings: dict[str, Choose | Generate] = {}
  if all(item.fields['kind'] == 'choice' for item in (*items, *pool)):
    readings['ll'] = Choose(_ask_likely, _choices, _grade_likely, ('acc', 'acc-norm'))
  stops = () if any('\n\n' in item.fields['shown'] for item in pool) else ('\n\n',)
  readings['gen'] = Generate(
    _ask, custom_grades.grade, max(sizes, default=512), lambda shots: stops if shots else ()
  )
  benchmark = Benchmark(
    name=name,
    version=int(hashlib.sha256(b'%d\n%s' % (_VERSION, data)).hexdigest()[:8], 16),
    read=lambda files: (items, pool),
    readings=readings,
    shots=(len(pool), 0) if pool else (0,),
    size=len(items),
    example=(items[0], tuple(pool)),
    prompt_hash={},
    licence='',
    pick=_shots,
  )
  hashes = {reading: prompts.prompt_hash(benchmark, reading) for reading in readings}
  return dataclasses.replace(benchmark, prompt_hash=hashes)


def _records(path: str, data: bytes) -> list[tuple[dict[str, Any], str]]:
  """Objects of the file with their places."""
  found = []
  for number, line in enumerate(data.removeprefix(b'\xef\xbb\xbf').split(b'\n'), 1):
    if not line.strip():
      continue
    source = f'{path}:{number}'
    try:
      record = json.loads(
        line.decode(), object_pairs_hook=_once, parse_constant=custom_grades.refuse
      )
      json.dumps(record, ensure_ascii=False).encode()  # Half of a surrogate pair is no text.
    except UnicodeDecodeError:
      raise UserError('not UTF-8 text', source, 'save the file as UTF-8') from None
    except (ValueError, RecursionError) as error:
      raise UserError(f'not JSON: {error}', source, 'put one object on each line') from error
    if not isinstance(record, dict):
      raise UserError('not an object', source, 'put one object on each line')
    if _is_deeper(record, _DEEPEST):
      raise UserError(f'nested more than {_DEEPEST} deep', source, 'mend the record')
    found.append((record, source))
  return found


def _is_deeper(value: Any, depth: int) -> bool:
  """Whether there are objects and lists in one another more than so deep."""
  level = [value]
  while level and depth >= 0:
    depth -= 1
    inner = [one.values() if isinstance(one, dict) else one for one in level]
    level = [part for parts in inner for part in parts if isinstance(part, (dict, list))]
  return bool(level)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
  made = dict(pairs)
  if len(made) < len(pairs):
    raise ValueError('a field occurs twice')
  return made


def _item(record: Mapping[str, Any], source: str) -> Item:
  kind = record.get('kind', 'choice' if 'choices' in record else 'exact')
  if not isinstance(kind, str) or kind not in _KINDS:
    raise _wrong(source, 'kind', f'is {kind!r}, none of {", ".join(_KINDS)}')
  for name in record:
    if name not in (*_COMMON, *_KINDS[kind]):
      has = ', '.join((*_COMMON, *_KINDS[kind]))
      raise _wrong(source, name, f'is none of the kind {kind}, which has {has}')
  for name in ('shot', 'case', 'all'):
    if not isinstance(record.get(name, False), bool):
      raise _wrong(source, name, 'is neither true nor false')
  fields = {'kind': kind, 'question': parse.text(record, 'question', source)}
  fields |= _READERS[kind](record, source)
  if 'solution' in record:
    fields['shown'] = parse.text(record, 'solution', source)
  elif record.get('shot') and not fields.get('shown'):
    raise _wrong(source, 'answer', 'is missing, and this shot has no "solution" either')
  name = parse.text(record, 'id', source) if 'id' in record else source.rpartition(':')[2]
  group = parse.text(record, 'group', source, empty=True) if 'group' in record else ''
  return Item(name, fields, group, source)


def _wrong(source: str, field: str, what: str) -> UserError:
  return UserError(f'field {field!r} {what}', source, 'mend the record')


def _read_choice(record: Mapping[str, Any], source: str) -> dict[str, Any]:
  choices = parse.texts(record, 'choices', source, 2)
  if len({choice.strip() for choice in choices}) < len(choices) or not all(map(str.strip, choices)):
    raise _wrong(source, 'choices', 'has two that are equal, or an empty one')
  if len(choices) > len(parse.LETTERS):
    raise _wrong(source, 'choices', f'has more than {len(parse.LETTERS)}')
  answer, letters = parse.field(record, 'answer', source), parse.LETTERS[: len(choices)]
  # A choice written out first: among choices 'B', 'A' the answer 'A' would be ambiguous.
  if answer in choices:
    gold = choices.index(answer)
    if answer in tuple(letters) and letters.index(answer) != gold:
      raise _wrong(source, 'answer', f'{answer!r} is a letter and another choice: give an index')
  elif isinstance(answer, str) and answer in tuple(letters):
    gold = letters.index(answer)
  elif isinstance(answer, int) and not isinstance(answer, bool) and 0 <= answer < len(choices):
    gold = answer
  else:
    raise _wrong(source, 'answer', f'is {answer!r}: no letter, index or one of the choices')
  return {'choices': choices, 'gold': gold, 'shown': letters[gold]}


def _read_answers(record: Mapping[str, Any], source: str) -> dict[str, Any]:
  """One text or several, of which one is enough (or, for `contains`, with `all`, all)."""
  given = parse.field(record, 'answer', source)
  answers = parse.texts({'answer': [given] if isinstance(given, str) else given}, 'answer', source)
  if not all(answer.strip() for answer in answers):
    raise _wrong(source, 'answer', 'is empty')
  return {
    'answers': answers,
    'case': record.get('case', False),
    'all': record.get('all', False),
    'shown': ', '.join(answers) if record.get('all') else answers[0],
  }


def _read_regex(record: Mapping[str, Any], source: str) -> dict[str, Any]:
  case = record.get('case', False)
  try:
    pattern = re.compile(parse.text(record, 'pattern', source), 0 if case else re.IGNORECASE)
  except (re.error, OverflowError, RecursionError) as error:
    raise _wrong(source, 'pattern', f'is no regular expression: {error}') from error
  fields = _read_answers(record, source) if 'answer' in record else {'answers': None, 'case': case}
  return fields | {'pattern': pattern.pattern}


def _read_numeric(record: Mapping[str, Any], source: str) -> dict[str, Any]:
  numbers = {}
  for name in ('answer', 'tolerance', 'relative'):
    value = parse.field(record, name, source) if name in record or name == 'answer' else 0
    if not isinstance(value, (int, float)) or isinstance(value, bool) or abs(value) == math.inf:
      raise _wrong(source, name, f'is {value!r}, no number')
    # By its digits: 1.1 is within 0.1 of 1.
    numbers[name] = Decimal(str(value))
  if 'tolerance' in record and 'relative' in record:
    raise _wrong(source, 'relative', 'cannot stand beside "tolerance"')
  within = numbers['tolerance'] + numbers['relative'] * abs(numbers['answer'])
  if within < 0:
    raise _wrong(source, 'tolerance', 'is negative')
  return {'gold': str(numbers['answer']), 'within': str(within), 'shown': str(record['answer'])}


def _read_json(record: Mapping[str, Any], source: str) -> dict[str, Any]:
  schema = parse.field(record, 'schema', source)
  if what := json_schema.fault(schema):
    raise _wrong(source, 'schema', f'is not in order: {what}')
  if 'answer' not in record:
    return {'schema': schema}
  if not json_schema.is_valid(record['answer'], schema):
    raise _wrong(source, 'answer', 'is not what the schema describes')
  shown = json.dumps(record['answer'], ensure_ascii=False)
  return {'schema': schema, 'answer': record['answer'], 'shown': shown}


_READERS = {
  'choice': _read_choice,
  'exact': _read_answers,
  'contains': _read_answers,
  'regex': _read_regex,
  'numeric': _read_numeric,
  'json': _read_json,
}


def _shots(item: Item, pool: Sequence[Item], count: int) -> Sequence[Item]:
  """Those of the question's group, however few, where it has some; else any."""
  group = [shot for shot in pool if item.group and shot.group == item.group]
  return (group or pool)[:count]


def _ask(item: Item, shots: Sequence[Item]) -> Prompt:
  """A question, with its choices if it has some; the model writes what follows "Answer:"."""
  return Prompt(
    (Round('user', _shown(item)), Round('assistant', 'Answer:')),
    tuple(
      (Round('user', _shown(shot)), Round('assistant', f'Answer: {shot.fields["shown"]}'))
      for shot in shots
    ),
    separator='\n\n',
  )


def _shown(item: Item) -> str:
  if item.fields['kind'] != 'choice':
    return item.fields['question']
  return f'{item.fields["question"]}\n{parse.lettered(item.fields["choices"])}'


def _ask_likely(item: Item, shots: Sequence[Item]) -> Prompt:
  """A question without its choices, behind which each of them is scored."""
  question = lambda one: Round('user', f'{one.fields["question"]}\nAnswer:')
  answer = lambda one: Round('assistant', _choices(one)[parse.gold_index(one)])
  solved = tuple((question(shot), answer(shot)) for shot in shots)
  return Prompt((question(item),), solved, delimiter=' ', separator='\n\n')


def _choices(item: Item) -> list[str]:
  return item.fields['choices']


def _grade_likely(item: Item, choices: Choices) -> Grade:
  return parse.graded_choice(parse.gold_index(item), choices, normalised=True)

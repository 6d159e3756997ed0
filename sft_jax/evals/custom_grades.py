"""Grades of outputs by the kinds of answer that a benchmark of one's own may have.

`tasks/custom.py` says what each kind is, and checks the fields before they come here.
"""

import contextlib
import json
import re
import signal
import threading
from collections.abc import Iterator, Mapping
from decimal import Decimal
from typing import Any

from sft_jax.evals import json_schema, parse
from sft_jax.evals.benchmark import Grade, Item
from sft_jax.utils import log

_NUMBER = re.compile(
  r'(?:(?<![\w)])[-−])?(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?(?:[eE][-+]?\d{1,3}(?!\d))?'
)
_FENCE = re.compile(r'```\w*\n(.*?)```', re.DOTALL)
_PREFIX = re.compile(r'\s*answer:', re.IGNORECASE)
_LONGEST_S = 5.0  # For one output; a pattern that backtracks would take years.


def grade(output: str, item: Item) -> Grade:
  """Grades an output by the item's kind; not at all (a grade without scores) where that takes
  longer than `_LONGEST_S`."""
  if beginning := _PREFIX.match(output):
    output = output[beginning.end() :]
  try:
    with _in_time():
      extracted, right = _GRADERS[item.fields['kind']](output, item.fields)
  except TimeoutError:
    why = f'its pattern took more than {_LONGEST_S:g} s'
    log.warn(f'{item.source}: not graded, {why}')
    return Grade({}, None, {'not-graded': why})
  return parse.graded_answer(extracted, right)


@contextlib.contextmanager
def _in_time() -> Iterator[None]:
  """Context that raises TimeoutError after `_LONGEST_S`; in other threads than the main one, and
  where there are no such signals, it is no limit."""
  if threading.current_thread() is not threading.main_thread() or not hasattr(signal, 'setitimer'):
    yield
    return

  def expire(*_: Any) -> None:
    raise TimeoutError

  # `re` looks for signals while it backtracks.
  before = signal.signal(signal.SIGALRM, expire)
  signal.setitimer(signal.ITIMER_REAL, _LONGEST_S)
  try:
    yield
  finally:
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


def _grade_choice(output: str, fields: Mapping[str, Any]) -> tuple[str | None, bool]:
  letters = parse.LETTERS[: len(fields['choices'])]
  said = re.findall(rf"(?i:answer(?:\s+is)?)[\s:*]*\(?([{letters}])(?![\w'])", output)
  begins = re.match(rf'[\s(*]*([{letters}])(?:[).:,*]|\s*$|[^\S\n]*\n)', output)
  if said or begins:
    letter = said[-1] if said else begins[1] if begins else ''
    return letter, letters.index(letter) == fields['gold']
  written = _plain(_first_line(output), False)
  for letter, choice in zip(letters, fields['choices'], strict=True):
    if written == _plain(choice, False):
      return letter, letters.index(letter) == fields['gold']
  return None, False


def _first_line(output: str) -> str:
  return output.strip().partition('\n')[0].strip()


def _plain(text: str, case: bool) -> str:
  text = ' '.join(text.split())
  return text if case else text.casefold()


def _is_one_of(text: str, fields: Mapping[str, Any]) -> bool:
  case = fields['case']
  return any(_plain(text, case) == _plain(answer, case) for answer in fields['answers'])


def _grade_exact(output: str, fields: Mapping[str, Any]) -> tuple[str | None, bool]:
  line = _first_line(output)
  return line or None, _is_one_of(line, fields)


def _grade_contains(output: str, fields: Mapping[str, Any]) -> tuple[str | None, bool]:
  text = _plain(output, fields['case'])
  held = [_plain(answer, fields['case']) in text for answer in fields['answers']]
  return output.strip() or None, all(held) if fields['all'] else any(held)


def _grade_regex(output: str, fields: Mapping[str, Any]) -> tuple[str | None, bool]:
  match = re.search(fields['pattern'], output, 0 if fields['case'] else re.IGNORECASE)
  if not match:
    return None, False
  found = match[1] if match.re.groups and match[1] is not None else match[0]
  return found, fields['answers'] is None or _is_one_of(found, fields)


def _grade_numeric(output: str, fields: Mapping[str, Any]) -> tuple[str | None, bool]:
  numbers = _NUMBER.findall(output)
  if not numbers:
    return None, False
  found = Decimal(numbers[-1].replace(',', '').replace('−', '-'))
  return numbers[-1], abs(found - Decimal(fields['gold'])) <= Decimal(fields['within'])


def _grade_json(output: str, fields: Mapping[str, Any]) -> tuple[str | None, bool]:
  for text in (output, *_FENCE.findall(output), *_objects(output)):
    try:
      value = json.loads(text, parse_constant=refuse)
      right = json_schema.is_valid(value, fields['schema'])
      if 'answer' in fields:
        right = right and json_schema.same(value, fields['answer'])
      # Half of a surrogate pair, which JSON may escape, is no text.
      return json.dumps(value, ensure_ascii=False).encode('utf-8', 'replace').decode(), right
    except (ValueError, RecursionError):  # No JSON, or lists in lists without end.
      continue
  return None, False


def refuse(constant: str) -> Any:
  """For `parse_constant`: NaN and Infinity are no JSON."""
  raise ValueError(f'{constant} is no JSON')


def _objects(output: str) -> Iterator[str]:
  """Texts of the first object or list in an output, if there is one."""
  for start in (match.start() for match in re.finditer(r'[{\[]', output)):
    try:
      _, end = json.JSONDecoder(parse_constant=refuse).raw_decode(output, start)
    except (ValueError, RecursionError):
      continue
    yield output[start:end]
    return


_GRADERS = {
  'choice': _grade_choice,
  'exact': _grade_exact,
  'contains': _grade_contains,
  'regex': _grade_regex,
  'numeric': _grade_numeric,
  'json': _grade_json,
}

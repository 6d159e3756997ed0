"""Fields of benchmark records, checked; and graders that many benchmarks share. Not for reading
files (`files.py`)."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sft_jax.evals.benchmark import Choices, Grade, Item
from sft_jax.utils.errors import UserError

LETTERS = 'ABCDEFGHIJKLMNOPQRSTUVWXYZ'


def wrong(source: str, field: str, what: str) -> UserError:
  """The error for a record that is not what its benchmark's data are."""
  return UserError(
    f'field {field!r} {what}', source, 'take the file as it was published, or mend the record'
  )


def field(record: Mapping[str, Any], name: str, source: str) -> Any:
  """A field that must be there.

  Raises:
    UserError: it is not.
  """
  if name not in record or record[name] is None:
    raise wrong(source, name, f'is missing; there are {", ".join(map(str, record))}')
  return record[name]


def text(record: Mapping[str, Any], name: str, source: str, empty: bool = False) -> str:
  """A field of text, as it stands.

  Raises:
    UserError: it is missing, no text, or empty where that is not allowed.
  """
  value = field(record, name, source)
  if not isinstance(value, str):
    raise wrong(source, name, f'is {type(value).__name__}, not text')
  if not empty and not value.strip():
    raise wrong(source, name, 'is empty')
  return value


def texts(record: Mapping[str, Any], name: str, source: str, least: int = 1) -> list[str]:
  """A field that is a list of at least `least` texts.

  Raises:
    UserError: it is not.
  """
  value = field(record, name, source)
  if hasattr(value, 'tolist'):
    value = value.tolist()
  if not isinstance(value, (list, tuple)) or not all(isinstance(part, str) for part in value):
    raise wrong(source, name, 'is no list of texts')
  if len(value) < least:
    raise wrong(source, name, f'has {len(value)} entries, needs {least}')
  return list(value)


def whole(
  record: Mapping[str, Any], name: str, source: str, low: int = 0, high: int | None = None
) -> int:
  """A field that is a whole number (or its digits as text) in [low, high].

  Raises:
    UserError: it is not.
  """
  value = field(record, name, source)
  try:
    if isinstance(value, bool) or int(value) != float(value):
      raise ValueError
    number = int(value)
  except (TypeError, ValueError):
    raise wrong(source, name, f'is {value!r}, no whole number') from None
  if number < low or (high is not None and number > high):
    raise wrong(source, name, f'is {number}, outside of {low} to {high}')
  return number


def letter(record: Mapping[str, Any], name: str, source: str, among: str) -> int:
  """Index of a field's letter in `among`, such as 'ABCD'.

  Raises:
    UserError: it is none of them.
  """
  value = text(record, name, source).strip()
  if len(value) != 1 or value not in among:
    raise wrong(source, name, f'is {value!r}, none of {among}')
  return among.index(value)


def lettered(choices: Sequence[str], mark: str = '. ') -> str:
  """'A. first\\nB. second', a line for each choice."""
  return '\n'.join(f'{name}{mark}{choice}' for name, choice in zip(LETTERS, choices, strict=False))


def graded_choice(gold: int, choices: Choices, normalised: bool = False) -> Grade:
  """lm-eval's `acc` and, if `normalised`, `acc-norm`; ties go to the first.

  `acc`: the gold continuation has the highest log-likelihood. `acc-norm`: the highest one divided
  by the continuation's characters, without delimiter (lm_eval/api/task.py).
  """
  best = int(np.argmax(choices.logprobs))
  scores = {'acc': float(best == gold)}
  if normalised:
    sizes = np.array([len(text) for text in choices.texts], np.float64)
    scores['acc-norm'] = float(int(np.argmax(choices.logprobs / sizes)) == gold)
  return Grade(scores, choices.texts[best])


def graded_answer(extracted: str | None, right: bool, **notes: Any) -> Grade:
  """Accuracy of an extracted answer; None counts as wrong."""
  return Grade({'acc': float(right and extracted is not None)}, extracted, notes)


def gold_index(item: Item) -> int:
  """The field `gold` of a multiple-choice item."""
  return int(item.fields['gold'])

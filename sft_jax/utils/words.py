"""Wordings of what people read. Not for what programs read: JSON and tables keep plain numbers."""

from collections.abc import Sequence


def count(number: int, one: str, many: str = '') -> str:
  """A number with its noun: '1 run', '2 runs', '1,070 runs'.

  Args:
    number: How many.
    one: The noun for a single one; words may stand before it.
    many: The noun for any other number; `one` with an s where it is ''.
  """
  return f'{number:,} {one if number == 1 else many or f"{one}s"}'


def listed(names: Sequence[str], most: int = 6) -> str:
  """Names between commas, of many the first ones and how many more: 'a, b and 28 more'."""
  if len(names) <= most + 1:
    return ', '.join(names)
  return f'{", ".join(names[:most])} and {len(names) - most} more'

"""Wordings of what people read. Not for what programs read: JSON and tables keep plain numbers."""


def count(number: int, one: str, many: str = '') -> str:
  """A number with its noun: '1 run', '2 runs', '1,070 runs'.

  Args:
    number: How many.
    one: The noun for a single one; words may stand before it.
    many: The noun for any other number; `one` with an s where it is ''.
  """
  return f'{number:,} {one if number == 1 else many or f"{one}s"}'

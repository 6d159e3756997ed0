"""Which of several licences binds most. A reading aid: it is no legal advice, and names decide."""

import re
from collections.abc import Mapping

# (what it means, pattern in a licence's name), the strictest first: the first that matches counts.
_CLASSES: tuple[tuple[str, str], ...] = (
  ('unclear', r'^$|mixed|unknown|unclear|not stated|^other$|see its card'),
  ('no commercial use', r'\bnc\b|non-?commercial|research'),
  ('own terms of use', r'llama|gemma|nvidia|qwen licence|openrail|community|own terms|yi-license'),
  ('share alike', r'\bsa\b|gpl'),
  ('free with attribution', r'cc[ -]by|apache|\bmit\b|bsd|cc0|odc|public domain'),
)


def kind(licence: str) -> tuple[int, str]:
  """(strictness, meaning) of a licence's name, 0 the strictest; a name not known is unclear."""
  text = licence.strip().lower()
  for rank, (meaning, pattern) in enumerate(_CLASSES):
    if re.search(pattern, text):
      return rank, meaning
  return 0, _CLASSES[0][0]


def strictest(named: Mapping[str, str]) -> str:
  """The licence that binds a release of everything together, in words; '' where none is given.

  Args:
    named: {whose: licence as published}.
  """
  if not named:
    return ''
  rank = min(kind(licence)[0] for licence in named.values())
  told = {name: f'{name} ({text or "none stated"})' for name, text in named.items()}
  whose = [text for name, text in told.items() if kind(named[name])[0] == rank]
  more = f' and {len(whose) - 3} more' if whose[3:] else ''
  return f'{_CLASSES[rank][0]}: {", ".join(whose[:3])}{more}'

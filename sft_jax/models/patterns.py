"""Regular expressions of configs and downloaded files, which must not be able to hang a run.

Python's `re` takes exponential time for some of them. RE2 (https://github.com/google/re2), which
pyarrow carries, takes linear time and little memory for all it reads; it has no lookaround and no
backreferences.
"""

from collections.abc import Iterable


def fullmatches(pattern: str, names: Iterable[str]) -> frozenset[str]:
  """Those of `names` that `pattern` matches as a whole.

  Raises:
    ValueError: RE2 does not read the pattern.
  """
  import pyarrow
  import pyarrow.compute as pc

  listed = pyarrow.array(list(names), pyarrow.string())
  pc.match_substring_regex(listed, pattern)  # alone first: brackets must close inside
  try:
    found = pc.match_substring_regex(listed, rf'\A(?:{pattern})\z')
  except ValueError as e:  # it quotes what stands around the pattern
    raise ValueError(f'Invalid regular expression: {pattern}') from e
  return frozenset(listed.filter(found).to_pylist())

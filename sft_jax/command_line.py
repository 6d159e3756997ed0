"""A command line as it is typed: what a flag is given; the config before flags that change it.

Not for what flags mean or are (`main.py`).
"""

import re
from collections.abc import Collection, Sequence

from sft_jax import config_file


def value(argv: Sequence[str], name: str) -> str:
  """What a flag is given, the last time if twice, as absl has it; '' if it is not there."""
  return next(reversed(values(argv, name)), '')


def values(argv: Sequence[str], name: str) -> list[str]:
  """What a flag is given each time."""
  out = []
  for i, arg in enumerate(argv):
    if re.fullmatch(f'--?{name}', arg) and i + 1 < len(argv):
      out.append(argv[i + 1])
    elif match := re.match(f'--?{name}=(.*)', arg):
      out.append(match.group(1))
  return out


def config_first(argv: Sequence[str]) -> list[str]:
  """The command line with its first --config before all other flags."""
  for i, arg in enumerate(argv):
    if found := re.fullmatch(r'--?config(=.*)?', arg, re.DOTALL):
      end = i + 1 if found[1] else i + 2
      return [*argv[:1], *argv[i:end], *argv[1:i], *argv[end:]]
  return [*argv]


def with_config(argv: Sequence[str], without: Collection[str]) -> list[str]:
  """The command line with the config first, and where it lies.

  Args:
    argv: The command line.
    without: Modes that need none: the base is put in.
  """
  argv = config_first(argv)
  given = value(argv, 'config')
  if not given:
    usual = value(argv, 'mode') in without
    return [*argv[:1], f'--config={config_file.locate("base")}', *argv[1:]] if usual else [*argv]
  found = config_file.locate(given)
  places = {given: found, f'-config={given}': f'-config={found}'}
  return [places.get(arg.replace('--', '-', 1) if '=' in arg else arg, arg) for arg in argv]

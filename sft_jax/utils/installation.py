"""What is said where this Python, or what is installed for it, cannot run the package.

Uses nothing that may be missing. Not for looking at all of it: `--mode=doctor` does.
"""

import sys

from sft_jax.utils.errors import UserError

OLDEST, NEWEST = (3, 11), (3, 13)  # Oldest and newest Python that the tests run on.


def lacking(error: ImportError) -> UserError:
  """Why an import failed that is no fault of ours, and what to do about it.

  Raises:
    ImportError: `error`, where it is of our own modules.
  """
  name = (error.name or '').partition('.')[0]
  if name == 'sft_jax':
    raise error
  if sys.version_info[:2] < OLDEST:
    return UserError(
      f'Python {sys.version.split()[0]} is too old',
      sys.executable,
      f'use Python {OLDEST[0]}.{OLDEST[1]} to {NEWEST[0]}.{NEWEST[1]}',
    )
  absent = isinstance(error, ModuleNotFoundError) and name
  what = f'the package {name} is not installed' if absent else f'an import failed: {error}'
  how = 'pip install -r requirements.txt with this Python, or start the one that has it'
  return UserError(what, sys.executable, how)

"""What is said where this Python, or what is installed for it, cannot run the package.

Uses nothing that may be missing. Not for looking at all of it: `--mode=doctor` does.
"""

import importlib.metadata
import re
import sys
import traceback

import sft_jax
from sft_jax.utils.errors import UserError

OLDEST, NEWEST = (3, 11), (3, 13)  # Oldest and newest Python that the tests run on.


def versions() -> str:
  """What is installed, for `--version`: 'sft_jax 0.1.0, jax 0.10.2, …'."""
  out = [f'sft_jax {sft_jax.__version__}']
  for name in ('jax', 'jaxlib', 'flax'):
    try:
      out.append(f'{name} {importlib.metadata.version(name)}')
    except importlib.metadata.PackageNotFoundError:
      out.append(f'{name} (not installed)')
  return f'{", ".join(out)}, Python {sys.version.split()[0]}'


def fault(error: Exception) -> UserError | None:
  """Why packages are at fault for an error, and what to do about it; None of any other error."""
  return _lacking(error) if isinstance(error, ImportError) else _mismatched(error)


def _mismatched(error: Exception) -> UserError | None:
  """Of packages that do not go together.

  jax raises RuntimeError where jaxlib is of another version, flax AttributeError where jax is.
  """
  frames = traceback.extract_tb(error.__traceback__)
  imported = [i for i, frame in enumerate(frames) if frame.name == '<module>']
  # While one of theirs is imported, or in what it calls to check.
  if not imported or imported[-1] < len(frames) - 3:
    return None
  if not re.search('(site|dist)-packages', frames[imported[-1]].filename):
    return None
  what = f'installed packages do not go together: {error!s:.200}'.splitlines()[0]
  how = f'pip install -r requirements.txt with this Python; here are {versions()}'
  return UserError(what, sys.executable, how)


def _lacking(error: ImportError) -> UserError | None:
  """Of what is not installed, or too old a Python; None where it is of our own modules."""
  name = (error.name or '').partition('.')[0]
  if name == 'sft_jax':
    return None
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

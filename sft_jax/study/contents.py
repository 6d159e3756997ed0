"""Whether what the runs of a study are made of is still what it was when the study began.

A study compares runs that differ in their factors alone; a file that shrank in between, or a data
set that its hub changed, would make a difference that no column shows.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from sft_jax import spec as spec_lib
from sft_jax.study.directory import StudyDirectory
from sft_jax.utils import io
from sft_jax.utils.errors import UserError

# Factors beside those below `data.` that decide which tokens a run trains on.
_DATA = ('max_length', 'too_long', 'seed_data')
_HOW = 'put back what was there, or begin a new {} in another --workdir'


def file_digests(paths: Iterable[str]) -> dict[str, str]:
  """{path: digest} of local files and directories; what is not local is left out.

  Raises:
    UserError: a file cannot be read.
  """
  digests = {}
  for path in sorted(set(paths)):
    place = Path(path)
    if not path or not place.exists():
      continue
    files = [place] if place.is_file() else sorted(p for p in place.rglob('*') if p.is_file())
    with io.explain_unreadable(path):
      parts = [f'{file.relative_to(place)} {io.sha256_file(file)}' for file in files]
    digests[path] = hashlib.sha256('\n'.join(parts).encode()).hexdigest()[:16]
  return digests


def check_files(before: Mapping[str, str], now: Mapping[str, str], what: str = 'study') -> None:
  """Compares digests of the same paths.

  Args:
    before: When it was begun.
    now: Of the same, or others too.
    what: Was begun.

  Raises:
    UserError: a file has changed.
  """
  for path, digest in now.items():
    if before.get(path, digest) != digest:
      raise UserError(f'this file has changed since the {what} began', path, _HOW.format(what))


class Contents:
  """What runs that have begun recorded of their contents, by what those should be equal for."""

  def __init__(self, place: StudyDirectory, names: Mapping[str, str]):
    """Reads nothing yet."""
    self._place, self._names = place, names
    self._seen: dict[str, tuple[str, str]] = {}

  def check(self, runs: Iterable[str]) -> None:
    """Compares runs with each other and with all that were checked before.

    Raises:
      UserError: two runs that should be made of the same are not.
    """
    for run in runs:
      file = self._place.run(run) / 'config.json'
      held = io.read_json(file) if file.exists() else {}
      if 'factors' not in held or 'contents' not in held:
        continue
      for what, key, digest in _parts(held['factors'], held['contents']):
        before, other = self._seen.setdefault(json.dumps([what, key]), (digest, run))
        if before != digest:
          raise UserError(
            f'the {what} of {self._names[run]} has changed since the study began',
            f'{self._names[other]} had another of the same name',
            _HOW.format('study'),
          )


def _parts(
  factors: Mapping[str, Any], contents: Mapping[str, str]
) -> list[tuple[str, list[Any], str]]:
  """(what, what it depends on, digest)."""
  names = [
    name
    for name, factor in spec_lib.FACTORS.items()
    if factor.key.startswith('data.') or name in _DATA
  ]
  known = [factors[name] for name in names if name in factors]
  return [
    ('model', [factors['base']], contents['base']),
    ('tokenizer', [factors['base']], contents['tokenizer']),
    ('data', [contents['tokenizer'], contents['template'], *known], contents['data']),
  ]

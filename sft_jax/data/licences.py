"""Under which licences data are: as published with a named set, else as the files beside them say.

Not for what a licence means: `study/licences.py`.
"""

import os
import pathlib
import re

from sft_jax.data import datasets
from sft_jax.data.named import DATASETS
from sft_jax.utils import cards, io


def of(name: str, path: str = '') -> dict[str, str]:
  """{part: its licence} of what a run trains on; '' where none is stated, or not on this machine.

  Args:
    name: A named data set or a mixture; or give `path`.
    path: See `formats.read_records`.

  Raises:
    UserError: see `datasets.parts`.
  """
  return {part: _of_part(part, bool(path)) for part in datasets.parts(name, path)}


def _of_part(part: str, is_path: bool) -> str:
  if part in DATASETS and not is_path:
    return str(DATASETS[part]['licence'])
  local = part.removeprefix('hf:')
  if not io.is_remote(local) and os.path.exists(local):
    return cards.licence(pathlib.Path(local))
  published = {_set_of(row['path']): str(row['licence']) for row in DATASETS.values()}
  return published.get(_set_of(part), '') if part.startswith('hf:') else ''


def _set_of(path: str) -> str:
  """ORG/NAME: a file, configuration or split of a set on the hub is under its licence too."""
  return '/'.join(re.split('[/:@]', path.removeprefix('hf:'))[:2])

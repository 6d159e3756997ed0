"""Tables that probes leave on disk: whole or absent, and beside each where it came from."""

import csv
import io as streams
import os
import pathlib
import zipfile
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath

from sft_jax.utils import io
from sft_jax.utils.errors import UserError


def write_arrays(
  path: epath.PathLike, arrays: Mapping[str, np.ndarray], about: Mapping[str, Any]
) -> None:
  """Writes `PATH` (.npz, no pickle) and `PATH.json`, provenance first: arrays have theirs always.

  Raises:
    UserError: full disk, no permission.
    ValueError: an array of objects.
  """
  target = epath.Path(path)
  named: dict[str, Any] = dict(arrays)
  for name, array in arrays.items():
    if np.asarray(array).dtype == object:
      raise ValueError(f'{name}: arrays of objects are not written')
  io.write_json_atomic(f'{os.fspath(path)}.json', {**about, 'arrays': _shapes(arrays)})
  if io.is_remote(path):
    out = streams.BytesIO()
    np.savez(out, **named)
    io.write_bytes_atomic(path, out.getvalue())
    return
  # Written through: states of a large model need not be in memory twice.
  with io.explain_os_errors(target):
    temporary = pathlib.Path(f'{target}.{os.getpid()}.tmp')
    try:
      with open(temporary, 'wb') as f:
        np.savez(f, **named)
        f.flush()
        os.fsync(f.fileno())
      os.replace(temporary, target)
    finally:
      temporary.unlink(missing_ok=True)


def _shapes(arrays: Mapping[str, np.ndarray]) -> dict[str, list[int]]:
  return {name: list(np.asarray(array).shape) for name, array in arrays.items()}


def read_arrays(path: epath.PathLike) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
  """What `write_arrays` wrote, and its provenance.

  Raises:
    UserError: missing, damaged, or without provenance.
  """
  about = io.read_json(f'{os.fspath(path)}.json')
  try:
    with epath.Path(path).open('rb') as f, np.load(f, allow_pickle=False) as held:
      arrays = {name: held[name] for name in held.files}
  except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as e:
    raise UserError(f'not a whole .npz: {e}', str(path), 'run the probe again') from e
  if about.get('arrays') != _shapes(arrays):
    raise UserError('arrays and provenance do not belong together', str(path), 'run it again')
  return arrays, about


def write_rows(
  path: epath.PathLike, rows: Sequence[Mapping[str, Any]], about: Mapping[str, Any]
) -> None:
  """Writes `PATH` (.csv, all columns of all rows) and `PATH.json`.

  Raises:
    UserError: full disk, no permission.
  """
  columns = list(dict.fromkeys(column for row in rows for column in row))
  out = streams.StringIO()
  writer = csv.DictWriter(out, columns, lineterminator='\n', restval='')
  writer.writeheader()
  writer.writerows(rows)
  io.write_json_atomic(f'{os.fspath(path)}.json', {**about, 'rows': len(rows), 'columns': columns})
  io.write_text_atomic(path, out.getvalue())

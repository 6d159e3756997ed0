"""Where benchmarks read from: a directory of files in their original formats, or the hub.

Not for what the records mean: each benchmark checks its own.
"""

import pathlib
from collections.abc import Iterable, Sequence
from typing import Any

from sft_jax.data import readers
from sft_jax.utils.errors import UserError

Rows = list[tuple[dict[str, Any], str]]


class LocalFiles:
  """Benchmark data below one directory (`benchmark.Files`).

  Args:
    directory: `config.eval.data_dir`.

  Raises:
    UserError: there is no such directory.
  """

  local = True

  def __init__(self, directory: str):
    self._directory = pathlib.Path(directory).expanduser()
    if not self._directory.is_dir():
      raise UserError(
        'no such directory',
        str(self._directory),
        'mend config.eval.data_dir, or use the hub (empty)',
      )

  def rows(self, path: str, *, hub: str = '', columns: Sequence[str] = ()) -> Rows:
    """Records of one file, packed (.gz) or not; see `benchmark.Files.rows`."""
    file = self._find(path, hub)
    raw = _without_header(file, columns) if columns else readers.read_raw(file)
    return _records(raw, prefix=f'{self._directory}/')

  def names(self, pattern: str) -> list[str]:
    """Sorted paths of the files that match, relative to the directory."""
    found = (path for path in self._directory.glob(pattern) if path.is_file())
    return sorted(path.relative_to(self._directory).as_posix() for path in found)

  def _find(self, path: str, hub: str) -> str:
    for name in (path, f'{path}.gz'):
      if (self._directory / name).is_file():
        return str(self._directory / name)
    remedy = f', or empty it to read {hub} from the hub' if hub else ' (it is not on the hub)'
    raise UserError(
      f'no file {path}', str(self._directory), f'put it there or mend config.eval.data_dir{remedy}'
    )


class HubFiles:
  """Benchmark data from the Hugging Face hub (`benchmark.Files`).

  Args:
    cache_dir: Where they are kept; '' is the default of `datasets`.
  """

  local = False

  def __init__(self, cache_dir: str = ''):
    self._cache_dir = cache_dir

  def rows(self, path: str, *, hub: str = '', columns: Sequence[str] = ()) -> Rows:
    """Records of the hub's counterpart of a file; see `benchmark.Files.rows`."""
    del columns  # the hub has names for them
    if not hub:
      raise UserError(
        'not on the hub', path, 'put it into a directory and name that in config.eval.data_dir'
      )
    return _records(readers.read_raw(f'hf:{hub}', cache_dir=self._cache_dir))

  def names(self, pattern: str) -> list[str]:
    """Nothing: there are no files."""
    del pattern
    return []


class Listing(HubFiles):
  """Notes what a benchmark reads from the hub, and gives it nothing.

  Attributes:
    hubs: What was asked for: 'org/name[:config]@split'.
  """

  def __init__(self) -> None:
    super().__init__()
    self.hubs: list[str] = []

  def rows(self, path: str, *, hub: str = '', columns: Sequence[str] = ()) -> Rows:
    """No records; see `benchmark.Files.rows`."""
    if not hub:
      return super().rows(path)
    self.hubs.append(hub)
    return []


def _without_header(file: str, columns: Sequence[str]) -> Iterable[readers.Raw]:
  found = False
  for line, row in readers.csv_rows(file, readers.read_text(file)):
    found = True
    if len(row) != len(columns):
      raise UserError(
        f'a row of {len(row)} fields, not {len(columns)}',
        f'{file}:{line}',
        f'the columns are {", ".join(columns)}; check the quoting',
      )
    yield f'{file}:{line}', dict(zip(columns, row, strict=True))
  if not found:
    raise UserError('no records', file, 'the data need at least one record')


def _records(raw: Iterable[readers.Raw], prefix: str = '') -> Rows:
  rows = []
  for where, record in raw:
    if not isinstance(record, dict):
      raise UserError(f'a {type(record).__name__}, not an object', where, 'give an object a record')
    rows.append((record, where.removeprefix(prefix)))
  return rows

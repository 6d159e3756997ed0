"""Data sets of the Hugging Face hub, through `datasets`: which files, of which commit, kept where.

`datasets` turns the files into an Arrow copy of its own. Without the hub it would take the latest
copy of any commit and, unless told, of any configuration; so we note which copy is which.
"""

import contextlib
import dataclasses
import fnmatch
import os
import pathlib
import re
from collections.abc import Iterable, Iterator
from typing import Any

from sft_jax.utils import hub, hub_download, hub_errors, io
from sft_jax.utils.errors import UserError

# Nothing that is run or unpickled when it is read.
PATTERNS = ('*.parquet', '*.arrow', '*.json', '*.jsonl', '*.csv', '*.tsv', '*.txt')
_SUFFIXES = tuple(pattern.removeprefix('*') for pattern in PATTERNS)
_PACKED = r'\.(gz|zst|bz2|xz)$'


@dataclasses.dataclass(frozen=True)
class HubSet:
  """A data set as the hub has it.

  Attributes:
    snapshot: Its commit and the files that are read, of all splits of the configuration.
    copy: Where `datasets` keeps, or will keep, its copy.
    copy_bytes: What that will take; 0 when it is there.
  """

  snapshot: hub.Snapshot
  copy: pathlib.Path
  copy_bytes: int


def split_spec(path: str) -> tuple[str, str]:
  """'hf:org/name:config@split' -> ('org/name:config', 'split'); 'train' where none is given."""
  name, at, split = path.partition(':')[2].rpartition('@')
  return (name, split) if at else (split, 'train')


def file_of(path: str) -> tuple[str, str]:
  """'hf:org/name/dir/file.json' -> ('org/name', 'dir/file.json'); ('', '') of other paths."""
  match = re.fullmatch(r'hf:([\w.-]+/[\w.-]+)/([^@:]+\.[^@:/]+)', path)
  return (match[1], match[2]) if match else ('', '')


def bring_file(path: str, revision: str = '') -> str:
  """The one file that `hf:org/name/file` names, in the hub's cache.

  Raises:
    UserError: as `hub.resolve`; no such file.
  """
  repo, file = file_of(path)
  snapshot = hub.resolve('dataset', repo, revision or 'main')
  if snapshot is None:
    raise UserError('not in the cache', path, 'connect to the network and use --mode=fetch')
  local = snapshot.directory / file
  if not local.is_file():
    hub_download.download([_only(snapshot, file, path)])
  return str(local)


def _only(snapshot: hub.Snapshot, file: str, path: str) -> hub.Snapshot:
  one = snapshot.only([file])
  if not one.files:
    names = ', '.join(f.name for f in snapshot.files if f.name.endswith(_SUFFIXES))
    how = f'there are: {names}' if names else 'connect to the network and use --mode=fetch'
    raise UserError(f'no file {file!r} in {snapshot}', path, how)
  return one


def look_up(path: str, revision: str = '', cache_dir: str = '') -> HubSet:
  """Asks the hub what `read` will need.

  Raises:
    UserError: as `hub.look_up`; no such configuration; files of a kind that is not read.
  """
  repo, one = file_of(path)
  if one:
    snapshot = _only(hub.look_up('dataset', repo, revision or 'main'), one, path)
    return HubSet(snapshot, snapshot.directory, 0)
  spec, split = split_spec(path)
  name, _, config = spec.partition(':')
  everything = hub.look_up('dataset', name, revision or 'main')
  with _explained(path, name):
    builder = _builder(name, config, everything.commit, cache_dir)
  splits = builder.config.data_files or {}
  if split.isidentifier() and split not in splits:
    raise UserError(f'no split {split!r}', path, f'there are: {", ".join(map(str, splits))}')
  urls = [str(url) for files in splits.values() for url in files]
  names = [url.partition(f'@{everything.commit}/')[2] for url in urls]
  for file in filter(None, names):
    plain = re.sub(_PACKED, '', file.lower())
    if not any(fnmatch.fnmatch(plain, pattern) for pattern in PATTERNS):
      how = f'take a data set of {", ".join(PATTERNS)}, or convert it to one'
      raise UserError('data of a kind that is not read', f'{path}: {file}', how)
  snapshot = everything.only([*names, 'README.md'])
  copy = pathlib.Path(builder.cache_dir)
  size = 0 if copy.is_dir() else builder.info.dataset_size or snapshot.size
  return HubSet(snapshot, copy, size)


def read(path: str, limit: int, cache_dir: str, revision: str) -> Iterator[tuple[str, Any]]:
  """Records of `hf:org/name[:config][@split]`; see `readers.read_raw`."""
  import datasets

  spec, split = split_spec(path)
  name, _, config = spec.partition(':')
  with _explained(path, name):
    # `datasets` takes a folder in place of a name.
    snapshot = None if os.path.isdir(name) else hub.resolve('dataset', name, revision or 'main')
    commit = snapshot.commit if snapshot else ''
    rows: Iterable[Any]
    if limit:
      rows = datasets.load_dataset(
        name, config or None, split=split, revision=commit or None, streaming=True
      )
    else:
      builder = _noted(name, config, commit, cache_dir) or _builder(name, config, commit, cache_dir)
      builder.download_and_prepare()
      rows = builder.as_dataset(split=split)
      if snapshot:
        _keep(snapshot, config, builder, cache_dir)
    for index, record in enumerate(rows):
      yield f'{path}:row {index}', record


def _builder(name: str, config: str, commit: str, cache_dir: str) -> Any:
  """What `datasets` finds out about a data set, mostly by asking the hub."""
  import datasets

  builder = datasets.load_dataset_builder(
    name, config or None, cache_dir=cache_dir or None, revision=commit or None
  )
  found = pathlib.Path(builder.cache_dir).name
  if commit and found != commit:  # it fell back to its latest copy
    raise UserError(
      f'the hub cannot be reached, and commit {commit[:12]} is not in the cache (but {found[:12]})',
      f'hf:{name}',
      'connect to the network and use --mode=fetch',
    )
  return builder


def _noted(name: str, config: str, commit: str, cache_dir: str) -> Any:
  """The copy that was made of this commit and configuration, read without the hub; None if none."""
  note = _note(name, config, commit, cache_dir)
  if not commit or not note.is_file():
    return None
  copy = note.parents[1] / note.read_text()
  if not (copy / 'dataset_info.json').is_file():
    return None
  from datasets.packaged_modules.cache.cache import Cache

  config_name, version, found = copy.parts[-3:]
  return Cache(
    cache_dir=cache_dir or None,
    dataset_name=name.rpartition('/')[2],
    repo_id=name,
    config_name=config_name,
    version=version,
    hash=found,
  )


def _note(name: str, config: str, commit: str, cache_dir: str) -> pathlib.Path:
  """The file that says which copy is that of a commit and configuration."""
  import datasets

  root = pathlib.Path(cache_dir or datasets.config.HF_DATASETS_CACHE).expanduser()
  return root / 'sft_jax' / f'{name}:{config}@{commit}'.replace('/', '--')


def _keep(snapshot: hub.Snapshot, config: str, builder: Any, cache_dir: str) -> None:
  note = _note(snapshot.repo, config, snapshot.commit, cache_dir)
  copy = os.path.relpath(builder.cache_dir, note.parents[1])
  with contextlib.suppress(UserError):  # A cache that is only read may do without.
    if not note.is_file() or note.read_text() != copy:
      io.write_text_atomic(note, copy)
    hub.keep(snapshot)


@contextlib.contextmanager
def _explained(path: str, name: str) -> Iterator[None]:
  try:
    yield
  except UserError:
    raise
  except Exception as error:  # the libraries below raise many kinds
    known = hub_errors.explain(error, path, 'dataset', name)
    text = hub_errors.without_token(str(error).split('\n')[0] or type(error).__name__)
    raise known or UserError(
      f'cannot load the hub data set: {text}',
      where=path,
      how='check the name, configuration and split, or pass a local file',
    ) from error

"""Hugging Face data sets and TFDS to raw records with their place. Not for files: `readers.py`."""

import os
from collections.abc import Iterable, Iterator
from typing import Any

from sft_jax.utils.errors import UserError


def split_spec(path: str) -> tuple[str, str]:
  """('org/name:config', 'split') of a path; the split is 'train' where none is given."""
  name, at, split = path.partition(':')[2].rpartition('@')
  return (name, split) if at else (split, 'train')


def read_hub(path: str, limit: int, cache_dir: str, revision: str) -> Iterator[tuple[str, Any]]:
  """(place, record) of `hf:org/name[:config][@split]`; arguments as in `readers.read_raw`."""
  import datasets

  spec, split = split_spec(path)
  name, _, config = spec.partition(':')
  try:
    rows: Iterable[Any] = datasets.load_dataset(
      name,
      config or None,
      split=split,
      cache_dir=cache_dir or None,
      revision=revision or None,
      streaming=bool(limit),
    )
    for index, record in enumerate(rows):
      yield f'{path}:row {index}', record
  except Exception as error:  # the libraries below raise many kinds
    raise UserError(
      f'cannot load the hub data set: {_cause(error)}',
      where=path,
      how='check the name, configuration and split, log in with `hf auth login` for gated data, '
      'or pass a local file',
    ) from error


def _cause(error: BaseException) -> str:
  """The HTTP status at the bottom of a chain of errors where there is one, else the message.

  A refused or throttled request surfaces as 'not found' or 'not in the cache' further up.
  """
  chain: list[BaseException] = []
  link: BaseException | None = error
  while link is not None and link not in chain:
    chain.append(link)
    link = link.__cause__ or link.__context__
  for link in reversed(chain):
    response = getattr(link, 'response', None)
    status = getattr(response, 'status_code', None)
    if status:
      code = getattr(response, 'headers', {}).get('X-Error-Code', '')
      return f'the server answered {status} {code}'.strip()
  return _first_line(error)


def _first_line(error: BaseException) -> str:
  return str(error).strip().split('\n')[0] or type(error).__name__


def read_tfds(path: str, data_dir: str) -> Iterator[tuple[str, Any]]:
  """(place, record) of `tfds:name[/config][:version][@split]`, with text for bytes."""
  os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '2')
  try:
    import tensorflow_datasets as tfds
  except ImportError as error:
    raise UserError(
      'tensorflow-datasets is not installed',
      where=path,
      how='pip install tensorflow-datasets tensorflow-cpu',
    ) from error
  name, split = split_spec(path)
  try:
    rows = tfds.as_numpy(tfds.load(name, split=split, data_dir=data_dir or None))
    for index, record in enumerate(rows):
      yield f'{path}:row {index}', _plain(record)
  except Exception as error:  # the libraries below raise many kinds
    raise UserError(
      f'cannot load the TFDS data set: {_first_line(error)}',
      where=path,
      how='check the name, version and split, and TFDS_DATA_DIR',
    ) from error


def _plain(value: Any) -> Any:
  """numpy values and bytes as Python values and text."""
  if isinstance(value, dict):
    return {key: _plain(item) for key, item in value.items()}
  if hasattr(value, 'to_list'):  # ragged
    return _plain(value.to_list())
  if hasattr(value, 'tolist'):
    return _plain(value.tolist())
  if isinstance(value, list | tuple):
    return [_plain(item) for item in value]
  if isinstance(value, bytes):
    return value.decode('utf-8')
  return value

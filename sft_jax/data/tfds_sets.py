"""TensorFlow Datasets to raw records with their place."""

import os
from collections.abc import Iterator
from typing import Any

from sft_jax.data.hub_sets import split_spec
from sft_jax.utils.errors import UserError


def read(path: str, data_dir: str) -> Iterator[tuple[str, Any]]:
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


def _first_line(error: BaseException) -> str:
  return str(error).strip().split('\n')[0] or type(error).__name__


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

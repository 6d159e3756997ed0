"""Reads what the probes `loglik_vector` and `dataset_properties` wrote, for `measured.py`."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from etils import epath

from sft_jax.utils import tables
from sft_jax.utils.errors import UserError

if TYPE_CHECKING:
  import pandas as pd


def read_matrix(
  paths: Sequence[epath.PathLike], per: str = 'text'
) -> tuple[np.ndarray, list[dict[str, Any]]]:
  """Vectors of several models as one `[K, N]` matrix, and what each is.

  Args:
    paths: Files of the probe, one model each.
    per: 'text' for sums, 'token' or 'byte' for means, where tokenizers differ.

  Raises:
    UserError: they are not of the same texts and span, or a file is damaged.
  """
  vectors: list[np.ndarray] = []
  facts: list[dict[str, Any]] = []
  for path in paths:
    arrays, about = tables.read_arrays(path)
    if facts and any(about[key] != facts[0][key] for key in ('texts', 'span', 'format')):
      raise UserError('a vector of other probe texts', str(path), f'compare with {paths[0]}')
    scale = {'text': 1, 'token': arrays['tokens'], 'byte': np.maximum(arrays['bytes'], 1)}[per]
    vectors.append(arrays['loglik'] / scale)
    facts.append(about)
  if not vectors:
    raise UserError('no log-likelihood vector', 'model map', 'run the probe first')
  return np.stack(vectors), facts


def read_properties(path: epath.PathLike) -> 'pd.DataFrame':
  """What the probe `dataset_properties` wrote: one row for each `model_name` and `data_name`.

  Raises:
    UserError: not a table, or one without these columns.
  """
  import pandas as pd

  try:
    with epath.Path(path).open('r') as f:
      frame = pd.read_csv(f)
  except (OSError, ValueError) as e:
    raise UserError(f'not a table: {e}', str(path), 'run the probe again') from e
  if missing := [c for c in ('model_name', 'data_name') if c not in frame]:
    raise UserError(f'no column {" and no ".join(missing)}', str(path), 'run the probe again')
  return frame

"""Reads what the probe `loglik_vector` wrote of several models, for `model_map.py`."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from etils import epath

from sft_jax.utils import tables
from sft_jax.utils.errors import UserError


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

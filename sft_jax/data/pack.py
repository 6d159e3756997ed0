"""Layout of whole examples into rows. Not for choosing examples: see `sampler.py`."""

from collections.abc import Sequence

import numpy as np

from sft_jax.data.tokenize import Example

FIELDS = {
  'tokens': np.int32,
  'loss_weight': np.float32,
  'positions': np.int32,
  'segments': np.int32,
}


def round_up(value: int, multiple: int) -> int:
  """The smallest multiple that is at least `value`."""
  return -(-value // multiple) * multiple


def layout_rows(lengths: Sequence[int], row_length: int) -> list[list[int]]:
  """First-fit decreasing: rows of indices into `lengths`, each row at most `row_length` long.

  Every index occurs exactly once; ties keep the given order, so the layout is deterministic.
  Raises ValueError for an example longer than a row.
  """
  sizes = np.asarray(lengths, np.int64)
  if len(sizes) and sizes.max() > row_length:
    raise ValueError(f'an example of {sizes.max()} tokens does not fit a row of {row_length}')
  rows: list[list[int]] = []
  free = np.zeros(len(sizes), np.int64)
  for index in np.argsort(-sizes, kind='stable'):
    size = sizes[index]
    fits = free[: len(rows)] >= size
    at = int(fits.argmax()) if fits.any() else len(rows)
    if at == len(rows):
      rows.append([])
      free[at] = row_length
    rows[at].append(int(index))
    free[at] -= size
  return rows


def fill(
  examples: Sequence[Example], rows: Sequence[Sequence[int]], row_length: int
) -> dict[str, np.ndarray]:
  """Arrays [rows, row_length] of FIELDS.

  A token's segment is the number of its example, from 1 (0 is padding); positions restart at 0 in
  each. So (segment, position) names a token of a step in whatever row it lies.
  Raises ValueError if a row overflows: no token is ever left out.
  """
  batch = {name: np.zeros((len(rows), row_length), dtype) for name, dtype in FIELDS.items()}
  for row, members in enumerate(rows):
    start = 0
    for index in members:
      example = examples[index]
      end = start + len(example.ids)
      if end > row_length:
        raise ValueError(f'row {row} overflows {row_length} tokens')
      batch['tokens'][row, start:end] = example.ids
      batch['loss_weight'][row, start:end] = example.loss_weight
      batch['loss_weight'][row, start] = 0
      batch['positions'][row, start:end] = np.arange(end - start)
      batch['segments'][row, start:end] = index + 1
      start = end
  return batch

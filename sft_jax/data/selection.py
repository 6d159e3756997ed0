"""Which records are held out and which are trained on: a function of contents and a seed alone."""

import dataclasses
import hashlib
from collections.abc import Sequence

from sft_jax.data.formats import Record
from sft_jax.utils.errors import UserError
from sft_jax.utils.select import Selection


def first_turns(record: Record, turns: int) -> Record:
  """The record up to its `turns`-th answered question."""
  answered = 0
  for index, message in enumerate(record.messages):
    following = record.messages[index + 1 : index + 2]
    if message['role'] == 'assistant' and not (following and following[0]['role'] == 'assistant'):
      answered += 1
      if answered == turns:
        return dataclasses.replace(record, messages=record.messages[: index + 1])
  return record


def _draw(text: str) -> float:
  """A number in [0, 1) from a hash."""
  digest = hashlib.sha256(text.encode('utf-8')).digest()
  return int.from_bytes(digest[:6], 'big') / 2**48


def split_heldout(
  records: Sequence[Record], share: float, salt: str = 'heldout'
) -> tuple[list[Record], list[Record]]:
  """Splits by a hash of the evened-out content, so duplicates fall on the same side.

  Data that name a held-out part keep it, and nothing else is held out. Raises UserError for a
  share outside [0, 1).
  """
  if not 0 <= share < 1:
    raise UserError(f'the held-out share is {share}', how='use 0 or more, and less than 1')
  named = any(record.split == 'heldout' for record in records)
  train: list[Record] = []
  heldout: list[Record] = []
  for record in records:
    out = record.split == 'heldout' if named else _draw(f'{salt}/{record.key}') < share
    (heldout if out else train).append(record)
  return train, heldout


def choose(records: Sequence[Record], size: int, seed: int, where: str = '') -> list[Record]:
  """`size` records without a problem, by hash of seed and content, in their own order."""
  usable = [(index, record) for index, record in enumerate(records) if not record.problem]
  if not 0 < size <= len(usable):
    raise UserError(
      f'{size} records are wanted, {len(usable)} are there to choose from',
      where=where,
      how='lower config.data.size (0 takes all)',
    )
  ranked = sorted(usable, key=lambda item: (_draw(f'{seed}/{item[1].key}'), item[0]))
  return [record for _, record in sorted(ranked[:size], key=lambda item: item[0])]


def by_rank(values: Sequence[float], selection: Selection) -> list[int]:
  """Indices, ascending, of the values at one end, or around the median, of their order.

  Of equal values those that come first count as lower.
  """
  count = selection.count(len(values))
  ranked = sorted(range(len(values)), key=lambda index: (values[index], index))
  start = {'low': 0, 'mid': (len(values) - count) // 2, 'high': len(values) - count}[selection.end]
  return sorted(ranked[start : start + count])

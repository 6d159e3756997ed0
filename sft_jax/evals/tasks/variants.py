"""Which items are not the published data, as they were read. Not a benchmark.

Marks are made over whole files, so that they hold for any subset.
"""

import dataclasses
from collections.abc import Sequence

from sft_jax.evals.benchmark import Item


def marked(items: Sequence[Item], name: str) -> list[Item]:
  """The items with what their data are called in columns; '' for the published ones."""
  return [
    dataclasses.replace(item, fields={**item.fields, 'variant': name} if name else item.fields)
    for item in items
  ]


def variant(items: Sequence[Item]) -> str:
  """The first mark, so that of the questions before that of their shots; '' if there is none."""
  return next((item.fields['variant'] for item in items if 'variant' in item.fields), '')

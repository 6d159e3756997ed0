"""All ten data sets, 10,000 records: 12 models x full and LoRA, every epoch; 240 snapshots.

python -m sft_jax.main --config=configs/studies/all.py --workdir=studies/all --mode=plan
"""

from collections.abc import Iterator
from typing import Any

from configs.studies import common

get_config = common.get_config


def sweep() -> Iterator[dict[str, Any]]:
  """24 runs of ten snapshots."""
  for name in common.MODELS:
    for method in common.METHODS.values():
      yield (
        common.model(name)
        | method
        | {
          'data.name': 'all',
          'data.size': 10000,
          'train.snapshot_at': 'every:1',
        }
      )

"""The core of the study: 12 models x 10 data sets of 1,000 x full and LoRA; 240 snapshots.

python -m sft_jax.main --config=configs/studies/grid_1k.py --workdir=studies/grid --mode=plan
"""

from collections.abc import Iterator
from typing import Any

from configs.studies import common

get_config = common.get_config


def sweep() -> Iterator[dict[str, Any]]:
  """240 runs, of which the last epoch is kept."""
  for name in common.MODELS:
    for data in common.DATA:
      for method in common.METHODS.values():
        yield (
          common.model(name)
          | method
          | {
            'data.name': data,
            'data.size': 1000,
            'train.snapshot_at': '10',
          }
        )

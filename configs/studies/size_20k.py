"""Twenty times the data: 3 models x 9 data sets of 20,000, every epoch; 270 snapshots.

python -m sft_jax.main --config=configs/studies/size_20k.py --workdir=studies/size
"""

from collections.abc import Iterator
from typing import Any

from configs.studies import common

get_config = common.get_config


def sweep() -> Iterator[dict[str, Any]]:
  """27 full fine-tunes of ten snapshots; LIMA has no 20,000 records."""
  for name in common.TRAJECTORIES:
    for data in common.DATA:
      if data != 'lima':
        yield (
          common.model(name)
          | common.METHODS['full']
          | {
            'data.name': data,
            'data.size': 20000,
            'train.schedule': 'constant',
            'train.snapshot_at': 'every:1',
          }
        )

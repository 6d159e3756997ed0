"""Every epoch under a constant learning rate, so that epochs compare: 3 models x 10; 300 snapshots.

python -m sft_jax.main --config=configs/studies/epochs_constant.py --workdir=studies/epochs
"""

from collections.abc import Iterator
from typing import Any

from configs.studies import common

get_config = common.get_config


def sweep() -> Iterator[dict[str, Any]]:
  """30 full fine-tunes of ten snapshots. The table lacks epoch 10 of the three on LIMA."""
  for name in common.TRAJECTORIES:
    for data in common.DATA:
      yield (
        common.model(name)
        | common.METHODS['full']
        | {
          'data.name': data,
          'data.size': 1000,
          'train.schedule': 'constant',
          'train.snapshot_at': 'every:1',
        }
      )

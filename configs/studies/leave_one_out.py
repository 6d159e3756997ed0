"""All data sets but one, 9,000 records: OLMo x 10 x full and LoRA; 20 snapshots.

  python -m sft_jax.main --config=configs/studies/leave_one_out.py --workdir=studies/without

The article names three models; only OLMo's runs are counted and in the table.
"""

from collections.abc import Iterator
from typing import Any

from configs.studies import common

get_config = common.get_config


def sweep() -> Iterator[dict[str, Any]]:
  """20 runs, of which the last epoch is kept."""
  for data in common.DATA:
    for method in common.METHODS.values():
      yield (
        common.model('OLMo-7B-hf')
        | method
        | {
          'data.name': f'without:{data}',
          'data.size': 9000,
          'train.snapshot_at': '10',
        }
      )

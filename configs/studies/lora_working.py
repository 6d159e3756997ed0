"""LoRA at a learning rate that trains adapters: 12 models x 10 data sets of 1,000 records.

  python -m sft_jax.main --config=configs/studies/lora_working.py --workdir=studies/lora --mode=plan

The printed one, 2e-6 at batch 128, moves an adapter by about 8e-5 in all. Compare the two by
weight change, not by scores alone.
"""

from collections.abc import Iterator
from typing import Any

from configs.studies import common

get_config = common.get_config


def sweep() -> Iterator[dict[str, Any]]:
  """120 runs, of which the last epoch is kept."""
  for name in common.MODELS:
    for data in common.DATA:
      yield common.model(name) | {
        'train.method': 'lora',
        'train.learning_rate': 1e-4,
        'train.batch_size': 32,
        'data.name': data,
        'data.size': 1000,
        'train.snapshot_at': '10',
      }

"""The whole published study: 341 runs of 1,070 snapshots (arXiv 2506.14681, App. D).

python -m sft_jax.main --config=configs/studies/paper.py --workdir=studies/paper --mode=plan
"""

from collections.abc import Iterator
from typing import Any

from ml_collections import ConfigDict

# The package's own `all` would hide the function.
from configs.studies import all as all_data
from configs.studies import common, epochs_constant, grid_1k, leave_one_out, size_20k


def get_config() -> ConfigDict:
  """That of its parts, with what it took its authors."""
  config = common.get_config()
  config.plan.reference = (
    'published, at least 530 GPU-hours of training and 8,350 of evaluation, few-shot tasks '
    'included, on unnamed GPUs; 80 TB'
  )
  return config


def sweep() -> Iterator[dict[str, Any]]:
  """240 + 24 + 30 + 27 + 20 runs."""
  for part in (grid_1k, all_data, epochs_constant, size_20k, leave_one_out):
    yield from part.sweep()

"""The study's search for hyper-parameters: Llama 3 8B, six data sets, 96 conditions each (App. C).

  python -m sft_jax.main --config=configs/studies/pilot.py --workdir=studies/pilot --mode=plan

576 runs, 5,760 snapshots, judged there by MMLU and MT-Bench; here by MMLU, as a judge has to be
given first (config.eval.tasks=mmlu:0shot:gen,mt_bench).
"""

import itertools
from collections.abc import Iterator
from typing import Any

from ml_collections import ConfigDict

from configs.studies import common

# The article says FLAN and not which part: the three parts, evenly.
DATA = (
  *('magicoder', 'lima', 'code_alpaca', 'openmath', 'alpaca_cleaned'),
  'mix:flan_knowledge,flan_reasoning,flan_comprehension',
)
LEARNING_RATES = (2e-7, 1e-6, 2e-6, 1e-5, 2e-5, 1e-4)
BATCH_SIZES = (32, 64, 128, 256)
WEIGHT_DECAYS = (0.0, 0.1)


def get_config() -> ConfigDict:
  """The study's conditions; every epoch is looked at, none is kept."""
  config = common.get_config()
  for key, value in common.model('Meta-Llama-3-8B').items():
    config.model[key.removeprefix('model.')] = value
  config.data.size = 1000
  config.train.snapshot_at = 'every:1'
  config.eval.tasks = 'mmlu:0shot:gen'
  config.checkpoint.keep_weights = 'none'
  return config


def sweep() -> Iterator[dict[str, Any]]:
  """6 x 6 x 4 x 2 x 2 runs."""
  grid = itertools.product(DATA, LEARNING_RATES, BATCH_SIZES, WEIGHT_DECAYS, ('full', 'lora'))
  for data, rate, batch, decay, method in grid:
    yield {
      'data.name': data,
      'train.learning_rate': rate,
      'train.batch_size': batch,
      'train.weight_decay': decay,
      'train.method': method,
    }

"""A whole study in a few minutes on a laptop: which data help a small real model with what.

  python -m sft_jax.main --config=configs/studies/demo.py --workdir=studies/demo

SmolLM2-135M-Instruct from a Python wheel (93 MB, Apache-2.0); the four parts of the built-in data
and their mixture with LoRA, as one program, and a full fine-tune on the mixture.
"""

from collections.abc import Iterator
from typing import Any

from ml_collections import ConfigDict

from configs import quickstart

PARTS = ('builtin_general', 'builtin_code', 'builtin_maths', 'builtin_short')
MIXTURE = f'mix:{",".join(PARTS)}'


def get_config() -> ConfigDict:
  """Everything the six runs share: the quick start, made smaller."""
  config = quickstart.get_config()
  config.model.name = 'SmolLM2-135M-Instruct'
  config.data.name = ''  # Of the sweep.
  config.data.size = 48
  config.data.heldout_max = 16
  config.train.max_length = 256
  config.eval.limit = 12
  config.eval.samples = 0
  config.eval.train_limit = 16
  config.eval.max_new_tokens = 24
  config.export.format = 'none'
  config.checkpoint.keep_weights = 'last'
  # A run takes a minute or two. What goes on from a state (1.6 GB of the full fine-tune) is saved
  # only where it is stopped.
  config.checkpoint.every_seconds = 3600.0
  # As many examples in each run, so that only the data, or the method, differ.
  config.study.equal = 'examples'
  return config


def sweep() -> Iterator[dict[str, Any]]:
  """Five LoRA runs, which form a cohort, and a full fine-tune."""
  for data in (*PARTS, MIXTURE):
    yield {'data.name': data}
  yield {'data.name': MIXTURE, 'train.method': 'full', 'train.learning_rate': 2e-5}

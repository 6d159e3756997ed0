"""Fine-tune one model on one dataset.

  python -m sft_jax.main --config=configs/sft.py:lora --workdir=runs/mine \\
    --config.model.path=HuggingFaceTB/SmolLM2-135M --config.data.path=my.jsonl

The argument names the method: `full` (default), `lora` (a learning rate that works for adapters) or
`lora_paper` (the learning rate and batch size the study printed for adapters).
"""

from ml_collections import ConfigDict

from configs import base


def get_config(method: str = 'full') -> ConfigDict:
  """Args: method: full | lora | lora_paper."""
  config = base.get_config()
  if method not in ('full', 'lora', 'lora_paper'):
    raise ValueError(f'{method!r} is no argument of configs/sft.py: use full, lora or lora_paper')
  config.train.method = method.removesuffix('_paper')
  if method == 'lora':
    config.train.learning_rate = 1e-4
  if method == 'lora_paper':
    config.train.learning_rate = 2e-6
    config.train.batch_size = 128
  return config

"""Decide which of several data sets to train on, by a race within a budget.

  python -m sft_jax.main --mode=choose --config=configs/choose.py --workdir=races/mine \\
    --config.model.path=HuggingFaceTB/SmolLM2-135M-Instruct \\
    --config.choose.data=a.jsonl,b.jsonl,alpaca_cleaned \\
    --config.choose.target=my_eval.jsonl,gsm8k:4shot --config.choose.guard='mmlu:ll>=-1.0' \\
    --config.choose.budget=6h

All candidates are trained on a little of their data with two seeds, the better ones on more, the
best in full; what they gain over the base on the targets is measured item by item. The answer, a
winner, a tie or that none beats the base, is in WORKDIR/decision.html (.md, .json). The same
command goes on where it was stopped; with a candidate more it runs only what is new. Give as many
questions as you can afford (config.eval.limit bounds them): a gain of two points shows on a
thousand, not on a hundred.
"""

from ml_collections import ConfigDict

from configs import base


def get_config(method: str = 'lora') -> ConfigDict:
  """Args: method: lora (runs of a rung train as one program) | full."""
  config = base.get_config()
  if method not in ('full', 'lora'):
    raise ValueError(f'{method!r} is no argument of configs/choose.py: use lora or full')
  config.train.method = method
  config.train.epochs = 2.0
  if method == 'lora':
    config.train.learning_rate = 1e-4
  config.checkpoint.keep_weights = 'none'
  config.log.tensorboard = False
  return config

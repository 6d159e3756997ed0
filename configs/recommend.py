"""What to expect of data sets before any training, from a table of results.

  python -m sft_jax.main --mode=recommend --config=configs/recommend.py \\
    --config.recommend.table=results.csv --config.recommend.target=gsm8k-0shot,math-0shot

With `--config.model.path=MODEL` and `--config.recommend.data=a.jsonl,lima`, the data are measured
under that model too, and what is outside the table is told from its perplexity, where the table has
perplexities; else it is unknown. `--mode=choose` starts from the same by `config.choose.prior`.
"""

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
  """The defaults."""
  return base.get_config()

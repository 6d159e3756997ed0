"""Analyse a result table.

  python -m sft_jax.main --mode=report --config=configs/report.py --workdir=runs/study

reads `results.csv` of a study; any table with the released header is read with
`--config.report.table=FILE`, and the report is written to WORKDIR/report.
"""

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
  """The defaults."""
  return base.get_config()

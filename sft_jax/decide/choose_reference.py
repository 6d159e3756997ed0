"""What candidates are compared with: the untrained base, and a served model.

Not for the runs of candidates (`choose_run.py`).
"""

from collections.abc import Sequence
from typing import Any

import jax

from sft_jax.decide import choose_wish
from sft_jax.execution import study_run


def base(config: Any, place: str, seconds: float) -> None:
  """Asks the untrained base every target and guard; goes on where it was stopped.

  Args:
    config: Of some run, with all tasks.
    place: Where its answers are kept.
    seconds: That it may take; 0 is no limit.

  Raises:
    UserError: bad data.
    Interrupted: stopped; what it has answered is kept.
  """
  from sft_jax.execution import evaluate

  config = choose_wish.ending(config, seconds)
  if config.study.engine == 'ray':
    # This process has perhaps no accelerator: the base is to be computed as its runs are.
    run = study_run.expand(config, [{}], study_run.backend_of(config)).runs[0]
    with config.unlocked():
      config.train.compute_dtype = run.spec.compute_dtype
  evaluate.evaluate(config, place)


def endpoint(
  config: Any, endpoint: str, targets: Sequence[str], place: str, seconds: float
) -> None:
  """Asks a served model the targets, each item once; see `base`."""
  from sft_jax.execution import evaluate

  config = choose_wish.ending(config, seconds)
  platforms = jax.config.values['jax_platforms']
  with config.unlocked():
    config.model.path, config.eval.template = f'endpoint:{endpoint}', 'chat'
    config.eval.tasks = ','.join(targets)
    config.eval.samples = 0
  try:
    evaluate.evaluate(config.lock(), place)
  finally:
    # That evaluation leaves devices to who serves the model; here they are in use already.
    jax.config.update('jax_platforms', platforms)

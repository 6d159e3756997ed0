"""What is asked of a race, and the configs of what it runs.

Not for reading a user's config (`choose_mode.py`) or for running anything (`choose_run.py`).
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from sft_jax.decide import choose_data
from sft_jax.evals import core
from sft_jax.study.race import Trial
from sft_jax.study.race_budget import Budget
from sft_jax.study.race_evidence import Prior
from sft_jax.study.race_rules import Rules
from sft_jax.utils.errors import UserError


@dataclasses.dataclass(frozen=True)
class Wish:
  """What is to be decided.

  Attributes:
    data: {candidate: data set, mixture or path}.
    rules: Targets and guards as in `config.eval.tasks`, and how to decide.
    rates: Learning rates to try; () takes the config's.
    sizes: Examples at each rung, growing; 0 are all of a candidate; () chooses.
    seeds: Runs of an arm at a rung, and at the last.
    budget: What may be spent.
    prior: {candidate: expectation}.
    endpoint: MODEL@URL of a served model to compare with; '' for none.
    most: {candidate: records it is trained on at most}; of those that are not here, all.
  """

  data: Mapping[str, str]
  rules: Rules
  budget: Budget
  rates: Sequence[float] = ()
  sizes: Sequence[int] = ()
  seeds: tuple[int, int] = (2, 3)
  prior: Mapping[str, Prior] = dataclasses.field(default_factory=dict)
  endpoint: str = ''
  most: Mapping[str, int] = dataclasses.field(default_factory=dict)


def shared(config: Any, tasks: Sequence[str]) -> ConfigDict:
  """What all runs share: nothing of the race is part of a run.

  Args:
    config: As given to the race.
    tasks: Targets and guards.
  """
  out = config.copy_and_resolve_references()
  with out.unlocked():
    out.eval.tasks = ','.join(tasks)
    out.data.name = out.data.path = ''
    out.train.snapshot_at = f'{out.train.epochs:g}'
    out.export.format = 'none'
    for name, value in out.choose.items():
      out.choose[name] = type(value)()
    out.choose.seeds = out.choose.final_seeds = 1
  return out


def with_data(config: Any, data: str, size: int = 0) -> Any:
  """The config of a run on some data; `size` as in `config.data.size`."""
  out = config.copy_and_resolve_references()
  with out.unlocked():
    out.data[choose_data.kind(data)], out.data.size = data, size
  return out.lock()


def ending(config: Any, seconds: float) -> Any:
  """The same config, to end after so many seconds; 0 is no limit."""
  out = config.copy_and_resolve_references()
  with out.unlocked():
    out.max_seconds = seconds
  return out


def entry(wish: Wish, seeds: Any, trial: Trial, size: int) -> dict[str, Any]:
  """The run of a trial, as an entry of a sweep.

  Args:
    wish: What is to be decided.
    seeds: `train.seeds` of the config; the first seed is its own.
    trial: The run.
    size: As in `config.data.size`.
  """
  data = wish.data[trial.arm.candidate]
  out = {
    f'data.{choose_data.kind(data)}': data,
    'data.size': size,
    **{f'train.seeds.{of}': seeds[of] + trial.seed for of in ('data', 'init', 'dropout')},
  }
  return out | ({'train.learning_rate': trial.arm.rate} if trial.arm.rate else {})


def full_name(task: str) -> str:
  """The name of a task in records, with everything said.

  Raises:
    UserError: it is no benchmark.
  """
  _, wanted = core.task_names(task)
  if len(wanted) != 1:
    raise UserError(f'{task!r} is no target', 'config.choose.target', 'name benchmarks')
  return wanted[0].name

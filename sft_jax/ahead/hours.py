"""Chip-hours of a planned study: the least its programs take, times what there is to do."""

from typing import Any

from sft_jax.ahead import evaluation, kernels
from sft_jax.ahead.asked import Asked
from sft_jax.ahead.plan import Planned
from sft_jax.ahead.setting import Setting

KINDS = ('train', 'score', 'decode')


def hours(planned: Planned, config: Any, each: Asked) -> dict[str, float]:
  """{kind of KINDS: chip-hours} of a part, at `config.plan.attained` of the least it takes.

  Where a search was asked for, also {KIND_best: with what it found}.

  Args:
    planned: The part.
    config: Of the study.
    each: What the evaluation of a snapshot asks.
  """
  part, setting = planned.part, planned.part.setting
  chips = setting.topology.chips
  asks = lambda one: evaluation.chip_seconds(one, part.snapshots, part.bases, each, config)
  out = {'train': part.steps * planned.bound.seconds * chips, **asks(setting)}
  if planned.best:
    best = planned.best[0]
    found = {'train': part.steps * setting.tokens / best.rate * chips, **asks(best.setting)}
    out |= {f'{kind}_best': spent for kind, spent in found.items()}
  return {kind: spent / 3600 / share(kind, setting, config) for kind, spent in out.items()}


def share(kind: str, setting: Setting, config: Any) -> float:
  """`config.plan.attained`, or what is usual of programs of that kind."""
  if kind.startswith('train'):
    return kernels.attained(setting, config.plan.attained)
  return config.plan.attained or kernels.ASSUMED

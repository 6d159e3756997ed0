"""`--mode=plan --config.plan.topology=…`: what a study takes on chips that are not here.

Each kind of program of the study is counted and, where this Python can, compiled for the chips.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

from sft_jax import spec as spec_lib
from sft_jax.ahead import compiled, estimate, evaluation, kernels, search
from sft_jax.ahead import setting as setting_lib
from sft_jax.ahead.setting import Setting
from sft_jax.evals import caches
from sft_jax.models import published, source
from sft_jax.models.config import ModelConfig
from sft_jax.parallel import roofline, topology
from sft_jax.utils import log
from sft_jax.utils.errors import UserError

# Factors that runs of a cohort may differ in and that shape the program all the same.
_SHAPING = ('batch_size', 'max_length', 'rank', 'dropout', 'layers')
# Programs of a study that are compiled unless asked for: each takes a minute or so.
_COMPILED = 2
# Remedies that are told of, and that are compiled to find them.
_REMEDIES, _TRIED = 3, 5


@dataclasses.dataclass(frozen=True)
class Part:
  """Cohorts of a study that share a program.

  Attributes:
    setting: The program.
    cohorts: How many there are.
    runs: In all of them.
    steps: Optimiser steps, all cohorts; 0 if unknown.
    snapshots: Of training, that are evaluated.
    bases: Models as they are, that are evaluated: each in the first part that has it.
  """

  setting: Setting
  cohorts: int
  runs: int
  steps: int
  snapshots: int
  bases: int = 0


@dataclasses.dataclass
class Planned:
  """What is known of a part.

  Attributes:
    part: The part.
    train: Its compiled step; None where it was counted only.
    evals: Compiled {'score', 'decode'}.
    bound: The least a step takes.
    estimated: Bytes of each kind, counted.
    best: The best settings found; the compiled ones have a peak in `peaks`.
    peaks: {index into `best`: bytes on a chip as compiled}.
    remedies: Where it does not fit: what would, compiled where it could be.
  """

  part: Part
  train: compiled.Program | None
  evals: dict[str, compiled.Program]
  bound: roofline.Bound
  estimated: dict[str, float]
  best: list[search.Choice]
  peaks: dict[int, float]
  remedies: list[search.Remedy] = dataclasses.field(default_factory=list)

  @property
  def peak(self) -> float:
    """Bytes on a chip, as compiled, else as counted."""
    return self.train.peak if self.train else sum(self.estimated.values())

  @property
  def fits(self) -> bool:
    """Whether a chip has as much."""
    refused = self.train is not None and self.train.refused
    return not refused and self.peak <= self.part.setting.topology.usable

  @property
  def correction(self) -> float:
    """What counted activations are to be multiplied by, from what was compiled."""
    # What a refused program asked for was never arranged to take little.
    if self.train is None or self.train.refused:
      return 1.0
    fixed = self.estimated['parameters'] + self.estimated['optimiser']
    return max(0.5, (self.peak - fixed) / max(sum(self.estimated.values()) - fixed, 1.0))


def parts(
  study: Any, config: Any, whole: topology.Topology, counted: Mapping[str, Any]
) -> list[Part]:
  """The programs of a study (`study.plan.Study`), models by their raw configs; see `plan`."""
  cfgs: dict[str, ModelConfig] = {}
  groups: dict[Setting, list[Any]] = {}
  for cohort in study.cohorts:
    first = cohort.runs[0]
    base = first.spec.base
    if base not in cfgs:
      known = base.partition('@')[0] in published.MODELS
      raw = (
        published.raw_config(base.partition('@')[0])
        if known
        else source.raw_config(base, config.cache_dir or None)
      )
      cfgs[base] = ModelConfig.from_hf(raw, base)
    largest = max(cohort.runs, key=lambda run: (run.spec.batch_size, run.spec.max_length))
    rank = max(run.spec.rank for run in cohort.runs)
    spec = _static(dataclasses.replace(largest.spec, rank=rank))
    told = [counted[run.key] for run in cohort.runs if run.key in counted]
    known = len(told) == len(cohort.runs) and all(one.examples for one in told)
    tokens = max(one.tokens / one.examples for one in told) if known else 0.0
    made = setting_lib.of_config(cfgs[base], spec, first.config, whole, len(cohort.runs), tokens)
    groups.setdefault(made, []).append(cohort)
  found = [_part(setting, cohorts, counted) for setting, cohorts in groups.items()]
  first = {part.setting.spec.base: index for index, part in reversed(list(enumerate(found)))}
  return [
    dataclasses.replace(part, bases=int(first[part.setting.spec.base] == index))
    for index, part in enumerate(found)
  ]


def _static(spec: spec_lib.RunSpec) -> spec_lib.RunSpec:
  """The spec without what only changes values of a program's arguments."""
  # A value of the same type, whichever: no number of it is compiled in.
  plain = {
    name: type(getattr(spec, name))()
    for name, factor in spec_lib.FACTORS.items()
    if factor.kind == 'run' and name not in _SHAPING
  }
  return dataclasses.replace(spec, **plain)


def _part(setting: Setting, cohorts: Sequence[Any], counted: Mapping[str, Any]) -> Part:
  runs = [run for cohort in cohorts for run in cohort.runs]
  examples = {
    run.key: counted[run.key].examples if run.key in counted else run.spec.planned_size
    for run in runs
  }
  steps = [max(run.steps(examples[run.key])[1] for run in cohort.runs) for cohort in cohorts]
  known = all(examples.values())
  snapshots = sum(len(run.snapshots(examples[run.key])) for run in runs)
  return Part(setting, len(cohorts), len(runs), sum(steps) if known else 0, snapshots)


def plan(study: Any, config: Any, counted: Mapping[str, Any] | None = None) -> list[Planned]:
  """Plans every part of a study.

  Args:
    study: A `study.plan.Study`.
    config: Its config.
    counted: {run key: `study.cost.DataSize`}, as far as data were counted.

  Raises:
    UserError: no such topology, a share that is none, a mesh that does not multiply out, a model
      that cannot be read, or nothing to compile with though it was asked for.
  """
  if not 0 <= config.plan.attained <= 1:
    raise UserError(
      f'{config.plan.attained:g} is no share of the roofline',
      'config.plan.attained',
      'give at most 1, or 0 for the usual one; --mode=doctor --config.doctor.bench=True measures '
      'yours',
    )
  whole = topology.parse(config.plan.topology)
  found = parts(study, config, whole, counted or {})
  wanted = config.plan.compile
  unable = topology.unable(whole)
  if wanted == 'yes' and unable:
    topology.devices(whole)
  compiles = wanted == 'yes' or (wanted == 'auto' and not unable and len(found) <= _COMPILED)
  return [_planned(part, config, compiles) for part in found]


def _planned(part: Part, config: Any, compiles: bool) -> Planned:
  setting = part.setting
  kinds, program = estimate.memory(setting), None
  evals: dict[str, compiled.Program] = {}
  if compiles:
    log.say(f'compiling the train step of {_name(setting)} for {setting.topology.name}')
    program = compiled.train(setting)
    if config.plan.evaluation:
      rows = config.eval.tokens_per_batch // compiled.loglik.ROW
      rows = max(1, rows // setting.shards) * setting.shards
      evals['score'] = compiled.score(setting, rows, beginnings=rows)
      room = config.plan.room
      before = caches.smaller(room)
      evals['decode'] = compiled.decode(setting, config.eval.slots, room, before=before)
  collectives = program.collectives if program and not program.refused else None
  bound = kernels.bound(setting, collectives)
  out = Planned(part, program, evals, bound, kinds, [], {})
  if not out.fits:
    tried = search.remedies(setting, out.correction)
    out.remedies = _proved(tried) if compiles else tried[:_REMEDIES]
  if config.plan.search:
    out.best = _found(out, config)[:3]
    if compiles:
      _confirm(out, config.plan.search)
  return out


def _found(planned: Planned, config: Any) -> list[search.Choice]:
  """Settings that fit in training and in evaluation, those that take the least of both first."""
  part, each = planned.part, evaluation.asked_of(planned.part.setting, config)
  ranked = search.ranked(part.setting, part.runs, planned.correction)
  if planned.fits:
    ranked = [search.choice(part.setting, correction=planned.correction), *ranked]
  fitting = [
    one
    for one in ranked
    if evaluation.held_bytes(one.setting, config) <= one.setting.topology.usable
  ]
  chips, tokens = part.setting.topology.chips, part.steps * part.setting.tokens

  def spent(one: search.Choice) -> float:
    evals = evaluation.chip_seconds(one.setting, part.snapshots, part.bases, each, config)
    return tokens / one.rate * chips + sum(evals.values())

  # Equals stay in the order of the search.
  return sorted(fitting, key=spent if part.steps else lambda one: -one.rate)


def _proved(remedies: Sequence[search.Remedy]) -> list[search.Remedy]:
  """Those of them that fit when compiled, with the bytes they then take."""
  out: list[search.Remedy] = []
  for one in remedies[:_TRIED]:
    if len(out) < _REMEDIES and not topology.unable(one.setting.topology):
      log.say(f'compiling with {_flags(one.overrides)}')
      program = compiled.train(one.setting)
      if not program.refused and program.peak <= one.setting.topology.usable:
        out.append(dataclasses.replace(one, bytes=program.peak))
  return out


def _confirm(planned: Planned, most: int) -> None:
  """Compiles the best settings, at most so many, until one fits, and puts that first."""
  for index, one in enumerate(planned.best[:most]):
    if one.setting == planned.part.setting and planned.train is not None:
      peak = planned.train.peak
    else:
      log.say(f'compiling another setting: {_words(one.setting)}')
      program = compiled.train(one.setting)
      peak = math.inf if program.refused else program.peak
    planned.peaks[index] = peak
    if peak <= one.setting.topology.usable:
      break
  room = lambda index: planned.best[index].setting.topology.usable
  fitting = [index for index, peak in planned.peaks.items() if peak <= room(index)]
  if fitting:
    index = fitting[0]
    planned.best.insert(0, planned.best.pop(index))
    planned.peaks = {0: planned.peaks[index]}


def _name(setting: Setting) -> str:
  return f'{setting.spec.base} ({setting.spec.method})'


def _words(setting: Setting) -> str:
  return ', '.join(f'{key}={value}' for key, value in setting.overrides().items())


def refuse_if_too_large(found: Sequence[Planned]) -> None:
  """Raises UserError for the first part that a chip has no room for, with what would fit.

  Where a search found what does, the plan says that and nothing is refused.
  """
  for planned in found:
    if planned.fits or planned.best:
      continue
    setting = planned.part.setting
    largest = planned.train.largest if planned.train else ()
    names = [f'{b.shape} {b.size / topology.GIB:.2f} GiB ({b.source})' for b in largest[:3]]
    if not names:
      kinds = sorted(planned.estimated.items(), key=lambda item: -item[1])[:3]
      names = [f'{name} {size / topology.GIB:.2f} GiB' for name, size in kinds]
    ways = [f'{_flags(r.overrides)} ({r.bytes / topology.GIB:.1f} GiB)' for r in planned.remedies]
    raise UserError(
      f'{_name(setting)} needs {planned.peak / topology.GIB:.2f} GiB on each chip of '
      f'{setting.topology.name}, which has {setting.topology.usable / topology.GIB:.2f}; largest: '
      f'{"; ".join(names)}',
      'config.plan.topology',
      f'would fit, the cheapest first: {" | ".join(ways)}' if ways else 'no single change fits',
    )


def _flags(overrides: Mapping[str, Any]) -> str:
  return ' '.join(f'--config.{key}={value}' for key, value in overrides.items())

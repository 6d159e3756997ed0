"""What a study will take, and whether its runs are comparable, from plain numbers.

Nothing is loaded here: sizes of models and lengths of data are given by whoever knows them; what
is not known is named. Not for measuring: numbers here are counted, not timed.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from sft_jax.study import disk, licences, plan
from sft_jax.study.disk import ModelSize
from sft_jax.utils import chips, words
from sft_jax.utils.errors import UserError

# Runs count as equal within this share: examples and steps can be made equal, token counts only
# nearly so.
TOLERANCE = {'examples': 0.0, 'steps': 0.0, 'supervised': 0.05, 'flops': 0.05}
_TOKENS = 'config.plan.tokens'
_NO_TOKENS = f'data or tokenizer not here, and no {_TOKENS}'


@dataclasses.dataclass(frozen=True)
class DataSize:
  """Counts of the training data of a run, one pass.

  Attributes:
    examples: Examples that are trained on.
    tokens: Their tokens; 0 if unknown.
    supervised: Those with a loss; 0 if unknown.
  """

  examples: int
  tokens: int = 0
  supervised: int = 0


@dataclasses.dataclass(frozen=True)
class Sizes:
  """What is known before anything is loaded; what lacks is counted as unknown.

  Attributes:
    models: {`model.path`: sizes}.
    data: {run key: counts}, once prepared; else `data.size` is taken for the examples and
      `plan.tokens` for the tokens of each.
    data_licences: {data set or path: licence}, of every part of a mixture.
    absent: Bases whose weights are not on this machine.
    absent_data: Data sets that come from elsewhere.
  """

  models: Mapping[str, ModelSize] = dataclasses.field(default_factory=dict)
  data: Mapping[str, DataSize] = dataclasses.field(default_factory=dict)
  data_licences: Mapping[str, str] = dataclasses.field(default_factory=dict)
  absent: tuple[str, ...] = ()
  absent_data: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Cost:
  """What a study will take. A number that some run lacks is None.

  Attributes:
    runs: Runs.
    snapshots: Trained snapshots that are evaluated: rows without the bases'.
    bases: Bases, each evaluated once.
    cohorts: Programs' worth of runs, one after another on one machine.
    programs: Training programs to compile, at least: data of other lengths may want others.
    steps: Optimiser steps, a cohort's steps counted once.
    examples: Examples passed, all epochs.
    tokens: Their tokens.
    supervised: Those with a loss.
    flops: Training FLOPs (`chips.flops_per_token`), without what rematerialisation repeats.
    weight_bytes: Weights of the snapshots that `checkpoint.keep_weights` keeps.
    delta_bytes: The same as bfloat16 differences to the base, at most; adapters as they are.
    disk_bytes: What runs leave, at most: those weights, and `config.export`.
    working_bytes: Most that a cohort at work takes beside that, such as training states.
    files: Files and directories that runs leave, at most.
    download_bytes: Weights, in two bytes each, of bases that are not on this machine.
    downloads: Those bases, and data sets that come from elsewhere.
    licence: The strictest licence of all models and data, and whose it is.
    unknown: What was not known, in words.
  """

  runs: int
  snapshots: int
  bases: int
  cohorts: int
  programs: int
  steps: int | None
  examples: int | None
  tokens: int | None
  supervised: int | None
  flops: float | None
  weight_bytes: int | None
  delta_bytes: int | None
  disk_bytes: int | None
  working_bytes: int | None
  files: int
  download_bytes: int | None
  downloads: tuple[str, ...]
  licence: str
  unknown: tuple[str, ...]


def cost(study: plan.Study, sizes: Sizes) -> Cost:
  """Adds up a study.

  Args:
    study: The study.
    sizes: What is known.
  """
  runs = study.runs
  passed = [passes(run, sizes) for run in runs]
  size = lambda run: sizes.models.get(run.spec.base)
  kept = [disk.kept(run, examples_of(run, sizes)) for run in runs]
  each = list(zip(runs, kept, strict=True))
  bases = list(dict.fromkeys(run.spec.base for run in runs))
  steps = [
    _most([run.steps(n)[1] if (n := examples_of(run, sizes)) else None for run in cohort.runs])
    for cohort in study.cohorts
  ]
  named = {f'model {base}': sizes.models[base].licence for base in bases if base in sizes.models}
  named |= {f'data {data}': licence for data, licence in sizes.data_licences.items()}
  return Cost(
    runs=len(runs),
    snapshots=sum(len(run.snapshots(examples_of(run, sizes))) for run in runs),
    bases=len(bases),
    cohorts=len(study.cohorts),
    programs=len({_program(cohort) for cohort in study.cohorts}),
    steps=_sum(steps),
    examples=_sum([p.examples or None for p in passed]),
    tokens=_sum([p.tokens or None for p in passed]),
    supervised=_sum([p.supervised or None for p in passed]),
    flops=_sum([flops(run, sizes) for run in runs]),
    weight_bytes=_sum([_times(n, disk.weight_bytes(run, size(run))) for run, n in each]),
    delta_bytes=_sum([_times(n, disk.delta_bytes(run, size(run))) for run, n in each]),
    disk_bytes=_sum([disk.left_bytes(r, size(r), examples_of(r, sizes)) for r in runs]),
    working_bytes=_most(
      [_sum([disk.working_bytes(run, size(run)) for run in c.runs]) for c in study.cohorts]
    ),
    files=sum(disk.files(run, size(run), examples_of(run, sizes)) for run in runs),
    download_bytes=_sum(
      [2 * sizes.models[base].params if base in sizes.models else None for base in sizes.absent]
    ),
    downloads=(*sizes.absent, *sizes.absent_data),
    licence=licences.strictest(named),
    unknown=tuple(_unknown(runs, sizes, named)),
  )


def examples_of(run: plan.Planned, sizes: Sizes) -> int:
  """Training examples of a run: as prepared, else as planned; 0 if unknown."""
  return sizes.data[run.key].examples if run.key in sizes.data else run.spec.planned_size


def passes(run: plan.Planned, sizes: Sizes) -> DataSize:
  """What a run passes in all epochs; a part of an epoch has its share of the tokens. 0: unknown."""
  count = examples_of(run, sizes)
  if not count:
    return DataSize(0)
  per_epoch, total = run.steps(count)
  whole, rest = divmod(total, per_epoch)
  examples = whole * count + min(rest * run.spec.batch_size, count)
  once = sizes.data.get(run.key) or DataSize(count, count * run.config.plan.tokens)
  return DataSize(
    examples, round(once.tokens * examples / count), round(once.supervised * examples / count)
  )


def flops(run: plan.Planned, sizes: Sizes) -> float | None:
  """Training FLOPs of a run; None where the model or its tokens are unknown."""
  passed = passes(run, sizes)
  if run.spec.base not in sizes.models or not passed.tokens:
    return None
  size = sizes.models[run.spec.base]
  adapter = size.adapters[run.spec.targets] * run.spec.rank if run.spec.method == 'lora' else None
  length = passed.tokens / passed.examples
  return passed.tokens * chips.flops_per_token(
    size.matmul, size.layers, size.width, length, adapter
  )


def comparability(study: plan.Study, sizes: Sizes | None = None) -> str:
  """Holds a study to `config.study.equal`; says in a sentence what was checked.

  examples: examples passed in all epochs; steps: optimiser steps; supervised: tokens with a loss;
  flops: training FLOPs. All runs must agree within TOLERANCE, whatever factors they differ in, so
  that a difference between two of them is not one of how much they were trained. The planned
  numbers are checked first, the actual ones once the data are prepared.

  Args:
    study: The study.
    sizes: What is known.

  Raises:
    UserError: two runs that are not equal.
  """
  rule, sizes = study.config.study.equal, sizes or Sizes()
  chosen = _chosen_apart(study)
  if rule == 'none':
    return f'runs may differ in how much they are trained (config.study.equal=none){chosen}'
  amounts = {run.name: _amount(rule, run, sizes) for run in study.runs}
  known = {name: amount for name, amount in amounts.items() if amount}
  if known:
    least, most = min(known, key=known.__getitem__), max(known, key=known.__getitem__)
    if known[most] - known[least] > TOLERANCE[rule] * known[most]:
      raise UserError(
        f'{rule} are not equal: {_short(known[least])} in {least}, {_short(known[most])} in {most}',
        f'config.study.equal={rule}',
        'make them equal by data.size, train.epochs or train.batch_size, or set it to none',
      )
  left = len(amounts) - len(known)
  later = f'; of {words.count(left, "run")} it is told once their data are prepared' if left else ''
  within = f' within {TOLERANCE[rule]:.0%}' if TOLERANCE[rule] else ''
  return f'{rule} are equal{within} in {words.count(len(known), "run")}{later}{chosen}'


def _chosen_apart(study: plan.Study) -> str:
  """Says where runs that look alike are trained on different examples."""
  bases = {run.spec.base for run in study.runs if run.spec.data_select}
  if len(bases) < 2:
    return ''
  return (
    f'; config.data.select takes other examples for each of {len(bases)} bases: between them, runs '
    'of one data set differ in their examples too'
  )


def _amount(rule: str, run: plan.Planned, sizes: Sizes) -> float | None:
  if run.spec.data_select and rule in ('flops', 'supervised'):
    return None  # How long the selected examples are is not known before they are scored.
  if rule == 'flops':
    return flops(run, sizes)
  if rule == 'steps':
    count = examples_of(run, sizes)
    return run.steps(count)[1] if count else None
  passed = passes(run, sizes)
  return passed.examples if rule == 'examples' else passed.supervised


def _short(number: float) -> str:
  return f'{number:,.0f}' if number < 1e9 else f'{number:.4g}'


def _program(cohort: plan.Cohort) -> tuple[Any, ...]:
  """What one compiled training step serves."""
  # The last part tells full fine-tunes apart, which only contents and traced values do.
  static = plan.program_key(cohort.runs[0])[:-1]
  specs = [run.spec for run in cohort.runs]
  rank = max(spec.rank for spec in specs) if specs[0].method == 'lora' else 0
  dropout = any(spec.dropout for spec in specs) if specs[0].method == 'lora' else False
  batch, length = max(s.batch_size for s in specs), max(s.max_length for s in specs)
  return (*static, len(specs), rank, dropout, batch, length)


def _unknown(runs: Sequence[plan.Planned], sizes: Sizes, licence: Mapping[str, str]) -> list[str]:
  models = dict.fromkeys(run.spec.base for run in runs if run.spec.base not in sizes.models)
  no_size = sum(not examples_of(run, sizes) for run in runs)
  no_tokens = sum(not passes(run, sizes).tokens for run in runs)
  assumed = sum(run.key not in sizes.data for run in runs) - no_tokens
  of = lambda number, one='run': words.count(number, one)
  return [
    *([f'sizes of {of(len(models), "model")}, such as {next(iter(models))}'] if models else []),
    *([f'the number of examples of {of(no_size)} (data.size is 0)'] if no_size else []),
    *([f'the tokens of {of(no_tokens)} ({_NO_TOKENS})'] if no_tokens else []),
    *([f'the tokens of {of(assumed)}: as many as {_TOKENS} says'] if assumed > 0 else []),
    *(f'the licence of {name}' for name, text in licence.items() if not text),
  ]


def _sum(values: Sequence[Any]) -> Any:
  """Their sum; None where one is."""
  return None if any(value is None for value in values) else sum(values)


def _most(values: Sequence[int | None]) -> int | None:
  known = [value for value in values if value is not None]
  return max(known) if len(known) == len(values) else None


def _times(count: int, size: int | None) -> int | None:
  return 0 if not count else None if size is None else count * size

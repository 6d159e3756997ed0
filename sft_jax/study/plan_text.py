"""A planned study as text and as JSON."""

import collections
import dataclasses
from typing import Any

from sft_jax import spec as spec_lib
from sft_jax.study import cost as cost_lib
from sft_jax.study import plan
from sft_jax.utils import words
from sft_jax.utils.transfer import as_size

# Runs and levels of a factor shown one by one.
_SHOWN_RUNS, _SHOWN_LEVELS = 20, 6


def lines(study: plan.Study, sizes: cost_lib.Sizes | None = None) -> list[str]:
  """What `--mode=plan` says of a study: factors, what it takes, comparability, cohorts, runs."""
  sizes = sizes or cost_lib.Sizes()
  taken = cost_lib.cost(study, sizes)
  one, bases = taken.bases == 1, words.count(taken.bases, 'base')
  programs = words.count(taken.programs, 'program')
  rows = [
    ('runs', f'{taken.runs:,} on {bases}'),
    ('snapshots', f'{taken.snapshots:,}, and {bases} as {"it is" if one else "they are"}'),
    ('cohorts', f'{taken.cohorts:,}, at least {programs} to compile'),
    ('steps', _number(taken.steps)),
    ('examples', _number(taken.examples)),
    ('tokens', f'{_number(taken.tokens)}, {_number(taken.supervised)} of them supervised'),
    ('train FLOPs', '?' if taken.flops is None else f'{taken.flops:.3g}'),
    (
      'weights kept',
      f'{_size(taken.weight_bytes)}; as deltas below {_size(taken.delta_bytes)}',
    ),
    (
      'disk',
      f'at most {_size(taken.disk_bytes)} in {taken.files:,} files and directories, and '
      f'{_size(taken.working_bytes)} while a cohort is at work',
    ),
    ('download', _download(sizes, taken)),
    ('licence', taken.licence or '?'),
    ('comparability', cost_lib.comparability(study, sizes)),
  ]
  out = [f'{name:<14}{text}' for name, text in rows]
  out += [f'{"not known":<14}{text}' for text in taken.unknown]
  out += ['', 'factors', *_factor_lines(study), '', 'cohorts', *_cohort_lines(study)]
  shown = study.runs[:_SHOWN_RUNS]
  out += ['', 'runs', *(f'  {run.key}  {run.name}' for run in shown)]
  if study.runs[_SHOWN_RUNS:]:
    out.append(f'  … and {len(study.runs) - _SHOWN_RUNS} more')
  return out


def as_json(study: plan.Study, sizes: cost_lib.Sizes | None = None) -> dict[str, Any]:
  """The same for programs, with every run."""
  sizes = sizes or cost_lib.Sizes()
  names = {run.key: run.name for run in study.runs}
  return {
    'cost': dataclasses.asdict(cost_lib.cost(study, sizes)),
    'comparability': cost_lib.comparability(study, sizes),
    'cohorts': {c.key: [run.key for run in c.runs] for c in study.cohorts},
    'names': names,
    'differs': {run.key: run.differs for run in study.runs},
    'snapshots': {run.key: run.snapshots(cost_lib.examples_of(run, sizes)) for run in study.runs},
  }


def _download(sizes: cost_lib.Sizes, taken: cost_lib.Cost) -> str:
  parts = []
  if sizes.absent:
    bases = words.count(len(sizes.absent), 'base')
    parts.append(f'{bases}, about {_size(taken.download_bytes)} in bfloat16')
  if sizes.absent_data:
    parts.append(words.count(len(sizes.absent_data), 'data set'))
  return f'{", ".join(parts)} (--mode=fetch)' if parts else 'nothing'


def _factor_lines(study: plan.Study) -> list[str]:
  """Every factor that varies, with its levels and how many runs have each."""
  fields = dict.fromkeys(f for run in study.runs for f in run.spec.factors())
  out = []
  for field in fields:
    levels = collections.Counter(
      run.spec.factors()[field] for run in study.runs if field in run.spec.factors()
    )
    if len(levels) < 2:
      continue
    shown = [f'{value} ({count})' for value, count in list(levels.items())[:_SHOWN_LEVELS]]
    more = f', … {len(levels) - _SHOWN_LEVELS} more' if len(levels) > _SHOWN_LEVELS else ''
    out.append(f'  {spec_lib.FACTORS[field].key:<22}{", ".join(shown)}{more}')
  return out or ['  none varies']


def _cohort_lines(study: plan.Study) -> list[str]:
  """How many cohorts of each base, method and size."""
  kinds = collections.Counter(
    (c.runs[0].spec.base, c.runs[0].spec.method, len(c.runs)) for c in study.cohorts
  )
  return [
    f'  {base:<42}{method:<6}{count} x {words.count(runs, "run")}'
    for (base, method, runs), count in kinds.items()
  ]


def _number(value: int | None) -> str:
  return '?' if value is None else f'{value:,}'


def _size(value: int | None) -> str:
  return '?' if value is None else as_size(value)

"""A study as one object: every run that is planned, checked, named and put into cohorts.

A study is a config, which all runs share, and the entries of a sweep, each of which changes some
factors of it and so makes a run. Not for what a study costs or says: `cost.py`, `plan_text.py`; nor
for doing it.
"""

import collections
import contextlib
import dataclasses
import hashlib
import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from sft_jax import spec as spec_lib
from sft_jax.study import grid
from sft_jax.utils import mixture
from sft_jax.utils.errors import UserError

# Runs of a cohort where `config.study.cohort_size` is 0.
AUTO_COHORT = 16
# A run joins a cohort when it has at least this share of the work of the longest run there: a run
# that is done early is carried along, frozen, to the end.
_LEAST_SHARE = 0.75
# Where the study runs and what it keeps: changes of these change no result.
_FREE = (
  *('study', 'mesh', 'checkpoint', 'export', 'compare', 'log', 'plan'),
  # Of modes that read a study, or none.
  *('chat', 'choose', 'doctor', 'probe', 'recommend', 'release', 'report', 'show'),
)
_FREE_KEYS = (
  *('cache_dir', 'max_seconds', 'profile', 'data.dir', 'eval.data_dir', 'eval.slots'),
  *('eval.tokens_per_batch', 'eval.judge_budget', 'eval.run_code'),
  *('train.remat', 'train.attention'),
  *('train.layout', 'train.loss_chunk', 'train.row_length', 'train.rows_per_micro'),
)


@dataclasses.dataclass(frozen=True)
class Planned:
  """A run before anything of it is read.

  Attributes:
    name: For people; no two runs of a study share one.
    config: All of its config, locked.
    spec: Its factors.
    key: Twelve hex digits of the factors: its identity before contents are known.
    differs: {factor: value} where it departs from the study's config.
  """

  name: str
  config: Any
  spec: spec_lib.RunSpec
  key: str
  differs: dict[str, Any]

  def steps(self, examples: int = 0) -> tuple[int, int]:
    """Optimiser steps (of one epoch, of the run), as `data/sampler.py` cuts them; 0 if unknown.

    Args:
      examples: Training examples; 0 takes `data.size`, which dropped records may undercut.
    """
    known = examples or self.spec.planned_size
    return spec_lib.steps(known, self.spec.batch_size, self.spec.epochs)

  def snapshots(self, examples: int = 0) -> list[float]:
    """Epochs of its snapshots, the untrained base not counted.

    Where the number of examples is unknown, snapshots named by steps have the wrong epochs, though
    there are as many.

    Raises:
      UserError: `train.snapshot_at` names none, or one outside the run.
    """
    known = examples or self.spec.planned_size
    per_epoch, total = self.steps(known or 10**9)
    try:
      return [*spec_lib.snapshot_steps(self.config.train.snapshot_at, per_epoch, total).values()]
    except UserError as e:
      what = e.what if known else e.what.replace(f'{total} steps', f'{self.spec.epochs:g} epochs')
      raise UserError(what, f'{e.where}; run {self.name}' if examples else e.where, e.how) from e


@dataclasses.dataclass(frozen=True)
class Cohort:
  """Runs that train as one program: equal in all static factors and in what shapes the program.

  Attributes:
    key: Twelve hex digits of its runs' keys.
    runs: In the order of the study; a full fine-tune is alone.
  """

  key: str
  runs: tuple[Planned, ...]


@dataclasses.dataclass(frozen=True)
class Study:
  """All runs and how they are grouped.

  Attributes:
    config: What they share.
    runs: In the order of the sweep.
    cohorts: Every run is in one.
  """

  config: Any
  runs: tuple[Planned, ...]
  cohorts: tuple[Cohort, ...]

  def definition(self) -> dict[str, Any]:
    """What the study is, for `study.json`: factors of every run and the conditions they share."""
    factors = {factor.key for factor in spec_lib.FACTORS.values()} | set(grid.PER_RUN)
    shared = {
      key: value
      for key, value in grid.leaves(self.config).items()
      if key not in factors and key not in _FREE_KEYS and key.split('.')[0] not in _FREE
    }
    runs = {
      run.key: {
        'name': run.name,
        'factors': run.spec.factors(),
        'snapshots': run.config.train.snapshot_at,
      }
      for run in self.runs
    }
    return {'equal': self.config.study.equal, 'shared': shared, 'runs': runs}


def expand(
  config: Any,
  sweep: Iterable[Mapping[str, Any]],
  backend: str,
  check: Callable[[Any], None] = lambda config: None,
) -> Study:
  """The study that a config and its sweep describe, every run checked.

  Args:
    config: A ConfigDict with the keys of `configs/base.py`.
    sweep: Entries, each {config key without `config.`: value}; see `grid.py` for short names.
    backend: JAX's default backend; settles `compute_dtype='auto'`.
    check: Called with the config of each run; raises UserError for what only other parts know.

  Raises:
    UserError: a bad value, factors that contradict each other, an entry that is a run twice; it
      names the entry. Nothing to run.
  """
  runs: list[Planned] = []
  first: dict[str, int] = {}
  for number, entry in enumerate(grid.entries(config, sweep), 1):
    with _naming(grid.place(number, entry) if entry else ''):
      run = _planned(config, entry, backend)
      check(run.config)
      run.snapshots()
    if run.key in first:
      raise _twice(first[run.key], number, entry, runs[first[run.key] - 1], run)
    first[run.key] = number
    runs.append(run)
  runs = _named_apart(runs)
  most = config.study.cohort_size or AUTO_COHORT
  return Study(config, tuple(runs), tuple(cohorts(runs, most)))


@contextlib.contextmanager
def _naming(entry: str) -> Iterator[None]:
  try:
    yield
  except UserError as e:
    where = '; '.join(filter(None, (e.where, entry)))
    raise UserError(e.what, where, e.how) from e


def _planned(config: Any, entry: grid.Entry, backend: str) -> Planned:
  changed = config.copy_and_resolve_references()
  for key, value in entry.items():
    *path, last = key.split('.')
    inner = changed
    for part in path:
      inner = inner[part]
    inner[last] = value
  changed.lock()
  spec = spec_lib.from_config(changed, backend)
  spec_lib.check_settings(changed)
  factors = spec.factors()
  common = grid.leaves(config)
  usual = {field: common[spec_lib.FACTORS[field].key] for field in factors}
  usual['data_name'] = mixture.canonical(usual['data_name'])
  if usual['compute_dtype'] == 'auto':
    usual['compute_dtype'] = spec.compute_dtype
  differs = {field: value for field, value in factors.items() if value != usual[field]}
  key = hashlib.sha256(json.dumps(factors, sort_keys=True).encode()).hexdigest()[:12]
  return Planned(_name(changed, spec, differs), changed, spec, key, differs)


def _name(config: Any, spec: spec_lib.RunSpec, differs: Mapping[str, Any]) -> str:
  """Model, data and method, then whatever else is unusual: fit for a file's name."""
  short = {keys[0]: alias for alias, keys in grid.ALIASES.items()}
  model = config.model.name or re.split(r'[/:]', spec.base.rstrip('/'))[-1].split('==')[0]
  data = mixture.table_name(spec.data_name) or re.split(r'[/:]', spec.data_path)[-1]
  parts = [model, data, spec.method]
  seeds = {field: getattr(spec, field) for field in spec.factors() if field.startswith('seed_')}
  together = len(set(seeds.values())) == 1
  for field, value in differs.items():
    if field in ('base', 'data_name', 'data_path', 'method'):
      continue
    if field in seeds and field != 'seed_data' and together:
      continue
    key = spec_lib.FACTORS[field].key
    known = key in short and (field not in seeds or together)
    alias = short[key] if known else key.split('.', 1)[1]
    parts.append(f'{alias}={value:g}' if isinstance(value, float) else f'{alias}={value}')
  return re.sub(r'[^\w.=+:,-]+', '-', '+'.join(parts))


def _named_apart(runs: Sequence[Planned]) -> list[Planned]:
  """The same runs, with the key behind a name that several have, as of models in two places."""
  names = collections.Counter(run.name for run in runs)
  return [
    dataclasses.replace(run, name=f'{run.name}+{run.key}') if names[run.name] > 1 else run
    for run in runs
  ]


def _twice(before: int, number: int, entry: grid.Entry, one: Planned, other: Planned) -> UserError:
  unlike = [
    key for key, value in grid.leaves(one.config).items() if value != grid.leaves(other.config)[key]
  ]
  why = 'drop one of them'
  if unlike:
    kind = 'full' if one.spec.method == 'full' else 'LoRA'
    why = f'{", ".join(unlike)} changes nothing in a {kind} run: vary it elsewhere'
    if set(unlike) <= set(grid.PER_RUN):
      why = f'{", ".join(unlike)} is no factor: give it once'
  return UserError(f'entries {before} and {number} are one run', grid.place(number, entry), why)


def cohorts(
  runs: Sequence[Planned], most: int, examples: Mapping[str, int] | None = None
) -> list[Cohort]:
  """Groups runs that may train as one program.

  A cohort lasts as long as its longest run, and every step is laid out for its largest batch; so
  runs are sorted by batch size and steps, and one joins only where it wastes little. Cohorts of a
  kind are of even size, so that few programs are compiled; those of a base follow each other.

  Args:
    runs: Of one study.
    most: Runs in a cohort at most.
    examples: {run key: training examples} where they are known; else `data.size`.
  """
  order = {run.key: index for index, run in enumerate(runs)}
  known = {run.key: run.spec.planned_size for run in runs} | dict(examples or {})

  def work(run: Planned) -> tuple[int, int]:
    """(examples a step, steps); of unknown data, epochs stand for steps."""
    count = known[run.key]
    steps = run.steps(count)[1] if count else math.ceil(run.spec.epochs * 1000)
    return run.spec.batch_size, steps

  groups: dict[tuple[Any, ...], list[Planned]] = {}
  for run in runs:
    groups.setdefault((program_key(run), not known[run.key]), []).append(run)
  out: list[Cohort] = []
  for group in groups.values():
    blocks: list[list[Planned]] = []
    longest = batch = 0
    for run in sorted(group, key=lambda r: (*(-x for x in work(r)), order[r.key])):
      examples_a_step, steps = work(run)
      longest = max(longest, steps)
      if blocks and examples_a_step * steps >= _LEAST_SHARE * batch * longest:
        blocks[-1].append(run)
      else:
        blocks.append([run])
        longest, batch = steps, examples_a_step
    for block in blocks:
      out += [_cohort(part, order) for part in _evenly(block, most)]
  bases = list(dict.fromkeys(run.spec.base for run in runs))
  return sorted(out, key=lambda c: (bases.index(c.runs[0].spec.base), order[c.runs[0].key]))


def program_key(run: Planned) -> tuple[Any, ...]:
  """What runs of one program have equal, contents aside; a full fine-tune equals only itself."""
  static = [getattr(run.spec, field) for field, f in spec_lib.FACTORS.items() if f.kind == 'static']
  return (*static, run.key if run.spec.method == 'full' else '')


def _evenly(block: list[Planned], most: int) -> Iterator[list[Planned]]:
  """Parts of at most `most` runs whose sizes differ by one at most."""
  parts = math.ceil(len(block) / most)
  start = 0
  for index in range(parts):
    end = start + len(block) // parts + (index < len(block) % parts)
    yield block[start:end]
    start = end


def _cohort(runs: Sequence[Planned], order: Mapping[str, int]) -> Cohort:
  inside = tuple(sorted(runs, key=lambda run: order[run.key]))
  joined = ' '.join(sorted(run.key for run in inside))
  return Cohort(hashlib.sha256(joined.encode()).hexdigest()[:12], inside)


def compare_definitions(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
  """What a study changed of what it was, in words; added runs are no change.

  Args:
    old: A definition (`Study.definition`), also as read from JSON.
    new: Another one.
  """
  out = []
  # A key that only one has came with another version of this program.
  for name in sorted(old['shared'].keys() & new['shared'].keys()):
    before, after = old['shared'][name], new['shared'][name]
    if before != after:
      out.append(f'{name} was {before!r}, is {after!r}')
  if old['equal'] != new['equal']:
    out.append(f'study.equal was {old["equal"]!r}, is {new["equal"]!r}')
  gone = [run for key, run in old['runs'].items() if key not in new['runs']]
  for run in gone[:3]:
    out.append(f'{run["name"]} is gone{_instead(run, old, new)}')
  if gone[3:]:
    out.append(f'so are {len(gone) - 3} more runs')
  for key, run in old['runs'].items():
    if key in new['runs'] and run['snapshots'] != new['runs'][key]['snapshots']:
      after = new['runs'][key]['snapshots']
      out.append(f'snapshots of {run["name"]} were {run["snapshots"]}, are {after}')
  return out


def _instead(run: Mapping[str, Any], old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
  """Names the new run that is closest to one that is gone, and what differs."""
  added = [other for key, other in new['runs'].items() if key not in old['runs']]
  if not added:
    return ''
  nearest = min((_unlike(run['factors'], other['factors']) for other in added), key=len)
  return f' (the nearest new run differs in {", ".join(nearest)})'


def pairs_differ(a: Planned, b: Planned) -> list[str]:
  """Factors in which two runs differ, those that only one of them has included."""
  return _unlike(a.spec.factors(), b.spec.factors())


def _unlike(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
  names = dict.fromkeys((*one, *other))
  return [n for n in names if n not in one or n not in other or one[n] != other[n]]

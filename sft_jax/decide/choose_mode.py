"""`--mode=choose`: what a config asks of a race, and the race.

Not for its runs (`choose_run.py`) or what is told of its decision (`choose_told.py`).
"""

import dataclasses
import os
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from sft_jax import spec as spec_lib
from sft_jax.data import datasets
from sft_jax.decide import choose_data, choose_told, choose_wish
from sft_jax.decide.choose_data import Candidate
from sft_jax.decide.choose_run import Runs
from sft_jax.decide.choose_told import Outcome
from sft_jax.decide.choose_wish import Wish
from sft_jax.evals import core, served
from sft_jax.execution.workdir import Workdir
from sft_jax.study import choose, contents, decision_page, race_budget
from sft_jax.study.race import Race
from sft_jax.study.race_data import Field
from sft_jax.study.race_evidence import Arm, Prior
from sft_jax.study.race_rules import Rules
from sft_jax.train import loop
from sft_jax.utils import io, log, select
from sft_jax.utils.errors import UserError

# How questions are put: of everything that was asked in a race the same.
_ASKING = ('template', 'precision', 'seed', 'limit', 'max_new_tokens')


def run(config: Any, workdir: str) -> dict[str, Any]:
  """Decides which data to train on, and writes `decision.html`, `.md` and `.json`.

  Returns:
    What `decision.json` holds.

  Raises:
    UserError: bad input, a budget that is too small; one line.
    Interrupted: stopped; the same call continues.
  """
  wish = wish_of(config)
  # Where something is to be saved, whoever is at work listens instead.
  with loop.StopSignal() as stop, stop.at_once(), Workdir(workdir).taken():
    outcome = hold(config, wish, workdir)
    value = choose_told.told(outcome, config, wish, workdir)
    page = decision_page.write(workdir, value)
  for fact in value['facts']:
    log.say(fact)
  log.say(decision_page.answer(value))
  log.say(decision_page.cost(value))
  if value['command']:
    log.say(f'to train it in full: {value["command"]}')
  log.say(f'see {page}')
  return value


def hold(config: Any, wish: Wish, workdir: str) -> Outcome:
  """Holds a race of real runs and concludes; goes on where it was stopped.

  Args:
    config: What all runs share; its data, seeds, learning rate and tasks are set here.
    wish: What is to be decided.
    workdir: Where everything is kept.

  Raises:
    UserError: bad input, a budget that is too small; one line.
    Interrupted: stopped; the same call continues.
  """
  runs = Runs(config, wish, workdir)
  check_contents(config, wish, workdir, runs.candidates)
  for name, about in runs.candidates.items():
    for text in about.warnings:
      log.warn(f'{name} {text}')
  base = runs.base()
  endpoint = runs.endpoint()
  rules = dataclasses.replace(
    wish.rules,
    targets={runs.names[task]: weight for task, weight in wish.rules.targets.items()},
    guards={runs.names[task]: least for task, least in wish.rules.guards.items()},
  )
  leaks = {name: one.leaks for name, one in runs.candidates.items()}
  most, only = rules.most_leak, rules.ability_only
  field = Field(base, rules.targets, leaks, most_leak=most, ability_only=only)
  arms = [Arm(name, rate) for name in wish.data for rate in wish.rates or (0.0,)]
  clean = [arm for arm in arms if not field.barred(arm.candidate)]
  if not clean:
    what = f'more than {most:.0%} of a target or guard stands in each of the candidates'
    how = 'give other data or targets, or raise config.choose.most_leak'
    raise UserError(what, 'config.choose.data', how)
  budget = runs.measure(clean)
  unit = wish.budget.unit
  # How long a run takes is never told before.
  exact = None if unit == race_budget.SECONDS else runs.exact
  given = runs.time.given
  one = Race(arms, runs.rungs, rules, field, budget, runs.cost, wish.prior, unit, given, exact)
  decision = choose.choose(one, runs.evaluate)
  if not one.evidence.reached and 'failed' in one.state.values():
    raise runs.nothing_ran()
  measured = {arm.candidate for arm in one.evidence.reached}
  untried = [arm for arm in arms if one.state[arm] == 'skipped' and arm.candidate not in measured]
  if len(measured) < 2 and untried:
    needed = one.to_give(one.spent + min(one.due(arm, 0) for arm in untried))
    raise UserError(
      f'the budget ended before two candidates were compared: that takes {needed} or more in all',
      'config.choose.budget',
      'give more: the same command goes on from what is done',
    )
  ended = [arm for arm in arms if one.state[arm] == 'cut']
  if ended and one.last not in one.evidence.reached.values():
    needed = one.to_give(one.spent + min(one.due(arm, one.last) for arm in ended))
    raise UserError(
      f'the budget ended before any was trained in full: that takes {needed} or more in all',
      'config.choose.budget',
      'give more: the same command goes on from what is done',
    )
  return Outcome(decision, one, runs, endpoint)


def reads(config: Any) -> tuple[Any, list[Any]]:
  """What a race reads from elsewhere: what its runs share, and the config of one run a candidate.

  Raises:
    UserError: see `wish_of`.
  """
  wish = wish_of(config)
  common = choose_wish.shared(config, [*wish.rules.targets, *wish.rules.guards])
  return common, [choose_wish.with_data(common, data) for data in wish.data.values()]


def wish_of(config: Any) -> Wish:
  """What a config asks.

  Raises:
    UserError: naming the key that is wrong.
  """
  spec_lib.check_settings(config)
  asked = config.choose
  if config.data.name or config.data.path or config.study.grid:
    where = 'config.data, config.study.grid'
    raise UserError('candidates stand in config.choose.data', where, 'leave these empty')
  if not 0 < asked.error < 1:
    raise UserError(f'{asked.error} is no chance', 'config.choose.error', 'such as 0.05')
  data, most = choose_data.candidates(asked.data, 'config.choose.data')
  named = choose_data.split(asked.target, 'config.choose.target')
  kept = choose_data.split(asked.guard, 'config.choose.guard')
  # Before they are read as benchmarks, which training data mostly are not.
  _refuse_same(data, [*named, *(text.split('>=')[0].strip() for text in kept)])
  targets = [_task(name, 'target') for name in named]
  if not targets:
    raise UserError(
      'no target given', 'config.choose.target', 'name what is to be improved, such as gsm8k:4shot'
    )
  guards = dict(map(_guard, kept))
  if len(data) < 2:
    how = 'give two or more, between commas'
    what = 'one candidate is no choice' if data else 'no candidates given'
    raise UserError(what, 'config.choose.data', how)
  try:
    core.task_names(','.join([*targets, *guards]))
  except UserError as e:
    raise UserError(e.what, 'config.choose.target, config.choose.guard', e.how) from e
  if asked.endpoint:
    _check_endpoint(asked.endpoint, targets)
  rules = Rules(
    dict.fromkeys(targets, 1.0),
    guards,
    error=asked.error,
    least_gain=asked.least_gain,
    most_leak=asked.most_leak,
    ability_only=asked.ability_only,
  )
  rates = _numbers(asked.rates, float, 'config.choose.rates')
  sizes = _numbers(asked.sizes, int, 'config.choose.sizes')
  if any(not rate > 0 for rate in rates) or len(set(rates)) < len(rates):
    raise UserError(f'{asked.rates!r} are no rates', 'config.choose.rates', 'such as 1e-4,3e-4')
  growing = [size or float('inf') for size in sizes]
  if growing != sorted(set(growing)) or any(size < 0 for size in sizes):
    how = 'give growing numbers, 0 last for all, such as 250,1000,0'
    raise UserError(f'{asked.sizes!r} are no rungs', 'config.choose.sizes', how)
  budget = race_budget.parse(asked.budget, 'config.choose.budget')
  prior = _prior(config, data, targets)
  seeds = (asked.seeds, asked.final_seeds)
  return Wish(data, rules, budget, rates, sizes, seeds, prior, asked.endpoint, most)


def _task(name: str, key: str) -> str:
  """A task as `config.eval.tasks` has it; a file of the user's own needs no `custom:`."""
  file = re.sub(r':\d+shot$', '', name)
  out = f'custom:{name}' if os.path.isfile(file) else name
  where = f'config.choose.{key}'
  if out == name and re.search(r'\.jsonl?$', file) and ':' not in file:
    raise UserError(f'no such file: {file}', where, 'check its path, or name a benchmark')
  try:
    _, wanted = core.task_names(out)
  except UserError as e:
    raise UserError(e.what, where if e.where == 'config.eval.tasks' else e.where, e.how) from e
  if len(wanted) != 1:
    raise UserError(f'{name} has no items to compare', where, 'name a benchmark or a file')
  return out


def _check_endpoint(endpoint: str, targets: Sequence[str]) -> None:
  """Raises UserError where a served model could not be asked the targets."""
  try:
    served.target(f'endpoint:{endpoint}', os.environ)
    served.require_writing(*core.task_names(','.join(targets)))
  except UserError as e:
    where, how = {
      'config.model.path': (
        'config.choose.endpoint',
        'write MODEL@URL, such as org/model@https://HOST/v1; the key is SFT_JAX_ENDPOINT_KEY',
      ),
      'config.eval.tasks': (
        'config.choose.target, config.choose.endpoint',
        'name targets that generate (NAME:gen), or leave the endpoint out',
      ),
    }.get(e.where, (e.where, e.how))
    raise UserError(e.what, where, how) from e


def _guard(text: str) -> tuple[str, float]:
  found = re.fullmatch(r'(.+?)\s*>=\s*([-+]?(?:\d+\.?\d*|\.\d+))', text)
  if not found:
    how = 'say how far it may fall, such as mmlu:ll>=-1.0'
    raise UserError(f'{text!r} is no guard', 'config.choose.guard', how)
  return _task(found[1], 'guard'), float(found[2])


def _numbers(text: str, number: Callable[[str], Any], where: str) -> list[Any]:
  try:
    return [number(part) for part in choose_data.split(text, where)]
  except ValueError:
    raise UserError(f'{text!r} are no numbers', where, 'put commas between them') from None


def _refuse_same(data: Mapping[str, str], tasks: Sequence[str]) -> None:
  """Raises UserError where a candidate is the file of a target or guard, named in any way."""
  files = {os.path.realpath(_file(task)) for task in tasks}
  for one in data.values():
    parts = [one]
    if choose_data.kind(one) == 'name':
      parts = list(datasets.parts(one))
    for part in parts:
      if os.path.exists(part) and os.path.realpath(part) in files:
        raise UserError('a target is training data too', one, 'keep them apart')


def check_contents(
  config: Any, wish: Wish, workdir: str, candidates: Mapping[str, Candidate]
) -> None:
  """Raises UserError where a candidate's file or what is asked is not what it was before."""
  paths = {_file(task) for task in (*wish.rules.targets, *wish.rules.guards)}
  for one in wish.data.values():
    given = ('', one) if choose_data.kind(one) == 'path' else (one, '')
    rows = datasets.described(*given, config.data.dir)
    paths |= {row['path'].removeprefix('hf:') for row in rows.values()}
  file = os.path.join(workdir, 'contents.json')
  before = io.read_json(file) if os.path.exists(file) else {}
  now = contents.file_digests(path for path in paths if os.path.exists(path))
  contents.check_files(before, now, 'race')
  how = {f'config.eval.{key}': str(config.eval[key]) for key in _ASKING}
  for key, value in how.items():
    if before.get(key, value) != value:
      raise UserError(
        f'{value!r} was {before[key]!r} when the race began',
        key,
        'give what it was, or begin a new race in another --workdir',
      )
  now |= how
  # Of the same task every candidate is asked the same.
  asked = {task: digest for one in candidates.values() for task, digest in one.asked.items()}
  for task, digest in asked.items():
    if before.get(task, digest) != digest:
      raise UserError(
        f'the questions of {task} are others than when the race began',
        'its file or data set',
        'put back what was there, or begin a new race in another --workdir',
      )
  now |= asked
  if not now.keys() <= before.keys():
    io.write_json_atomic(file, before | now)


def _file(task: str) -> str:
  return re.sub(r':\d+shot$', '', task.removeprefix('custom:'))


def _prior(config: Any, data: Mapping[str, str], targets: Sequence[str]) -> dict[str, Prior]:
  """What a table leads to expect of the candidates it has, of the targets it has."""
  if not config.choose.prior:
    return {}
  from sft_jax.analysis import recommend, table

  frame = table.read(config.choose.prior)
  columns = [c for c in map(_column, targets) if c in table.benchmarks(frame)]
  if not columns:
    log.warn(f'{config.choose.prior} has none of the targets: the race starts from nothing')
    return {}
  scores = recommend.scores_of(frame, columns, None)
  # Runs on a part that is selected are called after it, as in `recommend_mode`.
  part = select.canonical(config.data.select)
  names = {f'{name}+{part}' if part else name: name for name in data}
  found = recommend.recommend(scores, list(names), config.model.name)
  known = {names[one.data]: Prior(one.mean, one.sd) for one in found if one.known}
  log.say(f'the table knows {len(known)} of {len(data)} candidates')
  return known


def _column(task: str) -> str:
  """The column of a table that a task fills where it is asked as published, or its own."""
  wanted = core.task_names(task)[1][0]
  reading = wanted.benchmark.readings[wanted.reading]
  released = getattr(reading, 'released', {})
  return released[wanted.shots] if wanted.shots in released else wanted.name.replace(':', '-')

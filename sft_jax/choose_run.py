"""A race of real runs: every rung a study in the workdir, every run's items read back as scores.

The race decides (`study/race.py`), a study trains and evaluates (`study_run.py`); this turns the
trials of one into the entries of the other. All is remembered by the studies: the same call goes on
where it was stopped, and a new candidate runs only what is new.
"""

import dataclasses
import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from sft_jax import job, study_run
from sft_jax.evals import core, records
from sft_jax.evals.suite import BenchmarkTask
from sft_jax.session import Session
from sft_jax.study import choose
from sft_jax.study.directory import StudyDirectory
from sft_jax.study.race import Race, Rules, Trial
from sft_jax.study.race_data import Field, Observation, Scores
from sft_jax.study.race_evidence import Arm, Prior, Rung
from sft_jax.train import loop
from sft_jax.utils import io
from sft_jax.utils.errors import UserError


@dataclasses.dataclass(frozen=True)
class Wish:
  """What is to be decided.

  Attributes:
    data: Candidates: names of data sets, mixtures, or paths.
    rules: Targets and guards as in `config.eval.tasks`, and how to decide.
    rates: Learning rates to try; () takes the config's.
    rungs: From small to full; {examples: rung}, 0 examples are all there are.
    budget: Examples passed in training, all runs and epochs together.
    most: Examples that a candidate of 0 is reckoned with: the largest has so many.
    prior: {candidate: expectation}.
  """

  data: Sequence[str]
  rules: Rules
  rates: Sequence[float]
  rungs: Mapping[int, Rung]
  budget: float
  most: int = 0
  prior: Mapping[str, Prior] = dataclasses.field(default_factory=dict)


def race(config: Any, wish: Wish, workdir: str) -> tuple[choose.Decision, Race]:
  """Holds a race of real runs and concludes; goes on where it was stopped.

  Args:
    config: What all runs share; its data, seeds, learning rate and tasks are set here.
    wish: What is to be decided.
    workdir: Where everything is kept.

  Raises:
    UserError: bad input, a budget that is too small; one line.
    Interrupted: stopped; the same call continues.
  """
  for name in wish.data:
    for task in (*wish.rules.targets, *wish.rules.guards):
      if task.removeprefix('custom:') == name:
        raise UserError('a target is training data too', name, 'keep them apart')
  runs = Runs(config, wish, workdir)
  base = runs.base()
  rules = dataclasses.replace(
    wish.rules,
    targets={runs.names[task]: weight for task, weight in wish.rules.targets.items()},
    guards={runs.names[task]: least for task, least in wish.rules.guards.items()},
  )
  most, only = rules.most_leak, rules.ability_only
  field = Field(base, rules.targets, runs.leaks(), most_leak=most, ability_only=only)
  arms = [Arm(name, rate) for name in wish.data for rate in wish.rates or (0.0,)]
  rungs = list(wish.rungs.values())
  one = Race(arms, rungs, rules, field, wish.budget, lambda _, at: runs.cost(at), wish.prior)
  return choose.choose(one, runs.evaluate), one


class Runs:
  """The runs of a race, done when they are asked for.

  Attributes:
    names: {task as it was given: its name in records, with everything said}.
  """

  def __init__(self, config: Any, wish: Wish, workdir: str):
    """Runs nothing.

    Raises:
      UserError: settings that ask different items of different runs.
    """
    if config.eval.budget_seconds:
      raise UserError(
        'runs would be asked different items',
        'config.eval.budget_seconds',
        'use config.eval.precision or config.eval.limit',
      )
    self._wish, self._workdir = wish, workdir
    asked = dict.fromkeys((*wish.rules.targets, *wish.rules.guards))
    self.names = {task: _full_name(task) for task in asked}
    self._sizes = list(wish.rungs)
    self._config = config.copy_and_resolve_references()
    with self._config.unlocked():
      self._config.eval.tasks = ','.join(asked)
      self._config.data.name = self._config.data.path = ''
      self._config.train.snapshot_at = f'{self._config.train.epochs:g}'

  def cost(self, rung: int) -> float:
    """Examples passed by a run at a rung."""
    return (self._sizes[rung] or self._wish.most) * self._config.train.epochs

  def entry(self, trial: Trial) -> dict[str, Any]:
    """The run of a trial, as an entry of a sweep."""
    # The first seed is the config's own.
    first = self._config.train.seeds
    out = {
      f'data.{_kind(trial.arm.candidate)}': trial.arm.candidate,
      'data.size': self._sizes[trial.rung],
      'train.seeds.data': first.data + trial.seed,
      'train.seeds.init': first.init + trial.seed,
      'train.seeds.dropout': first.dropout + trial.seed,
    }
    return out | ({'train.learning_rate': trial.arm.rate} if trial.arm.rate else {})

  def evaluate(self, trials: Sequence[Trial]) -> dict[Trial, Observation]:
    """The callback of a race; a run that was given up is left out."""
    rung = trials[0].rung
    place = os.path.join(self._workdir, f'rung-{rung}')
    entries = [self.entry(trial) for trial in trials]
    # A study may grow and may not shrink: what an earlier race ran here stays in it.
    file = os.path.join(place, 'entries.json')
    before = io.read_json(file) if os.path.exists(file) else []
    every = [*before, *(entry for entry in entries if entry not in before)]
    io.write_json_atomic(file, every)
    study = study_run.expand(self._config, entries, jax.default_backend())
    directory = StudyDirectory(place)
    try:
      study_run.run(self._config, every, place)
    except UserError:
      if not all(directory.settled(run.key) for run in study.runs):
        raise
    out = {}
    for trial, run in zip(trials, study.runs, strict=True):
      if directory.finished(run.key):
        row = records.read(os.fspath(directory.run(run.key)))
        out[trial] = Observation(self._scores(row), self.cost(rung))
    return out

  def base(self) -> Observation:
    """Scores of the untrained base on every target and guard."""
    from sft_jax import evaluate

    place = os.path.join(self._workdir, 'base')
    evaluate.evaluate(self._with(self._wish.data[0], self._sizes[0]), place)
    return Observation(self._scores(records.read(place)))

  def leaks(self) -> dict[str, dict[str, list[str]]]:
    """{candidate: {task: ids of items that share 13 words in a row with all of its data}}."""
    session = Session()
    out: dict[str, dict[str, list[str]]] = {}
    with loop.StopSignal() as stop:
      for name in self._wish.data:
        one = job.Run(self._with(name, 0), os.path.join(self._workdir, 'none'), stop, session)
        seen = session.seen(one.data)
        found = out.setdefault(name, {})
        for task in one.scoring.tasks:
          if isinstance(task, BenchmarkTask):
            items = [question.item for question in task.questions]
            held = seen([dict(item.fields) for item in items])
            found[task.wanted.name] = [
              item.id for item, hit in zip(items, held, strict=True) if hit
            ]
    return out

  def _with(self, data: str, size: int) -> Any:
    config = self._config.copy_and_resolve_references()
    with config.unlocked():
      config.data[_kind(data)], config.data.size = data, size
    return config.lock()

  def _scores(self, row: records.Row) -> dict[str, Scores]:
    wanted = list(self.names.values())
    if missing := [task for task in wanted if task not in row.tasks]:
      raise UserError(
        f'no scores of {missing[0]}', row.name, f'name it in full: {", ".join(sorted(row.tasks))}'
      )
    return {task: scores(row.tasks[task]) for task in wanted}


def _full_name(task: str) -> str:
  _, wanted = core.task_names(task)
  if len(wanted) != 1:
    raise UserError(f'{task!r} is no target', 'config.choose.target', 'name benchmarks')
  return wanted[0].name


def _kind(data: str) -> str:
  return 'path' if os.path.exists(data) or data.startswith(('hf:', 'tfds:')) else 'name'


def scores(items: Sequence[Mapping[str, Any]]) -> Scores:
  """Per-item records of one task (see `evals/stats.py`) as scores in points.

  Raises:
    UserError: an item that was not graded.
  """
  about = items[0]['about']
  if lost := [item['id'] for item in items if item.get('missing')]:
    raise UserError(f'item {lost[0]} was not graded', about['task'], 'evaluate it again')
  scale = 100.0 if about['percent'] else 1.0
  values = np.array([item['scores'][about['measures'][0]] for item in items], np.float64) * scale
  written = any('output' in item for item in items)
  extracted = np.array([item['extracted'] is not None for item in items]) if written else None
  weights = None
  if about['macro']:
    groups = [str(item.get('group', '')) for item in items]
    _, index, counts = np.unique(groups, return_inverse=True, return_counts=True)
    weights = 1 / (len(counts) * counts[index])
  return Scores(tuple(item['id'] for item in items), values, extracted, weights)


def outputs(
  workdir: str, decision: choose.Decision, one: Race, most: int = 5
) -> list[dict[str, str]]:
  """Items that the pick has right and the base has not: {'prompt', 'base', 'chosen'} each.

  Args:
    workdir: Of the race.
    decision: What came out.
    one: The race.
    most: Of them.
  """
  if decision.pick is None:
    return []
  base = records.read(os.path.join(workdir, 'base'))
  place = StudyDirectory(os.path.join(workdir, f'rung-{one.evidence.reached[decision.pick]}'))
  for run in place.record().names:
    config = io.read_json(place.run(run) / 'config.json')
    if decision.pick.candidate not in json.dumps(config):
      continue
    row = records.read(os.fspath(place.run(run)))
    out = []
    for task in one.field.targets:
      measure = row.tasks[task][0]['about']['measures'][0]
      for a, b in zip(base.tasks[task], row.tasks[task], strict=True):
        if 'output' in a and b['scores'][measure] > a['scores'][measure]:
          text = lambda value: value if isinstance(value, str) else '\n'.join(value)
          out.append(
            {
              'prompt': str(a.get('prompt', a['id'])),
              'base': text(a['output']),
              'chosen': text(b['output']),
            }
          )
    return out[:most]
  return []

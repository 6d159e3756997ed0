"""The runs of a race: every rung a study in the workdir, every run's items read back as scores.

The race decides (`study/race.py`), a study trains and evaluates (`study_run.py`); this turns the
trials of one into the entries of the other. All is remembered by the studies: the same call goes on
where it was stopped, and a new candidate runs only what is new. Not for what a config asks
(`choose_mode.py`) or what is told of a decision (`choose_told.py`).
"""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import Any

from sft_jax.data.sampler import Sampler
from sft_jax.decide import choose_data, choose_reference, choose_rung, choose_sizes, choose_wish
from sft_jax.decide.choose_data import Candidate
from sft_jax.decide.choose_time import BudgetIsOver, Time
from sft_jax.decide.choose_wish import Wish
from sft_jax.evals import records
from sft_jax.execution import study_run
from sft_jax.execution.session import Session
from sft_jax.study import race_budget
from sft_jax.study.directory import StudyDirectory
from sft_jax.study.race import Trial
from sft_jax.study.race_data import Observation, Scores
from sft_jax.study.race_evidence import Arm
from sft_jax.utils import io, log, words
from sft_jax.utils.errors import UserError


class Runs:
  """The runs of a race, done when they are asked for.

  Attributes:
    names: {task as it was given: its name in records, with everything said}.
    candidates: What was found of the data, by candidate.
    rungs: From small to full.
    time: What was spent of it, and may be.
  """

  def __init__(self, config: Any, wish: Wish, workdir: str):
    """Reads the data of all candidates; runs nothing.

    Raises:
      UserError: settings that ask different items of different runs; bad data.
    """
    if config.eval.budget_seconds:
      raise UserError(
        'runs would be asked different items',
        'config.eval.budget_seconds',
        'use config.eval.precision or config.eval.limit',
      )
    self._wish, self._workdir = wish, workdir
    asked = dict.fromkeys((*wish.rules.targets, *wish.rules.guards))
    self.names = {task: choose_wish.full_name(task) for task in asked}
    self._config = choose_wish.shared(config, list(asked))
    io.require_writable(workdir)
    if any(os.path.exists(os.path.join(workdir, name)) for name in ('config.json', 'study.json')):
      raise UserError('the workdir of a run or study', workdir, 'choose another --workdir')
    self.time = Time(workdir, wish.budget, config.max_seconds)
    # All rungs are one study as far as nothing is to be read, tokenised or compiled twice.
    self._session = Session(os.path.join(workdir, 'prepared'))
    self.candidates = {name: self._look(name, 0) for name in wish.data}
    most = max(one.examples for one in self.candidates.values())
    shared = self._config.data.size, self._config.train.batch_size
    self._sizes = list(wish.sizes) or choose_sizes.default(workdir, most, *shared)
    self.rungs = choose_sizes.rungs(self._sizes, most, wish.seeds)
    self._find_leaks()
    self._runs: dict[Trial, tuple[StudyDirectory, str]] = {}
    self._costs: dict[Trial, float] = {}
    self._tried = set[str]()
    self._trouble: UserError | None = None

  def _look(self, name: str, seed: int) -> Candidate:
    """What is found of the data that a candidate's runs of a seed are trained on."""
    most = self._wish.most.get(name, 0)
    with self.time.once('read', f'{self._wish.data[name]}#{most} by seed {seed}'):
      place = os.path.join(self._workdir, 'none')
      return choose_data.look(self._on(name, most, seed), place, self._session)

  def _on(self, name: str, size: int, seed: int) -> Any:
    config = choose_wish.with_data(self._config, self._wish.data[name], size)
    with config.unlocked():
      config.train.seeds.data += seed
    return config

  def _find_leaks(self) -> None:
    """Where seeds draw records, an item is leaked that stands in those of any seed of the race."""
    for name in self.candidates:
      if choose_data.is_drawn(self._wish.data[name], self._wish.most.get(name, 0)):
        for seed in range(1, sum(rung.seeds for rung in self.rungs)):
          own = self.candidates[name]
          self.candidates[name] = own.with_leaks(self._look(name, seed).leaks)

  def size(self, candidate: str, rung: int) -> int:
    """`data.size` of a candidate at a rung; 0 where all of it is taken."""
    size = self._sizes[rung]
    if 0 < size < self.candidates[candidate].examples:
      return size
    return self._wish.most.get(candidate, 0)

  def cost(self, arm: Arm, rung: int) -> float:
    """What a run of an arm at a rung is expected to cost, in the unit of the budget."""
    about, train = self.candidates[arm.candidate], self._config.train
    taken = self.size(arm.candidate, rung) or about.examples
    examples = Sampler(taken, train.batch_size, train.epochs).examples
    return self._amount(about, examples, examples * about.tokens)

  def exact(self, trial: Trial) -> float:
    """What a run costs that is about to be begun, in tokens, FLOPs or examples.

    Its data are read, which it needs anyway: which examples a seed draws, and in which order where
    an epoch is not trained to its end, decides how long they are.
    """
    if trial not in self._costs:
      name, place = trial.arm.candidate, os.path.join(self._workdir, 'none')
      config = self._on(name, self.size(name, trial.rung), trial.seed)
      lengths = choose_data.lengths(config, place, self._session)
      self._costs[trial] = self._amount(self.candidates[name], len(lengths), sum(lengths))
    return self._costs[trial]

  def _amount(self, about: Candidate, examples: float, tokens: float) -> float:
    if self._wish.budget.unit == 'examples':
      return examples
    if self._wish.budget.unit == 'tokens':
      return tokens
    if self._wish.budget.unit == 'flops':
      return tokens * about.flops_per_token
    notes = self.time.clock.notes
    return notes['seconds-a-run'] + tokens * notes['seconds-a-token']

  def measure(self, arms: Sequence[Arm]) -> float:
    """The budget of the race itself; of time, what is left after how long a run takes is known.

    How long tells a run of the first rung, the first that is needed anyway; one that fails tells
    nothing, and another arm is asked.

    Raises:
      UserError: the time is over before a run is done; all fail.
    """
    clock = self.time.clock
    if self.time.limited and 'seconds-a-token' not in clock.notes:
      log.say('one run of the first rung, for how long it takes')
      trial = next((Trial(arm, 0, 0) for arm in arms if self._runs_through(arm)), None)
      if trial is None:
        raise self.nothing_ran()
      home, key = self._runs[trial]
      directory = os.fspath(home.run(key))
      lines = io.read_jsonl(os.path.join(directory, 'metrics.jsonl'))
      rates = [line['tokens-per-s'] for line in lines if 'tokens-per-s' in line]
      tokens, total = self._trained(directory), clock.seconds[key]
      training = min(tokens / rates[-1], total) if rates else total / 2
      # Alone it waits for programs that others will share.
      fixed = min(total - training, clock.seconds['base'])
      clock.move(key, 'alone', total - training - fixed)
      clock.note('seconds-a-run', fixed)
      clock.note('seconds-a-token', training / tokens)
    self.time.begin()
    return self.time.planned()

  def _runs_through(self, arm: Arm) -> bool:
    """Whether the first run of an arm at the first rung comes to its end; False where it failed."""
    trial = Trial(arm, 0, 0)
    found = self.evaluate([trial])[trial]
    if found.scores or found.ended:
      return bool(found.scores)
    spent = race_budget.told(self.time.spent(), race_budget.SECONDS)
    what = f'the budget does not reach for a first run: {spent} are spent, and it is not done'
    how = 'give many times that: the same command goes on from what is done'
    raise UserError(what, 'config.choose.budget', how)

  def nothing_ran(self) -> UserError:
    """What to say where every run of every candidate failed."""
    return self._trouble or UserError(
      'every run of every candidate failed',
      os.fspath(choose_rung.directory(self._workdir, 0).path / 'failures.csv'),
      'mend what it says and start again with --config.study.retry_failed=True',
    )

  def evaluate(self, trials: Sequence[Trial]) -> dict[Trial, Observation]:
    """The callback of a race; a run that was given up has no scores, and what it cost."""
    rung = trials[0].rung
    size = lambda trial: self.size(trial.arm.candidate, trial.rung)
    seeds = self._config.train.seeds
    entries = [choose_wish.entry(self._wish, seeds, trial, size(trial)) for trial in trials]
    # One data set in two sizes is the same run on a rung below both.
    own = [entry for number, entry in enumerate(entries) if entry not in entries[:number]]
    study = study_run.expand(self._config, own, study_run.backend_of(self._config))
    keys = [study.runs[own.index(entry)].key for entry in entries]
    homes = choose_rung.homes(self._workdir, rung, keys, self._is_over)
    self._runs |= {trial: (homes[key], key) for trial, key in zip(trials, keys, strict=True)}
    share = {
      key: float(size(trial) or 1)
      for trial, key in zip(trials, keys, strict=True)
      if not self._is_over(homes[key], key)
    }
    if share:
      arms = ', '.join(dict.fromkeys(trial.arm.candidate for trial in trials))
      runs = words.count(len(trials), 'run')
      log.say(f'{self.rungs[rung].name}: {len(share)} of {runs} to do, of {arms}')
      home = homes[next(iter(share))]
      here = [entry for entry, run in zip(own, study.runs, strict=True) if homes[run.key] is home]
      self._train(choose_rung.grown(home, here), home, share)
    out = {}
    for number, (trial, key) in enumerate(zip(trials, keys, strict=True)):
      one = self._observed(trial)
      out[trial] = one if key not in keys[:number] else dataclasses.replace(one, cost=0.0)
    return out

  def _is_over(self, directory: StudyDirectory, key: str) -> bool:
    again = self._config.study.retry_failed and key not in self._tried
    return directory.finished(key) if again else directory.settled(key)

  def _train(self, every: Sequence[Any], home: StudyDirectory, share: Mapping[str, float]) -> None:
    """Works on a study until all is settled or the time of the budget is over.

    Raises:
      UserError: something else than runs that were given up.
      Interrupted: stopped for another reason.
    """
    budget = self.time.left()
    if budget <= 0:
      log.say('the time of the budget is over')
      return
    self._tried |= set(share)
    try:
      with self.time.within(budget) as seconds, self.time.clock.counting(share):
        study_run.run(
          choose_wish.ending(self._config, seconds), every, os.fspath(home.path), self._session
        )
    except BudgetIsOver:
      log.say('the time of the budget is over')
    except UserError as e:
      if not all(home.settled(key) for key in share):
        raise
      # Of some runs, which the race counts as failed.
      self._trouble = e

  def _observed(self, trial: Trial) -> Observation:
    home, key = self._runs[trial]
    done = home.finished(key)
    scores = self._scores(records.read(os.fspath(home.run(key)))) if done else {}
    # How far one came that did not end is not kept: it counts as if it had come to its end.
    cost = self.time.clock.seconds.get(key, 0.0) if self.time.limited else self.exact(trial)
    return Observation(scores, cost, ended=done or home.settled(key))

  def _trained(self, directory: str) -> float:
    """Tokens that a finished run was trained on, all epochs."""
    return float(io.read_jsonl(os.path.join(directory, 'rows.jsonl'))[-1]['train-tokens'])

  def base(self) -> Observation:
    """Scores of the untrained base on every target and guard; runs take them over.

    Raises:
      UserError: the time of the budget is over before it has answered; bad data.
      Interrupted: stopped; what it has answered is kept.
    """
    place = os.path.join(self._workdir, 'base')
    first = choose_wish.with_data(self._config, next(iter(self._wish.data.values())))
    with self.time.once('base', io.to_json(first.eval.to_dict())) as seconds:
      choose_reference.base(first, place, seconds)
    return Observation(self._scores(self._session.take_base(place)))

  def endpoint(self) -> Observation | None:
    """Scores of the served model on the targets, each item once; see `base`."""
    if not self._wish.endpoint:
      return None
    place, targets = os.path.join(self._workdir, 'endpoint'), list(self._wish.rules.targets)
    with self.time.once('endpoint', f'{self._wish.endpoint} {targets}') as seconds:
      choose_reference.endpoint(self._config, self._wish.endpoint, targets, place, seconds)
    return Observation(self._scores(records.read(place), [self.names[task] for task in targets]))

  def workdirs(self, arm: Arm, rung: int) -> list[str]:
    """Of the finished runs of an arm at a rung that were asked for."""
    asked = [run for trial, run in self._runs.items() if (trial.arm, trial.rung) == (arm, rung)]
    return [os.fspath(home.run(key)) for home, key in asked if home.finished(key)]

  def _scores(self, row: records.Row, wanted: Sequence[str] = ()) -> dict[str, Scores]:
    wanted = wanted or list(self.names.values())
    if missing := [task for task in wanted if task not in row.tasks]:
      raise UserError(
        f'no scores of {missing[0]}', row.name, f'name it in full: {", ".join(sorted(row.tasks))}'
      )
    return {task: choose_data.scores(row.tasks[task]) for task in wanted}

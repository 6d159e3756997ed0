"""Scores of one run: the tasks of its base and its snapshots, and what a stop leaves done.

Not for rows (`results.py`) or for how a task scores (`evals/`).
"""

import contextlib
import dataclasses
import math
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

from sft_jax.evals import budget, core, lm_eval_tasks
from sft_jax.evals.answers import Answers
from sft_jax.evals.benchmark import Judge
from sft_jax.evals.chats import Amount
from sft_jax.evals.model import Subject
from sft_jax.evals.served import Served, ServedTask
from sft_jax.evals.suite import BenchmarkTask
from sft_jax.execution import evaluation, inputs
from sft_jax.execution.session import Session
from sft_jax.execution.workdir import Workdir
from sft_jax.train import loop
from sft_jax.utils import io, log, peers
from sft_jax.utils.errors import Diverged, Interrupted, UserError

MEMORY_HELP = 'set a smaller config.eval.tokens_per_batch, or use more devices (config.mesh.fsdp)'
_AGAIN = 'start --mode=eval again to ask for the others (of a run: on run:WORKDIR@STEP)'


class Scoring:
  """The evaluations of one run."""

  def __init__(
    self,
    config: Any,
    data: inputs.Data | None,
    writer: core.Writer,
    window: int,
    workdir: Workdir,
    stop: loop.StopSignal,
    session: Session | None = None,
    cache: pathlib.Path | None = None,
  ):
    """Prepares the tasks and writes nothing.

    Args:
      config: `config.eval`.
      data: For perplexity, sample answers and what items were trained on; None for none.
      writer: For tasks that generate.
      window: Longest text of the model.
      workdir: Where items and samples go.
      stop: Looked at before each batch.
      session: Where questions are that other runs of this process are asked too.
      cache: Where questions are kept as tokens for other processes; None for nowhere.

    Raises:
      UserError: an unknown task, or one whose data or services are not there.
    """
    self._config, self._writer, self._workdir, self._stop = config, writer, workdir, stop
    # Step of the evaluation under way, and the columns of its tasks that are done.
    self._done: tuple[int, dict[str, core.Scores]] = (-1, {})
    self._make = session.task if session else evaluation.make
    self._budgets = session.budgets if session else {}
    names, wanted = core.task_names(config.tasks)
    train, heldout = (data.train, data.heldout) if data else ([], [])
    records, trained_on = (data.heldout_records, data.train_records) if data else ([], [])
    shown = [record for record in records if len(record.messages) == 2]
    self._shown = shown[: config.samples]
    perplexity = lambda examples, name: core.Perplexity(examples, name, config.tokens_per_batch)
    self.tasks: list[core.Task] = []
    if 'perplexity' in names and heldout:
      self.tasks.append(perplexity(heldout[: config.limit or None], 'heldout'))
    # Whether one snapshot can be called better than another.
    self.ranks = bool(self.tasks)
    if 'builtin' in names:
      self.tasks.append(core.BuiltinShort(writer, config.limit))
    others = [name for name in names if name.startswith(lm_eval_tasks.PREFIX)]
    if others and config.budget_seconds:
      raise UserError(
        f'what {others[0]} costs is not known before',
        'config.eval.budget_seconds',
        'use config.eval.limit, or leave it out',
      )
    self._benchmarks: dict[str, BenchmarkTask] = {}
    self._fits = False
    self._judge: Judge | None = None
    if wanted or others:
      self._options = evaluation.options(
        config, writer, window, self.go_on, workdir.path, () if session else trained_on, cache
      )
      self._judge = self._options.services.judge
      if session and data:
        self._options = dataclasses.replace(self._options, seen=session.seen(data))
      prepared = evaluation.prepare(wanted, config, self._options, self._make)
      self._benchmarks = {task.wanted.name: task for task in prepared}
      self.tasks += prepared
      self.tasks += [lm_eval_tasks.LmEvalTask(name, self._options) for name in others]
    self._only_base: list[core.Task] = []
    if 'perplexity' in names and config.train_limit and train:
      self._only_base = [perplexity(train[: config.train_limit], 'train')]
    self._reckoned = not self._benchmarks
    held = workdir.path / 'budget.json'
    kept = None
    if config.budget_seconds and self._benchmarks:
      kept = peers.from_first(io.read_json(held) if held.exists() else None)
    # What was chosen for the base stands for all snapshots, whatever the clock says now.
    if kept is not None and kept['settings'] == config.to_dict():
      self._resize(kept['items'])
      self._fits = True

  @property
  def headline(self) -> list[str]:
    """Columns worth showing first."""
    return [column for task in self.tasks for column in task.headline]

  def run(
    self, subject: Subject | Served, step: int, reject: Callable[[int], int | None] | None = None
  ) -> core.Scores:
    """Scores after `step` steps (0: of the base); per-item records and answers go to files.

    A task that was done when a run was stopped here is not done again.

    Args:
      subject: The model.
      step: Optimiser steps taken.
      reject: Takes back saved states from a step on and returns the latest left; called where a
        score is not a number. None where others go on from these states.

    Raises:
      Interrupted: asked to stop.
      UserError: a score is not a number; the device is out of memory.
    """
    asked: Any = dataclasses.replace(subject, check=self.go_on)
    scores: core.Scores = {}
    done, whole = self._finished(step), True
    answers = Answers(self._workdir.answers(step), self._stop.progress)
    if isinstance(subject, Subject) and not all(_key(task) in done for task in self.tasks):
      with loop.explain_memory('evaluation', MEMORY_HELP):
        self.reckon(asked)
    for task in self._tasks_of(step):
      name = _key(task)
      if name not in done:
        self.go_on()
        before = self.unanswered(subject)
        with loop.explain_memory('evaluation', MEMORY_HELP), contextlib.closing(answers):
          columns, items = core.evaluate(task, asked, answers)
        partly = self.unanswered(subject) > before
        self.put(task, step, (columns, items), reject, done=not partly)
        scores |= columns
        if partly:
          whole = False
          log.warn(f'{name}: not all items are graded; {_AGAIN}')
          continue
      scores |= done[name]
    if self._shown:
      self._workdir.put_items(step, 'samples', self._writer.samples(asked, self._shown))
    if whole:
      answers.forget()
    self._done = (-1, {})
    return scores

  def unanswered(self, subject: Subject | Served | None = None) -> int:
    """Requests so far to which a served model or a judge gave no answer."""
    served = subject.endpoint.unanswered if isinstance(subject, Served) else 0
    return served + (self._judge.unanswered if self._judge is not None else 0)

  def _finished(self, step: int) -> dict[str, core.Scores]:
    if self._done[0] != step:
      self._done = (step, self._workdir.finished_tasks(step, self._config.to_dict()))
    return self._done[1]

  def put(
    self,
    task: core.Task,
    step: int,
    found: tuple[core.Scores, core.Scores],
    reject: Callable[[int], int | None] | None = None,
    done: bool = True,
  ) -> None:
    """Writes down what a task found after `step` steps; `run` does not run it again if `done`.

    Args:
      task: One of these tasks.
      step: Optimiser steps taken.
      found: As `core.evaluate` gives it.
      reject: See `run`.
      done: Whether that was all.

    Raises:
      UserError: a score is not a number; of a snapshot `Diverged`.
    """
    columns, items = found
    _refuse_undefined(columns, step, reject)
    for kind, records in items.items():
      self._workdir.put_items(step, kind.removesuffix('-items'), records)
    if done:
      finished = self._finished(step)
      finished[_key(task)] = columns
      self._workdir.put_finished_tasks(step, self._config.to_dict(), finished)
      self._stop.progress()

  def _tasks_of(self, step: int) -> list[core.Task]:
    return self.tasks if step else [*self.tasks, *self._only_base]

  def open_tasks(self, step: int) -> list[core.Task]:
    """Those of an evaluation of `step` that are not done yet."""
    done = self._finished(step)
    return [task for task in self._tasks_of(step) if _key(task) not in done]

  def answers(self, step: int) -> Answers:
    """What has been answered in an evaluation of `step` that was stopped."""
    return Answers(self._workdir.answers(step), self._stop.progress)

  def afford(self, subject: Served) -> None:
    """Says what a served model will be asked at most.

    Raises:
      UserError: that is above its budget.
    """
    tasks = [task for task in self.tasks if isinstance(task, ServedTask)]
    total = sum((task.most(subject) for task in tasks), Amount())
    log.say(f'benchmarks: at most {total} in and out, as far as they are not answered yet')
    subject.endpoint.afford(total)

  def reckon(self, subject: Subject) -> None:
    """Says once what benchmarks cost and, within a time, asks less of each.

    In a session the first run does, and the others are asked the same.
    """
    if self._reckoned:
      return
    self._reckoned = True
    settings = self._config.to_dict()
    common = io.to_json(settings)
    if common in self._budgets:
      kept = self._budgets[common]
      if kept and not self._fits:
        self._resize(kept['items'])
        self._workdir.put_json('budget.json', kept)
      return
    self._budgets[common] = {}
    tasks, sharing = list(self._benchmarks.values()), subject.model.sharing
    total, limit = budget.total(tasks, sharing), self._config.budget_seconds
    speed = None
    if (limit and not self._fits) or budget.is_worth_a_probe(total, self._options):
      speed = budget.measure(subject, tasks)
    if limit and not self._fits and speed is not None:
      counts, width = budget.fitting(tasks, sharing, speed, limit)
      self._resize(counts)
      kept = {'settings': settings, 'items': counts, 'half-width': width}
      self._budgets[common] = kept
      self._workdir.put_json('budget.json', kept)
      if counts:
        parts = ', '.join(f'{name} {count}' for name, count in counts.items())
        log.say(f'{limit:g} seconds pay for ± {width:.1f} points: {parts} items')
      total = budget.total(list(self._benchmarks.values()), sharing)
    log.say(f'benchmarks: {budget.line(total, speed)}')

  def _resize(self, counts: Mapping[str, int]) -> None:
    """Gives benchmarks fewer items."""
    for name, count in counts.items():
      if name in self._benchmarks:
        options = dataclasses.replace(self._options, limit=count, precision=0.0)
        old = self._benchmarks[name]
        new = self._make(old.wanted, self._config, options)
        self.tasks[self.tasks.index(old)] = self._benchmarks[name] = new

  def go_on(self) -> None:
    """Raises Interrupted where this process was asked to stop."""
    if peers.agree(self._stop.requested)[0]:
      why = self._stop.reason or 'another process'
      raise Interrupted(f'{why}, during an evaluation; start again to go on')


def _key(task: core.Task) -> str:
  """What a finished task is known by."""
  return ' '.join(task.headline)


def _refuse_undefined(
  scores: core.Scores, step: int, reject: Callable[[int], int | None] | None
) -> None:
  """Raises where a model computes NaN; a perplexity beyond all numbers is a result."""
  bad = [
    name
    for name, value in scores.items()
    if isinstance(value, float) and not name.endswith('-stderr')
    if math.isnan(value) or (name.startswith('bits-per-byte') and math.isinf(value))
  ]
  if not bad:
    return
  if not step:
    raise UserError(
      f'{bad[0]} of the untrained base is not a number',
      'config.model.path',
      'look at the model, or try config.train.compute_dtype=float32',
    )
  how = 'lower config.train.learning_rate'
  if reject is not None:
    saved = reject(step)
    how += f'; the checkpoint of step {saved} is kept' if saved else ''
    how += '' if saved else '; no good state was saved before'
  raise Diverged(
    f'{bad[0]} is not a number after step {step}', 'the last update ruined the model', how
  )

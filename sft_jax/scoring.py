"""Scores of one run: the tasks of its base and its snapshots, and what a stop leaves done.

Not for rows (`results.py`) or for how a task scores (`evals/`).
"""

import contextlib
import dataclasses
import math
from collections.abc import Callable
from typing import Any

from sft_jax import evaluation, inputs
from sft_jax.evals import core
from sft_jax.evals.answers import Answers
from sft_jax.evals.model import Subject
from sft_jax.train import loop
from sft_jax.utils.errors import Interrupted, UserError
from sft_jax.workdir import Workdir

_MEMORY_HELP = 'set a smaller config.eval.tokens_per_batch, or use more devices (config.mesh.fsdp)'


class Scoring:
  """The evaluations of one run."""

  def __init__(
    self,
    config: Any,
    data: inputs.Data,
    writer: core.Writer,
    window: int,
    workdir: Workdir,
    stop: loop.StopSignal,
  ):
    """Prepares the tasks and writes nothing.

    Args:
      config: `config.eval`.
      data: For perplexity and sample answers.
      writer: For tasks that generate.
      window: Longest text of the model.
      workdir: Where items and samples go.
      stop: Looked at before each batch.

    Raises:
      UserError: an unknown task, or one whose data or services are not there.
    """
    self._config, self._writer, self._workdir, self._stop = config, writer, workdir, stop
    names, wanted = core.task_names(config.tasks)
    shown = [record for record in data.heldout_records if len(record.messages) == 2]
    self._shown = shown[: config.samples]
    perplexity = lambda examples, name: core.Perplexity(examples, name, config.tokens_per_batch)
    self.tasks: list[core.Task] = []
    if 'perplexity' in names and data.heldout:
      self.tasks.append(perplexity(data.heldout[: config.limit or None], 'heldout'))
    # Whether one snapshot can be called better than another.
    self.ranks = bool(self.tasks)
    if 'builtin' in names:
      self.tasks.append(core.BuiltinShort(writer, config.limit))
    if wanted:
      options = evaluation.options(
        config, writer, window, self._go_on, workdir.path, data.train_records
      )
      self.tasks += evaluation.prepare(wanted, config, options)
    self._base_tasks = list(self.tasks)
    if 'perplexity' in names and config.train_limit:
      self._base_tasks.append(perplexity(data.train[: config.train_limit], 'train'))

  @property
  def headline(self) -> list[str]:
    """Columns worth showing first."""
    return [column for task in self.tasks for column in task.headline]

  def run(self, subject: Subject, step: int, reject: Callable[[int], int | None]) -> core.Scores:
    """Scores after `step` steps (0: of the base); per-item records and answers go to files.

    A task that was done when a run was stopped here is not done again.

    Args:
      subject: The model.
      step: Optimiser steps taken.
      reject: Takes back saved states from a step on and returns the latest left; called where a
        score is not a number.

    Raises:
      Interrupted: asked to stop.
      UserError: a score is not a number; the device is out of memory.
    """
    subject = dataclasses.replace(subject, check=self._go_on)
    scores: core.Scores = {}
    settings = self._config.to_dict()
    done = self._workdir.finished_tasks(step, settings)
    answers = Answers(self._workdir.answers(step))
    for task in self.tasks if step else self._base_tasks:
      name = ' '.join(task.headline)
      if name not in done:
        self._go_on()
        with loop.explain_memory('evaluation', _MEMORY_HELP), contextlib.closing(answers):
          columns, items = core.evaluate(task, subject, answers)
        _refuse_undefined(columns, step, reject)
        for kind, records in items.items():
          self._workdir.put_items(step, kind.removesuffix('-items'), records)
        done[name] = columns
        self._workdir.put_finished_tasks(step, settings, done)
        self._stop.progress()
      scores |= done[name]
    if self._shown:
      self._workdir.put_items(step, 'samples', self._writer.samples(subject, self._shown))
    answers.forget()
    return scores

  def _go_on(self) -> None:
    if loop.agree(self._stop.requested, False, 0)[0]:
      why = self._stop.reason or 'another process'
      raise Interrupted(f'{why}, during an evaluation; start again to go on')


def _refuse_undefined(scores: core.Scores, step: int, reject: Callable[[int], int | None]) -> None:
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
  saved = reject(step)
  raise UserError(
    f'{bad[0]} is not a number after step {step}',
    'the last update ruined the model',
    'lower config.train.learning_rate; '
    + (f'the checkpoint of step {saved} is kept' if saved else 'no good state was saved before'),
  )

"""Evaluations that runs share: a base once for all of them, snapshots of a cohort at once.

What is found is written down by each run's own `Scoring`, as if it had asked itself.
"""

import contextlib
import dataclasses
import hashlib
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

from sft_jax.evals import core
from sft_jax.evals.model import Subject
from sft_jax.evals.suite import BenchmarkTask
from sft_jax.execution.scoring import MEMORY_HELP, Scoring
from sft_jax.train import loop
from sft_jax.utils.errors import Diverged


def give_base(
  scoring: Scoring,
  subject: Subject,
  base: Hashable,
  found: dict[Hashable, Any],
  before: Mapping[str, Sequence[dict[str, Any]]],
) -> None:
  """Hands over what is known of a base, after computing what is not.

  Args:
    scoring: Of a run on that base.
    subject: The base.
    base: Names it, and how it is computed.
    found: By base and task, what was found here; added to.
    before: By task, records of an earlier evaluation of the same base.

  Raises:
    Interrupted: asked to stop; what was answered is kept.
    OutOfMemory: the device's memory is full.
  """
  subject = dataclasses.replace(subject, check=scoring.go_on)
  with loop.explain_memory('evaluation', MEMORY_HELP):
    scoring.reckon(subject)
  for task in scoring.open_tasks(0):
    name = _name(task)
    if name is None:
      continue
    at, owed = (base, name), scoring.unanswered()
    if not _known(task, at, found, before):
      scoring.go_on()
      answers = scoring.answers(0)
      with loop.explain_memory('evaluation', MEMORY_HELP), contextlib.closing(answers):
        if isinstance(task, BenchmarkTask):
          found[at] = task.graded(subject, [answers])[0]
        else:
          found[at] = task.run(subject, answers)
    scores = task.scores(*found[at]) if isinstance(task, BenchmarkTask) else found[at]
    # What a judge still owes, the run's own evaluation asks for again, and others do themselves.
    whole = scoring.unanswered() == owed
    scoring.put(task, 0, core.split(scores), done=whole)
    if not whole:
      del found[at]


def base_is_known(
  scoring: Scoring,
  base: Hashable,
  found: dict[Hashable, Any],
  before: Mapping[str, Sequence[dict[str, Any]]],
) -> bool:
  """Whether `give_base` would compute nothing, nor anybody after it; see there."""
  names = [(task, _name(task)) for task in scoring.open_tasks(0)]
  return all(name is not None and _known(task, (base, name), found, before) for task, name in names)


def _known(
  task: core.Task,
  at: Hashable,
  found: dict[Hashable, Any],
  before: Mapping[str, Sequence[dict[str, Any]]],
) -> bool:
  """Whether what a task finds on a base is in `found`; what is known from `before` is put there."""
  if at not in found and isinstance(task, BenchmarkTask) and task.wanted.name in before:
    known = task.taken_over(before[task.wanted.name])
    found |= {at: known} if known is not None else {}
  return at in found


def give_snapshots(
  due: Sequence[tuple[int, Scoring]], subject_of: Callable[[list[int]], Subject], step: int
) -> None:
  """Asks benchmarks of several runs at once, where their questions are the same.

  Tasks on data of a run's own, and those whose questions depend on earlier answers, are left to
  each run. Numbers of runs are rounded up a little, so that few programs are compiled.

  Args:
    due: Slots and evaluations of runs with a snapshot.
    subject_of: Runs by slot to a model to evaluate.
    step: Optimiser steps taken.

  Raises:
    Interrupted: asked to stop; what was answered is kept.
    OutOfMemory: the device's memory is full.
  """
  groups: dict[int, list[tuple[int, Scoring, BenchmarkTask]]] = {}
  for slot, scoring in due:
    for task in scoring.open_tasks(step):
      if isinstance(task, BenchmarkTask) and not task.one_by_one:
        groups.setdefault(id(task.questions), []).append((slot, scoring, task))
  for group in groups.values():
    if len(group) < 2:
      continue
    slots = [slot for slot, _, _ in group]
    more = _rounded(len(group)) - len(group)
    _, scoring, first = group[0]
    scoring.go_on()
    subject = dataclasses.replace(subject_of(slots + slots[-1:] * more), check=scoring.go_on)
    with loop.explain_memory('evaluation', MEMORY_HELP), contextlib.ExitStack() as stack:
      answers = [stack.enter_context(contextlib.closing(one.answers(step))) for _, one, _ in group]
      graded = first.graded(subject, answers + answers[-1:] * more)
    for (_, one, task), result in zip(group, graded[: len(group)], strict=True):
      # Of a run whose scores are no numbers its own evaluation will tell, from the same answers.
      with contextlib.suppress(Diverged):
        one.put(task, step, core.split(task.scores(*result)))


def _rounded(runs: int) -> int:
  """So many or up to a quarter more: one of four numbers between a power of two and the next."""
  part = max(1, (1 << (runs - 1).bit_length()) // 8)
  return -(-runs // part) * part


def _name(task: core.Task) -> Hashable | None:
  """Equal for tasks that find the same on a base; None where nothing is known of that."""
  if isinstance(task, BenchmarkTask):
    return 'benchmark', id(task.questions)  # Sessions keep them, so an id names one.
  if isinstance(task, core.Perplexity):
    digest = hashlib.sha256()
    for example in task.examples:
      digest.update(len(example).to_bytes(8, 'little'))
      for array in (example.ids, example.loss_weight, example.spans):
        digest.update(array.tobytes())
    return 'perplexity', task.name, task.tokens_per_batch, digest.hexdigest()
  if isinstance(task, core.BuiltinShort):
    return 'builtin', len(task.items), task.writer.template, task.writer.max_new
  return None

"""Tasks and the driver that runs them on a model. The one place that knows all tasks by name."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from sft_jax.data import tokenize
from sft_jax.data.formats import Record
from sft_jax.data.tokenize import Example
from sft_jax.evals import benchmarks, lm_eval_tasks, score
from sft_jax.evals.answers import Answers
from sft_jax.evals.generation import UNDEFINED, Engine, Request, detokenizer
from sft_jax.evals.model import Subject
from sft_jax.evals.questions import Wanted
from sft_jax.evals.tasks import builtin_short
from sft_jax.utils.errors import UserError

Scores = dict[str, Any]


class Task(Protocol):
  """Something a model is scored on. Prepared once, run on every snapshot."""

  headline: tuple[str, ...]

  def run(self, subject: Subject, answers: Answers) -> Scores:
    """{column: value}; a key ending in `-items` holds per-item records and is no column.

    Args:
      subject: The model.
      answers: What it has answered before a stop, and where new answers go.
    """


class Perplexity:
  """Perplexity of one set of examples (see `score.perplexity`)."""

  def __init__(self, examples: Sequence[Example], name: str, tokens_per_batch: int):
    self.examples, self.name, self.tokens_per_batch = examples, name, tokens_per_batch
    self.headline: tuple[str, ...] = (f'ppl-{name}', f'ppl-{name}-response')

  def run(self, subject: Subject, answers: Answers) -> Scores:
    """See `Task.run`."""
    logprobs = score.token_logprobs(subject, self.examples, self.tokens_per_batch)
    return dict(score.perplexity(self.examples, logprobs, self.name))


class Writer:
  """Turns conversations into answers, wrapped as in training."""

  def __init__(self, tokenizer: Any, template: str, max_new: int):
    self.tokenizer, self.template, self.max_new = tokenizer, template, max_new
    self.stop_ids = tokenize.stop_ids(tokenizer, template)

  def answer(
    self, subject: Subject, prompts: Sequence[Sequence[Mapping[str, str]]]
  ) -> Sequence[str | None]:
    """Greedy answers to conversations that end with the user; None of what is no number."""
    ids = [
      tokenize.prompt_ids([dict(m) for m in prompt], self.tokenizer, self.template)
      for prompt in prompts
    ]
    engine = Engine(subject, detokenizer(self.tokenizer), self.stop_ids)
    (outputs,) = engine.generate([Request(prompt, self.max_new) for prompt in ids])
    return [None if one.finish == UNDEFINED else one.text.strip() for one in outputs]

  def samples(self, subject: Subject, records: Sequence[Record]) -> list[dict[str, str]]:
    """Question, reference and answer for conversations of one turn."""
    prompts = [[dict(message) for message in record.messages[:-1]] for record in records]
    answers = self.answer(subject, prompts)
    return [
      {
        'prompt': prompt[-1]['content'],
        'reference': record.messages[-1]['content'],
        'answer': answer or '',
      }
      for prompt, record, answer in zip(prompts, records, answers, strict=True)
    ]


class BuiltinShort:
  """Exact match on the built-in short and maths questions."""

  headline: tuple[str, ...] = ('builtin-em',)

  def __init__(self, writer: Writer, limit: int):
    items = builtin_short.items(builtin_short.read_records())
    self.items = items[:limit] if limit else items
    self.writer = writer

  def run(self, subject: Subject, answers: Answers) -> Scores:
    """See `Task.run`."""
    outputs = self.writer.answer(subject, [item.prompt for item in self.items])
    known = [output for output in outputs if output is not None]
    if len(known) < len(outputs):
      # An empty text would pass for a wrong answer.
      return {'builtin-em': math.nan}
    return builtin_short.score(known, self.items)


# What `config.eval.tasks` may name besides benchmarks.
TASK_NAMES = ('perplexity', 'builtin')


def task_names(tasks: str) -> tuple[list[str], list[Wanted]]:
  """Names of our own tasks and of lm_eval's (`lm_eval:…`), and benchmarks, in a list with commas.

  Raises:
    UserError: an unknown name, or one twice.
  """
  names = [name.strip() for name in tasks.split(',') if name.strip()]
  ours = [name for name in names if name in TASK_NAMES or name.startswith(lm_eval_tasks.PREFIX)]
  wanted = [benchmarks.parse(name, TASK_NAMES) for name in names if name not in ours]
  everything = [*ours, *(one.name for one in wanted)]
  for name in everything:
    if everything.count(name) > 1:
      raise UserError(f'{name} is named twice', 'config.eval.tasks', 'name it once')
  return ours, wanted


def evaluate(task: Task, subject: Subject, answers: Answers) -> tuple[Scores, Scores]:
  """Runs one task; returns its columns, and its per-item records by name."""
  return split(task.run(subject, answers))


def split(scores: Scores) -> tuple[Scores, Scores]:
  """What a task gives, as its columns and its per-item records by name."""
  columns: Scores = {}
  items: Scores = {}
  for key, value in scores.items():
    (items if key.endswith('-items') else columns)[key] = value
  return columns, items

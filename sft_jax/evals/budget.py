"""What benchmarks cost a model before they are run: tokens, about how many seconds, and which
subsets fit a time.

Counts are exact as far as prompts are; what a model writes is reckoned at its most. Seconds are
tokens over rates measured on the model itself in a short probe, so they are estimates: caches of
other lengths, compilation and graders take what they take. Not for money: see `endpoint.py`.
"""

import collections
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from sft_jax.evals import layout, loglik, prompts, subset
from sft_jax.evals.benchmark import Choose
from sft_jax.evals.generation import NARROWEST, Engine, Request
from sft_jax.evals.layout import Text
from sft_jax.evals.model import Subject
from sft_jax.evals.questions import Options, Question
from sft_jax.evals.suite import BenchmarkTask
from sft_jax.utils import log
from sft_jax.utils.errors import UserError

# New tokens of each text in the probe, after the first.
_STEPS = 16
# A probe is worth its time where there is so many times its work to do.
_WORTH = 40
_HALVINGS = 10
_WIDEST = 50.0


class Work(NamedTuple):
  """What there is to compute.

  Attributes:
    requests: Texts to score or to go on from.
    asked: Tokens of prompts and continuations, each request by itself.
    shared: The same where what requests begin alike is computed once.
    steps: Steps of full slots that write all new tokens, at most.
    new: Those tokens.
    scored: Positions whose next token is scored, where the head is applied too.
    padding: Tokens that only fill rows up to one of few widths.
  """

  requests: int = 0
  asked: int = 0
  shared: int = 0
  steps: float = 0.0
  new: int = 0
  scored: int = 0
  padding: int = 0

  def plus(self, other: 'Work') -> 'Work':
    """Both."""
    return Work(
      self.requests + other.requests,
      self.asked + other.asked,
      self.shared + other.shared,
      self.steps + other.steps,
      self.new + other.new,
      self.scored + other.scored,
      self.padding + other.padding,
    )


class Speed(NamedTuple):
  """Measured: prompt tokens a second, seconds of a step that gives each slot a token, and seconds
  that a position takes longer if it is scored."""

  tokens_per_s: float
  step_s: float
  scored_s: float = 0.0

  def seconds(self, work: Work) -> float:
    """About how long it takes."""
    read = (work.shared + work.padding) / self.tokens_per_s + work.scored * self.scored_s
    return read + work.steps * self.step_s


def work(task: BenchmarkTask, questions: Sequence[Question], sharing: str) -> Work:
  """What some questions of a task cost.

  Args:
    task: The benchmark.
    questions: Of its questions.
    sharing: What texts of the model may share; see `model.LanguageModel`.
  """
  reading, options = task.reading, task.options
  if isinstance(reading, Choose):
    pairs = [(q.ids, more) for q in questions for more in q.continuations]
    if reading.unconditional:
      nothing = np.array([prompts.beginning(options.tokenizer)], np.int32)
      pairs += [(nothing, more) for _, more in pairs]
    texts = [Text(np.concatenate([ids, more]), len(ids)) for ids, more in pairs]
    asked = sum(len(text.ids) - 1 for text in texts)
    plan = layout.plan(texts, loglik.ROW, sharing)
    # Choices that differ in their last token alone are scored at the same positions.
    places = [np.concatenate([query.indices for query in row.queries]) for row in plan.rows]
    scored = sum(len(np.unique(indices)) for indices in places)
    held = sum(map(_held, plan.prefixes)) + sum(plan.widths)
    return Work(len(texts), asked, plan.tokens, scored=scored, padding=held - plan.tokens)
  asked = requests = new = 0
  most_new = reading.most_new(task.wanted.shots)
  first = [np.asarray(question.ids, np.int32) for question in questions]
  groups = layout.beginnings(first) if sharing == 'beginnings' else []
  saved = sum(len(prefix) * (len(members) - 1) for prefix, members in groups)
  padding = sum(_held(prefix) - len(prefix) for prefix, _ in groups)
  for prefix, members in groups or [(np.zeros(0, np.int32), list(range(len(first))))]:
    rests = [len(first[i]) - len(prefix) for i in members]
    padding += sum(layout.width_class(rest, NARROWEST) - rest for rest in rests)
  for question in questions:
    length = len(question.ids)
    for turn in range(1 + len(reading.turns(question.item))):
      # A further turn is asked behind all before, its own words being few.
      prompt = min(length + turn * most_new, options.window - 1)
      requests, asked = requests + 1, asked + prompt
      new += min(most_new, options.window - prompt)
  slots = min(options.slots, max(len(questions), 1))
  return Work(requests, asked, asked - saved, new / slots, new, padding=padding)


def _held(prefix: np.ndarray) -> int:
  """Slots that a beginning takes."""
  return loglik.prefix_slots(len(prefix)) if len(prefix) else 0


def measure(subject: Subject, tasks: Sequence[BenchmarkTask]) -> Speed:
  """Runs a batch of prompts, one with all tokens scored if the tasks score some, and a few steps
  of full slots, each twice, and times the second.

  Args:
    subject: The model.
    tasks: What it is to be asked; at least one.
  """
  options = tasks[0].options
  rng = np.random.default_rng(0)
  length = min(loglik.ROW, options.window)
  rows = max(1, options.tokens_per_batch // length)

  def draw(count: int) -> np.ndarray:
    return rng.integers(0, subject.model.vocab_size, count).astype(np.int32)

  def read(start: int) -> float:
    texts = [Text(draw(length + 1), start) for _ in range(rows)]
    return _seconds_of(lambda: loglik.score(subject, texts, options.tokens_per_batch))

  bare = read(length)
  rate, scored = rows * length / bare, 0.0
  if length > 1 and any(isinstance(task.reading, Choose) for task in tasks):
    scored = max(read(1) - bare, 0.0) / (rows * (length - 1))
  prompts_ = [q.ids for t in tasks if not isinstance(t.reading, Choose) for q in t.questions]
  if not prompts_:
    return _agreed(Speed(rate, 0.0, scored))
  most = max(1, min(loglik.ROW, options.window - _STEPS - 1))
  size = min(most, int(np.median([len(ids) for ids in prompts_])))
  slots = min(options.slots, len(prompts_))
  engine = Engine(
    subject,
    lambda prompt, new: '',
    (),
    slots=options.slots,
    tokens_per_batch=options.tokens_per_batch,
  )

  def write() -> None:
    engine.generate([Request(tuple(draw(size).tolist()), _STEPS + 1) for _ in range(slots)])

  spent = _seconds_of(write)
  # What of it was reading; never so much that nothing is left.
  return _agreed(Speed(rate, max(spent - slots * size / rate, spent / 4) / _STEPS, scored))


def _seconds_of(call: Any) -> float:
  call()  # compiles
  began = time.monotonic()
  call()
  return max(time.monotonic() - began, 1e-9)


def _agreed(speed: Speed) -> Speed:
  """The first process's: all must choose the same items."""
  if jax.process_count() == 1:
    return speed
  from jax.experimental import multihost_utils

  return Speed(*map(float, multihost_utils.broadcast_one_to_all(np.array(speed, np.float32))))


def is_worth_a_probe(total: Work, options: Options) -> bool:
  """Whether measuring costs little beside the work."""
  return total.shared + total.new > _WORTH * (options.tokens_per_batch + _STEPS * options.slots)


def line(total: Work, speed: Speed | None) -> str:
  """The cost for people."""
  out = f'{total.requests:,} requests, {total.shared:,} tokens to read ({total.asked:,} as asked)'
  if total.new:
    out += f', at most {total.new:,} to write'
  if speed is None:
    return out
  about = log.clock(speed.seconds(total))
  rates = f'{speed.tokens_per_s:,.0f} tokens/s read'
  if speed.step_s and total.steps:
    rates += f', {total.new / total.steps / speed.step_s:,.0f} written'
  return f'{out}; {"at most " if total.new else ""}about {about} ({rates})'


def fitting(
  tasks: Sequence[BenchmarkTask], sharing: str, speed: Speed, seconds: float
) -> tuple[dict[str, int], float]:
  """Numbers of items with which all tasks fit a time, of equal ± points as far as they go.

  Args:
    tasks: With all their questions.
    sharing: See `work`.
    speed: Of the model.
    seconds: The time for all tasks together.

  Returns:
    {task: items} of those that are cut, and the half-width of all intervals in points (0: none is
    cut). The items are those that stand first in `subset.order`.

  Raises:
    UserError: the time does not pay for the fewest items that give a score.
  """
  sized = [_Sized(task, sharing) for task in tasks]
  spent = lambda width: sum(speed.seconds(one.work(one.count(width))) for one in sized)
  if spent(0.0) <= seconds:
    return {}, 0.0
  low, high = 0.0, _WIDEST
  least = spent(high)
  if least > seconds:
    raise UserError(
      f'{seconds:g} seconds do not pay for the fewest items of these tasks, which take about '
      f'{least:.3g}',
      'config.eval.budget_seconds',
      'give more time, or name fewer tasks',
    )
  for _ in range(_HALVINGS):
    middle = (low + high) / 2
    low, high = (low, middle) if spent(middle) <= seconds else (middle, high)
  counts = {one.task.wanted.name: one.count(high) for one in sized}
  whole = {one.task.wanted.name: len(one.ranked) for one in sized}
  return {name: count for name, count in counts.items() if count < whole[name]}, high


class _Sized:
  """A task whose items can be fewer."""

  def __init__(self, task: BenchmarkTask, sharing: str):
    self.task, self._sharing = task, sharing
    questions = {question.item.id: question for question in task.questions}
    items = [question.item for question in task.questions]
    macro = task.reading.macro
    self.ranked = [questions[item.id] for item in subset.order(items, task.options.seed, macro)]
    self._sizes: Mapping[str, int] = task.sizes or collections.Counter(i.group for i in items)
    self._works: dict[int, Work] = {}

  def count(self, width: float) -> int:
    """The fewest items for a half-width in points; all where those do not give it."""
    macro = self.task.reading.macro
    items = [question.item for question in self.ranked]
    low, high = 1, len(items)
    while low < high:
      middle = (low + high) // 2
      enough = subset.half_width(items[:middle], collections.Counter(self._sizes), macro) <= width
      low, high = (low, middle) if enough else (middle + 1, high)
    return low

  def work(self, count: int) -> Work:
    """Of the first so many items."""
    if count not in self._works:
      self._works[count] = work(self.task, self.ranked[:count], self._sharing)
    return self._works[count]


def total(tasks: Sequence[BenchmarkTask], sharing: str) -> Work:
  """What all questions of some tasks cost."""
  out = Work()
  for task in tasks:
    out = out.plus(work(task, task.questions, sharing))
  return out

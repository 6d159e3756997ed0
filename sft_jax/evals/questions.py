"""What is asked of a benchmark, and its items as tokens.

Not for putting them to a model (`suite.py`) or for which benchmarks there are (`benchmarks.py`).
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from sft_jax.evals import parse, prompts
from sft_jax.evals.benchmark import Benchmark, Choose, Item, Prompt, Services
from sft_jax.utils.errors import UserError


@dataclasses.dataclass(frozen=True)
class Wanted:
  """One entry of `config.eval.tasks`: a benchmark, read one way, with so many shots."""

  benchmark: Benchmark
  reading: str
  shots: int

  @property
  def name(self) -> str:
    """As in `config.eval.tasks`, with everything said."""
    return f'{self.benchmark.name}:{self.shots}shot:{self.reading}'


@dataclasses.dataclass(frozen=True)
class Options:
  """How benchmarks are put to a model.

  Attributes:
    tokenizer: A fast transformers tokenizer.
    template: raw, study or chat.
    stop_ids: Tokens that end what a model writes.
    window: Longest text of the model in tokens.
    limit: At most so many items, a seeded subset; 0 for all.
    precision: ± points a subset must give; 0 for all items.
    seed: Of subsets and of sampling.
    tokens_per_batch: Tokens on all devices at once.
    slots: Texts that are written at once.
    services: What graders may need.
    seen: Which of some texts occur in the training data; None where nobody looks.
  """

  tokenizer: Any
  template: str
  stop_ids: Sequence[int]
  window: int
  limit: int = 0
  precision: float = 0.0
  seed: int = 0
  tokens_per_batch: int = 4096
  slots: int = 32
  services: Services = dataclasses.field(default_factory=Services)
  seen: Callable[[Sequence[Any]], Sequence[bool]] | None = None


@dataclasses.dataclass(frozen=True)
class Question:
  """An item as tokens.

  Attributes:
    item: The item.
    shots: Shots its prompt holds.
    cut: Whether the window made it lose shots, or more.
    prompt: The prompt before any template.
    ids: Its tokens.
    continuations: Tokens of each continuation (`ll`).
  """

  item: Item
  shots: int
  cut: bool
  prompt: Prompt
  ids: list[int]
  continuations: list[list[int]]


def shots_of(wanted: Wanted, item: Item, pool: Sequence[Item]) -> Sequence[Item]:
  """The solved examples that stand before an item.

  Raises:
    UserError: more than there are.
  """
  if wanted.shots > len(pool):
    raise UserError(
      f'{wanted.shots} shots, and the data of {wanted.benchmark.name} have {len(pool)}',
      'config.eval.tasks',
      'name fewer, or add data to take shots from',
    )
  return (wanted.benchmark.pick or prompts.same_group)(item, pool, wanted.shots)


def column_of(wanted: Wanted, items: Sequence[Item], pool: Sequence[Item], used: int) -> str:
  """The published column where this is its very measure, else a name of its own.

  Args:
    wanted: What is asked.
    items: All items there are.
    pool: Where shots come from.
    used: Items that are asked.
  """
  benchmark, shots = wanted.benchmark, wanted.shots
  reading = benchmark.readings[wanted.reading]
  variant = benchmark.variant([*items, *shots_of(wanted, items[0], pool)])
  whole = used == len(items)
  if whole and not variant and len(items) == benchmark.size and shots in reading.released:
    return reading.released[shots]
  tail = '' if variant and wanted.reading == 'gen' else f'-{wanted.reading}'
  return f'{variant or benchmark.name}-{shots}shot{tail}' + ('' if whole else f'-n{used}')


def question(wanted: Wanted, item: Item, pool: Sequence[Item], options: Options) -> Question:
  """An item under the template, with as many shots as the window has room for."""
  reading = wanted.benchmark.readings[wanted.reading]
  prompt = reading.ask(item, shots_of(wanted, item, pool))
  window, tokenizer, template = options.window, options.tokenizer, options.template
  ids: list[int] = []
  continuations: list[list[int]] = []
  room = count = 0
  for count in range(len(prompt.shots), -1, -1):
    held = prompts.with_shots(prompt, count)
    if isinstance(reading, Choose):
      texts = list(reading.choices(item))
      ids, continuations = prompts.pair_ids(held, texts, tokenizer, template)
      if len({*map(tuple, continuations)}) < len(continuations):
        raise parse.wrong(item.source, 'choices', 'has two that are the same tokens')
      # The last token is only predicted.
      room = window + 1 - max(map(len, continuations))
    else:
      ids = prompts.token_ids(held, tokenizer, template)
      room = window - min(reading.max_new, window // 4)
    if len(ids) <= room:
      break
  cut = count < len(prompt.shots) or len(ids) > room
  # What is left without shots is the question; its end is what must be answered.
  return Question(item, count, cut, held, ids[-max(room, 1) :], continuations)

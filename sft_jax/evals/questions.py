"""What is asked of a benchmark, and its items as tokens.

Not for putting them to a model (`suite.py`) or for which benchmarks there are (`benchmarks.py`).
"""

import dataclasses
import pathlib
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from sft_jax.evals import lines, parse, prompts
from sft_jax.evals.benchmark import Benchmark, Choose, Generate, Item, Prompt, Services
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
    cache: Directory that keeps items as tokens; None for none.
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
  cache: pathlib.Path | None = None


@dataclasses.dataclass(frozen=True)
class Question:
  """An item as tokens.

  Attributes:
    item: The item.
    shots: Shots its prompt holds.
    cut: Whether the window made it lose shots, or more.
    ask: Makes the prompt, before any template, with those shots.
    ids: int32, the tokens of the prompt.
    continuations: int32, the tokens of each continuation (`ll`).
  """

  item: Item
  shots: int
  cut: bool
  ask: Callable[[], Prompt]
  ids: np.ndarray
  continuations: tuple[np.ndarray, ...]

  @property
  def prompt(self) -> Prompt:
    """The prompt before any template."""
    return self.ask()


def shots_of(wanted: Wanted, pool: Sequence[Item]) -> Callable[[Item], Sequence[Item]]:
  """What gives the solved examples that stand before an item.

  Raises:
    UserError: more than there are, of all or (when called) of the item's group.
  """
  if wanted.shots > len(pool):
    raise UserError(
      f'{wanted.shots} shots, and the data of {wanted.benchmark.name} have {len(pool)}',
      'config.eval.tasks',
      'name fewer, or add data to take shots from',
    )
  pick = wanted.benchmark.pick
  if pick is not None:
    return lambda item: pick(item, pool, wanted.shots)
  known: dict[str, list[Item]] = {}

  def same_group(item: Item) -> Sequence[Item]:
    if item.group not in known:
      found = prompts.same_group(item, pool, wanted.shots)
      if len(found) < wanted.shots:
        # A subject asked with fewer, or with those of others, would pass for what it is not.
        raise UserError(
          f'{wanted.shots} shots, and the data of {wanted.benchmark.name} have {len(found)} of '
          f'{item.group}',
          item.source,
          'name fewer, or complete the data that shots are taken from',
        )
      known[item.group] = found
    return known[item.group]

  return same_group


class Names(NamedTuple):
  """What the columns of a task are called.

  The names of the published table (`results.RELEASED_COLUMNS`) stand for its very measure: `gen` of
  the published data, all items, the published shots, plain prompts (template `raw`) and, where
  somebody judges, the judge and the wording of the table. Every other measure is

    NAME[-VARIANT]-Kshot[-READING][-TEMPLATE][@JUDGE][-nN]

  VARIANT are other data ('boolq-notitle', 'mmlu12'), beside which READING is left out where it is
  `gen`; TEMPLATE is left out where it is raw, JUDGE where nobody judges; -nN are N items, a subset.
  Columns that a benchmark makes itself (`mtbench-writing`, `alpaca_eval_v2-total`) get the same
  marks behind their names, [-VARIANT][-TEMPLATE][@JUDGE][-nN]: `mtbench-total-chat@MODEL`; JUDGE is
  then left out where it is the published one.

  Attributes:
    column: The headline's.
    mark: What the names of a benchmark's own columns end with; '' for the published measure.
  """

  column: str
  mark: str


def names_of(
  wanted: Wanted, items: Sequence[Item], pool: Sequence[Item], used: int, options: Options
) -> Names:
  """The published names where this is the published measure, else its own; see `Names`.

  Args:
    wanted: What is asked.
    items: All items there are.
    pool: Where shots come from.
    used: Items that are asked.
    options: The template, and who judges.
  """
  benchmark, shots = wanted.benchmark, wanted.shots
  reading = benchmark.readings[wanted.reading]
  variant = benchmark.variant([*items, *shots_of(wanted, pool)(items[0])])
  judge = usual = ''
  if isinstance(reading, Generate) and reading.judgments and options.services.judge is not None:
    # As a part of a file's name.
    judge = re.sub(r'[^\w.-]+', '-', options.services.judge.name)
    usual = reading.judge
  template = '' if options.template == 'raw' else f'-{options.template}'
  subset = '' if used == len(items) else f'-n{used}'
  mark = variant.removeprefix(benchmark.name) + template
  mark += f'@{judge}' if judge != usual else ''
  # Other data that nothing tells apart but their number.
  mark += subset or ('' if len(items) == benchmark.size else f'-n{len(items)}')
  if not mark and shots in reading.released:
    return Names(reading.released[shots], mark)
  tail = '' if variant and wanted.reading == 'gen' else f'-{wanted.reading}'
  judge = f'@{judge}' if judge else ''
  return Names(f'{variant or benchmark.name}-{shots}shot{tail}{template}{judge}{subset}', mark)


def ask_all(
  wanted: Wanted, items: Sequence[Item], pool: Sequence[Item], options: Options
) -> list[Question]:
  """Items under the template, with as many shots as the window has room for.

  Raises:
    UserError: more shots than there are; choices that are the same tokens, or none; a conversation
      that the template refuses.
  """
  shots = shots_of(wanted, pool)
  tokenizer = lines.LineTokenizer(options.tokenizer)
  ask = wanted.benchmark.readings[wanted.reading].ask
  return [_question(wanted, item, ask(item, shots(item)), tokenizer, options) for item in items]


def _question(
  wanted: Wanted, item: Item, prompt: Prompt, tokenizer: lines.LineTokenizer, options: Options
) -> Question:
  reading = wanted.benchmark.readings[wanted.reading]
  window, template = options.window, options.template
  ids: list[int] = []
  continuations: list[list[int]] = []
  held, room, count = prompt, 0, 0
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
      room = room_to_write(reading, wanted, options)
    if len(ids) <= room:
      break
  cut = count < len(prompt.shots) or len(ids) > room
  array = lambda tokens: np.asarray(tokens, np.int32)
  kept = array(shortened(ids, room))
  return Question(item, count, cut, lambda: held, kept, tuple(map(array, continuations)))


def room_to_write(reading: Generate, wanted: Wanted, options: Options) -> int:
  """Tokens that a prompt may have, so that there is room for an answer."""
  return options.window - min(reading.most_new(wanted.shots), options.window // 4)


def shortened(ids: Sequence[int], room: int) -> Sequence[int]:
  """Tokens without their middle, where they are more than `room` (at least 1).

  What is to be done stands at the beginning of a prompt, what must be answered at its end; so
  LongBench cuts too (arXiv 2308.14508). Shots have given way before.
  """
  if len(ids) <= room:
    return ids
  first = max(room, 1) // 2
  return [*ids[:first], *ids[len(ids) - max(room, 1) + first :]]

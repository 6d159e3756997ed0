"""What a benchmark is: items, prompts before any template, and its readings.

A benchmark is a file in `tasks/` that makes one `Benchmark` from plain functions. A reading is one
way to put its questions to a model and to grade what comes back: `ll` compares log-likelihoods of
given continuations, `gen` lets the model write, extracts an answer and grades that. They are
different measures with columns of their own. No model, tokenizer or file system here.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np


@dataclasses.dataclass(frozen=True)
class Item:
  """One question.

  Attributes:
    id: Unique in its benchmark and stable under subsets: 'anatomy/12', or a data set's own id.
    fields: What the prompt and the grader need, checked when it was read.
    group: Subject or category, for macro means and stratified subsets; '' for none.
    source: Where it was read: 'gsm8k_test.jsonl:12'.
  """

  id: str
  fields: Mapping[str, Any]
  group: str = ''
  source: str = ''


class Round(NamedTuple):
  """A message before any template; `role` is user or assistant."""

  role: str
  text: str


@dataclasses.dataclass(frozen=True)
class Prompt:
  """A question with its shots.

  Raw, everything is joined to one text: `head`, then shots and question separated by `separator`,
  the rounds within one joined by `delimiter` (empty rounds are skipped). Under a chat or training
  template rounds become messages, the head opens the first, and an assistant round that ends the
  question is left out: there the answer begins. A prompt too long for the window loses shots from
  the end, never the head or the question; where these alone are too long, the middle of both.

  Attributes:
    question: Rounds of the question; a last assistant round is the beginning of the answer.
    shots: Rounds of each solved example.
    head: What stands before everything, with the white space that ends it.
    delimiter: Between the rounds of a shot or the question and, under `ll`, before a continuation.
    separator: Between shots.
  """

  question: tuple[Round, ...]
  shots: tuple[tuple[Round, ...], ...] = ()
  head: str = ''
  delimiter: str = '\n'
  separator: str = '\n'


class Choices(NamedTuple):
  """What a model thinks of the continuations of one item, in their order.

  Attributes:
    texts: The continuations without delimiter.
    logprobs: `[n]` float64, summed over the tokens of each, in nats.
    greedy: `[n]` bool, whether each token was the likeliest.
    tokens: `[n]` number of tokens.
  """

  texts: Sequence[str]
  logprobs: np.ndarray
  greedy: np.ndarray
  tokens: np.ndarray


class Grade(NamedTuple):
  """How one item came out.

  Attributes:
    scores: {measure: value}, for each measure of the reading; 1 is right and 0 wrong where it is a
      matter of that. One that could not be taken (a judge's answer without a rating) is left out,
      and counted as missing.
    extracted: The answer found in an output, as text for people; None if there was none. Under `ll`
      the chosen continuation.
    notes: What the per-item record shall hold besides.
  """

  scores: Mapping[str, float]
  extracted: str | None
  notes: Mapping[str, Any] = {}


class Ask(Protocol):
  """Builds the prompt of an item from it and its shots."""

  def __call__(self, item: Item, shots: Sequence[Item]) -> Prompt: ...


@dataclasses.dataclass(frozen=True)
class Choose:
  """Reading `ll`: which of several continuations is likeliest.

  Attributes:
    ask: Item and shots to a prompt.
    choices: The continuations of an item, without delimiter; at least two, all distinct.
    grade: Item and what the model thinks of them to a grade.
    measures: Names of the scores in a grade; the first is the headline.
    unconditional: Continuations are scored after nothing too (as `grade`'s third argument), as
      mutual information needs.
    percent: Whether columns are means times 100.
    macro: Whether the score is the mean of the groups' means.
    released: {shots: column} where the published table has this very measure.
  """

  ask: Ask
  choices: Callable[[Item], Sequence[str]]
  grade: Callable[..., Grade]
  measures: tuple[str, ...] = ('acc',)
  unconditional: bool = False
  percent: bool = True
  macro: bool = False
  released: Mapping[int, str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Generate:
  """Reading `gen`: the model writes, an answer is extracted from the text and graded.

  Attributes:
    ask: Item and shots to a prompt.
    grade: Output and item to a grade; or, for work best done together (programs, judges),
      `grade_all`.
    max_new: Most new tokens; or a function of the number of shots.
    stops: Texts the output is cut at, by number of shots.
    settled: Whether a text's grade can no longer change by what may follow. Only where that is
      exact; None where it never is.
    grade_all: All outputs and items to their grades (None: not graded, counted as missing), given
      `Services`.
    turns: Texts of further user turns, each put after the model's own answer; outputs are then
      tuples of texts.
    temperature: By item, 0 for greedy.
    measures: Names of the scores in a grade; the first is the headline.
    percent: Whether columns are means times 100.
    macro: Whether the score is the mean of the groups' means.
    released: {shots: column} where the published table has this very measure.
    judge: The model that judged for the published table, '' where none did.
    judgments: Requests an item makes to `Services.judge`; if any, there must be one.
    programs: Whether outputs are programs, which `Services.run_programs` must run.
    summary: Items and their grades to columns that are no mean of one measure over all items, as
      they are called where the measure is the published one; see `questions.Names`.
  """

  ask: Ask
  grade: Callable[[Any, Item], Grade] | None = None
  max_new: int | Callable[[int], int] = 512
  stops: Callable[[int], Sequence[str]] = lambda shots: ()
  settled: Callable[[str], bool] | None = None
  grade_all: Callable[..., Sequence[Grade | None]] | None = None
  turns: Callable[[Item], Sequence[str]] = lambda item: ()
  temperature: Callable[[Item], float] = lambda item: 0.0
  measures: tuple[str, ...] = ('acc',)
  percent: bool = True
  macro: bool = False
  released: Mapping[int, str] = dataclasses.field(default_factory=dict)
  judge: str = ''
  judgments: int = 0
  programs: bool = False
  summary: Callable[[Sequence[Item], Sequence[Grade | None]], Mapping[str, Any]] | None = None

  def most_new(self, shots: int) -> int:
    """Most new tokens with so many shots."""
    return self.max_new(shots) if callable(self.max_new) else self.max_new


class Verdict(NamedTuple):
  """What a judge wrote; `top` is {first token: log-probability}, where a judge tells."""

  text: str
  top: Mapping[str, float] | None = None


class Judge(Protocol):
  """A model that grades; see `judge.py`.

  Attributes:
    name: Which, as columns and records name it.
    seed: Of what is put to it in random order.
    unanswered: Requests so far that got no judgment; put again, they may get one.
  """

  name: str
  seed: int

  @property
  def unanswered(self) -> int: ...

  def afford(self, requests: int) -> None:
    """To be called before any work is done for so many requests.

    Raises:
      UserError: they are more than it may cost.
    """
    ...

  def ask(self, conversations: Sequence[Sequence[Mapping[str, str]]]) -> list[str | None]:
    """Judgments of conversations (messages that end with the user's); None where there is none."""
    ...

  def pick(self, conversations: Sequence[Sequence[Mapping[str, str]]]) -> list[Verdict | None]:
    """The same where one token is the judgment."""
    ...


@dataclasses.dataclass(frozen=True)
class Services:
  """What grading may need besides outputs and items.

  Attributes:
    judge: None where there is none.
    run_programs: `sandbox.run_all` or its like, given programs and their seconds; None where
      generated programs are not to be run.
  """

  judge: Judge | None = None
  run_programs: Callable[[Sequence[Any], float], Sequence[Any]] | None = None


class Files(Protocol):
  """Where a benchmark's data are: a local directory in the original formats, or the hub."""

  local: bool

  def rows(
    self, path: str, *, hub: str = '', columns: Sequence[str] = ()
  ) -> list[tuple[dict[str, Any], str]]:
    """Records of one file with their source ('file:row').

    Args:
      path: Relative to the data directory; json, jsonl, csv, tsv, parquet, optionally .gz.
      hub: The same on the hub: 'org/name[:config]@split'; read where there is no directory.
      columns: Names of the columns of a CSV file without header.

    Raises:
      UserError: a missing, malformed or empty file, with file and row.
    """
    ...

  def names(self, pattern: str) -> list[str]:
    """Sorted paths in the local directory that match a glob pattern; [] on the hub."""
    ...


@dataclasses.dataclass(frozen=True)
class Benchmark:
  """One benchmark.

  Attributes:
    name: As in `config.eval.tasks`, lower case.
    version: Raised by hand with any change that can change a score.
    read: Files to items and the pool that shots are taken from, in the order they are taken.
    readings: 'll' and 'gen' to their readings; the first is the default.
    shots: Numbers of shots it is known with, the default first; any number the pool has will do.
    pick: Shots of an item (given item, pool, number); by default the first of the pool, or of the
      item's group where the pool has groups.
    size: Items of the published data; a column of the published table is filled only by as many.
    variant: What other data of this benchmark are called in columns ('' if they are the published
      data), by all items used: the questions and then the shots put before them.
    example: An item and shots written by us, which show the schema and pin the prompts.
    prompt_hash: {reading: `prompts.prompt_hash`} of the example.
    licence: Licence of the data, as published.
  """

  name: str
  version: int
  read: Callable[[Files], tuple[list[Item], list[Item]]]
  readings: Mapping[str, Choose | Generate]
  shots: tuple[int, ...]
  size: int
  example: tuple[Item, tuple[Item, ...]]
  prompt_hash: Mapping[str, str]
  licence: str
  pick: Callable[[Item, Sequence[Item], int], Sequence[Item]] | None = None
  variant: Callable[[Sequence[Item]], str] = lambda items: ''

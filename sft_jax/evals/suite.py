"""A benchmark on a model: its questions as requests to the engines, what comes back as grades.

Prepared once (read, subset, tokenised), run on every snapshot. Columns are `stats.columns` of the
per-item records. Not for which benchmarks there are (`benchmarks.py`) or what they ask (`tasks/`).
"""

import collections
import copy
import dataclasses
import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from sft_jax.evals import prompts, questions, stats, subset, tokenised
from sft_jax.evals.answers import Answers
from sft_jax.evals.asking import scored, written
from sft_jax.evals.benchmark import Choices, Choose, Files, Generate, Grade, Item, Round
from sft_jax.evals.generation import UNDEFINED, Request
from sft_jax.evals.layout import Text
from sft_jax.evals.model import Subject
from sft_jax.evals.questions import Options, Question, Wanted
from sft_jax.utils.errors import UserError

Scores = dict[str, Any]
Record = dict[str, Any]
Graded = tuple[list[Record], list[Grade | None]]


class BenchmarkTask:
  """One benchmark, ready to be run on models of one tokenizer and window."""

  def __init__(self, wanted: Wanted, files: Files, options: Options):
    """Reads, chooses and tokenises the items.

    Raises:
      UserError: data that are missing or malformed; more shots than there are; a judge or leave to
        run programs that is needed and not there.
    """
    self.wanted, self.options = wanted, options
    self.reading: Choose | Generate = wanted.benchmark.readings[wanted.reading]
    items, pool = wanted.benchmark.read(files)
    chosen = subset.choose(
      items, seed=options.seed, macro=self.reading.macro, precision=options.precision
    ).items
    if options.limit and options.limit < len(chosen):
      first = subset.order(items, options.seed, self.reading.macro)[: options.limit]
      kept = {item.id for item in first}
      chosen = [item for item in items if item.id in kept]
    whole = collections.Counter(item.group for item in items)
    self.sizes = whole if len(chosen) < len(items) else None
    self.column, self._mark = questions.names_of(wanted, items, pool, len(chosen), options)
    self.questions = self._questions(chosen, pool)
    self.contaminated = options.seen([dict(i.fields) for i in chosen]) if options.seen else None
    self.headline: tuple[str, ...] = (self.column,)

  def _questions(self, items: Sequence[Item], pool: Sequence[Item]) -> list[Question]:
    return tokenised.questions_of(self.wanted, items, pool, self.options)

  def about(self) -> dict[str, Any]:
    """What must be equal where records are compared."""
    return {
      'task': self.wanted.name,
      'column': self.column,
      'version': self.wanted.benchmark.version,
      'prompt-hash': self.wanted.benchmark.prompt_hash[self.wanted.reading],
      'template': self.options.template,
      'measures': list(self.reading.measures),
      'percent': self.reading.percent,
      'macro': self.reading.macro,
    }

  def run(self, subject: Subject, answers: Answers) -> Scores:
    """Columns, and per-item records under `COLUMN-items`; of a single model.

    Args:
      subject: The model.
      answers: What it has answered before, and where new answers go.
    """
    (scores,) = self.run_all(subject, [answers])
    return scores

  def run_all(self, subject: Subject, answers: Sequence[Answers]) -> list[Scores]:
    """The same for each run of a subject."""
    return [self.scores(*found) for found in self.graded(subject, answers)]

  def graded(self, subject: Subject, answers: Sequence[Answers]) -> list[Graded]:
    """What `scores` takes, for each run of a subject; the same whatever it was trained on."""
    if isinstance(self.reading, Choose):
      return list(self._choose(subject, answers))
    return list(self._write(subject, answers))

  def taken_over(self, records: Sequence[Record]) -> Graded | None:
    """What `graded` gives, from the records of the same model; None if it was asked otherwise."""
    asked = [self._record(index, None) for index in range(len(self.questions))]
    same = len(records) == len(asked) and all(
      'scores' in record and all(record.get(key) == own[key] for key in own if key != 'missing')
      for record, own in zip(records, asked, strict=True)
    )
    if not same:
      return None
    plain = [{k: v for k, v in record.items() if k != 'contaminated'} for record in records]
    return plain, [Grade(r['scores'], r['extracted'], r.get('notes', {})) for r in plain]

  @property
  def one_by_one(self) -> bool:
    """Whether runs cannot be asked at once.

    Their answers are part of what they are asked next, or go to a judge, which each has of its own.
    """
    reading = self.reading
    if not isinstance(reading, Generate):
      return False
    turns = any(len(reading.turns(question.item)) for question in self.questions)
    return turns or bool(reading.judgments)

  def adapted(self, options: Options, contaminated: Sequence[bool] | None) -> 'BenchmarkTask':
    """The same questions for another run.

    Args:
      options: Those it was prepared with, but for services and what is contaminated.
      contaminated: Of each question, whether that run has seen it in training; None if nobody
        looked.
    """
    other = copy.copy(self)
    other.options, other.contaminated = options, contaminated
    return other

  def scores(self, records: Sequence[Record], grades: Sequence[Grade | None]) -> Scores:
    """Columns and per-item records of one run, from what `graded` gives; of a model that computes
    what is no number, that alone."""
    reading = self.reading
    if any(record.get('finish') == UNDEFINED or _has_nan(record) for record in records):
      # Any choice, or no answer, would pass for a low score.
      return {self.column: math.nan}
    if self.contaminated is not None:
      seen = zip(records, self.contaminated, strict=True)
      records = [record | {'contaminated': bool(flag)} for record, flag in seen]
    graded = [record['scores'] for record in records if 'scores' in record]
    # One that a judge gave for some items only has no mean over items; see `Generate.summary`.
    measures = [name for name in reading.measures if all(name in given for given in graded)]
    out: Scores = stats.columns(
      self.column, records, measures, reading.percent, reading.macro, self.sizes
    )
    out[f'{self.column}-version'] = self.wanted.benchmark.version
    if isinstance(reading, Generate) and reading.summary is not None:
      own = reading.summary([question.item for question in self.questions], grades)
      out |= {f'{name}{self._mark}': value for name, value in own.items()}
    return out | {f'{self.column}-items': records}

  def _record(self, index: int, grade: Grade | None) -> Record:
    question = self.questions[index]
    record: Record = {
      'id': question.item.id,
      'digest': _digest(question.item.fields),
      'prompt': prompts.raw_text(dataclasses.replace(question.prompt, shots=(), head='')),
      'group': question.item.group,
      'about': self.about(),
      'shots': question.shots,
      'cut': question.cut,
    }
    if grade is None or self.reading.measures[0] not in grade.scores:
      record['missing'] = True
    else:
      record |= {'scores': dict(grade.scores), 'extracted': grade.extracted}
    return record | ({'notes': dict(grade.notes)} if grade is not None and grade.notes else {})

  # Which of several continuations is likeliest.

  def _choose(
    self, subject: Subject, answers: Sequence[Answers]
  ) -> Iterator[tuple[list[Record], list[Grade | None]]]:
    assert isinstance(self.reading, Choose)
    nothing = np.array([prompts.beginning(self.options.tokenizer)], np.int32)
    pairs: list[tuple[np.ndarray, np.ndarray]] = []
    for question in self.questions:
      pairs += [(question.ids, continuation) for continuation in question.continuations]
      if self.reading.unconditional:
        pairs += [(nothing, continuation) for continuation in question.continuations]
    texts = [Text(np.concatenate([ids, more]), len(ids)) for ids, more in pairs]
    width, name = self.options.tokens_per_batch, self.wanted.name
    for found in scored(subject, texts, answers, width, name):
      at = 0
      records: list[Record] = []
      grades: list[Grade | None] = []
      for index, question in enumerate(self.questions):
        count = len(question.continuations)
        given = self._choices(question, found[at : at + count])
        at += count
        rest: tuple[Choices, ...] = ()
        if self.reading.unconditional:
          rest = (self._choices(question, found[at : at + count]),)
          at += count
        grade = self.reading.grade(question.item, given, *rest)
        grades.append(grade)
        logprobs = [round(float(value), 6) for value in given.logprobs]
        records.append(self._record(index, grade) | {'logprobs': logprobs})
      yield records, grades

  def _choices(self, question: Question, found: Sequence[tuple[float, bool]]) -> Choices:
    assert isinstance(self.reading, Choose)
    return Choices(
      list(self.reading.choices(question.item)),
      np.array([logprob for logprob, _ in found], np.float64),
      np.array([greedy for _, greedy in found]),
      np.array([len(ids) for ids in question.continuations]),
    )

  # What the model writes.

  def _write(
    self, subject: Subject, answers: Sequence[Answers]
  ) -> Iterator[tuple[list[Record], list[Grade | None]]]:
    reading = self.reading
    assert isinstance(reading, Generate)
    runs = max(subject.runs, 1)
    turns = [list(reading.turns(question.item)) for question in self.questions]
    written: list[list[list[Any]]] = [[[] for _ in self.questions] for _ in range(runs)]
    for turn in range(1 + max(map(len, turns), default=0)):
      asked = [i for i in range(len(self.questions)) if turn <= len(turns[i])]
      if turn == 0 or runs == 1:
        made = [self._request(i, turns[i][:turn], written[0][i]) for i in asked]
        requests = [request for request, _ in made]
        for run, outputs in enumerate(self._generate(subject, requests, answers)):
          for i, output, (_, cut) in zip(asked, outputs, made, strict=True):
            written[run][i].append({**output, 'cut': cut})
      else:
        raise UserError(
          'a benchmark of several turns is run on one model at a time',
          self.wanted.name,
          'evaluate the runs one by one',
        )
    for outputs in written:
      yield self._graded(outputs)

  def _graded(self, outputs: Sequence[list[Any] | None]) -> tuple[list[Record], list[Grade | None]]:
    """Records and grades of all questions, given what was written in the turns of each, or None."""
    reading = self.reading
    assert isinstance(reading, Generate)
    held = {index: given for index, given in enumerate(outputs) if given is not None}
    if any(one['finish'] == UNDEFINED for given in held.values() for one in given):
      nothing = [self._record(index, None) for index in range(len(outputs))]
      return [record | {'finish': UNDEFINED} for record in nothing], [None] * len(outputs)
    items = [self.questions[index].item for index in held]
    texts: list[Any] = [
      tuple(one['text'] for one in given) if len(given) > 1 else given[0]['text']
      for given in held.values()
    ]
    grades: Sequence[Grade | None]
    if reading.grade_all is not None:
      grades = reading.grade_all(texts, items, self.options.services)
    else:
      assert reading.grade is not None
      grades = [reading.grade(text, item) for text, item in zip(texts, items, strict=True)]
    everything: list[Grade | None] = [None] * len(outputs)
    records = [self._record(index, None) for index in range(len(outputs))]
    for (index, given), grade, text in zip(held.items(), grades, texts, strict=True):
      everything[index] = grade
      more = {
        'output': list(text) if isinstance(text, tuple) else text,
        'output-tokens': sum(one['tokens'] for one in given),
        'finish': given[-1]['finish'],
        'cut': any(one.get('cut', self.questions[index].cut) for one in given),
      }
      records[index] = self._record(index, grade) | more
    return records, everything

  def _request(
    self, index: int, turns: Sequence[str], before: Sequence[Mapping]
  ) -> tuple[Request, bool]:
    """The request for the next answer, after some turns that were answered; whether the window had
    no room for all of it."""
    reading, question = self.reading, self.questions[index]
    assert isinstance(reading, Generate)
    ids, cut = question.ids.tolist(), question.cut
    if turns:
      rounds = list(question.prompt.question)
      for answer, turn in zip(before, turns, strict=True):
        rounds += [Round('assistant', answer['text']), Round('user', turn)]
      longer = dataclasses.replace(question.prompt, question=tuple(rounds))
      ids = prompts.token_ids(longer, self.options.tokenizer, self.options.template)
      room = questions.room_to_write(reading, self.wanted, self.options)
      cut |= len(ids) > room
      ids = questions.shortened(ids, room)
    seed = int(_digest([self.options.seed, question.item.id, len(turns)]), 16) % 2**32
    temperature = reading.temperature(question.item)
    request = Request(
      tuple(ids),
      min(reading.most_new(self.wanted.shots), self.options.window - len(ids)),
      tuple(reading.stops(question.shots)),
      # A benchmark knows what settles its raw prompts; in a conversation no further question comes.
      reading.settled,
      temperature,
      seed if temperature else 0,
    )
    return request, cut

  def _generate(
    self, subject: Subject, requests: Sequence[Request], answers: Sequence[Answers]
  ) -> list[list[Any]]:
    """Answers of each run to each request, as JSON, from before or new."""
    options = self.options
    return written(
      subject,
      requests,
      answers,
      options.tokenizer,
      options.stop_ids,
      slots=options.slots,
      tokens_per_batch=options.tokens_per_batch,
      name=self.wanted.name,
    )


def _has_nan(record: Record) -> bool:
  return any(map(math.isnan, record.get('logprobs', ())))


def _digest(value: Any) -> str:
  text = json.dumps(value, ensure_ascii=False, sort_keys=True, default=str)
  return hashlib.sha256(text.encode()).hexdigest()[:12]

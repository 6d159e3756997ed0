"""A model behind an endpoint as the model to evaluate. It can only write: no log-likelihoods.

Questions are put to it as messages; its own template, window and tokenizer are the endpoint's
affair. So nothing is cut here, and tokens are guessed from characters (`chats.guess_tokens`).
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from sft_jax.evals import core, prompts, questions, suite
from sft_jax.evals.benchmark import Choose, Generate, Item
from sft_jax.evals.chats import Amount, Answer, Chat, Messages, Target, cost, guess_tokens
from sft_jax.evals.endpoint import Endpoint
from sft_jax.evals.questions import Question, Wanted
from sft_jax.utils.errors import UserError


@dataclasses.dataclass(frozen=True)
class Served:
  """What stands where other evaluations have a `Subject`.

  Attributes:
    endpoint: The model, with what it has answered before.
    check: Called before each turn; may raise to end an evaluation.
  """

  endpoint: Endpoint
  check: Callable[[], None] = lambda: None


class ServedTask(suite.BenchmarkTask):
  """A benchmark that an endpoint's model is asked; only of readings that let it write."""

  def _questions(self, items: Sequence[Item], pool: Sequence[Item]) -> list[Question]:
    shots, nothing = questions.shots_of(self.wanted, pool), np.zeros(0, np.int32)
    return [
      Question(
        item,
        len(shots(item)),
        False,
        functools.partial(self.reading.ask, item, shots(item)),
        nothing,
        (),
      )
      for item in items
    ]

  def run(self, subject: Any, answers: Any) -> suite.Scores:
    """See `BenchmarkTask.run`; of a `Served`, which keeps its answers itself."""
    subject.check()
    reading = self.reading
    assert isinstance(reading, Generate)
    found = converse(
      subject.endpoint,
      [prompts.messages(question.prompt) for question in self.questions],
      [list(reading.turns(question.item)) for question in self.questions],
      reading.most_new(self.wanted.shots),
      [reading.temperature(question.item) for question in self.questions],
      list(reading.stops(self.wanted.shots)),
      self.wanted.name,
    )
    written = [
      None
      if given is None
      else [
        {'text': one.text, 'tokens': guess_tokens(one.text), 'finish': one.finish} for one in given
      ]
      for given in found
    ]
    return self.scores(*self._graded(written))

  def most(self, subject: Served) -> Amount:
    """Requests and tokens that it costs at most, but for the error of `guess_tokens`.

    Questions whose first turn has been answered cost nothing, though a further turn may be open.
    """
    reading = self.reading
    assert isinstance(reading, Generate)
    total, most_new = Amount(), reading.most_new(self.wanted.shots)
    for question in self.questions:
      dialogue = prompts.messages(question.prompt)
      temperature = reading.temperature(question.item)
      stops = tuple(reading.stops(self.wanted.shots))
      if not subject.endpoint.estimate([Chat(dialogue, most_new, temperature, stops)]).requests:
        continue
      for turn in ('', *reading.turns(question.item)):
        if turn:
          dialogue = [*dialogue, {'role': 'user', 'content': turn}]
        total += cost(Chat(dialogue, most_new))
        # What it will have answered stands in the next request.
        if turn:
          total += Amount(0, most_new)
    return total


class Writer(core.Writer):
  """Answers of an endpoint's model to conversations."""

  def __init__(self, max_new: int):
    self.tokenizer, self.template, self.max_new = None, 'chat', max_new
    self.stop_ids = ()

  def answer(self, subject: Any, prompts: Sequence[Sequence[Mapping[str, str]]]) -> list[str]:
    """See `core.Writer.answer`.

    Raises:
      UserError: there is no answer to some after all tries.
    """
    nothing: list[list[str]] = [[] for _ in prompts]
    found = converse(subject.endpoint, prompts, nothing, self.max_new, [0.0] * len(prompts))
    answers = [given[0].text.strip() for given in found if given is not None]
    if len(answers) < len(found):
      what = f'{len(found) - len(answers)} of {len(found)} questions were not answered'
      raise UserError(what, subject.endpoint.target.url, 'start again to ask them again')
    return answers


def target(path: str, environment: Mapping[str, str]) -> Target | None:
  """The model of 'endpoint:MODEL@URL' (`config.model.path`); None for a path of another kind.

  Args:
    path: See above.
    environment: Where its key is, if it needs one: SFT_JAX_ENDPOINT_KEY.

  Raises:
    UserError: it begins like that and goes on otherwise; see `Target`.
  """
  if not path.startswith('endpoint:'):
    return None
  model, _, url = path.removeprefix('endpoint:').rpartition('@')
  if not model:
    raise UserError('no model and address', 'config.model.path', 'write endpoint:MODEL@URL')
  return Target(url, model, environment.get('SFT_JAX_ENDPOINT_KEY', ''))


def require_writing(names: Sequence[str], wanted: Sequence[Wanted]) -> None:
  """Refuses tasks that need more of a model than texts.

  Raises:
    UserError: there is one.
  """
  asked = [one.name for one in wanted if isinstance(one.benchmark.readings[one.reading], Choose)]
  asked += [name for name in names if name != 'builtin']
  if asked:
    raise UserError(
      f'{asked[0]} needs log-likelihoods or tokens, and an endpoint only writes',
      'config.eval.tasks',
      'name tasks that generate (NAME:gen, builtin)',
    )


def converse(
  endpoint: Endpoint,
  openings: Sequence[Messages],
  turns: Sequence[Sequence[str]],
  max_new: int,
  temperatures: Sequence[float],
  stops: Sequence[str] = (),
  name: str = '',
) -> list[tuple[Answer, ...] | None]:
  """Lets a served model answer conversations, turn by turn.

  Args:
    endpoint: The model.
    openings: Messages up to the first answer.
    turns: Further user turns of each, put after its own answers.
    max_new: Most new tokens of an answer.
    temperatures: Of each.
    stops: Answers are cut before the first of these.
    name: What progress is told under; the model's by default.

  Returns:
    The answers to each, or None where one is missing: what follows it was not asked.
  """
  dialogues = [list(opening) for opening in openings]
  missing: set[int] = set()
  answers: list[list[Answer]] = [[] for _ in openings]
  for turn in range(1 + max(map(len, turns), default=0)):
    asked = [i for i in range(len(openings)) if i not in missing and turn <= len(turns[i])]
    for i in asked:
      if turn:
        dialogues[i].append({'role': 'user', 'content': turns[i][turn - 1]})
    chats = [Chat(tuple(dialogues[i]), max_new, temperatures[i], tuple(stops)) for i in asked]
    told = f'{name}, turn {turn + 1}' if name and turn else name
    for i, answer in zip(asked, endpoint.complete(chats, told), strict=True):
      if answer is None:
        missing.add(i)
        continue
      # Endpoints take four stops only.
      text = min((answer.text.split(stop, 1)[0] for stop in stops), key=len, default=answer.text)
      answers[i].append(answer._replace(text=text))
      dialogues[i].append({'role': 'assistant', 'content': text})
  return [None if i in missing else tuple(given) for i, given in enumerate(answers)]

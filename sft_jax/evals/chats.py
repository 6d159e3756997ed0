"""Requests to a chat model, its address, their answers, what they cost, and what keeps them.

Not for sending them: see `endpoint.py`.
"""

import dataclasses
import json
import math
import os
import pathlib
import re
import time
import urllib.parse
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from sft_jax.utils import io, words
from sft_jax.utils.errors import UserError

Messages = Sequence[Mapping[str, str]]

_FLUSH_ANSWERS, _FLUSH_S = 16, 5.0


@dataclasses.dataclass(frozen=True)
class Target:
  """A model behind an OpenAI-compatible endpoint.

  Attributes:
    url: Base address, up to and without `/chat/completions`: 'https://api.openai.com/v1'.
    model: Name of the model there.
    key: Sent as a bearer token; '' sends none.
    given_in: Where address, model and key were given, for messages.
    budget: Key below `config.eval` that says what it may cost, for messages.

  Raises:
    UserError: no plain http address (without user, password or query), no model, or a key that
      cannot be sent.
  """

  url: str
  model: str
  key: str = dataclasses.field(default='', repr=False)
  given_in: tuple[str, str, str] = (
    'config.model.path',
    'config.model.path',
    'SFT_JAX_ENDPOINT_KEY',
  )
  budget: str = 'endpoint_budget'

  def __post_init__(self) -> None:
    url = self.url.strip().rstrip('/').removesuffix('/chat/completions')
    # It is told to people, so no user, password or query may be in it.
    try:
      port_fits = urllib.parse.urlsplit(url).port != 0
    except ValueError:
      port_fits = False
    if not (port_fits and re.fullmatch(r'https?://[\w.:\[\]-]+(/[!->A-~]*)?', url, re.ASCII)):
      how = "give one such as 'https://HOST/v1', and the key by itself"
      raise UserError('no plain http address', self.given_in[0], how)
    if not self.model.strip():
      raise UserError('no name of a model', self.given_in[1], 'name one of the endpoint')
    key = self.key.strip()
    if not (key.isascii() and key.isprintable()):
      raise UserError('not printable ASCII characters', self.given_in[2], 'check its value')
    for name, value in (('url', url), ('model', self.model.strip()), ('key', key)):
      object.__setattr__(self, name, value)


@dataclasses.dataclass(frozen=True)
class Chat:
  """One request.

  Attributes:
    messages: `role` and `content`, ending with the user's.
    max_tokens: Most new tokens.
    temperature: 0 for greedy.
    stops: Texts the answer ends before; endpoints take at most four.
    top: Ask for the log-probabilities of that many likeliest first tokens; 0 asks for none.
  """

  messages: Messages
  max_tokens: int
  temperature: float = 0.0
  stops: tuple[str, ...] = ()
  top: int = 0

  def body(self, model: str) -> dict[str, Any]:
    """The request as the endpoint takes it."""
    messages = [{'role': part['role'], 'content': part['content']} for part in self.messages]
    body: dict[str, Any] = {
      'model': model,
      'messages': messages,
      'max_tokens': self.max_tokens,
      'temperature': self.temperature,
    }
    if self.stops:
      body['stop'] = list(self.stops[:4])
    if self.top:
      body |= {'logprobs': True, 'top_logprobs': self.top}
    return body


class Answer(NamedTuple):
  """What came back; `top` holds {first token: log-probability} where it was asked for and given."""

  text: str
  top: Mapping[str, float] | None = None
  finish: str = ''


@dataclasses.dataclass(frozen=True)
class Amount:
  """Requests and tokens (in and out), spent or allowed."""

  requests: float = 0
  tokens: float = 0

  def __add__(self, other: 'Amount') -> 'Amount':
    return Amount(self.requests + other.requests, self.tokens + other.tokens)

  def within(self, budget: 'Amount') -> bool:
    """Whether neither is above the budget."""
    return self.requests <= budget.requests and self.tokens <= budget.tokens

  def __str__(self) -> str:
    parts = ((self.requests, 'request'), (self.tokens, 'token'))
    return ' and '.join(words.count(round(n), what) for n, what in parts if n < math.inf)


UNLIMITED = Amount(math.inf, math.inf)


def parse_budget(text: str, where: str = 'config.eval.judge_budget') -> Amount:
  """'200 requests', '3e6 tokens', both with a comma between; '' for no limit.

  Raises:
    UserError: it is none of these.
  """
  limits = {'requests': math.inf, 'tokens': math.inf}
  for part in filter(None, (part.strip() for part in text.split(','))):
    match = re.fullmatch(r'([\d_]+(?:\.\d+)?(?:[eE]\d+)?)\s*(requests|tokens)', part)
    if match is None:
      raise UserError(f'{part!r} is no budget', where, "write '200 requests' or '3e6 tokens'")
    limits[match[2]] = float(match[1])
  return Amount(**limits)


def guess_tokens(text: str) -> int:
  """Tokens of a text, from its characters: four of ASCII make one, any other is one."""
  plain = sum(character < '\x80' for character in text)
  return math.ceil(plain / 4) + len(text) - plain


def cost(chat: Chat) -> Amount:
  """What a request costs at most, but for the error of `guess_tokens`."""
  tokens = sum(4 + guess_tokens(part['content']) for part in chat.messages)
  return Amount(1, tokens + chat.max_tokens)


def read_reply(data: bytes, allow_empty: bool) -> tuple[Answer | str, int]:
  """The answer in an endpoint's reply, or why there is none; and the tokens used, if it says so.

  Args:
    data: The body.
    allow_empty: Whether an empty text is an answer.
  """
  try:
    reply = json.loads(data)
  except (ValueError, RecursionError):
    return 'not JSON', 0
  try:
    choice = reply['choices'][0]
    text = choice['message']['content']
    finish = _clean(str(choice.get('finish_reason') or ''))
  except (LookupError, TypeError, AttributeError):
    return 'no choices', 0
  try:
    used = max(0, int(reply['usage']['total_tokens']))
  except (LookupError, TypeError, ValueError, OverflowError):
    used = 0
  if not isinstance(text, str) or not (allow_empty or text.strip()):
    return 'empty', used
  try:
    first = choice['logprobs']['content'][0]['top_logprobs']
    told = [(str(entry['token']), float(entry['logprob'])) for entry in first]
    # The logarithm of a probability: NaN and infinity, which JSON may hold, tell nothing.
    top = {token: logprob for token, logprob in told if logprob < math.inf}
  except (LookupError, TypeError, ValueError, OverflowError):
    top = None
  return Answer(_clean(text), top, finish), used


def _clean(text: str) -> str:
  """The text without halves of surrogate pairs, which JSON may hold and no file can."""
  return text.encode('utf-8', 'replace').decode()


class Cache:
  """Answers by request, in a file of JSON lines that is only ever appended to.

  Several processes may share it. A line that was cut off is skipped: its request is asked again.

  Args:
    path: A local file, made with the first answer; '' keeps the answers in memory only.

  Raises:
    UserError: the path is remote (an object store has no append) or cannot be read.
  """

  def __init__(self, path: str | os.PathLike = ''):
    if path and io.is_remote(path):
      raise UserError('answers are kept in a local file', str(path), 'choose a local directory')
    self._path = pathlib.Path(path) if path else None
    self._answers: dict[str, Answer] = {}
    self._unsaved: list[str] = []
    self._saved_at = time.monotonic()
    if self._path is not None and self._path.exists():
      with io.explain_unreadable(self._path):
        lines = self._path.read_bytes().splitlines()
      for line in lines:
        try:
          row = json.loads(line)
          self._answers[row['request']] = Answer(row['text'], row['top'], row['finish'])
        except (ValueError, KeyError, TypeError):
          continue

  def __contains__(self, request: str) -> bool:
    return request in self._answers

  def __len__(self) -> int:
    return len(self._answers)

  def get(self, request: str) -> Answer | None:
    """The answer, or None."""
    return self._answers.get(request)

  def put(self, request: str, answer: Answer) -> None:
    """Keeps an answer; it is written with some others, at the latest by `flush`."""
    self._answers[request] = answer
    self._unsaved.append(json.dumps({'request': request, **answer._asdict()}) + '\n')
    waited = time.monotonic() - self._saved_at
    if len(self._unsaved) >= _FLUSH_ANSWERS or waited > _FLUSH_S:
      self.flush()

  def flush(self) -> None:
    """Writes what is not written yet.

    Raises:
      UserError: full disk, no permission.
    """
    self._saved_at = time.monotonic()
    if self._path is None or not self._unsaved:
      return
    with io.explain_os_errors(self._path):
      self._path.parent.mkdir(parents=True, exist_ok=True)
      with open(self._path, 'ab+') as f:
        torn = False
        if f.tell():
          f.seek(-1, os.SEEK_END)
          torn = f.read(1) != b'\n'
        # One write: lines of other processes cannot come between.
        f.write((('\n' if torn else '') + ''.join(self._unsaved)).encode())
    self._unsaved.clear()

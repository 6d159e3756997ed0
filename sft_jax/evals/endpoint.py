"""A client for OpenAI-compatible chat-completions endpoints, for judges and served models.

Every answer is kept by its request, so an interrupted or repeated evaluation asks nothing twice.
Requests and tokens have a budget. The key is in no log, error, cache or representation. Not for
what is asked: see `judge.py`, `served.py`.
"""

import collections
import dataclasses
import email.utils
import hashlib
import http.client
import json
import queue
import random
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from sft_jax.evals.chats import (
  UNLIMITED,
  Amount,
  Answer,
  Cache,
  Chat,
  Target,
  cost,
  guess_tokens,
  read_reply,
)
from sft_jax.utils import log, words
from sft_jax.utils.errors import UserError

_RETRIED = (408, 409, 425, 429)
_LONGEST_WAIT_S = 60.0  # Between two tries, unless Retry-After says more.
_LONGEST_RETRY_AFTER_S = 600.0
_GIVE_UP_AFTER = 16  # Requests in a row without an answer after all their tries.
_GRACE_S = 5.0  # For answers under way when an evaluation is stopped: they are paid for.
_MOST_BYTES = 1 << 24
_SECRET = 12  # Characters of a key that is one, and not a placeholder such as 'EMPTY'.


class _Missed(NamedTuple):
  """Why there is no answer; `again`: it may come yet, after `wait` seconds at least."""

  why: str
  again: bool = True
  wait: float = 0.0


class _NoRedirects(urllib.request.HTTPRedirectHandler):
  """A redirect would carry the key to another host."""

  def redirect_request(self, *_: Any) -> None:
    return None


class Endpoint:
  """One model behind an endpoint.

  Attributes:
    target, model: Which.
    unanswered: Requests so far that got no answer after all tries.

  Args:
    target: Which.
    cache: Where answers are kept.
    budget: Most that this object may spend.
    allow_empty: Whether an empty text is an answer: a model's own may be, a judge's is none.
    concurrency: Requests under way at once.
    timeout_s: For one try, from first to last byte.
    tries: Per request.
    backoff_s: Before the second try; doubled for each further one.
    check: Called often while waiting; may raise to stop.
  """

  def __init__(
    self,
    target: Target,
    *,
    cache: Cache | None = None,
    budget: Amount = UNLIMITED,
    allow_empty: bool = False,
    concurrency: int = 8,
    timeout_s: float = 120.0,
    tries: int = 6,
    backoff_s: float = 1.0,
    check: Callable[[], None] = lambda: None,
  ):
    self.target, self.model, self.unanswered = target, target.model, 0
    self._cache = cache if cache is not None else Cache()
    self._budget, self._allow_empty = budget, allow_empty
    self._concurrency, self._timeout_s = concurrency, timeout_s
    self._tries, self._backoff_s, self._check = tries, backoff_s, check
    self._lock = threading.Lock()
    self._spent = Amount()
    self._open_at = 0.0  # Nothing is sent before: the endpoint asked for patience.
    self._gives_top = True
    handlers: list[Any] = [_NoRedirects()]
    if urllib.parse.urlsplit(self.target.url).hostname in ('127.0.0.1', 'localhost', '::1'):
      handlers.append(urllib.request.ProxyHandler({}))
    self._opener = urllib.request.build_opener(*handlers)

  @property
  def spent(self) -> Amount:
    """Requests sent (each try counts) and tokens, as reported or guessed."""
    return self._spent

  def estimate(self, chats: Sequence[Chat]) -> Amount:
    """What `complete` would spend at most, were each answered at once."""
    return sum((cost(chat) for chat in self._open(chats).values()), Amount())

  def afford(self, amount: Amount) -> None:
    """Refuses what is above what is left of the budget.

    Raises:
      UserError: it is.
    """
    if not (self._spent + amount).within(self._budget):
      spent = f'; {self._spent} are spent' if self._spent.requests else ''
      raise UserError(
        f'{self.model} would cost up to {amount}, the budget is {self._budget}{spent}',
        f'config.eval.{self.target.budget}',
        'raise the budget or take fewer items (config.eval.limit)',
      )

  def complete(self, chats: Sequence[Chat]) -> list[Answer | None]:
    """Answers in the order asked; None where there was none after all tries.

    Raises:
      UserError: the budget does not allow it or is spent; the key, model or address is refused.
        Answers had by then are kept.
    """
    wanted = self._open(chats)
    if wanted:
      amount = self.estimate(chats)
      self.afford(amount)
      known = words.count(len(chats) - len(wanted), 'answer')
      log.say(f'{self.model}: {amount} at most, {known} at hand')
      missed = self._fetch(wanted)
      if missed:
        why = ', '.join(f'{reason}: {count}' for reason, count in missed.most_common())
        log.warn(f'{self.model}: {missed.total()} of {len(wanted)} not answered ({why})')
    answers = [self._cache.get(self._id(chat)) for chat in chats]
    self.unanswered += sum(answer is None for answer in answers)
    return answers

  def _id(self, chat: Chat) -> str:
    text = json.dumps([self.target.url, chat.body(self.model)], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()

  def _open(self, chats: Sequence[Chat]) -> dict[str, Chat]:
    """Requests without an answer, each once."""
    named = {self._id(chat): chat for chat in chats}
    return {name: chat for name, chat in named.items() if name not in self._cache}

  def _fetch(self, wanted: Mapping[str, Chat]) -> collections.Counter[str]:
    """Asks for answers and keeps them; returns why some are missing."""
    todo: queue.SimpleQueue[tuple[str, Chat]] = queue.SimpleQueue()
    for named in wanted.items():
      todo.put(named)
    done: queue.SimpleQueue[tuple[str, Answer | _Missed | Exception]] = queue.SimpleQueue()
    stop = threading.Event()
    # Not an executor: the interpreter would wait for its threads, after a signal too.
    threads = [
      threading.Thread(target=self._work, args=(todo, done, stop), daemon=True)
      for _ in range(min(self._concurrency, len(wanted)))
    ]
    for thread in threads:
      thread.start()
    missed: collections.Counter[str] = collections.Counter()
    left, in_a_row = len(wanted), 0
    try:
      while left:
        self._check()
        try:
          request, outcome = done.get(timeout=0.1)
        except queue.Empty:
          continue
        left -= 1
        if isinstance(outcome, Exception):
          raise outcome
        if isinstance(outcome, Answer):
          in_a_row = 0
          self._cache.put(request, outcome)
          continue
        missed[outcome.why] += 1
        in_a_row += outcome.again
        if in_a_row >= _GIVE_UP_AFTER:
          break
    finally:
      stop.set()
      deadline = time.monotonic() + _GRACE_S
      while any(thread.is_alive() for thread in threads) and time.monotonic() < deadline:
        time.sleep(0.01)
      while not done.empty():
        request, outcome = done.get()
        if isinstance(outcome, Answer):
          self._cache.put(request, outcome)
      self._cache.flush()
    rest = sum(request not in self._cache for request in wanted) - missed.total()
    if rest:
      missed['given up, nothing answers'] = rest
    return missed

  def _work(
    self,
    todo: queue.SimpleQueue[tuple[str, Chat]],
    done: queue.SimpleQueue[tuple[str, Answer | _Missed | Exception]],
    stop: threading.Event,
  ) -> None:
    """One of the threads: takes requests until there are none or it is told to stop."""
    while not stop.is_set():
      try:
        request, chat = todo.get_nowait()
      except queue.Empty:
        return
      try:
        done.put((request, self._ask(chat, stop)))
      except Exception as e:
        stop.set()  # What ends it for one ends it for all.
        done.put((request, e))

  def _ask(self, chat: Chat, stop: threading.Event) -> Answer | _Missed:
    """All tries of one request."""
    missed = _Missed('stopped')
    top = chat.top if self._gives_top else 0
    for attempt in range(self._tries):
      if attempt:
        pause = min(self._backoff_s * 2 ** (attempt - 1), _LONGEST_WAIT_S)
        # Not all at the same moment again.
        stop.wait(pause * random.uniform(0.5, 1.0))
      while (wait := self._open_at - time.monotonic()) > 0 and not stop.is_set():
        stop.wait(wait)
      if stop.is_set():
        return missed
      outcome = self._try(dataclasses.replace(chat, top=top))
      if isinstance(outcome, Answer):
        self._gives_top = self._gives_top and top == chat.top
        return outcome
      missed = outcome
      if not missed.again:
        if not top:
          return missed
        top = 0  # Not every endpoint takes `top_logprobs`; without there may be an answer.
      if missed.wait > _LONGEST_RETRY_AFTER_S:
        return missed
      with self._lock:
        self._open_at = max(self._open_at, time.monotonic() + missed.wait)
    return missed

  def _try(self, chat: Chat) -> Answer | _Missed:
    """One try, within the budget: the most it can cost is set aside, then what it did cost."""
    most = cost(chat)
    with self._lock:
      if not (self._spent + most).within(self._budget):
        raise UserError(
          f'the budget of {self._budget} for {self.model} is spent ({self._spent})',
          f'config.eval.{self.target.budget}',
          'raise the budget and start again: the answers so far are kept',
        )
      self._spent += most
    tokens = int(most.tokens) - chat.max_tokens
    try:
      outcome, used = self._post(chat)
      if isinstance(outcome, Answer) and not used:
        used = tokens + guess_tokens(outcome.text)
      tokens = used or tokens
      return outcome
    finally:
      with self._lock:
        self._spent += Amount(0, tokens - most.tokens)

  def _post(self, chat: Chat) -> tuple[Answer | _Missed, int]:
    """Sends a request; returns the outcome, and the tokens that the endpoint says were used."""
    headers = {'Content-Type': 'application/json', 'User-Agent': 'sft_jax'}
    if self.target.key:
      headers['Authorization'] = f'Bearer {self.target.key}'
    request = urllib.request.Request(
      f'{self.target.url}/chat/completions', json.dumps(chat.body(self.model)).encode(), headers
    )
    deadline = time.monotonic() + self._timeout_s
    try:
      with self._opener.open(request, timeout=self._timeout_s) as response:
        data = _read(response, deadline)
    except urllib.error.HTTPError as e:
      with e:
        return self._refused(e.code, e.headers), 0
    # Only the kind of an error is told: its text may hold what was sent.
    except urllib.error.URLError as e:
      reason = e.reason
      return _Missed(type(reason).__name__ if isinstance(reason, Exception) else 'URLError'), 0
    except (OSError, http.client.HTTPException) as e:
      return _Missed(type(e).__name__), 0
    if len(self.target.key) >= _SECRET:
      data = data.replace(self.target.key.encode(), b'[key]')
    answer, used = read_reply(data, self._allow_empty)
    return (_Missed(answer) if isinstance(answer, str) else answer), used

  def _refused(self, status: int, headers: Any) -> _Missed:
    """What an HTTP status other than success means."""
    of_url, _, of_key = self.target.given_in
    if status in (401, 403):
      raise UserError(f'the key is refused (HTTP {status})', self.target.url, f'mend {of_key}')
    if status == 404 or status < 400:
      raise UserError(
        f'no chat completions for {self.model!r} here (HTTP {status})',
        self.target.url,
        f'mend {of_url} (an address up to and without /chat/completions) or the model',
      )
    if status >= 500 or status in _RETRIED:
      return _Missed(f'HTTP {status}', wait=_retry_after(headers.get('Retry-After')))
    return _Missed(f'HTTP {status}', again=False)


def _read(response: Any, deadline: float) -> bytes:
  """The whole body, which may come in drops but not for ever.

  Raises:
    TimeoutError: it does not end in time.
    HTTPException: it does not end at all.
  """
  parts, size = [], 0
  while part := response.read1(1 << 16):
    parts.append(part)
    size += len(part)
    if time.monotonic() > deadline:
      raise TimeoutError
    if size > _MOST_BYTES:
      raise http.client.HTTPException
  return b''.join(parts)


def _retry_after(value: str | None) -> float:
  """Seconds to wait, given as seconds or as a date; 0 for none."""
  try:
    return max(0.0, float(value or 0))
  except ValueError:
    pass
  try:
    return max(0.0, email.utils.parsedate_to_datetime(value or '').timestamp() - time.time())
  except ValueError:
    return 0.0

"""A client for OpenAI-compatible chat-completions endpoints, for judges and served models.

Every answer is kept by its request, so an interrupted or repeated evaluation asks nothing twice.
Requests and tokens have a budget. The key is in no log, error, cache or representation. Not for
what is asked: see `judge.py`, `served.py`.
"""

import collections
import dataclasses
import hashlib
import json
import queue
import random
import threading
import time
from collections.abc import Callable, Mapping, Sequence

from sft_jax.evals import progress
from sft_jax.evals.chats import UNLIMITED, Amount, Answer, Cache, Chat, Target, cost, guess_tokens
from sft_jax.evals.posting import Missed, Sender
from sft_jax.utils import log, words
from sft_jax.utils.errors import UserError

_LONGEST_WAIT_S = 60.0  # Between two tries, unless Retry-After says more.
_LONGEST_RETRY_AFTER_S = 600.0
_GIVE_UP_AFTER = 16  # Requests in a row without an answer after all their tries.
_GRACE_S = 5.0  # For answers under way when an evaluation is stopped: they are paid for.


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
    self._budget, self._concurrency = budget, concurrency
    self._tries, self._backoff_s, self._check = tries, backoff_s, check
    self._lock = threading.Lock()
    self._spent = Amount()
    self._open_at = 0.0  # Nothing is sent before: the endpoint asked for patience.
    self._gives_top = True
    self._sender = Sender(target, allow_empty, timeout_s)

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

  def complete(self, chats: Sequence[Chat], name: str = '') -> list[Answer | None]:
    """Answers in the order asked; None where there was none after all tries.

    Args:
      chats: Requests.
      name: What progress is told under; the model's by default.

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
      missed = self._fetch(wanted, progress.Asked(name or self.model, len(wanted)))
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

  def _fetch(self, wanted: Mapping[str, Chat], asked: progress.Asked) -> collections.Counter[str]:
    """Asks for answers and keeps them; returns why some are missing."""
    todo: queue.SimpleQueue[tuple[str, Chat]] = queue.SimpleQueue()
    for named in wanted.items():
      todo.put(named)
    done: queue.SimpleQueue[tuple[str, Answer | Missed | Exception]] = queue.SimpleQueue()
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
        asked.tell()
        try:
          request, outcome = done.get(timeout=0.1)
        except queue.Empty:
          continue
        left -= 1
        if isinstance(outcome, Exception):
          raise outcome
        if isinstance(outcome, Answer):
          in_a_row = 0
          asked.add(1)
          self._cache.put(request, outcome)
          continue
        missed[outcome.why] += 1
        in_a_row += outcome.again
        if in_a_row >= _GIVE_UP_AFTER:
          break
    finally:
      asked.close()
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
    done: queue.SimpleQueue[tuple[str, Answer | Missed | Exception]],
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

  def _ask(self, chat: Chat, stop: threading.Event) -> Answer | Missed:
    """All tries of one request."""
    missed = Missed('stopped')
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

  def _try(self, chat: Chat) -> Answer | Missed:
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
      outcome, used = self._sender.send(chat.body(self.model))
      if isinstance(outcome, Answer) and not used:
        used = tokens + guess_tokens(outcome.text)
      tokens = used or tokens
      return outcome
    finally:
      with self._lock:
        self._spent += Amount(0, tokens - most.tokens)

"""The generation engine: continuous batching in fixed slots under jit.

A slot that has finished is given the next prompt while the others go on. Prompts that begin alike
share the keys and values of their beginning, which are never copied. The host looks at the text
every few steps: a stop string may sit inside a token, and a task may know that its answer can no
longer change. A request's tokens do not depend on its neighbours, beyond rounding: random numbers
are drawn from its own seed and the position. Dimension letters: see `models/decoder.py`.
"""

import collections
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from sft_jax.data import pack
from sft_jax.evals import layout, loglik, slots
from sft_jax.evals.caches import FEWEST, Caches
from sft_jax.evals.model import Subject
from sft_jax.evals.slots import NO_NUMBER
from sft_jax.models import export

# Steps between two looks at the text.
_STEPS = 8
# Of the caches of all slots of a run together.
CACHE_TOKENS = 65536
# Tokens that a row of new prompts has room for, at the least. With 16, a CPU spends a tenth less
# time on questions as short as NQ-open's, and compiles twice as many programs.
NARROWEST = 32
# How a text finished whose model computes what is no number.
UNDEFINED = 'undefined'


@dataclasses.dataclass(frozen=True)
class Request:
  """One prompt to go on from.

  Attributes:
    prompt: Token ids, at least one.
    max_new: Most new tokens.
    stops: The text ends before the first of these.
    settled: Whether nothing that may follow a text matters any more.
    temperature: 0 for the likeliest token each time.
    seed: Of the random numbers, where the temperature is not 0.
  """

  prompt: Sequence[int]
  max_new: int
  stops: tuple[str, ...] = ()
  settled: Callable[[str], bool] | None = None
  temperature: float = 0.0
  seed: int = 0


@dataclasses.dataclass(frozen=True)
class Output:
  """What was written.

  Attributes:
    text: Without what ended it.
    ids: New tokens, without the token that ended them; what stands after a stop string is here.
    finish: 'end' (a stop token), 'stop' (a stop string), 'settled', 'length', or 'undefined' (the
      model computed what is no number: nobody's answer).
  """

  text: str
  ids: tuple[int, ...]
  finish: str


def detokenizer(tokenizer: Any) -> Callable[[Sequence[int], Sequence[int]], str]:
  """Prompt ids and new ids to the text of the new ones alone, as lm-eval's models give it."""

  def text(prompt: Sequence[int], new: Sequence[int]) -> str:
    return tokenizer.decode(list(new), skip_special_tokens=True, clean_up_tokenization_spaces=False)

  return text


class Engine:
  """Generates for one subject.

  Attributes:
    subject: The model, or R runs at once.
    detokenize: Prompt ids and new ids to the new text.
    stop_ids: Tokens that end any text.
    slots: Most texts at once (of each run).
    cache_tokens: Most tokens in the caches of all slots of a run together.
    tokens_per_batch: Most tokens of prompts that are run at once.
    ahead: Whether tokens may be begun before those before them are read.
  """

  def __init__(
    self,
    subject: Subject,
    detokenize: Callable[[Sequence[int], Sequence[int]], str],
    stop_ids: Sequence[int],
    *,
    slots: int = 32,
    cache_tokens: int = CACHE_TOKENS,
    tokens_per_batch: int = 4096,
  ):
    self.subject, self.detokenize = subject, detokenize
    self.stop_ids = np.asarray(sorted(stop_ids) or [-2], np.int32)
    self.slots, self.cache_tokens, self.tokens_per_batch = slots, cache_tokens, tokens_per_batch
    self.runs = max(subject.runs, 1)
    self.platform = subject.mesh.devices.flat[0].platform
    # A CPU has nothing to do meanwhile that it does not do itself.
    self.ahead = self.platform != 'cpu'

  def generate(
    self,
    requests: Sequence[Request],
    done: Callable[[int, int, Output], None] = lambda run, index, output: None,
  ) -> list[list[Output]]:
    """Outputs of each run for each request, in order.

    Args:
      requests: What to go on from; with several runs all get the same.
      done: Called with run, index of the request and output as soon as it is there.
    """
    outputs: list[list[Any]] = [[None] * len(requests) for _ in range(self.runs)]

    def finish(run: int, index: int, output: Output) -> None:
      outputs[run][index] = output
      done(run, index, output)

    for prefix, indices, own in self._waves(requests):
      _Wave(self, requests, prefix, indices, own, finish).work()
    return outputs

  def _waves(self, requests: Sequence[Request]) -> list[tuple[np.ndarray, list[int], int]]:
    """Beginnings, the requests that go on from each, longest first, and slots of their own."""
    prompts = [np.asarray(request.prompt, np.int32) for request in requests]
    shares = self.subject.model.sharing == 'beginnings'
    everything = [(np.zeros(0, np.int32), list(range(len(requests))))] if requests else []
    groups = layout.beginnings(prompts) if shares else everything
    waves = []
    for prefix, members in groups:
      need = {i: len(prompts[i]) - len(prefix) + requests[i].max_new for i in members}
      by_size: dict[int, list[int]] = {}
      for _, i in sorted((-size, i) for i, size in need.items()):
        # What shares a beginning is worth being kept together, whatever its size.
        size = 0 if len(prefix) else layout.width_class(need[i], 256)
        by_size.setdefault(size, []).append(i)
      for indices in by_size.values():
        waves.append((prefix, indices, pack.round_up(need[indices[0]], 128)))
    return waves


class _Wave:
  """Requests that go on from one beginning, in slots of one size."""

  def __init__(
    self,
    engine: Engine,
    requests: Sequence[Request],
    prefix: np.ndarray,
    indices: Sequence[int],
    own: int,
    finish: Callable[[int, int, Output], None],
  ):
    self.engine, self.requests, self.finish = engine, requests, finish
    subject = self.subject = engine.subject
    self.seen = len(prefix)
    # What is multiplied by one vector XLA casts whole on a GPU: the head of an 8B, for each token.
    count = FEWEST if engine.platform == 'gpu' else 1
    while count < len(indices):
      count *= 2
    count = min(count, engine.slots, max(1, engine.cache_tokens // own))
    self.count, self.own = pack.round_up(count, subject.shards), own
    self.queues = [collections.deque(indices) for _ in range(engine.runs)]
    # Of each run and slot: the request it is at work on, or None, and its new tokens.
    self.at: list[list[int | None]] = [[None] * self.count for _ in range(engine.runs)]
    self.ids: list[list[list[int]]] = [[[] for _ in range(self.count)] for _ in range(engine.runs)]
    self.prefix = None
    self.sampled = any(requests[i].temperature > 0 for i in indices)
    self.steps = min(_STEPS, max(requests[i].max_new for i in indices))
    if self.seen:
      self.prefix = loglik.prefill(subject, [prefix], loglik.prefix_slots(self.seen))

  def work(self) -> None:
    """Until every request of every run is done."""
    batches = self._admissions()
    caches = Caches(self.subject, self.count, self.own)
    while batches or self._busy():
      self.subject.check()
      for new in batches:
        caches.grow(new['tokens'].shape[-1])
        first = self._call(slots.admit, caches, new=self._lead(new))
        self._take(first, new['slot'])
      if self._busy():
        caches.grow(self._longest() + self.steps)
        if not any(self.queues):
          self._close_up(caches)
        self._go_on(caches)
      batches = self._admissions()

  def _go_on(self, caches: Caches) -> None:
    """A few tokens for each text; while no prompt waits, more are begun before these are read."""
    tokens = self._advance(caches)
    while self.engine.ahead and not any(self.queues) and self._worth_more():
      caches.grow(self._longest() + 2 * self.steps)
      ahead = self._advance(caches)
      self._take(tokens, None)
      tokens = ahead
      self.subject.check()
    self._take(tokens, None)

  def _worth_more(self) -> bool:
    """Whether texts go on after the tokens that are on their way, in most slots."""
    left = max((self.requests[at].max_new - len(ids) for at, ids in self._texts()), default=0)
    return left > self.steps and (2 * self._busy() > self.count or self.count <= FEWEST)

  def _advance(self, caches: Caches) -> Any:
    alive = np.array([[at is not None for at in run] for run in self.at])
    alive = alive if self.subject.runs else alive[0]
    more = {'stop_ids': self.engine.stop_ids, 'steps': self.steps}
    return self._call(slots.advance, caches, alive=alive, **more)

  def _texts(self) -> Iterator[tuple[int, list[int]]]:
    """Requests at work and what has been written of them."""
    for run, texts in zip(self.at, self.ids, strict=True):
      yield from ((at, ids) for at, ids in zip(run, texts, strict=True) if at is not None)

  def _busy(self) -> int:
    """Most texts of a run that are at work."""
    return max(sum(at is not None for at in run) for run in self.at)

  def _longest(self) -> int:
    """Most tokens of its own that a text has."""
    return max(len(self.requests[at].prompt) - self.seen + len(ids) for at, ids in self._texts())

  def _close_up(self, caches: Caches) -> None:
    """Lets go of slots that no prompt will come to."""
    order = [sorted(range(self.count), key=lambda slot: run[slot] is None) for run in self.at]
    chosen = caches.narrow(order, self._busy())
    self.at = [[run[slot] for slot in row] for run, row in zip(self.at, chosen, strict=True)]
    self.ids = [[run[slot] for slot in row] for run, row in zip(self.ids, chosen, strict=True)]
    self.count = caches.count

  def _call(self, fn: Callable[..., Any], caches: Caches, **what: Any) -> Any:
    """Tokens `[R?,...]` that a program of `slots` gives, not waited for."""
    subject = self.subject
    caches.cache, caches.state, tokens = fn(
      subject.model,
      subject.params,
      cache=caches.cache,
      state=caches.state,
      prefix=self.prefix,
      runs=subject.runs,
      sampled=self.sampled,
      **what,
    )
    return tokens

  def _lead(self, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Without the run axis where the model has none."""
    return arrays if self.subject.runs else {name: array[0] for name, array in arrays.items()}

  def _admissions(self) -> list[dict[str, np.ndarray]]:
    """Batches of prompts for slots that are free, of few shapes; slots are marked as taken."""
    free = [[s for s, at in enumerate(run) if at is None] for run in self.at]
    wanted = [min(len(f), len(q)) for f, q in zip(free, self.queues, strict=True)]
    busy = any(at is not None for run in self.at for at in run)
    # A single free slot waits a little for company, unless the queue ends.
    if not any(wanted) or (busy and max(wanted) < min(self.count // 8, *map(len, self.queues))):
      return []
    taken = [[q.popleft() for _ in range(n)] for q, n in zip(self.queues, wanted, strict=True)]
    length = lambda index: len(self.requests[index].prompt) - self.seen
    wide = lambda index: layout.width_class(length(index), NARROWEST)
    for indices in taken:
      indices.sort(key=length, reverse=True)
    batches = []
    while any(taken):
      width = max(wide(indices[0]) for indices in taken if indices)
      # Those that need the width; shorter ones join where rows are left over.
      alike = max(sum(wide(i) == width for i in indices) for indices in taken)
      rows = 1
      while 4 * alike > 6 * rows and 2 * rows * width <= self.engine.tokens_per_batch:
        rows *= 2
      batch = self._blank(rows, min(width, self.own))
      for run, indices in enumerate(taken):
        for row, index in enumerate(indices[:rows]):
          self._enter(batch, run, row, index, free[run].pop(0))
        del indices[:rows]
      batches.append(batch)
    return batches

  def _blank(self, rows: int, width: int) -> dict[str, np.ndarray]:
    shape = (self.engine.runs, rows)
    return {
      'tokens': np.zeros((*shape, width), np.int32),
      'length': np.ones(shape, np.int32),
      'slot': np.full(shape, slots.FAR),
      'left': np.zeros(shape, np.int32),
      'seen': np.full(shape, self.seen, np.int32),
      'temperature': np.zeros(shape, np.float32),
      'seed': np.zeros(shape, np.uint32),
    }

  def _enter(self, batch: dict[str, np.ndarray], run: int, row: int, index: int, slot: int) -> None:
    request = self.requests[index]
    rest = np.asarray(request.prompt, np.int32)[self.seen :]
    batch['tokens'][run, row, : len(rest)] = rest
    batch['length'][run, row] = len(rest)
    batch['slot'][run, row] = slot
    batch['left'][run, row] = request.max_new - 1
    batch['temperature'][run, row] = request.temperature
    batch['seed'][run, row] = request.seed
    self.at[run][slot], self.ids[run][slot] = index, []

  def _take(self, tokens: Any, slots: np.ndarray | None) -> None:
    """Adds tokens `[R?,n]` of these slots, or `[R?,B,steps]` of all; ends what is finished."""
    tokens = export.to_host(tokens)
    tokens = tokens.reshape(self.engine.runs, *(tokens.shape[-2:] if slots is None else (-1, 1)))
    stop_ids, broken = set(self.engine.stop_ids.tolist()), int(NO_NUMBER)
    for run, rows in enumerate(tokens):
      for row, new in enumerate(rows.tolist()):
        slot = row if slots is None else int(slots[run, row])
        index = self.at[run][slot] if slot < self.count else None
        if index is None:
          continue
        ids, request = self.ids[run][slot], self.requests[index]
        fresh = [token for token in new if token >= 0]
        ended = bool(fresh) and fresh[-1] in stop_ids
        ids += fresh[:-1] if ended else fresh
        output = self._output(request, ids, ended)
        if broken in new:
          output = Output('', tuple(ids), UNDEFINED)
        if output is not None:
          self.at[run][slot] = None
          self.finish(run, index, output)

  def _output(self, request: Request, ids: list[int], ended: bool) -> Output | None:
    """What a request has come to; None if it is to go on."""
    ids = ids[: request.max_new]
    over = ended or len(ids) >= request.max_new
    if not over and not request.stops and request.settled is None:
      return None
    text = self.engine.detokenize(request.prompt, ids)
    found = [at for stop in request.stops if (at := text.find(stop)) >= 0]
    if found:
      return Output(text[: min(found)], tuple(ids), 'stop')
    if over:
      return Output(text, tuple(ids), 'end' if ended else 'length')
    if request.settled is not None and request.settled(text):
      return Output(text, tuple(ids), 'settled')
    return None

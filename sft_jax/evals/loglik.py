"""The log-likelihood engine: probabilities of given tokens under jit, shared work done once.

Texts are laid out by `layout.py`; the head is applied at scored positions only, in float32; sums
are taken in float64 on the host. Which texts share a batch, and in what order, changes no score
beyond rounding. Dimension letters: see the legend in `models/decoder.py`.
"""

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from sft_jax.data import pack
from sft_jax.evals import layout
from sft_jax.evals.layout import Text
from sft_jax.evals.model import RUNS, Subject, over_runs
from sft_jax.models import export, head
from sft_jax.parallel.compile import exact_jit

# Tokens in a row, and the smallest slots of a prefix: longer ones take rounder numbers.
ROW, _PREFIX = 512, 128
# Chunks of positions whose logits exist at a time, and how many logits that may be on a device. In
# small chunks a CPU spends its time on the head's kernel, in large ones on positions nobody needs.
CHUNKS, _LOGITS = (64, 256, 1024), 2**26


class Scored(NamedTuple):
  """What a model thinks of the scored tokens of one text; with R runs an axis `[R]` comes first.

  Attributes:
    logprobs: float32 `[n]`, each token given all before, in nats.
    greedy: bool `[n]`, whether it was the likeliest.
  """

  logprobs: np.ndarray
  greedy: np.ndarray


@functools.partial(exact_jit, static_argnames=('model', 'runs', 'mesh'))
def _prefill(model, params, batch, runs, mesh):
  """Keys and values of a batch of prefixes."""
  one = lambda params, batch: model.extend(params, batch, None, keep=True, mesh=mesh)[1]
  return over_runs(one, runs, (None,), RUNS)(params, batch)


@functools.partial(exact_jit, static_argnames=('model', 'runs', 'mesh', 'shards', 'chunk'))
def _score(model, params, batch, prefix, runs, mesh, shards, chunk):
  """Log-probabilities `[R?,B,T,M]` of targets, and whether each was the likeliest token."""

  def one(params, prefix):
    hidden, _ = model.extend(params, batch, prefix, keep=False, mesh=mesh)
    return head.score_targets(
      hidden,
      functools.partial(model.logits, params),
      batch['targets'],
      where=batch['targets'][..., 0] >= 0,
      chunk=chunk,
      shards=shards,
    )

  return over_runs(one, runs, (RUNS,))(params, prefix)


def lower(subject: Subject, batch: Mapping[str, Any], chunk: int) -> jax.stages.Lowered:
  """The program that scores such a batch, without a prefix, for compiling ahead of time."""
  return _score.lower(
    *(subject.model, subject.params, batch, None, subject.runs),
    *(subject.mesh, subject.shards, chunk),
  )


def score(
  subject: Subject,
  texts: Sequence[Text],
  tokens_per_batch: int = 4096,
  done: Callable[[int, Scored], None] = lambda index, scored: None,
) -> list[Scored]:
  """Scores the tokens of each text from its `start` on.

  Args:
    subject: The model, or R runs at once.
    texts: At least two tokens each.
    tokens_per_batch: Tokens on all devices at once (at least one row a device).
    done: Called with the index of a text and its scores as soon as they are there.

  Returns:
    One for each text, in order.
  """
  results: list[Scored] = [Scored(np.zeros(0), np.zeros(0))] * len(texts)
  plan = layout.plan(texts, ROW, subject.model.sharing)
  chunk = _chunk(subject, plan, tokens_per_batch) if texts else 0
  for prefix, members, numbers, width in _batches(subject, plan, tokens_per_batch):
    subject.check()
    height = _height(len(members), width, tokens_per_batch, subject.shards)
    batch = _arrays(members, height, width)
    batch['group'] = np.zeros(height, np.int32)
    batch['group'][: len(numbers)] = numbers
    batch['targets'], places = layout.targets_of(members, height, width)
    placed = _put(subject, batch)
    out = _score(
      *(subject.model, subject.params, placed, prefix, subject.runs),
      *(subject.mesh, subject.shards, chunk),
    )
    logprobs, hits = (export.to_host(part) for part in out)
    lead = logprobs.shape[: bool(subject.runs)]
    logprobs, hits = logprobs.reshape(*lead, -1), hits.reshape(*lead, -1)
    for query, place in zip((q for row in members for q in row.queries), places, strict=True):
      results[query.text] = Scored(logprobs[..., place], hits[..., place])
      done(query.text, results[query.text])
  return results


def _batches(
  subject: Subject, plan: layout.Layout, budget: int
) -> Iterator[tuple[Any, list[layout.Row], list[int], int]]:
  """Prefixes on their devices, the rows of a batch, the prefix of each, and their width."""
  by_slots: dict[int, list[int]] = {}
  for number, ids in enumerate(plan.prefixes):
    by_slots.setdefault(prefix_slots(len(ids)), []).append(number)
  todo: list[tuple[int, list[int]]] = [(0, [-1])]
  for slots, numbers in sorted(by_slots.items()):
    size = max(1, budget // slots)
    todo += [(slots, numbers[i : i + size]) for i in range(0, len(numbers), size)]
  by_prefix: dict[int, list[int]] = {}
  for index, row in enumerate(plan.rows):
    by_prefix.setdefault(row.prefix, []).append(index)
  for slots, numbers in todo:
    prefix = prefill(subject, [plan.prefixes[n] for n in numbers], slots) if slots else None
    indices = [i for number in numbers for i in by_prefix.get(number, [])]
    for width in sorted({plan.widths[i] for i in indices}):
      rows = [plan.rows[i] for i in indices if plan.widths[i] == width]
      most = max(subject.shards, budget // width // subject.shards * subject.shards)
      for start in range(0, len(rows), most):
        members = rows[start : start + most]
        group = [numbers.index(row.prefix) for row in members]
        yield prefix, members, group, width


def prefill(subject: Subject, prefixes: Sequence[np.ndarray], slots: int) -> Any:
  """Keys and values of prefixes of at most `slots` tokens, computed together."""
  subject.check()
  height = pack.round_up(len(prefixes), subject.shards)
  batch = {
    'tokens': np.zeros((height, slots), np.int32),
    'positions': np.tile(np.arange(slots, dtype=np.int32), (height, 1)),
    'reach': np.full((height, slots), slots, np.int32),
    'lengths': np.tile(np.arange(1, slots + 1, dtype=np.int32), (height, 1)),
  }
  for row, ids in enumerate(prefixes):
    batch['tokens'][row, : len(ids)] = ids
  return _prefill(subject.model, subject.params, _put(subject, batch), subject.runs, subject.mesh)


def prefix_slots(length: int) -> int:
  """Slots for a prefix: few different numbers, none more than a third too large."""
  slots = _PREFIX
  while slots < length:
    slots += slots // 2 if slots & (slots - 1) == 0 else slots // 3
  return slots


def _height(rows: int, width: int, budget: int, shards: int) -> int:
  """Rows of a batch: full, or the next power of two, so that few programs are compiled."""
  height = shards
  while height < rows:
    height *= 2
  return min(height, max(shards, budget // width // shards * shards))


def _chunk(subject: Subject, plan: layout.Layout, budget: int) -> int:
  """Positions whose logits exist at a time: those of a usual batch, as far as memory allows."""
  scored = sum(len(query.indices) for row in plan.rows for query in row.queries)
  usual = scored * budget / (sum(plan.widths) * subject.shards)
  most = _LOGITS // (subject.model.vocab_size * max(subject.runs, 1))
  allowed = [chunk for chunk in CHUNKS if chunk <= most] or [CHUNKS[0]]
  return next((chunk for chunk in allowed if chunk >= usual), allowed[-1])


def _arrays(rows: Sequence[layout.Row], height: int, width: int) -> dict[str, np.ndarray]:
  """Rows as arrays; padding sees itself only."""
  shape = (height, width)
  batch = {name: np.zeros(shape, np.int32) for name in ('tokens', 'positions', 'seen', 'lengths')}
  batch['reach'] = np.tile(np.arange(1, width + 1, dtype=np.int32), (height, 1))
  for number, row in enumerate(rows):
    for name, array in batch.items():
      part = getattr(row, name)
      array[number, : len(part)] = part
  return batch


def _put(subject: Subject, batch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
  """On the devices, divided by rows."""
  sharding = NamedSharding(subject.mesh, P(('data', 'fsdp')))
  return {name: jax.device_put(array, sharding) for name, array in batch.items()}


def sums(scored: Scored) -> tuple[Any, Any]:
  """Log-likelihood in float64 and whether all tokens were greedy; `[R]` arrays with runs."""
  return scored.logprobs.astype(np.float64).sum(-1), scored.greedy.all(-1)

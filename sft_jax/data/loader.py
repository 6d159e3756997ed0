"""Batches of a cohort's runs: rows, microbatches, device arrays. The only part of data with jax.

A step's batch depends on the step alone, so a resumed run continues with the same batches.
"""

import math
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np

from sft_jax.data.pack import FIELDS, fill, layout_rows, round_up
from sft_jax.data.sampler import Sampler
from sft_jax.data.tokenize import Example
from sft_jax.utils.errors import UserError

if TYPE_CHECKING:
  import jax

Batch = dict[str, Any]
Run = tuple[Sequence[Example], Sampler]

LAYOUTS = ('packed', 'padded')
ROW_MULTIPLE = 64  # row lengths are multiples of this
_SHORT_ROW = 512  # packed rows may grow to this length for less padding
_PROBED_STEPS = 64  # steps a row length is judged by
_FEW_SHORTEST = 128  # shortest row where few shapes are wanted
_FEW_MICROS = 16  # least microbatches there; more go up by fours
_FEW_DOCUMENTS = 8  # least `documents` there; more are a power of two
_FEW_TOKENS = 8192  # most tokens in a microbatch there, unless given


class Loader:
  """Lays the examples of each optimiser step out into microbatches of rows.

  A microbatch has lanes, and a lane holds a block: rows of one run. Whose they are is in the batch,
  and blocks fill the lanes of one microbatch after another. So a run with little to compute does
  not wait for one with much, and one that is done costs nothing.

  'packed': the step's examples share rows (first-fit decreasing); the step's loss and the number of
  steps are those of 'padded', where each row holds one example.

  `row_length=0` chooses for 'packed' the multiple of 64 that computes the fewest tokens on up to 64
  steps spread over the run, from the longest example to max(512, 1.25 x longest); the shorter of
  two within 1 %. For 'padded' it is the longest example rounded up to a multiple of 64, or with
  `pad_multiple` the longest of each step rounded up to that (a few shapes instead of one).

  A single slot has one lane, and its rows are spread evenly over the fewest microbatches of at most
  `rows_per_micro` rows. Of several, blocks are as small as devices allow, and there are as many
  lanes as the limits allow or fewer: whatever computes least.

  With `few_shapes` different data share programs: the row length is a power of two, a microbatch
  has as many rows as the limits allow or a quarter, and there are 16, 64, 256, … microbatches. Only
  those in use are computed.

  Args:
    runs: (examples, sampler) of each run, or None for a slot without data. A run past its last step
      gives zero weights.
    layout: 'packed' or 'padded'.
    row_length: Tokens a row, or 0.
    rows_per_micro: Most rows in a microbatch, over all devices. 0: see the next.
    tokens_per_micro: Most tokens in a microbatch, over all devices (at least a row each). 0: all
      rows of a step.
    row_shards: Rows of a block are made divisible by this (data x fsdp devices) with empty rows.
    pad_multiple: See above; 'padded' only.
    few_shapes: See above; what is given by `row_length` and `rows_per_micro` stays so.
    shape: That of a loader of these and further runs, to go on with.

  Attributes:
    documents: At least as many as a row has examples in any step, and one for what is left of it.

  Raises:
    UserError: An unknown layout, no examples, or a row length below the longest example.
  """

  def __init__(
    self,
    runs: Sequence[Run | None],
    layout: str = 'packed',
    row_length: int = 0,
    rows_per_micro: int = 0,
    tokens_per_micro: int = 0,
    row_shards: int = 1,
    pad_multiple: int = 0,
    few_shapes: bool = False,
    shape: tuple[int, int, int, int] | None = None,
  ):
    if layout not in LAYOUTS:
      raise UserError(f'unknown layout {layout!r}', how=f'use one of: {", ".join(LAYOUTS)}')
    for examples, sampler in filter(None, runs):
      if sampler.n != len(examples):
        raise ValueError(f'a sampler of {sampler.n} for {len(examples)} examples')
    if not any(runs):
      raise UserError('no runs to load data for')
    self.slots = len(runs)
    # Runs that have data, and the slot of each.
    self.places: list[int] = []
    self.runs: list[Run] = []
    for place, run in enumerate(runs):
      if run is not None:
        self.places.append(place)
        self.runs.append(run)
    self.layout = layout
    self.row_shards, self.pad_multiple = row_shards, pad_multiple if layout == 'padded' else 0
    self._lengths = [np.array([len(e) for e in examples]) for examples, _ in self.runs]
    self._supervised = [
      np.array([int((e.loss_weight > 0).sum()) for e in examples]) for examples, _ in self.runs
    ]
    self.total_steps = max(sampler.total_steps for _, sampler in self.runs)
    longest = int(max(lengths.max() for lengths in self._lengths))
    check_row_length(row_length, longest)
    self._limits, self._few = (rows_per_micro, tokens_per_micro), few_shapes
    if shape is not None:
      self.lanes, self.micros, self.rows, self.row_length = shape
    else:
      self.row_length = row_length or self._choose_row_length(longest)
    self._counts, fullest = self._count_rows(range(self.total_steps), self.row_length)
    # What is left of a row is one more.
    self.documents = fullest + 1
    if few_shapes:
      self.documents = max(_FEW_DOCUMENTS, 1 << fullest.bit_length())
    if shape is not None:
      return
    grid = self._few_grid() if few_shapes else self._grid(self._counts, self.row_length)
    self.lanes, self.micros, self.rows = grid

  @property
  def shape(self) -> tuple[int, int, int, int]:
    """(lanes, microbatches, rows, tokens) of a batch; with `pad_multiple` the longest tokens."""
    return self.lanes, self.micros, self.rows, self.row_length

  def _grid(self, counts: np.ndarray, row_length: int) -> tuple[int, int, int]:
    """(lanes, microbatches, rows of a block) within the limits, for rows [steps, runs] needed."""
    rows_limit, tokens_limit = self._limits
    limits = [rows_limit] if rows_limit else []
    if tokens_limit:
      limits.append(tokens_limit // row_length)
    # All that follows counts the least rows that devices can share.
    least = _blocks(counts, self.row_shards).sum(axis=1)
    most = int(least.max())
    limit = max(1, min(limits) // self.row_shards) if limits else most
    evenly = _blocks(most, _blocks(most, limit))
    choices = [evenly] if self.slots == 1 or not limits else [evenly, *_halvings(limit)]
    return self._best(counts, choices, limit)

  def _few_grid(self) -> tuple[int, int, int]:
    """The same from few values: as many rows as the limits allow, or a quarter of that."""
    rows_limit, tokens_limit = self._limits
    parts = max(1, (tokens_limit or _FEW_TOKENS) // self.row_length // self.row_shards)
    full = _halvings(parts)[0]
    choices = [_blocks(rows_limit, self.row_shards)] if rows_limit else [full, max(1, full // 4)]
    lanes, needed, rows = self._best(self._counts, choices, full)
    micros = _FEW_MICROS
    while micros < needed:
      micros *= 4
    return lanes, micros, rows

  def _best(self, counts: np.ndarray, choices: Sequence[int], most: int) -> tuple[int, int, int]:
    """The (lanes, microbatches, rows) that compute least.

    Args:
      counts: Rows needed, [steps, runs].
      choices: Rows of a microbatch, in units of `row_shards`.
      most: The largest there may be.
    """
    # The rows of a microbatch are one block of a single run, or blocks of any.
    split = lambda units: (1, units) if self.slots == 1 else (units, 1)
    found = []
    for units in choices:
      lanes, rows = split(units)
      used = _microbatches(counts, lanes, rows * self.row_shards)
      # Each microbatch costs a little besides what is in it.
      cost = used.sum() * (units + most / 16)
      found.append((float(cost), lanes, int(used.max()), rows * self.row_shards))
    return min(found, key=lambda one: one[0])[1:]

  def _count_rows(self, steps: Sequence[int], row_length: int) -> tuple[np.ndarray, int]:
    """int64 [steps, runs that have data], rows needed; most examples of any."""
    counts, fullest = np.zeros((len(steps), len(self.runs)), np.int64), 1
    for run, (_, sampler) in enumerate(self.runs):
      for at, step in enumerate(steps):
        members = sampler.indices(step)
        if self.layout == 'padded':
          counts[at, run] = len(members)
        else:
          rows = layout_rows(self._lengths[run][members], row_length)
          counts[at, run] = len(rows)
          fullest = max(fullest, *map(len, rows), 0)
    return counts, fullest

  def _choose_row_length(self, longest: int) -> int:
    shortest = round_up(longest, ROW_MULTIPLE)
    if self._few and not self.pad_multiple:
      return max(1 << (longest - 1).bit_length(), _FEW_SHORTEST)
    if self.layout == 'padded':
      return round_up(longest, self.pad_multiple) if self.pad_multiple else shortest
    probes = np.unique(np.linspace(0, self.total_steps - 1, _PROBED_STEPS).astype(np.int64))
    best, fewest = shortest, math.inf
    for length in range(shortest, max(_SHORT_ROW, longest + longest // 4) + 1, ROW_MULTIPLE):
      used, _ = self._count_rows([int(step) for step in probes], length)
      lanes, _, rows = self._grid(used, length)
      computed = int(_microbatches(used, lanes, rows).sum()) * lanes * rows * length
      if computed < 0.99 * fewest:
        best, fewest = length, computed
    return best

  def step_length(self, step: int) -> int:
    """Tokens a row in this step."""
    if not self.pad_multiple:
      return self.row_length
    longest = 1
    for run, (_, sampler) in enumerate(self.runs):
      longest = max(longest, int(self._lengths[run][sampler.indices(step)].max(initial=1)))
    return round_up(longest, self.pad_multiple)

  def batch(self, step: int) -> Batch:
    """The numpy batch of a step.

    FIELDS [G, M, B, T] (lanes, microbatches, rows, tokens); int32 `run` [G, M], the slot whose rows
    a lane holds in a microbatch; and the int32 scalar `micro`, microbatches in use.
    """
    lanes, micros, rows, _ = self.shape
    length = self.step_length(step)
    batch: Batch = {
      name: np.zeros((micros, lanes, rows, length), dtype) for name, dtype in FIELDS.items()
    }
    owners = np.zeros(micros * lanes, np.int32)
    used = 0
    for run, (examples, sampler) in enumerate(self.runs):
      members = sampler.indices(step)
      if self.layout == 'padded':
        layout = [[at] for at in range(len(members))]
      else:
        layout = layout_rows(self._lengths[run][members], length)
      end = used + int(_blocks(len(layout), rows))
      owners[used:end] = self.places[run]
      for name, array in fill([examples[i] for i in members], layout, length).items():
        lines = batch[name].reshape(-1, length)
        lines[used * rows : used * rows + len(layout)] = array
      used = end
    batch = {name: np.ascontiguousarray(array.swapaxes(0, 1)) for name, array in batch.items()}
    batch['run'] = np.ascontiguousarray(owners.reshape(micros, lanes).T)
    batch['micro'] = np.int32(math.ceil(used / lanes))
    return batch

  def sources(self, step: int) -> list[list[str]]:
    """Where the examples of a step came from, for each run that has data."""
    return [[examples[i].source for i in s.indices(step)] for examples, s in self.runs]

  def supervised(self, step: int) -> np.ndarray:
    """int64 [runs that have data], tokens with a loss weight in this step."""
    return self._sum(self._supervised, step)

  def tokens(self, step: int) -> np.ndarray:
    """int64 [runs that have data], tokens of examples in this step."""
    return self._sum(self._lengths, step)

  def padded(self, step: int) -> np.ndarray:
    """int64 [runs that have data], slots without a token in the blocks of each run."""
    counts = self._counts[step] if step < self.total_steps else np.zeros(len(self.runs), np.int64)
    computed = _blocks(counts, self.rows) * self.rows * self.step_length(step)
    return computed - self.tokens(step)

  def _sum(self, values: Sequence[np.ndarray], step: int) -> np.ndarray:
    return np.array(
      [v[s.indices(step)].sum() for v, (_, s) in zip(values, self.runs, strict=True)], np.int64
    )

  def put(self, batch: Batch, mesh: 'jax.sharding.Mesh') -> Batch:
    """The batch as global arrays: rows over ('data', 'fsdp'), the rest replicated.

    Every process calls this with the same batch and places only its own rows, so hosts neither
    train on the same rows nor disagree about shapes.
    """
    import jax
    from jax.sharding import NamedSharding, PartitionSpec

    shards = mesh.shape['data'] * mesh.shape['fsdp']
    if self.rows % shards:
      raise UserError(
        f'{self.rows} rows do not divide over {shards} devices (data x fsdp)',
        where='mesh',
        how=f'make the loader with row_shards={shards}',
      )
    spread = NamedSharding(mesh, PartitionSpec(None, None, ('data', 'fsdp'), None))
    whole = NamedSharding(mesh, PartitionSpec())

    def place(array: Any) -> 'jax.Array':
      array = np.asarray(array)
      sharding = spread if array.ndim == 4 else whole
      return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])

    return {name: place(array) for name, array in batch.items()}


def _blocks(rows: Any, size: int) -> Any:
  """Blocks of `size` rows that hold so many rows."""
  return -(-rows // size)


def _microbatches(counts: np.ndarray, lanes: int, rows: int) -> np.ndarray:
  """int64 [steps]: microbatches in use, for so many rows [steps, runs]."""
  return _blocks(_blocks(counts, rows).sum(axis=1), lanes)


def _halvings(limit: int) -> list[int]:
  """Powers of two up to a limit, the largest first."""
  return [1 << power for power in range(limit.bit_length() - 1, -1, -1)]


def check_row_length(row_length: int, longest: int) -> None:
  """Raises UserError for rows, unless 0, that the longest example does not fit."""
  if row_length and row_length < longest:
    raise UserError(
      f'rows of {row_length} tokens are shorter than the longest example ({longest})',
      where='config.train.row_length',
      how=f'use 0 (automatic) or at least {longest}, or a smaller max_length',
    )


class Prefetch:
  """`prefetch(step)` gives a batch and starts the next one in a thread.

  An error while a batch is made is raised by the call that asks for it: it never looks like the end
  of the data.
  """

  def __init__(self, make: Callable[[int], Batch], last_step: int):
    """`make(step)` is called for steps up to and without `last_step` ahead of time."""
    self._make, self._last = make, last_step
    self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix='batch')
    self._ahead: dict[int, Future[Batch]] = {}

  def __call__(self, step: int) -> Batch:
    future = self._ahead.pop(step, None)
    for stale in self._ahead.values():
      stale.cancel()
    self._ahead.clear()
    batch = future.result() if future else self._make(step)
    if step + 1 < self._last:
      self._ahead[step + 1] = self._pool.submit(self._make, step + 1)
    return batch

  def close(self) -> None:
    """Stops the thread."""
    self._pool.shutdown(wait=True, cancel_futures=True)

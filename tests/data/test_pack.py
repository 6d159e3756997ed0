"""Rows hold every token once; samplers and loaders are pure functions of (seed, step)."""

import dataclasses

import jax
import numpy as np
import pytest

from sft_jax.data.loader import Loader, Prefetch
from sft_jax.data.pack import FIELDS, fill, layout_rows
from sft_jax.data.sampler import Sampler
from sft_jax.data.tokenize import Example
from sft_jax.utils.errors import UserError

# Changes only if the order of every run ever made changes.
PINNED_ORDER = [4, 2, 0, 1, 5, 3]


def make(lengths, seed=0):
  """Examples with random ids (0 among them) and uneven masks."""
  rng = np.random.default_rng(seed)
  examples = []
  for index, length in enumerate(lengths):
    weight = (rng.random(length) < 0.6).astype(np.float32)
    weight[0], weight[-1] = 0, 1
    examples.append(
      Example(
        ids=rng.integers(0, 7, length).astype(np.int32),
        loss_weight=weight,
        spans=np.zeros(length, np.uint8),
        source=f'f:{index}',
        span_bytes={},
      )
    )
  return examples


def unpack(batch, run):
  """(ids, weights) of each example in a batch; checks positions and padding on the way."""
  found = []
  shape = batch['tokens'].shape
  for name in FIELDS:
    assert not batch[name][:, int(batch['micro']) :].any(), 'microbatches past `micro` hold nothing'
  # Blocks in the order in which they are laid, microbatch by microbatch.
  mine = np.argwhere((run == batch['run'].T)[: int(batch['micro'])])
  rows = {
    name: np.concatenate(
      [np.zeros((0, shape[-1]), batch[name].dtype), *(batch[name][lane, at] for at, lane in mine)]
    )
    for name in FIELDS
  }
  used, seen = len(mine) * shape[2], []
  for row in range(used):
    segments = rows['segments'][row]
    assert not rows['tokens'][row][segments == 0].any()
    assert not rows['loss_weight'][row][segments == 0].any()
    present = [int(s) for s in np.unique(segments) if s]
    edges = np.flatnonzero(np.diff(segments, prepend=0))
    assert len(edges) == len(present) + bool(present and segments[-1] == 0), 'contiguous'
    seen += present
    for segment in present:
      (where,) = np.nonzero(segments == segment)
      assert (np.diff(where) == 1).all()
      assert (rows['positions'][row][where] == np.arange(len(where))).all()
      found.append((rows['tokens'][row][where], rows['loss_weight'][row][where]))
  assert sorted(seen) == list(range(1, len(seen) + 1)), 'each example of the step has its number'
  return found


def as_multiset(pairs):
  return sorted((tuple(ids.tolist()), tuple(weights.tolist())) for ids, weights in pairs)


@pytest.mark.parametrize('seed', range(8))
@pytest.mark.parametrize('layout', ['packed', 'padded'])
def test_every_token_exactly_once(seed, layout):
  """Over an epoch of every run: all examples, whole, with their weights, in the right step."""
  rng = np.random.default_rng(seed)
  runs = []
  for run in range(int(rng.integers(1, 4))):
    lengths = np.minimum(1 + rng.geometric(1 / rng.integers(5, 60), rng.integers(3, 40)), 300) + 1
    examples = make(lengths, seed * 10 + run)
    batch_size, epochs = int(rng.integers(1, 12)), int(rng.integers(1, 3))
    runs.append((examples, Sampler(len(examples), batch_size, epochs, seed=run)))
  shards = int(rng.choice([1, 2, 3]))
  pad_multiple = int(rng.choice([0, 16])) if layout == 'padded' else 0
  loader = Loader(
    runs,
    layout,
    rows_per_micro=int(rng.integers(0, 6)),
    row_shards=shards,
    pad_multiple=pad_multiple,
  )
  assert loader.shape[2] % shards == 0
  fullest = 0
  for step in range(loader.total_steps + 1):
    batch = loader.batch(step)
    length = loader.step_length(step)
    assert batch['tokens'].shape == (*loader.shape[:3], length)
    assert {name: batch[name].dtype.type for name in FIELDS} == FIELDS
    for run, (examples, sampler) in enumerate(runs):
      members = [examples[i] for i in sampler.indices(step)]
      expected = [(e.ids, e.loss_weight) for e in members]
      assert as_multiset(unpack(batch, run)) == as_multiset(expected)
      mine = batch['run'] == run
      assert loader.tokens(step)[run] == (batch['segments'][mine] > 0).sum()
      assert loader.supervised(step)[run] == (batch['loss_weight'][mine] > 0).sum()
      taken = (batch['segments'] > 0).any((2, 3))[mine].sum() * loader.shape[2] * length
      assert loader.padded(step)[run] == taken - loader.tokens(step)[run]
    assert (batch['micro'] == 0) == (step >= loader.total_steps)
    rows = batch['segments'].reshape(-1, length)
    fullest = max(fullest, *(len(np.unique(row[row > 0])) for row in rows))
  # What is left of a row is one more document; of a program for all, of few numbers of them.
  assert loader.documents == fullest + 1
  shared = Loader(runs, layout, few_shapes=True).documents
  assert shared >= 8 and shared & (shared - 1) == 0


def test_first_fit_decreasing():
  assert layout_rows([3, 5, 2, 5, 1], 8) == [[1, 0], [3, 2, 4]]
  assert layout_rows([4, 4], 4) == [[0], [1]]
  assert layout_rows([], 4) == []
  with pytest.raises(ValueError, match='does not fit'):
    layout_rows([5], 4)
  with pytest.raises(ValueError, match='overflows'):
    fill(make([3, 3]), [[0, 1]], 5)


def test_first_token_of_a_segment_has_no_weight():
  """It has no past: what stands before it in the row is another example."""
  examples = [dataclasses.replace(e, loss_weight=np.ones(3, np.float32)) for e in make([3, 3])]
  assert fill(examples, [[0, 1]], 6)['loss_weight'].tolist() == [[0, 1, 1, 0, 1, 1]]


def test_packing_does_not_change_the_number_of_steps():
  examples = make([5] * 33)
  sampler = Sampler(33, 8, 2)
  packed = Loader([(examples, sampler)], 'packed')
  padded = Loader([(examples, sampler)], 'padded')
  assert packed.total_steps == padded.total_steps == 10
  assert packed.shape[2] < padded.shape[2]


def test_automatic_row_length_keeps_padding_low():
  rng = np.random.default_rng(0)
  examples = make(rng.integers(20, 100, 256))
  sampler = Sampler(256, 32)
  auto = Loader([(examples, sampler)], rows_per_micro=1)
  share = sum(auto.padded(s).sum() for s in range(8)) / sum(auto.tokens(s).sum() for s in range(8))
  assert auto.row_length % 64 == 0 and share < 0.1
  for length in (128, 256, 320, 512):
    other = Loader([(examples, sampler)], row_length=length, rows_per_micro=1)
    other_padding = sum(other.padded(s).sum() for s in range(8))
    assert sum(auto.padded(s).sum() for s in range(8)) <= other_padding
  with pytest.raises(UserError, match='shorter than the longest'):
    Loader([(examples, sampler)], row_length=64)


def test_microbatches_are_even():
  examples = make([64] * 10)
  loader = Loader([(examples, Sampler(10, 10))], 'padded', rows_per_micro=4)
  assert loader.shape == (1, 3, 4, 64)
  loader = Loader([(examples, Sampler(10, 9))], 'padded', rows_per_micro=8)
  assert loader.shape == (1, 2, 5, 64)
  assert [int(loader.batch(s)['micro']) for s in (0, 1)] == [2, 1]
  loader = Loader([(examples, Sampler(10, 3))], 'padded', rows_per_micro=2, row_shards=4)
  assert loader.shape == (1, 1, 4, 64)
  loader = Loader([(examples, Sampler(10, 10))], 'padded', tokens_per_micro=300)
  assert loader.shape == (1, 3, 4, 64)
  loader = Loader([(examples, Sampler(10, 10))], 'padded', tokens_per_micro=300, rows_per_micro=2)
  assert loader.shape == (1, 5, 2, 64)
  loader = Loader([(examples, Sampler(10, 10))], 'padded', tokens_per_micro=5)
  assert loader.shape == (1, 10, 1, 64)


def test_run_past_its_end_has_no_weight():
  short, long = make([5] * 4), make([7] * 12, seed=1)
  loader = Loader([(short, Sampler(4, 4)), (long, Sampler(12, 4))])
  last = loader.batch(2)
  assert not unpack(last, 0) and len(unpack(last, 1)) == 4
  assert last['loss_weight'].any()
  assert loader.supervised(2)[0] == 0


def test_sampler_covers_each_epoch_once():
  sampler = Sampler(23, 5, epochs=3, seed=7)
  assert (sampler.steps_per_epoch, sampler.total_steps) == (5, 15)
  for epoch in range(3):
    steps = [sampler.indices(epoch * 5 + i) for i in range(5)]
    assert [len(s) for s in steps] == [5, 5, 5, 5, 3]
    assert sorted(np.concatenate(steps)) == list(range(23))
  assert not len(sampler.indices(15))


def test_order_depends_on_seed_and_epoch_alone():
  """The seed is not fixed at 0, epochs differ, and asking out of order changes nothing."""
  first, second = Sampler(50, 8, 4, seed=3), Sampler(50, 8, 4, seed=3)
  backwards = [second.indices(s) for s in reversed(range(second.total_steps))][::-1]
  for step in range(first.total_steps):
    assert (first.indices(step) == backwards[step]).all()
  assert (first.order(0) != first.order(1)).any()
  assert (first.order(0) != Sampler(50, 8, seed=4).order(0)).any()
  assert Sampler(6, 6, seed=1).order(2).tolist() == PINNED_ORDER
  assert Sampler(6, 6, shuffle=False).order(2).tolist() == list(range(6))


def test_fractions_of_epochs():
  assert Sampler(100, 1, epochs=0.07).total_steps == 7
  assert Sampler(30, 4, epochs=0.5).total_steps == 4
  for n, batch, epochs in ((9, 8, 1.1), (250, 64, 0.3), (65, 64, 0.5), (65, 64, 1.5), (23, 5, 3)):
    one = Sampler(n, batch, epochs)
    assert one.examples == sum(len(one.indices(step)) for step in range(one.total_steps))
  for bad in ({'n': 0}, {'batch_size': 0}, {'epochs': 0}, {'seed': -1}):
    with pytest.raises(UserError):
      Sampler(**{'n': 3, 'batch_size': 1, **bad})


def test_put_shards_rows():
  devices = np.array(jax.devices()[:1]).reshape(1, 1, 1)
  mesh = jax.sharding.Mesh(devices, ('data', 'fsdp', 'tensor'))
  loader = Loader([(make([9] * 8), Sampler(8, 8))], 'padded')
  batch = loader.batch(0)
  placed = loader.put(batch, mesh)
  for name, array in batch.items():
    assert (np.asarray(placed[name]) == array).all() and placed[name].dtype == array.dtype


MESH_SCRIPT = """
import sys; sys.path.insert(0, {root!r})
import jax, numpy as np
from tests.data.test_pack import make
from sft_jax.data.loader import Loader
from sft_jax.data.sampler import Sampler
from sft_jax.utils.errors import UserError
mesh = jax.sharding.Mesh(np.array(jax.devices()).reshape(2, 2, 2), ('data', 'fsdp', 'tensor'))
runs = [(make([9] * 6), Sampler(6, 6))]
loader = Loader(runs, 'padded', row_shards=4)
batch = loader.batch(0)
tokens = loader.put(batch, mesh)['tokens']
assert tokens.shape == (1, 1, 8, 64), tokens.shape
for shard in tokens.addressable_shards:
  assert shard.data.shape == (1, 1, 2, 64)
  assert (np.asarray(shard.data) == batch['tokens'][shard.index]).all()
starts = {{s.index[2].start for s in tokens.addressable_shards}}
assert len(starts) == 4, 'four different quarters of the rows'
try:
  Loader(runs, 'padded').put(batch, mesh)
except UserError:
  print('ok')
"""


def test_put_on_eight_devices():
  import os
  import pathlib
  import subprocess
  import sys

  root = str(pathlib.Path(__file__).parents[2])
  env = {
    **os.environ,
    'JAX_PLATFORMS': 'cpu',
    'XLA_FLAGS': '--xla_force_host_platform_device_count=8',
  }
  script = MESH_SCRIPT.format(root=root)
  done = subprocess.run(
    [sys.executable, '-c', script], env=env, capture_output=True, text=True, timeout=120
  )
  assert done.stdout.strip() == 'ok', done.stderr


def test_prefetch_gives_the_same_and_raises():
  """An error in the loading thread must not look like the end of the data."""

  def broken(step):
    if step == 3:
      raise OSError('disk')
    return {'step': step}

  prefetch = Prefetch(broken, 10)
  assert [prefetch(s)['step'] for s in (0, 1, 2)] == [0, 1, 2]
  with pytest.raises(OSError, match='disk'):
    prefetch(3)
  assert prefetch(7)['step'] == 7
  prefetch.close()


def test_bad_loaders():
  examples = make([5] * 4)
  with pytest.raises(UserError, match='unknown layout'):
    Loader([(examples, Sampler(4, 2))], 'ragged')
  with pytest.raises(ValueError, match='a sampler of 5'):
    Loader([(examples, Sampler(5, 2))])


def test_few_shapes_for_different_data():
  """Twelve data sets and batch sizes, and the same examples as ever."""
  shapes = set()
  for longest in (20, 90, 100, 200):
    for batch_size in (2, 8, 32):
      examples = make([5 + (7 * i) % (longest - 4) for i in range(64)])
      options = {'tokens_per_micro': 1024, 'few_shapes': True}
      loader = Loader([(examples, Sampler(64, batch_size))], **options)
      _, micros, rows, length = loader.shape
      assert length in (128, 256) and rows in (1, 2, 4, 8) and micros == 16
      shapes.add(loader.shape)
      plain = Loader([(examples, Sampler(64, batch_size))], tokens_per_micro=1024)
      for step in range(loader.total_steps):
        batches = loader.batch(step), plain.batch(step)
        assert batches[0]['micro'] <= micros
        held = [np.sort(b['tokens'][b['segments'] > 0]) for b in batches]
        np.testing.assert_array_equal(*held)
  assert len(shapes) <= 4


def test_few_shapes_keep_what_is_given():
  examples = make([30] * 12)
  loader = Loader([(examples, Sampler(12, 12))], row_length=96, rows_per_micro=3, few_shapes=True)
  assert loader.shape == (1, 16, 3, 96)
  many = Loader([(make([90] * 80), Sampler(80, 80))], rows_per_micro=1, few_shapes=True)
  assert many.shape[1:] == (256, 1, 128), 'from 16 on by fours'
  sharded = Loader([(examples, Sampler(12, 12))], row_shards=4, few_shapes=True, tokens_per_micro=9)
  assert sharded.shape[1:] == (16, 4, 128)


def test_a_short_run_does_not_wait_for_a_long_one():
  """What is computed follows the sum of what runs need, not the largest times their number."""
  few, many = make([20] * 40), make([60] * 40)
  runs = [(few, Sampler(40, 2)), (few, Sampler(40, 4, 2)), (many, Sampler(40, 8)), None]
  loader = Loader(runs, row_length=64, tokens_per_micro=1024)
  for step in range(loader.total_steps):
    rows = sum(
      len(layout_rows([len(run[0][i]) for i in run[1].indices(step)], 64)) for run in runs[:3]
    )
    assert rows <= int(loader.batch(step)['micro']) * 4 <= rows + 3
  assert loader.shape == (4, 3, 1, 64), 'eleven rows at most, three at the end'
  alone = Loader([runs[2]], row_length=64, tokens_per_micro=256)
  assert alone.shape == (1, 2, 4, 64)


def test_slots_without_data():
  """The others are as they are by themselves; a shape is taken over."""
  one, two = make([30, 20, 10, 25]), make([50, 60, 40, 20])
  runs = [(one, Sampler(4, 2, seed=1)), (two, Sampler(4, 4, seed=2))]
  whole = Loader(runs, row_length=64)
  part = Loader([None, runs[1], None], row_length=64, shape=whole.shape)
  assert part.shape == whole.shape
  got, want = part.batch(0), whole.batch(0)
  assert (
    as_multiset(unpack(got, 1))
    == as_multiset(unpack(want, 1))
    == as_multiset((e.ids, e.loss_weight) for e in two)
  )
  assert not unpack(got, 0) and not unpack(got, 2)
  assert part.tokens(0).tolist() == [170] and part.sources(0) == whole.sources(0)[1:]
  with pytest.raises(UserError, match='no runs'):
    Loader([None])

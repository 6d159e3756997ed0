"""Encodes a chunk of a fine-tuned tensor against its base; `restore.py` decodes.

Training moves a weight by an amount that hardly depends on its size, while the spacing of floats
doubles with each exponent: how many representable values a weight has moved by is known, as a
distribution, from the exponent of the base, which the decoder has. So the moves are sorted by that
exponent, in classes of like exponents, and each class is stored as bit planes (greater than 0,
than 1, …), which zstd's entropy coder packs eight to a symbol, and bytes for what is beyond them.
Not for files: `delta.py`.
"""

import itertools

import numpy as np
import zstandard

from sft_jax.study import restore

Array = np.ndarray

# Bit planes that a class may have.
_MOST_LEVELS = 7
_MOST_CLASSES = 64
# How often neighbours are joined: more would cost more time than it saves bits.
_ROUNDS = 2
# What a stream costs besides its contents: its length, a frame's header, a table.
_STREAM_BITS = 8 * 40
_SAMPLE = 1 << 14
# Moves are counted in buckets of a quarter of an octave: 0, 1, 2, … are apart, large ones alike.
_BUCKETS = 132
# No matches are looked for but long runs: the entropy coder does the work.
_MATCHING = {'compression_level': 12}
_PARAMETERS = {
  'window_log': 20, 'hash_log': 6, 'chain_log': 6, 'search_log': 1, 'min_match': 7,
  'target_length': 0, 'strategy': zstandard.STRATEGY_FAST,
}  # fmt: skip


def encode(tuned: Array, base: Array, mantissa: int) -> bytes:
  """One chunk of `tuned`, given the same elements of `base`.

  Args:
    tuned: Bits as unsigned integers, of one dimension.
    base: Likewise, of equal length and type.
    mantissa: Bits of the mantissa.
  """
  places, rising = restore.by_exponent(base, mantissa)
  moves = (restore.ordered(tuned) - restore.ordered(base)).view(f'i{base.itemsize}')
  zigzag = ((moves << 1) ^ (moves >> (8 * base.itemsize - 1))).view(base.dtype).take(places)
  classes = _classes(rising, zigzag)
  # Bytes are text or of unknown kind: there, matches count.
  parameters = _MATCHING if base.itemsize == 1 else _PARAMETERS
  compress = zstandard.ZstdCompressor(
    compression_params=zstandard.ZstdCompressionParameters(**parameters)
  ).compress
  streams = []

  def put(stream: Array) -> None:
    data = compress(stream.data) if stream.any() else b''
    streams.append(len(data).to_bytes(4, 'little') + data)

  firsts = np.array([first for first, _ in classes], np.uint8)
  cuts = [*np.searchsorted(rising, firsts).tolist(), len(base)]
  for (_, levels), (start, end) in zip(classes, itertools.pairwise(cuts), strict=True):
    values = zigzag[start:end]
    for level in range(levels):
      more = values > level
      put(np.packbits(more))
      values = values.compress(more)
    values = values - values.dtype.type(levels)
    for i in range(base.itemsize):
      put((values >> (8 * i)).astype(np.uint8))
  head = bytes([len(classes), *firsts.tolist(), *(levels for _, levels in classes)])
  return b''.join([head, *streams])


def _classes(rising: Array, zigzag: Array) -> list[tuple[int, int]]:
  """(first exponent, levels) of each class; neighbours are joined while that saves bits."""
  step = max(1, len(zigzag) // _SAMPLE)
  sample, exponents = zigzag[step // 2 :: step], rising[step // 2 :: step]
  if not len(sample):
    return [(0, 0)]
  buckets = (4 * np.log2(sample.astype(np.float32) + 1)).astype(np.int64)
  changes = exponents[1:] != exponents[:-1]
  place = np.concatenate([[0], changes.cumsum()])
  firsts = np.concatenate([exponents[:1], exponents[1:].compress(changes)])
  counts = np.bincount(place * _BUCKETS + buckets, minlength=len(firsts) * _BUCKETS)
  counts = counts.reshape(-1, _BUCKETS).astype(np.float64)
  overhead = _STREAM_BITS / step
  bits, levels = _best(counts, overhead)
  for _ in range(_ROUNDS):
    if len(firsts) == 1:
      break
    joined = counts[:-1] + counts[1:]
    joined_bits, joined_levels = _best(joined, overhead)
    gain = bits[:-1] + bits[1:] - joined_bits
    if len(firsts) > _MOST_CLASSES:
      gain = np.abs(gain)
    # All at once that are better than joining a neighbour with its other neighbour.
    around = np.pad(gain, 1, constant_values=-1)
    at = np.flatnonzero((gain >= 0) & (gain >= around[2:]) & (gain > around[:-2]))
    if not len(at):
      break
    counts[at], bits[at], levels[at] = joined[at], joined_bits[at], joined_levels[at]
    kept = np.delete(np.arange(len(firsts)), at + 1)
    counts, bits, levels, firsts = counts[kept], bits[kept], levels[kept], firsts[kept]
  return list(zip([0, *firsts[1:].tolist()], levels.tolist(), strict=True))


def _best(counts: Array, overhead: float) -> tuple[Array, Array]:
  """Fewest bits that classes with such counts [class, bucket] take, and with how many levels."""
  small = (4 * np.log2(np.arange(1, _MOST_LEVELS + 2))).astype(int)  # buckets of 0, 1, 2, …
  information = lambda n: n * np.log2(np.maximum(n, 1))
  tail = counts[:, ::-1].cumsum(1)[:, ::-1]
  above = tail[:, small]  # how many are at least 0, 1, 2, …
  width = np.maximum(np.diff(2 ** (np.arange(_BUCKETS + 1) / 4)), 1)
  inside = (information(counts) - counts * np.log2(width))[:, ::-1].cumsum(1)[:, ::-1][:, small]
  entropy = information(above) - inside  # of all that is left, in bits
  # A symbol takes at least a bit: eight positions of a plane, or a byte. What bytes lose where one
  # of them is frequent was measured.
  planes = np.maximum(1.03 * (entropy[:, :-1] - entropy[:, 1:]), above[:, :-1] / 8)
  planes = planes + np.where(above[:, :-1] > 0, overhead, 0.0)
  frequent = counts[:, small] / np.maximum(above, 1)
  lost = above * np.maximum(0.06, 1.2 * (frequent - 0.25))
  rest = np.where(above > 0, np.maximum(entropy + lost, above) + 2 * overhead, 0.0)
  total = np.pad(planes.cumsum(1), ((0, 0), (1, 0))) + rest
  return total.min(1), total.argmin(1)

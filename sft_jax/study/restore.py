"""Rebuilds a fine-tuned model bit for bit: python restore.py DELTA BASE_DIR OUT_DIR (FORMAT.md)."""

import hashlib
import json
import os
import sys
import tempfile
import zlib
from concurrent import futures

import numpy as np
import zstandard as zstd

MAGIC = [b'SFTDELTA', b'1']
KINDS = {'BF16': ('<u2', 7), 'F16': ('<u2', 10), 'F32': ('<u4', 23), 'U8': ('<u1', 8)}


def ordered(bits):  # sign and magnitude to integers in the order of the floats, and back
  return bits ^ ((bits.view(f'i{bits.itemsize}') >> 8 * bits.itemsize - 1).view(bits.dtype) >> 1)


def by_exponent(bits, mantissa):  # positions by rising exponent, and those exponents
  exponent = ((bits & ((1 << (8 * bits.itemsize - 1)) - 1)) >> mantissa).astype(np.uint8)
  return (places := np.argsort(exponent, kind='stable')), exponent.take(places)


def predict(raw, held, kind):  # bytes of the base to bits of the same values in another type
  bits = np.frombuffer(raw, KINDS[held][0])
  if (held, kind) == ('F32', 'BF16'):  # to nearest, ties to even
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype('<u2')
  return bits.astype('<u4') << 16 if (held, kind) == ('BF16', 'F32') else bits


def decode(data, base, mantissa):  # a chunk of the model from that of the base
  places, rising = by_exponent(base, mantissa)
  cuts = [*np.searchsorted(rising, np.frombuffer(data, np.uint8, data[0], 1)), len(base)]
  at, zigzag = 1 + 2 * data[0], np.empty_like(base)

  def stream(count):
    nonlocal at
    at += 4 + (size := int.from_bytes(data[at : at + 4], 'little'))
    return np.frombuffer(zstd.decompress(data[at - size : at]) if size else bytes(count), np.uint8)

  for first, last, levels in zip(cuts, cuts[1:], data[1 + data[0] :], strict=False):
    values, beyond = np.zeros(last - first, base.dtype), np.arange(last - first)
    for _ in range(levels):  # a bit each: whether it is greater
      beyond = beyond.compress(np.unpackbits(stream(len(beyond)), count=len(beyond)))
      values[beyond] += 1
    for i in range(base.itemsize):
      values[beyond] += stream(len(beyond)).astype(base.dtype) << 8 * i
    zigzag[places[first:last]] = values
  return ordered(ordered(base) + ((zigzag >> 1) ^ (0 - (zigzag & 1))))


def read(path, at, size, crc, message):
  with open(path, 'rb') as f:
    f.seek(at)
    if zlib.crc32(data := f.read(size)) != crc:
      raise ValueError(f'{message} ({path})')
  return data


def chunk(delta, base_dir, start, part, count, at, size, crc, *where):
  name, (code, mantissa), base = part['name'], KINDS[part['kind']], part['base']
  data = read(delta, start + at, size, crc, f'{name} is cut short or damaged')
  raw = base and read(f'{base_dir}/{base[0]}', *where, f'{name} is of another base')
  bits = predict(raw, base[1], part['kind']) if base else np.zeros(count, code)
  return decode(data, bits, mantissa).data


def header(delta):  # it, and where the chunks begin
  with open(delta, 'rb') as f:
    words = (line := f.readline(64)).split()
  if words[:2] != MAGIC:
    raise ValueError(f'this is no delta of format {MAGIC[1].decode()} ({delta})')
  packed = read(delta, len(line), int(words[2]), int(words[3]), 'the header is cut or damaged')
  return json.loads(zstd.decompress(packed)), len(line) + len(packed)


def restore(delta, base_dir, out_dir, threads=2):
  head, start = header(delta)
  beside = os.path.dirname(os.path.abspath(out_dir))
  with futures.ThreadPoolExecutor(threads) as pool, tempfile.TemporaryDirectory(dir=beside) as made:
    for name, file in head['files'].items():
      if not (path := os.path.normpath(f'{made}/{name}')).startswith(f'{made}/'):
        raise ValueError(f'{name} would lie outside of {out_dir}')
      os.makedirs(os.path.dirname(path), exist_ok=True)
      jobs = [(delta, base_dir, start, p, *c) for p in file['parts'] for c in p['chunks']]
      with open(path, 'w+b') as f:
        for i in range(0, len(jobs), 8 * threads):  # few in memory at once
          f.writelines(pool.map(chunk, *zip(*jobs[i : i + 8 * threads], strict=True)))
        f.seek(0)
        if hashlib.file_digest(f, 'sha256').hexdigest() != file['sha256']:
          raise ValueError(f'{name} was restored with other contents than were stored')
    os.chmod(made, 0o755)
    os.rename(made, out_dir)  # a directory that is not empty is refused


if __name__ == '__main__':
  try:
    restore(*sys.argv[1:4])
  except (ValueError, OSError, TypeError) as e:
    sys.exit(f'error: {e}' if len(sys.argv) == 4 else __doc__)

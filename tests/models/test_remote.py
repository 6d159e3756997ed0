"""Models in an object store: fsspec's memory, which epath reads as it reads a bucket."""

import json
import random

import jax
import numpy as np
import pytest
from etils.epath import backend, gpath
from fsspec.implementations.memory import MemoryFileSystem

from sft_jax import fetch
from sft_jax.models import export, hf, hf_dir, remote, source
from sft_jax.models.config import ModelConfig
from sft_jax.parallel import mesh as mesh_lib
from sft_jax.utils import log, trees
from sft_jax.utils.errors import UserError
from tests import tiny

ADDRESS = 'gs://bucket/models/tiny'


@pytest.fixture
def store(monkeypatch):
  """The object store, empty; `store.put_model(directory)` fills it."""
  held = MemoryFileSystem()
  held.store.clear()
  monkeypatch.setattr(gpath, '_is_tf_installed', lambda: False)
  monkeypatch.setattr(backend._FileSystemSpecBackend, 'fs', lambda self, path: held)

  def put_model(directory):
    for file in directory.rglob('*'):
      if file.is_file():
        held.pipe(f'{ADDRESS}/{file.relative_to(directory).as_posix()}', file.read_bytes())
    return held

  yield put_model
  held.store.clear()


def refused(*words):
  with pytest.raises(UserError) as caught:
    source.resolve(ADDRESS)
  line = str(caught.value)
  assert ADDRESS in line and '\n' not in line and '/tmp' not in line, line
  assert all(word in line for word in words), line


@pytest.mark.parametrize('shape', [(1, 1, 1), (1, 4, 2)])
def test_parameters_tokenizer_and_identity_are_those_of_the_directory(
  shape, store, tiny_sharded_dir, tmp_path
):
  store(tiny_sharded_dir)
  here, there = source.resolve(str(tiny_sharded_dir)), source.resolve(ADDRESS)
  assert there.fingerprint() == here.fingerprint() and there.name == ADDRESS
  assert there.tensors == here.tensors and there.license == here.license
  assert there.tokenizer()('Seven is 7.').input_ids == here.tokenizer()('Seven is 7.').input_ids
  cfg = ModelConfig.from_hf(there.config)
  mesh = mesh_lib.make_mesh(*shape, devices=jax.devices()[: np.prod(shape)])
  params = trees.flatten(hf.load_params(there, cfg, mesh))
  for path, want in trees.flatten(hf.load_params(here, cfg, mesh)).items():
    np.testing.assert_array_equal(params[path], want, err_msg=path)
  export.export_hf(tmp_path / 'out', cfg, trees.unflatten(params), there, dtype='bfloat16')
  again = source.resolve(str(tmp_path / 'out'))
  assert again.tensors == here.tensors


def test_any_slice_of_any_type(store, tiny_llama_dir, tmp_path):
  checkpoint = source.resolve(str(tiny_llama_dir))
  cfg = ModelConfig.from_hf(checkpoint.config)
  params = hf.load_params(checkpoint, cfg, mesh_lib.make_mesh())
  for dtype in export.DTYPES:
    export.export_hf(tmp_path / 'out', cfg, params, checkpoint, dtype=dtype)
    store(tmp_path / 'out')
    here, there = source.resolve(str(tmp_path / 'out')), source.resolve(ADDRESS)
    draw = random.Random(0)
    for name, info in here.tensors.items():
      ends = [sorted(draw.choices(range(n + 1), k=2)) for n in info.shape]
      for index in ((), tuple(slice(*pair) for pair in ends), (slice(0, 1),)):
        got, want = there.read(name, index), here.read(name, index)
        assert got.dtype == want.dtype
        np.testing.assert_array_equal(got, want, err_msg=name)


def test_only_rows_that_are_wanted_are_read(store, tiny_llama_dir):
  held = store(tiny_llama_dir)
  there = source.resolve(ADDRESS)
  file = held.store[held._strip_protocol(f'{ADDRESS}/model.safetensors')]
  taken, read = [], type(file).read
  counted = lambda self, *args: taken.append(len(out := read(self, *args))) or out
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(type(file), 'read', counted)
    there.read('lm_head.weight', (slice(100, 103), slice(None)))
  assert sum(taken) == 3 * 64 * 4


def test_what_is_wrong_there_is_one_line(store, tiny_sharded_dir, monkeypatch):
  refused('no such directory')
  held = store(tiny_sharded_dir)
  shard = sorted(p.name for p in tiny_sharded_dir.glob('*.safetensors'))[0]
  whole = held.cat(f'{ADDRESS}/{shard}')
  held.pipe(f'{ADDRESS}/{shard}', whole[:-5])
  refused('truncated', shard)
  held.rm(f'{ADDRESS}/{shard}')
  refused(f'the index names {shard}, which is missing')
  held.pipe(f'{ADDRESS}/{shard}', whole)
  checkpoint = source.resolve(ADDRESS)
  held.pipe(f'{ADDRESS}/{shard}', whole[:200])
  with pytest.raises(UserError, match='ends early'):
    for name in checkpoint.tensors:
      checkpoint.read(name)
  held.pipe(f'{ADDRESS}/config.json', b'{')
  refused('not readable as JSON', 'config.json')
  held.pipe(f'{ADDRESS}/config.json', json.dumps({}).encode())
  held.rm(f'{ADDRESS}/{hf_dir.INDEX}')
  refused('model.safetensors is missing')

  def deny(self, *args):
    raise RuntimeError('403 no access\nwith a page of HTML')

  monkeypatch.setattr(type(held), 'isdir', deny)
  refused('cannot be read: 403 no access with a page', 'credentials')
  with pytest.raises(UserError, match='not an object store'):
    source.resolve('http://host/model')


def test_copies_go_with_the_checkpoint(store, tiny_llama_dir):
  store(tiny_llama_dir)
  checkpoint = remote.RemoteCheckpoint(ADDRESS)
  (place,) = {file.parent for file in checkpoint.tokenizer_files()}
  assert place.is_dir() and not list(place.glob('*.safetensors'))
  del checkpoint
  assert not place.exists()


def test_a_run_begins_there(store, tiny_files, tmp_path, monkeypatch):
  model, data = tiny_files
  store(model)
  least = {'train__epochs': 0.25, 'eval__train_limit': 0, 'checkpoint__every_steps': 0}
  least |= {'eval__tasks': '', 'data__heldout_share': 0.0, 'export__format': 'delta'}
  least |= {'train__snapshot_at': '', 'train__method': 'full', 'log__tensorboard': False}
  least |= {'cache_dir': str(tmp_path / 'cache')}
  said = []
  monkeypatch.setattr(log, 'say', said.append)
  config = tiny.config(ADDRESS, data, **least)
  fetch.fetch(config)
  assert f'model     {ADDRESS}: read from there by every run' in said
  for place, given in (('there', config), ('here', tiny.config(model, data, **least))):
    tiny.run(tmp_path / place, given)
  there, here = (tiny.read_jsonl(tmp_path / w / 'metrics.jsonl')[0] for w in ('there', 'here'))
  assert there['loss'] == here['loss']
  # The base's own copy, which a delta needs, as for a model that is no directory here.
  assert list((tmp_path / 'cache' / 'bases').iterdir())

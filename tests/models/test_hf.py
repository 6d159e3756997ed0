"""Loading: values equal those of the file, whatever the mesh; bad tensors are named."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sft_jax.models import families, hf, source
from sft_jax.models.config import ModelConfig
from sft_jax.utils import trees
from sft_jax.utils.errors import UserError
from tests.models.conftest import make_mesh, one_device_mesh


def load(directory, mesh=None, dtype=jnp.float32):
  ckpt = source.resolve(str(directory))
  cfg = ModelConfig.from_hf(ckpt.config)
  return cfg, trees.flatten(hf.load_params(ckpt, cfg, mesh or one_device_mesh(), dtype))


def torch_state(directory):
  torch = pytest.importorskip('torch')
  import transformers

  model = transformers.LlamaForCausalLM.from_pretrained(directory, dtype=torch.float32)
  return {name: value.numpy() for name, value in model.state_dict().items()}


def rewrite(directory, change, name='model.safetensors'):
  """Loads the weights file, lets `change` edit the dict, and writes it back."""
  from safetensors.numpy import load_file, save_file

  tensors = load_file(directory / name)
  change(tensors)
  save_file(tensors, directory / name, metadata={'format': 'pt'})


@pytest.mark.parametrize('fixture', ['tiny_llama_dir', 'tiny_tied_dir', 'tiny_sharded_dir'])
def test_values_are_those_of_transformers(fixture, request):
  directory = request.getfixturevalue(fixture)
  cfg, flat = load(directory)
  state = torch_state(directory)
  assert flat.keys() == families.shapes(cfg).keys()
  assert ('head/kernel' in flat) == (fixture != 'tiny_tied_dir')
  for row in families.rows(cfg):
    parts = [state[name] for name in hf.hf_names(row, cfg)]
    parts = [part.T if row.transposed else part for part in parts]
    want = np.stack(parts) if row.path.startswith('layers/') else parts[0]
    np.testing.assert_array_equal(flat[row.path], want, err_msg=row.path)


@pytest.mark.parametrize('shape', [(2, 4, 1), (1, 4, 2), (1, 2, 4), (8, 1, 1)])
def test_every_mesh_loads_the_same_values(shape, tiny_sharded_dir):
  if jax.device_count() < 8:
    pytest.skip('needs 8 devices')
  mesh = make_mesh(*shape)
  _, want = load(tiny_sharded_dir)
  cfg, got = load(tiny_sharded_dir, mesh)
  expected = hf.param_shardings(cfg, mesh)
  for path, value in got.items():
    assert value.sharding == expected[path]
    np.testing.assert_array_equal(value, want[path], err_msg=path)


def test_reads_only_the_slices_a_device_needs(tiny_llama_dir, monkeypatch):
  if jax.device_count() < 8:
    pytest.skip('needs 8 devices')
  ckpt = source.resolve(str(tiny_llama_dir))
  cfg = ModelConfig.from_hf(ckpt.config)
  read, sizes = ckpt.read, []

  def counted(name, index=()):
    value = read(name, index)
    sizes.append(value.size)
    return value

  monkeypatch.setattr(ckpt, 'read', counted)
  hf.load_params(ckpt, cfg, make_mesh(2, 2, 2))
  total = sum(np.prod(shape) for shape in families.shapes(cfg).values())
  assert sum(sizes) == total, 'each number of the file is read once, replicas included'


def test_dtype(tiny_llama_dir):
  _, wide = load(tiny_llama_dir)
  _, narrow = load(tiny_llama_dir, dtype=jnp.bfloat16)
  for path, value in narrow.items():
    assert value.dtype == jnp.bfloat16
    np.testing.assert_array_equal(value, wide[path].astype(jnp.bfloat16))


def test_tied_checkpoint_may_carry_an_equal_head(tiny_tied_dir, tmp_path):
  directory = shutil.copytree(tiny_tied_dir, tmp_path / 'tied')
  embedding, head = 'model.embed_tokens.weight', 'lm_head.weight'
  rewrite(directory, lambda t: t.update({head: t[embedding].copy()}))
  load(directory)
  rewrite(directory, lambda t: t.update({head: t[embedding] + 1}))
  with pytest.raises(UserError, match=r'lm_head.weight differs .*tie_word_embeddings'):
    load(directory)


Q = 'model.layers.1.self_attn.q_proj.weight'


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    (lambda t: t.pop(Q), f'tensor {Q} is missing'),
    (
      lambda t: t.update({Q.replace('weight', 'qweight'): t.pop(Q)}),
      f'tensor {Q} is missing, but there is .*q_proj.qweight',
    ),
    (lambda t: t.pop('lm_head.weight'), 'tensor lm_head.weight is missing'),
    (lambda t: t.update({Q: t[Q][:32].copy()}), rf'tensor {Q} has shape \[32, 64\].*\[64, 64\]'),
    (lambda t: t.update(surplus=t[Q]), 'unexpected tensor surplus'),
    (
      lambda t: t.update({Q.replace('weight', 'bias'): t[Q][0]}),
      'unexpected tensor .*q_proj.bias',
    ),
    (lambda t: t[Q].__setitem__((3, 3), np.nan), f'tensor {Q} holds NaN or infinity'),
    (lambda t: t[Q].__setitem__((3, 3), -np.inf), f'tensor {Q} holds NaN or infinity'),
    (lambda t: t.update({Q: t[Q].astype(np.int8)}), f'tensor {Q} is stored as I8'),
  ],
)
def test_bad_tensors_are_named(change, message, tiny_copy):
  rewrite(tiny_copy, change)
  with pytest.raises(UserError, match=message) as caught:
    load(tiny_copy)
  assert str(tiny_copy) in str(caught.value) and caught.value.how


def test_large_finite_weights_are_accepted(tiny_copy):
  rewrite(tiny_copy, lambda t: t[Q].fill(3e38))  # their float32 sum overflows
  load(tiny_copy)


def test_ignored_tensor(tiny_copy):
  rewrite(tiny_copy, lambda t: t.update({'model.layers.0.self_attn.rotary_emb.inv_freq': t[Q][0]}))
  load(tiny_copy)


def test_absurd_number_of_layers_is_refused_at_once(tiny_copy):
  config = json.loads((tiny_copy / 'config.json').read_text())
  (tiny_copy / 'config.json').write_text(json.dumps({**config, 'num_hidden_layers': 2**40}))
  with pytest.raises(UserError, match='1099511627776 layers cannot be'):
    load(tiny_copy)


def test_unsupported_architecture_names_the_supported(tiny_copy):
  config = json.loads((tiny_copy / 'config.json').read_text())
  config['architectures'] = ['MambaForCausalLM']
  (tiny_copy / 'config.json').write_text(json.dumps(config))
  with pytest.raises(UserError, match=r'MambaForCausalLM.*supported: .*LlamaForCausalLM'):
    load(tiny_copy)


def test_init_params_is_sharded_and_reproducible(tiny_llama_dir):
  if jax.device_count() < 8:
    pytest.skip('needs 8 devices')
  cfg = ModelConfig.from_hf(source.resolve(str(tiny_llama_dir)).config)
  one = trees.flatten(hf.init_params(cfg, one_device_mesh(), seed=3))
  mesh = make_mesh(2, 2, 2)
  many = trees.flatten(hf.init_params(cfg, mesh, seed=3))
  other = trees.flatten(hf.init_params(cfg, mesh, seed=4))
  for path, value in one.items():
    assert many[path].sharding == hf.param_shardings(cfg, mesh)[path]
    np.testing.assert_array_equal(value, many[path], err_msg=path)
    if path.endswith('/scale'):
      assert (np.asarray(value) == 1).all()
    else:
      assert abs(float(value.std()) - 0.02) < 1e-3
      assert not np.array_equal(value, other[path])

"""Layer changes of checkpoints on disk beside those of the same parameters in memory."""

import json
import pathlib
import shutil

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from sft_jax.evals.probes import layer_delta, layer_report
from sft_jax.models import hf, lora, peft, source
from sft_jax.models.config import ModelConfig
from sft_jax.parallel import mesh as meshes
from sft_jax.utils import trees
from sft_jax.utils.errors import UserError
from tests import zoo
from tests.models.conftest import write_tiny_llama


@pytest.fixture(scope='module')
def pair(tmp_path_factory):
  """Directories of a base and of a model near it."""
  place = tmp_path_factory.mktemp('pair')
  write_tiny_llama(place / 'base')
  return place / 'base', moved(place / 'base', place / 'tuned')


def moved(base: pathlib.Path, tuned: pathlib.Path) -> pathlib.Path:
  shutil.copytree(base, tuned)
  for file in tuned.glob('*.safetensors'):
    rng = np.random.default_rng(1)
    tensors = load_file(file)
    near = {
      name: (x + 1e-3 * rng.normal(size=x.shape)).astype(x.dtype) for name, x in tensors.items()
    }
    save_file(near, file, metadata={'format': 'pt'})
  return tuned


def load(directory):
  import jax

  ckpt = source.resolve(str(directory))
  mesh = meshes.make_mesh(1, 1, 1, devices=jax.devices()[:1])
  return hf.load_params(ckpt, ModelConfig.from_hf(ckpt.config), mesh, jnp.float32)


def assert_same(got, want, rtol=1e-5):
  assert got.keys() == want.keys()
  for module, numbers in want.items():
    for name, values in numbers.items():
      np.testing.assert_allclose(got[module][name], values, rtol=rtol, err_msg=f'{module} {name}')


def report(base, tuned):
  return layer_report.layer_report(source.resolve(str(base)), source.resolve(str(tuned)))


@pytest.mark.parametrize('block', [None, 100])
def test_equals_the_change_in_memory(pair, monkeypatch, block):
  if block:
    monkeypatch.setattr(layer_report, '_BLOCK_VALUES', block)
  assert_same(report(*pair), layer_delta.layer_delta(load(pair[0]), load(pair[1])))


def test_nothing_moved(pair):
  assert not any(report(pair[0], pair[0])['all']['norm'])


def test_fused_tensors_are_told_apart(tmp_path):
  zoo.build('phi3', tmp_path / 'base')
  tuned = moved(tmp_path / 'base', tmp_path / 'tuned')
  got = report(tmp_path / 'base', tuned)
  assert {'layers/attn/q', 'layers/attn/k', 'layers/mlp/up'} <= set(got)
  assert_same(got, layer_delta.layer_delta(load(tmp_path / 'base'), load(tuned)))


def test_adapter_equals_the_merged_model(pair, tmp_path):
  """To 1e-5, without the product."""
  base = load(pair[0])
  cfg = ModelConfig.from_hf(source.resolve(str(pair[0])).config)
  adapter = zoo.random_adapter(cfg)
  peft.export_peft(tmp_path / 'peft', cfg, adapter, 3, 6.0)
  got = layer_report.adapter_report(source.resolve(str(pair[0])), str(tmp_path / 'peft'))
  wide = {path: np.asarray(x, np.float64) for path, x in trees.flatten(base).items()}
  factors = trees.flatten(adapter)
  for module in lora.linear_modules(cfg):
    if f'{module}/lora_a' in factors:
      a, b = (np.asarray(factors[f'{module}/lora_{x}'], np.float64) for x in 'ab')
      want = np.linalg.norm(2.0 * a @ b, axis=(1, 2))
      np.testing.assert_allclose(got[module]['norm'], want, rtol=1e-5)
      old = np.linalg.norm(wide[f'{module}/kernel'], axis=(1, 2))
      np.testing.assert_allclose(got[module]['relative'], want / old, rtol=1e-5)


def test_an_architecture_without_a_table(pair, tmp_path):
  """Matrices in numbered layers, by the names they have."""
  for name, directory in zip(('base', 'tuned'), pair, strict=True):
    shutil.copytree(directory, tmp_path / name)
    config = json.loads((tmp_path / name / 'config.json').read_text())
    config['architectures'] = ['NovelForCausalLM']
    (tmp_path / name / 'config.json').write_text(json.dumps(config))
  got, want = report(tmp_path / 'base', tmp_path / 'tuned'), report(*pair)
  np.testing.assert_allclose(got['all']['norm'], want['all']['norm'])
  assert got['self_attn.q_proj']['norm'] == pytest.approx(want['layers/attn/q']['norm'])


def test_models_that_do_not_belong_together(pair, tmp_path):
  other = tmp_path / 'other'
  shutil.copytree(pair[1], other)
  file = next(other.glob('*.safetensors'))
  tensors = load_file(file)
  name = next(n for n in tensors if n.endswith('q_proj.weight'))
  save_file(tensors | {name: tensors[name][:-1].copy()}, file)
  with pytest.raises(UserError, match='has shape'):
    report(pair[0], other)
  save_file({n: x for n, x in tensors.items() if n != name}, file)
  with pytest.raises(UserError, match='is missing'):
    report(pair[0], other)
  save_file(tensors | {name: np.full_like(tensors[name], np.nan)}, file)
  with pytest.raises(UserError, match='NaN'):
    report(pair[0], other)

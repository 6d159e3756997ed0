"""Integer bases: rounding by hand, gradients, sharding, and what SmolLM2 loses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sft_jax.evals import model as eval_model
from sft_jax.evals import score
from sft_jax.models import hf, layers, quantize, source
from sft_jax.models.config import ModelConfig
from sft_jax.utils import trees
from tests.models.conftest import make_mesh, one_device_mesh

TOP = {'int8': 127, 'int4': 7}
SIZE = {'int8': 128, 'int4': 64}  # inputs that share a scale, of the 128 below


@pytest.mark.parametrize('kind', quantize.DTYPES)
def test_rounding_is_to_nearest_and_symmetric(kind):
  kernel = np.random.default_rng(0).standard_normal((2, 128, 5)).astype(np.float32)
  kernel[0, :, 3] = 0
  integers, scale = quantize.quantize_kernel(jnp.asarray(kernel), kind)
  integers = np.asarray(integers.astype(jnp.int8)).reshape(2, -1, SIZE[kind], 5)
  groups = kernel.reshape(integers.shape)
  np.testing.assert_allclose(scale, np.abs(groups).max(2) / TOP[kind], rtol=1e-6)
  error = np.abs(integers * np.asarray(scale)[:, :, None] - groups)
  assert (error <= np.asarray(scale)[:, :, None] * 0.5001).all()
  assert integers.max() == TOP[kind] and integers.min() == -TOP[kind]
  assert not integers[0, ..., 3].any()


@pytest.mark.parametrize('kind', quantize.DTYPES)
def test_product_and_gradient_are_those_of_the_wide_kernel(kind):
  draw = np.random.default_rng(1)
  x, kernel = (draw.standard_normal(s).astype(np.float32) for s in ((3, 128), (1, 128, 9)))
  integers, scale = (leaf[0] for leaf in quantize.quantize_kernel(jnp.asarray(kernel), kind))
  wide = layers.widened(integers, scale)
  small = jax.value_and_grad(lambda x: jnp.sin(layers.integer_matmul(x, integers, scale)).sum())
  plain = jax.value_and_grad(lambda x: jnp.sin(x @ wide).sum())
  for ours, want in zip(small(jnp.asarray(x)), plain(jnp.asarray(x)), strict=True):
    np.testing.assert_allclose(ours, want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('kind', quantize.DTYPES)
def test_eight_devices_make_the_integers_that_one_makes(kind, tiny_llama_dir):
  checkpoint = source.resolve(str(tiny_llama_dir))
  cfg = ModelConfig.from_hf(checkpoint.config)
  load = lambda mesh: trees.flatten(quantize.load_params(checkpoint, cfg, mesh, jnp.float32, kind))
  one, eight = load(one_device_mesh()), load(make_mesh(1, 4, 2))
  plain = hf.load_params(checkpoint, cfg, make_mesh(1, 4, 2))
  for path, leaf in one.items():
    np.testing.assert_array_equal(
      np.asarray(leaf.astype(jnp.float32)), np.asarray(eight[path].astype(jnp.float32)), path
    )
  for path, leaf in trees.flatten(plain).items():
    assert eight[path].sharding == leaf.sharding, path


def test_what_smollm2_loses(smollm2):
  """Perplexity of the built-in texts; `benchmarks/quantized.py` measures real data and training."""
  from sft_jax.data import datasets, tokenize

  cfg = ModelConfig.from_hf(smollm2.config)
  _, records = datasets.load_records(
    name='builtin', path='', fmt='auto', size=0, seed=0, heldout_share=0.1
  )
  options = (smollm2.tokenizer(), 'chat', 'response', 256, 'truncate')
  texts, _ = tokenize.encode_all(records[:8], *options)
  found = {}
  for kind in ('none', *quantize.DTYPES):
    mesh = one_device_mesh()
    base = quantize.load_params(smollm2, cfg, mesh, jnp.float32, kind)
    logprobs = score.token_logprobs(eval_model.single(cfg, base, jnp.float32, mesh), texts)
    found[kind] = score.perplexity(texts, logprobs, 'x')['ppl-x-response']
  assert found['int8'] == pytest.approx(found['none'], rel=0.01)
  assert found['int4'] == pytest.approx(found['none'], rel=0.6)
  assert found['int4'] != found['int8'] != found['none']

"""Weight change of layers against numpy norms of the matrices themselves."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sft_jax.evals.probes import layer_delta
from sft_jax.models import families, hf, lora
from sft_jax.parallel import mesh as meshes
from sft_jax.utils import trees
from tests.train import common

CFG = common.config(num_hidden_layers=3, attention_bias=True, tie_word_embeddings=False)


def moved(base, size=1e-3, seed=1):
  """A model near `base`; everything in it has moved."""
  rng = np.random.default_rng(seed)
  return trees.map_with_path(
    lambda path, x: x + jnp.asarray(size * rng.normal(size=x.shape), x.dtype), base
  )


def by_hand(before, after):
  """{module: ([L] norms, [L] relative)} in float64, with 'all'."""
  before, after = trees.flatten(before), trees.flatten(after)
  out, sums = {}, np.zeros((2, CFG.num_layers))
  for path, old in before.items():
    if not (path.startswith('layers/') and path.endswith('/kernel')):
      continue
    old = np.asarray(old, np.float64)
    change = np.asarray(after[path], np.float64) - old
    squares = np.array([[(x[layer] ** 2).sum() for layer in range(CFG.num_layers)]
                        for x in (change, old)])  # fmt: skip
    sums += squares
    out[path.removesuffix('/kernel')] = squares
  out['all'] = sums
  return {name: (np.sqrt(a), np.sqrt(a / b)) for name, (a, b) in out.items()}


def assert_equal(got, want, rtol):
  assert got.keys() == want.keys()
  for name, (norm, relative) in want.items():
    np.testing.assert_allclose(got[name]['norm'], norm, rtol=rtol, err_msg=name)
    np.testing.assert_allclose(got[name]['relative'], relative, rtol=rtol, err_msg=name)


def test_full():
  base = common.params(CFG)
  after = moved(base)
  got = layer_delta.layer_delta(base, after)
  assert len(got) == 8, 'seven kinds of linear modules, and all of them'
  # The difference of float32 numbers is exact; what is left is the order of the sums.
  assert_equal(got, by_hand(base, after), 1e-5)


def test_embedding_head_norms_and_biases_do_not_count():
  base = common.params(CFG)
  after = trees.map_with_path(
    lambda path, x: x if path.endswith('kernel') and 'layers' in path else x + 1, base
  )
  for module in layer_delta.layer_delta(base, after).values():
    assert not any(module['norm']) and not any(module['relative'])


@pytest.mark.parametrize('ranks', [[4], [2, 16]])
def test_adapter_equals_the_merged_difference(ranks):
  """Without forming the product; with a scale in each layer and a padded rank."""
  base = common.params(CFG)
  modules = lora.match_targets(CFG, 'all-linear')
  adapter = lora.one_run(common.adapter(CFG, ranks, [0, 1][: len(ranks)], modules, 0.1), 0)
  scale = np.array([2.0, 0.25, 8.0], np.float32)
  flat = trees.flatten(base)
  wide = {path: np.asarray(x, np.float64) for path, x in flat.items()}
  for module in modules:
    a, b = (np.asarray(trees.flatten(adapter)[f'{module}/lora_{x}'], np.float64) for x in 'ab')
    wide[f'{module}/kernel'] = wide[f'{module}/kernel'] + scale[:, None, None] * (a @ b)
  got = layer_delta.layer_delta(base, adapter=adapter, scale=scale)
  assert_equal(got, by_hand(base, trees.unflatten(wide)), 1e-5)
  # The product itself, as `lora.merge` forms it, agrees as far as float32 sums allow.
  merged = layer_delta.layer_delta(base, lora.merge(base, adapter, scale))
  np.testing.assert_allclose(got['all']['norm'], merged['all']['norm'], rtol=1e-4)


def test_modules_without_an_adapter_and_layers_that_are_off():
  base = common.params(CFG)
  adapter = lora.one_run(common.adapter(CFG, [4], [0], b_size=0.1), 0)
  got = layer_delta.layer_delta(base, adapter=adapter, scale=jnp.array([1.0, 0.0, 1.0]))
  assert set(got) == {*lora.linear_modules(CFG), 'all'}
  for name, module in got.items():
    expected = [name == 'all' or name in common.MODULES, False]
    assert [norm > 0 for norm in module['norm'][:2]] == expected, name


def test_nothing_moved():
  base = common.params(CFG)
  fresh = lora.one_run(common.adapter(CFG, [4], [0]), 0)
  for got in (
    layer_delta.layer_delta(base, base),
    layer_delta.layer_delta(base, adapter=fresh, scale=jnp.ones(3)),
  ):
    assert all(value == 0 for module in got.values() for value in module['norm'])


def test_a_bfloat16_base_is_compared_in_float32():
  base = common.params(CFG, dtype=jnp.bfloat16)
  after = moved(jax.tree.map(lambda x: x.astype(jnp.float32), base), 1e-5)
  assert_equal(layer_delta.layer_delta(base, after), by_hand(base, after), 1e-4)


def test_eight_devices():
  if jax.device_count() < 8:
    pytest.skip('needs 8 devices')
  base = common.params(CFG)
  after = moved(base)
  shardings = hf.param_shardings(CFG, meshes.make_mesh(1, 4, 2))
  place = lambda tree: trees.map_with_path(lambda path, x: jax.device_put(x, shardings[path]), tree)
  got = layer_delta.layer_delta(place(base), place(after))
  assert_equal(got, by_hand(base, after), 1e-5)


def test_the_paths_are_those_of_the_model():
  linear = {p.removesuffix('/kernel') for p in families.shapes(CFG) if p.endswith('/kernel')}
  got = layer_delta.layer_delta(common.params(CFG), common.params(CFG))
  assert set(got) == {name for name in linear if name.startswith('layers/')} | {'all'}

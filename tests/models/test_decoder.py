"""The decoder against transformers, and against itself: packing, padding, cache, remat, devices."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sft_jax.models import cached, decoder, families, hf, layers
from sft_jax.parallel import mesh as meshes
from sft_jax.utils import trees
from tests.train import common

LENGTHS = (7, 1, 11, 4)


@functools.partial(jax.jit, static_argnames=('cfg', 'remat', 'mesh'))
def logits(cfg, base, tokens, positions, segments, remat='none', mesh=None):
  hidden = decoder.forward(
    cfg, base, tokens, positions, segments, dtype=jnp.float32, remat=remat, mesh=mesh
  )
  return hidden @ decoder.head_kernel(base)


def parts(seed=0):
  rng = np.random.default_rng(seed)
  return [rng.integers(0, common.VOCAB, n).astype(np.int32) for n in LENGTHS]


def row(members, length):
  """One packed row `[1,length]` of tokens, positions and segments."""
  used = sum(len(m) for m in members)
  pad = np.zeros(length - used, np.int32)
  tokens = np.concatenate([*members, pad])
  positions = np.concatenate([*(np.arange(len(m)) for m in members), pad]).astype(np.int32)
  segments = np.concatenate([*(np.full(len(m), i + 1) for i, m in enumerate(members)), pad])
  return tokens[None], positions[None], segments.astype(np.int32)[None]


@pytest.mark.parametrize(
  'changes',
  [
    {},
    {'tie_word_embeddings': False, 'attention_bias': True, 'mlp_bias': True},
    {'num_key_value_heads': 1, 'rope_theta': 500.0, 'rms_norm_eps': 1e-3},
    {'num_key_value_heads': 4, 'num_hidden_layers': 1},
  ],
)
def test_logits_are_those_of_transformers(changes):
  torch = pytest.importorskip('torch')
  cfg = common.config(**changes)
  base = common.params(cfg, 1)
  tokens = np.random.default_rng(2).integers(0, cfg.vocab_size, (3, 17)).astype(np.int32)
  positions = np.broadcast_to(np.arange(17, dtype=np.int32), tokens.shape)
  ours = logits(cfg, base, tokens, positions, np.ones_like(tokens))
  model = common.torch_llama(cfg, base)
  with torch.no_grad():
    theirs = model.eval()(torch.tensor(tokens).long()).logits.numpy()
  np.testing.assert_allclose(ours, theirs, atol=2e-5)


def test_a_packed_row_is_its_parts():
  cfg = common.config()
  base = common.params(cfg)
  packed = logits(cfg, base, *row(parts(), 32))[0]
  at = 0
  for part in parts():
    alone = logits(cfg, base, *row([part], 32))[0, : len(part)]
    np.testing.assert_allclose(packed[at : at + len(part)], alone, atol=2e-5)
    at += len(part)


def test_order_in_the_row_and_what_pads_it_do_not_matter():
  cfg = common.config()
  base = common.params(cfg)
  one, two = parts()[0], parts()[2]
  want = logits(cfg, base, *row([one, two], 32))[0, : len(one)]
  swapped = logits(cfg, base, *row([two, one], 32))[0, len(two) : len(two) + len(one)]
  np.testing.assert_allclose(swapped, want, atol=2e-5)
  tokens, positions, segments = row([one, two], 32)
  tokens[segments == 0], positions[segments == 0] = 77, 5
  other = logits(cfg, base, tokens, positions, segments)[0, : len(one)]
  np.testing.assert_allclose(other, want, atol=2e-5)
  assert np.isfinite(logits(cfg, base, tokens, positions, segments)).all(), 'padding too'


def test_a_token_sees_its_past_only():
  cfg = common.config()
  base = common.params(cfg)
  tokens, positions, segments = row([parts()[2]], 16)
  before = logits(cfg, base, tokens, positions, segments)[0]
  tokens[0, 6] += 1
  after = logits(cfg, base, tokens, positions, segments)[0]
  changed = np.abs(np.asarray(before - after)[:11]).max(axis=-1) > 1e-4
  assert changed.tolist() == [i >= 6 for i in range(11)]


def test_decoding_with_a_cache_equals_the_forward():
  """Rows of different lengths prefilled together, then one token at a time."""
  cfg = common.config(attention_bias=True)
  base = common.params(cfg)
  full = np.stack([np.resize(part, 12) for part in parts() if len(part) > 1])
  lengths = np.array([3, 6, 1])
  positions = np.broadcast_to(np.arange(12, dtype=np.int32), full.shape)
  want = np.asarray(logits(cfg, base, full, positions, np.ones_like(full)))

  @jax.jit
  def run(base, tokens, positions, cache):
    hidden, new = cached.decode(cfg, base, tokens, positions, cache, dtype=jnp.float32)
    return hidden, cached.write(cache, new, positions)

  head = decoder.head_kernel(base)
  width = 6
  # What lies beyond a row's own prompt is rubbish that must not be seen.
  prompt = np.where(np.arange(width)[None] < lengths[:, None], full[:, :width], 99)
  cache = cached.init_cache(cfg, len(full), 16, jnp.float32)
  hidden, cache = run(base, prompt.astype(np.int32), positions[:, :width], cache)
  for i, length in enumerate(lengths):
    np.testing.assert_allclose(hidden[i, :length] @ head, want[i, :length], atol=2e-5)
  for step in range(5):
    at = lengths + step
    tokens = np.take_along_axis(full, at[:, None], 1)
    hidden, cache = run(base, tokens, at[:, None].astype(np.int32), cache)
    got = np.asarray(hidden[:, 0] @ head)
    np.testing.assert_allclose(got, want[np.arange(3), at], atol=2e-5, err_msg=str(step))


@functools.cache
def gradient(remat):
  cfg = common.config()
  base = common.params(cfg)
  tokens, positions, segments = row(parts(), 32)

  def loss(base):
    out = logits(cfg, base, tokens, positions, segments, remat=remat)
    return jnp.sum(jnp.where(segments[..., None] > 0, jax.nn.log_softmax(out)[..., :5], 0))

  value, grads = jax.jit(jax.value_and_grad(loss))(base)
  return float(value), trees.flatten(jax.device_get(grads))


def test_products_in_parts():
  """What GPUs compute of keys and values for one token of each text, alone and of several runs."""
  keys = jax.random.split(jax.random.key(0))
  x = jax.random.normal(keys[0], (3, 2, 1, 2048))
  kernel = jax.random.normal(keys[1], (2048, 512)).astype(jnp.bfloat16)
  found = jax.vmap(layers._in_parts, (0, None))(x, kernel)
  np.testing.assert_allclose(found, x @ kernel.astype(jnp.float32), atol=1e-3)
  assert layers._narrow(x[0], kernel) and not layers._narrow(x[0].swapaxes(0, 1), kernel)


def test_only_whole_kernels_are_cut_for_gpus(monkeypatch):
  """Where devices share the rows of a kernel, parts of them would have to be sent."""
  monkeypatch.setattr(layers, '_NARROW', (1, 64))
  mesh = meshes.make_mesh(data=1, fsdp=4, tensor=1, devices=jax.devices()[:4])
  cfg, one = common.config(), jnp.zeros((4, 1), jnp.int32)
  base = common.params(cfg, 1)
  text = lambda tokens, mesh: str(
    jax.make_jaxpr(lambda: cached.decode(cfg, base, tokens, tokens, None, mesh=mesh)[0])()
  )
  assert 'platform_index' in text(one, None) and 'platform_index' not in text(one, mesh)
  assert 'platform_index' not in text(jnp.zeros((4, 2), jnp.int32), None)


@pytest.mark.parametrize('remat', sorted(set(decoder.REMAT_POLICIES) - {'none'}))
def test_remat_changes_no_number(remat):
  want, want_grads = gradient('none')
  value, grads = gradient(remat)
  assert value == pytest.approx(want, rel=1e-6)
  for path, leaf in want_grads.items():
    np.testing.assert_allclose(grads[path], leaf, atol=1e-4 * np.abs(leaf).max(), err_msg=path)


def kept(remat):
  """Values a layer keeps for its backward pass."""
  cfg = common.config()
  base = common.params(cfg)
  loss = lambda base: logits(cfg, base, *row(parts(), 32), remat=remat).sum()
  outer = jax.make_jaxpr(jax.grad(loss))(base).jaxpr
  while not (scans := [eqn for eqn in outer.eqns if eqn.primitive.name == 'scan']):
    inner = next(eqn for eqn in outer.eqns if 'jaxpr' in eqn.params)
    outer = inner.params['jaxpr'].jaxpr
  return len(scans[0].outvars) - 1


def test_remat_keeps_the_input_of_a_layer_only():
  assert kept('full') == 1 < kept('none')


def test_remat_of_dots_keeps_products():
  """More than `full`, which recomputes them, less than `none`."""
  assert kept('full') < kept('dots') < kept('none')


def test_eight_devices_equal_one():
  if jax.device_count() < 8:
    pytest.skip('needs 8 devices')
  cfg = common.config(tie_word_embeddings=False)
  base = common.params(cfg)
  batch = [np.concatenate([x] * 4) for x in row(parts(), 32)]
  want = logits(cfg, base, *batch)
  mesh = meshes.make_mesh(2, 2, 2)
  shardings = hf.param_shardings(cfg, mesh)
  placed = trees.map_with_path(lambda path, x: jax.device_put(x, shardings[path]), base)
  assert len(placed['layers']['mlp']['up']['kernel'].sharding.device_set) == 8
  got = logits(cfg, placed, *batch, mesh=mesh)
  np.testing.assert_allclose(got, want, atol=2e-5)


def test_every_parameter_is_used():
  """A gradient that is zero everywhere belongs to a parameter that the forward forgot."""
  cfg = common.config(tie_word_embeddings=False, attention_bias=True, mlp_bias=True)
  base = common.params(cfg, 3)
  tokens, positions, segments = row(parts(), 32)
  loss = lambda base: jnp.sin(logits(cfg, base, tokens, positions, segments)).sum()
  grads = trees.flatten(jax.jit(jax.grad(loss))(base))
  assert grads.keys() == families.shapes(cfg).keys()
  for path, leaf in grads.items():
    assert np.abs(np.asarray(leaf)).max() > 0, path

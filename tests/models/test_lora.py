"""Adapters: which modules, how they begin, what they compute; against PEFT where it says."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sft_jax.models import decoder, families, hf, lora
from sft_jax.parallel import mesh as meshes
from sft_jax.parallel import rules
from sft_jax.utils import trees
from sft_jax.utils.errors import UserError
from tests.train import common

ALL = ('q_proj', 'k_proj', 'v_proj', 'o_proj', 'gate_proj', 'up_proj', 'down_proj')


@functools.partial(jax.jit, static_argnames='cfg')
def logits(cfg, base, adapter, scale):
  tokens = np.random.default_rng(5).integers(0, cfg.vocab_size, (2, 13)).astype(np.int32)
  positions = np.broadcast_to(np.arange(13, dtype=np.int32), tokens.shape)
  hidden = decoder.forward(
    cfg,
    base,
    tokens,
    positions,
    np.ones_like(tokens),
    adapter=adapter,
    lora_scale=scale,
    dtype=jnp.float32,
  )
  return hidden @ decoder.head_kernel(base)


@pytest.mark.parametrize(
  ('targets', 'modules'),
  [
    ('q_proj,v_proj', ['attn/q', 'attn/v']),
    (' v_proj , q_proj ', ['attn/q', 'attn/v']),
    ('all-linear', [*(f'attn/{n}' for n in 'qkvo'), *(f'mlp/{n}' for n in ('gate', 'up', 'down'))]),
    ('layers/attn/.*', [f'attn/{n}' for n in 'qkvo']),
    ('layers/mlp/(up|down),o_proj', ['attn/o', 'mlp/up', 'mlp/down']),
    # A comma inside brackets is no end of an expression.
    ('(q|v)_proj{1,2},o_proj', ['attn/q', 'attn/v', 'attn/o']),
    ('[qk,(]_proj,o_proj', ['attn/q', 'attn/k', 'attn/o']),
    (r'(q|,)_proj,(v|\,|\))_proj', ['attn/q', 'attn/v']),
    ('layers/mlp/.{2,4}', ['mlp/gate', 'mlp/up', 'mlp/down']),
  ],
)
def test_targets(targets, modules):
  got = lora.match_targets(common.config(), targets)
  assert sorted(got) == sorted(f'layers/{module}' for module in modules)


@pytest.mark.parametrize(
  ('targets', 'words'),
  [('w_q', "'w_q' matches no linear module"), ('q_proj,lm_head', "'lm_head' matches no"),
   ('attn/q', 'matches no'),
   ('q_proj,(v_proj,o_proj', "'(v_proj,o_proj' is no regular"), ('q_proj),v_proj', 'no regular'),
   ('[', 'no regular expression'), (' , ', 'no target modules'),
   # Among them what Python's `re` needs years or memory for, or ends in an error of its own with.
   ('((((.+)+)+)+)+X', 'matches no linear module'), ('(.*)*' * 20 + 'X', 'matches no linear'),
   ('q_proj{99999999999}', 'matches no linear'), ('(' * 3000 + ')' * 3000, 'matches no linear'),
   ('(((a{999}){999}){999}){999}', 'no regular expression'), ('q_proj(?=x)', 'no regular'),
   ('q_proj)(v_proj', 'no regular'), ('q_proj\\', 'no regular'), ('\ud800', 'no regular')],
)  # fmt: skip
def test_targets_that_match_nothing(targets, words):
  with pytest.raises(UserError) as e:
    lora.match_targets(common.config(), targets)
  assert words in str(e.value) and e.value.where == 'config.lora.targets' and e.value.how
  assert len(str(e.value)) < 700 and '\n' not in str(e.value)


def test_modules_and_shapes_are_those_of_peft():
  peft, config = peft_model('all-linear', rank=3)
  cfg = config
  modules = lora.match_targets(cfg, 'all-linear')
  ours = trees.flatten(lora.init_adapter(cfg, modules, [3], [0]))
  names = lora.linear_modules(cfg)
  assert tuple(names.values()) == ALL
  seen = 0
  for name, value in peft.named_parameters():
    if '.lora_' not in name:
      continue
    module = next(path for path, short in names.items() if f'.{short}.' in name)
    leaf = ours[f'{module}/lora_{"a" if ".lora_A." in name else "b"}']
    assert leaf.shape == (1, cfg.num_layers, *value.shape[::-1]), name
    seen += 1
  assert seen == cfg.num_layers * len(ours)


def peft_model(targets, rank):
  """PEFT's LoRA on a random Llama, and our config of it."""
  pytest.importorskip('torch')
  peft = pytest.importorskip('peft')
  cfg = common.config()
  settings = peft.LoraConfig(r=rank, lora_alpha=8, target_modules=targets, lora_dropout=0.0)
  return peft.get_peft_model(common.torch_llama(cfg, common.params(cfg)), settings), cfg


def test_initial_values_are_distributed_as_pefts():
  """Kaiming-uniform with a = sqrt(5): uniform within 1/sqrt(in); B zero."""
  rank = 16
  model, cfg = peft_model('all-linear', rank)
  modules = lora.match_targets(cfg, 'all-linear')
  ours = trees.flatten(lora.init_adapter(cfg, modules, [rank], [0]))
  names = lora.linear_modules(cfg)
  for path, leaf in ours.items():
    value = np.asarray(leaf)
    if path.endswith('lora_b'):
      assert not value.any()
      continue
    key = f'.{names[path.removesuffix("/lora_a")]}.lora_A.'
    theirs = np.concatenate(
      [p.detach().numpy().ravel() for n, p in model.named_parameters() if key in n]
    )
    bound = 1 / np.sqrt(value.shape[-2])
    for draw in (value, theirs):
      assert 0.97 * bound < np.abs(draw).max() <= bound * (1 + 1e-6), path
      assert draw.std() == pytest.approx(bound / np.sqrt(3), rel=0.1), path
      assert abs(draw.mean()) < 0.15 * bound, path


def test_layers_modules_and_seeds_begin_differently():
  cfg = common.config()
  modules = lora.match_targets(cfg, 'all-linear')
  flat = trees.flatten(lora.init_adapter(cfg, modules, [4, 4, 4], [1, 2, 1]))
  for path, leaf in flat.items():
    if path.endswith('lora_a'):
      assert (leaf[0] != leaf[1]).all() and (leaf[0, 0] != leaf[0, 1]).all()
      np.testing.assert_array_equal(leaf[0], leaf[2])
  same = [leaf[0, 0] for path, leaf in flat.items() if leaf.shape[2:] == (32, 4)]
  assert len(same) > 3
  assert len({np.asarray(leaf).tobytes() for leaf in same if leaf.any()}) >= 3


def test_a_run_does_not_depend_on_its_cohort():
  """Alone or among others of larger rank: the same factors, padded with zeros."""
  cfg = common.config()
  alone = trees.flatten(common.adapter(cfg, [2], [7]))
  among = trees.flatten(common.adapter(cfg, [8, 2, 1], [3, 7, 9]))
  for path, leaf in alone.items():
    a = path.endswith('lora_a')
    padded = among[path][1]
    kept, rest = (padded[..., :2], padded[..., 2:]) if a else (padded[:, :2], padded[:, 2:])
    np.testing.assert_array_equal(kept, leaf[0])
    assert rest.size and not rest.any()


def test_zero_at_the_start():
  cfg = common.config()
  base = common.params(cfg)
  scale = jnp.full(cfg.num_layers, 4.0)
  adapter = lora.one_run(common.adapter(cfg, [4], [0]), 0)
  plain = logits(cfg, base, None, None)
  np.testing.assert_array_equal(logits(cfg, base, adapter, scale), plain)


@pytest.mark.parametrize('ranks', [[4], [2, 8]])
def test_merging_equals_the_activation_path(ranks):
  """With another scale in each layer, and a padded rank."""
  cfg = common.config(attention_bias=True)
  base = common.params(cfg)
  modules = lora.match_targets(cfg, 'all-linear')
  adapter = lora.one_run(common.adapter(cfg, ranks, [0, 1][: len(ranks)], modules, 0.2), 0)
  scale = jnp.array([2.0, 0.25])
  got = logits(cfg, base, adapter, scale)
  want = logits(cfg, lora.merge(base, adapter, scale), None, None)
  np.testing.assert_allclose(got, want, atol=5e-5)
  assert np.abs(got - logits(cfg, base, None, None)).max() > 0.1
  off = logits(cfg, base, adapter, jnp.zeros(2))
  np.testing.assert_array_equal(off, logits(cfg, base, None, None))


def test_merge_is_the_product_and_touches_nothing_else():
  cfg = common.config()
  base = common.params(cfg)
  adapter = lora.one_run(common.adapter(cfg, [3], [0], b_size=0.2), 0)
  scale = np.array([2.0, 0.5], np.float32)
  before, merged = trees.flatten(base), trees.flatten(lora.merge(base, adapter, scale))
  factors = trees.flatten(adapter)
  for path, leaf in before.items():
    module = path.rsplit('/', 1)[0]
    if module not in common.MODULES or not path.endswith('kernel'):
      np.testing.assert_array_equal(merged[path], leaf, err_msg=path)
      continue
    for layer in range(cfg.num_layers):
      a, b = (np.asarray(factors[f'{module}/lora_{x}'][layer], np.float64) for x in 'ab')
      want = np.asarray(leaf[layer], np.float64) + scale[layer] * a @ b
      np.testing.assert_allclose(merged[path][layer], want, atol=1e-6)


def test_merging_into_bfloat16_rounds_once():
  cfg = common.config()
  base = common.params(cfg, dtype=jnp.bfloat16)
  adapter = lora.one_run(common.adapter(cfg, [3], [0], b_size=0.2), 0)
  scale = jnp.ones(cfg.num_layers)
  wide = jax.tree.map(lambda x: x.astype(jnp.float32), base)
  want = trees.flatten(lora.merge(wide, adapter, scale))
  for path, leaf in trees.flatten(lora.merge(base, adapter, scale)).items():
    assert leaf.dtype == jnp.bfloat16
    np.testing.assert_array_equal(leaf, want[path].astype(jnp.bfloat16), err_msg=path)


def test_the_table_is_of_the_adapter_and_shards_like_its_kernels():
  cfg = common.config(num_key_value_heads=4)
  modules = lora.match_targets(cfg, 'all-linear')
  adapter = trees.flatten(lora.init_adapter(cfg, modules, [4, 8], [0, 1]))
  table = lora.adapter_table(cfg, modules, 2, 8)
  assert {path: shape for path, (_, shape) in table.items()} == {
    path: leaf.shape for path, leaf in adapter.items()
  }
  if jax.device_count() < 8:
    pytest.skip('needs 8 devices')
  mesh = meshes.make_mesh(1, 4, 2)
  factors, kernels = rules.shardings(table, mesh), hf.param_shardings(cfg, mesh)
  for module in modules:
    kernel = kernels[f'{module}/kernel'].spec
    assert factors[f'{module}/lora_a'].spec[2] == kernel[1], module
    assert factors[f'{module}/lora_b'].spec[3] == kernel[2], module


def test_impossible_rank():
  with pytest.raises(UserError, match='rank must be at least 1'):
    lora.init_adapter(common.config(), common.MODULES, [4, 0], [0, 1])


def test_one_run_takes_one_run():
  cfg = common.config()
  adapter = common.adapter(cfg, [2, 2], [0, 1])
  for index in (0, 1):
    for path, leaf in trees.flatten(lora.one_run(adapter, index)).items():
      np.testing.assert_array_equal(leaf, trees.flatten(adapter)[path][index])
      assert leaf.shape[0] == families.shapes(cfg)[path.rsplit('/', 1)[0] + '/kernel'][0]

"""Optimiser against torch and transformers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

from sft_jax.models import families
from sft_jax.models.config import ModelConfig
from sft_jax.train import optimizer
from sft_jax.utils import trees
from sft_jax.utils.errors import UserError


def config(**changes):
  raw = {
    'architectures': ['LlamaForCausalLM'],
    'hidden_size': 8,
    'num_attention_heads': 2,
    'num_hidden_layers': 3,
    'intermediate_size': 12,
    'vocab_size': 20,
    'tie_word_embeddings': False,
  }
  return ModelConfig.from_hf(raw | changes)


def params(cfg, seed=0):
  rng = np.random.default_rng(seed)
  return trees.unflatten(
    {
      path: jnp.asarray(rng.normal(size=shape), jnp.float32)
      for path, shape in families.shapes(cfg).items()
    }
  )


@pytest.mark.parametrize('warmup', [0, 3])
@pytest.mark.parametrize(
  'name,ratio', [('constant', 0), ('linear', 0), ('cosine', 0), ('cosine', 0.1)]
)
def test_schedules_equal_transformers(name, ratio, warmup):
  total = 11
  dummy = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=2e-4)
  scheduler = {
    ('constant', 0): lambda: transformers.get_constant_schedule_with_warmup(dummy, warmup),
    ('linear', 0): lambda: transformers.get_linear_schedule_with_warmup(dummy, warmup, total),
    ('cosine', 0): lambda: transformers.get_cosine_schedule_with_warmup(dummy, warmup, total),
    ('cosine', 0.1): lambda: transformers.optimization.get_cosine_with_min_lr_schedule_with_warmup(
      dummy, warmup, total, min_lr_rate=0.1
    ),
  }[name, ratio]()
  hypers = optimizer.make_hypers(
    config(),
    learning_rate=2e-4,
    total_steps=total,
    schedule=name,
    warmup_steps=warmup,
    end_ratio=ratio,
  )
  want = []
  for _ in range(total + 1):
    want.append(scheduler.get_last_lr()[0])
    dummy.step()
    scheduler.step()
  got = [float(optimizer.learning_rate_at(hypers, step)) for step in range(total + 1)]
  np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-11)
  if name != 'constant':  # the last step reaches the end of the schedule
    np.testing.assert_allclose(got[-1], 2e-4 * ratio, atol=1e-11)


def test_updates_equal_torch():
  cfg = config()
  tree = params(cfg)
  hypers = optimizer.make_hypers(
    cfg,
    learning_rate=3e-3,
    total_steps=8,
    schedule='constant',
    weight_decay=0.1,
    clip_norm=0.5,
    b1=0.8,
    b2=0.95,
    eps=1e-6,
  )
  decays = optimizer.decay_mask(cfg, trees.flatten(tree))
  theirs = {
    p: torch.nn.Parameter(torch.tensor(np.asarray(x))) for p, x in trees.flatten(tree).items()
  }
  groups = [
    {'params': [x for p, x in theirs.items() if decays[p]], 'weight_decay': 0.1},
    {'params': [x for p, x in theirs.items() if not decays[p]], 'weight_decay': 0.0},
  ]
  adamw = torch.optim.AdamW(groups, lr=3e-3, betas=(0.8, 0.95), eps=1e-6)
  moments = optimizer.init_moments(tree)
  step_fn = jax.jit(
    lambda t, p, g, m: optimizer.update(hypers, t, p, g, m, decays=decays, active=jnp.array(True))
  )
  for step in range(5):
    grads = jax.tree.map(
      lambda x, size=(0.11 if step == 2 else 0.01): size * x, params(cfg, step + 1)
    )
    for path, grad in trees.flatten(grads).items():
      theirs[path].grad = torch.tensor(np.asarray(grad))
    norm = torch.nn.utils.clip_grad_norm_(list(theirs.values()), 0.5)
    adamw.step()
    tree, moments, metrics = step_fn(step, tree, grads, moments)
    np.testing.assert_allclose(metrics['grad-norm'], norm.item(), rtol=1e-6)
  for path, ours in trees.flatten(tree).items():
    np.testing.assert_allclose(ours, theirs[path].detach().numpy(), atol=2e-6, err_msg=path)


def test_decay_mask_covers_every_path():
  cfg = config(attention_bias=True)
  mask = optimizer.decay_mask(cfg, [*families.shapes(cfg), 'layers/attn/q/lora_a'])
  assert mask['embed/embedding'] and mask['head/kernel'] and mask['layers/attn/q/lora_a']
  assert not any(mask[p] for p in mask if 'norm' in p or p.endswith('bias'))
  with pytest.raises(UserError, match='layers/attn/gate decays'):
    optimizer.decay_mask(cfg, ['layers/attn/gate'])
  assert optimizer.decay_mask(cfg, ['layers/attn/gate'], [('layers/.*', False)]) == {
    'layers/attn/gate': False
  }


def test_decay_mask_equals_the_trainer(tmp_path):
  """The parameters that transformers' Trainer decays, by name."""
  cfg = config(attention_bias=True)
  model = transformers.LlamaForCausalLM(
    transformers.LlamaConfig(
      hidden_size=8,
      num_attention_heads=2,
      num_hidden_layers=3,
      intermediate_size=12,
      vocab_size=20,
      attention_bias=True,
      tie_word_embeddings=False,
    )
  )
  arguments = transformers.TrainingArguments(str(tmp_path), report_to=[])
  names = set(transformers.Trainer(model, arguments).get_decay_parameter_names(model))
  mask = optimizer.decay_mask(cfg, families.shapes(cfg))
  for row in families.rows(cfg):
    layers = range(3) if row.path.startswith('layers/') else [0]
    assert all((row.hf.format(l=n) in names) == mask[row.path] for n in layers), row.path


def test_band_of_layers():
  cfg = config()
  tree = params(cfg)
  hypers = optimizer.make_hypers(
    cfg, learning_rate=1e-2, total_steps=8, weight_decay=0.1, layers=[1]
  )
  grads = optimizer.mask_gradients(hypers, params(cfg, 1))
  decays = optimizer.decay_mask(cfg, trees.flatten(tree))
  new, _, metrics = optimizer.update(
    hypers, 0, tree, grads, optimizer.init_moments(tree), decays=decays, active=jnp.array(True)
  )
  squares = 0.0
  for path, before in trees.flatten(tree).items():
    after = trees.flatten(new)[path]
    changed = np.asarray(before != after)
    if path.startswith('layers/'):
      assert changed[1].all() and not changed[[0, 2]].any(), path
      squares += np.square(trees.flatten(params(cfg, 1))[path][1]).sum()
    else:
      assert not changed.any(), path
  np.testing.assert_allclose(metrics['grad-norm'], np.sqrt(squares), rtol=1e-6)


@pytest.mark.parametrize(
  ('changes', 'size'),
  [
    ({'learning_rate': 3e38, 'weight_decay': 3.0}, 1.0),  # The update overflows.
    ({'learning_rate': 1e-3, 'b1': 1 - 1e-9}, 1.0),  # 1 in float32: the mean is divided by 0.
    ({'learning_rate': 1e-3}, 1e25),  # The gradient's norm overflows.
  ],
)
def test_values_that_are_not_finite_are_told_and_not_kept(changes, size):
  cfg = config()
  tree = params(cfg)
  hypers = optimizer.make_hypers(cfg, total_steps=8, schedule='constant', clip_norm=0.0, **changes)
  step = jax.jit(
    lambda tree, grads, moments: optimizer.update(
      hypers,
      0,
      tree,
      grads,
      moments,
      decays=optimizer.decay_mask(cfg, trees.flatten(tree)),
      active=jnp.array(True),
    )
  )
  grads = jax.tree.map(lambda x: size * x, params(cfg, 1))
  new, moments, metrics = step(tree, grads, optimizer.init_moments(tree))
  assert not metrics['finite']
  assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((new, moments)))
  good = optimizer.make_hypers(cfg, total_steps=8, learning_rate=1e-3)
  *_, metrics = optimizer.update(
    good,
    0,
    tree,
    params(cfg, 1),
    optimizer.init_moments(tree),
    decays=optimizer.decay_mask(cfg, trees.flatten(tree)),
    active=jnp.array(True),
  )
  assert metrics['finite']


@pytest.mark.parametrize(
  'bad',
  [
    {'schedule': 'cosin'},
    {'learning_rate': float('nan')},
    {'total_steps': 0},
    {'layers': [3]},
    {'layers': []},
    {'dropout_rate': 1.0},
    {'end_ratio': 2},
  ],
)
def test_impossible_values_are_refused(bad):
  with pytest.raises(UserError, match=next(iter(bad))):
    optimizer.make_hypers(config(), **({'learning_rate': 1e-4, 'total_steps': 10} | bad))

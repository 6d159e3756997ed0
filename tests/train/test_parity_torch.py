"""Thirty steps beside transformers, PEFT and torch: same weights, same batches, same numbers."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from sft_jax.models import families
from sft_jax.utils import trees
from tests.train import common

STEPS = 30
RANK, ALPHA = 4, 8
HYPERS = {
  'learning_rate': 2e-3,
  'total_steps': STEPS,
  'schedule': 'cosine',
  'warmup_steps': 3,
  'weight_decay': 0.01,
  'clip_norm': 1.0,
  'lora_scale': ALPHA / RANK,
}


@functools.cache
def data():
  return [common.batch(common.examples(6, seed), rows=3, micros=2) for seed in range(STEPS)]


def torch_loss(model, given):
  """Token mean over the step, padded rows with an attention mask."""
  flat = {k: v.reshape(-1, v.shape[-1]) for k, v in given.items() if np.ndim(v) == 4}
  tokens = torch.tensor(flat['tokens']).long()
  logits = model(tokens, attention_mask=torch.tensor(flat['segments'] > 0).long()).logits
  labels = torch.where(torch.tensor(flat['loss_weight'] > 0), tokens, -100)
  return torch.nn.functional.cross_entropy(
    logits[:, :-1].reshape(-1, logits.shape[-1]), labels[:, 1:].reshape(-1)
  )


def torch_run(model, decayed, to_ours):
  """Losses, first gradient and last parameters (in our tree) of AdamW on trainable parameters."""
  import transformers

  live = {n: p for n, p in model.named_parameters() if p.requires_grad}
  groups = [
    {'params': [p for n, p in live.items() if decayed(n)], 'weight_decay': 0.01},
    {'params': [p for n, p in live.items() if not decayed(n)], 'weight_decay': 0.0},
  ]
  adamw = torch.optim.AdamW(groups, lr=HYPERS['learning_rate'], betas=(0.9, 0.999), eps=1e-8)
  schedule = transformers.get_cosine_schedule_with_warmup(adamw, HYPERS['warmup_steps'], STEPS)
  losses, first = [], None
  for given in data():
    value = torch_loss(model, given)
    adamw.zero_grad()
    value.backward()
    if first is None:
      first = to_ours({n: p.grad.numpy().copy() for n, p in live.items()})
    torch.nn.utils.clip_grad_norm_(list(live.values()), 1.0)
    adamw.step()
    schedule.step()
    losses.append(value.item())
  return losses, first, to_ours({n: p.detach().numpy() for n, p in live.items()})


def compare(train, base, fresh, theirs):
  losses, first, last = theirs
  _, grads = train.gradients(base, fresh, data()[0])
  flat = trees.flatten(grads)
  assert flat.keys() == first.keys()
  for path, want in first.items():
    error = np.linalg.norm(flat[path] - want) / max(np.linalg.norm(want), 1e-12)
    assert error <= 1e-5, f'{path}: gradient of step 1 is off by {error:.1e}'
  ours, _, after = common.run(train, base, fresh, data())
  moved = train.gradients(base, after, data()[0])[0][0]
  assert ours[0, 0] - moved > 0.02  # something was learnt
  np.testing.assert_allclose(ours[:, 0], losses, rtol=0, atol=1e-4)
  for path, want in last.items():
    np.testing.assert_allclose(
      trees.flatten(after.trained)[path], want, atol=2e-3, err_msg=path, rtol=0
    )


@pytest.mark.parametrize('tied', [True, False])
def test_full_equals_transformers(tied):
  cfg = common.config(tie_word_embeddings=tied, attention_bias=not tied)
  tree = common.params(cfg)

  def to_ours(tensors):
    flat = {}
    for row in families.rows(cfg):
      layers = range(cfg.num_layers) if row.path.startswith('layers/') else [None]
      parts = [tensors[row.hf.format(l=n)] for n in layers]
      parts = [p.T if row.transposed else p for p in parts]
      flat[row.path] = parts[0] if layers == [None] else np.stack(parts)
    return flat

  model = common.torch_llama(cfg, tree)
  decayed = lambda name: not (name.endswith('bias') or 'norm' in name)
  theirs = torch_run(model, decayed, to_ours)
  train, fresh = common.make(cfg, 'full', tree, [common.hypers(cfg, **HYPERS)])
  compare(train, None, fresh, theirs)


def test_lora_equals_peft():
  import peft

  cfg = common.config()
  tree = common.params(cfg)
  adapter = common.adapter(cfg, [RANK], [3])
  names = {'layers/attn/q': 'self_attn.q_proj', 'layers/attn/v': 'self_attn.v_proj',
           'layers/mlp/down': 'mlp.down_proj'}  # fmt: skip
  model = peft.get_peft_model(
    common.torch_llama(cfg, tree),
    peft.LoraConfig(
      r=RANK, lora_alpha=ALPHA, lora_dropout=0.0, target_modules=['q_proj', 'v_proj', 'down_proj']
    ),
  )
  weights = dict(model.named_parameters())
  name_of = lambda module, layer, side: (
    f'base_model.model.model.layers.{layer}.{names[module]}.lora_{side}.default.weight'
  )
  flat = trees.flatten(adapter)
  for module in names:
    for layer in range(cfg.num_layers):
      a, b = weights[name_of(module, layer, 'A')], weights[name_of(module, layer, 'B')]
      assert not b.any()
      # PEFT draws A from the same range, ±1/sqrt(in).
      bound = np.abs(flat[f'{module}/lora_a']).max()
      assert 0.8 < a.detach().abs().max().item() / bound < 1.25
      with torch.no_grad():
        a.copy_(torch.tensor(np.array(flat[f'{module}/lora_a'][0, layer].T)))

  def to_ours(tensors):
    out = {}
    for module in names:
      for side in 'AB':
        parts = [tensors[name_of(module, n, side)].T for n in range(cfg.num_layers)]
        out[f'{module}/lora_{side.lower()}'] = np.stack(parts)[None]
    return out

  theirs = torch_run(model, lambda name: True, to_ours)
  train, fresh = common.make(cfg, 'lora', adapter, [common.hypers(cfg, **HYPERS)])
  compare(train, jax.tree.map(jnp.asarray, tree), fresh, theirs)

"""Tiny models, batches and torch twins for the tests of training."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from sft_jax.data.pack import fill, layout_rows
from sft_jax.models import families, lora
from sft_jax.models.config import ModelConfig
from sft_jax.train import optimizer, state, step
from sft_jax.utils import trees

VOCAB = 131
MODULES = ('layers/attn/q', 'layers/attn/v', 'layers/mlp/down')


@dataclasses.dataclass(frozen=True)
class Example:
  ids: np.ndarray
  loss_weight: np.ndarray


def config(**changes):
  raw = {
    'architectures': ['LlamaForCausalLM'],
    'hidden_size': 32,
    'num_attention_heads': 4,
    'num_key_value_heads': 2,
    'num_hidden_layers': 2,
    'intermediate_size': 48,
    'vocab_size': VOCAB,
    'rms_norm_eps': 1e-5,
    'tie_word_embeddings': True,
  }
  return ModelConfig.from_hf(raw | changes)


def params(cfg, seed=0, size=0.2, dtype=jnp.float32):
  """Random parameters; norms are one."""
  rng = np.random.default_rng(seed)
  flat = {}
  for path, shape in families.shapes(cfg).items():
    value = np.ones(shape) if path.endswith('scale') else size * rng.normal(size=shape)
    flat[path] = jnp.asarray(value.astype(np.float32), dtype)
  return trees.unflatten(flat)


def adapter(cfg, ranks, seeds, modules=MODULES, b_size=0.0):
  """PEFT's init, with B drawn instead of zero when `b_size` is given."""
  tree = lora.init_adapter(cfg, modules, ranks, seeds)
  if not b_size:
    return tree
  rng = np.random.default_rng(9)
  draw = lambda path, x: (
    jnp.asarray(b_size * rng.normal(size=x.shape), jnp.float32) if path.endswith('lora_b') else x
  )
  return trees.map_with_path(draw, tree)


def examples(count, seed=0, longest=20, vocab=VOCAB):
  """Examples of uneven length and uneven mask: a prompt, then a response."""
  rng = np.random.default_rng(seed)
  out = []
  for _ in range(count):
    length = int(rng.integers(4, longest + 1))
    weight = np.ones(length, np.float32)
    weight[: int(rng.integers(1, length))] = 0
    out.append(Example(rng.integers(0, vocab, length).astype(np.int32), weight))
  return out


def batch(given, *, rows, row_length=20, packed=False, micros=None):
  """One run's batch [1,M,rows,row_length] holding every example once."""
  layout = (
    layout_rows([len(e.ids) for e in given], row_length)
    if packed
    else [[i] for i in range(len(given))]
  )
  used = -(-len(layout) // rows)
  micros = micros or used
  arrays = fill(given, layout + [[]] * (micros * rows - len(layout)), row_length)
  out = {k: v.reshape(1, micros, rows, row_length) for k, v in arrays.items()}
  return out | {'run': np.zeros((1, micros), np.int32), 'micro': np.int32(used)}


def stack_runs(batches):
  """One cohort batch from one-run batches of equal shape."""
  out = {k: np.concatenate([b[k] for b in batches]) for k in batches[0] if k != 'micro'}
  out['run'] = out['run'] + np.arange(len(batches), dtype=np.int32)[:, None]
  return out | {'micro': np.int32(max(b['micro'] for b in batches))}


def make(cfg, method, trained, hypers, mesh=None, shardings=None, seeds=None, **options):
  """The step and a state of its own (the step donates it)."""
  options = {'compute_dtype': jnp.float32, 'loss_chunk': 16} | options
  decays = optimizer.decay_mask(cfg, trees.flatten(trained))
  train = step.make_train_step(
    cfg, method, decay_mask=decays, mesh=mesh, shardings=shardings, **options
  )
  trained = jax.tree.map(jnp.copy, trained)
  if shardings is not None:
    trained = jax.device_put(trained, shardings)
  fresh = state.init_state(trained, hypers, method=method, dropout_seeds=seeds, mesh=mesh)
  return train, fresh


def hypers(cfg, **changes):
  defaults = {'learning_rate': 1e-3, 'total_steps': 1000, 'schedule': 'constant'}
  return optimizer.make_hypers(cfg, **(defaults | changes))


def run(train, base, fresh, batches):
  """(losses [steps,R], last metrics, last state) of a run."""
  losses, metrics = [], {}
  for given in batches:
    fresh, metrics = train(base, fresh, given)
    losses.append(np.asarray(metrics['loss']))
  return np.array(losses), metrics, fresh


def torch_llama(cfg, tree):
  """A transformers model with our parameters."""
  import torch
  import transformers

  model = transformers.LlamaForCausalLM(
    transformers.LlamaConfig(
      hidden_size=cfg.hidden_size,
      num_attention_heads=cfg.num_heads,
      num_key_value_heads=cfg.num_kv_heads,
      num_hidden_layers=cfg.num_layers,
      intermediate_size=cfg.intermediate_size,
      vocab_size=cfg.vocab_size,
      rms_norm_eps=cfg.norm_eps,
      tie_word_embeddings=cfg.tie_embeddings,
      attention_bias=cfg.qkv_bias,
      mlp_bias=cfg.mlp_bias,
      rope_parameters={'rope_type': 'default', 'rope_theta': cfg.ropes[0].theta},
    )
  ).float()
  weights = dict(model.named_parameters())
  with torch.no_grad():
    for name, value in hf_tensors(cfg, tree).items():
      weights[name].copy_(torch.tensor(value))
  return model


def hf_tensors(cfg, tree):
  """{Hugging Face name: array} of a tree shaped like the parameters."""
  flat, out = trees.flatten(tree), {}
  for row in families.rows(cfg):
    value = np.array(flat[row.path])
    for layer in range(cfg.num_layers) if row.path.startswith('layers/') else [None]:
      one = value if layer is None else value[layer]
      out[row.hf.format(l=layer)] = one.T.copy() if row.transposed else one.copy()
  return out

"""A tiny model as the evaluation engines see it, by our decoder, by transformers, as a function."""

import functools

import jax
import jax.numpy as jnp
import pytest

from sft_jax.evals import model as eval_model
from sft_jax.models import decoder, hf
from sft_jax.parallel import mesh as meshes
from sft_jax.utils import trees
from tests.train import common


@functools.cache
def weights():
  """Config and parameters."""
  cfg = common.config(num_key_value_heads=1, max_position_embeddings=4096)
  return cfg, common.params(cfg, 4)


def subject(base=None, devices=1, **adapter):
  """Our decoder, over so many devices."""
  cfg, params = weights()
  mesh = meshes.make_mesh(1, devices, 1, devices=jax.devices()[:devices])
  shardings = hf.param_shardings(cfg, mesh)
  place = lambda path, x: jax.device_put(x, shardings[path])
  placed = trees.map_with_path(place, base or params)
  return eval_model.single(cfg, placed, jnp.float32, mesh, **adapter)


def cohort(adapter, scale):
  """Several adapters over one base."""
  one = subject()
  return eval_model.cohort(weights()[0], one.params['base'], jnp.float32, one.mesh, adapter, scale)


def logits(params, tokens):
  """`[B,T,V]` of whole texts."""
  positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
  ones = jnp.ones_like(tokens)
  hidden = decoder.forward(weights()[0], params, tokens, positions, ones, dtype=jnp.float32)
  return hidden @ decoder.head_kernel(params)


def plain():
  """A model that is no more than a function from tokens to logits."""
  return eval_model.Subject(
    eval_model.Plain(logits, common.VOCAB, 4096), weights()[1], subject().mesh
  )


@functools.cache
def torch_model():
  """transformers' model of the same weights."""
  pytest.importorskip('torch')
  return common.torch_llama(*weights()).eval()

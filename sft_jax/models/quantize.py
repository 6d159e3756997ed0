"""A frozen base in small integers, so that LoRA on a large model fits a small chip.

Weight-only, symmetric, one scale for each output of a layer's linear map: `W[i,o] ~ q[i,o] s[o]`,
`s[o] = max_i |W[i,o]| / (2^(bits-1) - 1)`, rounded to nearest. Activations, embeddings, head, norms
and adapters keep their types. Kernels are quantised on the devices that hold them, one stack of
layers after another, while loading. Not for parameters that are trained.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from sft_jax.models import hf, source
from sft_jax.models.config import ModelConfig
from sft_jax.utils import trees

DTYPES = {'int8': jnp.int8, 'int4': jnp.int4}
_BITS = {'int8': 8, 'int4': 4}


def load_params(
  ckpt: source.Checkpoint, cfg: ModelConfig, mesh: Mesh, dtype: Any, kind: str
) -> trees.Tree:
  """As `hf.load_params`, with integer kernels and a float32 `kernel_scale` beside each.

  Args:
    kind: A name of `DTYPES`, or 'none' for the parameters as they are.
  """
  if kind == 'none':
    return hf.load_params(ckpt, cfg, mesh, dtype)
  return hf.load_params(ckpt, cfg, mesh, dtype, functools.partial(_replace, kind))


def _replace(kind: str, path: str, value: jax.Array) -> dict[str, jax.Array]:
  if not (path.startswith('layers/') and path.endswith('/kernel')):
    return {path: value}
  assert isinstance(value.sharding, NamedSharding)
  layers, _, outputs = (*value.sharding.spec, None, None, None)[:3]
  by_output = NamedSharding(value.sharding.mesh, PartitionSpec(layers, None, outputs))
  quantize = jax.jit(
    quantize_kernel, static_argnames='kind', out_shardings=(value.sharding, by_output)
  )
  integers, scale = jax.block_until_ready(quantize(value, kind=kind))
  value.delete()
  return {path: integers, f'{path}_scale': scale}


def quantize_kernel(kernel: jax.Array, kind: str) -> tuple[jax.Array, jax.Array]:
  """Integers `[L,in,out]` and their float32 scales `[L,1,out]`."""
  top = 2 ** (_BITS[kind] - 1) - 1

  def one(matrix: jax.Array) -> tuple[jax.Array, jax.Array]:
    wide = matrix.astype(jnp.float32)
    scale = jnp.max(jnp.abs(wide), axis=0, keepdims=True) / top
    steps = jnp.round(wide / jnp.where(scale > 0, scale, 1.0))
    return jnp.clip(steps, -top, top).astype(DTYPES[kind]), scale

  # Layer by layer, or the float32 copy would be twice the stack.
  return jax.lax.map(one, kernel)


def dequantized(base: trees.Tree) -> trees.Tree:
  """The base with float32 kernels again; unchanged where nothing is quantised."""
  flat = trees.flatten(base)
  scales = {path for path in flat if path.endswith('_scale')}
  for path in scales:
    kernel = path.removesuffix('_scale')
    flat[kernel] = flat[kernel].astype(jnp.float32) * flat[path]
  return trees.unflatten({path: leaf for path, leaf in flat.items() if path not in scales})

"""A frozen base in small integers, so that LoRA on a large model fits a small chip.

Weight-only, symmetric, rounded to nearest: `W[i,o] ~ q[i,o] s[g,o]` with the scale
`s[g,o] = max |W[i,o]| / (2^(bits-1) - 1)` of a group of inputs i: all of them for int8 (one scale
for each output), 64 for int4, whose steps are too coarse for a whole channel. Activations,
embeddings, head, norms and adapters keep their types. Kernels are quantised on the devices that
hold them, one stack of layers after another, while loading. Not for parameters that are trained.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from sft_jax.models import hf, layers, source
from sft_jax.models.config import ModelConfig
from sft_jax.utils import trees

DTYPES = {'int8': jnp.int8, 'int4': jnp.int4}
_BITS = {'int8': 8, 'int4': 4}
_GROUPS = {'int8': None, 'int4': 64}  # inputs that share a scale; None: all


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
  like = jax.ShapeDtypeStruct(value.shape, value.dtype, sharding=value.sharding)
  places = {name: leaf.sharding for name, leaf in shapes(kind, path, like).items()}
  if len(places) == 1:
    return {path: value}
  quantize = jax.jit(quantize_kernel, static_argnames='kind', out_shardings=tuple(places.values()))
  made = jax.block_until_ready(quantize(value, kind=kind))
  value.delete()
  return dict(zip(places, made, strict=True))


def shapes(kind: str, path: str, value: jax.ShapeDtypeStruct) -> dict[str, jax.ShapeDtypeStruct]:
  """What is kept of a parameter, with shardings: itself, or integers and their scales."""
  if not (path.startswith('layers/') and path.endswith('/kernel')) or kind == 'none':
    return {path: value}
  assert isinstance(value.sharding, NamedSharding)
  mesh = value.sharding.mesh
  stack, inputs, outputs = (*value.sharding.spec, None, None, None)[:3]
  groups = _groups(kind, value.shape[1])
  parts = math.prod(mesh.shape[axis] for axis in jax.tree.leaves(inputs))
  by_group = PartitionSpec(stack, inputs if groups % parts == 0 else None, outputs)
  scale = (value.shape[0], groups, value.shape[2])
  return {
    path: jax.ShapeDtypeStruct(value.shape, DTYPES[kind], sharding=value.sharding),
    f'{path}_scale': jax.ShapeDtypeStruct(
      scale, jnp.float32, sharding=NamedSharding(mesh, by_group)
    ),
  }


def _groups(kind: str, inputs: int) -> int:
  size = _GROUPS[kind]
  return 1 if size is None else inputs // math.gcd(inputs, size)


def quantize_kernel(kernel: jax.Array, kind: str) -> tuple[jax.Array, jax.Array]:
  """Integers `[L,in,out]` and their float32 scales `[L,G,out]`."""
  top = 2 ** (_BITS[kind] - 1) - 1
  groups = _groups(kind, kernel.shape[1])

  def one(matrix: jax.Array) -> tuple[jax.Array, jax.Array]:
    wide = matrix.astype(jnp.float32).reshape(groups, -1, matrix.shape[1])
    scale = jnp.max(jnp.abs(wide), axis=1, keepdims=True) / top
    steps = jnp.round(wide / jnp.where(scale > 0, scale, 1.0))
    integers = jnp.clip(steps, -top, top).astype(DTYPES[kind])
    return integers.reshape(matrix.shape), scale[:, 0]

  # Layer by layer, or the float32 copy would be twice the stack.
  return jax.lax.map(one, kernel)


def dequantized(base: trees.Tree) -> trees.Tree:
  """The base with float32 kernels again; unchanged where nothing is quantised."""
  flat = trees.flatten(base)
  scales = {path for path in flat if path.endswith('_scale')}
  for path in scales:
    kernel = path.removesuffix('_scale')
    flat[kernel] = jax.vmap(layers.widened)(flat[kernel], flat[path])
  return trees.unflatten({path: leaf for path, leaf in flat.items() if path not in scales})

"""How far training has moved each layer, computed where the parameters lie.

Per linear module and layer: Frobenius norm of the change of its kernel, and that norm relative to
the kernel before training. Embeddings, head and norms are left out. For an adapter the change is
never formed: ||s A B||² = s² tr((AᵀA)(B Bᵀ)).
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sft_jax.models import quantize
from sft_jax.utils import trees

Tree = dict[str, Any]

_KERNEL = '/kernel'


def _kernels(params: Tree) -> dict[str, jax.Array]:
  return {
    path.removesuffix(_KERNEL): leaf
    for path, leaf in trees.flatten(params).items()
    if path.startswith('layers/') and path.endswith(_KERNEL)
  }


def _squares(x: jax.Array) -> jax.Array:
  return jnp.sum(jnp.square(x.astype(jnp.float32)), axis=(-2, -1))


@jax.jit
def _full(before: Tree, after: Tree) -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:
  old, new = _kernels(before), _kernels(after)
  change = {
    name: _squares(new[name].astype(jnp.float32) - old[name].astype(jnp.float32)) for name in old
  }
  return change, {name: _squares(kernel) for name, kernel in old.items()}


@jax.jit
def _lora(
  base: Tree, adapter: Tree, scale: jax.Array
) -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:
  factors = trees.flatten(adapter)
  old = {name: _squares(kernel) for name, kernel in _kernels(quantize.dequantized(base)).items()}
  change = {name: jnp.zeros_like(value) for name, value in old.items()}
  for name in old:
    if f'{name}/lora_a' in factors:
      a, b = factors[f'{name}/lora_a'], factors[f'{name}/lora_b']
      inner, outer = jnp.einsum('lir,lis->lrs', a, a), jnp.einsum('lro,lso->lrs', b, b)
      change[name] = jnp.maximum(jnp.square(scale) * jnp.sum(inner * outer, axis=(1, 2)), 0)
  return change, old


def layer_delta(
  before: Tree, after: Tree | None = None, adapter: Tree | None = None, scale: Any = None
) -> dict[str, dict[str, list[float]]]:
  """Weight change of every layer since the base.

  Args:
    before: The base's parameters.
    after: Fine-tuned parameters of the same structure, or
    adapter: the factors of one run (no run axis), with
    scale: its `[L]` scale.

  Returns:
    {module: {'norm': [L], 'relative': [L]}} for each linear module and for 'all' together.
  """
  if after is not None:
    change, old = jax.device_get(_full(before, after))
  else:
    change, old = jax.device_get(_lora(before, adapter, jnp.asarray(scale)))
  change['all'] = np.sum(list(change.values()), axis=0)
  old['all'] = np.sum(list(old.values()), axis=0)
  return {
    name: {
      'norm': np.sqrt(change[name]).tolist(),
      'relative': np.sqrt(change[name] / np.maximum(old[name], 1e-30)).tolist(),
    }
    for name in sorted(change)
  }

"""Low-rank adapters (arXiv 2106.09685) as trees of their own, a run axis first.

An adapter of R runs holds `<module>/lora_a [R,L,in,r]` and `<module>/lora_b [R,L,r,out]` for each
adapted module path such as `layers/attn/q`. Runs of smaller rank are padded with zeros, which stay
zero under training: the gradient of each padded factor is a product with the other, zero, one.
"""

import zlib
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sft_jax.models import families, patterns
from sft_jax.models.config import ModelConfig
from sft_jax.parallel import rules
from sft_jax.utils import trees
from sft_jax.utils.errors import UserError

Tree = dict[str, Any]


def linear_modules(cfg: ModelConfig) -> dict[str, str]:
  """{our module path: PEFT module name}, e.g. {'layers/attn/q': 'q_proj'}, of every layer."""
  return {
    row.path.removesuffix('/kernel'): row.hf.removesuffix('.weight').rsplit('.', 1)[-1]
    for row in families.rows(cfg)
    if row.path.startswith('layers/') and row.path.endswith('/kernel')
  }


def match_targets(cfg: ModelConfig, targets: str) -> tuple[str, ...]:
  """Module paths that `targets` names.

  Args:
    cfg: The model.
    targets: 'all-linear', or names and regular expressions (see `patterns.py`) between commas; one
      must match a whole PEFT name (`q_proj`, `(q|v)_proj`) or path (`layers/attn/.*`). A comma
      inside brackets or after a backslash belongs to its expression (`q_proj{1,2}`).

  Raises:
    UserError: a part matches no module.
  """
  modules = linear_modules(cfg)
  if targets == 'all-linear':
    return tuple(modules)
  chosen = set()
  for part in _parts(targets):
    try:
      found = patterns.fullmatches(part, {*modules, *modules.values()})
    except ValueError as e:
      raise UserError(
        f'{part!r:.200} is no regular expression: {e!s:.200}',
        'config.lora.targets',
        "use 'all-linear', names such as q_proj,v_proj, or mend the expression",
      ) from e
    if not (hits := {path for path, name in modules.items() if found & {path, name}}):
      raise UserError(
        f'{part!r:.200} matches no linear module',
        'config.lora.targets',
        f"use 'all-linear' or some of {', '.join(dict.fromkeys(modules.values()))}",
      )
    chosen |= hits
  if not chosen:
    raise UserError('no target modules', 'config.lora.targets', "use 'all-linear'")
  return tuple(path for path in modules if path in chosen)


def _parts(targets: str) -> list[str]:
  """What stands between commas, but for those inside brackets or after a backslash."""
  parts, depth, in_class, escaped = [''], 0, False, False
  for char in targets:
    if char == ',' and not (depth or in_class or escaped):
      parts.append('')
      continue
    parts[-1] += char
    if escaped or char == '\\':
      escaped = not escaped
    elif in_class:
      in_class = char != ']'
    elif char == '[':
      in_class = True
    else:
      depth = max(0, depth + (char in '({') - (char in ')}'))
  return [part.strip() for part in parts if part.strip()]


def init_adapter(
  cfg: ModelConfig,
  modules: Sequence[str],
  ranks: Sequence[int],
  seeds: Sequence[int],
  widest: int = 0,
) -> Tree:
  """Fresh adapters of R runs in float32: A uniform in ±1/sqrt(in) (PEFT's kaiming, a=√5), B zero.

  A run's factors depend on its own seed, rank and module only, never on the rest of the cohort.

  Args:
    cfg: The model.
    modules: Module paths, from `match_targets`.
    ranks: R ranks.
    seeds: R seeds.
    widest: Factors are padded to this rank; 0 takes the largest.
  """
  if min(ranks) < 1:
    raise UserError(f'rank must be at least 1, not {min(ranks)}', 'config.lora.rank')
  shapes, widest = families.shapes(cfg), widest or max(ranks)
  flat = {}
  for module in modules:
    layers, din, dout = shapes[f'{module}/kernel']
    factors = []
    for rank, seed in zip(ranks, seeds, strict=True):
      key = jax.random.fold_in(jax.random.key(seed), zlib.crc32(module.encode()))
      bound = 1.0 / np.sqrt(din)
      a = jax.random.uniform(key, (layers, din, rank), jnp.float32, -bound, bound)
      factors.append(jnp.pad(a, ((0, 0), (0, 0), (0, widest - rank))))
    flat[f'{module}/lora_a'] = jnp.stack(factors)
    flat[f'{module}/lora_b'] = jnp.zeros((len(ranks), layers, widest, dout), jnp.float32)
  return trees.unflatten(flat)


def adapter_table(
  cfg: ModelConfig, modules: Sequence[str], runs: int, rank: int
) -> dict[str, tuple[tuple[str, ...], tuple[int, ...]]]:
  """{path: (logical axes, shape)} of an adapter, for sharding it like the kernels it adapts."""
  axes = {row.path: row.axes for row in families.rows(cfg)}
  shapes = families.shapes(cfg)
  table: dict[str, tuple[tuple[str, ...], tuple[int, ...]]] = {}
  for module in modules:
    layers, din, dout = shapes[f'{module}/kernel']
    factors = {'lora_a': (runs, layers, din, rank), 'lora_b': (runs, layers, rank, dout)}
    for name, names in rules.adapter_axes(axes[f'{module}/kernel']).items():
      table[f'{module}/{name}'] = (names, factors[name])
  return table


def one_run(adapter: Tree, index: int) -> Tree:
  """The adapter of run `index`, without the run axis."""
  return jax.tree.map(lambda leaf: leaf[index], adapter)


def delta(adapter: Tree, module: str, scale: jax.Array) -> jax.Array:
  """`s A B` of one module `[L,in,out]` in float32, for one run (no run axis); `scale` is `[L]`."""
  factors = trees.flatten(adapter)
  a, b = factors[f'{module}/lora_a'], factors[f'{module}/lora_b']
  product = jnp.einsum('lir,lro->lio', a.astype(jnp.float32), b.astype(jnp.float32))
  return scale[:, None, None] * product


def merge(base: Tree, adapter: Tree, scale: jax.Array) -> Tree:
  """Base with the adapter of one run added into its kernels, summed in float32. For export only."""
  flat = trees.flatten(base)
  modules = {path.rsplit('/', 1)[0] for path in trees.flatten(adapter)}
  for module in modules:
    kernel = flat[f'{module}/kernel']
    summed = kernel.astype(jnp.float32) + delta(adapter, module, scale)
    flat[f'{module}/kernel'] = summed.astype(kernel.dtype)
  return trees.unflatten(flat)

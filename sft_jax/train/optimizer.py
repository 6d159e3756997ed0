"""AdamW whose every hyper-parameter is a traced value. Not for accumulating gradients.

One compiled step serves every learning rate, schedule, decay, clip and band of layers, and `vmap`
over `Hypers` serves a cohort of runs.
"""

import re
import zlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from sft_jax.models import families
from sft_jax.models.config import ModelConfig
from sft_jax.train import precision
from sft_jax.utils import trees
from sft_jax.utils.errors import UserError

Array = jax.Array
Tree = dict[str, Any]

SCHEDULES = {'constant': 0, 'cosine': 1, 'linear': 2}


class Hypers(NamedTuple):
  """Hyper-parameters of one run, all arrays; in a cohort every leaf has a leading run axis.

  Attributes:
    learning_rate: Peak.
    schedule: A value of `SCHEDULES`.
    warmup_steps: Optimiser steps of linear warm-up from 0.
    total_steps: Steps of this run; from there on it is frozen.
    end_ratio: The schedule ends at `end_ratio * learning_rate`.
    b1, b2, eps, weight_decay: AdamW.
    clip_norm: Largest global gradient norm; 0 for no clipping.
    lora_scale: `[L]` alpha/r of each layer.
    dropout_rate: Of the adapter's input.
    layer_mask: `[L]` 1 where a layer is trained.
    other_mask: 1 if embedding, head and final norm are trained.
  """

  learning_rate: Any
  schedule: Any
  warmup_steps: Any
  total_steps: Any
  end_ratio: Any
  b1: Any
  b2: Any
  eps: Any
  weight_decay: Any
  clip_norm: Any
  lora_scale: Any
  dropout_rate: Any
  layer_mask: Any
  other_mask: Any


def make_hypers(
  cfg: ModelConfig,
  *,
  learning_rate: float,
  total_steps: int,
  schedule: str = 'cosine',
  warmup_steps: int = 0,
  end_ratio: float = 0.0,
  b1: float = 0.9,
  b2: float = 0.999,
  eps: float = 1e-8,
  weight_decay: float = 0.0,
  clip_norm: float = 1.0,
  lora_scale: float | Sequence[float] = 1.0,
  dropout_rate: float = 0.0,
  layers: Iterable[int] | None = None,
) -> Hypers:
  """`Hypers` of one run, as numpy values.

  Args:
    cfg: The model, for its number of layers.
    layers: Layers to train; all of them, embedding, head and final norm too, when None.

  Raises:
    UserError: an unknown schedule or a value outside its range.
  """
  count = cfg.num_layers
  band = None if layers is None else sorted(set(layers))
  checks = {
    'schedule': (schedule in SCHEDULES, f'use one of {", ".join(SCHEDULES)}'),
    'learning_rate': (np.isfinite(learning_rate) and learning_rate >= 0, 'use a number >= 0'),
    'total_steps': (total_steps >= 1, 'use at least one step'),
    'warmup_steps': (warmup_steps >= 0, 'use a number >= 0'),
    'end_ratio': (0 <= end_ratio <= 1, 'use a number from 0 to 1'),
    'b1': (0 <= b1 < 1, 'use a number from 0 to below 1'),
    'b2': (0 <= b2 < 1, 'use a number from 0 to below 1'),
    'eps': (eps > 0, 'use a number above 0'),
    'weight_decay': (weight_decay >= 0, 'use a number >= 0'),
    'clip_norm': (clip_norm >= 0, 'use a number >= 0 (0 for no clipping)'),
    'dropout_rate': (0 <= dropout_rate < 1, 'use a number from 0 to below 1'),
    'layers': (
      band is None or (band and band[0] >= 0 and band[-1] < count),
      f'use numbers from 0 to {count - 1}',
    ),
  }
  given = locals()
  for name, (good, how) in checks.items():
    if not good:
      raise UserError(f'{name}={given[name]!r} is impossible', f'config.train.{name}', how)
  mask = np.ones(count, np.float32)
  if band is not None:
    mask[:] = 0
    mask[band] = 1
  f32, i32 = np.float32, np.int32
  return Hypers(
    learning_rate=f32(learning_rate),
    schedule=i32(SCHEDULES[schedule]),
    warmup_steps=i32(warmup_steps),
    total_steps=i32(total_steps),
    end_ratio=f32(end_ratio),
    b1=f32(b1),
    b2=f32(b2),
    eps=f32(eps),
    weight_decay=f32(weight_decay),
    clip_norm=f32(clip_norm),
    lora_scale=np.broadcast_to(np.asarray(lora_scale, f32), (count,)).copy(),
    dropout_rate=f32(dropout_rate),
    layer_mask=mask,
    other_mask=f32(band is None),
  )


def learning_rate_at(hypers: Hypers, step: Array) -> Array:
  """Learning rate of the update made at 0-based `step`, as transformers' schedules give it.

  Step 0 of a warm-up has rate 0 (`get_cosine_schedule_with_warmup`); with an `end_ratio` the decay
  is mapped to end there (`get_cosine_with_min_lr_schedule_with_warmup`).
  """
  step, warmup, total = (
    jnp.asarray(x, jnp.float32) for x in (step, hypers.warmup_steps, hypers.total_steps)
  )
  progress = (step - warmup) / jnp.maximum(total - warmup, 1)
  cosine = 0.5 * (1 + jnp.cos(jnp.pi * jnp.minimum(progress, 1)))
  linear = jnp.maximum(1 - progress, 0)
  constant = jnp.ones_like(progress)
  shape = jnp.select(
    [hypers.schedule == SCHEDULES['cosine'], hypers.schedule == SCHEDULES['linear']],
    [cosine, linear],
    constant,
  )
  decayed = jnp.maximum(shape, 0) * (1 - hypers.end_ratio) + hypers.end_ratio
  factor = jnp.where(step < warmup, step / jnp.maximum(warmup, 1), decayed)
  return hypers.learning_rate * factor


def decay_mask(
  cfg: ModelConfig, paths: Iterable[str], rules: Sequence[tuple[str, bool]] = ()
) -> dict[str, bool]:
  """Whether weight decay applies to each trained path.

  From the family's rows: norms and biases do not decay. An adapter's factors decay like the kernel
  they adapt, which is what transformers' Trainer does with PEFT parameters.

  Args:
    cfg: The model.
    paths: All trained paths.
    rules: (regular expression of a whole path, decays), tried in order before the rows.

  Raises:
    UserError: a path that nothing covers.
  """
  rows = {row.path: row.decay for row in families.rows(cfg)}
  mask = {}
  for path in paths:
    kernel = re.sub(r'/lora_[ab]$', '/kernel', path)
    ruled = [decays for pattern, decays in rules if re.fullmatch(pattern, path)]
    if ruled:
      mask[path] = ruled[0]
    elif kernel in rows:
      mask[path] = rows[kernel]
    else:
      raise UserError(
        f'nothing says whether {path} decays', 'weight-decay mask', 'add a row or a rule for it'
      )
  return mask


def init_moments(trained: Tree) -> optax.ScaleByAdamState:
  """Zero moments in float32 whatever the dtype of the parameters."""
  zeros = lambda: jax.tree.map(lambda x: jnp.zeros_like(x, jnp.float32), trained)
  return optax.ScaleByAdamState(count=jnp.zeros((), jnp.int32), mu=zeros(), nu=zeros())


def _trained_share(hypers: Hypers, path: str, leaf: Array) -> Array:
  """The mask of a leaf, broadcast to its rank: per layer under `layers/`, else one scalar."""
  if not path.startswith('layers/'):
    return jnp.broadcast_to(hypers.other_mask, (1,) * leaf.ndim)
  return hypers.layer_mask.reshape(-1, *(1,) * (leaf.ndim - 1))


def mask_gradients(hypers: Hypers, grads: Tree) -> Tree:
  """Float32 gradients with those of untrained layers set to zero."""
  return trees.map_with_path(
    lambda path, g: g.astype(jnp.float32) * _trained_share(hypers, path, g), grads
  )


def update(
  hypers: Hypers,
  step: Array,
  trained: Tree,
  grads: Tree,
  moments: optax.ScaleByAdamState,
  *,
  decays: Mapping[str, bool],
  active: Array,
  rounding: str = 'nearest',
  rounding_key: Array | None = None,
) -> tuple[Tree, optax.ScaleByAdamState, dict[str, Array]]:
  """One AdamW step (decoupled decay, arXiv 1711.05101) in float32.

  Args:
    hypers: Of this run.
    step: 0-based.
    trained: Parameters, float32 or bfloat16.
    grads: From `mask_gradients`.
    moments: From `init_moments`.
    decays: From `decay_mask`; covers every path.
    active: False leaves everything as it is, bit for bit.
    rounding: How bfloat16 parameters are rounded.
    rounding_key: Key of this run and step; folded with each path.

  Returns:
    Parameters, moments, and `learning-rate`, `grad-norm` (before clipping), `updates-lost`, and
    `finite`: whether the gradient's norm and all new parameters are. A norm that is not finite
    leaves everything as it is. A parameter that is not leaves its own entry as it is: to undo the
    others too would take a second copy of everything, and such a run is at its end anyway.
  """
  norm = optax.tree.norm(grads)
  active = active & jnp.isfinite(norm)
  # torch.nn.utils.clip_grad_norm_ adds the same 1e-6.
  factor = jnp.where(hypers.clip_norm > 0, jnp.minimum(hypers.clip_norm / (norm + 1e-6), 1.0), 1.0)
  count = optax.safe_increment(moments.count)
  # Behind a barrier these few scalars are computed once, not inlined into the loop of every leaf.
  factor, rate, correct1, correct2, active = jax.lax.optimization_barrier(
    (
      factor,
      learning_rate_at(hypers, step),
      1 - hypers.b1**count,
      1 - hypers.b2**count,
      active,
    )
  )
  lost, moved = jnp.zeros(()), jnp.zeros(())

  def apply(path: str, old: Array, grad: Array, mu: Array, nu: Array) -> tuple[Array, ...]:
    nonlocal lost, moved
    grad = factor * grad
    new_mu = hypers.b1 * mu + (1 - hypers.b1) * grad
    new_nu = hypers.b2 * nu + (1 - hypers.b2) * jnp.square(grad)
    toward = new_mu / correct1 / (jnp.sqrt(new_nu / correct2) + hypers.eps)
    wide = old.astype(jnp.float32)
    if decays[path]:
      toward += hypers.weight_decay * wide
    change = -rate * toward * _trained_share(hypers, path, old)
    key = None
    if rounding == 'stochastic' and rounding_key is not None:
      key = jax.random.fold_in(rounding_key, zlib.crc32(path.encode()))
    new = precision.store(wide + change, old.dtype, rounding, key)
    more_lost, more_moved = precision.lost_updates(old, new, change)
    lost, moved = lost + more_lost, moved + more_moved
    # Moments, as means of what is finite, stay so by themselves.
    keep = lambda now, before: jnp.where(active & jnp.isfinite(now), now, before)
    return keep(new, old), keep(new_mu, mu), keep(new_nu, nu)

  leaves = trees.flatten(trees.map_with_path(apply, trained, grads, moments.mu, moments.nu))
  pick = lambda i: trees.unflatten({path: leaf[i] for path, leaf in leaves.items()})
  metrics = {
    'learning-rate': rate,
    'grad-norm': norm,
    'updates-lost': lost / jnp.maximum(moved, 1),
    'finite': jnp.isfinite(norm) & jnp.isfinite(lost),
  }
  count = jnp.where(active, count, moments.count)
  return pick(0), optax.ScaleByAdamState(count=count, mu=pick(1), nu=pick(2)), metrics

"""How trained parameters are stored and rounded. Not for compute dtypes: the decoder casts.

Adding an update to a bfloat16 parameter and rounding to nearest loses every update smaller than
half a unit in the last place: at lr 1e-5, nearly all of them. So parameters are float32 masters,
or bfloat16 rounded stochastically, which is right on average (arXiv 2010.06192).
"""

import jax
import jax.numpy as jnp

from sft_jax.utils.errors import UserError

Array = jax.Array

DTYPES = {'float32': jnp.float32, 'bfloat16': jnp.bfloat16}
ROUNDINGS = ('nearest', 'stochastic')


def check_precision(param_dtype: str, rounding: str, *, allow_lost_updates: bool = False) -> None:
  """Refuses what would lose updates silently.

  Raises:
    UserError: an unknown name, or bfloat16 parameters rounded to nearest without the override.
  """
  if param_dtype not in DTYPES:
    raise UserError(
      f'unknown parameter dtype {param_dtype!r}',
      'config.train.param_dtype',
      f'use one of {", ".join(DTYPES)}',
    )
  if rounding not in ROUNDINGS:
    raise UserError(
      f'unknown rounding {rounding!r}',
      'config.train.param_rounding',
      f'use one of {", ".join(ROUNDINGS)}',
    )
  if param_dtype == 'bfloat16' and rounding == 'nearest' and not allow_lost_updates:
    raise UserError(
      'bfloat16 parameters rounded to nearest lose almost every update',
      'config.train.param_dtype, config.train.param_rounding',
      "use param_dtype='float32', or param_rounding='stochastic', "
      'or allow it with config.train.allow_lost_updates=True',
    )


def round_stochastically(x: Array, key: Array) -> Array:
  """Rounds float32 to bfloat16, up with probability equal to the part that is cut off.

  16 random bits are added to the 16 that will be dropped; the carry is the rounding. A value that
  bfloat16 holds exactly is never changed, and non-finite values pass through.
  """
  noise = jax.random.bits(key, x.shape, jnp.uint16).astype(jnp.uint32)
  bits = jax.lax.bitcast_convert_type(x, jnp.uint32)
  cut = (bits + noise) & jnp.uint32(0xFFFF0000)
  rounded = jax.lax.bitcast_convert_type(cut, jnp.float32).astype(jnp.bfloat16)
  return jnp.where(jnp.isfinite(x), rounded, x.astype(jnp.bfloat16))


def store(x: Array, dtype: jnp.dtype, rounding: str, key: Array | None) -> Array:
  """Float32 `x` as a parameter of `dtype`; `key` is used by stochastic rounding only."""
  if dtype == jnp.bfloat16 and rounding == 'stochastic':
    if key is None:
      raise ValueError('stochastic rounding needs a key')
    return round_stochastically(x, key)
  return x.astype(dtype)


def lost_updates(old: Array, new: Array, update: Array) -> tuple[Array, Array]:
  """How many entries of a non-zero `update` left the parameter as it was, and how many there were.

  Both float32 scalars, counted over the last axis first, so large leaves are counted well. The
  first is NaN if `new` holds something that is not finite: one sum serves both, as a second one
  would have XLA write whole temporaries.
  """
  moved = update != 0
  lost = jnp.where(jnp.isfinite(new), (moved & (new == old)).astype(jnp.float32), jnp.nan)
  return lost.sum(-1).sum(), moved.sum(-1, dtype=jnp.int32).astype(jnp.float32).sum()

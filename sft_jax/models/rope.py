"""Rotary position embedding (arXiv 2104.09864) in the kinds that checkpoints use.

Formulas are those of transformers' `modeling_rope_utils.py`, which is the definition of right here:
`linear` divides frequencies, `dynamic` raises the base with the text's length (NTK), `llama3`
slows low frequencies, `yarn` (arXiv 2309.00071) blends both, `longrope` (arXiv 2402.13753) divides
each frequency by a stored factor, of two sets chosen by the text's length. Dimension letters: see
the legend in `decoder.py`.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from sft_jax.utils.errors import UserError

# Kind -> the keys of a config's rope entry that it reads.
KINDS: dict[str, tuple[str, ...]] = {
  'default': (),
  'linear': ('factor',),
  'dynamic': ('factor',),
  'llama3': (
    *('factor', 'low_freq_factor', 'high_freq_factor'),
    'original_max_position_embeddings',
  ),
  'yarn': ('factor', 'original_max_position_embeddings'),
  'longrope': ('short_factor', 'long_factor', 'original_max_position_embeddings'),
}
_OPTIONAL = {
  'yarn': ('attention_factor', 'beta_fast', 'beta_slow', 'mscale', 'mscale_all_dim', 'truncate'),
  'longrope': ('factor', 'attention_factor'),
}
_ALWAYS = ('rope_type', 'type', 'rope_theta')
# Kinds under which a token's rotation depends on how long its text is.
LENGTH_DEPENDENT = ('dynamic', 'longrope')


@dataclasses.dataclass(frozen=True)
class Rope:
  """One way to rotate; a model may use several, a layer uses one.

  Attributes:
    kind: A name of `KINDS`, or 'none' for layers without positions.
    theta: Base.
    width: Components of a head that are rotated; the rest pass through.
    max_positions: Positions of the model's config; where `dynamic` begins to stretch.
    settings: The kind's numbers, sorted pairs of (name, number or numbers).
  """

  kind: str
  theta: float
  width: int
  max_positions: int
  settings: tuple[tuple[str, Any], ...] = ()

  def __getitem__(self, name: str) -> Any:
    return dict(self.settings)[name]

  @property
  def reach(self) -> int:
    """Positions its frequencies are stretched to."""
    if self.kind in ('linear', 'dynamic'):
      return int(self['factor'] * self.max_positions)
    if self.kind == 'yarn':
      return int(self['factor'] * self['original_max_position_embeddings'])
    return self.max_positions

  def get(self, name: str) -> Any:
    """A setting, or None where the config has none."""
    return dict(self.settings).get(name)


def parse(entry: Mapping[str, Any], width: int, max_positions: int, where: str) -> Rope:
  """Reads a rope entry of a raw config (`rope_parameters` or `rope_scaling` with `rope_theta`).

  Raises:
    UserError: a kind or key we do not implement, a missing or impossible number.
  """
  kind = str(entry.get('rope_type', entry.get('type', 'default')))
  if kind not in KINDS:
    raise UserError(
      f'rope_type={kind!r:.200} is not implemented', where, f'supported: {", ".join(KINDS)}'
    )
  needed, optional = KINDS[kind], _OPTIONAL.get(kind, ())
  known = {*needed, *optional, *_ALWAYS}
  stray = [key for key, value in entry.items() if key not in known and value is not None]
  # One that is called the default ignores the numbers of other kinds, as in transformers.
  if stray and kind != 'default':
    raise UserError(
      f'{stray[0]}={entry[stray[0]]!r:.200} of rope_type={kind!r:.200} is not implemented',
      where,
      f'supported keys: {", ".join(sorted(known))}',
    )
  settings = {key: entry[key] for key in (*needed, *optional) if entry.get(key) is not None}
  if kind in ('llama3', 'yarn', 'longrope'):
    settings.setdefault('original_max_position_embeddings', max_positions)
  original = settings.get('original_max_position_embeddings')
  if kind in ('yarn', 'longrope') and original:
    settings.setdefault('factor', max_positions / original)
  try:
    theta = float(entry['rope_theta'])
    numbers = {key: _number(value) for key, value in settings.items()}
    missing = [key for key in needed if key not in numbers]
    if not {'rope_type', 'type'} & entry.keys() and {*stray} - {'original_max_position_embeddings'}:
      missing = ['rope_type']
    lists = [numbers[key] for key in ('short_factor', 'long_factor') if key in numbers]
    good = theta > 0 and width > 0 and width % 2 == 0
    good &= all(isinstance(value, tuple) and len(value) == width // 2 for value in lists)
    good &= all(0 <= n < math.inf for value in (theta, *numbers.values()) for n in _each(value))
    good &= all(n > 0 for value in lists for n in value)
    positive = ('factor', 'original_max_position_embeddings', 'low_freq_factor')
    good &= all(numbers.get(name, 1) > 0 for name in positive)
    good &= math.isfinite(numbers.get('factor', 1) * max_positions)
    good &= numbers.get('high_freq_factor', math.inf) > numbers.get('low_freq_factor', 1)
    # Where a formula would divide by zero.
    good &= (kind != 'yarn' or theta > 1) and (kind != 'dynamic' or width > 2)
  except (KeyError, TypeError, ValueError):
    missing, good = [], False
  if missing or not good:
    lacks = f', it lacks {missing[0]}' if missing else ''
    raise UserError(
      f'malformed rope entry {dict(entry)!r:.200}{lacks}', where, 'restore the original config.json'
    )
  return Rope(kind, theta, width, max_positions, tuple(sorted(numbers.items())))


def _number(value: Any) -> Any:
  if isinstance(value, (list, tuple)):
    return tuple(float(item) for item in value)
  return value if isinstance(value, bool) else float(value)


def _each(value: Any) -> tuple[Any, ...]:
  return value if isinstance(value, tuple) else (value,)


def tables(
  ropes: tuple[Rope, ...], positions: jax.Array, lengths: jax.Array, dtype: jnp.dtype
) -> tuple[jax.Array, jax.Array]:
  """Cosines and sines `[K,B,T,1,width]` of K ways to rotate, halves convention.

  Args:
    ropes: K of them, of one width.
    positions: `[B,T]` int32.
    lengths: `[B,T]` int32, length of the text each token belongs to.
    dtype: Of the result.
  """
  pairs = [_table(rope, positions, lengths) for rope in ropes]
  cos, sin = (jnp.stack(parts) for parts in zip(*pairs, strict=True))
  return cos.astype(dtype), sin.astype(dtype)


def _table(rope: Rope, positions: jax.Array, lengths: jax.Array) -> tuple[jax.Array, jax.Array]:
  if rope.kind == 'none':
    shape = (*positions.shape, 1, rope.width)
    return jnp.ones(shape, jnp.float32), jnp.zeros(shape, jnp.float32)
  angles = positions.astype(jnp.float32)[..., None] * frequencies(rope, lengths)
  angles = jnp.concatenate([angles, angles], axis=-1)[:, :, None, :]
  scale = attention_scale(rope)
  return jnp.cos(angles) * scale, jnp.sin(angles) * scale


def frequencies(rope: Rope, lengths: jax.Array) -> jax.Array:
  """Inverse frequencies, float32, `[1,1,width/2]`, or `[B,T,width/2]` where lengths matter."""
  exponents = jnp.arange(0, rope.width, 2, dtype=jnp.float32) / rope.width
  lengths = lengths[..., None]
  if rope.kind == 'dynamic':
    longest, factor = rope.max_positions, rope['factor']
    stretch = factor * jnp.maximum(lengths, longest) / longest - (factor - 1)
    base = rope.theta * stretch ** (rope.width / (rope.width - 2))
    return 1.0 / base ** exponents[None, None, :]
  plain = (1.0 / rope.theta**exponents)[None, None, :]
  if rope.kind == 'linear':
    return plain / rope['factor']
  if rope.kind == 'llama3':
    return _llama3(rope, plain)
  if rope.kind == 'yarn':
    return _yarn(rope, plain)
  if rope.kind == 'longrope':
    short, long = (
      jnp.asarray(rope[f'{name}_factor'], jnp.float32)[None, None, :] for name in ('short', 'long')
    )
    is_long = lengths > rope['original_max_position_embeddings']
    return plain / jnp.where(is_long, long, short)
  return plain


def _llama3(rope: Rope, plain: jax.Array) -> jax.Array:
  original, factor = rope['original_max_position_embeddings'], rope['factor']
  low, high = rope['low_freq_factor'], rope['high_freq_factor']
  wavelength = 2 * math.pi / plain
  smooth = (original / wavelength - low) / (high - low)
  blended = (1 - smooth) * plain / factor + smooth * plain
  slowed = jnp.where(wavelength > original / low, plain / factor, plain)
  between = (wavelength >= original / high) & (wavelength <= original / low)
  return jnp.where(between, blended, slowed)


def _yarn(rope: Rope, plain: jax.Array) -> jax.Array:
  original, half = rope['original_max_position_embeddings'], rope.width // 2

  def dimension(rotations: float) -> float:
    turns = math.log(original / (rotations * 2 * math.pi))
    return rope.width * turns / (2 * math.log(rope.theta))

  low, high = dimension(rope.get('beta_fast') or 32), dimension(rope.get('beta_slow') or 1)
  if rope.get('truncate') in (None, True):
    low, high = math.floor(low), math.ceil(high)
  low, high = max(low, 0), min(high, rope.width - 1)
  high = high + 0.001 if low == high else high
  ramp = jnp.clip((jnp.arange(half, dtype=jnp.float32) - low) / (high - low), 0, 1)[None, None, :]
  return plain / rope['factor'] * ramp + plain * (1 - ramp)


def attention_scale(rope: Rope) -> float:
  """What cosines and sines are multiplied by; not 1 for `yarn` and `longrope` only."""
  if rope.kind not in ('yarn', 'longrope'):
    return 1.0
  if rope.get('attention_factor') is not None:
    return rope['attention_factor']
  factor = rope['factor']
  if rope.kind == 'longrope':
    if factor <= 1:
      return 1.0
    return math.sqrt(1 + math.log(factor) / math.log(rope['original_max_position_embeddings']))
  scale = lambda weight: 0.1 * weight * math.log(factor) + 1.0 if factor > 1 else 1.0
  if rope.get('mscale') and rope.get('mscale_all_dim'):
    return scale(rope['mscale']) / scale(rope['mscale_all_dim'])
  return scale(1.0)


def rotate(x: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
  """Applies rotary embedding to the first `width` components of `[B,T,heads,H]`."""
  width = cos.shape[-1]
  turned, rest = x[..., :width], x[..., width:]
  first, second = jnp.split(turned, 2, axis=-1)
  turned = turned * cos + jnp.concatenate([-second, first], axis=-1) * sin
  return turned if not rest.shape[-1] else jnp.concatenate([turned, rest], axis=-1)


def segment_lengths(positions: jax.Array, segments: jax.Array) -> jax.Array:
  """`[B,T]` length of each token's segment, from positions that restart in each."""
  ends = jnp.where(segments[:, :, None] == segments[:, None, :], positions[:, None, :], 0)
  return ends.max(axis=-1) + 1

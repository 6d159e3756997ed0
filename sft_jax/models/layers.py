"""Building blocks of a decoder: containers of parameters and their forward.

Kernels are stored `[in, out]`; in a scanned stack each has a leading layer axis, which `lax.scan`
has removed before a block here runs. Low-rank adapters sit beside the kernel they adapt and are
applied on the activation side, `xW + s (xA) B`, so the kernel itself may stay frozen and shared.
Dimension letters: see the legend in `decoder.py`.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name


class LoraParam(nnx.Variable):
  """A low-rank factor. A type of its own, so that adapters split off as a tree of their own."""


def zeros(*shape: int) -> jax.Array:
  """Placeholder value: shapes matter here, values come from a checkpoint or an initialiser."""
  return jnp.zeros(shape, jnp.float32)


@jax.custom_vjp
def matmul(x: jax.Array, kernel: jax.Array) -> jax.Array:
  """`x @ kernel` in the dtype of `x`; the gradient of `kernel` is summed in float32.

  The derivatives are written out because jax's own order of operands makes XLA copy the larger one
  transposed (two thirds more time for an adapted MLP on a CPU).

  Args:
    x: `[..., in]`.
    kernel: `[in, out]`, any float dtype.
  """
  return jnp.einsum('...i,io->...o', x, kernel.astype(x.dtype))


def _matmul_fwd(x, kernel):
  # What a frozen kernel or a fixed input does not need is not kept.
  kept = x.value if kernel.perturbed else None, kernel.value if x.perturbed else None
  return matmul(x.value, kernel.value), (*kept, jnp.zeros((), kernel.value.dtype))


def _matmul_bwd(kept, dy):
  x, kernel, like = kept
  if isinstance(dy, jax.custom_derivatives.SymbolicZero):
    return None, None
  dx = dkernel = None
  if kernel is not None:
    dx = jnp.einsum('...o,io->...i', dy, kernel.astype(dy.dtype))
  if x is not None:
    # The first operand is the one XLA may copy: for the narrow factors of an adapter, the gradient.
    narrow = 4 * dy.shape[-1] <= x.shape[-1]
    first, second, spec = (dy, x, '...o,...i->oi') if narrow else (x, dy, '...i,...o->io')
    dkernel = jnp.einsum(spec, first, second, preferred_element_type=jnp.float32)
    dkernel = (dkernel.T if narrow else dkernel).astype(like.dtype)
  return dx, dkernel


matmul.defvjp(_matmul_fwd, _matmul_bwd, symbolic_zeros=True)


class Linear(nnx.Module):
  """`y = x W + b`, plus a scaled low-rank term where an adapter is attached."""

  def __init__(self, stack: int, din: int, dout: int, *, bias: bool, adapted: bool, salt: int):
    self.kernel = nnx.Param(zeros(stack, din, dout))
    self.bias = nnx.Param(zeros(stack, dout)) if bias else None
    self.lora_a = LoraParam(zeros(stack, din, 1)) if adapted else None
    self.lora_b = LoraParam(zeros(stack, 1, dout)) if adapted else None
    self.salt = salt

  def __call__(self, x: jax.Array, lora: 'LoraCall | None') -> jax.Array:
    # Named here, outside `matmul`: a rematerialisation policy does not look into its derivatives.
    y = checkpoint_name(matmul(x, self.kernel[...]), 'product')
    if self.bias is not None:
      bias = self.bias[...].astype(x.dtype)
      y = y + jnp.broadcast_to(bias, y.shape)
    if self.lora_a is not None and self.lora_b is not None and lora is not None:
      low = checkpoint_name(matmul(lora.drop(x, self.salt), self.lora_a[...]), 'product')
      y = y + matmul(lora.scale.astype(x.dtype) * low, self.lora_b[...])
    return y


class LoraCall:
  """What one layer needs beside the factors: its scale and, in training, its dropout.

  Attributes:
    scale: Scalar, alpha/r.
    rate: Scalar rate of dropout, or None.
    keys: `[B,T]` keys, one for each token and this layer, or None for no dropout.
  """

  def __init__(self, scale: jax.Array, rate: jax.Array | None, keys: jax.Array | None):
    self.scale, self.rate, self.keys = scale, rate, keys

  def drop(self, x: jax.Array, salt: int) -> jax.Array:
    """Inverted dropout of the adapter's input, as PEFT does; identity without keys.

    What is dropped of a token depends on the token alone, not on the rows it is laid out in.
    """
    if self.keys is None or self.rate is None:
      return x
    keep = 1.0 - self.rate
    draw = lambda key: jax.random.bernoulli(jax.random.fold_in(key, salt), keep, x.shape[-1:])
    mask = jax.vmap(jax.vmap(draw))(self.keys)
    return jnp.where(mask, x / keep.astype(x.dtype), jnp.zeros((), x.dtype))


class RMSNorm(nnx.Module):
  """Root-mean-square norm with a learned scale, in float32 as in transformers."""

  def __init__(self, stack: tuple[int, ...], dim: int, eps: float):
    self.scale = nnx.Param(zeros(*stack, dim))
    self.eps = eps

  def __call__(self, x: jax.Array) -> jax.Array:
    wide = x.astype(jnp.float32)
    normed = wide * jax.lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + self.eps)
    scale = self.scale[...].astype(x.dtype)
    return jnp.broadcast_to(scale, x.shape) * normed.astype(x.dtype)


class Embedding(nnx.Module):
  """Token table `[V, D]`."""

  def __init__(self, vocab: int, dim: int):
    self.embedding = nnx.Param(zeros(vocab, dim))

  def __call__(self, tokens: jax.Array, dtype: jnp.dtype) -> jax.Array:
    return jnp.take(self.embedding[...], tokens, axis=0).astype(dtype)


class Head(nnx.Module):
  """Output projection `[D, V]`; the loss multiplies by it in chunks, never the decoder."""

  def __init__(self, dim: int, vocab: int):
    self.kernel = nnx.Param(zeros(dim, vocab))


class Attention(nnx.Module):
  """Grouped-query attention with rotary positions."""

  def __init__(self, cfg, stack: int, adapted: frozenset[str]):
    heads, kv_heads = cfg.num_heads * cfg.head_dim, cfg.num_kv_heads * cfg.head_dim
    dim, bias = cfg.hidden_size, cfg.attention_bias
    self.q = Linear(stack, dim, heads, bias=bias, adapted='attn/q' in adapted, salt=0)
    self.k = Linear(stack, dim, kv_heads, bias=bias, adapted='attn/k' in adapted, salt=1)
    self.v = Linear(stack, dim, kv_heads, bias=bias, adapted='attn/v' in adapted, salt=2)
    self.o = Linear(stack, heads, dim, bias=bias, adapted='attn/o' in adapted, salt=3)
    self.head_dim = cfg.head_dim

  def project(
    self, x: jax.Array, rope: tuple[jax.Array, jax.Array], lora: LoraCall | None
  ) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Rotated queries `[B,T,N,H]`, rotated keys and values `[B,T,K,H]`."""
    split = lambda y: y.reshape(*y.shape[:-1], -1, self.head_dim)
    q, k, v = (split(proj(x, lora)) for proj in (self.q, self.k, self.v))
    return rotate(q, *rope), rotate(k, *rope), v

  def attend(
    self, q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array, lora: LoraCall | None
  ) -> jax.Array:
    """Attends `[B,T,N,H]` queries to `[B,S,K,H]` keys under a `[B,T,S]` mask; returns `[B,T,D]`."""
    return self.o(attention(q, k, v, mask), lora)


def attention(q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array) -> jax.Array:
  """Softmax attention with grouped heads, in plain XLA; softmax in float32.

  Query heads that share a key head are stacked along the rows of one product, which needs no copy
  of keys or scores.

  Args:
    q: `[B,T,N,H]`.
    k: `[B,S,K,H]`, N a multiple of K.
    v: `[B,S,K,H]`.
    mask: bool `[B,T,S]`, true where a query sees a key; no row may be empty.

  Returns:
    `[B,T,N*H]`.
  """
  rows, length, heads, width = q.shape
  shared, slots = k.shape[2], k.shape[1]
  groups = heads // shared
  q = q.reshape(rows, length, shared, groups, width).transpose(0, 2, 3, 1, 4)
  q = (q * width**-0.5).reshape(rows, shared, groups * length, width)
  scores = jnp.einsum('bkqh,bskh->bkqs', q, k, preferred_element_type=jnp.float32)
  scores = scores.reshape(rows, shared, groups, length, slots)
  # Not -inf: a whole row of it would make the softmax, and its gradient, NaN.
  scores = jnp.where(mask[:, None, None], scores, jnp.finfo(jnp.float32).min)
  weights = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
  weights = weights.reshape(rows, shared, groups * length, slots)
  out = jnp.einsum('bkqs,bskh->bkqh', weights, v)
  out = out.reshape(rows, shared, groups, length, width).transpose(0, 3, 1, 2, 4)
  return out.reshape(rows, length, heads * width)


class GatedMLP(nnx.Module):
  """SwiGLU feed-forward."""

  def __init__(self, cfg, stack: int, adapted: frozenset[str]):
    dim, width, bias = cfg.hidden_size, cfg.intermediate_size, cfg.mlp_bias
    self.gate = Linear(stack, dim, width, bias=bias, adapted='mlp/gate' in adapted, salt=4)
    self.up = Linear(stack, dim, width, bias=bias, adapted='mlp/up' in adapted, salt=5)
    self.down = Linear(stack, width, dim, bias=bias, adapted='mlp/down' in adapted, salt=6)

  def __call__(self, x: jax.Array, lora: LoraCall | None) -> jax.Array:
    return self.down(jax.nn.silu(self.gate(x, lora)) * self.up(x, lora), lora)


def rotary(
  positions: jax.Array, head_dim: int, theta: float, dtype: jnp.dtype
) -> tuple[jax.Array, jax.Array]:
  """Cosines and sines `[B,T,1,H]` of rotary embedding (arXiv 2104.09864), halves convention."""
  exponents = jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim
  frequencies = (1.0 / theta**exponents)[None, None, :]
  angles = positions.astype(jnp.float32)[..., None] * frequencies
  angles = jnp.concatenate([angles, angles], axis=-1)[:, :, None, :]
  return jnp.cos(angles).astype(dtype), jnp.sin(angles).astype(dtype)


def rotate(x: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
  """Applies rotary embedding to `[B,T,heads,H]`."""
  first, second = jnp.split(x, 2, axis=-1)
  return x * cos + jnp.concatenate([-second, first], axis=-1) * sin

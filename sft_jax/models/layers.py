"""Building blocks of a decoder: containers of parameters and their forward.

Kernels are stored `[in, out]`; in a scanned stack each has a leading layer axis, which `lax.scan`
has removed before a block here runs. Low-rank adapters sit beside the kernel they adapt and are
applied on the activation side, `xW + s (xA) B`, so the kernel itself may stay frozen and shared.
Dimension letters: see the legend in `decoder.py`.
"""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from sft_jax.models.rope import rotate

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
  'silu': jax.nn.silu,
  'gelu_tanh': functools.partial(jax.nn.gelu, approximate=True),
}


class LoraParam(nnx.Variable):
  """A low-rank factor. A type of its own, so that adapters split off as a tree of their own."""


def zeros(*shape: int) -> jax.Array:
  """Placeholder value: shapes matter here, values come from a checkpoint or an initialiser."""
  return jnp.zeros(shape, jnp.float32)


# Keys and values of one token of each text: GPUs share a product out by its columns, and so few
# leave most of a GPU idle unless rows are shared out as well. Columns, and parts of the rows.
_NARROW, _PARTS = (512, 2048), 8


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


def _narrow(x: jax.Array, kernel: jax.Array) -> bool:
  rows, columns = kernel.shape
  fits = _NARROW[0] <= columns <= min(_NARROW[1], rows // 2) and rows % _PARTS == 0
  return fits and x.shape[1] == 1


def _in_parts(x: jax.Array, kernel: jax.Array) -> jax.Array:
  parts = x.reshape(*x.shape[:-1], _PARTS, -1), kernel.reshape(_PARTS, -1, kernel.shape[1])
  spec = 'btsi,sio->sbto'
  sums = jnp.einsum(spec, parts[0], parts[1].astype(x.dtype), preferred_element_type=jnp.float32)
  return sums.sum(0).astype(x.dtype)


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


@jax.custom_vjp
def integer_matmul(x: jax.Array, kernel: jax.Array, scale: jax.Array) -> jax.Array:
  """`x @ W` for a frozen W kept as integers (`quantize.py`).

  The integers are what the backward pass keeps: never a wide copy of every layer.

  Args:
    x: `[..., in]`.
    kernel: `[in, out]` integers.
    scale: `[G, out]`, of each of G equal groups of inputs.
  """
  if scale.shape[0] > 1:
    return jnp.einsum('...i,io->...o', x, widened(kernel, scale).astype(x.dtype))
  y = jnp.einsum('...i,io->...o', x, kernel.astype(x.dtype))
  return y * jnp.broadcast_to(scale[0].astype(x.dtype), y.shape)


def widened(kernel: jax.Array, scale: jax.Array) -> jax.Array:
  """The float32 kernel `[in, out]` that integers and their scales `[G, out]` stand for."""
  groups, outputs = scale.shape
  wide = kernel.astype(jnp.float32).reshape(groups, -1, outputs)
  return (wide * scale[:, None]).reshape(kernel.shape)


def _integer_bwd(kept, dy):
  kernel, scale = kept
  return jnp.einsum('...o,io->...i', dy, widened(kernel, scale).astype(dy.dtype)), None, None


integer_matmul.defvjp(lambda *args: (integer_matmul(*args), args[1:]), _integer_bwd)


@dataclasses.dataclass(frozen=True)
class Variant:
  """What the tree at hand has beside the architecture's own parameters.

  Attributes:
    adapted: Modules with a low-rank adapter, such as 'attn/q'.
    quantized: Kernels are small integers with scales (`quantize.py`).
    whole: No device holds but a part of a kernel's rows.
  """

  adapted: frozenset[str] = frozenset()
  quantized: bool = False
  whole: bool = False


class Linear(nnx.Module):
  """`y = x W + b`, plus a scaled low-rank term where an adapter is attached."""

  def __init__(
    self, variant: Variant, name: str, stack: int, din: int, dout: int, *, bias: bool, salt: int
  ):
    adapted = name in variant.adapted
    self.kernel = nnx.Param(zeros(stack, din, dout))
    self.kernel_scale = nnx.Param(zeros(stack, 1, dout)) if variant.quantized else None
    self.bias = nnx.Param(zeros(stack, dout)) if bias else None
    self.lora_a = LoraParam(zeros(stack, din, 1)) if adapted else None
    self.lora_b = LoraParam(zeros(stack, 1, dout)) if adapted else None
    self.salt, self.whole = salt, variant.whole

  def __call__(self, x: jax.Array, lora: 'LoraCall | None') -> jax.Array:
    if self.kernel_scale is None:
      kernel = self.kernel[...]
      if self.whole and _narrow(x, kernel):
        y = jax.lax.platform_dependent(x, kernel, cuda=_in_parts, default=matmul)
      else:
        y = matmul(x, kernel)
    else:
      y = integer_matmul(x, self.kernel[...], self.kernel_scale[...])
    # Named here, outside `matmul`: a rematerialisation policy does not look into its derivatives.
    y = checkpoint_name(y, 'product')
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
  """Root-mean-square norm with a learned scale, in float32 as in transformers.

  With `offset` the checkpoint stores the scale minus one (Gemma), and the scale too is applied in
  float32.
  """

  def __init__(self, stack: tuple[int, ...], dim: int, eps: float, offset: bool = False):
    self.scale = nnx.Param(zeros(*stack, dim))
    self.eps, self.offset = eps, offset

  def __call__(self, x: jax.Array) -> jax.Array:
    wide = x.astype(jnp.float32)
    normed = wide * jax.lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + self.eps)
    if self.offset:
      scale = 1.0 + self.scale[...].astype(jnp.float32)
      return (jnp.broadcast_to(scale, x.shape) * normed).astype(x.dtype)
    scale = self.scale[...].astype(x.dtype)
    return jnp.broadcast_to(scale, x.shape) * normed.astype(x.dtype)


@dataclasses.dataclass(frozen=True)
class PlainLayerNorm:
  """Layer norm without parameters (OLMo), in float32."""

  eps: float

  def __call__(self, x: jax.Array) -> jax.Array:
    wide = x.astype(jnp.float32)
    centred = wide - jnp.mean(wide, axis=-1, keepdims=True)
    variance = jnp.mean(centred * centred, axis=-1, keepdims=True)
    return (centred * jax.lax.rsqrt(variance + self.eps)).astype(x.dtype)


def make_norm(cfg, stack: tuple[int, ...], dim: int) -> RMSNorm | PlainLayerNorm:
  """The norm of this architecture over `dim` components."""
  if cfg.norm == 'layer':
    return PlainLayerNorm(cfg.norm_eps)
  return RMSNorm(stack, dim, cfg.norm_eps, cfg.norm_offset)


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

  def __init__(self, cfg, stack: int, variant: Variant):
    heads, kv_heads = cfg.num_heads * cfg.head_dim, cfg.num_kv_heads * cfg.head_dim
    dim, bias = cfg.hidden_size, cfg.qkv_bias
    self.q = Linear(variant, 'attn/q', stack, dim, heads, bias=bias, salt=0)
    self.k = Linear(variant, 'attn/k', stack, dim, kv_heads, bias=bias, salt=1)
    self.v = Linear(variant, 'attn/v', stack, dim, kv_heads, bias=bias, salt=2)
    self.o = Linear(variant, 'attn/o', stack, heads, dim, bias=cfg.o_bias, salt=3)
    widths = {'head': (cfg.head_dim,) * 2, 'projection': (heads, kv_heads)}.get(cfg.qk_norm)
    self.q_norm = make_norm(cfg, (stack,), widths[0]) if widths else None
    self.k_norm = make_norm(cfg, (stack,), widths[1]) if widths else None
    self.norm_heads = cfg.qk_norm == 'head'
    self.head_dim, self.clip = cfg.head_dim, cfg.clip_qkv

  def project(
    self, x: jax.Array, rope: tuple[jax.Array, jax.Array], lora: LoraCall | None
  ) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Rotated queries `[B,T,N,H]`, rotated keys `[B,K,H,T]`, values `[B,K,T,H]`."""
    q, k, v = (proj(x, lora) for proj in (self.q, self.k, self.v))
    if self.clip is not None:
      q, k, v = (jnp.clip(y, -self.clip, self.clip) for y in (q, k, v))
    if not self.norm_heads:
      q, k = self._normed(q, k)
    q, k, v = (y.reshape(*y.shape[:-1], -1, self.head_dim) for y in (q, k, v))
    if self.norm_heads:
      q, k = self._normed(q, k)
    return rotate(q, *rope), rotate(k, *rope).transpose(0, 2, 3, 1), v.swapaxes(1, 2)

  def _normed(self, q: jax.Array, k: jax.Array) -> tuple[jax.Array, jax.Array]:
    if self.q_norm is None or self.k_norm is None:
      return q, k
    return self.q_norm(q), self.k_norm(k)


class GatedMLP(nnx.Module):
  """Gated feed-forward, `W_down(act(x W_gate) * x W_up)`."""

  def __init__(self, cfg, stack: int, variant: Variant):
    dim, width, bias = cfg.hidden_size, cfg.intermediate_size, cfg.mlp_bias
    self.gate = Linear(variant, 'mlp/gate', stack, dim, width, bias=bias, salt=4)
    self.up = Linear(variant, 'mlp/up', stack, dim, width, bias=bias, salt=5)
    self.down = Linear(variant, 'mlp/down', stack, width, dim, bias=bias, salt=6)
    self.activation = cfg.activation

  def __call__(self, x: jax.Array, lora: LoraCall | None) -> jax.Array:
    act = ACTIVATIONS[self.activation]
    return self.down(act(self.gate(x, lora)) * self.up(x, lora), lora)

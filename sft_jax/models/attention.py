"""Attention of whole rows in training: fused kernels of TPUs and GPUs beside plain XLA.

All compute what `layers.attention` does under `decoder.causal_mask`: a token sees itself and
earlier tokens of its own segment, within a window where its layer has one. Not for caches or trees
of texts.
Dimension letters: see the legend in `decoder.py`.
"""

import functools
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from sft_jax.models.config import ModelConfig

Array = jax.Array

# xla: `layers.attention`. splash: jax's Pallas kernel for TPUs, which skips what a mask leaves out
# and keeps no scores. cudnn: NVIDIA's, which keeps no scores either.
KINDS = ('xla', 'splash', 'cudnn')
# Rows are cut into blocks of so many tokens, the first that divides them.
_BLOCKS = (512, 256, 128)
# The name that jax has for cuDNN's kernel.
_CUDNN: Literal['cudnn', 'xla'] = 'cudnn'


def choose(wanted: str, cfg: ModelConfig, length: int, platform: str, dtype: Any) -> str:
  """A name of `KINDS`: what is wanted, or of 'auto' what suits the devices.

  Args:
    wanted: 'auto' or a name of `KINDS`.
    cfg: The model.
    length: Tokens a row.
    platform: Of the devices, as jax calls it.
    dtype: Compute dtype.
  """
  if wanted == 'auto':
    wanted = 'splash' if platform == 'tpu' else 'xla'
  return 'xla' if unfit(wanted, cfg, length, dtype) else wanted


def unfit(kind: str, cfg: ModelConfig, length: int, dtype: Any) -> str:
  """Why a kernel cannot compute this attention; '' where it can."""
  if kind == 'splash' and length % _BLOCKS[-1]:
    return f'rows of {length} tokens are no multiple of {_BLOCKS[-1]}'
  if kind == 'cudnn':
    if cfg.attn_softcap is not None:
      return 'cuDNN knows no soft cap of scores'
    if cfg.head_dim > 128 or cfg.head_dim % 8:
      return f'cuDNN takes heads of at most 128 components, a multiple of 8, not {cfg.head_dim}'
    if jnp.dtype(dtype) not in (jnp.bfloat16, jnp.float16):
      return 'cuDNN computes in bfloat16'
  return ''


def fused(
  kind: str,
  cfg: ModelConfig,
  q: Array,
  k: Array,
  v: Array,
  segments: Array,
  window: Array | None,
  *,
  mesh: Mesh | None = None,
  interpret: bool = False,
) -> Array:
  """Attention by a fused kernel.

  Args:
    kind: 'splash' or 'cudnn'.
    cfg: Scale, soft cap and windows.
    q: `[B,T,N,H]`.
    k: `[B,K,H,T]`.
    v: `[B,K,T,H]`.
    segments: `[B,T]` int32.
    window: This layer's, a scalar of which `cfg.windows` holds the value (or more than T: none), or
      None where no layer has one.
    mesh: Devices that rows and heads are divided over, where there are several: XLA cannot cut a
      kernel by itself.
    interpret: Run the TPU's kernel on any device, slowly, for tests.

  Returns:
    `[B,T,N*H]`.
  """
  local = functools.partial(_splash, cfg, interpret) if kind == 'splash' else _cudnn
  if mesh is not None and mesh.size > 1:
    tensor = 'tensor' if cfg.num_kv_heads % mesh.shape['tensor'] == 0 else None
    rows = ('data', 'fsdp')
    specs = P(rows, None, tensor, None), P(rows, tensor, None, None), P(rows, tensor, None, None)
    local = jax.shard_map(
      local,
      mesh=mesh,
      in_specs=(*specs, P(rows, None), P()),
      out_specs=P(rows, None, tensor, None),
      check_vma=False,
    )
  none = jnp.iinfo(jnp.int32).max
  window = jnp.asarray(none if window is None else window, jnp.int32)
  out = local(q * cfg.query_scale, k, v, segments, window)
  return out.reshape(*out.shape[:2], -1)


def _cases(cfg: ModelConfig, length: int) -> list[int]:
  """The windows that layers have, 0 for none, as far as rows of this length can tell them apart."""
  return sorted({size if 0 < size < length else 0 for size in cfg.windows} or {0})


def _by_window(
  cfg: ModelConfig, length: int, call: Callable[[int], Callable[..., Array]], window: Array
) -> Callable[..., Array]:
  """`call(size)` for the window at hand, each size compiled once."""
  cases = _cases(cfg, length)
  if len(cases) == 1:
    return call(cases[0])
  # Sizes are static in a kernel, and a layer's is data: the layers are one scan.
  sizes = jnp.asarray(cases)
  index = jnp.argmax(sizes == jnp.where(window < length, window, 0))
  return lambda *args: jax.lax.switch(index, [call(size) for size in cases], *args)


def _splash(
  cfg: ModelConfig, interpret: bool, q: Array, k: Array, v: Array, segments: Array, window: Array
) -> Array:
  """On one device: `[B,T,N,H]`."""
  # Imported here: Pallas takes most of a second.
  from jax.experimental.pallas.ops.tpu import splash_attention as splash

  length, heads = q.shape[1:3]
  block = next(size for size in _BLOCKS if length % size == 0)
  # As large for the backward passes.
  blocks = splash.BlockSizes(*(block,) * 8)

  def call(size: int) -> Callable[..., Array]:
    shape = (length, length)
    mask = splash.LocalMask(shape, (size - 1, 0), 0) if size else splash.CausalMask(shape)
    kernel = splash.make_splash_mha(
      splash.MultiHeadMask([mask] * heads),
      block_sizes=blocks,
      head_shards=1,
      q_seq_shards=1,
      attn_logits_soft_cap=cfg.attn_softcap,
      interpret=interpret,
    )
    return jax.vmap(lambda q, k, v, s: kernel(q, k, v, splash.SegmentIds(s, s)))

  args = q.swapaxes(1, 2), k.swapaxes(2, 3), v, segments
  return _by_window(cfg, length, call, window)(*args).swapaxes(1, 2)


def _row_wise(call: Callable[..., Any]) -> Callable[..., Any]:
  """The same of arrays with rows first, and a last argument without; a vmapped axis becomes rows.

  jax's own rule for cuDNN's kernel wants another shape of mask than it makes.
  """
  folded = jax.custom_batching.custom_vmap(call)

  @folded.def_vmap
  def rule(size: int, mapped: list[bool], *args: Array) -> tuple[Any, Any]:
    if mapped[-1]:
      raise NotImplementedError('windows that differ along a mapped axis')
    whole = [
      x if is_mapped else jnp.broadcast_to(x, (size, *x.shape))
      for x, is_mapped in zip(args[:-1], mapped, strict=False)
    ]
    out = folded(*(x.reshape(-1, *x.shape[2:]) for x in whole), args[-1])
    cut = lambda x: x.reshape(size, -1, *x.shape[1:])
    return jax.tree.map(cut, out), jax.tree.map(lambda _: True, out)

  return folded


def _cudnn_rows(q: Array, k: Array, v: Array, segments: Array, window: Array) -> Array:
  index = jnp.arange(q.shape[1])
  distance = index[:, None] - index[None, :]
  same = segments[:, :, None] == segments[:, None, :]
  seen = same & (distance < window)[None]
  return jax.nn.dot_product_attention(
    q,
    k.transpose(0, 3, 1, 2),
    v.swapaxes(1, 2),
    mask=seen[:, None],
    # Told apart from the mask, so that blocks of later tokens are not computed.
    is_causal=True,
    scale=1.0,
    implementation=_CUDNN,
  )


def _cudnn_gradients(
  q: Array, k: Array, v: Array, segments: Array, slope: Array, window: Array
) -> tuple[Array, Array, Array]:
  run = lambda q, k, v: _cudnn_rows(q, k, v, segments, window)
  return jax.vjp(run, q, k, v)[1](slope)


@jax.custom_vjp
def _cudnn(q: Array, k: Array, v: Array, segments: Array, window: Array) -> Array:
  """cuDNN's kernel on one device; the scale is in the queries already."""
  return _row_wise(_cudnn_rows)(q, k, v, segments, window)


def _cudnn_forward(*args: Array) -> tuple[Array, tuple[Array, ...]]:
  return _cudnn(*args), args


def _cudnn_backward(args: tuple[Array, ...], slope: Array) -> tuple[Array | None, ...]:
  *given, window = args
  return *_row_wise(_cudnn_gradients)(*given, slope, window), None, None


_cudnn.defvjp(_cudnn_forward, _cudnn_backward)

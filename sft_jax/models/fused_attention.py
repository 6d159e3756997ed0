"""Attention of whole rows in training: fused kernels of TPUs and GPUs beside plain XLA.

All compute what `attention.attention` does under `decoder.causal_mask`: a token sees itself and
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

# xla: `attention.attention`. splash: jax's Pallas kernel for TPUs, which skips what a mask leaves
# out and keeps no scores. cudnn: NVIDIA's, which keeps no scores either.
KINDS = ('xla', 'splash', 'cudnn')
# Rows are cut into blocks of so many tokens, the first that divides them.
_BLOCKS = (512, 256, 128)
# Documents of a row up to which it was seen to be faster to take them one by one (a third of the
# time, with 32; Llama-3-8B's widths, rows of 4,096, H200), and bytes that may be spent on that.
_MOST_DOCUMENTS, _MOST_KEPT = 32, 2**31
# Compute capabilities from which cuDNN's kernel runs, and from which it takes documents.
_AMPERE, _HOPPER = 8.0, 9.0
# jax's names of the platform.
_CUDA = ('gpu', 'cuda')
# The name that jax has for cuDNN's kernel.
_CUDNN: Literal['cudnn', 'xla'] = 'cudnn'


def choose(
  wanted: str,
  cfg: ModelConfig,
  length: int,
  platform: str,
  dtype: Any,
  capability: float = _AMPERE,
) -> str:
  """A name of `KINDS`: what is wanted, or of 'auto' what suits the devices.

  Args:
    wanted: 'auto' or a name of `KINDS`.
    cfg: The model.
    length: Tokens a row.
    platform: Of the devices, as jax calls it.
    dtype: Compute dtype.
    capability: Of a GPU; see `capability_of`.
  """
  known = {'tpu': 'splash', 'gpu': 'cudnn'}.get(platform, 'xla')
  if known == 'cudnn' and capability < _AMPERE:
    known = 'xla'
  # A kernel of other devices suits these no better than one that cannot take such rows.
  chosen = known if wanted in ('auto', known) else 'xla'
  return 'xla' if unfit(chosen, cfg, length, dtype) else chosen


def unfit(kind: str, cfg: ModelConfig, length: int, dtype: Any) -> str:
  """Why a kernel cannot compute this attention; '' where it can."""
  if kind == 'splash' and length % _BLOCKS[-1]:
    return f'rows of {length} tokens are no multiple of {_BLOCKS[-1]}'
  if kind == 'cudnn':
    if length % 2:
      return f'cuDNN takes rows of even length, not of {length} tokens'
    if cfg.attn_softcap is not None:
      return 'cuDNN knows no soft cap of scores'
    if cfg.head_dim > 128 or cfg.head_dim % 8:
      return f'cuDNN takes heads of at most 128 components, a multiple of 8, not {cfg.head_dim}'
    if jnp.dtype(dtype) not in (jnp.bfloat16, jnp.float16):
      return 'cuDNN computes in bfloat16'
  return ''


def capability_of(device: Any) -> float:
  """An NVIDIA GPU's compute capability; 0 of any other device.

  Of a GPU that is compiled for and does not tell, that of the oldest that plans know.
  """
  told = getattr(device, 'compute_capability', _AMPERE if device.platform in _CUDA else 0.0)
  try:
    return float(told)
  except ValueError:  # AMD's have names.
    return 0.0


def by_document(
  cfg: ModelConfig, rows: int, length: int, documents: int, capability: float
) -> bool:
  """Whether cuDNN's kernel can and may go through documents one by one, and not look between them.

  It then keeps sums of each document for the gradient, as long as a row and in float32, twice.

  Args:
    cfg: The model.
    rows: On a device, of all runs.
    length: Tokens of each.
    documents: Most of a row, of which padding is one; 0 where nobody knows.
    capability: See `capability_of`.
  """
  kept = document_bytes(cfg, rows, length, documents)
  few = 0 < documents <= _MOST_DOCUMENTS and kept <= _MOST_KEPT
  return few and capability >= _HOPPER and _cases(cfg, length) == [0]


def document_bytes(cfg: ModelConfig, rows: int, length: int, documents: int) -> int:
  """Bytes of the sums that cuDNN then keeps; args as of `by_document`."""
  return 8 * rows * length * documents * cfg.num_heads * cfg.head_dim


def fused(
  kind: str,
  cfg: ModelConfig,
  segments: Array,
  *,
  documents: int = 0,
  mesh: Mesh | None = None,
  interpret: bool = False,
) -> Callable[[Array, Array, Array, Array | None], Array]:
  """Attention by a fused kernel, for the layers that look at the same rows.

  Args:
    kind: 'splash' or 'cudnn'.
    cfg: Scale, soft cap and windows.
    segments: `[B,T]` int32; what is alike and side by side is one document.
    documents: Most documents of a row, of which padding is one, where cuDNN is to go through them
      (see `by_document`); else 0.
    mesh: Devices that rows and heads are divided over, where there are several: XLA cannot cut a
      kernel by itself.
    interpret: Run the TPU's kernel on any device, slowly, for tests.

  Returns:
    A function of q `[B,T,N,H]`, k `[B,K,H,T]`, v `[B,K,T,H]` and this layer's window (a scalar of
    which `cfg.windows` holds the value, or more than T: none; None where no layer has one), to
    `[B,T,N*H]`.
  """
  rows: Array = segments
  if kind == 'splash':
    local: Callable[..., Array] = functools.partial(_splash, cfg, interpret)
  elif documents:
    # One is none to the kernel.
    local, rows = _cudnn_by_document, spans(segments, max(documents, 2))
  else:
    local = _cudnn
  if mesh is not None and mesh.size > 1:
    tensor = 'tensor' if cfg.num_kv_heads % mesh.shape['tensor'] == 0 else None
    axes = ('data', 'fsdp')
    specs = P(axes, None, tensor, None), P(axes, tensor, None, None), P(axes, tensor, None, None)
    local = jax.shard_map(
      local,
      mesh=mesh,
      in_specs=(*specs, P(axes), P()),
      out_specs=P(axes, None, tensor, None),
      check_vma=False,
    )

  def attend(q: Array, k: Array, v: Array, window: Array | None) -> Array:
    none = jnp.iinfo(jnp.int32).max
    window = jnp.asarray(none if window is None else window, jnp.int32)
    out = local(q * cfg.query_scale, k, v, rows, window)
    return out.reshape(*out.shape[:2], -1)

  return attend


def spans(segments: Array, most: int) -> Array:
  """int32 `[B,2,most]`: where the documents of each row begin and how long they are, then -1.

  What is beyond the number `most` is lost.

  Args:
    segments: `[B,T]` int32.
    most: At least the number of documents of any row.
  """
  length = segments.shape[1]
  begins = jnp.pad(segments[:, 1:] != segments[:, :-1], ((0, 0), (1, 0)), constant_values=True)
  index = jnp.where(begins, jnp.arange(length), length)
  starts = jnp.pad(jnp.sort(index, axis=1)[:, :most], ((0, 0), (0, 1)), constant_values=length)
  ends, starts = starts[:, 1:], starts[:, :-1]
  found = jnp.stack([starts, ends - starts], 1)
  return jnp.where(starts[:, None] < length, found, -1).astype(jnp.int32)


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


def _document_rows(q: Array, k: Array, v: Array, spans: Array, window: Array) -> Array:
  """As `_cudnn_rows`, but no window, and of `spans` in place of segments."""
  # Not in `jax.nn`: there a row is one document.
  from jax._src.cudnn import fused_attention_stablehlo as cudnn

  starts, sizes = spans[:, 0], spans[:, 1]
  starts = jnp.pad(starts, ((0, 0), (0, 1)), constant_values=-1)
  return cudnn.dot_product_attention(
    q,
    k.transpose(0, 3, 1, 2),
    v.swapaxes(1, 2),
    q_seqlen=sizes,
    kv_seqlen=sizes,
    q_offsets=starts,
    kv_offsets=starts,
    mask_type=cudnn.MaskType.PADDING_CAUSAL,
  )


def _differentiable(rows: Callable[..., Array], name: str) -> Callable[..., Array]:
  """cuDNN's kernel on one device, which runs and their gradients are rows of."""

  def gradients(q: Array, k: Array, v: Array, told: Array, slope: Array, window: Array) -> Any:
    run = lambda q, k, v: rows(q, k, v, told, window)
    return jax.vjp(run, q, k, v)[1](slope)

  def kernel(q: Array, k: Array, v: Array, told: Array, window: Array) -> Array:
    return _row_wise(rows)(q, k, v, told, window)

  def forward(*args: Array) -> tuple[Array, tuple[Array, ...]]:
    return kernel(*args), args

  def backward(args: tuple[Array, ...], slope: Array) -> tuple[Array | None, ...]:
    *given, window = args
    return *_row_wise(gradients)(*given, slope, window), None, None

  kernel.__name__ = name
  out = jax.custom_vjp(kernel)
  out.defvjp(forward, backward)
  return out


# Late, so that a test's own rows are found.
_cudnn = _differentiable(lambda *args: _cudnn_rows(*args), '_cudnn')
_cudnn_by_document = _differentiable(lambda *args: _document_rows(*args), '_cudnn_by_document')

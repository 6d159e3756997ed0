"""Fused kernels against plain attention: groups, segments, soft cap, windows, runs, meshes."""

import dataclasses
import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from sft_jax.models import attention, decoder, fused_attention
from sft_jax.models.config import ModelConfig
from sft_jax.parallel import mesh as mesh_lib

B, T, N, K, H = 1, 256, 2, 1, 32
CFG = ModelConfig.from_hf(
  {
    'architectures': ['LlamaForCausalLM'],
    'hidden_size': N * H,
    'intermediate_size': 64,
    'num_attention_heads': N,
    'num_key_value_heads': K,
    'num_hidden_layers': 2,
    'vocab_size': 64,
  }
)
FAMILIES = {
  'plain': CFG,
  'soft cap': dataclasses.replace(CFG, attn_softcap=5.0),
  'a window in all layers': dataclasses.replace(CFG, windows=(150, 150)),
  'a window in some': dataclasses.replace(CFG, windows=(150, 0), attn_softcap=30.0),
}


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
  """Several blocks in a short row."""
  monkeypatch.setattr(fused_attention, '_BLOCKS', (128,))


def inputs(rows=B, dtype=jnp.float32):
  keys = jax.random.split(jax.random.key(0), 3)
  draw = lambda key, *shape: jax.random.normal(key, shape, jnp.float32).astype(dtype)
  q, k, v = draw(keys[0], rows, T, N, H), draw(keys[1], rows, K, H, T), draw(keys[2], rows, K, T, H)
  # Three texts and padding in a row, at other places in each.
  ends = np.array([[70 + 3 * i, 150 + i, 240 - i] for i in range(rows)])
  segments = (np.arange(T)[None, :, None] >= ends[:, None]).sum(-1)
  return q, k, v, jnp.asarray((segments + 1) % 4, jnp.int32)


def reference(cfg, q, k, v, segments, window):
  mask = decoder.causal_mask(segments)
  index = jnp.arange(T)
  if window is not None:
    mask &= ((index[:, None] - index[None, :]) < window)[None]
  return attention.attention(q, k, v, mask, scale=cfg.query_scale, softcap=cfg.attn_softcap)


def splash(cfg, q, k, v, segments, window, mesh=None):
  return fused_attention.fused('splash', cfg, segments, mesh=mesh, interpret=True)(q, k, v, window)


@pytest.mark.parametrize('name', FAMILIES)
def test_splash_is_plain_attention(name):
  cfg = FAMILIES[name]
  q, k, v, segments = inputs()
  sizes = [size or 2**31 - 1 for size in cfg.windows] if any(cfg.windows) else [None]
  for size in sizes:
    window = None if size is None else jnp.int32(size)

    @jax.jit
    def both(q, k, v, window=window):
      weight = jnp.cos(jnp.arange(N * H))[None, None]
      loss = lambda fn: lambda *args: (fn(cfg, *args, segments, window) * weight).sum()
      out = [fn(cfg, q, k, v, segments, window) for fn in (reference, splash)]
      return out, [jax.grad(loss(fn), (0, 1, 2))(q, k, v) for fn in (reference, splash)]

    (wanted, found), (slopes, others) = both(q, k, v)
    np.testing.assert_allclose(found, wanted, atol=2e-5)
    for one, other in zip(slopes, others, strict=True):
      np.testing.assert_allclose(other, one, atol=2e-4)


def test_splash_in_bfloat16_rounds_like_it():
  q, k, v, segments = inputs(dtype=jnp.bfloat16)
  exact = reference(CFG, *(x.astype(jnp.float32) for x in (q, k, v)), segments, None)
  wanted, found = (fn(CFG, q, k, v, segments, None) for fn in (reference, splash))
  error = lambda x: float(jnp.abs(x.astype(jnp.float32) - exact).mean())
  assert found.dtype == jnp.bfloat16 and error(found) < 1.5 * error(wanted)


def test_splash_under_a_cohort_s_vmap():
  q, k, v, segments = inputs(rows=4)
  runs = lambda x: x.reshape(2, 2, *x.shape[1:])
  fn = functools.partial(splash, CFG)
  found = jax.vmap(fn, in_axes=(0, 0, 0, 0, None))(*map(runs, (q, k, v, segments)), None)
  np.testing.assert_allclose(
    found.reshape(4, T, -1), reference(CFG, q, k, v, segments, None), atol=2e-5
  )


def test_splash_over_a_mesh():
  mesh = mesh_lib.make_mesh(data=2, fsdp=2, tensor=2)
  q, k, v, segments = inputs(rows=4)
  cut = lambda x: jax.device_put(x, NamedSharding(mesh, P(('data', 'fsdp'))))
  found = jax.jit(lambda *args: splash(CFG, *args, None, mesh))(*map(cut, (q, k, v, segments)))
  np.testing.assert_allclose(found, reference(CFG, q, k, v, segments, None), atol=2e-5)


def test_choice():
  choose = functools.partial(fused_attention.choose, dtype=jnp.bfloat16)
  assert choose('auto', CFG, 4096, 'tpu') == 'splash' and choose('auto', CFG, 4096, 'cpu') == 'xla'
  assert choose('auto', CFG, 4000, 'tpu') == 'xla'  # no multiple of a block
  assert choose('auto', CFG, 4096, 'gpu') == choose('cudnn', CFG, 4096, 'gpu') == 'cudnn'
  assert choose('cudnn', CFG, 4096, 'cpu') == choose('splash', CFG, 4096, 'gpu') == 'xla'
  capped = FAMILIES['soft cap']
  assert choose('cudnn', capped, 4096, 'gpu') == choose('auto', CFG, 255, 'gpu') == 'xla'
  assert fused_attention.choose('cudnn', CFG, 4096, 'gpu', jnp.float32) == 'xla'


def test_capabilities_of_gpus():
  device = lambda platform, **told: types.SimpleNamespace(platform=platform, **told)
  of = fused_attention.capability_of
  assert of(device('gpu', compute_capability='9.0')) == 9.0
  assert of(device('gpu', compute_capability='gfx942')) == of(device('cpu')) == 0.0
  assert of(device('cuda')) == 8.0  # not here
  auto = functools.partial(fused_attention.choose, 'auto', CFG, 4096, 'gpu', jnp.bfloat16)
  assert auto(7.5) == auto(0.0) == 'xla' and auto(8.0) == auto() == 'cudnn'


def cudnn_loss(q, k, v, segments, documents=0):
  out = fused_attention.fused('cudnn', CFG, segments, documents=documents)(q, k, v, None)
  return (jnp.where((segments > 0)[:, :, None], out, 0).astype(jnp.float32) ** 2).sum()


def test_rows_of_mapped_runs_are_rows_for_cudnn(monkeypatch):
  """XLA stands in for the kernel; what folds runs into rows is under test."""
  monkeypatch.setattr(fused_attention, '_CUDNN', 'xla')
  runs = jax.tree.map(lambda x: x.reshape(3, 2, *x.shape[1:]), inputs(rows=6))

  def plain(q, k, v, segments):
    out = reference(CFG, q, k, v, segments, None).reshape(*segments.shape, -1)
    return (jnp.where((segments > 0)[:, :, None], out, 0) ** 2).sum()

  gradients = lambda loss: jax.jit(jax.vmap(jax.value_and_grad(jax.checkpoint(loss), (0, 1, 2))))
  found, wanted = gradients(cudnn_loss)(*runs), gradients(plain)(*runs)
  jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-4), found, wanted)


@pytest.mark.parametrize('window', [None, 7])
def test_cudnn_sees_what_plain_attention_sees(monkeypatch, window):
  """XLA stands in for the kernel: what is told apart from the mask adds up to it."""
  monkeypatch.setattr(fused_attention, '_CUDNN', 'xla')
  q, k, v, segments = inputs()
  size = None if window is None else jnp.int32(window)
  found = fused_attention.fused('cudnn', CFG, segments)(q, k, v, size)
  np.testing.assert_allclose(found, reference(CFG, q, k, v, segments, size), atol=2e-5)


def rows_of(segments, most):
  """What `spans` must say of each row, counted in plain Python."""
  out = np.full((len(segments), 2, most), -1)
  for row, line in enumerate(np.asarray(segments).tolist()):
    begins = [i for i, segment in enumerate(line) if i == 0 or segment != line[i - 1]]
    for at, (start, end) in enumerate(zip(begins, [*begins[1:], len(line)], strict=True)):
      out[row, :, at] = start, end - start
  return out


def test_spans_of_documents():
  segments = jnp.asarray([[1, 1, 2, 3, 3, 3, 0, 0], [4] * 8, [0] * 8, [1, 2, 1, 2, 1, 2, 1, 2]])
  found = fused_attention.spans(segments, 8)
  np.testing.assert_array_equal(found, rows_of(segments, 8))
  assert found.dtype == jnp.int32 and (found[1, :, 1:] == -1).all()


def in_spans(q, k, v, spans, window):
  """What cuDNN computes of documents, by plain attention: a token sees its span's earlier ones."""
  index = jnp.arange(q.shape[1])[None, None]
  starts, sizes = spans[:, 0, :, None], spans[:, 1, :, None]
  member = ((index >= starts) & (index < starts + sizes)).astype(jnp.int32)
  assert window.shape == ()
  return reference(
    dataclasses.replace(CFG, query_scale=1.0), q, k, v, 1 + member.argmax(1), None
  ).reshape(q.shape)


def test_documents_are_told_apart_by_their_spans(monkeypatch):
  """Plain attention stands in for the kernel, forward, backward and under a mapped axis."""
  monkeypatch.setattr(fused_attention, '_document_rows', in_spans)
  monkeypatch.setattr(fused_attention, '_cudnn_rows', None)
  q, k, v, segments = inputs(rows=6)
  found = fused_attention.fused('cudnn', CFG, segments, documents=4)(q, k, v, None)
  np.testing.assert_allclose(found, reference(CFG, q, k, v, segments, None), atol=2e-5)
  runs = jax.tree.map(lambda x: x.reshape(3, 2, *x.shape[1:]), (q, k, v, segments))
  loss = lambda documents: functools.partial(cudnn_loss, documents=documents)
  slopes = lambda fn: jax.jit(jax.vmap(jax.grad(jax.checkpoint(fn), (0, 1, 2))))(*runs)
  found = slopes(loss(5))
  monkeypatch.undo()
  monkeypatch.setattr(fused_attention, '_CUDNN', 'xla')
  jax.tree.map(
    functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-4), found, slopes(loss(0))
  )


def test_documents_are_taken_one_by_one_where_that_costs_little():
  few = functools.partial(fused_attention.by_document, CFG, 16, 1024, capability=9.0)
  assert few(1) and few(32) and not few(0) and not few(33)
  # Sums of a wide model: 8 bytes x 4 rows x 4,096 tokens x 4,096 components of each document.
  wide = dataclasses.replace(CFG, num_heads=32, head_dim=128)
  assert fused_attention.by_document(wide, 4, 4096, 4, 9.0)
  assert not fused_attention.by_document(wide, 4, 4096, 5, 9.0)
  assert not fused_attention.by_document(wide, 4, 4096, 4, 8.0)  # Ampere
  windowed = FAMILIES['a window in all layers']
  assert not fused_attention.by_document(windowed, 1, 256, 4, 10.0)
  assert fused_attention.by_document(windowed, 1, 128, 4, 10.0)  # no row is as long as its window


@pytest.mark.parametrize('documents', [0, 4])
def test_cudnn_is_traced_under_a_mapped_axis(monkeypatch, documents):
  """Every LoRA run has one. Tracing needs no GPU, but for questions about it."""
  from jax._src.cudnn import fused_attention_stablehlo as kernel

  monkeypatch.setattr(kernel, 'check_cudnn_version', lambda: 91000)
  monkeypatch.setattr(kernel, 'check_compute_capability', lambda capability: True)
  monkeypatch.setattr(kernel, 'is_cuda_compute_capability_equal', lambda capability: False)
  shapes = lambda x: jax.ShapeDtypeStruct((4, *x.shape), x.dtype)
  runs = jax.tree.map(shapes, inputs(rows=2, dtype=jnp.bfloat16))
  graph, (loss, slopes) = jax.make_jaxpr(
    jax.vmap(jax.value_and_grad(functools.partial(cudnn_loss, documents=documents), (0, 1, 2))),
    return_shape=True,
  )(*runs)
  assert loss.shape == (4,) and [x.shape for x in slopes] == [x.shape for x in runs[:3]]
  # Later blocks are skipped, forward and backward.
  text = str(graph)
  kind = 'PADDING_CAUSAL' if documents else 'CAUSAL'
  assert f'MaskType.{kind}' in text and 'MaskType.NO_MASK' not in text

"""Collectives of compiled programs against bytes counted by hand, and loops that turn."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from sft_jax.parallel import hlo
from sft_jax.parallel import mesh as mesh_lib

LAYERS, WIDTH, ROWS = 5, 64, 16


def compiled(turns_given: bool):
  """Rows through layers whose kernels are cut over eight devices, in a loop."""
  mesh = mesh_lib.make_mesh()
  spread, cut = NamedSharding(mesh, P('fsdp')), NamedSharding(mesh, P(None, 'fsdp'))

  def layer(i, x, kernels):
    y = x @ jax.lax.dynamic_index_in_dim(kernels, i, keepdims=False)
    return jax.lax.with_sharding_constraint(y, spread)

  def fn(x, kernels, turns):
    turns = LAYERS if turns_given else turns
    out = jax.lax.fori_loop(0, turns, lambda i, x: layer(i, x, kernels), x)
    return out, jnp.sum(out)

  shape = jax.ShapeDtypeStruct
  x = shape((ROWS, WIDTH), jnp.float32, sharding=spread)
  kernels = shape((LAYERS, WIDTH, WIDTH), jnp.float32, sharding=cut)
  return hlo.Module(jax.jit(fn).lower(x, kernels, jnp.int32(3)).compile().as_text())


@pytest.mark.parametrize('given', [True, False])
def test_a_loop_counts_as_often_as_it_turns(given):
  found = compiled(given).collectives(assumed=() if given else (3,))
  gathers = [one for one in found if one.kind == 'all-gather']
  turns = LAYERS if given else 3
  # Each turn gathers one kernel of f32: seven eighths of it come from elsewhere.
  assert [one.shapes for one in gathers] == [(f'f32[{WIDTH},{WIDTH}]',)]
  assert gathers[0].times == turns and gathers[0].inside_loop and gathers[0].group == 8
  assert gathers[0].sent == turns * WIDTH * WIDTH * 4 * 7 / 8
  reduces = [one for one in found if one.kind == 'all-reduce']
  assert sum(one.sent for one in reduces) == 2 * 4 * 7 / 8
  assert hlo.sent_by_kind(found)['all-gather'] == gathers[0].sent


def test_groups_beyond_a_node_are_far():
  found = compiled(True).collectives(near=4)
  assert found and all(one.far for one in found)
  assert not any(one.far for one in compiled(True).collectives(near=8))


def test_largest_buffers():
  largest = compiled(True).largest(1)[0]
  assert largest.shape == f'f32[{WIDTH},{WIDTH}]' and largest.size == WIDTH * WIDTH * 4


# As the TPU's compiler writes it: no trip count, a counter that advances by two.
TPU_LOOP = """HloModule m, is_scheduled=true

%cond (p: (u32[], bf16[8,128])) -> pred[] {
  %constant.1 = u32[]{:T(128)} constant(8)
  %p = (u32[]{:T(128)}, bf16[8,128]{1,0:T(8,128)(2,1)S(1)}) parameter(0)
  %i = u32[]{:T(128)} get-tuple-element(%p), index=0
  ROOT %lt = pred[]{:T(512)} compare(%i, %constant.1), direction=LT
}

%body (q: (u32[], bf16[8,128])) -> (u32[], bf16[8,128]) {
  %constant.2 = u32[]{:T(128)} constant(2)
  %q = (u32[]{:T(128)}, bf16[8,128]{1,0}) parameter(0)
  %j = u32[]{:T(128)} get-tuple-element(%q), index=0
  %x = bf16[8,128]{1,0} get-tuple-element(%q), index=1
  %start = (bf16[8,128]{1,0}, bf16[8,128]{1,0}, u32[]{:S(2)}, u32[]{:S(2)}) collective-permute-start(%x), channel_id=3, source_target_pairs={{0,1},{1,0}}, metadata={op_name="jit(f)/while/body/dot_general"}
  %done = bf16[8,128]{1,0} collective-permute-done(%start), frontend_attributes={kernel_metadata={
"xprof_metadata":"{}"
}}, metadata={op_name="jit(f)/while/body/kernel"}
  %next = u32[]{:T(128)} add(%j, %constant.2)
  ROOT %t = (u32[]{:T(128)}, bf16[8,128]{1,0}) tuple(%next, %done)
}

%all-reduce-scatter.1 (r: bf16[8,128]) -> bf16[2,128] {
  %r = bf16[8,128]{1,0} parameter(0)
  %whole = bf16[8,128]{1,0} all-reduce(%r), replica_groups={{0,1,2,3},{4,5,6,7}}, to_apply=%add
  ROOT %own = bf16[2,128]{1,0} dynamic-slice(%whole, %at), dynamic_slice_sizes={2,128}
}

ENTRY %main (a: bf16[8,128]) -> bf16[8,128] {
  %a = bf16[8,128]{1,0} parameter(0)
  %zero = u32[] constant(0)
  %init = (u32[], bf16[8,128]{1,0}) tuple(%zero, %a)
  %loop = (u32[], bf16[8,128]{1,0}) while(%init), condition=%cond, body=%body
  %sum = bf16[8,128]{1,0} all-reduce(%a), replica_groups=mesh['axis_0'=4,'axis_1'=2] {'axis_1'}, to_apply=%add
  %part = bf16[4,128]{1,0} reduce-scatter(%a), replica_groups=[4,2]<=[2,4]T(1,0), dimensions={0}, to_apply=%add
  %fused = bf16[2,128]{1,0} fusion(%a), kind=kCustom, calls=%all-reduce-scatter.1
  %rs = ((f32[8,4]{1,0}, f32[16]{0}), (f32[4,4]{1,0}, f32[8]{0})) reduce-scatter-start(%a, %a), replica_groups={{0,1}}, to_apply=%add
  ROOT %out = bf16[8,128]{1,0} get-tuple-element(%loop), index=1
}
"""  # noqa: E501


def test_loops_and_groups_of_tpus():
  permute, reduce, scatter, fused, started = hlo.Module(TPU_LOOP).collectives(near=2)
  size = 8 * 128 * 2
  assert (permute.kind, permute.times, permute.sent) == ('collective-permute', 4, 4 * size)
  assert permute.source == 'while/body/dot_general'
  # Neighbours 0 and 1 of the inner axis, and devices 0 and 4 of a transposed list.
  assert (reduce.group, reduce.far, reduce.sent) == (2, False, size)
  assert (scatter.group, scatter.far, scatter.sent) == (2, True, size / 2)
  # (operands, results), as GPUs have it.
  assert (started.kind, started.sent) == ('reduce-scatter', 4 * (4 * 4 + 8))
  assert (fused.kind, fused.group, fused.sent) == ('reduce-scatter', 4, size * 3 / 4)

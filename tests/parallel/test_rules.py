"""Logical axes to mesh axes, on 8 fake devices."""

import jax
import pytest
from jax.sharding import PartitionSpec as P

from sft_jax.models import families
from sft_jax.parallel import mesh as mesh_lib
from sft_jax.parallel import rules


@pytest.fixture(scope='module')
def mesh():
  return mesh_lib.make_mesh(data=2, fsdp=2, tensor=2)


def test_every_axis_of_every_family_has_a_rule():
  axes = {axis for family in families.FAMILIES.values() for row in family.rows for axis in row.axes}
  assert axes <= set(rules.LOGICAL_RULES)


def test_rules_name_mesh_axes():
  assert {axis for axes in rules.LOGICAL_RULES.values() for axis in axes} <= set(mesh_lib.AXES)


BATCH = ('runs', 'micro', 'batch', 'tokens')


@pytest.mark.parametrize(
  'axes, shape, spec',
  [
    (('vocab', 'embed'), (64, 32), P('tensor', 'fsdp')),
    (('layers', 'embed', 'heads'), (3, 32, 64), P(None, 'fsdp', 'tensor')),
    (('layers', 'norm'), (3, 32), P()),
    (('runs', 'layers', 'embed', 'rank'), (2, 3, 32, 8), P(None, None, 'fsdp')),
    (('runs', 'layers', 'rank', 'mlp'), (2, 3, 8, 32), P(None, None, None, 'tensor')),
    (BATCH, (1, 2, 8, 128), P(None, None, ('data', 'fsdp'))),
    # Four parts do not divide six rows; two do.
    (BATCH, (1, 2, 6, 128), P(None, None, 'data')),
    (('embed', 'heads'), (31, 64), P(None, 'tensor')),
    # One mesh axis cannot cut an array twice.
    (('heads', 'mlp'), (64, 64), P('tensor')),
  ],
)
def test_spec(mesh, axes, shape, spec):
  fallbacks = []
  assert rules.partition_spec(axes, shape, mesh, fallbacks) == spec
  whole = shape[-2:] == (6, 128) or 31 in shape or axes == ('heads', 'mlp')
  assert bool(fallbacks) == whole, fallbacks


def test_fallback_says_what_and_why(mesh):
  fallbacks = []
  rules.shardings(
    {'layers/attn/k/kernel': (('layers', 'embed', 'kv_heads'), (3, 32, 63))}, mesh, fallbacks
  )
  assert fallbacks == [
    'layers/attn/k/kernel: kv_heads is not cut over tensor=2 (63 is not divisible by 2)'
  ]


def test_a_mesh_of_one_cuts_nothing():
  one = mesh_lib.make_mesh(devices=jax.devices()[:1])
  fallbacks = []
  assert rules.partition_spec(('vocab', 'embed'), (7, 5), one, fallbacks) == P()
  assert fallbacks == []


def test_mistakes_are_errors(mesh):
  with pytest.raises(ValueError, match='no rule for logical axis'):
    rules.partition_spec(('nonsense',), (4,), mesh)
  with pytest.raises(ValueError, match='do not name shape'):
    rules.partition_spec(('embed',), (4, 4), mesh)


def test_adapter(mesh):
  axes = rules.adapter_axes(('embed', 'heads'))
  table = {'a': (axes['lora_a'], (2, 3, 8, 4)), 'b': (axes['lora_b'], (2, 3, 4, 16))}
  got = rules.shardings(table, mesh)
  assert got['a'].spec == P(None, None, 'fsdp')
  assert got['b'].spec == P(None, None, None, 'tensor')
  assert rules.stacked_axes('layers/attn/q/kernel', ('embed', 'heads'))[0] == 'layers'
  assert rules.stacked_axes('embed/embedding', ('vocab', 'embed')) == ('vocab', 'embed')

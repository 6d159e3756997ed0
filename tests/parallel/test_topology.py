"""Names of topologies, what there is, and abstract chips."""

import pytest

from sft_jax.parallel import gpu_target, topology
from sft_jax.utils.errors import UserError


@pytest.mark.parametrize(
  'name, kind, shape, told',
  [
    ('v5e:4x4', 'v5e', (4, 4), 'v5e:4x4'),
    ('v5litepod-16', 'v5e', (4, 4), 'v5e:4x4'),
    ('v5e-256', 'v5e', (16, 16), 'v5e:16x16'),
    ('v5p:4x4x4', 'v5p', (4, 4, 4), 'v5p:4x4x4'),
    ('v5p-128', 'v5p', (4, 4, 4), 'v5p:4x4x4'),  # counts cores
    ('v4-8', 'v4', (2, 2, 1), 'v4:2x2x1'),
    ('v4', 'v4', (2, 2, 1), 'v4:2x2x1'),
    ('V6E:8x8', 'v6e', (8, 8), 'v6e:8x8'),
    ('v5e', 'v5e', (1, 1), 'v5e:1x1'),
    ('h100:8', 'h100', (1, 8), 'h100:8'),
    ('h200', 'h200', (1, 1), 'h200:1'),
    ('a100:2x8', 'a100', (2, 8), 'a100:2x8'),
    ('b200:4x8', 'b200', (4, 8), 'b200:4x8'),
  ],
)
def test_names(name, kind, shape, told):
  found = topology.parse(name)
  assert (found.kind, found.shape, found.name) == (kind, shape, told)
  assert topology.parse(found.name) == found


@pytest.mark.parametrize(
  'name, words',
  [
    ('v5e:3x3', r'slices of v5e: .*v5e:4x4'),
    ('v5p:4x4', r'slices of v5p: .*v5p:4x4x4'),
    ('v5litepod-17', r'slices of v5e'),
    ('h100:3', r'h100:8.*NODESxGPUS'),
    ('h100:2x8x2', r'NODESxGPUS'),
    ('v7x:4x4', r'chips: v4, v5e, .*b200'),
    ('', r'chips: v4'),
  ],
)
def test_what_does_not_exist_is_refused_with_what_does(name, words):
  with pytest.raises(UserError, match=words) as e:
    topology.parse(name)
  assert e.value.where == 'config.plan.topology'


def test_chips():
  assert topology.parse('a100:2x8').chips == 16 and topology.parse('a100:2x8').near == 8
  v5e = topology.parse('v5e:16x16')
  assert v5e.chips == v5e.near == 256
  # Both directions of both sides of a closed torus; on a line, one of each.
  assert v5e.rate(256) == 4 * 45e9 and topology.parse('v5e:4x4').rate(16) == 2 * 45e9
  # A group that fits one side uses that side alone.
  assert v5e.rate(16) == 2 * 45e9
  two = topology.parse('h100:2x8')
  assert two.rate(8) == 450e9 and two.rate(16, 8) == 400e9 and two.rate(2, 1) == 50e9
  # Of neighbours, of every second, of one in each node.
  assert [two.inside(16, 1), two.inside(8, 2), two.inside(2, 8)] == [8, 4, 1]
  assert [two.inside(8, 1), two.inside(4, 2), two.inside(2, 4)] == [8, 4, 2]


def test_target_configs_tell_the_card():
  for kind, chip in topology.CHIPS.items():
    if chip.platform == 'cuda':
      text = gpu_target.config(topology.parse(kind).chip)
      assert f'device_memory_size: {chip.memory}' in text and chip.name in text


@pytest.mark.parametrize(
  'name, count', [('v5e:2x2', 4), ('v5e:1x1', 1), ('v5p:2x2x1', 4), ('v4', 4)]
)
def test_abstract_tpus(name, count):
  pytest.importorskip('libtpu', reason='the compiler of TPUs is not installed')
  found = topology.devices(topology.parse(name))
  assert len(found) == count
  # As a real one of them calls itself.
  assert topology.of_device(found[0].device_kind) == topology.parse(name).chip


def test_without_a_compiler(monkeypatch):
  monkeypatch.setattr(topology.importlib.util, 'find_spec', lambda name: None)
  for name, words in (('v5e:2x4', 'libtpu'), ('h100:4', 'CUDA plugin')):
    with pytest.raises(UserError, match=words):
      topology.devices.__wrapped__(topology.parse(name))

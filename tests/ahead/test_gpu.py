"""Llama-3-8B's widths compiled for H100s without any; `.ci/gpu` makes an environment that can."""

import math

import jax
import pytest

from sft_jax.ahead import compiled
from sft_jax.models import families, published
from sft_jax.parallel import topology
from tests.ahead.test_ahead import LLAMA3, setting

pytestmark = pytest.mark.slow
LAYERS = 2


@pytest.fixture(autouse=True)
def compiler():
  if why := topology.unable(topology.parse('h100:8')):
    pytest.skip(why)


def model():
  return published.raw_config(LLAMA3) | {'num_hidden_layers': LAYERS}


def kernels(cfg):
  """{name: shape} of the kernels of one layer."""
  return {
    path.split('/')[-2]: shape[1:]
    for path, shape in families.shapes(cfg).items()
    if path.startswith('layers/') and path.endswith('/kernel')
  }


def sides(shape):
  """Of an array, without those of 1."""
  listed = shape.partition('[')[2][:-1].split(',')
  return tuple(int(side) for side in listed if side not in ('', '1'))


def moved(program, kind, shapes):
  """Numbers that loops move of arrays of these shapes, turned or not."""
  wanted = {tuple(sorted(shape)) for shape in shapes}
  return sum(
    math.prod(sides(shape)) * one.times
    for one in program.collectives
    if one.kind == kind and one.inside_loop
    for shape in one.shapes
    if tuple(sorted(sides(shape))) in wanted
  )


@pytest.mark.parametrize('method, runs', [('full', 1), ('lora', 4)])
def test_training_sends_what_its_parameters_ask_for(method, runs):
  """Kernels once a pass for all runs, gradients once, the head once; the rest is small."""
  one = setting(model(), 'h100:8', method, runs=runs, length=256)
  program, held = compiled.train(one), kernels(one.cfg)
  sizes = {name: math.prod(shape) for name, shape in held.items()}
  total, head = sum(sizes.values()), one.cfg.vocab_size * one.cfg.hidden_size
  gathered = moved(program, 'all-gather', held.values())
  if one.is_lora:
    assert gathered == 2 * LAYERS * total
  else:
    # What only the layer's end needs is not computed again.
    assert gathered == LAYERS * (3 * total - sizes['down'])
    parts = {tuple(n // 8 if i == axis else n for i, n in enumerate(shape))
             for shape in held.values() for axis in (0, 1)}  # fmt: skip
    assert 8 * moved(program, 'reduce-scatter', parts) == LAYERS * total
  # Nothing larger than a kernel of one layer but the head and its gradient, once and in no loop.
  most = max(sizes.values())
  large = [c for c in program.collectives if max(math.prod(sides(s)) for s in c.shapes) > most]
  whole, part = (4096, one.cfg.vocab_size), (4096 // 8, one.cfg.vocab_size)
  heads = {('all-gather', whole), *([] if one.is_lora else [('reduce-scatter', part)])}
  assert {(c.kind, *map(sides, c.shapes)) for c in large} == heads and len(large) == len(heads)
  assert all(c.times == 1 and not c.inside_loop for c in large)
  told = 2 * gathered + 2 * head + (0 if one.is_lora else 4 * LAYERS * total + 4 * head)
  assert sum(c.sent for c in program.collectives) == pytest.approx(told * 7 / 8, rel=0.07)


def test_decoding_reads_weights_and_caches_where_they_lie():
  """A step makes no copy of a kernel, nor of what a cache holds of a layer."""
  if jax.__version_info__ < (0, 11):
    pytest.skip('before 0.11, jaxlib copies them')
  one = setting(model(), 'h100:1', 'full', mesh=(1, 1, 1), param_dtype='bfloat16')
  program = compiled.decode(one, 128, 256, steps=8)
  assert not program.refused
  made = {sides(found.shape) for found in program.largest}
  copies = {shape for name, shape in kernels(one.cfg).items() if name not in 'kv'}
  held = {(128, 8, 128, 256), (128, 8, 256, 128), (1024, 128, 256), (1024, 256, 128)}
  assert not made & (copies | held), program.largest

"""Llama-3-8B's widths compiled for TPUs: what each chip sends, and nothing else."""

import math

import pytest

from sft_jax.ahead import compiled, evaluation
from sft_jax.models import families, published
from tests.ahead.test_ahead import LLAMA3, setting

LAYERS = 2


@pytest.fixture(autouse=True)
def compiler():
  pytest.importorskip('libtpu', reason='the compiler of TPUs is not installed')


def model():
  return published.raw_config(LLAMA3) | {'num_hidden_layers': LAYERS}


def sides(shape):
  return [int(side) for side in shape.partition('[')[2][:-1].split(',') if side]


def numbers(shape):
  return math.prod(sides(shape))


@pytest.mark.slow
def test_decoding_sends_what_its_tokens_ask_for():
  """Matrices stay where they lie, and the roofline counts the bytes that the compiler sends."""
  one = setting(model(), 'v5e:2x4', 'full', length=1024)
  program = compiled.decode(one, 32, 1024, steps=8)
  # 32 tokens' logits are the largest thing that is summed.
  most = max(numbers(shape) for c in program.collectives for shape in c.shapes)
  assert most == 32 * one.cfg.vocab_size
  counted = 8 * evaluation.decode_work(one, 32, 1024).sent[8]
  assert sum(c.sent for c in program.collectives) == pytest.approx(counted, rel=0.02)


@pytest.mark.slow
def test_a_cohort_sends_the_base_for_all_its_runs_at_once():
  """Parts of kernels pass from chip to chip as often as for one run, and little else does.

  A TPU gives a kernel's parts on while it multiplies others, so that there is no gather to count.
  """
  one = setting(model(), 'v5e:2x4', 'lora', runs=4, length=256)
  program = compiled.train(one)
  shapes = families.shapes(one.cfg)
  kernels = {
    path: shape[1:]
    for path, shape in shapes.items()
    if path.startswith('layers/') and path.endswith('/kernel')
  }
  sent = lambda wanted: sum(c.sent for c in program.collectives if wanted(c))
  whole, parts = 2 * 7 / 8, LAYERS * sum(map(math.prod, kernels.values()))
  # bfloat16: forward, again, and to the inputs.
  base = sent(lambda c: c.inside_loop and c.shapes[0].startswith('bf16'))
  assert 2 * whole * parts <= base <= 3 * whole * parts
  (head,) = [c for c in program.collectives if not c.inside_loop and c.sent > 1e8]
  assert sorted(sides(head.shapes[0])) == [4096, one.cfg.vocab_size] and head.times == 1
  # Adapters' gradients and norms; and a kernel comes one layer at a time.
  rest = sent(lambda c: True) - base - head.sent
  assert rest < 0.1 * base
  most = max(numbers(s) for c in program.collectives for s in c.shapes if c is not head)
  assert most == max(map(math.prod, kernels.values()))

"""Llama-3-8B's widths compiled for TPUs: what each chip sends, and nothing else."""

import math

import pytest

from sft_jax.ahead import compiled, evaluation
from sft_jax.models import published
from tests.ahead.test_ahead import LLAMA3, setting

LAYERS = 2


@pytest.fixture(autouse=True)
def compiler():
  pytest.importorskip('libtpu', reason='the compiler of TPUs is not installed')


def model():
  return published.raw_config(LLAMA3) | {'num_hidden_layers': LAYERS}


def numbers(shape):
  return math.prod(int(side) for side in shape.partition('[')[2][:-1].split(',') if side)


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

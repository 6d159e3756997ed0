"""Prompts of every benchmark are pinned."""

import pytest

from sft_jax.evals import prompts
from sft_jax.evals.benchmarks import BENCHMARKS

READINGS = [(name, reading) for name in BENCHMARKS for reading in BENCHMARKS[name].readings]


@pytest.mark.parametrize('name, reading', READINGS)
def test_prompts_are_pinned(name, reading):
  benchmark = BENCHMARKS[name]
  assert prompts.prompt_hash(benchmark, reading) == benchmark.prompt_hash[reading], (
    'a prompt has changed, so scores will: raise the version and pin the new hash'
  )


@pytest.mark.parametrize('name', BENCHMARKS)
def test_every_reading_is_pinned(name):
  assert BENCHMARKS[name].prompt_hash.keys() == BENCHMARKS[name].readings.keys()

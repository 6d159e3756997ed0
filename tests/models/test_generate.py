"""Greedy generation against transformers' own."""

import functools

import jax.numpy as jnp
import numpy as np
import pytest

from sft_jax.models import generate, lora
from tests.train import common

MAX_NEW = 9


@functools.cache
def model():
  cfg = common.config(num_key_value_heads=1)
  return cfg, common.params(cfg, 4)


def prompts():
  rng = np.random.default_rng(0)
  return [rng.integers(0, common.VOCAB, n).tolist() for n in (5, 1, 17, 16, 2, 30)]


def ours(given, stop_ids=(), base=None, **options):
  cfg, params = model()
  return generate.generate(
    cfg, base or params, given, stop_ids=stop_ids, max_new=MAX_NEW, **options
  )


@functools.cache
def theirs(stop_ids=()):
  """Answers of transformers, one prompt at a time."""
  torch = pytest.importorskip('torch')
  cfg, params = model()
  llama = common.torch_llama(cfg, params).eval()
  out = []
  for prompt in prompts():
    ids = torch.tensor([prompt])
    with torch.no_grad():
      whole = llama.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=MAX_NEW,
        do_sample=False,
        eos_token_id=list(stop_ids) or None,
        pad_token_id=0,
      )
    new = whole[0, len(prompt) :].tolist()
    stops = [i for i, token in enumerate(new) if token in stop_ids]
    out.append(new[: stops[0]] if stops else new)
  return out


def test_greedy_equals_transformers():
  answers = ours(prompts())
  assert answers == theirs() and {len(a) for a in answers} == {MAX_NEW}
  assert len({tuple(a) for a in answers}) > 3, 'the prompts matter'


def test_stop_tokens_end_an_answer_and_are_left_out():
  free = theirs()
  # Tokens from the middle and the very beginning of some answers.
  stops = (free[0][4], free[2][0])
  want = theirs(stops)
  assert ours(prompts(), stops) == want
  assert [] in want and any(0 < len(answer) < MAX_NEW for answer in want)


@pytest.mark.parametrize('rows', [1, 4])
def test_neighbours_do_not_matter(rows):
  assert ours(prompts(), rows=rows) == theirs()
  assert ours(prompts()[::-1], rows=rows) == theirs()[::-1]


def test_adapter_equals_merged_weights():
  cfg, base = model()
  adapter = lora.one_run(common.adapter(cfg, [4], [1], b_size=0.3), 0)
  scale = jnp.array([2.0, 0.5])
  answers = ours(prompts(), adapter=adapter, lora_scale=scale)
  assert answers == ours(prompts(), base=lora.merge(base, adapter, scale))
  assert answers != theirs(), 'the adapter does something'


def test_nothing_to_do():
  assert ours([]) == []

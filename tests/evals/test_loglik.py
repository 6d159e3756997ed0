"""The log-likelihood engine against transformers, and against itself in other layouts."""

import functools

import jax.numpy as jnp
import numpy as np
import pytest

from sft_jax.evals import layout, loglik
from sft_jax.models import lora
from tests.evals import toy
from tests.evals.toy import plain, subject, weights
from tests.train import common


def texts(seed=0):
  """As of a benchmark: subjects with shots, questions, choices; some bare texts of many lengths."""
  rng = np.random.default_rng(seed)
  draw = lambda n: rng.integers(0, common.VOCAB, n).astype(np.int32)
  out = []
  for shots, questions in ((130, 24), (75, 30), (20, 3)):
    head = draw(shots)
    for _ in range(questions):
      context = np.concatenate([head, draw(int(rng.integers(5, 60)))])
      for size in (1, 1, 1, 4):
        out.append(layout.Text(np.concatenate([context, draw(size)]), len(context)))
  for size in (2, 3, 90, 700, 1300):
    out.append(layout.Text(draw(size), 1))
  out.append(out[0])
  return out


@functools.cache
def reference():
  """Each text by itself through transformers."""
  llama = toy.torch_model()
  import torch

  found = []
  for text in texts():
    with torch.no_grad():
      logits = llama(torch.tensor(text.ids[None].astype(np.int64))).logits[0].double()
    logprobs = torch.log_softmax(logits, -1).numpy()[text.start - 1 : -1]
    wanted = text.ids[text.start :]
    picked = np.take_along_axis(logprobs, wanted[:, None].astype(np.int64), 1)[:, 0]
    found.append(loglik.Scored(picked, logprobs.argmax(-1) == wanted))
  return found


def same(got, want, atol=2e-5):
  assert len(got) == len(want)
  for one, two in zip(got, want, strict=True):
    np.testing.assert_allclose(one.logprobs, two.logprobs, atol=atol)
    np.testing.assert_array_equal(one.greedy, two.greedy)


def test_equals_transformers():
  same(loglik.score(subject(), texts()), reference())


@pytest.mark.parametrize('tokens', [512, 16384])
def test_batches_do_not_matter(tokens):
  given = texts()
  order = np.random.default_rng(3).permutation(len(given))
  got = loglik.score(subject(), [given[i] for i in order], tokens)
  same(got, [reference()[i] for i in order])


def test_several_devices():
  same(loglik.score(subject(devices=8), texts()), reference())


def test_shared_work_is_done_once():
  given = texts()
  plan = layout.plan(given, loglik.ROW)
  assert sorted(len(ids) for ids in plan.prefixes) == [75, 130]
  assert sorted(q.text for row in plan.rows for q in row.queries) == list(range(len(given)))
  distinct = {text.ids[:-1][:n].tobytes() for text in given for n in range(1, len(text.ids))}
  assert plan.tokens == len(distinct), 'each beginning of a text is computed once'
  assert sum(len(text.ids) for text in given) > 4 * plan.tokens


def test_a_stem_too_long_for_a_row_is_computed_once():
  rng = np.random.default_rng(0)
  stem = rng.integers(0, common.VOCAB, 900).astype(np.int32)
  given = [layout.Text(np.append(stem, t).astype(np.int32), 900) for t in range(4)]
  assert layout.plan(given, 512).tokens == 900


def test_a_text_that_begins_another():
  ids = np.arange(40, dtype=np.int32) % common.VOCAB
  given = [layout.Text(ids[:n], 1) for n in (2, 17, 40, 39)]
  plan = layout.plan(given, 512)
  assert plan.tokens == 39
  same(loglik.score(subject(), given), loglik.score(plain(), given))


def test_nothing_is_scored_from_a_prefix():
  """The token before the first scored one must be in the row, so the prefix ends before it."""
  head = np.arange(300, dtype=np.int32) % common.VOCAB
  rng = np.random.default_rng(0)
  tails = [rng.integers(0, common.VOCAB, 40) for _ in range(40)]
  given = [layout.Text(np.concatenate([head, t]).astype(np.int32), 200) for t in tails]
  plan = layout.plan(given, 512)
  assert [len(ids) for ids in plan.prefixes] == [199]
  same(loglik.score(subject(), given), loglik.score(plain(), given))


def test_adapters_together_equal_each_alone():
  cfg, _ = weights()
  adapter = common.adapter(cfg, [4, 2, 4], [1, 2, 3], b_size=0.3)
  scale = jnp.array([[2.0, 0.5], [1.0, 1.0], [0.0, 0.0]])
  runs = toy.cohort(adapter, scale)
  together = loglik.score(runs, texts())
  for run in range(3):
    alone = subject(adapter=lora.one_run(adapter, run), lora_scale=scale[run])
    got = [loglik.Scored(s.logprobs[run], s.greedy[run]) for s in together]
    same(got, loglik.score(alone, texts()))
  same(got, reference())


def test_a_model_that_is_only_a_function():
  given = texts()[::9]
  same(loglik.score(plain(), given), reference()[::9])


def test_many_targets_at_one_place():
  ids = np.arange(10, dtype=np.int32)
  given = [layout.Text(np.append(ids, t).astype(np.int32), 10) for t in range(common.VOCAB)]
  got = loglik.score(subject(), given)
  assert np.exp([one.logprobs[0] for one in got]).sum() == pytest.approx(1, abs=1e-5)
  assert sum(one.greedy[0] for one in got) == 1


def test_nothing_to_score():
  assert loglik.score(subject(), []) == []
  with pytest.raises(ValueError, match='nothing to score'):
    layout.plan([layout.Text(np.arange(3), 3)], 512)

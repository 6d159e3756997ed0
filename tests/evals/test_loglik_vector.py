"""Log-likelihood vectors beside sums over the logits of transformers' model; files and choices."""

import json

import numpy as np
import pytest

from sft_jax.analysis import vectors
from sft_jax.evals.probes import loglik_vector
from sft_jax.evals.probes.loglik_vector import ProbeText
from sft_jax.models import lora
from sft_jax.utils.errors import UserError
from tests.evals import test_score as scored
from tests.evals import toy
from tests.train import common

TEXTS = [ProbeText(q, f' {a}', 'toy') for q, a in scored.QUESTIONS]


def by_hand(texts):
  """Sums of log-probabilities from whole texts, one at a time."""
  import jax.numpy as jnp

  from sft_jax.models import decoder

  cfg, params = scored.model()
  out = []
  for text in texts:
    tokens = jnp.asarray(text.ids)[None]
    places, ones = jnp.arange(len(text.ids))[None], jnp.ones_like(tokens)
    hidden = decoder.forward(cfg, params, tokens, places, ones, dtype=jnp.float32)
    logits = np.asarray(hidden @ decoder.head_kernel(params), np.float64)[0]
    logp = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    out.append(sum(logp[t - 1, text.ids[t]] for t in range(text.start, len(text.ids))))
  return out


@pytest.mark.parametrize('span', loglik_vector.SPANS)
def test_sums_of_the_span(span):
  encoded, sizes = loglik_vector.encode(TEXTS, scored.tokenizer(), 512, span)
  got = loglik_vector.loglik_vector(scored.subject(), encoded)
  np.testing.assert_allclose(got, by_hand(encoded), rtol=1e-5)
  if span == 'answer':
    # A token that begins in the prompt and ends in the answer counts.
    assert all(len(text.answer.encode()) <= size for text, size in zip(TEXTS, sizes, strict=True))
  else:
    assert all(one.start == 1 for one in encoded)


def test_beside_transformers():
  torch = pytest.importorskip('torch')
  rng = np.random.default_rng(0)
  ids = [rng.integers(0, common.VOCAB, n).astype(np.int32) for n in (5, 17, 40)]
  texts = [loglik_vector.loglik.Text(one, 1) for one in ids]
  got = loglik_vector.loglik_vector(toy.subject(), texts)
  model = toy.torch_model()
  for one, value in zip(ids, got, strict=True):
    tokens = torch.tensor(one[None].astype(np.int64))
    with torch.no_grad():
      loss = model(tokens, labels=tokens).loss
    assert value == pytest.approx(-float(loss) * (len(one) - 1), rel=1e-5)


def test_several_runs_at_once():
  cfg = toy.weights()[0]
  adapter = common.adapter(cfg, [2, 4], [0, 1], b_size=0.2)
  scale = np.ones((2, cfg.num_layers), np.float32)
  texts = [loglik_vector.loglik.Text(np.arange(9, dtype=np.int32), 1)] * 2
  both = loglik_vector.loglik_vector(toy.cohort(adapter, scale), texts)
  assert both.shape == (2, 2)
  for run in range(2):
    one = toy.subject(adapter=lora.one_run(adapter, run), lora_scale=scale[run])
    np.testing.assert_allclose(both[run], loglik_vector.loglik_vector(one, texts), rtol=1e-5)


def test_files_of_the_same_texts_make_a_matrix(tmp_path):
  write = lambda name, texts, **more: loglik_vector.write(
    tmp_path / name, scored.subject(), scored.tokenizer(), texts, {'model_name': name}, **more
  )
  first, second = write('a.npz', TEXTS), write('b.npz', TEXTS)
  matrix, facts = vectors.read_matrix([tmp_path / 'a.npz', tmp_path / 'b.npz'])
  np.testing.assert_array_equal(matrix, [first, second])
  assert [one['model_name'] for one in facts] == ['a.npz', 'b.npz']
  about = json.loads((tmp_path / 'a.npz.json').read_text())
  assert about['texts'] == loglik_vector.digest(TEXTS) and about['span'] == 'whole'
  per_token, _ = vectors.read_matrix([tmp_path / 'a.npz'], per='token')
  encoded, _ = loglik_vector.encode(TEXTS, scored.tokenizer(), 512)
  np.testing.assert_allclose(per_token[0], first / [len(one.ids) - 1 for one in encoded])
  write('c.npz', TEXTS[:3])
  with pytest.raises(UserError, match='other probe texts'):
    vectors.read_matrix([tmp_path / 'a.npz', tmp_path / 'c.npz'])
  with pytest.raises(UserError, match='no log-likelihood vector'):
    vectors.read_matrix([])


def test_choice_does_not_depend_on_order():
  many = [ProbeText(f'q{i}', 'a') for i in range(50)]
  one = loglik_vector.choose({'t': many, 's': many}, 10)
  assert one == loglik_vector.choose({'s': many[::-1] + many, 't': many[::-1]}, 10)
  assert [text.task for text in one] == ['s'] * 10 + ['t'] * 10
  assert one != loglik_vector.choose({'t': many, 's': many}, 10, seed=1)
  with pytest.raises(UserError, match='50 different texts, 51'):
    loglik_vector.choose({'t': many * 2}, 51)


def test_nothing_left_to_score():
  with pytest.raises(UserError, match='nothing of it'):
    loglik_vector.encode([ProbeText('word ' * 50, 'x')], scored.tokenizer(), 8, 'answer')
  with pytest.raises(UserError, match='no span'):
    loglik_vector.encode(TEXTS, scored.tokenizer(), 8, 'half')

"""Perplexity under jit against numpy formulas on the logits of transformers."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sft_jax.data import formats, templates, tokenize
from sft_jax.evals import model as eval_model
from sft_jax.evals import score
from sft_jax.models import hf, lora
from sft_jax.parallel import mesh as meshes
from sft_jax.utils import trees
from tests.models.conftest import tiny_tokenizer
from tests.train import common

QUESTIONS = [
  ('Add 2 and 3.', '5'),
  ('你好，世界！', 'water boils at 100 degrees'),
  ('def add(a, b):', 'return a + b\n'),
  ('Is it? 🙂', 'naïve: yes — no'),
  ('The quick brown fox jumps over the lazy dog. ' * 4, '56'),
]
KINDS = {'full': None, 'response': templates.RESPONSE, 'instruction': templates.INSTRUCTION}


@functools.cache
def tokenizer():
  return tiny_tokenizer()


@functools.cache
def examples(template='chat'):
  records = [
    formats.Record(
      messages=({'role': 'user', 'content': q}, {'role': 'assistant', 'content': a}),
      source=f'test:{i}',
    )
    for i, (q, a) in enumerate(QUESTIONS)
  ]
  out, dropped = tokenize.encode_all(records, tokenizer(), template)
  assert not dropped
  return tuple(out)


@functools.cache
def model():
  cfg = common.config(vocab_size=len(tokenizer()), num_key_value_heads=1)
  return cfg, common.params(cfg, 6)


def subject(devices=1, **adapter):
  cfg, params = model()
  mesh = meshes.make_mesh(1, devices, 1, devices=jax.devices()[:devices])
  shardings = hf.param_shardings(cfg, mesh)
  placed = trees.map_with_path(lambda path, x: jax.device_put(x, shardings[path]), params)
  return eval_model.single(cfg, placed, jnp.float32, mesh, **adapter)


@functools.cache
def theirs():
  """Log-probability of each token of each example, one at a time through transformers."""
  torch = pytest.importorskip('torch')
  cfg, params = model()
  llama = common.torch_llama(cfg, params).eval()
  out = []
  for example in examples():
    tokens = torch.tensor(example.ids).long()[None]
    with torch.no_grad():
      logits = llama(tokens).logits[0].double()
    logs = torch.log_softmax(logits, -1).numpy()
    out.append(np.array([0.0] + [logs[t - 1, example.ids[t]] for t in range(1, len(example.ids))]))
  return out


def by_hand(logprobs, span):
  """The definitions, in plain Python: (corpus, mean over documents, median, NLL in nats)."""
  nlls, tokens = [], []
  for example, logs in zip(examples(), logprobs, strict=True):
    kind = KINDS[span]
    chosen = [t for t in range(1, len(logs)) if kind is None or example.spans[t] == kind]
    nlls.append(-sum(float(logs[t]) for t in chosen))
    tokens.append(len(chosen))
  each = [math.exp(nll / n) for nll, n in zip(nlls, tokens, strict=True)]
  corpus = math.exp(sum(nlls) / sum(tokens))
  return corpus, sum(each) / len(each), sorted(each)[len(each) // 2], sum(nlls)


def test_token_logprobs_are_those_of_transformers():
  ours = score.token_logprobs(subject(), examples())
  for mine, want in zip(ours, theirs(), strict=True):
    assert mine.dtype == np.float32 and mine[0] == 0
    np.testing.assert_allclose(mine, want, atol=2e-5)


@pytest.mark.parametrize('span', ['full', 'response', 'instruction'])
def test_three_forms_of_perplexity(span):
  ours = score.perplexity(examples(), score.token_logprobs(subject(), examples()), 'x')
  tail = '' if span == 'full' else f'-{span}'
  corpus, mean, median, nll = by_hand(theirs(), span)
  assert ours[f'ppl-x{tail}'] == pytest.approx(corpus, rel=1e-5)
  assert ours[f'ppl-doc-x{tail}'] == pytest.approx(mean, rel=1e-5)
  assert ours[f'ppl-doc-median-x{tail}'] == pytest.approx(median, rel=1e-5)
  size = sum(example.span_bytes[span] for example in examples())
  want = nll / (math.log(2) * size)
  assert ours[f'bits-per-byte-x{tail}'] == pytest.approx(want, rel=1e-5)
  assert ours['x-n'] == len(QUESTIONS)


def test_bytes_are_those_of_the_text():
  """Bits and bytes cover the same: predicted text, without special tokens."""
  text = lambda i: ''.join(QUESTIONS[i])
  for i, example in enumerate(examples()):
    size = lambda s: len(s.encode())
    assert example.span_bytes['instruction'] == size(QUESTIONS[i][0])
    assert example.span_bytes['response'] == size(QUESTIONS[i][1])
    assert example.span_bytes['full'] == size(text(i)), 'the rest of the template is special tokens'
  for i, example in enumerate(examples('study')):
    whole = f'###Question: {QUESTIONS[i][0]}\n###Answer: {QUESTIONS[i][1]}'
    first = tokenizer().decode(example.ids[:1])
    skipped = 0 if first in tokenizer().all_special_tokens else len(first.encode())
    assert example.span_bytes['full'] == len(whole.encode()) - skipped


@pytest.mark.parametrize('tokens_per_batch', [1, 300, 3000])
def test_any_batch_size_gives_the_same(tokens_per_batch):
  want = score.token_logprobs(subject(), examples())
  got = score.token_logprobs(subject(), examples(), tokens_per_batch)
  for mine, other in zip(got, want, strict=True):
    np.testing.assert_allclose(mine, other, atol=1e-5)
  columns = [score.perplexity(examples(), x, 'x') for x in (got, want)]
  assert columns[0] == pytest.approx(columns[1], rel=1e-5)


def test_order_does_not_matter():
  want = score.token_logprobs(subject(), examples())
  got = score.token_logprobs(subject(), examples()[::-1])[::-1]
  for mine, other in zip(got, want, strict=True):
    np.testing.assert_allclose(mine, other, atol=1e-5)


def test_eight_devices_give_the_same():
  if jax.device_count() < 8:
    pytest.skip('needs 8 devices')
  want = score.token_logprobs(subject(), examples())
  for mine, other in zip(score.token_logprobs(subject(8), examples()), want, strict=True):
    np.testing.assert_allclose(mine, other, atol=1e-5)


def test_adapter_equals_merged_weights():
  cfg, params = model()
  adapter = lora.one_run(common.adapter(cfg, [4], [1], b_size=0.3), 0)
  scale = jnp.array([2.0, 0.5])
  adapted = score.token_logprobs(subject(adapter=adapter, lora_scale=scale), examples())
  plain = subject()
  merged = lora.merge(params, adapter, scale)
  other = eval_model.single(cfg, merged, jnp.float32, plain.mesh)
  assert np.abs(adapted[0] - score.token_logprobs(plain, examples())[0]).max() > 0.1
  for mine, want in zip(adapted, score.token_logprobs(other, examples()), strict=True):
    np.testing.assert_allclose(mine, want, atol=5e-5)


def test_standard_error_is_that_of_resampling():
  """Of the ratio estimator, against a bootstrap over documents."""
  rng = np.random.default_rng(0)
  lengths = rng.integers(3, 30, 300)
  given = [
    tokenize.Example(
      ids=np.zeros(n, np.int32),
      loss_weight=np.ones(n, np.float32),
      spans=np.full(n, templates.RESPONSE, np.uint8),
      source='',
      span_bytes={'full': 1, 'response': 1, 'instruction': 0},
    )
    for n in lengths
  ]
  logs = [-rng.gamma(2, 0.5 + 0.02 * n, n) for n in lengths]
  columns = score.perplexity(given, logs, 'x')
  assert not any('instruction' in column for column in columns), 'a span without tokens'
  nll, count = np.array([-x[1:].sum() for x in logs]), lengths - 1
  draws = rng.integers(0, len(given), (4000, len(given)))
  spread = np.exp(nll[draws].sum(1) / count[draws].sum(1)).std()
  assert columns['ppl-x-stderr'] == pytest.approx(spread, rel=0.1)


def test_a_diverged_model_has_infinite_perplexity():
  logs = [np.full(len(e), -5000.0, np.float32) for e in examples()]
  columns = score.perplexity(examples(), logs, 'x')
  assert columns['ppl-x'] == columns['ppl-doc-x'] == math.inf
  assert math.isfinite(columns['bits-per-byte-x'])


def test_nothing_to_score():
  assert score.token_logprobs(subject(), []) == []
  assert score.perplexity([], [], 'x') == {'x-n': 0}

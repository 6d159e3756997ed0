"""A language model of the user's own, in plain Flax, on our benchmarks and through lm-eval."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from sft_jax.evals import benchmarks, lm_eval_model, suite
from sft_jax.evals.answers import Answers
from sft_jax.evals.files import LocalFiles
from sft_jax.evals.model import Plain, Subject
from sft_jax.evals.questions import Options
from sft_jax.parallel import mesh as meshes
from tests.conftest import REPOSITORY
from tests.evals.tasks import choice_files
from tests.models.conftest import tiny_tokenizer

WINDOW = 256


class Model(nnx.Module):
  """Embedding, one block of attention, head."""

  def __init__(self, vocab: int, rngs: nnx.Rngs):
    self.embed = nnx.Embed(vocab, 16, rngs=rngs)
    self.norm = nnx.LayerNorm(16, rngs=rngs)
    self.attention = nnx.MultiHeadAttention(2, 16, decode=False, rngs=rngs)
    self.head = nnx.Linear(16, vocab, rngs=rngs)

  def __call__(self, tokens):
    x = self.embed(tokens)
    x = x + self.attention(self.norm(x), mask=nnx.make_causal_mask(tokens))
    return self.head(x) * 4


@pytest.fixture(scope='module')
def own():
  """The model, and what the engines take."""
  tokenizer = tiny_tokenizer()
  model = Model(len(tokenizer), nnx.Rngs(0))
  # All that a user writes.
  graph, params = nnx.split(model)
  apply = lambda params, tokens: nnx.merge(graph, params)(tokens)
  mesh = meshes.make_mesh(1, 1, 1, devices=jax.devices()[:1])
  subject = Subject(Plain(apply, len(tokenizer), WINDOW), params, mesh)
  return model, subject, tokenizer


@pytest.fixture(scope='module')
def files(tmp_path_factory):
  directory = tmp_path_factory.mktemp('bench')
  choice_files.write(directory)
  return LocalFiles(str(directory))


def loglikelihood(model, ids, continuation):
  """By the model alone, one text at a time."""
  logits = model(jnp.array([[*ids, *continuation]]))[0, len(ids) - 1 : -1]
  rows = jax.nn.log_softmax(logits.astype(jnp.float32))
  return float(sum(row[token] for row, token in zip(rows, continuation, strict=True)))


def test_a_flax_model_is_scored_on_a_benchmark(own, files):
  model, subject, tokenizer = own
  options = Options(tokenizer, 'raw', [tokenizer.eos_token_id], WINDOW)
  task = suite.BenchmarkTask(benchmarks.parse('arc_easy:2shot:ll'), files, options)
  scores = task.run(subject, Answers())
  for record, question in zip(scores['arc_easy2-2shot-ll-items'], task.questions, strict=True):
    alone = [loglikelihood(model, question.ids, more) for more in question.continuations]
    np.testing.assert_allclose(record['logprobs'], alone, atol=2e-4)
    assert record['scores']['acc'] == (int(np.argmax(alone)) == question.item.fields['gold'])


def test_what_the_readme_says_of_a_flax_model(own, files, tmp_path):
  """Its lines, with a model, a tokenizer and a directory in place of the reader's."""
  model, subject, tokenizer = own
  choice_files.write(tmp_path)
  (code,) = [
    block
    for block in re.findall(r'```python\n(.*?)```', (REPOSITORY / 'README.md').read_text(), re.S)
    if 'Plain(' in block
  ]
  given = {'model': model, 'tokenizer': tokenizer, 'vocab_size': len(tokenizer)}
  names = {**given, 'max_length': WINDOW}
  exec(code.replace("'DIR'", repr(str(tmp_path))), names)
  options = Options(tokenizer, 'raw', [tokenizer.eos_token_id], WINDOW)
  ours = suite.BenchmarkTask(benchmarks.parse('arc_easy:ll'), files, options)
  assert names['scores'] == ours.run(subject, Answers())


def test_a_flax_model_writes(own, files):
  model, subject, tokenizer = own
  options = Options(tokenizer, 'raw', [tokenizer.eos_token_id], WINDOW, slots=4)
  task = suite.BenchmarkTask(benchmarks.parse('boolq:5shot:gen'), files, options)
  records = task.run(subject, Answers())['boolq-5shot-gen-items']
  assert len(records) == 10
  for record, question in zip(records[:2], task.questions, strict=False):
    ids = question.ids.tolist()
    for _ in range(record['output-tokens']):
      ids.append(int(jnp.argmax(model(jnp.array([ids]))[0, -1])))
    text = tokenizer.decode(ids[len(question.ids) :], skip_special_tokens=True)
    assert record['output'] and text.startswith(record['output'])


def test_a_flax_model_through_lm_eval(own):
  pytest.importorskip('lm_eval')
  from lm_eval.api.instance import Instance

  model, subject, tokenizer = own
  ours = lm_eval_model.make(subject, tokenizer, [tokenizer.eos_token_id])
  pairs = [('Water boils at', ' 100 degrees.'), ('Water boils at', ' noon'), ('', 'Water')]
  asked = [Instance('loglikelihood', {}, pair, i) for i, pair in enumerate(pairs)]
  for (context, more), (found, _) in zip(pairs, ours.loglikelihood(asked), strict=True):
    head = tokenizer(context)['input_ids'] or [tokenizer.bos_token_id]
    whole = tokenizer(context + more)['input_ids']
    after = whole[len(tokenizer(context)['input_ids']) :]
    assert found == pytest.approx(loglikelihood(model, head, after), abs=2e-4)

"""A vocabulary that the mesh does not divide is padded: no number and no file may show it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sft_jax.data.tokenize import Example
from sft_jax.evals import generation, score
from sft_jax.evals import model as eval_model
from sft_jax.models import export, head, hf, source
from sft_jax.models.config import ModelConfig
from sft_jax.train import loss
from sft_jax.utils import trees
from tests.models.conftest import make_mesh, one_device_mesh, write_tiny_llama
from tests.train import common


@pytest.fixture(scope='module', params=[False, True], ids=['untied', 'tied'])
def checkpoint(request, tmp_path_factory):
  directory = write_tiny_llama(tmp_path_factory.mktemp('odd') / 'llama', tied=request.param)
  return source.resolve(str(directory))


def example(given):
  """As the evaluation takes it."""
  return Example(given.ids, given.loss_weight, np.zeros(len(given.ids), np.uint8), 'f:1', {})


def load(checkpoint, mesh):
  plain = ModelConfig.from_hf(checkpoint.config)
  cfg = hf.padded_for(plain, mesh)
  return cfg, hf.load_params(checkpoint, cfg, mesh)


def test_padding_divides_the_table_and_holds_zeros(checkpoint):
  mesh = make_mesh(1, 1, 8)
  cfg, params = load(checkpoint, mesh)
  assert cfg.vocab_size % 8 and cfg.padded_vocab % 8 == 0 and cfg.vocab_padding < 8
  table = params['embed']['embedding']
  assert table.sharding.shard_shape(table.shape)[0] == cfg.padded_vocab // 8
  assert not np.asarray(table)[cfg.vocab_size :].any()
  assert hf.padded_for(cfg, one_device_mesh()).vocab_padding == 0


def test_scores_answers_and_exports_are_those_of_the_plain_model(checkpoint, tmp_path):
  mesh = make_mesh(1, 1, 8)
  (cfg, plain), (odd, padded) = load(checkpoint, one_device_mesh()), load(checkpoint, mesh)
  texts = [example(given) for given in common.examples(6, 1, vocab=cfg.vocab_size)]
  subjects = (
    eval_model.single(cfg, plain, jnp.float32, one_device_mesh()),
    eval_model.single(odd, padded, jnp.float32, mesh),
  )
  one, eight = (np.concatenate(score.token_logprobs(s, texts)) for s in subjects)
  np.testing.assert_allclose(eight, one, atol=2e-5)
  prompts = [e.ids.tolist() for e in texts]
  requests = [generation.Request(prompt, 8) for prompt in prompts]
  engine = lambda one: generation.Engine(one, lambda prompt, new: str(new), [1])
  answers = [engine(one).generate(requests) for one in subjects]
  assert answers[0] == answers[1]
  export.export_hf(tmp_path / 'out', odd, padded, checkpoint, dtype='float32')
  again = source.resolve(str(tmp_path / 'out'))
  for name, info in checkpoint.tensors.items():
    assert again.tensors[name].shape == info.shape
    np.testing.assert_array_equal(again.read(name), checkpoint.read(name), err_msg=name)


def test_training_is_that_of_the_plain_model(checkpoint):
  results = []
  for mesh in (one_device_mesh(), make_mesh(1, 1, 8)):
    cfg, params = load(checkpoint, mesh)
    train, state = common.make(
      cfg, 'full', params, [common.hypers(cfg, eps=1e-5, weight_decay=0.1)], mesh=mesh,
      shardings=jax.tree.map(lambda x: x.sharding, params),
    )  # fmt: skip
    data = [common.batch(common.examples(4, s, vocab=cfg.vocab_size), rows=4) for s in range(3)]
    losses, _, state = common.run(train, None, state, data)
    table = np.asarray(trees.flatten(state.trained)['embed/embedding'])
    assert not table[cfg.vocab_size :].any()
    results.append((losses, table[: cfg.vocab_size]))
  (one, table_one), (eight, table_eight) = results
  np.testing.assert_allclose(eight, one, atol=1e-5)
  np.testing.assert_allclose(table_eight, table_one, atol=2e-5)


def test_padding_is_never_predicted():
  """Where its zeros would score best: every real logit is -8."""
  hidden, targets = jnp.ones((1, 4, 8)), jnp.array([[0, 1, 2, 0]])
  kernel = jnp.concatenate([-jnp.ones((8, 3)), jnp.zeros((8, 5))], axis=1)
  logits = lambda h: head.logits_of(h, kernel, None, 3)[0]
  scores, _ = head.score_targets(hidden, logits, targets[..., None], where=targets >= 0, chunk=4)
  np.testing.assert_allclose(scores, -np.log(3), rtol=1e-6)
  weights = jnp.ones(targets.shape)
  options = {'chunk': 4, 'train_head': True, 'vocab': 3}
  sums = loss.cross_entropy(hidden, kernel, targets, weights, **options)
  np.testing.assert_allclose(sums.sum, 4 * np.log(3), rtol=1e-6)
  value = lambda kernel: loss.cross_entropy(hidden, kernel, targets, weights, **options).sum
  assert not np.asarray(jax.grad(value)(kernel))[:, 3:].any()
  assert int(jnp.argmax(head.without_padding(hidden @ kernel, 3), axis=-1).max()) < 3

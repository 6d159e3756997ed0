"""States after each layer beside transformers' `output_hidden_states`."""

import jax
import numpy as np
import pytest

from sft_jax.evals.probes import hidden_states
from sft_jax.models import lora
from sft_jax.utils import tables
from sft_jax.utils.errors import UserError
from tests.evals import toy
from tests.train import common


def texts():
  rng = np.random.default_rng(0)
  return [rng.integers(0, common.VOCAB, n).astype(np.int32) for n in (3, 40, 1, 33, 70, 9)]


@pytest.mark.parametrize('pooling', hidden_states.POOLINGS)
def test_beside_transformers(pooling):
  torch = pytest.importorskip('torch')
  model = toy.torch_model()
  # The model gives the last layer's states after the final norm only: caught before it instead.
  last = []
  hook = model.model.norm.register_forward_hook(lambda module, given, out: last.append(given[0]))
  want = []
  for ids in texts():
    last.clear()
    with torch.no_grad():
      out = model(torch.tensor(ids[None].astype(np.int64)), output_hidden_states=True)
    layers = [*out.hidden_states[1:-1], last[0]]
    # The mean is of all but the first, where there are others.
    pooled = [
      x[0, min(1, len(ids) - 1) :].mean(0) if pooling == 'mean' else x[0, -1] for x in layers
    ]
    want.append(np.stack([x.numpy() for x in pooled]))
  hook.remove()
  got = hidden_states.hidden_states(toy.subject(), texts(), pooling, tokens_per_batch=128)
  assert got.shape == (2, 6, 32) and got.dtype == np.float32
  np.testing.assert_allclose(got, np.stack(want, 1), rtol=1e-4, atol=1e-5)


def test_batches_and_devices_change_nothing():
  whole = hidden_states.hidden_states(toy.subject(), texts())
  alone = [hidden_states.hidden_states(toy.subject(), [ids]) for ids in texts()]
  np.testing.assert_allclose(whole, np.concatenate(alone, 1), atol=1e-5)
  if jax.device_count() >= 8:
    spread = hidden_states.hidden_states(toy.subject(devices=8), texts(), tokens_per_batch=64)
    np.testing.assert_allclose(whole, spread, atol=1e-5)


def test_several_runs_at_once():
  cfg = toy.weights()[0]
  adapter = common.adapter(cfg, [2, 4], [0, 1], b_size=0.2)
  scale = np.ones((2, cfg.num_layers), np.float32)
  both = hidden_states.hidden_states(toy.cohort(adapter, scale), texts())
  assert both.shape == (2, 2, 6, 32)
  for run in range(2):
    one = toy.subject(adapter=lora.one_run(adapter, run), lora_scale=scale[run])
    np.testing.assert_allclose(both[run], hidden_states.hidden_states(one, texts()), atol=1e-5)


def test_file(tmp_path):
  states = hidden_states.write(tmp_path / 's.npz', toy.subject(), texts(), {'model_name': 'm'})
  arrays, about = tables.read_arrays(tmp_path / 's.npz')
  np.testing.assert_array_equal(arrays['states'], states)
  assert arrays['lengths'].tolist() == [len(ids) for ids in texts()]
  assert about['model_name'] == 'm' and about['pooling'] == 'mean'


def test_bad_input():
  with pytest.raises(UserError, match='this package only'):
    hidden_states.hidden_states(toy.plain(), texts())
  with pytest.raises(UserError, match='no pooling'):
    hidden_states.hidden_states(toy.subject(), texts(), 'max')
  for wrong in (np.zeros(0, np.int32), np.zeros(5000, np.int32)):
    with pytest.raises(UserError, match='text 1'):
      hidden_states.hidden_states(toy.subject(), [texts()[0], wrong])

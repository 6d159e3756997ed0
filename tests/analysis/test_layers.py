"""Change by depth and gains: planted peaks and nulls, grids, files of a study."""

import json

import numpy as np
import pytest

from sft_jax.analysis import layers
from sft_jax.utils.errors import UserError
from tests.analysis import studies


def test_grid_keeps_ends_and_lines():
  line = np.linspace(2, 9, 32)
  np.testing.assert_allclose(layers.on_grid(line), np.linspace(2, 9, 21))
  np.testing.assert_allclose(layers.on_grid(np.array([[3.0]])), np.full((1, 21), 3))
  bent = layers.on_grid(np.array([0, 1, 4.0]))
  np.testing.assert_allclose(bent[[0, 5, 10, 15, 20]], [0, 0.5, 1, 2.5, 4])


def test_a_planted_peak_is_found():
  hits = covered = middle = 0
  for seed in range(12):
    changes, gains, index = studies.peak(seed)
    found = layers.by_depth(changes, gains, np.sqrt(np.square(changes).sum(-1)))
    hits += index in found['peak_set']
    covered += found['mean_low'][index] <= 0.6 <= found['mean_high'][index]
    middle += found['middle_low'] > 0
    assert len(found['peak_set']) < 21
  assert hits >= 11 and covered >= 10 and middle >= 10


def test_no_peak_is_found_where_none_is():
  found = [layers.by_depth(*studies.peak(seed, rho=0)[:2]) for seed in range(12)]
  assert sum(f['middle_low'] > 0 or f['middle_high'] < 0 for f in found) <= 2
  assert 'partial' not in found[0]


def test_correlations_are_numpys():
  changes, gains, _ = studies.peak(0)
  total = np.sqrt(np.square(changes).sum(-1))
  found = layers.by_depth(changes, gains, total)
  r = [np.corrcoef(changes[m, :, 4], gains[m])[0, 1] for m in range(10)]
  np.testing.assert_allclose(found['per_model'][:, 4], r)
  assert found['mean'][4] == pytest.approx(np.tanh(np.arctanh(r).mean()))
  z = lambda x: ((x - x.mean(1, keepdims=True)) / x.std(1, keepdims=True)).ravel()
  a, b, c = z(changes[..., 4]), z(gains), z(total)
  assert found['pooled'][4] == pytest.approx(np.corrcoef(a, b)[0, 1])
  left = [v - c * (c @ v) / (c @ c) for v in (a, b)]
  assert found['partial'][4] == pytest.approx(np.corrcoef(*left)[0, 1])
  # Depths 0.35 to 0.65 against 0 to 0.3 and 0.7 to 1.
  r = found['mean']
  outer = np.concatenate([r[:7], r[14:]])
  assert found['middle'] == pytest.approx(r[7:14].mean() - outer.mean())
  assert found['middle_low'] < found['middle'] < found['middle_high']


def test_too_little_has_a_reason():
  changes, gains, _ = studies.peak(0)
  assert 'needs' in layers.by_depth(changes[:1], gains[:1])['reason']
  assert 'needs' in layers.by_depth(changes[:, :3], gains[:, :3])['reason']
  with pytest.raises(UserError, match='at least two models'):
    layers.across_models(changes[:1])


def test_models_alike_in_the_middle():
  rng = np.random.default_rng(0)
  share = np.exp(-0.5 * ((layers.GRID - 0.5) / 0.15) ** 2)
  common, own = rng.normal(size=(1, 10, 1)), rng.normal(size=(8, 10, 21))
  values = np.sqrt(share) * common + np.sqrt(1 - share) * own
  found = layers.across_models(values)
  assert found['C'][10] == pytest.approx(1) and abs(found['C'][0]) < 0.3
  assert found['low'][0] < 0 < found['high'][0] and found['low'][8] > 0.3
  r = np.corrcoef(values[:, :, 6])
  assert found['C'][6] == pytest.approx(r[~np.eye(8, dtype=bool)].mean())


@pytest.mark.parametrize('rank', [1, 8])
def test_lora_norm_is_that_of_the_product(rank):
  rng = np.random.default_rng(rank)
  a, b = rng.normal(size=(64, rank)), rng.normal(size=(rank, 48))
  want = np.linalg.norm(-0.25 * a @ b)
  assert layers.lora_norm(a, b, -0.25) == pytest.approx(want, rel=1e-12)


def test_reads_a_study_and_makes_arrays(tmp_path):
  for name, shift in (('r1', 0.0), ('r2', 2.0)):
    run = tmp_path / 'runs' / name
    run.mkdir(parents=True)
    row = {'run-id': name, 'step': 8, 'model_name': 'm', 'data_name': 'lima', 'lora': True}
    change = {'all': {'norm': [1 + shift, 3 + shift], 'relative': [0.1, 0.2]}}
    record = {'run-id': name, 'step': 8, 'epoch': 1, 'modules': change}
    (run / 'rows.jsonl').write_text(json.dumps(row) + '\n')
    (run / 'layers.jsonl').write_text(json.dumps(record) + '\n')
  records = layers.read(tmp_path)
  assert [record['data_name'] for record in records] == ['lima', 'lima']
  models, datasets, values, total, gains = layers.cube(records, {('m', 'lima'): 5.0})
  assert (models, datasets, gains.tolist()) == (['m'], ['lima'], [[5.0]])
  np.testing.assert_allclose(values[0, 0], np.linspace(2, 4, 21))
  assert total[0, 0] == pytest.approx((10**0.5 + 34**0.5) / 2)
  with pytest.raises(UserError, match='no layer change'):
    layers.cube(records, {})
  with pytest.raises(UserError, match='no layer changes'):
    layers.read(tmp_path / 'runs')

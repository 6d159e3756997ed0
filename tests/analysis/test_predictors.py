"""Predictor tests: planted effects and nulls, scipy's correlations, what is skipped and why."""

import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from sft_jax.analysis import predictors
from sft_jax.utils.errors import UserError
from tests.analysis import studies

QUICK = predictors.Settings(draws=300, shuffles=400)


def one(x, y, others=(), settings=QUICK):
  return predictors.test(x, y, others, predictors.Resamples(*x.shape, settings))


def test_correlations_are_scipys():
  x, gains, other = studies.predictor(0)
  y = gains[..., 0]
  y[2, 3] = np.nan
  row = one(x, y, [other])
  held = np.isfinite(y)
  assert row['n_pairs'] == 109
  assert row['pooled'] == pytest.approx(stats.pearsonr(x[held], y[held])[0])
  assert row['pooled_spearman'] == pytest.approx(stats.spearmanr(x[held], y[held])[0])
  z = lambda pairs: np.tanh(np.mean([np.arctanh(stats.pearsonr(a, b)[0]) for a, b in pairs]))
  assert row['within_model'] == pytest.approx(z((x[m][held[m]], y[m][held[m]]) for m in range(11)))
  columns = [(x[held[:, d], d], y[held[:, d], d]) for d in range(10)]
  assert row['within_dataset'] == pytest.approx(z(columns))


def test_planted_effect_is_within_its_interval():
  rows = [one(x, g[..., 0]) for x, g, _ in map(studies.predictor, range(20))]
  inside = [r['within_model_low'] <= -0.5 <= r['within_model_high'] for r in rows]
  assert sum(inside) >= 18
  assert sum(r['p_common'] <= 0.05 for r in rows) >= 18
  assert all(r['pooled_low'] < r['pooled'] < r['pooled_high'] for r in rows)


def test_a_data_set_that_is_good_for_all_models_is_one_trial():
  """Shuffling each model for itself finds effects where there are none; that does not count."""
  naive = common = found = 0
  for seed in range(40):
    x, gains, _ = studies.predictor(seed, rho=0, shared=0.8)
    (row,) = predictors.tests({'x': x}, gains, ['b'], QUICK)
    naive, common = naive + (row['p'] <= 0.05), common + (row['p_common'] <= 0.05)
    found += row['finding']
  assert naive >= 10 and common <= 6
  assert found <= common


def test_many_tests_are_corrected():
  x, gains, _ = studies.predictor(3, rho=0, benchmarks=6)
  rng = np.random.default_rng(0)
  table = {f'p{i}': rng.normal(size=x.shape) for i in range(4)}
  rows = predictors.tests(table | {'x': x}, gains, [f'b{i}' for i in range(6)], QUICK)
  assert len(rows) == 30 and not any(row['finding'] for row in rows)
  assert all(row['p_holm'] >= row['q'] >= max(row['p'], row['p_common']) for row in rows)


def test_partial_tells_a_shadow_from_a_cause():
  rng = np.random.default_rng(0)
  cause = rng.normal(size=(11, 10))
  shadow = cause + 0.5 * rng.normal(size=cause.shape)
  gain = cause + 0.3 * rng.normal(size=cause.shape)
  rows = predictors.tests({'cause': cause, 'shadow': shadow}, gain[..., None], ['b'], QUICK)
  assert rows[0]['partial_low'] > 0.5
  assert rows[1]['pooled'] > 0.7 and rows[1]['partial_low'] < 0 < rows[1]['partial_high']


def test_one_predictor_against_another():
  x, gains, other = studies.predictor(1, rho=-0.8)
  found = predictors.against(x, other, gains[..., 0])
  assert found['low'] > 0.2 and found['high'] < 1
  same = predictors.against(x, x, gains[..., 0])
  assert same == {'difference': 0.0, 'low': 0.0, 'high': 0.0}


def test_what_cannot_be_said_has_a_reason():
  x, gains, _ = studies.predictor(0)
  y = gains[..., 0]
  few = np.where(np.arange(10) < 3, y, np.nan)
  assert 'needs 2 models with 4' in one(x, few)['reason']
  assert one(np.full_like(x, 2.0), y)['reason'] == 'the predictor is constant'
  assert one(x, np.zeros_like(y))['reason'] == 'the gain is constant'
  assert 'within each model' in one(np.repeat(x[:, :1], 10, 1), y)['reason']
  row = one(x, few)
  assert math.isnan(row['pooled']) and math.isnan(row['p'])
  # And does not count as a test.
  rows = predictors.tests({'x': x, 'none': np.full_like(x, np.nan)}, gains, ['b'], QUICK)
  assert rows[0]['p_holm'] == max(rows[0]['p'], rows[0]['p_common'])
  with pytest.raises(UserError, match='no predictor'):
    predictors.tests({}, gains, ['b'], QUICK)
  with pytest.raises(UserError, match='shape'):
    predictors.tests({'x': x[:3]}, gains, ['b'], QUICK)


def test_similarity():
  rng = np.random.default_rng(0)
  a, b = rng.normal(size=(7, 5)), rng.normal(size=(4, 5))
  unit = lambda x: x / np.linalg.norm(x, axis=1, keepdims=True)
  got = predictors.similarity(a, b)
  means = unit(a).mean(0), unit(b).mean(0)
  want = means[0] @ means[1] / np.linalg.norm(means[0]) / np.linalg.norm(means[1])
  assert got['cosine_of_means'] == pytest.approx(want)
  assert got['mean_of_best'] == pytest.approx((unit(a) @ unit(b).T).max(1).mean())


def test_cube_joins_frames_by_name_and_takes_logarithms():
  gains = pd.DataFrame(
    {'model_name': ['m', 'm', 'm', 'n'], 'data_name': ['a', 'a', 'b', 'a'], 'x': [1.0, 3, 5, 7]}
  )
  properties = pd.DataFrame(
    {
      'model_name': ['m', 'm', 'n', 'o'],
      'data_name': ['a', 'b', 'a', 'a'],
      'ppl-data': [1.0, math.e, 1, 1],
      'words': [10, 20, 30, 40],
    }
  )
  models, datasets, table, cube = predictors.cube(gains, properties, ['x'])
  assert (models, datasets, list(table)) == (['m', 'n'], ['a', 'b'], ['log_ppl-data', 'words'])
  np.testing.assert_allclose(table['log_ppl-data'], [[0, 1], [0, np.nan]])
  np.testing.assert_allclose(cube[..., 0], [[2, 5], [7, np.nan]])
  with pytest.raises(UserError, match='words'):
    predictors.cube(gains, properties, ['words'])
  with pytest.raises(UserError, match='both tables'):
    predictors.cube(gains.assign(model_name='z'), properties, ['x'])


def test_early_drop():
  rows = [{'step': s, 'ppl-heldout': p} for s, p in ((0, 8.0), (10, 4.0), (16, 2.0), (40, 1.0))]
  assert predictors.early_drop(rows) == pytest.approx(math.log(4))
  assert math.isnan(predictors.early_drop(rows[1:]))
  assert math.isnan(predictors.early_drop(rows, most_steps=5))

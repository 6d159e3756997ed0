"""One model's statistics, against scipy, published numbers and planted truth."""

import math

import numpy as np
import pytest
from scipy import stats

from sft_jax.analysis import one_model
from sft_jax.utils.errors import UserError


def correlated(rng, rho, count=10):
  x = rng.normal(size=count)
  return x, rho * x + math.sqrt(1 - rho**2) * rng.normal(size=count)


def test_rank_correlation_is_scipys_and_p_is_that_of_all_permutations():
  x, y = correlated(np.random.default_rng(0), 0.7, 6)
  found = one_model.rank_correlation(x, np.round(y), 20_000)
  assert found['rho'] == pytest.approx(stats.spearmanr(x, np.round(y)).statistic)
  ranks = stats.rankdata(np.round(y))
  exact = stats.permutation_test(
    (ranks,),
    lambda r: stats.pearsonr(stats.rankdata(x), r).statistic,
    permutation_type='pairings',
    n_resamples=np.inf,
  )
  assert found['p'] == pytest.approx(exact.pvalue, abs=0.02)
  # Bonett and Wright's formula, by hand.
  rho = found['rho']
  ends = np.tanh(np.arctanh(rho) + np.array([-1, 1]) * 1.96 * math.sqrt((1 + rho**2 / 2) / 3))
  assert (found['low'], found['high']) == pytest.approx(ends, abs=1e-3)


def test_the_interval_holds_the_truth():
  rng, inside = np.random.default_rng(1), []
  truth = 6 / math.pi * math.asin(0.6 / 2)  # Spearman's of a normal pair with Pearson's 0.6
  for _ in range(300):
    found = one_model.rank_correlation(*correlated(rng, 0.6), shuffles=1)
    inside.append(found['low'] <= truth <= found['high'])
  assert 0.91 <= np.mean(inside) <= 0.99


def test_the_closer_predictor_is_told():
  rng = np.random.default_rng(2)
  y = rng.normal(size=40)
  near, far = y + 0.1 * rng.normal(size=40), rng.normal(size=40)
  found = one_model.closer(-near, far, y)
  assert found['low'] > 0 and found['value'] == pytest.approx(
    abs(stats.spearmanr(near, y).statistic) - abs(stats.spearmanr(far, y).statistic)
  )
  assert one_model.closer(far, near, y)['high'] < 0
  assert one_model.closer(near, near, y)['value'] == 0


def test_the_depth_that_goes_with_gains_is_in_the_middle():
  rng = np.random.default_rng(3)
  y = rng.normal(size=10)
  values = rng.normal(size=(10, 21))
  assert one_model.thirds(4).tolist() == [False, True, True, False]
  inner = one_model.thirds(21)
  assert np.flatnonzero(inner).tolist() == list(range(7, 14))
  values[:, inner] = y[:, None] + 0.3 * rng.normal(size=(10, inner.sum()))
  found = one_model.middle([(values, y), (values[:, ::-1], 2 * y + 1)])
  assert found['low'] > 0 and len(found['r']) == 2
  assert found['r'][0][10] == pytest.approx(stats.pearsonr(values[:, 10], y).statistic)
  r = np.array(found['r'])
  outer = np.concatenate([r[:, :7], r[:, 14:]], axis=1)
  assert found['value'] == pytest.approx((r[:, 7:14].mean(1) - outer.mean(1)).mean())


def test_seeds_are_shrout_and_fleiss():
  """Their table 2: six targets, four judges; ICC(1,1) is .17, in later software -.13 to .72."""
  table = [(9, 2, 5, 8), (6, 1, 3, 2), (8, 4, 6, 8), (7, 1, 2, 6), (10, 5, 6, 9), (6, 2, 4, 7)]
  found = one_model.seeds({str(i): row for i, row in enumerate(table)})
  assert found['icc'] == pytest.approx(0.166, abs=1e-3)
  assert (found['low'], found['high']) == pytest.approx((-0.133, 0.723), abs=2e-3)
  f = stats.f_oneway(*table)
  assert (found['f'], found['p']) == pytest.approx((f.statistic, f.pvalue))
  assert found['sd_seeds'] == pytest.approx(math.sqrt(6.264), abs=1e-3)


def test_a_mean_has_students_interval_and_so_has_its_jackknife():
  x = np.random.default_rng(4).normal(1, 1, 10)
  found, test = one_model.mean_interval(list(x)), stats.ttest_1samp(x, 0)
  bounds = test.confidence_interval()
  assert (found['low'], found['high']) == pytest.approx((bounds.low, bounds.high))
  assert found['p'] == pytest.approx(test.pvalue)
  left = one_model.jackknife(lambda held: float(x[held].mean()), len(x))
  assert left == pytest.approx(found)


@pytest.mark.parametrize(
  'call',
  [
    lambda: one_model.rank_correlation(np.arange(3.0), np.arange(3.0)),
    lambda: one_model.rank_correlation(np.ones(5), np.arange(5.0)),
    lambda: one_model.rank_correlation(np.array([1, 2, 3, math.nan]), np.arange(4.0)),
    lambda: one_model.closer(np.arange(4.0), np.arange(5.0), np.arange(4.0)),
    lambda: one_model.seeds({'a': [1.0, 2.0], 'b': [1.0]}),
    lambda: one_model.seeds({'a': [1.0, 2.0]}),
    lambda: one_model.mean_interval([1.0]),
  ],
)
def test_what_says_nothing_is_refused(call):
  with pytest.raises(UserError):
    call()

"""Corrections against scipy and R's examples, intervals and the jackknife against formulas."""

import numpy as np
import pytest
from scipy import stats

from sft_jax.analysis import correlations, resampling


def test_corrections():
  p = [0.01, 0.04, np.nan, 0.03, 0.005]
  # R: p.adjust(c(0.01, 0.04, 0.03, 0.005), 'holm'); NaN counts as no test.
  np.testing.assert_allclose(resampling.holm(p), [0.03, 0.06, np.nan, 0.06, 0.02])
  want = stats.false_discovery_control([0.01, 0.04, 0.03, 0.005])
  np.testing.assert_allclose(resampling.benjamini_hochberg(p), np.insert(want, 2, np.nan))


def test_weights_draw_as_many_units_as_there_are():
  weights = resampling.weights(np.random.default_rng(0), 500, 7)
  assert (weights.sum(1) == 7).all() and weights.std() > 0.5


@pytest.mark.parametrize('common', [True, False])
def test_permutations_shuffle_each_row(common):
  index = resampling.permutations(np.random.default_rng(0), 200, 3, 5, common=common)
  assert (np.sort(index, -1) == np.arange(5)).all()
  assert (index[:, 0] == index[:, 1]).all() == common


def test_the_interval_is_wider_for_few_units():
  assert resampling.tail(10**6) == pytest.approx(0.025, abs=1e-5)
  # Hesterberg's table for n = 10: 0.0086.
  assert resampling.tail(10) == pytest.approx(0.0086, abs=1e-4)
  assert np.isnan(resampling.interval(np.arange(10.0), 1)).all()


def test_a_mean_has_students_interval():
  """scipy's, of each column; units that are not known do not count."""
  x = np.random.default_rng(0).normal(0.4, 1, (7, 3))
  x[0, 1] = np.nan
  held = np.isfinite(x)
  count, mean = held.sum(0), np.nanmean(x, 0)
  low, high, p = resampling.students(mean, (x - mean) / count, 0.9)
  for j in range(3):
    test = stats.ttest_1samp(x[held[:, j], j], 0)
    assert (low[j], high[j]) == pytest.approx(test.confidence_interval(0.9))
    assert p[j] == pytest.approx(test.pvalue)
  for one in resampling.students(mean, (x - mean)[:1]):
    assert np.isnan(one).all(), 'one unit tells nothing'
  same = resampling.students(np.array([0.0, 2.0]), np.zeros((4, 2)))
  assert same[2].tolist() == [1, 0]


def test_clusters_go_together():
  """Of equal sizes it is the t interval of their means; empty ones do not count."""
  x = np.random.default_rng(1).normal(size=(5, 6)) + np.arange(5)[:, None]
  sums, counts = x.sum(1), np.full(5, 6)
  want = stats.ttest_1samp(x.mean(1), 0)
  for more in (0, 1):
    given = (np.append(v, np.zeros(more)) for v in (sums, counts))
    low, high, p = resampling.clustered(*given)
    assert (low, high) == pytest.approx(want.confidence_interval(0.95))
    assert p == pytest.approx(want.pvalue)


@pytest.mark.parametrize('units', [3, 5, 11])
def test_few_units_find_nothing_where_nothing_is(units):
  """The extremes of three bootstrapped units leave out 0 in a quarter of cases."""
  x = np.random.default_rng(2).normal(size=(units, 4000))
  low, high, p = resampling.students(x.mean(0), (x - x.mean(0)) / units)
  outside = (low > 0) | (high < 0)
  assert outside.mean() == pytest.approx(0.05, abs=0.011) and (outside == (p < 0.05)).all()
  # Clusters of unequal sizes, with effects of their own.
  sizes = np.arange(units) % 3 + 3
  sums = sizes[:, None] * x + np.sqrt(sizes)[:, None] * np.random.default_rng(3).normal(
    size=x.shape
  )
  low, high, _ = resampling.clustered(sums, np.broadcast_to(sizes[:, None], sums.shape))
  assert ((low > 0) | (high < 0)).mean() < 0.075


def test_jackknife_of_a_mean_is_its_standard_error():
  """Of cells without effects of models or data sets, close to σ / √(MD); of model effects, too."""
  rng = np.random.default_rng(1)
  held = np.ones((8, 9), bool)
  jackknife = resampling.Jackknife(held)
  models, cells = jackknife.weights
  weights = models[:, :, None] * cells
  mean = lambda x: (weights * x).sum((1, 2)) / weights.sum((1, 2))
  by_model = np.repeat(rng.normal(size=(8, 1)), 9, 1)
  assert jackknife.stderr(mean(by_model)) == pytest.approx(by_model[:, 0].std(ddof=1) / 8**0.5)
  by_data = np.repeat(rng.normal(size=(1, 9)), 8, 0)
  parts = [by_model[:, 0].var(ddof=1) / 8, by_data[0].var(ddof=1) / 9]
  # Less the cells' part, which the two count twice.
  twice = (by_model + by_data).var(ddof=1) / 72
  assert jackknife.stderr(mean(by_model + by_data)) == pytest.approx((sum(parts) - twice) ** 0.5)
  errors = [jackknife.stderr(mean(rng.normal(size=held.shape))) for _ in range(300)]
  assert np.sqrt(np.mean(np.square(errors))) == pytest.approx(1 / 72**0.5, rel=0.25)


def test_jackknife_leaves_out_what_is_there():
  held = np.ones((3, 4), bool)
  held[2] = False
  held[0, 0] = False
  jackknife = resampling.Jackknife(held)
  assert len(jackknife.weights[1]) == 1 + 2 + 4 + 7
  assert jackknife.freedom == 1


def test_correlations_under_weights_are_those_of_repeated_rows():
  rng = np.random.default_rng(0)
  x, y, z = rng.normal(size=(3, 4, 6)) + 1000
  y += x
  y[1, 2] = np.nan
  models = np.array([[1, 1, 1, 1], [0, 2, 1, 1.0]])
  cells = rng.integers(0, 3, size=(2, 4, 6)).astype(float)
  moments = correlations.Moments([x, y])
  got = moments.pooled(models, cells), moments.within_model(models, cells)
  for b in range(2):
    times = np.where(np.isfinite(y), models[b][:, None] * cells[b], 0).astype(int)
    a, c = (np.repeat(v.ravel(), times.ravel()) for v in (x, y))
    assert got[0][b] == pytest.approx(np.corrcoef(a, c)[0, 1])
    within = []
    for m in range(4):
      count = np.where(np.isfinite(y[m]), cells[b, m], 0).astype(int)
      r = np.corrcoef(np.repeat(x[m], count), np.repeat(y[m], count))[0, 1]
      within.append((np.arctanh(r), models[b, m]))
    z_of, weight = np.array(within).T
    assert got[1][b] == pytest.approx(np.tanh((z_of * weight).sum() / weight.sum()))
  # Partial: what is left of both after regression on z and the model.
  held = np.isfinite(y)
  design = np.concatenate([np.eye(4)[np.nonzero(held)[0]], z[held][:, None]], 1)
  left = [v[held] - design @ np.linalg.lstsq(design, v[held], rcond=None)[0] for v in (x, y)]
  partial = correlations.Moments([x, y, z]).partial(np.ones((1, 4)))
  assert partial[0] == pytest.approx(np.corrcoef(*left)[0, 1])


def test_what_does_not_vary_has_no_correlation():
  x = np.full((3, 5), 7.3)
  y = np.random.default_rng(0).normal(size=(3, 5))
  moments = correlations.Moments([x, y])
  for statistic in (moments.pooled, moments.within_model, moments.within_dataset, moments.partial):
    assert np.isnan(statistic(np.ones((1, 3)))).all()
  assert np.isnan(correlations.rows(x, y)).all()

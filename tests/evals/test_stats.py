"""Columns from grades: by hand, against scipy and lm-eval, and whether 95 % intervals cover."""

import math

import numpy as np
import pytest

from sft_jax.evals import stats
from sft_jax.utils.errors import UserError


def record(name, acc, group='', **more):
  return {'id': name, 'group': group, 'scores': {'acc': acc}, 'extracted': 'x', **more}


def test_columns_by_hand():
  records = [
    record('a', 1, output='yes', **{'output-tokens': 4}, contaminated=True),
    record('b', 0, output=' \n', **{'output-tokens': 0}, contaminated=False, cut=True)
    | {'extracted': None},
    record('c', 1, output='no', **{'output-tokens': 2}, contaminated=False),
    record('d', 0, output='no', **{'output-tokens': 2}, contaminated=False),
    {'id': 'e', 'group': '', 'missing': True},
  ]
  out = stats.columns('t', records, ['acc'], percent=True, macro=False)
  low, high = out.pop('t-low'), out.pop('t-high')
  assert out == pytest.approx(
    {
      't': 50,
      't-stderr': 100 * math.sqrt(1 / 3 / 4),  # sample variance of 1, 0, 1, 0 is 1/3
      't-n': 4,
      't-extracted': 75,
      't-given-extracted': 100 * 2 / 3,
      't-empty': 25,
      't-length': 2,
      't-cut': 1,
      't-missing': 1,
      't-contaminated-n': 1,
      't-clean': 100 / 3,
    }
  )
  # Wilson by its closed form: n = 4, p = 1/2 gives 1/2 ± z / (2 √(n + z²)).
  half = 100 * stats.Z / (2 * math.sqrt(4 + stats.Z**2))
  assert (low, high) == pytest.approx((50 - half, 50 + half))


def test_macro_by_hand_further_measures_and_turns():
  values = {'x': [1, 1, 0, 0], 'y': [1], 'z': [0, 1]}
  records = [
    {
      'id': f'{group}{i}',
      'group': group,
      'scores': {'acc': v, 'f1': v / 2},
      'extracted': 'x' if v else None,
      'output': ['', ' '] if i else ['', 'said'],
      'output-tokens': 3,
    }
    for group, part in values.items()
    for i, v in enumerate(part)
  ]
  out = stats.columns('t', records, ['acc', 'f1'], percent=True, macro=True)
  assert out['t'] == pytest.approx(100 * (0.5 + 1 + 0.5) / 3)
  pooled = np.var([1, 1, 0, 0, 1, 0, 1], ddof=1)
  variance = (1 / 3 / 4 + pooled / 1 + 1 / 2 / 2) / 9
  assert out['t-stderr'] == pytest.approx(100 * math.sqrt(variance))
  assert out['t-f1'] == pytest.approx(out['t'] / 2)
  assert out['t-f1-stderr'] == pytest.approx(out['t-stderr'] / 2)
  assert out['t-given-extracted'] == 100
  assert out['t-empty'] == pytest.approx(100 * 4 / 7)
  assert out['t-low'] < out['t'] < out['t-high']


def test_what_is_undefined_has_no_column():
  assert stats.columns('t', [], ['acc'], True, False) == {'t-n': 0, 't-missing': 0, 't-cut': 0}
  one = stats.columns('t', [record('a', 1)], ['acc'], True, False)
  assert one == {'t': 100, 't-n': 1, 't-missing': 0, 't-cut': 0}
  none_found = [
    record(name, 0, output='', **{'output-tokens': 0}, contaminated=True) | {'extracted': None}
    for name in 'ab'
  ]
  out = stats.columns('t', none_found, ['acc'], True, False)
  assert out['t-extracted'] == 0 and 't-given-extracted' not in out and 't-clean' not in out
  assert out['t-low'] == 0 and 0 < out['t-high'] < 100


def test_what_is_refused():
  with pytest.raises(UserError, match='two items'):
    stats.columns('t', [record('a', 1), record('a', 1)], ['acc'], True, False)
  for bad in (math.nan, None):
    with pytest.raises(UserError, match=r'score .acc. is .*item a'):
      stats.columns('t', [record('a', bad)], ['acc'], True, False)
  with pytest.raises(UserError, match='more items'):
    stats.columns('t', [record('a', 1)] * 1 + [record('b', 1)], ['acc'], True, True, {'': 1})


def test_against_scipy():
  scipy_stats = pytest.importorskip('scipy.stats')
  for n in (1, 7, 50, 1319):
    for hits in {0, 1, n // 3, n}:
      want = scipy_stats.binomtest(hits, n).proportion_ci(method='wilson')
      one = np.ones(1)
      got = stats.proportion_interval(np.array([hits]), np.array([n]), one)
      assert got == pytest.approx((want.low, want.high), abs=1e-9)
  for df, error in ((1, 1e-9), (2, 1e-9), (3, 8e-3), (5, 2e-3), (10, 1e-4), (500, 1e-8)):
    assert stats.student_quantile(df) == pytest.approx(scipy_stats.t.ppf(0.975, df), rel=error)
  assert stats.student_quantile(2.9) > scipy_stats.t.ppf(0.975, 2.9)
  # Two groups of other values: t with the degrees of freedom of Welch's test.
  rng = np.random.default_rng(0)
  a, b = rng.normal(size=6), rng.normal(size=15) * 3
  ours = stats.estimate([*a, *-b], ['a'] * 6 + ['b'] * 15, macro=True)
  theirs = scipy_stats.ttest_ind(a, b, equal_var=False).confidence_interval()
  assert (2 * ours.low, 2 * ours.high) == pytest.approx((theirs.low, theirs.high), rel=1e-3)


def test_micro_stderr_is_lm_evals():
  metrics = pytest.importorskip('lm_eval.api.metrics')
  values = np.random.default_rng(0).integers(0, 2, 123).tolist()
  ours = stats.estimate(values, [''] * 123, macro=False, bounded=True)
  assert ours.stderr == pytest.approx(metrics.mean_stderr(values), rel=1e-12)


RESAMPLINGS = 4000


def share_covered(low, high, truth):
  return float(np.mean((low <= truth) & (truth <= high)))


def test_wilson_covers():
  """Exact coverage, no simulation: every possible number of hits with its probability."""
  binom = pytest.importorskip('scipy.stats').binom
  for n in (50, 164, 500, 1319):
    hits = np.arange(n + 1)
    low, high = stats.proportion_interval(hits[:, None], np.array([n]), np.ones(1))

    def covered(p, n=n, hits=hits, low=low, high=high):
      return float(binom.pmf(hits, n, p)[(low <= p) & (p <= high)].sum())

    # At a rate that gives few hits no interval covers just 95 %: counts are too coarse.
    rare = np.mean([covered(hit / n) for hit in np.linspace(0.5, 5, 200)])
    assert 0.93 < rare < 0.97
    single = [covered(p) for p in np.linspace(10 / n, 1 - 10 / n, 200)]
    assert min(single) > 0.93 and max(single) < 0.97
    assert min(covered(p) for p in np.linspace(1 / n, 1 - 1 / n, 200)) > 0.91


def uneven(rng, groups, low, high):
  return rng.integers(low, high, groups)


DESIGNS = {
  # name: (sizes of groups, their rates), given a generator
  'like mmlu': lambda g: (uneven(g, 57, 100, 500), g.beta(4, 3, 57)),
  'five each': lambda g: (np.full(57, 5), g.beta(4, 3, 57)),
  'two to seven': lambda g: (uneven(g, 57, 2, 8), g.beta(4, 3, 57)),
  'one each': lambda g: (np.ones(57, int), g.beta(4, 3, 57)),
  'small rates': lambda g: (uneven(g, 57, 2, 8), g.beta(1, 30, 57)),
  'large rates': lambda g: (uneven(g, 57, 5, 50), g.beta(30, 1, 57)),
  'chance': lambda g: (uneven(g, 20, 10, 60), np.full(20, 0.25)),
  'few groups': lambda g: (uneven(g, 6, 10, 60), g.beta(2, 2, 6)),
  'few, small rates': lambda g: (uneven(g, 6, 20, 200), np.full(6, 0.02)),
  'three': lambda g: (np.array([20, 30, 40]), np.array([0.5, 0.6, 0.7])),
}


@pytest.mark.parametrize('design', DESIGNS)
def test_macro_intervals_cover(design):
  rng = np.random.default_rng(1)
  totals, rates = DESIGNS[design](rng)
  hits = rng.binomial(totals, rates, (RESAMPLINGS, len(totals)))
  weights = np.full(len(totals), 1 / len(totals))
  low, high = stats.proportion_interval(hits, totals, weights)
  assert 0.93 < share_covered(low, high, rates.mean()) < 0.97


@pytest.mark.parametrize('macro', [False, True])
def test_intervals_of_other_scores_cover(macro):
  """Scores between 0 and 1 with many zeros, as F1 or a mean over tests has them."""
  rng = np.random.default_rng(2)
  some = np.array([0.5, 0.7, 0.9])  # Share of each group that is not zero.
  groups = np.repeat([0, 1, 2], [12, 30, 60])
  found = []
  for _ in range(1500):
    if not macro:  # Items are drawn from all, and their groups with them.
      groups = rng.integers(0, 3, 102)
    values = rng.beta(2, 3, 102) * (rng.random(102) < some[groups])
    found.append(stats.estimate(values, [str(group) for group in groups], macro, bounded=True))
  truth = 0.4 * some.mean()  # A beta(2, 3) has mean 0.4.
  low, high = (np.array([getattr(one, side) for one in found]) for side in ('low', 'high'))
  assert 0.93 < share_covered(low, high, truth) < 0.97


def test_columns_cover_end_to_end():
  """500 re-samplings, records in and columns out; micro, with groups that differ."""
  rng = np.random.default_rng(3)
  rates = np.array([0.2, 0.5, 0.8])
  inside = 0
  for _ in range(500):
    groups = rng.integers(0, 3, 120)
    hits = rng.random(120) < rates[groups]
    records = [record(str(i), float(hits[i]), str(groups[i])) for i in range(120)]
    out = stats.columns('t', records, ['acc'], percent=True, macro=False)
    inside += out['t-low'] <= 50 <= out['t-high']
  assert 0.93 * 500 < inside < 0.97 * 500

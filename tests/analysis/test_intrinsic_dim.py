"""Intrinsic dimension of Gaussians, of ties and duplicates; formulas against their definitions."""

import numpy as np
import pytest
from scipy import optimize, special

from sft_jax.analysis import intrinsic_dim
from sft_jax.utils.errors import UserError
from tests.analysis import studies


def test_neighbours_are_exact_far_from_the_origin():
  points = studies.gaussian(0, 3, 200) * 1e-3 + 1e4
  points = np.concatenate([points, points[:20]])
  got, kept = intrinsic_dim.neighbours(points, 5)
  assert kept.tolist() == list(range(200)), 'duplicates are dropped'
  rest = points[:200]
  want = np.sort(np.linalg.norm(rest[:, None] - rest, axis=2), 1)[:, 1:6]
  np.testing.assert_allclose(got, want, rtol=1e-12)


def test_blocks_change_nothing(monkeypatch):
  points = studies.gaussian(1, 5, 300)
  whole = intrinsic_dim.neighbours(points, 4)[0]
  monkeypatch.setattr(intrinsic_dim, '_BLOCK_BYTES', 50_000)
  np.testing.assert_array_equal(intrinsic_dim.neighbours(points, 4)[0], whole)


@pytest.mark.parametrize('dimension', [2, 5])
def test_gaussians(dimension):
  for seed in range(4):
    found = intrinsic_dim.estimate(studies.gaussian(seed, dimension, 1000))
    assert found['low'] <= dimension <= found['high'], found
    assert found['high'] - found['low'] < 0.5 * dimension
    assert found['two_nn_fit'] == pytest.approx(dimension, rel=0.2)


def test_gride_is_the_most_likely():
  """The root is the maximum of the density of Gride, and k = 1 is TwoNN-ML."""
  distances, _ = intrinsic_dim.neighbours(studies.gaussian(3, 4, 500), 8)
  assert intrinsic_dim.gride(distances, 1).value == pytest.approx(
    intrinsic_dim.two_nn(distances)[1], rel=1e-9
  )
  k, mu = 4, distances[:, 7] / distances[:, 3]
  n1, n2 = k, 2 * k

  def loss(d):
    density = (
      d * (mu**d - 1) ** (n2 - n1 - 1) / mu ** ((n2 - 1) * d + 1) / special.beta(n2 - n1, n1)
    )
    return -np.log(density).sum()

  best = optimize.minimize_scalar(loss, bounds=(1, 20), method='bounded').x
  # The estimating equation has N - 1 where the likelihood has N.
  assert intrinsic_dim.gride(distances, k).value == pytest.approx(best, rel=1e-2)
  step = 1e-3
  curvature = (loss(best + step) - 2 * loss(best) + loss(best - step)) / step**2
  error = intrinsic_dim.gride(distances, k).stderr / intrinsic_dim._DEPENDENCE
  assert error == pytest.approx(curvature**-0.5, rel=2e-2)


def test_standard_errors_are_those_of_repeated_samples():
  values = [intrinsic_dim.estimate(studies.gaussian(s, 5, 400))['gride'][4] for s in range(30)]
  scatter = np.std([one.value for one in values])
  assert 0.6 < scatter / np.mean([one.stderr for one in values]) < 1.3


def test_change_by_layer():
  base = np.stack([studies.gaussian(s, 4, 600) for s in range(3)])
  tuned = base.copy()
  tuned[2] = studies.gaussian(9, 8, 600)
  rows = intrinsic_dim.by_layer(base, tuned)
  assert [row['depth'] for row in rows] == [0, 0.5, 1]
  assert rows[0]['change'] == rows[1]['change'] == 0
  assert rows[2]['change'] > 2 and rows[2]['change'] / rows[2]['change_stderr'] > 4
  with pytest.raises(UserError, match='equal depth'):
    intrinsic_dim.by_layer(base, tuned[:2])


def test_plateau():
  one = lambda value: intrinsic_dim.Dimension(value, 0.1)
  assert intrinsic_dim.plateau({1: one(9.0), 2: one(5.0), 4: one(4.9), 8: one(3.0)}) == 2


def test_bad_input():
  with pytest.raises(UserError, match='finite'):
    intrinsic_dim.neighbours(np.full((20, 3), np.nan), 2)
  with pytest.raises(UserError, match='only 1 different'):
    intrinsic_dim.neighbours(np.ones((50, 3)), 2)

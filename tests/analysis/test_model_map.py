"""The model map: KL of models that are known, t-SNE and silhouettes beside scikit-learn's."""

import numpy as np
import pytest

from sft_jax.analysis import model_map
from sft_jax.utils.errors import UserError
from tests.analysis import studies


def test_kl_of_close_models_is_within_its_interval():
  inside = []
  for seed in range(10):
    logliks, true = studies.close_models(seed)
    q = model_map.coordinates(logliks, 0)
    for u, v in ((0, 1), (1, 2), (2, 0)):
      value, low, high = model_map.kl_interval(q, u, v)
      assert value == pytest.approx(model_map.kl(q)[u, v])
      assert value == pytest.approx(true[u, v], rel=0.2)
      inside.append(low <= true[u, v] <= high)
  assert sum(inside) >= 28


def test_coordinates_are_centred_and_clipped():
  logliks = -np.random.default_rng(0).gamma(2, 50, size=(6, 400))
  logliks[3, 7] = -1e6
  q = model_map.coordinates(logliks)
  np.testing.assert_allclose(q.mean(0), 0, atol=1e-9)
  np.testing.assert_allclose(q.mean(1), 0, atol=1e-9)
  clipped = model_map.clip(logliks)
  assert clipped.min() == pytest.approx(np.percentile(logliks, 2))
  assert (clipped >= logliks).all() and (clipped != logliks).mean() == pytest.approx(0.02)
  # Taking off the texts' means leaves distances as they are.
  rows = clipped - clipped.mean(1, keepdims=True)
  np.testing.assert_allclose(model_map.distances(q), model_map.distances(rows), rtol=1e-9)
  with pytest.raises(UserError, match='finite'):
    model_map.coordinates(np.array([[1.0, np.inf]]))


def clusters(groups=5, each=15, width=20):
  rng = np.random.default_rng(0)
  centres = np.repeat(4 * rng.normal(size=(groups, width)), each, 0)
  return centres + rng.normal(size=centres.shape), np.repeat(np.arange(groups), each)


def test_tsne_is_as_good_as_that_of_scikit_learn():
  manifold = pytest.importorskip('sklearn.manifold')
  points, labels = clusters()
  squared, start = model_map.distances(points), model_map.components(points)
  places, left = model_map.tsne(squared, start, 20)
  theirs = manifold.TSNE(perplexity=20, method='exact', init=start.astype(np.float32) * 1e-4)
  theirs.fit_transform(points)
  assert left <= theirs.kl_divergence_ * 1.1
  assert model_map.purity(model_map.distances(places), labels) == 1
  # Of one label alone it says nothing.
  assert np.isnan(model_map.purity(model_map.distances(places), ['a'] * len(labels)))
  again, _ = model_map.tsne(squared, start, 20)
  np.testing.assert_array_equal(places, again)


def test_affinities_have_the_perplexity_asked_for():
  p = model_map.affinities(model_map.distances(clusters()[0]), 10)
  assert p.sum() == pytest.approx(1) and (p == p.T).all() and not np.diag(p).any()
  # Of points that are all alike every other is as near.
  even = model_map.affinities(np.ones((12, 12)) - np.eye(12), 5)
  np.testing.assert_allclose(even[~np.eye(12, dtype=bool)], 1 / 132)


def test_silhouette_is_that_of_scikit_learn():
  metrics = pytest.importorskip('sklearn.metrics')
  points, labels = clusters()
  labels[0] = 99  # alone
  distance = np.sqrt(model_map.distances(points))
  want = metrics.silhouette_score(distance, labels, metric='precomputed')
  assert model_map.silhouette(distance, labels) == pytest.approx(want)
  assert np.isnan(model_map.silhouette(distance, np.zeros(75)))


def test_few_models_are_laid_out_by_components():
  points = clusters(2, 3)[0]
  places, how = model_map.layout(points)
  assert how == 'PCA'
  np.testing.assert_allclose(
    np.abs(places), np.abs(model_map.components(points + 5)), rtol=1e-6, atol=1e-9
  )
  assert model_map.layout(clusters()[0])[1].startswith('t-SNE')
  assert model_map.layout(np.zeros((20, 4)))[1] == 'PCA'


def planted():
  """A study whose models converge, whose larger data go outward, whose methods hardly differ."""
  rng, width = np.random.default_rng(0), 400
  rows, q = [], []
  for model in 'ab':
    home = 5 * rng.normal(size=width)
    rows.append({'model_name': model, 'data_name': 'pretrain', 'lora': None, 'epoch': 0})
    rows[-1]['data_size'] = 0
    q.append(home)
    for data in 'xyz':
      away = rng.normal(size=width)
      for lora in (False, True):
        for epoch, size in ((1, 1000), (5, 1000), (5, 20_000)):
          scale = (2.0 if epoch == 1 else 1.0) * (1.5 if size > 1000 else 1.0)
          names = {'model_name': model, 'data_name': data, 'lora': lora}
          rows.append(names | {'epoch': epoch, 'data_size': size})
          q.append(home + scale * away + 0.1 * rng.normal(size=width))
  return np.array(q), rows


def test_claims_of_a_planted_study():
  q, rows = planted()
  found = model_map.claims(q, rows, draws=60)
  # The centroid lies 1.5 mean deviations from home, so larger data are √(1.5 / 0.75) times as far.
  truth = {'purity_by_model': 1, 'convergence': 0.625, 'size': 2**0.5}
  for name, value in truth.items():
    assert found[name]['value'] == pytest.approx(value, abs=0.06), name
  assert found['silhouette_by_model']['low'] > 0.5 > found['silhouette_by_data']['high']
  assert found['method']['high'] < 0.2
  for one in found.values():
    assert one['low'] - 1e-9 <= one['value'] <= one['high'] + 1e-9


def test_claims_that_cannot_be_made_are_nan():
  q, rows = planted()
  found = model_map.claims(q[:4], rows[:4], draws=20)
  assert np.isnan(found['silhouette_by_model']['value'])
  assert np.isnan(found['size']['value']) != bool(len(model_map.Pairs(rows[:4]).sizes[0]))
  alone = model_map.claims(q[:1], rows[:1], draws=20)
  assert all(np.isnan(one['value']) and np.isnan(one['low']) for one in alone.values())

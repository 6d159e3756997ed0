"""Models as points: log-likelihood vectors, distances between them, a map.

A vector holds one number a probe text, of the same texts for all models. Distances are in the
original space; the map is for looking at, and no number is taken from it.
"""

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from sft_jax.analysis import resampling
from sft_jax.utils.errors import UserError

CLIP_PERCENTILE = 2.0
PERPLEXITY = 30.0
# Models below which neighbours mean nothing and the map is of principal components.
LEAST_FOR_TSNE = 10
_ITERATIONS, _EXAGGERATED, _EXAGGERATION = 1000, 250, 12.0
_MOMENTUM = (0.5, 0.8)
_HALVINGS = 64


def clip(logliks: np.ndarray, percentile: float = CLIP_PERCENTILE) -> np.ndarray:
  """`[K, N]` with what lies below a percentile of all entries raised to it."""
  logliks = np.asarray(logliks, np.float64)
  return np.maximum(logliks, np.percentile(logliks, percentile))


def coordinates(logliks: np.ndarray, percentile: float = CLIP_PERCENTILE) -> np.ndarray:
  """`[K, N]` log-likelihoods to q: clipped, each model's mean taken off, then each text's.

  Raises:
    UserError: not a table, or a value that is not finite.
  """
  logliks = np.asarray(logliks, np.float64)
  if logliks.ndim != 2 or not np.isfinite(logliks).all():
    raise UserError(
      'log-likelihoods must be a table of finite numbers', 'model map', 'look at its probe'
    )
  centred = clip(logliks, percentile)
  centred = centred - centred.mean(1, keepdims=True)
  return centred - centred.mean(0)


def distances(q: np.ndarray) -> np.ndarray:
  """`[K, K]` squared Euclidean distances."""
  squares = np.square(q).sum(1)
  out = np.maximum(squares[:, None] + squares[None, :] - 2 * (q @ q.T), 0)
  np.fill_diagonal(out, 0)
  return out


def kl(q: np.ndarray) -> np.ndarray:
  """`[K, K]` approximate KL divergence in nats a text: ‖q_u - q_v‖² / (2N).

  The square of the distance is that of Oyama et al.'s model map; good for models that lie close.
  """
  return distances(q) / (2 * q.shape[1])


def kl_interval(
  q: np.ndarray, first: int, second: int, level: float = resampling.LEVEL
) -> tuple[float, float, float]:
  """KL of two models and its interval.

  Sampling of texts is normal on the logarithm (delta method). The next term of the expansion that
  the approximation breaks off, a sixth of the third moment, widens both sides.

  Returns:
    (KL, low, high) in nats a text.
  """
  from scipy import stats

  difference = q[first] - q[second]
  squares = np.square(difference) / 2
  value = float(squares.mean())
  if value == 0:
    return 0.0, 0.0, 0.0
  relative = squares.std(ddof=1) / math.sqrt(len(squares)) / value
  step = math.exp(float(stats.norm.ppf((1 + level) / 2)) * relative)
  left_out = abs(float((difference**3).mean())) / 6
  return value, max(value / step - left_out, 0.0), value * step + left_out


def components(q: np.ndarray, count: int = 2) -> np.ndarray:
  """`[K, count]` principal components of the models; the largest entry of each is positive."""
  u, s, _ = np.linalg.svd(q - q.mean(0), full_matrices=False)
  out = np.zeros((len(q), count))
  found = (u * s)[:, :count]
  found = found * np.sign(found[np.abs(found).argmax(0), np.arange(found.shape[1])])
  out[:, : found.shape[1]] = found
  return out


def affinities(squared: np.ndarray, perplexity: float) -> np.ndarray:
  """Joint probabilities of t-SNE (van der Maaten & Hinton 2008) from squared distances `[K, K]`."""
  count = len(squared)
  target = math.log(perplexity)
  others = squared[~np.eye(count, dtype=bool)].reshape(count, count - 1)
  others = others - others.min(1, keepdims=True)
  low, high = np.zeros(count), np.full(count, np.inf)
  beta = 1 / np.maximum(others.mean(1), 1e-300)
  for _ in range(_HALVINGS):
    p = np.exp(-others * beta[:, None])
    total = p.sum(1)
    entropy = np.log(total) + beta * (others * p).sum(1) / total
    wide = entropy > target
    low, high = np.where(wide, beta, low), np.where(wide, high, beta)
    # Where all distances are alike no width has another perplexity than K - 1.
    beta = np.where(
      np.isinf(high), np.minimum(beta * 2, 1e300), (low + np.where(np.isinf(high), 0, high)) / 2
    )
  out = np.zeros((count, count))
  out[~np.eye(count, dtype=bool)] = (p / total[:, None]).ravel()
  return (out + out.T) / (2 * count)


def tsne(
  squared: np.ndarray, start: np.ndarray, perplexity: float = PERPLEXITY
) -> tuple[np.ndarray, float]:
  """Exact t-SNE by gradient descent with momentum; no chance in it.

  Args:
    squared: `[K, K]` squared distances.
    start: `[K, 2]`, such as principal components; brought to a small size.
    perplexity: Effective number of neighbours, below K.

  Returns:
    `[K, 2]` places and the divergence that is left.
  """
  p = affinities(squared, perplexity)
  # The divergence, also where p is 0.
  entropy = float((p[p > 0] * np.log(p[p > 0])).sum())
  count = len(p)
  places = start / max(float(start[:, 0].std()), 1e-300) * 1e-4
  speed, gain = np.zeros_like(places), np.ones_like(places)
  rate = max(count / _EXAGGERATION / 4, 50.0)
  kernel = np.zeros_like(p)
  for step in range(_ITERATIONS):
    early = step < _EXAGGERATED
    kernel = 1 / (1 + distances(places))
    np.fill_diagonal(kernel, 0)
    total = kernel.sum()
    pull = (p * (_EXAGGERATION if early else 1.0) - kernel / total) * kernel
    slope = 4 * (pull.sum(1)[:, None] * places - pull @ places)
    gain = np.maximum(np.where(speed * slope < 0, gain + 0.2, gain * 0.8), 0.01)
    speed = _MOMENTUM[not early] * speed - rate * gain * slope
    places = places + speed
    places = places - places.mean(0)
  q = np.maximum(kernel / kernel.sum(), 1e-300)
  return places, entropy - float((p * np.log(q)).sum())


def layout(q: np.ndarray, perplexity: float = PERPLEXITY) -> tuple[np.ndarray, str]:
  """Where models lie on the map, and how it was made ('t-SNE, perplexity …' or 'PCA')."""
  start = components(q)
  if len(q) < LEAST_FOR_TSNE or not start[:, 0].any():
    return start, 'PCA'
  perplexity = min(perplexity, (len(q) - 1) / 3)
  return tsne(distances(q), start, perplexity)[0], f't-SNE, perplexity {perplexity:.3g}'


def silhouette(distance: np.ndarray, labels: Sequence[Any]) -> float:
  """Mean silhouette width (Rousseeuw 1987) of labels, from distances (not squared).

  A label that stands alone counts 0. NaN unless there are 2 to K - 1 labels.
  """
  names, code = np.unique(np.asarray([str(label) for label in labels]), return_inverse=True)
  count = len(code)
  if not 2 <= len(names) < count:
    return math.nan
  member = np.eye(len(names))[code]
  sizes = member.sum(0)
  sums = distance @ member
  own = sums[np.arange(count), code] / np.maximum(sizes[code] - 1, 1)
  means = sums / sizes
  means[np.arange(count), code] = np.inf
  other = means.min(1)
  width = (other - own) / np.maximum(np.maximum(own, other), 1e-300)
  return float(np.where(sizes[code] > 1, width, 0).mean())


def purity(distance: np.ndarray, labels: Sequence[Any]) -> float:
  """Share of models whose nearest other model has the same label; NaN of a single label."""
  code = np.asarray([str(label) for label in labels])
  if len(set(code)) < 2:
    return math.nan
  apart = distance + np.where(np.eye(len(code), dtype=bool), np.inf, 0)
  return float((code == code[apart.argmin(1)]).mean())


class Pairs:
  """Which models are compared for which claim; found once, used for every sample of texts.

  Attributes:
    trained: Indices of trained models.
    spread: {epoch: `[2, n]` models of one base, method, size and epoch, trained on different data}.
    method: `[2, n]` models of one base, data, size and epoch, one full and one LoRA.
    data: `[2, n]` models of one base, method, size and epoch, where such a `method` pair exists.
    sizes: `[2, n]` models of one base, data, method and epoch: of the least data, and of the most.
    centres: `[n, K]` weights whose sums are the centroids those are compared to.
  """

  def __init__(self, rows: Sequence[Mapping[str, Any]]):
    self.trained = [i for i, row in enumerate(rows) if row['epoch']]
    group = lambda *names: self._groups(rows, names)
    spread: dict[float, list[tuple[int, int]]] = {}
    data: list[tuple[int, int]] = []
    for members in group('model_name', 'lora', 'data_size', 'epoch'):
      pairs = [
        pair
        for pair in itertools.combinations(members, 2)
        if rows[pair[0]]['data_name'] != rows[pair[1]]['data_name']
      ]
      spread.setdefault(float(rows[members[0]]['epoch']), []).extend(pairs)
      data += pairs
    self.spread = {epoch: _index(spread[epoch]) for epoch in sorted(spread) if spread[epoch]}
    self.method = _index(
      [
        pair
        for members in group('model_name', 'data_name', 'data_size', 'epoch')
        for pair in itertools.combinations(members, 2)
        if rows[pair[0]]['lora'] != rows[pair[1]]['lora']
      ]
    )
    key = lambda i: tuple(rows[i][name] for name in ('model_name', 'data_size', 'epoch'))
    both = {key(i) for i in self.method[0]}
    self.data = _index([pair for pair in data if key(pair[0]) in both])
    sizes = []
    for members in group('model_name', 'data_name', 'lora', 'epoch'):
      ordered = sorted(members, key=lambda i: rows[i]['data_size'])
      if rows[ordered[0]]['data_size'] < rows[ordered[-1]]['data_size']:
        sizes.append((ordered[0], ordered[-1]))
    self.sizes = _index(sizes)
    self.centres = np.zeros((len(sizes), len(rows)))
    for number, (first, _) in enumerate(sizes):
      own = [i for i in self.trained if rows[i]['model_name'] == rows[first]['model_name']]
      self.centres[number, own] = 1 / len(own)

  def _groups(self, rows: Sequence[Mapping[str, Any]], names: Sequence[str]) -> Iterable[list[int]]:
    groups: dict[tuple, list[int]] = {}
    for i in self.trained:
      groups.setdefault(tuple(rows[i][name] for name in names), []).append(i)
    return groups.values()


def _index(pairs: Sequence[tuple[int, int]]) -> np.ndarray:
  return np.array(pairs, int).reshape(-1, 2).T


def epoch_spread(distance: np.ndarray, pairs: Pairs) -> dict[float, float]:
  """{epoch: mean distance between models of one base trained on different data} (convergence)."""
  return {epoch: float(distance[i, j].mean()) for epoch, (i, j) in pairs.spread.items()}


def size_ratios(q: np.ndarray, pairs: Pairs) -> np.ndarray:
  """How much farther from the centroid of their base's models those lie that saw more data.

  One number for each pair of `Pairs.sizes`; above 1 is outward.
  """
  centres = pairs.centres @ q
  least, most = (np.linalg.norm(q[side] - centres, axis=1) for side in pairs.sizes)
  return most / np.maximum(least, 1e-300)


def method_ratio(distance: np.ndarray, pairs: Pairs) -> float:
  """Distance of full and LoRA on one data set over that of different data sets of one base.

  Of equal epoch and size; below 1, the data matter more than the method. NaN without such pairs.
  """
  if not pairs.method.size or not pairs.data.size:
    return math.nan
  return float(distance[tuple(pairs.method)].mean() / distance[tuple(pairs.data)].mean())


def claims(
  q: np.ndarray, rows: Sequence[Mapping[str, Any]], draws: int = 200, seed: int = 0
) -> dict[str, dict[str, float]]:
  """What the map is said to show, as numbers in q-space with intervals over probe texts.

  Args:
    q: `[K, N]` from `coordinates`.
    rows: Of each model `model_name, data_name, lora, epoch, data_size`; a base has epoch 0.
    draws: Bootstrap samples of texts.
    seed: Of these.

  Returns:
    {claim: {'value', 'low', 'high'}}: `silhouette_by_model`, `silhouette_by_data`,
    `purity_by_model`, `purity_by_data`, `convergence` (spread over data sets at the last epoch over
    that at the first; below 1 is convergence), `size` (median of `size_ratios`), `method`. NaN
    where the models at hand do not tell.
  """
  rng, texts, pairs = np.random.default_rng(seed), q.shape[1], Pairs(rows)
  tables = [_claims(q, rows, pairs)]
  for weights in resampling.weights(rng, draws, texts):
    centred = q - ((q @ weights) / texts)[:, None]
    tables.append(_claims(centred * np.sqrt(weights), rows, pairs))
  out = {}
  for name, value in tables[0].items():
    low, high = resampling.interval(np.array([table[name] for table in tables[1:]]), texts)
    out[name] = {'value': value, 'low': low, 'high': high}
  return out


def _claims(q: np.ndarray, rows: Sequence[Mapping[str, Any]], pairs: Pairs) -> dict[str, float]:
  """The values of `claims`."""
  distance = np.sqrt(distances(q))
  models = [rows[i]['model_name'] for i in pairs.trained]
  data = [rows[i]['data_name'] for i in pairs.trained]
  inner = distance[np.ix_(pairs.trained, pairs.trained)]
  spread = list(epoch_spread(distance, pairs).values())
  ratios = size_ratios(q, pairs)
  return {
    'silhouette_by_model': silhouette(inner, models),
    'silhouette_by_data': silhouette(inner, data),
    'purity_by_model': purity(inner, models),
    'purity_by_data': purity(inner, data),
    'convergence': spread[-1] / spread[0] if len(spread) > 1 and spread[0] else math.nan,
    'size': float(np.median(ratios)) if len(ratios) else math.nan,
    'method': method_ratio(distance, pairs),
  }

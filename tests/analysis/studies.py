"""Synthetic studies with known truth."""

import numpy as np

from sft_jax.analysis import layers


def predictor(seed, rho=-0.5, models=11, datasets=10, shared=0.0, benchmarks=1):
  """(x `[M,D]`, gains `[M,D,B]`, another predictor that is noise).

  `rho` is the correlation within a model; `shared` the part of both variances that is a data set's,
  the same for all models.
  """
  rng = np.random.default_rng(seed)

  def mixed(shape, across):
    return (1 - shared) ** 0.5 * rng.normal(size=shape) + shared**0.5 * rng.normal(size=across)

  x = mixed((models, datasets), (1, datasets))
  noise = mixed((models, datasets, benchmarks), (1, datasets, benchmarks))
  gains = rho * x[..., None] + (1 - rho**2) ** 0.5 * noise
  # Models differ in level, which says nothing.
  gains = 10 * (gains + rng.normal(size=(models, 1, benchmarks)))
  return x + 3 * rng.normal(size=(models, 1)), gains, rng.normal(size=x.shape)


def peak(seed, at=0.45, rho=0.6, models=10, datasets=10, width=0.18):
  """(changes `[M,D,21]`, gains `[M,D]`, index of the peak).

  Changes are a smooth process along depth that grows to the top; gains follow its value at the peak
  with correlation `rho`, so the true curve is a bell around it.
  """
  rng, grid = np.random.default_rng(seed), layers.GRID
  kernel = np.exp(-0.5 * ((grid[:, None] - grid) / width) ** 2) + 1e-9 * np.eye(len(grid))
  smooth = rng.normal(size=(models, datasets, len(grid))) @ np.linalg.cholesky(kernel).T
  index = int(np.argmin(abs(grid - at)))
  gains = rho * smooth[..., index] + (1 - rho**2) ** 0.5 * rng.normal(size=(models, datasets))
  changes = (1 + grid) * (3 + 0.5 * smooth) * (1 + rng.random((models, 1, 1)))
  return changes, 5 * gains, index


def gaussian(seed, dimension, count, width=100):
  """`[count, width]`: a Gaussian of so many dimensions, turned into a wider space."""
  rng = np.random.default_rng(seed)
  turn = np.linalg.qr(rng.normal(size=(width, dimension)))[0]
  return rng.normal(size=(count, dimension)) @ turn.T


def close_models(seed, texts=2000, support=500, size=0.2, models=3):
  """(log-likelihoods `[K, N]` of texts drawn from the models' mean, true KL `[K, K]`)."""
  rng = np.random.default_rng(seed)
  logp = rng.normal(size=support) + size * rng.normal(size=(models, support))
  logp -= np.log(np.exp(logp).sum(1, keepdims=True))
  p = np.exp(logp)
  drawn = rng.choice(support, texts, p=p.mean(0))
  return logp[:, drawn], (p * logp).sum(1)[:, None] - p @ logp.T

"""Gains of arms over their base and over each other, with errors from seeds and from items.

Two things make a measured gain differ from the true one: the seeds the runs drew, and the items
that happened to be asked. All arms answer the same items, so items are paired; seeds are not. Not
for what follows from a gain: `race.py`.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from scipy import special

Z = 1.959963984540054  # 97.5 % quantile of the normal distribution.


class Gain(NamedTuple):
  """An estimate in points; `freedom` are Student's degrees of freedom of its error."""

  mean: float
  stderr: float
  freedom: float

  def reach(self, error: float) -> float:
    """Distance from the mean to a one-sided bound that fails with probability `error`."""
    return float(special.stdtrit(self.freedom, 1 - error)) * self.stderr

  def low(self, error: float = 0.025) -> float:
    """One-sided lower bound; with the default it begins a 95 % interval."""
    return self.mean - self.reach(error)

  def high(self, error: float = 0.025) -> float:
    """One-sided upper bound; with the default it ends a 95 % interval."""
    return self.mean + self.reach(error)


def nothing_changed(mean: float, stderr: float) -> bool:
  """Whether no item changed (in points, but for floors): no error can be reckoned from that."""
  return max(abs(mean), stderr) < 1e-3


@dataclasses.dataclass(frozen=True)
class Sample:
  """Gains over the base of the runs of one arm at one rung, item by item.

  Attributes:
    gains: `[seeds, items]` in points; a score known only as a mean is one item.
    weights: `[items]` of each in the combined score; those of all targets sum to 1.
    blocks: `[items]` number of the target an item belongs to.
    known: Variance of a run's combined score from items where only means are known.
  """

  gains: np.ndarray
  weights: np.ndarray
  blocks: np.ndarray
  known: float = 0.0

  @property
  def by_seed(self) -> np.ndarray:
    """`[seeds]` combined gains."""
    return self.gains @ self.weights

  @property
  def freedom(self) -> int:
    """Degrees of freedom that its seeds give."""
    return len(self.gains) - 1

  @property
  def seed_variance(self) -> float:
    """Of the combined gain of one run, over seeds; 0 of a single one."""
    return float(self.by_seed.var(ddof=1)) if self.freedom else 0.0

  @property
  def chance(self) -> float:
    """The part of `seed_variance` that comes of items falling this way or that by themselves."""
    if not self.freedom:
      return 0.0
    apart = self.gains - self.gains.mean(0)
    own = apart - (self.by_seed - self.by_seed.mean())[:, None]
    many = np.bincount(self.blocks)[self.blocks] > 1
    return float(np.square(self.weights[many]) @ np.square(own[:, many]).sum(0) / self.freedom)

  def kept(self, items: np.ndarray) -> 'Sample':
    """The same on the items of a mask, weights of each target as before in sum."""
    weights = np.where(items, self.weights, 0.0)
    total = np.bincount(self.blocks, self.weights)
    left = np.bincount(self.blocks, weights)
    scale = np.divide(total, left, out=np.zeros_like(total), where=left > 0)
    weights = (weights * scale[self.blocks])[items]
    return Sample(self.gains[:, items], weights, self.blocks[items], self.known)


class Noise(NamedTuple):
  """Seed variance of a candidate's runs, its own drawn towards that of all (see `moderate`)."""

  variance: float
  freedom: float


def moderate(variances: Sequence[float], freedoms: Sequence[int]) -> list[Noise]:
  """Variances of several groups, each drawn towards the others as far as they agree.

  Smyth's moderated variances (Statistical Applications in Genetics and Molecular Biology 3, 2004,
  art. 3, section 6.2): variances are taken as scaled inverse chi-squared with a common scale and
  freedom, both fitted to the moments of their logarithms. Two or three seeds say little about the
  noise of one data set, those of all together much; where data sets differ in noise the fit says
  so, and each is left with what it has.

  Args:
    variances: Sample variances.
    freedoms: Degrees of freedom of each; a group of 0 takes what the others say.
  """
  s2, d = np.asarray(variances, np.float64), np.asarray(freedoms, np.float64)
  there = d > 0
  total = float(d.sum())
  if not there.any():
    return [Noise(0.0, math.inf)] * len(s2)
  # A variance of exactly 0 has no logarithm, and says no more than that it is small.
  floor = 1e-4 * float((s2 @ d) / total) + 1e-12
  half = d[there] / 2
  z = np.log(np.maximum(s2[there], floor)) - special.digamma(half) + np.log(half)
  spread = float(z.var(ddof=1)) if there.sum() > 1 else math.inf
  excess = spread - float(special.polygamma(1, half).mean())
  if not math.isfinite(excess):
    return [Noise(max(float(s2[there][0]), floor), total)] * len(s2)
  prior = 2 * _inverse_trigamma(excess) if excess > 0 else math.inf
  center = float(z.mean())
  if math.isfinite(prior):
    scale = math.exp(center + float(special.digamma(prior / 2)) - math.log(prior / 2))
  else:
    scale = float((s2 @ d) / total)
  out = []
  for variance, own in zip(s2, d, strict=True):
    weight = min(prior, 1e6)
    mixed = (weight * scale + own * variance) / (weight + own)
    out.append(Noise(max(float(mixed), floor), min(prior + own, total)))
  return out


def _inverse_trigamma(value: float) -> float:
  """x with trigamma(x) = value, by Newton's method on 1 / trigamma (Smyth 2004, appendix)."""
  x = 0.5 + 1 / value
  for _ in range(50):
    slope = float(special.polygamma(2, x))
    here = float(special.polygamma(1, x))
    step = here * (1 - here / value) / slope
    x += step
    if abs(step) < 1e-9 * x:
      break
  return x


def gain(sample: Sample, noise: Noise) -> Gain:
  """Of an arm over the base.

  The variance of the mean over S seeds and n items is that of a two-way layout with both effects
  random: seed variance / S + variance over items of their means / n, where what items do by
  themselves in one run is in both and counted once (Searle, Casella, McCulloch, Variance
  Components, 1992, 4.3). Freedom by Satterthwaite (Biometrics Bulletin 2, 1946).
  """
  return _estimate([(sample, noise, 1.0)], sample.known)


def contrast(one: tuple[Sample, Noise], other: tuple[Sample, Noise], drift: float = 0.0) -> Gain:
  """Of one arm over another at the same rung, on the same items.

  Args:
    one: An arm and its noise.
    other: What it is compared with.
    drift: Standard deviation of what an arm's gain changes, against the others', from this rung to
      the last.
  """
  found = _estimate([(*one, 1.0), (*other, -1.0)], one[0].known + other[0].known)
  return found._replace(stderr=math.sqrt(found.stderr**2 + 2 * drift**2))


def _estimate(parts: Sequence[tuple[Sample, Noise, float]], known: float) -> Gain:
  sample = parts[0][0]
  means = sum(sign * part.gains.mean(0) for part, _, sign in parts)
  terms: list[tuple[float, float]] = []
  for block in np.unique(sample.blocks):
    inside = sample.blocks == block
    n = int(inside.sum())
    if n > 1:
      apart = means[inside] - means[inside].mean()
      spread = np.square(sample.weights[inside]) @ np.square(apart)
      terms.append((float(spread) * n / (n - 1), n - 1.0))
  variance = sum(term for term, _ in terms) + known
  for part, noise, _ in parts:
    seeds = len(part.gains)
    variance += max(noise.variance - part.chance, 0.0) / seeds
    terms.append((noise.variance / seeds, noise.freedom))
  below = sum(term**2 / freedom for term, freedom in terms)
  freedom = max(variance**2 / below, 1.0) if below > 0 else math.inf
  return Gain(float(means @ sample.weights), math.sqrt(variance), freedom)


def combined(
  evidence: Sequence[tuple[float, float]], prior: tuple[float, float]
) -> tuple[float, float]:
  """Posterior mean and variance of normal evidence, (mean, variance) each, under a normal prior."""
  total, weighted = 1 / prior[1], prior[0] / prior[1]
  for mean, variance in evidence:
    total += 1 / variance
    weighted += mean / variance
  return weighted / total, 1 / total


def spread_of(means: Mapping[str, float], variances: Mapping[str, float]) -> tuple[float, float]:
  """Mean and variance of true gains from measured ones, by moments (DerSimonian and Laird, 1986).

  The variance is at least a tenth of that of the errors, so that nothing is drawn in altogether.
  """
  x = np.array(list(means.values()))
  v = np.array([variances[name] for name in means])
  between = float(x.var(ddof=1) - v.mean()) if len(x) > 1 else 0.0
  return float(x.mean()), max(between, 0.1 * float(v.mean()), 1e-6)


def best_probability(known: Sequence[tuple[float, float]], points: int = 801) -> list[float]:
  """Of each of several independent normal values, (mean, variance), that it is the largest.

  ∫ φ_i Π_{j≠i} Φ_j, by the trapezoidal rule over all that matters of each density.
  """
  means = np.array([mean for mean, _ in known])
  sds = np.sqrt([variance for _, variance in known])
  out = []
  for i, (mean, sd) in enumerate(zip(means, sds, strict=True)):
    z = np.linspace(-8, 8, points)
    below = special.ndtr((mean + sd * z[:, None] - np.delete(means, i)) / np.delete(sds, i))
    density = np.exp(-z * z / 2) / math.sqrt(2 * math.pi)
    out.append(float(np.trapezoid(density * below.prod(1), z)))
  total = sum(out)
  return [p / total for p in out] if total > 0 else [1 / len(out)] * len(out)

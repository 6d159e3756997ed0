"""Which examples an optimiser step holds: a pure function of (seed, step), without state."""

import math

import numpy as np

from sft_jax.utils.errors import UserError


class Sampler:
  """A permutation for each epoch, cut into steps; epochs are never straddled.

  Args:
    n: Number of examples.
    batch_size: Examples per optimiser step; the last step of an epoch may hold fewer.
    epochs: Passes over the data; a fraction rounds up to whole steps.
    seed: Seed of the data order.
    shuffle: False keeps the order of the examples.

  Raises:
    UserError: A size that is not positive, or a negative seed.
  """

  def __init__(
    self, n: int, batch_size: int, epochs: float = 1, seed: int = 0, shuffle: bool = True
  ):
    for name, value in (('examples', n), ('batch_size', batch_size), ('epochs', epochs)):
      if value <= 0:
        raise UserError(f'{name} is {value}', how='it must be positive')
    if seed < 0:
      raise UserError(f'the data seed is {seed}', how='use a seed of 0 or more')
    self.n, self.batch_size, self.epochs = n, batch_size, epochs
    self.seed, self.shuffle = seed, shuffle
    self.steps_per_epoch = math.ceil(n / batch_size)
    # Rounded first: 0.1 * 30 is a little more than 3.
    self.total_steps = math.ceil(round(epochs * self.steps_per_epoch, 6))
    self._cached: tuple[int, np.ndarray] = (-1, np.zeros(0, np.int64))

  @property
  def examples(self) -> int:
    """Examples of all steps together."""
    whole, rest = divmod(self.total_steps, self.steps_per_epoch)
    return whole * self.n + min(rest * self.batch_size, self.n)

  def order(self, epoch: int) -> np.ndarray:
    """int64 [n], the order of the examples in an epoch.

    From the raw stream of Philox, which numpy keeps the same in all versions (NEP 19 does not
    promise that for `Generator.permutation`).
    """
    cached_epoch, order = self._cached
    if cached_epoch != epoch:
      if self.shuffle:
        key = np.array([self.seed, epoch], np.uint64)
        order = np.argsort(np.random.Philox(key=key).random_raw(self.n), kind='stable')
      else:
        order = np.arange(self.n)
      self._cached = (epoch, order)
    return order

  def indices(self, step: int) -> np.ndarray:
    """int64 [<= batch_size], the examples of step 0 .. total_steps - 1; empty afterwards."""
    if step < 0:
      raise ValueError(f'step {step}')
    if step >= self.total_steps:
      return np.zeros(0, np.int64)
    epoch, position = divmod(step, self.steps_per_epoch)
    first = position * self.batch_size
    return self.order(epoch)[first : first + self.batch_size]

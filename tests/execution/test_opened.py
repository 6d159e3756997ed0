"""Which snapshot of a run is meant."""

import pytest

from sft_jax.execution import opened
from sft_jax.utils.errors import UserError


class Kept:
  """Weights of two steps."""

  def weights_steps(self):
    return [3, 7]

  def best_step(self):
    return 3


def test_steps():
  choose = lambda step: opened.choose_step(Kept(), step, 'w')
  assert [choose(step) for step in ('', 'last', 'best', '3')] == [7, 7, 3, 3]
  # The last is no digit that a number is written with.
  for step in ('first', '-1', '²'):
    with pytest.raises(UserError, match='is no step'):
      choose(step)

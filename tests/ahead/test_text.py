"""What a plan for chips says of short times."""

import pytest

from sft_jax.ahead import text


@pytest.mark.parametrize(
  'days, said',
  [
    (1234.5, '1,234.5 days'),
    (0.5, '12.0 hours'),
    (2 / 24 / 60, '2.0 minutes'),
    (0.5 / 24 / 3600, '0.5 seconds'),
    (0.0004 / 24 / 3600, '0.0004 seconds'),
  ],
)
def test_times_are_never_nothing(days, said):
  assert text._time(days) == said

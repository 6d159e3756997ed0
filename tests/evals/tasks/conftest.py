"""What the tests of all benchmarks share."""

import pytest

from sft_jax.evals.files import LocalFiles


@pytest.fixture(scope='module')
def real(data_dir):
  """The real data, where they are at hand."""
  return LocalFiles(str(data_dir / 'bench'))

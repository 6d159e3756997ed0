"""Numbers with their nouns."""

import pytest

from sft_jax.utils import words


@pytest.mark.parametrize(
  'number, nouns, text',
  [
    (0, ('run',), '0 runs'),
    (1, ('run',), '1 run'),
    (1070, ('failed attempt',), '1,070 failed attempts'),
    (1, ('directory', 'directories'), '1 directory'),
    (2, ('directory', 'directories'), '2 directories'),
  ],
)
def test_count(number, nouns, text):
  assert words.count(number, *nouns) == text


def test_listed():
  assert words.listed(['a', 'b', 'c'], 2) == 'a, b, c'
  assert words.listed(['a', 'b', 'c', 'd'], 2) == 'a, b and 2 more' and words.listed([]) == ''

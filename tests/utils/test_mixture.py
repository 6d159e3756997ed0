"""How mixtures are written, and that their parts have exact counts."""

import random

import pytest

from sft_jax.utils import mixture
from sft_jax.utils.errors import UserError


@pytest.mark.parametrize(
  ('name', 'canonical'),
  [
    ('mix:b=0.3,a=0.7', 'mix:a=7,b=3'),
    ('mix: a = 7 , b=3', 'mix:a=7,b=3'),
    ('mix:a=2/3,b=1/3', 'mix:a=2,b=1'),
    ('mix:a=.1,b=0.2,c=0.70', 'mix:a=1,b=2,c=7'),
    ('mix:b,a', 'mix:a,b'),
    ('mix:a=5,b=5', 'mix:a,b'),
    ('mix:dir/x=y.jsonl=1,a=3', 'mix:a=3,dir/x=y.jsonl=1'),
    ('w/o-lima', 'without:lima'),
    ('all', 'all'),
    ('', ''),
  ],
)
def test_one_spelling(name, canonical):
  assert mixture.canonical(name) == canonical == mixture.canonical(canonical)


@pytest.mark.parametrize(
  ('name', 'words'),
  [
    ('mix:', 'is no part of a mixture'),
    ('mix:a=0.7,,b=0.3', 'is no part of a mixture'),
    ('mix:a=x,b=1', "'a=x' is no part"),
    ('mix:a=-1,b=1', "'a=-1' is no part"),
    ('mix:a=1,a=2', "'a' stands twice"),
    ('mix:a=0,b=1', "share of 'a' is 0"),
    ('mix:a=1/0,b=1', "share of 'a' is 1/0"),
    ('without:', 'leaves nothing out'),
  ],
)
def test_refused(name, words):
  with pytest.raises(UserError, match=words) as caught:
    mixture.canonical(name)
  assert caught.value.where == 'config.data.name' and caught.value.how


def test_the_published_name():
  assert mixture.table_name('without:lima') == 'w/o-lima' == mixture.table_name('w/o-lima')
  assert mixture.table_name('lima') == 'lima' and mixture.table_name('') == ''


def test_counts_by_largest_remainder():
  """By hand: 10 in 1:1:1 is 3.33 each, the first gets the rest; 7 in 5:3:2 is 3.5, 2.1, 1.4."""
  assert mixture.counts({'a': 1, 'b': 1, 'c': 1}, 10) == {'a': 4, 'b': 3, 'c': 3}
  assert mixture.counts({'a': 5, 'b': 3, 'c': 2}, 7) == {'a': 4, 'b': 2, 'c': 1}
  draw = random.Random(0)
  for _ in range(300):
    shares = {str(i): draw.randint(1, 9) for i in range(draw.randint(1, 6))}
    total = draw.randint(0, 50)
    counts, whole = mixture.counts(shares, total), sum(shares.values())
    assert sum(counts.values()) == total
    assert all(abs(counts[k] - total * shares[k] / whole) < 1 for k in shares)


def test_largest_is_what_a_search_finds():
  draw = random.Random(1)
  for _ in range(200):
    shares = {str(i): draw.randint(1, 5) for i in range(draw.randint(1, 4))}
    there = {k: draw.randint(1, 30) for k in shares}
    fits = [
      n
      for n in range(sum(there.values()) + 1)
      if all(c <= there[k] for k, c in mixture.counts(shares, n).items())
    ]
    assert mixture.largest(shares, there) == max(fits)

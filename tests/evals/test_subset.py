"""Subsets: nested, balanced, as large as a precision needs; and whether the promise is kept."""

import collections
import itertools
import math

import numpy as np
import pytest

from sft_jax.evals import stats, subset
from sft_jax.evals.benchmark import Item
from sft_jax.utils.errors import UserError


def items(sizes):
  return [Item(f'{g}/{i}', {}, group=g) for g, size in sizes.items() for i in range(size)]


SIZES = {'a': 10, 'b': 100, 'c': 33, 'd': 1, 'e': 256}


@pytest.mark.parametrize('macro', [False, True])
def test_order_is_nested_balanced_and_of_ids_and_seed_alone(macro):
  all_items = items(SIZES)
  order = subset.order(all_items, 7, macro)
  assert sorted(i.id for i in order) == sorted(i.id for i in all_items)
  assert subset.order(all_items[::-1], 7, macro) == order
  assert subset.order(all_items, 8, macro) != order
  held = collections.Counter()
  for count, item in enumerate(order, 1):
    held[item.group] += 1
    for group, size in SIZES.items():
      if macro:
        least = min(max(held.values()) - 1, size)
        assert held[group] >= least
      else:
        assert abs(held[group] - count * size / 400) < 1.5
  # Within a group the order does not depend on what other groups there are.
  alone = subset.order([i for i in all_items if i.group == 'b'], 7, macro)
  assert [i for i in order if i.group == 'b'] == alone


def test_a_larger_subset_contains_a_smaller_one():
  all_items = items(SIZES)
  chosen = [
    {i.id for i in subset.choose(all_items, seed=0, macro=False, precision=p).items}
    for p in (20, 10, 5, 3, 1)
  ]
  assert all(a < b for a, b in itertools.pairwise(chosen))


def test_size_for_a_precision_by_hand():
  # n0 = z² / 4 / 0.03² = 1067.07; of 1319: n0 / (1 + (n0 − 1) / N) = 590.3 (Cochran 4.3).
  found = subset.choose(items({'': 1319}), seed=0, macro=False, precision=3)
  assert len(found.items) == 591
  assert found.limited_by == 'precision' and found.half_width == pytest.approx(3, abs=0.01)
  assert found.half_width <= 3
  rare = subset.choose(items({'': 1319}), seed=0, macro=False, precision=3, expected=0.1)
  assert len(rare.items) == 298  # n0 = 0.36 · 1067.07 = 384.15
  whole = subset.choose(items({'': 100}), seed=0, macro=False, precision=0.001)
  assert len(whole.items) == 100 and whole.half_width == 0 and whole.limited_by == ''
  assert [i.id for i in found.items] == [i.id for i in items({'': 1319}) if i in found.items]


def test_macro_takes_equal_numbers_and_its_own_formula():
  sizes = {'a': 100, 'b': 1000}
  found = subset.choose(items(sizes), seed=0, macro=True, precision=5)
  held = collections.Counter(i.group for i in found.items)
  assert abs(held['a'] - held['b']) <= 1 or held['a'] == 100
  variance = sum(0.25 / held[g] * (n - held[g]) / (n - 1) for g, n in sizes.items()) / 4
  assert found.half_width == pytest.approx(100 * stats.Z * math.sqrt(variance))
  assert found.half_width <= 5
  fewer = subset.order(items(sizes), 0, True)[: len(found.items) - 1]
  assert subset.half_width(fewer, collections.Counter(sizes), True) > 5
  assert subset.half_width(fewer[:1], collections.Counter(sizes), True) == math.inf


def test_budget():
  all_items = items(SIZES)
  seconds = lambda item: 2.0 if item.group == 'e' else 1.0
  found = subset.choose(all_items, seed=0, macro=False, budget_seconds=100, seconds=seconds)
  assert found.limited_by == 'budget'
  spent = sum(map(seconds, found.items))
  assert 98 < spent <= 100
  both = subset.choose(
    all_items, seed=0, macro=False, precision=20, budget_seconds=100, seconds=seconds
  )
  assert both.limited_by == 'precision' and len(both.items) < len(found.items)
  assert {i.id for i in both.items} < {i.id for i in found.items}
  assert found.sizes == SIZES
  ample = subset.choose(all_items, seed=0, macro=False, budget_seconds=1e6, seconds=seconds)
  assert len(ample.items) == 400 and ample.limited_by == ''


@pytest.mark.parametrize(
  'options, message',
  [
    ({'precision': -1}, 'config.eval.precision'),
    ({'expected': 1.0}, 'config.eval.expected'),
    ({'budget_seconds': math.nan}, 'config.eval.budget_seconds'),
    ({'budget_seconds': 5.0}, 'measure it first'),
    ({'budget_seconds': 4.0, 'seconds': lambda item: 1.0, 'macro': True}, 'needs 5'),
    ({'budget_seconds': 0.5, 'seconds': lambda item: 1.0}, 'needs 1'),
  ],
)
def test_what_is_refused(options, message):
  with pytest.raises(UserError, match=message):
    subset.choose(items(SIZES), **{'seed': 0, 'macro': False, **options})


def test_no_items_and_double_ids():
  with pytest.raises(UserError, match='no items'):
    subset.choose([], seed=0, macro=False)
  with pytest.raises(UserError, match='one id'):
    subset.choose(items({'a': 2}) * 2, seed=0, macro=False)


@pytest.mark.parametrize('macro', [False, True])
@pytest.mark.parametrize('taken', [150, 600])
def test_subsets_cover_the_score_of_the_whole(macro, taken):
  """500 seeds: the interval about the whole holds its score in 93 to 97 % of them."""
  rng = np.random.default_rng(4)
  sizes = {'a': 100, 'b': 300, 'c': 80, 'd': 520}
  all_items = items(sizes)
  rate = {'a': 0.9, 'b': 0.3, 'c': 0.5, 'd': 0.6}
  right = {i.id: float(rng.random() < rate[i.group]) for i in all_items}
  means = [np.mean([right[i.id] for i in all_items if i.group == g]) for g in sizes]
  truth = np.mean(means) if macro else np.mean(list(right.values()))
  inside, widths = 0, []
  for seed in range(500):
    part = subset.order(all_items, seed, macro)[:taken]
    values, groups = [right[i.id] for i in part], [i.group for i in part]
    one = stats.estimate(values, groups, macro, bounded=True, sizes=sizes)
    inside += one.low <= truth <= one.high
    widths.append(50 * (one.high - one.low))
  assert 0.93 * 500 <= inside <= 0.97 * 500
  promised = subset.half_width(part, collections.Counter(sizes), macro)
  assert max(widths) <= promised * 1.02  # The worst case is never better than what comes.


def test_all_items_leave_nothing_to_chance():
  one = stats.estimate([1, 0, 1, 1], ['a', 'a', 'b', 'b'], True, True, sizes={'a': 2, 'b': 2})
  assert (one.stderr, one.low, one.high) == pytest.approx((0, 0.75, 0.75))

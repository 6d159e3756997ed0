"""Which items of a benchmark are enough: a subset for a precision or for a time budget.

Items stand in one fixed order that depends on their ids and groups and on a seed, and a subset is
the first n of it. So a larger subset contains a smaller one, every model meets the same items, and
comparisons are paired. Not for the interval of a score that was measured: see `stats.py`.
"""

import collections
import hashlib
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

from sft_jax.evals.benchmark import Item
from sft_jax.evals.stats import Z
from sft_jax.utils.errors import UserError


class Subset(NamedTuple):
  """The items to ask.

  Attributes:
    items: In the order they came in.
    half_width: Promised half-width, in points, of a 95 % interval of the score on all items.
    limited_by: 'precision', 'budget', or '' where all items are taken.
    sizes: {group: items} of the whole benchmark, as `stats.columns` takes it.
  """

  items: list[Item]
  half_width: float
  limited_by: str
  sizes: dict[str, int]


def choose(
  items: Sequence[Item],
  *,
  seed: int,
  macro: bool,
  precision: float = 0.0,
  expected: float = 0.5,
  budget_seconds: float = 0.0,
  seconds: Callable[[Item], float] | None = None,
) -> Subset:
  """The fewest items for a precision, or as many as a time budget pays for; of both, the smaller.

  Args:
    items: All items of the benchmark.
    seed: Another seed, another order.
    macro: The score is the mean of the groups' means: groups then get equal numbers of items, which
      for a number of items in all makes its worst-case error least. Otherwise numbers are
      proportional to the groups' sizes.
    precision: ± points (of 100), half of the width of a 95 % interval of the score on all items; 0
      for no such limit.
    expected: Accuracy to reckon with; 0.5 is the worst case.
    budget_seconds: Time for this benchmark; 0 for no such limit.
    seconds: Measured or estimated time of an item; needed with a budget.

  Raises:
    UserError: no items, two of one id, a number out of range, or a budget that pays for too little.
  """
  _check(items, precision, expected, budget_seconds)
  ranked = order(items, seed, macro)
  sizes = collections.Counter(item.group for item in items)
  least = len(sizes) if macro else 1
  count, limited_by = len(ranked), ''
  if precision:
    low, high = least, len(ranked)
    while low < high:
      middle = (low + high) // 2
      enough = half_width(ranked[:middle], sizes, macro, expected) <= precision
      low, high = (low, middle) if enough else (middle + 1, high)
    if low < count:
      count, limited_by = low, 'precision'
  if budget_seconds:
    if seconds is None:
      raise UserError(
        'a time budget needs the time of an item', 'config.eval.budget_seconds', 'measure it first'
      )
    paid = _affordable(ranked, budget_seconds, seconds)
    if paid < least:
      raise UserError(
        f'{budget_seconds:g} seconds pay for {paid} items, the score needs {least}',
        'config.eval.budget_seconds',
        'give more time, or leave this benchmark out',
      )
    if paid < count:
      count, limited_by = paid, 'budget'
  taken = {item.id for item in ranked[:count]}
  return Subset(
    [item for item in items if item.id in taken],
    half_width(ranked[:count], sizes, macro, expected),
    limited_by,
    dict(sizes),
  )


def _check(items: Sequence[Item], precision: float, expected: float, budget_seconds: float) -> None:
  if not items:
    raise UserError('no items', 'benchmark', 'a subset needs something to choose from')
  if len({item.id for item in items}) < len(items):
    raise UserError('two items of one id', 'benchmark', 'ids are unique within a benchmark')
  for value, key, ok in (
    (precision, 'precision', 0 <= precision <= 50),
    (expected, 'expected', 0 < expected < 1),
    (budget_seconds, 'budget_seconds', 0 <= budget_seconds < math.inf),
  ):
    if not ok:
      raise UserError(f'{value} is out of range', f'config.eval.{key}', 'see its comment')


def _affordable(
  ranked: Sequence[Item], budget_seconds: float, seconds: Callable[[Item], float]
) -> int:
  """How many items, from the first, the budget pays for."""
  spent = 0.0
  for count, item in enumerate(ranked):
    spent += seconds(item)
    if spent > budget_seconds:
      return count
  return len(ranked)


def order(items: Sequence[Item], seed: int, macro: bool) -> list[Item]:
  """Items in the order in which subsets take them.

  Within a group in the order of a hash of seed and id. Between groups, macro: by turns. Micro: the
  r-th of a group of N stands at (r − ½) / N, which is the divisor method of Webster and
  Sainte-Laguë: any beginning holds the groups in proportion. (Largest remainders are as
  proportional, but a group can lose an item as the subset grows: the Alabama paradox, so subsets
  would not be nested.) Equal places are ordered by hash.
  """
  groups: dict[str, list[tuple[str, Item]]] = collections.defaultdict(list)
  for item in items:
    digest = hashlib.sha256(f'{seed}/{item.id}'.encode()).hexdigest()
    groups[item.group].append((digest, item))
  placed = []
  for members in groups.values():
    members.sort(key=lambda member: member[0])
    for rank, (digest, item) in enumerate(members):
      placed.append((rank if macro else (rank + 0.5) / len(members), digest, item))
  return [item for *_, item in sorted(placed, key=lambda entry: entry[:2])]


def half_width(
  taken: Sequence[Item], sizes: collections.Counter[str], macro: bool, expected: float = 0.5
) -> float:
  """Half of the width, in points, of a 95 % interval of the score on all items.

  Micro: z √(p q / n · (N − n) / (N − 1)), a simple random sample of a finite population (Cochran,
  Sampling Techniques, 2.8 and 3.2); that the sample is stratified only helps. Macro:
  z √(Σ p q / n_g · (N_g − n_g) / (N_g − 1)) / k over k groups (ibid., 5.6); infinite while a group
  is empty.
  """
  held: dict[str, int] = collections.Counter(item.group for item in taken)
  whole: dict[str, int] = dict(sizes)
  if not macro:
    held, whole = {'': len(taken)}, {'': sum(sizes.values())}
  variance = 0.0
  for group, size in whole.items():
    count = held.get(group, 0)
    if not count:
      return math.inf
    variance += expected * (1 - expected) / count * (size - count) / max(size - 1, 1)
  return 100 * Z * math.sqrt(variance) / len(whole)

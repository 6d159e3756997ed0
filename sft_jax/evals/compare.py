"""Two rows against each other, item by item: differences, how sure they are, and who wrote what.

Works on per-item records (`stats.py` says what is in them, `records.py` reads them). Pairs that
were not asked the same thing are refused. Not for showing them (`compare_text.py`) or for trends
over many rows; nothing is evaluated here.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sft_jax.evals import stats
from sft_jax.evals.records import Records, Row
from sft_jax.utils.errors import UserError

_Z_POWER = 0.8416212335729143  # 80 % quantile of the normal distribution.


@dataclasses.dataclass(frozen=True)
class Split:
  """Where a difference comes from: answers in a form that is found, or better answers.

  Attributes:
    extracted: Shares of outputs with an answer found, of both rows, in percent.
    both: Items where one was found in both.
    given_both: Difference on these alone, with its 95 % interval; None where there are none.
    ability: Part of the task's difference that these contribute.
    form: The rest, of items where one row or both gave no answer that could be read. The two parts
      add up to the difference.
  """

  extracted: tuple[float, float]
  both: int
  given_both: stats.Estimate | None
  ability: float
  form: float


@dataclasses.dataclass(frozen=True)
class Clean:
  """The comparison without items that were found in the training data of one row or both.

  Attributes:
    contaminated: How many those are.
    n: Items that are left.
    difference: On these alone, with its 95 % interval; None where there are none.
  """

  contaminated: int
  n: int
  difference: stats.Estimate | None


@dataclasses.dataclass(frozen=True)
class Comparison:
  """One task. Scores and differences are in points where columns are in percent.

  Attributes:
    about: What the records say of the task.
    n: Items compared.
    left_out: Items not compared: not graded in both, or (if told so) asked in one only.
    shots_differ: Items whose prompts held different numbers of shots.
    scores: Of both rows on the items compared.
    difference: Second less first, with its 95 % interval (see `difference`).
    p: Of the exact two-sided sign test over items, which is McNemar's for right and wrong.
    better, worse: Items where the second scores higher, and lower.
    detectable: Smallest difference found with 80 % power, as often as these rows differ; None where
      the items are too few for any.
    split: None for tasks without outputs.
    clean: None where nobody looked for the items in training data.
    disagree: Pairs of records whose scores differ.
  """

  about: Mapping[str, Any]
  n: int
  left_out: int
  shots_differ: int
  scores: tuple[float, float]
  difference: stats.Estimate
  p: float
  better: int
  worse: int
  detectable: float | None
  split: Split | None
  clean: Clean | None
  disagree: list[tuple[dict[str, Any], dict[str, Any]]]


def compare(first: Row, second: Row, common: bool = False) -> list[Comparison]:
  """Compares two rows task by task.

  Args:
    first: The row to start from, such as the base.
    second: The other.
    common: Compare on common tasks and items where those differ, as after evaluations with other
      limits; versions, prompts and templates must be equal all the same.

  Raises:
    UserError: the pair cannot be compared; names what differs.
  """
  both = [task for task in first.tasks if task in second.tasks]
  pair = f'{first.name} and {second.name}'
  if only := sorted(set(first.tasks) ^ set(second.tasks)):
    _refuse(f'tasks differ: only one has {", ".join(only)}', pair, common and bool(both))
  return [_compare(first.tasks[task], second.tasks[task], pair, common) for task in both]


def _refuse(what: str, pair: str, told: bool) -> None:
  if not told:
    how = 'evaluate both alike, or compare what they have in common (config.compare.common=True)'
    raise UserError(what, pair, how)


def _compare(first: Records, second: Records, pair: str, common: bool) -> Comparison:
  about = first[0]['about']
  pair = f'{about["task"]} of {pair}'
  others = second[0]['about']
  # How a column is called depends on how many items were asked.
  for key in sorted({*about, *others} - ({'column'} if common else set())):
    if about.get(key) != others.get(key):
      what = f'{key} differs: {about.get(key)} and {others.get(key)}'
      raise UserError(what, pair, 'evaluate both alike')
  theirs = {record['id']: record for record in second}
  pairs = [(record, theirs[record['id']]) for record in first if record['id'] in theirs]
  only = len(first) + len(second) - 2 * len(pairs)
  if only:
    _refuse(f'items differ: {only} in one only', pair, common)
  for a, b in pairs:
    for key in ('digest', 'group'):
      if a.get(key) != b.get(key):
        raise UserError(f'item {a["id"]} differs in {key}', pair, 'evaluate both on the same data')
  graded = [(a, b) for a, b in pairs if not (a.get('missing') or b.get('missing'))]
  if not graded:
    raise UserError('no item was graded in both', pair, 'compare what has items in common')
  return _measured(about, graded, only + len(pairs) - len(graded))


def _measured(
  about: Mapping[str, Any], pairs: Sequence[tuple[dict[str, Any], dict[str, Any]]], left_out: int
) -> Comparison:
  measure, macro, scale = about['measures'][0], about['macro'], 100.0 if about['percent'] else 1.0
  values = np.array([[record['scores'][measure] for record in pair] for pair in pairs], np.float64)
  groups = [str(a.get('group', '')) for a, _ in pairs]
  change = values[:, 1] - values[:, 0]
  weights = _weights(groups, macro)
  means = weights @ values
  found = difference(values, groups, macro)
  reach = detectable(values, groups, macro)
  better, worse = int((change > 0).sum()), int((change < 0).sum())
  split = None
  if any('output' in a for a, _ in pairs):
    held = np.array([[record['extracted'] is not None for record in pair] for pair in pairs])
    both = np.asarray(held.all(1))
    inner = [group for group, kept in zip(groups, both, strict=True) if kept]
    given = _scaled(difference(values[both], inner, macro), scale) if inner else None
    ability = float(weights[both] @ change[both])
    rest = float(weights[~both] @ change[~both])
    shares = 100 * held.mean(0)
    split = Split(
      (float(shares[0]), float(shares[1])), len(inner), given, ability * scale, rest * scale
    )
  return Comparison(
    about=about,
    n=len(pairs),
    left_out=left_out,
    shots_differ=sum(a.get('shots') != b.get('shots') for a, b in pairs),
    scores=(float(means[0] * scale), float(means[1] * scale)),
    difference=_scaled(found, scale),
    p=sign_test(better, worse),
    better=better,
    worse=worse,
    detectable=None if reach is None else reach * scale,
    split=split,
    clean=_clean(pairs, values, groups, macro, scale),
    disagree=[pair for pair, d in zip(pairs, change, strict=True) if d],
  )


def _clean(
  pairs: Sequence[tuple[dict[str, Any], dict[str, Any]]],
  values: np.ndarray,
  groups: Sequence[str],
  macro: bool,
  scale: float,
) -> Clean | None:
  looked = [[record.get('contaminated') for record in pair] for pair in pairs]
  if all(found is None for pair in looked for found in pair):
    return None
  kept = np.array([not any(pair) for pair in looked])
  inner = [group for group, keep in zip(groups, kept, strict=True) if keep]
  rest = _scaled(difference(values[kept], inner, macro), scale) if inner else None
  return Clean(len(pairs) - len(inner), len(inner), rest)


def _scaled(one: stats.Estimate, scale: float) -> stats.Estimate:
  rest = [None if value is None else value * scale for value in one[1:]]
  return stats.Estimate(one.mean * scale, *rest)


def _weights(groups: Sequence[str], macro: bool) -> np.ndarray:
  """Of each item in the score; sum 1."""
  if not macro:
    return np.full(len(groups), 1 / len(groups))
  _, index, counts = np.unique(np.asarray(groups), return_inverse=True, return_counts=True)
  return 1 / (len(counts) * counts[index])


def _is_binary(values: np.ndarray) -> bool:
  return bool(np.isin(values, (0.0, 1.0)).all())


def difference(values: np.ndarray, groups: Sequence[str], macro: bool) -> stats.Estimate:
  """Mean of the paired differences, its standard error and 95 % interval.

  Of right and wrong answers by `paired_interval`, of other scores by Student's t; see
  `stats.estimate`.

  Args:
    values: `[items, 2]` scores of the first and second row.
    groups: Of the items.
    macro: Mean of the groups' means.
  """
  change = values[:, 1] - values[:, 0]
  one = stats.estimate(change, groups, macro)
  if len(change) < 2 or not _is_binary(values):
    return one
  names = np.asarray(groups) if macro else np.zeros(len(change))
  parts = [change[names == name] for name in np.unique(names)]
  gains, losses = (np.array([(sign * part > 0).sum() for part in parts]) for sign in (1, -1))
  low, high = paired_interval(gains, losses, np.array([len(part) for part in parts]))
  return one._replace(low=float(low), high=float(high))


def paired_interval(
  gains: np.ndarray, losses: np.ndarray, totals: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
  """95 % score interval of the mean over groups of differences of paired proportions.

  All δ with (d − δ)² ≤ z² Σ (g(δ) + l(δ) − (g(δ) − l(δ))²) / n_i / k², summed over k groups, where
  g(δ) and l(δ) are a group's rates of gains and losses: drawn towards those of all by
  `stats.PRIOR_ITEMS` items and shifted (not below 0) as far as the mean rates move to their most
  likely values given δ. Of a single group this is Tango's interval (Statistics in Medicine 17,
  1998, 891–908), which holds for few disagreements.

  Args:
    gains: `[..., groups]` items that only the second has right.
    losses: `[..., groups]` items that only the first has right.
    totals: `[groups]` items, each at least 1.

  Returns:
    Low and high, `[...]`.
  """
  up, down = (gains / totals).mean(-1), (losses / totals).mean(-1)
  near = lambda counts, mean: (
    (counts + stats.PRIOR_ITEMS * mean[..., None]) / (totals + stats.PRIOR_ITEMS)
  )
  rise, fall = near(gains, up), near(losses, down)
  rise, fall = rise - rise.mean(-1, keepdims=True), fall - fall.mean(-1, keepdims=True)
  change = up - down

  def tenable(delta: np.ndarray) -> np.ndarray:
    # Most likely rate of losses given the difference, from Tango's quadratic.
    b = (2 - change) * delta - up - down
    root = np.sqrt(np.maximum(b * b + 8 * down * delta * (1 - delta), 0))
    lost = np.clip((root - b) / 4, 0, 1)
    g = np.maximum(rise + (lost + delta)[..., None], 0)
    l = np.maximum(fall + lost[..., None], 0)  # noqa: E741 (as in the formula)
    variance = np.maximum(g + l - np.square(g - l), 0) @ (1 / totals) / len(totals) ** 2
    return np.square(change - delta) <= stats.Z**2 * variance

  return stats.edge(tenable, change, -1.0), stats.edge(tenable, change, 1.0)


def sign_test(better: int, worse: int) -> float:
  """Exact two-sided p-value that gains and losses are equally likely (McNemar's exact test)."""
  n, term, total = better + worse, 1, 0
  for k in range(min(better, worse) + 1):
    total += term
    term = term * (n - k) // (k + 1)
  return min(1.0, 2 * total / 2**n)


def detectable(values: np.ndarray, groups: Sequence[str], macro: bool) -> float | None:
  """Smallest difference found with 80 % power by a two-sided test at 5 %.

  (z_0.975 + z_0.8) √(ψ / n), Connor's sample size for paired proportions (Biometrics 43, 1987,
  207–211) solved for the difference and without its small −δ². ψ is the share of items that
  disagree, with one more gain and loss; at least the difference itself, which needs as many. n is
  the number of items, macro k² / Σ 1/n_g. Of other scores (z_0.975 + z_0.8) · standard error.
  """
  change = values[:, 1] - values[:, 0]
  reach = stats.Z + _Z_POWER
  if not _is_binary(values):
    stderr = stats.estimate(change, groups, macro).stderr
    return None if stderr is None else reach * stderr
  weights = _weights(groups, macro)
  n = 1 / float(weights @ weights)
  share = (n * float(weights @ np.abs(change)) + 2) / (n + 2)
  least = reach * math.sqrt(max(share, reach**2 / n) / n)
  return least if least <= 1 else None

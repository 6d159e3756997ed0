"""Columns from per-item grades: means, their standard errors and 95 % intervals, what went amiss.

Not for two models at once: that is `compare.py`.

A per-item record is one JSON object:

  id             the item's id; unique within a file.
  digest         a short hash of what the item holds, so that equal ids of other data are noticed.
  group          its subject or category; '' for none.
  about          what all records of a file share and what must be equal where two are compared: at
                 least task, version, prompt-hash, template, measures (the headline first), percent
                 and macro. Nothing about the model.
  scores         {measure: value} of the grade; no such field where `missing`.
  extracted      the answer found, as text, or null; under `ll` the chosen continuation.
  output         what the model wrote, a text or (several turns) a list of texts; none under `ll`.
  output-tokens  its tokens.
  shots          shots the prompt held.
  cut            true where the prompt was too long for the window and lost shots (or more).
  contaminated   true where the item was found in the training data; no such field: nobody looked.
  missing        true where it was not graded (a judge that failed); such an item counts in
                 `-missing` and nowhere else.

Whatever else a record holds (prompt, gold, notes of the grader) is for people.
"""

import collections
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from sft_jax.utils.errors import UserError

Z = 1.959963984540054  # 97.5 % quantile of the normal distribution.
# In estimates of variance, the rates of a group are drawn towards the mean of all by so many
# items' worth: three right answers of three say little about a group's spread. Of 0 to 8 in
# simulations, intervals of small groups are far too short with 0 (groups of one: 45 % coverage) and
# a little with 2; more than 4 gains nothing.
PRIOR_ITEMS = 4.0
_HALVINGS = 50
# Items below which a standard error or an interval is not shown to people: it is computed all the
# same, but of so few it is hardly better known than the score.
FEWEST = 10


class Estimate(NamedTuple):
  """A mean; `stderr`, `low` and `high` are None where one item tells nothing about its error."""

  mean: float
  stderr: float | None
  low: float | None
  high: float | None


def columns(
  name: str,
  records: Sequence[Mapping[str, Any]],
  measures: Sequence[str],
  percent: bool,
  macro: bool,
  sizes: Mapping[str, int] | None = None,
) -> dict[str, float]:
  """Columns of one task from its per-item records (see the head of this file).

  `NAME` is the headline measure, with `-stderr`, `-low`, `-high` (see `estimate`) and `-n` graded
  items; the further measures are `NAME-MEASURE`, with `-stderr`. Shares are in percent, of graded
  items, each item counting once also where the score is macro: `-extracted`, `-empty`. Counts:
  `-cut`, `-missing`, `-contaminated-n`. `-length` is the mean number of tokens written.
  `-given-extracted` and `-clean` are the headline on items with an answer found, and on those not
  in the training data; macro, over the groups that have such items.

  What is not defined has no column: of nothing graded only the counts; no `-stderr`, `-low`,
  `-high` for one item; nothing about outputs under `ll`; nothing about contamination unlooked for.

  Args:
    name: As columns call the task with its shots: 'gsm8k-4shot'.
    records: Of every item of the task that was put to the model.
    measures: Names of the scores; the first is the headline.
    percent: Means, and the bounds of their intervals, are times 100.
    macro: The score is the mean of the groups' means.
    sizes: {group: items} of the whole benchmark where the records are of a subset of it, picked by
      `subset.py`. Then also `-whole-low` and `-whole-high`: a 95 % interval of what all items would
      score. It is narrower than the other, which is about all questions of this kind.

  Raises:
    UserError: two records of one id; a score that is missing or no number.
  """
  _check(name, records, measures)
  graded = [record for record in records if not record.get('missing')]
  scale = 100.0 if percent else 1.0
  out: dict[str, float] = {f'{name}-n': len(graded), f'{name}-missing': len(records) - len(graded)}
  out[f'{name}-cut'] = sum(bool(record.get('cut')) for record in graded)
  looked = any(record.get('contaminated') is not None for record in graded)
  if looked:
    out[f'{name}-contaminated-n'] = sum(bool(record['contaminated']) for record in graded)
  if not graded:
    return out

  def found(some: Iterable[Mapping[str, Any]], measure: str, **options: Any) -> Estimate | None:
    some = list(some)
    values = [float(record['scores'][measure]) for record in some]
    groups = [str(record.get('group', '')) for record in some]
    return estimate(values, groups, macro, bounded=percent, **options) if some else None

  def put(column: str, value: float | None) -> None:
    if value is not None:
      out[f'{name}{column}'] = value * scale

  headline = measures[0]
  for measure in measures:
    tail = '' if measure == headline else f'-{measure}'
    if one := found(graded, measure):
      put(tail, one.mean)
      put(f'{tail}-stderr', one.stderr)
      if measure == headline:
        put('-low', one.low)
        put('-high', one.high)
  if sizes is not None and (whole := found(graded, headline, sizes=sizes)):
    put('-whole-low', whole.low)
    put('-whole-high', whole.high)
  if looked and (clean := found((r for r in graded if not r['contaminated']), headline)):
    put('-clean', clean.mean)
  if any('output' in record for record in graded):
    held = [record for record in graded if record['extracted'] is not None]
    out[f'{name}-extracted'] = 100 * len(held) / len(graded)
    out[f'{name}-empty'] = 100 * sum(_is_empty(r['output']) for r in graded) / len(graded)
    out[f'{name}-length'] = sum(record['output-tokens'] for record in graded) / len(graded)
    if given := found(held, headline):
      put('-given-extracted', given.mean)
  return out


def _is_empty(output: str | Sequence[str]) -> bool:
  """Whether nothing but white space was written, in no turn."""
  return not ''.join([output] if isinstance(output, str) else output).strip()


def _check(name: str, records: Sequence[Mapping[str, Any]], measures: Sequence[str]) -> None:
  seen: set[str] = set()
  for record in records:
    where = f'{name}, item {record["id"]}'
    if record['id'] in seen:
      raise UserError('two items of one id', where, 'ids are unique within a benchmark')
    seen.add(record['id'])
    for measure in () if record.get('missing') else measures:
      value = record['scores'].get(measure)
      if value is None or not math.isfinite(value):
        raise UserError(f'score {measure!r} is {value}', where, 'the grader must give a number')


def estimate(
  values: Sequence[float] | np.ndarray,
  groups: Sequence[str],
  macro: bool,
  bounded: bool = False,
  sizes: Mapping[str, int] | None = None,
) -> Estimate:
  """Mean, standard error and 95 % interval of per-item values.

  Micro: the mean over items, as a random sample of all such questions; standard error = sample
  sd / √n, as lm-eval's `mean_stderr` (lm_eval/api/metrics.py). Macro: the mean of the groups'
  means, groups taken as given; standard error = √(Σ s_g² / n_g) / k over k groups (stratified
  sampling: Cochran, Sampling Techniques, 5.6), where a group of one item takes the sample
  variance of all items. Intervals: of right and wrong answers `proportion_interval`, of other
  values Student's t with Satterthwaite's degrees of freedom (Biometrics Bulletin 2, 1946).

  Args:
    values: One for each item.
    groups: Their groups; used where `macro` or `sizes`.
    macro: See above.
    bounded: Values lie in [0, 1], and so does the interval.
    sizes: {group: items} of the whole of which these are a part. All is then about the mean over
      that whole (finite population, stratified by group where each gave two items or more).

  Raises:
    UserError: `sizes` do not hold the items.
  """
  x = np.asarray(values, np.float64)
  n = len(x)
  counts = collections.Counter(groups)
  apart = macro or (sizes is not None and set(counts) == set(sizes) and min(counts.values()) > 1)
  names = sorted(counts) if apart else ['']
  parts = [x[np.asarray(groups) == name] for name in names] if apart else [x]
  totals = np.array([len(part) for part in parts], np.float64)
  weights = np.full(len(parts), 1 / len(parts))
  left = np.ones(len(parts))
  if sizes is not None:
    whole = [sizes.get(name, 0) for name in names] if apart else [sum(sizes.values())]
    if (np.array(whole) < totals).any():
      raise UserError('more items than the benchmark has', 'sizes', 'count every item once')
    left = (whole - totals) / np.maximum(np.array(whole) - 1, 1)
    if apart and not macro:
      weights = np.array(whole) / sum(whole)
  means = np.array([part.mean() for part in parts])
  mean = float(means @ weights)
  if n < 2:
    return Estimate(mean, None, None, None)
  variances = np.array([part.var(ddof=1) if len(part) > 1 else x.var(ddof=1) for part in parts])
  terms = np.square(weights) * variances / totals * left
  stderr = float(np.sqrt(terms.sum()))
  if bounded and np.isin(x, (0.0, 1.0)).all():
    bounds = proportion_interval(means * totals, totals, weights, left)
    return Estimate(mean, stderr, *map(float, bounds))
  freedom = np.where(totals > 1, totals - 1, n - 1)
  spread = float((np.square(terms) / freedom).sum())
  reach = student_quantile(float(terms.sum()) ** 2 / spread if spread else n - 1) * stderr
  if bounded:
    return Estimate(mean, stderr, max(0.0, mean - reach), min(1.0, mean + reach))
  return Estimate(mean, stderr, mean - reach, mean + reach)


def proportion_interval(
  hits: np.ndarray,
  totals: np.ndarray,
  weights: np.ndarray,
  left: np.ndarray | float = 1.0,
) -> tuple[np.ndarray, np.ndarray]:
  """95 % score interval of a weighted mean of proportions, Σ w_g p_g.

  All θ with (Σ w_g h_g/n_g − θ)² ≤ z² Σ w_g² p_g(θ) (1 − p_g(θ)) / n_g, where p_g(θ) is the rate
  of group g, drawn towards the mean of all by `PRIOR_ITEMS` items and shifted (within [0, 1]) so
  that the weighted mean is θ. Of a single group p_g(θ) = θ, and this is Wilson's interval (JASA 22,
  1927), which holds near 0 and 1 where mean ± z·stderr does not. Found by bisection. (For whole
  numbers of hits no interval covers just 95 % at every θ: Wilson's covers 93 to 97 % where 10 right
  and 10 wrong answers are expected, 92 to 98 % at single rates below, 96 % over a range of them.)

  Args:
    hits: `[..., groups]` right answers.
    totals: `[groups]` items, each at least 1.
    weights: `[groups]`, sum 1.
    left: `[groups]` factor of each variance for a finite population, (N − n) / (N − 1).

  Returns:
    Low and high, `[...]`.
  """
  center = (hits / totals) @ weights
  rates = (hits + PRIOR_ITEMS * center[..., None]) / (totals + PRIOR_ITEMS)
  offsets = rates - (rates @ weights)[..., None]

  def tenable(theta: np.ndarray) -> np.ndarray:
    p = np.clip(offsets + theta[..., None], 0, 1)
    variance = (p * (1 - p)) @ (np.square(weights) * left / totals)
    return np.square(center - theta) <= Z * Z * variance

  return edge(tenable, center, 0.0), edge(tenable, center, 1.0)


def edge(
  tenable: Callable[[np.ndarray], np.ndarray], inside: np.ndarray, outside: float
) -> np.ndarray:
  """Where `tenable` ends between `inside`, which it holds of, and `outside`; elementwise."""
  held = np.asarray(inside, np.float64)
  beyond = np.full_like(held, outside)
  for _ in range(_HALVINGS):
    middle = (held + beyond) / 2
    ok = tenable(middle)
    held, beyond = np.where(ok, middle, held), np.where(ok, beyond, middle)
  return (held + beyond) / 2


def student_quantile(df: float) -> float:
  """97.5 % quantile of Student's t; Abramowitz & Stegun 26.7.5: 0.8 % off at df = 3, 0.1 % at 5.

  Below 3 the exact value of the next lower whole number, which is larger.
  """
  if df < 3:
    return 12.706204736432095 if df < 2 else 4.302652729749464
  z = Z
  return (
    z
    + (z**3 + z) / (4 * df)
    + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * df**2)
    + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * df**3)
  )

"""What can be known before training, against gains.

Arrays are `[M, D]`: models by data sets, NaN where a pair is missing. A predictor that depends on
the benchmark as well is `[M, D, B]`. Not for computing predictors from weights: those are probes.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sft_jax.analysis import correlations, resampling
from sft_jax.utils.errors import UserError

LEAST_DATASETS, LEAST_MODELS = 4, 2
KINDS = ('pooled', 'within_model', 'within_dataset', 'partial')


@dataclasses.dataclass(frozen=True)
class Settings:
  """How tests are made.

  Attributes:
    draws: Bootstrap samples.
    shuffles: Permutations.
    seed: Of both.
    level: Of intervals.
  """

  draws: int = 10_000
  shuffles: int = 10_000
  seed: int = 0
  level: float = resampling.LEVEL


class Resamples:
  """Bootstrap samples and permutations that all tests of one table share.

  Attributes:
    models: `[draws, M]` weights of models.
    own: Permutations of data sets, of each model for itself, `[shuffles, M, D]`.
    common: Permutations of data sets, the same for all models.
    level: Of intervals.
  """

  def __init__(self, models: int, datasets: int, settings: Settings):
    rng = np.random.default_rng(settings.seed)
    self.level = settings.level
    self.models = resampling.weights(rng, settings.draws, models)
    shuffles = lambda common: resampling.permutations(
      rng, settings.shuffles, models, datasets, common=common
    )
    self.own, self.common = shuffles(False), shuffles(True)


def tests(
  predictors: Mapping[str, np.ndarray],
  gains: np.ndarray,
  benchmarks: Sequence[str],
  settings: Settings = Settings(),
) -> list[dict[str, Any]]:
  """Every predictor against the gains on every benchmark.

  Args:
    predictors: {name: `[M, D]` or `[M, D, B]`}; perplexities as logarithms.
    gains: `[M, D, B]`.
    benchmarks: B names.
    settings: How.

  Returns:
    A row for each predictor and benchmark:

    - `predictor, benchmark, n_pairs, n_models, n_datasets`, and `reason` where it was skipped ('');
    - `pooled` r over all pairs and `pooled_spearman`; `within_model`: tanh of the mean over models
      of atanh r over data sets; `within_dataset`: the same with models and data sets exchanged;
      `partial`: r of what is left of both after the model's mean and all other predictors;
    - for each of these `_low, _high`, an interval over models and data sets (two-way jackknife of
      atanh), and `_low_models, _high_models`, a bootstrap over models alone: what other models
      would give on these very data sets;
    - `p`: of `within_model`, data sets shuffled within each model for itself; `p_common`: shuffled
      alike in all models. Where a data set is good or bad for all models, those are no independent
      trials, `p` is far too small, and only `p_common` is a test;
    - `p_holm`, `q`: the larger of the two, corrected over all rows for any and for the share of
      false findings; `finding`: `p_holm` is at most 1 less the level.

  Raises:
    UserError: shapes that do not fit, no predictor.
  """
  _check(predictors, gains, benchmarks)
  samples = Resamples(gains.shape[0], gains.shape[1], settings)
  rows: list[dict[str, Any]] = []
  for name, values in predictors.items():
    for index, benchmark in enumerate(benchmarks):
      others = [of(v, index) for other, v in predictors.items() if other != name]
      row = test(of(values, index), gains[:, :, index], others, samples)
      rows.append({'predictor': name, 'benchmark': benchmark} | row)
  p = [max(row['p'], row['p_common']) for row in rows]
  for row, family, share in zip(
    rows, resampling.holm(p), resampling.benjamini_hochberg(p), strict=True
  ):
    row |= {'p_holm': float(family), 'q': float(share)}
    row['finding'] = bool(family <= 1 - settings.level + 1e-12)
  return rows


def of(values: np.ndarray, benchmark: int) -> np.ndarray:
  """The `[M, D]` part of a predictor that concerns a benchmark."""
  return values if values.ndim == 2 else values[:, :, benchmark]


def test(
  x: np.ndarray, y: np.ndarray, others: Sequence[np.ndarray], samples: Resamples
) -> dict[str, Any]:
  """One predictor against one gain; see `tests` for what is returned, less the correction."""
  x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
  held = np.isfinite(x) & np.isfinite(y)
  row: dict[str, Any] = {
    'n_pairs': int(held.sum()),
    'n_models': int(held.any(1).sum()),
    'n_datasets': int(held.any(0).sum()),
    'reason': _reason(x, y, held),
    'pooled_spearman': math.nan,
    'p': math.nan,
    'p_common': math.nan,
  }
  tails = ('', '_low', '_high', '_low_models', '_high_models')
  row |= {f'{kind}{tail}': math.nan for kind in KINDS for tail in tails}
  if row['reason']:
    return row
  pair, jackknife = correlations.Moments([x, y]), resampling.Jackknife(held)
  for kind in KINDS[:3]:
    row |= _estimates(kind, getattr(pair, kind), jackknife, samples)
  useful = [np.asarray(other, np.float64) for other in others]
  useful = [other for other in useful if np.isfinite(other[held]).all() and np.ptp(other[held]) > 0]
  if len(useful) + 3 + row['n_models'] <= row['n_pairs']:
    statistic = correlations.Moments([x, y, *useful]).partial
    row |= _estimates('partial', statistic, jackknife, samples)
  row['pooled_spearman'] = correlations.spearman(x[held], y[held])
  seen = abs(correlations.mean_fisher(x, y))
  for name, index in (('p', samples.own), ('p_common', samples.common)):
    shuffled = np.take_along_axis(np.broadcast_to(y, index.shape), index, axis=2)
    chance = np.abs(correlations.mean_fisher(x, shuffled))
    chance = chance[np.isfinite(chance)]
    # The arrangement seen is one of those that chance could give.
    row[name] = float((1 + (chance >= seen - 1e-12).sum()) / (1 + len(chance)))
  return row


def _estimates(
  kind: str, statistic, jackknife: resampling.Jackknife, samples: Resamples
) -> dict[str, float]:
  """A correlation and its two intervals."""
  values = resampling.fisher(statistic(*jackknife.weights))
  low, high = np.tanh(jackknife.interval(values, samples.level))
  out = {kind: float(np.tanh(values[0])), f'{kind}_low': float(low), f'{kind}_high': float(high)}
  units = int((jackknife.weights[0] == 0).any(0).sum())
  bounds = resampling.interval(statistic(samples.models), units, samples.level)
  return out | {f'{kind}_low_models': bounds[0], f'{kind}_high_models': bounds[1]}


def _reason(x: np.ndarray, y: np.ndarray, held: np.ndarray) -> str:
  """Why nothing can be said, or ''."""
  per_model = held.sum(1)
  if (per_model >= LEAST_DATASETS).sum() < LEAST_MODELS:
    return f'needs {LEAST_MODELS} models with {LEAST_DATASETS} data sets each'
  if np.ptp(x[held]) == 0:
    return 'the predictor is constant'
  if np.ptp(y[held]) == 0:
    return 'the gain is constant'
  if not np.isfinite(correlations.mean_fisher(x, y)):
    return 'within each model the predictor or the gain is constant'
  return ''


def _check(
  predictors: Mapping[str, np.ndarray], gains: np.ndarray, benchmarks: Sequence[str]
) -> None:
  if not predictors:
    raise UserError('no predictor to test', how='run the probe of data set properties first')
  if gains.ndim != 3 or gains.shape[2] != len(benchmarks):
    raise UserError(f'gains of shape {gains.shape} for {len(benchmarks)} benchmarks')
  for name, values in predictors.items():
    if values.shape not in (gains.shape, gains.shape[:2]):
      raise UserError(
        f'the values have shape {values.shape}, the gains {gains.shape}',
        f'predictor {name}',
        'give one for each model and data set, or also for each benchmark',
      )


def against(
  first: np.ndarray, second: np.ndarray, y: np.ndarray, level: float = resampling.LEVEL
) -> dict[str, float]:
  """Whether one predictor is closer to the gains than another: difference of |within-model r|.

  Args:
    first: `[M, D]`.
    second: `[M, D]`.
    y: `[M, D]` gains. Only pairs that all three have count.
    level: Of the interval.

  Returns:
    `difference` of `first` less `second`, and its `low, high` over models and data sets.
  """
  held = np.isfinite(first) & np.isfinite(second) & np.isfinite(y)
  jackknife = resampling.Jackknife(held)
  y = np.where(held, y, math.nan)
  one, two = (np.abs(correlations.Moments([x, y]).within_model(*jackknife.weights))
              for x in (first, second))  # fmt: skip
  low, high = jackknife.interval(one - two, level)
  return {'difference': float(one[0] - two[0]), 'low': float(low), 'high': float(high)}


def rivals(
  predictors: Mapping[str, np.ndarray], main: str, y: np.ndarray, level: float = resampling.LEVEL
) -> dict[str, dict[str, float]]:
  """{predictor: `against` `main` of it} for all others, on one gain `[M, D]`; {} without `main`.

  Intervals hold for all of them together (Bonferroni), as whichever is told was picked from all.
  """
  others = [name for name in predictors if name != main and main in predictors]
  each = 1 - (1 - level) / max(len(others), 1)
  first = of(predictors[main], 0) if others else y
  return {name: against(first, of(predictors[name], 0), y, each) for name in others}


def similarity(samples: np.ndarray, questions: np.ndarray) -> dict[str, float]:
  """How alike a data set and a benchmark are, from states of their texts.

  Args:
    samples: `[N, H]` one vector for each formatted training text.
    questions: `[J, H]` one for each benchmark question.

  Returns:
    `cosine_of_means`, and `mean_of_best`: for each training text the cosine of its closest
    question, on average. Vectors are brought to length 1 before.
  """
  unit = []
  for part in (samples, questions):
    part = np.asarray(part, np.float64)
    unit.append(part / np.maximum(np.linalg.norm(part, axis=1, keepdims=True), 1e-30))
  means = [part.mean(0) for part in unit]
  lengths = np.linalg.norm(means[0]) * np.linalg.norm(means[1])
  best = np.concatenate(
    [(block @ unit[1].T).max(1) for block in np.array_split(unit[0], -(-len(unit[0]) // 1024))]
  )
  return {
    'cosine_of_means': float(means[0] @ means[1] / max(lengths, 1e-30)),
    'mean_of_best': float(best.mean()),
  }


def early_drop(
  rows: Sequence[Mapping[str, Any]], column: str = 'ppl-heldout', most_steps: int = 20
) -> float:
  """Rival predictor: log perplexity of data before training less that after a short pilot.

  Args:
    rows: Rows of one run, the base's (step 0) among them.
    column: A perplexity of the data that is learnt, such as held-out data of the same kind.
    most_steps: The last snapshot of at most so many steps counts.

  Returns:
    The drop in nats a token; NaN where the base or such a snapshot is missing.
  """
  known = {int(row['step']): row[column] for row in rows if row.get(column)}
  early = [step for step in known if 0 < step <= most_steps]
  if 0 not in known or not early:
    return math.nan
  return math.log(known[0]) - math.log(known[max(early)])


def cube(
  frame: Any, properties: Any, benchmarks: Sequence[str]
) -> tuple[list[str], list[str], dict[str, np.ndarray], np.ndarray]:
  """Arrays from data frames.

  Args:
    frame: Gains, one row a run of one method, size, schedule and epoch (repeats are averaged), with
      `model_name`, `data_name` and the benchmarks.
    properties: One row for each `model_name`, `data_name`, and numbers as further columns. Of those
      that begin with `ppl`, the logarithm is taken and `log_` put before the name.
    benchmarks: Columns of `frame`.

  Returns:
    Models, data sets, {predictor: `[M, D]`}, gains `[M, D, B]`; of pairs that are in both frames.

  Raises:
    UserError: a column is missing, or no pair is in both.
  """
  keys = ['model_name', 'data_name']
  for what, given, columns in (
    ('gains', frame, [*keys, *benchmarks]),
    ('data set properties', properties, keys),
  ):
    if missing := [column for column in columns if column not in given.columns]:
      raise UserError(f'the table of {what} has no column {missing[0]!r}')
  numbers = properties.groupby(keys).mean(numeric_only=True)
  scores = frame.groupby(keys)[list(benchmarks)].mean()
  pairs = scores.index.intersection(numbers.index)
  if not len(pairs):
    raise UserError(
      'no model and data set is in both tables', how='names must be equal in both tables'
    )
  models, datasets = (sorted(pairs.get_level_values(key).unique()) for key in keys)
  places = [(models.index(m), datasets.index(d)) for m, d in pairs]

  def spread(values: np.ndarray) -> np.ndarray:
    out = np.full((len(models), len(datasets), *values.shape[1:]), math.nan)
    for (m, d), value in zip(places, values, strict=True):
      out[m, d] = value
    return out

  predictors = {}
  for column in numbers.columns:
    values = numbers.loc[pairs, column].to_numpy(np.float64)
    is_ppl = column.startswith('ppl')
    with np.errstate(divide='ignore', invalid='ignore'):
      predictors[f'log_{column}' if is_ppl else column] = spread(
        np.log(values) if is_ppl else values
      )
  return models, datasets, predictors, spread(scores.loc[pairs].to_numpy(np.float64))

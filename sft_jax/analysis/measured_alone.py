"""What `measured.py` answers of a study with one model, where nothing is said of other models."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sft_jax.analysis import one_model, resampling
from sft_jax.analysis import predictors as predictor_lib
from sft_jax.utils.errors import UserError


def predict(
  used: Mapping[str, np.ndarray],
  gains: np.ndarray,
  benchmarks: Sequence[str],
  main: str,
  seed: int = 0,
) -> dict[str, Any]:
  """Rank correlations of predictors and gains over data sets.

  Args:
    used: {predictor: `[1, D]` or `[1, D, B]`}.
    gains: `[1, D, B]`.
    benchmarks: B names, the overall gain first.
    main: The predictor that the others are held against.
    seed: Of permutations.

  Returns:
    {'alone': rows of `predictor`, `benchmark`, what `one_model.rank_correlation` gives, `p_holm`
    over all rows, and `finding`; 'rivals': {predictor: `one_model.closer` of `main` and it, on the
    overall gain}}. Empty where too few data sets are known.
  """
  rows: list[dict[str, Any]] = []
  rivals = {}
  for name, values in used.items():
    for index, benchmark in enumerate(benchmarks):
      x, y = predictor_lib.of(values, index)[0], gains[0, :, index]
      held = np.isfinite(x) & np.isfinite(y)
      try:
        found = one_model.rank_correlation(x[held], y[held], seed=seed)
      except UserError:
        continue
      rows.append({'predictor': name, 'benchmark': benchmark} | found)
    if name != main and main in used:
      x, y, first = predictor_lib.of(values, 0)[0], gains[0, :, 0], used[main][0]
      held = np.isfinite(x) & np.isfinite(y) & np.isfinite(first)
      try:
        rivals[name] = one_model.closer(first[held], x[held], y[held])
      except UserError:
        continue
  family = resampling.holm([row['p'] for row in rows])
  for row, p in zip(rows, family, strict=True):
    row |= {'p_holm': float(p), 'finding': bool(p <= 1 - resampling.LEVEL + 1e-12)}
  return {'alone': rows, 'rivals': rivals}


def depths(values: np.ndarray, gains: np.ndarray) -> dict[str, Any] | None:
  """`one_model.middle` of `[1, D, P]` changes and `[1, D]` gains; None of too few data sets."""
  held = np.isfinite(values[0]).all(1) & np.isfinite(gains[0])
  try:
    return one_model.middle([(values[0][held], gains[0][held])])
  except UserError:
    return None


def similarity(
  tables: Any, models: Sequence[str], datasets: Sequence[str], columns: Sequence[str]
) -> np.ndarray:
  """How alike data and benchmarks are, as a predictor `[M, D, B]`; NaN where it is not known.

  Args:
    tables: Rows of `model_name`, `data_name`, `benchmark`, `cosine_of_means`.
    models: M names.
    datasets: D names.
    columns: The mean over all, then the scores, which begin with the benchmark's name.
  """
  plain = lambda name: str(name).lower().replace('_', '')
  held = tables.groupby(['model_name', 'data_name', 'benchmark'])['cosine_of_means'].mean()
  out = np.full((len(models), len(datasets), len(columns)), np.nan)
  names = sorted({key[2] for key in held.index}, key=len)
  # The longest name that a column begins with is its benchmark's.
  owner = {c: [n for n in names if plain(c).startswith(plain(n))][-1:] for c in columns[1:]}
  for (model, data, benchmark), value in held.items():
    if model in models and data in datasets:
      for column, own in owner.items():
        if own == [benchmark]:
          out[models.index(model), datasets.index(data), columns.index(column)] = value
  known = np.isfinite(out[:, :, 1:])
  total = np.where(known, out[:, :, 1:], 0).sum(-1)
  out[:, :, 0] = np.where(known.any(-1), total / np.maximum(known.sum(-1), 1), np.nan)
  return out

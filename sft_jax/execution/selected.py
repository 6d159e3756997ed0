"""`config.data.select`: the examples of a data set that the base finds most or least likely.

Each example is scored once for a base, a template and a length, and the scores are kept for other
runs. The perplexity is that of the response; of an example without one, of its whole text. Not for
which of a list of numbers are taken: `data/selection.py`.
"""

import dataclasses
import hashlib
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sft_jax import spec as spec_lib
from sft_jax.data import selection
from sft_jax.data.tokenize import Example
from sft_jax.evals import score
from sft_jax.evals.model import Subject
from sft_jax.execution import inputs
from sft_jax.train import loop
from sft_jax.utils import io, log, peers
from sft_jax.utils.errors import UserError

_MEMORY_HELP = 'set a smaller config.eval.tokens_per_batch, or use more devices (config.mesh.fsdp)'


def select(
  data: inputs.Data,
  spec: spec_lib.RunSpec,
  contents: spec_lib.Contents,
  base: Callable[[], Subject],
  cache: Path,
  tokens_per_batch: int,
) -> tuple[inputs.Data, dict[str, Any]]:
  """The data with the training examples that `config.data.select` takes, in their order.

  What is held out stays, so that runs on all and on some of a data set are measured alike.

  Args:
    data: All of it.
    spec: The run's factors, with a selection.
    contents: Of `data` and the base.
    base: Loads the model that scores; only called where no scores are kept.
    cache: Directory of scores.
    tokens_per_batch: Tokens on all devices at once.

  Returns:
    The data, and for `selection.json` what was selected: `select`, `of` (examples),
    `log_perplexity` (of the lowest and the highest one taken), `examples` (their sources).

  Raises:
    UserError: a score is not a number.
  """
  chosen = spec.selection
  if chosen is None:
    raise ValueError('nothing to select')
  values = _scores(data.train, _file(cache, spec, contents), base, tokens_per_batch)
  kept = selection.by_rank(values, chosen)
  train = [data.train[index] for index in kept]
  behind = [data.train_records[data.records_of[index]] for index in kept]
  inside = [values[index] for index in kept]
  ends = min(inside), max(inside)
  about = {
    'select': spec.data_select,
    'of': len(values),
    'log_perplexity': list(ends),
    'examples': [example.source for example in train],
  }
  low, high = (f'{math.exp(min(value, 700)):.3g}' for value in ends)
  log.say(
    f'data.select={spec.data_select}: {len(train)} of {len(values)} examples, perplexity of the '
    f'response {low} to {high} under the base'
  )
  return dataclasses.replace(
    data,
    train=train,
    train_records=behind,
    records_of=list(range(len(behind))),
    name=f'{data.name}+{spec.data_select}',
    fingerprint=inputs.fingerprint(train, data.heldout),
  ), about


def _file(cache: Path, spec: spec_lib.RunSpec, contents: spec_lib.Contents) -> Path:
  """Where the scores of these data under this base are kept."""
  how = (spec.template, spec.max_length, spec.quantize, spec.compute_dtype)
  payload = [dataclasses.asdict(contents), how, spec_lib.NUMERICS_VERSION]
  digest = hashlib.sha256(json.dumps(payload, sort_keys=True).encode()).hexdigest()[:20]
  return cache / f'{digest}.json'


def _scores(
  examples: Sequence[Example], file: Path, base: Callable[[], Subject], tokens_per_batch: int
) -> list[float]:
  """Log perplexity of each example; from `file`, or scored and written there."""
  held = peers.from_first(_kept(file, len(examples)))
  if held is not None:
    return [float(value) for value in held]
  log.say(f'scoring {len(examples)} examples under the base for config.data.select')
  with loop.explain_memory('scoring examples', _MEMORY_HELP):
    logprobs = score.token_logprobs(base(), examples, tokens_per_batch)
  values = [_nats(example, lp) for example, lp in zip(examples, logprobs, strict=True)]
  wrong = next((i for i, value in enumerate(values) if not math.isfinite(value)), None)
  if wrong is not None:
    raise UserError(
      'its perplexity under the base is not finite',
      examples[wrong].source,
      'look at the model, or try config.train.compute_dtype=float32',
    )
  if peers.is_first():
    with io.explain_os_errors(file):
      file.parent.mkdir(parents=True, exist_ok=True)
    io.write_json_atomic(file, values)
  return values


def _kept(file: Path, count: int) -> list[float] | None:
  """Scores of so many examples; None where the file is absent or of no use."""
  try:
    values = json.loads(file.read_bytes())
  except (OSError, ValueError):
    return None
  fits = isinstance(values, list) and len(values) == count
  return values if fits and all(isinstance(value, float) for value in values) else None


def _nats(example: Example, logprobs: np.ndarray) -> float:
  """Mean negative log-likelihood of the response's tokens, or of all where it has none."""
  weights = example.weights('response')
  if not weights.any():
    weights = example.weights('full')
  weights = weights.astype(np.float64)
  return float(-np.dot(weights, logprobs) / max(weights.sum(), 1.0))

"""Properties of a data set under a base model, before any training.

One row a (model, data set). Near-duplicates by words and contamination are the audit's
(`data/audit.py`); what the properties predict is `analysis/predictors.py`.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath

from sft_jax.data.formats import Record
from sft_jax.data.tokenize import SPANS, Example
from sft_jax.evals import model as eval_model
from sft_jax.evals import score
from sft_jax.evals.model import Subject
from sft_jax.evals.probes import hidden_states
from sft_jax.utils import tables
from sft_jax.utils.errors import UserError

FORMAT = 2
# A token is hard when the base gives it a probability below 1 / 2.5.
HARD_PERPLEXITY = 2.5
# Texts whose mean states have at least this cosine, after the common part is taken off, count as
# near-duplicates.
NEAR_COSINE = 0.95
_BLOCK = 1024


def dataset_properties(
  subject: Subject,
  records: Sequence[Record],
  examples: Sequence[Example],
  tokens_per_batch: int = 4096,
) -> tuple[dict[str, float], dict[str, np.ndarray]]:
  """Numbers of one data set under one model.

  Args:
    subject: The base, as a single model.
    records: The data, for words.
    examples: The same, tokenised as for training.
    tokens_per_batch: Tokens on all devices at once.

  Returns:
    Columns and the arrays they are from.

    Columns: what `score.perplexity` gives for the name `data`; `tokens`, `tokens-response`,
    `words`, `words-response` (means a record); `distinct-1`, `distinct-2` (different words and
    pairs of words over all, of responses, in samples of equal size); `response-entropy` (bits a
    token, of the frequencies of response tokens); `hard-tokens` (share of response tokens of a
    perplexity above 2.5); and, where the model gives states, `diversity` (1 less the mean cosine of
    two texts) and `near-duplicates` (share of texts with another one at a cosine of 0.95 or more),
    both of mean states after the middle layer less their mean.

    Arrays: `nll` and `tokens` `[n, 3]` of each example in the spans full, response, instruction;
    `states` `[n, D]` after the middle layer.

  Raises:
    UserError: no records, or several runs at once.
  """
  if not records or not examples:
    raise UserError('no records', 'data set properties', 'give at least one')
  if subject.runs:
    raise UserError('data set properties are of one model, not of several runs at once')
  logprobs = score.token_logprobs(subject, examples, tokens_per_batch)
  row: dict[str, float] = score.perplexity(examples, logprobs, 'data')
  weights = [[example.weights(span) for span in SPANS] for example in examples]
  products = zip(weights, logprobs, strict=True)
  nll = np.array([[-np.dot(w.astype(np.float64), lp) for w in spans] for spans, lp in products])
  counts = np.array([[w.sum() for w in spans] for spans in weights], np.float64)
  row |= _lengths(records, examples) | _words(records)
  responses = [example.weights('response') > 0 for example in examples]
  row['response-entropy'] = _entropy([e.ids[r] for e, r in zip(examples, responses, strict=True)])
  chosen = np.concatenate([lp[r] for lp, r in zip(logprobs, responses, strict=True)])
  row['hard-tokens'] = (
    float((chosen < -math.log(HARD_PERPLEXITY)).mean()) if len(chosen) else math.nan
  )
  arrays = {'nll': nll, 'tokens': counts}
  if isinstance(subject.model, eval_model.Decoder):
    ids = [example.ids for example in examples]
    middle = subject.model.cfg.num_layers // 2
    states = hidden_states.hidden_states(subject, ids, 'mean', tokens_per_batch)[middle]
    row |= spread(states)
    arrays['states'] = states
  return row, arrays


def _lengths(records: Sequence[Record], examples: Sequence[Example]) -> dict[str, float]:
  said = [' '.join(m['content'] for m in r.messages if m['role'] == 'assistant') for r in records]
  every = [' '.join(m['content'] for m in r.messages if m['role'] != 'system') for r in records]
  return {
    'tokens': float(np.mean([len(example) for example in examples])),
    'tokens-response': float(np.mean([e.weights('response').sum() for e in examples])),
    'words': float(np.mean([len(text.split()) for text in every])),
    'words-response': float(np.mean([len(text.split()) for text in said])),
  }


def _words(records: Sequence[Record], sample: int = 5000) -> dict[str, float]:
  """`distinct-1` and `-2` of the first `sample` words: the ratio falls with length as such."""
  words: list[str] = []
  for record in records:
    for message in record.messages:
      if message['role'] == 'assistant':
        words += message['content'].lower().split()
    if len(words) >= sample:
      break
  words = words[:sample]
  pairs = list(itertools.pairwise(words))
  ratio = lambda parts: len(set(parts)) / len(parts) if parts else math.nan
  return {'distinct-1': ratio(words), 'distinct-2': ratio(pairs)}


def _entropy(parts: Sequence[np.ndarray]) -> float:
  """Bits a token of the frequencies of tokens."""
  _, counts = np.unique(np.concatenate(parts), return_counts=True)
  if not counts.sum():
    return math.nan
  share = counts / counts.sum()
  return float(-(share * np.log2(share)).sum())


def spread(states: np.ndarray) -> dict[str, float]:
  """`diversity` and `near-duplicates` of `[n, D]` states; {} for fewer than three."""
  if len(states) < 3:
    return {}
  centred = states.astype(np.float64) - states.mean(0, dtype=np.float64)
  unit = centred / np.maximum(np.linalg.norm(centred, axis=1, keepdims=True), 1e-30)
  total, near, n = 0.0, 0, len(unit)
  for start in range(0, n, _BLOCK):
    cosine = unit[start : start + _BLOCK] @ unit.T
    rows = np.arange(len(cosine))
    total += float(cosine.sum() - cosine[rows, start + rows].sum())
    cosine[rows, start + rows] = -1
    near += int((cosine.max(1) >= NEAR_COSINE).sum())
  return {'diversity': 1 - total / (n * (n - 1)), 'near-duplicates': near / n}


def write(
  path: epath.PathLike, rows: Sequence[Mapping[str, Any]], about: Mapping[str, Any]
) -> None:
  """Writes rows, each with `model_name` and `data_name`, as a CSV table with provenance beside.

  Raises:
    UserError: a row without these names, or two of one model and data set.
  """
  seen: set[tuple[Any, Any]] = set()
  for number, row in enumerate(rows):
    key = row.get('model_name'), row.get('data_name')
    if None in key or key in seen:
      raise UserError(f'a row of {key}, once more or without names', f'row {number}')
    seen.add(key)
  tables.write_rows(path, rows, {**about, 'probe': 'dataset_properties', 'format': FORMAT})

"""Perplexity of tokenised examples in its three forms. How tokens are scored: `loglik.py`."""

import math
from collections.abc import Sequence

import numpy as np

from sft_jax.data.tokenize import SPANS, Example
from sft_jax.evals import loglik
from sft_jax.evals.model import Subject


def token_logprobs(
  subject: Subject, examples: Sequence[Example], tokens_per_batch: int = 4096
) -> list[np.ndarray]:
  """Log-probability of each token of each example given its past, float32 `[T]`; the first is 0.

  Args:
    subject: The model.
    examples: Tokenised examples.
    tokens_per_batch: Tokens on all devices at once (at least one row a device).
  """
  texts = [loglik.Text(example.ids, 1) for example in examples]
  scored = loglik.score(subject, texts, tokens_per_batch)
  return [np.concatenate([[0], one.logprobs]).astype(np.float32) for one in scored]


def perplexity(
  examples: Sequence[Example], logprobs: Sequence[np.ndarray], name: str
) -> dict[str, float]:
  """Perplexity of a set of examples, over the full text, the responses and the instructions.

  With NLL_i the negative log-likelihood of the span in example i, T_i its tokens and b_i its bytes:
  `ppl` = exp(Σ NLL_i / Σ T_i); `ppl-doc` = mean of exp(NLL_i / T_i), and its median;
  `bits-per-byte` = Σ NLL_i / (ln 2 Σ b_i), which does not depend on the tokenizer. The standard
  error of `ppl` treats examples as the sampling unit (ratio estimator, delta method).

  Args:
    examples: Tokenised examples.
    logprobs: Their `token_logprobs`.
    name: What the columns call the set: `ppl-NAME`, `ppl-NAME-response`, ….

  Returns:
    {column: value}; spans without tokens are left out.
  """
  scores: dict[str, float] = {f'{name}-n': len(examples)}
  for span in SPANS:
    tail = '' if span == 'full' else f'-{span}'
    weights = [example.weights(span) for example in examples]
    tokens = np.array([w.sum() for w in weights], np.float64)
    nll = np.array(
      [-np.dot(w.astype(np.float64), lp) for w, lp in zip(weights, logprobs, strict=True)]
    )
    held = tokens > 0
    if not held.any():
      continue
    tokens, nll = tokens[held], nll[held]
    size = np.array([e.span_bytes[span] for e in examples])[held].sum()
    # Of a model that diverged it may be infinite, which is a result and no error.
    with np.errstate(over='ignore'):
      ppl, docs = float(np.exp(nll.sum() / tokens.sum())), np.exp(nll / tokens)
    scores |= {
      f'ppl-{name}{tail}': ppl,
      f'ppl-{name}{tail}-stderr': ppl * _ratio_stderr(nll, tokens),
      f'ppl-doc-{name}{tail}': float(docs.mean()),
      f'ppl-doc-median-{name}{tail}': float(np.median(docs)),
    }
    if size:
      scores[f'bits-per-byte-{name}{tail}'] = float(nll.sum() / (math.log(2) * size))
  return scores


def _ratio_stderr(nll: np.ndarray, tokens: np.ndarray) -> float:
  """Standard error of Σ nll / Σ tokens over examples."""
  n = len(nll)
  if n < 2:
    return 0.0
  residual = nll - tokens * (nll.sum() / tokens.sum())
  return float(np.sqrt(n / (n - 1) * np.square(residual).sum()) / tokens.sum())

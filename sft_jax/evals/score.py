"""Log-likelihoods of tokenised examples under jit, and perplexity in its three forms.

Examples are packed into rows, which changes no score: a token sees its own example only. Sums over
spans are taken in float64 on the host, so a score does not depend on the batch size.
Dimension letters: see the legend in `models/decoder.py`.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from sft_jax.data import pack
from sft_jax.data.tokenize import SPANS, Example
from sft_jax.models import decoder, export, head
from sft_jax.models.config import ModelConfig
from sft_jax.parallel.compile import exact_jit

Tree = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Subject:
  """A model to evaluate: a base, with the adapter of one run or without.

  Attributes:
    cfg: Sizes and switches.
    base: Parameters on their devices.
    dtype: Compute dtype.
    mesh: Mesh the parameters lie on.
    adapter: Low-rank factors without a run axis, or None.
    lora_scale: `[L]` scale of the adapter, or None.
    check: Called before each batch; may raise to end an evaluation.
  """

  cfg: ModelConfig
  base: Tree
  dtype: Any
  mesh: Mesh
  adapter: Tree | None = None
  lora_scale: jax.Array | None = None
  check: Callable[[], None] = lambda: None


@functools.partial(exact_jit, static_argnames=('cfg', 'dtype', 'mesh', 'chunk'))
def _logprobs(cfg, base, adapter, lora_scale, batch, dtype, mesh, chunk):
  """`[B,T]` float32: log-probability of token t given its past; 0 for the first of a segment."""
  hidden = decoder.forward(
    cfg,
    base,
    batch['tokens'],
    batch['positions'],
    batch['segments'],
    adapter=adapter,
    lora_scale=lora_scale,
    dtype=dtype,
    mesh=mesh,
  )
  predicted = (batch['segments'] > 0) & (batch['positions'] > 0)
  shift = lambda x: jnp.roll(x, -1, axis=1)
  scores = head.target_logprobs(
    hidden,
    decoder.head_kernel(base),
    shift(batch['tokens']),
    where=shift(predicted),
    chunk=chunk,
    logit_softcap=cfg.logit_softcap,
    vocab=cfg.vocab_size,
    shards=mesh.shape['data'] * mesh.shape['fsdp'],
  )
  return jnp.roll(scores, 1, axis=1)


def token_logprobs(
  subject: Subject, examples: Sequence[Example], tokens_per_batch: int = 4096
) -> list[np.ndarray]:
  """Log-probability of each token of each example given its past, float32 `[T]`; the first is 0.

  Args:
    subject: The model.
    examples: Tokenised examples.
    tokens_per_batch: Tokens on all devices at once (at least one row a device).
  """
  if not examples:
    return []
  shards = subject.mesh.shape['data'] * subject.mesh.shape['fsdp']
  width = pack.round_up(max(len(e) for e in examples), 128)
  layout = pack.layout_rows([len(e) for e in examples], width)
  # As few batches as the budget allows, and no larger than they need be: all have one shape.
  batches = math.ceil(len(layout) / pack.round_up(max(1, tokens_per_batch // width), shards))
  height = pack.round_up(math.ceil(len(layout) / batches), shards)
  rows = NamedSharding(subject.mesh, P(('data', 'fsdp')))
  scores: list[np.ndarray] = [np.zeros(0, np.float32)] * len(examples)
  for start in range(0, len(layout), height):
    subject.check()
    members = [*layout[start : start + height]]
    members += [[]] * (height - len(members))
    batch = pack.fill(examples, members, width)
    placed = {
      name: jax.device_put(batch[name], rows) for name in ('tokens', 'positions', 'segments')
    }
    out = export.to_host(
      _logprobs(
        subject.cfg,
        subject.base,
        subject.adapter,
        subject.lora_scale,
        placed,
        subject.dtype,
        subject.mesh,
        min(512, width),
      )
    )
    for row, indices in enumerate(members):
      at = 0
      for index in indices:
        length = len(examples[index])
        scores[index] = out[row, at : at + length]
        at += length
  return scores


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

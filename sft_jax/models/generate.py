"""Greedy generation for one model under jit: prefill once, then one token at a time.

Meant for the few samples and short answers of a training run. Not the evaluation engine: no
continuous batching, no shared prefixes, no sampling.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sft_jax.models import decoder
from sft_jax.models import head as head_lib
from sft_jax.models.config import ModelConfig
from sft_jax.parallel.compile import exact_jit

Tree = dict[str, Any]


@functools.partial(exact_jit, static_argnames=('cfg', 'max_new', 'dtype'))
def _generate(cfg, base, adapter, lora_scale, tokens, lengths, stop_ids, max_new, dtype):
  """Returns `[B, max_new]` token ids; entries after a stop token are -1."""
  rows, width = tokens.shape
  run = functools.partial(
    decoder.decode, cfg, base, adapter=adapter, lora_scale=lora_scale, dtype=dtype
  )
  head = decoder.head_kernel(base)
  # A soft cap of the logits changes no order.
  logits = lambda h: head_lib.without_padding(h @ head.astype(dtype), cfg.vocab_size)
  greedy = lambda h: jnp.argmax(logits(h).astype(jnp.float32), axis=-1)
  positions = jnp.broadcast_to(jnp.arange(width), (rows, width))
  cache = decoder.init_cache(cfg, rows, width + max_new, dtype)
  texts = jnp.broadcast_to(lengths[:, None], (rows, width))
  hidden, cache = run(tokens, positions, cache, lengths=texts)
  last = jnp.take_along_axis(hidden, (lengths - 1)[:, None, None], axis=1)[:, 0]
  stops = lambda token: (token[:, None] == stop_ids[None, :]).any(axis=-1)

  def go_on(carry):
    step, _, done, _, _ = carry
    return (step < max_new) & ~done.all()

  def advance(carry):
    step, token, done, cache, out = carry
    out = out.at[:, step].set(jnp.where(done, -1, token))
    done = done | stops(token)
    hidden, cache = run(token[:, None], (lengths + step)[:, None], cache)
    return step + 1, greedy(hidden[:, 0]).astype(jnp.int32), done, cache, out

  out = jnp.full((rows, max_new), -1, jnp.int32)
  # Rows of length 0 fill the batch up; they are done before they start.
  carry = (0, greedy(last).astype(jnp.int32), lengths == 0, cache, out)
  return jax.lax.while_loop(go_on, advance, carry)[-1]


def generate(
  cfg: ModelConfig,
  base: Tree,
  prompts: Sequence[Sequence[int]],
  *,
  stop_ids: Sequence[int],
  max_new: int,
  adapter: Tree | None = None,
  lora_scale: jax.Array | None = None,
  dtype: Any = jnp.float32,
  rows: int = 32,
  check: Callable[[], None] = lambda: None,
) -> list[list[int]]:
  """Continues each prompt greedily until a stop token or `max_new` tokens.

  Prompts are sorted by length and run in equal batches of widths that are multiples of 32, so few
  programs are compiled; a row's result does not depend on its neighbours.

  Args:
    cfg: The model.
    base: Its parameters.
    prompts: Token ids, none empty.
    stop_ids: Tokens that end an answer (not returned).
    max_new: Upper bound on new tokens.
    adapter: Adapter of one run (no run axis), or None.
    lora_scale: `[L]` adapter scale.
    dtype: Compute dtype.
    rows: Most rows in a batch.
    check: Called before each batch; may raise to end the work.

  Returns:
    New token ids per prompt, without the stop token.
  """
  stops = np.asarray(sorted(stop_ids) or [-2], np.int32)
  answers: list[list[int]] = [[] for _ in prompts]
  order = sorted(range(len(prompts)), key=lambda i: (len(prompts[i]), i))
  batches = math.ceil(len(prompts) / rows)
  rows = math.ceil(len(prompts) / max(batches, 1))
  for start in range(0, len(order), max(rows, 1)):
    check()
    chunk = order[start : start + rows]
    width = -(-max(len(prompts[i]) for i in chunk) // 32) * 32
    tokens = np.zeros((rows, width), np.int32)
    lengths = np.zeros(rows, np.int32)
    for row, i in enumerate(chunk):
      tokens[row, : len(prompts[i])] = prompts[i]
      lengths[row] = len(prompts[i])
    out = _generate(cfg, base, adapter, lora_scale, tokens, lengths, stops, max_new, dtype)
    for row, i in enumerate(np.asarray(out)[: len(chunk)]):
      answers[chunk[row]] = [int(t) for t in i if t >= 0 and t not in set(stops.tolist())]
  return answers

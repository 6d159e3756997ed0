"""Mean states of texts after each layer, for intrinsic dimension and similarity of data.

What is taken is the residual stream as it leaves a layer, before the final norm.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from sft_jax.evals import model as eval_model
from sft_jax.evals.model import Subject
from sft_jax.models import decoder, export
from sft_jax.models.attention import attention
from sft_jax.parallel.compile import exact_jit
from sft_jax.utils import tables
from sft_jax.utils.errors import UserError

FORMAT = 2
POOLINGS = ('mean', 'last')
_NARROWEST = 32


@functools.partial(exact_jit, static_argnames=('model', 'runs', 'mesh', 'pooling'))
def _pooled(model, params, tokens, counts, runs, mesh, pooling):
  """`[R?,L,B,D]` float32 states of texts of `counts` tokens, one in a row."""
  positions = jnp.broadcast_to(jnp.arange(tokens.shape[1], dtype=jnp.int32), tokens.shape)
  inside = positions < counts[:, None]
  last = counts[:, None] - 1
  chosen = inside & (positions >= jnp.minimum(1, last)) if pooling == 'mean' else positions == last
  weights = chosen / chosen.sum(1, keepdims=True)
  mask = decoder.causal_mask(inside.astype(jnp.int32))
  distance = positions[:, :, None] - positions[:, None, :]
  lengths = jnp.where(inside, counts[:, None], positions + 1)

  def attend(place, q, k, v):
    seen = mask if place.window is None else mask & (distance < place.window)
    cfg = model.cfg
    return attention(q, k, v, seen, scale=cfg.query_scale, softcap=cfg.attn_softcap), None

  def one(params):
    options = decoder.Options(
      params['adapter'],
      params['scale'],
      dtype=model.dtype,
      mesh=mesh,
      tap=lambda h: jnp.einsum('btd,bt->bd', h.astype(jnp.float32), weights),
    )
    base = params['base']
    return decoder.run(model.cfg, base, tokens, positions, lengths, attend, None, options)[1]

  return eval_model.over_runs(one, runs)(params)


def hidden_states(
  subject: Subject,
  texts: Sequence[np.ndarray],
  pooling: str = 'mean',
  tokens_per_batch: int = 4096,
) -> np.ndarray:
  """States of texts after each layer.

  Args:
    subject: A model of our decoder, or several runs at once.
    texts: Token ids of N texts, at least one each.
    pooling: 'mean' over the text's tokens but the first, or its 'last' token. The first is what
      heads that look nowhere look at: in few dimensions its state is so large (arXiv 2402.17762)
      that a mean with it tells little but a text's length.
    tokens_per_batch: Tokens on all devices at once (at least one row a device).

  Returns:
    float32 `[L, N, D]`; of R runs `[R, L, N, D]`.

  Raises:
    UserError: another kind of model, an unknown pooling, an empty or too long text.
  """
  if not isinstance(subject.model, eval_model.Decoder):
    raise UserError('hidden states are read from models of this package only')
  if pooling not in POOLINGS:
    raise UserError(f'no pooling {pooling!r}', how=f'one of {", ".join(POOLINGS)}')
  longest = subject.model.max_length
  for number, ids in enumerate(texts):
    if not 0 < len(ids) <= longest:
      raise UserError(f'a text of {len(ids)} tokens', f'text {number}', f'1 to {longest} can be')
  cfg = subject.model.cfg
  lead = (subject.runs,) if subject.runs else ()
  out = np.empty((*lead, cfg.num_layers, len(texts), cfg.hidden_size), np.float32)
  for width, members in _batches([len(ids) for ids in texts], tokens_per_batch, subject.shards):
    subject.check()
    rows = max(subject.shards, tokens_per_batch // width // subject.shards * subject.shards)
    tokens, counts = np.zeros((rows, width), np.int32), np.ones(rows, np.int32)
    for row, index in enumerate(members):
      counts[row] = len(texts[index])
      tokens[row, : counts[row]] = texts[index]
    sharding = NamedSharding(subject.mesh, P(('data', 'fsdp')))
    placed = (jax.device_put(array, sharding) for array in (tokens, counts))
    states = _pooled(*(subject.model, subject.params, *placed, subject.runs, subject.mesh, pooling))
    out[..., members, :] = export.to_host(states)[..., : len(members), :]
  return out


def _batches(lengths: Sequence[int], budget: int, shards: int) -> list[tuple[int, list[int]]]:
  """Width and texts of each batch; widths are powers of two, so that few programs are compiled."""
  by_width: dict[int, list[int]] = {}
  for index, length in enumerate(lengths):
    by_width.setdefault(max(_NARROWEST, 1 << (length - 1).bit_length()), []).append(index)
  out = []
  for width, members in sorted(by_width.items()):
    rows = max(shards, budget // width // shards * shards)
    out += [(width, members[i : i + rows]) for i in range(0, len(members), rows)]
  return out


def write(
  path: epath.PathLike,
  subject: Subject,
  texts: Sequence[np.ndarray],
  about: Mapping[str, Any],
  pooling: str = 'mean',
  tokens_per_batch: int = 4096,
) -> np.ndarray:
  """Computes states and writes them as `states`, with provenance beside; returns them."""
  states = hidden_states(subject, texts, pooling, tokens_per_batch)
  lengths = np.array([len(ids) for ids in texts], np.int64)
  facts = {'probe': 'hidden_states', 'format': FORMAT, 'pooling': pooling}
  tables.write_arrays(path, {'states': states, 'lengths': lengths}, {**about, **facts})
  return states

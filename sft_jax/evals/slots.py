"""The compiled half of the generation engine: prompts into slots, and a few tokens for each slot.

State of B slots: `token` (the last one, not yet run), `position` (its own), `left` (tokens still
allowed; 0: free or ended), `seen` (tokens of the shared beginning), `temperature`, `seed`. The half
on the host is `generation.py`. Dimension letters: see the legend in `models/decoder.py`.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from sft_jax.evals.model import RUNS, over_runs
from sft_jax.parallel.compile import exact_jit

FAR = np.int32(2**30)  # a position, or slot, outside of every cache
NO_NUMBER = np.int32(-3)  # stands for a token where the model computes what is no number


@functools.partial(
  exact_jit, static_argnames=('model', 'runs', 'sampled'), donate_argnames=('cache', 'state')
)
def admit(model, params, cache, state, new, prefix, runs, sampled):
  """Puts new prompts into slots; returns cache, state and the first token of each `[R?,n]`."""

  def one(params, new, prefix):
    ramp = jnp.arange(new['tokens'].shape[1])[None, :]
    positions = new['seen'][:, None] + ramp
    ends = new['seen'] + new['length']
    lengths = jnp.broadcast_to(ends[:, None], positions.shape)
    hidden, own = model.decode(params, new['tokens'], positions, None, prefix, new['seen'], lengths)
    last = jnp.take_along_axis(hidden, (new['length'] - 1)[:, None, None], axis=1)[:, 0]
    return _choose(model.logits(params, last), new, ends, sampled), own

  token, own = over_runs(one, runs, (0, RUNS), (0, RUNS))(params, new, prefix)
  # Rows that only fill the batch up have a slot outside of the cache.
  cache = jax.tree.map(functools.partial(_put, new['slot']), cache, own)
  fresh = {**new, 'token': token, 'position': new['seen'] + new['length']}
  index = (*_lead(new['slot']), new['slot'])
  state = {name: state[name].at[index].set(fresh[name], mode='drop') for name in state}
  return cache, state, token


@functools.partial(
  exact_jit,
  static_argnames=('model', 'runs', 'sampled', 'steps'),
  donate_argnames=('cache', 'state'),
  streams_weights=True,
)
def advance(model, params, cache, state, alive, prefix, stop_ids, runs, sampled, steps):
  """A few tokens for each living slot; returns cache, state and tokens `[R?,B,steps]`, -1: none."""

  def one(params, cache, state, position, prefix):
    given = state['token'][:, None], position[:, None]
    hidden, new = model.decode(params, *given, cache, prefix, state['seen'], position[:, None] + 1)
    return _choose(model.logits(params, hidden[:, 0]), state, state['position'] + 1, sampled), new

  # The caches are written outside of what is mapped over runs, which would move their axes.
  mapped = over_runs(one, runs, (RUNS, 0, 0, RUNS), (0, RUNS))

  def step_on(step, carry):
    cache, state, out = carry
    active = state['left'] > 0
    # What is written for slots that have ended falls outside of the cache. (A loop that stops when
    # all have ended would, with several runs, copy the caches at each step.)
    position = jnp.where(active, state['position'], FAR)
    token, new = mapped(params, cache, state, position, prefix)
    cache = model.write(cache, new, (position - state['seen'])[..., None])
    out = out.at[..., step].set(jnp.where(active, token, -1))
    stops = stop_ids.reshape(*(1,) * token.ndim, -1)
    ended = (token[..., None] == stops).any(axis=-1) | (token == NO_NUMBER)
    state = {
      **state,
      'token': jnp.where(active, token, state['token']),
      'position': jnp.where(active, state['position'] + 1, state['position']),
      'left': jnp.where(active & ~ended, state['left'] - 1, 0),
    }
    return cache, state, out

  state = {**state, 'left': jnp.where(alive, state['left'], 0)}
  out = jnp.full((*state['token'].shape, steps), -1, jnp.int32)
  return jax.lax.fori_loop(0, steps, step_on, (cache, state, out))


@functools.partial(jax.jit, static_argnames=('model', 'room', 'shardings'))
def resize(model, cache, state, chosen, room, shardings):
  """The chosen slots `[R?,n]` alone, in caches with room for so many tokens of each."""
  index = (*_lead(chosen), chosen)

  def moved(leaf, like):
    wanted = like.shape[0], *chosen.shape, *like.shape[2:]
    leaf = leaf[(slice(None), *index)]
    return jnp.pad(leaf, [(0, new - old) for new, old in zip(wanted, leaf.shape, strict=True)])

  whole = jax.eval_shape(lambda: model.init_cache(chosen.shape[-1], room))
  leaves, kind = jax.tree.flatten(jax.tree.map(moved, cache, whole))
  state = {name: value[index] for name, value in state.items()}
  leaves = [jax.lax.with_sharding_constraint(*pair) for pair in zip(leaves, shardings, strict=True)]
  return jax.tree.unflatten(kind, leaves), state


def _lead(slot):
  """Indices of the runs of slots `[R,n]`; none of `[n]`."""
  return [] if slot.ndim == 1 else [jnp.arange(slot.shape[0])[:, None]]


def _put(slot, whole, part):
  """Rows of `part` at the slots of `whole`, which has more room for each, on whatever axis."""
  room = (slice(0, size) for size in part.shape[slot.ndim + 1 :])
  return whole.at[(slice(None), *_lead(slot), slot, *room)].set(part, mode='drop')


def _choose(logits, request, position, sampled):
  """`[B]` tokens: the likeliest, or drawn by Gumbel noise from the request's own seed."""
  broken = jnp.isnan(jnp.max(logits, axis=-1))
  greedy = jnp.where(broken, NO_NUMBER, jnp.argmax(logits, axis=-1).astype(jnp.int32))
  if not sampled:
    return greedy
  temperature = request['temperature']

  def noise(seed, position):
    return jax.random.gumbel(jax.random.fold_in(jax.random.key(seed), position), logits.shape[-1:])

  warm = jnp.maximum(temperature, 1e-6)[:, None]
  drawn = jnp.argmax(logits / warm + jax.vmap(noise)(request['seed'], position), axis=-1)
  return jnp.where((temperature > 0) & ~broken, drawn.astype(jnp.int32), greedy)

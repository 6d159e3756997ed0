"""What the evaluation engines ask of a model, and the two kinds of model that answer.

The engines know nothing of configs, workdirs or our decoder: they take any `LanguageModel`.
Dimension letters: see the legend in `models/decoder.py`.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from sft_jax.models import cached, decoder, head
from sft_jax.models.config import ModelConfig

Tree = dict[str, Any]

# The run axis of adapters and caches: after that of the layers, which take a slice each.
RUNS = 1


class LanguageModel(Protocol):
  """A causal language model. Hashable: it is a static argument of compiled programs.

  Attributes:
    vocab_size: V.
    max_length: Longest text in tokens.
    sharing: What texts may share: 'beginnings' (rows hold trees of texts, and prefixes are given),
      'rows' (rows hold whole texts side by side) or 'nothing' (a row for each text).
  """

  @property
  def vocab_size(self) -> int: ...
  @property
  def max_length(self) -> int: ...
  @property
  def sharing(self) -> str: ...

  def extend(
    self,
    params: Any,
    batch: dict[str, jax.Array],
    prefix: Any,
    *,
    keep: bool,
    mesh: Mesh | None = None,
  ) -> tuple[jax.Array, Any]:
    """States `[B,T,D]` of rows of texts, and their keys and values if they are to be kept.

    Args:
      params: What `logits` gets too.
      batch: `tokens`, `positions`, `reach`, `lengths` `[B,T]` int32 and, with a prefix, `group`
        `[B]` and `seen` `[B,T]`; see `models/cached.py:extend`.
      prefix: What was kept of G rows, or None.
      keep: Whether to return what a later call takes as `prefix`.
      mesh: Devices the rows are spread over.
    """
    ...

  def logits(self, params: Any, states: jax.Array) -> jax.Array:
    """States `[...,D]` to float32 logits `[...,V]`."""
    ...

  def init_cache(self, rows: int, slots: int) -> Any:
    """An empty cache for texts of at most `slots` new tokens; leaves `[_,B,...]`."""
    ...

  def write(self, cache: Any, new: Any, slots: jax.Array) -> Any:
    """What `decode` returns of new tokens, put into their slots `[R?,B,T]`; with runs, leaves are
    `[_,R,B,...]`. Slots outside of the cache are left out."""
    ...

  def decode(
    self,
    params: Any,
    tokens: jax.Array,
    positions: jax.Array,
    cache: Any,
    prefix: Any,
    seen: jax.Array,
    lengths: jax.Array,
  ) -> tuple[jax.Array, Any]:
    """States `[B,T,D]` of new tokens, and what `write` takes; see `models/cached.py:decode`."""
    ...


@dataclasses.dataclass(frozen=True)
class Decoder:
  """Our own decoder. Its parameters are `{'base', 'adapter', 'scale'}`, the latter two or None.

  Attributes:
    cfg: Sizes and switches.
    dtype: Compute dtype.
    mesh: Devices that share one copy of the parameters; None where each has its own.
  """

  cfg: ModelConfig
  dtype: Any
  mesh: Mesh | None = None

  @property
  def vocab_size(self) -> int:
    """Tokens there are, without padding of the tables."""
    return self.cfg.vocab_size

  @property
  def max_length(self) -> int:
    """Positions the rope reaches."""
    return self.cfg.longest_text

  @property
  def sharing(self) -> str:
    """No beginnings where rotations depend on how long a text becomes."""
    return 'rows' if self.cfg.length_dependent else 'beginnings'

  def extend(self, params, batch, prefix, *, keep, mesh=None):
    """See `LanguageModel`."""
    return cached.extend(
      self.cfg,
      params['base'],
      batch['tokens'],
      batch['positions'],
      batch['reach'],
      prefix=prefix,
      group=None if prefix is None else batch['group'],
      seen=None if prefix is None else batch['seen'],
      lengths=batch['lengths'],
      keep=keep,
      adapter=params['adapter'],
      lora_scale=params['scale'],
      dtype=self.dtype,
      mesh=mesh,
    )

  def logits(self, params, states):
    """See `LanguageModel`."""
    kernel = decoder.head_kernel(params['base']).astype(states.dtype)
    flat = states.reshape(1, -1, states.shape[-1])
    out, _ = head.logits_of(flat, kernel, self.cfg.logit_softcap, self.cfg.vocab_size)
    return out.reshape(*states.shape[:-1], -1)

  def init_cache(self, rows, slots):
    """See `LanguageModel`."""
    return cached.init_cache(self.cfg, rows, slots, self.dtype)

  def write(self, cache, new, slots):
    """See `LanguageModel`."""
    return cached.write(cache, new, slots)

  def decode(self, params, tokens, positions, cache, prefix, seen, lengths):
    """See `LanguageModel`."""
    return cached.decode(
      self.cfg,
      params['base'],
      tokens,
      positions,
      cache,
      prefix=prefix,
      seen=seen,
      adapter=params['adapter'],
      lora_scale=params['scale'],
      lengths=lengths,
      dtype=self.dtype,
      mesh=self.mesh,
    )


@dataclasses.dataclass(frozen=True)
class Plain:
  """Any function from tokens to logits, such as the `apply` of a Flax module.

  Each text has a row of its own and is computed anew for each token it is continued by: slow, and
  right whatever the model is.

  Attributes:
    apply: Parameters and tokens `[B,T]` to logits `[B,T,V]`, each from its past only.
    vocab_size: V.
    max_length: Longest text in tokens.
  """

  apply: Callable[[Any, jax.Array], jax.Array]
  vocab_size: int
  max_length: int
  sharing: str = 'nothing'

  def extend(self, params, batch, prefix, *, keep, mesh=None):
    """See `LanguageModel`; the states are logits."""
    return self.apply(params, batch['tokens']), None

  def logits(self, params, states):
    """See `LanguageModel`."""
    return states.astype(jnp.float32)

  def init_cache(self, rows, slots):
    """The tokens so far."""
    return jnp.zeros((1, rows, slots), jnp.int32)

  def write(self, cache, new, slots):
    """See `LanguageModel`."""
    rows = jnp.arange(slots.shape[0])[:, None]
    return cache.at[0, rows, slots].set(new[0], mode='drop')

  def decode(self, params, tokens, positions, cache, prefix, seen, lengths):
    """See `LanguageModel`."""
    new = tokens[None]
    whole = tokens if cache is None else self.write(cache, new, positions)[0]
    out = self.apply(params, whole)
    return jnp.take_along_axis(out, positions[..., None], axis=1, mode='clip'), new


@dataclasses.dataclass(frozen=True)
class Subject:
  """A model to evaluate with its parameters: one, or several runs over one base at once.

  Attributes:
    model: What is computed.
    params: Its parameters, on their devices.
    mesh: Those devices.
    runs: Number of runs R, the second axis (`RUNS`) of `adapter` and `scale` in `params`; 0 for a
      single model without that axis.
    check: Called before each batch; may raise to end an evaluation.
  """

  model: LanguageModel
  params: Any
  mesh: Mesh
  runs: int = 0
  check: Callable[[], None] = lambda: None

  @property
  def shards(self) -> int:
    """Parts that rows are divided into."""
    return self.mesh.shape['data'] * self.mesh.shape['fsdp']


def single(
  cfg: ModelConfig,
  base: Tree,
  dtype: Any,
  mesh: Mesh,
  adapter: Tree | None = None,
  lora_scale: jax.Array | None = None,
) -> Subject:
  """One model of ours: a base, with the adapter of one run (no run axis) or without.

  Args:
    cfg: Sizes and switches.
    base: Parameters.
    dtype: Compute dtype.
    mesh: Devices they lie on.
    adapter: Low-rank factors, or None.
    lora_scale: `[L]` scale of the adapter.
  """
  params = {'base': base, 'adapter': adapter, 'scale': lora_scale}
  return Subject(Decoder(cfg, dtype, _shared(mesh)), params, mesh)


def cohort(
  cfg: ModelConfig, base: Tree, dtype: Any, mesh: Mesh, adapter: Tree, lora_scale: jax.Array
) -> Subject:
  """R runs over one base: `adapter` leaves `[R,L,...]`, `lora_scale` `[R,L]`."""
  # Moved once: XLA would move them for each token that is written.
  moved = jax.tree.map(_layers_first, {'adapter': adapter, 'scale': lora_scale})
  runs = lora_scale.shape[0]
  return Subject(Decoder(cfg, dtype, _shared(mesh)), {'base': base, **moved}, mesh, runs=runs)


def _layers_first(leaf: Any) -> Any:
  """`[R,L,...]` to `[L,R,...]` where it lies; a shape to a shape."""
  turn = lambda x: jnp.swapaxes(x, 0, RUNS)
  where = getattr(leaf, 'sharding', None)
  if isinstance(where, NamedSharding):
    first, second, *rest = (*where.spec, *[None] * leaf.ndim)[: leaf.ndim]
    where = NamedSharding(where.mesh, P(second, first, *rest))
  else:
    where = None
  if isinstance(leaf, jax.ShapeDtypeStruct):
    turned = jax.eval_shape(turn, leaf)
    return jax.ShapeDtypeStruct(turned.shape, turned.dtype, sharding=where)
  return jax.jit(turn, out_shardings=where)(leaf)


def _shared(mesh: Mesh) -> Mesh | None:
  return mesh if mesh.shape['fsdp'] > 1 else None


def over_runs(
  fn: Callable[..., Any], runs: int, axes: Sequence[int | None] = (), out: Any = 0
) -> Callable[..., Any]:
  """`fn(params, *rest)` for one model, or for R at once.

  The base is not mapped: it is read once for all runs.

  Args:
    fn: Its first argument are parameters of `Decoder`.
    runs: R, or 0 to leave `fn` as it is.
    axes: The run axis of each further argument; None for what all runs share.
    out: The run axis of the results, as `jax.vmap` takes it.
  """
  if not runs:
    return fn

  def call(params, *rest):
    own = [None if part is None else axis for axis, part in zip(axes, rest, strict=True)]
    mapped = {'base': None, 'adapter': RUNS, 'scale': RUNS}, *own
    return jax.vmap(fn, in_axes=mapped, out_axes=out)(params, *rest)

  return call

"""What the evaluation engines ask of a model, and the two kinds of model that answer.

The engines know nothing of configs, workdirs or our decoder: they take any `LanguageModel`.
Dimension letters: see the legend in `models/decoder.py`.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from sft_jax.models import cached, decoder, head
from sft_jax.models.config import ModelConfig

Tree = dict[str, Any]


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
    """States `[B,T,D]` of new tokens, and the cache with them; see `models/cached.py:decode`."""
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

  def decode(self, params, tokens, positions, cache, prefix, seen, lengths):
    """See `LanguageModel`."""
    rows = jnp.arange(tokens.shape[0])[:, None]
    cache = cache.at[0, rows, positions].set(tokens, mode='drop')
    out = self.apply(params, cache[0])
    return jnp.take_along_axis(out, positions[..., None], axis=1, mode='clip'), cache


@dataclasses.dataclass(frozen=True)
class Subject:
  """A model to evaluate with its parameters: one, or several runs over one base at once.

  Attributes:
    model: What is computed.
    params: Its parameters, on their devices.
    mesh: Those devices.
    runs: Number of runs R, the first axis of `adapter` and `scale` in `params`; 0 for a single
      model without that axis.
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
  """R runs over one base: `adapter` leaves `[R,...]`, `lora_scale` `[R,L]`."""
  params = {'base': base, 'adapter': adapter, 'scale': lora_scale}
  return Subject(Decoder(cfg, dtype, _shared(mesh)), params, mesh, runs=lora_scale.shape[0])


def _shared(mesh: Mesh) -> Mesh | None:
  return mesh if mesh.shape['fsdp'] > 1 else None


def over_runs(fn: Callable[..., Any], runs: int, *mapped: int) -> Callable[..., Any]:
  """`fn(params, *rest)` for one model, or for R at once with results `[R,...]`.

  The base is not mapped: it is read once for all runs.

  Args:
    fn: Its first argument are parameters of `Decoder`.
    runs: R, or 0 to leave `fn` as it is.
    mapped: Which further arguments (from 0, after the parameters) have a run axis too.
  """
  if not runs:
    return fn

  def call(params, *rest):
    axes = [0 if i in mapped and part is not None else None for i, part in enumerate(rest)]
    return jax.vmap(fn, in_axes=({'base': None, 'adapter': 0, 'scale': 0}, *axes))(params, *rest)

  return call

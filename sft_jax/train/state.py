"""`TrainState`: everything a step changes or a resume needs. Not for the frozen base of LoRA."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from sft_jax.train import optimizer
from sft_jax.train.optimizer import Hypers

Array = jax.Array
Tree = dict[str, Any]

METHODS = ('full', 'lora')


class TrainState(NamedTuple):
  """State of one run, or of R runs whose leaves (all but `step`) then have a leading run axis.

  Attributes:
    step: int32 scalar, optimiser steps taken by the program; runs share it.
    trained: Parameters (full) or the adapter (LoRA).
    moments: Adam's, float32.
    hypers: Hyper-parameters.
    dropout_seed: uint32.
    rounding_seed: uint32, of stochastic rounding.
    failed: bool, true from the first non-finite loss or gradient on; the run is then frozen. True
      from the start in a slot without a run.
  """

  step: Array
  trained: Tree
  moments: optax.ScaleByAdamState
  hypers: Hypers
  dropout_seed: Array
  rounding_seed: Array
  failed: Array


def run_axes(state: TrainState) -> TrainState:
  """The `in_axes` of a vmap over runs."""
  return jax.tree.map(lambda _: 0, state)._replace(step=None)


def init_state(
  trained: Tree,
  hypers: Sequence[Hypers],
  *,
  method: str,
  dropout_seeds: Sequence[int] | None = None,
  rounding_seeds: Sequence[int] | None = None,
  frozen: Sequence[bool] | None = None,
  mesh: Mesh | None = None,
) -> TrainState:
  """A state at step 0.

  Args:
    trained: Parameters in the dtype they are kept in (full: no run axis), or the adapter of R runs.
    hypers: One for each run; exactly one for `method='full'`.
    method: One of `METHODS`.
    dropout_seeds: One for each run; 0, 1, … when None.
    rounding_seeds: Likewise.
    frozen: Slots without a run, which stay as they are; none when None.
    mesh: When given, everything that is not shaped like a parameter is replicated over it, so that
      the first and the second step see equal shardings and share one executable.
  """
  if method not in METHODS:
    raise ValueError(f'method must be one of {METHODS}, not {method!r}')
  runs = len(hypers)
  if method == 'full' and runs != 1:
    raise ValueError(f'full fine-tuning trains one run at a time, not {runs}')
  lead = {leaf.shape[0] for leaf in jax.tree.leaves(trained)}
  if method == 'lora' and lead != {runs}:
    raise ValueError(f'adapter has {lead} runs but there are {runs} sets of hyper-parameters')
  squeeze = (lambda x: x[0]) if method == 'full' else (lambda x: x)
  place = lambda x: (
    jnp.asarray(x) if mesh is None else jax.device_put(x, NamedSharding(mesh, PartitionSpec()))
  )
  seeds = lambda given: np.asarray(range(runs) if given is None else given, np.uint32)
  small = jax.tree.map(
    lambda x: place(squeeze(x)),
    {
      'hypers': jax.tree.map(lambda *x: np.stack(x), *hypers),
      'dropout_seed': seeds(dropout_seeds),
      'rounding_seed': seeds(rounding_seeds),
      'failed': np.asarray([False] * runs if frozen is None else frozen),
      'count': np.zeros(runs, np.int32),
    },
  )
  moments = optimizer.init_moments(trained)._replace(count=small.pop('count'))
  return TrainState(step=place(np.int32(0)), trained=trained, moments=moments, **small)

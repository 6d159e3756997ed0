"""Runs of one cohort as one compiled program: their state, step, weights and models to evaluate.

A full fine-tune is a cohort of one. Not for what a single run computes by itself (`program.py`) or
for the order in which things happen (`driver.py`).
"""

import dataclasses
from collections.abc import Hashable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sft_jax.evals import model as eval_model
from sft_jax.execution.program import Program, by_backend
from sft_jax.models import lora
from sft_jax.parallel import rules
from sft_jax.train import optimizer, precision
from sft_jax.train.state import TrainState, init_state
from sft_jax.train.step import TrainStep, make_train_step
from sft_jax.utils import trees

Tree = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Size:
  """What the runs of a cohort are padded to.

  Attributes:
    slots: Runs; those beyond the given ones are frozen.
    rank: Of adapters; 0 in a full fine-tune.
  """

  slots: int
  rank: int


def size_of(programs: Sequence[Program], few: bool) -> Size:
  """The exact size, or with `few` powers of two (ranks from 8), so that cohorts share programs."""
  ranks = [program.spec.rank for program in programs if program.is_lora]
  slots, rank = len(programs), max(ranks, default=0)
  if few and ranks:
    power = lambda n: 1 << (n - 1).bit_length()
    slots, rank = power(slots), max(8, power(rank))
  return Size(slots, rank)


class Cohort:
  """R runs on their devices; what is said of a run names it by its slot."""

  def __init__(self, programs: Sequence[Program | None], totals: Sequence[int], size: Size):
    """Computes nothing yet.

    Args:
      programs: Of each run, all with equal cohort keys; None where nothing is to be trained.
      totals: Steps of each.
      size: What they are padded to. The settings of `config.train` are those of the first.
    """
    self.first = next(program for program in programs if program is not None)
    if not self.first.is_lora and size.slots != 1:
      raise ValueError('full fine-tunes are trained one by one')
    padding = size.slots - len(programs)
    self.size = size
    self.idle = [program is None for program in programs] + [True] * padding
    filled = [program or self.first for program in programs] + [self.first] * padding
    self.programs: tuple[Program, ...] = tuple(filled)
    self._hypers = [
      program.hypers(max(total, 1))
      for program, total in zip(self.programs, [*totals, *[1] * padding], strict=True)
    ]

  def start(self) -> tuple[Tree | None, TrainState]:
    """The frozen base (None where it is trained itself) and the state at step 0."""
    first = self.first
    spec = first.spec
    if first.is_lora:
      base = first.bases.frozen(first.model, first.mesh, first.dtype, spec.quantize)
      trained = self._new_adapters()
    else:
      first.bases.drop_frozen()
      base, trained = None, first.load_base(precision.DTYPES[spec.param_dtype])
    state = init_state(
      trained,
      self._hypers,
      method=spec.method,
      dropout_seeds=[program.spec.seed_dropout for program in self.programs],
      rounding_seeds=[program.spec.seed_init for program in self.programs],
      frozen=self.idle,
      mesh=first.mesh,
    )
    return base, state

  def _new_adapters(self) -> Tree:
    first = self.first
    specs = [program.spec for program in self.programs]
    adapter = lora.init_adapter(
      first.model.cfg,
      first.modules(),
      [spec.rank for spec in specs],
      [spec.seed_init for spec in specs],
      widest=self.size.rank,
    )
    table = first.adapter_table(self.size.slots, self.size.rank)
    shardings = rules.shardings(table, first.mesh)
    return trees.map_with_path(lambda path, x: jax.device_put(x, shardings[path]), adapter)

  def step_options(self, state: TrainState, documents: int) -> dict[str, Any]:
    """What is compiled into the step, but for shapes; `documents` as `step.Settings` has it."""
    first, lora_run = self.first, self.first.is_lora
    remat = first.train.remat
    if remat == 'auto':
      remat = by_backend(cpu='dots', other='full')
    return {
      'cfg': first.model.cfg,
      'method': first.spec.method,
      'decay_mask': optimizer.decay_mask(first.model.cfg, trees.flatten(state.trained)),
      'compute_dtype': first.dtype,
      'remat': remat,
      'loss_chunk': first.train.loss_chunk or 512,
      'param_rounding': first.spec.rounding,
      'use_dropout': lora_run and any(program.spec.dropout > 0 for program in self.programs),
      'other_trained': lora_run or first.spec.layers == 'all',
      'attention': first.train.attention,
      'documents': documents,
      'mesh': first.mesh,
      'shardings': jax.tree.map(lambda x: x.sharding, state.trained),
    }

  def make_step(self, state: TrainState, documents: int = 0) -> TrainStep:
    """The train step for this state; see `step_options`."""
    return make_train_step(**self.step_options(state, documents))

  def step_key(self, state: TrainState, shape: Sequence[int], documents: int) -> Hashable:
    """Equal where a step made before serves without being traced again; `shape` of a batch."""
    options = self.step_options(state, documents)
    shardings = tuple(sorted(trees.flatten(options.pop('shardings')).items()))
    decays = tuple(sorted(options.pop('decay_mask').items()))
    return (*sorted(options.items()), decays, shardings, self.size, *shape)

  @property
  def base_key(self) -> Hashable:
    """Equal where a base is the same, and computed in the same way."""
    first, spec = self.first, self.first.spec
    stored = spec.compute_dtype if first.is_lora else spec.param_dtype
    model = (id(first.model.checkpoint), first.model.cfg)
    return (*model, first.mesh, stored, spec.compute_dtype, spec.quantize)

  def weights(self, trained: Tree, slot: int) -> Tree:
    """What a run has learnt, as it has it by itself: its own rank, a run axis of one."""
    if not self.first.is_lora:
      return trained
    rank = self.programs[slot].spec.rank
    if self.size == Size(1, rank):
      return trained
    return _crop(trained, np.array([slot]), rank)

  def subject(
    self, base: Tree | None, trained: Tree | None, slots: Sequence[int]
  ) -> eval_model.Subject:
    """A model to evaluate: one run, several at once, or the base as it is (`trained` None).

    Where there is no frozen base, `trained` are the parameters.
    """
    first = self.first
    common = (first.dtype, first.mesh)
    if base is None or trained is None:
      return eval_model.single(first.model.cfg, trained or base or {}, *common)
    scales = np.stack([self._hypers[slot].lora_scale for slot in slots])
    if len(slots) == 1:
      one = _take(trained, np.int32(slots[0]))
      return eval_model.single(first.model.cfg, base, *common, one, jnp.asarray(scales[0]))
    several = _take(trained, np.asarray(slots, np.int32))
    return eval_model.cohort(first.model.cfg, base, *common, several, jnp.asarray(scales))

  def layer_delta(self, base: Tree | None, trained: Tree, slot: int) -> dict[str, Any]:
    """Weight change of every layer of a run since the base."""
    if base is not None:
      trained = _take(trained, np.array([slot], np.int32))
    return self.programs[slot].layer_delta(base, trained)


@jax.jit
def _take(trained: Tree, index: Any) -> Tree:
  return jax.tree.map(lambda leaf: jnp.take(leaf, index, axis=0, mode='clip'), trained)


def _crop(trained: Tree, index: Any, rank: int) -> Tree:
  """Adapters without the zeros that pad their ranks."""
  cut = {'lora_a': lambda leaf: leaf[..., :rank], 'lora_b': lambda leaf: leaf[..., :rank, :]}
  return trees.map_with_path(
    lambda path, leaf: cut[path.rpartition('/')[2]](leaf), _take(trained, index)
  )

"""What is compiled ahead of time: one program of one run or cohort on a mesh of abstract devices.

Shapes, types and shardings only; no weights. Not for what a program takes: `compiled.py` asks the
compiler, `estimate.py` counts.
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from sft_jax import spec as spec_lib
from sft_jax.data import pack
from sft_jax.models import families, fused_attention, hf, lora, quantize
from sft_jax.models.config import ModelConfig
from sft_jax.parallel import gpu_target, rules, topology
from sft_jax.parallel import mesh as mesh_lib
from sft_jax.train import optimizer, precision
from sft_jax.train.state import TrainState, init_state
from sft_jax.train.step import TrainStep, make_train_step
from sft_jax.utils import trees
from sft_jax.utils.errors import UserError

Tree = dict[str, Any]
# Tokens of a microbatch on a chip where config.train.rows_per_micro is 0, as `job.make_loader` has.
_TOKENS_PER_MICRO = 8192
# Axes of a batch: lanes, microbatches, rows, tokens.
_ROWS = PartitionSpec(None, None, ('data', 'fsdp'), None)


@dataclasses.dataclass(frozen=True)
class Setting:
  """One way to run a training step or an evaluation.

  Attributes:
    cfg: The model.
    spec: Factors; method, rank, targets, types and quantisation count here.
    topology: Chips of the program.
    mesh: Sizes of `mesh.AXES`.
    runs: Runs of the cohort; 1 in a full fine-tune.
    rows: Rows of a microbatch, of all runs, over all chips.
    micros: Microbatches of a step.
    filled: Rows that the data of a run take in a step.
    length: Tokens a row.
    remat: A name of `decoder.REMAT_POLICIES`.
    chunk: Positions of each shard whose logits exist at a time.
    attention: As `config.train.attention`.
    documents: As `step.Settings` has it.
  """

  cfg: ModelConfig
  spec: spec_lib.RunSpec
  topology: topology.Topology
  mesh: tuple[int, int, int]
  runs: int
  rows: int
  micros: int
  filled: int
  length: int
  remat: str
  chunk: int = 512
  attention: str = 'auto'
  documents: int = 0

  @property
  def fused(self) -> bool:
    """Whether a kernel attends, which keeps no scores and leaves future ones out."""
    dtype = jnp.dtype(self.spec.compute_dtype)
    chip = self.topology.chip
    platform = {'cuda': 'gpu'}.get(chip.platform, chip.platform)
    what = self.attention, self.cfg, self.length, platform, dtype
    return fused_attention.choose(*what, gpu_target.capability(chip)) != 'xla'

  @property
  def apart(self) -> int:
    """`documents`, if the kernel goes through them one by one; else 0."""
    what = self.cfg, self.rows // self.shards, self.length, self.documents
    capability = gpu_target.capability(self.topology.chip)
    known = self.fused and fused_attention.by_document(*what, capability)
    return self.documents if known else 0

  @property
  def is_lora(self) -> bool:
    """Whether the base is frozen."""
    return self.spec.method == 'lora'

  @property
  def shards(self) -> int:
    """Chips that rows are divided over."""
    return self.mesh[0] * self.mesh[1]

  @property
  def needed(self) -> int:
    """Rows of a step that hold data, of all runs; the others are padding."""
    return self.runs * self.filled

  @property
  def lanes(self) -> int:
    """Parts of a microbatch that belong to a run each; see `data.loader`."""
    return self.rows // self.shards if self.runs > 1 else 1

  @property
  def tokens(self) -> int:
    """Tokens of data in one step, of all runs."""
    return self.needed * self.length

  def overrides(self) -> dict[str, Any]:
    """The config keys that make a run this one."""
    out: dict[str, Any] = dict(
      zip(('mesh.data', 'mesh.fsdp', 'mesh.tensor'), self.mesh, strict=True)
    )
    out |= {'train.remat': self.remat, 'train.rows_per_micro': self.rows}
    out |= {'train.row_length': self.length}
    if self.is_lora:
      out |= {'study.cohort_size': self.runs, 'model.quantize': self.spec.quantize}
    return out


def steps_rows(setting: Setting, per_shard: int) -> Setting:
  """The same step in microbatches of at most so many rows a shard."""
  micros, rows = _evenly(setting.needed, per_shard * setting.shards, setting.shards)
  return dataclasses.replace(setting, rows=rows, micros=micros)


def _evenly(needed: int, most: int, shards: int) -> tuple[int, int]:
  """(microbatches, rows of each) for so many rows: the fewest, evenly, as `data.loader` does."""
  blocks = math.ceil(needed / shards)
  micros = math.ceil(blocks / max(1, most // shards))
  return micros, math.ceil(blocks / micros) * shards


def of_config(
  cfg: ModelConfig,
  spec: spec_lib.RunSpec,
  config: Any,
  whole: topology.Topology,
  runs: int,
  tokens: float = 0.0,
) -> Setting:
  """The program that a cohort of `runs` would train with on these chips.

  Args:
    cfg: The model.
    spec: Factors.
    config: Of the runs.
    whole: The chips.
    runs: In the cohort.
    tokens: Of an example, on average; 0 takes the most an example may have.

  Raises:
    UserError: a mesh that does not multiply out, or longer examples than there are.
  """
  mesh = mesh_lib.fill(config.mesh.data, config.mesh.fsdp, config.mesh.tensor, whole.chips)
  shards = mesh[0] * mesh[1]
  length, told = config.train.row_length or spec.max_length, config.plan.tokens or tokens
  for most, key in ((spec.max_length, 'max_length'), (length, 'row_length')):
    if told > most:
      raise UserError(
        f'examples of {told:g} tokens on average, of which none has more than {most}',
        'config.plan.tokens' if config.plan.tokens else f'config.train.{key}',
        f'give at most config.train.{key}' if config.plan.tokens else 'give as many as they have',
      )
  tokens = told or spec.max_length
  filled = math.ceil(spec.batch_size * tokens / length)
  most = config.train.rows_per_micro or _TOKENS_PER_MICRO * shards // length
  micros, rows = _evenly(runs * filled, most, shards)
  remat = 'full' if config.train.remat == 'auto' else config.train.remat
  return Setting(
    cfg,
    spec,
    whole,
    mesh,
    runs,
    rows,
    micros,
    filled,
    length,
    remat,
    config.train.loss_chunk or 512,
    config.train.attention,
    # What is left of a row is one more.
    math.ceil(length / told) + 1 if told else 0,
  )


@dataclasses.dataclass(frozen=True)
class Weights:
  """Shapes and places of what a setting holds on its chips: the frozen base, what is trained."""

  mesh: Mesh
  base: Tree | None
  trained: Tree

  def parameter_bytes(self) -> float:
    """Of all parameters, on one chip."""
    return shard_bytes(self.base) + shard_bytes(self.trained)

  def moment_bytes(self) -> float:
    """Of Adam's two moments, on one chip."""
    return 2 * shard_bytes(self.trained, itemsize=4)


def shard_bytes(tree: Any, itemsize: float | None = None) -> float:
  """Bytes of arrays on one chip; `itemsize` in place of that of their types."""
  total = 0.0
  for leaf in jax.tree.leaves(tree):
    size = itemsize or (0.5 if leaf.dtype == jnp.int4 else leaf.dtype.itemsize)
    total += size * math.prod(leaf.sharding.shard_shape(leaf.shape))
  return total


def make_mesh(setting: Setting) -> Mesh:
  """Its mesh of abstract devices."""
  data, fsdp, tensor = setting.mesh
  return mesh_lib.make_mesh(data, fsdp, tensor, topology.devices(setting.topology))


def weights(setting: Setting, mesh: Mesh) -> Weights:
  """What the setting holds. `mesh` may be of real or of abstract devices."""
  cfg, spec = hf.padded_for(setting.cfg, mesh), setting.spec
  places, shapes = hf.param_shardings(cfg, mesh), families.shapes(cfg)
  kept = spec.compute_dtype if setting.is_lora else spec.param_dtype
  dtype = precision.DTYPES[kept]
  params: dict[str, jax.ShapeDtypeStruct] = {}
  for path, shape in shapes.items():
    leaf = jax.ShapeDtypeStruct(shape, dtype, sharding=places[path])
    params |= quantize.shapes(spec.quantize, path, leaf)
  if not setting.is_lora:
    return Weights(mesh, None, trees.unflatten(params))
  modules = lora.match_targets(cfg, spec.targets)
  table = lora.adapter_table(cfg, modules, setting.runs, spec.rank)
  cut = rules.shardings(table, mesh)
  adapter = {
    path: jax.ShapeDtypeStruct(shape, jnp.float32, sharding=cut[path])
    for path, (_, shape) in table.items()
  }
  return Weights(mesh, trees.unflatten(params), trees.unflatten(adapter))


def train_state(setting: Setting, held: Weights) -> TrainState:
  """The state at step 0, as `init_state` makes it."""
  spec = setting.spec
  hypers = optimizer.make_hypers(
    setting.cfg,
    learning_rate=spec.learning_rate,
    total_steps=1,
    lora_scale=1.0,
    layers=None
    if spec.layers == 'all'
    else range(*spec_lib.layer_band(spec.layers, setting.cfg.num_layers)),
  )
  shapes = jax.eval_shape(
    lambda trained: init_state(trained, [hypers] * setting.runs, method=spec.method), held.trained
  )
  whole = NamedSharding(held.mesh, PartitionSpec())
  like = lambda tree: jax.tree.map(_placed, tree, jax.tree.map(lambda x: x.sharding, held.trained))
  state = jax.tree.map(lambda leaf: _placed(leaf, whole), shapes)
  moments = state.moments._replace(mu=like(shapes.moments.mu), nu=like(shapes.moments.nu))
  return state._replace(trained=held.trained, moments=moments)


def _placed(leaf: Any, sharding: NamedSharding) -> jax.ShapeDtypeStruct:
  return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def train_batch(setting: Setting, mesh: Mesh) -> dict[str, jax.ShapeDtypeStruct]:
  """A batch as the loader puts it."""
  shape = (setting.lanes, setting.micros, setting.rows // setting.lanes, setting.length)
  spread = NamedSharding(mesh, _ROWS)
  batch = {
    name: jax.ShapeDtypeStruct(shape, dtype, sharding=spread) for name, dtype in pack.FIELDS.items()
  }
  whole = NamedSharding(mesh, PartitionSpec())
  for name, small in (('run', shape[:2]), ('micro', ())):
    batch[name] = jax.ShapeDtypeStruct(small, jnp.int32, sharding=whole)
  return batch


def train_step(setting: Setting, held: Weights) -> TrainStep:
  """The step that training runs."""
  cfg = hf.padded_for(setting.cfg, held.mesh)
  return make_train_step(
    cfg,
    setting.spec.method,
    decay_mask=optimizer.decay_mask(cfg, trees.flatten(held.trained)),
    compute_dtype=jnp.dtype(setting.spec.compute_dtype),
    remat=setting.remat,
    attention=setting.attention,
    documents=setting.documents,
    loss_chunk=setting.chunk,
    param_rounding=setting.spec.rounding,
    use_dropout=setting.is_lora and setting.spec.dropout > 0,
    other_trained=setting.is_lora or setting.spec.layers == 'all',
    mesh=held.mesh,
    shardings=jax.tree.map(lambda x: x.sharding, held.trained),
  )

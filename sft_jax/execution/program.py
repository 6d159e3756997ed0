"""The numerical side of one run: its hyper-parameters, weights and export.

Not for training it, alone or beside others (`cohort.py`), for files of a run (`workdir.py`) or the
order in which things happen (`runner.py`).
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from sft_jax import spec as spec_lib
from sft_jax.data.loader import Loader
from sft_jax.evals import model as eval_model
from sft_jax.evals.probes import layer_delta
from sft_jax.execution.bases import Bases
from sft_jax.execution.inputs import Model
from sft_jax.models import export as export_lib
from sft_jax.models import families, hf, lora, peft
from sft_jax.models.config import ModelConfig
from sft_jax.parallel import mesh as mesh_lib
from sft_jax.parallel import rules
from sft_jax.train import optimizer, precision
from sft_jax.utils import chips, trees
from sft_jax.utils.errors import UserError

Tree = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Program:
  """What one run computes on a mesh.

  Attributes:
    spec: The run's factors.
    train: `config.train`, for the settings that are no factors.
    model: The model, not yet loaded.
    mesh: Devices.
    bases: Where pretrained parameters come from.
  """

  spec: spec_lib.RunSpec
  train: Any
  model: Model
  mesh: Mesh
  bases: Bases = dataclasses.field(default_factory=Bases, compare=False)

  @property
  def dtype(self) -> Any:
    """Compute dtype."""
    return jnp.dtype(self.spec.compute_dtype)

  @property
  def is_lora(self) -> bool:
    """Whether the base is frozen."""
    return self.spec.method == 'lora'

  @property
  def shards(self) -> int:
    """Devices that rows of a batch are divided over."""
    return self.mesh.shape['data'] * self.mesh.shape['fsdp']

  def modules(self) -> tuple[str, ...]:
    """Adapted modules; see `check_shape`."""
    return check_shape(self.spec, self.model.cfg)

  def band(self) -> tuple[int, int]:
    """Trained layers, first and last (exclusive)."""
    return spec_lib.layer_band(self.spec.layers, self.model.cfg.num_layers)

  def not_cut(self) -> list[str]:
    """A sentence for each parameter axis that the mesh does not divide and so leaves whole."""
    sentences: list[str] = []
    hf.param_shardings(self.model.cfg, self.mesh, sentences)
    return sentences

  def hypers(self, total_steps: int) -> optimizer.Hypers:
    """The run's hyper-parameters as arrays."""
    spec = self.spec
    return optimizer.make_hypers(
      self.model.cfg,
      learning_rate=spec.learning_rate,
      total_steps=total_steps,
      schedule=spec.schedule,
      warmup_steps=math.ceil(spec.warmup_ratio * total_steps),
      end_ratio=spec.end_ratio,
      b1=spec.beta1,
      b2=spec.beta2,
      eps=spec.eps,
      weight_decay=spec.weight_decay,
      clip_norm=spec.clip_norm,
      lora_scale=spec.alpha / spec.rank if self.is_lora else 1.0,
      dropout_rate=spec.dropout if self.is_lora else 0.0,
      layers=None if spec.layers == 'all' else range(*self.band()),
    )

  def load_base(self, dtype: Any, quantize: str = 'none') -> Tree:
    """Pretrained parameters of one's own; `quantize` is a kind of `models/quantize.py`."""
    return self.bases.fresh(self.model, self.mesh, dtype, quantize)

  def adapter_table(self, runs: int = 1, rank: int = 0) -> Mapping[str, Any]:
    """{path: (logical axes, shape)} of the adapters of so many runs; its own rank where 0."""
    return lora.adapter_table(self.model.cfg, self.modules(), runs, rank or self.spec.rank)

  def abstract_weights(self) -> Tree:
    """Shapes and shardings of what is trained, for reading kept weights back."""
    if self.is_lora:
      table, dtype = self.adapter_table(), jnp.float32
      shardings = rules.shardings(table, self.mesh)
      shapes = {path: shape for path, (_, shape) in table.items()}
    else:
      shardings = hf.param_shardings(self.model.cfg, self.mesh)
      shapes = families.shapes(self.model.cfg)
      dtype = precision.DTYPES[self.spec.param_dtype]
    return trees.unflatten(
      {
        path: jax.ShapeDtypeStruct(shape, dtype, sharding=shardings[path])
        for path, shape in shapes.items()
      }
    )

  def subject(self, base: Tree | None, weights: Tree | None) -> eval_model.Subject:
    """A model to evaluate: the base as it is (`weights` None), or with trained weights."""
    cfg = self.model.cfg
    if base is None:
      return eval_model.single(cfg, weights or {}, self.dtype, self.mesh)
    if weights is None:
      return eval_model.single(cfg, base, self.dtype, self.mesh)
    return eval_model.single(
      cfg, base, self.dtype, self.mesh, lora.one_run(weights, 0), self._lora_scale()
    )

  def _lora_scale(self) -> jax.Array:
    """`[L]`, as the step uses it."""
    return jnp.asarray(self.hypers(1).lora_scale)

  def layer_delta(self, base: Tree | None, weights: Tree) -> dict[str, Any]:
    """Weight change of every layer since the base."""
    if base is not None:
      return layer_delta.layer_delta(
        base, adapter=lora.one_run(weights, 0), scale=self._lora_scale()
      )
    # Read again rather than kept: a second copy of the base would cost device memory all along.
    # In the type training began from: a coarser one would count its rounding as change.
    base = self.load_base(precision.DTYPES[self.spec.param_dtype])
    return layer_delta.layer_delta(base, after=weights)

  def flops_per_token(self, loader: Loader) -> float:
    """Training FLOPs of one token (`chips.flops_per_token`)."""
    cfg = self.model.cfg
    adapter = None
    if self.is_lora:
      adapter = sum(math.prod(shape) for _, shape in self.adapter_table().values())
    length = float(np.mean([len(example) for run in loader.runs for example in run[0]]))
    return chips.flops_per_token(
      families.matmul_params(cfg), cfg.num_layers, cfg.num_heads * cfg.head_dim, length, adapter
    )

  def export(
    self,
    out_dir: str,
    weights: Tree,
    *,
    format: str,
    dtype: str,
    card: Mapping[str, Any],
    stop_ids: tuple[int, ...],
  ) -> None:
    """Writes trained weights as a Hugging Face directory (adapters merged) or a PEFT adapter."""
    spec, checkpoint = self.spec, self.model.checkpoint
    if format == 'peft':
      peft.export_peft(
        out_dir,
        self.model.cfg,
        lora.one_run(weights, 0),
        spec.rank,
        spec.alpha,
        dropout=spec.dropout,
        ckpt=checkpoint,
        card=card,
      )
      return
    params = weights
    if self.is_lora:
      base = self.load_base(jnp.float32)
      params = lora.merge(base, lora.one_run(weights, 0), self._lora_scale())
    export_lib.export_hf(
      out_dir, self.model.cfg, params, checkpoint, dtype=dtype, card=card, stop_ids=stop_ids
    )


def check_shape(spec: spec_lib.RunSpec, cfg: ModelConfig) -> tuple[str, ...]:
  """Holds a run to the shape of its base; returns the adapted modules, of a full fine-tune none.

  Raises:
    UserError: targets that match nothing, an absurd rank, a band of layers outside the model.
  """
  spec_lib.layer_band(spec.layers, cfg.num_layers)
  if spec.method != 'lora':
    return ()
  widest = max(cfg.hidden_size, cfg.intermediate_size)
  if spec.rank > widest:
    raise UserError(
      f'no matrix of the model is of rank {spec.rank}',
      'config.lora.rank',
      f'give at most {widest}; 8 to 64 are usual',
    )
  return lora.match_targets(cfg, spec.targets)


def tokens_per_micro() -> int:
  """Tokens in memory at once on one device, where nobody says how many."""
  return int(by_backend(cpu=1024, other=8192))


def by_backend(cpu: Any, other: Any) -> Any:
  """A default that differs between the CPU and accelerators."""
  return cpu if mesh_lib.backend() == 'cpu' else other

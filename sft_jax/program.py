"""The compiled side of a run: its parameters, training state, step and export.

Not for files of a run (`workdir.py`) or the order in which things happen (`runner.py`).
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
from sft_jax.inputs import Model
from sft_jax.models import export as export_lib
from sft_jax.models import families, hf, lora, peft
from sft_jax.models import quantize as quantize_lib
from sft_jax.parallel import rules
from sft_jax.train import optimizer, precision
from sft_jax.train.state import TrainState, init_state
from sft_jax.train.step import TrainStep, make_train_step
from sft_jax.utils import chips, trees
from sft_jax.utils.errors import UserError

Tree = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Program:
  """What trains one run on a mesh.

  Attributes:
    spec: The run's factors.
    train: `config.train`, for the settings that are no factors.
    model: The model, not yet loaded.
    mesh: Devices.
  """

  spec: spec_lib.RunSpec
  train: Any
  model: Model
  mesh: Mesh

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
    """Adapted modules; raises UserError for targets that match nothing, or an absurd rank."""
    cfg = self.model.cfg
    if not self.is_lora:
      return ()
    widest = max(cfg.hidden_size, cfg.intermediate_size)
    if self.spec.rank > widest:
      raise UserError(
        f'no matrix of the model is of rank {self.spec.rank}',
        'config.lora.rank',
        f'give at most {widest}; 8 to 64 are usual',
      )
    return lora.match_targets(cfg, self.spec.targets)

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
    """The pretrained parameters, sharded; `quantize` is a kind of `models/quantize.py`."""
    return quantize_lib.load_params(
      self.model.checkpoint, self.model.cfg, self.mesh, dtype, quantize
    )

  def start(self, total_steps: int) -> tuple[Tree | None, TrainState]:
    """The frozen base (None where it is trained itself) and the state at step 0."""
    spec = self.spec
    if self.is_lora:
      base, trained = self.load_base(self.dtype, spec.quantize), self._new_adapter()
    else:
      base, trained = None, self.load_base(precision.DTYPES[spec.param_dtype])
    state = init_state(
      trained,
      [self.hypers(total_steps)],
      method=spec.method,
      dropout_seeds=[spec.seed_dropout],
      rounding_seeds=[spec.seed_init],
      mesh=self.mesh,
    )
    return base, state

  def _new_adapter(self) -> Tree:
    spec, cfg = self.spec, self.model.cfg
    adapter = lora.init_adapter(cfg, self.modules(), [spec.rank], [spec.seed_init])
    shardings = rules.shardings(self._adapter_table(), self.mesh)
    return trees.map_with_path(lambda path, x: jax.device_put(x, shardings[path]), adapter)

  def _adapter_table(self) -> Mapping[str, Any]:
    return lora.adapter_table(self.model.cfg, self.modules(), 1, self.spec.rank)

  def abstract_weights(self) -> Tree:
    """Shapes and shardings of what is trained, for reading kept weights back."""
    if self.is_lora:
      table, dtype = self._adapter_table(), jnp.float32
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

  def make_step(self, state: TrainState) -> TrainStep:
    """The train step for this state."""
    remat = self.train.remat
    if remat == 'auto':
      remat = by_backend(cpu='dots', other='full')
    return make_train_step(
      self.model.cfg,
      self.spec.method,
      decay_mask=optimizer.decay_mask(self.model.cfg, trees.flatten(state.trained)),
      compute_dtype=self.dtype,
      remat=remat,
      loss_chunk=self.train.loss_chunk or 512,
      param_rounding=self.spec.rounding,
      use_dropout=self.is_lora and self.spec.dropout > 0,
      other_trained=self.spec.layers == 'all',
      mesh=self.mesh,
      shardings=jax.tree.map(lambda x: x.sharding, state.trained),
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
    sizes = {path: math.prod(shape) for path, shape in families.shapes(cfg).items()}
    matmul = sum(size for path, size in sizes.items() if path.endswith('/kernel'))
    if cfg.tie_embeddings:
      matmul += sizes['embed/embedding']
    adapter = None
    if self.is_lora:
      adapter = sum(math.prod(shape) for _, shape in self._adapter_table().values())
    length = float(np.mean([len(example) for example in loader.runs[0][0]]))
    return chips.flops_per_token(
      matmul, cfg.num_layers, cfg.num_heads * cfg.head_dim, length, adapter
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


def by_backend(cpu: Any, other: Any) -> Any:
  """A default that differs between the CPU and accelerators."""
  return cpu if jax.default_backend() == 'cpu' else other

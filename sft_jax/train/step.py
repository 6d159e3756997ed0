"""One optimiser step as one compiled program, for one full run or a cohort of LoRA runs.

Not for the loop around it: logging, snapshots and checkpoints live in `loop.py`.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding

from sft_jax.models import decoder, fused_attention
from sft_jax.models.config import ModelConfig
from sft_jax.parallel import rules
from sft_jax.train import loss, optimizer
from sft_jax.train.state import METHODS, TrainState, run_axes

Array = jax.Array
Tree = dict[str, Any]
Batch = Mapping[str, Array]

LANES = 'lanes'
BATCH_AXES = ('data', 'fsdp')


@dataclasses.dataclass(frozen=True)
class Settings:
  """What is compiled in. Everything that may differ between runs of a cohort is in `Hypers`.

  Attributes:
    cfg: The model.
    method: 'full' or 'lora'.
    compute_dtype: Dtype of activations and matrix products.
    remat: A name of `decoder.REMAT_POLICIES`.
    loss_chunk: Supervised positions of each batch shard whose logits exist at a time.
    param_rounding: 'nearest' or 'stochastic'; matters for bfloat16 parameters only.
    use_dropout: Whether the adapter's input is dropped out at `hypers.dropout_rate`.
    other_trained: False leaves embedding, final norm and head out of the gradient altogether,
      which `hypers.other_mask` alone does not save.
    attention: 'auto' or a name of `fused_attention.KINDS`, taken where it suits devices and rows.
    documents: Most examples of a row, of which padding is one; 0 where nobody knows.
    mesh: Devices, or None for one device.
  """

  cfg: ModelConfig
  method: str
  compute_dtype: Any = jnp.bfloat16
  remat: str = 'none'
  loss_chunk: int = 512
  param_rounding: str = 'nearest'
  use_dropout: bool = False
  other_trained: bool = True
  attention: str = 'auto'
  documents: int = 0
  mesh: Mesh | None = None


class TrainStep:
  """`step(base_or_None, state, batch) -> (state, metrics)`; the state is donated.

  Metrics are float32 `[R]`: `loss`, `accuracy` (over supervised tokens, by weight), `tokens`,
  `supervised`, `grad-norm`, `learning-rate`, `updates-lost`, `nonfinite`.

  Attributes:
    traces: How often the step was traced. More than 1 in a run is a defect.
  """

  def __init__(self, settings: Settings, decays: Mapping[str, bool], shardings: Tree | None):
    self.traces = 0
    self._settings, self._decays, self._shardings = settings, decays, shardings
    self._jitted = jax.jit(self._step, donate_argnums=1)
    self._gradients = jax.jit(self._all_gradients)

  def __call__(self, base: Tree | None, state: TrainState, batch: Batch) -> tuple[TrainState, Tree]:
    return self._jitted(base, state, batch)

  def lower(self, base: Tree | None, state: TrainState, batch: Batch) -> jax.stages.Lowered:
    """The step, lowered: for memory analysis and for compiling ahead of time."""
    return self._jitted.lower(base, state, batch)

  @property
  def executables(self) -> int:
    """How many programs were compiled for calls of the step."""
    return getattr(self._jitted, '_cache_size')()  # noqa: B009  (jax types it without)  # type: ignore[attr-defined]

  def gradients(self, base: Tree | None, state: TrainState, batch: Batch) -> tuple[Array, Tree]:
    """Loss `[R]` and the gradient of that loss, float32, shaped like `state.trained`."""
    sums, grads = self._gradients(base, state, batch)
    return jnp.atleast_1d(sums['loss']), grads

  def _step(self, base, state, batch):
    self.traces += 1  # runs while tracing only
    sums, grads = self._all_gradients(base, state, batch)
    update = self._update
    if self._settings.method == 'lora':
      update = jax.vmap(update, in_axes=(run_axes(state), 0, 0))
    trained, moments, failed, metrics = update(state, sums, grads)
    moments = moments._replace(mu=self._pin(moments.mu), nu=self._pin(moments.nu))
    state = state._replace(
      # A program whose runs have all failed stays where the last good step left it.
      step=state.step + jnp.any(~failed).astype(jnp.int32),
      trained=self._pin(trained),
      moments=moments,
      failed=failed,
    )
    return state, jax.tree.map(lambda x: jnp.atleast_1d(x).astype(jnp.float32), metrics)

  def _pin(self, tree: Tree) -> Tree:
    """Keeps a tree shaped like the parameters sharded like them."""
    if self._shardings is None:
      return tree
    return jax.lax.with_sharding_constraint(tree, self._shardings)

  def _update(self, state: TrainState, sums, grads):
    """One run: an update unless it is finished, has failed or has nothing to learn."""
    rounding = jax.random.fold_in(jax.random.key(state.rounding_seed), state.step)
    running = ~state.failed & (state.step < state.hypers.total_steps)
    active = running & jnp.isfinite(sums['loss']) & (sums['supervised'] > 0)
    trained, moments, metrics = optimizer.update(
      state.hypers,
      state.step,
      state.trained,
      grads,
      state.moments,
      decays=self._decays,
      active=active,
      rounding=self._settings.param_rounding,
      rounding_key=rounding,
    )
    finite = jnp.isfinite(sums['loss']) & metrics.pop('finite')
    nonfinite = running & ~finite
    metrics = {**sums, **metrics, 'nonfinite': nonfinite}
    return trained, moments, state.failed | nonfinite, metrics

  def _all_gradients(self, base, state: TrainState, batch: Batch):
    """Sums over the step and float32 masked gradients of its loss; with LoRA those of each run.

    The weight of the whole step is known before its first microbatch, so weights are divided by it
    at once: microbatches then simply add up, whatever their masks.
    """
    lora = self._settings.method == 'lora'
    arrays = {k: v if lora else v[0] for k, v in batch.items() if k not in ('run', 'micro')}
    targets, weights = loss.targets_and_weights(arrays['tokens'], arrays['loss_weight'])
    # Of several runs, whose rows a lane holds changes with the microbatch; a single one has all.
    owner = jnp.asarray(batch['run'], jnp.int32) if lora else None
    by_run = functools.partial(_by_run, owner=owner, runs=state.failed.size)
    total = by_run(weights)
    whole = jnp.where(total > 0, total, 1.0)
    whole = whole if owner is None else whole[owner][..., None, None]
    arrays |= {'targets': targets, 'weights': weights / whole}
    gradients = self._full_gradients if owner is None else self._lane_gradients

    def add(i: Array, carry: tuple | None) -> tuple:
      # Microbatches are the third axis from the end, of one run and of several.
      cut = functools.partial(jax.lax.dynamic_index_in_dim, index=i, keepdims=False)
      part = {k: cut(v, axis=-3) for k, v in arrays.items()}
      return gradients(base, state, part, None if owner is None else cut(owner, axis=-1), carry)

    mean, correct, grads = self._over_microbatches(add, state, targets.shape[-3], batch['micro'])
    sums = {
      'loss': mean,
      'accuracy': correct,
      'tokens': by_run(arrays['segments'] > 0),
      'supervised': by_run(weights > 0),
    }
    mask = optimizer.mask_gradients
    return sums, (jax.vmap(mask) if lora else mask)(state.hypers, grads)

  def _over_microbatches(self, add, state: TrainState, micros: int, used: Array) -> tuple:
    """(mean, correct, gradients) after those in use."""
    if micros == 1 and self._settings.method == 'full':
      return add(jnp.int32(0), None)
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), state.trained)
    nothing = jnp.zeros(state.failed.shape)
    start = (nothing, nothing, self._pin(zeros))
    if micros == 1:
      return add(jnp.int32(0), start)
    return jax.lax.fori_loop(0, jnp.asarray(used, jnp.int32), add, start)

  def _full_gradients(self, base, state: TrainState, part, _, carry: tuple | None) -> tuple:
    """Adds a microbatch of the only run."""
    (mean, correct), grads = self._value_and_grad(
      base, state.trained, state.hypers, part, self._dropout(state.dropout_seed, state.step)
    )
    if carry is None:
      return mean, correct, grads
    added = jax.tree.map(jnp.add, carry, (mean, correct, grads))
    return (*added[:2], self._pin(added[2]))

  def _lane_gradients(self, base, state: TrainState, part, owner: Any, carry: Any) -> tuple:
    """Adds what each lane of a microbatch says to the run it belongs to."""
    alone = state.failed.size == 1
    of_lanes = lambda tree: tree if alone else jax.tree.map(lambda x: x[owner], tree)
    keys = jax.vmap(self._dropout, (0, None))(of_lanes(state.dropout_seed), state.step)
    lanes = (of_lanes(state.trained), of_lanes(state.hypers), part, keys)
    over_lanes = jax.vmap(self._value_and_grad, (None, 0, 0, 0, 0), axis_name=LANES)
    (mean, correct), grads = over_lanes(base, *lanes)
    found = (mean, correct, grads)
    if alone:
      return jax.tree.map(jnp.add, carry, found)

    # One after another: a scatter that adds is not deterministic on every device, and so the sum of
    # a run does not depend on what is beside it.
    def put(lane: Array, carry: tuple) -> tuple:
      return jax.tree.map(lambda x, new: x.at[owner[lane]].add(new[lane]), carry, found)

    return jax.lax.fori_loop(0, owner.size, put, carry)

  def _dropout(self, seed: Array, step: Array) -> Array:
    return jax.random.fold_in(jax.random.key(seed), step)

  def _value_and_grad(self, base, trained, hypers, part, dropout_key):
    fn = lambda trained: self._micro_loss(base, trained, hypers, part, dropout_key)
    value, grads = jax.value_and_grad(fn, has_aux=True)(trained)
    return value, jax.tree.map(lambda g: g.astype(jnp.float32), grads)

  def _kernel(self, rows: tuple[int, ...]) -> Callable[[Array], Callable[..., Array]] | None:
    """The fused attention of a microbatch of `[B,T]`, or None."""
    s = self._settings
    device = s.mesh.devices.flat[0] if s.mesh else jax.devices()[0]
    capability = fused_attention.capability_of(device)
    what = s.attention, s.cfg, rows[1], device.platform, s.compute_dtype
    kind = fused_attention.choose(*what, capability)
    if kind == 'xla' or (s.mesh is not None and rows[0] % (s.mesh.size // s.mesh.shape['tensor'])):
      return None
    shards = _batch_shards(s.mesh, rows[0])
    lanes = jax.lax.axis_size(LANES) if s.method == 'lora' else 1
    where = rows[0] * lanes // shards, rows[1]
    known = fused_attention.by_document(s.cfg, *where, s.documents, capability)
    documents = s.documents if known else 0
    return functools.partial(fused_attention.fused, kind, s.cfg, documents=documents, mesh=s.mesh)

  def _micro_loss(self, base, trained, hypers, part, dropout_key):
    """Share of the step's loss in one microbatch, and its share of right predictions."""
    s = self._settings
    lora = s.method == 'lora'
    params = base if lora else trained
    if not lora and not s.other_trained:
      params = {k: v if k == 'layers' else jax.lax.stop_gradient(v) for k, v in params.items()}
    shards = _batch_shards(s.mesh, part['tokens'].shape[0])
    tied = s.cfg.tie_embeddings
    head = params['embed']['embedding'] if tied else decoder.head_kernel(params)
    hidden = decoder.forward(
      s.cfg,
      params,
      part['tokens'],
      part['positions'],
      part['segments'],
      adapter=trained if lora else None,
      lora_scale=hypers.lora_scale if lora else None,
      dropout_rate=hypers.dropout_rate if s.use_dropout else None,
      dropout_key=dropout_key if s.use_dropout else None,
      dtype=s.compute_dtype,
      remat=s.remat,
      mesh=s.mesh if shards > 1 else None,
      kernel=self._kernel(part['tokens'].shape),
    )
    out = loss.cross_entropy(
      hidden,
      head,
      part['targets'],
      part['weights'],
      chunk=s.loss_chunk,
      train_head=not lora and s.other_trained,
      logit_softcap=s.cfg.logit_softcap,
      vocab=s.cfg.vocab_size,
      transposed=tied,
      shards=shards,
      runs_axis=LANES if lora else None,
      head_sharding=None if s.mesh is None or shards == 1 else _head_sharding(s.mesh, head, tied),
    )
    return out.sum, out.correct


def _by_run(x: Array, *, owner: Array | None, runs: int) -> Array:
  """Sums [R,M,B,T] for each run, or [M,B,T] of one."""
  if owner is None:
    return x.sum()
  mine = owner[None] == jnp.arange(runs)[:, None, None]
  return (x.sum(axis=(2, 3))[None] * mine).sum(axis=(1, 2))


def _head_sharding(mesh: Mesh, head: Array, tied: bool) -> NamedSharding:
  """How the output projection is laid out, as `hf.param_shardings` has it."""
  axes = ('vocab', 'embed') if tied else ('embed', 'vocab')
  return NamedSharding(mesh, rules.partition_spec(axes, head.shape, mesh))


def _batch_shards(mesh: Mesh | None, rows: int) -> int:
  """Number of devices the rows of a microbatch are divided over; 1 when they do not divide."""
  if mesh is None:
    return 1
  size = 1
  for axis in BATCH_AXES:
    size *= mesh.shape.get(axis, 1)
  return size if rows % size == 0 else 1


def make_train_step(
  cfg: ModelConfig,
  method: str,
  *,
  decay_mask: Mapping[str, bool],
  compute_dtype: Any = jnp.bfloat16,
  remat: str = 'none',
  loss_chunk: int = 512,
  param_rounding: str = 'nearest',
  use_dropout: bool = False,
  other_trained: bool = True,
  attention: str = 'auto',
  documents: int = 0,
  mesh: Mesh | None = None,
  shardings: Tree | None = None,
) -> TrainStep:
  """Builds the step; see `Settings` for the arguments that are compiled in.

  Args:
    decay_mask: From `optimizer.decay_mask`, covering every trained path.
    shardings: NamedShardings shaped like the trained tree; parameters, moments and accumulated
      gradients keep them.
  """
  if method not in METHODS:
    raise ValueError(f'method must be one of {METHODS}, not {method!r}')
  settings = Settings(
    cfg=cfg,
    method=method,
    compute_dtype=compute_dtype,
    remat=remat,
    loss_chunk=loss_chunk,
    param_rounding=param_rounding,
    use_dropout=use_dropout,
    other_trained=other_trained,
    attention=attention,
    documents=documents,
    mesh=mesh,
  )
  return TrainStep(settings, dict(decay_mask), shardings)

"""A small LoRA step on this machine's devices, and what the devices themselves give.

Random weights and tokens: the shapes are a model's, the numbers mean nothing. Not for comparing
trainers: `benchmarks/` does that.
"""

import copy
import dataclasses
import math
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from sft_jax import spec as spec_lib
from sft_jax.ahead import kernels
from sft_jax.ahead.setting import Setting
from sft_jax.data import pack
from sft_jax.data.tokenize import Example
from sft_jax.execution.program import by_backend
from sft_jax.models import families, hf, lora
from sft_jax.models.config import ModelConfig
from sft_jax.parallel import mesh as mesh_lib
from sft_jax.parallel import rules, topology
from sft_jax.train import optimizer
from sft_jax.train.state import init_state
from sft_jax.train.step import make_train_step
from sft_jax.utils import chips, trees

_LLAMA: dict[str, Any] = {
  'architectures': ['LlamaForCausalLM'],
  'vocab_size': 512,
  'rms_norm_eps': 1e-5,
  'tie_word_embeddings': True,
  'num_attention_heads': 4,
  'num_key_value_heads': 2,
}
# Sizes of a check, which must be quick, and of a measurement, which must fill the device.
_SMALL = {'hidden_size': 64, 'intermediate_size': 128, 'num_hidden_layers': 2}
_LARGE = {'hidden_size': 1024, 'intermediate_size': 2816, 'num_hidden_layers': 8}
_RANK = 8


@dataclasses.dataclass
class Toy:
  """A step with its state and one batch.

  Attributes:
    step: Of training; it donates the state.
    base: Frozen parameters.
    state: As the last step left it.
    batch: Learnt again in each step.
    tokens: Of the batch.
    flops: Of a step, as `chips.flops_per_token` counts them.
    setting: The step as plans have it.
    compile_s: Seconds until the first step had run.
  """

  step: Callable[..., Any]
  base: Any
  state: Any
  batch: Any
  tokens: int
  flops: float
  setting: Setting | None = None
  compile_s: float = 0.0

  def losses(self, steps: int) -> list[float]:
    """Losses of the next steps."""
    out = []
    for _ in range(steps):
      began = time.perf_counter()
      self.state, metrics = self.step(self.base, self.state, self.batch)
      out.append(float(np.asarray(metrics['loss'])[0]))
      self.compile_s = self.compile_s or time.perf_counter() - began
    return out


def toy(config: Any, large: bool = False) -> Toy:
  """A LoRA step on `config.mesh`.

  Args:
    config: Devices.
    large: A model that keeps an accelerator busy.

  Raises:
    UserError: a mesh that does not fit the devices.
  """
  sizes = _LARGE if large else _SMALL
  mesh = mesh_lib.make_mesh(config.mesh.data, config.mesh.fsdp, config.mesh.tensor)
  cfg = hf.padded_for(ModelConfig.from_hf(_LLAMA | sizes), mesh)
  dtype = jnp.dtype(by_backend(cpu=jnp.float32, other=jnp.bfloat16))
  rng = np.random.default_rng(0)
  modules = lora.match_targets(cfg, 'all-linear')
  table = lora.adapter_table(cfg, modules, 1, _RANK)
  places = rules.shardings(table, mesh)
  adapter = trees.map_with_path(
    lambda path, leaf: jax.device_put(leaf, places[path]),
    lora.init_adapter(cfg, modules, [_RANK], [0]),
  )
  hypers = optimizer.make_hypers(cfg, learning_rate=1e-2, total_steps=1000, lora_scale=2.0)
  state = init_state(adapter, [hypers], method='lora', mesh=mesh)
  step = make_train_step(
    cfg,
    'lora',
    decay_mask=optimizer.decay_mask(cfg, trees.flatten(adapter)),
    compute_dtype=dtype,
    mesh=mesh,
    shardings=jax.tree.map(lambda leaf: leaf.sharding, adapter),
  )
  shards = mesh.shape['data'] * mesh.shape['fsdp']
  length = 512 if large else 32
  rows = shards * (by_backend(cpu=1, other=8) if large else 1)
  batch = _batch(rng, rows, length, mesh)
  adapted = sum(math.prod(shape) for _, shape in table.values())
  width = cfg.num_heads * cfg.head_dim
  matmul = families.matmul_params(cfg)
  each = chips.flops_per_token(matmul, cfg.num_layers, width, length, adapted)
  tokens = rows * length
  base, flops = hf.init_params(cfg, mesh, dtype), tokens * each
  known = _setting(config, cfg, mesh, rows, length) if large else None
  return Toy(step, base, state, batch, tokens, flops, known)


def _setting(config: Any, cfg: ModelConfig, mesh: Any, rows: int, length: int) -> Setting | None:
  """The step as plans have it; None where they do not know the devices."""
  each = jax.process_count(), jax.local_device_count()
  chips_ = topology.of_devices(jax.devices()[0].device_kind, *each)
  if chips_ is None:
    return None
  config = copy.deepcopy(config)
  with config.unlocked():
    config.model.path, config.data.name, config.data.path = 'doctor', 'builtin', ''
    config.train.method, config.model.quantize = 'lora', 'none'
    config.lora.rank, config.lora.targets, config.lora.dropout = _RANK, 'all-linear', 0.0
    spec = spec_lib.from_config(config, jax.default_backend())
  sizes = tuple(mesh.shape[axis] for axis in mesh_lib.AXES)
  return Setting(cfg, spec, chips_, sizes, 1, rows, 1, rows, length, 'none')


def drawn(rng: np.random.Generator, vocab: int, length: int) -> Example:
  """Random tokens, all of them supervised."""
  ids = rng.integers(0, vocab, length).astype(np.int32)
  return Example(ids, np.ones(length, np.float32), np.zeros(length, np.uint8), '', {})


def _batch(rng: np.random.Generator, rows: int, length: int, mesh: Any) -> Any:
  """Random examples of one row each."""
  examples = [drawn(rng, _LLAMA['vocab_size'], length) for _ in range(rows)]
  arrays = pack.fill(examples, [[row] for row in range(rows)], length)
  spread = NamedSharding(mesh, PartitionSpec(None, None, ('data', 'fsdp'), None))
  put = lambda array: jax.device_put(array.reshape(1, 1, rows, length), spread)
  batch = {name: put(array) for name, array in arrays.items()}
  return batch | {'run': np.zeros((1, 1), np.int32), 'micro': np.int32(1)}


def measure(config: Any) -> dict[str, float]:
  """{what: value}: products (TFLOP/s a device), copies and all-gathers (GB/s), tokens/s of a step.

  `plan-…` is what a plan of the same takes for granted: what the maker publishes, where the device
  is known, and for the step what its kernels one after another allow (of other devices than GPUs,
  the products just measured). `step-attained`, its share of that, is what `config.plan.attained`
  asks for.

  Args:
    config: Devices.
  """
  device = jax.devices()[0]
  kind = jnp.dtype(by_backend(cpu=jnp.float32, other=jnp.bfloat16))
  size = by_backend(cpu=1024, other=8192)
  left = jax.device_put(jnp.ones((size, size), kind), device)
  seconds = shortest(jax.jit(lambda x: x @ x), left)
  products = f'matmul-{kind.name}-tflops'
  out = {products: 2 * size**3 / seconds / 1e12}
  vector = jax.device_put(jnp.ones(by_backend(cpu=2**24, other=2**28), jnp.float32), device)
  # Each element is read and written.
  out['copy-gb-per-s'] = 2 * vector.nbytes / shortest(jax.jit(lambda x: x + 1), vector) / 1e9
  if jax.device_count() > 1:
    mesh = jax.sharding.Mesh(np.asarray(jax.devices()), ('all',))
    split = NamedSharding(mesh, PartitionSpec('all'))
    whole = NamedSharding(mesh, PartitionSpec())
    count = jax.device_count() * by_backend(cpu=2**20, other=2**24)
    parts = jax.jit(lambda: jnp.ones(count, jnp.float32), out_shardings=split)()
    gather = jax.jit(lambda x: x, out_shardings=whole)
    # What arrives at each device from the others.
    moved = parts.nbytes * (jax.device_count() - 1) / jax.device_count()
    out['all-gather-gb-per-s'] = moved / shortest(gather, parts) / 1e9
  one = toy(config, large=True)
  one.losses(2)
  began, steps = time.perf_counter(), 3
  one.losses(steps)
  took = (time.perf_counter() - began) / steps
  out['step-tokens-per-s'] = one.tokens / took
  out['step-compile-s'] = one.compile_s
  return out | planned(out[products], one, took, device.device_kind)


def planned(tflops: float, one: Toy, seconds: float, kind: str) -> dict[str, float]:
  """What a plan of the same would say; see `measure`.

  Args:
    tflops: Measured products of one device.
    one: The step.
    seconds: It took.
    kind: jax's name of the device.
  """
  out = {}
  if chip := topology.of_device(kind):
    out['plan-matmul-tflops'] = chip.flops / 1e12
    out['plan-copy-gb-per-s'] = chip.bandwidth / 1e9
    if chip.platform == 'cuda' and jax.device_count() > 1:
      out['plan-all-gather-gb-per-s'] = chip.link / 1e9
  least = one.flops / (tflops * 1e12 * jax.device_count())
  if one.setting is not None and chip is not None and chip.platform == 'cuda':
    least = kernels.bound(one.setting).seconds
  out['plan-step-tokens-per-s'] = one.tokens / least
  out['step-attained'] = least / seconds
  return out


def shortest(call: Callable[[Any], Any], argument: Any, times: int = 5) -> float:
  """Seconds of the shortest of several calls, after one that compiles."""
  jax.block_until_ready(call(argument))
  best = math.inf
  for _ in range(times):
    began = time.perf_counter()
    jax.block_until_ready(call(argument))
    best = min(best, time.perf_counter() - began)
  return best

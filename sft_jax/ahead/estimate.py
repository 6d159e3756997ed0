"""Bytes, FLOPs and traffic of a training step counted from the model, in no time.

Good enough to rank settings before a few of them are compiled; the compiler has the last word on
memory. Dimension letters as in `models/decoder.py`.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

from jax.sharding import AbstractMesh

from sft_jax.ahead.setting import Setting
from sft_jax.models import families, fused_attention, lora
from sft_jax.models.config import ModelConfig
from sft_jax.parallel import hlo, roofline, rules
from sft_jax.parallel import mesh as mesh_lib
from sft_jax.utils import chips

_TYPES = {'float32': 4.0, 'bfloat16': 2.0}
_KERNELS = {'none': 0.0, 'int8': 1.0, 'int4': 0.5}
# Passes over the layers' weights of a step: forward, what is computed again, backward.
_AGAIN = {'none': 0, 'dots': 0, 'full': 1, 'offload': 1}


@dataclasses.dataclass(frozen=True)
class Counts:
  """Parameters of a model.

  Attributes:
    layers: Kernels of all layers.
    head: Of the output projection (or the tied table).
    table: Of the token table where it is not the head.
    small: Norms and biases.
    adapter: Of one run's adapter of the setting's rank; 0 without.
  """

  layers: int
  head: int
  table: int
  small: int
  adapter: int

  @property
  def all(self) -> int:
    """Of the base."""
    return self.layers + self.head + self.table + self.small

  @property
  def matmul(self) -> int:
    """Those that multiply activations."""
    return self.layers + self.head


def counts(setting: Setting) -> Counts:
  """Of the setting's model."""
  cfg = setting.cfg
  sizes = {path: math.prod(shape) for path, shape in families.shapes(cfg).items()}
  kernels = {p: n for p, n in sizes.items() if p.startswith('layers/') and p.endswith('/kernel')}
  table, head = sizes['embed/embedding'], sizes.get('head/kernel', 0)
  small = sum(sizes.values()) - sum(kernels.values()) - table - head
  adapter = 0
  if setting.is_lora:
    modules = lora.match_targets(cfg, setting.spec.targets)
    rows = lora.adapter_table(cfg, modules, 1, setting.spec.rank).values()
    adapter = sum(math.prod(shape) for _, shape in rows)
  if cfg.tie_embeddings:
    return Counts(sum(kernels.values()), table, 0, small, adapter)
  return Counts(sum(kernels.values()), head, table, small, adapter)


def memory(setting: Setting) -> dict[str, float]:
  """About the bytes of each kind that one chip holds when it holds most."""
  cfg, count, spec = setting.cfg, counts(setting), setting.spec
  _, fsdp, tensor = setting.mesh
  parts = fsdp * tensor
  wide = _TYPES[spec.compute_dtype]
  adapter = _adapter_on_chip(setting)
  if setting.is_lora:
    kernels = count.layers * (_KERNELS[spec.quantize] or wide)
    trained = setting.runs * adapter
    parameters = (kernels + wide * (count.all - count.layers)) / parts + 4 * trained
  else:
    trained = count.all / parts
    parameters = trained * _TYPES[spec.param_dtype]
  gradients = 4 * trained * (2 if setting.micros > 1 else 1)
  if setting.runs > 1:
    # Each lane has a copy of its run's adapter, and a gradient of its own.
    gradients = 4 * trained + 8 * setting.lanes * adapter
  rows = setting.rows / setting.shards
  tokens = rows * setting.length
  held = (
    tokens
    * cfg.num_layers
    * kept(cfg, setting.remat, wide, tensor, 0 if setting.fused else setting.length)
  )
  qkv = (cfg.num_heads + 2 * cfg.num_kv_heads) * cfg.head_dim / tensor
  scores = rows * cfg.num_heads / tensor * setting.length**2
  # Scores in float32, weights in the compute type.
  working = 0.0 if setting.fused else scores * (4 + wide)
  if setting.apart:
    what = setting.cfg, setting.rows // setting.shards, setting.length, setting.apart
    working += fused_attention.document_bytes(*what) / tensor
  working += tokens * wide * (6 * cfg.hidden_size + 2 * qkv + 4 * cfg.intermediate_size / tensor)
  # The next layer's weights arrive while one is at work.
  gathered = 2 * wide * count.layers / cfg.num_layers / tensor if parts > tensor else 0.0
  head = count.head / tensor
  logits = setting.lanes * min(setting.chunk, setting.length * rows / setting.lanes)
  logits *= 2 * 4 * cfg.vocab_size / tensor
  whole_head = wide * head if fsdp > 1 else 0.0
  # Summed over chunks for all of the head, then over chips.
  head_gradient = 4 * head if not setting.is_lora and spec.layers == 'all' else 0.0
  return {
    'parameters': parameters,
    'optimiser': 8 * trained,
    'gradients': gradients,
    'logits': head_gradient,
    # Logits are gone before the first layer's backward pass begins.
    'activations': held + max(working + gathered, logits + whole_head - gradients),
  }


def _adapter_on_chip(setting: Setting) -> float:
  """Numbers of one run's adapter that a chip holds: of each pair of factors one may stay whole."""
  if not setting.is_lora:
    return 0.0
  mesh: Any = AbstractMesh(setting.mesh, mesh_lib.AXES)
  modules = lora.match_targets(setting.cfg, setting.spec.targets)
  table = lora.adapter_table(setting.cfg, modules, 1, setting.spec.rank)
  cut = rules.shardings(table, mesh)
  return float(sum(math.prod(cut[path].shard_shape(shape)) for path, (_, shape) in table.items()))


def kept(cfg: ModelConfig, remat: str, wide: float, tensor: int, scored: int) -> float:
  """Bytes that one layer keeps of one token, and of so many scores, for the backward pass."""
  heads = cfg.num_heads * cfg.head_dim / tensor
  shared = cfg.num_kv_heads * cfg.head_dim / tensor
  inner = cfg.intermediate_size / tensor
  if remat == 'offload':
    return 0.0
  size = wide * cfg.hidden_size
  if remat in ('dots', 'none'):
    size += wide * (heads + 2 * shared + 2 * cfg.hidden_size + 2 * inner)
  if remat == 'none':
    size += wide * (4 * cfg.hidden_size + 2 * heads + 2 * shared + 2 * inner)
    size += cfg.num_heads / tensor * scored * (4 + wide)
  return size


def width(setting: Setting) -> float:
  """Bytes of a number that is computed with."""
  return _TYPES[setting.spec.compute_dtype]


def kernel_bytes(setting: Setting) -> float:
  """Bytes of a weight of the layers as it is kept."""
  if not setting.is_lora:
    return _TYPES[setting.spec.param_dtype]
  return _KERNELS[setting.spec.quantize] or width(setting)


def streams(cfg: ModelConfig, tensor: int = 1) -> float:
  """Numbers that a layer reads and writes for a token in one pass, without scores and weights.

  What goes between layers is whole on each chip of `tensor`.
  """
  cut = 4 * cfg.num_heads * cfg.head_dim + 5 * cfg.intermediate_size
  return 10 * cfg.hidden_size + cut / tensor


def again(setting: Setting) -> int:
  """Times that layers are computed again for the backward pass."""
  return _AGAIN[setting.remat]


def attention_flops(setting: Setting) -> float:
  """Of one chip in a step. Plain attention computes every score of a row, future ones too; a kernel
  half of them, or of each document of a row."""
  cfg = setting.cfg
  scored = _scored(setting) * setting.length
  flops = 4.0 * cfg.num_layers * cfg.num_heads * cfg.head_dim * scored * _chip_tokens(setting)
  # The last document is what is left of a row.
  return flops * (0.5 / max(setting.apart - 1, 1) if setting.fused else 1.0)


def score_bytes(setting: Setting) -> float:
  """Bytes that plain attention moves on one chip in a step: a score is written and read in float32,
  its weight in the compute type, in each pass."""
  scores = _scored(setting) * setting.length * setting.cfg.num_heads * setting.cfg.num_layers
  return _chip_tokens(setting) * scores * 2 * (4 + width(setting))


def _scored(setting: Setting) -> int:
  """Passes over scores, of which the backward one counts twice."""
  return 3 + (again(setting) or int(setting.remat == 'dots'))


def _chip_tokens(setting: Setting) -> float:
  """Tokens of a step on one chip, padding included."""
  return setting.micros * setting.rows * setting.length / setting.topology.chips


def model_flops(setting: Setting) -> float:
  """FLOPs that a step needs, as `chips.flops_per_token` counts them: of its data, all chips.

  Attention is that of an example, where a plan knows how long they are.
  """
  count, cfg = counts(setting), setting.cfg
  example = setting.length / max(setting.documents - 1, 1)
  adapter = count.adapter if setting.is_lora else None
  width = cfg.num_heads * cfg.head_dim
  return setting.tokens * chips.flops_per_token(
    count.matmul, cfg.num_layers, width, example, adapter
  )


def work(setting: Setting, collectives: Sequence[hlo.Collective] | None = None) -> roofline.Work:
  """What one chip does in a step, padding included.

  Args:
    setting: The setting.
    collectives: Of the compiled program; without it, traffic is counted from the mesh.
  """
  cfg, count = setting.cfg, counts(setting)
  tensor = setting.mesh[2]
  repeats, wide = again(setting), width(setting)
  chip_tokens = _chip_tokens(setting)
  passes = 2 + repeats + (0 if setting.is_lora else 1)
  flops = 2.0 * chip_tokens * (passes * count.layers + (passes - repeats) * count.head)
  flops += 2.0 * chip_tokens * (3 + repeats) * count.adapter
  flops += attention_flops(setting)
  weights = (2 + repeats) * wide * count.matmul / tensor * setting.micros
  moved = weights + (0.0 if setting.fused else score_bytes(setting))
  moved += chip_tokens * wide * cfg.num_layers * streams(cfg) * (3 + repeats)
  trained = setting.runs * count.adapter if setting.is_lora else count.all
  moved += 28.0 * trained / (setting.mesh[1] * tensor)
  if collectives is None:
    return _traffic(setting, count, roofline.Work(flops, moved))
  sent: dict[int, float] = {}
  far: dict[int, float] = {}
  for one in collectives:
    of, group = (far, one.inside) if one.far else (sent, one.group)
    of[group] = of.get(group, 0.0) + one.sent
  return roofline.Work(flops, moved, sent, far)


def _traffic(setting: Setting, count: Counts, base: roofline.Work) -> roofline.Work:
  """`base` with bytes sent, as the mesh asks for: weights gathered, gradients scattered, halves of
  layers summed."""
  data, fsdp, tensor = setting.mesh
  wide, repeats = width(setting), again(setting)
  stored = _KERNELS[setting.spec.quantize] or wide
  share = lambda n: (n - 1) / n
  gathered = (2 + repeats) * stored * count.layers + 2 * wide * count.head
  sent = [(fsdp, tensor, setting.micros * share(fsdp) * gathered / tensor)]
  if setting.is_lora:
    both = fsdp * data
    sent.append((both, tensor, 2 * share(both) * 4 * setting.runs * count.adapter))
  else:
    sent.append((fsdp, tensor, setting.micros * share(fsdp) * 4 * count.all / tensor))
    sent.append((data, fsdp * tensor, 2 * share(data) * 4 * count.all / (fsdp * tensor)))
  sent.append((tensor, 1, waited_bytes(setting)))
  return spread(setting, base, sent)


def waited_bytes(setting: Setting) -> float:
  """Bytes a chip sends in a training step to sum halves of layers."""
  tokens = setting.micros * setting.rows / setting.shards * setting.length
  return (2 + again(setting)) * halves_bytes(setting, tokens)


def halves_bytes(setting: Setting, tokens: float) -> float:
  """Bytes a chip sends in one pass to sum halves of layers over `tensor`, of its group's tokens."""
  cfg, tensor = setting.cfg, setting.mesh[2]
  size = 2 * cfg.num_layers * width(setting) * tokens * cfg.hidden_size
  return 2 * (tensor - 1) / tensor * size


def spread(
  setting: Setting, work: roofline.Work, sent: Sequence[tuple[int, int, float]]
) -> roofline.Work:
  """`work` that sends so much in groups of so many chips, each so many after the last."""
  near: dict[int, float] = {}
  far: dict[int, float] = {}
  for group, stride, size in sent:
    inside = setting.topology.inside(group, stride)
    if group > 1:
      of = near if inside == group else far
      of[inside] = of.get(inside, 0.0) + size
  return dataclasses.replace(work, sent=near, far=far)

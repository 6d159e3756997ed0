"""The least seconds of a training step on GPUs, where one kernel runs after another.

A product that waits for memory is no shorter because another waits for arithmetic, so each kernel
takes what it takes by itself, and the step their sum (Williams et al., 2009, kernel by kernel).
Counted from the model. How often a number is moved and how many kernels there are was read off the
programs that XLA compiles of Llama-3-8B's and SmolLM2's shapes for H200s (jax 0.11.2).

TPUs move numbers while they multiply others: for them it is the step's roofline.
"""

import math
from collections.abc import Sequence

from sft_jax.ahead import estimate
from sft_jax.ahead.setting import Setting
from sft_jax.models import families, lora
from sft_jax.parallel import hlo, roofline

# Share of this that training of those shapes reached on an H200 (benchmarks/results/gpu.md), and
# the share of a roofline that is assumed of all else.
TRAINING, ASSUMED = 0.75, 0.5
# Seconds from a kernel to the next, of which that share is this.
_LAUNCH = 3e-6
# Kernels of a layer, and with adapters; what is computed again; of the rest of a step.
_A_LAYER, _ADAPTED, _AGAIN, _REST = 96, 182, 30, 170
# Passes over what `estimate.streams` counts, what is kept for later included: of forward and
# backward, of adapters, of what is computed again.
_PASSES, _OF_ADAPTERS, _OF_AGAIN = 2.9, 1.1, 0.9
# Bytes of a trained number: Adam's 28, then masks, norms and zeros to begin with.
_TRAINED = 48.0
# Bytes of a logit, from its product on.
_LOGIT = 22.0


def bound(setting: Setting, collectives: Sequence[hlo.Collective] | None = None) -> roofline.Bound:
  """Of a step; of TPUs the roofline of all its work at once. Args as of `estimate.work`."""
  whole = roofline.bound(estimate.work(setting, collectives), setting.topology)
  if setting.topology.chip.platform != 'cuda':
    return whole
  flops, moved = _products(setting)
  flops += estimate.attention_flops(setting)
  moved += _streams(setting)
  topology = setting.topology
  # A layer waits for the sums of the one before.
  waits = estimate.waited_bytes(setting) / topology.rate(setting.mesh[2])
  return roofline.Bound(
    flops / _rate(setting),
    moved / topology.chip.bandwidth,
    whole.network,
    _LAUNCH * _count(setting),
    waits,
    True,
  )


def attained(setting: Setting, told: float) -> float:
  """The share of that bound which hours assume, where `told` (config.plan.attained) is 0."""
  return told or (TRAINING if setting.topology.chip.platform == 'cuda' else ASSUMED)


def _rate(setting: Setting) -> float:
  """FLOP/s of products: with TensorFloat-32, which jax takes for float32, half as many."""
  return setting.topology.chip.flops / (1 if estimate.width(setting) < 4 else 2)


def _tokens(setting: Setting) -> float:
  """Of a microbatch, on each chip of those that share them, padding included."""
  return setting.rows * setting.length / setting.shards


def _products(setting: Setting) -> tuple[float, float]:
  """FLOPs of products that wait for arithmetic, and bytes of those that wait for memory."""
  cfg, again, tensor = setting.cfg, estimate.again(setting), setting.mesh[2]
  tokens, wide = _tokens(setting), estimate.width(setting)
  flops = moved = 0.0

  def add(times: float, multiplied: float, size: float) -> None:
    nonlocal flops, moved
    if multiplied / _rate(setting) > size / setting.topology.chip.bandwidth:
      flops += times * multiplied
    else:
      moved += times * size

  modules = lora.match_targets(cfg, setting.spec.targets) if setting.is_lora else ()
  # Forward, to the inputs, to the weights.
  passes = (2 if setting.is_lora else 3) + again
  for path, shape in families.shapes(cfg).items():
    if not (path.startswith('layers/') and path.endswith('/kernel')):
      continue
    layers, wide_in, wide_out = shape[0], shape[1], math.prod(shape[2:])
    # What goes between layers is whole on each chip.
    cut_in = path.split('/')[-2] in ('o', 'down')
    sides = wide_in / tensor + wide_out if cut_in else wide_in + wide_out / tensor
    multiplied, times = 2 * tokens * wide_in * wide_out / tensor, layers * setting.micros
    add(passes * times, multiplied, wide * (tokens * sides + wide_in * wide_out / tensor))
    if path.removesuffix('/kernel') in modules:
      # A and B: what they read or write of the layer is what they take.
      small = 2 * tokens * setting.spec.rank * sides
      add((3 + again) * times, small, wide * tokens * sides)
  head = estimate.counts(setting).head / tensor
  size = wide * (tokens * (cfg.hidden_size + cfg.vocab_size / tensor) + head)
  add((3 if _trains_head(setting) else 2) * setting.micros, 2 * tokens * head, size)
  return flops, moved


def _trains_head(setting: Setting) -> bool:
  return not setting.is_lora and setting.spec.layers == 'all'


def _streams(setting: Setting) -> float:
  """Bytes that all other kernels read and write."""
  cfg, count, spec = setting.cfg, estimate.counts(setting), setting.spec
  again, parts, tensor = estimate.again(setting), *setting.mesh[1:]
  tokens, wide = setting.micros * _tokens(setting), estimate.width(setting)
  passes = _PASSES + _OF_AGAIN * again + (_OF_ADAPTERS if setting.is_lora else 0.0)
  scored = 0 if setting.fused else setting.length
  # What is kept begins as zeros.
  kept = cfg.num_layers * estimate.kept(cfg, setting.remat, wide, tensor, scored)
  moved = tokens * cfg.num_layers * wide * passes * estimate.streams(cfg, tensor)
  moved += tokens * (kept + _LOGIT * cfg.vocab_size / tensor)
  if not setting.fused:
    moved += estimate.score_bytes(setting)
  # Each layer's weights are cut out of those of all, or put together; trained ones are cast before,
  # and their gradients put with those of all layers.
  weights = setting.micros * count.layers / tensor
  sent = estimate.kernel_bytes(setting) if setting.is_lora else wide
  moved += (2 + again) * weights * (sent if parts > 1 else 0.0)
  if setting.is_lora:
    moved += (2 + again) * weights * 2 * sent / parts
  else:
    cast = (2 + again) * (4 + wide) if spec.param_dtype == 'float32' else 0.0
    moved += (cast + 8) * weights / parts
  if _trains_head(setting):
    # Its gradient is added to for each chunk.
    chunks = setting.micros * math.ceil(_tokens(setting) / setting.chunk)
    moved += 8.0 * chunks * count.head / tensor
  return moved + _adam(setting)


def _adam(setting: Setting) -> float:
  count = estimate.counts(setting)
  trained = setting.runs * count.adapter if setting.is_lora else count.all
  return _TRAINED * trained / (setting.mesh[1] * setting.mesh[2])


def _count(setting: Setting) -> float:
  """Kernels of a step."""
  a_layer = _ADAPTED if setting.is_lora else _A_LAYER
  a_layer += _AGAIN * estimate.again(setting)
  return setting.micros * setting.cfg.num_layers * a_layer + _REST

"""The real train step, scoring and decoding, compiled for chips that are not here.

Each gives its peak memory, its collectives and its largest arrays. No weights are made.
"""

import contextlib
import dataclasses
import math
import re
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from sft_jax.ahead import estimate
from sft_jax.ahead import setting as setting_lib
from sft_jax.ahead.setting import Setting
from sft_jax.data import pack
from sft_jax.evals import caches, loglik, slots
from sft_jax.evals import model as eval_model
from sft_jax.models import hf
from sft_jax.parallel import hlo
from sft_jax.utils import trees


@dataclasses.dataclass(frozen=True)
class Program:
  """What the compiler says of one program.

  Attributes:
    peak: Bytes on one chip when it holds most; of a program that did not fit, what it asked for.
    kinds: {parameters | optimiser | gradients | logits | cache | activations: bytes on one chip}.
    collectives: As one chip takes part in them.
    largest: Its largest arrays on one chip.
    refused: What the compiler said, where it found no room; else ''.
  """

  peak: float
  kinds: dict[str, float]
  collectives: tuple[hlo.Collective, ...] = ()
  largest: tuple[hlo.Buffer, ...] = ()
  refused: str = ''


def train(setting: Setting) -> Program:
  """The train step of a setting."""
  told, setting = setting, dataclasses.replace(setting, documents=0)
  mesh = setting_lib.make_mesh(setting)
  held = setting_lib.weights(setting, mesh)
  state = setting_lib.train_state(setting, held)
  step = setting_lib.train_step(setting, held)
  batch: Any = setting_lib.train_batch(setting, mesh)  # shapes in place of arrays
  lowered = step.lower(held.base, state, batch)
  kinds = {'parameters': held.parameter_bytes(), 'optimiser': held.moment_bytes()}
  kinds['gradients'] = setting_lib.shard_bytes(held.trained, itemsize=4)
  vocab = math.ceil(setting.cfg.vocab_size / setting.mesh[2])
  kinds['logits'] = 4.0 * setting.lanes * setting.chunk * vocab
  positions = setting.rows // setting.lanes // setting.shards * setting.length
  chunks = math.ceil(positions / min(setting.chunk, positions))
  turns = [chunks] if setting.micros == 1 else [setting.micros, chunks]
  program = _compile(lowered, kinds, turns, setting)
  # Of its sums of documents cuDNN tells a device only.
  sums = [sum(estimate.memory(one).values()) for one in (told, setting)]
  own = 0.0 if program.refused else sums[0] - sums[1]
  kinds = program.kinds | {'activations': program.kinds.get('activations', 0.0) + own}
  return dataclasses.replace(program, peak=program.peak + own, kinds=kinds)


def score(
  setting: Setting, rows: int = 0, length: int = loglik.ROW, beginnings: int = 0
) -> Program:
  """Scoring of texts by the base with its adapters, rows of `length` tokens.

  Args:
    setting: The model, its adapters and chips.
    rows: Over all chips; 0 for one a chip.
    length: Tokens a row.
    beginnings: Shared ones whose keys and values are there meanwhile, `length` tokens each.
  """
  subject = _subject(setting)
  rows = rows or setting.shards
  spread = NamedSharding(subject.mesh, PartitionSpec(('data', 'fsdp')))
  names = ('tokens', 'positions', 'seen', 'lengths', 'reach')
  shape = jax.ShapeDtypeStruct((rows, length), jnp.int32, sharding=spread)
  batch = dict.fromkeys(names, shape)
  batch['group'] = jax.ShapeDtypeStruct((rows,), jnp.int32, sharding=spread)
  batch['targets'] = jax.ShapeDtypeStruct((rows, length, 1), jnp.int32, sharding=spread)
  chunk = loglik.CHUNKS[0]
  lowered = loglik.lower(subject, batch, chunk)
  logits = 4.0 * max(subject.runs, 1) * chunk * setting.cfg.vocab_size / setting.mesh[2]
  kinds = {'parameters': _parameters(subject), 'logits': logits}
  turns = [math.ceil(rows // setting.shards * length / chunk)]
  program = _compile(lowered, kinds, turns, setting)
  held = caches.shapes(subject, pack.round_up(beginnings, setting.shards), length)
  size = setting_lib.shard_bytes(held) if beginnings else 0.0
  kinds = program.kinds | ({'cache': size} if size else {})
  return dataclasses.replace(program, peak=program.peak + size, kinds=kinds)


def decode(setting: Setting, texts: int, room: int, steps: int = 8, before: int = 0) -> Program:
  """Writing of `texts` answers at once, each with room for so many tokens.

  Args:
    setting: The model, its adapters and chips.
    texts: Of each run; rounded up so that chips divide them.
    room: Tokens of each, prompt included.
    steps: Tokens between two looks at the text.
    before: Tokens of each that there was room for before caches grew, which takes both.
  """
  subject = _subject(setting)
  texts = -(-texts // setting.shards) * setting.shards
  cache = caches.shapes(subject, texts, room)
  lead = (subject.runs,) if subject.runs else ()
  whole = NamedSharding(subject.mesh, PartitionSpec())
  one = lambda dtype: jax.ShapeDtypeStruct((*lead, texts), dtype, sharding=whole)
  state = {name: one(jnp.int32) for name in ('token', 'position', 'left', 'seen')}
  state |= {'seed': one(jnp.uint32), 'temperature': one(jnp.float32)}
  lowered = slots.advance.lower(
    subject.model,
    subject.params,
    cache=cache,
    state=state,
    alive=one(jnp.bool_),
    prefix=None,
    stop_ids=jax.ShapeDtypeStruct((2,), jnp.int32, sharding=whole),
    runs=subject.runs,
    sampled=False,
    steps=steps,
  )
  logits = 4.0 * max(subject.runs, 1) * texts / setting.shards
  kinds = {
    'parameters': _parameters(subject),
    'cache': setting_lib.shard_bytes(cache),
    'logits': logits * setting.cfg.vocab_size / setting.mesh[2],
  }
  program = _compile(lowered, kinds, [], setting)
  growing = kinds['parameters'] + kinds['cache'] * (1 + before / room)
  return dataclasses.replace(program, peak=max(program.peak, growing if before else 0.0))


def _subject(setting: Setting) -> eval_model.Subject:
  """The model to evaluate, as shapes: parameters as training leaves them."""
  mesh = setting_lib.make_mesh(setting)
  held = setting_lib.weights(setting, mesh)
  cfg, dtype = hf.padded_for(setting.cfg, mesh), jnp.dtype(setting.spec.compute_dtype)
  if held.base is None:
    return eval_model.single(cfg, held.trained, dtype, mesh)
  whole = NamedSharding(mesh, PartitionSpec())
  layers = setting.cfg.num_layers
  if setting.runs > 1:
    scale = jax.ShapeDtypeStruct((setting.runs, layers), jnp.float32, sharding=whole)
    return eval_model.cohort(cfg, held.base, dtype, mesh, held.trained, scale)  # type: ignore[arg-type]
  flat = {
    path: jax.ShapeDtypeStruct(
      leaf.shape[1:],
      leaf.dtype,
      sharding=NamedSharding(mesh, PartitionSpec(*leaf.sharding.spec[1:])),
    )
    for path, leaf in trees.flatten(held.trained).items()
  }
  one = trees.unflatten(flat)
  scale = jax.ShapeDtypeStruct((layers,), jnp.float32, sharding=whole)
  return eval_model.single(cfg, held.base, dtype, mesh, one, scale)  # type: ignore[arg-type]


def _parameters(subject: eval_model.Subject) -> float:
  return setting_lib.shard_bytes(subject.params)


def _compile(
  lowered: Any, kinds: dict[str, float], turns: Sequence[float], setting: Setting
) -> Program:
  try:
    with _not_kept():
      compiled = lowered.compile()
  except Exception as e:  # XLA raises a type of its own for each backend.
    if 'RESOURCE_EXHAUSTED' not in str(e):
      raise
    return Program(_asked(str(e)) or sum(kinds.values()), kinds, refused=_short(str(e)))
  stats = compiled.memory_analysis()
  peak = float(stats.peak_memory_in_bytes + stats.generated_code_size_in_bytes)
  # Gradients and logits are counted, not measured: together they may not be alive at the peak.
  known = sum(kinds.values())
  kinds = kinds | {'activations': max(peak - known, 0.0)}
  module = hlo.Module(compiled.as_text())
  near = setting.topology.near if setting.topology.near < setting.topology.chips else 0
  collectives = module.collectives(turns, near)
  return Program(peak, kinds, tuple(collectives), tuple(module.largest()))


@contextlib.contextmanager
def _not_kept() -> Iterator[None]:
  """Context without a cache of programs: those for absent chips cannot be read back."""
  name = 'jax_persistent_cache_min_compile_time_secs'
  before = getattr(jax.config, name)
  jax.config.update(name, float('inf'))
  try:
    yield
  finally:
    jax.config.update(name, before)


def _asked(text: str) -> float:
  """Bytes that a refused program asked for, as the TPU's compiler words it."""
  match = re.search(r'\(([\d.]+)([KMGT])\)', text)
  return float(match[1]) * 1024 ** (1 + 'KMGT'.index(match[2])) if match else 0.0


def _short(text: str) -> str:
  line = next(line for line in text.splitlines() if 'RESOURCE_EXHAUSTED' in line)
  return line.strip()[:300]

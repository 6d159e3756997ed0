"""Which mesh, rows, recomputation and cohort suit chips best, and what helps where memory lacks.

Settings are ranked by what `estimate.py` counts; whoever asks compiles the first few.
"""

import dataclasses
import math
from collections.abc import Iterator

from sft_jax.ahead import estimate, kernels
from sft_jax.ahead.setting import Setting, steps_rows
from sft_jax.parallel import topology

# Share of the memory that a setting may seem to need: estimates err.
_MARGIN = 0.92
_ROWS = (1, 2, 4, 8, 16, 32, 64)
_REMAT = ('none', 'dots', 'full')
_COHORTS = (1, 2, 4, 8, 16, 32)
_TENSORS = (1, 2, 4, 8)


@dataclasses.dataclass(frozen=True)
class Choice:
  """A setting with what it is thought to need and to give.

  Attributes:
    setting: What is run.
    bytes: On one chip.
    seconds: Of a step, at least.
    tokens_per_s: Of data, by all its runs, in this one program.
    copies: Such programs side by side on all chips.
  """

  setting: Setting
  bytes: float
  seconds: float
  tokens_per_s: float
  copies: int = 1

  @property
  def rate(self) -> float:
    """Tokens of data a second on all chips."""
    return self.tokens_per_s * self.copies


def choice(setting: Setting, copies: int = 1, correction: float = 1.0) -> Choice:
  """The setting, estimated; `correction` multiplies what is no parameter and no moment."""
  kinds = estimate.memory(setting)
  fixed = kinds['parameters'] + kinds['optimiser']
  size = fixed + correction * (sum(kinds.values()) - fixed)
  bound = kernels.bound(setting)
  return Choice(setting, size, bound.seconds, setting.tokens / bound.seconds, copies)


def ranked(setting: Setting, most_runs: int, correction: float = 1.0) -> list[Choice]:
  """Settings of the same training that seem to fit, the fastest first.

  Args:
    setting: What is trained; its chips are all there are.
    most_runs: Runs there are to train; so many cohorts or copies at most make sense.
    correction: See `choice`.
  """
  found = []
  for part, copies in _parts(setting.topology):
    if copies > 1 and copies > most_runs:
      continue
    for runs in _COHORTS if setting.is_lora else (1,):
      if runs * copies > max(most_runs, 1) and runs > 1:
        continue
      for one in _ways(dataclasses.replace(setting, topology=part, runs=runs)):
        made = choice(one, copies, correction)
        if made.bytes <= _MARGIN * part.usable:
          found.append(made)
  # Of equals, the simplest: fewer copies, larger microbatches.
  found.sort(key=lambda c: (-round(c.rate, 3), c.copies, c.setting.micros, c.setting.mesh[2]))
  return found


def _ways(setting: Setting) -> Iterator[Setting]:
  chips = setting.topology.chips
  for tensor in _TENSORS:
    if chips % tensor or setting.cfg.num_kv_heads % tensor or tensor > setting.topology.near:
      continue
    over = chips // tensor
    for fsdp in sorted({over, min(over, setting.topology.near // tensor or 1), 1}):
      if over % fsdp:
        continue
      for remat in _REMAT:
        one = dataclasses.replace(setting, mesh=(over // fsdp, fsdp, tensor), remat=remat)
        seen = set()
        for rows in _ROWS:
          made = steps_rows(one, rows)
          if made.rows not in seen:
            seen.add(made.rows)
            yield made


def _parts(whole: topology.Topology) -> Iterator[tuple[topology.Topology, int]]:
  """Parts that the chips divide into evenly, and how many there are."""
  yield whole, 1
  if whole.chip.platform == 'cuda':
    nodes, gpus = whole.shape
    shapes: list[tuple[int, ...]] = [(1, n) for n in (1, 2, 4, 8) if n <= gpus]
    shapes += [(n, gpus) for n in range(2, nodes)]
  else:
    shapes = [
      sides
      for text in topology.SLICES[whole.kind]
      if len(sides := tuple(map(int, text.split('x')))) == len(whole.shape)
      and all(a % b == 0 for a, b in zip(sorted(whole.shape), sorted(sides), strict=True))
    ]
  for shape in shapes:
    part = topology.Topology(whole.kind, tuple(shape))
    if part.chips < whole.chips and whole.chips % part.chips == 0:
      yield part, whole.chips // part.chips


@dataclasses.dataclass(frozen=True)
class Remedy:
  """A change that would make a setting fit, and how much longer a step's tokens would then take."""

  words: str
  overrides: dict[str, object]
  bytes: float
  slower: float
  setting: Setting


def remedies(setting: Setting, correction: float = 1.0) -> list[Remedy]:
  """Changes that may make a setting fit, one of each kind, the cheapest first."""
  before = choice(setting, correction=correction)
  found = []
  for words, keys, changed in _changes(setting):
    after = choice(changed, correction=correction)
    if after.bytes <= changed.topology.usable:
      slower = before.tokens_per_s / after.tokens_per_s
      found.append(Remedy(words, keys, after.bytes, slower, changed))
  kinds: dict[str, Remedy] = {}
  for one in sorted(found, key=_cheapest):
    kinds.setdefault(one.words.split(':')[0], one)
  return list(kinds.values())


def _cheapest(remedy: Remedy) -> tuple[int, float]:
  """What these chips can do, the least slowdown first; then more chips; then other training."""
  if 'train.method' in remedy.overrides:
    return 2, 0.0
  if 'plan.topology' in remedy.overrides:
    return 1, remedy.setting.topology.chips + remedy.slower
  return 0, remedy.slower


def _changes(setting: Setting) -> Iterator[tuple[str, dict[str, object], Setting]]:
  """(what in words, config keys, the setting) of single changes, and of some that go together."""
  change = dataclasses.replace
  least = steps_rows(change(setting, remat='full'), 1)
  if setting.is_lora and setting.spec.quantize != 'int8':
    spec = change(setting.spec, quantize='int8')
    words, keys = 'int8 base: weights of the frozen base in 8 bits', {'model.quantize': 'int8'}
    yield words, dict(keys), change(setting, spec=spec)
    yield words, {**keys, **_least(least)}, change(least, spec=spec)
  if setting.remat in ('none', 'dots'):
    yield (
      'remat: layers compute again what the backward pass needs',
      {'train.remat': 'full'},
      change(setting, remat='full'),
    )
  per_shard = setting.rows // setting.shards
  if per_shard > 1:
    fewer = steps_rows(setting, 1)
    yield 'smaller microbatches: a row a chip', {'train.rows_per_micro': fewer.rows}, fewer
  if per_shard > 1 and setting.remat in ('none', 'dots'):
    yield 'remat and a row a chip: both', _least(least), least
  runs = setting.runs // 2
  while setting.is_lora and runs >= 1:
    yield (
      'smaller cohort: fewer runs at once',
      {'study.cohort_size': runs},
      steps_rows(change(setting, runs=runs), per_shard),
    )
    runs //= 2
  data, fsdp, tensor = setting.mesh
  for parts in _TENSORS:
    if parts > tensor and not fsdp * tensor % parts and not setting.cfg.num_kv_heads % parts:
      mesh = (data, fsdp * tensor // parts, parts)
      sizes = {'mesh.data': data, 'mesh.fsdp': mesh[1], 'mesh.tensor': parts}
      split = steps_rows(change(setting, mesh=mesh), per_shard)
      yield 'tensor: each matrix over several chips', {**sizes}, split
  if data > 1:
    yield (
      'fsdp: no replicas of the parameters',
      {'mesh.data': 1, 'mesh.fsdp': data * fsdp},
      change(setting, mesh=(1, data * fsdp, tensor)),
    )
  for larger in _larger(setting.topology):
    mesh = (1, larger.chips // setting.mesh[2], setting.mesh[2])
    more = steps_rows(change(setting, topology=larger, mesh=mesh), per_shard)
    yield f'more chips: {larger.name}', {'plan.topology': larger.name}, more
    thin = steps_rows(change(more, remat='full'), 1)
    yield f'more chips: {larger.name}', {'plan.topology': larger.name, **_least(thin)}, thin
  if not setting.is_lora:
    spec = change(setting.spec, method='lora', targets='all-linear', rank=8)
    words = 'lora: an adapter in place of all weights'
    yield words, {'train.method': 'lora'}, change(setting, spec=spec)


def _least(setting: Setting) -> dict[str, object]:
  return {'train.remat': 'full', 'train.rows_per_micro': setting.rows}


def _larger(whole: topology.Topology) -> list[topology.Topology]:
  """The next larger ones of the same chips."""
  if whole.chip.platform == 'cuda':
    nodes, gpus = whole.shape
    shapes = [(nodes, n) for n in (2, 4, 8) if n > gpus and nodes == 1]
    shapes += [(n, 8) for n in (2, 4, 8, 16, 32) if n > nodes]
    return [topology.Topology(whole.kind, shape) for shape in shapes]
  sides = (tuple(map(int, text.split('x'))) for text in topology.SLICES[whole.kind])
  return [topology.Topology(whole.kind, s) for s in sides if math.prod(s) > whole.chips]

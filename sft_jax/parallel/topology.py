"""Chips, how many of them stand together, and abstract devices to compile for without owning any.

Not for what a program takes on them: `roofline.py`, `hlo.py`.
"""

import dataclasses
import functools
import importlib.util
import math
import os
import re
from typing import Any

from sft_jax.parallel import gpu_target
from sft_jax.utils.errors import UserError

GIB = 2**30
# Of a GPU's memory, what jax is told to take by XLA_PYTHON_CLIENT_MEM_FRACTION: drivers and
# libraries need the rest.
GPU_SHARE = 0.92


@dataclasses.dataclass(frozen=True)
class Chip:
  """One accelerator, as its maker publishes it.

  Attributes:
    name: As people call it.
    platform: 'tpu' or 'cuda'.
    memory: Bytes a program may use. Of a TPU, what its compiler calls available; of a GPU, all.
    flops: Dense bf16 peak, FLOP/s.
    bandwidth: Of its memory, bytes/s.
    link: Bytes/s in one direction: of one TPU link, or of all NVLinks of a GPU.
    outside: Bytes/s in one direction and for one chip, to other slices or nodes.
    source: Where the numbers are published.
  """

  name: str
  platform: str
  memory: int
  flops: float
  bandwidth: float
  link: float
  outside: float
  source: str


_BOOK = 'https://jax-ml.github.io/scaling-book/tpus/'
_CLOUD = 'https://cloud.google.com/tpu/docs/'
_NVIDIA = 'https://www.nvidia.com/en-us/data-center/'

# Links between nodes of GPUs are those of NVIDIA's DGX machines: one 200 (A100) or 400 Gb/s port a
# GPU.
CHIPS: dict[str, Chip] = {
  'v4': Chip(
    'TPU v4', 'tpu', int(30.75 * GIB), 275e12, 1.228e12, 45e9, 6.25e9, f'{_BOOK}, {_CLOUD}v4'
  ),
  'v5e': Chip(
    'TPU v5e', 'tpu', int(15.75 * GIB), 197e12, 0.819e12, 45e9, 3.125e9, f'{_BOOK}, {_CLOUD}v5e'
  ),
  'v5p': Chip(
    'TPU v5p', 'tpu', int(95.74 * GIB), 459e12, 2.765e12, 90e9, 6.25e9, f'{_BOOK}, {_CLOUD}v5p'
  ),
  'v6e': Chip(
    'TPU v6e', 'tpu', int(31.25 * GIB), 918e12, 1.638e12, 90e9, 12.5e9, f'{_BOOK}, {_CLOUD}v6e'
  ),
  'a100': Chip(
    'NVIDIA A100-SXM4-80GB', 'cuda', 85100068864, 312e12, 2.039e12, 300e9, 25e9, f'{_NVIDIA}a100/'
  ),
  'h100': Chip(
    'NVIDIA H100 80GB HBM3', 'cuda', 84942979072, 989e12, 3.352e12, 450e9, 50e9, f'{_NVIDIA}h100/'
  ),
  'h200': Chip('NVIDIA H200', 'cuda', 151397597184, 989e12, 4.8e12, 450e9, 50e9, f'{_NVIDIA}h200/'),
  'b200': Chip(
    'NVIDIA B200', 'cuda', 191514411008, 2250e12, 7.672e12, 900e9, 50e9, f'{_NVIDIA}dgx-b200/'
  ),
}

# jax's names of TPUs; of GPUs it has the maker's.
_KINDS = {
  'TPU v4': 'v4',
  'TPU v5 lite': 'v5e',
  'TPU v5e': 'v5e',
  'TPU v5': 'v5p',
  'TPU v5p': 'v5p',
  'TPU v6 lite': 'v6e',
  'TPU v6e': 'v6e',
}

# Slices that Google Cloud offers.
_FLAT = ('1x1', '2x2', '2x4', '4x4', '4x8', '8x8', '8x16', '16x16')
_CUBES = (
  *('2x2x1', '2x2x2', '2x2x4', '2x4x4', '4x4x4', '4x4x8', '4x8x8', '8x8x8', '8x8x16'),
  *('8x16x16', '16x16x16'),
)
SLICES: dict[str, tuple[str, ...]] = {
  'v4': _CUBES,
  'v5e': _FLAT,
  'v5p': (*_CUBES, '16x16x24'),
  'v6e': _FLAT,
}
_GPUS_A_NODE = (1, 2, 4, 8)
# Sides from which on a torus is closed; a shorter one is a line.
_CLOSED = {'v5e': 16, 'v6e': 16, 'v4': 4, 'v5p': 4}
# Other names of chips, and chips whose slices are named by cores, of which each chip has two.
_NAMES = {'v5litepod': 'v5e', 'v5lite': 'v5e', 'v5litepods': 'v5e', 'v6lite': 'v6e'}
_BY_CORES = ('v4', 'v5p')
# What libtpu calls them.
_TYPE = {'v4': 'v4', 'v5e': 'v5litepod', 'v5p': 'v5p', 'v6e': 'v6e'}


@dataclasses.dataclass(frozen=True)
class Topology:
  """Chips that stand together.

  Attributes:
    kind: A name of `CHIPS`.
    shape: Sides of a TPU slice, or (nodes, GPUs a node).
  """

  kind: str
  shape: tuple[int, ...]

  @property
  def chip(self) -> Chip:
    """One of them."""
    return CHIPS[self.kind]

  @property
  def chips(self) -> int:
    """How many there are."""
    return math.prod(self.shape)

  @property
  def name(self) -> str:
    """As `parse` reads it."""
    sides = self.shape[1:] if self.chip.platform == 'cuda' and self.shape[0] == 1 else self.shape
    return f'{self.kind}:{"x".join(map(str, sides))}'

  @property
  def near(self) -> int:
    """Chips that a fast interconnect joins: a slice, or a node."""
    return self.shape[-1] if self.chip.platform == 'cuda' else self.chips

  @property
  def usable(self) -> float:
    """Bytes of a chip that a program may have."""
    return self.chip.memory * (GPU_SHARE if self.chip.platform == 'cuda' else 1.0)

  def inside(self, group: int, stride: int) -> int:
    """Of so many chips, each `stride` after the last, those that one node has."""
    return group if group * stride <= self.near else max(1, self.near // stride)

  def rate(self, group: int, inside: int = 0) -> float:
    """Bytes/s in which each chip of a group takes part in a collective, sends and all.

    A TPU's rings run in both directions of each side that is closed, on lines in one. Those of GPUs
    leave a node by the ports of the members that are in it.

    Args:
      group: Chips of the group, neighbours as far as the mesh allows.
      inside: Those of them that one node has; 0 for all.
    """
    chip = self.chip
    if chip.platform == 'cuda':
      return chip.link if inside in (0, group) else min(chip.link, chip.outside * inside)
    rate, left = 0.0, group
    for side in sorted(self.shape, reverse=True):
      if side > 1 and left > 1:
        rate += chip.link * (2 if side >= _CLOSED[self.kind] else 1)
        left = -(-left // side)
    return rate or chip.link


def of_device(kind: str) -> Chip | None:
  """The chip that jax calls so (`Device.device_kind`); None where the table has no such."""
  if kind in _KINDS:
    return CHIPS[_KINDS[kind]]
  return next((chip for chip in CHIPS.values() if chip.name == kind), None)


def of_devices(kind: str, nodes: int, count: int) -> Topology | None:
  """So many GPUs a node, by jax's name of one; None of other devices, and of other numbers."""
  chip = of_device(kind)
  names = [name for name, one in CHIPS.items() if one is chip and one.platform == 'cuda']
  return Topology(names[0], (nodes, count)) if names and count in _GPUS_A_NODE else None


def parse(name: str) -> Topology:
  """Reads `v5e:4x4`, `v5litepod-16`, `v5p-128` (cores), `h100:8`, `a100:2x8`, `v4`.

  A chip alone is its smallest slice, or one GPU.

  Raises:
    UserError: no such chip or slice; it lists those there are.
  """
  text = name.strip().lower().removeprefix('tpu-').removeprefix('tpu')
  match = re.fullmatch(r'([a-z]*\d+[a-z]*?)(?:(:)([\dx]+)|-(\d+))?', text)
  kind = _NAMES.get(match[1], match[1]) if match else ''
  if match is None or kind not in CHIPS:
    raise UserError(
      f'there is no topology {name!r}',
      'config.plan.topology',
      f'chips: {", ".join(CHIPS)}; for example v5e:4x4, v5p:4x4x4, h100:8 or a100:2x8 (nodes x '
      'GPUs)',
    )
  sides = match[3]
  if CHIPS[kind].platform == 'cuda':
    return _gpus(kind, sides or match[4] or '1', name)
  if match[4]:
    wanted = int(match[4]) // (2 if kind in _BY_CORES else 1)
    found = [s for s in SLICES[kind] if math.prod(map(int, s.split('x'))) == wanted]
    sides = found[0] if found else match[4]
  sides = sides or SLICES[kind][0]
  if sides not in SLICES[kind]:
    raise UserError(
      f'there is no topology {name!r}',
      'config.plan.topology',
      f'slices of {kind}: {", ".join(f"{kind}:{s}" for s in SLICES[kind])}',
    )
  return Topology(kind, tuple(map(int, sides.split('x'))))


def _gpus(kind: str, sides: str, name: str) -> Topology:
  shape = [int(side) for side in sides.split('x') if side]
  shape = [1, *shape] if len(shape) == 1 else shape
  if len(shape) != 2 or shape[0] < 1 or shape[1] not in _GPUS_A_NODE:
    some = ', '.join(f'{kind}:{count}' for count in _GPUS_A_NODE)
    raise UserError(
      f'there is no topology {name!r}',
      'config.plan.topology',
      f'one node: {some}; several: {kind}:NODESxGPUS, such as {kind}:2x8',
    )
  return Topology(kind, (shape[0], shape[1]))


def unable(topology: Topology) -> str:
  """Why this Python cannot compile for these chips, and what helps; '' where it can."""
  if topology.chip.platform == 'tpu':
    if importlib.util.find_spec('libtpu') is None:
      return "libtpu, the TPU's compiler, is not installed: pip install 'jax[tpu]' (Linux x86-64)"
    return ''
  plugins = ('jax_plugins.xla_cuda12', 'jax_plugins.xla_cuda13')
  if not any(_found(plugin) for plugin in plugins):
    return (
      "jax's CUDA plugin is not installed: pip install 'jax[cuda12]' in an environment of its own "
      '(5.5 GB)'
    )
  return ''


def _found(module: str) -> bool:
  try:
    return importlib.util.find_spec(module) is not None
  except ModuleNotFoundError:
    return False


@functools.lru_cache(maxsize=8)
def devices(topology: Topology) -> tuple[Any, ...]:
  """Abstract devices, for a mesh and for compiling.

  Raises:
    UserError: this Python cannot compile for them, or its compiler does not know them.
  """
  # Imported here: parsing a name needs no jax.
  from jax.experimental import topologies

  if why := unable(topology):
    raise UserError(f'nothing here compiles for {topology.name}', 'config.plan.topology', why)
  options: dict[str, Any] = {}
  if topology.chip.platform == 'tpu':
    # libtpu would ask the network which machine it is on, and let one process at a time load it,
    # as if it took chips.
    for name, value in (
      ('TPU_SKIP_MDS_QUERY', '1'),
      ('TPU_WORKER_HOSTNAMES', 'localhost'),
      ('TPU_ACCELERATOR_TYPE', f'{_TYPE[topology.kind]}-{topology.chips}'),
      ('ALLOW_MULTIPLE_LIBTPU_LOAD', '1'),
    ):
      os.environ.setdefault(name, value)
    options['topology_name'] = topology.name
    if topology.chips == 1:
      options['chips_per_host_bounds'] = [1, 1, 1]
    if topology.kind == 'v4':
      options['chip_config_name'] = 'megacore'  # Both cores of a chip as one device.
  else:
    nodes, gpus = topology.shape
    options['topology_name'] = ''
    options['target_config'] = gpu_target.config(topology.chip)
    options['topology'] = f'1x{nodes}x{gpus}'
  try:
    found = topologies.get_topology_desc(platform=topology.chip.platform, **options).devices
  except (RuntimeError, NotImplementedError) as e:
    raise UserError(
      f'the compiler does not know {topology.name}: {e}',
      'config.plan.topology',
      'try another slice, or a newer jax',
    ) from e
  return tuple(found)

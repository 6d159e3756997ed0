"""The least time that work can take on chips, and what bounds it (Williams et al., 2009).

Not for counting the work: that needs the model.
"""

import dataclasses

from sft_jax.parallel.topology import Topology


@dataclasses.dataclass(frozen=True)
class Work:
  """What one chip does in one step.

  Attributes:
    flops: Of matrix products, what is computed twice counted twice.
    moved: Bytes to and from its memory.
    sent: {chips of a group: bytes a chip sends in groups within a node}.
    far: {chips of a group that one node has: bytes a chip sends in groups of several nodes}.
  """

  flops: float
  moved: float
  sent: dict[int, float] = dataclasses.field(default_factory=dict)
  far: dict[int, float] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Bound:
  """Seconds that each resource is needed for.

  Attributes:
    compute, memory, network: By itself.
    launch: From kernels to the next ones.
    waits: The part of `network` that nothing else is done meanwhile.
    in_turn: Whether a chip does one of these, but for the network, after the other, not meanwhile.
  """

  compute: float
  memory: float
  network: float
  launch: float = 0.0
  waits: float = 0.0
  in_turn: bool = False

  @property
  def seconds(self) -> float:
    """The least time, if all else happens meanwhile."""
    if self.in_turn:
      return self.waits + max(self._kernels, self.network - self.waits)
    return max(self.compute, self.memory, self.network)

  @property
  def binding(self) -> str:
    """compute | memory | network | launch."""
    names = ['compute', 'memory', 'network', 'launch']
    if self.in_turn and self.network - self.waits > self._kernels:
      return 'network'
    if self.in_turn and self.waits < max(self.compute, self.memory, self.launch):
      names.remove('network')
    return max(names, key=lambda name: getattr(self, name))

  @property
  def _kernels(self) -> float:
    return self.compute + self.memory + self.launch


def bound(work: Work, topology: Topology) -> Bound:
  """The roofline of `work` on each of these chips."""
  chip = topology.chip
  network = sum(size / topology.rate(group) for group, size in work.sent.items())
  network += sum(size / topology.rate(topology.chips, inside) for inside, size in work.far.items())
  return Bound(work.flops / chip.flops, work.moved / chip.bandwidth, network)

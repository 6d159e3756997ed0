"""The caches of the generation engine's slots, kept as large as the texts in them need.

What is attended to costs what a cache holds, not what it is for, and most texts end early: the
caches begin with room for the prompts, grow as texts do, and lose slots that nothing will come to.
Dimension letters: see `models/decoder.py`.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from sft_jax.evals import layout, slots
from sft_jax.evals.model import Subject

# Fewer slots than this take no less time: the weights are read whatever there is to do.
FEWEST = 8
# Caches have room for so many tokens of a text and then for twice as many.
_STEP = 128


class Caches:
  """Caches and state of slots, at first all free.

  Attributes:
    count: Slots B (of each run).
    room: Most tokens of its own that a text may have by now.
    cache: Leaves `[_,R?,B,...]`.
    state: Arrays `[R?,B]`; see `slots.py`.
  """

  def __init__(self, subject: Subject, count: int, most: int):
    """Args: a model, its slots, and the most tokens of its own that a text will ever have."""
    self.subject, self.count, self.most = subject, count, most
    self.room = min(layout.width_class(1, _STEP), most)
    self.lead = (subject.runs,) if subject.runs else ()

    def zeros(leaf: Any) -> Any:
      make = lambda: jnp.zeros(leaf.shape, leaf.dtype)
      return jax.jit(make, out_shardings=leaf.sharding)()

    kinds = {'token': 'i4', 'position': 'i4', 'left': 'i4', 'seen': 'i4', 'seed': 'u4'}
    self.cache = jax.tree.map(zeros, self._shapes())
    self.state = {name: np.zeros((*self.lead, count), kind) for name, kind in kinds.items()}
    self.state['temperature'] = np.zeros((*self.lead, count), np.float32)

  def grow(self, longest: int) -> None:
    """Makes room for `longest` tokens of each text."""
    room = min(layout.width_class(longest, _STEP), self.most)
    if room > self.room:
      self.room = room
      self._resize(np.broadcast_to(np.arange(self.count, dtype=np.int32), (*self.lead, self.count)))

  def narrow(self, order: Sequence[Sequence[int]], busy: int) -> np.ndarray:
    """Halves the slots while `busy` of each run still fit.

    Args:
      order: Of each run, its slots, those at work first.
      busy: Most slots of a run that are at work.

    Returns:
      `[R,B]`, which old slot each slot is now.
    """
    count, fewest = self.count, max(busy, FEWEST)
    while count % 2 == 0 and count // 2 >= fewest and count // 2 % self.subject.shards == 0:
      count //= 2
    chosen = np.asarray(order, np.int32)[:, :count]
    if count < self.count:
      self.count = count
      self._resize(chosen if self.subject.runs else chosen[0])
      return chosen
    return np.broadcast_to(np.arange(count), chosen.shape)

  def _resize(self, chosen: np.ndarray) -> None:
    self.cache, self.state = slots.resize(
      self.subject.model,
      self.cache,
      self.state,
      chosen,
      room=self.room,
      shardings=tuple(leaf.sharding for leaf in jax.tree.leaves(self._shapes())),
    )

  def _shapes(self) -> Any:
    return shapes(self.subject, self.count, self.room)


def smaller(room: int) -> int:
  """Tokens of each text that caches had room for before they grew to `room`; 0 if they did not."""
  size = layout.width_class(room, _STEP) // 2
  return size if size >= _STEP else 0


def shapes(subject: Subject, count: int, room: int) -> Any:
  """The caches of `count` slots with room for so many tokens each, as shapes with shardings.

  Slots are spread over the devices that rows are spread over, key heads over those of `tensor`.
  """
  lead = (subject.runs,) if subject.runs else ()
  slot, mesh = len(lead) + 1, subject.mesh

  def placed(leaf: Any) -> jax.ShapeDtypeStruct:
    shape = (*leaf.shape[:1], *lead, *leaf.shape[1:])
    axes: list[Any] = [None] * len(shape)
    axes[slot] = ('data', 'fsdp')
    if len(axes) == slot + 4 and shape[slot + 1] % mesh.shape['tensor'] == 0:
      axes[slot + 1] = 'tensor'
    return jax.ShapeDtypeStruct(shape, leaf.dtype, sharding=NamedSharding(mesh, P(*axes)))

  return jax.tree.map(placed, jax.eval_shape(lambda: subject.model.init_cache(count, room)))

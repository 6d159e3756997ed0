"""What a race may spend, and the clock that counts time over all of its starts.

Not for planning within it: `race.py`, `race_plan.py`.
"""

import contextlib
import dataclasses
import itertools
import math
import os
import re
import time
from collections.abc import Iterator, Mapping

from etils import epath

from sft_jax.utils import io
from sft_jax.utils.errors import UserError

SECONDS = 'seconds'
UNITS = ('tokens', 'flops', 'examples')
_TIMES = {'s': 1.0, 'm': 60.0, 'h': 3600.0, 'd': 86400.0}
_NUMBER = r'((?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)'
_HOW = "give a time such as 6h or 90m, or an amount such as '3e6 tokens', '1e17 flops'"


@dataclasses.dataclass(frozen=True)
class Budget:
  """An amount of `seconds` (everything counts), or of `tokens`, `flops` or `examples` trained."""

  amount: float
  unit: str


def parse(text: str, where: str) -> Budget:
  """Reads `6h`, `90m`, `600s`, `2d`, or a number of tokens, FLOPs or examples.

  Raises:
    UserError: none given, or not of that form.
  """
  found = re.fullmatch(rf'\s*{_NUMBER}\s*([a-zA-Z]+)\s*', text)
  if not found:
    what = f'{text!r} is no budget' if text.strip() else 'no budget given'
    raise UserError(what, where, _HOW)
  amount, unit = float(found[1]), found[2].lower()
  if unit in _TIMES:
    amount, unit = amount * _TIMES[unit], SECONDS
  if unit not in (SECONDS, *UNITS) or not amount or not math.isfinite(amount):
    raise UserError(f'{text!r} is no budget', where, _HOW)
  return Budget(amount, unit)


def told(amount: float, unit: str, *, up: bool = False) -> str:
  """An amount for people; `up` rounds up, so that whoever gives what is said gives enough."""
  digits = 3 if unit == SECONDS else 4
  name, size = unit, 1.0
  if unit == SECONDS:
    found = (one for one in (('h', 3600.0), ('min', 60.0)) if amount >= one[1])
    name, size = next(found, ('s', 1.0))
  amount /= size
  if up and amount > 0:
    step = 10.0 ** (math.floor(math.log10(amount)) + 1 - digits)
    amount = math.ceil(amount / step - 1e-6) * step
  return f'{amount:.{digits}g} {name}'.strip()


class Clock:
  """Seconds by name, kept in a file; what a killed process had spent is told by its files."""

  def __init__(self, place: epath.PathLike):
    """Reads what earlier starts have left.

    Args:
      place: Directory; the clock is its `clock.json`.
    """
    self._place = epath.Path(place)
    self._file = self._place / 'clock.json'
    held = io.read_json(self._file) if self._file.exists() else {}
    self.seconds: dict[str, float] = dict(held['seconds']) if held else {}
    self.notes: dict[str, float] = dict(held['notes']) if held else {}
    if held and (left := held['open']):
      self._add(left['shares'], max(self._newest() - left['since'], 0.0))
      self._write(None)

  def note(self, name: str, value: float) -> float:
    """Keeps a number with the clock; the first that was given stands."""
    if name not in self.notes:
      self.notes[name] = value
      self._write(None)
    return self.notes[name]

  def move(self, name: str, to: str, seconds: float) -> None:
    """Counts seconds of one name to another."""
    self._add({name: -1.0, to: 1.0}, seconds)
    self._write(None)

  @contextlib.contextmanager
  def counting(self, shares: Mapping[str, float]) -> Iterator[None]:
    """Context whose time is counted to names, in shares."""
    total = sum(shares.values())
    parts = {name: share / total for name, share in shares.items()}
    began = time.monotonic()
    self._write({'since': time.time(), 'shares': parts})
    try:
      yield
    finally:
      self._add(parts, time.monotonic() - began)
      self._write(None)

  def _add(self, shares: Mapping[str, float], seconds: float) -> None:
    for name, share in shares.items():
      self.seconds[name] = self.seconds.get(name, 0.0) + share * seconds

  def _newest(self) -> float:
    """When a file in the directory was last written; 0 in an object store, where that costs."""
    times = [0.0]
    if not io.is_remote(self._place):
      # Not what is trained in full afterwards, in a place of its own.
      own = [self._place / name for name in ('prepared', 'base', 'endpoint')]
      own += list(self._place.glob('rung-*'))
      for directory, _, files in itertools.chain.from_iterable(map(os.walk, own)):
        for file in files:
          with contextlib.suppress(OSError):  # A file of a moment.
            times.append(os.path.getmtime(os.path.join(directory, file)))
    return max(times)

  def _write(self, open_: Mapping[str, object] | None) -> None:
    value = {'seconds': self.seconds, 'notes': self.notes, 'open': open_}
    io.write_json_atomic(self._file, value)

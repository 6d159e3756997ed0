"""Progress of bytes that arrive. Not for moving them: `hub.py`."""

import collections
import time
from typing import TextIO

from sft_jax.utils import log


class Transfer(log.Bar):
  """A bar of bytes; the rate is a mean over the last ten seconds or so."""

  def __init__(self, total: int, stream: TextIO | None = None, quiet: bool = False):
    """Expects `total` bytes; see `log.Bar`."""
    super().__init__(stream, quiet, every_s=10.0)
    self._total, self._ended = total, False
    self._recent: collections.deque[tuple[float, int]] = collections.deque()

  def update(self, done: int) -> None:
    """Tells that `done` of the bytes are there; to be called often, also when nothing came."""
    if self._ended:
      return
    self._ended = done >= self._total
    self._recent.append((time.monotonic(), done))
    (start, first), (now, _) = self._recent[0], self._recent[-1]
    if now - start > 10 and len(self._recent) > 2:
      self._recent.popleft()
    numbers = []
    if now > start and done > first:
      rate = (done - first) / (now - start)
      numbers = [f'{as_size(rate)}/s', f'{log.clock((self._total - done) / rate)} left']
    count = f'{as_size(done)}/{as_size(self._total)}'
    self.show(
      lambda: self.bar('fetch', count, done / max(self._total, 1), numbers),
      lambda: ', '.join([f'fetched {count}', *numbers]),
      last=self._ended,
    )


def as_size(count: float) -> str:
  """'999 B', '1.5 kB', '16.1 GB': decimal units, as disks and hubs count."""
  if count < 1000:
    return f'{count:.0f} B'
  for unit in ('kB', 'MB', 'GB'):
    count /= 1000
    if round(count, 1) < 1000:
      return f'{count:.1f} {unit}'
  return f'{count / 1000:.1f} TB'

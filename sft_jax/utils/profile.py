"""A profile of a few training steps, on request: what the devices and the host do, and when.

For TensorBoard's profile page or XProf. Not for rates over a whole run: those are in the metrics.
"""

import os
import re
from collections.abc import Callable
from typing import Any

from sft_jax.utils.errors import UserError


def steps(wanted: str) -> tuple[int, int]:
  """First and last step, from 1, of `config.profile`: `10-12`, or `10` for one; (0, 0) for ''.

  Raises:
    UserError: neither.
  """
  if not wanted:
    return 0, 0
  match = re.fullmatch(r'([0-9]{1,9})(?:-([0-9]{1,9}))?', wanted)
  first, last = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
  if not 1 <= first <= last:
    raise UserError(
      f'{wanted!r} is no range of steps',
      'config.profile',
      'give the numbers of the first and the last step to record, such as 10-12',
    )
  return first, last


class Recorded:
  """A step function that records the profile of some of its calls.

  What was asked for and is not reached, or was done before this process, is not recorded.
  """

  def __init__(
    self, step: Callable[..., Any], done: int, wanted: tuple[int, int], place: os.PathLike[str]
  ):
    """Records nothing yet.

    Args:
      step: Called with whatever it is called with.
      done: Steps done before.
      wanted: First and last step to record; see `steps`.
      place: Directory that gets the profile.
    """
    self._step, self._done, self._place = step, done, os.fspath(place)
    self._first, self._last = wanted
    self._recording = False

  def __call__(self, *args: Any) -> Any:
    """Takes a step."""
    import jax

    self._done += 1
    if self._done == self._first:
      jax.profiler.start_trace(self._place)
      self._recording = True
    if not self._recording:
      return self._step(*args)
    with jax.profiler.StepTraceAnnotation('train', step_num=self._done):
      out = self._step(*args)
      jax.block_until_ready(out)
    if self._done == self._last:
      self.close()
    return out

  def close(self) -> None:
    """Ends a recording that is under way, as where a run stops before its last step."""
    if self._recording:
      import jax

      self._recording = False
      jax.profiler.stop_trace()

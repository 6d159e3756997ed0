"""Where the time of a program goes on a GPU: the kernels that took most of it."""

import collections
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

# So many kernels are told; the others are one sum.
MOST = 40


def kernels(call: Callable[[], Any]) -> dict[str, float]:
  """{kernel: seconds it kept the device} of a call, the longest first, then 'others' and the 'idle'
  rest of the time it took; {} where the device does not tell.

  Args:
    call: Warm; what it returns is waited for.
  """
  with tempfile.TemporaryDirectory(prefix='profile-') as directory:
    with jax.profiler.trace(directory):
      began = time.perf_counter()
      jax.block_until_ready(call())
      took = time.perf_counter() - began
    paths = sorted(Path(directory).rglob('*.xplane.pb'))
    out = longest(jax.profiler.ProfileData.from_file(str(paths[0]))) if paths else {}
  return out | ({'idle': max(took - sum(out.values()), 0.0)} if out else {})


def longest(profile: Any) -> dict[str, float]:
  """Of a profile that jax recorded; see `kernels`."""
  seconds: collections.defaultdict[str, float] = collections.defaultdict(float)
  for plane in profile.planes:
    if plane.name.startswith('/device:'):
      # What ran. Other lines tell the same by operation, module and step.
      for line in (line for line in plane.lines if line.name.startswith('Stream')):
        for event in line.events:
          operation = dict(event.stats).get('hlo_op', '')
          seconds[f'{event.name[:80]} ({operation})'] += event.duration_ns / 1e9
  out: dict[str, float] = dict(sorted(seconds.items(), key=lambda one: -one[1])[:MOST])
  rest = sum(seconds.values()) - sum(out.values())
  return out | ({'others': rest} if rest > 0 else {})

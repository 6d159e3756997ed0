"""Which process this is, and whether one that left its name somewhere still lives.

A process id alone says neither: ids are used again, and mean nothing on another machine.
"""

import os
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def me() -> dict[str, Any]:
  """The name of this process, as JSON: `host` and `pid` for people, `place` and `born` to be sure.

  `place` is equal for processes that see each other: those of one boot and one pid namespace.
  """
  pid = os.getpid()
  return {'host': socket.gethostname(), 'pid': pid, 'place': _place(), 'born': _born(pid)}


def lives(who: Mapping[str, Any]) -> bool | None:
  """Whether the process that `me` named lives; None if it is of another place, unseen from here.

  Raises:
    KeyError, TypeError: `who` is no such name.
  """
  if who['place'] != _place():
    return None
  return _born(int(who['pid'])) == who['born']


def _place() -> str:
  try:
    boot = Path('/proc/sys/kernel/random/boot_id').read_text().strip()
    return f'{boot} {os.readlink("/proc/self/ns/pid")}'
  except OSError:  # Not Linux.
    return socket.gethostname()


def _born(pid: int) -> str | None:
  """When a process started, in ticks since boot ('' where that is not told); None if it is dead."""
  try:
    # The name in parentheses may hold anything; state and start time are fields 3 and 22.
    state, *fields = Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()
    return None if state in 'ZX' else fields[18]
  except OSError:
    if Path('/proc/self/stat').exists():
      return None
  try:
    os.kill(pid, 0)
  except ProcessLookupError:
    return None
  except OSError:
    pass  # Somebody else's: it lives.
  return ''

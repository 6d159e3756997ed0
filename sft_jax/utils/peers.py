"""Processes that form one program: what they agree on, signs of life, and how they end together.

A process that ends leaves its status with the coordinator, which is part of process 0. Each looks
there every few seconds, and process 0 also for who has fallen silent; whoever is left behind ends
too, with the same status, instead of waiting in a collective for ever. Everything here does nothing
where there is one process. Not for who they are (`parallel/launcher.py`).
"""

import contextlib
import json
import os
import socket
import sys
import threading
import time
from typing import Any

import numpy as np

from sft_jax.utils import aborts
from sft_jax.utils.errors import UserError

# Seconds: between looks; of silence after which a process counts as dead, where others say that
# they lost somebody and where nobody does; for which one that heard of an end goes on, being
# perhaps about to end by itself; for which process 0 waits for the others to hear.
_LOOK_S, _LOST_S, _SILENT_S, _GRACE_S, _LAST_S = 2.0, 12.0, 45.0, 8.0, 20.0
# Seconds, and most steps, between questions whether anybody asks for a stop.
_AGREE_S, _AGREE_STEPS = 2.0, 64
_BEAT, _END, _LOST = 'sft_jax/beat/', 'sft_jax/end/', 'sft_jax/lost/'
_COUNT, _WORD = 'sft_jax/count', 'sft_jax/word/'
# Words, in lower case, of errors that mean that somebody else is not there any more.
_LOST_WORDS = (
  *('gloo', 'nccl', 'connection reset', 'connection closed', 'closed by peer', 'socket closed'),
  *('barrier', 'heartbeat', 'coordination', 'deadline exceeded', 'unavailable'),
)
AGAIN = 'start all processes again to go on from what was saved'


def several() -> bool:
  """Whether this process is one of several; starts no backend."""
  jax = sys.modules.get('jax')
  return jax is not None and jax.distributed.is_initialized() and _state().num_processes > 1


def is_first() -> bool:
  """Whether this process writes what there is one of."""
  return not several() or _state().process_id == 0


def _state() -> Any:
  # jax has no public way to its coordinator.
  from jax._src import distributed

  return distributed.global_state


def from_first(value: Any) -> Any:
  """What process 0 gave: JSON, such as what it read. All processes call it at the same point.

  Files that one process has just written may look older to another, on a network disk.
  """
  if not several():
    return value
  from jax.experimental import multihost_utils

  data = np.frombuffer(json.dumps(value).encode(), np.uint8)
  size = int(multihost_utils.broadcast_one_to_all(np.int32(data.size)))
  # Few lengths, for few programs.
  padded = np.zeros(max(64, 1 << (size - 1).bit_length()), np.uint8)
  if is_first():
    padded[:size] = data
  sent = np.asarray(multihost_utils.broadcast_one_to_all(padded)).astype(np.uint8)
  return json.loads(sent[:size].tobytes())


def require_same(what: str, value: Any) -> None:
  """Refuses to go on where processes differ in a JSON value that must be the same in all.

  Raises:
    UserError: they differ.
  """
  first = from_first(value)
  if not several():
    return
  from jax.experimental import multihost_utils

  equal = np.asarray(multihost_utils.process_allgather(np.array(first == json_of(value))))
  if not equal.all():
    others = ', '.join(map(str, np.flatnonzero(~equal.reshape(-1))))
    raise UserError(
      f'the processes of this program differ in {what}: process {others} from process 0',
      f'process {_state().process_id} has {json.dumps(value)[:200]}',
      'start all with the same command, the same files and one --workdir that all can see',
    )


def json_of(value: Any) -> Any:
  """A value as it comes back from JSON."""
  return json.loads(json.dumps(value))


def wait_for_all(name: str) -> None:
  """Returns when every process has come to this point, called `name`."""
  if several():
    from jax.experimental import multihost_utils

    multihost_utils.sync_global_devices(name)


def agree(stopping: bool, saving: bool = False, seconds: float = 0.0) -> tuple[bool, bool, float]:
  """What any process asks for, and the most seconds that any gives: the same answer in all."""
  if not several():
    return stopping, saving, seconds
  from jax.experimental import multihost_utils

  given = np.array([stopping, saving, seconds], np.float32)
  asked = np.asarray(multihost_utils.process_allgather(given))
  return bool(asked[:, 0].any()), bool(asked[:, 1].any()), float(asked[:, 2].max())


class Agreement:
  """Asks for a stop or a save after a step, but not after every one.

  About every `_AGREE_S` seconds, by the slowest. All ask at the same steps, as all heard the same.
  """

  def __init__(self) -> None:
    """Asks at the first call."""
    self._next, self._asked = 0, (0, time.monotonic())

  def __call__(self, stopping: bool, saving: bool, step: int) -> tuple[bool, bool]:
    """Whether any process asks for a stop, or a save, after `step`."""
    if not several():
      return stopping, saving
    if step < self._next:
      return False, False
    before, since = self._asked
    # How long a step takes is not known before one was made.
    passed = (time.monotonic() - since) / (step - before) if step > before else _AGREE_S
    stopping, saving, slowest = agree(stopping, saving, passed)
    self._asked = (step, time.monotonic())
    self._next = step + max(1, min(_AGREE_STEPS, int(_AGREE_S / max(slowest, 1e-3))))
    return stopping, saving


def put_word(name: str, word: str) -> None:
  """Tells all processes something, once under a name."""
  if several():
    _state().client.key_value_set(f'{_WORD}{name}', word)


def word(name: str, seconds: float) -> str | None:
  """What was told under a name; None where nothing was for so long."""
  from jax.errors import JaxRuntimeError

  try:
    return str(_state().client.blocking_key_value_get(f'{_WORD}{name}', int(seconds * 1000)))
  except JaxRuntimeError as e:
    if 'DEADLINE_EXCEEDED' not in str(e):
      raise
    return None


def require_end(name: str, how: str, seconds: float) -> None:
  """Ends all processes, with status 3, unless they all tell that what `name` says ended as `how`.

  Args:
    name: Of something that all do, once.
    how: How it ended here.
    seconds: For which to wait for the others.
  """
  if not several():
    return
  state = _state()
  put_word(f'{name}/{state.process_id}', how)
  for other in range(state.num_processes):
    found = word(f'{name}/{other}', seconds)
    if found != how:
      line = f'process {other}, where it ended as {found or "nothing yet"}, and here as {how}'
      print(f'stopped by {line}; {AGAIN}', file=sys.stderr, flush=True)
      leave(3, f'{line}; {AGAIN}')


class Watch:
  """Looks after the other processes; see the module."""

  def __init__(self, client: Any, index: int, count: int):
    """Of a process; `client` is the key-value store that all share (see jax's client)."""
    self._client, self._index, self._count = client, index, count
    self._seen: dict[str, tuple[str, float]] = {}
    self._heard: dict[str, float] = {}
    self._beats = 0

  def look(self, now: float) -> tuple[int, str] | None:
    """Shows that this process lives; the status and line to end with, if another has ended.

    Args:
      now: Seconds of a clock that never jumps.
    """
    self._beats += 1
    self._client.key_value_set(f'{_BEAT}{self._index}', str(self._beats), allow_overwrite=True)
    ends = self._read(_END)
    if self._index == 0:
      ends |= self._bury(ends, now)
    told = {key: json.loads(text) for key, text in ends.items()}
    if told.get(str(self._index), [0])[0]:
      return None  # It is ending by itself.
    for key, (status, line, own) in told.items():
      heard = self._heard.setdefault(key, now)
      if status and (not own or now - heard >= _GRACE_S):
        return int(status), str(line)
    return None

  def _bury(self, ends: dict[str, str], now: float) -> dict[str, str]:
    """Ends of processes that have fallen silent, told in their place."""
    told = {}
    limit = _LOST_S if self._read(_LOST) else _SILENT_S
    for key, text in self._read(_BEAT).items():
      before, since = self._seen.get(key, ('', now))
      self._seen[key] = (text, since if before == text else now)
      silent = now - self._seen[key][1]
      if key not in ends and key != '0' and silent >= limit:
        line = f'process {key} of {self._count}, silent for {silent:.0f} s; {AGAIN}'
        told[key] = json.dumps([3, line, False])
        self._client.key_value_set(f'{_END}{key}', told[key], allow_overwrite=True)
    return told

  def _read(self, room: str) -> dict[str, str]:
    found = self._client.key_value_dir_get(room)
    return {key.rpartition('/')[2]: value for key, value in found}


def watch(timeout_s: float = 60) -> None:
  """Starts to look after the other processes, in a thread that ends with this one.

  Args:
    timeout_s: How long process 0 may take to say how many they are.

  Raises:
    UserError: process 0 counts them differently.
  """
  state = _state()
  if not several():
    return
  if state.process_id == 0:
    state.client.key_value_set(_COUNT, str(state.num_processes), allow_overwrite=True)
  count = state.client.blocking_key_value_get(_COUNT, int(timeout_s * 1000))
  if int(count) != state.num_processes:
    raise UserError(
      f'process {state.process_id} is one of {state.num_processes}, but process 0 one of {count}',
      'JAX_NUM_PROCESSES, or the launcher',
      'start every process with the same count',
    )
  held = Watch(state.client, state.process_id, state.num_processes)
  address = state.coordinator_address

  def work() -> None:
    # The runtime aborts at once where process 0 is gone.
    gone = lambda: '' if state.process_id == 0 else _coordinator_gone(address)
    with aborts.explained(gone, 3):
      while several():
        # What cannot be read now tells nothing.
        with contextlib.suppress(Exception):
          found = held.look(time.monotonic())
          if found is not None:
            _end(*found)
        time.sleep(_LOOK_S)

  threading.Thread(target=work, name='peers', daemon=True).start()


def _end(status: int, line: str) -> None:
  """Ends this process as another has ended."""
  head = {2: 'error: ', 3: 'stopped by '}.get(status, 'defect elsewhere: ')
  print(f'{head}{line}', file=sys.stderr, flush=True)
  _tell(status, line, own=False)
  if _state().process_id == 0:
    _linger()
  os._exit(status)


def _tell(status: int, line: str, own: bool = True) -> None:
  state = _state()
  with contextlib.suppress(Exception):  # The coordinator may be what is gone.
    end = json.dumps([status, line, own])
    state.client.key_value_set(f'{_END}{state.process_id}', end, allow_overwrite=True)


def _ends() -> dict[str, tuple[int, str]]:
  """Status and line of each process that has ended."""
  with contextlib.suppress(Exception):
    found = _state().client.key_value_dir_get(_END)
    return {key.rpartition('/')[2]: tuple(json.loads(text)[:2]) for key, text in found}
  return {}


def _linger() -> None:
  """Process 0 goes last: the others learn of its end through it."""
  until = time.monotonic() + _LAST_S
  while len(_ends()) < _state().num_processes and time.monotonic() < until:
    time.sleep(0.2)


def leave(status: int, line: str = '') -> None:
  """Tells the others how this process ends. Returns only where all is well, or it is alone.

  Where all is well, process 0 may still have something to write: the others wait for it.

  Args:
    status: Exit status.
    line: Why.
  """
  if not several():
    return
  state = _state()
  _tell(status, f'process {state.process_id} of {state.num_processes}: {line}')
  if status:
    if state.process_id == 0:
      _linger()
    sys.stdout.flush()
    sys.stderr.flush()
    # Not by way of jax's own end, where all processes wait for each other.
    os._exit(status)
  while state.process_id and '0' not in (ends := _ends()):
    time.sleep(0.2)
  if state.process_id and ends['0'][0]:
    _end(*ends['0'])
  # All are here now, so none waits long for another.
  sys.modules['jax'].distributed.shutdown()


def await_verdict(error: BaseException) -> None:
  """Returns where `error` is this process's own; where another's end caused it, ends as told."""
  text = f'{type(error).__name__}: {error}'.lower()
  if not several() or not any(word in text for word in _LOST_WORDS):
    return
  state = _state()
  with contextlib.suppress(Exception):
    state.client.key_value_set(f'{_LOST}{state.process_id}', '1', allow_overwrite=True)
  time.sleep(_SILENT_S + 2 * _LOOK_S)  # The watch ends this process before.


def _coordinator_gone(address: str) -> str:
  """Why this process ends, if nobody answers at the coordinator's address; else ''."""
  host, _, port = address.rpartition(':')
  try:
    with socket.create_connection((host.strip('[]'), int(port)), timeout=5):
      return ''
  except OSError:
    return f'stopped by process 0, which is gone from {address}; {AGAIN}'

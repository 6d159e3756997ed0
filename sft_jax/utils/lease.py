"""A lease: one process's word that it works on something, kept up for as long as it lives.

A small file with the holder's name, written again every few seconds. No lock of the file system, so
it works on network disks and, with a short race that the next beat settles, in object stores (where
a file cannot be made only if there is none).
A holder that died is seen at once on its own machine, and by its silence from another.
"""

import contextlib
import hashlib
import json
import threading
import time
import uuid
from types import TracebackType
from typing import Any

from etils import epath

from sft_jax.utils import io, log, process
from sft_jax.utils.errors import UserError

BEAT_S = 20.0
# Silence after which a holder that cannot be seen from here is taken for dead.
EXPIRY_S = 180.0


class Lease:
  """Context in which this process alone holds `path`."""

  def __init__(self, path: epath.PathLike, beat_s: float = BEAT_S, expiry_s: float = EXPIRY_S):
    """Takes nothing yet.

    Args:
      path: The lease's file; its directory exists.
      beat_s: Seconds between signs of life.
      expiry_s: Seconds without one after which a holder on another machine counts as dead.
    """
    self._path, self._beat_s, self._expiry_s = epath.Path(path), beat_s, expiry_s
    self._name = {**process.me(), 'token': uuid.uuid4().hex}
    self._ended = threading.Event()
    self._thread = threading.Thread(target=self._keep, name='lease', daemon=True)
    self._lost: dict[str, Any] | None = None

  def __enter__(self) -> 'Lease':
    """Takes it, also from a holder that is dead; waits while that cannot be told.

    Raises:
      UserError: another process holds it, or the place cannot be written.
    """
    self._take()
    self._thread.start()
    return self

  def __exit__(
    self, kind: type | None, error: BaseException | None, trace: TracebackType | None
  ) -> None:
    self._ended.set()
    self._thread.join()
    with contextlib.suppress(UserError, OSError):
      if self._is_ours(self._read()[1]):
        self._path.unlink(missing_ok=True)

  def _take(self) -> None:
    while not io.create_text(self._path, self._text()):
      text, held = self._read()
      if text is None:
        continue
      if held is not None:
        self._refuse_living(text, held)
      if self._succeed(text):
        return

  def _succeed(self, seen: str) -> bool:
    """Puts ours in place of the dead lease that was read as `seen`, and of no other.

    Of all who saw it, one at a time may: who holds the lease on its succession, a file named after
    what was seen. It looks again, so nobody follows a lease that has been followed already.
    """
    digest = hashlib.sha256(seen.encode()).hexdigest()[:16]
    claim = self._path.parent / f'.{self._path.name}.{digest}.claim'
    with Lease(claim, self._beat_s, self._expiry_s):
      if self._read()[0] != seen:
        return False
      io.write_text_atomic(self._path, self._text())
      return True

  def check(self) -> None:
    """To be called before anything that others must not see twice.

    Raises:
      UserError: another process has taken the lease (this one was suspended for too long).
    """
    if self._lost is not None:
      raise _held(self._path, self._lost)

  def _refuse_living(self, text: str, held: dict[str, Any]) -> None:
    """Returns when the holder is dead; raises when it is not."""
    alive = process.lives(held)
    if alive:
      raise _held(self._path, held)
    if alive is False or time.time() - held['beat'] > self._expiry_s:
      return
    log.say(f'waiting for a sign of {held["host"]}, process {held["pid"]}, which worked here')
    # By our own clock: those of two machines may differ.
    until = time.monotonic() + self._expiry_s
    while time.monotonic() < until:
      time.sleep(min(1.0, self._beat_s / 4))
      now, other = self._read()
      if now is None:
        return
      if now != text:
        raise _held(self._path, other or held)

  def _keep(self) -> None:
    """Shows that we live, until the end or until another has the lease."""
    while not self._ended.wait(self._beat_s):
      # A disk that is full for a while is no reason to give up.
      with contextlib.suppress(UserError, OSError):
        text, held = self._read()
        if text is not None and not self._is_ours(held):
          self._lost = held or {'host': 'unknown', 'pid': 'unknown'}
          return
        # Somebody may have removed it, and another have come since.
        write = io.create_text if text is None else io.write_text_atomic
        write(self._path, self._text())

  def _is_ours(self, held: dict[str, Any] | None) -> bool:
    return held is not None and held['token'] == self._name['token']

  def _text(self) -> str:
    return io.to_json({**self._name, 'beat': time.time()}) + '\n'

  def _read(self) -> tuple[str | None, dict[str, Any] | None]:
    """What the file holds (None if there is none), and the lease in it (None if damaged)."""
    with io.explain_unreadable(self._path):
      try:
        text = self._path.read_bytes().decode(errors='replace')
      except FileNotFoundError:
        return None, None
    try:
      held = json.loads(text)
      process.lives(held), held['host'], held['token'], float(held['beat'])
    except (ValueError, KeyError, TypeError):
      return text, None
    return text, held


def _held(path: epath.Path, holder: dict[str, Any]) -> UserError:
  return UserError(
    f'{holder["host"]}, process {holder["pid"]}, is at work here',
    str(path.parent),
    'wait for it or stop it; for another run choose another --workdir',
  )

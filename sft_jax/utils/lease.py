"""A lease: one process's word that it works on something, kept up for as long as it lives.

A small file with the holder's name, written again every few seconds. No lock of the file system, so
it works on network disks and, with a short race that the next beat settles, in object stores (where
a file cannot be made only if there is none).
A holder that died is seen at once on its own machine, and by its silence from another.
"""

import contextlib
import hashlib
import itertools
import json
import os
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
# Age of a sign of life that no difference between clocks explains.
_OLD_S = 3600.0
_UNKNOWN = {'host': 'unknown', 'pid': 'unknown'}


class Held(UserError):
  """Another process holds the lease, or may do so for all that can be seen from here."""


class Watch:
  """Remembers what leases read, and since when, so that nobody has to wait beside one of them.

  For who has other work in the meantime. Only our own clock is asked, and only for how long nothing
  has changed: clocks of several machines may differ or jump.
  """

  def __init__(self) -> None:
    """Has seen nothing."""
    self._seen: dict[str, tuple[str, float]] = {}

  def silent_s(self, path: epath.PathLike, text: str) -> float:
    """Seconds for which `path`, which now reads `text`, has not changed under our eyes."""
    now = time.monotonic()
    before, since = self._seen.get(os.fspath(path), ('', now))
    if before != text:
      since = now
    self._seen[os.fspath(path)] = (text, since)
    return now - since


class Lease:
  """Context in which this process alone holds `path`."""

  def __init__(
    self,
    path: epath.PathLike,
    beat_s: float = BEAT_S,
    expiry_s: float = EXPIRY_S,
    watch: Watch | None = None,
  ):
    """Takes nothing yet.

    Args:
      path: The lease's file; its directory exists.
      beat_s: Seconds between signs of life.
      expiry_s: Seconds without one after which a holder on another machine counts as dead, or as
        many as the holder itself gives, if that is more.
      watch: Kept by who tries again and again: entering then never waits.
    """
    self._path, self._beat_s, self._expiry_s = epath.Path(path), beat_s, expiry_s
    self._watch = watch
    self._beats = itertools.count()
    self._beaten = (time.time(), time.monotonic())
    self._name = {**process.me(), 'token': uuid.uuid4().hex, 'expiry': expiry_s}
    self._ended = threading.Event()
    self._thread = threading.Thread(target=self._keep, name='lease', daemon=True)
    self._lost: dict[str, Any] | None = None

  def __enter__(self) -> 'Lease':
    """Takes it, also from a holder that is dead; waits (without a watch) while nobody can tell.

    Raises:
      Held: another process holds it.
      UserError: the place cannot be written.
    """
    self._take()
    self._beaten = (time.time(), time.monotonic())
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
    while True:
      # Read first: who asks for many leases, most of them held, leaves no traces.
      text, held = self._read()
      if text is None:
        if io.create_text(self._path, self._text()):
          return
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
    with Lease(claim, self._beat_s, self._expiry_s, self._watch):
      if self._read()[0] != seen:
        return False
      io.write_text_atomic(self._path, self._text())
      return True

  def check(self) -> None:
    """To be called before anything that others must not see twice.

    Raises:
      Held: another process has taken the lease (this one was suspended for too long).
    """
    if self._lost is None and self._is_late():
      # Suspended for so long that others may have followed: look, do not wait for our next beat.
      text, held = self._read()
      if text is not None and not self._is_ours(held):
        self._lost = held or _UNKNOWN
    if self._lost is not None:
      raise _held(self._path, self._lost)

  def _is_late(self) -> bool:
    """Whether our last sign of life is old, by either clock: one of them stands in a sleep."""
    wall, own = self._beaten
    return max(time.time() - wall, time.monotonic() - own) > self._expiry_s / 2

  def _refuse_living(self, text: str, held: dict[str, Any]) -> None:
    """Returns when the holder is dead; raises when it is not."""
    alive = process.lives(held)
    if alive:
      raise _held(self._path, held)
    if alive is False:
      return
    expiry = max(self._expiry_s, held.get('expiry', 0.0))
    if self._watch is not None:
      if self._watch.silent_s(self._path, text) > expiry:
        return
      raise _held(self._path, held)
    age = time.time() - held['beat']
    if age > max(expiry, _OLD_S):
      return
    log.say(f'waiting for a sign of {held["host"]}, process {held["pid"]}, which worked here')
    # By our own clock: those of two machines may differ. What seems dead has several beats to show
    # that it is only late.
    until = time.monotonic() + (expiry / 3 if age > expiry else expiry)
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
          self._lost = held or _UNKNOWN
          return
        # Somebody may have removed it, and another have come since.
        write = io.create_text if text is None else io.write_text_atomic
        write(self._path, self._text())
        self._beaten = (time.time(), time.monotonic())

  def _is_ours(self, held: dict[str, Any] | None) -> bool:
    return held is not None and held['token'] == self._name['token']

  def _text(self) -> str:
    # Counted too, or a clock that stands or jumps back could make two beats read the same.
    return io.to_json({**self._name, 'beat': time.time(), 'beats': next(self._beats)}) + '\n'

  def _read(self) -> tuple[str | None, dict[str, Any] | None]:
    return _read(self._path)


def _read(path: epath.Path) -> tuple[str | None, dict[str, Any] | None]:
  """What the file holds (None if there is none), and the lease in it (None if damaged)."""
  with io.explain_unreadable(path):
    try:
      text = path.read_bytes().decode(errors='replace')
    except FileNotFoundError:
      return None, None
  try:
    held = json.loads(text)
    process.lives(held), held['host'], held['token'], float(held['beat'])
    float(held.get('expiry', 0.0))
  except (ValueError, KeyError, TypeError):
    return text, None
  return text, held


def holder(path: epath.PathLike) -> dict[str, Any] | None:
  """Who holds a lease, for people to read; None if nobody, or a process known to be dead.

  Returns:
    {'host', 'pid', 'silent-s': seconds since its last beat by the clocks of both machines,
    'expired': whether that is longer than it said it might be}.
  """
  held = _read(epath.Path(path))[1]
  if held is None or process.lives(held) is False:
    return None
  silent = max(0.0, time.time() - held['beat'])
  expired = silent > held.get('expiry', EXPIRY_S) and process.lives(held) is None
  return {'host': held['host'], 'pid': held['pid'], 'silent-s': silent, 'expired': expired}


def refuse_if_held(path: epath.PathLike) -> None:
  """Raises `Held` where a process of this machine holds it, before anything is prepared for it.

  In vain on other machines: for them `Lease` has to look on for a while.
  """
  file = epath.Path(path)
  # What is no directory is told where one is made.
  held = _read(file)[1] if file.parent.is_dir() else None
  if held is not None and process.lives(held):
    raise _held(file, held)


def _held(path: epath.Path, holder: dict[str, Any]) -> Held:
  return Held(
    f'{holder["host"]}, process {holder["pid"]}, is at work here',
    str(path.parent),
    'wait for it or stop it; for another run choose another --workdir',
  )

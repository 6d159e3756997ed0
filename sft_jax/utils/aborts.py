"""Aborts of a C++ runtime, which end a process behind Python's back, made a line and a status.

Not for Python's own exceptions.
"""

import contextlib
import ctypes
import os
import signal
import tempfile
from collections.abc import Callable, Iterator


@contextlib.contextmanager
def explained(explain: Callable[[], str], status: int) -> Iterator[None]:
  """Context in which an abort ends the process with a line of ours.

  Args:
    explain: Called in the thread that aborts; '' where it knows nothing of this abort, which then
      takes its course.
    status: Exit status with a line.
  """
  libc = ctypes.CDLL(None)
  libc.signal.restype = ctypes.c_void_p
  libc.signal.argtypes = [ctypes.c_int, ctypes.c_void_p]

  # In C, not by Python's `signal`: abort() does not return to where Python looks for signals.
  @ctypes.CFUNCTYPE(None, ctypes.c_int)
  def on_abort(number: int) -> None:
    if line := explain():
      os.write(2, f'{line}\n'.encode())
      os._exit(status)
    # Who handled it before comes next.
    libc.signal(number, before)
    libc['raise'](number)

  before = libc.signal(signal.SIGABRT, ctypes.cast(on_abort, ctypes.c_void_p))
  try:
    yield
  finally:
    libc.signal(signal.SIGABRT, before)


@contextlib.contextmanager
def told_as(line: str, status: int) -> Iterator[None]:
  """Context in which an abort becomes `line` and nothing else is printed of it.

  What is written to standard error meanwhile is kept back, and printed where the block ends.
  """
  with tempfile.TemporaryFile() as file:
    saved = os.dup(2)

    def speak() -> str:
      os.dup2(saved, 2)
      return line

    os.dup2(file.fileno(), 2)
    try:
      with explained(speak, status):
        yield
    finally:
      os.dup2(saved, 2)
      os.close(saved)
      file.seek(0)
      os.write(2, file.read())

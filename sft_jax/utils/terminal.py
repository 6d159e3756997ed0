"""Standard streams as they may be: a terminal, a pipe, closed, or with nobody at the other end.

Work goes on without a reader. Not for what is told: `log.py`.
"""

import contextlib
import os
from typing import TextIO

# Controls (C0 and DEL) as their pictures, those of C1 as their numbers; lines and tabs stay.
_VISIBLE = {
  **{code: chr(0x2400 + code) for code in range(0x20) if code not in b'\n\t'},
  0x7F: '\u2421',
  **{code: f'\\x{code:02x}' for code in range(0x80, 0xA0)},
}


def write(stream: TextIO | None, text: str) -> bool:
  """Writes and flushes; returns whether that could be done.

  What cannot be written, a reader or terminal being gone or a disk full, is lost: a run is worth
  more than its lines. What an encoding lacks becomes '?'.

  Args:
    stream: None where the process was started without it.
    text: Whole lines, or what moves a cursor.
  """
  if stream is None:
    return False
  try:
    try:
      stream.write(text)
    except UnicodeEncodeError as e:
      stream.write(text.encode(e.encoding, 'replace').decode(e.encoding))
    stream.flush()
    return True
  except (OSError, ValueError):  # ValueError: of a closed file
    with contextlib.suppress(OSError, ValueError, AttributeError):
      _drain(stream)
    return False


def _drain(stream: TextIO) -> None:
  """Empties a buffer that cannot be written: it would fail once more as the process ends."""
  number = stream.fileno()
  kept, nowhere = os.dup(number), os.open(os.devnull, os.O_WRONLY)
  os.dup2(nowhere, number)
  try:
    stream.flush()
  finally:
    os.dup2(kept, number)
    os.close(kept)
    os.close(nowhere)


def is_terminal(stream: TextIO | None) -> bool:
  """Whether a person looks on, at a terminal that can move its cursor."""
  try:
    return stream is not None and stream.isatty() and os.environ.get('TERM') != 'dumb'
  except ValueError:  # a closed file
    return False


def takes_colour(stream: TextIO | None) -> bool:
  """Whether what is written may be coloured: by a terminal, unless NO_COLOR has a value."""
  return is_terminal(stream) and not os.environ.get('NO_COLOR')


def visible(text: str) -> str:
  """Text that is not ours, for a person's eyes: no control character in it moves a cursor."""
  return text.translate(_VISIBLE)

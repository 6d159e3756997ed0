"""A list of JSON records that is too long to be held in memory, read one record after another.

Not for files that fit: `readers.py`, which also tells lines and reads objects of records.
"""

import codecs
import json
from collections.abc import Iterator
from typing import Any

from sft_jax.utils.errors import UserError

# Files of more bytes are read in pieces; a text takes up to four times its bytes in memory.
LARGE = 1 << 29
_PIECE = 1 << 22
# Longest record, in characters: where one is broken, the search for its end stops here.
_LONGEST = 1 << 26
_SPACE = ' \t\r\n'


def records(path: str, piece: int = _PIECE) -> Iterator[tuple[str, Any]]:
  """('file:[INDEX]', record) of a file that is one JSON list; other files raise UserError.

  Args:
    path: A UTF-8 file.
    piece: Bytes read at a time.
  """
  decoder = json.JSONDecoder()
  with open(path, 'rb') as file:
    text = _Text(file, piece, path)
    if text.next_char() != '[':
      raise UserError('not a list of records', path, 'write one JSON list, or one object a line')
    text.at += 1
    index = 0
    while (char := text.next_char()) != ']':
      if index and char == ',':
        text.at += 1
        text.next_char()
      elif index:
        raise _bad(path, index, "expected ',' or ']'")
      yield f'{path}:[{index}]', text.decode(decoder, index)
      index += 1
    text.at += 1
    if text.next_char():
      raise _bad(path, index, 'text after the ] that ends the list')


class _Text:
  """The unread part of a file's text; `at` is where reading goes on in `held`."""

  def __init__(self, file: Any, piece: int, path: str):
    self._file, self._piece, self._path = file, piece, path
    self._utf8 = codecs.getincrementaldecoder('utf-8')()
    self.held, self.at, self._ended = '', 0, False

  def _more(self) -> bool:
    if self._ended:
      return False
    data = self._file.read(self._piece)
    self._ended = not data
    try:
      text = self._utf8.decode(data, final=not data)
    except UnicodeDecodeError as error:
      where = f'{self._path}: byte {self._file.tell() - len(data) + error.start}'
      raise UserError('not UTF-8', where, 'save it as UTF-8') from error
    self.held, self.at = self.held[self.at :] + text, 0
    return True

  def next_char(self) -> str:
    """The next character that is no space, without taking it; '' at the end."""
    while True:
      while self.at < len(self.held) and self.held[self.at] in _SPACE:
        self.at += 1
      if self.at < len(self.held):
        return self.held[self.at]
      if not self._more():
        return ''

  def decode(self, decoder: json.JSONDecoder, index: int) -> Any:
    """Takes one value."""
    while True:
      try:
        value, end = decoder.raw_decode(self.held, self.at)
      except (ValueError, RecursionError) as error:
        if len(self.held) - self.at > _LONGEST or not self._more():
          raise _bad(self._path, index, str(error)) from error
        continue
      # A number may go on in the next piece.
      if end == len(self.held) and self._more():
        continue
      self.at = end
      return value


def _bad(path: str, index: int, reason: str) -> UserError:
  return UserError(f'malformed JSON: {reason}', f'{path}:[{index}]', 'mend it or fetch it again')

"""Lines are told where somebody reads them; work goes on where nobody does."""

import io
import os
import pathlib

import pytest

from sft_jax.utils import log, terminal


def test_lines_arrive(tmp_path):
  with open(tmp_path / 'out', 'w') as f:
    assert terminal.write(f, 'one\n')
    assert (tmp_path / 'out').read_text() == 'one\n', 'at once'


def no_reader():
  reading, writing = os.pipe()
  os.close(reading)
  return open(writing, 'w')


def full_disk():
  if not pathlib.Path('/dev/full').exists():
    pytest.skip('needs /dev/full')
  return open('/dev/full', 'w')


@pytest.mark.parametrize('make', [no_reader, full_disk])
def test_what_nobody_can_read_ends_nothing(make):
  stream = make()
  assert not terminal.write(stream, 'one\n') and not terminal.write(stream, 'two\n')
  stream.close()  # Nothing is left in it that would fail now.


def test_no_stream_and_a_closed_one(tmp_path):
  assert not terminal.write(None, 'one\n')
  with open(tmp_path / 'out', 'w') as stream:
    pass
  terminal.write(stream, 'one\n')
  assert not terminal.is_terminal(None) and not terminal.is_terminal(stream)


def test_what_an_encoding_lacks():
  raw = io.BytesIO()
  stream = io.TextIOWrapper(raw, 'ascii')
  terminal.write(stream, 'a – 7 ± 2\n')
  assert raw.getvalue() == b'a ? 7 ? 2\n'


def test_a_terminal_is_one_that_moves_its_cursor(monkeypatch):
  class Terminal(io.StringIO):
    def isatty(self):
      return True

  monkeypatch.setenv('TERM', 'xterm')
  assert terminal.is_terminal(Terminal()) and not terminal.is_terminal(io.StringIO())
  monkeypatch.setenv('TERM', 'dumb')
  assert not terminal.is_terminal(Terminal())


@pytest.mark.parametrize('value, coloured', [(None, True), ('', True), ('1', False)])
def test_only_a_value_of_no_color_takes_the_colour(value, coloured, monkeypatch):
  class Terminal(io.StringIO):
    def isatty(self):
      return True

  monkeypatch.setenv('TERM', 'xterm')
  monkeypatch.delenv('NO_COLOR', raising=False)
  if value is not None:
    monkeypatch.setenv('NO_COLOR', value)
  assert terminal.takes_colour(Terminal()) == coloured
  assert log.Bar(Terminal(), quiet=False, every_s=1)._colour == coloured
  assert not terminal.takes_colour(io.StringIO()) and not terminal.takes_colour(None)


def test_controls_are_seen_and_lines_and_tabs_stay():
  assert terminal.visible('\x1b[2J\x07\r\x00\x04\b\x7f') == '␛[2J␇␍␀␄␈␡'
  assert terminal.visible('a\tb\n\x9b2J é 🙂') == 'a\tb\n\\x9b2J é 🙂'

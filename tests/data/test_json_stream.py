"""A long JSON list read in pieces gives what reading it whole gives."""

import json

import pytest

from sft_jax.data import json_stream, readers
from sft_jax.utils.errors import UserError

ROWS = [{'a': f'東京 "{i}" \\ [,]', 'b': [i, {'c': None}]} for i in range(20)]


def stream(path, piece):
  return list(json_stream.records(str(path), piece))


@pytest.mark.parametrize('piece', [1, 2, 7, 64, 1 << 20])
@pytest.mark.parametrize('indent', [None, 1])
def test_pieces_do_not_matter(tmp_path, piece, indent):
  path = tmp_path / 'a.json'
  path.write_text(json.dumps([*ROWS, 12, 345], ensure_ascii=False, indent=indent) + '\n')
  got = stream(path, piece)
  assert [record for _, record in got] == [*ROWS, 12, 345]
  assert got[3][0] == f'{path}:[3]'


@pytest.mark.parametrize('piece', [1, 5, 1 << 20])
@pytest.mark.parametrize(
  ('text', 'words'),
  [
    ('{"a": 1}', 'not a list of records'),
    ('[{"a": 1} {"a": 2}]', r"expected ',' or '\]' .*:\[1\]"),
    ('[{"a": 1}, {"a": ]', r'malformed JSON.*:\[1\]'),
    ('[{"a": 1}, {"a": 2}', r"expected ',' or '\]' .*:\[2\]"),
    ('[{"a": 1}', r'malformed|expected'),
    ('[1] x', r'text after the \]'),
    ('', 'not a list of records'),
  ],
)
def test_what_is_broken_is_one_line(tmp_path, text, words, piece):
  path = tmp_path / 'a.json'
  path.write_text(text)
  with pytest.raises(UserError, match=words):
    stream(path, piece)


def test_bytes_that_are_no_text(tmp_path):
  path = tmp_path / 'a.json'
  path.write_bytes(b'["ab", "\xff"]')
  with pytest.raises(UserError, match=r'not UTF-8 .*byte 8\)'):
    stream(path, 3)


def test_the_search_for_the_end_of_a_broken_record_stops(tmp_path, monkeypatch):
  monkeypatch.setattr(json_stream, '_LONGEST', 100)
  path = tmp_path / 'a.json'
  path.write_text('["' + 'x' * 10_000)
  with pytest.raises(UserError, match='malformed'):
    next(iter(json_stream.records(str(path), 10)))


def test_large_files_are_streamed(tmp_path, monkeypatch):
  path = tmp_path / 'a.json'
  path.write_text(json.dumps(ROWS))
  whole = [record for _, record in readers.read_raw(str(path))]
  monkeypatch.setattr(json_stream, 'LARGE', 10)
  got = list(readers.read_raw(str(path), limit=4))
  assert [record for _, record in got] == whole[:4] and got[1][0] == f'{path}:[1]'

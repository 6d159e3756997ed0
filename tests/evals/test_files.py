"""Benchmark data from a directory or the hub: places, and errors that say what to do."""

import gzip
import json

import pytest

from sft_jax.evals.files import HubFiles, LocalFiles
from sft_jax.utils.errors import UserError

COLUMNS = ('question', 'A', 'B', 'answer')


@pytest.fixture
def files(tmp_path):
  return LocalFiles(f'{tmp_path}/')


def test_kinds_and_places(files, tmp_path):
  (tmp_path / 'sub').mkdir()
  (tmp_path / 'a.jsonl').write_text('{"x": 1}\n\n{"x": 2}\n')
  (tmp_path / 'b.jsonl.gz').write_bytes(gzip.compress(b'{"x": 3}'))
  (tmp_path / 'c.json').write_text('[\n{"x": 4}]')
  (tmp_path / 'sub' / 'd.csv').write_bytes('\ufeff,Question\n0,"a ""b""\nc"\n1,nan\n'.encode())
  (tmp_path / 'e.tsv').write_text('x\ty\n1\t2, "3\n'.replace('"', ''))
  assert files.local
  assert files.rows('a.jsonl') == [({'x': 1}, 'a.jsonl:1'), ({'x': 2}, 'a.jsonl:3')]
  packed = [({'x': 3}, 'b.jsonl.gz:1')]
  assert files.rows('b.jsonl') == files.rows('b.jsonl.gz') == packed
  assert files.rows('c.json') == [({'x': 4}, 'c.json:2')]
  assert files.rows('sub/d.csv') == [
    ({'': '0', 'Question': 'a "b"\nc'}, 'sub/d.csv:2'),
    ({'': '1', 'Question': 'nan'}, 'sub/d.csv:4'),
  ]
  assert files.rows('e.tsv') == [({'x': '1', 'y': '2, 3'}, 'e.tsv:2')]


def test_csv_without_header(files, tmp_path):
  (tmp_path / 'a.csv').write_bytes(
    '\ufeffWhy?,"1,000",None,A\r\n"Two\nlines",a,"b ""c""",B\r\n'.encode()
  )
  first, second = files.rows('a.csv', columns=COLUMNS)
  assert first == ({'question': 'Why?', 'A': '1,000', 'B': 'None', 'answer': 'A'}, 'a.csv:1')
  assert second[0]['question'] == 'Two\nlines' and second[0]['B'] == 'b "c"'
  assert second[1] == 'a.csv:2'


def test_names(files, tmp_path):
  for name in ('b.csv', 'a.csv', 'a.txt'):
    (tmp_path / name).touch()
  (tmp_path / 'c.csv').mkdir()
  assert files.names('*.csv') == ['a.csv', 'b.csv']
  (tmp_path / 'c.csv' / 'd.csv').touch()
  assert files.names('*/*.csv') == ['c.csv/d.csv']
  assert files.names('none*') == HubFiles().names('*') == []


def test_missing(files, tmp_path):
  with pytest.raises(UserError, match=r'no such directory \(.*nowhere\).*config.eval.data_dir'):
    LocalFiles(str(tmp_path / 'nowhere'))
  with pytest.raises(UserError) as caught:
    files.rows('mmlu/test/a.csv', hub='org/name@test')
  for part in ('mmlu/test/a.csv', str(tmp_path), 'config.eval.data_dir', 'org/name@test'):
    assert part in str(caught.value)
  with pytest.raises(UserError, match='not on the hub'):
    files.rows('own.jsonl')
  with pytest.raises(UserError, match=r'not on the hub \(own.jsonl\).*config.eval.data_dir'):
    HubFiles().rows('own.jsonl')


@pytest.mark.parametrize(
  'name, text, columns, message',
  [
    ('a.jsonl', '{"x": 1}\n{"x": }\n', (), r'malformed JSON.*a.jsonl:2\)'),
    ('a.jsonl', '{"x": 1}\n[1]\n', (), r'a list, not an object \(.*a.jsonl:2\)'),
    ('a.jsonl', '\n', (), r'no records \(.*a.jsonl\)'),
    ('a.csv', 'q,1,2,A\nq,1,2,3,A\n', COLUMNS, r'a row of 5 fields, not 4 \(.*a.csv:2\)'),
    ('a.csv', 'q,1,2,A\nq,"1,2,A\n', COLUMNS, r'malformed CSV.*a.csv:2\)'),
    ('a.csv', '\n', COLUMNS, r'no records \(.*a.csv\)'),
  ],
)
def test_malformed(files, tmp_path, name, text, columns, message):
  (tmp_path / name).write_text(text)
  with pytest.raises(UserError, match=message):
    files.rows(name, columns=columns)


def test_hub(tmp_path, monkeypatch):
  """`datasets` reads a folder as it reads what it has fetched from the hub."""
  monkeypatch.setenv('HF_HUB_OFFLINE', '1')
  (tmp_path / 'set').mkdir()
  lines = [json.dumps({'x': number}) for number in range(3)]
  (tmp_path / 'set' / 'test.jsonl').write_text('\n'.join(lines))
  hub = HubFiles(str(tmp_path / 'cache'))
  assert not hub.local
  name = f'{tmp_path}/set'
  rows = hub.rows('ignored.csv', hub=f'{name}@test', columns=COLUMNS)
  assert rows == [({'x': number}, f'hf:{name}@test:row {number}') for number in range(3)]
  assert hub.rows('ignored.csv', hub=f'{name}@test[:2]') == [
    ({'x': number}, f'hf:{name}@test[:2]:row {number}') for number in range(2)
  ]

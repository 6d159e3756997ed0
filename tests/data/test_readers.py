"""Places of records, and what Python's own readers would lose without a word."""

import gzip
import json

import pytest

from sft_jax.data.formats import read_records
from sft_jax.data.readers import file_kind, read_raw
from sft_jax.utils.errors import UserError


def places(path, text):
  path.write_text(text)
  found = [where.removeprefix(f'{path}:') for where, _ in read_raw(str(path))]
  assert len(set(found)) == len(found)
  return found


def test_no_two_records_share_a_place(tmp_path):
  path = tmp_path / 'a.json'
  rows = [{'text': str(i)} for i in range(3)]
  assert places(path, json.dumps(rows)) == ['1[0]', '1[1]', '1[2]']
  assert places(path, json.dumps(rows[:1])) == ['1']
  assert places(path, json.dumps(rows, indent=1)) == ['2', '5', '8']
  # The second starts on the line where the first ends.
  assert places(path, json.dumps(rows, indent=1).replace('},\n', '},')) == ['2', '4', '6']
  mixed = '[{"text": "a"},\n{"text": "b"}, {"text": "c"},\n\n{"text": "d"} , ]\n'
  assert places(path, mixed) == ['1', '2[1]', '2[2]', '4']
  assert places(path, json.dumps({'data': rows})) == ['data[0]', 'data[1]', 'data[2]']
  # A key may hold anything, a line feed or half a character too.
  assert places(path, '{"a\\n": {"text": "a"}, "\\ud800": {"text": "b"}}') == [
    r"'a\n'",
    r"'\ud800'",
  ]
  # Where a row of several lines starts; empty lines count.
  assert places(tmp_path / 'a.csv', '\ntext\n"a\nb"\n\nc\n') == ['3', '6']


LOST = [
  ('a.json', '[{"text": "a"}]\n[{"text": "b"}]', r'text after the \] that ends the list .*:2\)'),
  ('a.json', '[{"text": "a"}] garbage', r'text after the \] that ends the list .*:1\)'),
  ('a.json', '[]]', r'text after the \]'),
  ('a.json', '{"text": "a"} garbage', r'malformed JSON: Extra data at column 15 '),
  ('a.json', '[{"text": "a"}, {"text": }]', r'malformed JSON: .* at column 26 .*a.json:1\)'),
  (
    'a.json',
    '{"train": [{"text": "a"}], "test": [{"text": "b"}]}',
    "two lists .*'train' and 'test'",
  ),
  ('a.json', '{"a": {"text": "a"}, "a": {"text": "b"}}', "the key 'a' occurs twice"),
  ('a.json', '[\n{"text": "a", "text": "b"}]', r"the key 'text' occurs twice .*a.json:2\)"),
  ('a.jsonl', '{"text": "c"}\n{"text": "a", "text": "b"}', r"'text' occurs twice .*a.jsonl:2\)"),
  ('a.jsonl', '{"text": "c"}\n\ufeff{"text": "a"}', r'malformed JSON: .*a.jsonl:2\)'),
  ('a.jsonl', '{"text": ' + '9' * 5000 + '}', r'malformed JSON: .*4300 digits.*a.jsonl:1\)'),
  ('a.json', '[{"text": "a"},\n' + '[' * 100_000, r'malformed JSON: .*recursion.*a.json:2\)'),
  ('a.csv', 'text\na\n"b\nc\n', r'malformed CSV: unexpected end of data .*a.csv:3\)'),
]


@pytest.mark.parametrize(('name', 'text', 'message'), LOST, ids=range(len(LOST)))
def test_nothing_is_lost_silently(tmp_path, name, text, message):
  path = tmp_path / name
  path.write_text(text)
  with pytest.raises(UserError, match=message) as caught:
    read_records(str(path))
  assert caught.value.where and caught.value.how and str(path) in str(caught.value)


def test_parquet_columns_of_one_name(tmp_path):
  import pyarrow
  import pyarrow.parquet

  column = pyarrow.array(['a'])
  table = pyarrow.table([column, column], names=['text', 'text'])
  pyarrow.parquet.write_table(table, tmp_path / 'a.parquet')
  with pytest.raises(UserError, match=r'a column name occurs twice .*a.parquet'):
    read_records(str(tmp_path / 'a.parquet'))


def test_parquet_value_without_a_python_type(tmp_path):
  import pyarrow
  import pyarrow.parquet

  when = pyarrow.array([2**55], pyarrow.timestamp('ms'))  # far beyond the year 9999
  pyarrow.parquet.write_table(pyarrow.table({'text': when}), tmp_path / 'a.parquet')
  with pytest.raises(UserError, match=r'not a readable Parquet file: .*a.parquet'):
    read_records(str(tmp_path / 'a.parquet'))


@pytest.mark.parametrize('name', ['a.tsv', 'a.TSV', 'a.csv.tsv', 'a.tsv.gz', 'a.TSV.GZ'])
def test_tabs(tmp_path, name):
  text = b'instruction\toutput\na, b\tc\n'
  path = tmp_path / name
  path.write_bytes(gzip.compress(text) if name.lower().endswith('.gz') else text)
  (record,) = read_records(str(path))
  assert [m['content'] for m in record.messages] == ['a, b', 'c']


@pytest.mark.parametrize('name', ['a.csv', 'a.CSV', 'a.tsv.csv', 'a.tsv.csv.gz'])
def test_commas(tmp_path, name):
  text = b'instruction,output\na\tb,c\n'
  path = tmp_path / name
  path.write_bytes(gzip.compress(text) if name.endswith('.gz') else text)
  (record,) = read_records(str(path))
  assert [m['content'] for m in record.messages] == ['a\tb', 'c']


def test_long_fields(tmp_path):
  """Python's own limit is 128 KiB; it is left as it was."""
  import csv

  before = csv.field_size_limit()
  (tmp_path / 'a.csv').write_text(f'text\n{"x" * 200_000}\n')
  (record,) = read_records(str(tmp_path / 'a.csv'))
  assert len(record.text) == 200_000 and csv.field_size_limit() == before


def test_file_kind():
  names = ('a.jsonl', 'b/A.JSONL.gz', 'v1.2/data', 'x.tsv.csv', 'a.gz', '.gz')
  assert [file_kind(name) for name in names] == ['.jsonl', '.jsonl', '', '.csv', '', '']


def test_paths_the_system_refuses(tmp_path):
  for path, message in (
    (tmp_path / 'a.jsonl' / 'b.jsonl', 'no such file'),
    (tmp_path / ('x' * 300 + '.jsonl'), 'cannot be read: .*too long'),
  ):
    (tmp_path / 'a.jsonl').write_text('{"text": "a"}')
    with pytest.raises(UserError, match=message):
      read_records(str(path))

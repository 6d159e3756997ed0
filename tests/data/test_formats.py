"""Every file kind and record shape, and every kind of bad input with its place."""

import csv
import gzip
import itertools
import json
import re

import numpy as np
import pytest

from sft_jax.data import datasets as named
from sft_jax.data.formats import EMPTY, FORMATS, Record, convert, detect, read_records
from sft_jax.data.tokenize import Example, encode_all
from sft_jax.utils.errors import UserError

ALPACA = {'instruction': 'Add.', 'input': '1, 2', 'output': '3'}

# raw record, format it is detected as, contents by role
SHAPES = [
  (ALPACA, 'alpaca', [('user', 'Add.\n1, 2'), ('assistant', '3')]),
  (
    {**ALPACA, 'input': '', 'history': [['Hi', 'Hello']], 'system': 'Be kind.'},
    'alpaca',
    [
      ('system', 'Be kind.'),
      ('user', 'Hi'),
      ('assistant', 'Hello'),
      ('user', 'Add.'),
      ('assistant', '3'),
    ],
  ),
  (
    {'instruction': 'Add.', 'input': None, 'output': '3', 'history': None},
    'alpaca',
    [('user', 'Add.'), ('assistant', '3')],
  ),
  (
    {'messages': [{'role': 'user', 'content': 'a'}, {'role': 'assistant', 'content': 'b'}]},
    'messages',
    [('user', 'a'), ('assistant', 'b')],
  ),
  (
    {
      'messages': [
        {'role': 'user', 'content': [{'type': 'text', 'text': 'a'}, {'type': 'text', 'text': 'b'}]},
        {'role': 'assistant', 'content': 'c'},
      ]
    },
    'messages',
    [('user', 'ab'), ('assistant', 'c')],
  ),
  (
    {'conversations': {'from': ['human', 'gpt'], 'value': ['a', 'b']}},
    'sharegpt',
    [('user', 'a'), ('assistant', 'b')],
  ),
  ({'prompt': 'a', 'completion': 'b'}, 'prompt_completion', [('user', 'a'), ('assistant', 'b')]),
  (
    {
      'prompt': [{'role': 'system', 'content': 's'}, {'role': 'user', 'content': 'a'}],
      'completion': [{'role': 'assistant', 'content': 'b'}],
    },
    'prompt_completion',
    [('system', 's'), ('user', 'a'), ('assistant', 'b')],
  ),
  ({'question': 'q', 'answer': 'a'}, 'question_answer', [('user', 'q'), ('assistant', 'a')]),
  ({'question': 'q', 'answer': ['a', 'b']}, 'question_answer', [('user', 'q'), ('assistant', 'a')]),
  ({'question': 'q', 'answer': False}, 'question_answer', [('user', 'q'), ('assistant', 'no')]),
  ({'question': 'q', 'answer': 7}, 'question_answer', [('user', 'q'), ('assistant', '7')]),
  (
    {'question': 'q', 'passage': 'p', 'label': True},
    'question_answer',
    [('user', 'p\nq'), ('assistant', 'yes')],
  ),
  (
    {'question': 'q', 'answers': [{'text': 'a', 'answer_start': 0}]},
    'question_answer',
    [('user', 'q'), ('assistant', 'a')],
  ),
]


@pytest.mark.parametrize(('raw', 'fmt', 'expected'), SHAPES)
def test_shapes(tmp_path, raw, fmt, expected):
  path = tmp_path / 'a.jsonl'
  path.write_text(json.dumps(raw))
  for chosen in ('auto', fmt):
    (record,) = read_records(str(path), chosen)
    assert [(m['role'], m['content']) for m in record.messages] == expected
    assert record.source == f'{path}:1' and not record.problem


def test_plain_text(tmp_path):
  path = tmp_path / 'a.jsonl'
  path.write_text('{"text": "Once."}\n')
  (record,) = read_records(str(path))
  assert record.text == 'Once.' and not record.messages and record.contents == ('Once.',)


def test_sharegpt_file(fixtures):
  """Blank lines count as lines; an unanswered end is cut off; an empty answer is marked."""
  records = read_records(str(fixtures / 'sharegpt.jsonl'))
  assert [r.source.rpartition(':')[2] for r in records] == ['1', '3', '4']
  assert [len(r.messages) for r in records] == [2, 4, 2]
  assert [m['role'] for m in records[1].messages] == ['system', 'user', 'tool', 'assistant']
  assert [r.problem for r in records] == ['', '', EMPTY]
  with pytest.raises(UserError, match=r'empty response .*sharegpt.jsonl:4'):
    read_records(str(fixtures / 'sharegpt.jsonl'), empty='error')


def test_every_named_data_set_reads_and_tokenises(fixtures, tmp_path, chatml):
  """One record written in each data set's published fields."""
  rows = json.loads((fixtures / 'rows.json').read_text())
  assert set(rows) == set(named.DATASETS)
  for name, row in named.DATASETS.items():
    assert {'path', 'format', 'licence', 'note'} <= set(row) and row['format'] in FORMATS
    path = tmp_path / f'{name}.jsonl'
    path.write_text(json.dumps(rows[name]))
    records = read_records(
      str(path), row['format'], columns=row.get('columns'), where=row.get('where')
    )
    if row.get('turns'):
      records = [named.first_turns(record, row['turns']) for record in records]
      assert len(records[0].messages) == 2 * row['turns']
    for template in ('study', 'chat'):
      ((example,), dropped) = encode_all(records, chatml, template)
      assert isinstance(example, Example) and not dropped
      learnt = chatml.decode(example.ids[example.loss_weight > 0]).strip()
      assert learnt == records[0].messages[-1]['content'] + chatml.eos_token


def test_file_kinds_agree(tmp_path):
  import pyarrow
  import pyarrow.parquet

  rows = [{**ALPACA, 'output': f'{i} "quoted",\n东京'} for i in range(3)]
  text = '\n'.join(map(json.dumps, rows))
  (tmp_path / 'a.json').write_text(json.dumps(rows, indent=1))
  (tmp_path / 'b.json').write_text(json.dumps({'data': rows}))
  (tmp_path / 'c.json').write_text(json.dumps({str(i): row for i, row in enumerate(rows)}))
  (tmp_path / 'd.json').write_text(text)
  (tmp_path / 'e.jsonl').write_text('\ufeff' + text)
  (tmp_path / 'f.jsonl.gz').write_bytes(gzip.compress(text.encode()))
  with (tmp_path / 'g.csv').open('w', newline='') as file:
    writer = csv.DictWriter(file, list(ALPACA))
    writer.writeheader()
    writer.writerows(rows)
  table = pyarrow.Table.from_pylist(rows)
  pyarrow.parquet.write_table(table, tmp_path / 'h.parquet')
  (tmp_path / 'i.ndjson').write_text(text)
  expected = [record.messages for record in read_records(str(tmp_path / 'e.jsonl'))]
  assert len(expected) == 3 and expected[1][-1]['content'] == rows[1]['output']
  for path in sorted(tmp_path.iterdir()):
    assert [record.messages for record in read_records(str(path))] == expected, path
    assert len(read_records(str(path), limit=2)) == 2
  lines = [r.source.rpartition(':')[2] for r in read_records(str(tmp_path / 'a.json'))]
  assert lines == ['2', '7', '12']


BAD_FILES = [
  ('a.jsonl', b'{"text": "a"}\n{"text": \n', r'malformed JSON.*a.jsonl:2'),
  ('a.json', b'[\n{"text": "a"},\n{"text": "b",}\n]', r'malformed JSON.*a.json:3'),
  ('a.json', b'[\n{"text": "a"}\n{"text": "b"}\n]', r'malformed JSON.*a.json:3'),
  ('a.json', b'[{"text": "a"},\n', r'malformed JSON.*a.json:2'),
  ('a.json', b'3', r'a JSON int, not records'),
  ('a.jsonl', b'{"text": "a"}\n{"text": "\xff"}', r'not UTF-8: byte 0xff .*a.jsonl:2'),
  ('a.jsonl', b'{"text": "\\ud800"}', r'lone surrogate .*a.jsonl:1'),
  ('a.jsonl', b'', r'no records'),
  ('a.json', b' \n', r'no records'),
  ('a.json', b'[]', r'no records'),
  ('a.csv', b'text\n', r'no records'),
  ('a.jsonl', b'\n\n', r'no records'),
  ('a.jsonl', b'[1]', r'a record is a list, not an object .*:1'),
  ('a.jsonl', b'{"text": 3}', r"field 'text' is a int, not text .*a.jsonl:1"),
  ('a.jsonl', b'{"text": "a"}\n{"txt": "b"}', r"field 'text' is missing .*a.jsonl:2"),
  ('a.jsonl', b'{"x": 1, "y": 2}', r'no known format .*\(x, y\) .*known: messages'),
  ('a.jsonl', b'{"instruction": "a", "output": null}', r"'output' is null, not text"),
  ('a.jsonl', b'{"instruction": "a", "output": "b", "history": [1]}', r"'history' is not a list"),
  ('a.jsonl', b'{"instruction": "a", "output": "b", "history": 1}', r"'history' is not a list"),
  ('a.jsonl', b'{"instruction": "a", "output": "b", "system": 1}', r"'system' is a int, not text"),
  ('a.jsonl', b'{"question": "a", "answer": NaN}', r"'answer' is nan, not a finite number .*:1"),
  ('a.jsonl', b'{"question": "a", "answer": 1e999}', r"'answer' is inf, not a finite number"),
  (
    'a.jsonl',
    b'{"question": "q", "choices": {"label": ["A"], "text": ["x"]}, "answerKey": "B"}',
    r"'answerKey' names no label of 'choices' .*:1",
  ),
  *(
    ('a.jsonl', line, r"'choices' is not an object of two lists, .*a.jsonl:1")
    for line in (
      b'{"question": "q", "choices": {"label": ["A"]}, "answerKey": "A"}',
      b'{"question": "q", "choices": {"label": ["A", "B"], "text": ["x"]}, "answerKey": "B"}',
      b'{"question": "q", "choices": {"label": null, "text": ["x"]}, "answerKey": "A"}',
      b'{"question": "q", "choices": ["A"], "answerKey": "A"}',
    )
  ),
  ('a.jsonl', b'{"messages": "a"}', r"'messages' is a str, not a list"),
  (
    'a.jsonl',
    b'{"messages": {"role": "user", "content": "x"}}',
    r"'messages' is an object without lists of one length",
  ),
  (
    'a.jsonl',
    b'{"conversations": {"from": ["human", "gpt"], "value": ["x"]}}',
    r"'conversations' is an object without lists of one length",
  ),
  ('a.jsonl', b'{"messages": [1]}', r'messages\[0\] is a int'),
  ('a.jsonl', b'{"messages": [{"role": "user"}]}', r"messages\[0\]: field 'content' is missing"),
  (
    'a.jsonl',
    b'{"messages": [{"role": "user", "content": [{"type": "image"}]}]}',
    r'messages\[0\] holds something other than text',
  ),
  (
    'a.jsonl',
    b'{"conversations": [{"from": "wizard", "value": "x"}]}',
    r"unknown role 'wizard' \(known: system",
  ),
  ('a.csv', b'instruction,output\na,b\nc\n', r'a row without 2 fields .*a.csv:3'),
  ('a.csv', b'instruction,output\na,b,c\n', r'a row without 2 fields .*a.csv:2'),
  ('a.csv', b'text,text\na,b\n', r'a column name occurs twice'),
  ('a.csv', b'text\n"a"b\n', r"malformed CSV: ',' expected after '\"' .*a.csv:2"),
  ('a.parquet', b'PAR1nonsense', r'not a readable Parquet file'),
  ('a.jsonl.gz', b'not gzip', r'cannot be read'),
  ('a.jsonl.gz', gzip.compress(b'{"text": "a"}' * 99, mtime=0)[:-20], r'cannot be read'),
  ('a.pkl', b'', r'a.pkl is a pickle'),
  ('a.pt', b'', r'a.pt is a pickle'),
  ('a.xlsx', b'', r"unknown kind of file '.xlsx' .*use .json"),
]


@pytest.mark.parametrize(('name', 'content', 'message'), BAD_FILES)
def test_bad_files(tmp_path, name, content, message):
  path = tmp_path / name
  path.write_bytes(content)
  with pytest.raises(UserError) as caught:
    read_records(str(path))
  assert re.search(message, str(caught.value)), str(caught.value)
  assert str(path) in str(caught.value)


def test_other_bad_paths(tmp_path):
  with pytest.raises(UserError, match='no such file'):
    read_records(str(tmp_path / 'a.jsonl'))
  with pytest.raises(UserError, match='a directory'):
    read_records(str(tmp_path))
  with pytest.raises(UserError, match=r'unknown format .*alpaca'):
    read_records(str(tmp_path / 'a.jsonl'), 'alpacca')
  with pytest.raises(UserError, match='unknown choice'):
    read_records(str(tmp_path / 'a.jsonl'), empty='keep')


def test_named_format_wants_its_fields(tmp_path):
  path = tmp_path / 'a.jsonl'
  path.write_text('{"instruction": "a", "output": "b"}')
  with pytest.raises(UserError, match="field 'question' is missing"):
    read_records(str(path), 'question_answer')
  (record,) = read_records(
    str(path), 'question_answer', columns={'instruction': 'question', 'output': 'answer'}
  )
  assert record.messages[0]['content'] == 'a'


def test_line_separators_inside_strings(tmp_path):
  path = tmp_path / 'a.jsonl'
  path.write_text('{"text": "a\u2028b\x85c"}\n{"text": "d"}\n')
  assert [r.text for r in read_records(str(path))] == ['a\u2028b\x85c', 'd']


def test_hub_data_set_from_parquet(tmp_path):
  """Through `datasets`, which takes a local folder in place of a hub name."""
  pytest.importorskip('datasets')
  import pyarrow
  import pyarrow.parquet

  folder = tmp_path / 'org' / 'set' / 'data'
  folder.mkdir(parents=True)
  for split in ('train', 'test'):
    rows = [{'question': f'{split} {i}', 'answer': str(i)} for i in range(4)]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), folder / f'{split}-0.parquet')
  path, cache = f'hf:{folder.parent}', str(tmp_path / 'cache')
  records = read_records(path, cache_dir=cache)
  assert len(records) == 4 and records[0].messages[0]['content'] == 'train 0'
  records = read_records(f'{path}@test', limit=2, cache_dir=cache)
  assert [r.messages[0]['content'] for r in records] == ['test 0', 'test 1']
  with pytest.raises(UserError, match='cannot load the hub data set'):
    read_records(f'{path}@nosplit', cache_dir=cache)
  with pytest.raises(UserError, match='cannot load the hub data set'):
    read_records(f'hf:{tmp_path}/org/missing', cache_dir=cache)


def test_tfds_data_set(tmp_path):
  # Making (not reading) a data set needs a package that TFDS 4.9.10 does not ask for.
  pytest.importorskip('importlib_resources')
  tfds = pytest.importorskip('tensorflow_datasets', reason='needs tensorflow-datasets')
  rows = [
    {'question': f'q{i} 東京', 'answer': f'a{i}', 'choices': ['x', 'y'], 'score': i}
    for i in range(3)
  ]
  tfds.dataset_builders.store_as_tfds_dataset(
    name='our_questions',
    version='1.0.0',
    features=tfds.features.FeaturesDict(
      {
        'question': tfds.features.Text(),
        'answer': tfds.features.Text(),
        'choices': tfds.features.Sequence(tfds.features.Text()),
        'score': np.int64,
      }
    ),
    split_datasets={'train': list(enumerate(rows)), 'test': list(enumerate(rows[:1]))},
    data_dir=str(tmp_path),
  )
  records = read_records('tfds:our_questions', cache_dir=str(tmp_path))
  found = {(r.messages[0]['content'], r.messages[1]['content']) for r in records}
  assert found == {(row['question'], row['answer']) for row in rows}
  assert len(read_records('tfds:our_questions:1.0.0@test', cache_dir=str(tmp_path))) == 1
  with pytest.raises(UserError, match='cannot load the TFDS data set'):
    read_records('tfds:our_answers_nowhere', cache_dir=str(tmp_path))


def mutations(value, strange):
  """`value` with each part in turn, at any depth, replaced by each of `strange`."""
  yield from strange
  if isinstance(value, dict | list):
    for key in value if isinstance(value, dict) else range(len(value)):
      for changed in mutations(value[key], strange):
        copy = value.copy()
        copy[key] = changed
        yield copy
      if isinstance(value, dict):
        yield {k: v for k, v in value.items() if k != key}


STRANGE = [None, 0, 1, True, 2.5, float('nan'), -float('inf'), 10**4000, '', 'x', '\ud800', 'A']
STRANGE += [[], {}, [1], [None], [[]], [[['x']]], {'a': 1}, {'text': None}, {'label': 'A'}]
STRANGE += [
  [{}],
  [{'text': 5}],
  {'label': [[]], 'text': [{}]},
  {'role': ['user'], 'content': [[1]]},
]


def test_strange_values_are_refused_or_read(fixtures):
  """Whatever stands in whichever place of a record: a Record or one line, never a traceback."""
  rows = []
  for name, raw in json.loads((fixtures / 'rows.json').read_text()).items():
    columns = named.DATASETS[name].get('columns', {})
    rows.append({columns.get(key, key): value for key, value in raw.items()})
  refused = read = 0
  for row in (*rows, *(raw for raw, _, _ in SHAPES), {'text': 'a', 'split': 'train'}):
    fmt = detect(row, 'f:1')
    for changed, chosen in itertools.product(mutations(row, STRANGE), ('auto', fmt)):
      try:
        record = convert(changed, detect(changed, 'f:1') if chosen == 'auto' else fmt, 'f:1')
      except UserError as error:
        assert error.what and error.where == 'f:1' and error.how and '\n' not in str(error)
        refused += 1
        continue
      read += 1
      assert isinstance(record, Record) and all(isinstance(text, str) for text in record.contents)
      assert len(record.key) == 32 and (record.problem or all(record.contents[-1:]))
  assert refused > 1000 and read > 1000


def test_key_evens_out_case_and_spacing():
  first = convert({'question': 'Who  is it?\n', 'answer': 'Ann'}, 'question_answer', 'a')
  same = convert({'question': 'who is it?', 'answer': 'ann'}, 'question_answer', 'b')
  other = convert({'question': 'who is it?', 'answer': 'bob'}, 'question_answer', 'c')
  assert first.key == same.key != other.key


REAL = {
  'alpaca_2000.json': 2000,
  'alpaca_cleaned_1000.json': 1000,
  'alpaca_en_demo.json': 999,
  'arc_challenge_train.jsonl': 1119,
  'arc_easy_instruction_llm_adapters.json': 2251,
  'arc_easy_train.jsonl': 2251,
  'boolq_train_2000.jsonl': 2000,
  'code_alpaca_2k.json': 2017,
  'fastchat_dummy_conversation.json': 500,
  'gsm8k_train.jsonl': 7473,
  'lima.json': 1029,
  'nq_open_efficientqa_dev.jsonl': 1800,
  'numinamath_cot_sharegpt_1k.jsonl': 1000,
  'oasst1_messages_100.jsonl': 100,
  'sharegpt_zh_500.jsonl': 500,
  'squad_v1_validation_1000.jsonl': 1000,
  'triviaqa_rows0-1499.jsonl': 1500,
  'ultrachat_200k_2dialogs.jsonl': 2,
}


def test_real_files(real_data):
  """All public files of a known shape; the others say which fields they have."""
  for path in sorted((real_data / 'train').iterdir()):
    if path.name in REAL:
      assert len(read_records(str(path))) == REAL[path.name], path.name
    else:
      with pytest.raises(UserError, match='no known format has the fields'):
        read_records(str(path))

"""One's own benchmark: every kind graded right and wrong, errors with file and line, prompts."""

import json
import re

import numpy as np
import pytest

from sft_jax.evals import custom_grades, json_schema, prompts
from sft_jax.evals.benchmark import Choices
from sft_jax.evals.custom_grades import grade
from sft_jax.evals.tasks import custom
from sft_jax.utils import log
from sft_jax.utils.errors import UserError

SCHEMA = {
  'type': 'object',
  'properties': {'name': {'type': 'string'}, 'age': {'type': 'integer', 'minimum': 0}},
  'required': ['name'],
  'additionalProperties': False,
}


def write(tmp_path, *records, name='mine.jsonl'):
  path = tmp_path / name
  lines = (line if isinstance(line, str) else json.dumps(line) for line in records)
  path.write_text(''.join(f'{line}\n' for line in lines), encoding='utf-8')
  return f'custom:{path}'


def one(tmp_path, **record):
  (item,), _ = custom.load(write(tmp_path, {'question': 'Q?', **record})).read(None)
  return item


GRADED = [
  # record, {output: (extracted, right)}
  (
    {'choices': ['red', 'green', 'dark blue'], 'answer': 'B'},
    {
      'B': ('B', 1),
      'Answer: B': ('B', 1),
      '**B**. green': ('B', 1),
      'I think the answer is (B), since': ('B', 1),
      'Answer: A. No: the answer is B.': ('B', 1),
      'Green\nbecause': ('B', 1),
      'A': ('A', 0),
      'dark  blue': ('C', 0),
      'A dog ran': (None, 0),
      'The answer is a dog': (None, 0),
      'D': (None, 0),
      '': (None, 0),
    },
  ),
  (
    {'answer': ['New York', 'NYC']},
    {
      'new  york\nand more': ('new  york', 1),
      '\n NYC': ('NYC', 1),
      'Answer: NYC': ('NYC', 1),
      'New York City': ('New York City', 0),
      ' ': (None, 0),
    },
  ),
  (
    {'kind': 'exact', 'answer': 'pH', 'case': True},
    {'pH': ('pH', 1), 'PH': ('PH', 0)},
  ),
  (
    {'kind': 'contains', 'answer': ['red', 'blue'], 'all': True},
    {'Blue and\nred': ('Blue and\nred', 1), 'red': ('red', 0), '\n': (None, 0)},
  ),
  (
    {'kind': 'contains', 'answer': ['red', 'blue']},
    {'It is RED.': ('It is RED.', 1), 'green': ('green', 0)},
  ),
  (
    {'kind': 'regex', 'pattern': r'\b\d{4}-\d\d\b'},
    {'on 2024-05.': ('2024-05', 1), 'in May': (None, 0)},
  ),
  (
    {'kind': 'regex', 'pattern': r'total: (\w+)', 'answer': 'five'},
    {'Total:  x. TOTAL: Five': ('Five', 1), 'total: six': ('six', 0), 'five': (None, 0)},
  ),
  (
    {'kind': 'numeric', 'answer': 1234.5},
    {
      'First 3, then 1,234.5 in all.': ('1,234.5', 1),
      '1234.50': ('1234.50', 1),
      '1.2345e3': ('1.2345e3', 1),
      '1234.5 or 6': ('6', 0),
      '-1234.5': ('-1234.5', 0),
      'none': (None, 0),
    },
  ),
  (
    {'kind': 'numeric', 'answer': 1, 'tolerance': 0.1},
    {'1.1': ('1.1', 1), '0.9': ('0.9', 1), '1.1001': ('1.1001', 0), '2-1': ('1', 1)},
  ),
  (
    {'kind': 'numeric', 'answer': -200, 'relative': 0.01},
    {'−198': ('−198', 1), '-197.9': ('-197.9', 0), '[1,2,-200]': ('-200', 1)},
  ),
  (
    {'kind': 'json', 'schema': SCHEMA},
    {
      '{"name": "Ann", "age": 3}': ('{"name": "Ann", "age": 3}', 1),
      'Here:\n```json\n{"name": "Ann"}\n```\nDone {"x": 1}': ('{"name": "Ann"}', 1),
      'I say [sic] {"name": "Ann"} ok': ('{"name": "Ann"}', 1),
      '{"name": "Ann", "age": -1}': ('{"name": "Ann", "age": -1}', 0),
      '{"age": 1}': ('{"age": 1}', 0),
      '{"name": NaN}': (None, 0),
      '{"name": "Ann"': (None, 0),
      '[' * 5000: (None, 0),
      '[' * 950 + ']' * 950: (None, 0),
    },
  ),
  (
    {'kind': 'json', 'schema': {'type': 'array'}, 'answer': [1, True]},
    {'[1.0, true]': ('[1.0, true]', 1), '[1, 1]': ('[1, 1]', 0)},
  ),
]


@pytest.mark.parametrize('record, outputs', GRADED)
def test_grades(tmp_path, record, outputs):
  item = one(tmp_path, **record)
  for output, (extracted, right) in outputs.items():
    got = grade(output, item)
    assert (got.extracted, got.scores) == (extracted, {'acc': right}), output[:60]


GOLD = [
  {'question': 'a', 'choices': ['x', 'y'], 'answer': 1},
  {'question': 'b', 'answer': 'yes'},
  {'question': 'c', 'kind': 'contains', 'answer': ['u', 'v'], 'all': True},
  {'question': 'd', 'kind': 'regex', 'pattern': '(z+)', 'answer': 'zz'},
  {'question': 'e', 'kind': 'numeric', 'answer': -2.5},
  {'question': 'f', 'kind': 'json', 'schema': {}, 'answer': {'k': None}},
]


def test_what_shots_show_counts_as_right(tmp_path):
  benchmark = custom.load(write(tmp_path, *({**r, 'shot': True} for r in GOLD), GOLD[0]))
  _, pool = benchmark.read(None)
  for item in pool:
    assert grade(f'Answer: {item.fields["shown"]}', item).scores == {'acc': 1}
  assert benchmark.shots == (6, 0)


def test_likelihoods(tmp_path):
  path = write(
    tmp_path,
    {'question': 'Sky?', 'choices': ['blue', 'red'], 'answer': 'blue'},
    {'question': 'Sun?', 'choices': ['blue', 'red'], 'answer': 'B', 'shot': True},
  )
  benchmark = custom.load(path)
  assert list(benchmark.readings) == ['ll', 'gen']
  (item,), pool = benchmark.read(None)
  reading = benchmark.readings['ll']
  prompt = reading.ask(item, pool)
  assert prompts.raw_text(prompt) == 'Sun?\nAnswer: red\n\nSky?\nAnswer:'
  assert prompt.delimiter == ' ' and reading.choices(item) == ['blue', 'red']
  choices = Choices(['blue', 'red'], np.array([-4.0, -3.5]), np.zeros(2, bool), np.ones(2))
  got = reading.grade(item, choices)
  assert got.scores == {'acc': 0, 'acc-norm': 1} and got.extracted == 'red'


def test_prompts(tmp_path):
  path = write(
    tmp_path,
    {'question': 'Six times seven?', 'kind': 'numeric', 'answer': 42, 'max_new': 64},
    {'question': 'Pick.', 'choices': ['x', 'y'], 'answer': 'x', 'max_new': 8},
    {'question': 'Two?', 'answer': '2', 'solution': 'One and one: 2', 'shot': True},
  )
  benchmark = custom.load(path)
  assert list(benchmark.readings) == ['gen'] and benchmark.size == 2 and benchmark.shots == (1, 0)
  reading = benchmark.readings['gen']
  assert reading.max_new == 64 and reading.stops(1) == ('\n\n',) and reading.stops(0) == ()
  items, pool = benchmark.read(None)
  assert [item.id for item in items] == ['1', '2']
  assert prompts.raw_text(reading.ask(items[0], pool)) == (
    'Two?\nAnswer: One and one: 2\n\nSix times seven?\nAnswer:'
  )
  assert prompts.messages(reading.ask(items[1], pool)) == [
    {'role': 'user', 'content': 'Two?'},
    {'role': 'assistant', 'content': 'Answer: One and one: 2'},
    {'role': 'user', 'content': 'Pick.\nA. x\nB. y'},
  ]
  assert benchmark.prompt_hash == {'gen': prompts.prompt_hash(benchmark, 'gen')}


def test_shots_with_empty_lines_end_nothing(tmp_path):
  shot = {'question': 'q', 'answer': 'a', 'solution': 'so\n\na', 'shot': True}
  assert custom.load(write(tmp_path, shot, GOLD[1])).readings['gen'].stops(1) == ()


def test_name_ids_groups_and_version(tmp_path):
  first = {'question': 'a', 'answer': 'b', 'id': 'first', 'group': 'g', 'note': {'any': 'thing'}}
  path = write(tmp_path, first, '', GOLD[1], name='My-Set_2.jsonl')
  benchmark = custom.load(path)
  assert benchmark.name == 'my-set_2'
  items, _ = benchmark.read(None)
  assert [(i.id, i.group) for i in items] == [('first', 'g'), ('3', '')]
  assert items[1].source.endswith('My-Set_2.jsonl:3')
  same = custom.load(path.removeprefix('custom:'))
  assert same.version == benchmark.version
  write(tmp_path, first, '', {**GOLD[1], 'answer': 'no'}, name='My-Set_2.jsonl')
  assert custom.load(path).version != benchmark.version


Q = {'question': 'Q?'}


def nested(depth):
  """Schemas in one another, as text is: `json` refuses to write them so deep."""
  value = {}
  for _ in range(depth):
    value = {'items': value}
  return value


WRONG = [
  ('{"question": ', r'not JSON.*mine.jsonl:2'),
  ('[1]', r'not an object.*mine.jsonl:2'),
  ('{"question": "a", "question": "b", "answer": "c"}', r'twice.*mine.jsonl:2'),
  ('{"question": "Q", "kind": "numeric", "answer": NaN}', r'NaN is no JSON.*mine.jsonl:2'),
  ('{"question": "Q", "kind": "numeric", "answer": 1e999}', r'answer.*inf, no number'),
  ('{"question": "\\ud800", "answer": "x"}', r'surrogates.*mine.jsonl:2'),
  ({'answer': 'x'}, r"'question' is missing.*mine.jsonl:2"),
  ({'question': ' ', 'answer': 'x'}, r"'question' is empty"),
  (Q, r"'answer' is missing"),
  (Q | {'answer': 3}, r"'answer' is no list of texts"),
  (Q | {'answer': []}, r"'answer' has 0 entries"),
  (Q | {'answer': ['x', ' ']}, r"'answer' is empty"),
  (Q | {'answer': 'x', 'kind': 'fuzzy'}, r"'kind' is 'fuzzy', none of choice"),
  (
    Q | {'answer': 1, 'kind': 'numeric', 'tolerence': 1},
    r"'tolerence' is none of the kind numeric",
  ),
  (Q | {'answer': 'x', 'pattern': 'x'}, r"'pattern' is none of the kind exact"),
  (Q | {'answer': 'x', 'shot': 'yes'}, r"'shot' is neither true nor false"),
  (Q | {'answer': 'x', 'max_new': 0}, r"'max_new' is 0"),
  (Q | {'answer': 'x', 'id': 3}, r"'id' is int, not text"),
  (Q | {'answer': 'x', 'id': '1'}, r"id '1' is that of .*mine.jsonl:1 too"),
  (Q | {'choices': ['a'], 'answer': 'A'}, r"'choices' has 1 entries, needs 2"),
  (Q | {'choices': ['a', 'a '], 'answer': 'A'}, r"'choices' has two that are equal"),
  (Q | {'choices': ['a', ''], 'answer': 'A'}, r"'choices' has two that are equal, or an empty"),
  (Q | {'choices': [str(i) for i in range(27)], 'answer': 0}, r'more than 26'),
  (Q | {'choices': ['a', 'b'], 'answer': 'C'}, r"'answer' is 'C': no letter"),
  (Q | {'choices': ['a', 'b'], 'answer': 2}, r"'answer' is 2: no letter"),
  (Q | {'choices': ['a', 'b'], 'answer': True}, r"'answer' is True: no letter"),
  (Q | {'choices': ['B', 'A'], 'answer': 'A'}, r'a letter and another choice'),
  (Q | {'kind': 'regex', 'pattern': '('}, r"'pattern' is no regular expression"),
  (Q | {'kind': 'regex', 'pattern': 'x', 'shot': True}, r'no "solution" either'),
  (Q | {'kind': 'numeric', 'answer': '1'}, r"'answer' is '1', no number"),
  (Q | {'kind': 'numeric', 'answer': 1, 'tolerance': -1}, r"'tolerance' is negative"),
  (Q | {'kind': 'numeric', 'answer': 1, 'tolerance': 1, 'relative': 1}, r'cannot stand beside'),
  (Q | {'kind': 'json'}, r"'schema' is missing"),
  (Q | {'kind': 'json', 'schema': {'$ref': 'x'}}, r"keyword '\$ref'; known are type"),
  (Q | {'kind': 'json', 'schema': SCHEMA, 'answer': 1}, r"'answer' is not what the schema"),
  (Q | {'answer': 'x', 'kind': ['exact']}, r"'kind' is \['exact'\], none of choice"),
  (Q | {'kind': 'regex', 'pattern': 'a{99999999999999}'}, r"'pattern' is no regular expression"),
  (Q | {'kind': 'regex', 'pattern': '(' * 5000 + ')' * 5000}, r"'pattern' is no regular expr"),
  (Q | {'kind': 'json', 'schema': {'pattern': 'a{99999999999999}'}}, r'schema.pattern cannot be'),
  (Q | {'kind': 'json', 'schema': nested(600)}, r'nested more than 100 deep'),
  (Q | {'kind': 'json', 'schema': {}, 'answer': nested(450)}, r'nested more than 100 deep'),
]


@pytest.mark.parametrize('item', range(2))
def test_a_pattern_that_backtracks_for_ever_is_not_graded(tmp_path, monkeypatch, item):
  """Neither right nor wrong, and other outputs of the same question are graded."""
  monkeypatch.setattr(custom_grades, '_LONGEST_S', 0.2)
  warned: list[str] = []
  monkeypatch.setattr(log, 'warn', warned.append)
  pattern = '^(a+)+$'
  schema = {'type': 'string', 'pattern': pattern}
  lines = (Q | {'kind': 'regex', 'pattern': pattern}, Q | {'kind': 'json', 'schema': schema})
  one = custom.load(write(tmp_path, *lines)).read(None)[0][item]
  hard, easy = 'a' * 60 + 'b', 'a' * 60
  texts = (hard, easy) if item == 0 else (json.dumps(hard), json.dumps(easy))
  slow, fast = (custom_grades.grade(text, one) for text in texts)
  assert slow.scores == {} and slow.extracted is None
  assert f'{one.source}: not graded' in ' '.join(warned)
  assert fast.scores == {'acc': 1.0}


def test_half_of_a_surrogate_pair_can_be_written_down(tmp_path):
  line = Q | {'kind': 'json', 'schema': {'type': 'object'}}
  (item,) = custom.load(write(tmp_path, line)).read(None)[0]
  found = custom_grades.grade('{"a": "\\ud800"}', item)
  assert found.extracted is not None and found.extracted.encode() == b'{"a": "?"}'


@pytest.mark.parametrize('line, message', WRONG)
def test_errors_name_file_and_line(tmp_path, line, message):
  with pytest.raises(UserError, match=message) as caught:
    custom.load(write(tmp_path, GOLD[1], line))
  assert 'mine.jsonl:2' in str(caught.value)


def test_files_that_are_none(tmp_path):
  with pytest.raises(UserError, match='cannot be read'):
    custom.load(f'custom:{tmp_path}/nothing.jsonl')
  with pytest.raises(UserError, match='cannot be read'):
    custom.load(str(tmp_path))
  with pytest.raises(UserError, match='no questions'):
    custom.load(write(tmp_path, GOLD[1] | {'shot': True}))
  with pytest.raises(UserError, match='no name for a task'):
    custom.load(write(tmp_path, GOLD[1], name='my set.jsonl'))
  (tmp_path / 'latin.jsonl').write_bytes('{"question": "é"}'.encode('latin-1'))
  with pytest.raises(UserError, match=r'not UTF-8.*latin.jsonl:1'):
    custom.load(str(tmp_path / 'latin.jsonl'))


SCHEMAS = [
  SCHEMA,
  {},
  {'type': ['integer', 'null']},
  {'enum': [1, 'a', None, [1]]},
  {'const': False},
  {'anyOf': [{'type': 'string', 'minLength': 2}, {'type': 'number', 'maximum': 1}]},
  {'type': 'array', 'items': {'type': 'integer'}, 'minItems': 1, 'maxItems': 2},
  {'pattern': '^a', 'maxLength': 3},
  {'properties': {'a': {'properties': {'b': {'minimum': 2}}}}},
]
VALUES = [
  *(None, True, False, 0, 1, 1.0, 1.5, -3, '', 'a', 'ab', 'abcd', 'b', [], [1], [1, 2], [1, 2, 3]),
  *(
    ['a'],
    [True],
    {},
    {'name': 'x'},
    {'name': 1},
    {'name': 'x', 'age': 1.0},
    {'name': 'x', 'z': 1},
  ),
  *({'a': {'b': 1}}, {'a': {'b': 2}}, {'a': 3}),
]


@pytest.mark.parametrize('schema', SCHEMAS)
def test_schemas_as_jsonschema_has_them(schema):
  jsonschema = pytest.importorskip('jsonschema')
  assert json_schema.fault(schema) == ''
  validator = jsonschema.Draft202012Validator(schema)
  for value in VALUES:
    assert json_schema.is_valid(value, schema) == validator.is_valid(value), value


@pytest.mark.parametrize(
  'schema, what',
  [
    (1, 'schema is no object'),
    ({'type': 'text'}, "schema.type cannot be 'text'"),
    ({'type': []}, 'schema.type cannot be'),
    ({'type': {}}, 'schema.type cannot be'),
    ({'enum': []}, 'schema.enum cannot be'),
    ({'minItems': float('inf')}, 'schema.minItems cannot be inf'),
    ({'minLength': -1}, 'schema.minLength cannot be -1'),
    ({'pattern': '('}, 'schema.pattern cannot be'),
    ({'items': {'format': 'date'}}, "schema.items has the keyword 'format'"),
    ({'properties': {'a': {'minimum': 'x'}}}, 'schema.properties.a.minimum cannot be'),
    ({'properties': {'a': 1}}, 'schema.properties.a is no object'),
    ({'anyOf': [{}, 3]}, r'schema.anyOf\[1\] is no object'),
  ],
)
def test_schemas_that_are_none(schema, what):
  assert re.match(what, json_schema.fault(schema))

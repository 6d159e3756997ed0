"""The built-in instruction set keeps its promises: counts, shape, true sums, clean split."""

import ast
import json
import operator
import re
from collections import Counter
from pathlib import Path

import pytest

import sft_jax

FOLDER = Path(sft_jax.__file__).parent / 'data' / 'builtin'
PATH = FOLDER / 'quickstart.jsonl'
COUNTS = {
  ('train', 'general'): 78,
  ('train', 'code'): 68,
  ('train', 'maths'): 66,
  ('train', 'short'): 73,
  ('heldout', 'general'): 15,
  ('heldout', 'code'): 15,
  ('heldout', 'maths'): 18,
  ('heldout', 'short'): 27,
}
NUMBER = r'\d+(?:\.\d+)?'
EQUATION = re.compile(rf'(?<![\w.])(-?{NUMBER}(?: [-+*/] {NUMBER})+) = (-?{NUMBER})')
OPERATORS = {
  ast.Add: operator.add,
  ast.Sub: operator.sub,
  ast.Mult: operator.mul,
  ast.Div: operator.truediv,
}


@pytest.fixture(scope='module')
def records():
  text = PATH.read_bytes().decode('utf-8')  # strict: a byte that is not UTF-8 raises
  assert text.endswith('\n') and '\ufffd' not in text and '\r' not in text
  return [json.loads(line) for line in text.splitlines()]


def of(records, category):
  return [r for r in records if r['category'] == category]


def replies(record):
  return [m['content'] for m in record['messages'] if m['role'] == 'assistant']


def words(text):
  return re.findall(r'\w+', text.casefold())


def value(node):
  """A sum written in digits, evaluated without `eval`."""
  if isinstance(node, ast.BinOp):
    return OPERATORS[type(node.op)](value(node.left), value(node.right))
  if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
    return -value(node.operand)
  assert isinstance(node, ast.Constant), ast.dump(node)
  return node.value


def test_counts_match_the_table(records):
  assert Counter((r['split'], r['category']) for r in records) == COUNTS
  readme = (FOLDER / 'README.md').read_text(encoding='utf-8')
  for category in ('general', 'code', 'maths', 'short'):
    row = f'| `{category}` | {COUNTS["train", category]} | {COUNTS["heldout", category]} |'
    assert row in readme, f'README.md of the built-in data should say: {row}'
  multi = sum(len(r['messages']) > 2 for r in records)
  assert f'{multi} records have two turns' in readme
  assert 'Apache-2.0' in readme


def test_shape(records):
  for r in records:
    assert set(r) == {'messages', 'category', 'split'}, r
    roles = [m['role'] for m in r['messages']]
    assert roles == ['user', 'assistant'] * (len(roles) // 2) and roles, r
    for m in r['messages']:
      assert set(m) == {'role', 'content'} and m['content'] == m['content'].strip() != '', r


def test_no_question_twice(records):
  asked = Counter(
    ' '.join(words(' '.join(m['content'] for m in r['messages'] if m['role'] == 'user')))
    for r in records
  )
  assert [q for q, n in asked.items() if n > 1] == []


def test_lengths(records):
  for r in records:
    assert sum(len(m['content'].split()) for m in r['messages']) <= 70, r


def test_no_preamble(records):
  for r in records:
    for text in replies(r):
      assert not re.match(r'(sure|certainly|of course|great question|here (is|are))\b', text, re.I)


def test_maths_ends_in_its_answer_and_its_sums_hold(records):
  for r in of(records, 'maths'):
    for text in replies(r):
      assert re.fullmatch(rf'Answer: -?{NUMBER}', text.splitlines()[-1]), r
      assert text.count('Answer:') == 1, r
      sums = EQUATION.findall(text)
      assert sums and len(sums) == text.count('='), f'a sum that this test cannot read: {r}'
      for left, right in sums:
        assert value(ast.parse(left, mode='eval').body) == pytest.approx(float(right)), r


def test_code_compiles(records):
  for r in of(records, 'code'):
    for text in replies(r):
      assert ast.parse(text).body and '```' not in text, r


def test_short_answers_are_bare(records):
  for r in of(records, 'short'):
    for text in replies(r):
      assert len(text.split()) <= 3 and re.fullmatch(r'\w[\w ]*', text), r


def test_heldout_shares_no_13_words_with_train(records):
  def grams(split, n=13):
    found = set()
    for r in records:
      if r['split'] == split:
        w = words(' '.join(m['content'] for m in r['messages']))
        found |= {tuple(w[i : i + n]) for i in range(len(w) - n + 1)}
    return found

  train, heldout = grams('train'), grams('heldout')
  assert train and heldout and not train & heldout

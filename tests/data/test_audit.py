"""The audit's counts on data made for it, and the overlaps known in the real data."""

import dataclasses
import gzip
import json

import numpy as np
import pytest

from sft_jax.data.audit import audit
from sft_jax.data.formats import EMPTY, Record, read_records
from sft_jax.data.overlap import NgramIndex, near_duplicates, ngram_overlap, read_benchmark
from sft_jax.data.tokenize import Example, encode_all, without
from sft_jax.utils.errors import UserError
from tests.data import conftest

SENTENCE = 'one two three four five six seven eight nine ten eleven twelve thirteen'


def ask(question, answer, source='f:1', **kwargs):
  messages = ({'role': 'user', 'content': question}, {'role': 'assistant', 'content': answer})
  return Record(messages, source, **kwargs)


def test_counts(tmp_path, with_bos):
  bench = tmp_path / 'bench.jsonl'
  bench.write_text(
    json.dumps({'id': 1, 'tests': ['x', {'deep': f'Well: {SENTENCE.upper()}!'}]})
    + '\n'
    + json.dumps({'id': 2, 'prompt': SENTENCE.replace('seven', 'eleven')})
  )
  records = [
    ask('Where is Rome?', 'In Italy.', 'f:1'),
    ask('where is  ROME?', 'In Italy.', 'f:2'),
    ask('Count.', SENTENCE, 'f:3'),
    ask('Shout.', 'word ' * 300, 'f:4'),
    ask('Hush.', '', 'f:5', problem=EMPTY),
  ]
  examples, dropped = encode_all(records, with_bos, max_length=120)
  heldout = [ask('Again', SENTENCE), ask('Again', SENTENCE, problem=EMPTY)]
  _, lost = encode_all(heldout, with_bos)
  found = audit(records, examples, dropped, heldout, [str(bench)], with_bos, heldout_dropped=lost)
  found.check()
  assert (found.read, found.kept, found.truncated) == (5, 4, 1)
  assert found.dropped == {EMPTY: 1} and found.dropped_at == {EMPTY: ['f:5']}
  assert found.tokens == sum(map(len, examples))
  assert found.supervised == sum(int(e.loss_weight.sum()) for e in examples)
  assert found.stop_share == 0.75  # the truncated one lost its end
  assert (found.doubled_bos, found.missing_bos) == (0, 0)
  assert (found.exact_duplicates, found.near_duplicates) == (1, 0)
  assert (found.heldout, found.heldout_overlap, found.heldout_dropped) == (1, 1, 1)
  assert found.benchmarks == {str(bench): (1, 2)} and found.contaminated == {str(bench): [0]}
  assert found.lengths['max'] == 120 and sum(count for *_, count in found.histogram) == 4
  assert json.loads(json.dumps(found.as_json()))['supervised_share'] == found.supervised_share
  text = '\n'.join(found.lines())
  assert 'records      5 read, 4 kept (1 truncated), 1 dropped\n' in text
  assert '  dropped    1: empty response (f:5)\n' in text
  assert 'duplicates   1 exact, 0 near\n' in text
  assert 'held out     1 record (1 dropped), 1 in training records\n' in text
  assert f'overlap      1 of 2 items of {bench} in training records\n' in text


def test_no_held_out_part_is_announced(with_bos):
  records = [ask('Where is Rome?', 'In Italy.')]
  examples, dropped = encode_all(records, with_bos)
  found = audit(records, examples, dropped, [], [], with_bos)
  (line,) = [line for line in found.lines() if line.startswith('held out')]
  assert line == 'held out     no records: there is no held-out perplexity'
  empty = [ask('Hush.', '', problem=EMPTY)] * 2
  _, lost = encode_all(empty, with_bos)
  found = audit(records, examples, dropped, empty, [], with_bos, heldout_dropped=lost)
  assert 'held out     no records (2 dropped): there is no held-out perplexity' in found.lines()


def test_a_list_on_one_line(tmp_path, with_bos):
  """One dropped record takes no other with it."""
  rows = [
    {'instruction': 'Count.', 'output': SENTENCE},
    {'instruction': 'Hush.', 'output': ''},
    {'instruction': 'Whisper.', 'output': ' '.join(reversed(SENTENCE.split()))},
  ]
  path, bench = tmp_path / 'a.json', tmp_path / 'bench.jsonl'
  path.write_text(json.dumps(rows))
  bench.write_text(json.dumps({'prompt': SENTENCE}))
  records = read_records(str(path))
  examples, dropped = encode_all(records, with_bos)
  found = audit(records, examples, dropped, [], [str(bench)], with_bos)
  assert found.dropped_at == {EMPTY: [f'{path}:1[1]']}
  assert found.benchmarks == {str(bench): (1, 1)}
  # Nor where records of one source are told apart by nothing else.
  records = [dataclasses.replace(record, source='f') for record in records]
  examples, dropped = encode_all(records, with_bos)
  assert len(without(records, dropped)) == 2
  assert audit(records, examples, dropped, records[:1], [], with_bos).heldout_overlap == 1


def test_doubled_and_missing_bos_are_counted(with_bos):
  def example(*ids):
    weight = np.ones(len(ids), np.float32)
    weight[0] = 0
    return Example(np.array(ids, np.int32), weight, np.zeros(len(ids), np.uint8), 'f', {})

  found = audit([], [example(0, 0, 9, 3), example(0, 9, 3), example(9, 3)], [], [], [], with_bos)
  assert (found.doubled_bos, found.missing_bos, found.stops) == (1, 1, 3)


def test_pad_equal_to_eos_counts_as_stop():
  tokenizer = conftest.build_tokenizer(template=conftest.CHATML, pad_is_eos=True)
  for template in ('study', 'chat'):
    records = [ask('Where?', 'Here.')]
    examples, dropped = encode_all(records, tokenizer, template)
    assert audit(records, examples, dropped, [], [], tokenizer, template).stop_share == 1


def test_nothing_supervised_stops_the_run(with_bos):
  records = [ask('Where is the dog?', 'Here.', 'f:7')]
  examples, dropped = encode_all(records, with_bos, max_length=4)
  found = audit(records, examples, dropped, [], [], with_bos)
  with pytest.raises(UserError, match=r'no record is left .*no supervised token .*f:7'):
    found.check()


def test_overlap_stays_in_one_field_and_is_13_words():
  index = NgramIndex([ask('Count.', SENTENCE)])
  first, last = SENTENCE[:30], SENTENCE[30:]
  assert index.hits([SENTENCE, {'a': SENTENCE.replace(' ', ', ')}, [first, last]]) == [0, 1]
  longer = f'{SENTENCE.removesuffix(" thirteen")} and more'
  assert index.hits([longer, 'short', 5, {}]) == []
  # Neither do sequences run from one training message into the next.
  assert NgramIndex([ask(first, last)]).hits([SENTENCE]) == []
  assert NgramIndex([]).hits([SENTENCE]) == []
  # Chinese has no spaces: characters are words.
  index = NgramIndex([ask('问', '今天的天气非常好我们去公园散步')])
  assert index.hits(['他说今天的天气非常好我们去公园吧', '今天的天气非常差我们去公园散步']) == [0]


def test_a_short_item_overlaps_where_it_stands_whole():
  index = NgramIndex([ask('Tell me: who was known as the waltz king?', 'Strauss.'), ask('a', 'b')])
  whole = {'id': 'q7', 'question': 'Who was known as the waltz king', 'answer': 'Strauss'}
  assert index.hits([whole]) == [0]
  # Any string of seven words counts, where it stands whole.
  assert index.hits([whole | {'more': 'a longer one of eight words in all'}]) == [0]
  assert index.hits([{'question': 'was known as the waltz king'}]) == []
  assert index.hits([{'question': 'who was known as the waltz king then'}]) == []
  assert index.hits([{'question': 'who was known as the waltz king strauss'}]) == []
  # Characters are words, and seven of them are no sentence.
  says = '下列说法正确的是'
  assert NgramIndex([ask(f'请问{says}什么', 'b')]).hits([{'question': says}]) == []
  # Vowel signs are parts of words: these are five, and twice these are ten.
  hindi = 'भारत की राजधानी क्या है'
  known = NgramIndex([ask(f'बताओ {hindi} {hindi}', 'b')])
  assert known.hits([hindi, f'{hindi} {hindi}']) == [1]
  # One that has thirteen words is judged by these.
  assert index.hits([whole | {'passage': ' '.join(f'w{i}' for i in range(13))}]) == []


def test_short_items_against_plain_search():
  """What the hashes find of short items is what a search for whole words finds."""
  rng = np.random.default_rng(1)

  def text(most):
    return ' '.join(rng.choice(list('ab'), int(rng.integers(1, most))))

  records = [ask(text(30), text(30)) for _ in range(30)]
  items = [[text(13), text(9)] for _ in range(400)]
  padded = [f' {c} ' for r in records for c in r.contents]

  def held(item):
    return any(len(value.split()) >= 7 and f' {value} ' in c for value in item for c in padded)

  expected = [i for i, item in enumerate(items) if held(item)]
  assert 20 < len(expected) < 380
  assert NgramIndex(records).hits(items) == expected


def test_overlap_against_plain_sets():
  """The hashes give what sets of word tuples give."""
  rng = np.random.default_rng(0)

  def text():
    return ' '.join(rng.choice(list('abc'), int(rng.integers(1, 12))))

  records = [ask(text(), text()) for _ in range(40)]
  items = [[text(), {'x': text()}] for _ in range(200)]
  for n in (3, 5, 7):

    def grams(value, n=n):
      words = value.split()
      return {tuple(words[i : i + n]) for i in range(len(words) - n + 1)}

    known = set().union(*(grams(c) for r in records for c in r.contents))
    expected = [i for i, (a, b) in enumerate(items) if (grams(a) | grams(b['x'])) & known]
    assert NgramIndex(records, n).hits(items) == expected


def test_benchmark_files(tmp_path):
  (tmp_path / 'plain.csv').write_text('What is it?,a,b,A\nAnd this?,c,d,B\n')
  (tmp_path / 'header.csv').write_text('\ufeff,Question,Answer\n0,What?,A\n')
  (tmp_path / 'zipped.jsonl.gz').write_bytes(gzip.compress(b'{"a": 1}\n{"a": 2}'))
  (tmp_path / 'TABS.TSV').write_text('What, now?\ta\n')
  (tmp_path / 'lines.ndjson').write_text('{"a": 1}\n')
  (tmp_path / 'LICENSE').write_text('x')
  sizes = {f.name: len(read_benchmark(str(f))) for f in tmp_path.iterdir() if f.suffix}
  assert sizes == {
    'plain.csv': 2,
    'header.csv': 1,
    'zipped.jsonl.gz': 2,
    'TABS.TSV': 1,
    'lines.ndjson': 1,
  }
  assert read_benchmark(str(tmp_path / 'TABS.TSV')) == [['What, now?', 'a']]
  (tmp_path / 'folder.json').mkdir()
  (tmp_path / 'folder.json' / 'inner.csv').write_text('a,b\n')
  assert len(read_benchmark(str(tmp_path))) == 8
  with pytest.raises(UserError, match='no such file'):
    read_benchmark(str(tmp_path / 'no.csv'))


def test_bad_benchmark_files(tmp_path):
  path = tmp_path / 'a.csv'
  path.write_text(f'What?,{"x" * 200_000}\n')  # over the limit that Python sets
  ((_, long),) = read_benchmark(str(path))
  assert len(long) == 200_000
  path.write_text('What?,A\n"And this?,B\nC,D\n')
  with pytest.raises(UserError, match=r'malformed CSV: .*a.csv:2\) — close its quotes'):
    read_benchmark(str(path))
  path.write_text('\n')
  with pytest.raises(UserError, match=r'no records .*a.csv'):
    read_benchmark(str(path))
  # As deep as Python's JSON goes, which may be deeper than its calls go.
  depth = 300
  (tmp_path / 'a.jsonl').write_text('{"a":' * depth + json.dumps(SENTENCE) + '}' * depth)
  items = read_benchmark(str(tmp_path / 'a.jsonl'))
  for _ in range(5000):
    items = [items]
  assert NgramIndex([ask('Count.', SENTENCE)]).hits([items]) == [0]


def test_near_duplicates():
  rng = np.random.default_rng(0)
  words = [f'w{i}' for i in range(500)]
  records = [ask(' '.join(rng.choice(words, 60)), 'yes', f'f:{i}') for i in range(200)]
  copies = []
  for index in (3, 50, 120):
    question = records[index].messages[0]['content'].split()
    question[30] = 'changed'
    copies.append(ask(' '.join(question), 'yes', 'copy'))
  exact = ask(records[7].messages[0]['content'].upper(), 'yes', 'exact')
  pairs = near_duplicates([*records, *copies, exact])
  assert pairs == [(200, 3), (201, 50), (202, 120)]
  # A third of the words changed is another text.
  question = records[9].messages[0]['content'].split()
  question[::3] = ['other'] * len(question[::3])
  assert near_duplicates([*records, ask(' '.join(question), 'yes')]) == []
  assert near_duplicates([]) == [] and near_duplicates([ask('a', 'b')] * 3) == []


KNOWN = [
  ('code_alpaca_2k.json', 'HumanEval.jsonl.gz', 7, 164),
  ('code_alpaca_2k.json', 'mbpp.jsonl', 12, 974),
  ('numinamath_cot_sharegpt_1k.jsonl', 'math_test.jsonl', 33, 5000),
  ('boolq_train_2000.jsonl', 'boolq_val.jsonl', 430, 3270),
]


@pytest.mark.parametrize(('train', 'bench', 'hits', 'total'), KNOWN)
def test_known_overlaps(real_data, train, bench, hits, total):
  records = read_records(str(real_data / 'train' / train))
  ((found, items),) = ngram_overlap(records, [str(real_data / 'bench' / bench)]).values()
  assert (len(found), items) == (hits, total), (
    'the definition of overlap changed: see the docstring of NgramIndex'
  )

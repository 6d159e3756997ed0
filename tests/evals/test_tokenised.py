"""Benchmarks as tokens: as whole texts give them, and the same from the disk; and their names."""

import dataclasses
import os

import numpy as np
import pytest

from sft_jax.evals import benchmarks, lines, questions, tokenised
from sft_jax.evals.benchmark import Choose, Item, Services
from sft_jax.evals.files import LocalFiles
from sft_jax.evals.judge import CallableJudge
from sft_jax.evals.questions import Options
from sft_jax.evals.tasks import variants
from sft_jax.results import RELEASED_COLUMNS
from tests.evals.tasks import choice_files
from tests.models.conftest import tiny_tokenizer

NAMES = ('mmlu', 'cmmlu', 'jmmlu', 'hellaswag', 'boolq', 'arc_easy', 'piqa', 'truthfulqa')


@pytest.fixture(scope='module')
def files(tmp_path_factory):
  directory = tmp_path_factory.mktemp('bench')
  choice_files.write(directory)
  return LocalFiles(str(directory))


@pytest.fixture(scope='module')
def tokenizer():
  return tiny_tokenizer()


def every_task(files):
  """(what is wanted, items, pool) of each benchmark, reading and number of shots."""
  for name in NAMES:
    benchmark = benchmarks.BENCHMARKS[name]
    items, pool = benchmark.read(files)
    for reading in benchmark.readings:
      for shots in {0, min(2, len(pool))}:
        yield benchmarks.parse(f'{name}:{shots}shot:{reading}'), items, pool


def plainly(monkeypatch, *args):
  """With the tokenizer itself, a text at a time."""
  with monkeypatch.context() as patch:
    patch.setattr(lines, 'LineTokenizer', lambda tokenizer: tokenizer)
    return questions.ask_all(*args)


def equal(some, others):
  assert len(some) == len(others)
  for one, other in zip(some, others, strict=True):
    assert (one.item, one.shots, one.cut) == (other.item, other.shots, other.cut)
    assert one.prompt == other.prompt
    for a, b in zip((one.ids, *one.continuations), (other.ids, *other.continuations), strict=True):
      assert a.dtype == b.dtype == np.int32 and np.array_equal(a, b)


@pytest.mark.parametrize('template', ['raw', 'study', 'chat'])
@pytest.mark.parametrize('window', [60, 4096])
def test_tokens_are_those_of_whole_texts(files, tokenizer, template, window, tmp_path, monkeypatch):
  """Also where prompts lose shots, or their beginning; then from the disk."""
  cut = 0
  for wanted, items, pool in every_task(files):
    given = Options(tokenizer, template, (), window, cache=tmp_path / 'kept')
    expected = plainly(monkeypatch, wanted, items, pool, given)
    equal(tokenised.questions_of(wanted, items, pool, given), expected)
    with monkeypatch.context() as patch:
      patch.setattr(questions, 'ask_all', None)
      equal(tokenised.questions_of(wanted, items, pool, given), expected)
    cut += sum(one.cut for one in expected)
  assert (cut > 50) == (window == 60)


@pytest.mark.parametrize(
  'task, template', [('cmmlu:5shot:ll', 'raw'), ('mmlu:5shot:ll', 'chat'), ('gsm8k:4shot', 'study')]
)
def test_tokens_of_real_data(task, template, data_dir, tokenizer, monkeypatch):
  wanted = benchmarks.parse(task)
  items, pool = wanted.benchmark.read(LocalFiles(str(data_dir / 'bench')))
  some, given = items[::400], Options(tokenizer, template, (), 100_000)
  equal(
    questions.ask_all(wanted, some, pool, given),
    plainly(monkeypatch, wanted, some, pool, given),
  )


def one_task(files, task='arc_easy:2shot:ll'):
  wanted = benchmarks.parse(task)
  return wanted, *wanted.benchmark.read(files)


def test_a_damaged_file_is_made_anew(files, tokenizer, tmp_path):
  given = Options(tokenizer, 'raw', (), 512, cache=tmp_path)
  expected = tokenised.questions_of(*one_task(files), given)
  (file,) = tmp_path.glob('*.npz')
  whole = file.read_bytes()
  middle = len(whole) // 3
  flipped = whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :]
  for data in (b'', b'not an archive', whole[:-20], whole[:100], flipped):
    file.write_bytes(data)
    equal(tokenised.questions_of(*one_task(files), given), expected)
    assert file.read_bytes() == whole
  # Whole, and another's.
  np.savez(file, tokens=np.zeros(3, np.int32), lengths=np.array([3]), about=np.array([[1, 0, 0]]))
  equal(tokenised.questions_of(*one_task(files), given), expected)
  # Nothing that would run code when it is read.
  np.savez(file, tokens=np.array([print], object), lengths=np.zeros(0), about=np.zeros((0, 3)))
  equal(tokenised.questions_of(*one_task(files), given), expected)
  assert file.read_bytes() == whole


def test_the_key_holds_all_that_matters(files, tokenizer, monkeypatch):
  wanted, items, pool = one_task(files)
  given = Options(tokenizer, 'raw', (), 512)
  key = lambda *args, **changes: tokenised.key(*args, dataclasses.replace(given, **changes))
  longer = tiny_tokenizer()
  longer.add_tokens(['<more>'])
  chatty = tiny_tokenizer()
  chatty.chat_template = f'{chatty.chat_template} '
  grown = tiny_tokenizer()
  key(wanted, items, pool, tokenizer=grown)
  grown.add_tokens(['<other>'])
  changed = dataclasses.replace(items[0], fields={**items[0].fields, 'gold': 3})
  later = dataclasses.replace(wanted.benchmark, version=99)
  keys = [
    key(wanted, items, pool),
    key(wanted, items, pool, template='chat'),
    key(wanted, items, pool, window=511),
    key(wanted, items, pool, tokenizer=longer),
    key(wanted, items, pool, tokenizer=chatty),
    key(wanted, items, pool, tokenizer=grown),
    key(wanted, items[1:], pool),
    key(wanted, items[::-1], pool),
    key(wanted, [changed, *items[1:]], pool),
    key(wanted, items, pool[::-1]),
    key(dataclasses.replace(wanted, shots=1), items, pool),
    key(dataclasses.replace(wanted, benchmark=later), items, pool),
  ]
  assert key(*one_task(files), seed=7, slots=1, tokens_per_batch=1) == keys[0], 'nothing else'
  with monkeypatch.context() as patch:
    patch.setattr(tokenised, '_code', lambda: 'another')
    keys.append(key(wanted, items, pool))
  assert len(set(keys)) == len(keys)


def test_every_benchmark_has_a_key(tokenizer):
  """What its items hold can be written down."""
  for name, benchmark in benchmarks.BENCHMARKS.items():
    item, shots = benchmark.example
    for reading in benchmark.readings:
      wanted = benchmarks.parse(f'{name}:0shot:{reading}')
      assert tokenised.key(wanted, [item], shots, Options(tokenizer, 'raw', (), 512))


def test_a_full_cache_loses_what_was_not_used(files, tokenizer, tmp_path, monkeypatch):
  given = Options(tokenizer, 'raw', (), 512, cache=tmp_path)
  ask = lambda task: tokenised.questions_of(*one_task(files, task), given)
  ask('arc_easy:2shot:ll')
  (oldest,) = tmp_path.glob('*.npz')
  ask('arc_easy:1shot:ll')
  (second,) = {*tmp_path.glob('*.npz')} - {oldest}
  for age, file in enumerate([second, oldest]):
    os.utime(file, (1000 - age, 1000 - age))
  ask('arc_easy:2shot:ll')  # is used again
  monkeypatch.setattr(tokenised, 'MOST_BYTES', oldest.stat().st_size + second.stat().st_size)
  ask('arc_easy:0shot:ll')
  assert oldest.exists() and not second.exists() and len([*tmp_path.glob('*.npz')]) == 2


def test_items_that_cannot_be_written_down(files, tokenizer, tmp_path):
  wanted, items, pool = one_task(files)
  odd = [dataclasses.replace(item, fields={**item.fields, 'odd': object()}) for item in items]
  given = Options(tokenizer, 'raw', (), 512, cache=tmp_path)
  assert len(tokenised.questions_of(wanted, odd, pool, given)) == 2 and not [*tmp_path.iterdir()]


def test_a_cache_that_cannot_be_written(files, tokenizer, tmp_path):
  (tmp_path / 'file').write_text('')
  given = Options(tokenizer, 'raw', (), 512, cache=tmp_path / 'file' / 'kept')
  assert len(tokenised.questions_of(*one_task(files), given)) == 2


# Names of columns.


def published(name):
  """A benchmark with as many items as were published."""
  benchmark = benchmarks.BENCHMARKS[name]
  item, shots = benchmark.example
  items = [dataclasses.replace(item, id=str(i)) for i in range(benchmark.size)]
  if name == 'mbpp':
    items, shots = (
      [Item(i.id, {**i.fields, 'full': False}) for i in some] for some in (items, shots)
    )
  return items, [*shots] * 30


def names(task, judge='', used=0, marked='', **changes):
  wanted = benchmarks.parse(task)
  items, pool = published(wanted.benchmark.name)
  if marked:
    items = [dataclasses.replace(i, fields={**i.fields, 'variant': marked}) for i in items]
  services = Services(judge=CallableJudge(lambda messages: None, judge)) if judge else Services()
  given = Options(None, **({'template': 'raw', 'stop_ids': (), 'window': 1} | changes))
  given = dataclasses.replace(given, services=services)
  return questions.names_of(wanted, items, pool, used or len(items), given)


def test_published_columns_are_plain_prompts_written_to_all_items():
  filled = set()
  for name, benchmark in benchmarks.BENCHMARKS.items():
    for reading, how in benchmark.readings.items():
      judge = '' if isinstance(how, Choose) else how.judge
      for shots in (0, 1, 2, 3, 4, 5, 10, 25):
        task = f'{name}:{shots}shot:{reading}'
        if shots > len(published(name)[1]):
          continue
        column = names(task, judge).column
        assert (column in RELEASED_COLUMNS) == (shots in how.released)
        # No other template, subset, data or judge fills one.
        others = [
          names(task, judge, template='chat'),
          names(task, judge, template='study'),
          names(task, judge, used=3),
        ]
        if benchmark.variant is variants.variant:
          others.append(names(task, judge, marked=f'{name}-other'))
        if judge:
          others.append(names(task, 'somebody'))
        assert len({column, *(one.column for one in others)}) == 1 + len(others)
        assert not {one.column for one in others} & {*RELEASED_COLUMNS}
        assert all(one.mark for one in others)
        if column in RELEASED_COLUMNS:
          assert reading == 'gen'
          filled.add(column)
  unfilled = {'mmlu-5shot', 'jmmlu-0shot', 'LongBench-v2-0shot'}
  judged = {name for name in RELEASED_COLUMNS if name.startswith('mtbench-')} - {'mtbench-total'}
  scores = {name for name in RELEASED_COLUMNS if 'shot' in name or '_v2' in name or 'mtb' in name}
  assert filled == scores - unfilled - judged


def test_how_names_are_made():
  assert names('gsm8k:4shot') == ('gsm8k-4shot', '')
  assert names('gsm8k:4shot', template='chat').column == 'gsm8k-4shot-gen-chat'
  assert names('gsm8k:4shot', template='study', used=7).column == 'gsm8k-4shot-gen-study-n7'
  assert names('cmmlu:5shot:ll') == ('cmmlu-5shot-ll', '')
  assert names('boolq:gen', marked='boolq-notitle').column == 'boolq-notitle-0shot'
  assert names('mmlu:0shot:gen', marked='mmlu12', template='chat').column == 'mmlu12-0shot-chat'
  judge = 'gpt-4o-2024-08-06'
  assert names('mt_bench', judge) == ('mtbench-total', '')
  assert names('mt_bench', judge, template='chat') == (
    f'mt_bench-0shot-gen-chat@{judge}',
    '-chat',
  )
  assert names('mt_bench', 'org/own') == ('mt_bench-0shot-gen@org-own', '@org-own')
  assert names('mt_bench', 'own', marked='mt_bench-judged1a', used=9).mark == '-judged1a@own-n9'
  assert names('alpaca_eval', judge).mark == f'@{judge}'


def test_fewer_items_than_were_published_are_told():
  wanted = benchmarks.parse('alpaca_eval')
  items, pool = published('alpaca_eval')
  given = Options(None, 'raw', (), 1)
  assert questions.names_of(wanted, items[:6], pool, 6, given) == ('alpaca_eval-0shot-gen', '-n6')
  assert questions.names_of(wanted, items[:6], pool, 2, given).mark == '-n2'

"""The tables of a study: the released columns first, equal types in both files."""

import csv
import itertools

import pyarrow.parquet as pq
import pytest

from sft_jax import results
from sft_jax.study import table
from sft_jax.study.directory import StudyDirectory, StudyRecord
from sft_jax.utils import io
from sft_jax.utils.errors import UserError
from tests.test_spec import make


def rows_of(run, seed, scores):
  """A base row and two of a run that `results.make_row` gives."""
  spec = make(train__method='lora', train__seeds__init=seed)
  return [
    results.make_row(
      spec,
      run_id=f'id-{run}',
      step=step,
      epoch=step / 4,
      data_size=100,
      names=('model', 'data'),
      scores=scores | {'gsm8k-4shot': 50 + step, 'ppl-heldout': 9.25 - step / 8},
      counts={'train-tokens': 10 * step},
    )
    for step in (0, 2, 4)
  ]


def write(workdir, run, seed, scores, end='done.json'):
  place = StudyDirectory(workdir).run(run)
  io.upsert_jsonl(place / 'rows.jsonl', rows_of(run, seed, scores), results.ROW_KEY)
  if end:
    io.write_json_atomic(place / end, {'reason': 'loss, or\nso "it" seems', 'step': 4})


RUNS = {
  'a': (0, {'zeta': 1.5, 'words': ['x', 'y']}),
  'b': (1, {'alpha-stderr': 0.1, 'math-0shot': 3}),
  'c': (2, {'note': 'Grüße, "quoted"', 'flag': True}),
}


def begin(workdir):
  record = StudyRecord({run: f'name of {run}' for run in RUNS}, {'c0': ('a', 'b', 'c')}, {})
  StudyDirectory(workdir).open(record, lambda old, new: [])


def read(workdir):
  with open(workdir / 'results.csv', newline='') as f:
    return list(csv.DictReader(f))


def test_any_order_gives_the_same_bytes(tmp_path):
  made = set()
  for number, order in enumerate(itertools.permutations(RUNS)):
    workdir = tmp_path / str(number)
    begin(workdir)
    for run in order:
      write(workdir, run, *RUNS[run])
      table.collect(workdir)
    names = ('results.csv', 'results.parquet', 'failures.csv')
    made.add(tuple((workdir / name).read_bytes() for name in names))
  assert len(made) == 1


def test_header_and_values(tmp_path):
  begin(tmp_path)
  for run in RUNS:
    write(tmp_path, run, *RUNS[run])
  table.collect(tmp_path)
  rows = read(tmp_path)
  header = list(rows[0])
  released = list(results.RELEASED_COLUMNS)
  assert header[: len(released)] == released
  assert header[len(released) : len(released) + 3] == ['run-id', 'step', 'state']
  rest = header[header.index('lora-targets') + 1 :]
  assert rest == sorted(rest) and {'zeta', 'alpha-stderr', 'train-tokens'} <= set(rest)
  assert [row['run-id'] for row in rows] == [f'id-{r}' for r in 'abc' for _ in range(3)]
  base, first, last = rows[:3]
  assert (base['lora'], first['lora'], last['data_size']) == ('', 'true', '100')
  # 0.5 makes epochs fractions for all rows; counts stay whole.
  assert (base['epoch'], first['epoch'], last['epoch']) == ('0.0', '0.5', '1.0')
  assert (last['gsm8k-4shot'], last['train-tokens'], last['zeta']) == ('54.0', '40', '1.5')
  assert last['words'] == '["x", "y"]' and rows[-1]['note'] == 'Grüße, "quoted"'


def test_parquet_holds_the_same(tmp_path):
  begin(tmp_path)
  for run in RUNS:
    write(tmp_path, run, *RUNS[run])
  table.collect(tmp_path)
  held = pq.read_table(tmp_path / 'results.parquet')
  text = read(tmp_path)
  assert held.column_names == list(text[0])
  words = {None: '', True: 'true', False: 'false'}
  for column in held.column_names:
    values = held[column].to_pylist()
    shown = [
      words[v] if v is None or isinstance(v, bool) else v if isinstance(v, str) else repr(v)
      for v in values
    ]
    assert shown == [row[column] for row in text], column
  kinds = {'lora': 'bool', 'epoch': 'double', 'data_size': 'int64', 'nq-0shot': 'double'}
  kinds |= {'learning-rate': 'double', 'batch-size': 'int64', 'lr_strategy': 'string'}
  assert {name: str(held.schema.field(name).type) for name in kinds} == kinds


def test_it_concatenates_with_the_released_table(tmp_path, data_dir):
  pd = pytest.importorskip('pandas')
  begin(tmp_path)
  write(tmp_path, 'a', *RUNS['a'])
  table.collect(tmp_path)
  released = pd.read_csv(data_dir / 'bench/massive_sft_evaluation_result.csv', index_col=0)
  both = pd.concat([released, pd.read_csv(tmp_path / 'results.csv')])
  assert len(both) == 1027 + 3 and list(both)[:36] == list(released)
  assert both['gsm8k-4shot'].dtype == 'float64' and set(both['lora'].dropna()) == {True, False}


def test_state_and_failures(tmp_path):
  begin(tmp_path)
  write(tmp_path, 'a', *RUNS['a'])
  write(tmp_path, 'b', *RUNS['b'], end='failed.json')
  write(tmp_path, 'c', *RUNS['c'], end='')
  table.collect(tmp_path)
  assert [row['state'] for row in read(tmp_path)[::3]] == ['done', 'failed', 'unfinished']
  with open(tmp_path / 'failures.csv', newline='') as f:
    (failure,) = csv.DictReader(f)
  assert failure['run'] == 'b' and failure['name'] == 'name of b' and failure['cohort'] == 'c0'
  assert failure['kind'] == 'numbers' and 'so "it" seems' in failure['reason']


def test_what_ends_meanwhile_is_seen(tmp_path, monkeypatch):
  """Another process, which saw less, would otherwise write over the last word."""
  begin(tmp_path)
  write(tmp_path, 'a', *RUNS['a'])
  real, calls = table.read_rows, []

  def slow(place, record):
    rows = real(place, record)
    if not calls:
      write(tmp_path, 'b', *RUNS['b'])
    calls.append(1)
    return rows

  monkeypatch.setattr(table, 'read_rows', slow)
  assert len(table.collect(tmp_path)) == 6 and len(read(tmp_path)) == 6


def test_no_rows_yet(tmp_path):
  begin(tmp_path)
  assert table.collect(tmp_path) == []
  assert (tmp_path / 'results.csv').read_text().split('\n')[0].startswith('model_name,data_name')
  assert pq.read_table(tmp_path / 'results.parquet').num_rows == 0


def test_no_study(tmp_path):
  with pytest.raises(UserError, match='no study here'):
    table.collect(tmp_path)
  (tmp_path / 'study.json').write_text('{"runs": []}')
  with pytest.raises(UserError, match='not a study'):
    table.collect(tmp_path)

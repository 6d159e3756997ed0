"""Mixtures of data sets, copies in a directory, and the study's rows."""

import collections
import json
import re

import pytest

from sft_jax import spec as spec_lib
from sft_jax.data import datasets
from sft_jax.data.datasets import load_records
from sft_jax.data.named import DATASETS, STUDY
from sft_jax.execution import inputs
from sft_jax.utils.errors import UserError
from tests import tiny


def qa(name, index, **more):
  return {
    'instruction': f'{name} question {index}',
    'input': '',
    'output': f'answer {index}',
    **more,
  }


@pytest.fixture
def copies(tmp_path):
  """A directory that has 60 + 5 i records of the i-th of the study's data sets."""
  for i, name in enumerate(STUDY):
    rows = [qa(name, k) for k in range(60 + 5 * i)]
    tiny.write_records(tmp_path / f'{name}.jsonl', rows)
  flan = [
    {'inputs': f'q{k}', 'targets': f'a{k}', '_task_name': task}
    for k, task in enumerate(20 * ('bool_q:1.0.0', 'piqa:1.0.0', 'quac:1.0.0', 'other:1.0.0'))
  ]
  for name in STUDY[-3:]:
    tiny.write_records(tmp_path / f'{name}.jsonl', flan)
  return str(tmp_path)


def asked(records):
  return [record.messages[0]['content'] for record in records]


def by_part(records):
  return collections.Counter(record.source.split(': ')[0] for record in records)


def test_all_is_the_union_of_runs_on_its_parts(copies):
  """The study merged ten data sets of 1,000; the same records, whatever the run."""
  options = {'seed': 3, 'heldout_share': 0.1, 'data_dir': copies}
  train, heldout = load_records('all', size=100, **options)
  assert by_part(train) == dict.fromkeys(STUDY, 10)
  alone = [load_records(name, size=10, **options) for name in STUDY]
  assert asked(train) == [text for records, _ in alone for text in asked(records)]
  assert asked(heldout) == [text for _, records in alone for text in asked(records)]
  assert not {r.key for r in train} & {r.key for r in heldout}
  assert asked(load_records('all', size=100, **options | {'seed': 4})[0]) != asked(train)


def test_one_left_out(copies):
  train, _ = load_records('without:lima', size=90, data_dir=copies)
  everything, _ = load_records('all', size=100, data_dir=copies)
  assert asked(train) == [
    text for text, r in zip(asked(everything), everything, strict=True) if 'lima: ' not in r.source
  ]
  assert datasets.parts('w/o-lima') == datasets.parts('without:lima')


def test_shares_are_exact(copies):
  mixed = 'mix:alpaca_cleaned=0.7,lima=0.3'
  train, heldout = load_records(mixed, size=25, heldout_share=0.3, heldout_max=10, data_dir=copies)
  # 17.5 and 7.5: of equal remainders the first part gets the record.
  assert by_part(train) == {'alpaca_cleaned': 18, 'lima': 7}
  assert by_part(heldout) == {'alpaca_cleaned': 7, 'lima': 3}
  # As many as the shares allow: 60 records of the one are 70 %.
  most, _ = load_records(mixed, heldout_share=0, data_dir=copies)
  assert by_part(most) == {'alpaca_cleaned': 60, 'lima': 26}
  with pytest.raises(UserError, match=r'90 records are wanted, 60 are there.*alpaca_cleaned'):
    load_records('mix:alpaca_cleaned=9,lima=1', size=100, heldout_share=0, data_dir=copies)


def test_a_path_may_be_a_part(copies, tmp_path):
  own = tiny.write_records(tmp_path / 'own.jsonl')
  train, _ = load_records(f'mix:lima=1,{own}=3', size=40, heldout_share=0, data_dir=copies)
  assert by_part(train) == {'lima': 10, str(own): 30}
  assert train[0].source.startswith(f'{own}: {own}:')


def test_unknown_parts():
  for name in ('lma', 'without:lma', 'mix:lima=1,lma=2'):
    with pytest.raises(UserError, match="unknown data set 'lma'"):
      load_records(name)


def test_copies_are_found_by_either_name(tmp_path):
  with pytest.raises(UserError, match=r"no copy of 'math' .*math.jsonl.* MathInstruct.json there"):
    load_records('math', data_dir=str(tmp_path))
  (tmp_path / 'MathInstruct.json').write_text(json.dumps([qa('math', 0)]))
  assert len(load_records('math', heldout_share=0, data_dir=str(tmp_path))[0]) == 1
  tiny.write_records(tmp_path / 'math.jsonl', [qa('math', k) for k in range(3)])
  assert len(load_records('math', heldout_share=0, data_dir=str(tmp_path))[0]) == 3
  # What comes with the package is not looked for.
  assert load_records('builtin_short', data_dir=str(tmp_path))[0]


def test_parts_of_the_builtin_data():
  whole = load_records('builtin')
  parts = [n for n in DATASETS if n.startswith('builtin_')]
  read = [load_records(name) for name in parts]
  for side in (0, 1):
    assert sorted(asked(whole[side])) == sorted(t for part in read for t in asked(part[side]))
  sizes = [len(train) + len(heldout) for train, heldout in read]
  assert sizes == [DATASETS[name]['records'] for name in parts]


def test_rows_of_the_study():
  assert len(STUDY) == len(set(STUDY)) == 10 and set(STUDY) <= set(DATASETS)
  for name, row in DATASETS.items():
    unknown = row.keys() - {
      *('path', 'revision', 'format', 'columns', 'where', 'drop', 'turns', 'records', 'files'),
      *('licence', 'note'),
    }
    assert not unknown, (name, unknown)
    pinned = row.get('revision', '')
    assert not pinned or re.fullmatch(r'[0-9a-f]{40}|refs/convert/parquet', pinned)


def test_the_config_reaches_the_data(tiny_files, copies):
  config = tiny.config(tiny_files[0], '', data__name='w/o-lima', data__size=90)
  spec = spec_lib.from_config(config, 'cpu')
  assert spec.data_name == 'without:lima'
  tokenizer = inputs.load_model(str(tiny_files[0]), '', 64).tokenizer
  data = inputs.load_data(spec, tokenizer, [], copies)
  assert (len(data.train), data.name) == (90, 'w/o-lima')
  assert datasets.source(spec.data_name) == 'without:lima'
  assert datasets.source('lima') == 'hf:GAIR/lima' and datasets.source('', 'a.jsonl') == 'a.jsonl'


@pytest.mark.parametrize(
  ('name', 'least'),
  [
    *(('alpaca_cleaned', 1000), ('lima', 1029), ('code_alpaca', 2017), ('boolq', 2000)),
    *(('gsm8k', 7473), ('numina', 1000), ('trivia_qa', 1500), ('ultrachat', 2)),
  ],
)
def test_real_copies(real_data, name, least):
  train, _ = load_records(name, heldout_share=0, data_dir=str(real_data / 'train'))
  assert len(train) == least
  if 'turns' in DATASETS[name]:
    assert {len(record.messages) for record in train} == {2}


def test_a_real_mixture(real_data):
  """Shares, and no record that one part trains on is held out of another."""
  directory = str(real_data / 'train')
  mixed = 'mix:lima=0.5,code_alpaca=0.3,gsm8k=0.2'
  train, heldout = load_records(
    mixed, size=1501, heldout_share=0.1, heldout_max=100, data_dir=directory
  )
  assert by_part(train) == {'code_alpaca': 450, 'gsm8k': 300, 'lima': 751}
  assert by_part(heldout) == {'code_alpaca': 30, 'gsm8k': 20, 'lima': 50}
  assert not {r.key for r in train} & {r.key for r in heldout}

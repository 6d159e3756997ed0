"""`--mode=probe`: what it writes of a study, that it does nothing twice, and what it refuses."""

import json
import shutil
from unittest import mock

import numpy as np
import pandas as pd
import pytest

from sft_jax.analysis import measured, vectors
from sft_jax.evals.probes import loglik_vector, probe_texts
from sft_jax.execution import probe_mode, probed
from sft_jax.study.directory import StudyDirectory, StudyRecord
from sft_jax.utils import tables
from sft_jax.utils.errors import UserError
from tests import tiny

TASKS = 'arc_easy:0shot:ll,piqa:0shot:ll'


@pytest.fixture(scope='module')
def questions(tmp_path_factory):
  place = tmp_path_factory.mktemp('bench')
  arc = [
    {
      'id': f'a{i}',
      'question': f'What is {i} and {i}?',
      'choices': {'text': [str(2 * i), str(2 * i + 1)], 'label': ['A', 'B']},
      'answerKey': 'AB'[i % 2],
    }
    for i in range(9)
  ]
  piqa = [
    {'goal': f'add {i} to 3', 'sol1': f'say {i + 3}', 'sol2': f'eat {i}', 'label': 0}
    for i in range(9)
  ]
  for name, rows in (('arc_easy_val', arc), ('piqa_val', piqa)):
    tiny.write_records(place / f'{name}.jsonl', rows)
  return place


@pytest.fixture(scope='module')
def study(lora_run, full_run, tmp_path_factory):
  """A study of two runs that were made before, and one that has not begun."""
  place = tmp_path_factory.mktemp('study')
  names = {'one': 'lora', 'two': 'full', 'three': 'later'}
  StudyDirectory(place).open(
    StudyRecord(names, {key: (key,) for key in names}, {}), lambda before, given: []
  )
  for key, run in zip(names, (lora_run, full_run), strict=False):
    shutil.copytree(run, place / 'runs' / key)
  return place


def config(questions, **more):
  changes = {'eval__tasks': TASKS, 'eval__data_dir': str(questions), 'probe__each': 8, **more}
  return tiny.config('', '', **changes)


def probe(study, given):
  with tiny.on_devices():
    return probe_mode.probe(given, str(study))


@pytest.fixture(scope='module')
def told(study, questions):
  return probe(study, config(questions))


def test_every_table_the_report_reads_is_there(study, told):
  assert (told['bases'], told['data'], told['models']) == (1, 1, 2)
  matrix, facts = vectors.read_matrix(sorted(study.glob(measured.VECTORS)))
  assert matrix.shape == (3, 16) and np.isfinite(matrix).all()
  assert sorted((f['epoch'], f['lora'] if f['epoch'] else '') for f in facts) == [
    *[(0, '')], *[(2, False), (2, True)]
  ]  # fmt: skip
  shapes = {tables.read_arrays(file)[0]['states'].shape[1] for file in study.glob(measured.STATES)}
  assert shapes == {16} and len(list(study.glob(measured.STATES))) == 3
  (row,) = pd.concat(map(pd.read_csv, study.glob(measured.PROPERTIES))).to_dict('records')
  assert row['data_name'] == 'sums' and {'ppl-data-response', 'hard-tokens'} <= set(row)


def test_similarity_is_its_formula(study, told, tiny_files):
  (file,) = study.glob('probes/similarity-*.csv')
  rows = {row['benchmark']: row for row in pd.read_csv(file).to_dict('records')}
  assert set(rows) == {'arc_easy', 'piqa'} and all(row['texts'] == 8 for row in rows.values())
  assert all(-1 <= row['cosine_of_means'] <= 1 for row in rows.values())
  rng = np.random.default_rng(0)
  x, parts = rng.normal(size=(7, 5)), {'a': rng.normal(size=(4, 5)), 'b': rng.normal(size=(3, 5))}
  unit = lambda v: v / np.linalg.norm(v, axis=1)[:, None]
  first, second = unit(x).mean(0), unit(parts['b']).mean(0)
  expected = first @ second / np.sqrt(first @ first * (second @ second))
  found = {row['benchmark']: row for row in probed.similarities(x, parts)}['b']
  assert found['cosine_of_means'] == pytest.approx(expected)
  assert found['mean_of_best'] == pytest.approx((unit(x) @ unit(parts['b']).T).max(1).mean())


def test_what_is_there_is_not_done_again(study, questions, told):
  files = [*study.glob('probes/*')]
  before = {file: file.stat().st_mtime_ns for file in files}
  stop = mock.Mock(side_effect=AssertionError('done again'))
  with mock.patch.object(loglik_vector, 'write', stop):
    assert probe(study, config(questions))['files'] == told['files']
  gone = next(
    file for file in files if file.name.startswith('loglik_vector-') and file.suffix == '.npz'
  )
  gone.unlink()
  probe(study, config(questions))
  after = {file: file.stat().st_mtime_ns for file in files}
  assert {f for f in files if before[f] != after[f]} == {gone, gone.with_name(f'{gone.name}.json')}


def test_some_models_and_no_states(study, questions, tmp_path):
  shutil.copytree(study, tmp_path / 'study', ignore=shutil.ignore_patterns('probes'))
  given = config(questions, probe__only='lora=False', probe__states='none', probe__records=3)
  assert probe(tmp_path / 'study', given)['models'] == 1
  assert not list((tmp_path / 'study').glob(measured.STATES))
  assert len(list((tmp_path / 'study').glob(measured.VECTORS))) == 2
  (file,) = (tmp_path / 'study').glob(measured.PROPERTIES)
  assert json.loads(file.with_name(f'{file.name}.json').read_text())['examples'] == 3
  assert list((tmp_path / 'study').glob('probes/similarity-*.csv'))


def test_texts_from_a_file_and_from_benchmarks(questions, tmp_path):
  from sft_jax.evals import benchmarks
  from sft_jax.evals.files import LocalFiles

  wanted = [benchmarks.parse(task) for task in TASKS.split(',')]
  found = probe_texts.of_benchmarks(wanted, LocalFiles(str(questions)))
  assert found['arc_easy'][1] == ('Question: What is 1 and 1?\nAnswer:', ' 3', 'arc_easy')
  assert found['piqa'][0].answer == ' say 3'
  rows = [{'prompt': '', 'answer': 'Alone.'}, {'prompt': 'Of', 'answer': ' a task', 'task': 't'}]
  file = tiny.write_records(tmp_path / 'texts.jsonl', rows)
  assert probe_texts.read(str(file)) == {'': [('', 'Alone.', '')], 't': [('Of', ' a task', 't')]}
  file.write_text('{"prompt": "", "answer": ""}\n')
  with pytest.raises(UserError, match='is empty, and so is the answer'):
    probe_texts.read(str(file))


@pytest.mark.parametrize(
  'changes, words',
  [
    ({'eval__tasks': 'perplexity'}, 'no probe texts'),
    ({'probe__each': 10}, '10 are wanted'),
    ({'probe__each': 5}, 'probes of other texts are here'),
    ({'probe__only': 'lora'}, 'no COLUMN=VALUE'),
    ({'probe__only': 'colour=red'}, "no column 'colour'"),
    ({'probe__only': 'epoch=7'}, 'no finished run of the study has these values'),
    ({'probe__only': 'lora=True,epoch=7'}, 'no finished run of the study has these values'),
    ({'probe__states': 'first'}, 'mean, last, none'),
    ({'probe__texts': 'absent.jsonl'}, 'no such file'),
  ],
)
def test_bad_input(study, questions, told, changes, words):
  files = sorted(study.rglob('*'))
  with pytest.raises(UserError, match=words) as e:
    probe(study, config(questions, **changes))
  assert e.value.where and e.value.how and '\n' not in str(e.value)
  assert sorted(study.rglob('*')) == files


def test_no_study(questions, lora_run, tmp_path):
  for place in (lora_run, tmp_path):
    with pytest.raises(UserError, match='no study here'):
      probe(place, config(questions, probe__texts='absent.jsonl'))

"""`--mode=compare` and `--json`: two rows of runs and evaluations, and what programs read."""

import json
import logging
import os
import subprocess
import sys

import pytest

from sft_jax import comparison, main
from sft_jax.utils import io
from sft_jax.utils.errors import UserError
from tests import tiny
from tests.conftest import REPOSITORY
from tests.evals.test_compare import records


def put(workdir, step, scores, name='gsm8k-4shot', **more):
  part = records(scores, **more)
  path = workdir / 'samples' / f'{name}-{step}.jsonl'
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(''.join(f'{io.to_json(record)}\n' for record in part))


@pytest.fixture
def run(tmp_path):
  """A workdir with a base and two snapshots, of which the first fits held-out data best."""
  workdir = tmp_path / 'run'
  for step, scores in {0: [0, 0, 0, 1], 4: [1, 1, 0, 1], 8: [0, 0, 0, 0]}.items():
    put(workdir, step, scores)
  rows = [
    {'step': 0, 'model_name': 'm', 'data_name': 'pretrain', 'ppl-heldout': 1.0},
    {'step': 8, 'model_name': 'm', 'data_name': 'd', 'ppl-heldout': 9.0},
    {'step': 4, 'model_name': 'm', 'data_name': 'd', 'ppl-heldout': 5.0, 'quantize': 'int8'},
  ]
  (workdir / 'rows.jsonl').write_text(''.join(f'{json.dumps(row)}\n' for row in rows))
  return workdir


def compare(a, b, workdir='', **more):
  given = {'compare__a': str(a), 'compare__b': str(b)}
  given |= {f'compare__{k}': v for k, v in more.items()}
  return comparison.compare_rows(tiny.config('', '', **given), str(workdir))


@pytest.mark.parametrize(
  ('a', 'b', 'scores'),
  [
    ('@base', '', [25, 0]),
    ('@0', '@best', [25, 75]),
    ('@best', '@last', [75, 0]),
    ('@8', '@4', [0, 75]),
  ],
)
def test_rows_of_a_run(run, a, b, scores):
  report = compare(f'{run}{a}', f'{run}{b}')
  assert report['tasks']['gsm8k:4shot:gen']['scores'] == scores


def test_rows_are_called_by_model_and_data(run):
  names = compare(f'{run}@base', f'{run}@best')['rows']
  assert names == [f'm ({run}@base)', f'm, d, step 4, int8 ({run}@4)']
  assert compare(f'{run}@base', run)['rows'][1] == f'm, d, step 8 ({run})'


def test_a_task_and_what_both_were_asked(run, tmp_path):
  other = tmp_path / 'other'
  put(other, 0, [1, 1, 1, 1, 1, 1], about={'column': 'gsm8k-4shot-n6'})
  put(other, 0, [1, 0], name='boolq', about={'task': 'boolq:0shot:ll'})
  with pytest.raises(UserError, match=r'only one has boolq:0shot:ll .*config.compare.common=True'):
    compare(run, other)
  with pytest.raises(UserError, match='column differs'):
    compare(run, other, task='gsm8k')
  report = compare(run, other, common=True)['tasks']
  assert list(report) == ['gsm8k:4shot:gen'] and report['gsm8k:4shot:gen']['n'] == 4
  assert list(compare(other, other, task='boolq')['tasks']) == ['boolq:0shot:ll']
  assert list(compare(other, other, task='gsm8k-4shot-n6')['tasks']) == ['gsm8k:4shot:gen']
  with pytest.raises(UserError, match='no per-item records of bool'):
    compare(other, other, task='bool')


@pytest.mark.parametrize(
  ('a', 'b', 'match'),
  [
    ('', '{run}', 'no row given .config.compare.a'),
    ('{run}', '', 'no row given .config.compare.b'),
    ('{run}', '/nowhere', r'no run or evaluation is here \(config.compare.b=/nowhere'),
    ('/nowhere@best', '{run}', r'no run or evaluation is here \(config.compare.a=/nowhere@best'),
    ('{run}', '{run}@77', 'of step 77'),
    ('{run}', '{run}/samples@best', 'no snapshot is known to be the best'),
  ],
)
def test_rows_that_are_not_there(run, a, b, match):
  with pytest.raises(UserError, match=match):
    compare(a.format(run=run), b.format(run=run))


@pytest.mark.parametrize('key', ['version', 'prompt-hash', 'template'])
def test_rows_that_were_asked_otherwise(run, tmp_path, key):
  put(tmp_path / 'other', 0, [1, 1, 1, 1], about={key: 'else'})
  with pytest.raises(UserError, match=rf'{key} differs: .* and else') as e:
    compare(run, tmp_path / 'other', tmp_path / 'out')
  assert '\n' not in str(e.value) and not (tmp_path / 'out').exists()


def test_what_was_trained_on_is_told_apart(tmp_path):
  a, b = tmp_path / 'a', tmp_path / 'b'
  put(a, 0, [0, 0, 0, 1])
  put(b, 0, [1, 1, 0, 1])
  assert compare(a, b)['tasks']['gsm8k:4shot:gen']['clean'] is None
  part = tiny.read_jsonl(b / 'samples' / 'gsm8k-4shot-0.jsonl')
  for index, record in enumerate(part):
    record['contaminated'] = index == 0
  text = ''.join(f'{io.to_json(record)}\n' for record in part)
  (b / 'samples' / 'gsm8k-4shot-0.jsonl').write_text(text)
  clean = compare(a, b)['tasks']['gsm8k:4shot:gen']['clean']
  assert (clean['n'], clean['contaminated-n']) == (3, 1)
  assert clean['difference']['mean'] == pytest.approx(100 / 3)


def test_report_page_and_file(run, tmp_path, caplog, monkeypatch):
  monkeypatch.setattr(logging.getLogger('sft_jax'), 'propagate', True)
  caplog.set_level('INFO', logger='sft_jax')
  report = compare(f'{run}@base', f'{run}@best', tmp_path / 'out')
  page = (tmp_path / 'out' / 'comparison.html').read_text()
  assert report['page'].endswith('comparison.html') and 'output 1' in page
  held = json.loads((tmp_path / 'out' / 'comparison.json').read_text())
  assert held['tasks'] == json.loads(io.to_json(report['tasks']))
  said = caplog.text
  assert '+50.00' in said and 'they differ on 0, 1' in said and 'item 0: acc 0 and 1' in said


def call(*flags):
  """Standard output and status of a command."""
  done = subprocess.run(
    [sys.executable, '-m', 'sft_jax.main', '--config=configs/base.py', *flags],
    cwd=REPOSITORY, env={**os.environ}, capture_output=True, text=True, timeout=300,
  )  # fmt: skip
  return done.stdout, done.returncode, done.stderr


def test_json_is_the_last_line(run):
  """Of one item there is no interval: null."""
  out, status, error = call(
    '--mode=compare', '--json', f'--config.compare.a={run}@base', f'--config.compare.b={run}@best'
  )
  assert status == 0, error
  *before, last = out.splitlines()
  found = json.loads(last)['tasks']['gsm8k:4shot:gen']
  assert found['scores'] == [25, 75] and len(found['disagree']) == 2
  assert any('95 % interval' in line for line in before)
  out, status, error = call('--mode=compare', '--json', f'--config.compare.a={run}')
  assert status == 2 and not out and error.count('\n') == 1


def test_every_mode_has_a_call():
  assert tuple(main._CALLS) == main.MODES

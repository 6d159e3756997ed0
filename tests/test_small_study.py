"""The small study's verdicts follow the rules that docs/results.md laid down before it ran."""

import json
import re

import pytest

from benchmarks import small_study, small_study_page
from tests.conftest import REPOSITORY


def one(value, low, high, p=0.01):
  return {'value': value, 'low': low, 'high': high, 'p': p}


def likeness(low, length):
  return {'similarity': one(0.2, low, 0.5), 'mean length': length}


@pytest.mark.parametrize(
  'name, test, verdict',
  [
    ('H1', one(-0.8, -0.95, -0.3), 'supported'),
    ('H1', one(-0.5, -0.9, 0.2), 'undecided'),
    ('H1', one(0.8, 0.3, 0.95), 'refuted'),
    ('H2', likeness(0.1, one(0.4, 0.2, 0.6)), 'supported'),
    ('H2', likeness(0.1, one(0.4, -0.2, 0.6)), 'undecided'),
    ('H2', likeness(0.1, one(-0.4, -0.6, -0.1)), 'refuted'),
    ('H4', one(0.6, 0.1, 0.9), 'supported'),
    ('H5', one(0.8, 0.4, 0.97, 0.003), 'supported'),
    ('H5', one(0.5, 0.2, 0.8, 0.3), 'undecided'),
    ('H5', one(0.0, 0.0, 0.3, 0.02), 'refuted'),
    ('H6', one(0, 0.1, 0.9) | {'icc': 0.6}, 'supported'),
    ('H6', one(0, -0.4, 0.4) | {'icc': 0.0}, 'refuted'),
    ('H6', one(0, -0.4, 0.9) | {'icc': 0.4}, 'undecided'),
    ('H8', one(0.6, 0.5, 0.7), 'supported'),
    ('H8', one(1.2, 1.1, 1.3), 'refuted'),
    ('H8', one(float('nan'), float('nan'), float('nan')), 'undecided'),
  ],
)
def test_verdicts(name, test, verdict):
  assert small_study_page.verdict(name, test) == verdict


def test_the_page_and_the_script_have_the_same_hypotheses():
  text = (REPOSITORY / 'docs' / 'results.md').read_text()
  assert re.findall(r'^\| (H\d) \|', text.split('## Results')[0], re.M) == [
    *small_study_page.RULES
  ]  # fmt: skip
  for count in (
    f'{n} items of' if n == 100 else f'{n} of' for _, n in small_study.BENCHMARKS.values()
  ):
    assert count in text


def test_the_page_tells_what_was_found():
  found = json.loads((REPOSITORY / 'benchmarks/results/small_study.json').read_text())
  page = (REPOSITORY / 'docs' / 'results.md').read_text().split('## Results')[1]
  told = dict(re.findall(r'^\| (H\d) \| (.*) \|$', page, re.M))
  number = lambda value: f'{value:.2f}'.replace('-', '−')
  for kind, at in (('gain', 0), ('soft', 3)):
    for row in small_study_page.rows(found['tests'][kind]):
      cells = told[row['name']].split(' | ')[at : at + 3]
      if at and row['name'] in ('H5', 'H7', 'H8'):
        continue  # These have nothing to do with gains.
      assert row['verdict'] == cells[2].strip(), row['name']
      if row['name'] != 'H5':
        ends = [number(one[end]) for one in row['estimates'] for end in ('low', 'high')]
        assert all(end in cells[0].replace('+', '') for end in ends), row['name']
  # In both, data sets stand in the order of their names.
  listed = re.findall(r'^\| [^|]+ \| ([^|]+ ± [^|]+) \| ([^|]+ ± [^|]+) \|', page, re.M)
  for (*pair,), name in zip(listed, found['data'], strict=True):
    each = found['each'][name]
    for cell, kind in zip(pair, ('gain', 'soft'), strict=True):
      mean = sum(each[kind].values()) / len(each[kind])
      assert cell.replace('−', '-') == f'{mean:+.1f} ± {each[f"{kind}-stderr"]:.1f}', name


def test_data_sets_are_the_first_exchange_of_each_record(tmp_path):
  file = tmp_path / 'x.jsonl'
  short = {'passage': 'a b', 'question': 'is it', 'label': True}
  rows = [short, short | {'passage': 'a ' * 61}]
  file.write_text(''.join(f'{json.dumps(row)}\n' for row in rows))
  (turns,) = small_study.exchanges('boolq', file)
  assert [turn['content'] for turn in turns] == ['a b\nQuestion: is it?', 'yes']
  talk = [{'role': 'system', 'content': 'S'}, {'role': 'user', 'content': 'U'}]
  talk += [{'role': 'assistant', 'content': 'A'}, {'role': 'user', 'content': 'again'}]
  talk += [{'role': 'assistant', 'content': 'B'}]
  file.write_text(json.dumps({'messages': talk}) + '\n')
  (turns,) = small_study.exchanges('lima', file)
  assert [turn['content'] for turn in turns] == ['U', 'A']


def test_without_its_data_it_ends_in_one_line(tmp_path, capsys, monkeypatch):
  workdir, data = tmp_path / 'w', tmp_path / 'none'
  argv = ['small_study', f'--workdir={workdir}', f'--data={data}', '--sets=lima']
  monkeypatch.setattr('sys.argv', argv)
  with pytest.raises(SystemExit) as end:
    small_study.main()
  said = capsys.readouterr().err
  assert end.value.code == 2 and said.startswith('error: 6 data files are missing, such as ')
  assert said.count('\n') == 1 and str(data / 'train' / 'lima.json') in said
  assert not workdir.exists()
  # What was made of the data earlier does.
  made = workdir / 'inputs' / 'data' / 'lima.jsonl'
  made.parent.mkdir(parents=True)
  made.touch()
  assert len(small_study.lacking(data, workdir / 'inputs', ['lima'])) == 5


def test_runs_differ_as_the_page_says():
  args = small_study.parse(['--workdir=w'])
  runs = small_study.entries(args, small_study.RATES, True)
  assert len(runs) == 28 and len({json.dumps(run) for run in runs}) == 28
  assert sum(run['method'] == 'full' for run in runs) == 10
  assert sorted(run['seed'] for run in runs if run['path'].endswith('/arc.jsonl')) == [1, 1, 2, 3]
  with pytest.raises(SystemExit):
    small_study.parse(['--workdir=w', '--sets=nothing'])


def test_words_follow_verdicts():
  told = [{'name': n, 'verdict': v, 'holm': p} for n, v, p in (
    ('H1', 'supported', 0.01), ('H2', 'undecided', 1.0), ('H3', 'refuted', 0.2)
  )]  # fmt: skip
  agrees, against, open_, sure, _ = small_study_page._words(told, told[:1])
  assert agrees == '- Agrees with the paper: H1; on soft gain: H1.'
  assert against.endswith('it: H3; on soft gain: none.') and ': H2;' in open_
  assert sure.endswith('on gain: H1.')

"""The report: whole, self-contained, and honest about tables of which little can be said."""

import csv
import json
import re

import numpy as np
import pytest

from configs import report as report_config
from sft_jax.analysis import figures, gains, report, table
from sft_jax.utils import log
from sft_jax.utils.errors import UserError
from tests.analysis import synthetic


def config(**values):
  made = report_config.get_config()
  with made.unlocked():
    made.report.update(values)
  return made


def test_page_numbers_and_csv_agree(tmp_path):
  synthetic.clean(0).to_csv(tmp_path / 'results.csv')
  told = report.report(config(bootstrap=200), str(tmp_path))
  numbers = json.loads((tmp_path / 'report' / 'findings.json').read_text())
  assert {f'Q{i}' for i in range(1, 11)} <= set(numbers) and told['faults'] == 0
  page = (tmp_path / 'report' / 'index.html').read_text()
  assert not re.search(r'(src|href)="(https?:)?//', page) and '<svg' in page
  links = re.findall(r'href="(csv/[^"]+)"', page)
  assert len(links) > 30 and all((tmp_path / 'report' / link).is_file() for link in links)
  with open(tmp_path / 'report' / 'csv' / 'Q1_full.csv', newline='') as f:
    for row in csv.DictReader(f):
      cells = {table.short(k): v for k, v in numbers['Q1']['full'][row['row']].items()}
      assert float(row['value']) == cells[row['column']]


def test_names_of_points_do_not_lie_on_each_other():
  points = [('flan_comprehension', '', 0.0, 0.0), ('flan_knowledge', '', 0.2, 0.01)]
  points += [('far', '', 1.0, 1.0), ('alone', '', 0.5, 0.5)]
  svg = figures.scatter('map', 'Points.', points, ('first', 'second')).svg
  pattern = r'translate\(([\d.]+),([\d.]+)\)".*?<text (class="r" )?x="-?8" y="(-?\d+)">(\w+)<'
  found = {name: (float(x), float(y), left, int(at)) for x, y, left, at, name in
           re.findall(pattern, svg)}  # fmt: skip
  assert len(found) == 4
  ends = {}
  for name, (x, y, left, at) in found.items():
    wide = 6.5 * len(name)
    ends[name] = (x - 8 - wide if left else x + 8, y + at)
    assert ends[name][0] > 40, 'within the frame'
  (a, row_a), (b, row_b) = ends['flan_comprehension'], ends['flan_knowledge']
  assert abs(row_a - row_b) >= 11 or a + 6.5 * 18 < b
  # Who has room has its name beside it.
  assert found['alone'][2:] == ('', 4)


def test_curves_name_both_axes():
  svg = figures.curves('c', 'Lines.', {'one': [(1.0, 2.0), (2.0, 3.0)]}, ('epoch', 'gain')).svg
  assert '>epoch<' in svg and '>gain<' in svg


def test_many_lines_are_told_apart_and_named_in_full():
  lines = {f'a rather long name of a model, number {i}': [(0.0, i), (1.0, i)] for i in range(20)}
  svg = figures.curves('c', 'Lines.', lines, ('depth', 'change')).svg
  strokes = re.findall(r'<polyline [^>]*?(stroke="[^"]+" stroke-width="2"[^>/]*)/>', svg)
  assert len(set(strokes)) == len(strokes) == 20
  width, legend = (float(re.search(p, svg)[1]) for p in (r'width="(\d+)"', r'<text x="(626)"'))
  assert width - legend > 6.5 * max(map(len, lines))


def test_shares_end_at_a_hundred():
  svg = figures.curves('c', 'Lines.', {'one': [(1.0, 50.0), (2.0, 100 + 1e-12)]}, ('k', '%')).svg
  assert '>100<' in svg and '>110<' not in svg


def test_same_bytes_again(tmp_path):
  synthetic.clean(0).to_csv(tmp_path / 'results.csv')
  first, second = (
    report.report(config(bootstrap=200), str(tmp_path))
    and (tmp_path / 'report' / 'findings.json').read_bytes()
    for _ in range(2)
  )
  assert first == second


@pytest.mark.parametrize(
  'write, what',
  [
    (None, 'no such table'),
    ('', 'an empty file'),
    ('a,b\n1,2\n', 'has no column model_name'),
    ('a,b,c\n1,2,3\n', 'no column model_name'),
    ('model_name,data_name,epoch\nm,d,1\n', 'no scores'),
    ('model_name,data_name,gsm8k-0shot\n', 'no rows'),
    ('model_name,data_name,gsm8k-0shot\nm,pretrain,3\n', 'nothing can be said'),
    ('model_name,data_name,gsm8k-0shot\nm,pretrain,\nm,d,\n', 'no benchmark has a score'),
  ],
)
def test_bad_tables(write, what, tmp_path):
  if write is not None:
    (tmp_path / 'results.csv').write_text(write)
  with pytest.raises(UserError, match=what):
    report.report(config(), str(tmp_path))


@pytest.mark.parametrize('models', ['m', 'mn'])
def test_that_training_changed_no_score_is_told(models, tmp_path):
  rows = [f'{m},{d},0,60' for m in models for d in ('pretrain', 'd', 'e', 'f')]
  numbers = numbers_of(tmp_path, rows, 'nq-0shot,mmlu-0shot')
  assert numbers['about']['benchmarks'] == ['nq-0shot', 'mmlu-0shot']
  (said,) = numbers['sentences']['Q1']
  assert 'no score of any run differs' in said
  texts = [fault['text'] for fault in numbers['faults']]
  if len(models) == 1:
    wanted = (
      'Training moved nq-0shot, mmlu-0shot in hardly any row. All or none is right in nq-0shot'
    )
    assert any(text.startswith(wanted) for text in texts) and not numbers['changes']
  else:
    assert any('mmlu-0shot is nearly constant: 100%' in text for text in texts)
    assert 'nq-0shot, mmlu-0shot: kept, though nearly constant' in numbers['changes'][0]


def numbers_of(place, rows, columns):
  (place / 'results.csv').write_text('\n'.join([f'model_name,data_name,{columns}', *rows, '']))
  report.report(config(), str(place))
  return json.loads((place / 'report' / 'findings.json').read_text())


def test_the_same_gain_everywhere_is_a_gain_of_one_model(tmp_path):
  rows = ['m,pretrain,10,10', *(f'm,d{i},30,{20 + i}' for i in range(12))]
  numbers = numbers_of(tmp_path, rows, 'nq-0shot,mmlu-0shot')
  assert numbers['Q1']['full']['d3'] == {'nq-0shot': 20, 'mmlu-0shot': 13}
  texts = [fault['text'] for fault in numbers['faults']]
  assert 'nq-0shot tells hardly any data apart.' in texts


def test_names_that_are_numbers_and_scores_that_are_none(tmp_path):
  rows = [f'{m},{d},{i * 3 + k}' for i, m in enumerate(('007', '8')) for k, d in enumerate('1234')]
  numbers = numbers_of(tmp_path, [*rows, '8,5,1e308', '007,pretrain,4', '8,pretrain,5'], 'nq-0shot')
  assert numbers['about']['models'] == ['007', '8'] and set(numbers['Q1']['full']) == set('12345')
  assert 'nq-0shot: no score in 1 cell, taken as missing.' in numbers['notes']


def test_a_table_out_of_a_spreadsheet(tmp_path):
  text = 'model_name,data_name,nq-0shot\nm,pretrain,1\nm,d,2\n'
  (tmp_path / 't.csv').write_text(f'\ufeff{text}', encoding='utf-8')
  assert table.read(tmp_path / 't.csv')['model_name'].tolist() == ['m', 'm']
  (tmp_path / 't.csv').write_text(text.replace(',', ';'))
  with pytest.raises(UserError, match=r'one column .*t\.csv. — give comma-separated'):
    table.read(tmp_path / 't.csv')


def test_bad_settings(tmp_path):
  for values in ({'checks': 'base_copi'}, {'bootstrap': 3}):
    with pytest.raises(UserError, match=r'config\.report'):
      report.report(config(**values), str(tmp_path))


MIX = 'mix:a,b'


def demo(tmp_path):
  """One model, two data sets and their mixture with LoRA, the mixture in full too; one score."""
  head = 'model_name,data_name,lora,epoch,data_size,lr_strategy,em,em-n,' + ','.join(table.MAIN)
  rows = ['m,pretrain,,0,0,,10,50', 'm,a,true,1,48,cosine,14,50', 'm,b,true,1,48,cosine,8,50']
  rows += [f'm,"{MIX}",true,1,46,cosine,20,50', f'm,"{MIX}",false,1,46,cosine,17,50']
  rows += [f'm,"{MIX}",false,1,500,cosine,90,50', 'm,all,false,1,48,cosine,91,50']
  (tmp_path / 'results.csv').write_text(f'{head}\n' + '\n'.join(row + ',' * 12 for row in rows))


def test_mixtures_like_the_single_data_sets_are_told_beside_them(tmp_path):
  demo(tmp_path)
  answers = report.analyse(table.read(tmp_path / 'results.csv'), resamples=200)['answers']
  assert answers['Q1']['lora'] == {'a': {'em': 4.0}, 'b': {'em': -2.0}, MIX: {'em': 10.0}}
  assert answers['Q1']['full'] == {MIX: {'em': 7.0}}
  assert answers['Q5']['mixtures']['benchmarks']['em']['mean'] == -3.0
  assert answers['Q5']['mixtures']['n'] == 1 and 'skipped' in answers['Q5']['core']
  assert list(answers['Q3']['datasets']) == ['lora']  # Mixtures are like their parts.


def test_the_terminal_has_findings_first_and_says_things_once(tmp_path, monkeypatch):
  demo(tmp_path)
  lines: list[str] = []
  monkeypatch.setattr(log, 'say', lines.append)
  report.report(config(bootstrap=200), str(tmp_path))
  first, *rest = lines
  assert first.startswith('- Full fine-tuning, mean over benchmarks and models: ')
  assert [line[:2] for line in rest[:3]] == ['- ', '- ', 'Q2']
  assert not any('Q5' in line for line in rest)
  page = (tmp_path / 'report' / 'index.html').read_text()
  assert page.count('lucky as well as good') == 1
  # What is empty is told once, and not by all its names.
  assert page.count('mbpp-0shot') == 1 and 'and 6 more.' in page


def test_doubled_columns_and_missing_meta_are_told(tmp_path):
  text = 'model_name,data_name,nq-0shot,nq-0shot,mmlu-0shot,mmlu-0shot\n'
  text += 'm,pretrain,1,1,2,3\nm,d,2,2,3,4\nm,e,4,4,x,4\n'
  (tmp_path / 't.csv').write_text(text)
  frame = table.read(tmp_path / 't.csv')
  said = ' '.join(frame.attrs['notes'])
  assert 'nq-0shot stands twice, with the same' in said
  assert 'mmlu-0shot stands twice, with different' in said and 'mmlu-0shot' not in frame
  assert 'no column lora' in said and 'no column epoch' in said
  assert gains.gains(frame)['nq-0shot'].tolist() == [1.0, 3.0]


def test_scales_are_read_as_released(tmp_path):
  clean = synthetic.clean(0)
  clean.to_csv(tmp_path / 't.csv')
  frame = table.read(tmp_path / 't.csv')
  np.testing.assert_allclose(frame['Truthful_QA-0shot'], clean['Truthful_QA-0shot'] * 100)
  np.testing.assert_allclose(frame['mtbench-total'], clean['mtbench-total'] * 10)


def test_gain_is_format_and_ability(tmp_path):
  """Found 50 → 90 %, right of those 40 → 50 %: 25 points, of which 18 are format, 7 ability."""
  name = 'arc-0shot-gen'
  head = f'model_name,data_name,lora,{name},{name}-n,{name}-extracted,{name}-given-extracted'
  (tmp_path / 't.csv').write_text(f'{head}\nm,pretrain,,20,100,50,40\nm,d,false,45,100,90,50\n')
  frame = table.read(tmp_path / 't.csv')
  (row,) = gains.split(frame, [name]).to_dict('records')
  assert (row['gain'], row['format'], row['ability']) == pytest.approx((25, 18, 7))
  assert row['rest'] == pytest.approx(0)


def test_own_base_comes_before_the_models(tmp_path):
  text = 'model_name,data_name,lora,run-id,nq-0shot\nm,pretrain,,a,10\nm,pretrain,,b,20\n'
  text += 'm,d,true,a,15\nm,e,true,b,15\nm,f,true,c,15\n'
  (tmp_path / 't.csv').write_text(text)
  assert gains.gains(table.read(tmp_path / 't.csv'))['nq-0shot'].tolist() == [5.0, -5.0, 0.0]

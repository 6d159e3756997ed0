"""What a study's weights and data tell: read from where runs and probes leave it, and reported."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from configs import report as report_config
from sft_jax.analysis import findings, grafted, layers, measured_alone, models_told, report, table
from sft_jax.utils import io, tables
from tests.analysis import studies

MODELS, DATA = 6, 8


@pytest.fixture(scope='module')
def place(tmp_path_factory):
  """A study of LoRA runs: gains follow perplexity and the change of weights at depth 0.45."""
  place = tmp_path_factory.mktemp('study')
  rng = np.random.default_rng(0)
  changes, gains, _ = studies.peak(3, rho=0.95, models=MODELS, datasets=DATA)
  nats = 3 - 0.1 * gains + 0.02 * rng.normal(size=gains.shape)
  rows, properties = [], []
  for m in range(MODELS):
    for d in range(DATA):
      run = f'run{m}{d}'
      own = {'model_name': f'm{m}', 'run-id': run, 'train-data': f'd{d}', 'x-0shot-n': 500}
      seen = {'ppl-train': np.exp(nats[m, d]), 'ppl-train-stderr': 0.1}
      base = {'data_name': 'pretrain', 'epoch': 0, 'data_size': 0, 'step': 0, 'x-0shot': 40.0}
      tuned = {'data_name': f'd{d}', 'epoch': 2, 'data_size': 90, 'lora': True, 'step': 20}
      tuned |= {'lr_strategy': 'cosine', 'x-0shot': 40 + gains[m, d]}
      drops = {0: 9.0, 20: 9 * np.exp(0.1 * rng.normal() - 0.5)}
      both = [own | seen | one | {'ppl-heldout': drops[one['step']]} for one in (base, tuned)]
      rows += both
      (place / 'runs' / run).mkdir(parents=True)
      deep = np.interp(np.linspace(0, 1, 12), layers.GRID, changes[m, d]) * 1e-3
      one = {'norm': (40 * deep).tolist(), 'relative': deep.tolist()}
      record = {'run-id': run, 'step': 20, 'epoch': 2}
      modules = {'all': one, 'layers/attn/q': one}
      io.upsert_jsonl(place / 'runs' / run / 'rows.jsonl', both, ('run-id', 'step'))
      io.upsert_jsonl(
        place / 'runs' / run / 'layers.jsonl', [record | {'modules': modules}], ('run-id', 'step')
      )
      properties.append({'model_name': f'm{m}', 'data_name': f'd{d}', 'diversity': rng.random()})
      # Rows have their own perplexity, which comes first.
      properties[-1] |= {'ppl-data': 9.0 * rng.random(), 'ppl-data-response': rng.random() + 1}
  pd.DataFrame(rows).to_csv(place / 'results.csv', index=False)
  tables.write_rows(place / 'probes' / 'dataset_properties.csv', properties, {})
  return place


def told(place, out=None):
  config = report_config.get_config()
  with config.unlocked():
    config.report.update(bootstrap=200)
    if out:
      config.report.update(table=str(place / 'results.csv'))
  report.report(config, str(out or place))
  at = (out or place) / 'report'
  return json.loads((at / 'findings.json').read_text()), (at / 'index.html').read_text()


@pytest.fixture(scope='module')
def numbers(place):
  return told(place)


def test_the_planted_predictor_is_a_finding_and_noise_is_none(numbers):
  tests = {r['predictor']: r for r in numbers[0]['predictors']['lora']['tests']}
  known = {'log_ppl-train', 'log_ppl-train-response', 'early-drop', 'diversity'}
  assert set(tests) == known
  assert tests['log_ppl-train']['finding'] and tests['log_ppl-train']['within_model'] < -0.9
  assert not tests['diversity']['finding'] and not tests['early-drop']['finding']
  rivals = numbers[0]['predictors']['lora']['rivals']
  assert rivals['diversity']['low'] > 0 and rivals['early-drop']['low'] > 0
  said = ' '.join(numbers[0]['sentences']['predictors'])
  assert 'log_ppl-train and the overall gain' in said and 'closer to gains than diversity' in said


def test_the_planted_depth_is_in_the_set(numbers):
  found = numbers[0]['layers']['lora']
  assert found['datasets'] == [f'd{d}' for d in range(DATA)] and len(found['models']) == MODELS
  assert 0.45 in [found['depths'][i] for i in found['by_depth']['peak_set']]
  assert found['by_depth']['mean'][9] > 0.8 and len(found['across']['C']) == 21
  assert found['modules']['attn/q'] == found['change']
  assert 'the true peak may lie anywhere from' in ' '.join(numbers[0]['sentences']['layers'])


def test_what_is_absent_says_how_to_get_it(numbers):
  absent = {'dimension': 'probes/hidden_states', 'map': 'probes/loglik_vector'}
  for key, what in (absent | {'grafts': 'config.eval.graft'}).items():
    assert (
      what in numbers[0][key]['skipped'] and 'docs/jobs/analyse.md' in numbers[0][key]['skipped']
    )
  assert 'Not said: needs probes/hidden_states' in numbers[1]
  for name in ('predictors_lora', 'layers_change', 'layers_gain_lora'):
    assert f'csv/{name}.csv' in numbers[1]


def test_grafts_stand_beside_the_correlation(place, numbers, tmp_path):
  """Of 4 points, 3 are the middle band's, whose change goes with gains."""
  shutil.copytree(place, tmp_path / 'study')
  one = {'model_name': 'm0', 'data_name': 'd1', 'lora': True, 'epoch': 2, 'ppl-heldout': 5.0}
  bands = {'none': (None, None, 40, 0), '0-2': (0, 2, 41, 0.1), '3-7': (3, 7, 43, 0.7)}
  bands |= {'8-11': (8, 11, 39, 0.2), 'all': (0, 11, 44, 1)}
  rows = []
  for name, (first, last, score, share) in bands.items():
    ends = {} if name == 'none' else {'first': first, 'last': last}
    count = last - first + 1 if ends else 0
    numbers_of = {'graft': name, 'layers': count, 'change-share': share, 'x-0shot': score}
    if ends and name != '0-2':  # Not all have an interval.
      ends |= {'x-0shot-change-low': score - 42, 'x-0shot-change-high': score - 39.5}
    rows.append(one | numbers_of | ends)
  tables.write_rows(tmp_path / 'study' / 'probes' / 'a' / 'grafts.csv', rows, {})
  found, page = told(tmp_path / 'study')
  (model,) = found['grafts']['models']
  effect = {band['graft']: band for band in model['bands']}
  assert {k: v['gain'] for k, v in effect.items()} == {'0-2': 1, '3-7': 3, '8-11': -1, 'all': 4}
  assert effect['3-7']['share'] == 0.75 and effect['8-11']['share'] == -0.25
  curve = numbers[0]['layers']['lora']['by_depth']['mean']
  # Depths 0.25 to 0.65 are within layers 2.5 to 7.5 of 0 to 11.
  assert effect['3-7']['r'] == pytest.approx(np.mean(curve[5:14]))
  said = ' '.join(found['sentences']['grafts'])
  assert (effect['3-7']['low'], effect['3-7']['high']) == (1, 3.5)
  assert effect['0-2']['low'] is effect['0-2']['high'] is None
  assert 'all of the change +4.00 points' in said and 'layers 0-2 alone +1.00 (no interval)' in said
  assert 'layers 3-7 alone +3.00 (95 % interval +1.00 to +3.50), 75% of it' in said
  assert 'csv/grafts_0.csv' in page


def test_intervals_of_several_benchmarks_go_together(tmp_path):
  """Of symmetric ones: errors of independent means add up as squares."""
  errors, change = {'x-0shot': 1.5, 'y-0shot': 2.0}, {'x-0shot': 4.0, 'y-0shot': 1.0}
  one = {'model_name': 'm', 'data_name': 'd', 'change-share': 1, 'layers': 2, 'first': 0, 'last': 1}
  base, tuned = {'graft': 'none', **dict.fromkeys(errors, 50.0)}, {'graft': 'all'}
  for name, error in errors.items():
    tuned |= {name: 50 + change[name], f'{name}-change-low': change[name] - 1.96 * error}
    tuned[f'{name}-change-high'] = change[name] + 1.96 * error
  tables.write_rows(tmp_path / 'probes' / 'a' / 'grafts.csv', [one | base, one | tuned], {})
  study = findings.Study(pd.DataFrame(), None, list(errors), [])
  ((band,),) = (model['bands'] for model in grafted.bands(study, tmp_path, {})['models'])
  assert band['gain'] == 2.5
  assert (band['low'], band['high']) == pytest.approx((2.5 - 1.96 * 1.25, 2.5 + 1.96 * 1.25))


def test_models_that_are_called_alike_all_have_a_line():
  layer = {'depth': 0.0, 'base': 9.0, 'tuned': 9.1, 'change': 0.1, 'change_stderr': 0.2}
  one = {'model_name': 'm', 'data_name': 'd', 'lora': True, 'epoch': 1, 'n': 50}
  models = [one | {'layers': [layer | {'change': 0.1 * i}]} for i in range(3)]
  (figure,) = models_told.DRAW['dimension']({'k': 4, 'models': models})
  assert [(row[0], row[2]) for row in figure.table[1]] == [
    ('d LoRA 1', 0.0), ('d LoRA 1 (2)', 0.1), ('d LoRA 1 (3)', 0.2)
  ]  # fmt: skip
  (said,) = models_told.SAY['dimension']({'k': 4, 'models': models})
  assert said.startswith('In no layer of 3 of 3 models') and '+0.2 (± 0.4)' in said


def test_a_share_of_next_to_nothing_is_not_told():
  band = {'first': 0, 'last': 4, 'change_share': 0.5, 'low': None, 'high': None, 'r': None}
  bands = [band | {'graft': '0-4', 'gain': None, 'nats': 0.06, 'share': 9.55}]
  bands += [band | {'graft': '5-9', 'gain': None, 'nats': -0.01, 'share': -1.5}]
  bands += [band | {'graft': 'all', 'gain': None, 'nats': 0.006, 'share': 1.0}]
  one = {'model_name': 'm', 'data_name': 'd', 'lora': True, 'epoch': 1, 'benchmarks': []}
  first, last = models_told.SAY['grafts']({'models': [one | {'bands': bands}]})
  assert 'layers 0-4 alone +0.06 (50% of the change)' in first
  assert 'layers 5-9 alone -0.01, -150% of it' in first and 'there is no interval' in last


def test_a_table_elsewhere_is_read_with_what_lies_beside_it(place, numbers, tmp_path):
  again, _ = told(place, tmp_path / 'out')
  assert again['layers'] == numbers[0]['layers']


def test_no_weights_no_claims(place, tmp_path):
  """Of a table alone only its perplexities tell."""
  frame = pd.read_csv(place / 'results.csv')
  frame.drop(columns=['ppl-train', 'ppl-heldout']).to_csv(tmp_path / 'results.csv', index=False)
  found, _ = told(tmp_path)
  assert all(
    'skipped' in found[key] for key in ('predictors', 'layers', 'dimension', 'map', 'grafts')
  )
  assert 'perplexity in config.eval.tasks' in found['predictors']['skipped']
  assert 'layers.jsonl' in found['layers']['skipped']


def test_a_table_without_a_place_reads_nothing_else(place, monkeypatch):
  """Not even what lies where the command was started."""
  monkeypatch.chdir(place)
  told_of = report.analyse(table.read(place / 'results.csv'), resamples=200)
  assert 'layers.jsonl' in told_of['answers']['layers']['skipped']
  assert 'skipped' not in told_of['answers']['predictors']


def test_states_and_vectors(place, tmp_path):
  """A dimension that training raised in one layer; models that lie by their base."""
  (tmp_path / 'results.csv').write_bytes((place / 'results.csv').read_bytes())
  rng = np.random.default_rng(1)
  about = [{'model_name': 'm0', 'data_name': 'pretrain', 'epoch': 0}]
  about += [{'model_name': 'm0', 'data_name': 'd1', 'epoch': 2, 'lora': True, 'data_size': 90}]
  for number, (facts, dims) in enumerate(zip(about, ((3, 3, 3), (3, 8, 3)), strict=True)):
    states = np.stack([studies.gaussian(i, d, 400, 20) for i, d in enumerate(dims)])
    tables.write_arrays(
      tmp_path / 'probes' / f'hidden_states-{number}.npz',
      {'states': states, 'lengths': np.ones(400, np.int64)},
      facts,
    )
  texts = {'texts': 'same', 'span': 'whole', 'format': 1}
  for m in range(3):
    middle = rng.normal(size=300)
    for d in range(3):
      facts = {
        'model_name': f'm{m}',
        'data_name': f'd{d}' if d else 'pretrain',
        'epoch': 2 * (d > 0),
      }
      facts |= {'lora': True, 'data_size': 90} if d else {}
      tables.write_arrays(
        tmp_path / 'probes' / f'loglik_vector-{m}{d}.npz',
        {
          'loglik': -50 + 3 * middle + 0.2 * rng.normal(size=300),
          'tokens': np.full(300, 20),
          'bytes': np.full(300, 80),
        },
        facts | texts,
      )
  found, page = told(tmp_path)
  (one,) = found['dimension']['models']
  assert [abs(r['change']) > 3 for r in one['layers']] == [False, True, False]
  claims = found['map']['claims']
  assert claims['purity_by_model']['value'] == 1 > claims['purity_by_data']['value']
  tuned = [row for row in found['map']['models'] if row['epoch']]
  # The half mean square of a difference whose standard deviation is 0.2 √2.
  assert np.mean([row['kl_from_base'] for row in tuned]) == pytest.approx(0.04, rel=0.25)
  assert 'csv/map.csv' in page and 'csv/dimension_change.csv' in page
  (tmp_path / 'probes' / 'loglik_vector-00.npz').write_bytes(b'x')
  found, _ = told(tmp_path)
  assert 'loglik_vector-00' in found['map']['skipped'] and 'skipped' not in found['dimension']


def test_of_one_model_data_sets_are_all_that_is_told(place, tmp_path):
  """Ranks over its data sets, with what has one; similarity to each benchmark is one more."""
  frame = pd.read_csv(place / 'results.csv')
  frame = frame[frame['model_name'] == 'm0'].assign(**{'y-0shot-n': 500})
  frame['y-0shot'] = 50 + 0.5 * (frame['x-0shot'] - 40)
  own = tmp_path / 'study'
  for run in frame['run-id'].unique():
    shutil.copytree(place / 'runs' / run, own / 'runs' / run)
  frame.to_csv(own / 'results.csv', index=False)
  tuned = frame[frame['epoch'] > 0]
  alike = [
    {'model_name': 'm0', 'data_name': row['data_name'], 'benchmark': name, 'cosine_of_means': c}
    for _, row in tuned.iterrows()
    for name, c in (('x', row['x-0shot'] / 99), ('y', -row['y-0shot'] / 99))
  ]
  tables.write_rows(own / 'probes' / 'similarity-a.csv', alike, {})
  found, page = told(own)
  rows = {(r['predictor'], r['benchmark']): r for r in found['predictors']['lora']['alone']}
  assert rows['similarity', 'x-0shot']['rho'] == 1 and rows['similarity', 'y-0shot']['rho'] == -1
  r = stats.spearmanr(np.log(tuned['ppl-train']), tuned['x-0shot']).statistic
  one = rows['log_ppl-train', 'overall']
  assert one['rho'] == pytest.approx(r) and one['n'] == DATA and one['high'] < 0
  assert one['p'] <= one['p_holm'] and rows['similarity', 'overall']['finding']
  assert found['predictors']['lora']['rivals']['similarity']['low'] < 0
  assert found['layers']['lora']['alone']['n'] == DATA
  assert 'of one model' in page and 'middle third of depths less the outer ones' in page


def test_a_score_is_of_the_longest_name_that_it_begins_with():
  alike = {'mmlu': 0.1, 'mmlu_pro': 0.3, 'boolq': 0.5, 'absent': 0.7}
  rows = [
    {'model_name': 'm', 'data_name': data, 'benchmark': name, 'cosine_of_means': sign * value}
    for name, value in alike.items()
    for data, sign in (('d', 1), ('e', -1), ('elsewhere', 1))
  ]
  columns = ['overall', 'mmlu-0shot', 'mmlu_pro-5shot-ll', 'BoolQ-0shot', 'piqa-0shot-ll']
  found = measured_alone.similarity(pd.DataFrame(rows), ['m', 'other'], ['d', 'e'], columns)
  np.testing.assert_allclose(found[0, 0], [0.3, 0.1, 0.3, 0.5, np.nan])
  np.testing.assert_allclose(found[0, 1], -found[0, 0])
  assert np.isnan(found[1]).all()


def test_changes_of_one_model_are_of_data_sets_that_have_all():
  rng = np.random.default_rng(0)
  values, gains = rng.normal(size=(1, 7, 21)), rng.normal(size=(1, 7))
  values[0, 2, 5] = gains[0, 4] = np.nan
  kept = [0, 1, 3, 5, 6]
  found = measured_alone.depths(values, gains)
  r = np.array([np.corrcoef(values[0, kept, p], gains[0, kept])[0, 1] for p in range(21)])
  assert found['n'] == 5 and found['r'][0] == pytest.approx(r.tolist())
  assert measured_alone.depths(values[:, :4], gains[:, :4]) is None

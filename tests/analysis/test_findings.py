"""Answers from the released table against plain loops over its text, and from planted tables."""

import csv
import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from sft_jax.analysis import checks, crosslingual, findings, gains, similarity, table
from tests.analysis import synthetic

SCALE = {'Truthful_QA-0shot': 100, 'mtbench-total': 10}


@pytest.fixture(scope='module')
def released(data_dir):
  path = data_dir / 'bench' / 'massive_sft_evaluation_result.csv'
  frame = table.read(path)
  answers = findings.answers(findings.study(frame, checks.run(frame), resamples=300))
  with open(path, newline='') as f:
    return answers, list(csv.DictReader(f))


def number(row, column):
  return float(row[column]) * SCALE.get(column, 1) if row[column] else math.nan


def core(rows, lora):
  return [
    r
    for r in rows
    if (r['data_size'], r['lr_strategy'], r['epoch']) == ('1000.0', 'cosine', '10')
    and r['lora'] == lora
  ]


def mean(values):
  held = [v for v in values if not math.isnan(v)]
  return sum(held) / len(held), len(held)


def test_mean_gains_by_hand(released):
  answers, rows = released
  base = {r['model_name']: r for r in rows if r['data_name'] == 'pretrain'}
  for name, lora in (('full', 'false'), ('lora', 'true')):
    for column in table.MAIN:
      for data in ('magicoder', 'flan_knowledge', 'lima'):
        gains = [
          number(r, column) - number(base[r['model_name']], column)
          for r in core(rows, lora)
          if r['data_name'] == data
        ]
        value, n = mean(gains)
        assert answers['Q1'][name][data][column] == pytest.approx(value, abs=1e-9)
        assert answers['Q1']['n'][name][data][column] == n
  assert answers['Q1']['full']['magicoder']['humaneval-0shot'] == pytest.approx(25.67, abs=0.005)
  assert answers['Q1']['full']['flan_knowledge']['nq-0shot'] == pytest.approx(11.92, abs=0.005)
  assert len(answers['Q1']['strict']) == 8


def test_pairs_by_hand(released):
  answers, rows = released
  full = {(r['model_name'], r['data_name']): r for r in core(rows, 'false')}
  lora = {(r['model_name'], r['data_name']): r for r in core(rows, 'true')}
  change = [number(full[k], 'gsm8k-0shot') - number(lora[k], 'gsm8k-0shot') for k in full]
  told = answers['Q5']['core']['benchmarks']['gsm8k-0shot']
  assert told['n'] == 109 and told['mean'] == pytest.approx(sum(change) / 109)
  assert told['mean'] == pytest.approx(1.55, abs=0.005)
  assert answers['Q5']['core']['n_complete'] == 99 and answers['Q5']['all']['n'] == 10
  size = {}
  for r in rows:
    if r['lr_strategy'] == 'constant':
      key = (r['model_name'], r['data_name'], r['epoch'])
      size.setdefault(key, {})[r['data_size']] = number(r, 'mmlu-0shot')
  pairs = [v['20000.0'] - v['1000.0'] for v in size.values() if len(v) == 2]
  told = answers['Q7']['all_epochs']['benchmarks']['mmlu-0shot']
  assert len(pairs) == told['n'] == 270 and told['mean'] == pytest.approx(sum(pairs) / 270)
  every = {
    r['lora']: number(r, 'BoolQ-0shot')
    for r in rows
    if (r['model_name'], r['data_name'], r['epoch']) == ('OLMo-7B-hf', 'all', '10')
  }
  for r in rows:
    if r['data_name'] == 'w/o-lima':
      name = 'lora' if r['lora'] == 'true' else 'full'
      wanted = every[r['lora']] - number(r, 'BoolQ-0shot')
      assert answers['Q9'][name]['lima']['BoolQ-0shot'] == pytest.approx(wanted)


def test_counts_of_the_released_table(released):
  answers, _ = released
  assert not any(findings.is_skipped(part) for part in answers.values())
  assert {k: part['n'] for k, part in answers['Q6'].items()} == {
    '1000_constant_full': 297,
    '20000_constant_full': 270,
    'all_cosine_full': 100,
    'all_cosine_lora': 110,
  }
  assert answers['Q2']['left_out'] == ['Gemma2-9B', 'Mistral-7B-v0.1']
  assert answers['Q3']['models']['full_raw']['max_pair'] == ['OLMo-7B-hf', 'LLM-jp-3-7B']
  assert len(answers['Q3']['datasets']['full']['models_used']) == 10
  assert answers['Q4']['full']['shape'] == [10, 120]


def study(tmp_path, frame):
  frame.to_csv(tmp_path / 't.csv')
  read = table.read(tmp_path / 't.csv')
  return findings.study(read, checks.run(read), resamples=300)


def test_variance_shares_of_a_planted_table(tmp_path):
  frame = synthetic.clean(0)
  rows = (frame['epoch'] == 10) & (frame['lr_strategy'] == 'cosine') & (frame['data_size'] == 1000)
  model = frame['model_name'].str.removeprefix('model').astype(int)
  data = frame['data_name'].str[-1].where(rows, '0').astype(int)
  frame.loc[rows, 'nq-0shot'] = 10 + 3.0 * model[rows] + 2.0 * data[rows]
  shares = findings.shares(study(tmp_path, frame))['shares']['nq-0shot']
  a, b = 9 * np.var(np.arange(11)), 4 * np.var(np.arange(10))
  assert shares['model'] == pytest.approx(a / (a + b))
  assert shares['data'] == pytest.approx(b / (a + b))
  assert shares['method'] == pytest.approx(0, abs=1e-9)


def test_centring_takes_out_a_wrong_base():
  values = np.random.default_rng(0).normal(size=(3, 6, 4))
  moved = values + np.random.default_rng(1).normal(size=(3, 1, 4)) * 10
  np.testing.assert_allclose(similarity.centred(values), similarity.centred(moved), atol=1e-12)


def test_intervals_cover_the_truth(tmp_path):
  """Of gains of a planted data set, over 11 models and over 3; and what is decided among many."""
  names = list(table.MAIN)
  for models, least in ((11, 0.93), (3, 0.93)):
    held, decided = [], 0
    for seed in range(12):
      rng = np.random.default_rng(seed)
      rows = [
        {'model_name': f'm{m}', 'data_name': f'd{d}', 'lora': False, 'epoch': 1.0}
        for m in range(models)
        for d in range(8)
      ]
      true = np.arange(len(rows)) % 8 == 0
      gain = 5.0 * true[:, None] + rng.normal(0, 2, (len(rows), len(names)))
      told = gains.summary(
        pd.DataFrame(rows).assign(**dict(zip(names, gain.T, strict=True))),
        *(names, False, [f'm{m}' for m in range(models)]),
      )
      for d in range(8):
        for column in names:
          low, high = (told[key][f'd{d}'][column] for key in ('low', 'high'))
          held.append(low <= 5.0 * (d == 0) <= high)
          assert told['low_joint'][f'd{d}'][column] < low and told['n'][f'd{d}'][column] == models
      assert told['overall']['d0']['decided'] or models < 11
      decided += any(told['overall'][f'd{d}']['decided'] for d in range(1, 8))
    assert least <= np.mean(held) <= 0.97 and decided <= 3


def test_model_and_data_fit_by_chance():
  """The F test of two-way analysis of variance, as scipy's F on its mean squares."""
  rng = np.random.default_rng(0)
  y = rng.normal(size=(6, 5, 2)) + rng.normal(size=(6, 1, 1)) * 9
  told = similarity._shares(y)
  pair = y.mean(2) - y.mean((1, 2))[:, None] - y.mean((0, 2)) + y.mean()
  rest = y - y.mean(2, keepdims=True) - (y.mean((0, 1)) - y.mean())
  f = (2 * (pair**2).sum() / 20) / ((rest**2).sum() / 29)
  assert told['p'] == pytest.approx(stats.f.sf(f, 20, 29))
  assert told['model_data'] / told['model_data_chance'] == pytest.approx(f)
  by_chance = [similarity._shares(rng.normal(size=(6, 5, 2)))['p'] for _ in range(400)]
  assert np.mean(np.array(by_chance) < 0.05) == pytest.approx(0.05, abs=0.025)
  assert similarity._shares(y + rng.normal(size=(6, 5, 1)) * 3)['p'] < 1e-3
  assert math.isnan(similarity._shares(y[..., :1])['p']), 'one method'


def test_what_moves_together_by_chance_has_zero_in_its_interval():
  """Of data sets that are good or bad for all models, on each language by itself; and of models."""
  outside = {'languages': [], 'centred': [], 'models': []}
  names = [f'm{i}' for i in range(8)]
  for seed in range(60):
    rng = np.random.default_rng(seed)
    gain = rng.normal(size=(8, 9, 3)) + 2 * rng.normal(size=(1, 9, 3))
    rows = pd.DataFrame(
      [(m, f'd{d}', *gain[i, d]) for i, m in enumerate(names) for d in range(9)],
      columns=['model_name', 'data_name', *crosslingual.COLUMNS.values()],
    )
    for name, centre in (('languages', False), ('centred', True)):
      found = crosslingual.correlate(rows, centre).values()
      outside[name] += [part['low'] > 0 or part['high'] < 0 for part in found]
    own = rng.normal(size=(8, 9, 4)) - rng.normal(size=(8, 1, 4))
    part = similarity.model_similarity(own, names)
    outside['models'].append(part['low'] > 0 or part['high'] < 0)
  assert max(np.mean(found) for found in outside.values()) <= 0.1


@pytest.mark.parametrize(
  'keep, skipped, answered',
  [
    (lambda f: f[f['data_name'] != 'pretrain'], {'Q1', 'Q3', 'Q4', 'Q6', 'Q8'}, {'Q5', 'Q7'}),
    (lambda f: f[f['model_name'] == 'model0'], {'Q2'}, {'Q1', 'Q4', 'Q5', 'Q9'}),
    (lambda f: f[f['data_name'].isin(['pretrain', 'data1'])], {'Q2', 'Q4', 'Q9'}, {'Q1', 'Q5'}),
    (lambda f: f[f['lora'] != True], {'Q5'}, {'Q1', 'Q2', 'Q3'}),  # noqa: E712
    (lambda f: f.drop(columns=['cmmlu-0shot', 'jmmlu-0shot']), {'Q8'}, {'Q1'}),
    (lambda f: f[f['data_name'] == 'pretrain'], {f'Q{i}' for i in range(1, 11)}, set()),
    (lambda f: f.assign(**{'gsm8k-0shot': np.nan, 'nq-0shot': 5.0}), set(), {'Q1', 'Q2', 'Q10'}),
  ],
)
def test_each_analysis_says_what_it_needs(keep, skipped, answered, tmp_path):
  answers = findings.answers(study(tmp_path, keep(synthetic.clean(0))))
  out = {key for key, part in answers.items() if findings.is_skipped(part)}
  assert skipped <= out and not answered & out, {k: answers[k].get('skipped') for k in answers}

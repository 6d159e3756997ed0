"""Checks of tables: none of a clean table's numbers is doubted; each planted fault is found."""

import numpy as np
import pytest

from sft_jax.analysis import checks, mend, table
from tests.analysis import synthetic

SEEDS = range(6)


def read(tmp_path, frame):
  path = tmp_path / 'table.csv'
  frame.to_csv(path)
  return table.read(path)


def found(frame):
  return {f.check for f in checks.run(frame)}


@pytest.mark.parametrize('seed', SEEDS)
def test_no_false_alarm_on_a_clean_table(seed, tmp_path):
  frame = read(tmp_path, synthetic.clean(seed))
  findings = checks.run(frame)
  assert [f.text for f in findings if f.check != 'repeats'] == []
  assert checks.strict_models(frame, findings) == table.models(frame)


def base(frame, model):
  return frame.index[(frame['data_name'] == 'pretrain') & (frame['model_name'] == model)][0]


SECOND = ['mbpp-0shot', 'gsm8k-0shot', 'nq-0shot', 'nq-5shot', 'nq-25shot', 'BoolQ-0shot']
SECOND += ['hellaswag-0shot', 'mmlu-0shot', 'jmmlu-0shot', 'cmmlu-0shot']


def test_partly_copied_base_dooms_both_models(tmp_path):
  frame = synthetic.clean(1)
  frame.loc[base(frame, 'model4'), SECOND] = frame.loc[base(frame, 'model7'), SECOND]
  frame = read(tmp_path, frame)
  (finding,) = [f for f in checks.run(frame) if f.severity == 'fault']
  assert finding.check == 'base_copy' and set(SECOND) <= set(finding.columns)
  assert set(finding.models) == {'model4', 'model7'}


def test_wholly_copied_base_is_its_owners(tmp_path):
  frame = synthetic.clean(2)
  scores = [c for c in frame.columns if c not in table.META]
  own = frame[frame['model_name'] == 'model5']
  frame.loc[own.index[1:], 'nq-0shot'] = np.round(own['nq-0shot'].iloc[1:] / 5, 2)
  frame.loc[base(frame, 'model5'), scores] = frame.loc[base(frame, 'model2'), scores]
  frame = read(tmp_path, frame)
  (finding,) = [f for f in checks.run(frame) if f.check == 'base_copy']
  assert finding.models == ('model5',)


def test_merge_without_a_factor_is_named(tmp_path):
  frame = synthetic.clean(3)
  block = frame[(frame['model_name'] == 'model1') & (frame['lora'] == False)]  # noqa: E712
  block = block[(block['epoch'] == 10) & (block['data_size'] == 1000)]
  for _, pair in block.groupby('data_name'):
    if len(pair) == 2:
      frame.loc[pair.index[0], SECOND] = frame.loc[pair.index[1], SECOND].to_numpy()
  frame = read(tmp_path, frame)
  (finding,) = [f for f in checks.run(frame) if f.severity == 'fault']
  assert finding.check == 'row_copy' and 'lr_strategy: constant / cosine' in finding.text
  assert set(SECOND) <= set(finding.columns) and len(finding.rows) == 20


def test_two_definitions_in_a_column(tmp_path):
  frame, rng = synthetic.clean(4), np.random.default_rng(0)
  rows = frame.index[frame['model_name'] == 'model3']
  frame.loc[rows, 'mmlu-5shot'] = rng.integers(0, 181 * 10000, len(rows)) / 181 / 100
  items = frame.index[frame['model_name'] == 'model6']
  frame.loc[items, 'humaneval-0shot'] = np.round(rng.integers(0, 150, len(items)) / 150 * 100, 2)
  frame = read(tmp_path, frame)
  mixed = {f.columns[0]: f for f in checks.run(frame) if f.check == 'mixed'}
  assert set(mixed) == {'mmlu-5shot', 'humaneval-0shot'}
  assert '57 subjects' in mixed['mmlu-5shot'].text and '181' in mixed['mmlu-5shot'].text
  assert '164 items' in mixed['humaneval-0shot'].text


def test_scale_of_a_column_and_of_a_model(tmp_path):
  frame = synthetic.clean(5)
  column, model = frame.copy(), frame.copy()
  column['gsm8k-0shot'] /= 100
  rows = model['model_name'] == 'model8'
  own = [c for c in model if c not in table.META and not c.startswith(('mtbench', 'Truthful'))]
  model.loc[rows, own] /= 100
  for frame, wanted in ((column, {'gsm8k-0shot'}), (model, {*own})):
    right = read(tmp_path, frame)
    findings = checks.run(right)
    scale = [f for f in findings if f.check == 'scale']
    assert scale and set(scale[0].columns) <= wanted and 'gsm8k-0shot' in scale[0].columns
    mended, said = mend.mend(right, findings, ['scale'])
    assert said and mended['gsm8k-0shot'].min() > 1
    assert mend.mend(right, findings, [])[0].equals(right)


def test_gaps_and_constants(tmp_path):
  frame = synthetic.clean(6)
  rows = frame.index[(frame['model_name'] == 'model2') & (frame['lora'] == True)]  # noqa: E712
  frame.loc[rows, ['math-0shot', 'cmmlu-0shot']] = np.nan
  frame['hellaswag-0shot'] = 25.0
  frame['nq-1shot'] = np.nan
  frame.loc[0, 'BoolQ-0shot'] = 130.0
  frame = frame[~((frame['model_name'] == 'model9') & (frame['data_name'] == 'data3'))]
  frame = frame[~((frame['model_name'] == 'model10') & (frame['data_name'] == 'pretrain'))]
  findings = checks.run(read(tmp_path, frame))
  text = ' '.join(f.text for f in findings)
  assert f'{len(rows)} rows without math-0shot, cmmlu-0shot: model2 LoRA' in text
  assert 'model9 on data3' in text and 'No untrained row of model10' in text
  assert 'hellaswag-0shot is nearly constant' in text and 'No value: nq-1shot' in text
  assert 'BoolQ-0shot has 1 score outside' in text


def test_released_faults(data_dir):
  frame = table.read(data_dir / 'bench' / 'massive_sft_evaluation_result.csv')
  findings = checks.run(frame)
  by = {}
  for f in findings:
    by.setdefault(f.check, []).append(f)
  bases = {frozenset(frame.loc[list(f.rows), 'model_name']): f for f in by['base_copy']}
  olmo, mistral = {'OLMo-7B-hf', 'LLM-jp-3-7B'}, {'Mistral-7B-v0.1', 'Chinese-Mistral-7B-v0.1'}
  assert set(bases) == {frozenset(olmo), frozenset(mistral)}
  assert len(bases[frozenset(olmo)].columns) == 12 and len(bases[frozenset(mistral)].columns) == 29
  strict = set(checks.strict_models(frame, findings))
  assert set(table.models(frame)) - strict == {*olmo, 'Chinese-Mistral-7B-v0.1'}
  merged = [f for f in by['row_copy'] if '9 pairs' in f.text and 'of OLMo-7B-hf' in f.text]
  assert len(merged) == 1 and 'lr_strategy: constant / cosine' in merged[0].text
  (mixed,) = by['mixed']
  assert mixed.columns == ('mmlu-5shot',) and len(mixed.rows) == 228
  assert sorted(len(f.rows) for f in by['missing'] if f.rows) == [4, 20]
  assert 'Meta-Llama-3-8B' in by['format'][0].text and 'MBPP 3.5' in by['format'][0].text

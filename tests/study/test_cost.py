"""What a study takes, counted by hand; comparability; licences."""

import dataclasses
import json

import pytest

from sft_jax.study import cost, disk, licences, plan, plan_text
from sft_jax.utils.errors import UserError
from tests.study.plans import config, study

SIZE = cost.ModelSize(
  params=1000, matmul=900, layers=2, width=4, adapters={'all-linear': 10}, licence='Apache-2.0'
)


def sizes(made, data, **more):
  keys = [run.key for run in made.runs]
  counts = dict(zip(keys, data, strict=True))
  return cost.Sizes(models={'org/model': SIZE}, data=counts, **more)


def test_by_hand():
  """Two LoRA runs and a full one on 100 and 50 examples, batch 32, 1.5 epochs."""
  made = study(
    [{'lr': 1e-4}, {'rank': 4}, {'method': 'full'}],
    train__epochs=1.5,
    train__snapshot_at='0.5',
    checkpoint__keep_weights='all',
  )
  known = sizes(
    made,
    [
      cost.DataSize(100, 2000, 1000),
      cost.DataSize(100, 2000, 1000),
      cost.DataSize(50, 1000, 500),
    ],
    data_licences={'lima': 'CC BY-NC-SA 4.0'},
  )
  got = cost.cost(made, known)
  assert (got.runs, got.bases, got.cohorts, got.programs) == (3, 1, 2, 2)
  assert got.snapshots == 6
  # 4 steps an epoch, 6 in all; then 2 an epoch, 3 in all.
  assert got.steps == 6 + 3
  # A whole epoch, and two steps of 32 of the next; and one step of the next.
  assert got.examples == 164 + 164 + 82
  assert got.tokens == 3280 + 3280 + 1640 and got.supervised == 1640 + 1640 + 820
  # chips.flops_per_token with examples of 20 tokens: attention 6 * 2 * 4 * 20 = 960.
  lora = lambda rank: 3280 * (4 * 900 + 6 * 10 * rank + 960)
  assert got.flops == pytest.approx(lora(8) + lora(4) + 1640 * (6 * 900 + 960))
  # Two snapshots each: adapters of 80 and 40 numbers and 1,000 parameters, four bytes each.
  assert got.weight_bytes == 2 * 4 * (80 + 40 + 1000)
  assert got.delta_bytes == 2 * (4 * (80 + 40) + 2 * 1000)
  assert got.licence == 'no commercial use: data lima (CC BY-NC-SA 4.0)' and not got.unknown
  assert got.disk_bytes == got.weight_bytes
  # Of the full one, two training states of float32 weights and two moments.
  assert got.working_bytes == 2 * 3 * 4000


def test_adapters_are_those_of_each_run():
  size = dataclasses.replace(SIZE, adapters={'q_proj': 3, 'all-linear': 10})
  known = cost.Sizes(models={'org/model': size})
  for grid in ('targets=q_proj,all-linear', 'targets=all-linear,q_proj'):
    assert cost.cost(study(grid=grid), known).weight_bytes == 2 * 4 * 8 * 13


@pytest.mark.parametrize(
  ('changes', 'left', 'sure', 'beside'),
  [
    ({}, 320, 320, 0),
    ({'export__format': 'peft'}, 640, 640, 0),
    ({'export__format': 'hf', 'export__dtype': 'float32'}, 320 + 4000, 320 + 4000, 0),
    ({'export__format': 'delta'}, 320 + 2000, 320, 2000),
    ({'checkpoint__keep_weights': 'none', 'export__format': 'hf'}, 2000, 2000, 0),
  ],
)
def test_what_an_export_takes(changes, left, sure, beside):
  """Of one LoRA run that keeps one snapshot of 80 numbers, on a base of 1,000 parameters."""
  given = {'checkpoint__keep_weights': 'last', 'train__epochs': 1.0} | changes
  (run,) = study(grid='lr=1e-4', **given).runs
  assert disk.left_bytes(run, SIZE) == left and disk.sure_bytes(run, SIZE) == sure
  assert disk.working_bytes(run, SIZE) == 2 * 3 * 320 + beside
  assert disk.written_bytes(run, SIZE) == left + 2 * 3 * 320 + beside
  assert disk.left_bytes(run, None) is disk.sure_bytes(run, None) is None


def test_files_of_a_run():
  """A full fine-tune that keeps ten snapshots leaves hundreds, and a small adapter two for each."""
  large = dataclasses.replace(SIZE, params=10**9)
  full, lora = study(grid='method=full,lora', checkpoint__keep_weights='all').runs
  few, many = disk.files(lora, large), disk.files(full, large)
  assert few < 80 and many - few == 10 * (24 + 10 - 2)


def test_what_is_kept():
  for keep, count in (('all', 3), ('best', 2), ('last', 1), ('none', 0)):
    made = study(grid='lr=1e-4', train__epochs=3.0, checkpoint__keep_weights=keep)
    got = cost.cost(made, cost.Sizes(models={'org/model': SIZE}))
    assert got.weight_bytes == count * 4 * 80


def test_what_is_unknown_is_said():
  made = study(grid='base=org/model,org/other', data__size=0)
  got = cost.cost(made, cost.Sizes(models={'org/model': SIZE}, data_licences={'lima': ''}))
  assert (got.steps, got.examples, got.tokens, got.flops, got.weight_bytes) == (None,) * 5
  assert got.unknown == (
    'sizes of 1 model, such as org/other',
    'the number of examples of 2 runs (data.size is 0)',
    'the tokens of 2 runs (data or tokenizer not here, and no config.plan.tokens)',
    'the licence of data lima',
  )
  assert got.snapshots == 20


def test_programs_are_counted_once():
  """Full runs of a base share a program, whatever their rates; another batch size is another."""
  count = lambda grid: cost.cost(study(grid=grid), cost.Sizes()).programs
  assert count('method=full;lr=1e-5,1e-4,1e-3;seed=1,2') == 1
  assert count('method=full;batch=8,32;lr=1e-5,1e-4') == 2
  assert count('method=full;base=a/x,b/y') == 2
  assert count('rank=4,8;lr=1e-5,1e-4') == 1
  seeds = study(grid=f'seed={",".join(map(str, range(20)))}', study__cohort_size=9)
  assert cost.cost(seeds, cost.Sizes()).programs == 2, 'cohorts of 7, 7 and 6 runs'
  assert count('size=100,1000;seed=1,2') == 1 < len(study(grid='size=100,1000;seed=1,2').cohorts)


def test_examples_and_steps_must_be_equal():
  grid = 'size=100,50'
  free = study(grid=grid)
  assert cost.comparability(free).endswith('(config.study.equal=none)')
  with pytest.raises(UserError, match=r'examples are not equal: 500 in .*size=50, 1,000 in'):
    cost.comparability(study(grid=grid, study__equal='examples'))
  paid = [{'size': 100, 'epochs': 1}, {'size': 50, 'epochs': 2}]
  equal = study(paid, study__equal='examples')
  assert cost.comparability(equal) == 'examples are equal in 2 runs'
  with pytest.raises(UserError, match=r'steps are not equal: 40 in .*config.study.equal=steps'):
    cost.comparability(study(grid='batch=32,16', study__equal='steps'))
  assert 'steps are equal' in cost.comparability(study(grid='lr=1,2', study__equal='steps'))


def test_a_selection_counts_and_differs_between_bases():
  half = {'data__select': 'ppl:low:0.5', 'study__equal': 'examples', 'data__size': 100}
  one = study(grid='lr=1e-4,1e-5', **half)
  assert cost.cost(one, cost.Sizes()).examples == 2 * 50 * 10
  assert cost.comparability(one) == 'examples are equal in 2 runs'
  two = study(grid='base=a/x,b/y', **half)
  assert 'other examples for each of 2 bases' in cost.comparability(two)
  free = study(grid='base=a/x,b/y', **half | {'study__equal': 'none'})
  assert 'other examples for each of 2 bases' in cost.comparability(free)
  assert 'other examples' not in cost.comparability(study(grid='base=a/x,b/y'))
  unknown = study(grid='lr=1e-4,1e-5', **half | {'study__equal': 'supervised'})
  assert 'of 2 runs it is told once' in cost.comparability(
    unknown, sizes(unknown, [cost.DataSize(50, 9, 9), cost.DataSize(50, 7, 7)])
  )


def test_actual_counts_decide():
  """A run whose records were dropped is no longer equal."""
  made = study(grid='data=a,b', study__equal='examples', train__epochs=1.0)
  cost.comparability(made)
  known = sizes(made, [cost.DataSize(100), cost.DataSize(99)])
  with pytest.raises(UserError, match=r'99 in model\+b\+lora, 100 in model\+a\+lora'):
    cost.comparability(made, known)


def test_supervised_tokens_and_flops_nearly():
  made = study(grid='data=a,b', study__equal='supervised', train__epochs=1.0)
  assert cost.comparability(made).endswith('; of 2 runs it is told once their data are prepared')
  near = sizes(made, [cost.DataSize(100, 900, 500), cost.DataSize(100, 400, 480)])
  assert cost.comparability(made, near) == 'supervised are equal within 5% in 2 runs'
  far = sizes(made, [cost.DataSize(100, 900, 500), cost.DataSize(100, 900, 470)])
  with pytest.raises(UserError, match='supervised are not equal: 470 in'):
    cost.comparability(made, far)
  made = study(grid='data=a,b', study__equal='flops', train__epochs=1.0)
  with pytest.raises(UserError, match='flops are not equal'):
    cost.comparability(made, sizes(made, [cost.DataSize(9, 900, 5), cost.DataSize(9, 400, 5)]))


@pytest.mark.parametrize(
  ('order'),
  [
    ('see its card', 'CC BY-NC 4.0', 'Llama 3 community', 'CC BY-SA 4.0', 'Apache-2.0'),
    ('something new', 'cc-by-nc-sa-4.0', 'NVIDIA licence', 'GPL-3.0', 'MIT'),
    ('', 'Non-Commercial', 'gemma', 'CC BY-SA 3.0', 'CC BY 4.0'),
  ],
)
def test_licences_by_strictness(order):
  assert [licences.kind(text)[0] for text in order] == [0, 1, 2, 3, 4]
  for k in range(5):
    named = {str(i): text for i, text in enumerate(order[k:])}
    assert licences.strictest(named).endswith(f': 0 ({order[k] or "none stated"})')


def test_every_licence_of_ours_is_known():
  from sft_jax.data.named import DATASETS

  unclear = {n for n, row in DATASETS.items() if licences.kind(row['licence'])[0] == 0}
  assert unclear == {'math'} and licences.strictest({}) == ''


def test_text_and_json():
  made = study(grid='method=full,lora;lr=1e-5,1e-4')
  known = cost.Sizes(models={'org/model': SIZE}, data_licences={'lima': 'MIT'})
  text = '\n'.join(plan_text.lines(made, known))
  for words in (
    'runs          4 on 1 base',
    'snapshots     40, and 1 base as it is',
    'examples      4,000',
    'train.method          full (2), lora (2)',
    'lora  1 x 2 runs',
    'full  2 x 1 run\n',
    f'{made.runs[0].key}  {made.runs[0].name}',
    'not known     the tokens of 4 runs',
    'licence       free with attribution: model org/model (Apache-2.0), data lima (MIT)',
  ):
    assert words in text, words
  told = json.loads(json.dumps(plan_text.as_json(made, known)))
  assert told['cost']['examples'] == 4000 and set(told['names']) == {r.key for r in made.runs}
  assert sorted(k for keys in told['cohorts'].values() for k in keys) == sorted(told['names'])
  assert told['snapshots'][made.runs[0].key] == list(range(1, 11))
  assert plan.expand(config(study__grid='lr=1e-5'), (), 'cpu').runs[0].key in told['names']

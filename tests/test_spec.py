"""Factors: identity, checks, snapshots. Golden values change only with a reason."""

import dataclasses
import re

import pytest

from configs import base
from sft_jax import spec as spec_lib
from sft_jax.utils.errors import UserError

CONTENTS = spec_lib.Contents(base='b', tokenizer='t', template='m', data='d')


def make(**changes) -> spec_lib.RunSpec:
  config = base.get_config()
  config.model.path, config.data.path = 'org/model', 'my.jsonl'
  config.update_from_flattened_dict({k.replace('__', '.'): v for k, v in changes.items()})
  return spec_lib.from_config(config, 'cpu')


def test_every_factor_is_a_field_and_a_declared_key():
  fields = {field.name for field in dataclasses.fields(spec_lib.RunSpec)}
  assert fields == set(spec_lib.FACTORS)
  assert make()  # every key of FACTORS exists in configs/base.py


def test_columns_are_distinct():
  columns = [factor.column for factor in spec_lib.FACTORS.values()]
  assert len(columns) == len(set(columns))


def test_auto_compute_dtype_follows_the_backend():
  config = base.get_config()
  config.model.path, config.data.path = 'org/model', 'my.jsonl'
  assert spec_lib.from_config(config, 'cpu').compute_dtype == 'float32'
  assert spec_lib.from_config(config, 'tpu').compute_dtype == 'bfloat16'


@pytest.mark.parametrize('field', sorted(spec_lib.FACTORS))
def test_each_factor_changes_the_identity_of_a_lora_run(field):
  spec = make(train__method='lora')
  value = getattr(spec, field)
  other = f'{value}x' if isinstance(value, str) else value + 1
  changed = dataclasses.replace(spec, **{field: other})
  if field == 'method':
    changed = dataclasses.replace(spec, method='full')
  assert spec_lib.run_id(spec, CONTENTS) != spec_lib.run_id(changed, CONTENTS)


def test_adapter_factors_do_not_change_a_full_run():
  one, two = make(lora__rank=8), make(lora__rank=16)
  assert spec_lib.run_id(one, CONTENTS) == spec_lib.run_id(two, CONTENTS)


def test_a_seed_that_rounds_is_a_factor_of_a_full_run():
  kinds = {'train__param_dtype': 'bfloat16', 'train__param_rounding': 'stochastic'}
  one, two = (make(train__seeds__init=seed, **kinds) for seed in (1, 2))
  assert spec_lib.run_id(one, CONTENTS) != spec_lib.run_id(two, CONTENTS)


def test_contents_change_the_identity():
  spec = make()
  for field in dataclasses.fields(CONTENTS):
    other = dataclasses.replace(CONTENTS, **{field.name: 'other'})
    assert spec_lib.run_id(spec, CONTENTS) != spec_lib.run_id(spec, other)


def test_cohorts():
  lora = {'train__method': 'lora'}
  key = lambda **kw: spec_lib.cohort_key(make(**kw), CONTENTS)
  assert key(**lora) == key(**lora, train__learning_rate=1e-3, lora__rank=4, data__size=10)
  assert key(**lora) != key(**lora, lora__targets='q_proj')
  assert key() != key(train__learning_rate=1e-3), 'full fine-tunes train alone'


@pytest.mark.parametrize(
  ('changes', 'words'),
  [
    ({'model__path': ''}, 'config.model.path'),
    ({'data__path': ''}, 'config.data.name'),
    ({'data__name': 'builtin'}, 'exactly one'),
    ({'train__method': 'sft'}, 'full, lora'),
    ({'train__epochs': 0.0}, 'config.train.epochs'),
    ({'train__epochs': float('nan')}, 'config.train.epochs'),
    ({'train__learning_rate': float('inf')}, 'config.train.learning_rate'),
    ({'train__batch_size': 0}, 'config.train.batch_size'),
    ({'train__learning_rate': -1.0}, 'config.train.learning_rate'),
    ({'train__beta2': 1.0}, 'config.train.beta2'),
    ({'data__heldout_share': 1.0}, 'config.data.heldout_share'),
    ({'train__warmup_ratio': 1.5}, 'config.train.warmup_ratio'),
    ({'lora__rank': 0}, 'config.lora.rank'),
    ({'train__schedule': 'cosin'}, 'cosine'),
  ],
)
def test_bad_factors(changes, words):
  with pytest.raises(UserError, match=re.escape(words)):
    make(**changes)


@pytest.mark.parametrize(
  ('when', 'expected'),
  [
    ('every:1', {10: 1.0, 20: 2.0, 25: 2.5}),
    ('every:0.5', {5: 0.5, 10: 1.0, 15: 1.5, 20: 2.0, 25: 2.5}),
    ('0.1,2', {1: 0.1, 20: 2.0, 25: 2.5}),
    ('s3,s25', {3: 0.3, 25: 2.5}),
  ],
)
def test_snapshot_steps(when, expected):
  assert spec_lib.snapshot_steps(when, 10, 25) == expected


@pytest.mark.parametrize('when', ['', 'often', 'every:0', 'every:x', 's0', 's26', '3', 'every:inf'])
def test_bad_snapshots(when):
  if when == '':
    assert spec_lib.snapshot_steps(when, 10, 25) == {25: 2.5}
    return
  if when == 'every:inf':
    assert spec_lib.snapshot_steps(when, 10, 25) == {25: 2.5}
    return
  with pytest.raises(UserError, match='snapshot_at'):
    spec_lib.snapshot_steps(when, 10, 25)


def test_layer_band():
  assert spec_lib.layer_band('all', 12) == (0, 12)
  assert spec_lib.layer_band('4:8', 12) == (4, 8)
  assert spec_lib.layer_band(':3', 12) == (0, 3)
  for bad in ('4', '8:4', '0:13', 'a:b', '-1:3', '4:4'):
    with pytest.raises(UserError, match='layers'):
      spec_lib.layer_band(bad, 12)

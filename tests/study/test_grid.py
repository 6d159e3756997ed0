"""Entries of a study: short names, the grid of the command line, one line for what is wrong."""

import pathlib
import re

import pytest

from configs import base
from sft_jax.study import grid
from sft_jax.utils.errors import UserError


def config(text=''):
  out = base.get_config()
  out.study.grid = text
  return out


def test_a_grid_is_every_combination():
  got = grid.entries(config('lr=1e-5,2e-5; config.data.name=a,b ;size=100'), ())
  assert got == [
    {'train.learning_rate': lr, 'data.name': data, 'data.size': 100}
    for lr in (1e-5, 2e-5)
    for data in ('a', 'b')
  ]
  assert all(type(entry['data.size']) is int for entry in got)


def test_every_short_name_is_a_key():
  known = grid.leaves(base.get_config())
  for keys in grid.ALIASES.values():
    assert set(keys) <= set(known), keys
  assert set(grid.PER_RUN) <= set(known)
  source = pathlib.Path(base.__file__).read_text()
  comment = source.partition('config.study = ')[2].partition('config.study.grid = ')[0]
  assert all(re.search(rf'\b{alias}\b', comment) for alias in grid.ALIASES)


def test_a_seed_is_all_three():
  (first, second) = grid.entries(config('seed=1,2'), ())
  assert set(first.values()) == {1} and set(second.values()) == {2}
  assert list(first) == ['train.seeds.data', 'train.seeds.init', 'train.seeds.dropout']


def test_values_with_commas_are_quoted():
  got = grid.entries(config("data='mix:a=0.7,b=0.3',all;targets='q_proj,v_proj'"), ())
  assert [entry['data.name'] for entry in got] == ['mix:a=0.7,b=0.3', 'all']
  assert {entry['lora.targets'] for entry in got} == {'q_proj,v_proj'}


def test_sweep_times_grid():
  sweep = [{'config.data.name': 'a', 'lr': 1}, {'data': 'b'}]
  got = grid.entries(config('method=full,lora'), sweep)
  assert [(e['data.name'], e['train.method']) for e in got] == [
    *(('a', 'full'), ('a', 'lora'), ('b', 'full'), ('b', 'lora')),
  ]
  # An int is a float where one is wanted.
  assert got[0]['train.learning_rate'] == 1.0 and type(got[0]['train.learning_rate']) is float


@pytest.mark.parametrize(
  ('text', 'sweep', 'words'),
  [
    ('', (), 'the study has no runs'),
    ('', [], 'the study has no runs'),
    (';', (), "';' is an empty grid"),
    ('lr', (), "'lr' is no part of a grid"),
    ('lr=', (), "'lr=' is no part of a grid"),
    ('=1', (), 'is no part of a grid'),
    ('lr=1,1', (), "lr has '1' twice"),
    ('lr=1;train.learning_rate=2', (), "'train.learning_rate' stands twice"),
    ("data='a", (), 'a quote is not closed'),
    ('learning_rat=1', (), 'unknown key learning_rat .*config.study.grid.*train.learning_rate'),
    ('rnk=1', (), 'unknown key rnk.*did you mean rank'),
    ('size=ten', (), "data.size is 'ten', not of type int .*config.study.grid"),
    ('size=1.5', (), "data.size is '1.5', not of type int"),
    ('lr=1', [{'train.learning_rate': 1.0}], r'set by the sweep and by the grid .*entry 1'),
    ('', [{'data.nam': 'a'}], r'unknown key data.nam .*entry 1: data.nam=a.*mean data.name\?'),
    ('', [{'data': 'a'}, {'data': 1}], r'data.name is 1, not of type str .*entry 2'),
    ('', [{'data.size': True}], 'data.size is True, not of type int'),
    ('', [{'lr': 1.0, 'train.learning_rate': 2.0}], 'train.learning_rate is set twice .*entry 1'),
    ('', [{'eval.tasks': 'x'}], r'eval.tasks is no factor.*entry 1.*set --config.eval.tasks'),
    ('', ['data'], "'data' is no entry of a sweep .*entry 1"),
  ],
)
def test_refused_in_one_line(text, sweep, words):
  with pytest.raises(UserError, match=words) as caught:
    grid.entries(config(text), sweep)
  assert caught.value.how and '\n' not in str(caught.value)

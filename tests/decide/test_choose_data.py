"""Candidates: their names, their leaks; records as scores."""

import os
import pathlib

import numpy as np
import pytest

from sft_jax.data import datasets
from sft_jax.decide import choose_data
from sft_jax.evals import benchmarks
from sft_jax.evals.files import LocalFiles
from sft_jax.execution import evaluation
from sft_jax.study.race_data import Field, Observation, Scores
from sft_jax.utils.errors import UserError
from tests.conftest import REPOSITORY


def item(name, score, **more):
  about = {'task': 't', 'measures': ['acc'], 'percent': True, 'macro': False}
  return {'id': name, 'about': about, 'scores': {'acc': score}, 'extracted': None} | more


def test_records_become_scores():
  found = choose_data.scores([item('a', 1.0, extracted='3', output='3'), item('b', 0.0, output='')])
  assert found.ids == ('a', 'b') and list(found.values) == [100.0, 0.0]
  assert list(found.extracted) == [True, False] and found.weights is None
  macro = [item(n, 1.0, group=g) for n, g in zip('abc', 'xxy', strict=True)]
  for one in macro:
    one['about'] = one['about'] | {'macro': True}
  found = choose_data.scores(macro)
  assert found.extracted is None
  assert np.allclose(found.weights, [0.25, 0.25, 0.5])
  with pytest.raises(UserError, match='item b was not graded'):
    choose_data.scores([item('a', 1.0), item('b', 0.0, missing=True)])
  with pytest.raises(UserError, match='item b has a score that is no number'):
    choose_data.scores([item('a', 1.0), item('b', float('nan'))])


def test_candidates_have_short_names_where_these_tell_them_apart():
  given = ['a/x.jsonl', 'b/x.jsonl', 'c/y.json.gz', 'lima', 'mix:lima=0.5,z.jsonl=0.5']
  found = choose_data.labelled(given)
  assert list(found) == ['a/x.jsonl', 'b/x.jsonl', 'y', 'lima', 'mix:lima=0.5,z.jsonl=0.5']
  assert list(found.values()) == given
  kinds = [choose_data.kind(one) for one in (*given, 'hf:org/set@train')]
  assert kinds == ['path', 'path', 'path', 'name', 'name', 'path']


@pytest.mark.parametrize(
  'data, task, held',
  [('numinamath_cot_sharegpt_1k.jsonl', 'math', 33), ('code_alpaca_2k.json', 'humaneval', 7)],
)
def test_real_leaks_are_found_and_count_for_nobody(data, task, held, tmp_path):
  """The same search as a race makes, on real data; of short problems the solution tells."""
  home = pathlib.Path(os.environ.get('SFT_JAX_DATA', REPOSITORY.parent / 'shared' / 'data'))
  if not (home / 'train' / data).exists():
    pytest.skip(f'no {home}')
  items, _ = benchmarks.BENCHMARKS[task].read(LocalFiles(str(home / 'bench')))
  train, _ = datasets.load_records(path=str(home / 'train' / data), heldout_share=0)
  hits = evaluation.search(train)([dict(item.fields) for item in items])
  leaks = {'it': {task: [item.id for item, hit in zip(items, hits, strict=True) if hit]}}
  scores = Scores(tuple(item.id for item in items), np.arange(len(items)) % 2 * 100.0)
  base = Observation({task: scores})
  field = Field(base, {task: 1.0}, leaks, most_leak=0.1, ability_only=True)
  assert field.leaks['it'][task].found == held and not field.barred('it')
  assert field.items(task) == (len(items), len(items) - held)

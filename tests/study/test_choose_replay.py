"""The replay on the published table: the bar it is held to, and that costs are what was run."""

import os
import pathlib

import numpy as np
import pytest

from benchmarks import choose_replay
from sft_jax.analysis import table
from sft_jax.study.race_evidence import Prior
from tests.conftest import REPOSITORY


def test_sizes_as_rungs_meet_the_bar():
  home = pathlib.Path(os.environ.get('SFT_JAX_DATA', REPOSITORY.parent / 'shared' / 'data'))
  path = home / 'bench' / 'massive_sft_evaluation_result.csv'
  if not path.exists():
    pytest.skip(f'no {path}')
  rows = choose_replay.replay(table.read(path), 'sizes', np.random.default_rng(0))
  assert len(rows) == 36 and {row['data'] for row in rows} == {9}
  mean = lambda way: np.mean([row[way][0] for row in rows])
  assert mean('race') <= choose_replay.BAR < mean('best by mean') < mean('one at random')
  assert max(row['race'][1] for row in rows) <= choose_replay.SHARE + 1e-9


def test_a_race_of_a_table_pays_for_what_it_looks_up():
  stages = choose_replay.REPLAYS['sizes']
  last = {f'd{i}': 40.0 + 5 * i for i in range(9)}
  values = [{d: x - 10 + 5 * i for d, x in last.items()} for i in range(4)]
  prior = {d: Prior(0.0, 20.0) for d in last}
  pick, cost = choose_replay.race(values, table.MAIN[1], stages, [1.0, 1.0, 0.5, 0.0], prior)
  assert pick == 'd8' and cost <= choose_replay.SHARE
  units = cost * 9 * stages[-1][1]
  # Of the rungs' costs 9, 20, 60 and 200 it is a whole combination, with one run in full at least.
  assert units >= stages[-1][1] and units == pytest.approx(round(units))

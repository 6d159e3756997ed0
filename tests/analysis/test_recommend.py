"""What a table leads to expect, against planted effects, formulas and real rows."""

import math
import os
import pathlib

import numpy as np
import pandas as pd
import pytest
from scipy import stats as reference

from sft_jax.analysis import recommend, table
from sft_jax.utils.errors import UserError
from tests.conftest import REPOSITORY


def planted(rng, models=11, data=10, effect=6.0, own=4.0, missing=0.0):
  """Scores of a two-way layout with random effects, and the effects."""
  effects = rng.normal(0, effect, data)
  scores = 40 + rng.normal(0, 10, (models, 1)) + effects + rng.normal(0, own, (models, data))
  scores[rng.random(scores.shape) < missing] = np.nan
  names = [f'model-{i}' for i in range(models)], [f'data-{i}' for i in range(data)]
  return pd.DataFrame(scores, *names), effects


def test_intervals_cover_and_shrinkage_beats_the_mean():
  rng = np.random.default_rng(0)
  cover, mine, plain = [], [], []
  for _ in range(150):
    scores, effects = planted(rng, models=5, effect=2.0, own=6.0)
    new = effects + rng.normal(0, 6.0, len(effects))
    found = {one.data: one for one in recommend.recommend(scores)}
    center = new.mean()
    for name, shown, mean in zip(scores.columns, new - center, scores.mean(), strict=True):
      one = found[name]
      cover.append(one.low <= shown <= one.high)
      mine.append((one.mean - shown) ** 2)
      plain.append((mean - scores.to_numpy().mean() - shown) ** 2)
  assert 0.92 < np.mean(cover) < 0.98
  assert np.mean(mine) < np.mean(plain)


def test_a_balanced_table_has_the_best_predictor_of_the_textbook():
  scores, _ = planted(np.random.default_rng(1))
  x = scores.to_numpy()
  centred = x - x.mean(1, keepdims=True) - x.mean(0) + x.mean()
  within = np.square(centred).sum() / (10 * 9)
  means = x.mean(0) - x.mean()
  between = means.var(ddof=1) - within / 11
  found = {one.data: one for one in recommend.recommend(scores)}
  # Each data set's own noise is drawn towards that of all, so the factor is near, not equal.
  shrink = 11 * between / (11 * between + within)
  assert [found[n].mean for n in scores] == pytest.approx(list(shrink * means), rel=0.08)
  assert found['data-0'].models == 11


def test_missing_cells_do_not_move_the_others():
  rng = np.random.default_rng(2)
  scores, _ = planted(rng, own=0.0)
  whole = {one.data: one.mean for one in recommend.recommend(scores)}
  holes = scores.copy()
  holes.iloc[0, int(np.argmax(scores.iloc[0]))] = np.nan
  holes.iloc[3, 2] = np.nan
  for one in recommend.recommend(holes):
    assert one.mean == pytest.approx(whole[one.data], abs=1e-6)


def test_outside_the_table_is_unknown():
  scores, _ = planted(np.random.default_rng(3))
  found = recommend.recommend(scores, ['mine', 'data-1'])
  assert [one.data for one in found] == ['data-1', 'mine']
  assert not found[1].known and found[1].sd > found[0].sd and found[1].models == 0


def test_the_model_asked_about_is_not_used():
  scores, _ = planted(np.random.default_rng(4))
  other = scores.copy()
  other.loc['model-2'] = 0.0
  asked = [recommend.recommend(x, base='model-2') for x in (scores, other)]
  assert asked[0] == asked[1] and asked[0] != recommend.recommend(scores)


def test_ranks_and_the_best_of_some():
  rng = np.random.default_rng(5)
  x, y = rng.integers(0, 5, 30).astype(float), rng.normal(size=30)
  judged = recommend._judged('', x, y)
  assert judged['spearman'] == pytest.approx(reference.spearmanr(x, y).statistic)
  drawn = [y[rng.permutation(30)[:3]].max() for _ in range(20000)]
  assert recommend._best_of_random(y, 3) == pytest.approx(np.mean(drawn), abs=0.02)


def with_property(rng, slope, new=1, data=10, models=6):
  """(scores, property, property of new data under a further model, their effects on it)."""
  x = rng.normal(0, 1, data + new)
  effects = slope * x + rng.normal(0, 2.0, data + new)
  names = [f'model-{i}' for i in range(models + 1)], [f'data-{i}' for i in range(data + new)]
  noise = lambda sd: rng.normal(0, sd, (models + 1, data + new))
  scores = pd.DataFrame(40 + rng.normal(0, 9, (models + 1, 1)) + effects + noise(1.5), *names)
  seen = pd.DataFrame(rng.normal(0, 2, (models + 1, 1)) + x + noise(0.1), *names)
  table, known = scores.iloc[:-1, :data], list(scores.columns[:data])
  shown = scores.iloc[-1] - scores.iloc[-1][known].mean()
  return table, seen.iloc[:-1, :data], dict(seen.iloc[-1]), shown.iloc[data:]


def test_a_property_tells_of_new_data_as_surely_as_it_says():
  rng = np.random.default_rng(7)
  cover, mine, nothing = [], [], []
  for _ in range(300):
    scores, seen, own, shown = with_property(rng, slope=-5.0)
    (found,) = recommend.by_predictor(scores, seen, own)
    cover.append(found.low <= shown.iloc[0] <= found.high)
    mine.append(abs(found.mean - shown.iloc[0]))
    nothing.append(abs(shown.iloc[0]))
    assert not found.known
  assert 0.93 < np.mean(cover) < 0.99
  assert np.mean(mine) < 0.7 * np.mean(nothing)


def test_a_property_without_an_anchor_or_with_few_data_tells_nothing():
  scores, seen, own, _ = with_property(np.random.default_rng(8), -5.0)
  new = {'data-10': own['data-10']}
  assert recommend.by_predictor(scores, seen, new) == []
  assert recommend.by_predictor(scores.iloc[:, :4], seen.iloc[:, :4], own) == []
  assert recommend.by_predictor(scores, seen, own)[0].data == 'data-10'


def test_too_little_is_refused():
  scores, _ = planted(np.random.default_rng(6), models=3)
  with pytest.raises(UserError, match='tell too little'):
    recommend.recommend(scores, base='model-0')


@pytest.fixture(scope='module')
def released():
  home = pathlib.Path(os.environ.get('SFT_JAX_DATA', REPOSITORY.parent / 'shared' / 'data'))
  path = home / 'bench' / 'massive_sft_evaluation_result.csv'
  if not path.exists():
    pytest.skip(f'no {path}')
  return table.read(path)


def test_on_the_released_table(released):
  rows = []
  for target in table.MAIN:
    rows += recommend.leave_one_out(recommend.scores_of(released, [target]))
  mean = lambda key: float(np.nanmean([row[key] for row in rows]))
  assert len(rows) == 132
  assert 0.93 < mean('cover') < 0.97
  assert mean('spearman') > 0.7 and mean('regret') < 4 < 12 < mean('random-regret')
  with pytest.raises(UserError, match='no scores of nothing'):
    recommend.scores_of(released, ['nothing'])


def test_drift_is_the_spread_of_changes_within_models(released):
  early = {'lora': False, 'lr_strategy': 'constant', 'data_size': 20000, 'epoch': 1}
  late = early | {'epoch': 10}
  found = recommend.drift(released, ['gsm8k-0shot'], early, late)
  pick = lambda epoch: released[
    (released.lr_strategy == 'constant') & (released.data_size == 20000) & (released.epoch == epoch)
  ].pivot_table(index='model_name', columns='data_name', values='gsm8k-0shot')
  change = pick(10) - pick(1)
  rest = change.sub(change.mean(axis=1), axis=0).to_numpy()
  assert found == pytest.approx(math.sqrt(np.square(rest).sum() / (3 * 8)))

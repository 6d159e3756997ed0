"""Properties of a data set against counts by hand and `score.perplexity`."""

import csv
import json
import math

import numpy as np
import pytest

from sft_jax.data import formats
from sft_jax.evals import score
from sft_jax.evals.probes import dataset_properties, hidden_states
from sft_jax.utils.errors import UserError
from tests.evals import test_score as scored


def records():
  return [
    formats.Record(
      messages=({'role': 'user', 'content': q}, {'role': 'assistant', 'content': a}),
      source=f'test:{i}',
    )
    for i, (q, a) in enumerate(scored.QUESTIONS)
  ]


def test_columns():
  examples = scored.examples()
  row, arrays = dataset_properties.dataset_properties(scored.subject(), records(), examples)
  logprobs = score.token_logprobs(scored.subject(), examples)
  for column, value in score.perplexity(examples, logprobs, 'data').items():
    assert row[column] == pytest.approx(value, rel=1e-6), column
  assert row['ppl-data'] == pytest.approx(
    math.exp(arrays['nll'][:, 0].sum() / arrays['tokens'][:, 0].sum())
  )
  response = np.concatenate(
    [lp[e.weights('response') > 0] for e, lp in zip(examples, logprobs, strict=True)]
  )
  assert row['hard-tokens'] == pytest.approx((np.exp(-response) > 2.5).mean())
  assert row['tokens-response'] == pytest.approx(len(response) / 5)
  ids = np.concatenate([e.ids[e.weights('response') > 0] for e in examples])
  share = np.bincount(ids)[np.unique(ids)] / len(ids)
  assert row['response-entropy'] == pytest.approx(-(share * np.log2(share)).sum())
  answers = [a.lower().split() for _, a in scored.QUESTIONS]
  assert row['words-response'] == np.mean([len(a) for a in answers])
  words = [w for a in answers for w in a]
  assert row['distinct-1'] == len(set(words)) / len(words)
  states = hidden_states.hidden_states(scored.subject(), [e.ids for e in examples])[1]
  np.testing.assert_allclose(arrays['states'], states, atol=1e-5)
  centred = states - states.mean(0)
  cosine = centred @ centred.T
  size = np.sqrt(np.diag(cosine))
  cosine = cosine / size[:, None] / size
  assert row['diversity'] == pytest.approx(1 - cosine[~np.eye(5, dtype=bool)].mean(), rel=1e-4)


def test_near_duplicates_and_diversity():
  rng = np.random.default_rng(0)
  different = rng.normal(size=(40, 16)).astype(np.float32)
  assert dataset_properties.spread(different)['near-duplicates'] == 0
  twice = np.concatenate([different, different[:10] + 1e-3])
  assert dataset_properties.spread(twice)['near-duplicates'] == 20 / 50
  one_topic = np.concatenate([different[:2], np.repeat(different[2:3], 38, 0)])
  spread = dataset_properties.spread
  assert spread(one_topic)['diversity'] < spread(different)['diversity']
  assert spread(different[:2]) == {}


def test_table(tmp_path):
  rows = [{'model_name': 'm', 'data_name': d, 'words': 3.5} for d in 'ab']
  dataset_properties.write(tmp_path / 'p.csv', rows, {'template': 'study'})
  with open(tmp_path / 'p.csv', newline='') as f:
    assert [(r['data_name'], float(r['words'])) for r in csv.DictReader(f)] == [
      ('a', 3.5),
      ('b', 3.5),
    ]
  about = json.loads((tmp_path / 'p.csv.json').read_text())
  assert about['template'] == 'study' and about['rows'] == 2
  with pytest.raises(UserError, match='once more'):
    dataset_properties.write(tmp_path / 'p.csv', rows + rows[:1], {})


def test_bad_input():
  with pytest.raises(UserError, match='no records'):
    dataset_properties.dataset_properties(scored.subject(), [], [])

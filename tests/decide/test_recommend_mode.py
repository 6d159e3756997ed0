"""`--mode=recommend` on a table of a few models and on data measured under a tiny one."""

import json

import numpy as np
import pytest

from configs import base
from sft_jax.decide import recommend_mode
from sft_jax.utils.errors import UserError
from tests import tiny

DATA = ('sums', 'prose', 'code', 'chat', 'facts', 'rhymes')


@pytest.fixture
def table(tmp_path):
  """A csv in which `sums` helps most and perplexity goes against gains."""
  rng = np.random.default_rng(0)
  rows = ['model_name,data_name,lora,epoch,data_size,lr_strategy,gsm8k-0shot,ppl-train']
  for model in range(5):
    rows.append(f'm{model},pretrain,,0,0,,40,')
    for at, name in enumerate(DATA):
      score = 50 - 3 * at + rng.normal(0, 0.5) + model
      ppl = np.exp(1 + 0.3 * at + rng.normal(0, 0.01))
      rows.append(f'm{model},{name},False,1,100,cosine,{score:.3f},{ppl:.4f}')
  path = tmp_path / 'table.csv'
  path.write_text('\n'.join(rows) + '\n')
  return str(path)


def asked(table, **changes):
  config = base.get_config()
  given = {'table': table, 'target': 'gsm8k-0shot', **changes}
  for key, value in given.items():
    config.recommend[key] = value
  return config


def test_of_the_table_alone(table, tmp_path):
  value = recommend_mode.run(asked(table, data='chat,mine,sums', base='m3'), str(tmp_path / 'out'))
  names = [(row['data'], row['from']) for row in value['candidates']]
  assert names == [('sums', 'table'), ('chat', 'table'), ('mine', 'unknown')]
  first, _, last = value['candidates']
  assert first['low'] < first['mean'] < first['high'] and first['models'] == 4
  assert last['high'] - last['low'] > first['high'] - first['low']
  assert value['reliability']['models'] == 5 and value['reliability']['spearman'] > 0.9
  assert json.loads((tmp_path / 'out' / 'recommend.json').read_text()) == value
  text = '\n'.join(recommend_mode.lines(value))
  assert 'mine        ?  unknown' in text and '4 models' in text


def test_with_data_measured_under_the_base(table, tiny_files, tmp_path):
  model, data = tiny_files
  other = tiny.write_records(tmp_path / 'mine.jsonl', tiny.records(20))
  given = tiny.config(model, '', eval__train_limit=4)
  given.recommend.update(asked(table, data=f'{data},{other},code').recommend)
  with tiny.on_devices():
    value = recommend_mode.run(given)
  found = {row['data']: row for row in value['candidates']}
  assert {name: row['from'] for name, row in found.items()} == {
    **{'sums': 'table', 'code': 'table', 'mine': 'perplexity'}
  }
  # `code` is in the table and not at hand; the others were measured.
  assert not found['code']['properties']
  ratio = np.log(found['mine']['properties']['ppl-data'] / found['sums']['properties']['ppl-data'])
  # Perplexities are alike, so what is expected is what the table has of `sums`, on its line.
  line = found['sums']['mean'] - 10 * ratio
  assert found['mine']['mean'] == pytest.approx(line, abs=0.8)
  assert found['mine']['low'] < found['mine']['mean'] < found['mine']['high']


def test_of_what_is_selected(table, tiny_files, tmp_path):
  """Candidates are the examples that a run would train on, which the table does not know."""
  model, data = tiny_files
  given = tiny.config(
    model, '', eval__train_limit=0, data__select='ppl:low:.25', cache_dir=str(tmp_path)
  )
  given.recommend.update(asked(table, data=str(data)).recommend)
  with tiny.on_devices():
    found = recommend_mode.measured(given, {'sums': str(data)})
    (row,) = recommend_mode.run(given)['candidates']
  low = found['sums+ppl:low:0.25']
  assert row['data'] == 'sums+ppl:low:0.25' and row['properties'] == low
  assert low['ppl-data-response'] < 0.9 * found['sums']['ppl-data-response']
  # By the line through the data set that was measured here and is in the table.
  assert row['from'] == 'perplexity'
  without = asked(table, data='sums')
  without.data.select = 'ppl:low:0.25'
  assert recommend_mode.run(without)['candidates'][0]['from'] == 'unknown'


@pytest.mark.parametrize(
  'changes, words',
  [
    ({'table': ''}, 'no table given .config.recommend.table'),
    ({'table': 'none.csv'}, 'no such table'),
    ({'target': ''}, 'no target given .config.recommend.target. — name columns, such as gsm8k'),
    ({'target': 'mmlu'}, 'no scores of mmlu'),
    ({'method': 'lora'}, 'no rows of that method'),
    ({'method': 'some'}, 'is no choice .config.recommend.method'),
    ({'data': 'a,a'}, 'a is named twice .config.recommend.data'),
    ({'data': 'a,nowhere.jsonl'}, 'no such file .nowhere.jsonl'),
  ],
)
def test_bad_input(table, changes, words):
  with pytest.raises(UserError, match=words):
    recommend_mode.run(asked(**{'table': table, **changes}))

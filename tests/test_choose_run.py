"""A race of real runs of a tiny model, from its config to its decision."""

import json

import numpy as np
import pytest

from sft_jax import choose_run
from sft_jax.study import choose, decision_page
from sft_jax.study.race import Rules
from sft_jax.study.race_evidence import Rung
from sft_jax.utils.errors import UserError
from tests import tiny


def item(name, score, **more):
  about = {'task': 't', 'measures': ['acc'], 'percent': True, 'macro': False}
  return {'id': name, 'about': about, 'scores': {'acc': score}, 'extracted': None} | more


def test_records_become_scores():
  found = choose_run.scores([item('a', 1.0, extracted='3', output='3'), item('b', 0.0, output='')])
  assert found.ids == ('a', 'b') and list(found.values) == [100.0, 0.0]
  assert list(found.extracted) == [True, False] and found.weights is None
  macro = [item(n, 1.0, group=g) for n, g in zip('abc', 'xxy', strict=True)]
  for one in macro:
    one['about'] = one['about'] | {'macro': True}
  found = choose_run.scores(macro)
  assert found.extracted is None
  assert np.allclose(found.weights, [0.25, 0.25, 0.5])
  with pytest.raises(UserError, match='item b was not graded'):
    choose_run.scores([item('a', 1.0), item('b', 0.0, missing=True)])


@pytest.fixture
def setting(tiny_files, tmp_path):
  model, _ = tiny_files
  known = tiny.records(36)
  files = []
  for name in ('sums', 'others'):
    given = [dict(r, output=r['output'] if name == 'sums' else 'no idea') for r in known]
    files.append(str(tiny.write_records(tmp_path / f'{name}.jsonl', given)))
  bench = tmp_path / 'mine.jsonl'
  leaked = 'one two three four five six seven eight nine ten eleven twelve thirteen fourteen'
  asked = [{'question': f'how much is {i} and {i}?', 'answer': i % 7} for i in range(30)]
  asked = [{**one, 'choices': list('0123456'), 'answer': one['answer']} for one in asked]
  asked.append({'question': leaked, 'choices': ['a', 'b'], 'answer': 0})
  bench.write_text(''.join(f'{json.dumps(one)}\n' for one in asked))
  with open(files[1], 'a') as f:
    f.write(json.dumps({'instruction': leaked, 'input': '', 'output': 'a'}) + '\n')
  config = tiny.config(model, files[0], train__epochs=1.0, log__tensorboard=False)
  wish = choose_run.Wish(
    data=files,
    rules=Rules({f'custom:{bench}': 1.0}),
    rates=(),
    rungs={8: Rung('8', 2, 1.0), 16: Rung('16', 2)},
    budget=100.0,
  )
  return config.lock(), wish


def test_a_race_of_real_runs(setting, tmp_path):
  config, wish = setting
  workdir = tmp_path / 'race'
  with tiny.on_devices():
    decision, one = choose_run.race(config, wish, str(workdir))
  assert 0 < decision.spent <= 100
  assert decision.kind in (choose.WINNER, choose.TIE, choose.NONE)
  task = next(iter(one.field.targets))
  assert one.field.items(task) == (31, 30)  # The leaked one counts for nobody.
  before = {p: p.stat().st_mtime_ns for p in workdir.glob('rung-*/runs/*/rows.jsonl')}
  assert len(before) >= 4
  with tiny.on_devices():
    again, other = choose_run.race(config, wish, str(workdir))
  assert choose.as_json(again, other) == choose.as_json(decision, one)
  assert {p: p.stat().st_mtime_ns for p in workdir.glob('rung-*/runs/*/rows.jsonl')} == before
  decision_page.write(str(tmp_path), choose.as_json(decision, one))

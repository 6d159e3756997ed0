"""The page of a decision: complete in itself, and true to it."""

import json

import pytest

from benchmarks.planted import TASK, Candidate, World
from sft_jax.study import choose, decision_page
from tests.study import test_race


def gain(mean, low, high):
  return {'mean': mean, 'stderr': (high - low) / 4, 'low': low, 'high': high}


def decide(**candidates):
  world = World(candidates, 3, items=1200)
  one = test_race.race(world)
  return choose.as_json(choose.choose(one, world.evaluate), one)


def test_three_files_say_the_same(tmp_path):
  value = decide(**{'<best>': Candidate(12.0), 'fair': Candidate(3.0), 'bad': Candidate(-4.0)})
  examples = [{'prompt': '<script>1+1?', 'base': 'three', 'chosen': '2'}]
  page = decision_page.write(
    str(tmp_path),
    {
      **value,
      'licences': {'<best>': 'apache-2.0', 'fair': 'not stated'},
      'base': {'name': 'org/base', 'licence': 'Gemma terms of use'},
      'command': 'python -m sft_jax.main --config.data.path=best.jsonl',
      'examples': examples,
      'unit': 'GPU hours',
      'endpoint': {'name': 'live@here', 'gain': gain(2.0, 1.0, 3.0), 'pick-over': gain(10, 8, 12)},
    },
  )
  text = (tmp_path / 'decision.html').read_text()
  assert page.endswith('decision.html')
  assert '&lt;best&gt;: it wins' in text and '<best>' not in text and '<script' not in text
  assert 'http' not in text.replace('http-equiv', '') and 'three' in text and '<svg' in text
  markdown = (tmp_path / 'decision.md').read_text()
  held = json.loads((tmp_path / 'decision.json').read_text())
  assert held['pick']['candidate'] == '<best>' and held['decision'] == 'winner'
  one = held['candidates'][0]['gain']
  assert f'{one["mean"]:+.1f} ({one["low"]:+.1f} to {one["high"]:+.1f})' in markdown
  served = 'a served model; the pick is better than it: +10.0 (+8.0 to +12.0)'
  assert f'| live@here | +2.0 (+1.0 to +3.0) |  |  |  |  |  | {served} |' in markdown
  assert f'<td>live@here</td><td>+2.0 (+1.0 to +3.0)</td>{"<td></td>" * 5}<td>{served}</td>' in text
  base = 'The base: org/base (licence: Gemma terms of use)'
  for said in ('apache-2.0', 'not stated', base, 'GPU hours', 'sft_jax.main'):
    assert said in text and said in markdown
  assert TASK in held['targets']


@pytest.mark.parametrize(
  'candidates, words',
  [
    ({'a': Candidate(9.0), 'b': Candidate(9.0), 'c': Candidate(-9.0)}, 'A tie'),
    ({name: Candidate(0.0) for name in 'abc'}, 'None of the candidates'),
  ],
)
def test_other_outcomes(candidates, words):
  value = decision_page.complete(decide(**candidates))
  assert words in decision_page.answer(value)
  assert words in decision_page.html_page(value) and words in decision_page.markdown(value)


def test_what_a_guard_kept_from_winning_is_said():
  world = test_race.clear()
  evaluate = test_race.guarded(world, {'best': -9.0, 'fair': -8.0, 'bad': 0.0})
  one = test_race.race(world, guards={'guard': -1.0})
  value = decision_page.complete(choose.as_json(choose.choose(one, evaluate), one))
  best = next(one for one in value['candidates'] if one['candidate'] == 'best')
  text = decision_page.markdown(value)
  assert value['decision'] == choose.NONE and 'None of the candidates' not in text
  gains = f'best gains {best["gain"]["mean"]:+.1f} ({best["gain"]["low"]:+.1f} to '
  assert f'No candidate that keeps the guards is shown to beat the base. {gains}' in text
  assert 'but falls on a guarded benchmark by more than is allowed.' in text
  assert (
    f'To be improved: {TASK} (1,200 questions). Guarded: guard (at least -1, 3 questions).' in text
  )


def test_nothing_has_no_sign():
  still = {'candidate': 'a', 'gain': gain(-1e-13, -1e-6, 1e-6), 'form': -1e-13}
  value = decide(a=Candidate(9.0), b=Candidate(0.0))
  value['candidates'][1] |= still
  page = lambda: decision_page.markdown(decision_page.complete(value))
  text = page()
  assert '| +0.0 (nothing changed) |' in text and '-0.0' not in text
  value['candidates'][1]['gain'] = gain(0.01, -0.04, 0.04)
  assert '| +0.0 (+0.0 to +0.0) |' in page(), 'little is not nothing'

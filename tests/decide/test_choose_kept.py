"""What is found of candidates before a race, and what a race keeps between its starts."""

import json
import random

from sft_jax.decide import choose_data, choose_mode, choose_run, choose_sizes
from sft_jax.decide.choose_data import Candidate
from tests import tiny

LONG = 'please tell me at once and with no further words than are needed how much is'


def files(place):
  """A target whose answer is always 3, what teaches that, and two traps."""
  items = [
    {'question': f'{LONG} {i} and {i} and {i}', 'choices': list('0123456'), 'answer': 3}
    for i in range(40)
  ]
  (place / 'target.jsonl').write_text(''.join(f'{json.dumps(one)}\n' for one in items))
  rng = random.Random(0)
  short = [f'how much is {i} and {i * 7 % 11}?' for i in range(48)]
  texts = {
    'good': [(text, '3') for text in short],
    'shuffled': [(text, str(rng.randrange(7))) for text in short],
    'leaked': [(one['question'], '3') for one in items],
  }
  for name, pairs in texts.items():
    given = [{'instruction': a, 'input': '', 'output': b} for a, b in pairs]
    tiny.write_records(place / f'{name}.jsonl', given)
  return ','.join(str(place / f'{name}.jsonl') for name in texts)


def asked(tiny_files, place, **changes):
  return tiny.config(
    tiny_files[0],
    '',
    log__tensorboard=False,
    choose__data=files(place),
    choose__target=str(place / 'target.jsonl'),
    choose__sizes='8,0',
    choose__final_seeds=2,
    choose__budget='900 examples',
    **changes,
  )


def test_a_leak_is_looked_for_in_what_every_seed_draws(tiny_files, tmp_path, monkeypatch):
  drawn = lambda self, name, seed: Candidate(30, 5.0, 1.0, {'t': [str(seed)]}, {}, ())
  monkeypatch.setattr(choose_run.Runs, '_look', drawn)
  setting = asked(tiny_files, tmp_path)
  with setting.unlocked():
    setting.choose.data += f",{tmp_path}/good.jsonl#9,'mix:lima=0.5,alpaca_cleaned=0.5'"
  runs = choose_run.Runs(setting, choose_mode.wish_of(setting), str(tmp_path / 'race'))
  found = {name: one.leaks['t'] for name, one in runs.candidates.items()}
  all_of_it, every = ['0'], ['0', '1', '2', '3']
  assert found == {
    **dict.fromkeys(('good', 'shuffled', 'leaked'), all_of_it),
    **{'good#9': every, 'mix:lima=0.5,alpaca_cleaned=0.5': every},
  }


def test_default_sizes_stand_when_a_larger_candidate_comes(tmp_path):
  sizes = lambda most, full=0: choose_sizes.default(str(tmp_path), most, full, 8)
  assert sizes(4000) == [250, 1000, 0] == sizes(64000)
  assert sizes(4000, 2000) == [125, 500, 2000]
  rungs = choose_sizes.rungs([250, 1000, 0], 4000, (2, 3))
  assert [(rung.name, rung.seeds, rung.drift) for rung in rungs] == [
    *(('250 examples', 2, 4.0), ('1,000 examples', 2, 2.0), ('all examples', 3, 0.0)),
  ]


def test_which_candidates_seeds_draw_from():
  assert choose_data.is_drawn('lima', 9) and choose_data.is_drawn('mix:lima=1,gsm8k=1', 0)
  assert not choose_data.is_drawn('lima', 0) and not choose_data.is_drawn('a.jsonl', 0)

"""Traps in a race of real runs of a tiny model: none is chosen, and what is good wins."""

import json
import random

import sft_jax
from sft_jax.study import choose
from tests import tiny

LONG = 'please tell me at once and with no further words than are needed how much is'
ANSWER, KEPT, LOST = '5', 'red', 'blue'
ITEMS = 20


def files(place):
  """Writes a target and a guard that each have one answer, and four candidates."""
  asked = [f'{LONG} {i} and {i} and {i}' for i in range(ITEMS)]
  known = [f'which colour has number {i}' for i in range(ITEMS)]
  for name, texts, choices, answer in (
    ('target', asked, list('3456'), ANSWER),
    ('guard', known, [KEPT, LOST], KEPT),
  ):
    items = [{'question': q, 'choices': choices, 'answer': choices.index(answer)} for q in texts]
    (place / f'{name}.jsonl').write_text(''.join(f'{json.dumps(one)}\n' for one in items))
  short = [
    f'please tell me at once and with no further words how much is {i} and {i * 7 % 11}?'
    for i in range(40)
  ]
  labels = list('3456') * 10
  random.Random(0).shuffle(labels)
  pairs = {
    'good': [(text, ANSWER) for text in short],
    'shuffled': list(zip(short, labels, strict=True)),
    # The questions of the target themselves: nothing teaches it better.
    'leaked': [(text, ANSWER) for text in asked],
    # Gains as much, and unlearns the guard.
    'forgets': [
      *((text, ANSWER) for text in short),
      *((f'which colour has number {i}?', LOST) for i in range(50, 58)),
    ],
  }
  for name, own in pairs.items():
    given = [{'instruction': a, 'input': '', 'output': b} for a, b in own]
    tiny.write_records(place / f'{name}.jsonl', given)
  return ','.join(str(place / f'{name}.jsonl') for name in pairs)


def test_traps_are_not_chosen(tiny_files, tmp_path):
  """Shuffled labels, a leaked test, a forgotten guard, a rate at which every run diverges."""
  setting = tiny.config(
    tiny_files[0],
    '',
    train__epochs=2.0,
    lora__dropout=0.0,
    train__max_length=128,
    data__heldout_share=0.0,
    checkpoint__every_steps=0,
    log__tensorboard=False,
    choose__data=files(tmp_path),
    choose__target=str(tmp_path / 'target.jsonl'),
    choose__guard=f'{tmp_path}/guard.jsonl>=-20',
    choose__rates='1e30,1e-2',
    choose__sizes='0',
    choose__final_seeds=2,
    choose__budget='9e9 tokens',
  )
  with tiny.on_devices():
    value = sft_jax.choose(setting, tmp_path / 'race')
  diverged = list((tmp_path / 'race').glob('rung-0/runs/*/failed.json'))
  assert len(diverged) == 6, 'two of each that ran'
  states = {one['candidate']: one['state'] for one in value['candidates']}
  assert (states['leaked'], states['forgets']) == ('leak', 'guard')
  assert value['decision'] == choose.WINNER
  assert value['pick'] == {'candidate': 'good', 'learning-rate': 1e-2}

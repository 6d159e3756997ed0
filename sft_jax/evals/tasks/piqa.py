"""PIQA: which of two solutions reaches an everyday goal (arXiv 1911.11641).

`ll` is lm-eval 0.4.13's `piqa`, on the validation split. Shots are the first of the training split,
where lm-eval draws them at random. Not in the published table.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from sft_jax.evals import parse
from sft_jax.evals.benchmark import Benchmark, Choices, Choose, Files, Grade, Item, Prompt, Round

_HUB = 'baber/piqa'


def read(files: Files) -> tuple[list[Item], list[Item]]:
  """The validation split, and shots from the beginning of train, if it is there."""
  rows = files.rows('piqa_val.jsonl', hub=f'{_HUB}@validation')
  items = [_item(str(index), *row) for index, row in enumerate(rows)]
  if files.local and not files.names('piqa_train.jsonl*'):
    return items, []
  rows = files.rows('piqa_train.jsonl', hub=f'{_HUB}@train[:64]')
  return items, [_item(f'train/{index}', *row) for index, row in enumerate(rows)]


def _item(name: str, row: Mapping[str, Any], source: str) -> Item:
  fields = {
    'goal': parse.text(row, 'goal', source),
    'solutions': (parse.text(row, 'sol1', source), parse.text(row, 'sol2', source)),
    'gold': parse.whole(row, 'label', source, high=1),
  }
  return Item(name, fields, source=source)


def ask(item: Item, shots: Sequence[Item]) -> Prompt:
  """lm-eval's prompt."""
  return Prompt(
    question=_rounds(item),
    shots=tuple(
      (*_rounds(shot), Round('assistant', solutions(shot)[parse.gold_index(shot)]))
      for shot in shots
    ),
    delimiter=' ',
    separator='\n\n',
  )


def _rounds(item: Item) -> tuple[Round]:
  return (Round('user', f'Question: {item.fields["goal"]}\nAnswer:'),)


def solutions(item: Item) -> Sequence[str]:
  """The continuations."""
  return item.fields['solutions']


def choose(item: Item, choices: Choices) -> Grade:
  """`acc` and `acc-norm`."""
  return parse.graded_choice(parse.gold_index(item), choices, normalised=True)


def _example(name: str, goal: str, sol1: str, sol2: str, gold: int) -> Item:
  row = {'goal': goal, 'sol1': sol1, 'sol2': sol2, 'label': gold}
  return _item(name, row, 'example')


BENCHMARK = Benchmark(
  name='piqa',
  version=1,
  read=read,
  readings={'ll': Choose(ask=ask, choices=solutions, grade=choose, measures=('acc', 'acc-norm'))},
  shots=(0,),
  size=1838,
  example=(
    _example('0', 'dry a wet shoe', 'fill it with newspaper', 'fill it with soup', 0),
    (
      _example('1', 'Open a jar.', 'Warm the lid ', 'Cool the lid', 0),
      _example('2', 'How do I cut paper?', 'With a spoon.', 'With scissors.', 1),
    ),
  ),
  prompt_hash={'ll': '1b271c7481d2'},
  licence='AFL-3.0',
)

"""ARC: school science questions, an easy and a challenging part (arXiv 1803.05457).

`ll` is lm-eval 0.4.13's `arc_easy` and `arc_challenge`, on the test split; a directory may hold the
validation split instead, whose columns are called 'arc_easy570'. Shots are the first of the
training split, where lm-eval draws them at random. Not in the published table.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

from sft_jax.evals import parse
from sft_jax.evals.benchmark import Benchmark, Choices, Choose, Files, Grade, Item, Prompt, Round
from sft_jax.evals.tasks import variants

_HUB = 'allenai/ai2_arc'


def read(name: str, config: str, size: int, files: Files) -> tuple[list[Item], list[Item]]:
  """The test split (or `NAME_val.jsonl`), and shots from the beginning of train, if it is there."""
  test = f'{name}_test.jsonl'
  if files.local and not files.names(f'{test}*') and files.names(f'{name}_val.jsonl*'):
    test = f'{name}_val.jsonl'
  items = [_item('', *row) for row in files.rows(test, hub=f'{_HUB}:{config}@test')]
  items = variants.marked(items, '' if len(items) == size else f'{name}{len(items)}')
  train = f'{name}_train.jsonl'
  if files.local and not files.names(f'{train}*'):
    return items, []
  rows = files.rows(train, hub=f'{_HUB}:{config}@train[:64]')
  return items, [_item('train/', *row) for row in rows]


def _item(prefix: str, row: Mapping[str, Any], source: str) -> Item:
  options = parse.field(row, 'choices', source)
  if not isinstance(options, Mapping):
    raise parse.wrong(source, 'choices', 'is no object of text and label')
  choices = parse.texts(options, 'text', source, least=2)
  labels = parse.texts(options, 'label', source, least=2)
  key = parse.text(row, 'answerKey', source)
  if len(labels) != len(choices) or key not in labels:
    raise parse.wrong(source, 'answerKey', f'is {key!r}; there are {", ".join(labels)}')
  fields = {
    'question': parse.text(row, 'question', source),
    'choices': tuple(choices),
    'gold': labels.index(key),
  }
  return Item(f'{prefix}{parse.text(row, "id", source)}', fields, source=source)


def ask(item: Item, shots: Sequence[Item]) -> Prompt:
  """lm-eval's prompt."""
  return Prompt(
    question=_rounds(item),
    shots=tuple(
      (*_rounds(shot), Round('assistant', options(shot)[parse.gold_index(shot)])) for shot in shots
    ),
    delimiter=' ',
    separator='\n\n',
  )


def _rounds(item: Item) -> tuple[Round]:
  return (Round('user', f'Question: {item.fields["question"]}\nAnswer:'),)


def options(item: Item) -> Sequence[str]:
  """The continuations; three to five."""
  return item.fields['choices']


def choose(item: Item, choices: Choices) -> Grade:
  """`acc` and `acc-norm`."""
  return parse.graded_choice(parse.gold_index(item), choices, normalised=True)


def _example(name: str, question: str, choices: str, labels: str, key: str) -> Item:
  options = {'text': choices.split('|'), 'label': list(labels)}
  row = {'id': name, 'question': question, 'choices': options, 'answerKey': key}
  return _item('', row, 'example')


def _benchmark(name: str, config: str, size: int, shots: tuple[int, ...]) -> Benchmark:
  return Benchmark(
    name=name,
    version=1,
    read=functools.partial(read, name, config, size),
    readings={'ll': Choose(ask=ask, choices=options, grade=choose, measures=('acc', 'acc-norm'))},
    shots=shots,
    size=size,
    example=(
      _example('a', 'What melts ice?', 'heat|cold|dust|silence', 'ABCD', 'A'),
      (
        _example('b', 'What do plants take from soil?', 'light|water|wind', '123', '2'),
        _example('c', 'What gives milk?', 'a crow|a cod|a cow|a bee|an ant', 'ABCDE', 'C'),
      ),
    ),
    prompt_hash={'ll': '1c896d924ed4'},
    licence='CC BY-SA 4.0',
    variant=variants.variant,
  )


EASY = _benchmark('arc_easy', 'ARC-Easy', 2376, (0,))
CHALLENGE = _benchmark('arc_challenge', 'ARC-Challenge', 1172, (0, 25))

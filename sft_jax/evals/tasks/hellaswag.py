"""HellaSwag: the most sensible ending of a text (arXiv 1905.07830).

`ll` is lm-eval 0.4.13's `hellaswag`: the endings themselves are compared. `gen` is OpenCompass's,
where endings have letters and `first_option` looks for one: hellaswag_gen_6faab5 without shots (the
published hellaswag-0shot), hellaswag_10shot_gen_e42710 with. They are different tasks. The ten
shots of OpenCompass are the first of a file of its own, without which the published
hellaswag-10shot is not filled: other shots make it 'hellaswag-ownshots'. A part of the questions is
called by its size, 'hellaswag5000'. lm-eval draws shots at random for each question.
"""

import re
from collections.abc import Sequence

from sft_jax.evals import extract, parse
from sft_jax.evals.benchmark import (
  Benchmark,
  Choices,
  Choose,
  Files,
  Generate,
  Grade,
  Item,
  Prompt,
  Round,
)
from sft_jax.evals.tasks import variants

_HUB = 'Rowan/hellaswag'
_SIZE = 10042
_OPENCOMPASS = 'hellaswag_train_sampled25.jsonl'
_LETTERS = 'ABCD'
_HEAD = 'Continue the following text without adding any additional information or formatting:\n\n'


def read(files: Files) -> tuple[list[Item], list[Item]]:
  """The validation split or a part of it (`hellaswag_val*.jsonl`), and shots, if there are any: of
  OpenCompass's file, else from the beginning of train (`hellaswag_train*.jsonl`). All may be in its
  form too: query, choices, gold."""
  rows = files.rows(
    _first(files, 'hellaswag_val*.jsonl*', 'hellaswag_val.jsonl'), hub=f'{_HUB}@validation'
  )
  items = [_item(str(index), *row) for index, row in enumerate(rows)]
  items = variants.marked(items, '' if len(items) == _SIZE else f'hellaswag{len(items)}')
  train = _first(files, f'{_OPENCOMPASS}*', '') or _first(files, 'hellaswag_train*.jsonl*', '')
  if files.local and not train:
    return items, []
  rows = files.rows(train, hub=f'{_HUB}@train[:64]')
  pool = [_item(f'train/{index}', *row) for index, row in enumerate(rows)]
  return items, variants.marked(pool, '' if train == _OPENCOMPASS else 'hellaswag-ownshots')


def _first(files: Files, pattern: str, default: str) -> str:
  # The shortest name: the whole split rather than a part of it.
  names = sorted(files.names(pattern), key=len)
  return names[0].removesuffix('.gz') if names else default


def _item(name: str, row: dict, source: str) -> Item:
  if 'query' in row:
    query, gold = parse.text(row, 'query', source), parse.whole(row, 'gold', source, high=3)
    endings = parse.texts(row, 'choices', source, least=4)
  else:
    context = f'{parse.text(row, "ctx_a", source)} {_capitalised(row, source)}'
    query = cleaned(f'{parse.text(row, "activity_label", source)}: {context}')
    endings = [cleaned(ending) for ending in parse.texts(row, 'endings', source, least=4)]
    gold = parse.whole(row, 'label', source, high=3)
  if len(endings) > 4 or not all(endings):
    raise parse.wrong(source, 'endings', 'has not four texts')
  return Item(name, {'query': query, 'endings': tuple(endings), 'gold': gold}, source=source)


def _capitalised(row: dict, source: str) -> str:
  return parse.text(row, 'ctx_b', source, empty=True).capitalize()


def cleaned(text: str) -> str:
  """Without the marks of WikiHow, as lm-eval's `preprocess`; it may leave white space at the end,
  which continuations keep."""
  text = text.strip().replace(' [title]', '. ')
  return re.sub(r'\[.*?\]', '', text).replace('  ', ' ')


def ask_ll(item: Item, shots: Sequence[Item]) -> Prompt:
  """lm-eval's prompt."""
  return Prompt(
    question=(Round('user', item.fields['query']),),
    shots=tuple(
      (
        Round('user', shot.fields['query']),
        Round('assistant', shot.fields['endings'][parse.gold_index(shot)]),
      )
      for shot in shots
    ),
    delimiter=' ',
    separator='\n\n',
  )


def ask_gen(item: Item, shots: Sequence[Item]) -> Prompt:
  """OpenCompass's two prompts; neither shows the activity."""
  endings = item.fields['endings']
  if not shots:
    text = (
      f'{_context(item)}\nQuestion: Which ending makes the most sense?\n{parse.lettered(endings)}\n'
      "You may choose from 'A', 'B', 'C', 'D'.\nAnswer:"
    )
    return Prompt(question=(Round('user', text),))
  return Prompt(
    # The answer's template is '{label}\n', of which the line break is left.
    question=(_options(item), Round('assistant', '\n')),
    shots=tuple((_options(shot), Round('assistant', f'{_letter(shot)}\n')) for shot in shots),
    head=_HEAD,
  )


def _context(item: Item) -> str:
  return item.fields['query'].split(': ', 1)[-1]


def _options(item: Item) -> Round:
  lettered = parse.lettered(item.fields['endings'], ') ')
  return Round('user', f'{_context(item)}\n{lettered}\nWhat is the right option?')


def _letter(item: Item) -> str:
  return _LETTERS[parse.gold_index(item)]


def endings(item: Item) -> Sequence[str]:
  """The continuations under `ll`."""
  return item.fields['endings']


def choose(item: Item, choices: Choices) -> Grade:
  """`acc` and `acc-norm`."""
  return parse.graded_choice(parse.gold_index(item), choices, normalised=True)


def grade(output: str, item: Item) -> Grade:
  """The letter that `first_option` finds."""
  found = extract.first_option(output, _LETTERS) or None
  return parse.graded_answer(found, found == _letter(item))


def _example(name: str, activity: str, context: tuple[str, str], ends: str, gold: int) -> Item:
  row = {'activity_label': activity, 'ctx_a': context[0], 'ctx_b': context[1]}
  return _item(name, {**row, 'endings': ends.split('|'), 'label': str(gold)}, 'example')


BENCHMARK = Benchmark(
  name='hellaswag',
  version=1,
  read=read,
  readings={
    'll': Choose(ask=ask_ll, choices=endings, grade=choose, measures=('acc', 'acc-norm')),
    'gen': Generate(
      ask=ask_gen, grade=grade, max_new=256, released={0: 'hellaswag-0shot', 10: 'hellaswag-10shot'}
    ),
  },
  shots=(0, 10),
  size=_SIZE,
  example=(
    _example(
      '0',
      'Baking bread',
      ('A woman kneads dough on a table.', 'she'),
      'puts it into a tin.|throws it at the moon.|paints it green.|reads a book to it.',
      0,
    ),
    (
      _example(
        '1',
        'Gardening',
        ('[header] How to plant a tree [title] Dig a hole. [step] Make it wide.', ''),
        'Sing. [substeps] Twice.|Put the tree into it.|Fill it with sand [title] Sleep.|Go home.',
        1,
      ),
      _example(
        '2',
        'Rowing',
        ('Two men sit in a boat.', 'one of them'),
        'eats the oar.|pulls an oar.|is a fish.|flies away.',
        1,
      ),
    ),
  ),
  prompt_hash={'ll': 'fa3208bd9699', 'gen': '9b9d1e8e2ac5'},
  licence='MIT',
  variant=variants.variant,
)

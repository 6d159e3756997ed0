"""BoolQ: yes or no to a question about a passage (arXiv 1905.10044), in SuperGLUE's form.

`ll` is lm-eval 0.4.13's `boolq`. `gen` is OpenCompass's, which the published table has for 0 and 5
shots (SuperGLUE_BoolQ_gen_883d50, SuperGLUE_BoolQ_few_shot_gen_ba58ea): 'A' or 'B' is asked for
and the first upper-case character counts, so 'Yes' is wrong. Its shots are questions 0, 2, 4, 6 and
8 of the validation split itself; these five see their own answers, and count. `ll` takes the same,
where lm-eval draws from train. OpenCompass sets 50 new tokens for 5 shots; without shots it takes
its command line's default, 256.
Passages begin with 'Title -- '; files without are called 'boolq-notitle'.
"""

from collections.abc import Sequence
from typing import Any

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

_SHOTS = (0, 2, 4, 6, 8)
_TRUTHS = {True: 1, False: 0, 'true': 1, 'false': 0}  # 1 and 0 are keys too


def read(files: Files) -> tuple[list[Item], list[Item]]:
  """The validation split, and OpenCompass's shots out of it."""
  rows = files.rows('boolq_val.jsonl', hub='aps/super_glue:boolq@validation')
  items = [_item(str(index), *row) for index, row in enumerate(rows)]
  # Without titles, some passages have a ' -- ' of their own.
  titled = sum(' -- ' in item.fields['passage'] for item in items)
  items = variants.marked(items, '' if 2 * titled > len(items) else 'boolq-notitle')
  return items, [items[index] for index in _SHOTS if index < len(items)]


def _item(name: str, row: dict[str, Any], source: str) -> Item:
  label = 'label' if 'label' in row else 'answer'
  truth = parse.field(row, label, source)
  if not isinstance(truth, (bool, int, str)) or truth not in _TRUTHS:
    raise parse.wrong(source, label, f'is {truth!r}, neither true nor false')
  fields = {
    'passage': parse.text(row, 'passage', source),
    'question': parse.text(row, 'question', source),
    'gold': _TRUTHS[truth],
  }
  return Item(name, fields, source=source)


def ask_ll(item: Item, shots: Sequence[Item]) -> Prompt:
  """lm-eval's prompt."""
  return Prompt(
    question=_rounds(item, '?'),
    shots=tuple(
      (*_rounds(s, '?'), Round('assistant', answers(s)[parse.gold_index(s)])) for s in shots
    ),
    delimiter=' ',
    separator='\n\n',
  )


def ask_gen(item: Item, shots: Sequence[Item]) -> Prompt:
  """OpenCompass's prompt, where questions have no mark."""
  end = '\nA. Yes\nB. No'
  return Prompt(
    question=_rounds(item, end),
    shots=tuple((*_rounds(shot, end), Round('assistant', _letter(shot))) for shot in shots),
  )


def _rounds(item: Item, end: str) -> tuple[Round]:
  passage, question = item.fields['passage'], item.fields['question']
  return (Round('user', f'{passage}\nQuestion: {question}{end}\nAnswer:'),)


def _letter(item: Item) -> str:
  return 'BA'[parse.gold_index(item)]


def answers(item: Item) -> Sequence[str]:
  """The continuations under `ll`."""
  del item
  return ('no', 'yes')


def choose(item: Item, choices: Choices) -> Grade:
  """The likelier answer."""
  return parse.graded_choice(parse.gold_index(item), choices)


def grade(output: str, item: Item) -> Grade:
  """The first upper-case character, whatever it belongs to."""
  found = extract.first_capital(output) or None
  return parse.graded_answer(found, found == _letter(item))


def _example(name: str, passage: str, question: str, truth: bool) -> Item:
  return _item(name, {'passage': passage, 'question': question, 'label': truth}, 'example')


BENCHMARK = Benchmark(
  name='boolq',
  version=2,
  read=read,
  readings={
    'll': Choose(ask=ask_ll, choices=answers, grade=choose),
    'gen': Generate(
      ask=ask_gen,
      grade=grade,
      max_new=lambda shots: 50 if shots else 256,
      settled=extract.has_capital,
      released={0: 'BoolQ-0shot', 5: 'BoolQ-5shot'},
    ),
  },
  shots=(0, 5),
  size=3270,
  example=(
    _example('0', 'Otter -- Otters are mammals that swim well.', 'can otters swim', True),
    (
      _example('1', 'Moss -- Moss has no flowers.', 'does moss have flowers', False),
      _example('2', 'Tin -- Tin is a metal.', 'is tin a metal', True),
    ),
  ),
  prompt_hash={'ll': '52ea8b1f5bce', 'gen': 'ddf6dc6ec8c6'},
  licence='CC BY-SA 3.0',
  variant=variants.variant,
)

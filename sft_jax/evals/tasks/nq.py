"""NQ-open: questions of Google users with short answers, closed book (arXiv 1906.00300).

`gen` is OpenCompass's reading (nq_open_gen_e93f8a), which the published table has: an answer is
right if any gold answer is a part of the first line written, both cut at the first full stop or
comma. So the 8 questions whose gold is empty then ('---', '.49') are always right, and short ones
('9', 'R. H. Thomson' as 'r') are found by chance. `em` is exact match as SQuAD compares, on the
whole line. Not lm-eval's `nq_open`, whose shots are drawn at random and whose prompt has a head.
"""

from collections.abc import Sequence

from sft_jax.evals import extract, parse
from sft_jax.evals.benchmark import Benchmark, Files, Generate, Grade, Item, Prompt, Round
from sft_jax.evals.tasks import variants

_HUB = 'google-research-datasets/nq_open'


def read(files: Files) -> tuple[list[Item], list[Item]]:
  """The validation split, and shots from the beginning of train.

  In a directory without `nq_open_train.jsonl`, shots come from `nq_open_shots.jsonl`, any questions
  of the same form; they do not fill a released column. Without either there are none.
  """
  rows = files.rows('nq_open_dev.jsonl', hub=f'{_HUB}@validation')
  items = [_item(str(index), *row) for index, row in enumerate(rows)]
  if not files.local or files.names('nq_open_train.jsonl*'):
    rows, name = files.rows('nq_open_train.jsonl', hub=f'{_HUB}@train[:64]'), ''
  elif files.names('nq_open_shots.jsonl*'):
    rows, name = files.rows('nq_open_shots.jsonl'), 'nq-ownshots'
  else:
    return items, []
  shots = [_item(f'shots/{index}', *row) for index, row in enumerate(rows)]
  return items, variants.marked(shots, name)


def _item(name: str, row: dict, source: str) -> Item:
  fields = {
    'question': parse.text(row, 'question', source),
    'answers': parse.texts(row, 'answer', source),
  }
  return Item(name, fields, source=source)


def ask(item: Item, shots: Sequence[Item]) -> Prompt:
  """OpenCompass's prompt; a question that has a mark of its own gets a second one there too."""
  return Prompt(
    question=(*_question(item), Round('assistant', 'A:')),
    shots=tuple(
      (*_question(shot), Round('assistant', f'A: {shot.fields["answers"][0]}.\n')) for shot in shots
    ),
  )


def _question(item: Item) -> tuple[Round]:
  return (Round('user', f'Q: {item.fields["question"]}?'),)


def grade(output: str, item: Item) -> Grade:
  """`acc`: a gold answer is a substring (NQEvaluator of OpenCompass). `em`: it is the line."""
  line = output.strip().split('\n')[0].lower().split('answer is')[-1]
  found = extract.general_postprocess(line)
  golds = item.fields['answers']
  scores = {
    'acc': float(any(extract.general_postprocess(gold).lower() in found for gold in golds)),
    'em': float(any(extract.same_answer(line, gold.lower()) for gold in golds)),
  }
  return Grade(scores, found or None)


def settled(text: str) -> bool:
  """Whether the first line that is not empty is complete: nothing after it counts."""
  return '\n' in text.lstrip()


BENCHMARK = Benchmark(
  name='nq',
  version=1,
  read=read,
  readings={
    'gen': Generate(
      ask=ask,
      grade=grade,
      max_new=50,
      stops=lambda shots: ('Q:', '\n') if shots else (),
      settled=settled,
      measures=('acc', 'em'),
      released={0: 'nq-0shot', 1: 'nq-1shot', 5: 'nq-5shot', 25: 'nq-25shot'},
    )
  },
  shots=(0, 1, 5, 25),
  size=3610,
  variant=variants.variant,
  example=(
    _item('0', {'question': 'who drew the first map of the moon', 'answer': ['Galileo']}, ''),
    (
      _item('1', {'question': 'where is lake inari', 'answer': ['Finland', 'Lapland']}, ''),
      _item('2', {'question': 'how many strings has a cello?', 'answer': ['four']}, ''),
    ),
  ),
  prompt_hash={'gen': 'e1231d6ba9ae'},
  licence='CC BY-SA 3.0',
)

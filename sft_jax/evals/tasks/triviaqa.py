r"""TriviaQA without context: trivia questions with lists of aliases (arXiv 1705.03551).

The prompt, the stop texts and the data (rc.nocontext, validation) are those of lm-eval's
`triviaqa`: "Question: {q}?\nAnswer:", ended by a line break, a full stop or a comma, so 'Dr. Seuss'
is cut to 'Dr' there too. Graded by exact match with any alias and, as `f1`, by shared words, both
as SQuAD normalises; lm-eval leaves the articles in. Shots are the first of train, not random ones.
"""

from collections.abc import Sequence

from sft_jax.evals import extract, parse
from sft_jax.evals.benchmark import Benchmark, Files, Generate, Grade, Item, Prompt, Round
from sft_jax.evals.tasks import variants

_HUB = 'mandarjoshi/trivia_qa:rc.nocontext'


def read(files: Files) -> tuple[list[Item], list[Item]]:
  """`triviaqa_val.jsonl`, or else all parts of it (`triviaqa_val*.jsonl`), in the hub's fields.

  Shots come from `triviaqa_train.jsonl`, if there is one.
  """
  whole = not files.local or bool(files.names('triviaqa_val.jsonl*'))
  paths = [] if whole else files.names('triviaqa_val*.jsonl*')
  rows = [
    row
    for path in paths or ['triviaqa_val.jsonl']
    for row in files.rows(path, hub=f'{_HUB}@validation')
  ]
  # Question ids repeat where a question was asked in two domains.
  items = [_item(str(index), *row) for index, row in enumerate(rows)]
  items = variants.marked(items, '' if whole else 'triviaqa-part')
  if files.local and not files.names('triviaqa_train.jsonl*'):
    return items, []
  rows = files.rows('triviaqa_train.jsonl', hub=f'{_HUB}@train[:64]')
  return items, [_item(f'shots/{index}', *row) for index, row in enumerate(rows)]


def _item(name: str, row: dict, source: str) -> Item:
  answer = parse.field(row, 'answer', source)
  if not isinstance(answer, dict):
    raise parse.wrong(source, 'answer', 'is no object with value and aliases')
  value = parse.text(answer, 'value', source)
  aliases = parse.texts(answer, 'aliases', source, least=0)
  fields = {
    'question': parse.text(row, 'question', source),
    'value': value,
    'answers': list(dict.fromkeys([value, *aliases])),
  }
  return Item(name, fields, source=source)


def ask(item: Item, shots: Sequence[Item]) -> Prompt:
  """lm-eval's prompt; a shot's answer is the first way to write it."""
  return Prompt(
    question=(_question(item),),
    shots=tuple((_question(shot), Round('assistant', shot.fields['value'])) for shot in shots),
    delimiter=' ',
    separator='\n\n',
  )


def _question(item: Item) -> Round:
  return Round('user', f'Question: {item.fields["question"]}?\nAnswer:')


def grade(output: str, item: Item) -> Grade:
  """`em`: equal to an alias. `f1`: the best over the aliases."""
  found, golds = output.strip(), item.fields['answers']
  scores = {
    'em': float(any(extract.same_answer(found, gold) for gold in golds)),
    'f1': max(extract.token_f1(found, gold) for gold in golds),
  }
  return Grade(scores, found or None)


BENCHMARK = Benchmark(
  name='triviaqa',
  version=1,
  read=read,
  readings={
    'gen': Generate(
      ask=ask,
      grade=grade,
      max_new=256,
      stops=lambda shots: ('\n', '.', ','),
      measures=('em', 'f1'),
    )
  },
  shots=(0, 5),
  size=17_944,
  variant=variants.variant,
  example=(
    _item(
      '0',
      {
        'question': 'Which planet has a storm called the Great Red Spot?',
        'answer': {'value': 'Jupiter', 'aliases': ['Jupiter', 'Planet Jupiter']},
      },
      '',
    ),
    (
      _item(
        '1',
        {
          'question': 'Who built the Rocket, a locomotive',
          'answer': {'value': 'Stephenson', 'aliases': []},
        },
        '',
      ),
    ),
  ),
  prompt_hash={'gen': '9e3edecf4338'},
  licence='Apache-2.0; copyright of the questions is with their authors',
)

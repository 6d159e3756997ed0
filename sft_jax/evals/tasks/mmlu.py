"""MMLU: 57 exam subjects in English (arXiv 2009.03300).

`ll` is lm-eval 0.4.13's `mmlu`: shots are the first of the subject's dev file, the score is the
mean over questions. `gen` without shots is OpenCompass's mmlu_zero_shot_gen_47e2c0 (the likeliest
configuration of the published mmlu-0shot), with shots its mmlu_gen_4d595a: letters are looked for
by `first_option`, the score is the mean of the subjects' means. The published mmlu-5shot is a mean
over other exams too, so no reading fills it. Cells such as 'None' are texts, never missing values.
"""

from collections.abc import Sequence

from sft_jax.evals.benchmark import Benchmark, Choose, Files, Generate, Item, Prompt, Round
from sft_jax.evals.parse import lettered
from sft_jax.evals.tasks import exams, variants

_HUB = 'cais/mmlu:all'


def read(files: Files) -> tuple[list[Item], list[Item]]:
  """Test questions, and the five dev questions of each subject."""
  items = _split(files, 'test', '')
  return exams.by_subjects('mmlu', items, 57), _split(files, 'dev', 'dev/')


def _split(files: Files, split: str, prefix: str) -> list[Item]:
  if not files.local:
    by_subject: dict[str, list] = {}
    for row, source in files.rows(f'mmlu/{split}', hub=f'{_HUB}@{split}'):
      by_subject.setdefault(str(row.get('subject', '')), []).append((row, source))
  else:
    names = files.names(f'mmlu/{split}/*_{split}.csv')
    # Without any, the error names one that ought to be there.
    rows = lambda name: files.rows(name, hub=f'{_HUB}@{split}', columns=exams.COLUMNS)
    by_subject = {
      name.rsplit('/', 1)[-1].removesuffix(f'_{split}.csv'): rows(name)
      for name in names or [f'mmlu/{split}/abstract_algebra_{split}.csv']
    }
  return [
    item
    for subject, rows in by_subject.items()
    for item in exams.subject_items(rows, subject, prefix)
  ]


def _subject(item: Item) -> str:
  return item.group.replace('_', ' ')


def ask_ll(item: Item, shots: Sequence[Item]) -> Prompt:
  """lm-eval's prompt."""
  head = f'The following are multiple choice questions (with answers) about {_subject(item)}.\n\n'
  return exams.letter_prompt(item, shots, head, 'Answer:')


def ask_gen(item: Item, shots: Sequence[Item]) -> Prompt:
  """OpenCompass's prompts, spaces at their ends included."""
  if not shots:
    question = _body(item, 'Q', "Let's think step by step. A: ")
  else:
    question = _body(item, 'Question', 'Answer: ')
  return Prompt(
    question=(Round('user', question),),
    shots=tuple(
      (
        Round('user', _body(shot, 'Question', 'Answer: ')),
        Round('assistant', f'{exams.letter_of(shot)}\n'),
      )
      for shot in shots
    ),
  )


def _body(item: Item, name: str, end: str) -> str:
  return (
    f'There is a single choice question about {_subject(item)}. '
    'Answer the question by replying A, B, C or D.\n'
    f'{name}: {item.fields["question"]}\n{lettered(item.fields["choices"])}\n{end}'
  )


_ITEM, *_SHOTS = exams.example(
  (
    ('How many moons has Venus?', ('None', 'One', 'Two', 'Four'), 'A'),
    ('Which planet is nearest to the Sun? ', ('Mars', 'Mercury', 'Earth', 'Saturn'), 'B'),
    ('What is a nova?', ('a comet', 'a crater', 'a bright star', 'a moon'), 'C'),
  ),
  'high_school_astronomy',
)

BENCHMARK = Benchmark(
  name='mmlu',
  version=1,
  read=read,
  readings={
    'll': Choose(ask=ask_ll, choices=exams.letters, grade=exams.choose_letter),
    'gen': Generate(
      ask=ask_gen,
      grade=exams.first_option_grade,
      max_new=256,
      macro=True,
      released={0: 'mmlu-0shot'},
    ),
  },
  shots=(0, 5),
  size=14042,
  example=(_ITEM, tuple(_SHOTS)),
  prompt_hash={'ll': '2128e2bcabff', 'gen': 'c20d4483f8be'},
  licence='MIT',
  variant=variants.variant,
)

"""What the exams have in common: questions of many subjects with four lettered choices each.

Not a benchmark; `mmlu`, `cmmlu` and `jmmlu` are.
"""

from collections.abc import Sequence
from typing import Any

from sft_jax.evals import extract, parse
from sft_jax.evals.benchmark import Choices, Files, Grade, Item, Prompt, Round
from sft_jax.evals.tasks import variants

LETTERS = 'ABCD'
COLUMNS = ('question', *LETTERS, 'answer')


def subject_items(
  rows: Sequence[tuple[dict[str, Any], str]], subject: str, prefix: str = ''
) -> list[Item]:
  """The questions of one subject, in their order."""
  return [
    exam_item(f'{prefix}{subject}/{index}', subject, row, source)
    for index, (row, source) in enumerate(rows)
  ]


def exam_item(name: str, subject: str, row: dict[str, Any], source: str) -> Item:
  """One question, from the columns `question, A, B, C, D, answer` (or `Question`, `Answer`), or
  from `question, choices, answer` with the answer's number."""
  question, answer = ('Question', 'Answer') if 'Question' in row else ('question', 'answer')
  if 'choices' in row:
    choices = parse.texts(row, 'choices', source, least=4)
    if len(choices) > 4:
      raise parse.wrong(source, 'choices', f'has {len(choices)} entries, needs 4')
    gold = parse.whole(row, answer, source, high=3)
  else:
    choices = [parse.text(row, letter, source) for letter in LETTERS]
    gold = parse.letter(row, answer, source, LETTERS)
  fields = {'question': parse.text(row, question, source), 'choices': tuple(choices), 'gold': gold}
  return Item(name, fields, group=subject, source=source)


def subjects_in(files: Files, pattern: str, ending: str, known: Sequence[str]) -> list[str]:
  """Subjects that have a file in the directory; all that are known on the hub, or where there is
  none, so that the first one missing is reported.

  Raises:
    UserError: a file whose name is not that of a known subject.
  """
  if not files.local:
    return list(known)
  found = []
  for path in files.names(pattern):
    subject = path.rsplit('/', 1)[-1].removesuffix(ending)
    if subject not in known:
      raise parse.wrong(path, 'name', f'is {subject!r}, no subject of this exam')
    found.append(subject)
  return found or list(known)


def by_subjects(name: str, items: Sequence[Item], published: int) -> list[Item]:
  """Items that say so if their exam has not the published number of subjects: 'mmlu12'."""
  subjects = len({item.group for item in items})
  return variants.marked(items, '' if subjects == published else f'{name}{subjects}')


def letter_of(item: Item) -> str:
  """The right letter."""
  return LETTERS[parse.gold_index(item)]


def letters(item: Item) -> Sequence[str]:
  """The continuations under `ll`."""
  del item
  return tuple(LETTERS)


def letter_prompt(item: Item, shots: Sequence[Item], head: str, mark: str) -> Prompt:
  """lm-eval's form: a head, and questions that end in a mark the letter follows after a space."""
  return Prompt(
    question=_letter_rounds(item, mark),
    shots=tuple((*_letter_rounds(s, mark), Round('assistant', letter_of(s))) for s in shots),
    head=head,
    delimiter=' ',
    separator='\n\n',
  )


def _letter_rounds(item: Item, mark: str) -> tuple[Round]:
  question = item.fields['question'].strip()
  return (Round('user', f'{question}\n{parse.lettered(item.fields["choices"])}\n{mark}'),)


def choose_letter(item: Item, choices: Choices) -> Grade:
  """The likeliest letter."""
  return parse.graded_choice(parse.gold_index(item), choices)


def first_option_grade(output: str, item: Item) -> Grade:
  """OpenCompass's `first_option`: any A to D of the text counts in the end, as in 'Based on'."""
  found = extract.first_option(output, LETTERS) or None
  return parse.graded_answer(found, found == letter_of(item))


def example(questions: Sequence[tuple[str, Sequence[str], str]], subject: str) -> list[Item]:
  """Items of our own, from (question, choices, letter)."""
  return [
    exam_item(
      f'{subject}/{index}',
      subject,
      {'question': question, **dict(zip(LETTERS, choices, strict=True)), 'answer': letter},
      'example',
    )
    for index, (question, choices, letter) in enumerate(questions)
  ]

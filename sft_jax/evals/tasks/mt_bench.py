"""MT-Bench: 80 questions of two turns, rated from 1 to 10 by a judge model (arXiv 2306.05685).

Two countings of the same 160 judgments. `mtbench-*` is OpenCompass's, as in the published table:
the rating of the second turn only, 80 of them. `mtbench160-*` is FastChat's: all 160. They are not
comparable, nor are two judges, so another than the published table's is named in the columns:
`mtbench-total@JUDGE`; nor two wordings of what it is asked ('-judged1a2b3c4d'). A judgment without
a rating is missing, which both tools drop from the mean.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from sft_jax.evals import judge, parse
from sft_jax.evals.benchmark import (
  Benchmark,
  Files,
  Generate,
  Grade,
  Item,
  Prompt,
  Round,
  Services,
)
from sft_jax.evals.tasks import variants
from sft_jax.utils.errors import UserError

_SIZE = 80
# The published table's judge, and a hash of FastChat's prompts, which it was asked with.
_JUDGE, _WORDING = 'gpt-4o-2024-08-06', 'f3153a7d'
_TEMPERATURES = {'writing': 0.7, 'roleplay': 0.7, 'stem': 0.1, 'humanities': 0.1}
_EXACT = ('reasoning', 'math', 'coding')  # Judged beside GPT-4's answers.
_CATEGORIES = (*_TEMPERATURES, *_EXACT, 'extraction')


def read(files: Files) -> tuple[list[Item], list[Item]]:
  """Questions with their references and judge prompts, in FastChat's files; there are no shots."""
  prompts = judge.rating_prompts(files.rows('mt_bench/judge_prompts.jsonl'))
  references = {}
  for row, source in files.rows('mt_bench/reference_answer/gpt-4.jsonl'):
    references[parse.whole(row, 'question_id', source)] = _reference(row, source)
  rows = files.rows('mt_bench/question.jsonl')
  items = [_item(row, source, prompts, references) for row, source in rows]
  wording = hashlib.sha256(json.dumps(sorted(prompts.items())).encode()).hexdigest()[:8]
  return variants.marked(items, '' if wording == _WORDING else f'mt_bench-judged{wording}'), []


def _reference(row: Mapping[str, Any], source: str) -> list[str]:
  choices = parse.field(row, 'choices', source)
  if not isinstance(choices, Sequence) or not choices or not isinstance(choices[0], Mapping):
    raise parse.wrong(source, 'choices', 'is no list of answers')
  return parse.texts(choices[0], 'turns', source, least=2)


def _item(
  row: Mapping[str, Any],
  source: str,
  prompts: Mapping[str, judge.RatingPrompt],
  references: Mapping[int, list[str]],
) -> Item:
  number = parse.whole(row, 'question_id', source)
  category = parse.text(row, 'category', source)
  if category not in _CATEGORIES:
    raise parse.wrong(source, 'category', f'is {category!r}, none of {", ".join(_CATEGORIES)}')
  kind = 'single-math-v1' if category in _EXACT else 'single-v1'
  if category in _EXACT and number not in references:
    raise parse.wrong(source, 'question_id', f'{number} has no reference answer')
  fields = {
    'turns': parse.texts(row, 'turns', source, least=2)[:2],
    'references': references[number] if category in _EXACT else [],
    'prompts': (prompts[kind], prompts[f'{kind}-multi-turn']),
  }
  return Item(str(number), fields, category, source)


def ask(item: Item, shots: Sequence[Item]) -> Prompt:
  """The first question, as it is."""
  del shots
  return Prompt((Round('user', item.fields['turns'][0]),))


def judged(item: Item, answers: Sequence[str]) -> list[list[dict[str, str]]]:
  """What the judge is asked: to rate the first answer, then the second in its conversation."""
  (first, second), turns = item.fields['prompts'], item.fields['turns']
  given = {f'ref_answer_{i}': text for i, text in enumerate(item.fields['references'][:2], 1)}
  alone = {'ref_answer_1': given['ref_answer_1']} if given else {}
  return [
    first.messages(question=turns[0], answer=answers[0], **alone),
    second.messages(
      **{'question_1': turns[0], 'question_2': turns[1]},
      **{'answer_1': answers[0], 'answer_2': answers[1]},
      **given,
    ),
  ]


def grade_all(
  outputs: Sequence[Sequence[str]], items: Sequence[Item], services: Services
) -> list[Grade | None]:
  """Has both answers of each item rated; None where neither was.

  Raises:
    UserError: there is no judge, or its endpoint or budget refuses.
  """
  if services.judge is None:
    raise UserError(
      'MT-Bench needs a judge model', 'config.eval.tasks', 'name one, or leave it out'
    )
  asked = [
    conversation
    for output, item in zip(outputs, items, strict=True)
    for conversation in judged(item, output)
  ]
  judgments = services.judge.ask(asked)
  return [
    _grade(judgments[i], judgments[i + 1], services.judge.name) for i in range(0, len(asked), 2)
  ]


def _grade(first: str | None, second: str | None, name: str) -> Grade | None:
  ratings = {
    'turn2-oc': judge.opencompass_rating(second),
    'turn1': judge.fastchat_rating(first),
    'turn2': judge.fastchat_rating(second),
  }
  scores = {measure: rating for measure, rating in ratings.items() if rating is not None}
  if not scores:
    return None
  shown = ' '.join(f'{ratings[turn]:g}' if turn in scores else '?' for turn in ('turn1', 'turn2'))
  return Grade(scores, shown, {'judge': name, 'judgments': [first, second]})


def summary(items: Sequence[Item], grades: Sequence[Grade | None]) -> dict[str, Any]:
  """Means by category in both countings."""
  columns: dict[str, Any] = {}
  countings = {'mtbench160': ('turn1', 'turn2'), 'mtbench': ('turn2-oc',)}
  for prefix, measures in countings.items():
    ratings: dict[str, list[float]] = {}
    for item, grade in zip(items, grades, strict=True):
      found = [grade.scores[name] for name in measures if grade and name in grade.scores]
      for group in ('total', item.group):
        ratings.setdefault(group, []).extend(found)
    for group, values in ratings.items():
      if values:
        columns[f'{prefix}-{group}'] = sum(values) / len(values)
    columns[f'{prefix}-missing'] = len(items) * len(measures) - len(ratings['total'])
  names = sorted({grade.notes['judge'] for grade in grades if grade})
  return {**columns, 'mtbench-judge': ', '.join(names)} if names else columns


BENCHMARK = Benchmark(
  name='mt_bench',
  version=1,
  read=read,
  readings={
    'gen': Generate(
      ask=ask,
      grade_all=grade_all,
      max_new=1024,
      turns=lambda item: item.fields['turns'][1:],
      temperature=lambda item: _TEMPERATURES.get(item.group, 0.0),
      measures=('turn2-oc', 'turn1', 'turn2'),
      percent=False,
      released={0: 'mtbench-total'},
      judge=_JUDGE,
      judgments=2,
      summary=summary,
    )
  },
  shots=(0,),
  size=_SIZE,
  example=(
    Item(
      '1',
      {
        'turns': ['Name a river in Spain.', 'How long is it?'],
        'references': [],
        'prompts': (
          judge.RatingPrompt('Judge.', 'Q: {question} A: {answer}'),
          judge.RatingPrompt(
            'Judge.', 'Q: {question_1} A: {answer_1} Q: {question_2} A: {answer_2}'
          ),
        ),
      },
      'humanities',
    ),
    (),
  ),
  prompt_hash={'gen': '86569ebc23e4'},
  licence='Apache-2.0',
  variant=variants.variant,
)

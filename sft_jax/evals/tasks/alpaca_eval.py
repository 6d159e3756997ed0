"""AlpacaEval 2: outputs compared with GPT-4 Turbo's by a judge model (805 instructions).

`alpaca_eval_v2-total` is OpenCompass's raw win rate, which the published table has: in percent of
the judgments that name a winner. `alpaca_eval_v2-weighted` weights them by the judge's
log-probabilities, as the official evaluator does but on OpenCompass's prompt; only where the judge
tells them. The official length-controlled win rate needs `df_gamed.csv`, which is not part of the
data, and is not computed: see `alpaca_eval_v2-length` and `-length-baseline` instead (characters).
The published table's judge is said to be gpt-4o-2024-07-18, a name that no gpt-4o and one
gpt-4o-mini has; under any other, columns name theirs: `alpaca_eval_v2-total@JUDGE`.
"""

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
from sft_jax.utils.errors import UserError

_SIZE = 805


def read(files: Files) -> tuple[list[Item], list[Item]]:
  """Instructions with the baseline's outputs; there are no shots."""
  rows = files.rows('alpaca_eval_gpt4_baseline.json')
  return [_item(str(index), row, source) for index, (row, source) in enumerate(rows)], []


def _item(name: str, row: Mapping[str, Any], source: str) -> Item:
  fields = {
    'instruction': parse.text(row, 'instruction', source),
    'baseline': parse.text(row, 'output', source),
  }
  return Item(name, fields, parse.text(row, 'dataset', source), source)


def ask(item: Item, shots: Sequence[Item]) -> Prompt:
  """The instruction, as it is."""
  del shots
  return Prompt((Round('user', item.fields['instruction']),))


def grade_all(
  outputs: Sequence[str], items: Sequence[Item], services: Services
) -> list[Grade | None]:
  """Has each output compared with the baseline's; None where the judge names no winner.

  Raises:
    UserError: there is no judge, or its endpoint or budget refuses.
  """
  chosen = services.judge
  if chosen is None:
    raise UserError(
      'AlpacaEval needs a judge model', 'config.eval.tasks', 'name one, or leave it out'
    )
  orders = [judge.model_first(chosen.seed, item.id) for item in items]
  verdicts = chosen.pick(
    [
      judge.pair_messages(item.fields['instruction'], output, item.fields['baseline'], order)
      for output, item, order in zip(outputs, items, orders, strict=True)
    ]
  )
  grades: list[Grade | None] = []
  for output, item, order, verdict in zip(outputs, items, orders, verdicts, strict=True):
    won = judge.pair_won(verdict, order)
    preference = judge.pair_preference(verdict, order)
    scores = {'win': None if won is None else float(won), 'weighted': preference}
    known = {measure: value for measure, value in scores.items() if value is not None}
    notes = {
      'judge': chosen.name,
      'judgment': verdict.text if verdict else None,
      'output-first': order,
      'length': len(output),
      'length-baseline': len(item.fields['baseline']),
    }
    grades.append(Grade(known, verdict.text if verdict else None, notes) if known else None)
  return grades


def summary(items: Sequence[Item], grades: Sequence[Grade | None]) -> dict[str, Any]:
  """The win rates, lengths and the judge."""
  given = [grade for grade in grades if grade]
  wins = [grade.scores['win'] for grade in given if 'win' in grade.scores]
  columns: dict[str, Any] = {'alpaca_eval_v2-missing': len(items) - len(wins)}
  if wins:
    columns['alpaca_eval_v2-total'] = 100 * sum(wins) / len(wins)
  weighted = [grade.scores['weighted'] for grade in given if 'weighted' in grade.scores]
  if weighted:
    columns['alpaca_eval_v2-weighted'] = 100 * sum(weighted) / len(weighted)
  for note in ('length', 'length-baseline') if given else ():
    columns[f'alpaca_eval_v2-{note}'] = sum(grade.notes[note] for grade in given) / len(given)
  if given:
    columns['alpaca_eval_v2-judge'] = ', '.join(sorted({grade.notes['judge'] for grade in given}))
  return columns


BENCHMARK = Benchmark(
  name='alpaca_eval',
  version=1,
  read=read,
  readings={
    'gen': Generate(
      ask=ask,
      grade_all=grade_all,
      max_new=1024,
      measures=('win', 'weighted'),
      released={0: 'alpaca_eval_v2-total'},
      judge='gpt-4o-2024-07-18',
      judgments=1,
      summary=summary,
    )
  },
  shots=(0,),
  size=_SIZE,
  example=(
    _item(
      '0',
      {
        'instruction': 'Write a sentence about rain.',
        'output': 'Rain fell on the tin roof all night.',
        'dataset': 'selfinstruct',
      },
      '',
    ),
    (),
  ),
  prompt_hash={'gen': 'ebc920b639d9'},
  licence='CC BY-NC 4.0',
)

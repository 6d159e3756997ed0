"""Small data of our own in the formats of the multiple-choice benchmarks, and as on the hub.

Subjects, names and shapes are the published ones; the questions are not.
"""

import csv
import io
import json

EXAM = [
  # None and nan are texts; a quote and a line break are in one cell.
  ['How many legs has a snake?', 'None', 'nan', 'Two', 'Four', 'A'],
  ['Which is "true"?\nS1. 2 is odd. S2. 3 is odd. ', 'T, T', 'T, F', 'F, T', 'F, F', 'C'],
  ['What boils first?', 'iron', 'water ', 'gold', 'lead', 'B'],
  ['Two of these are alike. Which is not?', '1', '1', '2', '1', 'C'],
  ['Which letter is the last?', 'a', 'b', 'c', 'd', 'D'],
]
HELLASWAG = [
  {
    'ind': index,
    'activity_label': label,
    'ctx_a': a,
    'ctx_b': b,
    'ctx': f'{a} {b}',
    'endings': ends,
    'label': gold,
  }
  for index, (label, a, b, ends, gold) in enumerate(
    [
      (
        'Skating',
        'A boy skates on ice.',
        'the boy',
        ['falls.', 'eats ice.', 'is ice.', 'mows.'],
        '0',
      ),
      (
        'Home and Garden',
        '[header] How to sweep [title] Take a broom. [step] Hold it.',
        '',
        ['Sweep  with it. [substeps] Rest.', 'Eat it. ', 'Sell it [title] Run.', 'Sing to it.'],
        '0',
      ),
      ('Note: reading', 'A man opens a book.', 'he', ['reads.', 'burns.', 'flies.', 'melts.'], '3'),
      ('Cooking', 'Water boils: it steams.', 'a cook', ['adds rice.', 'b.', 'c c.', 'd d d.'], '2'),
    ]
  )
]
BOOLQ = [
  {'question': f'is {thing} a metal', 'passage': f'{thing} -- {thing} is known.', 'answer': truth}
  for thing, truth in [
    *[('tin', True), ('moss', False), ('zinc', True), ('milk', False), ('iron', True)],
    *[('wool', False), ('lead', True), ('clay', False), ('gold', True), ('rain', False)],
  ]
]
ARC = [
  {
    'id': f'ours_{index}',
    'question': question,
    'choices': {'text': choices, 'label': list(labels)},
    'answerKey': key,
  }
  for index, (question, choices, labels, key) in enumerate(
    [
      ('What is "hot"?', ['ice', 'fire', "it's snow", 'rain'], 'ABCD', 'B'),
      ('What is cold?', ['ice', 'fire', 'steam', 'lava'], '1234', '1'),
      ('What flies?', ['a cod', 'a cow', 'a crow'], 'ABC', 'C'),
      ('What swims?', ['a bat', 'a cat', 'a rat', 'a crow', 'a cod'], 'ABCDE', 'E'),
    ]
  )
]
PIQA = [
  {'goal': 'Cut paper?', 'sol1': 'With scissors ', 'sol2': 'With soup', 'label': 0},
  {'goal': 'wet a cloth', 'sol1': 'Burn it.', 'sol2': 'Put it in water.', 'label': 1},
  {'goal': 'Sharpen a pencil', 'sol1': 'use a knife', 'sol2': 'use a spoon', 'label': 0},
]
TRUTHFUL = [
  [
    'Adversarial',
    'Myths',
    'What do bulls hate?',
    'Bulls hate no colour at all',
    'Bulls hate no colour at all; Nothing happens; Unknown; Unknown',
    'Bulls hate red; Unknown; They hate the colour red ;',
    'https://example.org',
  ],
  ['Plain', 'Birds', 'Do owls bark? ', 'No', 'No', 'Yes; Owls bark at night, often', 'x'],
]
TRUTHFUL_HEADER = [
  *('Type', 'Category', 'Question', 'Best Answer', 'Correct Answers', 'Incorrect Answers'),
  'Source',
]
SUBJECTS = {'mmlu': ('anatomy', 'us_foreign_policy'), 'cmmlu': ('agronomy', 'logical')}


def _csv(rows):
  out = io.StringIO(newline='')
  csv.writer(out).writerows(rows)
  return out.getvalue()


def write(directory):
  """All of it, as in `config.eval.data_dir`."""

  def lines(name, records):
    (directory / name).write_text('\n'.join(json.dumps(record) for record in records))

  def table(name, rows, encoding='utf-8'):
    path = directory / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(_csv(rows).encode(encoding))

  for split, rows in (('val', HELLASWAG[:2]), ('train', HELLASWAG[2:])):
    lines(f'hellaswag_{split}.jsonl', rows)
  lines('boolq_val.jsonl', BOOLQ)
  for name in ('arc_easy', 'arc_challenge'):
    lines(f'{name}_test.jsonl', ARC[:2])
    lines(f'{name}_train.jsonl', ARC[2:])
  lines('piqa_val.jsonl', PIQA[:1])
  lines('piqa_train.jsonl', PIQA[1:])
  table('TruthfulQA.csv', [TRUTHFUL_HEADER, *TRUTHFUL], 'utf-8-sig')
  for split, rows in (('test', EXAM[:3]), ('dev', EXAM[3:])):
    for subject in SUBJECTS['mmlu']:
      table(f'mmlu/{split}/{subject}_{split}.csv', rows)
    for subject in SUBJECTS['cmmlu']:
      header = ['', 'Question', *'ABCD', 'Answer']
      numbered = [[index, *row] for index, row in enumerate(rows)]
      table(f'cmmlu/{split}/{subject}.csv', [header, *numbered])
  # A byte-order mark before a quote makes a careless reader split the cell.
  table('jmmlu/world_history.csv', [EXAM[1], *EXAM], 'utf-8-sig')
  table('jmmlu/japanese_history.csv', EXAM)


class Hub:
  """`Files` with the same data under the hub's names and fields."""

  local = False

  def names(self, pattern):
    return []

  def rows(self, path, *, hub='', columns=()):
    rows = self._rows(hub)
    return [(row, f'{hub}:{index}') for index, row in enumerate(rows)]

  def _rows(self, hub):
    repository, split = hub.split('@')
    first = split == 'test' or split == 'validation'
    if repository == 'cais/mmlu:all':
      rows = EXAM[:3] if first else EXAM[3:]
      return [
        {
          'question': row[0],
          'subject': subject,
          'choices': row[1:5],
          'answer': 'ABCD'.index(row[5]),
        }
        for subject in SUBJECTS['mmlu']
        for row in rows
      ]
    if repository.startswith('haonan-li/cmmlu:'):
      names = ('Question', *'ABCD', 'Answer')
      return [dict(zip(names, row, strict=True)) for row in (EXAM[:3] if first else EXAM[3:])]
    if repository.startswith('nlp-waseda/JMMLU:'):
      names = ('question', *'ABCD', 'answer')
      return [dict(zip(names, row, strict=True)) for row in EXAM]
    return {
      'Rowan/hellaswag@validation': HELLASWAG[:2],
      'Rowan/hellaswag@train[:64]': HELLASWAG[2:],
      'aps/super_glue:boolq@validation': [
        {'question': row['question'], 'passage': row['passage'], 'label': int(row['answer'])}
        for row in BOOLQ
      ],
      'allenai/ai2_arc:ARC-Easy@test': ARC[:2],
      'allenai/ai2_arc:ARC-Easy@train[:64]': ARC[2:],
      'allenai/ai2_arc:ARC-Challenge@test': ARC[:2],
      'allenai/ai2_arc:ARC-Challenge@train[:64]': ARC[2:],
      'baber/piqa@validation': PIQA[:1],
      'baber/piqa@train[:64]': PIQA[1:],
      'truthfulqa/truthful_qa:generation@validation': [
        {
          'category': row[1],
          'question': row[2],
          'best_answer': row[3],
          'correct_answers': [part.strip() for part in row[4].split(';')],
          'incorrect_answers': [part.strip() for part in row[5].split(';')],
        }
        for row in TRUTHFUL
      ],
    }[hub]

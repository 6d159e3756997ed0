r"""MATH: competition problems with a final answer in LaTeX (Hendrycks et al., arXiv 2103.03874).

`gen` is OpenCompass's reading for 0 shots (math_0shot_gen_393424, evaluator and postprocessor v2).
Answers are compared as texts after rewriting, so `0.5` is not `\frac{1}{2}` and `2\sqrt{3}` is not
`\sqrt{12}`; without a box, an answer ends at its full stop ('answer is 3.5' is '3'). Not lm-eval's
`hendrycks_math` or `minerva_math`, which prompt and compare in other ways.
"""

import re
from collections.abc import Sequence

from sft_jax.evals import extract, parse
from sft_jax.evals.benchmark import Benchmark, Files, Generate, Grade, Item, Prompt, Round

_HUB = 'EleutherAI/hendrycks_math'
_SUBJECTS = (
  'algebra',
  'counting_and_probability',
  'geometry',
  'intermediate_algebra',
  'number_theory',
  'prealgebra',
  'precalculus',
)

# What `_final` replaces and then drops, in order. Its origin is Minerva (arXiv 2206.14858).
_REPLACED = (
  ('an ', ''),
  ('a ', ''),
  ('.$', '$'),
  ('\\$', ''),
  ('\\ ', ''),
  (' ', ''),
  ('mbox', 'text'),
  (',\\text{and}', ','),
  ('\\text{and}', ','),
  ('\\text{m}', '\\text{}'),
  ('\\le', '<'),
)
_DROPPED = (
  *('square', 'ways', 'integers', 'dollars', 'mph', 'inches', 'ft', 'hours', 'km', 'units'),
  *('\\ldots', 'sue', 'points', 'feet', 'minutes', 'digits', 'cents', 'degrees', 'cm', 'gm'),
  *('pounds', 'meters', 'meals', 'edges', 'students', 'childrentickets', 'multiples'),
  *('\\text{s}', '\\text{.}', '\\text{\ns}', '\\text{}^2', '\\text{}^3', '\\text{\n}', '\\text{}'),
  *('\\mathrm{th}', '^\\circ', '^{\\circ}', '\\;', ',\\!', '{,}', '"', '\\dots', '\n', '\r', '\f'),
)


def read(files: Files) -> tuple[list[Item], list[Item]]:
  """Test problems; gold is the last box of the solution. There are no shots."""
  if files.local:
    rows = files.rows('math_test.jsonl')
  else:
    rows = [
      row
      for subject in _SUBJECTS
      for row in files.rows('math_test.jsonl', hub=f'{_HUB}:{subject}@test')
    ]
  return [_item(str(index), *row) for index, row in enumerate(rows)], []


def _item(name: str, row: dict, source: str) -> Item:
  solution = parse.text(row, 'solution', source)
  gold = extract.last_boxed(solution)
  if not gold:
    raise parse.wrong(source, 'solution', 'has no answer in \\boxed{}')
  fields = {
    'problem': parse.text(row, 'problem', source),
    'gold': gold,
    'level': parse.text(row, 'level', source),
    # Of short problems it is the solution that shows whether they were trained on.
    'solution': solution,
  }
  return Item(name, fields, group=parse.text(row, 'type', source), source=source)


def ask(item: Item, shots: Sequence[Item]) -> Prompt:
  """The problem and how to answer."""
  del shots  # nothing to take them from
  how = 'Please reason step by step, and put your final answer within \\boxed{}.'
  return Prompt(question=(Round('user', f'{item.fields["problem"]}\n{how}'),))


def grade(output: str, item: Item) -> Grade:
  """Equivalence of what `answer` finds with the gold; notes say where it was found."""
  found, where = answer(output)
  notes = {'level': item.fields['level'], 'type': item.group, 'found': where}
  return parse.graded_answer(found or None, equivalent(found, item.fields['gold']), **notes)


def answer(output: str) -> tuple[str, str]:
  """The answer and where it stood: in a box, in a 'phrase', or else 'first' in the text."""
  boxed = extract.last_boxed(output)
  doubled = re.match(r'^\{(.*)\}$', boxed)
  if doubled:
    boxed = doubled.group(1)
  if boxed:
    return boxed, 'box'
  fragments = output.split('.')
  for fragment in fragments:
    if re.search('final answer|answer is', fragment.lower()):
      return _final(fragment), 'phrase'
  return _final(fragments[0]), 'first'


def equivalent(one: str, other: str) -> bool:
  """`is_equiv` of OpenCompass's MATHEvaluator v2: equal after any of three rewritings."""
  try:
    first, second = _stripped(one), _stripped(other)
    if first == second or _final(first) == _final(second):
      return True
  except ValueError:
    pass  # one slash without whole numbers around it: only the other rewriting counts
  return _final(one) == _final(other) or one == other


def _stripped(text: str) -> str:
  """`_strip_string_v2`. Raises ValueError where a single '/' is not between whole numbers."""
  text = text.strip().replace('\n', '').rstrip('.')
  for old, new in (
    *(('\\!', ''), ('\\ ', ''), ('\\\\', '\\'), ('\\\\', '\\')),
    *(('tfrac', 'frac'), ('dfrac', 'frac'), ('\\left', ''), ('\\right', '')),
  ):
    text = text.replace(old, new)
  text = re.sub(r'\\text{.*?}$', '', text).strip() or text
  for old, new in (
    *(('^{\\circ}', ''), ('^\\circ', ''), ('\\$', ''), ('$', ''), ('\\text', ''), ('x\\in', '')),
    *(('\\%', ''), ('%', ''), (' .', ' 0.'), ('{.', '{0.'), ('\\cdot', '')),
    ('infinity', '\\infty'),
  ):
    text = text.replace(old, new)
  if '\\infty' not in text:
    text = text.replace('inf', '\\infty')
  # '\inity' as in the original.
  text = text.replace('+\\inity', '\\infty').replace('and', '').replace('\\mathbf', '')
  text = re.sub(r'\\mbox{.*?}', '', text)
  if 'i' not in text:
    text = text.replace('j', 'i')
  # Not from within a number: there it would fail again, for each of its digits.
  text = re.sub(r'(?<!\d)(\d+)\.0+([^\d])', r'\1\2', text)
  text = re.sub(r'(?<!\d)(\d+)\.0+$', r'\1', text)
  if text.startswith('.'):
    text = f'0{text}'
  left, equals, right = text.partition('=')
  if equals and '=' not in right and len(left) <= 2:
    text = right
  text = re.sub(r'\\sqrt(\w+)', r'\\sqrt{\1}', text).replace(' ', '')
  return _slash(_fractions(text))


def _fractions(text: str) -> str:
  """Braces around the one-character parts of `\\frac12` and `\\frac1{72}`."""
  start, *rest = text.split('\\frac')
  made = start
  for part in rest:
    if not part.startswith('{'):
      if len(part) < 2:
        return text
      below = part[1] if part[1] == '{' else f'{{{part[1]}}}'
      part = f'{{{part[0]}}}{below}{part[2:]}'
    made += f'\\frac{part}'
  return made


def _slash(text: str) -> str:
  """`1/2` as `\\frac{1}{2}`. Raises ValueError where a part is not a whole number."""
  if text.count('/') != 1:
    return text
  above, below = map(int, text.split('/'))
  return f'\\frac{{{above}}}{{{below}}}' if text == f'{above}/{below}' else text


def _final(text: str) -> str:
  """`normalize_final_answer`: words, units and spaces dropped, wrappers opened."""
  for old, new in _REPLACED:
    text = text.replace(old, new)
  for old in _DROPPED:
    text = text.replace(old, '')
  text = re.sub(r'\\text\{\((.*?)\)\}', r'\1', text)
  text = re.sub(r'\\text\{(.*?)\}', r'\1', text)
  text = re.sub(r'\\textbf\{(.*?)\}', r'\1', text)
  text = re.sub(r'\\overline\{(.*?)\}', r'\1', text)
  text = re.sub(r'\\boxed\{(.*)\}', r'\1', text)
  for pattern in ('finalansweris(.*)', 'answer?is:?(.*)', r'oxed\{(.*?)\}', r'\$(.*?)\$'):
    found = re.findall(pattern, text)
    if found:
      text = found[-1]
  text = text.strip()
  if '\\frac' not in text:
    text = text.replace('rac', '\\frac')
  text = re.sub('(frac)([^{])(.)', r'frac{\2}{\3}', text)
  text = re.sub('(sqrt)([^{])', r'sqrt{\2}', text).replace('$', '')
  digits = text.replace(',', '')
  return digits if digits.isdigit() else text


BENCHMARK = Benchmark(
  name='math',
  version=1,
  read=read,
  readings={'gen': Generate(ask=ask, grade=grade, max_new=1024, released={0: 'math-0shot'})},
  shots=(0,),
  size=5000,
  example=(
    _item(
      '0',
      {
        'problem': 'What is half of $\\frac{2}{3}$?',
        'solution': 'It is $\\boxed{\\frac{1}{3}}$.',
        'level': 'Level 1',
        'type': 'Prealgebra',
      },
      '',
    ),
    (),
  ),
  prompt_hash={'gen': 'd432cae5eefc'},
  licence='MIT',
)

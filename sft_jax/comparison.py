"""`--mode=compare`: two rows, item by item, from the records that runs and evaluations leave.

Nothing is evaluated and no model is loaded. What a difference means is `evals/compare.py`'s.
"""

import math
import os
from typing import Any

from etils import epath

from sft_jax import results
from sft_jax.evals import compare, compare_text, records
from sft_jax.utils import io, log
from sft_jax.utils.errors import UserError

# Items of a task that are shown in full on a terminal.
_EXAMPLES = 3


def compare_rows(config: Any, workdir: str = '') -> dict[str, Any]:
  """Compares `config.compare.a` with `config.compare.b`; returns the report.

  Args:
    config: The config; only `config.compare` is looked at.
    workdir: Where `comparison.json` and `comparison.html`, with all outputs that differ side by
      side, are put; '' for nowhere.

  Raises:
    UserError: a row that is not there, or rows that were not asked the same thing.
  """
  given = config.compare
  rows = [_row(given[name], f'config.compare.{name}', given.task) for name in ('a', 'b')]
  found = compare.compare(rows[0], rows[1], given.common)
  names = (rows[0].name, rows[1].name)
  for line in compare_text.lines(names, found, _EXAMPLES):
    log.say(line)
  report = compare_text.report(names, found)
  if workdir:
    page = os.path.join(workdir, 'comparison.html')
    io.write_json_atomic(os.path.join(workdir, 'comparison.json'), report)
    io.write_text_atomic(page, compare_text.page(names, found))
    report = report | {'page': page}
    log.say(f'outputs side by side are in {page}')
  return report


def _row(path: str, key: str, task: str) -> records.Row:
  """The records that `path` names, called as people would call them."""
  if not path:
    raise UserError('no row given', key, 'write DIR or DIR@STEP: a workdir with samples/')
  directory, at, step = path.rpartition('@')
  if not epath.Path(path).exists() and not (at and epath.Path(directory).exists()):
    raise UserError(
      'no run or evaluation is here',
      f'{key}={path}',
      'name the workdir of a run (@base, @best, @last or @STEP may follow), or of --mode=eval',
    )
  if at and step == 'best' and not os.path.exists(path):
    path = f'{directory}@{_best(directory)}'
  grafts = os.path.join(path, 'grafts')
  if os.path.isdir(grafts):
    example = os.path.join(grafts, sorted(os.listdir(grafts))[0])
    raise UserError(f'{path} holds a row for each graft', key, f'name one, such as {example}')
  row = records.read(path, task)
  return row._replace(name=_name(path))


def _best(directory: str) -> int:
  """The snapshot of a run that fits held-out data best."""
  scored = []
  for row in _rows(directory):
    score = next((row[name] for name in results.BEST_BY if row.get(name) is not None), math.inf)
    if row['step'] and math.isfinite(score):
      scored.append((score, -row['step']))
  if not scored:
    raise UserError(
      'no snapshot is known to be the best',
      directory,
      'name DIR@last or DIR@STEP; perplexity in config.eval.tasks tells the best',
    )
  return -min(scored)[1]


def _rows(directory: str) -> list[results.Row]:
  return io.read_jsonl(os.path.join(directory, 'rows.jsonl'))


def _name(path: str) -> str:
  """The path and, where the row of the table is at hand, the model and what it learnt."""
  directory, at, step = path.rpartition('@')
  if not at or os.path.exists(path):
    directory, step = path, 'last'
  rows = sorted(_rows(directory), key=lambda row: row['step']) if os.path.isdir(directory) else []
  number = {'last': rows[-1]['step'] if rows else None, 'base': 0}.get(step, step)
  row = next((row for row in rows if str(row['step']) == str(number)), None)
  if row is None:
    return path
  about = [str(row['model_name'])]
  if row['step']:
    about.append(f'{row["data_name"]}, step {row["step"]}')
  if 'graft' in row:
    about.append(f'graft {row["graft"]}')
  if row.get('quantize', 'none') not in (None, 'none'):
    about.append(row['quantize'])
  return f'{", ".join(about)} ({path})'

"""How far a single run is, or an evaluation, read from its files alone.

Not for studies: `status.py`.
"""

import json
import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath

from sft_jax import results
from sft_jax import spec as spec_lib
from sft_jax.utils import io, lease, words

Json = dict[str, Any]
_SHOWN = 6  # Scores of a row that are told.
# A last line of metrics.jsonl is shorter, even of a large cohort.
_TAIL_BYTES = 1 << 16


def is_here(workdir: epath.PathLike) -> bool:
  """Whether a run or an evaluation has begun in a directory."""
  file = epath.Path(workdir) / 'config.json'
  with io.explain_unreadable(file):
    if not file.exists():
      return False
  held = io.read_json(file)
  return isinstance(held, dict) and isinstance(held.get('config'), dict)


def status(workdir: epath.PathLike) -> tuple[list[str], Json]:
  """Lines for people, and the same as JSON; of a directory in which `is_here`.

  Raises:
    UserError: a file there cannot be read.
  """
  place = epath.Path(workdir)
  held = io.read_json(place / 'config.json')
  file = place / 'rows.jsonl'
  rows = sorted(io.read_jsonl(file), key=lambda row: row['step']) if file.exists() else []
  name, config = os.fspath(workdir), held['config']
  if 'factors' in held:
    return _run(place, name, config, rows)
  tasks, grafts = config['eval']['tasks'], place / 'grafts.csv'
  if rows:
    state, told = 'done', _scores(rows[-1])
  elif grafts.exists():
    state, told = 'done', f'see {grafts}'
  else:
    holder = lease.holder(place / 'lease.json')
    state = 'running' if holder is not None and not holder['expired'] else 'unfinished'
    told = 'no row yet; what was answered is kept for the same command'
  value = {'workdir': name, 'kind': 'evaluation', 'tasks': tasks, 'state': state}
  return [f'an evaluation: {config["model"]["path"]} on {tasks}', f'{state:<12}{told}'], value


def _run(
  place: epath.Path, name: str, config: Mapping[str, Any], rows: Sequence[results.Row]
) -> tuple[list[str], Json]:
  read = lambda file: io.read_json(place / file) if (place / file).exists() else None
  done, failed, holder = read('done.json'), read('failed.json'), lease.holder(place / 'lease.json')
  last = last_step(place / 'metrics.jsonl')
  total = done['steps'] if done else _total(read('audit.json'), read('selection.json'), config)
  study = place.parent.parent
  of_study = (study / 'study.json').exists()
  state = 'unfinished' if of_study else 'interrupted'
  if done:
    state = 'done'
  elif failed:
    state = 'failed'
  elif holder is not None and not holder['expired']:
    state = 'running'
  saved = saved_step(place / 'checkpoints') if state == 'interrupted' else 0
  value = {
    'workdir': name,
    'kind': 'run',
    'state': state,
    'steps': last.get('step', 0),
    'total': total,
    'loss': last.get('loss'),
    'saved': saved,
    'snapshots': [row['step'] for row in rows],
  }
  lines = _lines(value, config, rows, holder, failed)
  if of_study:
    lines.append(f'one of the runs of {study}: --mode=status --workdir={study} tells of them all')
  return lines, value


def _lines(
  value: Json,
  config: Mapping[str, Any],
  rows: Sequence[results.Row],
  holder: Mapping[str, Any] | None,
  failed: Mapping[str, Any] | None,
) -> list[str]:
  model, data = config['model']['path'], config['data']['name'] or config['data']['path']
  parts = [f'step {value["steps"]}' + (f' of {value["total"]}' if value['total'] else '')]
  if value['loss'] is not None:
    parts.append(f'loss {value["loss"]:.4g}')
  if value['state'] == 'running' and holder is not None:
    silent = f'last sign {holder["silent-s"]:.0f} s ago'
    parts.append(f'{holder["host"]}, process {holder["pid"]}, {silent}')
  elif value['state'] == 'interrupted':
    start = f'goes on from step {value["saved"]}' if value['saved'] else 'starts it again'
    parts.append(f'the same command {start}')
  elif value['state'] == 'failed' and failed is not None:
    parts.append(str(failed['reason']))
  out = [f'a single run: {model} on {data}', f'{value["state"]:<12}{", ".join(parts)}']
  trained = [row for row in rows if row['step']]
  if trained:
    out.append(f'{words.count(len(trained), "snapshot")} scored; the base and the last:')
  return out + [f'{_where(row):<12}{_scores(row)}' for row in (*rows[:1], *trained[-1:])]


def _where(row: results.Row) -> str:
  return f'epoch {row["epoch"]:g}' if row['step'] else 'base'


def _scores(row: results.Row) -> str:
  """The best known of a row's perplexities, and its benchmarks."""
  columns = [c for c in results.BEST_BY if row.get(c) is not None][:1]
  columns += results.score_columns([row])
  shown = [f'{column} {row[column]:.2f}' for column in columns[:_SHOWN]]
  more = f', and {len(columns) - _SHOWN} more in rows.jsonl' if len(columns) > _SHOWN else ''
  return ', '.join(shown) + more if shown else 'no score'


def _total(audit: Any, selected: Any, config: Mapping[str, Any]) -> int:
  """Steps of a run that is not done; 0 as long as its data have not been read."""
  examples = len(selected['examples']) if selected else audit['kept'] if audit else 0
  train = config['train']
  return spec_lib.steps(examples, train['batch_size'], train['epochs'])[1]


def last_step(path: epath.PathLike) -> Json:
  """The last whole line of a run's metrics that tells a loss; {} if there is none."""
  file = epath.Path(path)
  if not file.exists():
    return {}
  with file.open('rb') as f:
    f.seek(max(0, f.seek(0, os.SEEK_END) - _TAIL_BYTES))
    lines = f.read().split(b'\n')[:-1]
  for text in reversed(lines):
    try:
      line = json.loads(text)
      if math.isfinite(line['loss']):
        return {'step': int(line['step']), 'loss': float(line['loss'])}
    except (ValueError, KeyError, TypeError):
      continue
  return {}


def saved_step(directory: epath.Path) -> int:
  """The latest whole training state in a directory of such; 0 if there is none."""
  if not directory.exists():
    return 0
  steps = (path for path in directory.iterdir() if path.name.isdigit())
  return max((int(path.name) for path in steps if _is_whole(path)), default=0)


def _is_whole(checkpoint: epath.Path) -> bool:
  """Whether Orbax has committed it; a kill leaves some that never will be."""
  try:
    told = json.loads((checkpoint / '_CHECKPOINT_METADATA').read_text())
    return bool(told['commit_timestamp_nsecs'])
  except (OSError, ValueError, KeyError, TypeError):
    return False

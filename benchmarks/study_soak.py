"""A thousand runs in one process: `python -m benchmarks.study_soak --workdir=DIR --out=OUT`.

A tiny Llama is trained on real texts first, and is then the base of a grid of ten real data sets,
both methods, sizes, schedules, learning rates and seeds: 1,080 runs, each scored after each of two
epochs, by one command in one process. Looked at from outside, every few seconds: its memory, its
open files and the runs that are done; at the end the files of each run and the train programs.
Bars: 40 minutes; 10 programs; 60 files a run; no growth between the middle and the end beyond 10 %.
Needs `$SFT_JAX_DATA` and requirements-dev.txt.
"""

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks import report
from benchmarks.study_race import SETS
from tests import tiny
from tests.models.conftest import write_tiny_llama

REPOSITORY = Path(__file__).resolve().parents[1]
MINUTES, PROGRAMS, FILES, GROWTH = 40, 10, 60, 0.10
EVERY_SECONDS = 2.0
GRID = {
  'method': ('full', 'lora'),
  'size': ('16', '24', '32'),
  'schedule': ('cosine', 'constant'),
  'lr': ('1e-4', '3e-4', '1e-3'),
  'seed': ('0', '1', '2'),
}


def _command(config: Any, workdir: Path) -> list[str]:
  line = [sys.executable, '-m', 'sft_jax.main', '--config=configs/base.py']
  return [*line, f'--workdir={workdir}', *tiny.flags(config)]


def prepare(data: Path, place: Path) -> tuple[Path, list[Path], Path]:
  """(base, ten files of records, questions): written once."""
  from sft_jax.data import formats

  place.mkdir(parents=True, exist_ok=True)
  paths = []
  for name, (file, first) in SETS.items():
    records = formats.read_records(str(data / 'train' / file), limit=first + 64)[first:]
    path = place / f'{name}.jsonl'
    # The window is short, and the tokens of a tiny tokenizer are little more than letters.
    rows = [
      {'messages': [{**one, 'content': one['content'][:50]} for one in record.messages[:2]]}
      for record in records
    ]
    path.write_text(''.join(json.dumps(row) + '\n' for row in rows))
    paths.append(path)
  everything = place / 'everything.jsonl'
  everything.write_text(''.join(path.read_text() for path in paths))
  questions = place / 'questions.jsonl'
  rows = [json.loads(line) for line in (data / 'bench' / 'arc_easy_val.jsonl').open()][:40]
  asked = [
    {
      'question': row['question'][:80],
      'choices': [text[:30] for text in row['choices']['text']],
      'answer': row['choices']['label'].index(row['answerKey']),
    }
    for row in rows
    if len({text[:30] for text in row['choices']['text']}) == len(row['choices']['text'])
  ]
  questions.write_text(''.join(json.dumps(row) + '\n' for row in asked[:24]))
  base = place / 'pretrained' / 'export' / 'hf'
  if not base.exists():
    write_tiny_llama(place / 'llama')
    config = _config(place / 'llama', everything)
    config.data.loss_on, config.train.epochs = 'all', 4.0
    config.train.method, config.train.learning_rate = 'full', 3e-3
    config.export.format = 'hf'
    subprocess.run(_command(config, place / 'pretrained'), cwd=REPOSITORY, check=True)
  return base, paths, questions


def _config(model: Path, data: str | Path) -> Any:
  return tiny.config(
    model,
    Path(data),
    train__rows_per_micro=0,
    train__row_length=0,
    train__max_length=128,
    train__too_long='truncate',
    train__snapshot_at='every:1',
    lora__dropout=0.0,
    eval__train_limit=0,
    data__heldout_share=0.0,
    checkpoint__every_steps=0,
    log__tensorboard=False,
  )


def _watch(process: subprocess.Popen, workdir: Path) -> list[dict[str, float]]:
  """Memory, open files and finished runs over time."""
  began, seen = time.monotonic(), []
  while process.poll() is None:
    time.sleep(EVERY_SECONDS)
    try:
      status = Path(f'/proc/{process.pid}/status').read_text()
      opened = len(os.listdir(f'/proc/{process.pid}/fd'))
    except OSError:
      break
    resident = re.search(r'VmRSS:\s+(\d+) kB', status)
    if resident is None:
      break
    done = sum(1 for _ in workdir.glob('runs/*/done.json'))
    point = {'seconds': time.monotonic() - began, 'done': done, 'open': opened}
    seen.append(point | {'MiB': int(resident[1]) / 1024})
  return seen


def measure(data: Path, place: Path, grid: dict[str, tuple[str, ...]]) -> dict[str, Any]:
  """The grid from beginning to end."""
  base, paths, questions = prepare(data, place)
  config = _config(base, '')
  config.data.path, config.eval.tasks = '', f'custom:{questions}'
  values = {'path': [str(path) for path in paths], **grid}
  config.study.grid = '; '.join(f'{key}={",".join(given)}' for key, given in values.items())
  workdir = place / 'study'
  log = place / 'study.log'
  began = time.monotonic()
  with log.open('w') as file:
    line = _command(config, workdir)
    process = subprocess.Popen(line, cwd=REPOSITORY, stdout=file, stderr=file)
    seen = _watch(process, workdir)
    status = process.wait()
  seconds = time.monotonic() - began
  if status:
    raise SystemExit(f'the study ended with {status}:\n{log.read_text()[-3000:]}')
  runs = sorted(path.parent for path in workdir.glob('runs/*/done.json'))
  files = [sum(1 for item in run.rglob('*') if item.is_file()) for run in runs]
  rows = [len((run / 'rows.jsonl').read_text().splitlines()) for run in runs]
  programs = re.search(r'(\d+) train programs? compiled', log.read_text())
  return {
    'runs': len(runs),
    'minutes': seconds / 60,
    'rows': sum(rows),
    'fewest rows of a run': min(rows),
    'train programs': int(programs[1]) if programs else None,
    'most files of a run': max(files),
    'bytes of a run, median': statistics.median(
      sum(item.stat().st_size for item in run.rglob('*') if item.is_file()) for run in runs
    ),
    **{f'{what} at {share:.0%}': _at(seen, share, what) for what in ('MiB', 'open') for share in (
      *(0.1, 0.5, 1.0),
    )},
    'watched': seen,
  }  # fmt: skip


def _at(seen: list[dict[str, float]], share: float, what: str) -> float:
  """The median of a few looks around the moment when a share of the runs was done."""
  wanted = share * max(point['done'] for point in seen)
  first = next(i for i, point in enumerate(seen) if point['done'] >= wanted)
  return statistics.median(point[what] for point in seen[max(0, first - 4) : first + 5])


def main() -> None:
  """Measures, prints, writes the result."""
  default = os.environ.get('SFT_JAX_DATA') or REPOSITORY.parent / 'shared' / 'data'
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--data', default=str(default))
  parser.add_argument('--workdir', required=True)
  parser.add_argument('--seeds', type=int, default=3, help='1 for a third of the runs')
  parser.add_argument('--out', default='')
  args = parser.parse_args()
  grid = GRID | {'seed': GRID['seed'][: args.seeds]}
  found = measure(Path(args.data), Path(args.workdir), grid)
  growth = max(found[f'{what} at 100%'] / found[f'{what} at 50%'] - 1 for what in ('MiB', 'open'))
  bars = {
    f'minutes ≤ {MINUTES}': found['minutes'] <= MINUTES,
    f'train programs ≤ {PROGRAMS}': (found['train programs'] or 99) <= PROGRAMS,
    f'files of a run ≤ {FILES}': found['most files of a run'] <= FILES,
    f'growth from the middle to the end ≤ {GROWTH:.0%}': growth <= GROWTH,
    'each run scored at 2 snapshots and the base': found['fewest rows of a run'] >= 3,
  }
  numbers = {k: round(v, 1) for k, v in found.items() if isinstance(v, int | float)}
  lines = ['# A thousand runs in one process', '']
  lines += [f'`{" ".join(["python -m benchmarks.study_soak", *sys.argv[1:]])}`', '']
  lines += ['| | |', '|---|---|', *(f'| {key} | {value} |' for key, value in numbers.items())]
  lines += ['', '| bar | |', '|---|---|']
  lines += [f'| {bar} | {"met" if met else "MISSED"} |' for bar, met in bars.items()]
  print('\n'.join(lines))
  report.write(args.out, lines, found)


if __name__ == '__main__':
  main()

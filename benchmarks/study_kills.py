"""A study that is killed and goes on: `python -m benchmarks.study_kills --workdir=DIR --out=OUT`.

120 runs of a tiny random Llama (five data sets, twelve learning rates, both methods), undisturbed,
and again, killed (SIGKILL) at ten random moments and started again each time. Both have to come to
the same results.csv to the last byte, and no run that was done may be trained again.
"""

import argparse
import pathlib
import subprocess
import sys
import time
from typing import Any

import numpy as np

from benchmarks import report
from tests import tiny
from tests.models.conftest import write_tiny_llama

KILLS = 10


def prepare(place: pathlib.Path) -> list[str]:
  """Writes model and data; returns the flags of the study."""
  place.mkdir(parents=True, exist_ok=True)
  model = place / 'llama'
  if not model.exists():
    write_tiny_llama(model)
  files = []
  for number in range(5):
    given = [{**one, 'output': f'{one["output"]} or {number}'} for one in tiny.records(36)]
    files.append(str(tiny.write_records(place / f'set{number}.jsonl', given)))
  config = tiny.config(
    model,
    pathlib.Path(''),
    data__path='',
    log__tensorboard=False,
    eval__tasks='builtin',
    eval__train_limit=0,
  )
  rates = ','.join(f'{n}e-3' for n in range(1, 13))
  config.study.grid = f'path={",".join(files)}; method=full,lora; lr={rates}'
  config.study.lease_seconds = 10.0
  return tiny.flags(config)


def start(flags: list[str], workdir: pathlib.Path) -> subprocess.Popen:
  """The study, in a process of its own."""
  line = [sys.executable, '-m', 'sft_jax.main', '--config=configs/base.py', f'--workdir={workdir}']
  with workdir.with_suffix('.log').open('a') as log:
    return subprocess.Popen([*line, *flags], stdout=log, stderr=log)


def finish(flags: list[str], workdir: pathlib.Path) -> bytes:
  """Runs to the end; the results."""
  if status := start(flags, workdir).wait():
    tail = workdir.with_suffix('.log').read_text()[-2000:]
    raise RuntimeError(f'status {status}: {tail}')
  return (workdir / 'results.csv').read_bytes()


def finished(workdir: pathlib.Path) -> dict[str, int]:
  """{run: when it was finished}."""
  return {str(p): p.stat().st_mtime_ns for p in workdir.glob('runs/*/done.json')}


def measure(place: pathlib.Path) -> dict[str, Any]:
  """Both studies, compared."""
  flags = prepare(place)
  began = time.monotonic()
  whole = finish(flags, place / 'whole')
  takes = time.monotonic() - began
  rng = np.random.default_rng(0)
  workdir, moments, done = place / 'killed', [], []
  kept: dict[str, int] = {}
  again = 0
  for _ in range(KILLS):
    process = start(flags, workdir)
    # Past the imports, and before all is done.
    moment = float(rng.uniform(10.0, 10.0 + takes / KILLS))
    try:
      process.wait(moment)
    except subprocess.TimeoutExpired:
      process.kill()
    process.wait()
    now = finished(workdir)
    again += sum(now.get(run) != when for run, when in kept.items())
    kept = now
    moments.append(round(moment, 1))
    done.append(len(now))
  killed = finish(flags, workdir)
  now = finished(workdir)
  again += sum(now.get(run) != when for run, when in kept.items())
  return {
    'runs': len(now),
    'seconds, undisturbed': round(takes, 1),
    'killed after seconds': moments,
    'runs done at each kill': done,
    'kills while work was left': sum(count < len(now) for count in done),
    'runs trained again': again,
    'rows': whole.count(b'\n') - 1,
    'results.csv equal to the last byte': killed == whole,
  }


def main() -> None:
  """Measures and prints."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--workdir', required=True)
  parser.add_argument('--out', default='', help='writes OUT.md and OUT.json')
  args = parser.parse_args()
  found = measure(pathlib.Path(args.workdir))
  report.tell('A study that is killed and goes on', __doc__ or '', found, args.out)


if __name__ == '__main__':
  main()

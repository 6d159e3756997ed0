"""A race that is killed and goes on: `python -m benchmarks.choose_kills --workdir=DIR --out=OUT`.

A race of three data sets on a tiny random model, undisturbed, and again, killed (SIGKILL) at five
random moments and started again each time, once stopped by SIGTERM. Both have to come to the same
decision and the same scores, and no run that was finished may be trained again. A race that comes
to its end before it was killed so often is an error: it would show nothing.
"""

import argparse
import json
import pathlib
import signal
import subprocess
import sys
import time
from typing import Any

import numpy as np

from benchmarks import report
from tests import tiny
from tests.models.conftest import write_tiny_llama

KILLS = 5


def prepare(place: pathlib.Path) -> list[str]:
  """Writes model, data and target; returns the flags of the race."""
  place.mkdir(parents=True, exist_ok=True)
  model = place / 'llama'
  if not model.exists():
    write_tiny_llama(model)
  answers = {'sums': str, 'wrong': lambda text: 'no idea', 'halves': lambda text: text[:1]}
  files = []
  for name, answer in answers.items():
    given = [{**one, 'output': answer(one['output'])} for one in tiny.records(48)]
    files.append(str(tiny.write_records(place / f'{name}.jsonl', given)))
  target = place / 'target.jsonl'
  asked = [
    {'question': f'how much is {i} and {i}?', 'choices': list('0123456'), 'answer': i % 7}
    for i in range(60)
  ]
  target.write_text(''.join(f'{json.dumps(one)}\n' for one in asked))
  config = tiny.config(
    model,
    pathlib.Path(''),
    data__path='',
    train__epochs=2.0,
    log__tensorboard=False,
    choose__data=','.join(files),
    choose__target=str(target),
    choose__sizes='8,16,32',
    choose__budget='700 examples',
  )
  return tiny.flags(config)


def start(flags: list[str], workdir: pathlib.Path) -> subprocess.Popen:
  """The race, in a process of its own."""
  line = [sys.executable, '-m', 'sft_jax.main', '--mode=choose', '--config=configs/base.py']
  line += [f'--workdir={workdir}', '--json', *flags]
  return subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def ended(process: subprocess.Popen) -> dict[str, Any]:
  """What a race that came to its end says."""
  out, err = process.communicate()
  if process.returncode:
    raise RuntimeError(f'status {process.returncode}: {err[-2000:]}')
  return json.loads(out.splitlines()[-1])


def timed(flags: list[str], workdir: pathlib.Path) -> tuple[dict[str, Any], float]:
  """What a race says, and the seconds it took."""
  began = time.monotonic()
  return ended(start(flags, workdir)), time.monotonic() - began


def finished(workdir: pathlib.Path) -> dict[str, int]:
  """{run: when it was finished}."""
  return {str(p): p.stat().st_mtime_ns for p in workdir.glob('rung-*/runs/*/done.json')}


def measure(place: pathlib.Path) -> dict[str, Any]:
  """Both races, compared."""
  flags = prepare(place)
  ended(start(flags, place / 'first'))  # compiles, so that the others take as long as each other
  whole, takes = timed(flags, place / 'whole')
  _, starting = timed(flags, place / 'whole')
  rng = np.random.default_rng(0)
  workdir, kept, moments, states = place / 'killed', {}, [], []
  again = 0
  for number in range(KILLS + 1):
    process = start(flags, workdir)
    # Past the start, and of what is left to do never the whole.
    moment = starting + float(rng.uniform(0.1, 1.0)) * (takes - starting) / (KILLS + 2)
    try:
      process.wait(moment)
    except subprocess.TimeoutExpired:
      process.send_signal(signal.SIGTERM if number == KILLS else signal.SIGKILL)
    process.communicate()
    if not process.returncode:
      raise RuntimeError(f'the race ended before kill {number + 1} of {KILLS + 1}')
    moments.append(moment)
    states.append(process.returncode)
    now = finished(workdir)
    again += sum(now.get(run) != when for run, when in kept.items())
    kept = now
  killed = ended(start(flags, workdir))
  now = finished(workdir)
  again += sum(now.get(run) != when for run, when in kept.items())
  own = ('workdir', 'command')
  same = {k: v for k, v in whole.items() if k not in own} == {
    k: v for k, v in killed.items() if k not in own
  }
  return {
    'seconds, undisturbed': round(takes, 1),
    'seconds of a start with nothing to do': round(starting, 1),
    'killed after seconds': [round(moment, 1) for moment in moments],
    'exit statuses': states,
    'runs': len(now),
    'runs trained again': again,
    'same decision and scores': same,
    'decision': killed['decision'],
    'spent': killed['spent'],
    'budget': killed['budget'],
  }


def main() -> None:
  """Measures and prints."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--workdir', required=True)
  parser.add_argument('--out', default='', help='writes OUT.md and OUT.json')
  args = parser.parse_args()
  found = measure(pathlib.Path(args.workdir))
  report.tell('A race that is killed and goes on', __doc__ or '', found, args.out)


if __name__ == '__main__':
  main()

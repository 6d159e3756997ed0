"""A study whose runs are files written slowly, in real processes that can be killed. Not a test.

`python -m tests.study.fake STUDY_FILE WORKDIR OPTIONS` works on it as one process of any number.
What goes wrong with a run stands in its config; every step leaves a line in `trace`.
"""

import dataclasses
import json
import os
import pathlib
import signal
import sys
import time
from typing import Any

from sft_jax.study import engine
from sft_jax.utils import io, log
from sft_jax.utils.errors import Interrupted, OutOfMemory, UserError

SAVE_EVERY = 2


@dataclasses.dataclass(frozen=True)
class Run:
  key: str
  name: str
  config: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Cohort:
  key: str
  runs: list[Run]


@dataclasses.dataclass(frozen=True)
class Study:
  cohorts: list[Cohort]
  setting: str = 'same'

  @property
  def runs(self):
    return [run for cohort in self.cohorts for run in cohort.runs]

  def definition(self):
    return {'setting': self.setting, 'runs': sorted(run.key for run in self.runs)}


def compare(old, new):
  if old['setting'] != new['setting']:
    return [f'setting was {old["setting"]}, is {new["setting"]}']
  return []


def make(sizes, *, steps=4, step_s=0.0, trouble=None, setting='same'):
  """A study of cohorts of these sizes; `trouble` is {run key: what goes wrong}."""
  cohorts = []
  for c, size in enumerate(sizes):
    keys = [f'r{c}{i}' for i in range(size)]
    runs = [
      Run(
        key,
        f'run {key}',
        {'key': key, 'steps': steps, 'step_s': step_s, 'trouble': (trouble or {}).get(key, '')},
      )
      for key in keys
    ]
    cohorts.append(Cohort(f'c{c}', runs))
  return Study(cohorts, setting)


def dump(study, path):
  path.write_text(json.dumps(dataclasses.asdict(study)))
  return path


def load(path):
  held = json.loads(pathlib.Path(path).read_text())
  cohorts = [Cohort(c['key'], [Run(**run) for run in c['runs']]) for c in held['cohorts']]
  return Study(cohorts, held['setting'])


@dataclasses.dataclass(frozen=True)
class Outcome:
  workdir: str
  state: str
  reason: str = ''


def _count(place: pathlib.Path, name: str) -> int:
  """How often this was called with `name`, in whatever process."""
  file = place / name
  with open(file, 'a') as f:
    f.write('x')
  return len(file.read_text())


def _trouble(config, members, study_dir):
  what, _, number = config['trouble'].partition(':')
  if what == 'memory' and len(members) > int(number):
    raise OutOfMemory('the device has too little memory', 'train step', 'use fewer')
  if what == 'missing' and _count(study_dir, f'tries-{config["key"]}') <= int(number):
    raise UserError('no such file', f'{config["key"]}.jsonl', 'mount it')
  if what == 'full' and _count(study_dir, f'tries-{config["key"]}') <= int(number):
    raise UserError('the disk is full', 'here', 'free space')
  if what == 'defect':
    raise TypeError(f'{config["key"]} is no number')
  if what == 'die':
    os.kill(os.getpid(), signal.SIGKILL)


def row(key, step):
  """What a run gives at a step, whoever does it."""
  return {
    **{'model_name': 'm', 'data_name': key, 'lora': step > 0 or None, 'epoch': step / 2},
    **{'data_size': 7, 'run-id': f'id-{key}', 'step': step},
    **{'learning-rate': 1e-5, 'ppl-heldout': 100 / (1 + step) + len(key), f'only-{key}': step},
  }


def run_cohort(members, place, stop, on_progress):
  """Trains and evaluates, so to speak."""
  state = pathlib.Path(place) / 'state.json'
  step = io.read_json(state)['step'] if state.exists() else 0
  assert step == 0 or io.read_json(state)['company'] == [c['key'] for c, _ in members]
  study_dir = pathlib.Path(members[0][1]).parents[1]
  for config, workdir in members:
    io.write_json_atomic(pathlib.Path(workdir) / 'config.json', {'run-id': f'id-{config["key"]}'})
    _trouble(config, members, study_dir)
  steps, bad = members[0][0]['steps'], set()
  while step < steps:
    if stop.requested:
      io.write_json_atomic(state, {'step': step, 'company': [c['key'] for c, _ in members]})
      raise Interrupted(f'{stop.reason}, after step {step}')
    time.sleep(members[0][0]['step_s'])
    step += 1
    for config, workdir in members:
      with open(study_dir / 'trace', 'a') as f:
        f.write(json.dumps({'run': config['key'], 'step': step, 'pid': os.getpid()}) + '\n')
      if config['trouble'] == 'nan' and step >= 2:
        bad.add(workdir)
      if workdir not in bad and step % 2 == 0:
        io.upsert_jsonl(
          pathlib.Path(workdir) / 'rows.jsonl', [row(config['key'], step)], ('run-id', 'step')
        )
    stop.progress()
    on_progress(step, steps)
    if step % SAVE_EVERY == 0 and not bad:
      io.write_json_atomic(state, {'step': step, 'company': [c['key'] for c, _ in members]})
  for _, workdir in members:
    if workdir not in bad:
      io.write_json_atomic(pathlib.Path(workdir) / 'done.json', {'steps': steps})
  return [
    Outcome(w, 'failed', 'loss is not finite at step 2') if w in bad else Outcome(w, 'done')
    for _, w in members
  ]


OPTIONS = {'poll_s': 0.05, 'pause_s': 0.0, 'report_s': 1.0, 'lease_s': 60.0}


class Stop:
  """As `train/loop.py` has one, which imports jax: seconds of a process's life."""

  def __init__(self):
    self.reason = ''
    signal.signal(signal.SIGTERM, lambda *_: setattr(self, 'reason', 'SIGTERM'))

  @property
  def requested(self):
    return bool(self.reason)

  def progress(self):
    pass


def work(study, workdir, stop, run=run_cohort, files=(), **options):
  """The engine on this study, in this process."""
  given = engine.Options(**{**OPTIONS, **options})
  return engine.work(study, workdir, run, stop, compare=compare, files=files, options=given)


def in_ray(study_file, workdir, stop_file, patient):
  """A worker that Ray starts on some node."""
  stop = Stop()
  real = type(stop).requested.fget
  type(stop).requested = property(lambda s: real(s) or os.path.exists(stop_file))
  try:
    work(load(study_file), workdir, stop, wait=patient)
  except Interrupted:
    return {'error': ''}
  except UserError as e:
    return {'error': str(e)}
  return {'error': ''}


def main():
  log.setup_logging()
  study, workdir, options = load(sys.argv[1]), sys.argv[2], json.loads(sys.argv[3])
  try:
    report = work(study, workdir, Stop(), **options)
  except Interrupted as e:
    print(f'stopped by {e}', file=sys.stderr)
    sys.exit(3)
  except UserError as e:
    print(f'error: {e}', file=sys.stderr)
    sys.exit(2)
  sys.exit(2 if report.failed else 0)


if __name__ == '__main__':
  main()

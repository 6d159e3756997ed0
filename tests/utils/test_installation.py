"""A Python that cannot run the package says so in one line, with what to do."""

import importlib
import os
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


@pytest.mark.parametrize(
  'package, code',
  [
    # As jax says it of a jaxlib of another version, and flax of a jax without what it asks for.
    ('optax', "def check():\n  raise RuntimeError('jaxlib is newer than jax')\n\n\ncheck()\n"),
    ('optax', 'import sys\n\nsys.no_such_thing\n'),
  ],
)
def test_packages_that_do_not_go_together(package, code, tmp_path):
  site = tmp_path / 'site-packages'
  (site / package).mkdir(parents=True)
  (site / package / '__init__.py').write_text(code)
  command = 'from sft_jax import main; main._ending_well(lambda: __import__("optax"))'
  done = subprocess.run(
    [sys.executable, '-c', command],
    env={**os.environ, 'PYTHONPATH': f'{site}{os.pathsep}{REPOSITORY}'},
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 2 and done.stderr.count('\n') == 1, done.stderr
  assert done.stderr.startswith('error: installed packages do not go together')
  assert 'jaxlib ' in done.stderr and 'pip install -r requirements.txt' in done.stderr


def test_an_error_of_ours_is_no_fault_of_packages():
  try:
    raise RuntimeError('ours')
  except RuntimeError as e:
    assert installation.fault(e) is None


@pytest.mark.parametrize(
  'flags, status, words',
  [
    (['--version'], 0, 'sft_jax 0.1.0, jax '),
    (['-h'], 0, '--workdir'),
    (['--config=', '--workdir=never'], 2, 'error: no config (--config)'),
  ],
)
def test_what_people_type_first(flags, status, words):
  command = [sys.executable, '-m', 'sft_jax.main', *flags]
  done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
  assert done.returncode == status and words in done.stdout + done.stderr


def test_our_own_modules_are_a_defect():
  with pytest.raises(ImportError, match='nowhere'):
    main._ending_well(lambda: importlib.import_module('sft_jax.nowhere'))


def test_a_python_that_is_too_old(monkeypatch):
  monkeypatch.setattr(sys, 'version_info', (3, 10, 13, 'final', 0))
  text = str(installation.fault(ModuleNotFoundError('No module', name='absl')))
  assert 'is too old' in text and 'use Python 3.11 to 3.13' in text and sys.executable in text

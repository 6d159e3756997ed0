"""A runtime that aborts the process, told in one line."""

import subprocess
import sys

import pytest

from tests.conftest import REPOSITORY


def run(code):
  code = f'import os\nfrom sft_jax.utils import aborts\n{code}'
  command = [sys.executable, '-c', code]
  return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=60)


@pytest.mark.skipif(sys.platform == 'win32', reason='needs the C library of a Unix')
def test_an_abort_becomes_a_line_and_a_status():
  done = run(
    'with aborts.told_as("error: they did not meet", 2):\n'
    '  os.write(2, b"noise of the runtime\\n")\n'
    '  os.abort()\n'
  )
  assert (done.returncode, done.stderr) == (2, 'error: they did not meet\n')


@pytest.mark.skipif(sys.platform == 'win32', reason='needs the C library of a Unix')
def test_what_it_cannot_explain_takes_its_course():
  done = run('with aborts.explained(lambda: "", 3):\n  os.abort()\n')
  assert done.returncode == -6


@pytest.mark.skipif(sys.platform == 'win32', reason='needs the C library of a Unix')
def test_what_was_said_meanwhile_is_printed_at_the_end():
  done = run(
    'with aborts.told_as("error: never", 2):\n  os.write(2, b"a warning\\n")\n'
    'print("on", flush=True)\nos.abort()\n'
  )
  assert (done.returncode, done.stderr, done.stdout) == (-6, 'a warning\n', 'on\n')


@pytest.mark.skipif(sys.platform == 'win32', reason='needs the C library of a Unix')
def test_who_looked_at_aborts_before_still_does():
  done = run(
    'import faulthandler\nfaulthandler.enable()\n'
    'with aborts.explained(lambda: "", 3):\n  os.abort()\n'
  )
  assert done.returncode == -6 and 'Fatal Python error: Aborted' in done.stderr

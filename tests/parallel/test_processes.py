"""Real processes as one program: equal to one process, stopped together, resumed elsewhere."""

import signal
import time

import numpy as np

from sft_jax import results
from tests import tiny
from tests.parallel import peers


def losses(workdir):
  file = workdir / 'metrics.jsonl'
  lines = tiny.read_jsonl(file) if file.exists() else []
  return {line['step']: line['loss'] for line in lines if 'loss' in line}


def await_step(program, workdir, step):
  until = time.monotonic() + 300
  while len(losses(workdir)) < step and time.monotonic() < until:
    assert all(p.is_alive() for p in program.processes), program.said(0) + program.said(1)
    time.sleep(0.05)


def test_two_processes_stop_together_and_one_goes_on(tiny_files, tmp_path):
  """Begun by two processes, stopped by a signal to the second, ended by one: nothing shows."""
  given = tiny.config(
    *tiny_files,
    train__rows_per_micro=0,
    train__learning_rate=2e-3,
    train__epochs=4.0,
    train__snapshot_at='every:4',
    checkpoint__every_steps=0,
    log__tensorboard=False,
  )
  workdir, quiet = tmp_path / 'stopped', tmp_path / 'quiet'
  program = peers.start(given, workdir, tmp_path / 'logs', 2, step_seconds=0.3)
  try:
    await_step(program, workdir, 3)
    program.send(1, signal.SIGTERM)
    statuses = program.join()
  finally:
    program.join(0)
  said = [program.said(index) for index in range(2)]
  assert statuses == [3, 3], said
  step = len(losses(workdir))
  assert 3 <= step < 16 and f'SIGTERM, after step {step};' in said[1], said
  assert f'another process, after step {step};' in said[0], said
  # Only the first speaks and writes.
  assert 'evaluating the base' in said[0] and 'evaluating the base' not in said[1]

  tiny.run(workdir, given, devices=2)
  tiny.run(quiet, given, devices=2)
  assert losses(workdir).keys() == losses(quiet).keys() == set(range(1, 17))
  for at, loss in losses(quiet).items():
    np.testing.assert_allclose(losses(workdir)[at], loss, atol=1e-5, err_msg=f'step {at}')
  ours, theirs = (tiny.read_jsonl(path / 'rows.jsonl') for path in (workdir, quiet))
  assert len(ours) == len(theirs) == 2
  for mine, its in zip(ours, theirs, strict=True):
    assert mine.keys() == its.keys() and {*results.ROW_KEY} <= mine.keys()
    for name, value in its.items():
      if isinstance(value, float):
        np.testing.assert_allclose(mine[name], value, rtol=1e-4, err_msg=name)
      else:
        assert mine[name] == value, name
  files = lambda path: {p.name for p in path.iterdir()}
  assert files(workdir) == files(quiet)

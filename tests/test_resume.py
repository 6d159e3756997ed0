"""Killed at random moments and started again each time, a run ends as if nothing had happened."""

import random
import re
import time

import jax
import numpy as np
import pytest

from sft_jax.execution import runner
from sft_jax.train import checkpoint, loop
from tests import tiny, victim

SEED = 20250614
KILLS = 5


def moments(method):
  """(step, seconds after it) of each kill, in order; some fall into a save or an evaluation."""
  draw = random.Random(f'{SEED}/{method}')
  steps = sorted(draw.randrange(1, tiny.STEPS) for _ in range(KILLS))
  return [(step, draw.uniform(0, victim.STEP_SECONDS * 2)) for step in steps]


def kill(given, workdir, step, delay):
  """Lives until `delay` seconds after `step`, then dies."""
  process, pipe = victim.start(given, workdir)
  try:
    while pipe.poll(300) and pipe.recv() < step:
      pass
    time.sleep(delay)
  except EOFError:
    pass
  process.kill()
  process.join(60)
  pipe.close()
  return process.exitcode


def training_state(given, workdir):
  """{path: array} of everything in the last checkpoint, and its step."""
  with tiny.on_devices():
    job = runner.Run(given, str(workdir), loop.StopSignal())
  _, state = job.alone().start()
  abstract = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
  )
  checkpoints = job.checkpoints()
  step, state = checkpoints.restore(abstract)
  checkpoints.close()
  leaves = jax.tree_util.tree_leaves_with_path(state)
  return step, {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}


def metrics(workdir):
  """All lines of metrics.jsonl, without what the clock and the machine say."""
  clock = re.compile('per-s|seconds|mfu|goodput|bytes')
  return [
    {name: value for name, value in line.items() if not clock.search(name)}
    for line in tiny.read_jsonl(workdir / 'metrics.jsonl')
  ]


@pytest.mark.parametrize('method', ['lora', 'full'])
def test_kill_nine_at_five_random_moments(method, tiny_files, tmp_path, monkeypatch):
  own = {'eval__samples': 2, 'export__format': 'peft'} if method == 'lora' else {}
  given = tiny.config(*tiny_files, train__method=method, **own)
  # A finished run keeps no training state; here it is what is compared.
  monkeypatch.setattr(checkpoint.Checkpoints, 'delete_state', lambda self: None)
  workdir, undisturbed = tmp_path / 'killed', tmp_path / 'undisturbed'
  tiny.run(undisturbed, given)
  for step, delay in moments(method):
    assert kill(given, workdir, step, delay) == -9, f'kill at step {step} + {delay:.3f} s'
    assert not (workdir / 'done.json').exists()
  tiny.run(workdir, given)

  for name in ('rows.jsonl', 'layers.jsonl', 'audit.json', 'done.json'):
    assert (workdir / name).read_bytes() == (undisturbed / name).read_bytes(), name
  for kind in ('samples', 'weights', 'checkpoints', 'export/peft'):
    names = lambda path: sorted(p.name for p in path.iterdir()) if path.exists() else []
    assert names(workdir / kind) == names(undisturbed / kind), kind
  for sample in (undisturbed / 'samples').glob('*'):
    assert (workdir / 'samples' / sample.name).read_bytes() == sample.read_bytes()
  assert metrics(workdir) == metrics(undisturbed), 'each line once, with the same numbers'
  files = lambda path: {p.name for p in path.iterdir() if not p.name.startswith('events')}
  assert files(workdir) == files(undisturbed), 'no lease and no half evaluation is left'
  (step, got), (_, want) = training_state(given, workdir), training_state(given, undisturbed)
  assert step == tiny.STEPS and got.keys() == want.keys() and len(want) > 10
  assert any('mu' in path for path in want) or any('opt' in path for path in want)
  for path, leaf in want.items():
    np.testing.assert_array_equal(got[path], leaf, err_msg=path)
    assert got[path].tobytes() == leaf.tobytes(), path

"""The benchmark of deltas: a tiny run, and bounds that must hold between its figures."""

import json
import subprocess
import sys

import ml_dtypes
import numpy as np
from safetensors.numpy import save_file

from tests.conftest import REPOSITORY


def test_tiny_run(tmp_path):
  rng = np.random.default_rng(0)
  base = (0.1 * rng.standard_normal((400, 500))).astype(np.float32)
  tuned = base + 2e-4 * rng.standard_normal(base.shape).astype(np.float32)
  for name, value in (('base', base), ('tuned', tuned)):
    (tmp_path / name).mkdir()
    tensors = {'w': value.astype(ml_dtypes.bfloat16)}
    save_file(tensors, tmp_path / name / 'model.safetensors')
  done = subprocess.run(
    [
      *(sys.executable, '-m', 'benchmarks.archive', f'--base={tmp_path / "base"}', '--runs=1'),
      *('--tuned', str(tmp_path / 'tuned'), f'--out={tmp_path / "out"}'),
    ],
    cwd=REPOSITORY,
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stderr
  (row,) = json.loads((tmp_path / 'out.json').read_text())['rows']
  assert row['equal'] and row['kind'] == 'BF16'
  others = row['others']
  assert others['entropy given exponent'] < row['ratio'] < others['zstd-12'] < others['zstd-1'] < 1
  assert others['entropy given exponent'] < others['order-0 entropy']
  assert '| tuned | BF16 |' in (tmp_path / 'out.md').read_text()

"""Exports as deltas: of a base that is a directory, and of one that is first written as one."""

import json

import jax
import jax.numpy as jnp
import pytest

from sft_jax.execution import delta_export, runner
from sft_jax.models import export, hf, source
from sft_jax.models.config import ModelConfig
from sft_jax.study import delta, release
from tests import tiny
from tests.models.conftest import one_device_mesh, write_gguf, write_tiny_llama


def contents(directory):
  return {path.name: path.read_bytes() for path in directory.iterdir()}


@pytest.mark.parametrize('kind', ['directory', 'gguf'])
def test_a_run_exports_a_delta(tmp_path, kind):
  path = write_tiny_llama(tmp_path / 'llama')
  if kind == 'gguf':
    path = write_gguf(tmp_path / 'llama.gguf', path)
  ckpt = source.resolve(str(path))
  cfg = ModelConfig.from_hf(ckpt.config)
  read = 0

  def params():
    nonlocal read
    read += 1
    return hf.load_params(ckpt, cfg, one_device_mesh(), jnp.float32)

  base = delta_export.base_of(ckpt, cfg, params, tmp_path / 'cache')
  assert delta_export.base_of(ckpt, cfg, params, tmp_path / 'cache') == base
  assert read == (kind == 'gguf')  # written once, not at all where there is a directory
  trained = jax.tree.map(lambda x: x * 1.001, params())
  write_hf = lambda to: export.export_hf(to, cfg, trained, ckpt, dtype='bfloat16')
  out = tmp_path / 'run' / 'export' / 'delta'
  for _ in range(2):  # again, as after a kill
    delta_export.write(out, write_hf, lambda: base)
  assert [p.name for p in out.parent.iterdir()] == ['delta']
  assert sorted(p.name for p in out.iterdir()) == ['README.md', 'model.sftdelta']
  write_hf(tmp_path / 'whole')
  delta.restore_delta(out / 'model.sftdelta', base.directory, tmp_path / 'back')
  assert contents(tmp_path / 'back') == contents(tmp_path / 'whole')
  assert (out / 'README.md').read_bytes() == (tmp_path / 'whole' / 'README.md').read_bytes()
  # A release takes it as it is, with the base, which no hub has.
  run = tmp_path / 'run'
  record = {'run-id': 'r', 'factors': {'base': str(path), 'method': 'full', 'data_name': 'builtin'}}
  (run / 'config.json').write_text(json.dumps(record))
  row = {'run-id': 'r', 'step': 1, 'epoch': 1, 'data_size': 1}
  (run / 'rows.jsonl').write_text(json.dumps({**row, 'model_name': 'm', 'data_name': 'd'}) + '\n')
  (run / 'done.json').write_text('{}')
  kept = [str(base.directory)]
  release.write(run, tmp_path / 'release', {'builtin': 'Apache-2.0'}, kept=kept)
  assert (tmp_path / 'release' / 'bases' / base.directory.name / 'config.json').exists()


def test_by_the_config_of_a_run(tiny_files, tmp_path):
  config = tiny.config(*tiny_files, train__method='full', export__format='delta')
  tiny.run(tmp_path / 'run', config)
  config.unlock()
  config.export.format = 'hf'
  runner.export(config, str(tmp_path / 'run'))
  written = tmp_path / 'run' / 'export'
  base = tiny_files[0]
  delta.restore_delta(written / 'delta' / 'model.sftdelta', base, tmp_path / 'back')
  assert contents(tmp_path / 'back') == contents(written / 'hf')

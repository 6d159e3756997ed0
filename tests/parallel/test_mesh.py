"""Meshes of fake devices, and accelerators that nobody uses."""

import os
import re
import socket
import subprocess
import sys

import jax
import pytest

from sft_jax.parallel import mesh as mesh_lib
from sft_jax.utils.errors import UserError
from tests.conftest import REPOSITORY


@pytest.mark.parametrize(
  'sizes, shape',
  [
    ({}, (1, 8, 1)),
    ({'data': -1, 'fsdp': 1}, (8, 1, 1)),
    ({'data': 2, 'fsdp': -1, 'tensor': 2}, (2, 2, 2)),
    ({'data': 1, 'fsdp': 4, 'tensor': 2}, (1, 4, 2)),
  ],
)
def test_sizes(sizes, shape):
  mesh = mesh_lib.make_mesh(**sizes)
  assert mesh.axis_names == ('data', 'fsdp', 'tensor') and mesh.devices.shape == shape
  assert set(mesh.devices.flat) == set(jax.devices())


def test_some_devices():
  assert mesh_lib.make_mesh(devices=jax.devices()[:2]).shape == {'data': 1, 'fsdp': 2, 'tensor': 1}


@pytest.mark.parametrize(
  'sizes, words',
  [
    ({'data': 3}, r'does not fit 8 devices.*config\.mesh\.data=3'),
    ({'fsdp': 4}, r'sizes multiply to 4.*config\.mesh\.fsdp=4'),
    ({'data': 16, 'fsdp': 1}, r'multiply to 16'),
    ({'tensor': 0}, r'mesh size 0 .*config\.mesh\.tensor\)'),
    ({'data': -1}, r'more than one mesh size is -1'),
  ],
)
def test_impossible(sizes, words):
  with pytest.raises(UserError) as error:
    mesh_lib.make_mesh(**sizes)
  assert re.search(words, str(error.value)), str(error.value)


def test_idle_accelerator_is_refused(tmp_path, monkeypatch):
  for name in mesh_lib._TPU_MACHINE:
    monkeypatch.delenv(name, raising=False)
  monkeypatch.setenv('JAX_PLATFORMS', '')
  mesh_lib.check_accelerator(dev=str(tmp_path))
  # Control nodes exist in containers without a card.
  (tmp_path / 'nvidiactl').touch()
  (tmp_path / 'vfio').mkdir()
  (tmp_path / 'vfio' / '0').touch()
  mesh_lib.check_accelerator(dev=str(tmp_path))
  (tmp_path / 'nvidia0').touch()
  with pytest.raises(UserError, match=r'GPU but jax runs on the CPU \(.*nvidia0\).*\[cuda\]'):
    mesh_lib.check_accelerator(dev=str(tmp_path))
  mesh_lib.check_accelerator(allow_idle=True, dev=str(tmp_path))
  monkeypatch.setenv('JAX_PLATFORMS', 'cpu')
  mesh_lib.check_accelerator(dev=str(tmp_path))


@pytest.mark.parametrize('node', ['accel0', 'vfio/0'])
def test_idle_tpu_is_refused(tmp_path, monkeypatch, node):
  monkeypatch.setenv('JAX_PLATFORMS', '')
  monkeypatch.setenv('TPU_ACCELERATOR_TYPE', 'v5litepod-4')
  (tmp_path / node).parent.mkdir(exist_ok=True)
  (tmp_path / node).touch()
  with pytest.raises(UserError, match=r'TPU but jax runs on the CPU.*\[tpu\]'):
    mesh_lib.check_accelerator(dev=str(tmp_path))


def test_a_backend_that_jax_passes_over_without_a_word(monkeypatch):
  def fail():
    raise AssertionError

  monkeypatch.setattr(jax, 'default_backend', fail)
  monkeypatch.setenv('JAX_PLATFORMS', 'cuda')
  with pytest.raises(UserError, match=r'no such device here \(JAX_PLATFORMS=cuda\)'):
    mesh_lib.backend()


def test_what_was_asked_for_and_is_not_there_is_said():
  code = (
    'from configs import base\n'
    'from sft_jax.execution import study_run\n'
    'from sft_jax.parallel import mesh\n'
    'from sft_jax.utils.errors import UserError\n'
    'plan = lambda: study_run.plan_mode(base.get_config(), [{}], "")\n'
    'for call in (lambda: mesh.check_accelerator(allow_idle=True), plan):\n'
    '  try:\n'
    '    call()\n'
    '  except UserError as e:\n'
    '    print(e)\n'
  )
  done = subprocess.run(
    [sys.executable, '-c', code],
    capture_output=True,
    text=True,
    check=False,
    cwd=REPOSITORY,
    env=os.environ | {'JAX_PLATFORMS': 'rocm'},
  )
  said = done.stdout.splitlines()
  assert len(said) == 2 and said[0] == said[1], done.stderr[-500:]
  assert said[0].startswith('jax cannot use what was asked for')
  assert '(JAX_PLATFORMS=rocm)' in said[0] and 'unset it' in said[0]


def test_one_process_needs_nothing():
  mesh_lib.init_distributed()
  assert not jax.distributed.is_initialized()


def processes(port, ids, timeout_s=60):
  code = (
    'import sys, jax\n'
    'from sft_jax.parallel import mesh\n'
    'from sft_jax.utils.errors import UserError\n'
    'try:\n'
    f'  mesh.init_distributed(timeout_s={timeout_s})\n'
    '  print(jax.process_count(), jax.device_count(), mesh.make_mesh().shape["fsdp"])\n'
    'except UserError as e:\n'
    '  print(e)\n'
  )
  env = os.environ | {
    'XLA_FLAGS': '--xla_force_host_platform_device_count=2',
    'JAX_COORDINATOR_ADDRESS': f'127.0.0.1:{port}',
    'JAX_NUM_PROCESSES': '2',
  }
  started = [
    subprocess.Popen(
      [sys.executable, '-c', code],
      env=env | {'JAX_PROCESS_ID': str(i)},
      cwd=REPOSITORY,
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
    )
    for i in ids
  ]
  return [p.communicate(timeout=120) for p in started]


def free_port():
  with socket.socket() as s:
    s.bind(('127.0.0.1', 0))
    return s.getsockname()[1]


def test_two_processes_meet():
  assert [out for out, _ in processes(free_port(), (0, 1))] == ['2 4 4\n', '2 4 4\n']

"""The doctor finds what is broken, says how to mend it, and is quiet about what works."""

import contextlib
import http.server
import json
import re
import subprocess
import sys
import threading

import jax
import pytest

import sft_jax
from sft_jax.ahead import kernels
from sft_jax.evals import sandbox
from sft_jax.interactive import doctor, doctor_bench
from sft_jax.utils import log
from sft_jax.utils.errors import UserError
from tests import tiny


@pytest.fixture(autouse=True)
def one_device():
  log.setup_logging()
  with tiny.on_devices():
    yield


def settings(**changes):
  return sft_jax.get_config('base', {'mesh.allow_idle': True, **changes})


def states(found):
  return {check['name']: check['state'] for check in found['checks']}


def test_a_sound_machine_passes(monkeypatch, capsys):
  monkeypatch.setattr(sandbox, 'capabilities', dict)
  found = doctor.examine(settings())
  assert found['failed'] == [] and found['bench'] == {}
  assert {'python', 'packages', 'devices', 'memory', 'cache', 'hub', 'train step'} <= set(
    states(found)
  )
  assert states(found)['train step'] == states(found)['sandbox'] == 'ok'
  out = capsys.readouterr().out
  assert out.count('\n') >= len(found['checks']) and '✗' not in out
  assert all(check['remedy'] for check in found['checks'] if check['state'] != 'ok')
  assert 'HF_HUB_OFFLINE is set' in out


def broken(kind, monkeypatch, tmp_path):
  """Breaks one thing; returns a config."""
  changes = {}
  if kind == 'packages':
    monkeypatch.setattr(doctor, '_requirements', lambda: ['numpy<1', 'no_such_package>=2'])
  if kind == 'devices':
    changes = {'mesh.data': 3, 'mesh.fsdp': 1}
  if kind == 'cache':
    (tmp_path / 'file').write_text('')
    changes = {'cache_dir': str(tmp_path / 'file')}
  if kind == 'step':
    monkeypatch.setattr(doctor_bench.Toy, 'losses', lambda self, steps: [1.0] * steps)
  if kind == 'sandbox':
    monkeypatch.setattr(sandbox, 'capabilities', lambda: {'network': 'not permitted'})
  if kind == 'python':
    monkeypatch.setattr(sys, 'version_info', (3, 10, 0, 'final', 0))
  if kind in ('import', 'other'):

    def fails():
      raise ImportError('no such symbol') if kind == 'import' else RuntimeError('out of order')

    monkeypatch.setattr(doctor, '_memory', fails)
  return settings(**changes)


@pytest.mark.parametrize(
  'kind, failed, said',
  [
    ('packages', {'numpy', 'no_such_package'}, r"numpy .* is not <1\n.*pip install 'numpy<1'"),
    ('devices', {'devices'}, r'mesh does not fit 1 device[^✗]*· train step +not tried: no devices'),
    ('import', {'memory'}, r'ImportError: no such symbol\n.*install the requirements again'),
    ('other', {'memory'}, r'RuntimeError: out of order\n.*→ report it'),
    ('cache', {'cache'}, r'give --cache=DIR'),
    ('step', {'train step'}, r'loss 1.00 → 1.00'),
    ('sandbox', set(), r'· sandbox .*no network: not permitted\n.*run_code=weak'),
    ('python', {'python'}, r'use Python 3.11 or newer'),
  ],
)
def test_what_is_broken_is_found(kind, failed, said, monkeypatch, tmp_path, capsys):
  if kind not in ('step', 'devices'):
    monkeypatch.setattr(doctor, '_step', lambda config: doctor.Check('train step', 'ok', ''))
  config = broken(kind, monkeypatch, tmp_path)
  if kind != 'sandbox':
    monkeypatch.setattr(sandbox, 'capabilities', dict)
  found = doctor.examine(config)
  assert set(found['failed']) == failed
  assert re.search(said, capsys.readouterr().out)


@contextlib.contextmanager
def hub(status, monkeypatch):
  """A server on the loopback, as the hub, with one answer to all; yields what it was asked."""
  from huggingface_hub import constants

  asked = []

  class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
      asked.append((self.path, self.headers['Authorization']))
      self.send_response(status)
      self.end_headers()
      self.wfile.write(b'{}')

    def log_message(self, *args):
      pass

  with http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler) as server:
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    monkeypatch.setattr(constants, 'HF_HUB_OFFLINE', False)
    monkeypatch.setattr(constants, 'ENDPOINT', f'http://127.0.0.1:{server.server_port}')
    try:
      yield asked
    finally:
      server.shutdown()
      thread.join()


@pytest.mark.parametrize(
  'status, token, state, said',
  [
    (200, '', 'note', 'nobody is logged in'),
    (200, 'hf_x', 'ok', 'knows the token'),
    (401, 'hf_x', 'failed', 'the token is refused'),
    (503, '', 'failed', 'answers 503'),
  ],
)
def test_the_hub_is_asked(status, token, state, said, monkeypatch):
  monkeypatch.setenv('HF_TOKEN', token)
  monkeypatch.setattr('huggingface_hub.get_token', lambda: token or None)
  with hub(status, monkeypatch) as asked:
    check = doctor._hub(5.0)
  assert (check.state, said in check.found) == (state, True), check
  (path, header), *_ = asked
  assert header == (f'Bearer {token}' if token else None)
  assert path == ('/api/whoami-v2' if token else '/api/models?limit=1')
  assert token not in check.found or not token


def test_no_hub_is_no_failure(monkeypatch):
  from huggingface_hub import constants

  monkeypatch.setattr(constants, 'HF_HUB_OFFLINE', False)
  monkeypatch.setattr(constants, 'ENDPOINT', 'http://127.0.0.1:1')
  check = doctor._hub(5.0)
  assert (
    check.state == 'note' and 'does not answer' in check.found and 'HTTPS_PROXY' in check.remedy
  )


def test_a_home_of_the_hub_that_is_a_file(monkeypatch, tmp_path):
  from huggingface_hub import constants

  (tmp_path / 'file').write_text('')
  monkeypatch.delenv('HF_TOKEN', raising=False)
  monkeypatch.setattr(constants, 'HF_HUB_OFFLINE', False)
  monkeypatch.setattr(constants, 'HF_TOKEN_PATH', str(tmp_path / 'file' / 'token'))
  with pytest.raises(UserError, match=r'a file stands where.*set HF_HOME to a directory'):
    doctor._hub(5.0)


def test_nothing_is_measured_without_devices(monkeypatch):
  monkeypatch.setattr(doctor_bench, 'measure', lambda config: pytest.fail('measured'))
  changes = {'mesh.data': 3, 'mesh.fsdp': 1, 'doctor.bench': True}
  assert doctor.examine(settings(**changes))['failed'] == ['devices']


def test_measurements_are_positive_and_the_gather_needs_company(monkeypatch):
  monkeypatch.setattr(doctor_bench, '_LARGE', doctor_bench._SMALL)
  found = doctor_bench.measure(settings())
  assert set(found) == {
    *('matmul-float32-tflops', 'copy-gb-per-s', 'all-gather-gb-per-s'),
    *('step-tokens-per-s', 'step-compile-s', 'plan-step-tokens-per-s', 'step-attained'),
  }
  assert all(value > 0 for value in found.values())
  share = found['step-tokens-per-s'] / found['plan-step-tokens-per-s']
  assert found['step-attained'] == pytest.approx(share)


def test_plans_know_what_makers_publish():
  one = doctor_bench.Toy(None, None, None, None, tokens=1000, flops=2e12 * jax.device_count())
  found = doctor_bench.planned(500.0, one, 0.008, 'NVIDIA H200')
  assert found['plan-matmul-tflops'] == 989 and found['plan-copy-gb-per-s'] == 4800
  # 2 TFLOP a device at 500 TFLOP/s: 4 ms; it took 8.
  assert found['plan-step-tokens-per-s'] == pytest.approx(1000 / 0.004)
  assert found['step-attained'] == pytest.approx(0.5)
  assert 'plan-matmul-tflops' not in doctor_bench.planned(1.0, one, 1.0, 'cpu')


def test_a_known_gpu_is_measured_by_its_kernels(monkeypatch):
  """`step-attained` is then a share of what plans of GPUs take."""
  of = doctor_bench.topology.of_devices
  known = of('NVIDIA H200', 1, jax.device_count())
  assert known.name == f'h200:{jax.device_count()}' and of('NVIDIA H200', 2, 8).name == 'h200:2x8'
  assert of('TPU v5e', 1, 8) is None and of('NVIDIA H200', 1, 3) is None
  monkeypatch.setattr(doctor_bench, '_LARGE', doctor_bench._SMALL)
  monkeypatch.setattr(doctor_bench.topology, 'of_devices', lambda *_: known)
  one = doctor_bench.toy(settings(), large=True)
  assert one.setting.length * one.setting.rows == one.tokens and one.setting.is_lora
  least = kernels.bound(one.setting).seconds
  found = doctor_bench.planned(500.0, one, 4 * least, 'NVIDIA H200')
  assert found['step-attained'] == pytest.approx(0.25)


def test_the_command_fails_after_it_has_told(tmp_path):
  command = [sys.executable, '-m', 'sft_jax.main', '--mode=doctor', '--json']
  done = subprocess.run(
    [*command, '--config.mesh.data=3', '--config.mesh.fsdp=1', '--config.mesh.allow_idle=True'],
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 2
  assert done.stderr.startswith('error: 1 of ') and '(devices)' in done.stderr
  assert json.loads(done.stdout.splitlines()[-1])['failed'] == ['devices']

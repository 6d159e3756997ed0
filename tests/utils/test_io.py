"""Files are whole or absent, and a bad disk is told in words."""

import errno
import hashlib
import json
import os
import subprocess
import sys

import numpy as np
import pytest

from sft_jax.utils import io
from sft_jax.utils.errors import UserError
from tests.conftest import REPOSITORY


def test_write_and_read(tmp_path):
  path = tmp_path / 'deep' / 'a.json'
  value = {'text': 'naïve 語', 'x': np.float32(0.5), 'n': np.arange(2), 'bad': float('nan')}
  io.write_json_atomic(path, value)
  assert io.read_json(path) == {'text': 'naïve 語', 'x': 0.5, 'n': [0, 1], 'bad': None}
  assert os.listdir(path.parent) == ['a.json']


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
  path = tmp_path / 'a.txt'
  io.write_text_atomic(path, 'old')

  def full(handle):
    raise OSError(errno.ENOSPC, 'No space left on device')

  monkeypatch.setattr(os, 'fsync', full)
  with pytest.raises(UserError, match='the disk is full') as error:
    io.write_text_atomic(path, 'new')
  assert str(path) in str(error.value) and '--workdir' in str(error.value)
  assert path.read_text() == 'old' and os.listdir(tmp_path) == ['a.txt']


@pytest.mark.parametrize(
  'raised, words',
  [
    (OSError(errno.EDQUOT, 'quota'), 'the disk is full'),
    (OSError(errno.EROFS, 'ro'), 'cannot be written'),
    (PermissionError(errno.EACCES, 'denied'), 'cannot be written'),
    (NotADirectoryError(errno.ENOTDIR, 'x'), 'a file stands'),
    (ValueError('RESOURCE_EXHAUSTED: write: No space left on device'), 'the disk is full'),
  ],
)
def test_explained(raised, words):
  with pytest.raises(UserError, match=words), io.explain_os_errors('/somewhere'):
    raise raised


@pytest.mark.parametrize('explain', [io.explain_os_errors, io.explain_unreadable])
def test_what_a_client_of_a_bucket_raises(explain):
  class PreconditionError(Exception):
    pass

  PreconditionError.__module__ = 'tensorflow.python.framework.errors_impl'
  with (
    pytest.raises(UserError, match=r'cannot be used: no such host \(gs://b/x\)'),
    explain('gs://b/x'),
  ):
    raise PreconditionError('no such host\nwhen reading')
  PreconditionError.__module__ = 'elsewhere'
  with pytest.raises(PreconditionError), explain('gs://b/x'):
    raise PreconditionError('no such host')


def test_other_errors_pass():
  with pytest.raises(ValueError, match='else'), io.explain_os_errors('/somewhere'):
    raise ValueError('else')


@pytest.mark.parametrize(
  'content, words',
  [(b'{"a": 1,\n}', 'is not JSON'), (b'"\xff"', 'not UTF-8'), (None, 'No such file')],
)
def test_bad_json(tmp_path, content, words):
  path = tmp_path / 'a.json'
  if content is not None:
    path.write_bytes(content)
  with pytest.raises(UserError, match=words) as error:
    io.read_json(path)
  assert str(path) in error.value.where


def test_upsert(tmp_path):
  path = tmp_path / 'rows.jsonl'
  io.upsert_jsonl(
    path, [{'run': 'a', 'epoch': 0, 'x': 1}, {'run': 'a', 'epoch': 1, 'x': 2}], ('run', 'epoch')
  )
  first = path.read_bytes()
  io.upsert_jsonl(path, [{'run': 'a', 'epoch': 0, 'x': 1}], ('run', 'epoch'))
  assert path.read_bytes() == first
  io.upsert_jsonl(
    path, [{'run': 'a', 'epoch': 0, 'x': 9}, {'run': 'b', 'epoch': 0, 'x': 3}], ('run', 'epoch')
  )
  assert [(r['run'], r['epoch'], r['x']) for r in io.read_jsonl(path)] == [
    ('a', 0, 9),
    ('a', 1, 2),
    ('b', 0, 3),
  ]
  with pytest.raises(KeyError):
    io.upsert_jsonl(path, [{'run': 'c'}], ('run', 'epoch'))
  path.write_text('{"run": "a"}\nnonsense\n')
  with pytest.raises(UserError, match='not a JSON object') as error:
    io.upsert_jsonl(path, [], ('run',))
  assert error.value.where.endswith('rows.jsonl:2')


def test_line_separators_inside_text_survive(tmp_path):
  path = tmp_path / 'rows.jsonl'
  row = {'key': 1, 'text': 'a\u2028b\x85c\nd'}
  io.upsert_jsonl(path, [row], ('key',))
  io.upsert_jsonl(path, [], ('key',))
  assert io.read_jsonl(path) == [row]


def test_sha256(tmp_path):
  data = bytes(range(256)) * 8192
  (tmp_path / 'x').write_bytes(data)
  assert io.sha256_file(tmp_path / 'x') == hashlib.sha256(data).hexdigest()


def test_a_directory_in_place_of_a_file(tmp_path):
  (tmp_path / 'x').mkdir()
  for read in (io.read_json, io.read_jsonl):
    with pytest.raises(UserError, match=r'cannot be read: Is a directory \(.*/x\)'):
      read(tmp_path / 'x')
  with pytest.raises(UserError, match='a directory stands where a file is needed'):
    io.write_text_atomic(tmp_path / 'x', '')


@pytest.mark.parametrize('links', [True, False])
def test_a_file_is_made_once(tmp_path, monkeypatch, links):
  if not links:
    monkeypatch.setattr(os, 'link', lambda *_: (_ for _ in ()).throw(OSError(errno.EPERM, 'no')))
  assert io.create_text(tmp_path / 'a', 'first')
  assert not io.create_text(tmp_path / 'a', 'second')
  assert (tmp_path / 'a').read_text() == 'first' and os.listdir(tmp_path) == ['a']


def test_scratch_directories_of_the_dead_are_removed(tmp_path):
  code = (
    'import os, pathlib, sys, time\n'
    'from sft_jax.utils import io\n'
    'with io.scratch_directory(pathlib.Path(sys.argv[1]), "x[1]") as made:\n'
    '  (made / "weights").write_text("much")\n'
    '  print(made, flush=True)\n'
    '  if sys.argv[2] == "live":\n'
    '    time.sleep(60)\n'
    '  os._exit(9)\n'
  )
  command = [sys.executable, '-c', code, str(tmp_path)]
  live = subprocess.Popen([*command, 'live'], cwd=REPOSITORY, stdout=subprocess.PIPE, text=True)
  try:
    of_living = live.stdout.readline().strip()
    subprocess.run([*command, 'dead'], cwd=REPOSITORY, capture_output=True, check=False)
    (tmp_path / '.x[1].partial-nameless').mkdir()
    assert len(os.listdir(tmp_path)) == 3
    with io.scratch_directory(tmp_path, 'x[1]') as ours:
      left = {str(path) for path in tmp_path.iterdir()}
      assert left == {str(ours), of_living, str(tmp_path / '.x[1].partial-nameless')}
    os.utime(tmp_path / '.x[1].partial-nameless', (0, 0))
    with io.scratch_directory(tmp_path, 'x[1]'):
      pass
    assert [str(path) for path in tmp_path.iterdir()] == [of_living]
  finally:
    live.kill()
    live.communicate()


def test_require_writable(tmp_path):
  io.require_writable(tmp_path / 'new')
  assert os.listdir(tmp_path / 'new') == []
  (tmp_path / 'file').write_text('')
  for inside in (tmp_path / 'file', tmp_path / 'file' / 'below'):
    with pytest.raises(UserError, match='a file stands where a directory is needed'):
      io.require_writable(inside)


@pytest.mark.skipif(not os.path.isdir('/proc/self'), reason='needs a /proc')
def test_a_file_system_that_takes_no_directories():
  with pytest.raises(UserError, match='cannot be written'):
    io.require_writable('/proc/new/place')


@pytest.mark.skipif(
  not sys.platform.startswith('linux') or os.getuid() != 0, reason='mounts a tmpfs: needs root'
)
@pytest.mark.parametrize(
  'options, fill, words',
  [('ro', '', 'this place cannot be written'), ('size=64k', 'x', 'the disk is full')],
)
def test_real_mounts(tmp_path, options, fill, words):
  code = (
    'import sys\n'
    'from sft_jax.utils import errors, io\n'
    f'if {fill!r}:\n'
    '  open(sys.argv[1] + "/fill", "w").write("x" * 65536)\n'
    'try:\n'
    '  io.require_writable(sys.argv[1])\n'
    'except errors.UserError as e:\n'
    '  print(e)\n'
  )
  mount = f'mount -t tmpfs -o {options} tmpfs {tmp_path} && exec "$@"'
  done = subprocess.run(
    ['unshare', '-m', 'sh', '-c', mount, 'sh', sys.executable, '-c', code, str(tmp_path)],
    cwd=REPOSITORY,
    capture_output=True,
    text=True,
    check=False,
  )
  if done.stderr.startswith(('unshare', 'mount')):
    pytest.skip(f'cannot mount here: {done.stderr[:100]}')
  assert done.stdout.startswith(f'{words} ({tmp_path}'), done.stderr


def test_json_text_is_strict():
  assert json.loads(io.to_json([float('inf'), 1.5, None])) == [None, 1.5, None]

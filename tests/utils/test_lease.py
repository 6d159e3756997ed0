"""A workdir is one process's at a time; the dead hold nothing."""

import hashlib
import json
import os
import subprocess
import sys
import threading
import time

import pytest

from sft_jax.utils import io, lease, process
from sft_jax.utils.errors import UserError
from tests.conftest import REPOSITORY

HOLDER = (
  'import os, sys, time\n'
  'from sft_jax.utils import lease\n'
  'with lease.Lease(sys.argv[1], beat_s=0.05):\n'
  '  print(os.getpid(), flush=True)\n'
  '  time.sleep(60)\n'
)


@pytest.fixture
def path(tmp_path):
  return tmp_path / 'lease.json'


@pytest.fixture
def holder(path):
  """A living process that holds it."""
  child = subprocess.Popen(
    [sys.executable, '-c', HOLDER, str(path)], cwd=REPOSITORY, stdout=subprocess.PIPE, text=True
  )
  assert int(child.stdout.readline()) == child.pid
  yield child
  child.kill()
  child.communicate()


def elsewhere(path, **changes):
  """A lease of another machine, whose processes cannot be seen from here."""
  name = {**process.me(), 'host': 'far', 'place': 'far', 'token': 'x', 'beat': time.time()}
  path.write_text(json.dumps(name | changes))


def test_taken_kept_up_and_released(path):
  with lease.Lease(path, beat_s=0.01) as held:
    first = json.loads(path.read_text())
    assert first['pid'] == os.getpid()
    deadline = time.monotonic() + 10
    while json.loads(path.read_text())['beat'] == first['beat']:
      assert time.monotonic() < deadline, 'no sign of life'
    held.check()
  assert os.listdir(path.parent) == []


def test_a_living_holder_is_named(path, holder):
  with pytest.raises(UserError, match=f'process {holder.pid}, is at work here') as e:
    lease.Lease(path).__enter__()
  assert '\n' not in str(e.value) and str(path.parent) in e.value.where
  assert json.loads(path.read_text())['pid'] == holder.pid


def test_a_dead_holder_is_followed_at_once(path, holder):
  holder.kill()
  # Not yet waited for by its parent: a zombie is dead too.
  deadline = time.monotonic() + 10
  while process.lives(json.loads(path.read_text())):
    assert time.monotonic() < deadline
  began = time.monotonic()
  with lease.Lease(path):
    assert json.loads(path.read_text())['pid'] == os.getpid()
  assert time.monotonic() - began < 5


def test_an_id_that_is_used_again(path):
  """The holder's id now belongs to another process: to us."""
  path.write_text(json.dumps({**process.me(), 'born': '1', 'token': 'x', 'beat': time.time()}))
  with lease.Lease(path) as held:
    held.check()


def test_another_machine_that_has_long_been_silent(path):
  elsewhere(path, beat=time.time() - 2 * 3600)
  with lease.Lease(path):
    assert json.loads(path.read_text())['host'] != 'far'


def test_another_machine_whose_clock_is_behind(path):
  """It seems to be long silent, and is given a moment to show itself before it is followed."""
  behind = lambda: time.time() - 3 * lease.EXPIRY_S
  elsewhere(path, beat=behind())
  timer = threading.Timer(0.2, lambda: elsewhere(path, beat=behind() + 20))
  timer.start()
  with pytest.raises(UserError, match='far, process'):
    lease.Lease(path, beat_s=0.1, expiry_s=6.0).__enter__()
  timer.join()
  with lease.Lease(path, beat_s=0.1, expiry_s=0.3):
    assert json.loads(path.read_text())['host'] != 'far'


def test_another_machine_that_falls_silent(path):
  """Its clock may be ahead, so it is watched for as long as it may be silent."""
  elsewhere(path, beat=time.time() + 1000)
  began = time.monotonic()
  with lease.Lease(path, beat_s=0.1, expiry_s=0.3):
    assert time.monotonic() - began >= 0.3


def test_another_machine_that_shows_itself(path):
  elsewhere(path)
  timer = threading.Timer(0.2, lambda: elsewhere(path, beat=time.time() + 1))
  timer.start()
  with pytest.raises(UserError, match='far, process'):
    lease.Lease(path, beat_s=0.1).__enter__()
  timer.join()
  assert json.loads(path.read_text())['host'] == 'far'


@pytest.mark.parametrize('text', ['', '{"pid": 1', '[]', '\xff'])
def test_a_torn_file_holds_nothing(path, text):
  path.write_bytes(text.encode('latin-1'))
  with lease.Lease(path):
    assert json.loads(path.read_text())['pid'] == os.getpid()


def test_who_comes_late_does_not_follow_again(path, monkeypatch):
  """Two see the dead holder; the second acts on it when the first has long followed."""
  elsewhere(path, beat=0)
  late = lease.Lease(path)
  dead = late._read()[0]
  with lease.Lease(path) as held:
    assert not late._succeed(dead)
    held.check()
    assert json.loads(path.read_text())['token'] == held._name['token']
  assert os.listdir(path.parent) == []


def test_a_successor_that_died_is_succeeded(path):
  """It had made known that it would follow, and no more."""
  elsewhere(path, beat=0)
  one = lease.Lease(path)
  digest = hashlib.sha256(one._read()[0].encode()).hexdigest()[:16]
  elsewhere(path.parent / f'.lease.json.{digest}.claim', beat=0)
  with one:
    one.check()
  assert os.listdir(path.parent) == []


def test_who_lost_it_is_told(path):
  with lease.Lease(path, beat_s=0.01) as held:
    elsewhere(path)
    with pytest.raises(UserError, match='far, process'):
      for _ in range(1000):
        held.check()
        time.sleep(0.01)
  assert json.loads(path.read_text())['host'] == 'far', "another's is not removed"


@pytest.mark.parametrize('attempt', range(10))
def test_of_many_at_once_one_has_it(path, attempt):
  elsewhere(path, beat=0)
  held, refused = [], []

  def take():
    try:
      held.append(lease.Lease(path).__enter__())
    except UserError:
      refused.append(1)

  threads = [threading.Thread(target=take) for _ in range(8)]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  assert len(held) == 1 and len(refused) == 7
  held[0].__exit__(None, None, None)
  assert os.listdir(path.parent) == []


def test_who_watches_never_waits(path):
  """A holder elsewhere is dead once nothing changed for long enough under our own eyes."""
  elsewhere(path, beat=0)
  watch = lease.Watch()
  take = lambda: lease.Lease(path, expiry_s=0.3, watch=watch)
  with pytest.raises(lease.Held, match='far, process'):  # Its clock says 1970, which is no proof.
    take().__enter__()
  time.sleep(0.2)
  elsewhere(path, beat=0, beats=1)
  time.sleep(0.2)
  with pytest.raises(lease.Held):  # It showed itself, though its clock stands.
    take().__enter__()
  time.sleep(0.35)
  with take():
    assert json.loads(path.read_text())['pid'] == os.getpid()
  assert os.listdir(path.parent) == []


def test_a_holder_says_how_long_it_may_be_silent(path):
  elsewhere(path, expiry=60.0)
  watch = lease.Watch()
  for _ in range(3):
    with pytest.raises(lease.Held):
      lease.Lease(path, expiry_s=0.01, watch=watch).__enter__()
    time.sleep(0.05)


def test_who_slept_looks_before_the_next_beat(path):
  with lease.Lease(path, beat_s=1000, expiry_s=0.1) as held:
    elsewhere(path)
    time.sleep(0.1)
    with pytest.raises(lease.Held, match='far, process'):
      held.check()


def test_a_full_disk_is_told_at_the_start_and_borne_later(path, monkeypatch):
  def full(*_):
    raise UserError('the disk is full')

  with lease.Lease(path, beat_s=0.01) as held:
    monkeypatch.setattr(io, 'write_text_atomic', full)
    time.sleep(0.1)
    held.check()
    with pytest.raises(UserError, match='full'):
      lease.Lease(path.parent / 'other').__enter__()

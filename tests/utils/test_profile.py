"""A profile holds the steps that were asked for, and ends with the run."""

import jax
import jax.numpy as jnp
import pytest

from sft_jax.utils import profile
from sft_jax.utils.errors import UserError
from tests import tiny


@pytest.mark.parametrize('text, found', [('', (0, 0)), ('10', (10, 10)), ('10-12', (10, 12))])
def test_ranges(text, found):
  assert profile.steps(text) == found


@pytest.mark.parametrize('text', ['0', '3-2', '-1', 'all', '1-', '1.5', '1-2-3', '٣'])
def test_nonsense_is_refused(text):
  with pytest.raises(UserError, match='no range of steps'):
    profile.steps(text)


def calls(monkeypatch, done, wanted, count):
  """What a recording of `count` calls tells the profiler, and when."""
  told = []
  monkeypatch.setattr(jax.profiler, 'start_trace', lambda place: told.append('start'))
  monkeypatch.setattr(jax.profiler, 'stop_trace', lambda: told.append('stop'))
  one = profile.Recorded(lambda x: told.append(x) or x, done, wanted, 'place')
  for number in range(done + 1, done + count + 1):
    one(number)
  one.close()
  return told


def test_only_those_steps_are_recorded(monkeypatch):
  assert calls(monkeypatch, 0, (2, 3), 4) == [1, 'start', 2, 3, 'stop', 4]
  assert calls(monkeypatch, 10, (12, 12), 3) == [11, 'start', 12, 'stop', 13]
  # A run that ends before the last of them, or began after the first; nothing was asked for.
  assert calls(monkeypatch, 0, (2, 9), 3) == [1, 'start', 2, 3, 'stop']
  assert calls(monkeypatch, 5, (2, 9), 2) == [6, 7] == calls(monkeypatch, 5, (0, 0), 2)


def test_a_profile_can_be_opened(tmp_path):
  one = profile.Recorded(jax.jit(lambda x: x @ x), 0, (2, 2), tmp_path / 'profile')
  for _ in range(3):
    one(jnp.ones((8, 8)))
  (found,) = tmp_path.glob('profile/plugins/profile/*/*.xplane.pb')
  assert b'train' in found.read_bytes()


def test_a_run_leaves_its_profile(tiny_files, tmp_path):
  with tiny.on_devices():
    tiny.run(tmp_path / 'w', tiny.config(*tiny_files, profile='3', train__snapshot_at='1'))
  assert list(tmp_path.glob('w/profile/plugins/profile/*/*.xplane.pb'))

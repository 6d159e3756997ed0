"""How processes of one program hear of each other's end; a store in memory, and a clock by hand."""

import json

import pytest

from sft_jax.utils import peers


class Store:
  """What jax's coordinator keeps."""

  def __init__(self):
    self.held = {}

  def key_value_set(self, key, value, allow_overwrite=False):
    assert allow_overwrite or key not in self.held
    self.held[key] = value

  def key_value_dir_get(self, room):
    return [(key, value) for key, value in self.held.items() if key.startswith(room)]


def program(count=3):
  store = Store()
  return store, [peers.Watch(store, index, count) for index in range(count)]


def pass_time(watches, start, seconds, silent=()):
  """What each says after so many seconds; the silent ones do not look."""
  found = {}
  for at in range(start, start + seconds, 2):
    for index, one in enumerate(watches):
      if index not in silent:
        found[index] = one.look(float(at))
  return found


def test_all_is_well():
  _, watches = program()
  assert set(pass_time(watches, 0, 200).values()) == {None}


def test_one_that_falls_silent_ends_all():
  _, watches = program()
  pass_time(watches, 0, 10)
  assert set(pass_time(watches, 10, 40, silent={2}).values()) == {None}, 'it may be slow'
  status, line = pass_time(watches, 50, 20, silent={2})[1]
  assert status == 3 and 'process 2 of 3' in line and 'start all processes again' in line
  assert pass_time(watches, 50, 20, silent={2})[0][0] == 3, 'process 0 hears it too'


def test_sooner_where_somebody_lost_a_connection():
  store, watches = program()
  pass_time(watches, 0, 10)
  store.key_value_set(f'{peers._LOST}1', '1')
  found = pass_time(watches, 10, 20, silent={2})
  assert found[0][0] == found[1][0] == 3


def test_nobody_buries_the_first_process():
  """Whose death the runtime tells."""
  _, watches = program()
  pass_time(watches, 0, 10)
  assert set(pass_time(watches, 10, 100, silent={0}).values()) == {None}


@pytest.mark.parametrize('status', [1, 2, 3])
def test_an_end_is_followed_with_its_status(status):
  store, watches = program()
  pass_time(watches, 0, 10)
  store.key_value_set(f'{peers._END}2', json.dumps([status, 'its line', True]))
  assert set(pass_time(watches, 10, 6, silent={2}).values()) == {None}, 'they may end by themselves'
  found = pass_time(watches, 16, 10, silent={2})
  assert found[0] == found[1] == (status, 'its line')


def test_who_ends_itself_hears_nobody():
  store, watches = program()
  for index, status in ((1, 3), (2, 2)):
    store.key_value_set(f'{peers._END}{index}', json.dumps([status, 'its line', True]))
  found = pass_time(watches, 0, 30)
  assert found[1] is None and found[2] is None and found[0][0] in (2, 3)


def test_who_ended_well_is_not_followed():
  store, watches = program()
  store.key_value_set(f'{peers._END}2', json.dumps([0, '', True]))
  assert set(pass_time(watches, 0, 100, silent={2}).values()) == {None}


def test_one_process_alone_asks_nobody():
  assert not peers.several() and peers.is_first()
  assert peers.from_first({'a': 1}) == {'a': 1}
  assert peers.agree(True, False) == (True, False, 0.0)
  assert peers.Agreement()(True, False, 7) == (True, False)
  peers.require_same('anything', [1])
  peers.require_end('anything', 'done', 1.0)
  peers.leave(3, 'returns')


def test_processes_ask_at_the_same_steps(monkeypatch):
  """About every two seconds by the slowest, whatever each measured itself."""
  asked = []
  monkeypatch.setattr(peers, 'several', lambda: True)
  monkeypatch.setattr(
    peers,
    'agree',
    lambda stop, save, seconds: (asked.append(1), (stop, save, max(0.4, seconds)))[1],
  )
  one = peers.Agreement()
  answers = [one(True, False, step)[0] for step in range(16)]
  assert [step for step, answer in enumerate(answers) if answer] == [0, 1, 6, 11]
  assert len(asked) == 4

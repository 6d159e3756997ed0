"""Two processes of one program at a study: the second does what the first decides, and no more."""

import dataclasses
import threading

import pytest

from sft_jax.execution import runner, study_together
from sft_jax.utils import peers
from sft_jax.utils.errors import Interrupted, OutOfMemory


@dataclasses.dataclass
class Planned:
  key: str
  config: str


@dataclasses.dataclass
class Study:
  runs: tuple = tuple(Planned(key, f'config of {key}') for key in 'abc')


class Stop:
  reason, requested = 'SIGTERM', False


@pytest.fixture
def told(monkeypatch):
  """What the coordinator would keep; and what ended apart."""
  words, come = {}, threading.Condition()
  words['apart'] = []

  def put(name, word):
    with come:
      assert name not in words, f'{name} is told twice'
      words[name] = word
      come.notify_all()

  def word(name, seconds):
    with come:
      come.wait_for(lambda: name in words, seconds)
      return words.get(name)

  def require_end(name, how, seconds):
    me = threading.current_thread().name
    put(f'{name}/{me}', how)
    other = 'second' if me != 'second' else 'first'
    if word(f'{name}/{other}', seconds) != how:
      words['apart'].append(name)

  monkeypatch.setattr(peers, 'put_word', put)
  monkeypatch.setattr(peers, 'word', word)
  monkeypatch.setattr(peers, 'require_end', require_end)
  return words


@pytest.fixture
def done(monkeypatch):
  """Cohorts by process; what is in `fails` fails, in the processes named."""
  found = {'first': [], 'second': [], 'fails': {}}

  def run_cohort(members, place, session, stop, on_progress=None):
    me = threading.current_thread().name
    found[me].append((place, [(member.config, member.workdir) for member in members]))
    if me in found['fails'].get(place, ()):
      raise OutOfMemory('too little memory')
    return [place]

  monkeypatch.setattr(runner, 'run_cohort', run_cohort)
  return found


def work(lead):
  """Leads in a thread while another follows; returns what leading gave or raised."""
  outcome = []

  def first():
    together = study_together.Together(Study(), 'study')
    try:
      with together.leading():
        outcome.append(lead(together))
    except Exception as e:
      outcome.append(e)

  def second():
    study_together.Together(Study(), 'study').follow(Stop())

  threads = [threading.Thread(target=f, name=f.__name__) for f in (first, second)]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join(30)
  assert not any(thread.is_alive() for thread in threads)
  return outcome[0]


def members(keys):
  return [(f'config of {key}', f'study/runs/{key}') for key in keys]


def test_both_do_the_same_cohorts_in_the_same_order(told, done):
  def lead(together):
    together.run_cohort(members('ab'), 'cohorts/1', Stop(), None)
    return together.run_cohort(members('c'), 'cohorts/2', Stop(), None)

  assert work(lead) == ['cohorts/2']
  assert (
    done['first']
    == done['second']
    == [
      ('cohorts/1', members('ab')),
      ('cohorts/2', members('c')),
    ]
  )
  assert told['apart'] == []


def test_a_failure_of_both_is_the_first_ones_to_judge(told, done):
  done['fails'] = {'cohorts/1': ('first', 'second')}

  def lead(together):
    with pytest.raises(OutOfMemory):
      together.run_cohort(members('ab'), 'cohorts/1', Stop(), None)
    return together.run_cohort(members('a'), 'cohorts/1a', Stop(), None)

  assert work(lead) == ['cohorts/1a']
  assert [place for place, _ in done['second']] == ['cohorts/1', 'cohorts/1a']
  assert told['apart'] == []


def test_a_failure_of_one_parts_them(told, done, monkeypatch):
  monkeypatch.setattr(study_together, '_APART_S', 0.1)
  done['fails'] = {'cohorts/1': ('second',)}
  work(lambda together: together.run_cohort(members('ab'), 'cohorts/1', Stop(), None))
  assert told['apart'] == ['study/1/end'] * 2


def test_who_follows_can_be_stopped_between_cohorts(told, done):
  stop = Stop()
  stop.requested = True
  with pytest.raises(Interrupted, match='SIGTERM, between two cohorts'):
    study_together.Together(Study(), 'study').follow(stop)

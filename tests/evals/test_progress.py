"""What is told while an evaluation lasts."""

import io

import jax
import numpy as np
import pytest

from sft_jax.evals import asking, generation, loglik, progress
from sft_jax.evals.answers import Answers
from sft_jax.evals.layout import Text
from sft_jax.evals.model import Subject
from sft_jax.parallel import mesh as mesh_lib


@pytest.fixture
def clock(monkeypatch):
  now = [100.0]
  monkeypatch.setattr('time.monotonic', lambda: now[0])
  return now


def test_a_line_every_ten_seconds_with_the_time_left(clock):
  stream = io.StringIO()
  asked = progress.Asked('gsm8k', 50, stream=stream)
  for second in range(45):
    clock[0] = 100.0 + second
    # Nothing for fifteen seconds, then five, then one a second.
    asked.add(0.0 if second < 15 else 5.0 if second == 15 else 1.0)
    asked.tell()
  asked.close()
  assert stream.getvalue().splitlines() == [
    'gsm8k: 0/50 answered',
    'gsm8k: 11/50 answered, 0:39 left',
    'gsm8k: 22/50 answered, 0:28 left',
    'gsm8k: 33/50 answered, 0:17 left',
  ]


def test_a_short_evaluation_tells_nothing(clock):
  stream = io.StringIO()
  asked = progress.Asked('gsm8k', 2, stream=stream)
  for second in (1.0, 9.5):
    clock[0] = 100.0 + second
    asked.add(1)
    asked.tell()
  asked.close()
  assert not stream.getvalue()


@pytest.mark.parametrize('kind', ['write', 'choose'])
def test_both_engines_tell_of_what_is_left_to_ask(kind, clock, monkeypatch, capsys):
  """Of two runs at once; what has been answered before is not counted."""
  checks = []
  mesh = mesh_lib.make_mesh(1, 1, 1, jax.devices()[:1])
  subject = Subject(None, {}, mesh, runs=2, check=lambda: checks.append(clock[0]))
  requests = [generation.Request((i, 1), 4) for i in range(5)]
  texts = [Text(np.array([i, 1], np.int32), 1) for i in range(5)]
  kept = [Answers(), Answers()]

  def later(asked):
    clock[0] += 11
    asked.check()

  def generate(self, requests, done):
    for index in range(len(requests)):
      later(self.subject)
      for run in (0, 1):
        done(run, index, generation.Output('x', (1,), 'end'))

  def score(subject, texts, width, done):
    for index in range(len(texts)):
      later(subject)
      done(index, loglik.Scored(np.zeros((2, 1)), np.ones((2, 1), bool)))

  monkeypatch.setattr(generation.Engine, 'generate', generate)
  monkeypatch.setattr(loglik, 'score', score)
  for count in (1, 5):
    if kind == 'write':
      settings = {'slots': 2, 'tokens_per_batch': 8, 'name': 'mine'}
      out = asking.written(subject, requests[:count], kept, None, [], **settings)
    else:
      out = asking.scored(subject, texts[:count], kept, 8, 'mine')
  assert [len(given) for given in out] == [5, 5] and len(checks) == 5
  lines = capsys.readouterr().err.splitlines()
  assert lines[0] == 'mine: 0/1 answered' and lines[1] == 'mine: 0/4 answered'
  assert lines[-1] == 'mine: 3/4 answered, 0:11 left'

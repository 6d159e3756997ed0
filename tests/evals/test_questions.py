"""What the window leaves of a prompt."""

import dataclasses

import numpy as np
import pytest

from sft_jax.evals import benchmarks, questions
from sft_jax.evals.files import LocalFiles
from sft_jax.evals.questions import Options
from tests.evals.tasks import choice_files
from tests.models.conftest import tiny_tokenizer


@pytest.fixture(scope='module')
def files(tmp_path_factory):
  directory = tmp_path_factory.mktemp('bench')
  choice_files.write(directory)
  return LocalFiles(str(directory))


def asked(files, task, window, template):
  wanted = benchmarks.parse(task)
  options = Options(tiny_tokenizer(), template, (), window)
  return questions.ask_all(wanted, *wanted.benchmark.read(files), options)


@pytest.mark.parametrize('template', ['raw', 'chat'])
@pytest.mark.parametrize('task', ['mmlu:2shot:ll', 'boolq:2shot:gen'])
def test_a_question_too_long_keeps_its_beginning_and_its_end(files, task, template):
  """What is to be done, and where the answer begins; shots give way first, and all is counted."""
  whole = asked(files, task.replace('2shot', '0shot'), 4096, template)
  shortest = min(len(one.ids) for one in whole)
  for one, full in zip(asked(files, task, shortest, template), whole, strict=True):
    assert one.cut and one.shots == 0 and len(one.ids) <= shortest
    assert not full.cut
    if len(one.ids) < len(full.ids):
      half = len(one.ids) // 2
      assert np.array_equal(one.ids[:half], full.ids[:half])
      assert np.array_equal(one.ids[half:], full.ids[len(full.ids) - len(one.ids) + half :])


def test_as_many_shots_as_there_is_room_for(files):
  tight = asked(files, 'arc_easy:2shot:ll', 4096, 'raw')[0]
  longest = max(map(len, tight.continuations))
  for less, shots in ((0, 2), (1, 1)):
    (one, *_) = asked(files, 'arc_easy:2shot:ll', len(tight.ids) + longest - 1 - less, 'raw')
    assert (one.shots, one.cut) == (shots, bool(less))


def test_shortened():
  assert questions.shortened([1, 2, 3], 3) == [1, 2, 3]
  assert questions.shortened([1, 2, 3, 4, 5], 3) == [1, 4, 5]
  assert questions.shortened([1, 2, 3], 1) == questions.shortened([1, 2, 3], -4) == [3]


def test_room_is_kept_for_an_answer(files):
  """A quarter of the window at the most."""
  wanted = benchmarks.parse('boolq:0shot:gen')
  reading = dataclasses.replace(wanted.benchmark.readings['gen'], max_new=10)
  room = lambda window: questions.room_to_write(
    reading, wanted, Options(tiny_tokenizer(), 'raw', (), window)
  )
  assert (room(100), room(40), room(20)) == (90, 30, 15)

"""Who is tried again in which company."""

import errno

import pytest

from sft_jax.study import attempts
from sft_jax.study.attempts import Failure, Part
from sft_jax.utils import lease
from sft_jax.utils.errors import Diverged, OutOfMemory, UserError

MEMORY, OTHER = Failure('memory', 'm'), Failure('other', 'o')
EIGHT = Part('all', tuple('abcdefgh'))


@pytest.mark.parametrize(
  'error, kind',
  [
    (OutOfMemory('x'), 'memory'),
    (MemoryError(), 'memory'),
    (RuntimeError('RESOURCE_EXHAUSTED: Out of memory while trying to allocate'), 'memory'),
    ('the device has too little memory (train step)', 'memory'),
    (Diverged('x'), 'numbers'),
    ('loss, gradient or update is not finite at step 3', 'numbers'),
    (UserError('the disk is full', 'x'), 'disk'),
    (OSError(errno.EDQUOT, 'Disk quota exceeded'), 'disk'),
    (OSError(errno.ENOSPC, 'No space left on device'), 'disk'),
    (UserError('this place cannot be written'), 'disk'),
    (lease.Held('x'), 'taken'),
    ('far, process 3, is at work here (x) — wait', 'taken'),
    ('this workdir holds another run: the data or model has changed', 'changed'),
    (UserError('cannot reach https://huggingface.co'), 'other'),
    (KeyError('x'), 'other'),
  ],
)
def test_kinds(error, kind):
  found = attempts.failure(error)
  assert found.kind == kind and '\n' not in found.reason


def halves(part, why, retries=2):
  return attempts.failed(part, dict.fromkeys(part.runs, why), True, retries)


def test_memory_halves_down_to_one():
  parts, up = halves(EIGHT, MEMORY)
  assert [p.runs for p in parts] == [tuple('abcd'), tuple('efgh')] and not up
  assert len({p.name for p in parts} | {'all'}) == 3
  parts, up = halves(Part('x', ('a',)), MEMORY)
  assert parts == [] and up == {'a': MEMORY}


def test_what_may_pass_is_tried_in_the_same_company_first():
  part = EIGHT
  for tries in (1, 2):
    (part,), up = halves(part, OTHER)
    assert (part.name, part.runs, part.tries, up) == ('all', EIGHT.runs, tries, {})
  parts, _ = halves(part, OTHER)
  assert [p.runs for p in parts] == [tuple('abcd'), tuple('efgh')]
  # Each half is tried once before it is halved again.
  parts, _ = halves(parts[0], OTHER)
  assert [p.runs for p in parts] == [tuple('ab'), tuple('cd')]


def test_what_fails_alone_is_tried_alone():
  failures = {'b': OTHER, 'c': Failure('numbers', 'n'), 'd': MEMORY, 'e': MEMORY}
  parts, up = attempts.failed(EIGHT, failures, False, 2)
  assert [p.runs for p in parts] == [('d',), ('e',), ('b',)]
  assert set(up) == {'c'} and parts[-1].tries == 1
  assert attempts.failed(parts[-1], {'b': OTHER}, False, 1) == ([], {'b': OTHER})


def test_deaths_count_only_in_a_row_and_without_anything_new():
  part = attempts.begin(EIGHT, 'mark')
  (part,), _ = attempts.died(part, EIGHT.runs, 'mark', 1)
  assert part.deaths == 1 and not part.open
  (part,), _ = attempts.died(attempts.begin(part, 'mark'), EIGHT.runs, 'more', 1)
  assert part.deaths == 0
  (part,), _ = attempts.died(attempts.begin(part, 'more'), EIGHT.runs, 'more', 1)
  # Those that are settled are not tried again.
  parts, up = attempts.died(attempts.begin(part, 'more'), ('a', 'b', 'c'), 'more', 1)
  assert [p.runs for p in parts] == [('a', 'b'), ('c',)] and not up
  assert all(p.deaths == 0 for p in parts)


def test_json():
  parts = [EIGHT, attempts.alone('a', 2)]
  assert attempts.from_json(attempts.to_json(parts)) == parts

"""The progress of bytes."""

import io

import pytest

from sft_jax.utils import transfer


@pytest.mark.parametrize(
  'count, text',
  [(0, '0 B'), (999, '999 B'), (1000, '1.0 kB'), (999_960, '1.0 MB'), (16.06e9, '16.1 GB')],
)
def test_sizes(count, text):
  assert transfer.as_size(count) == text
  assert transfer.as_size(3e15) == '3000.0 TB'


def test_rate_and_time_left(monkeypatch):
  now, stream = [100.0], io.StringIO()
  monkeypatch.setattr('time.monotonic', lambda: now[0])
  bar = transfer.Transfer(100_000_000, stream=stream)
  for second in range(41):
    now[0] = 100.0 + second
    # 1 MB/s, then none for ten seconds, then 5 MB/s.
    bar.update(1_000_000 * (min(second, 15) + 5 * max(second - 25, 0)))
  lines = stream.getvalue().splitlines()
  assert lines[0] == 'fetched 0 B/100.0 MB'
  assert lines[1] == 'fetched 11.0 MB/100.0 MB, 1.0 MB/s, 1:29 left'
  assert lines[2] == 'fetched 15.0 MB/100.0 MB, 363.6 kB/s, 3:54 left', 'a mean of ten seconds'
  assert lines[3] == 'fetched 55.0 MB/100.0 MB, 3.6 MB/s, 0:12 left'
  bar.update(100_000_000)
  bar.update(100_000_000)
  bar.close()
  assert stream.getvalue().splitlines()[4:] == ['fetched 100.0 MB/100.0 MB, 6.0 MB/s, 0:00 left']

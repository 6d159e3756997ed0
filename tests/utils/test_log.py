"""Metrics files that survive kills, and progress that suits its reader."""

import io as stdio
import json
import logging
import subprocess
import sys

import pytest

from sft_jax.utils import chips, log
from tests.conftest import REPOSITORY


class Terminal(stdio.StringIO):
  def isatty(self):
    return True


@pytest.fixture
def clean_logger():
  logger = logging.getLogger('sft_jax')
  before = (logger.handlers, logger.level, logger.propagate)
  yield
  logger.handlers, logger.level, logger.propagate = before


def rows(path):
  return [json.loads(line) for line in (path / 'metrics.jsonl').read_text().splitlines()]


def test_lines(tmp_path):
  run = log.RunLog(tmp_path, tensorboard=False)
  run.write(1, {'loss': 2.0})
  run.write(2, {'loss': float('nan')})
  run.close()
  assert rows(tmp_path) == [{'step': 1, 'loss': 2.0}, {'step': 2, 'loss': None}]


def test_torn_last_line_and_resume(tmp_path):
  path = tmp_path / 'metrics.jsonl'
  path.write_text(
    '{"step": 1, "loss": 3}\n{"step": 1, "eval/x": 5}\n{"step": 2, "loss": 2}\n'
    '{"step": 2, "eval/x": 4}\n{"step": 3, "loss": 1}\n{"step": 4, "lo'
  )
  run = log.RunLog(tmp_path, tensorboard=False)
  assert [row['step'] for row in rows(tmp_path)] == [1, 1, 2, 2, 3]
  run.truncate_after(2)
  # The snapshot of step 2 is taken again.
  run.write(2, {'eval/x': 4})
  run.write(3, {'again': 1.0})
  run.close()
  assert rows(tmp_path) == [
    {'step': 1, 'loss': 3},
    {'step': 1, 'eval/x': 5},
    {'step': 2, 'loss': 2},
    {'step': 2, 'eval/x': 4},
    {'step': 3, 'again': 1.0},
  ]


def test_quiet_writes_nothing(tmp_path):
  run = log.RunLog(tmp_path / 'new', quiet=True)
  run.write(1, {'loss': 1.0})
  run.truncate_after(0)
  run.close()
  assert not (tmp_path / 'new').exists()


def test_tensorboard_events_and_late_import(tmp_path):
  code = (
    'import sys\n'
    'from sft_jax.utils import log\n'
    'run = log.RunLog(sys.argv[1])\n'
    'assert "tensorflow" not in sys.modules and "clu" not in sys.modules\n'
    'run.write(3, {"loss": 1.5})\n'
    'run.close()\n'
    'from tensorboard.backend.event_processing import event_accumulator\n'
    'events = event_accumulator.EventAccumulator(sys.argv[1]).Reload()\n'
    'from tensorboard.util import tensor_util\n'
    'event, = events.Tensors("loss")\n'
    'print(event.step, float(tensor_util.make_ndarray(event.tensor_proto)))\n'
  )
  done = subprocess.run(
    [sys.executable, '-c', code, str(tmp_path)],
    cwd=REPOSITORY,
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.stdout == '3 1.5\n', done.stderr
  assert rows(tmp_path) == [{'step': 3, 'loss': 1.5}]


def test_without_tensorflow_one_warning(tmp_path, monkeypatch, capsys, clean_logger):
  monkeypatch.setitem(sys.modules, 'tensorflow', None)
  log.setup_logging()
  run = log.RunLog(tmp_path)
  run.write(1, {'loss': 1.0})
  run.write(2, {'loss': 1.0})
  run.close()
  err = capsys.readouterr().err
  assert err.count('no TensorBoard events') == 1 and err.count('\n') == 1
  assert len(rows(tmp_path)) == 2


def test_say(capsys, clean_logger):
  log.setup_logging()
  log.say('100 % done')
  log.warn('careful')
  assert capsys.readouterr() == ('100 % done\n', 'warning: careful\n')
  log.setup_logging(verbosity=-1)
  log.say('silent')
  assert capsys.readouterr() == ('', '')


def clock(monkeypatch):
  now = [100.0]
  monkeypatch.setattr('time.monotonic', lambda: now[0])
  return now


def test_rates_leave_compilation_out(monkeypatch):
  now = clock(monkeypatch)
  progress = log.Progress(100, quiet=True)
  now[0] += 60  # compiling
  assert progress.update(1, 2.0, 1000, 500) == {}
  for step in (2, 3):
    now[0] += 0.5
    rates = progress.update(step, 2.0, 1000, 500)
  assert rates == {
    'tokens-per-s': 2000.0,
    'supervised-tokens-per-s': 1000.0,
    'seconds-per-step': 0.5,
    'goodput': 1 / 61,
  }
  now[0] += 600  # evaluating
  progress.resume()
  now[0] += 1.0
  # Steps 2 to 4 took two seconds: the step after an evaluation counts like any other.
  rates = progress.update(4, 2.0, 1000, 500)
  assert rates['tokens-per-s'] == 1500.0 and rates['goodput'] == 2 / 662


def test_evaluations_after_every_step_leave_rates(monkeypatch):
  """With one long and one short step to an epoch both count, not the short one alone."""
  now = clock(monkeypatch)
  progress = log.Progress(6, quiet=True)
  for step in range(1, 7):
    long = step % 2 == 1
    now[0] += 4.0 if long else 1.0
    rates = progress.update(step, 2.0, 800 if long else 50, 10)
    if not long:
      now[0] += 300
      progress.resume()
  # Steps 2 to 6: three short and two long ones.
  assert rates['tokens-per-s'] == (3 * 50 + 2 * 800) / (3 * 1.0 + 2 * 4.0)


def test_plain_lines_every_ten_seconds(monkeypatch):
  now, stream = clock(monkeypatch), stdio.StringIO()
  progress = log.Progress(40, stream=stream)
  for step in range(1, 41):
    now[0] += 1
    progress.update(step, 1.25, 300, 100)
  progress.close()
  lines = stream.getvalue().splitlines()
  assert lines[0] == 'step 1/40, loss 1.2500'
  assert lines[1] == 'step 12/40, loss 1.2500, 300 tokens/s (100 supervised), 0:28 left'
  assert len(lines) == 5 and lines[-1].startswith('step 40/40')
  assert '\x1b' not in stream.getvalue() and '\r' not in stream.getvalue()


def test_bar_on_a_terminal(monkeypatch):
  monkeypatch.setenv('TERM', 'xterm')
  monkeypatch.setenv('COLUMNS', '120')
  monkeypatch.delenv('NO_COLOR', raising=False)
  now, stream = clock(monkeypatch), Terminal()
  progress = log.Progress(10, stream=stream)
  for step in range(1, 6):
    now[0] += 1
    progress.update(step, 1.25, 12345, 345)
  progress.close()
  text = stream.getvalue()
  assert '12,345 tokens/s (345 supervised)' in text and '0:05 left' in text and '━' in text
  assert '\x1b[32m' in text and text.endswith('\n') and text.count('\n') == 1


@pytest.mark.parametrize('columns', [40, 70, 80, 200])
def test_bar_fits_its_line(monkeypatch, columns):
  monkeypatch.setenv('TERM', 'xterm')
  monkeypatch.setenv('NO_COLOR', '1')
  monkeypatch.setenv('COLUMNS', str(columns))
  now, stream = clock(monkeypatch), Terminal()
  progress = log.Progress(10000, stream=stream)
  for step in (1, 2):
    now[0] += 100
    progress.update(step, 123.25, 123456789, 345678)
  line = stream.getvalue().split('\r\x1b[K')[-1]
  assert len(line) < columns and line.startswith(('train', '    2/10000')) and '\x1b' not in line


def test_lines_go_above_the_bar(monkeypatch, capsys, clean_logger):
  monkeypatch.setenv('TERM', 'xterm')
  log.setup_logging()
  progress = log.Progress(10, stream=Terminal())
  progress.update(1, 1.0, 1, 1)
  log.say('hello')
  progress.close()
  log.say('bye')
  out, err = capsys.readouterr()
  assert out == 'hello\nbye\n'
  assert err.startswith('\r\x1b[K') and err.endswith('loss 1.0000')


@pytest.mark.parametrize(
  'kind, peak',
  [
    ('NVIDIA H100 80GB HBM3', 989e12),
    ('NVIDIA H200', 989e12),
    ('NVIDIA A100-SXM4-80GB', 312e12),
    ('NVIDIA B200', 2250e12),
    ('TPU v4', 275e12),
    ('TPU v5 lite', 197e12),
    ('TPU v5', 459e12),
    ('TPU v5p', 459e12),
    ('TPU v6 lite', 918e12),
  ],
)
def test_mfu(kind, peak):
  assert chips.mfu(peak / 2, kind) == pytest.approx(0.5)
  assert chips.mfu(1.0, 'cpu') is None


def test_flops_per_token_reproduces_published_numbers():
  # 7,207 tokens/s a v6e chip at length 8,192 for Llama-3.1-8B is 371 TFLOP/s with causal counting
  # (MaxText's tiering table, recomputed), 40.4 % of the chip.
  flops = chips.flops_per_token(7_504_658_432, num_layers=32, width=4096, length=8192)
  assert 7207 * flops == pytest.approx(371e12, rel=2e-3)
  assert chips.mfu(7207 * flops, 'TPU v6 lite') == pytest.approx(0.404, abs=1e-3)
  lora = chips.flops_per_token(1000, 2, 8, 16, adapter_params=10)
  assert lora == 4 * 1000 + 6 * 10 + 6 * 2 * 8 * 16


def test_memory_stats():
  stats = chips.memory_stats()
  assert stats['host-bytes-peak'] >= stats['host-bytes'] > 1e7

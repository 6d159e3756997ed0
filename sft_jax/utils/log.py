"""What a run tells: metrics to files, progress and plain lines to the terminal.

Not for results: rows are written by `results.py`.
"""

import collections
import concurrent.futures
import json
import logging
import math
import os
import shutil
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TextIO

from etils import epath

from sft_jax.utils import io, terminal

_LOGGER = 'sft_jax'
# Loggers of libraries that talk at WARNING about what a user cannot mend.
_CHATTY = (
  *('orbax', 'absl', 'jax._src.xla_bridge', 'jax._src.distributed', 'datasets', 'transformers'),
  *('tensorflow', 'httpx', 'httpx2'),
)


class _Lines(logging.Handler):
  """Prints lines above the progress bar, which it redraws."""

  def __init__(self) -> None:
    super().__init__()
    self.bar = ''

  def emit(self, record: logging.LogRecord) -> None:
    if self.bar:
      terminal.write(sys.stderr, '\r\x1b[K')
    # Looked up now, not kept: whoever redirects standard output gets the line.
    stream = sys.stderr if record.levelno >= logging.WARNING else sys.stdout
    prefix = f'{record.levelname.lower()}: ' if record.levelno >= logging.WARNING else ''
    terminal.write(stream, f'{prefix}{record.getMessage()}\n')
    if self.bar:
      terminal.write(sys.stderr, self.bar)


def setup_logging(verbosity: int = 0, once: bool = False) -> None:
  """Makes `say` print, and libraries quiet.

  Args:
    verbosity: -1 warnings only; 0 our lines; 1 also what libraries say at INFO.
    once: Change nothing where this was called before.
  """
  if once and logging.getLogger(_LOGGER).handlers:
    return
  os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3' if verbosity < 1 else '0')
  # On some processors TensorFlow, which only writes events here, announces its use of oneDNN.
  os.environ.setdefault('TF_ENABLE_ONEDNN_OPTS', '0')
  # transformers announces on import that it has no torch; we use its tokenizers alone.
  os.environ.setdefault('TRANSFORMERS_NO_ADVISORY_WARNINGS', '1')
  logger = logging.getLogger(_LOGGER)
  logger.handlers = [_Lines()]
  logger.propagate = False
  logger.setLevel(logging.INFO if verbosity >= 0 else logging.WARNING)
  for name in _CHATTY:
    logging.getLogger(name).setLevel(logging.INFO if verbosity > 0 else logging.ERROR)


def say(text: str) -> None:
  """Prints a line for humans on standard output (nothing before `setup_logging`)."""
  logging.getLogger(_LOGGER).info('%s', text)


def warn(text: str) -> None:
  """Prints a warning on standard error."""
  logging.getLogger(_LOGGER).warning('%s', text)


class RunLog:
  """`metrics.jsonl` and, beside it, TensorBoard events through clu.

  The first `write` starts a thread that imports TensorFlow (seconds) and writes the events, so that
  no step waits for it; where that fails, one warning is printed and `metrics.jsonl` goes on alone.
  """

  def __init__(self, workdir: epath.PathLike, quiet: bool = False, tensorboard: bool = True):
    """Opens the log of a run, cutting off a last line that a kill left torn.

    Args:
      workdir: Directory of the run.
      quiet: Write nothing (processes other than the first).
      tensorboard: Whether to write events too.
    """
    self.path = epath.Path(workdir) / 'metrics.jsonl'
    self._workdir, self._quiet = os.fspath(workdir), quiet
    self._tensorboard = tensorboard and not quiet
    self._writer: Any = None
    self._events: concurrent.futures.Executor | None = None
    self._remote: list[str] = []
    self._flushed = time.monotonic()
    if quiet:
      return
    with io.explain_os_errors(self.path):
      self.path.parent.mkdir(parents=True, exist_ok=True)
      text = self.path.read_bytes() if self.path.exists() else b''
    whole = text[: text.rfind(b'\n') + 1]
    if whole != text:
      io.write_bytes_atomic(self.path, whole)
    if io.is_remote(workdir):
      self._remote = [f'{line}\n' for line in whole.decode().splitlines()]

  def write(self, step: int, scalars: Mapping[str, float]) -> None:
    """Adds one line {'step': step, name: value}; a value that is not finite is null."""
    if self._quiet:
      return
    line = io.to_json({'step': step, **scalars}) + '\n'
    with io.explain_os_errors(self.path):
      if io.is_remote(self._workdir):
        self._remote.append(line)
        # An object store has no append: the whole file is sent, once a minute.
        if time.monotonic() - self._flushed > 60:
          self.flush()
      else:
        handle = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        try:
          # One write call: a kill leaves the line or nothing.
          os.write(handle, line.encode())
        finally:
          os.close(handle)
    if self._tensorboard:
      self._events = self._events or concurrent.futures.ThreadPoolExecutor(1, 'tensorboard')
      self._events.submit(self._write_event, step, {k: _single(v) for k, v in scalars.items()})

  def _write_event(self, step: int, scalars: dict[str, float]) -> None:
    if not self._tensorboard:
      return
    try:
      if self._writer is None:
        import tensorflow as tf
        from clu import metric_writers

        # TensorFlow would take the memory of every GPU it sees.
        tf.config.set_visible_devices([], 'GPU')
        self._writer = metric_writers.SummaryWriter(self._workdir)
      self._writer.write_scalars(step, scalars)
    except Exception as e:  # whatever a broken installation raises
      self._tensorboard = False
      warn(f'no TensorBoard events: {type(e).__name__}: {e}; metrics.jsonl is written all the same')

  def truncate_after(self, step: int) -> None:
    """Removes what a run resumed after `step` steps writes again.

    That is, lines of later steps, and of this step those that are no step's own (without a loss):
    its snapshot is taken again.
    """
    if self._quiet or not (self._remote or self.path.exists()):
      return
    lines = self._remote or self.path.read_text().splitlines(keepends=True)
    kept = [line for line in lines if _is_before(line, step)]
    if self._remote:
      self._remote = kept
    if len(kept) != len(lines):
      io.write_text_atomic(self.path, ''.join(kept))

  def flush(self) -> None:
    """Sends what is held back for an object store."""
    self._flushed = time.monotonic()
    if self._remote:
      io.write_text_atomic(self.path, ''.join(self._remote))

  def close(self) -> None:
    """Writes what is held back and closes; the log cannot be written afterwards."""
    self.flush()
    if self._events is not None:
      self._events.shutdown(wait=True)
    if self._writer is not None:
      self._writer.close()
      self._writer = None
    self._tensorboard = False


def _single(value: float) -> float:
  """The value, or the infinity beyond float32, which is all that TensorBoard holds."""
  return math.copysign(math.inf, value) if abs(value) > 3.4e38 else float(value)


def _is_before(line: str, step: int) -> bool:
  """Whether a line was written before the snapshot of `step`."""
  try:
    row = json.loads(line)
    return row['step'] < step or (row['step'] == step and 'loss' in row)
  except (ValueError, KeyError, TypeError):
    return False


class Bar:
  """One bar line on a terminal; without one, a plain line every ten seconds.

  NO_COLOR (any value but an empty one) takes the colour away.
  """

  def __init__(self, stream: TextIO | None, quiet: bool, every_s: float):
    self._stream = stream or sys.stderr
    self._quiet, self._every = quiet, every_s
    self._tty = terminal.is_terminal(self._stream)
    self._colour = terminal.takes_colour(self._stream)
    self._drawn = float('-inf')

  def show(self, bar: Callable[[], str], plain: Callable[[], str], last: bool) -> None:
    """Draws the bar line or prints the plain one, when it is time to; the last one always."""
    now = time.monotonic()
    if self._quiet or not (last or now - self._drawn > (0.1 if self._tty else self._every)):
      return
    self._drawn = now
    if self._tty:
      self._draw(bar())
    else:
      terminal.write(self._stream, f'{plain()}\n')

  def close(self) -> None:
    """Ends the bar's line."""
    if self._tty and not self._quiet and self._drawn > float('-inf'):
      self._draw(None)
      terminal.write(self._stream, '\n')

  def bar(self, label: str, count: str, share: float, numbers: Sequence[str]) -> str:
    """The bar line; on a narrow terminal without the bar."""
    tail = '  '.join(numbers)
    columns = shutil.get_terminal_size().columns
    width = min(30, columns - len(count) - len(tail) - len(label) - 8)
    if width < 5:
      return f'{count}  {tail}'[: columns - 1]
    full = round(width * share)
    on, off = '━' * full, '─' * (width - full)
    bar = f'\x1b[32m{on}\x1b[0m\x1b[2m{off}\x1b[0m' if self._colour else on + off
    return f'{label} {count} {bar}  {tail}'

  def _draw(self, line: str | None) -> None:
    if line is not None:
      terminal.write(self._stream, f'\r\x1b[K{line}')
    for handler in logging.getLogger(_LOGGER).handlers:
      if isinstance(handler, _Lines):
        handler.bar = line or ''


class Progress(Bar):
  """Progress of a training run.

  Rates are means over the last steps and leave out the first update's wait, which is compilation.
  """

  def __init__(
    self,
    total_steps: int,
    done: int = 0,
    stream: TextIO | None = None,
    quiet: bool = False,
    every_s: float = 10.0,
    window: int = 50,
  ):
    """Starts at step `done` of `total_steps`.

    Args:
      total_steps: Number of optimiser steps.
      done: Steps done before, in a run that continues.
      stream: Default standard error.
      quiet: Print nothing; rates are still measured.
      every_s: Seconds between plain lines.
      window: Number of steps that rates are a mean of.
    """
    super().__init__(stream, quiet, every_s)
    self._total, self._done = total_steps, done
    self._recent: collections.deque[tuple[float, int, float, float]] = collections.deque(
      maxlen=window + 1
    )
    self._totals = (0.0, 0.0)
    self._began, self._busy = time.monotonic(), 0.0

  def update(self, step: int, loss: float, tokens: float, supervised: float) -> dict[str, float]:
    """Tells that `step` steps are done.

    Args:
      step: Number of finished steps.
      loss: Loss of that step, mean over supervised tokens.
      tokens: Tokens of that step that are not padding.
      supervised: Tokens of that step that carry loss.

    Returns:
      {'tokens-per-s', 'supervised-tokens-per-s', 'seconds-per-step', 'goodput'}, without rates at
      first. Goodput is the share of all time since the start that steps took: the rest went into
      compiling and evaluating.
    """
    if self._recent:
      self._busy += time.monotonic() - self._recent[-1][0]
    self._done = step
    self._totals = (self._totals[0] + tokens, self._totals[1] + supervised)
    self._recent.append((time.monotonic(), step, *self._totals))
    rates = self._rates()
    numbers = self._numbers(loss, rates)
    count = f'{step:>{len(str(self._total))}}/{self._total}'
    self.show(
      lambda: self.bar('train', count, step / max(self._total, 1), numbers),
      lambda: ', '.join([f'step {step}/{self._total}', *numbers]),
      last=step >= self._total,
    )
    return rates

  def resume(self) -> None:
    """Leaves out what has passed since the last step (an evaluation): it is no training time."""
    if self._recent:
      passed = time.monotonic() - self._recent[-1][0]
      moved = [(at + passed, step, all_, told) for at, step, all_, told in self._recent]
      self._recent = collections.deque(moved, self._recent.maxlen)

  def _rates(self) -> dict[str, float]:
    (start, first, tokens0, supervised0), (now, last, tokens1, supervised1) = (
      self._recent[0],
      self._recent[-1],
    )
    seconds = now - start
    if seconds <= 0 or last <= first:
      return {}
    return {
      'tokens-per-s': (tokens1 - tokens0) / seconds,
      'supervised-tokens-per-s': (supervised1 - supervised0) / seconds,
      'seconds-per-step': seconds / (last - first),
      'goodput': self._busy / (now - self._began),
    }

  def _numbers(self, loss: float, rates: Mapping[str, float]) -> list[str]:
    parts = [f'loss {loss:.4f}']
    if rates:
      parts.append(
        f'{rates["tokens-per-s"]:,.0f} tokens/s'
        f' ({rates["supervised-tokens-per-s"]:,.0f} supervised)'
      )
      left = rates['seconds-per-step'] * (self._total - self._done)
      parts.append(f'{clock(left)} left')
    return parts


def clock(seconds: float) -> str:
  """'0:28', '1:02:03'."""
  minutes, s = divmod(round(seconds), 60)
  hours, m = divmod(minutes, 60)
  return f'{hours}:{m:02d}:{s:02d}' if hours else f'{m}:{s:02d}'

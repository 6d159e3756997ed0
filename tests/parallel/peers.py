"""Runs of the tiny model in several processes that form one program, over gloo. Not a test.

Forked from a server that has imported everything (see `victim.py`), with two fake devices or as
many as asked for in each.
"""

import dataclasses
import multiprocessing
import os
import socket
import sys
import time
from pathlib import Path
from typing import Any

# For the server: what each process would otherwise import again.
import orbax.checkpoint  # noqa: F401
from transformers import AutoTokenizer, LlamaConfig, PreTrainedTokenizerFast  # noqa: F401

from sft_jax import main
from sft_jax.execution import runner
from sft_jax.utils import log


@dataclasses.dataclass
class Program:
  """Processes of one program, and what they say."""

  processes: list[multiprocessing.Process]
  directory: Path

  def join(self, timeout_s: float = 120) -> list[int | None]:
    """Exit statuses; those that are still alive are killed."""
    until = time.monotonic() + timeout_s
    for process in self.processes:
      process.join(max(0.0, until - time.monotonic()))
    codes = [process.exitcode for process in self.processes]
    for process in self.processes:
      process.kill()
    return codes

  def said(self, index: int) -> str:
    """Output and errors of a process."""
    return (self.directory / f'{index}.log').read_text()

  def send(self, index: int, number: int) -> None:
    """Sends a signal to one of them."""
    pid = self.processes[index].pid
    assert pid is not None
    os.kill(pid, number)


def free_port() -> int:
  """A port of the loopback device that nobody uses."""
  with socket.socket() as s:
    s.bind(('127.0.0.1', 0))
    return s.getsockname()[1]


def start(
  given: Any, workdir: Path, directory: Path, count: int, devices: int = 1, step_seconds: float = 0
) -> Program:
  """Starts a run in `count` processes of `devices` fake devices each; logs go to `directory`."""
  directory.mkdir(parents=True, exist_ok=True)
  context = multiprocessing.get_context('forkserver')
  context.set_forkserver_preload(['tests.parallel.peers'])
  port = free_port()
  processes = []
  for index in range(count):
    environment = {
      'JAX_COORDINATOR_ADDRESS': f'127.0.0.1:{port}',
      'JAX_NUM_PROCESSES': str(count),
      'JAX_PROCESS_ID': str(index),
      'XLA_FLAGS': f'{os.environ.get("XLA_FLAGS", "")} '
      f'--xla_force_host_platform_device_count={devices}',
    }
    args = (given, str(workdir), environment, str(directory / f'{index}.log'), step_seconds)
    processes.append(context.Process(target=live, args=args))
    processes[-1].start()
  return Program(processes, directory)


def live(
  given: Any, workdir: str, environment: dict[str, str], said: str, step_seconds: float
) -> None:
  """One process: does its part of the run and exits as the command line does."""
  os.environ.update(environment)
  given.log.tensorboard = False  # Importing TensorFlow would be most of the time.
  update = log.Progress.update

  def slow(self: log.Progress, *args: Any) -> dict[str, float]:
    time.sleep(step_seconds)
    return update(self, *args)

  log.Progress.update = slow  # type: ignore[method-assign]
  with open(said, 'w', buffering=1) as stream:
    os.dup2(stream.fileno(), 1)
    os.dup2(stream.fileno(), 2)
    sys.stdout = sys.stderr = stream
    log.setup_logging()
    main._ending_well(lambda: runner.run(given, workdir))

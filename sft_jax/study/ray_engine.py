"""Spreads a study over a Ray cluster: the same worker as on one machine, in many places.

Ray decides where workers run and starts those of a dead node again elsewhere; which cohort is whose
is settled by leases, as between any processes that share a workdir.
"""

import dataclasses
import math
import os
import re
import signal
import socket
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import sft_jax
from sft_jax.study.contract import Stop
from sft_jax.utils import log
from sft_jax.utils.errors import UserError

# (waits for cohorts of others) -> what the worker tells, as JSON. See `spread`.
Worker = Callable[[bool], Mapping[str, Any]]

_WHERE = 'config.study.engine'
_KEY = 'config.study.resources'
# What decides how a worker finds models, data and devices.
_ENVIRONMENT = ('JAX_', 'XLA_', 'HF_', 'SFT_JAX_', 'LIBTPU_')


def resources_of(text: str) -> dict[str, float]:
  """{'TPU': 4.0} of 'TPU:4'; several between commas.

  Raises:
    UserError: not of this form.
  """
  wanted: dict[str, float] = {}
  for part in filter(None, (part.strip() for part in text.split(','))):
    name, _, amount = part.rpartition(':')
    try:
      wanted[name] = float(amount)
    except ValueError:
      wanted[name] = math.nan
    if not name or not 0 < wanted[name] < math.inf:
      raise UserError(f'{part!r} is no resource', _KEY, 'give NAME:AMOUNT, such as TPU:4 or GPU:1')
  if not wanted:
    raise UserError('no resource given', _KEY, 'for example TPU:4, GPU:1 or CPU:8')
  return wanted


def backend_of(wanted: Mapping[str, float]) -> str:
  """JAX's backend where these resources are; asked without touching a device."""
  names = [name.split('-')[0] for name in wanted]
  return 'tpu' if 'TPU' in names else 'gpu' if 'GPU' in names else 'cpu'


def room(nodes: Sequence[Mapping[str, Any]], wanted: Mapping[str, float]) -> int:
  """How many workers fit on the nodes of a cluster, each on one node.

  Args:
    nodes: As `ray.nodes()` tells them.
    wanted: Of a worker.

  Raises:
    UserError: none; it says what the nodes have.
  """
  alive = [node['Resources'] for node in nodes if node['Alive']]
  fits = lambda has: min(int(has.get(name, 0) / amount) for name, amount in wanted.items())
  count = sum(fits(has) for has in alive)
  if count:
    return count
  asked = ', '.join(f'{name}: {amount:g}' for name, amount in wanted.items())
  raise UserError(
    f'no node of the Ray cluster has {asked}', _KEY, f'the cluster has {_inventory(alive)}'
  )


def _inventory(alive: Sequence[Mapping[str, float]]) -> str:
  """'2 nodes with CPU: 8, GPU: 1 and 1 node with CPU: 4'."""
  kinds: dict[str, int] = {}
  for has in alive:
    shown = {
      name: amount
      for name, amount in sorted(has.items())
      if not name.startswith('node:') and 'memory' not in name
    }
    text = ', '.join(f'{name}: {amount:g}' for name, amount in shown.items()) or 'nothing'
    kinds[text] = kinds.get(text, 0) + 1
  told = [f'{n} {"node" if n == 1 else "nodes"} with {text}' for text, n in kinds.items()]
  return ' and '.join(told) or 'no nodes'


@dataclasses.dataclass(frozen=True)
class Work:
  """What is to be spread.

  Attributes:
    worker: Works on the study like a process on one machine. It is told whether to stay while
      others are at work, and returns {'error': text of a UserError or ''}. Its module must be found
      on every node.
    left: Cohorts that are not settled.
    busy: Of them, those that some process is at.
    tell_stop: Tells workers, wherever they are, to save and return.
  """

  worker: Worker
  left: Callable[[], int]
  busy: Callable[[], int]
  tell_stop: Callable[[], None]


def spread(
  work: Work, stop: Stop, wanted: Mapping[str, float], workers: int = 0, poll_s: float = 1.0
) -> None:
  """Runs workers in the cluster until nothing is left to do, or asked to stop.

  Args:
    work: What is to be done.
    stop: Asked to stop, workers are told, and their ends are waited for.
    wanted: Resources of a worker.
    workers: At once at most; 0 for as many as fit.
    poll_s: Seconds between looks.

  Raises:
    UserError: no Ray, no cluster, no node with these resources, or what a worker raised.
  """
  ray = _ray()
  ours = not ray.is_initialized()
  _connect(ray)
  try:
    patient = False
    while not stop.requested and (left := work.left()):
      count = min(room(ray.nodes(), wanted), left, workers or left)
      log.say(f'{count} {"worker" if count == 1 else "workers"} in the Ray cluster')
      task = _task(ray, work.worker, wanted)
      _wait(ray, [task.remote(patient) for _ in range(count)], work, stop, poll_s)
      # Whatever is still left is held by the dead: now stay until they count as such.
      patient = True
  finally:
    if ours:
      ray.shutdown()


def _task(ray: Any, worker: Worker, wanted: Mapping[str, float]) -> Any:
  return ray.remote(worker).options(
    num_cpus=wanted.get('CPU', 0),
    num_gpus=wanted.get('GPU', 0),
    resources={name: n for name, n in wanted.items() if name not in ('CPU', 'GPU')},
    max_retries=-1,  # Of a node that died: a worker's own errors are returned.
    scheduling_strategy='SPREAD',
    runtime_env={'env_vars': _environment()},
  )


def _wait(ray: Any, pending: list[Any], work: Work, stop: Stop, poll_s: float) -> None:
  """Waits for all workers.

  Raises:
    UserError: one of them met it; the others were stopped.
  """
  errors: list[str] = []
  told = False
  while pending:
    ready, pending = ray.wait(pending, timeout=poll_s)
    errors += [error for error in (ray.get(ref)['error'] for ref in ready) if error]
    if (errors or stop.requested) and not told:
      work.tell_stop()
      told = True
    if pending and (told or not work.left()) and not work.busy():
      # They wait for room, perhaps for ever, or are about to end: there is nothing to be saved.
      for ref in pending:
        ray.cancel(ref)
      break
  if errors:
    raise UserError(errors[0])


def _environment() -> dict[str, str]:
  """What workers need of ours, wherever they run."""
  root = str(Path(sft_jax.__file__).resolve().parents[1])
  paths = [root, *filter(None, os.environ.get('PYTHONPATH', '').split(os.pathsep))]
  ours = {name: value for name, value in os.environ.items() if name.startswith(_ENVIRONMENT)}
  return {**ours, 'PYTHONPATH': os.pathsep.join(dict.fromkeys(paths))}


def _ray() -> Any:
  try:
    import ray
  except ImportError as e:
    raise UserError(
      'Ray is not installed', _WHERE, 'pip install "ray>=2.60,<3", or leave it at local'
    ) from e
  return ray


def _connect(ray: Any) -> None:
  if ray.is_initialized():
    return
  address = os.environ.get('RAY_ADDRESS', 'auto')
  _require_answer(address)
  numbers = signal.SIGTERM, signal.SIGINT
  handlers = {number: signal.getsignal(number) for number in numbers}
  try:
    ray.init(address=address, log_to_driver=False, logging_level='ERROR')
  except Exception as e:  # ConnectionError, RuntimeError, ValueError, by what is wrong
    raise _no_cluster(str(e)[:200]) from e
  finally:
    if threading.current_thread() is threading.main_thread():
      # Ray's own would end this process in the middle.
      for number, handler in handlers.items():
        signal.signal(number, handler)


def _require_answer(address: str) -> None:
  """Asks HOST:PORT whether anybody is there: Ray itself would try for minutes."""
  if found := re.fullmatch(r'([\w.-]+):(\d+)', address):
    try:
      with socket.create_connection((found[1], int(found[2])), timeout=10):
        return
    except (OSError, OverflowError) as e:
      raise _no_cluster(f'{address}: {e}') from e


def _no_cluster(why: str) -> UserError:
  return UserError(
    f'no Ray cluster: {why}',
    _WHERE,
    'start one with `ray start --head`, or name one in RAY_ADDRESS',
  )

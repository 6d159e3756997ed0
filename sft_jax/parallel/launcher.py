"""Which processes form one program, read from what launchers put into the environment.

Not for joining them: that is `mesh.init_distributed`.
"""

import dataclasses
import re
from collections.abc import Mapping

from sft_jax.utils.errors import UserError

_PLAIN = ('JAX_COORDINATOR_ADDRESS', 'JAX_NUM_PROCESSES', 'JAX_PROCESS_ID')
# Slurm names no port: as jax does, one of the last 4,096, by the job's number.
_PORTS = 4096
_HOW = 'start every process with the same address and count, and with its own number from 0 on'


@dataclasses.dataclass(frozen=True)
class Launch:
  """One process among several.

  Attributes:
    coordinator: host:port where process 0 waits for the others.
    count: Processes in all.
    index: Which this is.
    local_devices: Devices of this host that are its own; None for all.
    where: Where that was read, for messages.
  """

  coordinator: str
  count: int
  index: int
  local_devices: tuple[int, ...] | None
  where: str


def from_environment(env: Mapping[str, str]) -> Launch | None:
  """This process among several; None where it is alone, or jax itself knows the launcher.

  Plain variables come first, so that they can be set under any launcher:

    JAX_COORDINATOR_ADDRESS  host:port of process 0, the same for all
    JAX_NUM_PROCESSES        how many there are; 1 is one process, whatever else is set
    JAX_PROCESS_ID           0, 1, …; of a Kubernetes indexed Job its JOB_COMPLETION_INDEX serves

  Then Slurm, for what `srun` starts with several tasks (a batch script, or a task of an array, is a
  process by itself). With one task a node it has all devices of its node, else one device a task.

  Args:
    env: The environment.

  Raises:
    UserError: half of it is there, or it makes no sense.
  """
  if count := env.get('JAX_NUM_PROCESSES'):
    return _plain(env) if _number(count, 'JAX_NUM_PROCESSES') > 1 else None
  if _number(env.get('SLURM_STEP_NUM_TASKS') or '1', 'SLURM_STEP_NUM_TASKS') > 1:
    return _slurm(env)
  return None


def _plain(env: Mapping[str, str]) -> Launch:
  number = 'JAX_PROCESS_ID'
  if not env.get(number) and env.get('JOB_COMPLETION_INDEX'):
    number = 'JOB_COMPLETION_INDEX'
  names = ('JAX_COORDINATOR_ADDRESS', 'JAX_NUM_PROCESSES', number)
  for name in names:
    if not env.get(name):
      raise UserError(f'several processes are announced, but not {name}', 'environment', _HOW)
  address = env['JAX_COORDINATOR_ADDRESS']
  count, index = (_number(env[name], name) for name in names[1:])
  return _checked(Launch(address, count, index, None, ', '.join(names)))


def _slurm(env: Mapping[str, str]) -> Launch:
  names = ('SLURM_STEP_NODELIST', 'SLURM_JOB_ID', 'SLURM_PROCID')
  for name in names:
    if not env.get(name):
      raise UserError(f'Slurm announces several tasks, but {name} is not set', 'environment', _HOW)
  count = _number(env['SLURM_STEP_NUM_TASKS'], 'SLURM_STEP_NUM_TASKS')
  port = env.get('JAX_COORDINATOR_PORT') or str(
    65536 - _PORTS + _number(env['SLURM_JOB_ID'], 'SLURM_JOB_ID') % _PORTS
  )
  tasks = [int(n) for n in re.findall(r'(?:^|,)(\d+)', env.get('SLURM_STEP_TASKS_PER_NODE', '1'))]
  local = None
  if max(tasks, default=1) > 1 and ',' in env.get('CUDA_VISIBLE_DEVICES', ','):
    local = (_number(env.get('SLURM_LOCALID', '0'), 'SLURM_LOCALID'),)
  host = first_host(env['SLURM_STEP_NODELIST'])
  index = _number(env['SLURM_PROCID'], 'SLURM_PROCID')
  where = 'SLURM_STEP_NODELIST, SLURM_STEP_NUM_TASKS, SLURM_PROCID'
  return _checked(Launch(f'{host}:{port}', count, index, local, where))


def first_host(nodes: str) -> str:
  """The first of Slurm's list of nodes, such as `gpu[003-007,9],login` or `a1,b2`."""
  match = re.match(r'([^,\[]+)(?:\[(\w+))?', nodes)
  return ''.join(part or '' for part in match.groups()) if match else nodes


def _number(text: str, name: str) -> int:
  if not text.isdecimal():
    raise UserError(f'{text!r} is no number', name, _HOW)
  return int(text)


def _checked(launch: Launch) -> Launch:
  # A port that is none would be waited for all the same.
  match = re.fullmatch(r'\S+:([0-9]{1,5})', launch.coordinator)
  if not match or not 0 < int(match[1]) < 65536:
    raise UserError(
      f'{launch.coordinator!r} is no address',
      launch.where,
      'give host:port of process 0, with a port from 1 to 65535',
    )
  if launch.index >= launch.count:
    raise UserError(
      f'process {launch.index} does not exist among {launch.count}', launch.where, _HOW
    )
  return launch

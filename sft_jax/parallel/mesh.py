"""Devices: joining processes, the mesh, and refusing to leave an accelerator idle.

Not for deciding how an array is cut: that is `rules.py`.
"""

import contextlib
import glob
import math
import os
import socket
import time
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from absl import logging
from jax.sharding import AxisType, Mesh

from sft_jax.parallel import launcher
from sft_jax.utils import aborts, log, peers
from sft_jax.utils.errors import UserError

AXES = ('data', 'fsdp', 'tensor')

# Environment variables set on TPU machines (jax itself sets others, such as TPU_ML_PLATFORM).
_TPU_MACHINE = ('TPU_ACCELERATOR_TYPE', 'TPU_WORKER_ID', 'TPU_WORKER_HOSTNAMES', 'TPU_NAME')


def make_mesh(
  data: int = 1, fsdp: int = -1, tensor: int = 1, devices: Sequence[Any] | None = None
) -> Mesh:
  """Returns the mesh with axes ('data', 'fsdp', 'tensor'); one size may be -1 (fill).

  Args:
    data: Replicas of the parameters; each works on its own part of the batch.
    fsdp: Parts each parameter is cut into; each works on its own part of the batch.
    tensor: Parts of heads, mlp and vocabulary.
    devices: Default all devices of all processes. Abstract devices of a topology work too.

  Raises:
    UserError: the sizes do not multiply out to the number of devices.
  """
  devices = list(jax.devices() if devices is None else devices)
  sizes = _fill({'data': data, 'fsdp': fsdp, 'tensor': tensor}, len(devices))
  return Mesh(_arrange(sizes, devices), AXES, axis_types=(AxisType.Auto,) * len(AXES))


def fill(data: int, fsdp: int, tensor: int, count: int) -> tuple[int, int, int]:
  """Sizes of `AXES` for so many devices; see `make_mesh`."""
  found = _fill({'data': data, 'fsdp': fsdp, 'tensor': tensor}, count)
  return found[0], found[1], found[2]


def _fill(sizes: dict[str, int], count: int) -> tuple[int, ...]:
  where = ', '.join(f'config.mesh.{axis}={size}' for axis, size in sizes.items())
  free = [axis for axis, size in sizes.items() if size == -1]
  bad = [axis for axis, size in sizes.items() if size < 1 and size != -1]
  if bad:
    raise UserError(
      f'mesh size {sizes[bad[0]]} is neither positive nor -1',
      where=f'config.mesh.{bad[0]}',
      how='give a positive number, or -1 to take the devices that are left',
    )
  if len(free) > 1:
    raise UserError(
      'more than one mesh size is -1', where=where, how='leave one of them -1 and set the others'
    )
  known = math.prod(size for size in sizes.values() if size != -1)
  if count % known or (not free and known != count):
    noun = 'device' if count == 1 else 'devices'
    left = 'config.mesh.fsdp=-1 takes what is left'
    raise UserError(
      f'the mesh does not fit {count} {noun}: its sizes multiply to {known}',
      where=where,
      how=f'choose sizes whose product {"divides" if free else "is"} {count}; {left}',
    )
  return tuple(count // known if size == -1 else size for size in sizes.values())


def _arrange(shape: tuple[int, ...], devices: list[Any]) -> np.ndarray:
  """Lays devices out so that inner axes are near neighbours on the interconnect."""
  # Imported here: only this function needs it.
  from jax.experimental import mesh_utils

  slices = {getattr(d, 'slice_index', 0) for d in devices}
  if len(slices) > 1:
    # Between TPU slices runs the data centre's network: only replicas may span it.
    if shape[0] % len(slices):
      raise UserError(
        f'{len(slices)} TPU slices cannot share config.mesh.data={shape[0]} evenly',
        where='config.mesh.data',
        how=f'make it a multiple of {len(slices)}: only the data axis crosses slices',
      )
    inner = (shape[0] // len(slices), *shape[1:])
    outer = (len(slices), *(1 for _ in shape[1:]))
    return mesh_utils.create_hybrid_device_mesh(inner, outer, devices)
  try:
    return mesh_utils.create_device_mesh(shape, devices)
  except NotImplementedError:
    # A size that is no product of whole torus dimensions (tensor=2 on 4x4x4).
    return mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)


def init_distributed(timeout_s: int = 300) -> None:
  """Joins the processes of one program; does nothing where there is one process.

  Call it before the first use of a device. Several processes are recognised by what a launcher
  sets; see `launcher.from_environment` for plain variables, Kubernetes indexed Jobs and Slurm's
  `srun`. Open MPI and TPU pods are known to jax. Workers of a study that a Slurm array, a
  Kubernetes Job or Ray starts are programs of one process each, and are not joined; a run over
  several nodes of a Ray cluster is given the plain variables.

  Args:
    timeout_s: How long to wait for the other processes, in seconds.

  Raises:
    UserError: the processes did not meet, or do not agree on how many they are.
  """
  env = os.environ
  if jax.distributed.is_initialized():
    return
  launch = launcher.from_environment(env)
  known = _number_of('OMPI_COMM_WORLD_SIZE') > 1 or ',' in env.get('TPU_WORKER_HOSTNAMES', '')
  on_tpu = _tpu_nodes('/dev') != [] and env.get('JAX_PLATFORMS', 'tpu') != 'cpu'
  if launch is None and (_number_of('JAX_NUM_PROCESSES') == 1 or not (known or on_tpu)):
    return
  # Its handler of SIGTERM would take the place of ours, which saves first.
  jax.config.update('jax_enable_preemption_service', False)
  explicit: dict[str, Any] = {}
  if launch is not None:
    _await_coordinator(launch, timeout_s)
    explicit = {
      'coordinator_address': launch.coordinator,
      'num_processes': launch.count,
      'process_id': launch.index,
      'local_device_ids': launch.local_devices,
      'cluster_detection_method': 'deactivate',
    }
  where = launch.where if launch else 'OMPI_COMM_WORLD_SIZE, TPU_WORKER_HOSTNAMES'
  apart = lambda why: UserError(
    f'the processes of this program did not meet {why}',
    where,
    'look at what the others say; start every process with the same coordinator and count and with '
    'its own number, all within that time, and let them reach its port',
  )
  line = f'error: {apart(f"in {timeout_s} s")}'
  try:
    with aborts.told_as(line, 2) if launch or known else contextlib.nullcontext():
      jax.distributed.initialize(initialization_timeout=timeout_s, **explicit)
  except (ValueError, RuntimeError) as e:
    if launch or known:
      # Going on would train one separate model a host.
      raise apart(f': {e}') from e
    logging.info('One TPU host, no other processes: %s', e)
    return
  peers.watch(timeout_s)
  if not peers.is_first():
    log.setup_logging(-1)  # They all would say the same.


def _number_of(name: str) -> int:
  text = os.environ.get(name, '')
  return int(text) if text.isdecimal() else 0


def _await_coordinator(launch: launcher.Launch, timeout_s: float) -> None:
  """Returns when process 0 answers: the runtime would abort where it does not."""
  host, _, port = launch.coordinator.rpartition(':')
  until, why = time.monotonic() + timeout_s, ''
  while launch.index:
    try:
      socket.create_connection((host.strip('[]'), int(port)), timeout=5).close()
      return
    except OSError as e:
      why = e.strerror or str(e)
    if time.monotonic() > until:
      raise UserError(
        f'the coordinator {launch.coordinator} does not answer in {timeout_s:g} s: {why}',
        launch.where,
        f'check that process 0 has started there, that {socket.gethostname()} knows that name, and '
        'that no firewall closes the port',
      )
    time.sleep(0.5)


def _tpu_nodes(dev: str) -> list[str]:
  """Device files of TPU chips."""
  nodes = glob.glob(f'{dev}/accel[0-9]*') + glob.glob(f'{dev}/accel/accel[0-9]*')
  # Newer TPUs lie behind vfio, but so does any passed-through card: a TPU's machine says so too.
  if any(name in os.environ for name in _TPU_MACHINE):
    nodes += glob.glob(f'{dev}/vfio/[0-9]*')
  return nodes


def backend() -> str:
  """jax's backend: cpu, gpu or tpu.

  Raises:
    UserError: JAX_PLATFORMS asks for what jax cannot use.
  """
  try:
    return str(jax.default_backend())
  except (RuntimeError, AssertionError) as e:
    # What it knows and passes over, such as CUDA without a card, it does not tell.
    why = str(e).split(' (set JAX_PLATFORMS')[0] or 'there is no such device here'
    raise UserError(
      f'jax cannot use what was asked for: {why:.300}',
      where=f'JAX_PLATFORMS={os.environ.get("JAX_PLATFORMS", "")}',
      how="pip install '.[cuda]' or '.[tpu]' in the checkout, or unset it to take what there is",
    ) from e


def check_accelerator(allow_idle: bool = False, dev: str = '/dev') -> None:
  """Refuses to train on the CPU of a machine whose GPU or TPU jax does not use.

  Args:
    allow_idle: Accept it. JAX_PLATFORMS=cpu, set by the user, says the same.
    dev: Directory of device files.

  Raises:
    UserError: an accelerator's device file exists and jax runs on the CPU; or JAX_PLATFORMS asks
      for what jax cannot use.
  """
  on_cpu = backend() == 'cpu'
  if allow_idle or os.environ.get('JAX_PLATFORMS', '').lower() == 'cpu':
    return
  found = {
    'cuda': glob.glob(f'{dev}/nvidia[0-9]*'),
    'tpu': _tpu_nodes(dev),
  }
  for extra, nodes in found.items():
    if nodes and on_cpu:
      name = {'cuda': 'an NVIDIA GPU', 'tpu': 'a TPU'}[extra]
      raise UserError(
        f'this machine has {name} but jax runs on the CPU',
        where=sorted(nodes)[0],
        how=f"pip install '.[{extra}]' in the checkout for a jax that uses it, "
        'or go on without it with --config.mesh.allow_idle=true',
      )

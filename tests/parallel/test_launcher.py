"""Which processes form one program, by what launchers set."""

import re

import pytest

from sft_jax.parallel import launcher
from sft_jax.utils.errors import UserError

PLAIN = {'JAX_COORDINATOR_ADDRESS': 'a:1', 'JAX_NUM_PROCESSES': '4', 'JAX_PROCESS_ID': '3'}
SRUN = {
  'SLURM_JOB_ID': '4100',
  'SLURM_STEP_NUM_TASKS': '4',
  'SLURM_STEP_NODELIST': 'gpu[003-006]',
  'SLURM_STEP_TASKS_PER_NODE': '1(x4)',
  'SLURM_PROCID': '2',
  'SLURM_LOCALID': '0',
}


def test_plain_variables():
  found = launcher.from_environment(PLAIN)
  assert (found.coordinator, found.count, found.index) == ('a:1', 4, 3)
  assert found.local_devices is None
  # Whatever else is set.
  assert launcher.from_environment(SRUN | PLAIN).count == 4
  assert launcher.from_environment(SRUN | PLAIN | {'JAX_NUM_PROCESSES': '1'}) is None


def test_kubernetes_indexed_job():
  env = {**PLAIN, 'JOB_COMPLETION_INDEX': '2'}
  assert launcher.from_environment(env).index == 3, 'a number given by hand comes first'
  del env['JAX_PROCESS_ID']
  found = launcher.from_environment(env)
  assert found.index == 2 and 'JOB_COMPLETION_INDEX' in found.where
  # Workers of a study are given no count: each is a program by itself.
  assert launcher.from_environment({'JOB_COMPLETION_INDEX': '2'}) is None


def test_slurm():
  found = launcher.from_environment(SRUN)
  # The port is jax's own choice for this job.
  assert found.coordinator == f'gpu003:{65536 - 4096 + 4}'
  assert (found.count, found.index, found.local_devices) == (4, 2, None)
  assert launcher.from_environment(SRUN | {'JAX_COORDINATOR_PORT': '77'}).coordinator == 'gpu003:77'
  # A task of an array, and a batch script, are started without others.
  assert launcher.from_environment({'SLURM_NTASKS': '4', 'SLURM_JOB_ID': '1'}) is None
  assert launcher.from_environment(SRUN | {'SLURM_STEP_NUM_TASKS': '1'}) is None


@pytest.mark.parametrize(
  'more, devices',
  [
    ({'SLURM_STEP_TASKS_PER_NODE': '2(x2)'}, (1,)),
    ({'SLURM_STEP_TASKS_PER_NODE': '1,3'}, (1,)),
    # Slurm has given each task its own.
    ({'SLURM_STEP_TASKS_PER_NODE': '2(x2)', 'CUDA_VISIBLE_DEVICES': '5'}, None),
    ({'SLURM_STEP_TASKS_PER_NODE': '1(x12)'}, None),
  ],
)
def test_devices_of_a_task(more, devices):
  assert launcher.from_environment({**SRUN, 'SLURM_LOCALID': '1', **more}).local_devices == devices


@pytest.mark.parametrize(
  'nodes, host',
  [
    ('a', 'a'),
    ('a1,b2', 'a1'),
    ('gpu[003,007-9],login', 'gpu003'),
    ('rack2-gpu[12-15]', 'rack2-gpu12'),
  ],
)
def test_first_host(nodes, host):
  assert launcher.first_host(nodes) == host


@pytest.mark.parametrize(
  'env, words',
  [
    ({'JAX_NUM_PROCESSES': '2'}, 'JAX_COORDINATOR_ADDRESS'),
    (PLAIN | {'JAX_PROCESS_ID': ''}, 'not JAX_PROCESS_ID'),
    (PLAIN | {'JAX_PROCESS_ID': '4'}, 'process 4 does not exist among 4'),
    (PLAIN | {'JAX_PROCESS_ID': '-1'}, "'-1' is no number"),
    (PLAIN | {'JAX_NUM_PROCESSES': 'many'}, "'many' is no number"),
    (PLAIN | {'JAX_COORDINATOR_ADDRESS': 'a'}, "'a' is no address"),
    (PLAIN | {'JAX_COORDINATOR_ADDRESS': 'a:99999'}, 'a port from 1 to 65535'),
    (SRUN | {'JAX_COORDINATOR_PORT': '0'}, "'gpu003:0' is no address"),
    (SRUN | {'SLURM_STEP_NODELIST': ''}, 'not SLURM_STEP_NODELIST|SLURM_STEP_NODELIST is not set'),
  ],
)
def test_bad_environments(env, words):
  with pytest.raises(UserError) as error:
    launcher.from_environment(env)
  assert re.search(words, str(error.value)), str(error.value)
  assert ' — ' in str(error.value)

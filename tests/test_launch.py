"""The launch files: each is valid, runs a command of ours, and starts it again after exit status 3.

Commands of clusters are stood in for by scripts that write down what they are asked. Slurm and
several processes are exercised for real by `benchmarks/slurm.py` and `benchmarks/processes.py`.
"""

import copy
import os
import re
import shlex
import subprocess
from pathlib import Path

import pytest
import yaml

from configs import base
from sft_jax import config_file, main, spec
from tests.conftest import REPOSITORY

LAUNCH = REPOSITORY / 'launch'
SHELL = ('slurm.sbatch', 'tpu_vm.sh', 'ray.sh')
KUBERNETES = ('indexed-job.yaml', 'jobset.yaml')


def test_every_file_is_known():
  files = {str(p.relative_to(LAUNCH)) for p in LAUNCH.rglob('*') if p.is_file()}
  known = {*SHELL, *(f'kubernetes/{name}' for name in KUBERNETES)}
  assert files == known | {'ray.yaml', 'Dockerfile', 'apptainer.def', 'README.md'}
  text = (LAUNCH / 'README.md').read_text()
  assert all(f'`{name}`' in text for name in files - {'README.md'}), 'told in the README'


def commands(text):
  """Arguments of ours in a text: of every line, continued ones joined, that has `--config=`."""
  text = re.sub(r'\\\n(#\s*)?', ' ', text)
  for line in text.splitlines():
    if '--config=' in line:
      yield [word for word in shlex.split(line.lstrip('# ')) if word.startswith('--config')]


def arguments_of(pod):
  return pod['containers'][0]['args']


def check_command(arguments):
  """What is given to us exists, and is of the right type."""
  flags = dict(argument.removeprefix('--').partition('=')[::2] for argument in arguments)
  config = config_file.load_config(flags.pop('config'))
  flags.pop('workdir', None)
  for flag, value in flags.items():
    kept = config
    *path, last = flag.removeprefix('config.').split('.')
    for part in path:
      kept = kept[part]
    assert isinstance(kept[last], str), f'{flag} of {value}: only text is given in these files'
    kept[last] = value
  config_file.check_values(config, 'launch')
  spec.check_settings(config)


@pytest.mark.parametrize('name', [*SHELL, 'Dockerfile', 'apptainer.def'])
def test_usage_is_a_command_of_ours(name, monkeypatch):
  monkeypatch.chdir(REPOSITORY)
  found = list(commands((LAUNCH / name).read_text()))
  assert found
  for arguments in found:
    check_command(arguments)


@pytest.mark.parametrize('name', SHELL)
def test_shell_files_parse(name):
  done = subprocess.run(['bash', '-n', str(LAUNCH / name)], capture_output=True, text=True)
  assert (done.returncode, done.stderr) == (0, '')
  assert os.access(LAUNCH / name, os.X_OK)


def stand_in(directory: Path, name: str, body: str) -> None:
  """A command that writes down its arguments, one call a line in `calls`."""
  script = directory / name
  script.write_text(f'#!/bin/bash\necho "{name} $*" >> "{directory}/calls"\n{body}\n')
  script.chmod(0o755)


def run(name, directory, arguments=('--config=configs/base.py', '--workdir=a b'), **env):
  path = f'{directory}:{os.environ["PATH"]}'
  return subprocess.run(
    [str(LAUNCH / name), *arguments],
    env=os.environ | {'PATH': path, **env},
    capture_output=True,
    text=True,
    timeout=60,
  )


def calls(directory):
  return (directory / 'calls').read_text().splitlines()


@pytest.mark.parametrize('status', [0, 1, 2, 3])
def test_slurm_queues_again_after_three(status, tmp_path):
  stand_in(tmp_path, 'srun', f'exit {status}')
  stand_in(tmp_path, 'scontrol', '')
  done = run('slurm.sbatch', tmp_path, SLURM_JOB_ID='77')
  assert done.returncode == status, done.stderr
  expected = ['srun python -m sft_jax.main --config=configs/base.py --workdir=a b']
  assert calls(tmp_path) == expected + ['scontrol requeue 77'] * (status == 3)


def test_slurm_warns_before_the_limit_and_may_be_queued_again():
  text = (LAUNCH / 'slurm.sbatch').read_text()
  options = dict(re.findall(r'^#SBATCH --([\w-]+)=?(\S*)$', text, re.M))
  assert options['signal'] == 'TERM@120', 'to the tasks of srun, which save; not to the shell (B:)'
  assert 'requeue' in options and options['open-mode'] == 'append'
  assert not text.split('\n')[1:] or 'array' not in options, 'given on the command line'


def fake_gcloud(directory, endings):
  """A cloud whose runs end in turn with these statuses; 'gone' is a slice that is taken back."""
  (directory / 'endings').write_text('\n'.join(endings) + '\n')
  stand_in(
    directory,
    'gcloud',
    f"""
case "$*" in
  *describe*) cat "{directory}/state" ;;
  *create*) echo ACTIVE > "{directory}/state" ;;
  *" ssh "*)
    next=$(head -n1 "{directory}/endings"); sed -i 1d "{directory}/endings"
    if [[ $next == gone ]]; then echo SUSPENDED > "{directory}/state"; exit 255; fi
    for status in $next; do echo "exit status $status"; done ;;
esac""",
  )


@pytest.mark.parametrize(
  'endings, status', [(['0 0'], 0), (['3 3', '0 0'], 0), (['gone', '0 0'], 0), (['2 2'], 1)]
)
def test_tpu_slices_come_again(endings, status, tmp_path):
  fake_gcloud(tmp_path, endings)
  names = {'NAME': 'sft', 'ZONE': 'z', 'TYPE': 'v6e-64', 'RUNTIME': 'r', 'IMAGE': 'i'}
  done = run('tpu_vm.sh', tmp_path, **names, SPOT='--spot', POLL='0')
  assert done.returncode == status, done.stderr
  told = [' '.join(line.split()[3:5]) for line in calls(tmp_path) if 'describe' not in line]
  assert told == ['queued-resources create', 'tpu-vm ssh', 'queued-resources delete'] * len(endings)
  create, ssh = calls(tmp_path)[0], next(line for line in calls(tmp_path) if ' ssh ' in line)
  assert '--spot' in create and '--accelerator-type=v6e-64' in create and '--zone=z' in create
  assert '--worker=all' in ssh and r'i --config=configs/base.py --workdir=a\ b; echo' in ssh


def test_tpu_needs_its_names(tmp_path):
  done = run('tpu_vm.sh', tmp_path, NAME='sft', ZONE='z')
  assert done.returncode and 'TYPE' in done.stderr


@pytest.mark.parametrize('endings, status', [([0], 0), ([3, 3, 0], 0), ([3, 2], 2)])
def test_ray_starts_again_after_three(endings, status, tmp_path):
  (tmp_path / 'endings').write_text(''.join(f'{ending}\n' for ending in endings))
  file = f'"{tmp_path}/endings"'
  stand_in(tmp_path, 'python', f'next=$(head -n1 {file}); sed -i 1d {file}; exit $next')
  assert run('ray.sh', tmp_path).returncode == status
  command = 'python -m sft_jax.main --config=configs/base.py --workdir=a b'
  assert calls(tmp_path) == [f'{command} --config.study.engine=ray'] * len(endings)


def test_a_signal_ends_the_ray_study_for_good(tmp_path):
  wait = 'for _ in {1..200}; do sleep 0.05; done'
  stand_in(tmp_path, 'python', f'trap "exit 3" TERM; kill -TERM $PPID; {wait}')
  assert run('ray.sh', tmp_path).returncode == 3
  assert len(calls(tmp_path)) == 1


def documents(name):
  return list(yaml.safe_load_all((LAUNCH / 'kubernetes' / name).read_text()))


def as_job(document):
  """The Job in a document; of a JobSet that of its first template."""
  if document['kind'] == 'Job':
    return document
  template = document['spec']['replicatedJobs'][0]['template']
  return {'apiVersion': 'batch/v1', 'kind': 'Job', 'metadata': {'name': 'x'}, **template}


@pytest.mark.parametrize('name', KUBERNETES)
def test_kubernetes_files_fit_the_schema(name):
  validate = pytest.importorskip('kubernetes_validate')
  (document,) = documents(name)
  # Strict: an unknown key, such as a misspelt one, is refused.
  validate.validate(as_job(document), validate.latest_version(), strict=True)
  spoilt = copy.deepcopy(as_job(document))
  spoilt['spec']['completionsMode'] = 'Indexed'
  with pytest.raises(validate.ValidationError):
    validate.validate(spoilt, validate.latest_version(), strict=True)


@pytest.mark.parametrize('name', KUBERNETES)
def test_kubernetes_pods_run_ours_and_end_as_told(name, monkeypatch):
  monkeypatch.chdir(REPOSITORY)
  job = as_job(documents(name)[0])['spec']
  pod = job['template']['spec']
  (container,) = pod['containers']
  assert container['command'] == ['python', '-m', 'sft_jax.main']
  check_command(container['args'])
  assert pod['restartPolicy'] == 'Never', 'what an exit policy of a Job asks for'
  assert pod['terminationGracePeriodSeconds'] >= 60, 'time to save'
  mounted = {mount['name'] for mount in container['volumeMounts']}
  assert mounted == {volume['name'] for volume in pod['volumes']}
  assert job['completionMode'] == 'Indexed' and job['completions'] == job['parallelism']
  rules = [
    (rule['action'], rule['onExitCodes']['values'], rule['onExitCodes']['containerName'])
    for rule in job['podFailurePolicy']['rules']
    if 'onExitCodes' in rule
  ]
  assert ('FailJob', [2], container['name']) in rules
  if name == 'indexed-job.yaml':
    assert ('Ignore', [3], container['name']) in rules, 'replaced, and not counted'


def test_jobset_forms_one_program():
  (document,) = documents('jobset.yaml')
  given = document['spec']
  assert set(document) == {'apiVersion', 'kind', 'metadata', 'spec'}
  assert (document['apiVersion'], document['kind']) == ('jobset.x-k8s.io/v1alpha2', 'JobSet')
  assert set(given) == {'failurePolicy', 'replicatedJobs'}
  (hosts,) = given['replicatedJobs']
  assert set(hosts) == {'name', 'replicas', 'template'} and hosts['replicas'] == 1
  job = hosts['template']['spec']
  env = {item['name']: item['value'] for item in job['template']['spec']['containers'][0]['env']}
  assert int(env['JAX_NUM_PROCESSES']) == job['completions']
  # JobSet names a pod SET-JOB-REPLICA-INDEX, in a subdomain named after the set.
  name = document['metadata']['name']
  host, port = env['JAX_COORDINATOR_ADDRESS'].split(':')
  assert host == f'{name}-{hosts["name"]}-0-0.{name}'
  ports = job['template']['spec']['containers'][0]['ports']
  assert int(port) in [item['containerPort'] for item in ports]
  # One pod that ends ends the job, upon which all start again, unless the input was bad.
  assert job['backoffLimit'] == 0 and given['failurePolicy']['maxRestarts'] > 0
  (rule,) = given['failurePolicy']['rules']
  assert rule['action'] == 'FailJobSet' and rule['onJobFailureReasons'] == ['PodFailurePolicy']


def test_ray_cluster():
  cluster = yaml.safe_load((LAUNCH / 'ray.yaml').read_text())
  ray = pytest.importorskip('ray.autoscaler._private.util')
  check = lambda config: ray.validate_config(ray.prepare_config(copy.deepcopy(config)))
  check(cluster)
  with pytest.raises(Exception, match='Additional properties are not allowed'):
    check(cluster | {'start_commands': []})
  assert cluster['max_workers'] == len(cluster['provider']['worker_ips'])


def test_images_hold_what_is_run():
  docker = (LAUNCH / 'Dockerfile').read_text()
  assert 'ENTRYPOINT ["python", "-m", "sft_jax.main"]' in docker
  copied = re.findall(r'^COPY (.+) \S+$', docker, re.M)
  apptainer = (LAUNCH / 'apptainer.def').read_text()
  assert 'exec python -m sft_jax.main "$@"' in apptainer
  for name in ' '.join(copied).split():
    assert (REPOSITORY / name).exists() and re.search(rf'^  {re.escape(name)} ', apptainer, re.M)
  # What a wheel is built from, by pyproject.toml.
  built = {'sft_jax', 'configs', 'pyproject.toml', 'requirements.txt', 'README.md', 'LICENSE'}
  assert set(' '.join(copied).split()) == built
  assert main.MODES and base.get_config().study.engine == 'local'

"""A study over a Ray cluster: several node processes on this machine, on the loopback address."""

import pathlib
import threading
import time

import pytest

from sft_jax.study import engine, ray_engine
from sft_jax.study.directory import StudyDirectory
from sft_jax.utils import lease
from sft_jax.utils.errors import UserError
from tests.study import fake
from tests.study.test_engine import failures, tables, trace, wait_for, work

NODE = {'num_cpus': 1, 'object_store_memory': 80 << 20, 'node_ip_address': '127.0.0.1'}


@pytest.mark.parametrize(
  'text, wanted', [('TPU:4', {'TPU': 4}), (' GPU:1, CPU:2.5 ', {'GPU': 1, 'CPU': 2.5})]
)
def test_resources(text, wanted):
  assert ray_engine.resources_of(text) == wanted


@pytest.mark.parametrize('text', ['', ',', 'TPU', 'TPU:x', ':4', 'TPU:0', 'TPU:-1', 'GPU:inf'])
def test_no_resources(text):
  with pytest.raises(UserError) as e:
    ray_engine.resources_of(text)
  assert e.value.where == 'config.study.resources' and '\n' not in str(e.value)


def test_backend():
  ask = lambda text: ray_engine.backend_of(ray_engine.resources_of(text))
  assert [ask('TPU-v5p-16:4'), ask('CPU:8,GPU:1'), ask('CPU:8')] == ['tpu', 'gpu', 'cpu']


def nodes(*resources):
  return [{'Alive': True, 'Resources': {'memory': 1e9, 'node:1': 1.0, **r}} for r in resources]


def test_room_is_counted_node_by_node():
  has = nodes({'TPU': 4.0, 'CPU': 8.0}, {'TPU': 8.0, 'CPU': 4.0}, {'CPU': 64.0})
  assert ray_engine.room(has, {'TPU': 4}) == 3
  assert ray_engine.room(has, {'TPU': 4, 'CPU': 3}) == 2
  has[0]['Alive'] = False
  assert ray_engine.room(has, {'TPU': 4}) == 2


def test_a_resource_that_no_node_has_enough_of():
  has = nodes({'CPU': 8.0, 'GPU': 1.0}, {'CPU': 8.0, 'GPU': 1.0}, {'CPU': 4.0})
  with pytest.raises(UserError, match='no node of the Ray cluster has GPU: 2') as e:
    ray_engine.room(has, {'GPU': 2})
  assert e.value.how == 'the cluster has 2 nodes with CPU: 8, GPU: 1 and 1 node with CPU: 4'


def test_without_ray(monkeypatch):
  monkeypatch.setitem(__import__('sys').modules, 'ray', None)
  with pytest.raises(UserError, match='Ray is not installed'):
    ray_engine.spread(None, None, {'CPU': 1})


@pytest.fixture(scope='module')
def cluster():
  ray = pytest.importorskip('ray')
  from ray._private import services
  from ray.cluster_utils import Cluster

  with pytest.MonkeyPatch.context() as patch:
    # Or it would take "127.0.0.1" for the address of the first network card.
    patch.setattr(services, 'node_ip_address_from_perspective', lambda *_: '127.0.0.1')
    patch.setenv('RAY_USAGE_STATS_ENABLED', '0')
    made = Cluster(initialize_head=True, head_node_args={**NODE, 'num_cpus': 0})
    patch.setenv('RAY_ADDRESS', made.address)
    yield made
    if ray.is_initialized():
      ray.shutdown()
    made.shutdown()


def add(cluster):
  return cluster.add_node(**NODE, resources={'TPU': 4})


def spread(study, workdir, wanted, stop=None):
  """What `study_run` does, with a worker that needs no model."""
  place = StudyDirectory(workdir)
  record = engine.open_study(study, workdir, fake.compare)
  file = fake.dump(study, workdir.parent / f'{workdir.name}.study')
  stop_file = workdir / 'stop'
  left = lambda: [k for k, runs in record.cohorts.items() if not all(map(place.settled, runs))]
  arguments = str(file), str(workdir), str(stop_file)
  ray_engine.spread(
    ray_engine.Work(
      lambda patient: fake.in_ray(*arguments, patient),
      left=lambda: len(left()),
      busy=lambda: sum(lease.holder(place.lease(key)) is not None for key in left()),
      tell_stop=lambda: stop_file.write_text(''),
    ),
    stop or fake.Stop(),
    ray_engine.resources_of(wanted),
    poll_s=0.1,
  )


@pytest.mark.slow
def test_nodes_that_are_killed_lose_nothing(cluster, tmp_path):
  """Three nodes, one killed twice: the tables equal an undisturbed study's to the last byte."""
  alive = [add(cluster) for _ in range(3)]
  quiet, shared = tmp_path / 'quiet', tmp_path / 'shared'
  work(fake.make([2] * 8, steps=8), quiet)
  study = fake.make([2] * 8, steps=8, step_s=0.3)
  steps = lambda: len((shared / 'trace').read_text().splitlines()) if shared.exists() else 0
  stop = fake.Stop()
  # Nodes start in the main thread only.
  driver = threading.Thread(target=lambda: spread(study, shared, 'TPU:4', stop))
  driver.start()
  try:
    for enough in (12, 60):
      wait_for(lambda n=enough: (shared / 'trace').exists() and steps() >= n, 'steps')
      cluster.remove_node(alive.pop(0), allow_graceful=False)
      alive.append(add(cluster))
    driver.join(timeout=120)
    assert not driver.is_alive() and steps() > 60
  finally:
    stop.reason = 'the end'
    driver.join()
    for node in alive:
      cluster.remove_node(node)
  assert tables(shared) == tables(quiet) and not failures(shared)
  workers = {line.split('"pid": ')[1] for line in (shared / 'trace').read_text().splitlines()}
  assert len(workers) >= 3
  assert sum(trace(shared).values()) - len(trace(shared)) <= 2 * 2 * fake.SAVE_EVERY


@pytest.mark.slow
def test_the_cluster_lacks_a_resource(cluster, tmp_path):
  node = add(cluster)
  try:
    with pytest.raises(UserError, match='no node of the Ray cluster has TPU: 8') as e:
      spread(fake.make([1]), tmp_path / 'w', 'TPU:8')
    assert 'TPU: 4' in e.value.how and '\n' not in str(e.value)
  finally:
    cluster.remove_node(node)


@pytest.mark.slow
def test_stop_and_errors_reach_the_workers(cluster, tmp_path):
  node = add(cluster)
  try:
    workdir, stop = tmp_path / 'w', fake.Stop()
    timer = threading.Thread(
      target=lambda: (
        wait_for(lambda: (workdir / 'trace').exists(), 'step'),
        time.sleep(0.3),
        setattr(stop, 'reason', 'SIGTERM'),
      )
    )
    timer.start()
    spread(fake.make([1], steps=500, step_s=0.05), workdir, 'TPU:4', stop)
    timer.join()
    done = trace(workdir)
    assert 0 < len(done) < 500 and not list(pathlib.Path(workdir).glob('cohorts/*/lease.json'))
    with pytest.raises(UserError, match='the disk is full'):
      spread(fake.make([1], trouble={'r00': 'full:9'}), tmp_path / 'full', 'TPU:4')
  finally:
    cluster.remove_node(node)


def test_no_cluster(monkeypatch, tmp_path):
  pytest.importorskip('ray')
  monkeypatch.setenv('RAY_ADDRESS', '127.0.0.1:1')
  with pytest.raises(UserError, match='no Ray cluster') as e:
    spread(fake.make([1]), tmp_path / 'w', 'CPU:1')
  assert '\n' not in str(e.value)

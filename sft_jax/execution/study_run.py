"""Does what a config's study describes: expand, work on it, collect; the modes around it.

Each mode is one function of (config, entries of the sweep, workdir) and returns what `--json` ends
with. Not for what a study is (`study/plan.py`) or how work is shared (`study/engine.py`).
"""

import contextlib
import json
import os
import threading
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from etils import epath
from ml_collections import ConfigDict

from sft_jax.parallel import topology
from sft_jax.study import (
  contents,
  contract,
  cost,
  engine,
  plan,
  plan_text,
  ray_engine,
  status,
  table,
)
from sft_jax.study.directory import StudyDirectory, StudyRecord
from sft_jax.study.live import Live
from sft_jax.utils import io, lease, log, peers, process, words
from sft_jax.utils.errors import Interrupted, UserError

Entries = Iterable[Mapping[str, Any]]


def run(config: Any, entries: Entries, workdir: str, session: Any = None) -> dict[str, Any]:
  """Works on a study until nothing is left that can be done here, and writes its tables.

  A `Session` may be shared with other studies of this process; where Ray spreads one, its workers
  share what the session keeps in files: prepared data, and what was found of the base.

  Raises:
    UserError: bad input; or some runs were given up, which the tables say too.
    Interrupted: stopped; the same command continues.
  """
  from sft_jax.execution import study_sizes
  from sft_jax.train import loop

  entries = list(entries)
  on_ray = config.study.engine == 'ray'
  with loop.StopSignal(config.max_seconds) as stop:
    with stop.at_once():
      study = expand(config, entries, backend_of(config))
      study_sizes.model_sizes(study.runs)  # Refuses what a base does not allow.
      if config.study.equal != 'none':
        cost.comparability(study, study_sizes.sizes(study))
    cohorts = words.count(len(study.cohorts), 'cohort')
    log.say(f'study in {workdir}: {words.count(len(study.runs), "run")} in {cohorts}')
    try:
      if on_ray:
        _spread(study, config, entries, workdir, stop, session)
      else:
        _work(study, config, workdir, stop, config.study.wait, session)
    except Interrupted:
      if peers.is_first():
        with contextlib.suppress(UserError):  # The stop is what is told.
          table.collect(workdir)
      raise
    if not peers.is_first():
      return {}
    table.collect(workdir)
    return _end(workdir)


def plan_mode(
  config: Any, entries: Entries, workdir: str, command: Sequence[str] = ()
) -> dict[str, Any]:
  """Says what a study is and takes; with the workdir of a study, also whether it may go on there.

  Args:
    config: What the runs share.
    entries: The runs, as overrides.
    workdir: Of the study; '' for none.
    command: Words that run the study, for what is told of chips; none tells flags alone.

  Raises:
    UserError: a bad run; another study is in the workdir, or its data have changed, or its quota
      has no room for all runs.
  """
  from sft_jax.execution import study_room, study_sizes

  if config.plan.topology:
    backend = topology.parse(config.plan.topology).chip.platform
  else:
    backend = backend_of(config)
  study = expand(config, entries, backend)
  place = StudyDirectory(workdir) if workdir else None
  sizes = study_sizes.sizes(study)
  for line in plan_text.lines(study, sizes):
    log.say(line)
  if place is not None and (place.path / 'study.json').exists():
    before = place.record()
    changes = plan.compare_definitions(before.definition, study.definition())
    if changes:
      raise UserError(f'this workdir holds another study: {"; ".join(changes)}', workdir)
    contents.check_files(before.files, contents.file_digests(_files(study)))
  if place is not None:
    study_room.check_plan(study, sizes, workdir)
  return plan_text.as_json(study, sizes) | (
    _on_chips(study, config, sizes, command) if config.plan.topology else {}
  )


def _on_chips(
  study: plan.Study, config: Any, sizes: cost.Sizes, command: Sequence[str]
) -> dict[str, Any]:
  """What the study takes on `config.plan.topology`."""
  from sft_jax.ahead import plan as ahead_plan
  from sft_jax.ahead import text

  found = ahead_plan.plan(study, config, sizes.data)
  log.say('')
  for line in text.lines(found, config, command):
    log.say(line)
  ahead_plan.refuse_if_too_large(found)
  return {'on_chips': text.as_json(found, config)}


def status_mode(config: Any, workdir: str) -> dict[str, Any]:
  """Says how far a study is, from its files alone; from any machine, at any time.

  Raises:
    UserError: no study is there.
  """
  del config
  lines, value = status.status(workdir)
  for line in lines:
    log.say(line)
  return value


def expand(config: Any, entries: Entries, backend: str) -> plan.Study:
  """The study, with every run checked as far as that costs nothing.

  Raises:
    UserError: a bad run; an unknown data set or task; runs that are not equally much trained.
  """
  study = plan.expand(config, entries, backend, _check)
  cost.comparability(study)
  return study


def _check(run: Any) -> None:
  from sft_jax.data import datasets
  from sft_jax.evals import core

  core.task_names(run.eval.tasks)
  datasets.parts(run.data.name, run.data.path)


def _backend(config: Any) -> str:
  from sft_jax.parallel import mesh as mesh_lib

  mesh_lib.init_distributed(config.mesh.wait_seconds)
  return mesh_lib.backend()


def backend_of(config: Any) -> str:
  """JAX's backend where the runs of a study are done.

  Of Ray that of the workers: the process that starts them has perhaps no device, and takes none.

  Raises:
    UserError: bad resources.
  """
  if config.study.engine == 'ray':
    return ray_engine.backend_of(ray_engine.resources_of(config.study.resources))
  return _backend(config)


def _files(study: plan.Study) -> list[str]:
  """Local files that the runs are made of, besides models, whose identity each run records."""
  from sft_jax.data import datasets

  paths = set()
  for planned in study.runs:
    spec, data = planned.spec, planned.config.data
    rows = datasets.described(spec.data_name, spec.data_path, data.dir)
    paths |= {row['path'].removeprefix('hf:') for row in rows.values()}
  return sorted(paths)


def _options(study: plan.Study, config: Any, workdir: str, wait: bool) -> engine.Options:
  from sft_jax.execution import study_room

  given, room = config.study, study_room.Room(study, workdir)
  return engine.Options(given.retries, wait, given.lease_seconds, given.retry_failed, room)


def _work(
  study: plan.Study, config: Any, workdir: str, stop: contract.Stop, wait: bool, session: Any = None
) -> None:
  """Works in this process, and those that form one program with it."""
  from sft_jax.execution.study_together import Together
  from sft_jax.parallel import mesh as mesh_lib

  # Of a machine that cannot work no run is the fault.
  mesh_lib.check_accelerator(config.mesh.allow_idle)
  together = Together(study, workdir, session)
  if not peers.is_first():
    together.follow(stop)
    return
  with together.leading():
    engine.work(
      study,
      workdir,
      together.run_cohort,
      stop,
      compare=plan.compare_definitions,
      files=_files(study),
      options=_options(study, config, workdir, wait),
    )
    log.say(f'{words.count(together.programs, "train program")} compiled in this process')


def _spread(
  study: plan.Study,
  config: Any,
  entries: Sequence[Mapping[str, Any]],
  workdir: str,
  stop: contract.Stop,
  session: Any = None,
) -> None:
  """Works in a Ray cluster; this process only watches."""
  wanted = ray_engine.resources_of(config.study.resources)
  whole = lambda path: path if not path or io.is_remote(path) else os.path.abspath(path)
  place = StudyDirectory(whole(workdir))
  record = engine.open_study(study, place.path, plan.compare_definitions, _files(study))
  stop_file = place.path / f'.stop-{uuid.uuid4().hex[:8]}'
  given = io.to_json({'config': config.to_dict(), 'entries': list(entries)})
  where = {'workdir': os.fspath(place.path), 'directory': os.getcwd(), 'stop': str(stop_file)}
  if session is not None:
    where |= {'prepared': whole(session.prepared_dir), 'base': whole(session.base_place)}
  work = ray_engine.Work(
    lambda patient: ray_worker(given, where, patient),
    left=lambda: len(_unsettled(place, record)),
    busy=lambda: sum(_at_work(place, key) for key in _unsettled(place, record)),
    tell_stop=lambda: io.write_text_atomic(stop_file, stop.reason or 'another worker'),
  )
  try:
    with Live(place, record, 30.0):
      ray_engine.spread(work, stop, wanted, config.study.workers)
  finally:
    stop_file.unlink(missing_ok=True)
  if stop.requested and (left := _unsettled(place, record)):
    cohorts = words.count(len(left), 'cohort')
    raise Interrupted(f'{stop.reason}, with {cohorts} to do; start again to go on')


def _unsettled(place: StudyDirectory, record: StudyRecord) -> list[str]:
  return [
    key for key, runs in record.cohorts.items() if not all(place.settled(run) for run in runs)
  ]


def _at_work(place: StudyDirectory, key: str) -> bool:
  holder = lease.holder(place.lease(key))
  return holder is not None and not holder['expired']


def ray_worker(given: str, where: Mapping[str, str], patient: bool) -> dict[str, str]:
  """Works on a study in a process that Ray started somewhere.

  Args:
    given: JSON of the config and of the entries of its sweep.
    where: {'workdir', 'directory' to be in, 'stop': file that tells to stop}; of a shared session
      also 'prepared', where prepared data are, and 'base', an evaluation of the base or ''.
    patient: Whether to stay for cohorts that others are at.
  """
  from sft_jax.execution.session import Session
  from sft_jax.train import loop

  log.setup_logging()
  held = json.loads(given)
  config = ConfigDict(held['config']).lock()
  try:
    if not (StudyDirectory(where['workdir']).path / 'study.json').exists():
      raise UserError(
        f'the workdir is not seen from {process.me()["host"]}',
        where['workdir'],
        'put it on a disk that all nodes of the cluster share, or into a bucket',
      )
    if os.path.isdir(where['directory']):
      os.chdir(where['directory'])
    with loop.StopSignal() as stop, _stopped_by(epath.Path(where['stop']), stop):
      session = Session.of_files(where['prepared'], where['base']) if 'prepared' in where else None
      study = expand(config, held['entries'], _backend(config))
      _work(study, config, where['workdir'], stop, patient, session)
  except Interrupted:
    return {'error': ''}
  except UserError as e:
    return {'error': str(e)}
  return {'error': ''}


@contextlib.contextmanager
def _stopped_by(file: Any, stop: Any) -> Iterator[None]:
  """Context in which a stop is asked for as soon as `file` is there."""
  ended = threading.Event()

  def watch() -> None:
    while not ended.wait(1.0):
      if file.exists():
        stop.reason = stop.reason or file.read_text()

  thread = threading.Thread(target=watch, name='stop', daemon=True)
  thread.start()
  try:
    yield
  finally:
    ended.set()
    thread.join()


def _end(workdir: str) -> dict[str, Any]:
  """What is told at the end.

  Raises:
    UserError: some runs were given up.
  """
  lines, value = status.status(workdir)
  log.say(lines[len(value['cohorts'])])
  if failures := value['failures']:
    first = failures[0]
    raise UserError(
      f'{len(failures)} of {value["runs"]} runs were given up, such as {first["name"]}: '
      f'{first["reason"]}',
      os.path.join(workdir, 'failures.csv'),
      'mend what it says and start again with --config.study.retry_failed=True',
    )
  if value['done'] == value['runs']:
    log.say(f'all is done: see {workdir}/results.csv')
  return value

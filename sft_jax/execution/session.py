"""What runs of one process share, so that nothing is read, tokenised or compiled twice.

Not for results: a run in a session leaves what it leaves by itself.
"""

import collections
import dataclasses
import functools
import hashlib
import json
import os
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

from jax.sharding import Mesh

from sft_jax import spec as spec_lib
from sft_jax.data import datasets
from sft_jax.data.formats import Record
from sft_jax.evals import records
from sft_jax.evals.benchmark import Services
from sft_jax.evals.questions import Options, Wanted
from sft_jax.evals.suite import BenchmarkTask
from sft_jax.execution import evaluation, inputs, workdir
from sft_jax.execution.bases import Bases
from sft_jax.train.step import TrainStep
from sft_jax.utils import mixture

# Training records of the data sets held in memory at once, the latest; others are read again.
_RECORDS = 300_000
# Data sets, each of which holds three files open.
_SETS = 16
# Factors that decide what the prepared data are, besides the tokenizer.
DATA_FACTORS = (
  *('data_name', 'data_path', 'data_format', 'data_size', 'template', 'loss_on'),
  *('heldout_share', 'heldout_max', 'max_length', 'too_long', 'seed_data'),
)


class _Seen:
  """Which items occur in some training data."""

  def __init__(self, name: Hashable, records: Sequence[Record]):
    self.name, self._records = name, records

  @functools.cached_property
  def _search(self) -> Callable[[Sequence[Any]], list[bool]]:
    return evaluation.search(self._records) or (lambda items: [False] * len(items))

  def __call__(self, items: Sequence[Any]) -> list[bool]:
    return self._search(items)


class Session:
  """Resolved models, bases, prepared data and tasks, compiled steps, and scores of bases.

  Attributes:
    shared: Whether runs are given shapes that others have too.
    bases: Pretrained parameters.
    steps: Train steps made so far, by what is compiled into them and the shapes they serve.
    base_scores: What tasks found on a base, by base and task.
    base_records: By task, what an evaluation of the one base of all runs has found before.
    base_place: Where those are read; '' where there are none.
    budgets: Items that a time pays for, by how tasks are asked.
  """

  def __init__(self, prepared_dir: str = '', *, shared: bool = True):
    """Shares nothing yet.

    Args:
      prepared_dir: Where prepared data are kept for other processes; '' keeps none.
      shared: False for a run by itself: its shapes fit it alone, and nothing is kept for a next.
    """
    self.prepared_dir, self.shared = prepared_dir, shared
    self.bases = Bases(keep_host=shared)
    self.steps: dict[Hashable, TrainStep] = {}
    self.base_scores: dict[Hashable, Any] = {}
    self.base_records: Mapping[str, Sequence[dict[str, Any]]] = {}
    self.base_place = ''
    self.budgets: dict[str, dict[str, Any]] = {}
    self._tasks: dict[Hashable, BenchmarkTask] = {}
    self._contaminated: dict[Hashable, list[bool]] = {}
    self._seen: dict[Hashable, _Seen] = {}
    self._models: dict[Hashable, inputs.Model] = {}
    self._contents: dict[Hashable, spec_lib.Contents] = {}
    self._data: collections.OrderedDict[str, inputs.Data] = collections.OrderedDict()
    self._provenance: dict[str, Any] | None = None

  @property
  def traces(self) -> int:
    """How often any train step was traced: the number of train programs."""
    return sum(step.traces for step in self.steps.values())

  @classmethod
  def of_files(cls, prepared_dir: str, base_place: str) -> 'Session':
    """What another process shares of its session in files; `base_place` may be ''."""
    out = cls(prepared_dir)
    if base_place:
      out.take_base(base_place)
    return out

  def take_base(self, place: str) -> records.Row:
    """Lets runs take over what an evaluation of their one base found; returns that.

    Raises:
      UserError: see `records.read`.
    """
    row = records.read(place)
    self.base_records, self.base_place = row.tasks, place
    return row

  def model(
    self, path: str, cache_dir: str, max_length: int, name: str, mesh: Mesh
  ) -> inputs.Model:
    """See `inputs.load_model`; cut over `mesh`."""
    key = path, cache_dir, name, mesh
    if key not in self._models:
      loaded = inputs.load_model(path, cache_dir, max_length, name)
      self._models[key] = loaded.cut_over(mesh)
    inputs.check_length(self._models[key].cfg, max_length)
    return self._models[key]

  def data(
    self, spec: spec_lib.RunSpec, model: inputs.Model, bench_files: Sequence[str], data_dir: str
  ) -> inputs.Data:
    """See `inputs.load_data`; from memory or `prepared_dir` where the same was prepared before.

    A file that has changed since is prepared again; what comes from a hub is what it was then.
    """
    load = lambda: inputs.load_data(spec, model.tokenizer, bench_files, data_dir)
    if not self.shared:
      return load()
    key = self._data_key(spec, self._contents_of(model, spec.template), bench_files, data_dir)
    if key not in self._data:
      if self.prepared_dir:
        place = os.path.join(self.prepared_dir, key)
        self._data[key] = inputs.load_prepared(place, load)
      else:
        self._data[key] = load()
      held = lambda: sum(len(data.train_records) for data in self._data.values())
      while len(self._data) > 1 and (held() > _RECORDS or len(self._data) > _SETS):
        self._data.popitem(last=False)
    self._data.move_to_end(key)
    return self._data[key]

  def _data_key(
    self,
    spec: spec_lib.RunSpec,
    contents: spec_lib.Contents,
    bench_files: Sequence[str],
    data_dir: str,
  ) -> str:
    factors = {name: getattr(spec, name) for name in DATA_FACTORS}
    parts = list(mixture.weights(spec.data_name))
    if not spec.data_size and (spec.data_path or spec.data_name in datasets.DATASETS):
      del factors['seed_data']  # All records are taken, and their order is the sampler's.
    payload = {
      'factors': factors,
      'contents': [contents.tokenizer, contents.template],
      'files': [inputs.stamp(path) for path in (spec.data_path, data_dir, *parts, *bench_files)],
      'numerics': spec_lib.NUMERICS_VERSION,
    }
    return hashlib.sha256(json.dumps(payload, sort_keys=True).encode()).hexdigest()[:20]

  def contents(self, model: inputs.Model, data: inputs.Data, template: str) -> spec_lib.Contents:
    """See `inputs.contents`; files of a model are hashed once."""
    return dataclasses.replace(self._contents_of(model, template), data=data.fingerprint)

  def _contents_of(self, model: inputs.Model, template: str) -> spec_lib.Contents:
    """Hashes without those of the data."""
    key = id(model.checkpoint), template  # Models are kept, so an id names one.
    if key not in self._contents:
      nothing = inputs.no_data(model.tokenizer, template)
      self._contents[key] = inputs.contents(model, nothing, template)
    return self._contents[key]

  def task(self, wanted: Wanted, config: Any, options: Options) -> BenchmarkTask:
    """See `evaluation.make`; questions are read and tokenised once."""
    how = (options.template, options.window, options.limit, options.precision)
    key = (wanted.name, json.dumps(config.to_dict(), sort_keys=True), id(options.tokenizer), *how)
    if key not in self._tasks:
      plain = dataclasses.replace(options, seen=None, services=Services())
      self._tasks[key] = evaluation.make(wanted, config, plain)
    task, flags = self._tasks[key], None
    if isinstance(options.seen, _Seen):
      at = (key, options.seen.name)
      if at not in self._contaminated:
        items = [dict(question.item.fields) for question in task.questions]
        self._contaminated[at] = options.seen(items)
      flags = self._contaminated[at]
    return task.adapted(options, flags)

  def seen(self, data: inputs.Data) -> '_Seen':
    """Which items occur in the training data; the index is made when it is first asked."""
    key = data.fingerprint, len(data.train_records)
    if key not in self._seen:
      self._seen = {key: _Seen(key, data.train_records)}  # Of the latest data only.
    return self._seen[key]

  def step(self, key: Hashable, make: Callable[[], TrainStep]) -> TrainStep:
    """The step made before for this key, or a new one."""
    if key not in self.steps:
      self.steps[key] = make()
    return self.steps[key]

  def provenance(self) -> dict[str, Any]:
    """See `workdir.provenance`; asked once."""
    if self._provenance is None:
      self._provenance = workdir.provenance()
    return self._provenance

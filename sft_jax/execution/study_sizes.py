"""What a planned study's models and data are like, as far as it is known without loading a weight.

Models: their own `config.json`, or what is published of them. Data: tokenised as the runs will
have it, where records and tokenizer are at hand; a plan fetches nothing larger than a config. Not
for adding up: `study/cost.py`.
"""

import contextlib
import dataclasses
import math
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

import jax

from sft_jax.data import datasets, licences, readers
from sft_jax.execution import inputs
from sft_jax.execution.program import check_shape
from sft_jax.execution.session import DATA_FACTORS, Session
from sft_jax.models import families, lora, published, source, wheel
from sft_jax.models import hub as hub_models
from sft_jax.models.config import ModelConfig
from sft_jax.parallel import mesh as mesh_lib
from sft_jax.study import cost, plan
from sft_jax.utils import cards
from sft_jax.utils.errors import UserError

_HUBS = ('hf:', 'tfds:')


def sizes(study: plan.Study, prepared_dir: str = '') -> cost.Sizes:
  """What is known of a study's models and data.

  Args:
    study: The study.
    prepared_dir: Where data are kept once they are tokenised; '' for nowhere.

  Raises:
    UserError: a model of an unknown architecture, data that cannot be read.
  """
  models = {
    base: dataclasses.replace(size, licence=base_licence(base, study.config.cache_dir))
    for base, size in model_sizes(study.runs).items()
  }
  session = Session(prepared_dir)
  counted: dict[tuple[Any, ...], cost.DataSize] = {}
  data: dict[str, cost.DataSize] = {}
  for run in study.runs:
    if not _at_hand(run):
      with _naming(run):
        _check_files(run)
      continue
    factors = (getattr(run.spec, name) for name in (*DATA_FACTORS, 'data_select'))
    key = (run.spec.base, run.config.data.dir, *factors)
    if key not in counted:
      with _naming(run):
        counted[key] = _count(run, session)
    data[run.key] = counted[key]
  bases = {run.spec.base: run.config.cache_dir for run in study.runs}
  return cost.Sizes(
    models,
    data,
    _licences(study),
    tuple(base for base, cache in bases.items() if not _base_is_here(base, cache)),
    _data_elsewhere(study),
  )


def model_sizes(runs: Sequence[plan.Planned]) -> dict[str, cost.ModelSize]:
  """{`model.path`: sizes of the base, without its licence}, where its config can be had.

  Raises:
    UserError: a model of an unknown architecture; a run that its base does not allow.
  """
  cfgs: dict[str, ModelConfig | None] = {}
  adapters: dict[str, dict[str, int]] = {}
  for run in runs:
    base = run.spec.base
    with _naming(run):
      if base not in cfgs:
        cfgs[base] = _model_config(run)
      if (cfg := cfgs[base]) is None:
        continue
      inputs.check_length(cfg, run.spec.max_length)
      modules = check_shape(run.spec, cfg)
    known = adapters.setdefault(base, {})
    if run.spec.method == 'lora' and run.spec.targets not in known:
      table = lora.adapter_table(cfg, modules, 1, 1)
      known[run.spec.targets] = sum(math.prod(shape) for _, shape in table.values())
  return {
    base: cost.ModelSize(
      params=sum(map(math.prod, families.shapes(cfg).values())),
      matmul=families.matmul_params(cfg),
      layers=cfg.num_layers,
      width=cfg.num_heads * cfg.head_dim,
      adapters=adapters[base],
    )
    for base, cfg in cfgs.items()
    if cfg is not None
  }


@contextlib.contextmanager
def _naming(run: plan.Planned) -> Iterator[None]:
  """Context in which an error names a run."""
  try:
    yield
  except UserError as e:
    raise UserError(e.what, f'{e.where}; run {run.name}' if e.where else run.name, e.how) from e


def _model_config(run: plan.Planned) -> ModelConfig | None:
  name = run.spec.base.partition('@')[0]
  if name in published.MODELS:
    raw = published.raw_config(name)
  else:
    try:
      raw = source.raw_config(run.spec.base, run.config.cache_dir or None)
    except UserError:
      return None
  return ModelConfig.from_hf(raw, run.spec.base)


def base_licence(base: str, cache_dir: str = '') -> str:
  """As published, or as the model's files on this machine say; '' where neither is known."""
  if (name := base.partition('@')[0]) in published.MODELS:
    return published.MODELS[name]
  cache = source.cache_root(cache_dir or None)
  with contextlib.suppress(UserError):
    where = source.place(base)
    if where == 'hub':
      return cards.licence(hub_models.config_file(base).parent)
    if where == 'local' and (found := cards.licence(pathlib.Path(base).expanduser())):
      return found
    if where != 'wheel' or wheel.is_here(base, cache):
      return source.resolve(base, cache).license
  return ''


def _at_hand(run: plan.Planned) -> bool:
  """Whether records and tokenizer of a run lie on this machine."""
  if _elsewhere(run) or source.place(run.spec.base) not in ('wheel', 'local'):
    return False
  return _base_is_here(run.spec.base, run.config.cache_dir)


def _check_files(run: plan.Planned) -> None:
  """Refuses local data that are not there, where nothing else of the run can be read yet."""
  rows = datasets.described(run.spec.data_name, run.spec.data_path, run.config.data.dir)
  for row in rows.values():
    if not row['path'].startswith((*_HUBS, 'builtin:')):
      readers.require_file(row['path'])


def _elsewhere(run: plan.Planned) -> list[str]:
  """Parts of a run's data that come from a hub."""
  rows = datasets.described(run.spec.data_name, run.spec.data_path, run.config.data.dir)
  return [name for name, row in rows.items() if row['path'].startswith(_HUBS)]


def _data_elsewhere(study: plan.Study) -> tuple[str, ...]:
  return tuple(dict.fromkeys(name for run in study.runs for name in _elsewhere(run)))


def _base_is_here(base: str, cache_dir: str) -> bool:
  """Whether a base's weights lie on this machine; those in a bucket are read where they are."""
  where = source.place(base)
  if where == 'wheel':
    return wheel.is_here(base, source.cache_root(cache_dir or None))
  return where != 'hub' or hub_models.is_here(base)


def _count(run: plan.Planned, session: Session) -> cost.DataSize:
  """Counts of the very examples that a run trains on, in one pass."""
  spec, config = run.spec, run.config
  mesh = mesh_lib.make_mesh(1, 1, 1, devices=jax.devices()[:1])
  model = session.model(spec.base, config.cache_dir, spec.max_length, config.model.name, mesh)
  bench = [path.strip() for path in config.data.bench_files.split(',') if path.strip()]
  train = session.data(spec, model, bench, config.data.dir).train
  tokens = sum(map(len, train))
  supervised = sum(int((example.loss_weight > 0).sum()) for example in train)
  if (chosen := spec.selection) is None:
    return cost.DataSize(len(train), tokens, supervised)
  # Which ones are selected takes weights to know; their number does not.
  count = chosen.count(len(train))
  share = count / len(train)
  return cost.DataSize(count, round(tokens * share), round(supervised * share))


def _licences(study: plan.Study) -> dict[str, str]:
  """As published with each part, or as the files beside it say; '' where none is stated."""
  found: dict[str, str] = {}
  for run in study.runs:
    found |= licences.of(run.spec.data_name, run.spec.data_path)
  return found

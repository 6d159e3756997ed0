"""The entries of a study: the overrides of a config that make each of its runs.

An entry is {config key: value}, keys without `config.`; entries come from a config file's `sweep()`
and from `config.study.grid`. Not for what a run is: `plan.py`.
"""

import difflib
import itertools
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from sft_jax import spec as spec_lib
from sft_jax.utils import foreign_keys, mixture
from sft_jax.utils.errors import UserError

Entry = dict[str, Any]

# Short name -> the keys it sets.
ALIASES: dict[str, tuple[str, ...]] = {
  'base': ('model.path',),
  'quantize': ('model.quantize',),
  'data': ('data.name',),
  'path': ('data.path',),
  'size': ('data.size',),
  'template': ('data.template',),
  'method': ('train.method',),
  'epochs': ('train.epochs',),
  'batch': ('train.batch_size',),
  'lr': ('train.learning_rate',),
  'schedule': ('train.schedule',),
  'warmup': ('train.warmup_ratio',),
  'wd': ('train.weight_decay',),
  'length': ('train.max_length',),
  'layers': ('train.layers',),
  'seed': ('train.seeds.data', 'train.seeds.init', 'train.seeds.dropout'),
  'rank': ('lora.rank',),
  'alpha': ('lora.alpha',),
  'dropout': ('lora.dropout',),
  'targets': ('lora.targets',),
}

# Settings that are no factors and may differ between runs all the same. Whatever else is no factor
# is a condition that all runs share.
PER_RUN = ('model.name', 'train.snapshot_at')

_WHERE = 'config.study.grid'
_HOW = "write KEY=VALUE,VALUE;KEY=VALUE, for example --config.study.grid='lr=1e-5,2e-5;data=a,b'"


def entries(config: Any, sweep: Iterable[Mapping[str, Any]]) -> list[Entry]:
  """All entries of a study: each of `sweep` with each combination of `config.study.grid`.

  Args:
    config: The study's config.
    sweep: Entries of the config file; () where it has none.

  Raises:
    UserError: nothing to run, an unknown key, a value of another type, a key that sweep and grid
      both set.
  """
  known = leaves(config)
  fields = parse(config.study.grid)
  grid = [
    {key: value for keys, value in zip(fields, values, strict=True) for key in keys}
    for values in itertools.product(*fields.values())
  ]
  given = [expanded(entry, number) for number, entry in enumerate(sweep, 1)]
  if not given and not fields:
    raise UserError(
      'the study has no runs', 'sweep() and config.study.grid', 'let sweep() yield an entry a run'
    )
  out = []
  for number, (entry, combination) in enumerate(itertools.product(given or [{}], grid), 1):
    both = sorted(entry.keys() & combination.keys())
    if both:
      where = place(number, entry)
      raise UserError(f'{both[0]} is set by the sweep and by the grid', where, 'drop one of them')
    merged = entry | combination
    where = place(number, merged) if given else _WHERE
    out.append({key: _checked(key, value, known, where) for key, value in merged.items()})
  return out


def place(number: int, entry: Mapping[str, Any]) -> str:
  """Names an entry in an error."""
  return f'entry {number}: {", ".join(f"{key}={value}" for key, value in entry.items()) or "{}"}'


def expanded(entry: Mapping[str, Any], number: int) -> Entry:
  """An entry of a sweep with short names and `config.` resolved.

  Raises:
    UserError: no mapping, or a key twice.
  """
  if not isinstance(entry, Mapping):
    raise UserError(
      f'{entry!r} is no entry of a sweep', f'entry {number}', "yield dicts: {'data.name': 'lima'}"
    )
  out: Entry = {}
  for name, value in entry.items():
    for key in keys_of(name):
      if key in out:
        raise UserError(f'{key} is set twice', place(number, entry), 'drop one of them')
      out[key] = value
  return out


def keys_of(name: str) -> tuple[str, ...]:
  """The config keys that a key or short name of a sweep sets."""
  name = str(name).strip().removeprefix('config.')
  return ALIASES.get(name, (name,))


def parse(text: str) -> dict[tuple[str, ...], list[str]]:
  """{keys: values as text} of `config.study.grid`; {} of an empty one.

  Raises:
    UserError: not of the form, a key twice, no or equal values.
  """
  out: dict[tuple[str, ...], list[str]] = {}
  for part in _split(text, ';'):
    name, equals, listed = part.partition('=')
    keys, values = keys_of(name), [value.strip() for value in _split(listed, ',')]
    if not equals or not name.strip() or not values:
      raise UserError(f'{part.strip()!r} is no part of a grid', _WHERE, _HOW)
    if {key for others in out for key in others} & set(keys):
      raise UserError(f'{name.strip()!r} stands twice', _WHERE, 'list all its values once')
    if twice := [value for value in values if values.count(value) > 1]:
      raise UserError(f'{name.strip()} has {twice[0]!r} twice', _WHERE, 'drop one of them')
    out[keys] = values
  if text and not out:
    raise UserError(f'{text!r} is an empty grid', _WHERE, _HOW)
  return out


def _split(text: str, separator: str) -> Iterator[str]:
  """Parts between separators outside single quotes; a quoted part without its quotes."""
  if text.count("'") % 2:
    raise UserError('a quote is not closed', _WHERE, 'close it')
  pieces = re.findall(rf"(?:'[^']*'|[^'{separator}])+", text)
  for piece in pieces:
    quoted = re.fullmatch(r"\s*'([^']*)'\s*", piece)
    if piece.strip():
      yield quoted[1] if quoted else piece


def leaves(config: Any, prefix: str = '') -> dict[str, Any]:
  """{dotted key: value} of a config."""
  out: dict[str, Any] = {}
  for name, value in config.items():
    key = f'{prefix}{name}'
    out |= leaves(value, f'{key}.') if hasattr(value, 'items') else {key: value}
  return out


def _checked(key: str, value: Any, known: Mapping[str, Any], where: str) -> Any:
  """A value in the type of its key."""
  factors = [factor.key for factor in spec_lib.FACTORS.values()]
  if key not in known:
    near = difflib.get_close_matches(key, (*factors, *PER_RUN, *ALIASES), 1, 0.5)
    how = f'did you mean {near[0]}?' if near else 'configs/base.py lists all keys'
    how = foreign_keys.answer(key) or how
    raise UserError(f'unknown key {key} in the sweep', where, how)
  if key not in (*factors, *PER_RUN):
    raise UserError(
      f'{key} is no factor: all runs of a study share it', where, f'set --config.{key} for all'
    )
  kind = type(known[key])
  if key == 'data.name' and isinstance(value, Mapping):
    value = mixture.written(value)
  if isinstance(value, str) and kind is not str:
    value = _number(value, kind)
  if kind is float and isinstance(value, int) and not isinstance(value, bool):
    value = float(value)
  if isinstance(value, bool) != (kind is bool) or not isinstance(value, kind):
    raise UserError(
      f'{key} is {value!r}, not of type {kind.__name__}', where, f'give one such as {known[key]!r}'
    )
  return value


def _number(text: str, kind: type) -> Any:
  """A value of a command line; what is not of the kind is left as it is."""
  if kind is bool:
    return {'true': True, 'false': False}.get(text.lower(), text)
  try:
    return kind(text)
  except ValueError:
    return text

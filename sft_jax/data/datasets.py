"""The records of a run: of a named data set, a mixture or a path.

Not for reading (`formats.py`), nor for which records are held out or chosen (`selection.py`); the
names stand in `named.py`.
"""

import dataclasses
import importlib.resources
import os
from collections.abc import Mapping
from typing import Any

from sft_jax.data.formats import Record, read_records
from sft_jax.data.named import DATASETS, STUDY
from sft_jax.data.selection import choose, first_turns, split_heldout
from sft_jax.utils import mixture
from sft_jax.utils.errors import UserError

_COPIES = ('.jsonl', '.json', '.parquet', '.csv', '.jsonl.gz', '.json.gz')


def load_records(
  name: str = '',
  path: str = '',
  fmt: str = 'auto',
  size: int = 0,
  seed: int = 0,
  heldout_share: float = 0.05,
  heldout_max: int = 0,
  turns: int = 0,
  revision: str = '',
  cache_dir: str = '',
  data_dir: str = '',
) -> tuple[list[Record], list[Record]]:
  """The training and the held-out records of a named data set, a mixture or a path.

  The held-out part is cut first and depends on contents alone, so it is the same for every `size`
  and `seed`. A smaller `size` with the same seed is a subset of a larger one. A mixture takes from
  each part what a run on that part alone of that size would take, so that `all` of 10,000 records
  is the union of ten runs on 1,000; its records name the part they are from in their `source`.

  Args:
    name: A key of DATASETS or a mixture (`parts`); or give `path`.
    path: See `formats.read_records`.
    fmt: See `formats.read_records`; 'auto' takes the named row's format.
    size: Training records to choose among those that can be trained on; 0 keeps all records, of a
      mixture as many as its shares allow.
    seed: Seed of the choice.
    heldout_share: Share of the records held out; 0 holds none out but those the data name.
    heldout_max: Held-out records to keep at most, of a mixture in its shares; 0 keeps all.
    turns: Keep so many questions of each conversation; 0 keeps what the row says, or all.
    revision: Branch, tag or commit of a hub data set; '' takes the row's.
    cache_dir: See `readers.read_raw`.
    data_dir: Directory of copies of the named data sets; '' takes them from the hub.

  Raises:
    UserError: No or two sources, an unknown name, a size that the data do not have, all records
      held out, no copy in `data_dir`.
  """
  shares = parts(name, path)
  read = {}
  for part, row in described(name, path, data_dir).items():
    row = row | ({'turns': turns} if turns else {}) | ({'revision': revision} if revision else {})
    records = _read(part, row, fmt, cache_dir)
    train, heldout = split_heldout(records, heldout_share)
    if not train:
      raise UserError('all records are held out', part, 'lower config.data.heldout_share')
    read[part] = (train, heldout)
  if len(shares) == 1:
    ((part, (train, heldout)),) = read.items()
    chosen = choose(train, size, seed, part) if size else train
    return chosen, _at_most(heldout, heldout_max)
  usable = {part: sum(not r.problem for r in train) for part, (train, _) in read.items()}
  sizes = mixture.counts(shares, size or mixture.largest(shares, usable))
  most = mixture.counts(shares, heldout_max)
  mixed: tuple[list[Record], list[Record]] = ([], [])
  for part, (train, heldout) in read.items():
    chosen = choose(train, sizes[part], seed, part) if sizes[part] else []
    held = _at_most(heldout, most[part]) if most[part] or not heldout_max else []
    for out, records in zip(mixed, (chosen, held), strict=True):
      out += [dataclasses.replace(r, source=f'{part}: {r.source}') for r in records]
  if not mixed[0]:
    raise UserError('a mixture without records', name, 'raise config.data.size')
  return mixed


def _at_most(records: list[Record], most: int) -> list[Record]:
  usable = sum(not record.problem for record in records)
  return choose(records, most, seed=0) if 0 < most < usable else records


def parts(name: str, path: str = '') -> dict[str, int]:
  """{data set or path: share} of what a run trains on; one part where it is no mixture.

  `mix:a=0.7,b=0.3` mixes data sets and paths (told by a '/', '.' or ':'), `all` the study's ten in
  equal shares, `without:lima` the same without one.

  Raises:
    UserError: no or two sources, an unknown name.
  """
  if bool(name) == bool(path):
    raise UserError('give either a data set name or a path', where='config.data')
  left_out = mixture.left_out(name)
  if left_out and left_out not in STUDY:
    raise _unknown(left_out, STUDY)
  if name == 'all' or left_out:
    return {part: 1 for part in STUDY if part != left_out}
  shares = mixture.weights(name) or {name or path: 1}
  for part in shares:
    if part not in DATASETS and not path and not (set('/.:') & set(part) and len(shares) > 1):
      raise _unknown(part, (*DATASETS, 'all'))
  return shares


def _unknown(name: str, known: tuple[str, ...]) -> UserError:
  return UserError(f'unknown data set {name!r}', 'config.data.name', f'known: {", ".join(known)}')


def described(name: str, path: str = '', data_dir: str = '') -> dict[str, dict[str, Any]]:
  """{part: its row} of what a run trains on; a path has a row of nothing but the path.

  Args:
    name: A named data set or a mixture; or give `path`.
    path: See `formats.read_records`.
    data_dir: Directory of copies, which then stand in the rows; '' is the hub.

  Raises:
    UserError: see `parts`; no copy.
  """
  rows = {}
  for part in parts(name, path):
    row = DATASETS[part] if part in DATASETS and not path else {'path': part}
    if data_dir and 'licence' in row and not row['path'].startswith('builtin:'):
      # A copy may have been published in another shape than the row's.
      row = row | {'path': _copy(part, data_dir), 'format': 'auto'}
    rows[part] = row
  return rows


def source(name: str, path: str = '') -> str:
  """Where data come from, in words for a model card: a path, or the mixture's name."""
  rows = described(name, path)
  return name if len(rows) > 1 else next(iter(rows.values()))['path']


def _read(part: str, row: Mapping[str, Any], fmt: str, cache_dir: str) -> list[Record]:
  """All records of one data set, as its row wants them."""
  path = row['path']
  if path.startswith('builtin:'):
    root = importlib.resources.files('sft_jax.data')
    path = str(root / 'builtin' / path.removeprefix('builtin:'))
  records = read_records(
    path,
    row.get('format', 'auto') if fmt == 'auto' else fmt,
    cache_dir=cache_dir,
    revision=row.get('revision', ''),
    columns=row.get('columns'),
    where=row.get('where'),
  )
  if row.get('turns'):
    records = [first_turns(record, row['turns']) for record in records]
  dropped = row.get('drop', ())
  records = [r for r in records if r.contents[-1].strip().casefold() not in dropped]
  if not records:
    how = f'none has {row["where"]}' if 'where' in row else 'none has an answer'
    raise UserError(f'no records of {part!r}', path, how)
  return records


def _copy(name: str, data_dir: str) -> str:
  """The file that holds a named data set in a directory."""
  names = (*(f'{name}{kind}' for kind in _COPIES), *DATASETS[name].get('files', ()))
  for file in names:
    if os.path.isfile(os.path.join(data_dir, file)):
      return os.path.join(data_dir, file)
  raise UserError(
    f'no copy of {name!r}',
    f'config.data.dir={data_dir}',
    f'put one of {", ".join(names)} there, or leave config.data.dir empty to take the hub',
  )

"""Finished runs of a study, chosen by what stands in their rows."""

import dataclasses
import os
from typing import Any

from sft_jax.execution import opened
from sft_jax.study.directory import StudyDirectory
from sft_jax.utils import io
from sft_jax.utils.errors import UserError


@dataclasses.dataclass(frozen=True)
class Finished:
  """A finished run: its workdir, what its `config.json` says, and its rows."""

  path: str
  held: dict[str, Any]
  rows: list[dict[str, Any]]


def runs(workdir: str, only: str, key: str) -> list[Finished]:
  """Finished runs of a study whose last rows have some values, in the order of the study.

  Args:
    workdir: The study's.
    only: `COLUMN=VALUE`, several between commas; '' means all.
    key: Of the config, that says `only`.

  Raises:
    UserError: there are none, or no such column.
  """
  place = StudyDirectory(workdir)
  wanted = _values(only, key)
  names = place.record().names
  out, known = [], set[str]()
  for name in names:
    if not place.finished(name):
      continue
    path = os.fspath(place.run(name))
    rows = io.read_jsonl(os.path.join(path, 'rows.jsonl'))
    if not rows:
      continue
    last = max(rows, key=lambda row: row['step'])
    known |= set(last)
    if all(str(last.get(column)).lower() == value for column, value in wanted.items()):
      out.append(Finished(path, opened.config_of(path), rows))
  if missing := [column for column in wanted if known and column not in known]:
    raise UserError(f'no column {missing[0]!r} in rows of this study', key, 'see results.csv')
  if not out:
    what = 'no finished run of the study has these values' if known else 'no run is finished'
    raise UserError(what, key if known else workdir, 'run the study first')
  return out


def _values(only: str, key: str) -> dict[str, str]:
  """{column: value} of `only`."""
  out = {}
  for part in filter(None, (part.strip() for part in only.split(','))):
    name, equals, value = part.partition('=')
    if not equals or not name.strip():
      raise UserError(f'{part!r} is no COLUMN=VALUE', key, 'write lora=True,seed-data=1')
    out[name.strip()] = value.strip().lower()
  return out

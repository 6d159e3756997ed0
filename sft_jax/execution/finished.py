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
    only: `COLUMN=VALUE`, several between commas; '' means all. As run-id, the name that a plan
      and the run's directory have is good too.
    key: Of the config, that says `only`.

  Raises:
    UserError: there are none, or no such column.
  """
  place = StudyDirectory(workdir)
  wanted = _values(only, key)
  names = place.record().names
  out, known, ids = [], set[str](), []
  for name in names:
    if not place.finished(name):
      continue
    path = os.fspath(place.run(name))
    rows = io.read_jsonl(os.path.join(path, 'rows.jsonl'))
    if not rows:
      continue
    last = max(rows, key=lambda row: row['step'])
    known |= set(last)
    ids.append(f'{last["run-id"]} (in runs/{name})')
    own = [last | {'run-id': id_} for id_ in (last['run-id'], name)]
    if any(all(str(r.get(c)).lower() == value for c, value in wanted.items()) for r in own):
      out.append(Finished(path, opened.config_of(path), rows))
  if missing := [column for column in wanted if known and column not in known]:
    raise UserError(f'no column {missing[0]!r} in rows of this study', key, 'see results.csv')
  if not out:
    if known:
      how = f'see results.csv; its runs are {", ".join(ids[:4])}{" …" if ids[4:] else ""}'
      raise UserError('no finished run of the study has these values', key, how)
    raise UserError('no run is finished', workdir, 'run the study first')
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

"""Candidates: how they are named, what is known of their data, and per-item records as scores.

Not for the race itself: `choose_run.py`.
"""

import contextlib
import dataclasses
import hashlib
import json
import os
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from sft_jax.data import datasets, language, overlap, readers
from sft_jax.evals.benchmark import Item
from sft_jax.evals.suite import BenchmarkTask
from sft_jax.execution import job
from sft_jax.execution.session import Session
from sft_jax.study.race_data import Scores
from sft_jax.train import loop
from sft_jax.utils import words
from sft_jax.utils.errors import UserError

_SAMPLE = 200
_KINDS = ('.json', '.jsonl', '.ndjson', '.csv', '.tsv', '.parquet')


@dataclasses.dataclass(frozen=True)
class Candidate:
  """What was found of the data of a candidate, all of them.

  Attributes:
    examples: That are trained on.
    tokens: Of each, on average.
    flops_per_token: Of training.
    leaks: {task: ids of items that overlap the data, see `overlap.NgramIndex`}.
    asked: {task: digest of its items}.
    warnings: What a reader should know, in sentences.
  """

  examples: int
  tokens: float
  flops_per_token: float
  leaks: Mapping[str, Sequence[str]]
  asked: Mapping[str, str]
  warnings: tuple[str, ...]

  def with_leaks(self, more: Mapping[str, Sequence[str]]) -> 'Candidate':
    """The same with further items that were found."""
    merged = {task: sorted({*ids, *more[task]}) for task, ids in self.leaks.items()}
    return dataclasses.replace(self, leaks=merged)


def look(config: Any, place: str, session: Session) -> Candidate:
  """Reads the data of a run and looks for the items of its tasks in them; trains nothing.

  Args:
    config: Of the run.
    place: A workdir that is not there.
    session: What is shared with other candidates.

  Raises:
    UserError: bad data, a bad task.
    Interrupted: asked to stop.
  """
  with _as_given(), loop.StopSignal() as stop, stop.at_once():
    run = job.Run(config, place, stop, session)
    seen = session.seen(run.data)
    leaks, asked, languages = {}, {}, set()
    for task in run.scoring.tasks:
      if not isinstance(task, BenchmarkTask):
        continue
      items = [question.item for question in task.questions]
      held = seen([dict(item.fields) for item in items])
      leaks[task.wanted.name] = [item.id for item, hit in zip(items, held, strict=True) if hit]
      asked[task.wanted.name] = _digest(items)
      texts = [' '.join(overlap.strings(dict(item.fields))) for item in _sampled(items)]
      languages |= {one for one, share in language.shares(texts).items() if share >= 0.1}
    records, lengths = run.data.train_records, [len(example) for example in run.data.train]
    warnings = []
    if text := _strangeness([' '.join(one.contents) for one in _sampled(records)], languages):
      warnings.append(text)
    plain = sum(not record.messages for record in records)
    if plain > len(records) / 2:
      warnings.append(
        f'is plain text, not conversations: the template {config.data.template!r} does not apply'
      )
    return Candidate(
      len(lengths),
      float(np.mean(lengths)),
      run.program.flops_per_token(run.loader),
      leaks,
      asked,
      tuple(warnings),
    )


def _digest(items: Sequence[Item]) -> str:
  """Of what a task asks and in which order, wherever it was read from."""
  values = [(item.id, item.fields) for item in items]
  text = json.dumps(values, sort_keys=True, default=str)
  return hashlib.sha256(text.encode()).hexdigest()[:16]


def lengths(config: Any, place: str, session: Session) -> list[int]:
  """Tokens of each example that a run is trained on, as often as it is; see `look`."""
  with _as_given(), loop.StopSignal() as stop, stop.at_once():
    run = job.Run(config, place, stop, session)
  each = [len(example) for example in run.data.train]
  return [each[i] for step in range(run.total_steps) for i in run.sampler.indices(step)]


@contextlib.contextmanager
def _as_given() -> Iterator[None]:
  """Context in which what is wrong with data is said of the key that names candidates."""
  size = ('config.data.size (0 takes all)', 'the number after #, or leave it out')
  key = r'config\.data\.(name|path)|the path$'
  own = lambda s: re.sub(key, 'config.choose.data', s.replace(*size))
  try:
    yield
  except UserError as e:
    raise UserError(e.what, own(e.where), own(e.how)) from e


def _sampled(many: Sequence[Any]) -> Sequence[Any]:
  """Some of them, from all parts."""
  return many[:: -(-len(many) // _SAMPLE) or 1]


def _strangeness(texts: Sequence[str], asked: Collection[str]) -> str:
  """What to say of data that are mostly in no language of what is asked; '' of others."""
  found = language.shares(texts)
  if not found or not asked or sum(found.get(one, 0.0) for one in asked) >= 0.5:
    return ''
  first = next(iter(found))
  return (
    f'is mostly in another language than the targets and guards: {first} '
    f'({found[first]:.0%} of {words.count(len(texts), "record")} looked at), not '
    f'{", ".join(sorted(asked))}'
  )


def split(text: str, where: str) -> list[str]:
  """Parts between commas, those in single quotes whole; each once.

  Raises:
    UserError: one twice, a quote that is not closed.
  """
  if text.count("'") % 2:
    raise UserError('a quote is not closed', where, 'close it')
  pieces = (piece.strip() for piece in re.findall(r"(?:'[^']*'|[^',])+", text))
  parts = [piece.strip("'").strip() for piece in pieces if piece]
  if twice := [part for part in parts if parts.count(part) > 1]:
    raise UserError(f'{twice[0]} is named twice', where, 'name it once')
  return parts


def labelled(data: Iterable[str]) -> dict[str, str]:
  """{short name, where it is the only one: data set, mixture or path}."""

  def short(name: str) -> str:
    if kind(name) == 'name':
      return name
    return re.sub(r'(\.jsonl?|\.csv|\.tsv|\.parquet)?(\.gz)?$', '', os.path.basename(name)) or name

  data = list(data)
  names = [short(one) for one in data]
  return {
    (name if names.count(name) == 1 else one): one for name, one in zip(names, data, strict=True)
  }


def candidates(text: str, where: str) -> tuple[dict[str, str], dict[str, int]]:
  """Names and data of candidates, and the most records of each, where `DATA#N` says so.

  Args:
    text: As in `config.choose.data`.
    where: The key, for messages.

  Raises:
    UserError: see `split`; no number of records; one file twice.
  """
  given = [(one, *_cut_off(one, where)) for one in split(text, where)]
  seen: dict[tuple[str, int], str] = {}
  for whole, source, most in given:
    place = os.path.realpath(source) if os.path.exists(source) else source
    if (other := seen.setdefault((place, most), whole)) != whole:
      raise UserError(f'{whole} is {other}', where, 'name it once')
  names = {source: name for name, source in labelled(dict.fromkeys(s for _, s, _ in given)).items()}
  data = {names[source] + whole[len(source) :]: source for whole, source, _ in given}
  return data, {names[source] + whole[len(source) :]: most for whole, source, most in given if most}


def _cut_off(one: str, where: str) -> tuple[str, int]:
  source, mark, number = one.rpartition('#')
  if not mark or os.path.exists(one):
    return one, 0
  if not re.fullmatch('[1-9][0-9]*', number):
    raise UserError(f'{number!r} is no number of records', f'{where}: {one}', 'such as lima#500')
  return source, int(number)


def kind(data: str) -> str:
  """Which key of `config.data` takes a candidate: `name` or `path`."""
  if data.startswith('mix:'):
    return 'name'
  file = readers.file_kind(data) in _KINDS or os.path.exists(data)
  return 'path' if file or data.startswith(('hf:', 'tfds:')) else 'name'


def is_drawn(data: str, most: int) -> bool:
  """Whether seeds decide which records of a candidate are trained on, `most` of them or 0."""
  return most > 0 or (kind(data) == 'name' and len(datasets.parts(data)) > 1)


def scores(items: Sequence[Mapping[str, Any]]) -> Scores:
  """Per-item records of one task (see `evals/stats.py`) as scores in points.

  Raises:
    UserError: an item that was not graded, or whose score is no number.
  """
  about = items[0]['about']
  if lost := [item['id'] for item in items if item.get('missing')]:
    raise UserError(f'item {lost[0]} was not graded', about['task'], 'evaluate it again')
  scale = 100.0 if about['percent'] else 1.0
  values = np.array([item['scores'][about['measures'][0]] for item in items], np.float64) * scale
  if len(bad := np.flatnonzero(~np.isfinite(values))):
    what = f'item {items[bad[0]]["id"]} has a score that is no number'
    raise UserError(what, about['task'], 'mend what grades it, and evaluate it again')
  written = any('output' in item for item in items)
  extracted = np.array([item['extracted'] is not None for item in items]) if written else None
  weights = None
  if about['macro']:
    groups = [str(item.get('group', '')) for item in items]
    _, index, counts = np.unique(groups, return_inverse=True, return_counts=True)
    weights = 1 / (len(counts) * counts[index])
  return Scores(tuple(item['id'] for item in items), values, extracted, weights)

"""Candidates: how they are named, what is known of their data, and per-item records as scores.

Not for the race itself: `choose_run.py`.
"""

import dataclasses
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sft_jax.data import readers
from sft_jax.evals.suite import BenchmarkTask
from sft_jax.execution import job
from sft_jax.execution.session import Session
from sft_jax.study.race_data import Scores
from sft_jax.train import loop
from sft_jax.utils.errors import UserError

# Scripts by the letters that tell them.
_SCRIPTS: dict[str, str] = {
  'Latin': r'[A-Za-zÀ-ɏ]',
  'Chinese': r'[\u4e00-\u9fff]',
  'Japanese': r'[\u3040-\u30ff]',
  'Korean': r'[\uac00-\ud7af]',
  'Cyrillic': r'[\u0400-\u04ff]',
  'Arabic': r'[\u0600-\u06ff]',
  'Devanagari': r'[\u0900-\u097f]',
}
# Of a letter of a script that writes a word with few, and of kana in Japanese text.
_LETTERS_A_WORD = {'Chinese': 3.0, 'Japanese': 6.0, 'Korean': 2.0}
_SAMPLE = 200
_KINDS = ('.json', '.jsonl', '.ndjson', '.csv', '.tsv', '.parquet')


@dataclasses.dataclass(frozen=True)
class Candidate:
  """What was found of the data of a candidate, all of them.

  Attributes:
    examples: That are trained on.
    tokens: Of each, on average.
    flops_per_token: Of training.
    leaks: {task: ids of items that share 13 words in a row with the data}.
    script: In which most of it is written.
    warnings: What a reader should know, in sentences.
  """

  examples: int
  tokens: float
  flops_per_token: float
  leaks: Mapping[str, Sequence[str]]
  script: str
  warnings: tuple[str, ...]


def look(config: Any, place: str, session: Session) -> Candidate:
  """Reads the data of a run and looks for the items of its tasks in them; writes nothing.

  Args:
    config: Of the run.
    place: A workdir that is not there.
    session: What is shared with other candidates.

  Raises:
    UserError: bad data, a bad task.
    Interrupted: asked to stop.
  """
  with loop.StopSignal() as stop, stop.at_once():
    run = job.Run(config, place, stop, session)
    seen = session.seen(run.data)
    leaks, scripts = {}, set()
    for task in run.scoring.tasks:
      if not isinstance(task, BenchmarkTask):
        continue
      items = [question.item for question in task.questions]
      held = seen([dict(item.fields) for item in items])
      leaks[task.wanted.name] = [item.id for item, hit in zip(items, held, strict=True) if hit]
      scripts.add(script([str(value) for i in items[:_SAMPLE] for value in i.fields.values()]))
    records, lengths = run.data.train_records, [len(example) for example in run.data.train]
    own = script([text for record in records[:_SAMPLE] for text in record.contents])
    warnings = []
    if scripts and own not in scripts:
      warnings.append(
        f'is written in {own}, the targets and guards in {", ".join(sorted(scripts))}'
      )
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
      own,
      tuple(warnings),
    )


def script(texts: Sequence[str]) -> str:
  """The script that most words of some texts are written in."""
  text = ' '.join(texts)
  words = {
    name: len(re.findall(letters, text)) / _LETTERS_A_WORD.get(name, 5.0)
    for name, letters in _SCRIPTS.items()
  }
  # Japanese is written with Chinese characters too.
  if words['Japanese'] > 0.1 * words['Chinese']:
    words['Japanese'] += words['Chinese']
  return max(words, key=words.__getitem__)


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


def labelled(data: Sequence[str]) -> dict[str, str]:
  """{short name, where it is the only one: data set, mixture or path}."""

  def short(name: str) -> str:
    if kind(name) == 'name':
      return name
    return re.sub(r'(\.jsonl?|\.csv|\.tsv|\.parquet)?(\.gz)?$', '', os.path.basename(name)) or name

  names = [short(one) for one in data]
  return {
    (name if names.count(name) == 1 else one): one for name, one in zip(names, data, strict=True)
  }


def kind(data: str) -> str:
  """Which key of `config.data` takes a candidate: `name` or `path`."""
  if data.startswith('mix:'):
    return 'name'
  file = readers.file_kind(data) in _KINDS or os.path.exists(data)
  return 'path' if file or data.startswith(('hf:', 'tfds:')) else 'name'


def scores(items: Sequence[Mapping[str, Any]]) -> Scores:
  """Per-item records of one task (see `evals/stats.py`) as scores in points.

  Raises:
    UserError: an item that was not graded.
  """
  about = items[0]['about']
  if lost := [item['id'] for item in items if item.get('missing')]:
    raise UserError(f'item {lost[0]} was not graded', about['task'], 'evaluate it again')
  scale = 100.0 if about['percent'] else 1.0
  values = np.array([item['scores'][about['measures'][0]] for item in items], np.float64) * scale
  written = any('output' in item for item in items)
  extracted = np.array([item['extracted'] is not None for item in items]) if written else None
  weights = None
  if about['macro']:
    groups = [str(item.get('group', '')) for item in items]
    _, index, counts = np.unique(groups, return_inverse=True, return_counts=True)
    weights = 1 / (len(counts) * counts[index])
  return Scores(tuple(item['id'] for item in items), values, extracted, weights)

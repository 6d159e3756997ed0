"""`--mode=show-data`: records as the model will see them, and the rows they are packed into.

Everything here is what a run would train on: read, split, cut and laid out by the same code, from a
tokenizer and no weights. Not for what is wrong with the data: `data/audit.py` says that, and its
lines are shown too.
"""

import dataclasses
import html
import itertools
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np

from sft_jax import spec as spec_lib
from sft_jax.data import loader as loader_lib
from sft_jax.data.sampler import Sampler
from sft_jax.data.tokenize import Example
from sft_jax.execution import inputs, program
from sft_jax.utils import log, terminal, words
from sft_jax.utils.errors import UserError

# Where there is no colour, what is learnt stands between these; those of data become their numbers.
_MARKS = ('⟦', '⟧')
_NUMBERS = {ord(mark): f'\\u{ord(mark):04x}' for mark in _MARKS}
_DIM, _PLAIN = '\x1b[2m', '\x1b[0m'
_PART = '\ufffd'  # What a decoder gives for a part of a character.
_WIDTH = 64  # Characters of a drawn row.


@dataclasses.dataclass(frozen=True)
class Shown:
  """One record as tokens.

  Attributes:
    number: Its place among the examples, from 0.
    source: Where it was read.
    ids: Token ids `[T]`.
    pieces: Their texts; joined they are the text that is seen.
    learnt: Whether each is predicted in training.
    truncated: Whether its end was cut off.
  """

  number: int
  source: str
  ids: tuple[int, ...]
  pieces: tuple[str, ...]
  learnt: tuple[bool, ...]
  truncated: bool

  def spans(self) -> list[tuple[bool, str]]:
    """Neighbouring tokens that are learnt, or not, as one text."""
    groups = itertools.groupby(zip(self.learnt, self.pieces, strict=True), lambda pair: pair[0])
    return [(learnt, ''.join(piece for _, piece in pairs)) for learnt, pairs in groups]

  @property
  def head(self) -> str:
    """What it is, in a line."""
    cut = ', cut off' if self.truncated else ''
    tokens = words.count(len(self.ids), 'token')
    return f'record {self.number} ({self.source}): {tokens}, {sum(self.learnt)} of them learnt{cut}'

  def text(self, colour: bool) -> str:
    """The record, what is not learnt dimmed; without colour, what is learnt in brackets.

    Control characters and, without colour, brackets of the data are spelt out.
    """
    parts = []
    for learnt, span in self.spans():
      piece = terminal.visible(span if colour else span.translate(_NUMBERS))
      if colour:
        parts.append(piece if learnt else f'{_DIM}{piece}{_PLAIN}')
      else:
        parts.append(f'{_MARKS[0]}{piece}{_MARKS[1]}' if learnt else piece)
    return ''.join(parts)


@dataclasses.dataclass(frozen=True, repr=False)
class View:
  """Some records, the rows of some steps, and what was found in all of the data.

  Attributes:
    records: Shown in full.
    rows: Of each step drawn, its rows as (example, tokens) in order; example -1 is padding.
    row_length: Tokens of a row.
    about: Sentences on all of the data.
  """

  records: tuple[Shown, ...]
  rows: tuple[tuple[tuple[tuple[int, int], ...], ...], ...]
  row_length: int
  about: tuple[str, ...]

  def __repr__(self) -> str:
    records, steps = words.count(len(self.records), 'record'), words.count(len(self.rows), 'step')
    return f'<sft_jax view of {records}, {steps}>'

  def lines(self, colour: bool) -> list[str]:
    """For a terminal."""
    opened, closed = _MARKS
    told = 'dimmed: only read; the rest' if colour else f'between {opened} and {closed}'
    theirs = '' if colour else f'; such marks in the data: {" ".join(_NUMBERS.values())}'
    lines = [*map(terminal.visible, self.about)]
    lines.append(f'legend       {told}: learnt (has a loss){theirs}')
    for shown in self.records:
      lines += ['', terminal.visible(shown.head), shown.text(colour)]
    if self.rows:
      lines += ['', 'legend       |12─── example 12 among the records, empty: padding']
    for step, rows in enumerate(self.rows, 1):
      lines += ['', self._step(step, rows)]
      lines += [self._drawn(row) for row in rows]
    return lines

  def _step(self, step: int, rows: Sequence[Any]) -> str:
    return f'step {step}: {words.count(len(rows), "row")} of {self.row_length} tokens'

  def _drawn(self, row: Sequence[tuple[int, int]]) -> str:
    """A row as a bar whose parts are examples, with their numbers where there is room."""
    cells = []
    ends = np.cumsum([tokens for _, tokens in row]) * _WIDTH / self.row_length
    starts = [0, *ends[:-1]]
    for (example, _), start, end in zip(row, starts, ends, strict=True):
      width = max(1, round(end) - round(start))
      name = f'|{example}' if example >= 0 else ''
      fill = ' ' if example < 0 else '─'
      cells.append((name if len(name) <= width else '|'[:width]).ljust(width, fill))
    return f'{"".join(cells)}|'

  def as_json(self) -> dict[str, Any]:
    """For programs."""
    return {
      'about': list(self.about),
      'records': [dataclasses.asdict(shown) for shown in self.records],
      'row-length': self.row_length,
      'steps': [[[list(part) for part in row] for row in rows] for rows in self.rows],
    }

  def _repr_html_(self) -> str:
    """For a notebook: each token in a box, what is learnt in green."""
    style = 'border:1px solid #8884;border-radius:3px;white-space:pre-wrap;font-family:monospace;'
    legend = 'legend       green: learnt (has a loss); faint: only read; ⏎: a new line'
    lines = '\n'.join(html.escape(line) for line in (*self.about, legend))
    parts = [f'<pre style="overflow-x:auto;margin:0">{lines}</pre>']
    for shown in self.records:
      head = f'<b style="overflow-wrap:anywhere">{html.escape(shown.head)}</b>'
      parts.append(f'<p>{head}<br>')
      for piece, learnt in zip(shown.pieces, shown.learnt, strict=True):
        look = 'background:#2e7d3255' if learnt else 'opacity:.55'
        text = html.escape(piece).replace('\n', '⏎<br>')
        parts.append(f'<span style="{style}{look}">{text}</span>')
      parts.append('</p>')
    for step, rows in enumerate(self.rows, 1):
      parts.append(f'<p><b>{self._step(step, rows)}</b></p>')
      parts += [self._row_html(row) for row in rows]
    return ''.join(parts)

  def _row_html(self, row: Sequence[tuple[int, int]]) -> str:
    boxes = []
    for example, tokens in row:
      look = f'background:hsl({example * 47 % 360},55%,60%)' if example >= 0 else 'background:#8882'
      held = words.count(tokens, 'token')
      title = f'example {example}, {held}' if example >= 0 else f'{held} empty'
      name = example if example >= 0 else ''
      boxes.append(
        f'<div title="{title}" style="width:{100 * tokens / self.row_length:.2f}%;{look};'
        'overflow:hidden;box-sizing:border-box;font-size:10px;line-height:1.4;color:#111;'
        f'border-right:1px solid #fff">{name}</div>'
      )
    return f'<div style="display:flex;height:14px;margin:1px 0">{"".join(boxes)}</div>'


def show(config: Any) -> dict[str, Any]:
  """Prints what `config.show` asks for; returns it.

  Raises:
    UserError: as a run would refuse the data.
  """
  found = view(config)
  colour = terminal.takes_colour(sys.stdout)
  for line in found.lines(colour):
    log.say(line)
  return found.as_json()


def view(config: Any) -> View:
  """Reads a config's data as a run would; see `show`.

  Raises:
    UserError: as a run would refuse the data, or a record that there is not.
  """
  spec = spec_lib.from_config(config, 'cpu')
  spec_lib.check_settings(config)
  model = inputs.load_model(spec.base, config.cache_dir, spec.max_length, config.model.name)
  bench = [path.strip() for path in config.data.bench_files.split(',') if path.strip()]
  data = inputs.load_data(spec, model.tokenizer, bench, config.data.dir)
  wanted = config.show
  examples = data.train if wanted.part == 'train' else data.heldout
  if not wanted.first < len(examples):
    there = words.count(len(examples), f'{wanted.part} record')
    what = f'no record {wanted.first} of {there}, counted from 0'
    raise UserError(what, 'config.show.first', 'lower it')
  last = wanted.first + wanted.records if wanted.records else len(examples)
  numbered = list(enumerate(examples))[wanted.first : last]
  rows, length = _rows(config, spec, data.train, wanted.steps)
  about = (
    f'{data.name} for {model.name}, template {spec.template}: '
    f'{words.count(len(data.train), "record")} to train on, {len(data.heldout):,} held out',
    *data.audit.lines(),
  )
  return View(
    tuple(_shown(number, example, model.tokenizer) for number, example in numbered),
    rows,
    length,
    about,
  )


def _shown(number: int, example: Example, tokenizer: Any) -> Shown:
  ids = example.ids.tolist()
  return Shown(
    number,
    example.source,
    tuple(ids),
    tuple(pieces(ids, tokenizer)),
    tuple(bool(weight) for weight in example.loss_weight),
    example.truncated,
  )


def pieces(ids: Sequence[int], tokenizer: Any) -> list[str]:
  """The text of each token where it stands: decoders look at neighbours, and split characters.

  A character of several tokens is given to the last of them.
  """
  decode = lambda end: str(
    tokenizer.decode(list(ids[:end]), skip_special_tokens=False, clean_up_tokenization_spaces=False)
  )
  out, before = [], ''
  for end in range(1, len(ids) + 1):
    now = decode(end)
    # A character that is not whole yet waits, unless this is all there is.
    whole = now.rstrip(_PART) if end < len(ids) else now
    out.append(whole[len(before) :])
    before = whole if len(whole) > len(before) else before
  return out


def _rows(
  config: Any, spec: spec_lib.RunSpec, examples: Sequence[Example], steps: int
) -> tuple[tuple[tuple[tuple[tuple[int, int], ...], ...], ...], int]:
  """Rows of the first steps as (example, tokens), and their length."""
  if not steps:
    return (), 0
  train = config.train
  sampler = Sampler(len(examples), spec.batch_size, spec.epochs, spec.seed_data)
  loader = loader_lib.Loader(
    [(examples, sampler)],
    layout=train.layout,
    row_length=train.row_length,
    rows_per_micro=train.rows_per_micro,
    # As a run by itself on one device.
    tokens_per_micro=program.tokens_per_micro(),
  )
  drawn = []
  for step in range(min(steps, sampler.total_steps)):
    batch = loader.batch(step)
    rows = batch['segments'].reshape(-1, batch['segments'].shape[-1])
    chosen = sampler.indices(step)
    drawn.append(tuple(_parts(row, chosen) for row in rows if row.any()))
  return tuple(drawn), loader.row_length


def _parts(segments: np.ndarray, chosen: np.ndarray) -> tuple[tuple[int, int], ...]:
  """A row's segments as (example, tokens)."""
  groups = itertools.groupby(segments.tolist())
  lengths = ((segment, len(list(same))) for segment, same in groups)
  return tuple((int(chosen[s - 1]) if s else -1, n) for s, n in lengths)

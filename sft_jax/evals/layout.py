"""Which tokens are computed to score many texts: shared beginnings once, in rows of few shapes.

The texts to score form a trie. A part of it that fits a row is laid out there depth first, each
token once, whatever texts go through it (`models/cached.py:tree_mask`). A beginning shared by more
than a row holds becomes a prefix, computed once and looked at by all rows that go on from it. On
the host, in numpy; nothing here depends on a model but what its texts may share.
"""

import dataclasses
import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from sft_jax.data import pack

# A shared beginning becomes a prefix if that saves this many tokens, and it is no shorter.
_LEAST_SAVING, _LEAST_PREFIX = 256, 16


class Text(NamedTuple):
  """Tokens, of which those from `start` (at least 1) on are scored given all before."""

  ids: np.ndarray
  start: int


class Unit(NamedTuple):
  """A part of the trie that lies in one row: sorted texts `first` to `last`, from depth `depth` on.

  The `depth` tokens before are those of prefix number `prefix` (-1: none, depth 0).
  """

  first: int
  last: int
  depth: int
  prefix: int
  size: int


@dataclasses.dataclass(frozen=True)
class Query:
  """Where the scores of a text come out: row indices and the targets there."""

  text: int
  indices: np.ndarray
  targets: np.ndarray


@dataclasses.dataclass
class Row:
  """One row of a batch.

  Attributes:
    tokens: int32 `[n]`.
    positions: int32 `[n]`, in each token's text.
    reach: int32 `[n]`, see `tree_mask`.
    seen: int32 `[n]`, tokens of the prefix before.
    lengths: int32 `[n]`, of each token's whole text; meant for texts that share nothing.
    prefix: Number of the prefix, -1 for none.
    queries: The scores wanted from it.
  """

  tokens: np.ndarray
  positions: np.ndarray
  reach: np.ndarray
  seen: np.ndarray
  lengths: np.ndarray
  prefix: int
  queries: list[Query]


@dataclasses.dataclass(frozen=True)
class Layout:
  """Rows and prefixes that score a list of texts.

  Attributes:
    prefixes: Token ids of each prefix.
    rows: All rows.
    widths: The width class of each row.
  """

  prefixes: list[np.ndarray]
  rows: list[Row]
  widths: list[int]

  @property
  def tokens(self) -> int:
    """Tokens that are computed, without padding."""
    return sum(map(len, self.prefixes)) + sum(len(row.tokens) for row in self.rows)


class _Sorted:
  """Texts in the order of their input tokens (all but the last), and what neighbours share."""

  def __init__(self, texts: Sequence[Text], share: bool):
    inputs = [np.ascontiguousarray(text.ids[:-1], '>u4') for text in texts]
    keys = [array.tobytes() for array in inputs]
    self.order = sorted(range(len(texts)), key=keys.__getitem__)
    self.inputs = [inputs[i].astype(np.int32) for i in self.order]
    self.texts = [texts[i] for i in self.order]
    self.lengths = np.array([len(array) for array in self.inputs], np.int64)
    self.starts = np.array([text.start for text in self.texts], np.int64)
    self.common = np.zeros(len(texts), np.int64)
    for i in range(1, len(texts) if share else 0):
      one, two = self.inputs[i - 1], self.inputs[i]
      size = min(len(one), len(two))
      differ = one[:size] != two[:size]
      self.common[i] = int(differ.argmax()) if differ.any() else size
    self.new = np.concatenate([[0], np.cumsum(self.lengths - self.common)])

  def size(self, first: int, last: int, depth: int) -> int:
    """Tokens of the trie of texts `first` to `last` below `depth`."""
    rest = self.new[last] - self.new[first + 1]
    return int(self.lengths[first] - depth + rest)

  def shared(self, first: int, last: int) -> int:
    """Tokens that all of these texts begin with."""
    return int(self.common[first + 1 : last].min(initial=self.lengths[first]))

  def fits(self, first: int, last: int, depth: int, width: int) -> bool:
    """Whether these texts are one unit: small enough, or but for a stem they share.

    A stem too long for a row is no reason to compute it once for each short branch.
    """
    stem = self.shared(first, last)
    return self.size(first, last, depth) <= width or self.size(first, last, stem) <= width


def plan(texts: Sequence[Text], width: int, sharing: str = 'beginnings') -> Layout:
  """Lays out texts.

  Args:
    texts: What is to be scored; at least two tokens each.
    width: Tokens in a row; longer parts get rows of a multiple (by powers of two).
    sharing: See `model.LanguageModel`.
  """
  if not texts:
    return Layout([], [], [])
  for text in texts:
    if not 1 <= text.start < len(text.ids):
      raise ValueError(f'nothing to score from token {text.start} of {len(text.ids)}')
  ordered = _Sorted(texts, share=sharing == 'beginnings')
  # Where rows may hold one text only, so may units.
  units, prefixes = _cut(ordered, 0 if sharing == 'nothing' else width)
  by_place: dict[tuple[int, int], list[Unit]] = {}
  for unit in units:
    by_place.setdefault((width_class(unit.size, width), unit.prefix), []).append(unit)
  rows: list[Row] = []
  widths: list[int] = []
  for (wide, _), members in sorted(by_place.items()):
    sizes = [unit.size if sharing != 'nothing' else wide for unit in members]
    for row in pack.layout_rows(sizes, wide):
      rows.append(_fill(ordered, [members[i] for i in row]))
      widths.append(wide)
  return Layout(prefixes, rows, widths)


def width_class(size: int, width: int) -> int:
  """The smallest `width` times a power of two that holds `size`."""
  while width < size:
    width *= 2
  return width


def _cut(ordered: _Sorted, width: int) -> tuple[list[Unit], list[np.ndarray]]:
  """Parts of the trie that fit a row, and the prefixes they go on from."""
  units: list[Unit] = []
  prefixes: list[np.ndarray] = []
  # Ranges of texts with the prefix they stand under.
  todo = [(0, len(ordered.inputs), 0, -1)]
  while todo:
    first, last, depth, prefix = todo.pop()
    if ordered.fits(first, last, depth, width):
      units.append(Unit(first, last, depth, prefix, ordered.size(first, last, depth)))
      continue
    shared = ordered.shared(first, last)
    inner = ordered.common[first + 1 : last]
    bounds = [first, *(first + 1 + np.flatnonzero(inner == shared)).tolist(), last]
    children = list(itertools.pairwise(bounds))
    # A scored token's past must be in the row, the token itself at the least.
    usable = min(shared, int(ordered.starts[first:last].min()) - 1)
    small = sum(ordered.fits(*child, usable, width) for child in children)
    saved = (usable - depth) * (small - 1) - usable
    if usable - depth >= _LEAST_PREFIX and saved >= _LEAST_SAVING:
      prefixes.append(ordered.inputs[first][:usable])
      depth, prefix = usable, len(prefixes) - 1
    todo += [(*child, depth, prefix) for child in reversed(children)]
  return units, prefixes


def _fill(ordered: _Sorted, units: Sequence[Unit]) -> Row:
  """A row of these units, which stand under one prefix."""
  size = sum(unit.size for unit in units)
  tokens, positions, reach, seen, lengths = (np.zeros(size, np.int32) for _ in range(5))
  queries: list[Query] = []
  at = 0
  for unit in units:
    longest = int(ordered.lengths[unit.first : unit.last].max())
    path = np.zeros(longest, np.int64)  # row index of each depth of the current text
    end = unit.depth
    for k in range(unit.first, unit.last):
      ids, text = ordered.inputs[k], ordered.texts[k]
      begin = unit.depth if k == unit.first else int(ordered.common[k])
      reach[path[begin:end]] = at
      end = len(ids)
      new = slice(at, at + end - begin)
      path[begin:end] = np.arange(at, new.stop)
      tokens[new], positions[new] = ids[begin:], np.arange(begin, end)
      seen[new], lengths[new] = unit.depth, end
      at = new.stop
      scored = np.arange(text.start, len(text.ids))
      queries.append(Query(ordered.order[k], path[scored - 1].copy(), text.ids[scored]))
    reach[path[unit.depth : end]] = at
  return Row(tokens, positions, reach, seen, lengths, units[0].prefix, queries)


def beginnings(prompts: Sequence[np.ndarray]) -> list[tuple[np.ndarray, list[int]]]:
  """Groups of prompts that go on from a shared beginning worth computing once ([] for none).

  Returns:
    Each beginning, shorter than all its prompts, and the indices of these.
  """
  if not prompts:
    return []
  ordered = _Sorted([Text(np.append(ids, 0), len(ids)) for ids in prompts], share=True)
  units, prefixes = _cut(ordered, 0)
  groups: dict[int, list[int]] = {}
  for unit in units:
    groups.setdefault(unit.prefix, []).extend(ordered.order[unit.first : unit.last])
  none = np.zeros(0, np.int32)
  return [(prefixes[n] if n >= 0 else none, sorted(groups[n])) for n in sorted(groups)]


def targets_of(rows: Sequence[Row], height: int, width: int) -> tuple[np.ndarray, list[np.ndarray]]:
  """Targets at each index of a batch, and where each query finds its own among them.

  Returns:
    int32 `[height, width, M]`, M the smallest of 1, 4, 16, … that holds the distinct targets of
    any index (-1 where there is none); and for each query of each row, in order, int64 `[n]` of
    flat indices into an array of that shape.
  """
  places = []
  for number, row in enumerate(rows):
    for query in row.queries:
      places.append(np.stack([number * width + query.indices, query.targets]).astype(np.int64))
  joined = np.concatenate(places, axis=1) if places else np.zeros((2, 0), np.int64)
  keys = joined[0] << 32 | joined[1]
  unique, inverse = np.unique(keys, return_inverse=True)
  where = unique >> 32
  fresh = np.ones(len(where), bool)
  fresh[1:] = where[1:] != where[:-1]
  starts = np.flatnonzero(fresh)
  rank = np.arange(len(where)) - np.repeat(starts, np.diff([*starts, len(where)]))
  most = 1
  while most < rank.max(initial=0) + 1:
    most *= 4
  targets = np.full(height * width * most, -1, np.int32)
  flat = where * most + rank
  targets[flat] = unique & 0xFFFFFFFF
  found = np.split(flat[inverse], np.cumsum([place.shape[1] for place in places])[:-1])
  return targets.reshape(height, width, most), found if places else []

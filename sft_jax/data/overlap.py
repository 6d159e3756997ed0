"""Shared word sequences: near duplicates, and overlap with held-out data and benchmarks.

Words are lower-case runs of letters, digits and underscores (`\\w+`), accents and vowel signs left
out; a Chinese, Japanese or Korean character is a word of its own. Sequences are compared by 64-bit
hashes.
"""

import array
import dataclasses
import functools
import os
import pathlib
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from sft_jax.data.formats import Record
from sft_jax.data.readers import csv_rows, file_kind, read_raw, read_text
from sft_jax.utils.errors import UserError

_CJK = '\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af\uf900-\ufaff'
_WORDS = re.compile(f'[{_CJK}]|[^\\W{_CJK}]+')
_HEADER_WORDS = frozenset(
  ('question', 'answer', 'prompt', 'text', 'instruction', 'input', 'output', 'label', 'category')
)
_KINDS = ('.json', '.jsonl', '.ndjson', '.csv', '.tsv', '.parquet')
# An item too short for 13 words overlaps where a text of it, of so many words, stands whole. In
# real data what has fewer is mostly chance ("which of the following is true").
_FEWEST = 7
_ANY_CJK = re.compile(f'[{_CJK}]')
# Words hashed at a time, and bits of a hash that are looked up before all of it is.
_SLICE, _BITS = 1 << 22, 22


@functools.cache
def _marks() -> re.Pattern[str]:
  """Signs that are written into a word and are no letters, as of vowels in Hindi."""
  found = (chr(code) for code in range(0x10000))
  return re.compile(f'[{"".join(c for c in found if unicodedata.category(c) in ("Mn", "Mc"))}]+')


def _words(text: str) -> list[str]:
  text = text.lower()
  return _WORDS.findall(text if text.isascii() else _marks().sub('', text))


@dataclasses.dataclass(frozen=True)
class _Coded:
  """Texts as numbers of their words, one after the other, those of too few words left out.

  Attributes:
    codes: uint32 [words].
    ends: int64 [texts], where in `codes` each ends.
    kept: int64 [texts], which of all texts they are.
  """

  codes: np.ndarray
  ends: np.ndarray
  kept: np.ndarray

  @property
  def starts(self) -> np.ndarray:
    """int64 [texts], where in `codes` each begins."""
    return np.concatenate([[0], self.ends[:-1]]).astype(np.int64)

  def text(self, places: np.ndarray) -> np.ndarray:
    """Which text each place in `codes` is in."""
    return np.searchsorted(self.ends, places, side='right')

  def hashes(self, places: np.ndarray, n: int) -> np.ndarray:
    """uint64, of the n words from each place on."""
    return self._hash(lambda offset: self.codes[places + offset], len(places), n)

  def grams(self, n: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(hashes, places) of all sequences of n words that are in one text, in order, in slices."""
    count = len(self.codes) - n + 1
    for low in range(0, count, _SLICE):
      size = min(_SLICE, count - low)
      inside = np.ones(size, bool)
      for back in range(1, n):  # what begins there runs into the next text
        at = self.ends - back - low
        inside[at[(at >= 0) & (at < size)]] = False
      part = lambda offset, low=low, size=size: self.codes[low + offset : low + offset + size]
      yield self._hash(part, size, n)[inside], low + np.flatnonzero(inside)

  def _hash(self, word: Callable[[int], np.ndarray], size: int, n: int) -> np.ndarray:
    total = np.zeros(size, np.uint64)
    for offset in range(n):
      total = total * np.uint64(0x9E3779B97F4A7C15) + _mix(word(offset).astype(np.uint64))
    return _mix(total)


class Words:
  """Gives words numbers and hashes sequences of them, for many texts at once."""

  def __init__(self) -> None:
    self._codes: dict[str, int] = {}

  def coded(self, texts: Sequence[str], fewest: int) -> _Coded:
    """The words of all texts that have so many."""
    table = self._codes
    codes = array.array('I')
    ends, kept = [], []
    for index, text in enumerate(texts):
      words = _words(text)
      if len(words) >= fewest:
        codes.extend([table.setdefault(word, len(table)) for word in words])
        ends.append(len(codes))
        kept.append(index)
    return _Coded(np.array(codes, np.uint32), np.array(ends, np.int64), np.array(kept, np.int64))

  def grams(self, texts: Sequence[str], n: int) -> tuple[np.ndarray, np.ndarray]:
    """(uint64 hashes of the sequences of n words, int64 index of the text of each), in order."""
    coded = self.coded(texts, n)
    found = list(coded.grams(n)) or [(np.zeros(0, np.uint64), np.zeros(0, np.int64))]
    hashes, places = (np.concatenate(part) for part in zip(*found, strict=True))
    return hashes, coded.kept[coded.text(places)]


def _mix(values: np.ndarray) -> np.ndarray:
  """splitmix64's finaliser (Steele, Lea, Flood 2014)."""
  values = (values + np.uint64(0x9E3779B97F4A7C15)).astype(np.uint64)
  values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
  values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
  return values ^ (values >> np.uint64(31))


class _Known:
  """Hashes, to be looked up many at a time."""

  def __init__(self, hashes: Iterable[np.ndarray]):
    parts = [np.unique(part) for part in hashes]
    self._sorted = np.unique(np.concatenate(parts)) if parts else np.zeros(0, np.uint64)
    # Most that is looked up is not there, and seldom gets past this.
    self._first = np.zeros(1 << _BITS, bool)
    self._first[self._sorted >> np.uint64(64 - _BITS)] = True

  def __len__(self) -> int:
    return len(self._sorted)

  def held(self, hashes: np.ndarray) -> np.ndarray:
    """bool, whether each is one of these."""
    out = self._first[hashes >> np.uint64(64 - _BITS)]
    left = hashes[out]
    if len(left):
      at = np.minimum(np.searchsorted(self._sorted, left), len(self) - 1)
      out[out] = self._sorted[at] == left
    return out


class NgramIndex:
  """The n-word sequences of training records.

  A training record overlaps an item when one n-word sequence stands whole in one message of the
  record (or its plain text) and whole in one string field of the item. Every string anywhere in the
  item counts, lists and ids included; sequences do not run from one field into the next. An item
  that has no string of n words overlaps when one of 7 words or more stands whole in a message; not
  where characters are words, of which so few are no sentence.
  """

  def __init__(self, records: Iterable[Record], n: int = 13):
    self.n, self._words = n, Words()
    texts = [text for record in records for text in record.contents]
    self._texts = self._words.coded(texts, min(n, _FEWEST))
    self._known = _Known(hashes for hashes, _ in self._texts.grams(n))

  def hits(self, items: Iterable[Any]) -> list[int]:
    """Indices of the overlapping items; an item is any nesting of lists, dicts and strings."""
    texts, owners = [], []
    for index, item in enumerate(items):
      for text in strings(item):
        texts.append(text)
        owners.append(index)
    if not len(self._texts.codes):
      return []
    coded, of = self._words.coded(texts, min(self.n, _FEWEST)), np.array(owners, np.int64)
    of = of[coded.kept]
    found: set[int] = set()
    for hashes, places in coded.grams(self.n):
      found.update(of[coded.text(places[self._known.held(hashes)])].tolist())
    sizes = coded.ends - coded.starts
    long = np.isin(of, of[sizes >= self.n])
    plain = np.array([not _ANY_CJK.search(texts[i]) for i in coded.kept], bool)
    short = np.flatnonzero(~long & plain)
    return sorted(found.union(of[short[self._whole(coded, short)]].tolist()))

  def _whole(self, coded: _Coded, short: np.ndarray) -> np.ndarray:
    """bool, whether each of some short texts stands whole in a message."""
    out = np.zeros(len(short), bool)
    if not len(short):
      return out
    starts, sizes = coded.starts[short], (coded.ends - coded.starts)[short]
    # Where their first words stand is looked up at once, the rest there.
    first = _Known([coded.hashes(starts, _FEWEST)])
    near = [places[first.held(hashes)] for hashes, places in self._texts.grams(_FEWEST)]
    at = np.concatenate(near) if near else np.zeros(0, np.int64)
    ends = self._texts.ends[self._texts.text(at)]
    for size in np.unique(sizes):
      own = sizes == size
      fits = at[at + size <= ends]
      known = _Known([self._texts.hashes(fits, int(size))])
      out[own] = known.held(coded.hashes(starts[own], int(size)))
    return out


def strings(item: Any) -> Iterator[str]:
  """Every string in a nested value, in no particular order; keys do not count."""
  open_items = [item]  # not by recursion: JSON may nest deeper than Python calls
  while open_items:
    value = open_items.pop()
    if isinstance(value, str):
      yield value
    elif isinstance(value, dict):
      open_items.extend(value.values())
    elif isinstance(value, list | tuple):
      open_items.extend(value)


def read_benchmark(path: str) -> list[Any]:
  """The items of a benchmark: a JSON, JSON-lines, CSV or Parquet file, or a folder of such files.

  A CSV file need not have a header. Raises UserError as `readers.read_raw` does.
  """
  if os.path.isdir(path):
    inside = sorted(pathlib.Path(path).rglob('*'))
    files = [str(file) for file in inside if file_kind(str(file)) in _KINDS and file.is_file()]
    if not files:
      raise UserError('no benchmark file in this folder', where=path, how='name files')
    return [item for file in files for item in read_benchmark(file)]
  if file_kind(path) not in ('.csv', '.tsv'):
    return [item for _, item in read_raw(path)]
  rows = [row for _, row in csv_rows(path, read_text(path))]
  if rows and _HEADER_WORDS & {field.strip().lower() for field in rows[0]}:
    rows = rows[1:]
  if not rows:
    raise UserError('no records', where=path, how='leave it out, or fetch it again')
  return rows


def ngram_overlap(
  records: Iterable[Record],
  bench_paths: Iterable[str],
  n: int = 13,
  index: NgramIndex | None = None,
) -> dict[str, tuple[list[int], int]]:
  """{benchmark file: (indices of items that share n words with a record, number of items)}.

  See `NgramIndex` for the definition; an `index` of the records saves making it again.
  """
  index = index or NgramIndex(records, n)
  found = {}
  for path in bench_paths:
    items = read_benchmark(path)
    found[path] = (index.hits(items), len(items))
  return found


def near_duplicates(
  records: Sequence[Record], threshold: float = 0.8, shingle: int = 3, seed: int = 0
) -> list[tuple[int, int]]:
  """(record, earlier record) pairs whose sets of 3-word sequences have a Jaccard index >= 0.8.

  At most one pair for each record; exact duplicates are left out. Candidates come from MinHash in
  16 bands of 4 (Broder 1997), so a pair at 0.8 is missed with a chance of 0.02 %; each candidate
  is then checked exactly.
  """
  bands, rows = 16, 4
  first: dict[str, int] = {}
  for index, record in enumerate(records):
    first.setdefault(record.key, index)
  distinct = list(first.values())
  texts = [' '.join(records[index].contents) for index in distinct]
  grams, places = Words().grams(texts, shingle)
  if not len(grams):
    return []
  kept, edges = np.unique(places, return_index=True)
  owners = [distinct[place] for place in kept]
  shingles = [np.unique(part) for part in np.split(grams, edges[1:])]
  starts = np.cumsum([0, *map(len, shingles[:-1])])
  flat = np.concatenate(shingles)
  salts = np.random.Philox(key=seed).random_raw(bands * rows)
  signature = np.stack([np.minimum.reduceat(_mix(flat ^ salt), starts) for salt in salts])
  pairs: dict[int, int] = {}
  for band in range(bands):
    key = np.zeros(len(owners), np.uint64)
    for row in signature[band * rows : (band + 1) * rows]:
      key = _mix(key ^ row)
    order = np.argsort(key, kind='stable')
    edges = np.flatnonzero(np.diff(key[order])) + 1
    for bucket in np.split(order, edges):
      for place, member in enumerate(bucket[1:], start=1):
        if owners[member] in pairs:
          continue
        for earlier in bucket[max(0, place - 8) : place]:
          if _jaccard(shingles[member], shingles[earlier]) >= threshold:
            pairs[owners[member]] = owners[earlier]
            break
  return sorted(pairs.items())


def _jaccard(left: np.ndarray, right: np.ndarray) -> float:
  common = len(np.intersect1d(left, right, assume_unique=True))
  return common / (len(left) + len(right) - common)

"""Shared word sequences: near duplicates, and overlap with held-out data and benchmarks.

Words are lower-case runs of letters, digits and underscores (`\\w+`); a Chinese, Japanese or Korean
character is a word of its own. Sequences are compared by 64-bit hashes.
"""

import dataclasses
import os
import pathlib
import re
from collections.abc import Iterable, Iterator, Sequence
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
# An item too short for 13 words overlaps where it stands whole, if it has so many. In real data
# what has fewer is mostly chance ("which of the following is true", "planets in our solar system").
_FEWEST = 7


@dataclasses.dataclass(frozen=True)
class _Coded:
  """Texts as 64-bit codes of their words, one after the other, those of too few words left out.

  Attributes:
    codes: uint64 [words].
    ends: int64 [texts], where in `codes` each ends.
    kept: int64 [texts], which of all texts they are.
  """

  codes: np.ndarray
  ends: np.ndarray
  kept: np.ndarray

  def grams(self, n: int) -> tuple[np.ndarray, np.ndarray]:
    """(uint64 hashes of the sequences of n words, int64 places in `codes` where they begin)."""
    if len(self.codes) < n:
      return np.zeros(0, np.uint64), np.zeros(0, np.int64)
    count = len(self.codes) - n + 1
    total = np.zeros(count, np.uint64)
    for offset in range(n):
      total = total * np.uint64(0x9E3779B97F4A7C15) + self.codes[offset : offset + count]
    places = np.arange(count)
    inside = places + n <= self.ends[self.text(places)]  # does not run into the next text
    return _mix(total[inside]), places[inside]

  def text(self, places: np.ndarray) -> np.ndarray:
    """Which text each place in `codes` is in."""
    return np.searchsorted(self.ends, places, side='right')


class Words:
  """Gives words 64-bit codes and hashes sequences of them, for many texts at once."""

  def __init__(self) -> None:
    self._codes: dict[str, int] = {}

  def coded(self, texts: Sequence[str], fewest: int) -> _Coded:
    """The words of all texts that have so many."""
    table = self._codes
    codes: list[int] = []
    ends, kept = [], []
    for index, text in enumerate(texts):
      words = _WORDS.findall(text.lower())
      if len(words) >= fewest:
        codes.extend(table.setdefault(word, len(table)) for word in words)
        ends.append(len(codes))
        kept.append(index)
    mixed = _mix(np.array(codes, np.uint64))
    return _Coded(mixed, np.array(ends, np.int64), np.array(kept, np.int64))

  def grams(self, texts: Sequence[str], n: int) -> tuple[np.ndarray, np.ndarray]:
    """(uint64 hashes of the sequences of n words, int64 index of the text of each), in order."""
    coded = self.coded(texts, n)
    hashes, places = coded.grams(n)
    return hashes, coded.kept[coded.text(places)]


def _mix(values: np.ndarray) -> np.ndarray:
  """splitmix64's finaliser (Steele, Lea, Flood 2014)."""
  values = (values + np.uint64(0x9E3779B97F4A7C15)).astype(np.uint64)
  values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
  values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
  return values ^ (values >> np.uint64(31))


class NgramIndex:
  """The n-word sequences of training records.

  A training record overlaps an item when one n-word sequence stands whole in one message of the
  record (or its plain text) and whole in one string field of the item. Every string anywhere in the
  item counts, lists and ids included; sequences do not run from one field into the next. An item
  that has no string of n words overlaps when its longest, of 7 words or more, stands whole in a
  message.
  """

  def __init__(self, records: Iterable[Record], n: int = 13):
    self.n, self._words = n, Words()
    texts = [text for record in records for text in record.contents]
    self._texts = self._words.coded(texts, min(n, _FEWEST))
    self._known = np.unique(self._texts.grams(n)[0])

  def hits(self, items: Iterable[Any]) -> list[int]:
    """Indices of the overlapping items; an item is any nesting of lists, dicts and strings."""
    texts, owners = [], []
    for index, item in enumerate(items):
      for text in strings(item):
        texts.append(text)
        owners.append(index)
    if not len(self._known) and not len(self._texts.codes):
      return []
    coded, of = self._words.coded(texts, min(self.n, _FEWEST)), np.array(owners, np.int64)
    of = of[coded.kept]
    grams, places = coded.grams(self.n)
    found = set(of[coded.text(places[np.isin(grams, self._known)])].tolist())
    return sorted(found | self._whole(coded, of))

  def _whole(self, coded: _Coded, of: np.ndarray) -> set[int]:
    """Items without a string of n words whose longest stands whole in a text.

    Args:
      coded: Strings of items.
      of: [strings] whose each is.
    """
    starts = np.concatenate([[0], coded.ends[:-1]]).astype(np.int64)
    lengths = coded.ends - starts
    longest: dict[int, int] = {}
    for text, item in enumerate(of.tolist()):
      if item not in longest or lengths[text] > lengths[longest[item]]:
        longest[item] = text
    short = {item: text for item, text in longest.items() if lengths[text] < self.n}
    if not short:
      return set()
    # Where their first words stand is looked up at once, the rest there.
    first, at = self._texts.grams(_FEWEST)
    grams, places = coded.grams(_FEWEST)
    begins = dict(zip(places.tolist(), grams, strict=True))
    wanted = {item: begins[int(starts[text])] for item, text in short.items()}
    near = np.isin(first, np.unique(list(wanted.values())))
    first, at = first[near], at[near]
    order = np.argsort(first, kind='stable')
    first, at = first[order], at[order]
    ends = self._texts.ends[self._texts.text(at)]
    found = set()
    for item, text in short.items():
      low, high = (np.searchsorted(first, wanted[item], side) for side in ('left', 'right'))
      length = int(lengths[text])
      begin = at[low:high][at[low:high] + length <= ends[low:high]]
      own = coded.codes[starts[text] : starts[text] + length]
      if len(begin) and (self._texts.codes[begin[:, None] + np.arange(length)] == own).all(1).any():
        found.add(item)
    return found


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

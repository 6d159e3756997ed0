"""Prepared data on disk: examples as arrays that many processes map, records and a report beside.

A directory is whole or absent, and never changed. Every file's SHA-256 stands in `manifest.json`; a
directory in which one differs is not used. Not for deciding when data are the same (`session.py`).
"""

import dataclasses
import hashlib
import io as bytes_io
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sft_jax.data.audit import Audit
from sft_jax.data.formats import Record
from sft_jax.data.tokenize import Example
from sft_jax.utils import io, log

_FORMAT = 3
_ARRAYS = ('ids', 'loss_weight', 'spans')


@dataclasses.dataclass(frozen=True)
class Prepared:
  """What is kept: examples and records by part ('train', 'heldout'), the report, plain values."""

  examples: Mapping[str, Sequence[Example]]
  records: Mapping[str, Sequence[Record]]
  audit: Audit
  values: Mapping[str, Any]


def save(directory: str, prepared: Prepared) -> None:
  """Makes `directory`; one that another process has made meanwhile stays.

  Raises:
    UserError: the disk is full, or cannot be written.
  """
  target = Path(os.path.abspath(directory))
  files: dict[str, bytes] = {}
  for part, examples in prepared.examples.items():
    for name in _ARRAYS:
      arrays = [getattr(example, name) for example in examples]
      files[f'{part}-{name}.npy'] = _npy(np.concatenate(arrays) if arrays else np.zeros(0))
    files[f'{part}-examples.json'] = _json(
      {
        'lengths': [len(example) for example in examples],
        'sources': [example.source for example in examples],
        'span_bytes': [example.span_bytes for example in examples],
        'truncated': [example.truncated for example in examples],
      }
    )
  for part, records in prepared.records.items():
    files[f'{part}-records.json'] = _json([dataclasses.asdict(record) for record in records])
  values = {'values': dict(prepared.values), 'audit': dataclasses.asdict(prepared.audit)}
  files['about.json'] = _json(values)
  sums = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
  files['manifest.json'] = _json({'format': _FORMAT, 'sha256': sums})
  with io.explain_os_errors(target):
    target.parent.mkdir(parents=True, exist_ok=True)
    with io.scratch_directory(target.parent, target.name) as scratch:
      place = scratch / 'made'
      place.mkdir()
      for name, data in files.items():
        io.write_bytes_atomic(place / name, data)
        (place / name).chmod(0o444)
      try:
        os.rename(place, target)
      except OSError:
        if not target.exists():
          raise


def load(directory: str) -> Prepared | None:
  """What was saved, arrays mapped from the files; None where it is absent.

  One that was damaged is removed, and absent from then on.
  """
  place = Path(os.path.abspath(directory))
  if not (place / 'manifest.json').exists():
    return None
  try:
    manifest = json.loads((place / 'manifest.json').read_bytes())
    if manifest['format'] != _FORMAT:
      raise ValueError('another format')
    for name, digest in manifest['sha256'].items():
      if io.sha256_file(place / name) != digest:
        raise ValueError(f'{name} has changed')
    return _load(place)
  except (OSError, ValueError, KeyError, TypeError) as e:
    log.warn(f'{place}: {e}; the data are prepared again')
    shutil.rmtree(place, ignore_errors=True)
    return None


def _load(place: Path) -> Prepared:
  examples = {name: _examples(place, name) for name in ('train', 'heldout')}
  records = {
    name: [
      Record(**{**record, 'messages': tuple(record['messages'])})
      for record in json.loads((place / f'{name}-records.json').read_bytes())
    ]
    for name in ('train', 'heldout')
  }
  about = json.loads((place / 'about.json').read_bytes())
  return Prepared(examples, records, _audit(about['audit']), about['values'])


def _examples(place: Path, part: str) -> list[Example]:
  about = json.loads((place / f'{part}-examples.json').read_bytes())
  arrays: dict[str, np.ndarray] = {}
  for name in _ARRAYS:
    file = place / f'{part}-{name}.npy'
    # A plain view of the map: slices of `memmap` are slow. An empty file cannot be mapped.
    held = np.load(file, mmap_mode='r') if sum(about['lengths']) else np.load(file)
    arrays[name] = np.asarray(held)
  ends = np.cumsum([0, *about['lengths']])
  return [
    Example(
      **{name: array[start:end] for name, array in arrays.items()},
      source=source,
      span_bytes=span_bytes,
      truncated=truncated,
    )
    for start, end, source, span_bytes, truncated in zip(
      ends, ends[1:], about['sources'], about['span_bytes'], about['truncated'], strict=False
    )
  ]


def _audit(held: dict[str, Any]) -> Audit:
  pairs = lambda items: [tuple(item) for item in items]
  held = held | {'histogram': pairs(held['histogram'])}
  held |= {'near_duplicates_at': pairs(held['near_duplicates_at'])}
  held |= {'benchmarks': {file: tuple(hits) for file, hits in held['benchmarks'].items()}}
  return Audit(**held)


def _npy(array: np.ndarray) -> bytes:
  buffer = bytes_io.BytesIO()
  np.save(buffer, array, allow_pickle=False)
  return buffer.getvalue()


def _json(value: Any) -> bytes:
  return io.to_json(value).encode()

"""Benchmarks as tokens, kept on disk: made once for all models of a tokenizer.

A file holds the tokens of one task under one tokenizer, template and window; its name is a hash of
all they depend on, down to the code that builds prompts, so it is never stale, only unused. Files
are plain arrays (`.npz`, without pickles), written whole; one that cannot be read is made anew. The
oldest go when all together exceed `MOST_BYTES`. Not for how items become tokens: `questions.py`.
"""

import contextlib
import functools
import hashlib
import io
import json
import os
import pathlib
import zipfile
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from sft_jax.evals import prompts, questions
from sft_jax.evals.benchmark import Generate, Item
from sft_jax.evals.questions import Options, Question, Wanted
from sft_jax.utils import io as files
from sft_jax.utils.errors import UserError

FORMAT = 1
MOST_BYTES = 2 << 30
# What prompts and tokens are made by, relative to the package.
_CODE = (
  *('evals/lines.py', 'evals/parse.py', 'evals/prompts.py', 'evals/questions.py'),
  *('evals/tasks/*.py', 'data/templates.py', 'data/tokenize.py', 'data/vocabulary.py'),
)


def questions_of(
  wanted: Wanted, items: Sequence[Item], pool: Sequence[Item], options: Options
) -> list[Question]:
  """`questions.ask_all`, from `options.cache` where it is there, else kept there.

  Raises:
    UserError: as `ask_all`; never for a cache that cannot be read or written.
  """
  if options.cache is None:
    return questions.ask_all(wanted, items, pool, options)
  try:
    file = options.cache / f'{key(wanted, items, pool, options)}.npz'
  except TypeError:  # Items of somebody's own that JSON cannot hold.
    return questions.ask_all(wanted, items, pool, options)
  asked = _load(file, wanted, items, pool)
  if asked is None:
    asked = questions.ask_all(wanted, items, pool, options)
    with contextlib.suppress(UserError, OSError):  # A disk that is full or only read.
      file.parent.mkdir(parents=True, exist_ok=True)
      files.write_bytes_atomic(file, _packed(asked))
      _make_room(file.parent)
  return asked


def key(wanted: Wanted, items: Sequence[Item], pool: Sequence[Item], options: Options) -> str:
  """Hash of all that the tokens of a task depend on."""
  benchmark, reading = wanted.benchmark, wanted.benchmark.readings[wanted.reading]
  contents = lambda some: [[item.id, item.group, dict(item.fields)] for item in some]
  parts = [
    [FORMAT, _code(), wanted.name, benchmark.version, benchmark.prompt_hash[wanted.reading]],
    [options.template, options.window, _tokenizer(options.tokenizer, len(options.tokenizer))],
    # The templates of a tokenizer may be set after it was made.
    [getattr(options.tokenizer, 'chat_template', None)],
    [reading.most_new(wanted.shots) if isinstance(reading, Generate) else 0],
    contents(items),
    contents(pool),
  ]
  text = json.dumps(parts, ensure_ascii=False)
  return hashlib.sha256(text.encode('utf-8', 'surrogatepass')).hexdigest()[:32]


@functools.cache
def _code() -> str:
  """Hash of the code that makes prompts and tokens of items, and of the library below it."""
  import tokenizers

  root = pathlib.Path(__file__).parents[1]
  digest = hashlib.sha256(tokenizers.__version__.encode())
  for path in sorted(path for pattern in _CODE for path in root.glob(pattern)):
    digest.update(path.read_bytes())
  return digest.hexdigest()


@functools.lru_cache(maxsize=4)
def _tokenizer(tokenizer: Any, size: int) -> str:
  """Hash of a tokenizer: its whole backend, and the ids that stand for beginning and end.

  Kept for each tokenizer and its size, as tokens may be added to it.
  """
  del size
  frame = json.dumps([tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer('a')['input_ids']])
  return hashlib.sha256((tokenizer.backend_tokenizer.to_str() + frame).encode()).hexdigest()


def _packed(asked: Sequence[Question]) -> bytes:
  """Questions as the bytes of an archive of arrays."""
  parts = [part for question in asked for part in (question.ids, *question.continuations)]
  out = io.BytesIO()
  np.savez(
    out,
    tokens=np.concatenate(parts) if parts else np.zeros(0, np.int32),
    lengths=np.array([len(part) for part in parts], np.int64),
    # How many parts each question has, the shots it holds, whether it was cut.
    about=np.array(
      [(1 + len(one.continuations), one.shots, one.cut) for one in asked], np.int64
    ).reshape(-1, 3),
  )
  return out.getvalue()


def _load(
  file: pathlib.Path, wanted: Wanted, items: Sequence[Item], pool: Sequence[Item]
) -> list[Question] | None:
  """The questions in a file; None if it is not there, or not whole."""
  try:
    with np.load(file, allow_pickle=False) as held:
      tokens, lengths, about = held['tokens'], held['lengths'], held['about']
    # Its contents are read with a checksum, so what is left to find is another's file.
    if about.shape != (len(items), 3) or about[:, 0].sum() != len(lengths):
      return None
    if tokens.dtype != np.int32 or tokens.shape != (lengths.sum(),):
      return None
    os.utime(file)
  except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error):
    return None
  shots, reading = questions.shots_of(wanted, pool), wanted.benchmark.readings[wanted.reading]
  ask = lambda item, count: prompts.with_shots(reading.ask(item, shots(item)), count)
  ends = np.cumsum(lengths).tolist()
  parts = [tokens[a:b] for a, b in zip([0, *ends], ends, strict=False)]
  asked, at = [], 0
  for item, (count, held_shots, cut) in zip(items, about.tolist(), strict=True):
    ids, *continuations = parts[at : at + count]
    at += count
    prompt = functools.partial(ask, item, held_shots)
    asked.append(Question(item, held_shots, bool(cut), prompt, ids, tuple(continuations)))
  return asked


def _make_room(directory: pathlib.Path) -> None:
  """Removes the files that were not used for longest, until the rest is small enough."""
  held = sorted(
    ((file.stat(), file) for file in directory.glob('*.npz')), key=lambda one: -one[0].st_mtime
  )
  total = 0
  for facts, file in held:
    total += facts.st_size
    if total > MOST_BYTES and file is not held[0][1]:
      file.unlink(missing_ok=True)

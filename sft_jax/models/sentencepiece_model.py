"""SentencePiece models: read from their file, and rebuilt as `tokenizers` pipelines.

Written out because transformers 5.24 converts such files wrongly where `tokenizer_config.json`
names `LlamaTokenizer`: it ranks merges by position instead of by score (so the indentation of code
is cut differently), and takes a unigram model for BPE. The algorithms are the library's; here is
what they are given. Not for the other files of a directory: see `tokenizer.py`.
"""

import dataclasses
import re
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sft_jax.utils.errors import UserError

UNIGRAM, BPE = 1, 2
# Kinds of a piece. llama.cpp numbers them alike (include/llama.h, enum llama_token_type).
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, BYTE = 1, 2, 3, 4, 6
_SPACE = '▁'
# A damaged file must not cost time that grows with the square of its size. The library's own limit
# of a learned piece is 16 characters unless its trainer is told otherwise.
_MOST_BITS, _LONGEST_PIECE = 64, 1000


@dataclasses.dataclass(frozen=True)
class Pieces:
  """A SentencePiece model.

  Attributes:
    tokens: In id order.
    scores: Their ranks (BPE, the largest first) or logarithms of probabilities (unigram).
    kinds: NORMAL, …
    algorithm: UNIGRAM or BPE.
    specials: {'bos': 1, …}: ids of 'unk', 'bos', 'eos' and 'pad', as far as there are any.
    byte_fallback: Whether characters that no piece has become bytes.
    prefix_space: Whether a space is put before a text.
    squeeze_spaces: Whether spaces at the ends go, and runs of spaces become one.
    charsmap: The compiled normalisation rule (such as NFKC), or b''.
  """

  tokens: list[str]
  scores: list[float]
  kinds: list[int]
  algorithm: int = BPE
  specials: dict[str, int] = dataclasses.field(default_factory=dict)
  byte_fallback: bool = True
  prefix_space: bool = True
  squeeze_spaces: bool = False
  charsmap: bytes = b''


def read(path: Path) -> Pieces:
  """Reads a `tokenizer.model`.

  The field numbers are those of https://github.com/google/sentencepiece/blob/master/src/sentencepiece_model.proto

  Raises:
    UserError: not a SentencePiece model (such as a tiktoken one), or of a kind that is not read.
  """
  how = 'copy tokenizer.json of the model beside it, or download the file again'
  try:
    tokens, scores, kinds, trainer, rules = [], [], [], {}, {}
    for number, value in _fields(path.read_bytes()):
      if number == 1:
        piece = dict(_fields(value))
        tokens.append(piece[1].decode('utf-8'))
        scores.append(struct.unpack('<f', piece.get(2, bytes(4)))[0])
        kinds.append(piece.get(3, NORMAL))
      elif number == 2:
        trainer = dict(_fields(value))
      elif number == 3:
        rules = dict(_fields(value))
    ids = {'unk': 0, 'bos': 1, 'eos': 2, 'pad': -1}
    ids = {name: _signed(trainer.get(40 + i, at)) for i, (name, at) in enumerate(ids.items())}
    model = Pieces(
      tokens=tokens,
      scores=scores,
      kinds=kinds,
      algorithm=trainer.get(3, UNIGRAM),
      specials={name: index for name, index in ids.items() if 0 <= index < len(tokens)},
      byte_fallback=bool(trainer.get(35, 0)),
      prefix_space=bool(rules.get(3, 1)),
      squeeze_spaces=bool(rules.get(4, 1)),
      charsmap=rules.get(2, b''),
    )
  except (ValueError, KeyError, IndexError, TypeError, AttributeError, struct.error) as e:
    raise UserError('not a SentencePiece model', str(path), how) from e
  learned = [len(token) for token, kind in zip(tokens, kinds, strict=True) if kind == NORMAL]
  if not tokens or len(set(tokens)) != len(tokens) or max(learned, default=0) > _LONGEST_PIECE:
    raise UserError('not a SentencePiece model', str(path), how)
  if model.algorithm not in (UNIGRAM, BPE) or trainer.get(24) or not rules.get(5, 1):
    raise UserError('a SentencePiece model of a kind that is not read', str(path), how)
  # The library protects them; here the whole text is normalised first.
  normalisers = _rules(model)
  for token in _whole(model):
    if any(rule.normalize_str(token) != token for rule in normalisers):
      raise UserError(f'its normalisation changes the token {token!r}', str(path), how)
  return model


def _fields(data: bytes) -> Iterator[tuple[int, Any]]:
  """(number, value) of a protocol buffer: an int, or bytes.

  Source: https://protobuf.dev/programming-guides/encoding

  Raises:
    ValueError, IndexError: it is none.
  """
  at = 0

  def varint() -> int:
    nonlocal at
    value = shift = 0
    while True:
      if shift >= _MOST_BITS:
        raise ValueError('varint of more than 64 bits')
      byte = data[at]
      at += 1
      value |= (byte & 0x7F) << shift
      if byte < 0x80:
        return value
      shift += 7

  while at < len(data):
    key = varint()
    kind = key & 7
    if kind == 0:
      yield key >> 3, varint()
      continue
    if kind not in (1, 2, 5):
      raise ValueError(f'wire type {kind}')
    size = {1: 8, 5: 4}.get(kind) or varint()
    if at + size > len(data):
      raise ValueError('truncated')
    yield key >> 3, data[at : at + size]
    at += size


def _signed(value: int) -> int:
  return value - (1 << 64) if value >> 63 else value


def build(model: Pieces, every_chunk: bool) -> Any:
  """The `tokenizers.Tokenizer` that encodes like SentencePiece.

  Args:
    model: Its pieces.
    every_chunk: The space goes before every text between special tokens, not the first alone.
  """
  import tokenizers
  from tokenizers import decoders, models, normalizers, pre_tokenizers

  whole = _whole(model)
  if model.algorithm == UNIGRAM:
    backend = tokenizers.Tokenizer(
      models.Unigram(
        list(zip(model.tokens, model.scores, strict=True)),
        unk_id=model.specials.get('unk'),
        byte_fallback=model.byte_fallback,
      )
    )
  else:
    unknown = model.specials.get('unk')
    backend = tokenizers.Tokenizer(
      models.BPE(
        vocab={token: i for i, token in enumerate(model.tokens)},
        merges=_merges(model),
        unk_token=None if unknown is None else model.tokens[unknown],
        fuse_unk=True,
        byte_fallback=model.byte_fallback,
        ignore_merges=bool(whole),  # they stand in no merge
      )
    )
  rules = _rules(model)
  if model.prefix_space and every_chunk:
    rules.append(normalizers.Prepend(_SPACE))
  backend.normalizer = normalizers.Sequence([*rules, normalizers.Replace(' ', _SPACE)])
  steps: list[Any] = []
  if model.prefix_space and not every_chunk:
    steps.append(pre_tokenizers.Metaspace(_SPACE, prepend_scheme='first', split=False))
  if whole:
    longest_first = '|'.join(re.escape(token) for token in sorted(whole, key=len, reverse=True))
    steps.append(pre_tokenizers.Split(tokenizers.Regex(longest_first), 'isolated'))
  if steps:
    backend.pre_tokenizer = pre_tokenizers.Sequence(steps)
  ends: list[Any] = [decoders.Replace(_SPACE, ' '), decoders.ByteFallback(), decoders.Fuse()]
  if model.prefix_space:
    ends.append(decoders.Strip(' ', left=1))
  backend.decoder = decoders.Sequence(ends)
  add_special(backend, model.tokens, model.kinds)
  return backend


def _whole(model: Pieces) -> list[str]:
  """Tokens that are never part of another."""
  return [t for t, kind in zip(model.tokens, model.kinds, strict=True) if kind == USER_DEFINED]


def _rules(model: Pieces) -> list[Any]:
  """Normalisers of everything but the prefix space and the mark for a space."""
  from tokenizers import Regex, normalizers

  rules: list[Any] = []
  if model.charsmap:
    rules.append(normalizers.Precompiled(model.charsmap))
  if model.squeeze_spaces:
    rules.append(normalizers.Replace(Regex(r'\A +| +\z'), ''))
    rules.append(normalizers.Replace(Regex(' {2,}'), ' '))
  return rules


def add_special(backend: Any, tokens: list[str], kinds: Any) -> None:
  """Declares control tokens: matched whole in a text, and not shown when decoding asks for that."""
  import tokenizers

  backend.add_special_tokens(
    [
      tokenizers.AddedToken(token, normalized=False, special=True)
      for token, kind in zip(tokens, kinds, strict=False)
      if kind in (UNKNOWN, CONTROL)
    ]
  )


def _merges(model: Pieces) -> list[tuple[str, str]]:
  """Pairs in the order in which SentencePiece joins them: by the score of what they make."""
  ranks = {
    token: (-score, i)
    for i, (token, score, kind) in enumerate(
      zip(model.tokens, model.scores, model.kinds, strict=True)
    )
    if kind == NORMAL
  }
  ranked = [
    (*rank, token[:cut], token[cut:])
    for token, rank in ranks.items()
    for cut in range(1, len(token))
    if token[:cut] in ranks and token[cut:] in ranks
  ]
  return [(left, right) for _, _, left, right in sorted(ranked)]

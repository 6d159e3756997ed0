"""Records to token ids and loss weights. Not for layout into rows: see `pack.py`.

Each text is tokenised once, whole, with character offsets. A token is supervised when its
characters overlap a response (content and end-of-turn token), so masks never depend on token ids:
a pad token equal to the end of sequence, or token 0, is learnt like any other.
"""

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from sft_jax.data.formats import Record
from sft_jax.data.templates import (
  INSTRUCTION,
  MARKUP,
  RESPONSE,
  TEMPLATES,
  ChatRenderer,
  Message,
  Piece,
  TemplateRefused,
  render_chat,
  render_study,
  render_text,
  study_turns,
)
from sft_jax.data.vocabulary import (
  Vocabulary,
  bos_prefix,
  need_eos,
  stop_ids,
  vocabulary_of,
)
from sft_jax.utils.errors import UserError

__all__ = [
  'TEMPLATES',
  'Dropped',
  'Example',
  'bos_prefix',
  'chat_prompt',
  'encode',
  'encode_all',
  'iter_encoded',
  'prompt_ids',
  'stop_ids',
  'study_tail',
  'without',
]

LOSS_ON = ('response', 'all')
TOO_LONG = ('truncate', 'drop', 'error')
SPANS = {'full': None, 'response': RESPONSE, 'instruction': INSTRUCTION}
_BATCH = 512  # texts handed to the tokenizer at once
_UNCOUNTED = 255  # kind of a character that no bits are spent on


@dataclasses.dataclass(frozen=True)
class Example:
  """One tokenised record.

  Attributes:
    ids: int32 [T].
    loss_weight: float32 [T], weight of predicting token t from its past; the first is 0.
    spans: uint8 [T], MARKUP, INSTRUCTION or RESPONSE.
    source: 'file.jsonl:12'.
    span_bytes: UTF-8 bytes of text in 'full', 'response' and 'instruction'. Special tokens and an
      unpredicted first token have no bytes, so bits and bytes cover the same text.
    truncated: Whether tokens were cut off at the end.
  """

  ids: np.ndarray
  loss_weight: np.ndarray
  spans: np.ndarray
  source: str
  span_bytes: dict[str, int]
  truncated: bool = False

  def __len__(self) -> int:
    return len(self.ids)

  def weights(self, span: str) -> np.ndarray:
    """float32 [T]: 1 where a token of 'full', 'response' or 'instruction' is predicted."""
    kind = SPANS[span]
    weights = np.ones(len(self.ids), np.float32)
    if kind is not None:
      weights[self.spans != kind] = 0
    weights[0] = 0
    return weights


@dataclasses.dataclass(frozen=True)
class Dropped:
  """A record that is not trained on, and why."""

  record: Record
  reason: str


def without(records: Iterable[Record], dropped: Iterable[Dropped]) -> list[Record]:
  """Those of `records` that were not dropped; told apart by identity, never by their source."""
  gone = {id(item.record) for item in dropped}
  return [record for record in records if id(record) not in gone]


def prompt_ids(messages: Sequence[Message], tokenizer: Any, template: str) -> list[int]:
  """The prefix of a training example that ends where the answer to `messages` begins.

  A space that ends the prompt is left out: in training it was the first character of the answer's
  first token. Raises UserError for an unknown template or a conversation the template refuses.
  """
  _check_choice('template', template, TEMPLATES)
  if template == 'chat':
    text = chat_prompt(messages, tokenizer).rstrip(' ')
    return list(tokenizer(text, add_special_tokens=False)['input_ids'])
  turns = study_turns(messages)
  if not turns or turns[-1].answer is not None:
    raise UserError('a prompt ends with a question, not with an answer')
  ids = list(bos_prefix(tokenizer))
  for turn in turns:
    answer = '' if turn.answer is None else f' {turn.answer}'
    ids = ids + list(tokenizer(turn.prompt + answer, add_special_tokens=False)['input_ids'])
    if turn.answer is not None:
      need_eos(tokenizer)
      ids.append(int(tokenizer.eos_token_id))
  return ids


def chat_prompt(messages: Sequence[Message], tokenizer: Any) -> str:
  """The text of a chat prompt. Raises UserError for a conversation that the template refuses."""
  try:
    return render_chat(tokenizer, messages, prompt=True)
  except TemplateRefused as error:
    raise UserError(
      f'the chat template refuses this conversation: {error}',
      where='tokenizer.chat_template',
      how='use config.data.template=study',
    ) from error


def study_tail(messages: Sequence[Message]) -> str:
  """The last block of a study prompt, which is tokenised as one text with its answer."""
  return study_turns(messages)[-1].prompt


def encode(
  record: Record,
  tokenizer: Any,
  template: str = 'study',
  loss_on: str = 'response',
  max_length: int = 2048,
  too_long: str = 'truncate',
) -> Example | Dropped:
  """Tokenises one record; see `encode_all`."""
  return next(iter_encoded([record], tokenizer, template, loss_on, max_length, too_long))


def encode_all(
  records: Iterable[Record],
  tokenizer: Any,
  template: str = 'study',
  loss_on: str = 'response',
  max_length: int = 2048,
  too_long: str = 'truncate',
) -> tuple[list[Example], list[Dropped]]:
  """Tokenises records in order.

  Args:
    records: What `formats.read_records` gives.
    tokenizer: A fast transformers tokenizer.
    template: A key of TEMPLATES. Plain-text records are not wrapped.
    loss_on: 'response' (contents and end-of-turn tokens of assistant turns) or 'all' (every token
      but the first).
    max_length: Longest example in tokens.
    too_long: 'truncate' cuts the end off, 'drop' drops the record, 'error' raises.

  Returns:
    Examples, and the dropped records with reasons.

  Raises:
    UserError: An unknown choice, a tokenizer that cannot serve, a too long record under 'error',
      or a chat template whose responses cannot be found.
  """
  examples, dropped = [], []
  for item in iter_encoded(records, tokenizer, template, loss_on, max_length, too_long):
    if isinstance(item, Example):
      examples.append(item)
    else:
      dropped.append(item)
  return examples, dropped


def iter_encoded(
  records: Iterable[Record],
  tokenizer: Any,
  template: str,
  loss_on: str,
  max_length: int,
  too_long: str,
) -> Iterator[Example | Dropped]:
  """`encode_all` as a stream, in the order of `records`."""
  _check_choice('template', template, TEMPLATES)
  _check_choice('loss_on', loss_on, LOSS_ON)
  _check_choice('too_long', too_long, TOO_LONG)
  if max_length < 2:
    raise UserError(f'max_length is {max_length}', how='use at least 2 tokens')
  vocabulary = vocabulary_of(tokenizer)
  chat = ChatRenderer(tokenizer) if template == 'chat' else None
  if chat is None:
    need_eos(tokenizer)
  records = list(records)
  for first in range(0, len(records), _BATCH):
    batch = records[first : first + _BATCH]
    rendered = [_render(record, chat) for record in batch]
    texts = [p.text for pieces in rendered if isinstance(pieces, list) for p in pieces]
    encodings = iter(vocabulary.backend.encode_batch(texts, add_special_tokens=False))
    for record, pieces in zip(batch, rendered, strict=True):
      if isinstance(pieces, Dropped):
        yield pieces
        continue
      if any(piece.bare for piece in pieces):
        need_eos(tokenizer)
      parts = [(piece, next(encodings)) for piece in pieces]
      yield _assemble(record, parts, vocabulary, loss_on, max_length, too_long)


def _check_choice(name: str, value: str, known: Iterable[str]) -> None:
  if value not in known:
    raise UserError(f'unknown {name} {value!r}', how=f'use one of: {", ".join(known)}')


def _render(record: Record, chat: ChatRenderer | None) -> list[Piece] | Dropped:
  if record.problem:
    return Dropped(record, record.problem)
  if not record.messages:
    return render_text(record.text)
  if chat is None:
    return render_study(record.messages)
  try:
    return chat.pieces(record.messages, record.source)
  except TemplateRefused as error:
    return Dropped(record, f'the chat template refuses it: {error}')


def _assemble(
  record: Record,
  parts: Sequence[tuple[Piece, Any]],
  vocabulary: Vocabulary,
  loss_on: str,
  max_length: int,
  too_long: str,
) -> Example | Dropped:
  """Joins pieces, frames bare ones by id, marks spans, applies the length policy."""
  ids: list[int] = []
  kinds: list[np.ndarray] = []
  prefix = vocabulary.prefix if parts and parts[0][0].bare else ()
  if prefix and tuple(parts[0][1].ids[: len(prefix)]) != prefix:
    ids.extend(prefix)
    kinds.append(np.zeros(len(prefix), np.uint8))
  counts = dict.fromkeys(SPANS, 0)
  for piece, encoding in parts:
    offsets = np.asarray(encoding.offsets, np.int64).reshape(-1, 2)
    kept = len(encoding.ids)
    if too_long == 'truncate':
      kept = min(kept, max(0, max_length - len(ids)))
    kind = token_kinds(offsets, piece.spans)
    _count_bytes(counts, piece, encoding.ids[:kept], offsets[:kept], vocabulary, bool(ids))
    ids.extend(encoding.ids)
    kinds.append(kind)
    if piece.bare:
      ids.append(int(vocabulary.eos))  # type: ignore[arg-type]
      kinds.append(np.full(1, RESPONSE, np.uint8))
  length = len(ids)
  if length > max_length:
    if too_long == 'error':
      raise UserError(
        f'a record has {length} tokens, more than max_length {max_length}',
        where=record.source,
        how='raise max_length, or set too_long to truncate or drop',
      )
    if too_long == 'drop':
      return Dropped(record, 'longer than max_length')
  spans = np.concatenate(kinds)[:max_length] if kinds else np.zeros(0, np.uint8)
  weight = np.ones(len(spans), np.float32)
  if loss_on == 'response':
    weight[spans != RESPONSE] = 0
  weight[:1] = 0
  if not weight.any():
    cut = length > max_length
    return Dropped(record, 'no supervised token' + (' within max_length' if cut else ''))
  return Example(
    ids=np.asarray(ids[:max_length], np.int32),
    loss_weight=weight,
    spans=spans,
    source=record.source,
    span_bytes=counts,
    truncated=length > max_length,
  )


def token_kinds(offsets: np.ndarray, spans: Sequence[tuple[int, int, int]]) -> np.ndarray:
  """Kind of each token: that of a span its characters [start, end) overlap; RESPONSE wins."""
  kinds = np.full(len(offsets), MARKUP, np.uint8)
  starts, ends = offsets[:, 0], offsets[:, 1]
  for first, last, kind in sorted(spans, key=lambda span: span[2]):
    kinds[(starts < last) & (ends > first)] = kind
  return kinds


def _count_bytes(
  counts: dict[str, int],
  piece: Piece,
  ids: Sequence[int],
  offsets: np.ndarray,
  vocabulary: Vocabulary,
  predicted: bool,
) -> None:
  """Adds the bytes of a piece's kept text; `predicted` is whether its first token has a past."""
  if not len(ids):
    return
  text = piece.text[: int(offsets[-1, 1])]
  kinds = np.full(len(text), MARKUP, np.uint8)
  for first, last, kind in piece.spans:
    kinds[first:last] = kind
  if not predicted:
    kinds[: offsets[0, 1]] = _UNCOUNTED
  for index, token in enumerate(ids):
    if token in vocabulary.special:
      kinds[offsets[index, 0] : offsets[index, 1]] = _UNCOUNTED
  sizes = char_bytes(text)
  counts['full'] += int(sizes[kinds != _UNCOUNTED].sum())
  counts['response'] += int(sizes[kinds == RESPONSE].sum())
  counts['instruction'] += int(sizes[kinds == INSTRUCTION].sum())


def char_bytes(text: str) -> np.ndarray:
  """UTF-8 bytes of each character."""
  if text.isascii():
    return np.ones(len(text), np.int64)
  points = np.frombuffer(text.encode('utf-32-le'), np.uint32)
  return 1 + (points > 0x7F) + (points > 0x7FF).astype(np.int64) + (points > 0xFFFF)

"""What tokenisation needs to know of a tokenizer: offsets, BOS rule, special and stop tokens."""

import copy
import dataclasses
import functools
from typing import Any

from sft_jax.data.templates import ChatRenderer
from sft_jax.utils.errors import UserError


@dataclasses.dataclass(frozen=True)
class Vocabulary:
  """A fast tokenizer without its post-processing, and the ids the post-processing would add."""

  backend: Any
  prefix: tuple[int, ...]
  special: frozenset[int]
  eos: int | None


@functools.lru_cache(maxsize=4)
def vocabulary_of(tokenizer: Any) -> Vocabulary:
  """What is needed of a tokenizer.

  The backend is a copy, since byte-level post-processing trims spaces off the offsets. Raises
  UserError for a slow tokenizer, which gives no offsets.
  """
  from tokenizers import processors

  if not getattr(tokenizer, 'is_fast', False):
    raise UserError(
      f'{type(tokenizer).__name__} gives no character offsets',
      where='tokenizer',
      how='use a checkpoint with a tokenizer.json (a fast tokenizer)',
    )
  backend = copy.deepcopy(tokenizer.backend_tokenizer)
  backend.post_processor = processors.ByteLevel(trim_offsets=False)
  backend.no_truncation()
  backend.no_padding()
  special = frozenset(i for i, t in tokenizer.added_tokens_decoder.items() if t.special)
  return Vocabulary(backend, bos_prefix(tokenizer), special, tokenizer.eos_token_id)


def bos_prefix(tokenizer: Any) -> tuple[int, ...]:
  """The ids that the tokenizer's own rule puts before a text: () or (bos,) as a rule."""
  with_rule = list(tokenizer('a')['input_ids'])
  plain = list(tokenizer('a', add_special_tokens=False)['input_ids'])
  for at in range(len(with_rule) - len(plain) + 1):
    if with_rule[at : at + len(plain)] == plain:
      return tuple(with_rule[:at])
  return ()


def need_eos(tokenizer: Any) -> None:
  """Raises UserError if the tokenizer has no end-of-sequence token."""
  if tokenizer.eos_token_id is None:
    raise UserError(
      'the tokenizer has no end-of-sequence token, so the model would never learn to stop',
      where='tokenizer.eos_token',
      how='name one in tokenizer_config.json',
    )


def stop_ids(tokenizer: Any, template: str) -> tuple[int, ...]:
  """Ids that end an answer: end of sequence, the chat template's end-of-turn token, and what the
  model's own configs list (noted in the tokenizer by who loaded it)."""
  ids = set(getattr(tokenizer, 'generation_stops', ()))
  if tokenizer.eos_token_id is not None:
    ids.add(int(tokenizer.eos_token_id))
  if template == 'chat':
    ids.add(int(tokenizer.convert_tokens_to_ids(ChatRenderer(tokenizer).stop)))
  return tuple(sorted(ids))

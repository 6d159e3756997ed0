"""Tokenizers rebuilt from GGUF metadata: byte-level BPE and SentencePiece BPE.

The rules by which files of byte-level BPE split text stand in one table.
"""

from collections.abc import Mapping
from typing import Any

from sft_jax.models import sentencepiece_model
from sft_jax.models.sentencepiece_model import NORMAL, UNKNOWN, USER_DEFINED, add_special
from sft_jax.models.tokenizer import check_vocabulary, put_first
from sft_jax.utils.errors import UserError

_CL100K = (
  r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}DIGITS"
  r'| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+'
)
_LLAMA3 = _CL100K.replace('DIGITS', '{1,3}')
_TEKKEN = (
  r'[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+'
  r'|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*'
  r'|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+'
)
_BOS_FIRST: dict[str, Any] = {'ignore_merges': True, 'add_bos': True}

# `tokenizer.ggml.pre` -> how the original tokenizer.json cuts text before BPE: digits one by one,
# then by `split`, or by GPT-2's pattern where there is none; and what else it sets. 'default' is
# not there: converters wrote it when they did not know the rule.
# Source: llama.cpp src/llama-vocab.cpp (regex_exprs), and the tokenizer.json of the model each
# entry is named after.
PRE_TOKENIZERS: dict[str, dict[str, Any]] = {
  'gpt-2': {},
  'smollm': {'digits': True},
  'refact': {'digits': True},  # Granite code
  'minerva-7b': {'digits': True},
  'llama-bpe': {'split': _LLAMA3, **_BOS_FIRST},
  'llama3': {'split': _LLAMA3, **_BOS_FIRST},
  'llama-v3': {'split': _LLAMA3, **_BOS_FIRST},
  'falcon3': {'split': _LLAMA3, **_BOS_FIRST},
  'smaug-bpe': {'split': _LLAMA3},
  'tekken': {'split': _TEKKEN, **_BOS_FIRST},
  'qwen2': {'split': _CL100K.replace('DIGITS', ''), 'nfc': True},
}


def from_gguf(metadata: Mapping[str, Any], config: Mapping[str, Any], where: str) -> Any:
  """Rebuilds the tokenizer a GGUF file describes.

  Args:
    metadata: The file's metadata.
    config: Its config in Hugging Face form.
    where: The file, for messages.

  Returns:
    A `transformers.PreTrainedTokenizerFast`.

  Raises:
    UserError: another kind than byte-level BPE ('gpt2') and SentencePiece BPE ('llama'), an unknown
      splitting rule, or damaged tables.
  """
  import transformers

  kind = metadata.get('tokenizer.ggml.model')
  rule = metadata.get('tokenizer.ggml.pre')
  ids: tuple[int | None, ...]
  if kind == 'llama':
    # Source of the defaults: llama.cpp src/llama-vocab.cpp, llama_vocab::impl::load.
    tokens = _tokens(metadata, where)
    backend, add_bos, ids = _pieces_backend(metadata, tokens, where), True, (1, 2, 0, None)
  elif kind == 'gpt2' and rule in PRE_TOKENIZERS:
    tokens = _tokens(metadata, where)
    backend = _byte_level_backend(metadata, tokens, PRE_TOKENIZERS[rule], where)
    add_bos, ids = PRE_TOKENIZERS[rule].get('add_bos', False), (None,) * 4
  else:
    raise UserError(
      f'tokenizer {kind!r} with splitting rule {rule!r} is not read from GGUF',
      where,
      f"read: 'llama', and 'gpt2' with {', '.join(PRE_TOKENIZERS)}; else give the Hugging Face "
      'directory',
    )
  types = metadata.get('tokenizer.ggml.token_type', ())
  add_special(backend, tokens, types)
  _add_user_defined(backend, tokens, types)
  special = _named_tokens(tokens, metadata, ids, where)
  bos = special.get('bos_token')
  if metadata.get('tokenizer.ggml.add_bos_token', add_bos) and bos:
    put_first(backend, bos, tokens.index(bos))
  fast = transformers.PreTrainedTokenizerFast(
    tokenizer_object=backend,
    clean_up_tokenization_spaces=False,
    model_max_length=config['max_position_embeddings'],
    **special,
  )
  template = metadata.get('tokenizer.chat_template')
  if isinstance(template, str):
    fast.chat_template = template
  check_vocabulary(fast, config, where)
  return fast


def _byte_level_backend(
  metadata: Mapping[str, Any], tokens: list[str], settings: Mapping[str, Any], where: str
) -> Any:
  import tokenizers

  model = tokenizers.models.BPE(
    vocab={token: i for i, token in enumerate(tokens)},
    merges=_merges(metadata, tokens, where),
    ignore_merges=settings.get('ignore_merges', False),
  )
  backend = tokenizers.Tokenizer(model)
  if settings.get('nfc'):
    backend.normalizer = tokenizers.normalizers.NFC()
  steps: list[Any] = []
  if settings.get('digits'):
    steps.append(tokenizers.pre_tokenizers.Digits(individual_digits=True))
  if 'split' in settings:
    pattern = tokenizers.Regex(settings['split'])
    steps.append(tokenizers.pre_tokenizers.Split(pattern, 'isolated'))
  steps.append(
    tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex='split' not in settings)
  )
  backend.pre_tokenizer = tokenizers.pre_tokenizers.Sequence(steps)
  backend.decoder = tokenizers.decoders.ByteLevel()
  return backend


def _pieces_backend(metadata: Mapping[str, Any], tokens: list[str], where: str) -> Any:
  """SentencePiece BPE.

  Raises:
    UserError: also for scores that are no ranks. Converters call unigram models 'llama' too, and
      write one score for all tokens where they did not find tokenizer.model; llama.cpp then cuts
      text otherwise than the model was trained with.
  """
  scores: Any = metadata.get('tokenizer.ggml.scores')
  types: Any = metadata.get('tokenizer.ggml.token_type')
  for name, value in (('scores', scores), ('token_type', types)):
    numbers = isinstance(value, list) and all(isinstance(item, int | float) for item in value)
    if not numbers or len(value) != len(tokens):
      raise UserError(f'tokenizer.ggml.{name} is missing', where, 'download the file again')
  ranks = [
    score
    for token, score, kind in zip(tokens, scores, types, strict=True)
    if kind == NORMAL and len(token) > 1
  ]
  if len(set(ranks)) * 2 < len(ranks) or any(rank != int(rank) for rank in ranks):
    raise UserError(
      'tokenizer.ggml.scores are not the ranks of SentencePiece BPE',
      where,
      'give the Hugging Face directory of the model',
    )
  pieces = sentencepiece_model.Pieces(
    tokens=tokens,
    scores=scores,
    # Here those are tokens that were added afterwards: `_add_user_defined`.
    kinds=[0 if kind == USER_DEFINED else kind for kind in types],
    specials={'unk': types.index(UNKNOWN)} if UNKNOWN in types else {},
    prefix_space=bool(metadata.get('tokenizer.ggml.add_space_prefix', True)),
  )
  return sentencepiece_model.build(pieces, every_chunk=True)


def _tokens(metadata: Mapping[str, Any], where: str) -> list[str]:
  tokens = _texts(metadata, 'tokens', where)
  if len(set(tokens)) != len(tokens):
    raise UserError('tokenizer.ggml.tokens repeats a token', where, 'download the file again')
  return tokens


def _texts(metadata: Mapping[str, Any], name: str, where: str) -> list[str]:
  value: Any = metadata.get(f'tokenizer.ggml.{name}')
  if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
    raise UserError(f'tokenizer.ggml.{name} is missing', where, 'download the file again')
  return value


def _merges(metadata: Mapping[str, Any], tokens: list[str], where: str) -> list[tuple[str, str]]:
  known = set(tokens)
  merges = []
  for merge in _texts(metadata, 'merges', where):
    left, _, right = merge.partition(' ')
    if left not in known or right not in known or left + right not in known:
      raise UserError(f'merge {merge!r} is of no token', where, 'download the file again')
    merges.append((left, right))
  return merges


def _add_user_defined(backend: Any, tokens: list[str], types: Any) -> None:
  """Declares tokens that are matched whole and kept on decoding."""
  import tokenizers

  backend.add_tokens(
    [
      tokenizers.AddedToken(token, normalized=False)
      for token, kind in zip(tokens, types, strict=False)
      if kind == USER_DEFINED
    ]
  )


def _named_tokens(
  tokens: list[str], metadata: Mapping[str, Any], default: tuple[int | None, ...], where: str
) -> dict[str, str]:
  """{'bos_token': '<s>', …} from the ids in the metadata, or their defaults."""
  named = {}
  names = (('bos', 'bos'), ('eos', 'eos'), ('unk', 'unknown'), ('pad', 'padding'))
  for (ours, theirs), index in zip(names, default, strict=True):
    index = metadata.get(f'tokenizer.ggml.{theirs}_token_id', index)
    if index is None:
      continue
    if type(index) is not int or not 0 <= index < len(tokens):
      raise UserError(f'{theirs}_token_id {index!r} is no token', where, 'download the file again')
    named[f'{ours}_token'] = tokens[index]
  return named

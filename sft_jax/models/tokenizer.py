"""Tokenizers: from a Hugging Face directory, or rebuilt from GGUF metadata.

Only byte-level BPE is rebuilt. The splitting rules stand in one table, by the name GGUF gives them.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sft_jax.utils.errors import UserError

_CL100K = (
  r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}DIGITS"
  r'| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+'
)

# `tokenizer.ggml.pre` -> how the original tokenizer.json cuts text before BPE: digits one by one,
# then by `split`, or by GPT-2's pattern where there is none; and what else it sets.
# Source: llama.cpp src/llama-vocab.cpp (regex_exprs), and the tokenizer.json of the model each
# entry is named after.
PRE_TOKENIZERS: dict[str, dict[str, Any]] = {
  'gpt-2': {},
  'default': {},
  'smollm': {'digits': True},
  'llama-bpe': {
    'split': _CL100K.replace('DIGITS', '{1,3}'),
    'ignore_merges': True,
    'add_bos': True,
  },
  'qwen2': {'split': _CL100K.replace('DIGITS', ''), 'nfc': True},
}

# `tokenizer.ggml.token_type`. Source: llama.cpp include/llama.h, enum llama_token_type.
_UNKNOWN, _CONTROL, _USER_DEFINED = 2, 3, 4


def from_directory(directory: Path, config: Mapping[str, Any]) -> Any:
  """Loads the tokenizer of a Hugging Face directory; code from the directory is never run.

  Raises:
    UserError: no tokenizer there, a damaged one, or one larger than the model's vocabulary.
  """
  import transformers

  if not any((directory / n).exists() for n in ('tokenizer.json', 'tokenizer.model', 'vocab.json')):
    raise UserError(
      'no tokenizer (tokenizer.json is missing)', str(directory), 'copy the tokenizer files there'
    )
  try:
    tokenizer = transformers.AutoTokenizer.from_pretrained(
      str(directory), local_files_only=True, trust_remote_code=False
    )
  except Exception as e:  # the library lets parser errors of many kinds through
    raise UserError(
      f'cannot load the tokenizer: {e}', str(directory), 'download the tokenizer files again'
    ) from e
  check_vocabulary(tokenizer, config, str(directory))
  return tokenizer


def check_vocabulary(tokenizer: Any, config: Mapping[str, Any], where: str) -> None:
  """Refuses a tokenizer that can emit an id the model has no embedding for."""
  largest = max(tokenizer.get_vocab().values(), default=-1)
  if largest >= int(config.get('vocab_size') or 0):
    raise UserError(
      f'the tokenizer has ids up to {largest}, the model {config.get("vocab_size")} embeddings',
      where,
      'use the tokenizer the model was trained with',
    )


def from_gguf(metadata: Mapping[str, Any], config: Mapping[str, Any], where: str) -> Any:
  """Rebuilds the tokenizer a GGUF file describes.

  Args:
    metadata: The file's metadata.
    config: Its config in Hugging Face form.
    where: The file, for messages.

  Returns:
    A `transformers.PreTrainedTokenizerFast`.

  Raises:
    UserError: another kind than byte-level BPE, an unknown splitting rule, or damaged tables.
  """
  import tokenizers
  import transformers

  kind = metadata.get('tokenizer.ggml.model')
  rule = metadata.get('tokenizer.ggml.pre', 'default')
  if kind != 'gpt2' or rule not in PRE_TOKENIZERS:
    raise UserError(
      f'tokenizer {kind!r} with splitting rule {rule!r} is not read from GGUF',
      where,
      f"read: 'gpt2' with {', '.join(PRE_TOKENIZERS)}; else give the Hugging Face directory",
    )
  settings = PRE_TOKENIZERS[rule]
  tokens, merges = _tables(metadata, where)
  model = tokenizers.models.BPE(
    vocab={token: i for i, token in enumerate(tokens)},
    merges=merges,
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
  _add_special(backend, tokens, metadata.get('tokenizer.ggml.token_type', ()))
  special = _named_tokens(tokens, metadata, where)
  bos = special.get('bos_token')
  if metadata.get('tokenizer.ggml.add_bos_token', settings.get('add_bos', False)) and bos:
    backend.post_processor = tokenizers.processors.TemplateProcessing(
      single=[bos, '$A'],
      pair=[bos, '$A', f'{bos}:1', '$B:1'],
      special_tokens=[(bos, tokens.index(bos))],
    )
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


def _tables(metadata: Mapping[str, Any], where: str) -> tuple[list[str], list[tuple[str, str]]]:
  """Tokens in id order, and merges as pairs."""
  tokens: Any = metadata.get('tokenizer.ggml.tokens')
  raw: Any = metadata.get('tokenizer.ggml.merges')
  for name, value in (('tokens', tokens), ('merges', raw)):
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
      raise UserError(f'tokenizer.ggml.{name} is missing', where, 'download the file again')
  known = set(tokens)
  if len(known) != len(tokens):
    raise UserError('tokenizer.ggml.tokens repeats a token', where, 'download the file again')
  merges = []
  for merge in raw:
    left, _, right = merge.partition(' ')
    if left not in known or right not in known or left + right not in known:
      raise UserError(f'merge {merge!r} is of no token', where, 'download the file again')
    merges.append((left, right))
  return tokens, merges


def _add_special(backend: Any, tokens: list[str], types: Any) -> None:
  """Declares control tokens (special) and user-defined ones (matched whole, kept on decoding)."""
  import tokenizers

  for token, kind in zip(tokens, types, strict=False):
    if kind in (_UNKNOWN, _CONTROL):
      backend.add_special_tokens([tokenizers.AddedToken(token, normalized=False, special=True)])
    elif kind == _USER_DEFINED:
      backend.add_tokens([tokenizers.AddedToken(token, normalized=False)])


def _named_tokens(tokens: list[str], metadata: Mapping[str, Any], where: str) -> dict[str, str]:
  """{'bos_token': '<s>', …} from the ids in the metadata."""
  named = {}
  for ours, theirs in (('bos', 'bos'), ('eos', 'eos'), ('unk', 'unknown'), ('pad', 'padding')):
    index = metadata.get(f'tokenizer.ggml.{theirs}_token_id')
    if index is None:
      continue
    if type(index) is not int or not 0 <= index < len(tokens):
      raise UserError(f'{theirs}_token_id {index!r} is no token', where, 'download the file again')
    named[f'{ours}_token'] = tokens[index]
  return named

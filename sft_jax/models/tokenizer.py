"""Tokenizers of Hugging Face directories. Not those of GGUF files: see `tokenizer_gguf.py`.

`tokenizer.json` is loaded as it is, whatever class `tokenizer_config.json` names: transformers 5.24
rebuilds the class `LlamaTokenizer` by rules of its own, which spell a unigram model letter by
letter.
"""

import json
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sft_jax.models import hf_dir, sentencepiece_model
from sft_jax.utils.errors import UserError

# What else of a directory belongs to its tokenizer.
_SETTINGS = (
  'tokenizer_config.json',
  'special_tokens_map.json',
  'added_tokens.json',
  'chat_template.jinja',
)


def from_directory(directory: Path, config: Mapping[str, Any]) -> Any:
  """Loads the tokenizer of a Hugging Face directory; code from the directory is never run.

  BOS is put first by the post-processor of tokenizer.json; only where there is none does
  `add_bos_token` count. A file that names no end of sequence gets the model's.

  Args:
    directory: Holds tokenizer.json, or the tokenizer.model of SentencePiece.
    config: The model's raw config.

  Returns:
    A `transformers.PreTrainedTokenizerFast` that decodes without tidying spaces.

  Raises:
    UserError: no tokenizer of these kinds, a damaged one, or one larger than the model's
      vocabulary.
  """
  where = str(directory)
  if (directory / 'tokenizer.json').exists():
    tokenizer = _load(directory, where)
    settings = _settings(directory)
    # Looked at only then, since the file is large.
    if settings.get('add_bos_token') and not _has_post_processor(directory / 'tokenizer.json'):
      tokenizer.add_bos_token = True
  elif (directory / 'tokenizer.model').exists():
    with tempfile.TemporaryDirectory() as scratch:
      _convert_pieces(directory, Path(scratch))
      tokenizer = _load(Path(scratch), where)
    _check_added(tokenizer, directory)
  else:
    raise UserError(
      'no tokenizer (neither tokenizer.json nor the tokenizer.model of SentencePiece)',
      where,
      'copy it there; transformers makes a tokenizer.json of most other kinds: '
      'AutoTokenizer.from_pretrained(…).save_pretrained(…)',
    )
  if tokenizer.eos_token is None:
    tokenizer.eos_token = _model_eos(tokenizer, directory, config)
  tokenizer.clean_up_tokenization_spaces = False
  check_vocabulary(tokenizer, config, where)
  return tokenizer


def _load(directory: Path, where: str) -> Any:
  import transformers

  try:
    tokenizer = transformers.PreTrainedTokenizerFast.from_pretrained(
      str(directory), local_files_only=True
    )
  except Exception as e:  # the library lets parser errors of many kinds through
    raise UserError(
      f'cannot load the tokenizer: {e}', where, 'download the tokenizer files again'
    ) from e
  tokenizer.name_or_path = where
  return tokenizer


def _settings(directory: Path) -> dict[str, Any]:
  path = directory / 'tokenizer_config.json'
  return hf_dir.read_json(path) if path.exists() else {}


def _has_post_processor(path: Path) -> bool:
  return hf_dir.read_json(path).get('post_processor') is not None


def _model_eos(tokenizer: Any, directory: Path, config: Mapping[str, Any]) -> str | None:
  """The end of sequence that the model's own configs name."""
  path = directory / 'generation_config.json'
  generation = hf_dir.read_json(path) if path.exists() else {}
  for named in (generation.get('eos_token_id'), config.get('eos_token_id')):
    index = named[0] if isinstance(named, list) and named else named
    if type(index) is int and index >= 0:
      token: str | None = tokenizer.convert_ids_to_tokens(index)
      return token
  return None


def _convert_pieces(directory: Path, into: Path) -> None:
  """Writes a directory with tokenizer.model as one with tokenizer.json.

  Defaults are those of the class that such directories name, `LlamaTokenizer`: BOS first, and a
  space before every text between special tokens (`legacy`).
  """
  model = sentencepiece_model.read(directory / 'tokenizer.model')
  for name in _SETTINGS:
    if (directory / name).exists():
      shutil.copyfile(directory / name, into / name)
  settings = _settings(directory)
  mapped = directory / 'special_tokens_map.json'
  known = set(hf_dir.read_json(mapped) if mapped.exists() else {})
  for name, index in model.specials.items():
    if f'{name}_token' not in known:
      settings.setdefault(f'{name}_token', model.tokens[index])
  backend = sentencepiece_model.build(model, every_chunk=bool(settings.get('legacy', True)))
  bos = model.specials.get('bos')
  if bos is not None and settings.get('add_bos_token', True):
    put_first(backend, model.tokens[bos], bos)
  backend.save(str(into / 'tokenizer.json'))
  (into / 'tokenizer_config.json').write_text(json.dumps(settings), encoding='utf-8')


def _check_added(tokenizer: Any, directory: Path) -> None:
  """Refuses added tokens that did not get the ids which the files give them."""
  added = directory / 'added_tokens.json'
  stated = dict(hf_dir.read_json(added)) if added.exists() else {}
  for index, token in _settings(directory).get('added_tokens_decoder', {}).items():
    stated[token['content'] if isinstance(token, dict) else str(token)] = int(index)
  for token, index in stated.items():
    if (found := tokenizer.convert_tokens_to_ids(token)) != index:
      raise UserError(
        f'the added token {token!r} has id {found}, the files say {index}',
        str(directory),
        'copy tokenizer.json of the model there',
      )


def put_first(backend: Any, token: str, index: int) -> None:
  """Makes the backend put `token` before a text."""
  import tokenizers

  backend.post_processor = tokenizers.processors.TemplateProcessing(
    single=[token, '$A'],
    pair=[token, '$A', f'{token}:1', '$B:1'],
    special_tokens=[(token, index)],
  )


def check_vocabulary(tokenizer: Any, config: Mapping[str, Any], where: str) -> None:
  """Refuses a tokenizer that can emit an id the model has no embedding for."""
  largest = max(tokenizer.get_vocab().values(), default=-1)
  if largest >= int(config.get('vocab_size') or 0):
    raise UserError(
      f'the tokenizer has ids up to {largest}, the model {config.get("vocab_size")} embeddings',
      where,
      'use the tokenizer the model was trained with',
    )

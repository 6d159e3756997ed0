"""The tokenizers of real models against the libraries they were made with, and masks under them.

By default, some tokenizers and a sample of the texts; `SFT_JAX_SLOW=1` takes all of both (a
quarter of an hour). What transformers makes of the same files is loaded apart, by `AutoTokenizer`.
"""

import functools
import importlib.util
import json
import os
import random
import re
import shutil
import unicodedata
from pathlib import Path

import numpy as np
import pytest

from sft_jax.data import formats, templates, tokenize
from sft_jax.models import sentencepiece_model, source, tokenizer, tokenizer_gguf
from sft_jax.utils.errors import UserError
from tests import wheels
from tests.data import chat_templates
from tests.models.conftest import SMOLLM2
from tests.models.test_tokenizer import AWKWARD, real_strings

SLOW = bool(os.environ.get('SFT_JAX_SLOW'))
SENTENCEPIECE = importlib.util.find_spec('sentencepiece')
CONFIG = {'vocab_size': 202_048, 'max_position_embeddings': 8192}
FAST = ('llama3', 'mistral-v1', 'mistral-v3', 'olmo')
NAMES = tuple(wheels.TOKENIZERS) if SLOW else FAST
# Which of them transformers loads again: it takes long over most.
AGAIN = NAMES if SLOW else ('mistral-v3', 'olmo')
PIECES = tuple(name for name in NAMES if name[-2:] in ('v1', 'v2', 'v3', 'v7'))
# Templates in the style of the models that the tokenizers are of.
CHATS = {
  'llama3': ('llama3', 'llama3-dated'),
  'mistral-v1': ('llama2', 'zephyr'),
  'mistral-v3': ('mistral-v3',),
  'mistral-tekken': ('mistral-v3',),
  'olmo': ('zephyr',),
  'dolma2': ('chatml',),
  'smollm2': ('chatml-default',),
}
EDGES = [
  ' leading', '  two', '\nnewline', '\n\n\n', 'trailing \n ', '\tcode\n\t\treturn x\n', 'a\r\nb',
  '🙂', '👩‍👩‍👧‍👦 family 🏽', 'e\u0301 e\u0301\u0323 é', '中文，标点。', '日本語のテキスト。',
  '한국어', 'نص عربي', 'def f(x):\n    if x:\n        return x', '▁', '1234567890',
  '³²¹ ½ ﬁ', 'x\u00a0y\u3000z', '\u200b', '𝔘𝔫𝔦',
  ' '.join('a' * n + ' ' * n for n in range(12)), '=' * 70, '<0x41>', '\x07',
]  # fmt: skip


@functools.cache
def load(name):
  if name == 'smollm2':
    try:
      return source.resolve(SMOLLM2).tokenizer()
    except UserError as e:
      pytest.skip(e.what)
  return tokenizer.from_directory(wheels.directory(name), CONFIG)


@functools.cache
def theirs(name):
  """What transformers makes of the same directory; of tokenizer.model, with sentencepiece."""
  import transformers

  if name in PIECES:
    pytest.importorskip('sentencepiece')
  return transformers.AutoTokenizer.from_pretrained(str(wheels.directory(name)))


@pytest.fixture(scope='module')
def real(data_dir):
  return real_strings(data_dir, 6000)


@pytest.fixture(scope='module')
def texts(real):
  return [*(real if SLOW else real[::20]), *AWKWARD, *EDGES]


@pytest.fixture(scope='module')
def many_texts(real):
  """More than 5,000 (by default 500), with what SentencePiece has rules for: runs of spaces, mixed
  scripts."""
  rng = random.Random(0)
  parts = [' ', '  ', 'a', '\n', '\t', 'é', '▁', '漢', '🙂', '    ', 'return', '.']
  mixed = [''.join(rng.choices(parts, k=30)) for _ in range(500)]
  runs = [f'{" " * n}x{" " * m}' for n in range(40) for m in (0, 1, 3, 17, 33)]
  found = [*real, *AWKWARD, *EDGES, *mixed, *runs]
  # The library takes a zero for the end of a text; marks are tokens to us, and text to it.
  found = [text for text in found if not re.search(r'\x00|</?s>|<unk>|\[/?INST\]', text)]
  assert len(found) > 5000
  return found if SLOW else [*found[::14], *EDGES[:9]]


def plain_ids(tokenizer, texts):
  return tokenizer(texts, add_special_tokens=False).input_ids


@pytest.mark.parametrize('name', AGAIN)
def test_ids_equal_those_of_transformers(name, texts):
  ours, other = load(name), theirs(name)
  assert ours(texts).input_ids == other(texts).input_ids
  assert (ours.bos_token, ours.eos_token) == (other.bos_token, other.eos_token)
  assert ours.get_vocab() == other.get_vocab()


@pytest.mark.parametrize('name', NAMES if SLOW else ('mistral-v1',))
def test_auto_tokenizer_reads_what_we_save_as_we_do(name, texts, tmp_path):
  import transformers

  ours, source = load(name), wheels.directory(name)
  tokenizer.save(ours, [p for p in source.iterdir() if p.name != 'config.json'], tmp_path)
  for model_type in ('llama', 'mistral') if SLOW else ('llama',):
    (tmp_path / 'config.json').write_text(json.dumps({'model_type': model_type}))
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert theirs(texts).input_ids == ours(texts).input_ids
    assert theirs.special_tokens_map == ours.special_tokens_map


@functools.cache
def reference(name, most=10**6):
  """Encodes text as the library does that the model was made with; of Llama, with its first tokens,
  at most so many."""
  if name.startswith('mistral-v'):
    library = pytest.importorskip('sentencepiece')
    path = str(wheels.mistral_pieces(name.removeprefix('mistral-')))
    return library.SentencePieceProcessor(model_file=path).encode
  tiktoken = pytest.importorskip('tiktoken')
  if name == 'mistral-tekken':
    (ranks, split), first = wheels.tekken(), 1000
  else:
    ranks, first = first_of(wheels.llama_ranks(int(name[-1])), most), 0
    split = wheels.LLAMA3_SPLIT if name == 'llama3' else wheels.LLAMA4_SPLIT
  encoding = tiktoken.Encoding(name, pat_str=split, mergeable_ranks=ranks, special_tokens={})
  return lambda texts: [[first + i for i in encoding.encode_ordinary(text)] for text in texts]


def first_of(ranks, most):
  """The first tokens, which make a whole vocabulary of their own."""
  return {token: rank for token, rank in ranks.items() if rank < most}


@pytest.mark.parametrize('name', [n for n in NAMES if not n.startswith(('olmo', 'dolma'))])
def test_ids_equal_those_of_the_models_library(name, many_texts):
  given = [text for text in many_texts if '<|' not in text]
  assert plain_ids(load(name), given) == reference(name)(given)


@pytest.mark.parametrize('name', [*NAMES, 'smollm2'])
def test_round_trip(name, texts):
  """What is decoded is what was encoded; of SentencePiece, with its mark for a space as a space."""
  fast = load(name)
  got = fast.batch_decode(plain_ids(fast, texts))
  if name == 'olmo':  # normalises
    texts = [unicodedata.normalize('NFC', text) for text in texts]
  elif name in PIECES:
    # A text after a special token has a space before it, as in `legacy` of transformers.
    both = zip(texts, got, strict=True)
    got = [text if '<s>' in text else found for text, found in both]
    texts = [text if '<s>' in text else text.replace('▁', ' ') for text in texts]
  assert got == texts


@functools.cache
def surfaces(fast):
  """{id: bytes of text}."""
  byte_level = '"ByteLevel"' in fast.backend_tokenizer.to_str()[-2000:] or any(
    'Ġ' in token for token in list(fast.get_vocab())[:2000]
  )
  special = {index: token.content for index, token in fast.added_tokens_decoder.items()}
  back = {letter: byte for byte, letter in wheels.letters().items()}
  found = {}
  for token, index in fast.get_vocab().items():
    if index in special:
      found[index] = special[index].encode()
    elif byte_level:
      found[index] = bytes(back[letter] for letter in token)
    elif re.fullmatch('<0x[0-9A-F]{2}>', token):
      found[index] = bytes([int(token[3:5], 16)])
    else:
      found[index] = token.replace('▁', ' ').encode()
  return found


@pytest.fixture(scope='module')
def records(data_dir):
  """Of every training file that holds conversations, and of our own edges."""
  found = []
  for path in sorted((data_dir / 'train').iterdir()):
    try:
      read = formats.read_records(str(path))
    except UserError as e:
      assert 'no known format' in e.what
      continue
    found += read if SLOW else read[:: max(1, len(read) // 6)]
  for at, text in enumerate(EDGES):
    turns = [('user', 'Q'), ('assistant', text), ('user', text), ('assistant', f'{text}!')]
    messages = tuple({'role': role, 'content': content} for role, content in turns)
    found.append(formats.Record(messages, f'edges:{at}'))
  return [record for record in found if not record.problem]


def learnt(example, surface):
  """Bytes of each run of supervised tokens."""
  edges = np.flatnonzero(np.diff([0, *(example.loss_weight > 0), 0])).reshape(-1, 2)
  return [b''.join(surface[int(i)] for i in example.ids[a:b]) for a, b in edges]


def check_masks(name, records, template, expected, ids):
  """Supervised texts equal `expected(record)`, and ids `ids(record)`.

  A token may reach back over the line between the prompt and an answer that starts with white
  space; such answers are few, and their tokens are learnt.
  """
  fast = load(name)
  surface = surfaces(fast)
  examples, dropped = tokenize.encode_all(records, fast, template, max_length=10**6)
  assert not dropped
  reaching = 0
  for record, example in zip(records, examples, strict=True):
    want = [text.encode() for text in expected(record)]
    if name in PIECES:
      want = [text.replace('▁', ' ').encode() for text in expected(record)]
    if name == 'olmo':
      want = [unicodedata.normalize('NFC', text).encode() for text in expected(record)]
    got = learnt(example, surface)
    if got != want:
      assert [text.lstrip() for text in got] == [text.lstrip() for text in want], record.source
      assert all(len(a) - len(b) in range(9) for a, b in zip(got, want, strict=True))
      reaching += 1
  # Of SentencePiece, an answer that follows a special token has one more space before it.
  if not (name in PIECES and template == 'chat'):
    assert reaching <= len(EDGES) + len(records) // 100
  for record, example in list(zip(records, examples, strict=True))[:: 1 if SLOW else 7]:
    assert list(example.ids) == ids(record), record.source
  return len(records), reaching


@pytest.mark.parametrize('name', [*NAMES, 'smollm2'])
def test_study_masks(name, records):
  fast = load(name)
  end = fast.eos_token

  def expected(record):
    turns = templates.study_turns(record.messages)
    return [f' {turn.answer}{end}' for turn in turns if turn.answer is not None]

  def ids(record):
    """Texts of turns as the tokenizer encodes them, each with the end of sequence."""
    found = list(tokenize.bos_prefix(fast))
    for turn in templates.study_turns(record.messages):
      if turn.answer is not None:
        (encoded,) = plain_ids(fast, [f'{turn.prompt} {turn.answer}'])
        found += [*encoded, fast.eos_token_id]
    return found

  check_masks(name, records, 'study', expected, ids)


@pytest.mark.parametrize(
  ('name', 'style'),
  [(name, style) for name in [*NAMES, 'smollm2'] for style in CHATS.get(name, ())],
)
def test_chat_masks(name, style, records, monkeypatch):
  chat = chat_templates.STYLES[style]
  fast = load(name)
  loaded = name in AGAIN and (name not in PIECES or SENTENCEPIECE)
  other = theirs(name) if loaded else fast
  monkeypatch.setattr(fast, 'chat_template', chat.template)
  still = chat.template.replace("strftime_now('%d %b %Y')", "'26 Jul 2024'")
  # The end of sequence is called otherwise by some.
  stop = chat.stop.replace('</s>', fast.eos_token)

  def expected(record):
    said = [m['content'] for m in record.messages if m['role'] == 'assistant']
    return [f'{chat.before}{text.strip() if chat.strips else text}{stop}' for text in said]

  def ids(record):
    return other.apply_chat_template(list(record.messages), chat_template=still, return_dict=False)

  # An answer of white space alone is stripped to nothing.
  usable = [r for r in records if all(m['content'].strip() for m in r.messages)]
  if chat.alternates:
    usable = [r for r in usable if _alternates(r)]
  check_masks(name, usable, 'chat', expected, ids)


def _alternates(record):
  roles = [m['role'] for m in record.messages if m['role'] != 'system']
  return all((role == 'user') == (at % 2 == 0) for at, role in enumerate(roles))


def gguf_metadata(model, **changes):
  """Of SentencePiece, as llama.cpp's converter writes it."""
  fields = {
    'model': 'llama',
    'pre': 'default',
    'tokens': model.tokens,
    'scores': model.scores,
    'token_type': model.kinds,
    'bos_token_id': 1,
    'eos_token_id': 2,
    'unknown_token_id': 0,
    'add_bos_token': True,
    **changes,
  }
  return {f'tokenizer.ggml.{key}': value for key, value in fields.items() if value is not None}


@functools.cache
def from_pieces(version):
  model = sentencepiece_model.read(wheels.mistral_pieces(version))
  return tokenizer_gguf.from_gguf(gguf_metadata(model), CONFIG, 'mistral.gguf')


@pytest.mark.parametrize('version', ['v1', 'v2', 'v3', 'v7'] if SLOW else ['v1'])
def test_gguf_pieces_equal_sentencepiece(version, many_texts):
  """Scores to merges, byte fallback, spaces: exact on all texts."""
  fast = from_pieces(version)
  assert plain_ids(fast, many_texts) == reference(f'mistral-{version}')(many_texts)
  assert fast('x').input_ids[0] == 1 and fast.eos_token == '</s>'


def test_gguf_pieces_equal_the_directory(texts):
  """The same model from both kinds of files, and after saving."""
  import transformers

  model, fast = sentencepiece_model.read(wheels.mistral_pieces('v1')), from_pieces('v1')
  expected = load('mistral-v1')(texts).input_ids
  assert fast(texts).input_ids == expected
  without = tokenizer_gguf.from_gguf(gguf_metadata(model, add_bos_token=False), CONFIG, '')
  assert without('x').input_ids == fast('x').input_ids[1:]
  unspaced = tokenizer_gguf.from_gguf(gguf_metadata(model, add_space_prefix=False), CONFIG, '')
  assert unspaced.tokenize('Hello there') == ['Hello', '▁there']
  assert isinstance(fast, transformers.PreTrainedTokenizerFast)


def test_gguf_pieces_defaults():
  """llama.cpp's, where the file says nothing: <unk> 0, <s> 1 put first, </s> 2."""
  model = sentencepiece_model.read(wheels.mistral_pieces('v1'))
  named = ('bos_token_id', 'eos_token_id', 'unknown_token_id', 'add_bos_token')
  metadata = gguf_metadata(model, **dict.fromkeys(named))
  fast = tokenizer_gguf.from_gguf(metadata, CONFIG, '')
  assert (fast.bos_token, fast.eos_token, fast.unk_token, fast.pad_token) == (
    *('<s>', '</s>', '<unk>'),
    None,
  )
  assert fast('x').input_ids[0] == 1


def test_gguf_scores_that_are_no_ranks():
  model = sentencepiece_model.read(wheels.mistral_pieces('v1'))
  for scores in ([-1000.0] * len(model.tokens), [score / 3 for score in model.scores]):
    with pytest.raises(UserError, match='not the ranks of SentencePiece BPE'):
      tokenizer_gguf.from_gguf(gguf_metadata(model, scores=scores), CONFIG, '')
  for name, value in (('scores', model.scores[:-1]), ('token_type', None)):
    with pytest.raises(UserError, match=rf'tokenizer\.ggml\.{name} is missing'):
      tokenizer_gguf.from_gguf(gguf_metadata(model, **{name: value}), CONFIG, '')


@pytest.mark.parametrize('name', ['llama3', 'mistral-tekken'] if SLOW else ['llama3'])
def test_gguf_byte_level_equals_tiktoken(name, many_texts):
  most = 10**6 if SLOW else 20_000
  if name == 'llama3':
    ranks, special = first_of(wheels.llama_ranks(3), most), wheels.llama_special(3)
    tokens = [*map(wheels.spelt, ranks), *special.values()]
    bos, rule = len(ranks), 'llama-bpe'
  else:
    (ranks, _), special = wheels.tekken(), wheels.tekken_special()
    tokens = [*special.values(), *map(wheels.spelt, ranks)]
    bos, rule = 1, 'tekken'
  marks = set(special.values())
  metadata = {
    'model': 'gpt2',
    'pre': rule,
    'tokens': tokens,
    'merges': [' '.join(pair) for pair in wheels.merges(ranks)],
    'token_type': [3 if token in marks else 1 for token in tokens],
    'bos_token_id': bos,
    'eos_token_id': bos + 1,
  }
  metadata = {f'tokenizer.ggml.{key}': value for key, value in metadata.items()}
  fast = tokenizer_gguf.from_gguf(metadata, CONFIG, '')
  given = [text for text in many_texts if '<|' not in text]
  assert plain_ids(fast, given) == reference(name, most)(given)
  assert fast('x').input_ids[0] == bos


RULES = {
  'identity': {'normalization_rule_name': 'identity', 'remove_extra_whitespaces': False},
  'nfkc': {'user_defined_symbols': ['<|user|>', '[A]']},
  'lines': {'user_defined_symbols': ['\n']},
  'unprefixed': {'add_dummy_prefix': False, 'remove_extra_whitespaces': False},
}


@pytest.fixture(scope='module')
def unigram(real, tmp_path_factory):
  """Trains a small model: unigram with byte fallback, as those of several Japanese bases."""
  library = pytest.importorskip('sentencepiece')
  lines = [line for text in real[:: 8 if SLOW else 32] for line in text.split('\n') if line]

  @functools.cache
  def train(rule):
    directory = tmp_path_factory.mktemp(rule)
    library.SentencePieceTrainer.train(
      sentence_iterator=iter(lines),
      model_prefix=str(directory / 'tokenizer'),
      vocab_size=1500 if SLOW else 1000,
      character_coverage=0.98,
      byte_fallback=True,
      minloglevel=2,
      **RULES[rule],
    )
    return directory

  return train


@pytest.mark.parametrize('rule', ['identity', 'nfkc', 'unprefixed'] if SLOW else ['nfkc'])
def test_unigram_equals_sentencepiece(rule, many_texts, unigram):
  directory = unigram(rule)
  import sentencepiece

  processor = sentencepiece.SentencePieceProcessor(model_file=str(directory / 'tokenizer.model'))
  fast = tokenizer.from_directory(directory, CONFIG)
  given = [*many_texts[:: 1 if SLOW else 5], *EDGES, 'x<|user|>y [A][A] z<|user|> ', '<|user|>']
  # `tokenizers` takes the name of a byte in a text for the byte, and normalises \r\n as one; so do
  # the models' own tokenizer.json.
  given = [text for text in given if not re.search('<0x|\r\n', text)]
  ours, expected = plain_ids(fast, given), processor.encode(given)
  different = [(a, b) for a, b in zip(ours, expected, strict=True) if a != b]
  assert len(different) <= len(given) // 100
  score = lambda ids: sum(map(processor.get_score, ids))
  # Cuts of equal probability.
  assert all(abs(score(a) - score(b)) < 1e-3 for a, b in different)
  assert fast('a').input_ids[0] == 1 and fast.eos_token == '</s>'


def test_user_defined_tokens_that_the_rule_would_change(unigram):
  with pytest.raises(UserError, match=r"normalisation changes the token '\\n'"):
    tokenizer.from_directory(unigram('lines'), CONFIG)


def as_llama(directory, target):
  """A copy whose config names the class `LlamaTokenizer` and the model type 'llama'."""
  shutil.copytree(directory, target)
  (target / 'config.json').write_text(json.dumps({'model_type': 'llama'}))
  settings = {'tokenizer_class': 'LlamaTokenizer', 'add_bos_token': True, 'bos_token': '<s>'}
  (target / 'tokenizer_config.json').write_text(json.dumps(settings))
  return target


@pytest.mark.skipif(not SLOW, reason='about transformers, and slow: set SFT_JAX_SLOW=1')
def test_what_transformers_does_to_the_class_llama_tokenizer(unigram, tmp_path):
  """Why we do not leave it to AutoTokenizer. If this fails, transformers mended it."""
  import transformers

  pytest.importorskip('sentencepiece')
  directory = as_llama(wheels.directory('mistral-v1'), tmp_path / 'bpe')
  code = 'def f(x):\n    return x'
  wrong = transformers.AutoTokenizer.from_pretrained(str(directory)).tokenize(code)
  right = tokenizer.from_directory(directory, CONFIG).tokenize(code)
  assert right[-4:] == ['<0x0A>', '▁▁▁', '▁return', '▁x']
  assert wrong[-4:] == ['<0x0A>', '▁▁▁▁', 'return', '▁x']
  trained = Path(shutil.copytree(unigram('nfkc'), tmp_path / 'trained'))
  fast = tokenizer.from_directory(trained, CONFIG)
  fast.save_pretrained(str(trained))
  (trained / 'tokenizer.model').unlink()
  directory = as_llama(trained, tmp_path / 'unigram')
  wrong = transformers.AutoTokenizer.from_pretrained(str(directory)).tokenize('the answer')
  assert wrong == ['▁', *'the', '▁', *'answer']
  right = tokenizer.from_directory(directory, CONFIG).tokenize('the answer')
  assert right == fast.tokenize('the answer') and len(right) < 8

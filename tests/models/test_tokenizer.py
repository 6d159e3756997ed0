"""Tokenizers of directories, and rebuilt from GGUF: ids against independent definitions.

The reference is transformers' conversion of the same file, with one correction. transformers 5.23
reads no `tokenizer.ggml.pre`: it splits every GGUF of kind 'gpt2' by GPT-2's pattern alone. For
'smollm' llama.cpp (src/llama-vocab.cpp, LLAMA_VOCAB_PRE_TYPE_SMOLLM) documents two patterns, the
first of which cuts digits out one by one, as the model's own tokenizer.json does. Both facts are
tested.
"""

import csv
import functools
import gzip
import itertools
import json

import numpy as np
import pytest

from sft_jax.data.tokenize import stop_ids
from sft_jax.models import source, tokenizer, tokenizer_gguf
from sft_jax.utils.errors import UserError
from tests.models.conftest import tiny_tokenizer, write_gguf

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
AWKWARD = [
  '', ' ', '\n', '  12', 'x\n\n 345', '\t7\t', "I'LL we'll 'S's", '①②③ ¾ cup', '٣٤٥ १२३',
  'e\u0301é', '👩‍👩‍👧‍👦🏽🇯🇵 ok', '你好，世界 2024年', 'ﬁ\u00a0\u200b\u3000.', 'a\r\n\r\nb',
  '<|im_start|>user\n1<|im_end|>', '<|im_start |>', 'def f(x):\n    return x**2  # 1e-5\n',
  '\x00\x7f', '....', '한국어 텍스트', 'naïve 3.14',
]  # fmt: skip


def real_strings(data_dir, count):
  """About `count` different strings: English, Chinese, code, maths, and all that have emoji."""

  def walk(value):
    if isinstance(value, str):
      yield value
    elif isinstance(value, dict):
      value = value.values()
    if not isinstance(value, str):
      for inner in value if hasattr(value, '__iter__') else ():
        yield from walk(inner)

  def lines(path):
    opener = gzip.open if path.suffix == '.gz' else open
    with opener(path, 'rt', encoding='utf-8') as f:
      yield from (json.loads(line) for line in f)

  train, bench = data_dir / 'train', data_dir / 'bench'

  def table(path):
    with path.open(encoding='utf-8-sig') as f:
      return list(csv.reader(f))

  english = walk(json.loads((train / 'alpaca_2000.json').read_text()))
  tasks = [list(lines(bench / name)) for name in ('HumanEval.jsonl.gz', 'mbpp.jsonl')]
  code = walk([json.loads((train / 'code_alpaca_2k.json').read_text()), *tasks])
  chinese = walk(list(lines(train / 'sharegpt_zh_500.jsonl')))
  chinese_tests = walk([table(p) for p in sorted((bench / 'cmmlu' / 'test').glob('*.csv'))[:12]])
  maths = walk(list(lines(train / 'numinamath_cot_sharegpt_1k.jsonl')))
  mixed = walk(json.loads((train / 'lima.json').read_text()))
  emoji = [t for t in walk(json.loads((bench / 'alpaca_eval.json').read_text())) if has_emoji(t)]
  chosen = []
  for kind in (english, chinese, chinese_tests, code, maths, mixed):
    unique = list(dict.fromkeys(t for t in kind if len(t) > 20))
    emoji += [t for t in unique if has_emoji(t)]
    chosen += unique[: count // 6 + 1]
  return list(dict.fromkeys([*emoji, *chosen]))


def has_emoji(text):
  return any(ord(c) >= 0x1F300 for c in text)


@pytest.fixture(scope='module')
def converted(smollm2):
  """transformers' own conversion of the file."""
  pytest.importorskip('torch')
  import transformers

  path = smollm2.files[0]
  return transformers.AutoTokenizer.from_pretrained(str(path.parent), gguf_file=path.name)


@pytest.fixture(scope='module')
def corrected(converted):
  """The same with llama.cpp's documented patterns for 'smollm' in place of GPT-2's alone."""
  import tokenizers
  from tokenizers import pre_tokenizers as pre

  backend = tokenizers.Tokenizer.from_str(converted.backend_tokenizer.to_str())
  backend.pre_tokenizer = pre.Sequence(
    [
      pre.Split(tokenizers.Regex(r'\p{N}'), 'isolated'),
      pre.Split(tokenizers.Regex(GPT2), 'isolated'),
      pre.ByteLevel(add_prefix_space=False, use_regex=False),
    ]
  )
  return backend


def ids(backend, texts):
  return [encoding.ids for encoding in backend.encode_batch(texts)]


def test_ids_of_five_thousand_real_strings(smollm2, converted, corrected, data_dir):
  import regex

  texts = [*real_strings(data_dir, 6000), *AWKWARD]
  assert len(texts) >= 5000
  assert sum(map(has_emoji, texts)) >= 20
  assert sum(any('一' <= c <= '鿿' for c in t) for t in texts) >= 1500
  fast = smollm2.tokenizer()
  ours = ids(fast.backend_tokenizer, texts)
  assert ours == ids(corrected, texts)
  # Round trip, special tokens included.
  assert [fast.decode(one) for one in ours] == texts
  # transformers itself differs, and only where a run of white space meets a digit or a number sign.
  theirs = ids(converted.backend_tokenizer, texts)
  different = [t for t, a, b in zip(texts, ours, theirs, strict=True) if a != b]
  assert 0 < len(different) < len(texts) // 20
  cause = regex.compile(r'\s\s\p{N}|\s[^\P{N}0-9]|[^\S ]\p{N}')
  assert all(cause.search(t) for t in different)
  for attribute in ('bos_token_id', 'eos_token_id', 'pad_token_id', 'chat_template'):
    assert getattr(fast, attribute) == getattr(converted, attribute)
  assert fast.get_vocab() == converted.get_vocab()
  assert fast.added_tokens_decoder == converted.added_tokens_decoder


def test_transformers_ignores_the_splitting_rule(smollm2, converted):
  """If this fails, transformers mended it: compare with its conversion as it is."""
  pre_tokenizer = json.loads(converted.backend_tokenizer.to_str())['pre_tokenizer']
  assert pre_tokenizer['type'] == 'ByteLevel' and pre_tokenizer['use_regex']
  text = 'Steps:\n\n1. Mix'
  ours = smollm2.tokenizer().tokenize(text)
  assert ours == ['Steps', ':', 'ĊĊ', '1', '.', 'ĠMix']
  assert converted.tokenize(text) == ['Steps', ':', 'Ċ', 'Ċ', '1', '.', 'ĠMix']


def byte_letters():
  """GPT-2's printable stand-in for each byte."""
  plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
  others = [b for b in range(256) if b not in plain]
  return {b: chr(b) for b in plain} | {b: chr(256 + i) for i, b in enumerate(others)}


def plain_bpe(text, vocab, ranks):
  """Byte-pair encoding written out from its definition (arXiv 1508.07909), digits cut out first."""
  import regex

  letters, out = byte_letters(), []
  pieces = [p for part in regex.split(r'(\p{N})', text) if part for p in regex.findall(GPT2, part)]
  for piece in pieces:
    word = [letters[b] for b in piece.encode()]
    while len(word) > 1:
      best = min(itertools.pairwise(word), key=lambda pair: ranks.get(pair, np.inf))
      if best not in ranks:
        break
      merged, i = [], 0
      while i < len(word):
        pair = tuple(word[i : i + 2]) == best
        merged.append(''.join(best) if pair else word[i])
        i += 1 + pair
      word = merged
    out += [vocab[token] for token in word]
  return out


def test_ids_equal_byte_pair_encoding_written_out(smollm2, data_dir):
  fast = smollm2.tokenizer()
  model = json.loads(fast.backend_tokenizer.to_str())['model']
  ranks = {tuple(pair): rank for rank, pair in enumerate(model['merges'])}
  texts = [t for t in AWKWARD if '<|' not in t] + real_strings(data_dir, 240)
  encode = functools.partial(plain_bpe, vocab=model['vocab'], ranks=ranks)
  for text in texts:
    assert fast(text[:400]).input_ids == encode(text[:400]), text[:400]


def test_chat_template_is_the_models_own(smollm2):
  rendered = smollm2.tokenizer().apply_chat_template(
    [{'role': 'user', 'content': 'Hi 5'}], tokenize=False, add_generation_prompt=True
  )
  assert rendered.endswith('<|im_start|>user\nHi 5<|im_end|>\n<|im_start|>assistant\n')


def test_saved_tokenizer_reloads_equal(smollm2, tmp_path):
  import transformers

  from sft_jax.models import export

  export.write_json(tmp_path / 'config.json', smollm2.config)
  export.write_tokenizer(tmp_path, smollm2)
  again = transformers.AutoTokenizer.from_pretrained(tmp_path)
  fast = smollm2.tokenizer()
  assert [again(t).input_ids for t in AWKWARD] == [fast(t).input_ids for t in AWKWARD]
  assert again.chat_template == fast.chat_template
  assert (again.eos_token, again.pad_token) == (fast.eos_token, fast.pad_token)


def test_tiny_gguf_tokenizer_equals_the_one_it_was_made_from(tiny_llama_dir, tmp_path):
  original = source.resolve(str(tiny_llama_dir)).tokenizer()
  path = write_gguf(tmp_path / 'tiny.gguf', tiny_llama_dir)
  rebuilt = source.resolve(str(path)).tokenizer()
  texts = [*AWKWARD, '<s>Seven</s><|end|> 56']
  assert [rebuilt(t).input_ids for t in texts] == [original(t).input_ids for t in texts]
  assert rebuilt.chat_template == original.chat_template
  assert rebuilt.model_max_length == 128


@pytest.mark.parametrize(
  ('rule', 'text', 'pieces'),
  [
    ('gpt-2', "I'll 12345\n\n x", ['I', "'ll", 'Ġ12345', 'ĊĊ', 'Ġx']),
    ('smollm', "I'll 12345\n\n x", ['I', "'ll", 'Ġ', '1', '2', '3', '4', '5', 'ĊĊ', 'Ġx']),
    ('llama-bpe', "I'LL 12345\n\n x", ['I', "'LL", 'Ġ', '123', '45', 'ĊĊ', 'Ġx']),
    ('qwen2', "I'LL 123!\n\n x", ['I', "'LL", 'Ġ', '1', '2', '3', '!ĊĊ', 'Ġx']),
    (
      'tekken',
      "I'LL aBc 12 http://x\n",
      ['I', "'LL", 'Ġa', 'Bc', 'Ġ', '1', '2', 'Ġhttp', '://', 'x', 'Ċ'],
    ),
    ('refact', "I'll 12\n", ['I', "'ll", 'Ġ', '1', '2', 'Ċ']),
    ('falcon3', '1234', ['123', '4']),
  ],
)
def test_splitting_rules(rule, text, pieces):
  built = tokenizer_gguf.from_gguf(
    metadata(pre=rule), {'vocab_size': 999, 'max_position_embeddings': 8}, ''
  )
  found = [piece for piece, _ in built.backend_tokenizer.pre_tokenizer.pre_tokenize_str(text)]
  assert found == pieces


def metadata(**changes):
  """Metadata of a byte-level tokenizer of 300 tokens; keys of `tokenizer.ggml.`."""
  backend = json.loads(tiny_tokenizer().backend_tokenizer.to_str())
  tokens = sorted(backend['model']['vocab'], key=backend['model']['vocab'].get)
  fields = {
    'model': 'gpt2',
    'pre': 'gpt-2',
    'tokens': tokens,
    'merges': [' '.join(pair) for pair in backend['model']['merges']],
    'token_type': [3] * 6 + [1] * (len(tokens) - 6),
    'bos_token_id': 0,
    'eos_token_id': 1,
    **changes,
  }
  return {f'tokenizer.ggml.{k}': v for k, v in fields.items() if v is not None}


CONFIG = {'vocab_size': 300, 'max_position_embeddings': 8}


@pytest.mark.parametrize(('add', 'first'), [(True, [0]), (False, []), (None, [])])
def test_add_bos(add, first):
  fast = tokenizer_gguf.from_gguf(metadata(add_bos_token=add), CONFIG, '')
  assert fast('x').input_ids == first + fast('x', add_special_tokens=False).input_ids


def test_llama_bpe_adds_bos_unless_told_not_to():
  assert tokenizer_gguf.from_gguf(metadata(pre='llama-bpe'), CONFIG, '')('x').input_ids[0] == 0
  told = tokenizer_gguf.from_gguf(metadata(pre='llama-bpe', add_bos_token=False), CONFIG, '')
  assert told('x').input_ids[0] != 0


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'model': 't5'}, "tokenizer 't5' .* is not read from GGUF.*'gpt2' with gpt-2, .*tekken"),
    ({'pre': 'deepseek-llm'}, "splitting rule 'deepseek-llm' is not read"),
    # Written by converters that did not know the rule.
    ({'pre': 'default'}, "splitting rule 'default' is not read"),
    ({'pre': None}, 'splitting rule None is not read'),
    ({'model': 'llama'}, r'tokenizer\.ggml\.scores is missing'),
    ({'tokens': None}, r'tokenizer\.ggml\.tokens is missing'),
    ({'tokens': ['a', 'a']}, 'repeats a token'),
    ({'merges': ['zz qq']}, "merge 'zz qq' is of no token"),
    ({'merges': [1]}, r'tokenizer\.ggml\.merges is missing'),
    ({'eos_token_id': 300}, 'eos_token_id 300 is no token'),
  ],
)
def test_bad_tables(changes, message):
  with pytest.raises(UserError, match=message):
    tokenizer_gguf.from_gguf(metadata(**changes), CONFIG, 'tiny.gguf')


def test_vocabulary_mismatch_is_refused(tiny_copy):
  config = json.loads((tiny_copy / 'config.json').read_text())
  (tiny_copy / 'config.json').write_text(json.dumps({**config, 'vocab_size': 200}))
  with pytest.raises(UserError, match='ids up to 299, the model 200 embeddings'):
    source.resolve(str(tiny_copy)).tokenizer()


def test_tokenizer_json_is_loaded_as_it_is(tiny_copy):
  """Whatever class the config names: transformers' own for it would cut text otherwise."""
  expected = source.resolve(str(tiny_copy)).tokenizer()
  settings = json.loads((tiny_copy / 'tokenizer_config.json').read_text())
  for name in ('LlamaTokenizer', 'T5Tokenizer', 'NoSuchTokenizer'):
    change(tiny_copy / 'tokenizer_config.json', tokenizer_class=name, auto_map={'AutoTokenizer': 1})
    fast = source.resolve(str(tiny_copy)).tokenizer()
    assert [fast(t).input_ids for t in AWKWARD] == [expected(t).input_ids for t in AWKWARD]
    assert fast.eos_token == settings['eos_token']


def change(path, **values):
  stored = json.loads(path.read_text()) if path.exists() else {}
  path.write_text(json.dumps({**stored, **values}))


def test_add_bos_token_counts_where_there_is_no_post_processor(tiny_copy):
  load = lambda: source.resolve(str(tiny_copy)).tokenizer()
  change(tiny_copy / 'tokenizer.json', post_processor=None)
  change(tiny_copy / 'tokenizer_config.json', add_bos_token=True)
  assert load()('x').input_ids[0] == 0
  change(tiny_copy / 'tokenizer_config.json', add_bos_token=False)
  assert load()('x').input_ids[0] != 0
  # A post-processor says itself what it adds.
  rule = {'type': 'ByteLevel', 'add_prefix_space': True, 'trim_offsets': True, 'use_regex': True}
  change(tiny_copy / 'tokenizer.json', post_processor=rule)
  change(tiny_copy / 'tokenizer_config.json', add_bos_token=True)
  assert load()('x').input_ids[0] != 0


def test_end_of_sequence_of_the_model(tiny_copy):
  """Named by the model's configs where the tokenizer's name none."""
  load = lambda: source.resolve(str(tiny_copy)).tokenizer()
  change(tiny_copy / 'tokenizer_config.json', eos_token=None, pad_token=None)
  change(tiny_copy / 'generation_config.json', eos_token_id=[2, 1])
  assert load().eos_token == '<|end|>' and load().pad_token is None
  change(tiny_copy / 'generation_config.json', eos_token_id=None)
  change(tiny_copy / 'config.json', eos_token_id=1)
  assert load().eos_token == '</s>'
  change(tiny_copy / 'config.json', eos_token_id=None)
  assert load().eos_token is None


def test_stops_of_the_model(tiny_copy):
  """All that generation_config.json and config.json list, beside the tokenizer's own."""
  load = lambda: stop_ids(source.resolve(str(tiny_copy)).tokenizer(), 'study')
  assert load() == (1, 2)
  change(tiny_copy / 'generation_config.json', eos_token_id=[7, 9])
  change(tiny_copy / 'config.json', eos_token_id=[8])
  assert load() == (1, 7, 8, 9)
  change(tiny_copy / 'generation_config.json', eos_token_id=-1)
  assert load() == (1, 8)
  (tiny_copy / 'generation_config.json').unlink()
  assert load() == (1, 8)
  for value in ('</s>', [1, None, 'x'], 1.5, True, {'a': 1}, -2):
    change(tiny_copy / 'generation_config.json', eos_token_id=value)
    with pytest.raises(UserError, match=r'eos_token_id=.* is no token'):
      load()


def test_saved_with_the_rule_that_puts_bos_first(tiny_copy, tmp_path):
  """A setting that `AutoTokenizer` does not heed."""
  import transformers

  change(tiny_copy / 'tokenizer.json', post_processor=None)
  change(tiny_copy / 'tokenizer_config.json', add_bos_token=True, eos_token=None)
  ours = source.resolve(str(tiny_copy)).tokenizer()
  (tmp_path / 'out').mkdir()
  files = [p for p in sorted(tiny_copy.iterdir()) if p.suffix != '.safetensors']
  tokenizer.save(ours, files, tmp_path / 'out')
  theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / 'out')
  assert ours('x').input_ids[0] == 0
  assert theirs(AWKWARD).input_ids == ours(AWKWARD).input_ids
  assert theirs.eos_token == ours.eos_token == '</s>'


def test_decoding_does_not_tidy_spaces(tiny_copy):
  change(tiny_copy / 'tokenizer_config.json', clean_up_tokenization_spaces=True)
  fast = source.resolve(str(tiny_copy)).tokenizer()
  text = "x , y ! I 'm"
  assert fast.decode(fast(text).input_ids) == text


def test_kinds_that_are_not_read(tiny_copy):
  """Slow ones, tiktoken's and Mistral's: told how to make a tokenizer.json."""
  (tiny_copy / 'tokenizer.json').unlink()
  for name in ('vocab.json', 'merges.txt', 'tekken.json', 'qwen.tiktoken', 'vocab.txt'):
    (tiny_copy / name).write_text('{}')
  with pytest.raises(UserError, match=r'neither tokenizer\.json nor .*save_pretrained') as error:
    source.resolve(str(tiny_copy)).tokenizer()
  assert '\n' not in str(error.value)


@pytest.mark.parametrize(
  ('damage', 'message'),
  [
    (lambda d: (d / 'tokenizer.json').unlink(), 'no tokenizer'),
    (lambda d: (d / 'tokenizer.json').write_text('{"version":'), 'cannot load the tokenizer'),
  ],
)
def test_missing_or_damaged_tokenizer(damage, message, tiny_copy):
  damage(tiny_copy)
  with pytest.raises(UserError, match=message):
    source.resolve(str(tiny_copy)).tokenizer()

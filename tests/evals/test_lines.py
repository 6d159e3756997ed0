"""Texts cut into lines give the tokens of whole texts, under every expression we cut by."""

import random

import pytest

from sft_jax.evals import lines
from tests.models.conftest import tiny_tokenizer

TEXT = (
  *('a', 'Ab', "'s", "'", '.', '。', '：', '!', '/', '1', '12', 'é', 'e\u0301', '\u0301', '漢'),
  *('🙂', '_', '<|end|>', '\u200b'),
)
SPACE = (
  *(' ', '  ', '\n', '\n', '\n\n', '\t', '\r\n', '\r', '\x0b', '\x1c', '\xa0', '\u2028', '\u3000'),
  '\u180e',
)


def strings(count, seed=0):
  rng = random.Random(seed)
  draw = lambda: rng.choice(TEXT if rng.random() < 0.55 else SPACE)
  return [''.join(draw() for _ in range(rng.randint(0, 24))) for _ in range(count)]


def backend_of(*steps, normalizer=None, tokens=('<|end|>',), **model):
  """A byte-level tokenizer with merges of every pair that such texts hold often."""
  import tokenizers
  import transformers

  backend = tokenizers.Tokenizer(tokenizers.models.BPE(**model))
  backend.pre_tokenizer = tokenizers.pre_tokenizers.Sequence(list(steps))
  backend.normalizer = normalizer
  trainer = tokenizers.trainers.BpeTrainer(
    vocab_size=900,
    initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
    show_progress=False,
  )
  backend.train_from_iterator(strings(1500, 1), trainer)
  backend.add_special_tokens([*tokens])
  return transformers.PreTrainedTokenizerFast(tokenizer_object=backend, eos_token='<|end|>')


def steps_of(expression):
  """As in the tokenizer.json of models: by an expression, or by GPT-2's, with or without digits."""
  from tokenizers import Regex
  from tokenizers.pre_tokenizers import ByteLevel, Digits, Split

  if expression == 'gpt2':
    return [ByteLevel(add_prefix_space=False)]
  if expression == 'digits':
    return [Digits(individual_digits=True), ByteLevel(add_prefix_space=False)]
  plain = ByteLevel(add_prefix_space=False, use_regex=False)
  if expression.startswith('removed '):
    return [Split(Regex(expression.removeprefix('removed ')), 'removed', invert=True), plain]
  return [Split(Regex(expression), 'isolated'), plain]


@pytest.mark.parametrize(
  'expression', ['gpt2', 'digits', *lines.SPLITS, f'removed {next(iter(lines.SPLITS))}']
)
@pytest.mark.parametrize('composes', [False, True])
def test_lines_give_the_tokens_of_whole_texts(expression, composes):
  from tokenizers import normalizers

  tokenizer = backend_of(*steps_of(expression), normalizer=normalizers.NFC() if composes else None)
  ours = lines.LineTokenizer(tokenizer)
  assert lines.cuts(tokenizer)
  texts = strings(2000)
  whole = tokenizer(texts, add_special_tokens=False)['input_ids']
  assert ours(texts, add_special_tokens=False)['input_ids'] == whole
  # Again, from memory; and one by one, so that no text meets the head of the one before.
  assert ours(texts[::-1], add_special_tokens=False)['input_ids'] == whole[::-1]
  assert [ours(t, add_special_tokens=False)['input_ids'] for t in texts[:99]] == whole[:99]
  assert len(ours._lines) > 500, 'lines are what is looked up'


def pieces(seed, *more, **changes):
  """A tokenizer in the form of Llama 2's, with random merges."""
  import tokenizers
  import transformers
  from tokenizers import normalizers

  rng, merges = random.Random(seed), []
  vocab = ['<unk>', *(f'<0x{byte:02X}>' for byte in range(256)), '▁', *'aAb1.漢', "'s"[0], *more]
  pieces = ['▁', *'aAb1.漢', *more]
  for _ in range(60):
    left, right = rng.choice(pieces), rng.choice(pieces)
    if left + right not in vocab:
      merges.append((left, right))
      vocab.append(left + right)
      pieces.append(left + right)
  given = {'byte_fallback': True, 'fuse_unk': True, 'unk_token': '<unk>'} | changes
  backend = tokenizers.Tokenizer(
    tokenizers.models.BPE({token: i for i, token in enumerate(vocab)}, merges, **given)
  )
  backend.normalizer = normalizers.Sequence(
    [normalizers.Prepend('▁'), normalizers.Replace(' ', '▁')]
  )
  backend.add_special_tokens(['<unk>', '<|end|>'])
  return transformers.PreTrainedTokenizerFast(tokenizer_object=backend, eos_token='<|end|>')


@pytest.mark.parametrize('seed', range(4))
def test_lines_of_pieces(seed):
  tokenizer = pieces(seed)
  ours = lines.LineTokenizer(tokenizer)
  assert lines.cuts(tokenizer).added == 1
  texts = [*strings(1500, seed), '', '\n', '\n\na', 'a<|end|>\nb', '\n<unk>\n\nb']
  whole = tokenizer(texts, add_special_tokens=False)['input_ids']
  assert ours(texts, add_special_tokens=False)['input_ids'] == whole
  assert len(ours._lines) > 300 and all(line[0] == '\n' for line in ours._lines)


def test_pieces_that_cannot_be_cut():
  for tokenizer in (pieces(0, '\n'), pieces(0, byte_fallback=False), pieces(0, ignore_merges=True)):
    assert lines.cuts(tokenizer) is None
    texts = strings(300)
    whole = tokenizer(texts, add_special_tokens=False)['input_ids']
    assert lines.LineTokenizer(tokenizer)(texts, add_special_tokens=False)['input_ids'] == whole


def test_what_cannot_be_cut_stays_whole():
  """Of each of these, lines alone would have other tokens, or nobody knows."""
  from tokenizers import AddedToken, Regex, normalizers
  from tokenizers.pre_tokenizers import ByteLevel, Metaspace, Split

  gpt2 = ByteLevel(add_prefix_space=False)
  own = Split(Regex(r'\s+\S+'), 'isolated')
  mark = AddedToken('<|mark|>', rstrip=True)
  prefixed = ByteLevel(add_prefix_space=True)
  for tokenizer in (
    backend_of(own, ByteLevel(add_prefix_space=False, use_regex=False)),
    backend_of(prefixed),
    backend_of(Metaspace()),
    backend_of(Split('\n', 'isolated'), gpt2),
    backend_of(gpt2, normalizer=normalizers.NFKC()),
    backend_of(gpt2, tokens=('<|end|>', '\n\n')),
    backend_of(gpt2, tokens=('<|end|>', mark)),
    backend_of(gpt2, dropout=0.1),
  ):
    assert lines.cuts(tokenizer) is None
    if tokenizer.backend_tokenizer.model.dropout is None:
      texts = [*strings(300), 'a<|mark|>\nb', 'a\n\nb']
      whole = tokenizer(texts, add_special_tokens=False)['input_ids']
      found = lines.LineTokenizer(tokenizer)(texts, add_special_tokens=False)['input_ids']
      assert found == whole
  limited = tiny_tokenizer()
  limited.backend_tokenizer.enable_truncation(3)
  assert lines.cuts(tiny_tokenizer()) and lines.cuts(limited) is None


def test_the_rest_is_the_tokenizer_s_own():
  tokenizer = backend_of(*steps_of('gpt2'))
  ours = lines.LineTokenizer(tokenizer)
  assert ours('a\nb') == tokenizer('a\nb') and ours.eos_token_id == tokenizer.eos_token_id
  assert ours(['a\nb', 'a']) == tokenizer(['a\nb', 'a'])

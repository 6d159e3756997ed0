"""Adapters that PEFT trained on some layers, or with ranks and scales of their own."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sft_jax.models import peft
from sft_jax.utils.errors import UserError
from tests.models import test_export as exports

QUERY_0, UP_1 = 'model.layers.0.self_attn.q_proj', 'model.layers.1.mlp.up_proj'
LAYERS_0_AND_2 = r'model\.layers\.(0|2)\.self_attn\.(q|v)_proj'


def made_by_peft(base_dir, out, **settings):
  """PEFT's model with a random adapter, which it has saved."""
  torch = pytest.importorskip('torch')
  library = pytest.importorskip('peft')
  import transformers

  config = library.LoraConfig(
    r=4, lora_alpha=8, init_lora_weights=False, task_type='CAUSAL_LM', **settings
  )
  torch.manual_seed(0)
  base = transformers.LlamaForCausalLM.from_pretrained(base_dir)
  model = library.get_peft_model(base, config)
  model.save_pretrained(out)
  return model


@pytest.mark.parametrize(
  ('settings', 'modules', 'layers'),
  [
    ({'target_modules': ['o_proj', 'down_proj'], 'layers_to_transform': [0, 2],
      'use_rslora': True}, ['attn/o', 'mlp/down'], [[0, 2]] * 2),
    ({'target_modules': ['v_proj'], 'layers_to_transform': 1, 'layers_pattern': 'layers'},
     ['attn/v'], [[1]]),
    ({'target_modules': LAYERS_0_AND_2}, ['attn/q', 'attn/v'], [[0, 2]] * 2),
    ({'target_modules': [QUERY_0, UP_1, '2.self_attn.q_proj']}, ['attn/q', 'mlp/up'],
     [[0, 2], [1]]),
    ({'target_modules': ['q_proj'], 'exclude_modules': [QUERY_0]}, ['attn/q'], [[1, 2]]),
    ({'target_modules': ['q_proj', 'up_proj'], 'exclude_modules': r'.*\.[01]\..*\.q_proj'},
     ['attn/q', 'mlp/up'], [[2], [0, 1, 2]]),
    ({'target_modules': ['q_proj', 'v_proj'], 'rank_pattern': {r'layers\.1\..*q_proj': 6},
      'alpha_pattern': {r'layers\.[12]\.self_attn\.q_proj': 24, 'v_proj': 2}},
     ['attn/q', 'attn/v'], [[0, 1, 2]] * 2),
    ({'target_modules': ['q_proj'], 'rank_pattern': {'q_proj': 2}, 'use_rslora': True}, ['attn/q'],
     [[0, 1, 2]]),
    ({'target_modules': 'all-linear', 'exclude_modules': ['lm_head']},
     ['attn/q', 'attn/k', 'attn/v', 'attn/o', 'mlp/gate', 'mlp/up', 'mlp/down'], [[0, 1, 2]] * 7),
  ],
)  # fmt: skip
def test_what_peft_adapts_is_adapted(settings, modules, layers, tiny_llama_dir, tmp_path):
  model = made_by_peft(tiny_llama_dir, tmp_path / 'out', **settings)
  _, cfg, params = exports.open_model(tiny_llama_dir)
  back = peft.import_peft(tmp_path / 'out', cfg)
  assert back.modules == tuple(f'layers/{module}' for module in modules)
  for module, present in zip(modules, layers, strict=True):
    part, name = module.split('/')
    used = np.abs(back.adapter['layers'][part][name]['lora_b']).max((1, 2))
    assert list(np.flatnonzero(used)) == present, module
  tokens = exports.some_tokens(cfg)
  ours = exports.our_logits(
    cfg,
    params,
    tokens,
    adapter=jax.tree.map(jnp.asarray, back.adapter),
    lora_scale=jnp.full(cfg.num_layers, back.scale),
  )
  want = exports.torch_logits(model, tokens)
  np.testing.assert_allclose(ours, want, atol=1e-4)
  assert np.abs(want - exports.our_logits(cfg, params, tokens)).max() > 0.01


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'target_modules': r'.*layers\.[012]\.self_attn\.q_proj'}, r'layers\.1\..* is missing'),
    ({'target_modules': r'.*layers\.0\.self_attn\.q_proj'}, r'unexpected tensor .*layers\.2'),
    ({'target_modules': ['q_proj'], 'layers_to_transform': [0, 1, 2]}, r'layers\.1\..* is missing'),
    ({'target_modules': ['c_attn']}, r"target_modules=\['c_attn'\] names no linear map"),
    ({'target_modules': None}, 'malformed field'),
    ({'target_modules': '('}, 'malformed field'),
    ({'rank_pattern': {'(': 4}}, 'malformed field'),
    # What Python's `re` would take years for.
    ({'target_modules': '((((.+)+)+)+)+X'}, 'names no linear map'),
    ({'rank_pattern': {'((((.+)+)+)+)+X': 4}, 'target_modules': ['v_proj']}, 'is missing'),
    (
      {
        'target_modules': ['q_proj'],
        'layers_to_transform': [0, 2],
        'layers_pattern': '((((.+)+)+)+)+X',
      },
      'names no linear map',
    ),
    ({'target_modules': '(?!x)q_proj'}, 'malformed field'),
    ({'rank_pattern': {'q_proj': 10**12}}, 'has shape .* not '),
    ({'alpha_pattern': {'q_proj': float('nan')}}, 'impossible ranks or scales'),
    ({'rank_pattern': {'q_proj': 0}}, 'impossible ranks or scales'),
  ],
)
def test_config_and_weights_that_differ_are_refused(changes, message, tiny_llama_dir, tmp_path):
  made_by_peft(
    tiny_llama_dir, tmp_path / 'out', target_modules=r'.*layers\.(0|2)\.self_attn\.q_proj'
  )
  path = tmp_path / 'out' / peft.CONFIG
  path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
  _, cfg, _ = exports.open_model(tiny_llama_dir)
  with pytest.raises(UserError, match=message) as caught:
    peft.import_peft(tmp_path / 'out', cfg)
  assert '\n' not in str(caught.value)

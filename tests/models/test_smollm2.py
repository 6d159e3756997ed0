"""SmolLM2-135M-Instruct, a real pretrained model: logits and export against transformers."""

import copy
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sft_jax.models import decoder, export, hf, source
from sft_jax.models.config import ModelConfig
from tests.models.conftest import one_device_mesh


@pytest.fixture(scope='module')
def loaded(smollm2):
  cfg = ModelConfig.from_hf(smollm2.config)
  return cfg, hf.load_params(smollm2, cfg, one_device_mesh())


def real_prompts(data_dir, tokenizer):
  """20 real prompts, English, code, Chinese and maths, as the chat template renders them."""
  train, bench = data_dir / 'train', data_dir / 'bench'
  alpaca = [r['instruction'] for r in json.loads((train / 'alpaca_2000.json').read_text())[:8]]
  code = [r['instruction'] for r in json.loads((train / 'code_alpaca_2k.json').read_text())[:4]]
  with (bench / 'gsm8k_test.jsonl').open() as f:
    maths = [json.loads(f.readline())['question'] for _ in range(4)]
  with (train / 'sharegpt_zh_500.jsonl').open() as f:
    chinese = [json.loads(f.readline())['conversations'][0]['value'][:80] for _ in range(4)]
  texts = [
    tokenizer.apply_chat_template(
      [{'role': 'user', 'content': text}], tokenize=False, add_generation_prompt=True
    )
    for text in alpaca + code + maths + chinese
  ]
  assert len(texts) == 20
  return [tokenizer(text, add_special_tokens=False).input_ids for text in texts]


def test_logits_are_those_of_transformers(smollm2, loaded, smollm2_torch, data_dir, capsys):
  import torch

  cfg, params = loaded
  rows = real_prompts(data_dir, smollm2.tokenizer())
  longest = max(map(len, rows))
  positions = np.arange(longest, dtype=np.int32)[None]

  # YNNPACK sums the products of a dot in an order that rounds worse (3.2e-4 here, all in float32);
  # without it the comparison is about the model and not about the library of the day.
  @functools.partial(jax.jit, compiler_options={'xla_cpu_experimental_ynn_fusion_type': ''})
  def logits(params, tokens, segments):
    hidden = decoder.forward(cfg, params, tokens, positions, segments, dtype=jnp.float32)
    return hidden @ decoder.head_kernel(params)

  # Transformers' own logits carry about 1e-4 of rounding, more or less by processor: its float64 is
  # what both are measured by, and float32 against float32 is printed.
  exact_model = copy.deepcopy(smollm2_torch).double()
  worst = beside = 0.0
  with jax.default_matmul_precision('highest'), torch.no_grad():
    for row in rows:
      tokens = np.array([row + [0] * (longest - len(row))], np.int32)
      segments = (np.arange(longest) < len(row)).astype(np.int32)[None]
      ours = np.asarray(logits(params, tokens, segments))[:, : len(row)]
      theirs, exact = (m(torch.tensor([row])).logits.numpy() for m in (smollm2_torch, exact_model))
      worst = max(worst, float(np.abs(ours - exact).max()))
      beside = max(beside, float(np.abs(ours - theirs).max()))
  with capsys.disabled():
    print(
      f'\nSmolLM2, 20 prompts, float32: max |logit difference| {beside:.2e}, to float64 {worst:.2e}'
    )
  assert worst <= 2e-4 and beside <= 3e-4


def test_export_reloads_in_transformers(smollm2, loaded, smollm2_torch, tmp_path):
  import torch
  import transformers

  cfg, params = loaded
  export.export_hf(tmp_path / 'out', cfg, params, smollm2, 'bfloat16')
  model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / 'out')
  assert model.dtype == torch.bfloat16 and model.config.tie_word_embeddings
  state = smollm2_torch.state_dict()
  for name, value in model.state_dict().items():
    assert torch.equal(value, state[name].to(torch.bfloat16)), name
  assert model.config.rope_parameters['rope_theta'] == 100_000.0
  assert model.generation_config.eos_token_id == 2
  again = source.resolve(str(tmp_path / 'out'))
  assert ModelConfig.from_hf(again.config) == cfg
  text = 'Steps:\n\n1. Mix 250 g <|im_end|>'
  assert again.tokenizer()(text).input_ids == smollm2.tokenizer()(text).input_ids

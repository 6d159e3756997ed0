"""GGUF: the tensors and config transformers reads from the same file; damage is one line."""

import struct

import jax
import numpy as np
import pytest

from sft_jax.data.tokenize import stop_ids
from sft_jax.models import families, gguf_format, hf, rope, source
from sft_jax.models.config import ModelConfig
from sft_jax.utils import trees
from sft_jax.utils.errors import UserError
from tests.models.conftest import one_device_mesh, write_gguf, write_tiny_llama

TYPES = ('F32', 'F16', 'BF16', 'Q8_0', 'Q4_0', 'Q4_1')


@pytest.fixture(scope='module')
def tiny_gguf(tiny_llama_dir, tmp_path_factory):
  return write_gguf(tmp_path_factory.mktemp('gguf') / 'tiny.gguf', tiny_llama_dir)


def transformers_model(path, **kwargs):
  torch = pytest.importorskip('torch')
  import transformers

  return transformers.LlamaForCausalLM.from_pretrained(
    str(path.parent), gguf_file=path.name, dtype=torch.float32, **kwargs
  )


@pytest.mark.parametrize('stored', TYPES)
def test_tensors_are_those_transformers_reads(stored, tiny_llama_dir, tmp_path):
  path = write_gguf(tmp_path / 'tiny.gguf', tiny_llama_dir, stored)
  state = transformers_model(path).state_dict()
  ckpt = source.resolve(str(path))
  assert set(ckpt.tensors) == set(state)
  for name, info in ckpt.tensors.items():
    assert info.dtype == (stored if len(info.shape) == 2 else 'F32')
    value = ckpt.read(name).astype(np.float32)
    np.testing.assert_array_equal(value, state[name].numpy(), err_msg=name)


@pytest.mark.parametrize('biased', [False, True])
def test_file_of_plain_floats_equals_the_directory_it_was_made_from(biased, tmp_path):
  directory = write_tiny_llama(tmp_path / 'llama', biased=biased)
  trees_read = []
  for path in (directory, write_gguf(tmp_path / 'tiny.gguf', directory)):
    ckpt = source.resolve(str(path))
    cfg = ModelConfig.from_hf(ckpt.config)
    trees_read.append((cfg, hf.load_params(ckpt, cfg, one_device_mesh())))
  (cfg_a, a), (cfg_b, b) = trees_read
  assert cfg_a == cfg_b
  jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.mark.parametrize('stored', ['F16', 'Q4_1'])
def test_slices_equal_slices_of_the_whole(stored, tiny_llama_dir, tmp_path):
  ckpt = source.resolve(str(write_gguf(tmp_path / 'tiny.gguf', tiny_llama_dir, stored)))
  rng = np.random.default_rng(0)
  for name, info in ckpt.tensors.items():
    whole = ckpt.read(name)
    for _ in range(4):
      cuts = [sorted(rng.choice(size + 1, 2, replace=False)) for size in info.shape]
      index = tuple(slice(int(a), int(b)) for a, b in cuts)
      np.testing.assert_array_equal(ckpt.read(name, index), whole[index], err_msg=name)


def test_tied_head(tiny_tied_dir, tmp_path):
  ckpt = source.resolve(str(write_gguf(tmp_path / 'tied.gguf', tiny_tied_dir)))
  assert ckpt.config['tie_word_embeddings'] is True
  assert 'lm_head.weight' not in ckpt.tensors


@pytest.mark.parametrize(('turn', 'stops'), [(None, (1,)), (1, (1,)), (2, (1, 2))])
def test_the_end_of_a_turn_stops_a_generation(turn, stops, tiny_llama_dir, tmp_path):
  extra = None if turn is None else lambda w: w.add_eot_token_id(turn)
  ckpt = source.resolve(str(write_gguf(tmp_path / 'tiny.gguf', tiny_llama_dir, extra=extra)))
  assert stop_ids(ckpt.tokenizer(), 'study') == stops
  assert ckpt.generation_config['eos_token_id'] == (list(stops) if len(stops) > 1 else stops[0])


def test_metadata_is_what_the_gguf_package_reads(tiny_gguf):
  gguf = pytest.importorskip('gguf')
  reader = gguf.GGUFReader(tiny_gguf)
  contents = gguf_format.read(tiny_gguf)
  fields = {k: f.contents() for k, f in reader.fields.items() if not k.startswith('GGUF.')}
  assert contents.metadata == fields
  for tensor in reader.tensors:
    entry = contents.tensors[tensor.name]
    assert (entry.start, entry.size) == (tensor.data_offset, tensor.n_bytes)
    assert entry.shape == tuple(int(n) for n in reversed(tensor.shape))


@pytest.mark.parametrize(
  ('extra', 'message'),
  [
    (lambda w: w.add_expert_count(8), "unsupported architecture 'llama' with experts"),
    (lambda w: w.add_key_length(8), r'tensor blk\.0\.attn_q\.weight has 64 rows'),
    (lambda w: w.add_rope_dimension_count(8), 'partial rotary'),
    (
      lambda w: w.add_tensor('rope_freqs.weight', np.full(8, 3, np.float32)),
      'not those of Llama 3.1 or 3.2',
    ),
    (lambda w: w.add_attention_scale(0.5), r'llama\.attention\.scale=0\.5 is not implemented'),
    (lambda w: w.add_sliding_window(8), 'attention.sliding_window=8'),
    (lambda w: w.add_final_logit_softcapping(30.0), 'final_logit_softcapping=30'),
    (lambda w: w.add_rope_scaling_yarn_beta_fast(16.0), 'rope.scaling.yarn_beta_fast=16'),
    (lambda w: w.add_tensor('blk.0.extra.weight', np.ones(8, np.float32)), 'unknown tensor'),
    (lambda w: w.add_tensor('output.bias', np.ones(8, np.float32)), 'unknown tensor'),
  ],
)
def test_models_we_do_not_compute(extra, message, tiny_llama_dir, tmp_path):
  path = write_gguf(tmp_path / 'tiny.gguf', tiny_llama_dir, extra=extra)
  with pytest.raises(UserError, match=message):
    source.resolve(str(path))


def read_rope(path):
  (found,) = ModelConfig.from_hf(source.resolve(str(path)).config).ropes
  return found


def test_scaled_rope_is_read_from_the_metadata(tiny_llama_dir, tmp_path):
  gguf = pytest.importorskip('gguf')

  def extra(writer):
    writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
    writer.add_rope_scaling_factor(4.0)
    writer.add_rope_scaling_orig_ctx_len(64)

  found = read_rope(write_gguf(tmp_path / 'tiny.gguf', tiny_llama_dir, extra=extra))
  assert (found.kind, found['factor'], found['original_max_position_embeddings']) == ('yarn', 4, 64)


@pytest.mark.parametrize('factor', [8.0, 32.0])
def test_rope_of_llama_3_1_and_3_2_is_recovered_from_its_factors(factor, tiny_llama_dir, tmp_path):
  """The factors as llama.cpp's converter computes them, with its formula."""
  wavelengths = 2 * np.pi * 5000.0 ** (np.arange(0, 16, 2, dtype=np.float32) / 16)
  smooth = (8192 / wavelengths - 1) / (4 - 1)
  factors = np.where(
    wavelengths < 8192 / 4,
    1.0,
    np.where(wavelengths > 8192, factor, 1 / ((1 - smooth) / factor + smooth)),
  )
  add = lambda w: w.add_tensor('rope_freqs.weight', factors.astype(np.float32))
  found = read_rope(write_gguf(tmp_path / 'tiny.gguf', tiny_llama_dir, extra=add))
  assert found.kind == 'llama3' and found['factor'] == factor


def test_unreadable_quantisation_names_the_tensor(tiny_llama_dir, tmp_path, monkeypatch):
  gguf = pytest.importorskip('gguf')
  path = write_gguf(tmp_path / 'tiny.gguf', tiny_llama_dir, 'Q8_0')

  def unknown(*_):
    raise NotImplementedError('IQ9')

  monkeypatch.setattr(gguf, 'dequantize', unknown)
  ckpt = source.resolve(str(path))
  with pytest.raises(UserError, match=r'embed_tokens.weight is stored as Q8_0, which is not read'):
    ckpt.read('model.embed_tokens.weight')


HUGE = 2**62


@pytest.mark.parametrize(
  ('at', 'raw', 'message'),
  [
    (0, b'GGML', 'not a GGUF file'),
    (4, struct.pack('<I', 1), 'GGUF version 1'),
    (4, struct.pack('>I', 3), 'big-endian'),
    (8, struct.pack('<Q', HUGE), 'absurd GGUF header'),
    (16, struct.pack('<Q', HUGE), 'absurd GGUF header'),
    (16, struct.pack('<Q', 60_000), 'damaged'),
    (24, struct.pack('<Q', HUGE), 'a name of'),
    (24, struct.pack('<Q', 60_000), 'truncated|UTF-8'),
  ],
)
def test_damaged_header(at, raw, message, tiny_gguf, tmp_path):
  data = bytearray(tiny_gguf.read_bytes())
  data[at : at + len(raw)] = raw
  (tmp_path / 'bad.gguf').write_bytes(data)
  with pytest.raises(UserError) as caught:
    source.resolve(str(tmp_path / 'bad.gguf'))
  import re

  assert re.search(message, str(caught.value)) and str(tmp_path) in str(caught.value)


def test_absurd_array_allocates_nothing(tiny_gguf, tmp_path):
  data = bytearray(tiny_gguf.read_bytes())
  at = data.index(b'tokenizer.ggml.tokens') + len(b'tokenizer.ggml.tokens') + 8
  for count in (2**31, HUGE, 2**64 - 1):
    data[at : at + 8] = struct.pack('<Q', count)
    (tmp_path / 'bad.gguf').write_bytes(data)
    with pytest.raises(UserError, match='absurd GGUF header: an array of'):
      source.resolve(str(tmp_path / 'bad.gguf'))


def test_every_truncation_is_one_clear_line(tiny_gguf, tmp_path):
  data = tiny_gguf.read_bytes()
  header = min(e.start for e in gguf_format.read(tiny_gguf).tensors.values())
  cuts = [0, 3, 23, *range(24, header, header // 40), *range(header, len(data), len(data) // 20)]
  for cut in (*cuts, len(data) - 1):
    (tmp_path / 'cut.gguf').write_bytes(data[:cut])
    with pytest.raises(UserError, match=r'truncated GGUF|absurd GGUF') as caught:
      source.resolve(str(tmp_path / 'cut.gguf'))
    assert '\n' not in str(caught.value)


def test_flipped_bytes_never_end_in_a_traceback(tiny_gguf, tmp_path):
  """Whatever a flip makes of the file, it is read or refused; nothing else escapes."""
  data = tiny_gguf.read_bytes()
  header = min(e.start for e in gguf_format.read(tiny_gguf).tensors.values())
  rng, refused = np.random.default_rng(0), 0
  for _ in range(150):
    bad = bytearray(data)
    at = int(rng.integers(header))
    bad[at] ^= int(rng.integers(1, 256))
    (tmp_path / 'bad.gguf').write_bytes(bad)
    try:
      ckpt = source.resolve(str(tmp_path / 'bad.gguf'))
      hf.check_tensors(ckpt, ModelConfig.from_hf(ckpt.config))
      ckpt.tokenizer()
    except UserError:
      refused += 1
  assert refused > 20


def test_smollm2_tensors_are_those_transformers_reads(smollm2, smollm2_torch):
  cfg = ModelConfig.from_hf(smollm2.config)
  params = trees.flatten(hf.load_params(smollm2, cfg, one_device_mesh()))
  state = smollm2_torch.state_dict()
  assert set(state) - set(smollm2.tensors) == {'lm_head.weight'}, 'tied: the same array'
  for row in families.rows(cfg):
    for layer, name in enumerate(hf.hf_names(row, cfg)):
      ours = params[row.path][layer] if row.path.startswith('layers/') else params[row.path]
      want = state[name].numpy()
      np.testing.assert_array_equal(ours, want.T if row.transposed else want, err_msg=name)


def test_smollm2_config(smollm2):
  assert ModelConfig.from_hf(smollm2.config) == ModelConfig(
    architecture='LlamaForCausalLM', vocab_size=49152, hidden_size=576, intermediate_size=1536,
    num_layers=30, num_heads=9, num_kv_heads=3, head_dim=64, max_positions=8192, norm_eps=1e-5,
    tie_embeddings=True, ropes=(rope.Rope('default', 100_000.0, 64, 8192),),
    layer_ropes=(0,) * 30, windows=(0,) * 30, query_scale=0.125,
  )  # fmt: skip
  assert smollm2.license == 'apache-2.0'
  assert smollm2.generation_config == {'bos_token_id': 1, 'eos_token_id': 2, 'pad_token_id': 2}

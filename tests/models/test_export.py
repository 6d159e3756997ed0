"""Export: transformers and PEFT, reloading what we wrote, compute what we compute."""

import json
import os
import shutil
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sft_jax.data.tokenize import stop_ids
from sft_jax.models import decoder, export, families, hf, hf_dir, hub, lora, peft, source
from sft_jax.models.config import ModelConfig
from sft_jax.utils import process, trees
from sft_jax.utils.errors import UserError
from tests.models.conftest import make_mesh, one_device_mesh
from tests.models.test_sentencepiece_model import directory_of

ALPHA, RANK = 16.0, 4
CARD = {'datasets': ['tatsu-lab/alpaca'], 'license': 'mit', 'learning rate': 1e-4, 'a|b': 'c|d'}


def our_logits(cfg, params, tokens, **kwargs):
  positions = np.broadcast_to(np.arange(tokens.shape[1]), tokens.shape).astype(np.int32)
  with jax.default_matmul_precision('highest'):
    hidden = decoder.forward(
      cfg, params, tokens, positions, np.ones_like(tokens), dtype=jnp.float32, **kwargs
    )
    return np.asarray(hidden @ decoder.head_kernel(params).astype(jnp.float32))


def torch_logits(model, tokens):
  import torch

  with torch.no_grad():
    return model.eval()(torch.tensor(tokens, dtype=torch.long)).logits.numpy()


def some_tokens(cfg, rows=2, length=17):
  return np.random.default_rng(0).integers(0, cfg.vocab_size, (rows, length), np.int32)


def open_model(directory, mesh=None):
  ckpt = source.resolve(str(directory))
  cfg = ModelConfig.from_hf(ckpt.config)
  return ckpt, cfg, hf.load_params(ckpt, cfg, mesh or one_device_mesh())


def changed(params, seed=1):
  """Parameters that no file holds: every leaf moved a little."""
  keys = jax.random.split(jax.random.key(seed), len(trees.flatten(params)))
  return trees.unflatten(
    {
      path: leaf + 0.05 * jax.random.normal(key, leaf.shape)
      for key, (path, leaf) in zip(keys, trees.flatten(params).items(), strict=True)
    }
  )


def an_adapter(cfg, targets='all-linear', rank=RANK, seed=2):
  modules = lora.match_targets(cfg, targets)
  adapter = lora.one_run(lora.init_adapter(cfg, modules, [rank], [seed]), 0)
  keys = jax.random.split(jax.random.key(seed), len(jax.tree.leaves(adapter)))
  leaves, structure = jax.tree.flatten(adapter)
  leaves = [0.1 * jax.random.normal(k, x.shape) for k, x in zip(keys, leaves, strict=True)]
  return jax.tree.unflatten(structure, leaves)


def peft_model(base_dir, adapter_dir):
  pytest.importorskip('torch')
  peft_library = pytest.importorskip('peft')
  import transformers

  base = transformers.LlamaForCausalLM.from_pretrained(base_dir)
  return peft_library.PeftModel.from_pretrained(base, str(adapter_dir))


@pytest.mark.parametrize('fixture', ['tiny_llama_dir', 'tiny_tied_dir'])
def test_loaded_logits_are_those_of_transformers(fixture, request):
  pytest.importorskip('torch')
  import transformers

  directory = request.getfixturevalue(fixture)
  _, cfg, params = open_model(directory)
  tokens = some_tokens(cfg)
  want = torch_logits(transformers.LlamaForCausalLM.from_pretrained(directory), tokens)
  np.testing.assert_allclose(our_logits(cfg, params, tokens), want, atol=1e-4)


@pytest.mark.parametrize('fixture', ['tiny_llama_dir', 'tiny_tied_dir'])
@pytest.mark.parametrize('max_shard_bytes', [export.MAX_SHARD_BYTES, 100_000])
def test_exported_model_reloads_in_transformers(fixture, max_shard_bytes, request, tmp_path):
  pytest.importorskip('torch')
  import transformers

  ckpt, cfg, params = open_model(request.getfixturevalue(fixture))
  params, tokens, out = changed(params), some_tokens(cfg), tmp_path / 'out'
  export.export_hf(out, cfg, params, ckpt, 'float32', max_shard_bytes, CARD, stop_ids=[7])
  sharded = (out / 'model.safetensors.index.json').exists()
  assert sharded == (max_shard_bytes < 1e9)
  model = transformers.AutoModelForCausalLM.from_pretrained(out)
  np.testing.assert_allclose(
    our_logits(cfg, params, tokens), torch_logits(model, tokens), atol=1e-4
  )
  text = 'Seven 77\n\n  你好 <|end|>'
  reloaded = transformers.AutoTokenizer.from_pretrained(out)
  assert reloaded(text).input_ids == ckpt.tokenizer()(text).input_ids
  assert reloaded.chat_template == ckpt.tokenizer().chat_template
  assert set(model.generation_config.eos_token_id) == {1, 2, 7}
  # What we exported, we read again to the bit.
  _, _, again = open_model(out)
  jax.tree.map(np.testing.assert_array_equal, again, params)


@pytest.mark.parametrize('fixture', ['tiny_llama_dir', 'tiny_pieces_dir'])
def test_exports_keep_tokenizer_and_stops(fixture, request, tmp_path):
  """Of tokenizer.model alone as well, for whoever has no `sentencepiece`."""
  import transformers

  directory = request.getfixturevalue(fixture)
  ckpt, cfg, params = open_model(directory)
  ours, text = ckpt.tokenizer(), 'ab  the\n 7</s>abc'
  assert stop_ids(ours, 'study') == (1, 2)
  export.export_hf(tmp_path / 'hf', cfg, params, ckpt)
  peft.export_peft(tmp_path / 'peft', cfg, an_adapter(cfg), RANK, ALPHA, ckpt=ckpt)
  for name in ('hf', 'peft'):
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / name)
    assert theirs(text).input_ids == ours(text).input_ids
    assert theirs.special_tokens_map == ours.special_tokens_map
  again = source.resolve(str(tmp_path / 'hf'))
  assert stop_ids(again.tokenizer(), 'study') == (1, 2)
  assert again.tokenizer()(text).input_ids == ours(text).input_ids
  assert again.generation_config['eos_token_id'] == [1, 2]
  # Whoever may read the config may read the weights.
  left = [path for name in ('hf', 'peft') for path in (tmp_path / name).iterdir()]
  assert len({path.stat().st_mode for path in left}) == 1


@pytest.fixture
def tiny_pieces_dir(tiny_copy):
  """The tiny Llama with a tokenizer of SentencePiece alone."""
  for path in [*tiny_copy.glob('tokenizer*'), tiny_copy / 'chat_template.jinja']:
    path.unlink()
  directory_of(tiny_copy, {'tokenizer_class': 'LlamaTokenizer', 'legacy': True})
  return tiny_copy


@pytest.mark.parametrize('fixture', ['tiny_copy', 'tiny_pieces_dir'])
def test_every_chat_template_is_exported(fixture, request, tmp_path):
  """The default one and those for other uses, to a place that cannot rename as well."""
  import transformers

  directory = request.getfixturevalue(fixture)
  templates = {'default': 'D{{ messages }}', 'tool_use': 'T{{ messages }}', 'rag': 'R'}
  (directory / hf_dir.TEMPLATES).mkdir()
  for name, text in templates.items():
    inner = 'chat_template.jinja' if name == 'default' else f'{hf_dir.TEMPLATES}/{name}.jinja'
    (directory / inner).write_text(text)
  ckpt, cfg, params = open_model(directory)
  assert ckpt.tokenizer().chat_template == templates
  export.export_hf(tmp_path / 'hf', cfg, params, ckpt)
  peft.export_peft(tmp_path / 'peft', cfg, an_adapter(cfg), RANK, ALPHA, ckpt=ckpt)
  with mock.patch.object(export.io, 'is_remote', return_value=True):
    export.export_hf(tmp_path / 'remote', cfg, params, ckpt)
  for name in ('hf', 'peft', 'remote'):
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / name)
    assert theirs.chat_template == templates
    assert templates_in(tmp_path / name) >= templates_in(directory)


def templates_in(directory):
  """Templates there, by their path."""
  return {p.relative_to(directory).as_posix() for p in directory.rglob('*.jinja')}


def test_no_export_asks_for_code(tiny_copy, tmp_path):
  """The base's own code is not exported, so nothing may point to it."""
  for name in ('config.json', 'tokenizer_config.json'):
    path = tiny_copy / name
    path.write_text(json.dumps({**json.loads(path.read_text()), 'auto_map': {'AutoModel': 'x.Y'}}))
  ckpt, cfg, params = open_model(tiny_copy)
  export.export_hf(tmp_path / 'out', cfg, params, ckpt)
  for name in ('config.json', 'tokenizer_config.json'):
    assert 'auto_map' not in json.loads((tmp_path / 'out' / name).read_text())


@pytest.mark.parametrize('dtype', ['bfloat16', 'float16'])
def test_stored_dtype(dtype, tiny_llama_dir, tmp_path):
  ckpt, cfg, params = open_model(tiny_llama_dir)
  export.export_hf(tmp_path / 'out', cfg, params, ckpt, dtype)
  config = json.loads((tmp_path / 'out' / 'config.json').read_text())
  assert config['torch_dtype'] == config['dtype'] == dtype
  stored = source.resolve(str(tmp_path / 'out'))
  assert {info.dtype for info in stored.tensors.values()} == {
    {'bfloat16': 'BF16', 'float16': 'F16'}[dtype]
  }
  from safetensors import safe_open

  with safe_open(tmp_path / 'out' / 'model.safetensors', framework='numpy') as f:
    assert f.metadata() == {'format': 'pt'}


def test_export_does_not_depend_on_the_mesh(tiny_llama_dir, tmp_path):
  if jax.device_count() < 8:
    pytest.skip('needs 8 devices')
  for name, mesh in (('one', one_device_mesh()), ('eight', make_mesh(2, 2, 2))):
    ckpt, cfg, params = open_model(tiny_llama_dir, mesh)
    export.export_hf(tmp_path / name, cfg, params, ckpt)
  one, eight = (tmp_path / name / 'model.safetensors' for name in ('one', 'eight'))
  assert one.read_bytes() == eight.read_bytes()


def test_card(tiny_llama_dir, tmp_path):
  yaml = pytest.importorskip('yaml')
  ckpt, cfg, params = open_model(tiny_llama_dir)
  export.export_hf(tmp_path / 'out', cfg, params, ckpt, card={**CARD, 'base_model': 'org/name'})
  _, head, body = (tmp_path / 'out' / 'README.md').read_text().split('---\n', 2)
  assert yaml.safe_load(head) == {
    'base_model': 'org/name',
    'datasets': ['tatsu-lab/alpaca'],
    'license': 'mit',
    'library_name': 'transformers',
    'pipeline_tag': 'text-generation',
    'tags': ['sft'],
  }
  assert '| learning rate | 0.0001 |' in body and 'c\\|d' in body
  assert source.resolve(str(tmp_path / 'out')).license == 'mit'


@pytest.mark.parametrize(
  ('asked', 'hub_id', 'revision'),
  [('org/name@v1', 'org/name', 'v1'), ('org/name', 'org/name', None), ('', None, None)],
)
def test_only_a_hub_id_is_named_as_base(
  asked, hub_id, revision, tiny_llama_dir, tmp_path, monkeypatch
):
  """A path, a wheel or an id with its revision is none; an adapter keeps the revision apart."""
  yaml = pytest.importorskip('yaml')
  monkeypatch.setattr(hub, 'fetch', lambda spec: tiny_llama_dir)
  ckpt, cfg, params = open_model(asked or tiny_llama_dir)
  export.export_hf(tmp_path / 'hf', cfg, params, ckpt, card={'tags': ['sft', 'lora']})
  peft.export_peft(
    tmp_path / 'peft', cfg, an_adapter(cfg), RANK, ALPHA, base_name=ckpt.name, ckpt=ckpt
  )
  for kind, library in (('hf', 'transformers'), ('peft', 'peft')):
    head = yaml.safe_load((tmp_path / kind / 'README.md').read_text().split('---\n')[1])
    assert head.get('base_model') == hub_id and head['library_name'] == library
  config = json.loads((tmp_path / 'peft' / 'adapter_config.json').read_text())
  assert config['base_model_name_or_path'] == (hub_id or str(tiny_llama_dir))
  assert config['revision'] == revision


@pytest.mark.parametrize('dtype', export.DTYPES)
def test_weights_that_are_not_finite_are_refused(dtype, tiny_llama_dir, tmp_path):
  ckpt, cfg, params = open_model(tiny_llama_dir)
  params['layers']['mlp']['up']['kernel'] = (
    params['layers']['mlp']['up']['kernel'].at[1, 0].set(jnp.nan)
  )
  with pytest.raises(UserError, match=r'model\.layers\.1\.mlp\.up_proj\.weight holds NaN'):
    export.export_hf(tmp_path / 'out', cfg, params, ckpt, dtype)
  adapter = an_adapter(cfg, 'q_proj')
  adapter['layers']['attn']['q']['lora_b'] = adapter['layers']['attn']['q']['lora_b'] / 0
  with pytest.raises(UserError, match=r'layers\.0\..*lora_B.*holds NaN or infinity'):
    peft.export_peft(tmp_path / 'out', cfg, adapter, RANK, ALPHA)
  assert os.listdir(tmp_path) == []


def test_what_a_killed_export_left_is_removed(tiny_llama_dir, tmp_path):
  ckpt, cfg, params = open_model(tiny_llama_dir)
  left = tmp_path / '.out.partial-abc'
  (left / 'new').mkdir(parents=True)
  (left / 'owner.json').write_text(json.dumps({**process.me(), 'born': 'of another'}))
  export.export_hf(tmp_path / 'out', cfg, params, ckpt)
  assert os.listdir(tmp_path) == ['out']
  assert not (tmp_path / 'out' / 'owner.json').exists()


def test_nothing_half_written(tiny_llama_dir, tmp_path, monkeypatch):
  ckpt, cfg, params = open_model(tiny_llama_dir)
  export.export_hf(tmp_path / 'out', cfg, params, ckpt)
  before = (tmp_path / 'out' / 'model.safetensors').read_bytes()

  def full(*_, **__):
    raise OSError(28, 'No space left on device')

  monkeypatch.setattr(export, 'write_tokenizer', full)
  for name in ('out', 'other'):
    with pytest.raises(UserError, match='disk is full'):
      export.export_hf(tmp_path / name, cfg, changed(params), ckpt)
  assert os.listdir(tmp_path) == ['out'], 'no scratch directory stays, no new export appears'
  assert (tmp_path / 'out' / 'model.safetensors').read_bytes() == before
  monkeypatch.undo()
  export.export_hf(tmp_path / 'out', cfg, changed(params), ckpt)  # an old export is replaced
  assert (tmp_path / 'out' / 'model.safetensors').read_bytes() != before


def test_refusals(tiny_llama_dir, tmp_path):
  ckpt, cfg, params = open_model(tiny_llama_dir)
  (tmp_path / 'thesis').mkdir()
  (tmp_path / 'thesis' / 'chapter1.tex').touch()
  with pytest.raises(UserError, match='holds other files'):
    export.export_hf(tmp_path / 'thesis', cfg, params, ckpt)
  assert (tmp_path / 'thesis' / 'chapter1.tex').exists()
  with pytest.raises(UserError, match="unknown dtype 'int8'"):
    export.export_hf(tmp_path / 'out', cfg, params, ckpt, 'int8')
  params['final_norm']['scale'] = params['final_norm']['scale'] * 1e6
  with pytest.raises(UserError, match=r'model\.norm\.weight does not fit float16'):
    export.export_hf(tmp_path / 'out', cfg, params, ckpt, 'float16')
  assert not (tmp_path / 'out').exists()


def test_only_an_earlier_export_is_replaced(tiny_llama_dir, tmp_path):
  ckpt, cfg, params = open_model(tiny_llama_dir)
  foreign = tmp_path / 'foreign'
  shutil.copytree(tiny_llama_dir, foreign)
  (foreign / 'README.md').write_text('A model of somebody.')
  mine, adapter = tmp_path / 'mine', tmp_path / 'adapter'
  export.export_hf(mine, cfg, params, ckpt)
  peft.export_peft(adapter, cfg, an_adapter(cfg, 'q_proj'), RANK, ALPHA, ckpt=ckpt)
  export.check_place(mine)
  export.export_hf(adapter, cfg, params, ckpt)  # of another format
  with pytest.raises(UserError, match='that of the base'):
    export.check_place(mine, source.resolve(str(mine)).files)
  (mine / 'notes.txt').touch()
  for place in (foreign, mine, tmp_path):
    before = sorted(tmp_path.rglob('*'))
    with pytest.raises(UserError, match='holds other files'):
      export.export_hf(place, cfg, params, ckpt)
    assert sorted(tmp_path.rglob('*')) == before


@pytest.mark.parametrize('targets', ['all-linear', 'q_proj,v_proj'])
def test_adapter_reloads_in_peft(targets, tiny_llama_dir, tmp_path):
  ckpt, cfg, params = open_model(tiny_llama_dir)
  adapter = an_adapter(cfg, targets)
  export_args = {'alpha': ALPHA, 'dropout': 0.05, 'base_name': str(tiny_llama_dir), 'ckpt': ckpt}
  peft.export_peft(tmp_path / 'out', cfg, adapter, RANK, **export_args)
  model = peft_model(tiny_llama_dir, tmp_path / 'out')
  tokens, scale = some_tokens(cfg), jnp.full(cfg.num_layers, ALPHA / RANK)
  ours = our_logits(cfg, params, tokens, adapter=adapter, lora_scale=scale)
  assert np.abs(ours - our_logits(cfg, params, tokens)).max() > 0.1, 'the adapter does something'
  np.testing.assert_allclose(ours, torch_logits(model, tokens), atol=1e-4)
  # Merged export and PEFT's own merge agree as well.
  merged = lora.merge(params, adapter, scale)
  np.testing.assert_allclose(
    our_logits(cfg, merged, tokens), torch_logits(model.merge_and_unload(), tokens), atol=1e-4
  )
  back = peft.import_peft(tmp_path / 'out', cfg)
  jax.tree.map(np.testing.assert_array_equal, back.adapter, adapter)
  assert (back.rank, back.alpha, back.scale, back.dropout) == (RANK, ALPHA, ALPHA / RANK, 0.05)
  assert back.modules == lora.match_targets(cfg, targets)


def test_padded_rank_is_cut(tiny_llama_dir, tmp_path):
  _, cfg, _ = open_model(tiny_llama_dir)
  cohort = lora.init_adapter(cfg, lora.match_targets(cfg, 'q_proj'), [2, RANK], [0, 1])
  narrow = lora.one_run(cohort, 0)
  peft.export_peft(tmp_path / 'out', cfg, narrow, 2, ALPHA)
  back = peft.import_peft(tmp_path / 'out', cfg)
  np.testing.assert_array_equal(
    back.adapter['layers']['attn']['q']['lora_a'], narrow['layers']['attn']['q']['lora_a'][..., :2]
  )
  full = an_adapter(cfg, 'q_proj')
  with pytest.raises(ValueError, match='beyond rank 2 are not zero'):
    peft.export_peft(tmp_path / 'out', cfg, full, 2, ALPHA)


def edit_config(directory, **changes):
  path = directory / 'adapter_config.json'
  path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def ruin(path):
  from safetensors.numpy import load_file, save_file

  tensors = load_file(path)
  next(iter(tensors.values()))[0, 0] = np.nan
  save_file(tensors, path, metadata={'format': 'pt'})


@pytest.mark.parametrize(
  ('damage', 'message'),
  [
    (lambda d: edit_config(d, use_dora=True), 'use_dora=True is not implemented'),
    (lambda d: edit_config(d, init_lora_weights='pissa_niter_4'), "init_lora_weights='pissa_niter"),
    (lambda d: edit_config(d, alora_invocation_tokens=[1]), r'alora_invocation_tokens=\[1\]'),
    (lambda d: edit_config(d, use_qalora=True), 'use_qalora=True'),
    (lambda d: ruin(d / 'adapter_model.safetensors'), 'holds NaN or infinity'),
    (lambda d: edit_config(d, peft_type='IA3'), "adapter of type 'IA3'"),
    (lambda d: edit_config(d, r='many'), 'malformed field'),
    (lambda d: edit_config(d, r=RANK + 1), 'has shape .* not '),
    (lambda d: (d / 'adapter_config.json').write_text('{'), 'not readable as JSON'),
    (lambda d: (d / 'adapter_model.safetensors').unlink(), 'no PEFT adapter'),
    (lambda d: os.truncate(d / 'adapter_model.safetensors', 5000), 'truncated safetensors'),
  ],
)
def test_bad_adapters(damage, message, tiny_llama_dir, tmp_path):
  _, cfg, _ = open_model(tiny_llama_dir)
  peft.export_peft(tmp_path / 'out', cfg, an_adapter(cfg, 'q_proj'), RANK, ALPHA)
  damage(tmp_path / 'out')
  with pytest.raises(UserError, match=message):
    peft.import_peft(tmp_path / 'out', cfg)


def test_module_names(tiny_tied_dir):
  _, cfg, _ = open_model(tiny_tied_dir)
  assert lora.linear_modules(cfg) == {
    'layers/attn/q': 'q_proj',
    'layers/attn/k': 'k_proj',
    'layers/attn/v': 'v_proj',
    'layers/attn/o': 'o_proj',
    'layers/mlp/gate': 'gate_proj',
    'layers/mlp/up': 'up_proj',
    'layers/mlp/down': 'down_proj',
  }
  assert 'head/kernel' not in families.shapes(cfg)

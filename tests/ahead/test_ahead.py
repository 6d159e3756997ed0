"""Steps on shapes alone: what they send on fake devices, what is counted, and plans of TPUs."""

import dataclasses
import functools
import json
import math
import shlex

import pytest

from configs import base
from sft_jax import spec as spec_lib
from sft_jax.ahead import compiled, estimate, search, text
from sft_jax.ahead import setting as setting_lib
from sft_jax.execution import study_run
from sft_jax.models import families, published
from sft_jax.models.config import ModelConfig
from sft_jax.parallel import hlo, topology
from sft_jax.parallel import mesh as mesh_lib
from sft_jax.utils.errors import UserError
from tests import tiny

RAW = {
  'architectures': ['LlamaForCausalLM'],
  'model_type': 'llama',
  'hidden_size': 64,
  'intermediate_size': 128,
  'num_attention_heads': 4,
  'num_hidden_layers': 3,
  'num_key_value_heads': 2,
  'max_position_embeddings': 4096,
  'rms_norm_eps': 1e-5,
  'vocab_size': 320,
}
LLAMA3 = 'meta-llama/Meta-Llama-3-8B'


def setting(raw, where, method, *, runs=1, mesh=None, per_shard=1, length=32, **changes):
  config = base.get_config()
  config.unlock()
  config.model.path, config.data.name = 'model', 'lima'
  config.train.method, config.lora.dropout = method, 0.0
  spec = dataclasses.replace(spec_lib.from_config(config, 'tpu'), **changes)
  chips = topology.parse(where)
  mesh = mesh or (1, chips.chips, 1)
  rows = mesh[0] * mesh[1] * per_shard
  cfg = ModelConfig.from_hf(raw)
  return setting_lib.Setting(cfg, spec, chips, mesh, runs, runs * rows, 1, rows, length, 'full', 16)


@functools.cache
def on_fake_devices(method, runs):
  """Collectives of the real train step, cut over eight fake devices of a CPU."""
  one = setting(RAW, 'v5e:2x4', method, runs=runs)
  mesh = mesh_lib.make_mesh(1, 8, 1)
  held = setting_lib.weights(one, mesh)
  step, batch = setting_lib.train_step(one, held), setting_lib.train_batch(one, mesh)
  text = step.lower(held.base, setting_lib.train_state(one, held), batch).compile().as_text()
  return hlo.Module(text).collectives([2])


def kernels():
  """{bytes of one layer's kernel in float32: how many a layer has}; a CPU gathers no bfloat16."""
  shapes = families.shapes(ModelConfig.from_hf(RAW))
  sizes = [
    4 * math.prod(shape[1:]) for path, shape in shapes.items() if path.startswith('layers/')
    and path.endswith('/kernel')
  ]  # fmt: skip
  return sizes


def test_a_full_step_gathers_each_kernel_once_a_pass():
  found = on_fake_devices('full', 1)
  gathers = [one for one in found if one.kind == 'all-gather' and one.shapes[0].startswith('f32')]
  layered = [one for one in gathers if one.inside_loop]
  # Forward, again for the backward pass, and for the gradients of inputs. What only the last layer
  # of a block needs is not computed again: neither down's nor o's product.
  once, twice = [one for one in layered if 'transpose' not in one.source], layered
  assert sorted(one.size for one in once) == sorted(kernels())
  assert len(twice) - len(once) == 2 * len(kernels()) - 1
  assert all(one.times == 3 for one in layered)
  assert sum(one.sent for one in once) == 3 * sum(kernels()) * 7 / 8
  # Never more than one kernel of one layer, or the head, at once.
  assert max(one.size for one in gathers) == 4 * 64 * 320


def test_a_full_step_reduces_each_gradient_once():
  found = on_fake_devices('full', 1)
  inside = [one for one in found if one.kind == 'all-reduce' and one.times == 3]
  norms = 2 * 4 * 64
  assert sum(one.size for one in inside) == pytest.approx(sum(kernels()) + norms, abs=norms)
  rest = [one for one in found if one.kind == 'all-reduce' and one.times == 1]
  # The head's, and small ones: nothing of all parameters.
  assert sum(one.size for one in rest) < 1.2 * 4 * 64 * 320


def test_a_cohort_gathers_the_base_once_for_all_runs():
  found = on_fake_devices('lora', 4)
  forward = [
    one
    for one in found
    if one.kind == 'all-gather' and one.inside_loop and 'transpose' not in one.source
  ]
  base_kernels = [one for one in forward if one.shapes[0].count(',') == 1]
  assert sorted(one.size for one in base_kernels) == sorted(kernels())
  # Whatever has a run axis is an adapter of rank 8.
  others = [one for one in forward if one not in base_kernels]
  assert others and all(',8' in one.shapes[0] and 'f32[4,' in one.shapes[0] for one in others)


def test_flops_are_six_n_and_attention():
  one = setting(published.raw_config(LLAMA3), 'v5p:4x4x4', 'full', length=4096)
  matmul = 8_030_261_248 - 128256 * 4096 - 65 * 4096
  tokens = 64 * 4096
  expected = tokens * (6 * matmul + 6 * 32 * 4096 * 4096)
  assert estimate.model_flops(one) == expected
  # On chips: layers' products again (8 N), and scores in four passes, half of them by a kernel.
  layers = matmul - 128256 * 4096
  plain = dataclasses.replace(one, attention='xla')
  for setting_, share in ((one, 0.5), (plain, 1.0)):
    done = tokens * (8 * layers + 6 * 128256 * 4096 + share * 4 * 4 * 32 * 4096 * 4096)
    assert estimate.work(setting_).flops * 64 == pytest.approx(done, rel=1e-12)


def test_memory_of_the_training_state_is_exact():
  one = setting(published.raw_config(LLAMA3), 'v5e:4x4', 'full', length=4096)
  kinds = estimate.memory(one)
  assert kinds['parameters'] == 4 * 8_030_261_248 / 16 == kinds['gradients']
  assert kinds['optimiser'] == 8 * 8_030_261_248 / 16
  mesh = mesh_lib.make_mesh(1, 8, 1)
  held = setting_lib.weights(setting(RAW, 'v5e:2x4', 'full'), mesh)
  cfg = ModelConfig.from_hf(RAW)
  whole = sum(math.prod(s) for p, s in families.shapes(cfg).items() if not p.endswith('scale'))
  norms = sum(math.prod(s) for p, s in families.shapes(cfg).items() if p.endswith('scale'))
  assert held.parameter_bytes() == 4 * (whole / 8 + norms)
  assert held.moment_bytes() == 2 * held.parameter_bytes()


@pytest.mark.parametrize('sizes', [(1, 8, 1), (2, 2, 2)])
def test_memory_of_adapters_is_exact(sizes):
  # Of A and B of a kernel one may be whole on each chip: the axis that is not cut is as long.
  one = setting(RAW, 'v5e:2x4', 'lora', runs=4, mesh=sizes, targets='all-linear')
  held = setting_lib.weights(one, mesh_lib.make_mesh(*sizes))
  assert estimate.memory(one)['optimiser'] == held.moment_bytes()
  count = estimate.counts(one).adapter
  assert held.moment_bytes() > 8 * 4 * count / (sizes[1] * sizes[2])


def test_remedies_fit_and_an_int8_base_is_among_them():
  raw = published.raw_config(LLAMA3)
  one = setting(raw, 'v5e:1x1', 'lora', length=2048, per_shard=2, targets='all-linear')
  assert search.choice(one).bytes > one.topology.usable
  found = search.remedies(one)
  assert any('model.quantize' in r.overrides for r in found)
  assert all(r.bytes <= r.setting.topology.usable for r in found)
  larger = [r.setting.topology.name for r in found if 'plan.topology' in r.overrides]
  assert larger == ['v5e:2x2']  # the smallest that is enough


def test_the_search_finds_what_fits_best():
  one = setting(published.raw_config(LLAMA3), 'v5p:4x4x4', 'lora', length=1024, per_shard=2)
  found = search.ranked(one, most_runs=8)
  assert found and found[0].bytes <= found[0].setting.topology.usable
  assert found[0].rate >= search.choice(dataclasses.replace(one, remat='none')).rate
  for choice in found[:20]:
    assert math.prod(choice.setting.mesh) == choice.setting.topology.chips
    assert choice.setting.runs * choice.copies <= 8 or choice.setting.runs == 1


def plan_config(directory, where, **changes):
  (directory / 'config.json').write_text(json.dumps(RAW))
  config = base.get_config()
  config.model.path, config.data.name, config.data.size = str(directory), 'lima', 64
  config.train.max_length, config.plan.topology = 256, where
  config.update_from_flattened_dict(changes)
  return config


def test_a_plan_needs_no_weights(tmp_path, monkeypatch):
  said: list[str] = []
  monkeypatch.setattr(study_run.log, 'say', said.append)
  config = plan_config(tmp_path, 'h100:2x8', **{'plan.search': 1, 'plan.compile': 'no'})
  told = study_run.plan_mode(config, [{}], '')['on_chips']
  assert told['chips'] == 16 and told['programs'][0]['fits']
  assert told['programs'][0]['best'][0]['tokens_per_s'] > 0 and told['chip_hours']['train'] > 0
  assert any('--config.mesh.fsdp=' in line for line in said)


def test_a_plan_counts_local_data(tiny_files):
  """Steps and hours are those of the runs, though data.size is 0."""
  config = tiny.config(*tiny_files, plan__topology='h100:1', plan__compile='no')
  told = study_run.plan_mode(config, [{}, {'train.learning_rate': 1e-3}], '')['on_chips']
  (program,) = told['programs']
  assert (program['runs'], program['steps']) == (2, tiny.STEPS)
  assert told['chip_hours']['train'] > 0
  config.data.path, config.data.name = '', 'lima'
  (program,) = study_run.plan_mode(config, [{}], '')['on_chips']['programs']
  assert program['steps'] == 0, 'nobody knows'


def test_the_best_setting_is_a_command_for_a_shell(tmp_path):
  config = plan_config(tmp_path, 'h100:2x8', **{'mesh.fsdp': 4, 'train.remat': 'full'})
  cfg = ModelConfig.from_hf(RAW)
  spec, chips = spec_lib.from_config(config, 'gpu'), topology.parse('h100:2x8')
  one = setting_lib.Setting(cfg, spec, chips, (1, 16, 1), 1, 16, 1, 16, 256, 'full')
  given = ['python', '-m', 'sft_jax.main', '--config=my configs/a.py', '--config.mesh.fsdp=4']
  line = text.launch_line(one, config, [*given, '--config.study.grid=lr=1,2; seed=1'])
  share, *words = shlex.split(line)
  assert share.startswith('XLA_PYTHON_CLIENT_MEM_FRACTION=')
  assert words == [
    *given[:4],
    '--config.study.grid=lr=1,2; seed=1',
    *('--config.mesh.fsdp=16', '--config.train.rows_per_micro=16', '--config.train.row_length=256'),
  ]
  flags = shlex.split(text.launch_line(one, config, []))
  assert flags == words[5:], 'without a command, what would have to change'


@pytest.mark.parametrize(
  'where, changes, words',
  [
    ('v5e:5x5', {}, 'slices of v5e'),
    ('v5e:2x4', {'mesh.data': 3, 'mesh.fsdp': 3}, 'mesh does not fit 8 devices'),
    ('h100:1', {'plan.compile': 'yes'}, 'CUDA plugin'),
  ],
)
def test_bad_plans(tmp_path, where, changes, words):
  with pytest.raises(UserError, match=words):
    study_run.plan_mode(plan_config(tmp_path, where, **changes), [{}], '')


def test_a_model_too_large_is_refused_with_what_would_fit(tmp_path):
  config = plan_config(tmp_path, 'v5e:1x1', **{'plan.compile': 'no'})
  config.model.path = LLAMA3
  with pytest.raises(UserError, match=r'GiB on each chip of v5e:1x1.*largest: .*would fit'):
    study_run.plan_mode(config, [{}], '')


def test_compiled_for_tpus(tmp_path):
  """The real step of a tiny model for four TPUs: it fits, and its loops are counted."""
  pytest.importorskip('libtpu', reason='the compiler of TPUs is not installed')
  program = compiled.train(setting(RAW, 'v5e:2x2', 'full', length=256))
  assert not program.refused and 0 < program.peak < 2**30
  assert program.largest and any(one.inside_loop for one in program.collectives)
  assert program.kinds['optimiser'] == 2 * program.kinds['parameters']
  # The head is put together once, not for each chunk of the loss, and its gradient ends in parts.
  heads = [one for one in program.collectives if '320' in ''.join(one.shapes)]
  gathers = [one for one in heads if one.kind == 'all-gather']
  assert [(one.times, one.inside_loop) for one in gathers] == [(1, False)]
  assert any(one.kind == 'reduce-scatter' and one.shapes == ('f32[16,320]',) for one in heads)
  # Layers' gradients too, once for each layer.
  assert any(one.kind == 'reduce-scatter' and one.times == 3 for one in program.collectives)

"""Seconds of a step on GPUs, kernel after kernel, and what cuDNN keeps of documents."""

import copy
import dataclasses
import json
import sys
import types
from pathlib import Path

import numpy as np
import pytest

from benchmarks import gpu_page, gpu_plan, gpu_shapes
from configs import base
from sft_jax import spec as spec_lib
from sft_jax.ahead import estimate, kernels, search
from sft_jax.ahead import setting as setting_lib
from sft_jax.data import tokenize
from sft_jax.data.sampler import Sampler
from sft_jax.execution import job
from sft_jax.models import published
from sft_jax.models.config import ModelConfig
from sft_jax.parallel import roofline, topology
from sft_jax.utils import chips
from sft_jax.utils.errors import UserError
from tests.ahead.test_ahead import LLAMA3, RAW, setting

MEASURED = Path(__file__).parents[2] / 'benchmarks' / 'results' / 'gpu.json'


def llama(where, method, **changes):
  return setting(published.raw_config(LLAMA3), where, method, length=4096, **changes)


def test_a_tpu_has_the_roofline_of_all_its_work():
  one = llama('v5p:2x2x1', 'full')
  assert kernels.bound(one) == roofline.bound(estimate.work(one), one.topology)
  assert kernels.attained(one, 0.0) == 0.5 and kernels.attained(one, 0.3) == 0.3


@pytest.mark.parametrize('remat', ['dots', 'full'])
def test_wide_products_all_wait_for_arithmetic(remat):
  """Then their FLOPs are those of the step."""
  one = dataclasses.replace(llama('h100:8', 'full', per_shard=4), remat=remat, chunk=512)
  found, peak = kernels.bound(one), one.topology.chip.flops
  assert found.compute * peak == pytest.approx(estimate.work(one).flops, rel=1e-12)
  # One after another: their sum, and no less than all arithmetic or all traffic.
  assert found.seconds == found.compute + found.memory + found.launch > found.network
  assert found.binding == 'compute' and kernels.attained(one, 0.0) == 0.75


def test_narrow_products_wait_for_memory_and_kernels_for_kernels():
  one = setting(RAW | {'num_hidden_layers': 30}, 'h100:1', 'lora', runs=4, length=256)
  found = kernels.bound(one)
  # Nothing of this width reaches the chip's FLOPs, but attention is counted as if it did.
  attention = estimate.attention_flops(one) / one.topology.chip.flops
  assert found.compute == pytest.approx(attention) and found.binding == 'launch'
  thirty, ten = (
    kernels.bound(dataclasses.replace(one, cfg=ModelConfig.from_hf(RAW | {'num_hidden_layers': n})))
    for n in (30, 10)
  )
  # 182 a layer and 30 of what is computed again.
  assert thirty.launch - ten.launch == pytest.approx(20 * (182 + 30) * 3e-6)
  twice = dataclasses.replace(one, micros=2)
  assert kernels.bound(twice).memory > 1.9 * found.memory


def test_what_waits_for_the_network_takes_no_longer_for_the_rest():
  one = roofline.Bound(2.0, 1.0, 5.0, 0.5, in_turn=True)
  assert one.seconds == 5.0 and one.binding == 'network'
  assert dataclasses.replace(one, network=1.0).seconds == 3.5
  assert dataclasses.replace(one, in_turn=False, network=1.0).seconds == 2.0


def test_documents_are_taken_one_by_one_where_the_step_does():
  one = dataclasses.replace(llama('h100:8', 'full', per_shard=4), documents=4)
  assert one.apart == 4
  for changes in (
    {'documents': 5},  # more than 2 GiB
    {'documents': 0},
    {'topology': topology.parse('a100:8')},
    {'attention': 'xla'},
  ):
    assert dataclasses.replace(one, **changes).apart == 0
  # Sums in float32, twice, of 4 rows x 4,096 tokens x 4 documents x 4,096 numbers.
  apart = dataclasses.replace(one, documents=0)
  more = sum(estimate.memory(one).values()) - sum(estimate.memory(apart).values())
  assert more == 2 * 4 * 4 * 4096 * 4 * 4096
  # Three documents and what is left: a third of the scores.
  share = estimate.attention_flops(one) / estimate.attention_flops(apart)
  assert share == pytest.approx(1 / 3)


@pytest.mark.parametrize('told, documents', [(0, 0), (4096, 2), (1000, 6)])
def test_a_plan_knows_of_documents_what_it_is_told_of_examples(told, documents):
  config = base.get_config()
  config.unlock()
  config.model.path, config.data.name = LLAMA3, 'lima'
  config.train.max_length, config.plan.tokens = 4096, told
  spec = spec_lib.from_config(config, 'gpu')
  cfg = ModelConfig.from_hf(published.raw_config(LLAMA3))
  made = setting_lib.of_config(cfg, spec, config, topology.parse('h100:8'), 1)
  assert made.documents == documents


def test_the_plan_of_what_was_measured():
  """The committed measurement of an H200, planned by this code: seconds, without a compiler."""
  found = json.loads(MEASURED.read_text())
  for part, sides in found['parts'].items():
    told = gpu_shapes.task(part, 'plan', False, f'{found["chip"]}:1')
    report = sides['ours'][0]
    one = gpu_shapes.setting(told, gpu_shapes.attempted(report))
    planned = gpu_plan.seconds(told, one, report, found['ceilings'])
    assert planned['plan-seconds'] == report['plan-seconds'], part
  off = {row['part']: gpu_page.off(row['seconds']) for row in gpu_page.predictions(found)}
  assert len(off) == 7 and max(map(abs, off.values())) < 0.1


def test_planning_again_changes_nothing_that_was_measured(monkeypatch):
  found = json.loads(MEASURED.read_text())
  monkeypatch.setattr(gpu_shapes, 'compiled_bytes', lambda told, attempt: {'bytes': 1.0})
  again = copy.deepcopy(found)
  for sides in again['parts'].values():
    sides['ours'][0]['plan-seconds'] = None
  gpu_plan.replan(again)
  assert again['parts'] == found['parts'] and again['ceilings'] == found['ceilings']
  assert again['plans'] == {part: {'bytes': 1.0} for part in found['parts']}


def test_what_leaves_a_node_goes_by_the_ports_of_its_members():
  one = dataclasses.replace(llama('h100:2x8', 'full'), chunk=512)
  sent = lambda *mesh: estimate.work(dataclasses.replace(one, mesh=mesh))
  assert set(sent(2, 8, 1).sent) == {8} and set(sent(2, 8, 1).far) == {1}
  assert set(sent(1, 16, 1).far) == {8} and not sent(1, 16, 1).sent
  # Tensor is innermost: then each of two chips of `fsdp` is in a node of its own.
  across = sent(1, 2, 8)
  assert set(across.sent) == {8} and set(across.far) == {1}
  bound = roofline.bound(across, one.topology)
  assert bound.network == pytest.approx(across.sent[8] / 450e9 + across.far[1] / 50e9)


def test_tensor_parallelism_divides_no_residuals_and_is_waited_for():
  one = dataclasses.replace(llama('h100:8', 'full', per_shard=4), chunk=512)
  whole, cut = (
    dataclasses.replace(one, mesh=mesh, rows=4 * mesh[1]) for mesh in ((1, 8, 1), (1, 1, 8))
  )
  # No more FLOPs a token, but more to read and write, and sums nobody can do without.
  per_token = lambda one, name: getattr(kernels.bound(one), name) / one.rows
  assert per_token(cut, 'compute') <= per_token(whole, 'compute')
  assert per_token(cut, 'memory') > 1.5 * per_token(whole, 'memory')
  assert kernels.bound(cut).waits > 0 == kernels.bound(whole).waits
  best = search.ranked(dataclasses.replace(one, filled=64), 1)[0]
  assert best.setting.mesh == (1, 8, 1)


def test_float32_is_multiplied_as_tensorfloat():
  one = dataclasses.replace(llama('h100:8', 'full', per_shard=4), chunk=512)
  other = dataclasses.replace(one, spec=dataclasses.replace(one.spec, compute_dtype='float32'))
  flops = estimate.work(other).flops
  assert kernels.bound(other).compute == pytest.approx(2 * flops / one.topology.chip.flops)


def test_attention_of_examples_is_counted_as_training_counts_it():
  one = llama('h200:1', 'lora')
  told = dataclasses.replace(one, documents=5)
  a_row, quarter = (estimate.model_flops(each) for each in (one, told))
  count, width = estimate.counts(one), one.cfg.num_heads * one.cfg.head_dim
  each = chips.flops_per_token(count.matmul, one.cfg.num_layers, width, 1024, count.adapter)
  assert quarter == one.tokens * each < a_row


@pytest.mark.parametrize('filled, given, length', [(17, 0, 2048), (128, 32, 2048), (64, 64, 256)])
def test_microbatches_of_a_plan_are_those_of_training(filled, given, length, monkeypatch):
  config = base.get_config()
  config.model.path, config.data.name = 'model', 'lima'
  config.train.max_length = config.train.row_length = length
  config.train.batch_size, config.train.rows_per_micro = filled, given
  spec = spec_lib.from_config(config, 'gpu')
  made = setting_lib.of_config(ModelConfig.from_hf(RAW), spec, config, topology.parse('h100:8'), 1)
  monkeypatch.setattr(job, 'tokens_per_micro', lambda: 8192)
  example = tokenize.Example(
    np.zeros(length, np.int32), np.ones(length, np.float32), np.zeros(length, np.uint8), '', {}
  )
  run = types.SimpleNamespace(
    config=config,
    program=types.SimpleNamespace(shards=8),
    data=types.SimpleNamespace(train=[example] * filled),
    sampler=Sampler(filled, filled, 1.0, 0),
  )
  loader = job.make_loader([run], 1, False)
  assert loader.shape == (1, made.micros, made.rows, length)


@pytest.mark.parametrize('length, words', [(256, 'none has more than 256'), (4096, 'than 2048')])
def test_examples_do_not_outgrow_their_rows(length, words):
  config = base.get_config()
  config.model.path, config.data.name = 'model', 'lima'
  config.train.row_length, config.plan.tokens = length, 300 if length == 256 else 3000
  spec = spec_lib.from_config(config, 'gpu')
  with pytest.raises(UserError, match=words) as e:
    setting_lib.of_config(ModelConfig.from_hf(RAW), spec, config, topology.parse('h100:8'), 1)
  assert e.value.where == 'config.plan.tokens'


@pytest.mark.parametrize(
  'text, words',
  [
    ('{', 'is no JSON'),
    ('[]', 'no result of benchmarks.gpu'),
    ('{"chip": "h200"}', 'no result of benchmarks.gpu'),
    ('{"chip": "", "parts": {}, "facts": {}, "ceilings": {}}', 'not measured on a GPU'),
    (None, 'nothing here compiles for it'),
  ],
)
def test_a_page_that_cannot_be_planned_stays_as_it_is(text, words, tmp_path, monkeypatch, capsys):
  file = tmp_path / 'gpu.json'
  file.write_text(MEASURED.read_text() if text is None else text)
  before = file.read_text()
  monkeypatch.setattr(sys, 'argv', ['gpu_plan', f'--of={tmp_path / "gpu"}'])
  monkeypatch.setattr(topology, 'unable', lambda one: 'no plugin')
  with pytest.raises(SystemExit):
    gpu_plan.main()
  assert words in capsys.readouterr().err and file.read_text() == before

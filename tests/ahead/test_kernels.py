"""Seconds of a step on GPUs, kernel after kernel, and what cuDNN keeps of documents."""

import copy
import dataclasses
import json
from pathlib import Path

import pytest

from benchmarks import gpu_page, gpu_plan, gpu_shapes
from configs import base
from sft_jax import spec as spec_lib
from sft_jax.ahead import estimate, kernels, plan
from sft_jax.models import published
from sft_jax.models.config import ModelConfig
from sft_jax.parallel import roofline, topology
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
  made = plan.make_setting(cfg, spec, config, topology.parse('h100:8'), 1)
  assert made.documents == documents


def test_the_plan_of_what_was_measured():
  """The committed measurement of an H200, planned by this code: seconds, without a compiler."""
  found = json.loads(MEASURED.read_text())
  for part, sides in found['parts'].items():
    told = gpu_shapes.task(part, 'plan', False, f'{found["chip"]}:1')
    report = sides['ours'][0]
    attempt = (1, 'auto', 'full')
    if 'remat' in report:
      attempt = (report['rows'], report['attention'], report['remat'])
    one = gpu_shapes.setting(told, attempt)
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

"""The GPU benchmark at toy size, in this process, and what it makes of given numbers."""

import json
import math
import os

import jax
import pytest

from benchmarks import gpu, gpu_jobs, gpu_page, gpu_peer, gpu_profile, gpu_shapes, report
from sft_jax.ahead import estimate
from sft_jax.utils import chips


class Here:
  """Runs tasks in this process, as JSON tells them."""

  def __init__(self):
    self.planned = []

  def run(self, told, seconds):
    module = gpu_peer if told['side'] == 'peer' else gpu_jobs
    lines = []
    module.work(json.loads(json.dumps(told)), lambda found: lines.append(json.dumps(found)))
    return json.loads(lines[-1]) | {'wall-seconds': 1.0}

  def plan(self, told):
    self.planned.append(told)

  def plans(self, clock):
    return {}


def measured(parts, tmp_path):
  """What parts find at toy size, both sides, with the page and the file that are written."""
  pytest.importorskip('peft')
  args = gpu.parse([f'--only={parts}', '--minutes=600', f'--out={tmp_path / "out"}'])
  here = Here()
  found = gpu.measure(args, here, lambda found: report.write(args.out, gpu_page.page(found), found))
  assert not found['gpu'] and not here.planned and not found['left-out']
  assert list(found['parts']) == args.only
  assert json.loads((tmp_path / 'out.json').read_text())['parts'] == found['parts']
  return found['parts'], (tmp_path / 'out.md').read_text()


def test_toy_parts_run_and_claim_nothing(tmp_path):
  """A step and scoring, both sides, on a CPU."""
  parts, page = measured('full,score', tmp_path)
  assert all(sorted(sides) == ['ours', 'peer'] for sides in parts.values())
  ours = parts['full']['ours'][0]
  # A token of random weights costs about the log of the vocabulary.
  assert ours['losses'][0] == pytest.approx(math.log(512), abs=0.2)
  assert ours['losses'][-1] < ours['losses'][0]
  assert ours['tokens'] == parts['full']['peer'][0]['tokens'] == 2 * 64
  score = parts['score']['ours'][0]
  # A beginning and questions once, of each text all tokens but the last.
  assert score['computed-tokens'] == 96 + 4 * 16 + 16 * 3 < score['given-tokens'] == 16 * 116
  assert page.startswith('# Not measured on a GPU') and 'No figure is claimed' in page
  assert '| full | ours | ran |' in page
  assert not any(word in page for word in ('met', 'MISSED', 'tokens/s', 'MFU'))


@pytest.mark.slow
@pytest.mark.skipif('SFT_JAX_SLOW' not in os.environ, reason='half a minute: set SFT_JAX_SLOW=1')
def test_the_other_toy_parts_run(tmp_path):
  parts, _ = measured('cohort,decode,lora-int8,lora', tmp_path)
  assert parts['cohort']['ours'][0]['seconds'].keys() == {'step', 'sequence'}
  assert parts['decode']['ours'][0]['seconds'].keys() == {'1', '2'}
  assert 'peer' not in parts['lora-int8']


def training(seconds, tokens=1000, **more):
  """A report of ours: 4 GFLOP a token, 40 GiB where the plan says 41."""
  told = {'flops-per-token': 4e9, 'whole-flops-per-token': 8e9, 'plan-seconds': 1.1, 'notes': []}
  told |= {'rows': 4, 'attention': 'cudnn', 'remat': 'dots', 'chunk': 512, 'least-seconds': 0.5}
  told |= {'counted-bytes': 41 * 2**30, 'compiled-bytes': None, 'peak-bytes': 40 * 2**30}
  return told | {'tokens': tokens, 'seconds': seconds} | more


def peer(seconds, tokens=1000):
  return {
    **{'tokens': tokens, 'rows': 1, 'recomputation': False, 'notes': []},
    **{'peak-bytes': 2**30, 'seconds': seconds},
  }


def given(**parts):
  """Findings of a chip of 10 TFLOP/s and 1 TB/s."""
  chip = {'device': 'NVIDIA H100 80GB HBM3', 'nominal': 1e13, 'matmul': 8e12, 'copy': 1e12}
  facts = {'command': 'x', 'machine': 'y', 'versions': {'jax': '1'}, 'date': 'z'}
  more = {'about': {}, 'plans': {}, 'left-out': {'score, ours': 'no time was left'}}
  return {'gpu': True, 'chip': 'h100', 'ceilings': chip, 'facts': facts, 'parts': parts, **more}


def verdicts(found):
  return {what: (value, verdict) for what, value, _, verdict in gpu_page.judge(found)}


def test_bars_from_medians_of_rounds():
  # 1,000 tokens of 4 GFLOP in the median of 0.7, 0.8 and 0.9 s, on a chip of 10 TFLOP/s: 0.5.
  full = [training({'step': [9.0, times, 0.1]}) for times in (0.7, 0.9, 0.8)]
  found = given(
    full={'ours': full, 'peer': [peer({'step': [0.95]})]},
    cohort={'ours': [training({'step': [1.0], 'sequence': [2.9]}, 16000)]},
    decode={
      'ours': [
        {
          'seconds': {'1': [0.01], '128': [0.02]},
          'read-bytes': {'1': 6e9, '128': 11e9},
          'plan-seconds': {'1': 0.01, '128': 0.03},
          'peak-bytes': {'1': 2**30, '128': 2**31},
        }
      ],
      'peer': [{'seconds': {'128': [0.1]}, 'peak-bytes': 1}],
    },
  )
  found['parts']['lora-cut'] = {'ours': [training({'step': [0.5]})]}
  judged = verdicts(found)
  assert judged['full SFT: causal MFU of the nominal peak'] == ('0.50', 'met')
  assert judged['full SFT beside torch'] == ('1.19', 'MISSED')
  assert judged['LoRA over full SFT, same layers'] == ('1.60', 'met')
  assert judged['cohort of 16 over sixteen in sequence'] == ('2.90', 'MISSED')
  # 11 GB at 1 TB/s are 11 ms of 20.
  assert judged['decode at batch 128: share of the copy-bandwidth roofline'] == ('0.55', 'MISSED')
  assert judged['decode at batch 128 beside `generate`'] == ('5.00', 'met')
  known = gpu_page.numbers(found)
  assert known['full-whole-rate'] == pytest.approx(0.5 * 1e13 / 8e9)
  page = '\n'.join(gpu_page.page(found))
  assert page.startswith('# On one NVIDIA H100') and '- score, ours: no time was left' in page
  assert '≥ 0.5 | met' in page and 'these lengths, is 625)' in page
  tables = [line.count('|') for line in page.splitlines() if line.startswith('| full |')]
  assert tables and set(tables) == {7, 11}


def test_where_the_time_went():
  """Of a profile as jax writes it: kernels of all streams, and no line that tells them again."""
  event = lambda kind, ms: f'events {{ metadata_id: {kind} duration_ps: {ms * 10**9} }}'
  line = lambda name, *events: f'lines {{ name: "{name}" {" ".join(events)} }}'
  names = ''.join(
    f'event_metadata {{ key: {i} value {{ id: {i} name: "{name}" }} }}'
    for i, name in enumerate(('gemm', 'copy', 'module'), 1)
  )
  device = ''.join(
    [
      *(line('Stream #1(Compute)', event(1, 5), event(2, 1), event(1, 4)), names),
      *(line('Stream #2(Copy)', event(2, 2)), line('XLA Modules', event(3, 9))),
    ]
  )
  planes = f'planes {{ name: "/device:GPU:0" {device} }}'
  planes += f'planes {{ name: "/host:CPU" {line("Stream", event(1, 50))} {names} }}'
  space = jax.profiler.ProfileData.text_proto_to_serialized_xspace(planes)
  found = gpu_profile.longest(jax.profiler.ProfileData.from_serialized_xspace(space))
  assert list(found) == ['gemm ()', 'copy ()']
  assert list(found.values()) == pytest.approx([0.009, 0.003])
  part = training({'step': [1.0]}, kernels={'step': found | {'idle': 0.008}})
  page = '\n'.join(gpu_page.page(given(full={'ours': [part]})))
  assert '| full | step | gemm () | 45.0% |' in page and '| idle | 40.0% |' in page
  assert 'kernels' not in '\n'.join(
    gpu_page.page(given(full={'ours': [training({'step': [1.0]})]}))
  )


def test_the_plan_is_judged_on_six_programs():
  names = ('full', 'lora-cut', 'lora', 'lora-int8', 'score', 'cohort')
  one = lambda: {'ours': [training({'step': [1.0], 'pass': [1.0]}, texts=1)]}
  found = given(**{name: one() for name in names})
  found['parts']['score']['ours'][0] |= {'computed-tokens': 1, 'given-tokens': 2}
  memory, speed = (f'plan: {name}' for name in ('peak memory', 'step time'))
  assert verdicts(found)[memory] == ('6 of 6 within; the worst +2%', 'met')
  assert verdicts(found)[speed] == ('6 of 6 within; the worst +10%', 'met')
  # What was compiled counts before what was counted.
  found['plans'] = {'lora': {'bytes': 36 * 2**30}}
  assert verdicts(found)[memory] == ('5 of 6 within; the worst -10%', 'MISSED')
  found['plans'] = {}
  del found['parts']['cohort']
  assert verdicts(found)[memory] == ('5 of 5 within; the worst +2%', 'not judged')
  assert verdicts({**found, 'chip': ''})[speed] == ('', 'not judged')
  assert gpu_page.judge({**found, 'gpu': False}) == []


def test_nothing_is_judged_that_failed():
  found = given(full={'ours': [{'failed': 'no room'}], 'peer': [peer({'step': [1.0]})]})
  assert {verdict for _, verdict in verdicts(found).values()} == {'not judged'}
  assert 'FAILED: no room' in '\n'.join(gpu_page.page(found))


def test_flops_are_those_of_an_8b():
  told = gpu_shapes.task('lora', 'ours', toy=False)
  one = gpu_shapes.setting(told | {'method': 'full'}, (1, 'cudnn', 'dots'))
  assert estimate.counts(one).all == 8_030_261_248
  flops = gpu_shapes.flops_per_token(one, 2048)
  # The figure that the bar is known by.
  half = 1 / chips.mfu(1.0, 'NVIDIA H100 80GB HBM3') / 2
  assert half / flops == pytest.approx(10_600, rel=0.01)


@pytest.mark.parametrize('documents', [1, 4, 8])
def test_rows_are_full_of_documents(documents):
  told = gpu_shapes.task('full', 'ours', toy=False)
  told |= {'raw': gpu_shapes.raw_config(gpu_shapes.TOY)}
  made = gpu_jobs.batch(gpu_shapes.setting(told, (2, 'xla', 'full')), documents)
  assert made['tokens'].shape == (1, 1, 2, 4096) and made['segments'].min() == 1
  assert len({*made['segments'].ravel().tolist()}) == 2 * documents
  assert (made['positions'] == 0).sum() == 2 * documents


def test_the_clock_leaves_out_what_does_not_fit():
  class Slow(Here):
    def run(self, told, seconds):
      assert seconds <= 9
      return {'platform': 'gpu', 'device': 'NVIDIA H200', 'matmul': 1.0, 'copy': 1.0}

  found = gpu.measure(gpu.parse(['--only=full,lora', '--minutes=0.2']), Slow(), peers=False)
  assert found['parts'] == {} and found['chip'] == 'h200'
  why = {'ours': 'no time was left', 'peer': 'torch, transformers or peft is not installed'}
  assert found['left-out'] == {
    f'{part}, {side}': said for part in ('full', 'lora') for side, said in why.items()
  }


def test_a_process_that_fails_or_hangs_ends_nothing_else(tmp_path, monkeypatch):
  told = {'part': 'full', 'side': 'plan', 'topology': 'h100:1'}
  hangs = tmp_path / 'hangs'
  hangs.write_text('#!/bin/sh\nexec sleep 600\n')
  hangs.chmod(0o755)
  monkeypatch.setattr(gpu.sys, 'executable', str(hangs))
  processes = gpu.Processes(tmp_path)
  found = processes.run(told, 0.01)
  assert found['failed'].startswith('stopped after')
  (tmp_path / 'full-plan.err').write_text('Warning\nValueError: no such thing\n\n')
  assert processes._why(told, 1) == 'ValueError: no such thing'


def test_bad_arguments(capsys):
  with pytest.raises(SystemExit) as stopped:
    gpu.parse(['--only=qlora'])
  assert stopped.value.code == 2
  assert 'unknown qlora' in capsys.readouterr().err

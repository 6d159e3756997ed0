"""What evaluations ask and take, by formula; what decoding sends, on fake devices."""

import collections
import dataclasses
import math

import pytest

from configs import base
from configs.studies import common, paper
from sft_jax.ahead import asked, compiled, evaluation, hours, plan
from sft_jax.ahead import setting as setting_lib
from sft_jax.evals import budget, core, files, questions, subset, suite
from sft_jax.evals.benchmark import Item
from sft_jax.execution import study_run
from sft_jax.models import published
from sft_jax.parallel import mesh as mesh_lib
from sft_jax.parallel import roofline, topology
from sft_jax.utils.errors import UserError
from tests import wheels
from tests.ahead.test_ahead import LLAMA3, RAW, setting


def config(tasks, **changes):
  out = base.get_config()
  out.eval.tasks = tasks
  out.update_from_flattened_dict({key.replace('__', '.'): v for key, v in changes.items()})
  return out


def test_every_task_of_the_study_is_counted():
  found = asked.asked(config(common.TASKS), 300)
  assert found.unknown == ()
  sizes = {one.benchmark.name: one.benchmark.size for one in core.task_names(common.TASKS)[1]}
  # Table 3 of the article, but for MMLU-jp, of which JMMLU has 7,536.
  assert sizes['math'] == 5000 and sizes['mmlu'] == 14042 and sizes['cmmlu'] == 11582
  most = 1024 * 5000 + 512 * (1319 + 164 + 257) + 50 * 3610
  most += 256 * (sizes['mmlu'] + sizes['cmmlu'] + sizes['jmmlu'] + 3270 + 817)
  assert found.written == most


def test_asked_is_a_sum_over_tasks():
  one = asked.PROMPTS['gsm8k:4shot:gen']
  found = asked.asked(config('gsm8k:4shot:gen'), 0)
  assert found == (one.shared + 1319 * one.each, 1319 * 512, ())
  # A second turn is asked behind the first answer.
  talk = asked.PROMPTS['mt_bench:0shot:gen']
  found = asked.asked(config('mt_bench', eval__limit=10), 0)
  assert found == (talk.shared + 10 * (talk.each + 1024), 10 * 2 * 1024, ())
  # Held-out examples of 100 tokens, and what nobody knows.
  mixed = config('perplexity,lm_eval:arc_easy', data__heldout_share=0.1, data__heldout_max=50)
  assert asked.asked(mixed, 100) == (5000, 0, ('lm_eval:arc_easy',))
  told = config('gsm8k', plan__scored=7.0, plan__written=9.0)
  assert asked.asked(told, 0)[:2] == (7, 9)


@pytest.mark.parametrize('precision', [0.5, 2.0, 10.0])
def test_subsets_are_as_large_as_those_that_are_asked(precision):
  (wanted,) = core.task_names('gsm8k')[1]
  count, whole = asked.items_for(wanted, precision), collections.Counter({'': 1319})
  width = lambda n: subset.half_width([Item('', {})] * n, whole, False)
  assert width(count) <= precision < width(count - 1)


@pytest.mark.parametrize('name', ['gsm8k:4shot:gen', 'boolq:0shot:ll'])
def test_lengths_of_prompts_are_those_of_the_data(name, data_dir):
  """Another sample of the published files, by the tokenizer the table names, within 15 %."""
  transformers = pytest.importorskip('transformers')
  tokenizer = transformers.AutoTokenizer.from_pretrained(str(wheels.directory('llama3')))
  (wanted,) = core.task_names(name)[1]
  options = questions.Options(tokenizer, 'study', (), 8192, limit=100, seed=7)
  task = suite.BenchmarkTask(wanted, files.LocalFiles(str(data_dir / 'bench')), options)
  work, one = budget.work(task, task.questions, 'beginnings'), asked.PROMPTS[name]
  assert work.shared == pytest.approx(one.shared + 100 * one.each, rel=0.15)


def decoder(method, mesh, runs, monkeypatch):
  """A setting in float32 and its decode program, over eight fake devices of a CPU."""
  monkeypatch.setattr(setting_lib, 'make_mesh', lambda _: mesh_lib.make_mesh(*mesh))
  changes = {'compute_dtype': 'float32', 'targets': 'q_proj'}
  one = setting(RAW, 'v5e:2x4', method, runs=runs, mesh=mesh, **changes)
  return one, compiled.decode(one, 16, 64, steps=8)


@pytest.mark.parametrize('method, runs', [('full', 1), ('lora', 4)])
def test_decoding_moves_no_matrix(method, runs, monkeypatch):
  """What few tokens give on each device is summed; matrices stay where they lie."""
  one, program = decoder(method, (1, 8, 1), runs, monkeypatch)
  largest = max(one.cfg.intermediate_size, one.cfg.vocab_size)
  for found in program.collectives:
    numbers = [math.prod(map(int, s.partition('[')[2][:-1].split(','))) for s in found.shapes]
    assert max(numbers) <= runs * 16 * largest, found
  # As many bytes as the roofline counts; keys, norms and adapters come on top.
  counted = 8 * evaluation.decode_work(one, 16, 64).sent[8]
  assert sum(c.sent for c in program.collectives) == pytest.approx(counted, rel=0.15)


def test_caches_that_grow_are_there_twice(monkeypatch):
  one, program = decoder('full', (1, 8, 1), 1, monkeypatch)
  grown = compiled.decode(one, 16, 64, steps=8, before=32)
  assert grown.peak >= grown.kinds['parameters'] + 1.5 * grown.kinds['cache']
  # However large the program is.
  many = compiled.decode(one, 16, 8192, steps=8, before=4096)
  assert many.peak == many.kinds['parameters'] + 1.5 * many.kinds['cache'] > program.peak


def test_rooflines_of_both_programs():
  one = setting(published.raw_config(LLAMA3), 'h100:8', 'full', length=2048)
  matmul = 8_030_261_248 - 128256 * 4096 - 65 * 4096
  read = evaluation.score_work(one, 64)
  tokens = 64 * 512 / 8
  assert read.flops == tokens * (2 * matmul + 4 * 32 * 4096 * 512)
  assert read.sent == {8: 7 / 8 * 2 * matmul}
  written = evaluation.decode_work(one, 32, 1024)
  assert written.flops == 2 * 4 * matmul
  # Float32 weights where they lie, and keys and values of four texts: 128 KiB a token.
  assert written.moved == 4 * matmul / 8 + 4 * 1024 * 2**17
  sums = 2 * 32 * (4096 + 2 * 1024 + 2 * 14336) + 4 * 128256
  assert written.sent == {8: 7 / 8 * 32 * (2 * sums + 2 * 32 * 4096)}
  # A second node is reached by what is sent, not by what is near.
  two = dataclasses.replace(one, topology=topology.parse('h100:2x8'), mesh=(1, 16, 1))
  assert (
    evaluation.decode_work(two, 32, 1024).sent == {} != evaluation.decode_work(two, 32, 1024).far
  )


def test_hours_are_seconds_times_evaluations():
  one = setting(published.raw_config(LLAMA3), 'h100:8', 'lora', runs=4, length=2048)
  ask, settings = asked.Asked(1e6, 2e6), config('gsm8k')
  each = evaluation.seconds(one, ask, settings)
  alone = evaluation.seconds(dataclasses.replace(one, runs=1), ask, settings)
  work = roofline.bound(evaluation.decode_work(one, 32, 1024), one.topology)
  assert each['decode'] == pytest.approx(2e6 / 32 * work.seconds)
  # Four runs at once read the base once: cheaper than four times, dearer than once.
  assert alone['decode'] < each['decode'] < 4 * alone['decode']
  part = plan.Part(one, cohorts=3, runs=12, steps=100, snapshots=24, bases=1)
  planned = plan.Planned(part, None, {}, roofline.Bound(2.0, 1.0, 0.5), {}, [], {})
  found = hours.hours(planned, settings, ask)
  assert found['train'] == 100 * 2.0 * 8 / 3600 / 0.75
  for kind in ('score', 'decode'):
    assert found[kind] == pytest.approx((6 * each[kind] + alone[kind]) * 8 / 3600 / 0.5)


def test_slots_are_those_of_the_engine():
  one = setting(published.raw_config(LLAMA3), 'v5e:2x4', 'full', length=2048)
  assert evaluation.slots(one, config('gsm8k')) == 32
  assert evaluation.slots(one, config('gsm8k', eval__slots=500)) == 64  # caches of 65,536 tokens
  assert evaluation.slots(one, config('gsm8k', eval__slots=3)) == 8  # chips divide them


def test_the_whole_paper_is_planned(monkeypatch):
  said: list[str] = []
  monkeypatch.setattr(study_run.log, 'say', said.append)
  study = paper.get_config()
  study.plan.topology, study.plan.compile, study.plan.tokens = 'h100:8', 'no', 300
  told = study_run.plan_mode(study, list(paper.sweep()), '')
  chips = told['on_chips']
  assert sum(one['asked']['snapshots'] for one in chips['programs']) == 1070
  bases = collections.Counter()
  for one in chips['programs']:
    bases[one['model']] += one['asked']['bases']
  assert bases == dict.fromkeys(common.MODELS.values(), 1)
  # docs/paper.md has these, and what they stand beside.
  spent = chips['chip_hours']
  assert spent['train'] == pytest.approx(183, abs=1)
  assert spent['score'] + spent['decode'] == pytest.approx(3163, abs=5)
  assert chips['days'] == pytest.approx(sum(spent.values()) / 8 / 24)
  assert round(told['cost']['weight_bytes'] / 1e12, 1) == 6.1
  text = '\n'.join(said)
  assert '530 GPU-hours' in text and '8,350' in text and '80 TB' in text
  assert chips['not_counted'] == [] and 'writes at most 15,726,612' in text


@pytest.mark.parametrize(
  'changes, words',
  [
    ({'plan.attained': -0.1}, '-0.1 is no share'),
    ({'plan.attained': float('nan')}, 'nan is no share'),
    ({'plan.attained': 1.5}, 'at most 1'),
    ({'plan.tokens': 4096}, 'none has more than 2048'),
  ],
)
def test_nonsense_is_refused(changes, words):
  bad = config(
    'gsm8k', model__path=LLAMA3, data__name='lima', data__size=10, train__max_length=2048
  )
  bad.plan.topology, bad.plan.compile = 'h100:8', 'no'
  bad.update_from_flattened_dict(changes)
  with pytest.raises(UserError, match=words):
    study_run.plan_mode(bad, [{}], '')


def test_a_budget_of_seconds_bounds_both():
  one = setting(published.raw_config(LLAMA3), 'h100:8', 'full', length=2048)
  ask = asked.Asked(1e6, 2e6)
  free = evaluation.seconds(one, ask, config('gsm8k'))
  bound = evaluation.seconds(one, ask, config('gsm8k', eval__budget_seconds=10.0))
  # Half of ten seconds of the clock are the roofline's.
  assert sum(bound.values()) == pytest.approx(5.0) and sum(free.values()) > 5
  assert bound['score'] / bound['decode'] == pytest.approx(free['score'] / free['decode'])

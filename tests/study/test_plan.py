"""A study as one object: names, keys, cohorts, what may be added, what is refused."""

import json
import random

import pytest

from sft_jax import spec as spec_lib
from sft_jax.data.sampler import Sampler
from sft_jax.study import plan
from sft_jax.utils.errors import UserError
from tests.study.plans import config, study


def test_runs_are_the_study_with_an_entry_changed():
  made = study([{'lr': 1e-3}, {'data': 'math', 'rank': 4}])
  one, other = made.runs
  assert one.config.train.learning_rate == 1e-3 and one.config.data.name == 'lima'
  assert one.spec == spec_lib.from_config(one.config, 'cpu') and one.config.is_locked
  assert one.differs == {'learning_rate': 1e-3}
  assert other.differs == {'data_name': 'math', 'rank': 4}
  assert made.config.train.learning_rate == 1e-5, 'the study itself is not changed'
  assert [run.name for run in made.runs] == ['model+lima+lora+lr=0.001', 'model+math+lora+rank=4']
  assert plan.pairs_differ(one, other) == ['data_name', 'learning_rate', 'rank']


def test_pairs_of_a_full_and_an_adapter_run():
  full, lora = study(grid='method=full,lora').runs
  assert set(plan.pairs_differ(full, lora)) == {
    *('method', 'rank', 'alpha', 'dropout', 'targets', 'seed_init', 'seed_dropout')
  }
  assert plan.pairs_differ(full, full) == []


def test_keys_are_of_the_factors_alone():
  """Twelve digits that stay: they are names of directories. Only a new factor may change them."""
  (run,) = study(grid='lr=1e-4').runs
  (same,) = study(grid='lr=1e-4', eval__tasks='', cache_dir='x', data__dir='y').runs
  assert run.key == same.key and len(run.key) == 12 and int(run.key, 16) >= 0
  assert run.key != study(grid='lr=1e-3').runs[0].key
  on_chip = plan.expand(config(study__grid='lr=1e-4'), (), 'tpu')
  assert on_chip.runs[0].key != run.key, 'another precision is another run'


def test_a_replicate_is_named_by_its_seed():
  names = [run.name for run in study(grid='method=full,lora;seed=1,2').runs]
  assert names == [f'model+lima+{m}+seed={s}' for m in ('full', 'lora') for s in (1, 2)]
  (run,) = study(grid='train.seeds.init=7').runs
  assert run.name == 'model+lima+lora+seeds.init=7'


def test_names_are_told_apart():
  one, other = study([{'base': 'a/model'}, {'base': 'b/model'}]).runs
  assert one.name == f'model+lima+lora+{one.key}' != other.name
  (named,) = study([{'base': 'a/model', 'model.name': 'Mine 1'}]).runs
  assert named.name == 'Mine-1+lima+lora'


def test_a_snapshot_outside_a_run_of_unknown_length():
  with pytest.raises(UserError, match=r"'0.5,1' .* outside the run of 0.5 epochs .*entry 1"):
    study(grid='epochs=0.5', train__snapshot_at='0.5,1', data__size=0)
  (run,) = study(grid='epochs=1', train__snapshot_at='s9', data__size=0).runs
  with pytest.raises(UserError, match=rf'the run of 1 steps .*run {run.name}'.replace('+', r'\+')):
    run.snapshots(5)


def test_equal_mixtures_are_one_run():
  with pytest.raises(UserError, match='entries 1 and 2 are one run'):
    study([{'data': 'mix:a=0.7,b=0.3'}, {'data': 'mix:b=3,a=7'}])
  made = study([{'data': 'mix:a=0.7,b=0.3'}], data__name='mix:a=7,b=3')
  assert made.runs[0].differs == {}
  (written,) = study([{'data': {'b': 0.3, 'a': 0.7}}]).runs
  assert written.key == study([{'data': 'mix:a=7,b=3'}]).runs[0].key


@pytest.mark.parametrize(
  ('sweep', 'words'),
  [
    ([{'lr': 1e-3}, {'lr': 1e-3}], r'entries 1 and 2 are one run .*entry 2.*drop one'),
    (
      [{'method': m, 'rank': r} for m in ('lora', 'full') for r in (4, 8)],
      r'entries 3 and 4 are one run .*lora.rank changes nothing in a full run',
    ),
    (
      [{'lr': 1e-3, 'train.snapshot_at': s} for s in ('1', '2')],
      'train.snapshot_at is no factor: give it once',
    ),
    ([{'base': ''}], r'no model given \(config.model.path; entry 1: model.path='),
    ([{'lr': 1e-3}, {'path': 'a.jsonl'}], r'exactly one of .*entry 2: data.path=a.jsonl'),
    ([{'method': 'full', 'quantize': 'int8'}], r'cannot be trained itself .*entry 1'),
    ([{'schedule': 'cosin'}], r"'cosin' is no choice \(config.train.schedule; entry 1"),
    ([{'data': {'a': -1}}], r"'a=-1' is no part of a mixture"),
    ([{'data': {}}], r'is no part of a mixture'),
    ([{'data': 'mix:a=x'}], r'is no part of a mixture \(config.data.name; entry 1'),
    ([{'train.snapshot_at': '11'}], r'outside the run of .*snapshot_at; entry 1'),
  ],
)
def test_refused_with_the_entry(sweep, words):
  with pytest.raises(UserError, match=words) as caught:
    study(sweep)
  assert caught.value.how and '\n' not in str(caught.value)


def test_a_check_of_others_is_asked():
  def check(given):
    if given.data.name == 'b':
      raise UserError('unknown data set', 'config.data.name', 'known: a')

  with pytest.raises(UserError, match=r'unknown data set \(config.data.name; entry 2: data.name=b'):
    plan.expand(config(study__grid='data=a,b'), (), 'cpu', check)


def test_steps_are_the_samplers():
  draw = random.Random(0)
  for _ in range(100):
    size, batch, epochs = draw.randint(1, 300), draw.randint(1, 64), draw.choice((0.1, 0.5, 1, 2.7))
    sampler = Sampler(size, batch, epochs)
    (run,) = study(grid=f'size={size};batch={batch};epochs={epochs}', train__snapshot_at='').runs
    assert run.steps() == (sampler.steps_per_epoch, sampler.total_steps)
    assert run.steps(size + 9)[0] == Sampler(size + 9, batch, epochs).steps_per_epoch


def test_snapshots():
  (run,) = study(grid='epochs=3').runs
  assert run.snapshots() == [1, 2, 3]
  (run,) = study(grid='epochs=2', train__snapshot_at='0.5,1', data__size=0).runs
  assert run.snapshots() == [0.5, 1, 2] and run.snapshots(320) == [0.5, 1, 2]
  (run,) = study(grid='epochs=2', train__snapshot_at='s3,s5', data__size=0).runs
  assert len(run.snapshots()) == 3 and run.snapshots(320) == [0.3, 0.5, 2]


def groups(made):
  return [[run.name.partition('+')[2] for run in cohort.runs] for cohort in made.cohorts]


def test_full_runs_are_alone_and_every_run_is_in_one_cohort():
  made = study(grid='base=a/x,b/y;method=full,lora;lr=1e-5,1e-4')
  sizes = [len(cohort.runs) for cohort in made.cohorts]
  assert sizes == [1, 1, 2, 1, 1, 2]
  keys = [run.key for cohort in made.cohorts for run in cohort.runs]
  assert sorted(keys) == sorted(run.key for run in made.runs)
  # Those of one base follow each other: its weights are read once.
  assert [c.runs[0].spec.base for c in made.cohorts] == 3 * ['a/x'] + 3 * ['b/y']
  assert len({cohort.key for cohort in made.cohorts}) == 6


def test_what_shapes_the_program_is_apart():
  made = study(grid="targets='q_proj','k_proj';quantize=none,int8;rank=4,8;seed=1,2")
  assert [len(cohort.runs) for cohort in made.cohorts] == [4, 4, 4, 4]
  for cohort in made.cohorts:
    assert len({(r.spec.targets, r.spec.quantize) for r in cohort.runs}) == 1
    contents = spec_lib.Contents('b', 't', 'm', 'd')
    assert len({spec_lib.cohort_key(run.spec, contents) for run in cohort.runs}) == 1


def test_cohorts_waste_little():
  """Runs of other lengths or batches would be carried along frozen, or padded."""
  made = study(grid='size=100,110,1000;batch=8,32;seed=1,2')
  for cohort in made.cohorts:
    steps = [run.steps()[1] * run.spec.batch_size for run in cohort.runs]
    assert min(steps) >= 0.75 * max(steps)
  assert sorted(len(cohort.runs) for cohort in made.cohorts) == [2, 2, 4, 4]


def test_cohorts_are_of_even_size():
  made = study(grid=f'seed={",".join(map(str, range(20)))}', study__cohort_size=9)
  assert [len(cohort.runs) for cohort in made.cohorts] == [7, 7, 6]
  assert [len(c.runs) for c in plan.cohorts(made.runs, 20)] == [20]


def test_cohorts_of_unknown_and_of_known_sizes():
  made = study(grid='data=a,b,c', data__size=0)
  assert [len(cohort.runs) for cohort in made.cohorts] == [3]
  known = dict(zip((run.key for run in made.runs), (100, 1000, 101), strict=True))
  regrouped = plan.cohorts(made.runs, 16, known)
  assert [len(cohort.runs) for cohort in regrouped] == [2, 1]
  # 313 steps of 10,000 examples, and who knows how many: not taken for equal.
  mixed = study([{'size': 10000, 'epochs': 1}, {'size': 0, 'epochs': 0.313}])
  assert mixed.runs[0].steps()[1] == 313 and len(mixed.cohorts) == 2


def test_a_definition_may_grow_and_nothing_else():
  read = lambda made: json.loads(json.dumps(made.definition()))
  old = read(study(grid='lr=1e-5,1e-4'))
  assert plan.compare_definitions(old, read(study(grid='lr=1e-5,1e-4'))) == []
  assert plan.compare_definitions(old, read(study(grid='lr=1e-5,1e-4,1e-3'))) == []
  # Where it runs, and what is kept, is free.
  free = read(study(grid='lr=1e-4,1e-5', mesh__fsdp=2, checkpoint__keep_weights='all'))
  assert plan.compare_definitions(old, free) == []
  # And so is what other modes are asked.
  asked = read(study(grid='lr=1e-4,1e-5', report__bootstrap=900, probe__each=3))
  assert plan.compare_definitions(old, asked) == []
  (gone,) = plan.compare_definitions(old, read(study(grid='lr=1e-5')))
  assert gone == 'model+lima+lora+lr=0.0001 is gone'
  lines = plan.compare_definitions(old, read(study(grid='lr=1e-5,1e-4', data__size=200)))
  assert lines == [
    f'model+lima+lora{lr} is gone (the nearest new run differs in data_size)'
    for lr in ('', '+lr=0.0001')
  ]
  (tasks,) = plan.compare_definitions(old, read(study(grid='lr=1e-5,1e-4', eval__tasks='builtin')))
  assert tasks == "eval.tasks was 'perplexity', is 'builtin'"
  (when,) = plan.compare_definitions(
    old, read(study([{'lr': 1e-5}, {'lr': 1e-4, 'train.snapshot_at': '5'}]))
  )
  assert when == 'snapshots of model+lima+lora+lr=0.0001 were every:1, are 5'
  (equal,) = plan.compare_definitions(old, read(study(grid='lr=1e-5,1e-4', study__equal='steps')))
  assert equal == "study.equal was 'none', is 'steps'"

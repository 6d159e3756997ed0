"""The configs of the published study against the released table: every cell, both ways."""

import collections
import csv
import importlib
import pathlib

import pytest

from configs.studies import common
from sft_jax.data import datasets
from sft_jax.data.named import STUDY
from sft_jax.evals import benchmarks
from sft_jax.study import plan
from sft_jax.utils import mixture

CONFIGS = pathlib.Path(common.__file__).parent
# config: (runs, snapshots), App. C and D.
COUNTS = {
  'pilot': (576, 5760),
  'grid_1k': (240, 240),
  'all': (24, 240),
  'epochs_constant': (30, 300),
  'size_20k': (27, 270),
  'leave_one_out': (20, 20),
  'paper': (341, 1070),
  'lora_working': (120, 120),
  'demo': (6, 6),
}


def expand(name):
  """Checks data sets and benchmarks too, as a run would."""

  def check(config):
    datasets.parts(config.data.name, config.data.path)
    for task in config.eval.tasks.split(','):
      if task not in ('perplexity', 'builtin'):
        benchmarks.parse(task)

  module = importlib.import_module(f'configs.studies.{name}')
  return plan.expand(module.get_config(), module.sweep(), 'cpu', check)


@pytest.fixture(scope='module')
def paper():
  return expand('paper')


@pytest.mark.parametrize('name', COUNTS)
def test_counts(name):
  study = expand(name)
  assert (len(study.runs), sum(len(run.snapshots()) for run in study.runs)) == COUNTS[name]
  assert plan.compare_definitions(study.definition(), study.definition()) == []


def test_every_config_is_counted():
  found = {path.stem for path in CONFIGS.glob('*.py')} - {'__init__', 'common'}
  assert found == set(COUNTS)


def test_the_names_agree():
  assert common.DATA == STUDY and len(common.MODELS) == 12
  assert set(common.TRAJECTORIES) < set(common.MODELS)


def test_the_printed_hyper_parameters(paper):
  """App. D: full 1e-5 and batch 32, LoRA 2e-6 and batch 128, no weight decay, ten epochs."""
  seen = {
    (s.method, s.learning_rate, s.batch_size, s.weight_decay, s.epochs, s.template)
    for s in (run.spec for run in paper.runs)
  }
  assert seen == {('full', 1e-5, 32, 0.0, 10.0, 'study'), ('lora', 2e-6, 128, 0.0, 10.0, 'study')}


def test_pilot_has_96_conditions_for_each_data_set():
  study = expand('pilot')
  conditions = collections.defaultdict(set)
  for run in study.runs:
    s = run.spec
    conditions[s.data_name].add((s.learning_rate, s.batch_size, s.weight_decay, s.method))
  assert [len(found) for found in conditions.values()] == [96] * 6


def cells(study):
  """{(model, data, LoRA, epoch, size, schedule): run}, in the table's words."""
  out = {}
  for run in study.runs:
    s = run.spec
    for epoch in run.snapshots():
      cell = (
        *(run.config.model.name, mixture.table_name(s.data_name), s.method == 'lora'),
        *(epoch, s.data_size, s.schedule),
      )
      assert cell not in out, 'two runs for one cell'
      out[cell] = run
  return out


@pytest.fixture(scope='module')
def rows(data_dir):
  with open(data_dir / 'bench' / 'massive_sft_evaluation_result.csv', newline='') as file:
    return list(csv.DictReader(file))


def cell_of(row):
  return (
    *(row['model_name'], row['data_name'], row['lora'] == 'true', float(row['epoch'])),
    *(int(float(row['data_size'])), row['lr_strategy']),
  )


def test_the_released_table_cell_for_cell(paper, rows):
  """1,016 trained rows are 1,016 of the 1,070 planned; the 54 others failed as the article says."""
  planned = cells(paper)
  trained = [cell_of(row) for row in rows if row['data_name'] != 'pretrain']
  assert len(planned) == 1070 and len(trained) == len(set(trained)) == 1016
  assert set(trained) <= set(planned)
  missing = set(planned) - set(trained)
  gemma = {c for c in missing if c[0] == 'Gemma2-9B'}
  # Out of memory: Magicoder alone, and every epoch of all data together, both full.
  assert gemma == {
    ('Gemma2-9B', 'magicoder', False, 10.0, 1000, 'cosine'),
    *(('Gemma2-9B', 'all', False, float(epoch), 10000, 'cosine') for epoch in range(1, 11)),
  }
  # Could not be evaluated: 10 data sets and 10 epochs of all, by both methods.
  swallow = {c for c in missing if c[0] == 'Swallow-MS-7b-v0.1'}
  assert swallow == {c for c in planned if c[0] == 'Swallow-MS-7b-v0.1'}
  lima = {(name, 'lima', False, 10.0, 1000, 'constant') for name in common.TRAJECTORIES}
  assert (len(gemma), len(swallow), len(lima)) == (11, 40, 3)
  assert missing == gemma | swallow | lima


def test_the_bases_of_the_released_table(paper, rows):
  """A base is evaluated once, as epoch 0 of every run on it."""
  bases = [row['model_name'] for row in rows if row['data_name'] == 'pretrain']
  planned = {run.config.model.name: run.spec.base for run in paper.runs}
  assert len(bases) == len(set(bases)) == 11 and planned == common.MODELS
  assert set(planned) - set(bases) == {'Swallow-MS-7b-v0.1'}


def test_released_runs_and_their_cohorts(paper, rows):
  """The released rows are 131 LoRA and 186 full runs; the LoRA ones fit into 23 cohorts."""
  planned = cells(paper)
  runs = {
    planned[cell_of(row)].key: planned[cell_of(row)]
    for row in rows
    if row['data_name'] != 'pretrain'
  }
  released = [run for run in paper.runs if run.key in runs]
  methods = collections.Counter(run.spec.method for run in released)
  assert methods == {'lora': 131, 'full': 186}
  cohorts = plan.cohorts(released, plan.AUTO_COHORT)
  lora = [c for c in cohorts if c.runs[0].spec.method == 'lora']
  assert sum(len(c.runs) for c in lora) == 131 and len(lora) <= 23
  for cohort in lora:
    assert len({run.spec.base for run in cohort.runs}) == 1
    steps = [run.steps()[1] for run in cohort.runs]
    assert min(steps) >= 0.75 * max(steps)


def test_the_demo_is_small_and_fair():
  """The rule of equal examples holds, and nothing but the named factors differs."""
  from sft_jax.study import cost

  study = expand('demo')
  assert cost.comparability(study) == 'examples are equal in 6 runs'
  assert [len(c.runs) for c in study.cohorts] == [5, 1]
  first, last = study.runs[4], study.runs[5]
  assert set(plan.pairs_differ(first, last)) == {
    *('method', 'learning_rate', 'rank', 'alpha', 'dropout', 'targets', 'seed_init'),
    'seed_dropout',
  }
  for run in study.runs:
    train, heldout = datasets.load_records(
      run.spec.data_name,
      size=run.spec.data_size,
      seed=run.spec.seed_data,
      heldout_max=run.spec.heldout_max,
    )
    assert len(train) == 48 and len(heldout) >= 12
    # Nobody's disk is filled by states of a run that is over sooner than they are due.
    assert run.steps()[1] <= 6 and run.config.checkpoint.every_seconds >= 3600
    assert not run.config.checkpoint.every_steps

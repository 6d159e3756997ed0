"""What is known of a planned study: counts of its data and models, held against the runs' own."""

import json
import shutil

import pytest

from sft_jax.execution import study_run, study_sizes
from sft_jax.study import cost, plan, plan_text
from sft_jax.utils import hub
from sft_jax.utils.errors import UserError
from tests import tiny


@pytest.fixture
def config(tiny_files):
  changes = {'train__epochs': 1.0, 'log__tensorboard': False, 'checkpoint__every_steps': 0}
  return lambda **more: tiny.config(*tiny_files, **changes, **more).lock()


def known(config, sweep=({},)):
  study = plan.expand(config, [dict(entry) for entry in sweep], 'cpu')
  return study, study_sizes.sizes(study)


def test_counts_are_those_of_the_run(config, tmp_path):
  workdir = tmp_path / 'w'
  study, sizes = known(config())
  with tiny.on_devices():
    study_run.run(config(), [{}], str(workdir))
  (run,) = study.runs
  (rows,) = workdir.glob('runs/*/rows.jsonl')
  row = json.loads(rows.read_text().splitlines()[-1])
  counted = sizes.data[run.key]
  assert (counted.tokens, counted.supervised) == (row['train-tokens'], row['supervised-tokens'])
  assert counted.examples == row['data_size']


def test_another_template_or_size_has_other_counts(config):
  sweep = (
    {},
    {'data.template': 'study'},
    {'data.size': 6, 'train.batch_size': 3},
    {'train.learning_rate': 1.0},
  )
  study, sizes = known(config(), sweep)
  counts = [sizes.data[run.key] for run in study.runs]
  assert counts[0] == counts[3] and len({*counts}) == 3 and counts[2].examples == 6


def test_what_is_not_here_is_left_unknown(config):
  sweep = ({'data.path': '', 'data.name': 'lima', 'data.size': 10}, {'model.path': 'none/such'})
  study, sizes = known(config(), sweep)
  assert not sizes.data and 'none/such' not in sizes.models
  assert sizes.data_licences['lima'].startswith('CC BY-NC-SA')
  unknown = cost.cost(study, sizes).unknown
  assert any('none/such' in line for line in unknown)
  assert any('config.plan.tokens' in line for line in unknown)


@pytest.mark.parametrize(
  'data',
  [
    {'data.path': 'nowhere.jsonl'},
    {'data.path': '', 'data.name': 'mix:lima,nowhere.jsonl'},
  ],
)
def test_a_local_file_is_looked_for_where_the_base_is_elsewhere(config, data):
  with pytest.raises(UserError, match=r'no such file \(nowhere.jsonl; run '):
    known(config(), ({'model.path': 'none/such'} | data,))


def test_what_would_be_downloaded(config, tmp_path, monkeypatch):
  monkeypatch.setattr(hub, 'cache', lambda: tmp_path)
  mistral = 'mistralai/Mistral-7B-v0.1'
  sweep = ({'model.path': mistral}, {'data.path': '', 'data.name': 'lima', 'data.size': 10})
  study, sizes = known(config(), sweep)
  taken = cost.cost(study, sizes)
  assert taken.downloads == (mistral, 'lima')
  assert taken.download_bytes == 2 * 7_241_732_096
  told = [line for line in plan_text.lines(study, sizes) if line.startswith('download')]
  assert told == ['download      1 base, about 14.5 GB in bfloat16, 1 data set (--mode=fetch)']
  place = tmp_path / 'models--mistralai--Mistral-7B-v0.1' / 'snapshots' / 'abc'
  place.mkdir(parents=True)
  (place / 'config.json').touch()
  assert known(config(), sweep)[1].absent == (mistral,), 'a config is no weights'
  (place / 'model.safetensors').touch()
  assert known(config(), sweep)[1].absent == ()


def test_a_published_model_needs_no_file(config):
  changes = {'model.path': 'mistralai/Mistral-7B-v0.1', 'lora.targets': 'q_proj,v_proj'}
  _, sizes = known(config(lora__rank=8), (changes,))
  size = sizes.models['mistralai/Mistral-7B-v0.1']
  assert size.params == 7_241_732_096 and size.licence == 'Apache-2.0'
  # 32 layers of q [4096, 4096] and v [4096, 1024], of rank 1.
  assert size.adapters == {'q_proj,v_proj': 32 * (4096 + 4096 + 4096 + 1024)}
  assert size.matmul == size.params - 32000 * 4096 - 65 * 4096


@pytest.mark.parametrize(
  ('second', 'words'),
  [
    ({'lora.targets': 'w_q'}, 'matches no linear module'),
    ({'lora.rank': 9999}, 'no matrix of the model is of rank 9999'),
    ({'train.layers': '0:99'}, 'no band of layers'),
    ({'train.max_length': 9999}, 'more than the 128 positions'),
    ({'data.size': 9999}, '9999 records are wanted'),
  ],
)
def test_what_no_run_would_take_is_refused_with_its_run(config, tmp_path, second, words):
  """Also of a run whose base another run has in common, and before anything begins."""
  where = 'run llama.*sums'
  with tiny.on_devices(), pytest.raises(UserError, match=rf'{words}.*{where}'):
    study_run.plan_mode(config(), ({}, second), '')
  if 'data.size' not in second:
    with tiny.on_devices(), pytest.raises(UserError, match=rf'{words}.*{where}'):
      study_run.run(config(), ({}, second), str(tmp_path / 'w'))
    assert not (tmp_path / 'w').exists()


def test_a_plan_is_held_to_the_quota(config, tmp_path):
  workdir = str(tmp_path / 'w')
  keep = {'checkpoint__keep_weights': 'all', 'study__quota_gb': 1e-4}
  with tiny.on_devices(), pytest.raises(UserError, match=r'what the runs leave takes .* left'):
    study_run.plan_mode(config(**keep), ({}, {'train.learning_rate': 1.0}), workdir)
  with tiny.on_devices():
    study_run.plan_mode(
      config(checkpoint__keep_weights='none', study__quota_gb=1e-4), ({},), workdir
    )


def test_runs_are_held_to_what_their_data_really_are(config, tmp_path):
  sweep = ({}, {'train.epochs': 2.0})
  with tiny.on_devices(), pytest.raises(UserError, match='supervised are not equal'):
    study_run.run(config(study__equal='supervised'), sweep, str(tmp_path / 'w'))
  assert not (tmp_path / 'w').exists()


def test_the_licence_of_a_base(tiny_files, tmp_path):
  """As its own files say, which need no weights; nothing is fetched for it."""
  assert study_sizes.base_licence('google/gemma-2-2b@main') == 'Gemma terms of use'
  (tmp_path / 'README.md').write_text('---\nlicense: odc-by\n---\n')
  assert study_sizes.base_licence(str(tmp_path)) == 'odc-by'
  assert study_sizes.base_licence(str(tiny_files[0])) == ''
  assert study_sizes.base_licence('wheel:not-here==1.0#sha256=' + 64 * '0', str(tmp_path)) == ''
  assert study_sizes.base_licence('run:anything') == study_sizes.base_licence('') == ''


def test_a_plan_tells_the_licences_of_a_base_and_of_files(config, tiny_files, tmp_path):
  shutil.copytree(tiny_files[0], tmp_path / 'base')
  (tmp_path / 'base' / 'README.md').write_text('---\nlicense: llama3\n---\n')
  shutil.copy(tiny_files[1], tmp_path / 'mine.jsonl')
  (tmp_path / 'mine.md').write_text('---\nlicense: odc-by\n---\n')
  given = {'model.path': str(tmp_path / 'base'), 'data.path': str(tmp_path / 'mine.jsonl')}
  study, sizes = known(config(), [given])
  assert sizes.models[given['model.path']].licence == 'llama3'
  assert sizes.data_licences == {given['data.path']: 'odc-by'}
  assert not any('licence' in line for line in cost.cost(study, sizes).unknown)

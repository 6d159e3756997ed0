"""`--mode=export` of a run by its workdir alone, and of runs of a study."""

import shutil

import pytest

from sft_jax.execution import export_mode
from sft_jax.study.directory import StudyDirectory, StudyRecord
from sft_jax.utils.errors import UserError
from tests import tiny


@pytest.fixture
def study(lora_run, full_run, tmp_path):
  """A study of a LoRA run, a full one, and one that has not begun."""
  names = {'one': 'lora', 'two': 'full', 'three': 'later'}
  record = StudyRecord(names, {key: (key,) for key in names}, {})
  StudyDirectory(tmp_path).open(record, lambda before, given: [])
  for key, run in zip(names, (lora_run, full_run), strict=False):
    shutil.copytree(run, tmp_path / 'runs' / key)
  return tmp_path


def export(workdir, **changes):
  with tiny.on_devices():
    return export_mode.export(tiny.config('', '', **changes), str(workdir))


def test_a_run_is_exported_without_its_settings(study, tiny_files):
  run = study / 'runs' / 'two'
  out = export(run, export__format='hf', export__dtype='float32')['export']
  assert out == str(run / 'export' / 'hf')
  weights = (run / 'export' / 'hf' / 'model.safetensors').read_bytes()
  # With them, it is the same.
  shutil.rmtree(out)
  with tiny.on_devices():
    said = tiny.config(*tiny_files, train__method='full', export__format='hf')
    said.export.dtype = 'float32'
    export_mode.export(said, str(run))
  assert (run / 'export' / 'hf' / 'model.safetensors').read_bytes() == weights
  # And where others are said, it is another run.
  said.train.learning_rate *= 2
  with tiny.on_devices(), pytest.raises(UserError, match='learning_rate'):
    export_mode.export(said, str(run))


def test_runs_of_a_study_are_chosen_by_their_rows(study):
  run_id = tiny.read_jsonl(study / 'runs' / 'one' / 'rows.jsonl')[-1]['run-id']
  done = export(study, export__format='hf', export__only=f'run-id={run_id}')
  assert done['exports'] == [str(study / 'runs' / 'one' / 'export' / 'hf')]
  assert not (study / 'runs' / 'two' / 'export').exists()
  # A plan and a directory have another name of it.
  assert export(study, export__format='hf', export__only='run-id=one') == done
  assert len(export(study, export__format='hf')['exports']) == 2


def test_any_step_whose_weights_are_kept(study):
  kept = sorted(int(p.name) for p in (study / 'runs/two/weights').iterdir() if p.name.isdigit())
  out = export(study / 'runs' / 'two', export__format='hf', export__step=kept[0])['export']
  assert out.endswith(f'hf-{kept[0]}')
  first = (study / out / 'model.safetensors').read_bytes()
  again = export(study / 'runs' / 'two', export__format='hf')['export']
  assert ((study / again / 'model.safetensors').read_bytes() == first) == (len(kept) == 1)
  with pytest.raises(UserError, match=f'no weights of step 999 .* kept are .*{kept[-1]}'):
    export(study / 'runs' / 'two', export__format='hf', export__step=999)


@pytest.mark.parametrize(
  'where, changes, words',
  [
    ('.', {}, 'no format given .config.export.format'),
    ('.', {'only': 'colour=red'}, "no column 'colour' .* .config.export.only"),
    ('.', {'only': 'lora'}, 'is no COLUMN=VALUE .config.export.only'),
    ('.', {'only': 'run-id=x'}, r'has these values .* its runs are \w+ \(in runs/one\), '),
    ('runs/three', {}, 'no run has begun here'),
    ('nowhere', {}, 'no run has begun here'),
  ],
)
def test_bad_input(study, where, changes, words):
  given = {f'export__{key}': value for key, value in changes.items()}
  if changes:
    given['export__format'] = 'hf'
  with pytest.raises(UserError, match=words):
    export(study / where, **given)
  assert not (study / 'nowhere').exists()

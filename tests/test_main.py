"""Whole runs from a tiny model and a small file: what they leave, how they end, how they go on."""

import json
import logging
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sft_jax import config_file, main, results
from sft_jax import spec as spec_lib
from sft_jax.evals import core
from sft_jax.execution import runner, summary
from sft_jax.execution.workdir import Workdir
from sft_jax.models import decoder
from sft_jax.train import loop
from sft_jax.train.checkpoint import Checkpoints
from sft_jax.utils import lease, trees
from sft_jax.utils.errors import Interrupted
from tests import tiny
from tests.conftest import REPOSITORY

METHODS = ('lora', 'full')


@pytest.fixture(params=METHODS)
def finished(request):
  """(method, workdir) of a finished run; not to be written into."""
  return request.param, request.getfixturevalue(f'{request.param}_run')


def opened(config, workdir):
  """(job, base, last weights, subject) of a finished run."""
  with tiny.on_devices():
    job = runner.Run(config, str(workdir), loop.StopSignal())
  checkpoints = job.checkpoints()
  step = checkpoints.weights_steps()[-1]
  weights = checkpoints.restore_weights(step, job.program.abstract_weights())
  checkpoints.close()
  base = job.program.load_base(jnp.float32) if job.program.is_lora else None
  return job, base, weights, job.program.subject(base, weights)


def logits(subject, tokens):
  positions = np.broadcast_to(np.arange(tokens.shape[1]), tokens.shape)
  hidden = decoder.forward(
    subject.model.cfg,
    subject.params['base'],
    tokens,
    positions,
    np.ones_like(tokens),
    adapter=subject.params['adapter'],
    lora_scale=subject.params['scale'],
    dtype=jnp.float32,
  )
  return np.asarray(hidden @ decoder.head_kernel(subject.params['base']))


def settings(method, files, **changes):
  """The config of the run that `finished` gives."""
  own = {'eval__samples': 2, 'export__format': 'peft'} if method == 'lora' else {}
  return tiny.config(*files, **{'train__method': method, **own, **changes})


def snapshot_of(workdir):
  """{path: bytes} of all files."""
  return {p: p.read_bytes() for p in workdir.rglob('*') if p.is_file()}


def test_rows(finished, tiny_files):
  method, workdir = finished
  rows = tiny.read_jsonl(workdir / 'rows.jsonl')
  assert [(row['step'], row['epoch']) for row in rows] == list(tiny.SNAPSHOTS.items())
  base, *trained = rows
  assert (base['data_name'], base['lora'], base['data_size']) == ('pretrain', None, 0)
  assert base['model_name'] == tiny_files[0].name and base['train-data'] == 'sums'
  for row in trained:
    assert (row['data_name'], row['lora'], row['data_size']) == ('sums', method == 'lora', 32)
    assert row['learning-rate'] == 0.01 and row['batch-size'] == 8
    assert ('lora-rank' in row) == (method == 'lora')
  assert [row['train-tokens'] for row in rows] == sorted({row['train-tokens'] for row in rows})
  for row in rows:
    released = [column in results.RELEASED_COLUMNS for column in row]
    assert released == sorted(released, reverse=True), 'released columns come first'
    order = [column for column in results.RELEASED_COLUMNS if column in row]
    assert list(row)[: len(order)] == order
    assert row['ppl-train'] == base['ppl-train'] and row['run-id'] == base['run-id']
    clock = [column for column in row if re.search('seconds|time|date|per-s|host', column)]
    assert not clock, 'a resumed run could not write the same'
  best = [row['ppl-heldout-response'] for row in rows]
  assert best[-1] < best[0] / 5, 'nothing was learnt'


def test_metrics_layers_audit_and_samples(finished):
  method, workdir = finished
  metrics = tiny.read_jsonl(workdir / 'metrics.jsonl')
  steps = [line for line in metrics if 'loss' in line]
  assert [line['step'] for line in steps] == list(range(1, tiny.STEPS + 1))
  wanted = {'loss', 'learning-rate', 'grad-norm', 'tokens', 'supervised', 'updates-lost'}
  assert all(wanted <= line.keys() for line in steps)
  assert any('tokens-per-s' in line for line in steps)
  assert {line['step'] for line in metrics if 'eval/ppl-heldout' in line} == {2, 4, 8}
  assert list(workdir.glob('events.out.tfevents.*')), 'TensorBoard'
  rows = tiny.read_jsonl(workdir / 'rows.jsonl')
  for row in rows:
    seen = [line for line in steps if line['step'] <= row['step']]
    assert row['train-tokens'] == sum(line['tokens'] for line in seen)
    assert row['supervised-tokens'] == sum(line['supervised'] for line in seen)

  layers = tiny.read_jsonl(workdir / 'layers.jsonl')
  assert [line['step'] for line in layers] == [2, 4, 8]
  norms = np.array([line['modules']['all']['norm'] for line in layers])
  assert norms.shape == (3, 3) and (np.diff(norms, axis=0) > 0).all(), 'layers move on'

  audit = json.loads((workdir / 'audit.json').read_text())
  trained = rows[-1]['data_size']
  assert (audit['read'], audit['kept'], audit['dropped']) == (trained, trained, {})
  assert audit['heldout'] == len(tiny.records()) - trained == rows[-1]['heldout-n']
  assert audit['tokens'] * 2 == rows[-1]['train-tokens'], 'two epochs'
  samples = sorted(path.name for path in (workdir / 'samples').glob('*'))
  wanted = [f'samples-{step}.jsonl' for step in (0, 2, 4, 8)] if method == 'lora' else []
  assert samples == wanted
  for name in samples:
    assert [set(s) for s in tiny.read_jsonl(workdir / 'samples' / name)] == [
      {'prompt', 'reference', 'answer'}
    ] * 2

  config = json.loads((workdir / 'config.json').read_text())
  assert config['run-id'] == rows[0]['run-id'] and config['config']['train']['method'] == method
  assert config['provenance']['versions']['jax'] == jax.__version__


def test_weights_kept_are_the_best_and_the_last(finished):
  _, workdir = finished
  scores = {
    row['step']: row['ppl-heldout-response'] for row in tiny.read_jsonl(workdir / 'rows.jsonl')[1:]
  }
  kept = {int(path.name) for path in (workdir / 'weights').iterdir() if path.name.isdigit()}
  assert kept == {tiny.STEPS, min(scores, key=scores.get)}


def test_exports_open_in_transformers_and_peft(finished, tiny_files, tmp_path):
  torch = pytest.importorskip('torch')
  transformers = pytest.importorskip('transformers')
  method, workdir = finished
  copy = shutil.copytree(workdir, tmp_path / 'run')
  config = settings(method, tiny_files, export__format='hf')
  with tiny.on_devices():
    out = runner.export(config, str(copy))
  assert out == str(copy / 'export' / 'hf')
  _, _, _, subject = opened(config, copy)
  tokens = np.random.default_rng(0).integers(0, subject.model.vocab_size, (2, 24)).astype(np.int32)
  ours = logits(subject, tokens)
  there = torch.tensor(tokens).long()
  model = transformers.AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32).eval()
  with torch.no_grad():
    np.testing.assert_allclose(ours, model(there).logits.numpy(), atol=1e-4)
  tokenizer = transformers.AutoTokenizer.from_pretrained(out)
  text = tokenizer.apply_chat_template(
    [{'role': 'user', 'content': 'hi'}], tokenize=False, add_generation_prompt=True
  )
  assert text == '<|user|>hi<|end|><|assistant|>'
  assert tokenizer.convert_tokens_to_ids('<|end|>') in model.generation_config.eos_token_id
  if method == 'lora':
    module = pytest.importorskip('peft')
    plain = transformers.AutoModelForCausalLM.from_pretrained(tiny_files[0], dtype=torch.float32)
    with torch.no_grad():
      before = plain(there).logits.numpy()
      wrapped = module.PeftModel.from_pretrained(plain, copy / 'export' / 'peft').eval()
      np.testing.assert_allclose(ours, wrapped(there).logits.numpy(), atol=1e-4)
    assert np.abs(before - ours).max() > 0.1, 'the adapter does something'


@pytest.fixture
def said(caplog):
  """Collects what a run says; its text is `said()`."""
  logger = logging.getLogger('sft_jax')
  logger.addHandler(caplog.handler)
  with caplog.at_level('INFO', logger='sft_jax'):
    yield lambda: '\n'.join(dict.fromkeys(record.getMessage() for record in caplog.records))
  logger.removeHandler(caplog.handler)


def test_starting_again_does_nothing_and_says_so(finished, tiny_files, tmp_path, said):
  method, workdir = finished
  copy = shutil.copytree(workdir, tmp_path / 'run')
  before = snapshot_of(copy)
  rows = tiny.run(copy, settings(method, tiny_files))
  assert 'already done, nothing to do' in said() and snapshot_of(copy) == before
  assert rows == tiny.read_jsonl(workdir / 'rows.jsonl')
  table = next(line for line in said().splitlines() if 'ppl-heldout-response' in line)
  first, last = (row['ppl-heldout-response'] for row in (rows[0], rows[-1]))
  assert f'{first:.2f}' in table and f'{last:.2f}' in table and f'{last - first:+.2f}' in table
  if method == 'lora':
    answer = tiny.read_jsonl(workdir / 'samples' / 'samples-8.jsonl')[0]
    assert answer['prompt'] in said() and ' | after' in said()
  # What is not there is not told of, and nobody is advised to do what was just done.
  told = next(line for line in said().splitlines() if line.startswith('All of it'))
  assert all((copy / name.strip(' .')).exists() for name in told.partition(': ')[2].split(','))
  assert ('samples/' in told) == (method == 'lora') and 'rows.jsonl' in told
  assert 'train on your own file' not in said()
  assert f'tensorboard --logdir {copy}' in said()
  for events in copy.glob('events.*'):
    events.unlink()
  assert f'talk to both: python -m sft_jax.main --mode=chat --workdir={copy}' in said()
  about = {'workdir': str(copy), 'format': 'none', 'method': method, 'base': '', 'data': 'a.jsonl'}
  told = '\n'.join(summary.lines(Workdir(str(copy)), [], about | {'weights': 'none'}))
  assert 'tensorboard' not in told and '--mode=chat' not in told


def test_export_needs_a_format_and_kept_weights(full_run, tiny_files, tmp_path):
  cases = (({}, full_run, 'no format given'), ({'export__format': 'hf'}, tmp_path / 'no', 'run it'))
  for changes, workdir, message in cases:
    config = settings('full', tiny_files, **changes)
    with tiny.on_devices(), pytest.raises(main.UserError, match=message):
      runner.export(config, str(workdir))
  assert not (tmp_path / 'no').exists()


def test_a_finished_run_is_exported_when_asked(full_run, tiny_files, tmp_path, said):
  copy = shutil.copytree(full_run, tmp_path / 'run')
  before = snapshot_of(copy)
  config = settings('full', tiny_files, export__format='hf')
  assert tiny.run(copy, config) == tiny.read_jsonl(full_run / 'rows.jsonl')
  assert f'exported step {tiny.STEPS} to {copy}/export/hf' in said()
  assert (copy / 'export' / 'hf' / 'model.safetensors').exists()
  assert {p: raw for p, raw in snapshot_of(copy).items() if 'export' not in p.parts} == before
  assert 'already done' not in said()
  tiny.run(copy, config)
  assert 'already done' in said()
  shutil.rmtree(copy / 'weights')
  shutil.rmtree(copy / 'export')
  with pytest.raises(main.UserError, match='no weights are kept here') as e:
    tiny.run(copy, config)
  assert 'config.checkpoint.keep_weights' in e.value.how


def test_a_finished_run_keeps_no_training_state(finished):
  _, workdir = finished
  assert list((workdir / 'checkpoints').iterdir()) == []


def test_without_a_finite_score_the_last_is_exported_and_that_is_said(
  full_run, tiny_files, tmp_path, said, monkeypatch
):
  copy = shutil.copytree(full_run, tmp_path / 'run')
  monkeypatch.setattr(Checkpoints, 'best_step', lambda self: None)
  config = settings('full', tiny_files, export__format='hf', export__snapshot='best')
  with tiny.on_devices():
    runner.export(config, str(copy))
  assert f'no snapshot that is kept has a finite perplexity: the last, step {tiny.STEPS}' in said()


@pytest.mark.parametrize(
  ('base', 'data', 'wanted'),
  [
    ('org/name@v1', 'hf:org/data:config@train', {'datasets': ['org/data']}),
    ('wheel:x==1', 'my.jsonl', {'datasets': []}),
  ],
)
def test_card(base, data, wanted, full_run, tiny_files):
  """What names something on the hub does so only where it is from there."""
  config = settings('full', tiny_files, model__path=base)
  spec = spec_lib.from_config(config, 'cpu')
  rows = tiny.read_jsonl(full_run / 'rows.jsonl')
  card = summary.card('base', 'data', data, rows, spec, tiny.STEPS)
  assert card['datasets'] == wanted['datasets'] and card['data'] == 'data'
  assert card['ppl-heldout'] == rows[-1]['ppl-heldout'] and card['steps'] == tiny.STEPS
  assert not {'base_model', 'library_name'} & card.keys(), 'the writer of the export knows these'


def test_best_snapshot_is_exported(tiny_files, tmp_path):
  """A learning rate that ruins the model late: the best is an earlier one, and is kept."""
  config = settings(
    'full',
    tiny_files,
    train__learning_rate=10.0,
    train__schedule='linear',
    train__warmup_ratio=1.0,
    train__snapshot_at='s1,s5',
    eval__train_limit=0,
    export__snapshot='best',
    export__format='hf',
  )
  rows = tiny.run(tmp_path, config)
  assert [row['step'] for row in rows] == [0, 1, 5, 8]
  scores = {row['step']: row['ppl-heldout-response'] for row in rows[1:]}
  assert scores[8] is None, 'so far beyond use that its perplexity has no number'
  best = min(scores, key=lambda step: scores[step] or math.inf)
  assert best != 8, 'the test must tell best from last'
  assert {p.name for p in (tmp_path / 'weights').iterdir() if p.name.isdigit()} == {str(best), '8'}
  card = (tmp_path / 'export' / 'hf' / 'README.md').read_text()
  assert re.search(rf'steps \| {best}\b', card)


def test_a_band_of_layers(tiny_files, tmp_path):
  """Everything outside the band stays as it was, bit for bit."""
  config = settings(
    'full', tiny_files, train__layers='1:2', train__weight_decay=0.1, eval__train_limit=0
  )
  rows = tiny.run(tmp_path, config)
  assert rows[-1]['ppl-heldout'] < rows[0]['ppl-heldout']
  job, _, weights, _ = opened(config, tmp_path)
  base = trees.flatten(job.program.load_base(jnp.float32))
  for path, leaf in trees.flatten(weights).items():
    before, after = np.asarray(base[path]), np.asarray(leaf)
    if path.startswith('layers/'):
      assert (before[1] != after[1]).any(), path
      before, after = (np.delete(x, 1, axis=0) for x in (before, after))
    np.testing.assert_array_equal(before, after, err_msg=path)
  norms = tiny.read_jsonl(tmp_path / 'layers.jsonl')[-1]['modules']['all']['norm']
  assert norms[1] > 0 and norms[0] == norms[2] == 0


@pytest.mark.parametrize(
  ('changes', 'learns'),
  [
    # A fraction of an epoch, all of it warm-up, which begins at 0; no whole epoch to snapshot at.
    ({'train__epochs': 0.25, 'train__snapshot_at': 'every:1', 'train__warmup_ratio': 1.0}, False),
    # A step of more examples than there are.
    ({'data__size': 8, 'train__batch_size': 16, 'train__epochs': 1.0}, True),
  ],
)
def test_a_run_of_one_step(changes, learns, tiny_files, tmp_path):
  common = {'train__warmup_ratio': 0.0, 'train__snapshot_at': 's1', 'eval__train_limit': 0}
  rows = tiny.run(tmp_path, settings('full', tiny_files, **common | changes))
  assert [row['step'] for row in rows] == [0, 1]
  assert (rows[1]['ppl-heldout'] < rows[0]['ppl-heldout']) == learns
  assert rows[1]['ppl-heldout'] <= rows[0]['ppl-heldout']


def test_time_limit_then_the_same_end(full_run, tiny_files, tmp_path):
  """Stopped before the base is evaluated and again while training, it ends as if never stopped."""
  with pytest.raises(Interrupted, match='time limit'):
    tiny.run(tmp_path / 'w', settings('full', tiny_files, max_seconds=1e-3))
  assert not (tmp_path / 'w' / 'rows.jsonl').exists()
  tiny.run(tmp_path / 'w', settings('full', tiny_files))
  for name in ('rows.jsonl', 'layers.jsonl'):
    assert (tmp_path / 'w' / name).read_bytes() == (full_run / name).read_bytes()


def test_a_time_limit_shorter_than_the_start_still_ends(tiny_files, tmp_path, monkeypatch):
  """Each life makes progress: an evaluation task or a step; and no task is done twice."""
  own = {'train__epochs': 1.0, 'train__snapshot_at': '0.5', 'eval__tasks': 'perplexity,builtin'}
  config = settings('full', tiny_files, **own, eval__limit=4, eval__max_new_tokens=1)
  tiny.run(tmp_path / 'whole', config)
  config.max_seconds = 1e-6
  done = []
  evaluate = core.evaluate
  monkeypatch.setattr(core, 'evaluate', lambda *args: done.append(args) or evaluate(*args))
  lives = 1
  while lives < 30:
    try:
      tiny.run(tmp_path / 'w', config)
      break
    except Interrupted as e:
      assert 'time limit' in str(e)
      lives += 1
  assert (tmp_path / 'w' / 'done.json').exists() and lives > 5
  assert len(done) == 3 + 2 + 2, 'tasks of the base, of step 2 and of step 4'
  for name in ('rows.jsonl', 'layers.jsonl'):
    assert (tmp_path / 'w' / name).read_bytes() == (tmp_path / 'whole' / name).read_bytes()


def test_two_processes_in_one_workdir(tiny_files, full_run, tmp_path, monkeypatch):
  """The second is refused while the first lives; exporting beside it changes nothing else."""
  workdir = tmp_path / 'w'
  config = settings('full', tiny_files, max_seconds=1e-6)
  with pytest.raises(Interrupted):
    tiny.run(workdir, config)
  busy = f'process {os.getpid()}, is at work here'
  with lease.Lease(workdir / 'lease.json'):
    before = snapshot_of(workdir)
    # Before its data are read, and after that where it came in between.
    for name, stub in ((runner, 'Run'), None), ((lease, 'refuse_if_held'), lambda path: None):
      with monkeypatch.context() as changed, pytest.raises(main.UserError, match=busy):
        changed.setattr(*name, stub)
        tiny.run(workdir, config)
    assert snapshot_of(workdir) == before
  copy = shutil.copytree(full_run, tmp_path / 'copy')
  (copy / 'done.json').unlink()
  for kind in ('checkpoints', 'weights'):
    (copy / kind / '9.orbax-checkpoint-tmp-1').mkdir()
    (copy / kind / '9.orbax-checkpoint-tmp-1' / 'half').touch()
  with lease.Lease(copy / 'lease.json'), tiny.on_devices():
    before = snapshot_of(copy)
    runner.export(settings('full', tiny_files, export__format='hf'), str(copy))
    after = {p: raw for p, raw in snapshot_of(copy).items() if 'export' not in p.parts}
    assert after == before


def test_an_unreadable_table(full_run, tiny_files, tmp_path):
  copy = shutil.copytree(full_run, tmp_path / 'run')
  for name in ('rows.jsonl', 'config.json'):
    (copy / name).unlink()
    (copy / name).mkdir()
    with pytest.raises(main.UserError, match=f'cannot be read: Is a directory .*{name}'):
      tiny.run(copy, settings('full', tiny_files))


def test_eight_devices(full_run, tiny_files, tmp_path):
  """Eight devices, sharded: the same table to float order."""
  if jax.device_count() < 8:
    pytest.skip('needs 8 devices')
  config = settings('full', tiny_files, mesh__fsdp=4, mesh__tensor=2, train__rows_per_micro=4)
  rows = tiny.run(tmp_path / 'w', config, devices=0)
  for row, want in zip(rows, tiny.read_jsonl(full_run / 'rows.jsonl'), strict=True):
    assert row.keys() == want.keys()
    for column, value in want.items():
      if isinstance(value, float):
        # Perplexity after 8 steps at 1e-2 multiplies what float order changes.
        assert row[column] == pytest.approx(value, rel=2e-3, abs=1e-6), column
      else:
        assert row[column] == value, column


def command(workdir, *flags):
  return [sys.executable, '-m', 'sft_jax.main', f'--workdir={workdir}', *flags]


def environment():
  """One device, as on a laptop."""
  flags = re.sub(r'--xla_force_host_platform_device_count=\d+', '', os.environ['XLA_FLAGS'])
  return {**os.environ, 'XLA_FLAGS': flags, 'PYTHONWARNINGS': ''}


def test_sigterm_exits_3_and_the_same_command_ends_alike(full_run, tiny_files, tmp_path):
  """The real thing: a process, flags, a signal in mid-training, the same command again."""
  config = settings('full', tiny_files)
  args = command(tmp_path / 'w', '--config=configs/base.py', *tiny.flags(config))
  pipes = {'stdout': subprocess.PIPE, 'stderr': subprocess.PIPE, 'text': True}
  with subprocess.Popen(args, cwd=REPOSITORY, env=environment(), **pipes) as process:
    deadline = time.monotonic() + 300
    metrics = tmp_path / 'w' / 'metrics.jsonl'
    while process.poll() is None and not (metrics.exists() and metrics.stat().st_size):
      assert time.monotonic() < deadline
      time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    said, errors = process.communicate(timeout=300)
  assert process.returncode == 3, errors
  last = errors.strip().splitlines()[-1]
  assert re.match(r'stopped by SIGTERM, .*start again', last), errors
  assert 'Traceback' not in errors and not (tmp_path / 'w' / 'done.json').exists()

  again = subprocess.run(args, cwd=REPOSITORY, env=environment(), timeout=300, **pipes)
  assert again.returncode == 0, again.stderr
  assert 'resuming after step' in again.stdout + again.stderr
  assert re.search(r'ppl-heldout-response +\d', again.stdout), again.stdout
  # This process, which made the other run, has eight devices and so more threads, by which XLA
  # divides some sums of an evaluation; `test_resume.py` compares equals, bit for bit.
  rows, undisturbed = (tiny.read_jsonl(d / 'rows.jsonl') for d in (tmp_path / 'w', full_run))
  near = lambda x: pytest.approx(x, rel=1e-6) if isinstance(x, float) else x
  assert rows == [{name: near(x) for name, x in row.items()} for row in undisturbed]
  assert (tmp_path / 'w' / 'layers.jsonl').read_bytes() == (full_run / 'layers.jsonl').read_bytes()
  assert said.count('\n') < 30 and 'WARNING' not in again.stderr, 'quiet logs'


def write_config(path, *lines):
  body = ''.join(f'  {line}\n' for line in ('config = base.get_config()', *lines, 'return config'))
  path.write_text(f'from configs import base\n\n\ndef get_config():\n{body}')
  return path


@pytest.mark.parametrize(
  ('line', 'what', 'how'),
  [
    (
      'config.train.learnin_rate = 1e-4',
      'learnin_rate',
      'did you mean config.train.learning_rate?',
    ),
    ('config.trian.epochs = 1', 'config.trian.epochs', 'did you mean config.train.epochs?'),
    ("config['train']['epohcs'] = 1", 'epohcs', 'did you mean config.train.epochs?'),
    ("config.train.epochs = 'many'", "field 'epochs'", ''),
    ('config.train.epochs = epochs', "name 'epochs' is not defined", ''),
    ('import nothing_there', "No module named 'nothing_there'", ''),
    ('config.train.epochs = = 1', 'invalid syntax', ''),
    ('1 / 0', 'ZeroDivisionError', ''),
  ],
)
def test_what_is_wrong_in_a_config_file_is_told_with_its_line(line, what, how, tmp_path):
  path = write_config(tmp_path / 'mine.py', line)
  with pytest.raises(main.UserError) as e:
    config_file.load_config(str(path))
  assert what in e.value.what and how in e.value.how and e.value.where == f'{path}:6'
  assert e.value.how and '\n' not in str(e.value)


@pytest.mark.parametrize(
  ('line', 'what'),
  [
    ('config.train.epochs = None', 'config.train.epochs is None'),
    ('config.train = None', 'config.train is None'),
    ('config.train.batch_size = True', 'config.train.batch_size is True'),
    ('config.unlock(); config.train.lr = 1.0', 'unknown config key config.train.lr'),
    ('config.unlock(); del config.train.epochs', 'config.train.epochs is missing'),
    ('return', 'config is None'),
  ],
)
def test_values_of_no_use_are_refused_by_key(line, what, tmp_path):
  path = write_config(tmp_path / 'mine.py', line)
  with pytest.raises(main.UserError, match=what):
    config_file.check_values(config_file.load_config(str(path)), str(path))


@pytest.mark.parametrize('name', ['base', 'sft', 'quickstart'])
def test_our_configs_are_locked_and_whole(name):
  config = config_file.load_config(f'configs/{name}.py')
  config_file.check_values(config, name)
  with pytest.raises(AttributeError, match='learning_rate'):
    config.train.learnin_rate = 1.0


def test_a_bad_config_file_exits_2_in_one_line(tmp_path):
  path = write_config(tmp_path / 'mine.py', 'config.train.learnin_rate = 1e-4')
  done = subprocess.run(
    command(tmp_path / 'w', f'--config={path}'), cwd=REPOSITORY, env=environment(),
    capture_output=True, text=True, timeout=100,
  )  # fmt: skip
  assert done.returncode == 2 and not done.stdout
  assert re.fullmatch(rf'error: unknown config key .* \({path}:6\) — did .*\n', done.stderr)


def test_a_change_without_a_config_says_what_is_missing(tmp_path):
  args = [sys.executable, '-m', 'sft_jax.main', '--mode=export', f'--workdir={tmp_path}']
  done = subprocess.run(
    [*args, '--config.export.format=hf'], cwd=REPOSITORY, env=environment(),
    capture_output=True, text=True, timeout=100,
  )  # fmt: skip
  what = r'--config.export.format changes a config, and none is given'
  assert done.returncode == 2 and re.fullmatch(rf'error: {what} .* add --config=.*\n', done.stderr)


def test_flags_may_stand_in_any_order_and_a_plan_names_the_command():
  code = (
    'import sys; from sft_jax import main; rest = main.parse_flags(sys.argv)\n'
    'print(main._CONFIG.value.train.epochs, main._MODE.value, len(rest), main._command(sys.argv))'
  )
  given = ['--config.train.epochs=7', '--mode=plan', '--config', 'configs/base.py']
  given += ['--config.plan.search', '2', '--config.plan.topology=h100:1', '--config.data.name=a b']
  done = subprocess.run(
    [sys.executable, '-c', code, *given], cwd=REPOSITORY, env=environment(), capture_output=True,
    text=True, timeout=100,
  )  # fmt: skip
  kept = ['--config', 'configs/base.py', '--config.train.epochs=7', '--config.data.name=a b']
  command = ['python', '-m', 'sft_jax.main', *kept, '--workdir=WORKDIR']
  assert done.stdout == f'7.0 plan 1 {command}\n', done.stderr


@pytest.mark.parametrize(
  ('flags', 'what', 'how'),
  [
    (['--config', 'sft.py'], '2 configs (--config=configs/base.py --config=sft.py)', 'give one'),
    (['--config.train.learnin_rate=1'], 'train.learnin_rate', '--config.train.learning_rate'),
    (['--config.trian.epochs=1'], 'trian', '--config.train.epochs'),
    (['--config.train.epochs=many'], 'many', ''),
    (['--wokdir=x'], '--wokdir', '--workdir'),
    (['--mode=fly'], 'fly', 'run'),
    (['stray'], 'stray', '--name=value'),
  ],
)
def test_bad_flags_exit_2_in_one_line(flags, what, how, tmp_path):
  args = command(tmp_path / 'w', '--config=configs/base.py', *flags)
  done = subprocess.run(
    args, cwd=REPOSITORY, env=environment(), capture_output=True, text=True, timeout=100
  )
  assert done.returncode == 2, done.stderr
  lines = done.stderr.strip().splitlines()
  assert len(lines) == 1 and lines[0].startswith('error: '), done.stderr
  assert what in lines[0] and how in lines[0]
  assert not done.stdout and not (tmp_path / 'w').exists()

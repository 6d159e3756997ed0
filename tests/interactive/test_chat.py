"""Conversations: who answers, what is remembered, and how they end."""

import io
import json
import signal
import subprocess
import sys

import pytest

import sft_jax
from configs import base
from sft_jax.interactive import chat
from sft_jax.interactive.ask import Model
from sft_jax.utils import log
from sft_jax.utils.errors import UserError
from tests import tiny


@pytest.fixture(autouse=True)
def one_device():
  with tiny.on_devices():
    yield


def settings(**changes):
  """Short answers; in names '__' stands for a dot."""
  given = {'chat.max_new_tokens': 8, 'mesh.allow_idle': True}
  changes = {key.replace('__', '.'): value for key, value in changes.items()}
  return sft_jax.get_config('base', given | changes)


def talk(monkeypatch, lines, config, workdir=''):
  """What `chat` returns for lines of a pipe."""
  log.setup_logging()
  pipe = iter([f'{line}\n' for line in lines])
  monkeypatch.setattr(sys, 'stdin', Pipe(pipe))
  return chat.chat(config, workdir)


class Pipe:
  """A standard input that is no terminal."""

  def __init__(self, lines):
    self._lines = lines

  def isatty(self):
    return False

  def readline(self):
    return next(self._lines, '')


def test_a_run_answers_beside_its_base(lora_run, monkeypatch, capsys):
  asked = 'how much is 3 and 4?'
  done = talk(monkeypatch, [asked, '', '/reset', asked], settings(), str(lora_run))
  run = sft_jax.open_run(str(lora_run))
  names = [run.base.name, run.model.name]
  assert done['models'] == names and names[1] == f'{lora_run.name}@{tiny.STEPS}'
  first, again = done['rounds']
  assert first == again, '/reset forgets'
  wanted = {
    m.name: m.generate([{'role': 'user', 'content': asked}], max_new_tokens=8)[0]
    for m in (run.base, run.model)
  }
  assert first['answers'] == wanted and len(set(wanted.values())) == 2
  out = capsys.readouterr().out
  assert f'{names[1]}> {wanted[names[1]]}' in out and 'template chat' in out and 'you>' not in out


def test_each_model_remembers_what_it_said(tiny_files, monkeypatch):
  heard = []

  def generate(self, prompts, **how):
    heard.append(([m['content'] for m in prompts[0]], how['seed'], how['temperature']))
    return [f'answer {len(heard)}']

  monkeypatch.setattr(Model, 'generate', generate)
  config = settings(model__path=str(tiny_files[0]), chat__system='be brief', chat__temperature=0.5)
  talk(monkeypatch, ['one', 'two'], config)
  assert heard == [(['be brief', 'one'], 1, 0.5), (['be brief', 'one', 'answer 1', 'two'], 3, 0.5)]


def test_what_is_too_long_is_forgotten_from_its_beginning(tiny_files, monkeypatch, capsys):
  """The model has 128 positions."""
  config = settings(model__path=str(tiny_files[0]), chat__max_new_tokens=16)
  long = 'how much is one and two and three?'
  done = talk(monkeypatch, [long, long, 'word ' * 200, long], config)
  assert [r['user'] for r in done['rounds']] == [long] * 3, 'what was never answered is no round'
  out = capsys.readouterr().out
  assert 'without the oldest questions and their answers' in out and 'positions' in out


def two(tiny_files, monkeypatch, generate):
  """The config of two models of one name, whose `generate` gets its number among all calls."""
  calls = []

  def counted(self, prompts, **how):
    calls.append([m['content'] for m in prompts[0]])
    return [generate(len(calls), calls[-1])]

  monkeypatch.setattr(Model, 'generate', counted)
  path = str(tiny_files[0])
  return settings(model__path=path, chat__beside=path), calls


def test_two_of_one_name_are_told_apart(tiny_files, monkeypatch, capsys):
  config, _ = two(tiny_files, monkeypatch, lambda number, heard: f'answer {number}')
  done = talk(monkeypatch, ['one'], config)
  name = tiny_files[0].name
  assert done['models'] == [name, f'{name} (2)']
  assert done['rounds'][0]['answers'] == {name: 'answer 1', f'{name} (2)': 'answer 2'}
  assert f'{name} (2)> answer 2' in capsys.readouterr().out


def test_what_not_all_answer_is_remembered_by_none(tiny_files, monkeypatch):
  def generate(number, heard):
    if number == 4:
      raise KeyboardInterrupt
    return f'answer {number}'

  config, calls = two(tiny_files, monkeypatch, generate)
  done = talk(monkeypatch, ['one', 'two', 'three'], config)
  assert [r['user'] for r in done['rounds']] == ['one', 'three']
  assert calls[4:] == [['one', 'answer 1', 'three'], ['one', 'answer 2', 'three']]


def test_what_can_never_fit_forgets_nothing(tiny_files, monkeypatch, capsys):
  def generate(number, heard):
    if heard[-1] == 'long':
      raise UserError('too many tokens')
    return f'answer {number}'

  config, calls = two(tiny_files, monkeypatch, generate)
  done = talk(monkeypatch, ['one', 'long', 'two'], config)
  assert [r['user'] for r in done['rounds']] == ['one', 'two']
  assert calls[-2:] == [['one', 'answer 1', 'two'], ['one', 'answer 2', 'two']]
  out = capsys.readouterr().out
  assert '(too many tokens)' in out and 'oldest' not in out


def test_answers_move_no_cursor(tiny_files, monkeypatch, capsys):
  config, _ = two(tiny_files, monkeypatch, lambda number, heard: 'a\x1b[2J\x07\r\nb')
  done = talk(monkeypatch, ['one'], config)
  assert {*done['rounds'][0]['answers'].values()} == {'a\x1b[2J\x07\r\nb'}
  assert '> a␛[2J␇␍\nb\n' in capsys.readouterr().out


@pytest.mark.parametrize('errors', ['strict', 'surrogateescape'])
def test_lines_that_are_no_text_are_read_all_the_same(errors, tiny_files, monkeypatch):
  raw = io.BytesIO(b'caf\xe9 x\nnext\n')
  monkeypatch.setattr(sys, 'stdin', io.TextIOWrapper(raw, 'utf-8', errors))
  done = chat.chat(settings(model__path=str(tiny_files[0])))
  assert [r['user'] for r in done['rounds']] == ['caf\ufffd x', 'next']


@pytest.mark.parametrize(
  'changes, workdir, message',
  [
    ({}, '', 'nobody to talk to.*--workdir'),
    ({'chat__beside': 'base', 'model__path': 'LLAMA'}, '', 'has no base'),
    ({'chat__template': 'other', 'model__path': 'LLAMA'}, '', "'other' is no choice"),
    ({}, '/nowhere', 'no run has begun here'),
  ],
)
def test_bad_requests(tiny_files, monkeypatch, changes, workdir, message):
  changes = {key: str(tiny_files[0]) if v == 'LLAMA' else v for key, v in changes.items()}
  with pytest.raises(UserError, match=message):
    talk(monkeypatch, [], settings(**changes), workdir)


def test_the_command_ends_well_on_ctrl_c_and_at_the_end_of_input(tiny_files):
  command = [
    *(sys.executable, '-m', 'sft_jax.main', '--mode=chat', '--json'),
    *(f'--config.model.path={tiny_files[0]}', '--config.chat.max_new_tokens=4'),
    *('--config.mesh.allow_idle=True', '--config.mesh.data=-1', '--config.mesh.fsdp=1'),
  ]
  pipes = {'stdin': subprocess.PIPE, 'stdout': subprocess.PIPE, 'stderr': subprocess.PIPE}
  with subprocess.Popen(command, text=True, **pipes) as process:
    assert process.stdout
    next(line for line in process.stdout if line.startswith('/reset'))
    process.send_signal(signal.SIGINT)
    out, err = process.communicate()
  assert process.returncode == 0, err
  assert json.loads(out.splitlines()[-1])['rounds'] == []


def test_without_a_standard_input_nobody_asks(tiny_files, monkeypatch):
  monkeypatch.setattr(sys, 'stdin', None)
  assert chat.chat(settings(model__path=str(tiny_files[0])))['rounds'] == []


def test_keys_are_declared():
  assert set(base.get_config().chat) == {
    *('beside', 'template', 'system', 'max_new_tokens', 'temperature', 'seed')
  }

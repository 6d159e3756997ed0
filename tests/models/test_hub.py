"""A run's model from the hub: opened, from the cache where there is no hub, whole or not at all."""

import pytest

from sft_jax.models import hf_dir, hub, source
from sft_jax.utils import hub as hub_lib
from sft_jax.utils import log
from sft_jax.utils.errors import UserError
from tests.hub_server import HubServer


@pytest.fixture
def server(tiny_llama_dir, tmp_path, monkeypatch):
  """A hub with the model org/tiny; this process's huggingface_hub asks it, with an empty cache."""
  from huggingface_hub import constants

  with HubServer() as running:
    running.add('model', 'org/tiny', {p.name: p.read_bytes() for p in tiny_llama_dir.iterdir()})
    monkeypatch.setattr(constants, 'ENDPOINT', running.url)
    monkeypatch.setattr(constants, 'HF_HUB_CACHE', str(tmp_path / 'hub'))
    monkeypatch.setattr(constants, 'HF_HUB_OFFLINE', False)
    monkeypatch.setattr(hub_lib, 'FIRST_WAIT_S', 0.01)
    monkeypatch.setenv('NO_PROXY', '127.0.0.1,localhost')
    yield running


def test_opened_through_the_front_door(server):
  ckpt = source.resolve('org/tiny')
  assert (ckpt.name, len(ckpt.tensors), len(ckpt.tokenizer())) == ('org/tiny', 30, 300)
  assert source.resolve(f'org/tiny@{server.commit_of("model", "org/tiny", "main")}')


def test_further_chat_templates_come_along(server, tiny_llama_dir):
  """And no other directory does."""
  files = {p.name: p.read_bytes() for p in tiny_llama_dir.iterdir()}
  inner = f'{hf_dir.TEMPLATES}/tool_use.jinja'
  stray = ('other/rag.jinja', f'{hf_dir.TEMPLATES}/more/x.jinja', f'{hf_dir.TEMPLATES}/x.py')
  server.add('model', 'org/many', {**files, inner: b'T', **dict.fromkeys(stray, b'')})
  ckpt = source.resolve('org/many')
  assert ckpt.tokenizer().chat_template['tool_use'] == 'T'
  assert ckpt.tokenizer_files()[-1].as_posix().endswith(inner)
  assert not [name for name in stray if server.gets(name.rpartition('/')[2])]


@pytest.mark.parametrize('failure', ['down', 'gone', 'offline'])
def test_without_the_hub_the_cache_serves(failure, server, monkeypatch):
  from huggingface_hub import constants

  directory = hub.fetch('org/tiny')
  warned = []
  monkeypatch.setattr(log, 'warn', warned.append)
  server.forget()
  if failure == 'down':
    server.answers['org/tiny'] = server.answers['org/other'] = (503, {})
  elif failure == 'gone':
    monkeypatch.setattr(constants, 'ENDPOINT', 'http://127.0.0.1:9')
  else:
    monkeypatch.setattr(constants, 'HF_HUB_OFFLINE', True)
  assert hub.fetch('org/tiny') == directory
  assert len(server.requests) == (failure == 'down'), 'no run waits for what it does not need'
  assert [directory.name[:12] in line for line in warned] == [True] * (failure != 'offline')
  told = {'down': 'answers 503', 'gone': 'cannot reach', 'offline': 'not in the local cache'}
  with pytest.raises(UserError, match=told[failure]):
    hub.fetch('org/other')


def test_a_revision_that_is_gone_is_not_served_from_the_cache(server):
  hub.fetch('org/tiny')
  reference = hub_lib.cache() / 'models--org--tiny' / 'refs'
  (reference / 'v1').write_text((reference / 'main').read_text())
  with pytest.raises(UserError, match='no such revision'):
    hub.fetch('org/tiny@v1')


def test_a_cache_that_is_only_read(server):
  """Everything is there: nothing is written."""
  directory = hub.fetch('org/tiny')
  places = [p for p in hub_lib.cache().rglob('*') if p.is_dir()]
  before = {p: p.stat().st_mtime_ns for p in places}
  assert hub.fetch('org/tiny') == directory
  assert {p: p.stat().st_mtime_ns for p in places} == before

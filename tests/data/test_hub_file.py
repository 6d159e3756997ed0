"""One file of a hub data set, against a hub on this machine."""

import json

import pytest

from sft_jax.data import datasets, hub_sets, readers
from sft_jax.utils import hub, hub_download
from sft_jax.utils.errors import UserError
from tests.hub_server import HubServer

FILE = 'flan2021_zsnoopt_submix_data.json'
ROWS = [
  {'inputs': f'question {i}', 'targets': answer, '_task_name': task}
  for i, (task, answer) in enumerate(
    [
      ('bool_q:1.0.0', 'yes'),
      ('bool_q:1.0.0', ' None '),
      ('trivia_qa/rc:1.1.0', 'Mercury'),
      ('piqa:1.0.0', 'none'),
      ('quac:1.0.0', 'none'),
      ('squad/v2.0:3.0.0', 'on hills'),
      ('wmt16_translate/de-en:1.0.0', 'Tee'),
    ]
  )
]


@pytest.fixture
def server(tmp_path, monkeypatch):
  """A hub with a small file of FLAN's shape; this process asks it, with an empty cache."""
  from huggingface_hub import constants

  with HubServer() as running:
    files = {FILE: json.dumps(ROWS).encode(), 'other.json': b'[]', 'README.md': b''}
    monkeypatch.setattr(constants, 'ENDPOINT', running.url)
    monkeypatch.setattr(constants, 'HF_HUB_CACHE', str(tmp_path / 'hub'))
    monkeypatch.setattr(constants, 'HF_HUB_OFFLINE', False)
    monkeypatch.setattr(hub, 'FIRST_WAIT_S', 0.01)
    monkeypatch.setenv('NO_PROXY', '127.0.0.1,localhost')
    monkeypatch.delenv('HF_TOKEN', raising=False)
    running.commit = running.add('dataset', 'Open-Orca/FLAN', files)
    yield running


@pytest.mark.parametrize(
  ('path', 'parts'),
  [
    ('hf:org/name/a.json', ('org/name', 'a.json')),
    ('hf:org/na.me/dir/a.jsonl.gz', ('org/na.me', 'dir/a.jsonl.gz')),
    ('hf:org/name', ('', '')),
    ('hf:org/name:config@split', ('', '')),
    ('hf:/folder/name/a.json', ('', '')),
    ('tfds:org/name/a.json', ('', '')),
  ],
)
def test_which_paths_are_files(path, parts):
  assert hub_sets.file_of(path) == parts


def test_only_that_file_comes_and_once(server, monkeypatch):
  path = f'hf:Open-Orca/FLAN/{FILE}'
  found = hub_sets.look_up(path, server.commit)
  assert [f.name for f in found.snapshot.files] == [FILE] and not found.copy_bytes
  for _ in range(2):
    assert [record for _, record in readers.read_raw(path, revision=server.commit)] == ROWS
  assert server.gets(FILE) == 1 and not server.gets('other.json')
  from huggingface_hub import constants

  monkeypatch.setattr(constants, 'HF_HUB_OFFLINE', True)
  assert len(list(readers.read_raw(path, revision=server.commit))) == len(ROWS)
  with pytest.raises(UserError, match='use --mode=fetch'):
    list(readers.read_raw(path, revision='0' * 40))


def test_a_file_that_is_not_there(server):
  with pytest.raises(UserError, match=rf"no file 'x.json'.*there are: {FILE}, other.json"):
    list(readers.read_raw('hf:Open-Orca/FLAN/x.json'))


def test_the_three_parts_of_flan(server, monkeypatch):
  """By task, and without the answers 'none' where the study drops them."""
  for name, expected in (
    ('flan_knowledge', ['yes', 'Mercury']),
    ('flan_reasoning', ['none']),
    ('flan_comprehension', ['on hills']),
  ):
    records, heldout = datasets.load_records(name, heldout_share=0, revision=server.commit)
    assert [r.messages[1]['content'] for r in records] == expected and not heldout


def test_fetch_brings_a_shared_file_once(server, tiny_files, monkeypatch):
  from sft_jax import fetch
  from tests import tiny

  row = {'revision': server.commit}
  for name in ('flan_knowledge', 'flan_reasoning'):
    monkeypatch.setitem(datasets.DATASETS, name, datasets.DATASETS[name] | row)
  changes = {'data__path': '', 'data__name': 'mix:flan_knowledge,flan_reasoning'}
  config = tiny.config(*tiny_files, **changes)
  assert [(n.what, n.revision) for n in fetch.needs(config)][1:] == [('data', server.commit)]
  calls = []
  original = hub_download.download
  monkeypatch.setattr(hub_download, 'download', lambda s: calls.append(s) or original(s))
  fetch.fetch(config)
  assert server.gets(FILE) == 1 and [s.repo for s in calls[0]] == ['Open-Orca/FLAN']

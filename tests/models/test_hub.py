"""The hub: the real client against a small local server; failures in plain words."""

import hashlib
import http.server
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

SHA = 'a' * 40
# Resolves each argument and prints what came of it, one line each.
CLIENT = """
import sys
from sft_jax.models import source
from sft_jax.utils.errors import UserError
for path in sys.argv[1:]:
  try:
    ckpt = source.resolve(path)
    print('opened', ckpt.name, ckpt.hub_id, len(ckpt.tensors), len(ckpt.tokenizer()))
  except UserError as e:
    print(e)
"""


def server(files):
  """A hub with one repository, org/tiny; other names answer as their name says."""
  answers = {
    'gated': (403, {'X-Error-Code': 'GatedRepo'}),
    'missing': (404, {'X-Error-Code': 'RepoNotFound'}),
    'private': (401, {}),
    'busy': (429, {}),
    'down': (503, {}),
  }

  class Hub(http.server.BaseHTTPRequestHandler):
    requested: list = []  # noqa: RUF012

    def answer(self):
      path = self.path.partition('?')[0]
      self.requested.append(path)
      for name, (status, headers) in answers.items():
        if f'org/{name}' in path:
          return self.reply(status, b'', headers)
      if '/revision/nope' in path:
        return self.reply(404, b'', {'X-Error-Code': 'RevisionNotFound'})
      if path.startswith('/api/models/org/tiny/revision/') or path == '/api/models/org/tiny':
        siblings = [{'rfilename': name} for name in files]
        return self.reply(200, json.dumps({'id': 'org/tiny', 'sha': SHA, 'siblings': siblings}))
      if path.startswith('/api/models/org/tiny/tree/'):
        rows = [
          {'type': 'file', 'path': name, 'size': len(data), 'oid': hashlib.sha1(data).hexdigest()}
          for name, data in files.items()
        ]
        return self.reply(200, json.dumps(rows))
      name = path.rpartition('/')[2]
      if '/resolve/' in path and name in files:
        etag = f'"{hashlib.sha1(files[name]).hexdigest()}"'
        return self.reply(200, files[name], {'ETag': etag, 'X-Repo-Commit': SHA})
      return self.reply(404, b'', {'X-Error-Code': 'EntryNotFound'})

    def reply(self, status, body, headers=()):
      body = body.encode() if isinstance(body, str) else body
      self.send_response(status)
      for key, value in dict(headers).items():
        self.send_header(key, value)
      self.send_header('Content-Length', str(len(body)))
      self.end_headers()
      if self.command == 'GET':
        self.wfile.write(body)

    do_GET = do_HEAD = answer

    def log_message(self, *_):
      pass

  return http.server.ThreadingHTTPServer(('127.0.0.1', 0), Hub), Hub


def client(endpoint, home, *paths, **environment):
  done = subprocess.run(
    [sys.executable, '-c', CLIENT, *paths],
    env={
      **os.environ,
      'HF_ENDPOINT': endpoint,
      'HF_HOME': str(home),
      'HF_HUB_OFFLINE': '0',
      'HF_HUB_DISABLE_XET': '1',
      'NO_PROXY': '127.0.0.1',
      **environment,
    },
    capture_output=True,
    text=True,
    timeout=120,
  )
  assert done.returncode == 0, done.stderr
  return done.stdout.splitlines()


@pytest.fixture
def hub(tiny_llama_dir):
  files = {p.name: p.read_bytes() for p in Path(tiny_llama_dir).iterdir()}
  files['pytorch_model.bin'] = b'a pickle'
  http_server, handler = server(files)
  threading.Thread(target=http_server.serve_forever, daemon=True).start()
  yield f'http://127.0.0.1:{http_server.server_address[1]}', handler
  http_server.shutdown()
  http_server.server_close()


def test_fetch_and_failures(hub, tmp_path):
  endpoint, handler = hub
  refused = ('gated', 'missing', 'private', 'busy', 'down')
  opened, *answers = client(
    endpoint, tmp_path, 'org/tiny', *(f'org/{name}' for name in refused), 'org/tiny@nope'
  )
  assert opened == 'opened org/tiny org/tiny 30 300'
  assert not any('pytorch_model.bin' in path for path in handler.requested), 'no pickle is fetched'
  for answer, words in zip(
    answers,
    (
      ('the model is gated', f'accept its licence at {endpoint}/org/gated', 'HF_TOKEN'),
      ('no such repository', '(org/missing)'),
      ('wants a login', 'HF_TOKEN'),
      ('too many requests', 'wait'),
      ('the hub answers 503', 'try again later'),
      ('no such revision', '(org/tiny@nope)'),
    ),
    strict=True,
  ):
    assert all(word in answer for word in words), answer


def test_offline(hub, tmp_path):
  endpoint, _ = hub
  client(endpoint, tmp_path, 'org/tiny')
  nowhere = 'http://127.0.0.1:9'
  cached, other = client(nowhere, tmp_path, 'org/tiny', 'org/other')
  assert cached.startswith('opened'), 'from the cache, without the hub'
  assert 'cannot be reached and the model is not in the local cache' in other
  (told,) = client(nowhere, tmp_path, 'org/other', HF_HUB_OFFLINE='1')
  assert 'HF_HUB_OFFLINE is set' in told

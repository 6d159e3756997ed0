"""A Hugging Face hub on this machine's loopback: answers `huggingface_hub`, and fails on request.

`with HubServer() as hub:` serves `hub.url`, which goes into HF_ENDPOINT. Repositories are dicts of
files; switches are plain attributes; every request is kept in `hub.requests`.
"""

import hashlib
import http.server
import json
import re
import threading
import time
import urllib.parse

# Files of these kinds are served as the hub serves LFS files: by SHA-256, from another host.
LFS = ('.safetensors', '.parquet', '.bin', '.pth')


def git_oid(data: bytes) -> str:
  """The id git gives to a file's contents."""
  return hashlib.sha1(b'blob %d\0' % len(data) + data).hexdigest()


class HubServer:
  """A hub; see the module.

  Attributes:
    answers: {repository: (status, headers)} in place of any answer about it.
    file_answers: {file name: (status, headers)} in place of the file.
    private: {repository: token} that alone shows there is one.
    moved: {old repository: new}; asked for the old one, the hub redirects.
    flaky: {file name: how many requests are answered 503 before the file is served}.
    cut: {file name: bytes of one answer after which the connection is closed}.
    stuck: {file name: byte of the file at which every connection is closed}.
    damaged: Names of files that arrive with one byte changed.
    endless: Names of files that arrive without a length and go on for 100 MB.
    endless_bytes: How much of that was sent.
    silent: Names of files, or repositories, about which nothing is answered for `pause` seconds.
    ignores_ranges: Always send whole files.
    delay: Seconds before each 16 KiB of a file.
    requests: [(method, path, headers)] of all requests.
  """

  def __init__(self) -> None:
    self.repos: dict[tuple[str, str], dict[str, bytes]] = {}
    self.answers: dict[str, tuple[int, dict[str, str]]] = {}
    self.file_answers: dict[str, tuple[int, dict[str, str]]] = {}
    self.private: dict[str, str] = {}
    self.moved: dict[str, str] = {}
    self.flaky: dict[str, int] = {}
    self.cut: dict[str, int] = {}
    self.stuck: dict[str, int] = {}
    self.damaged: set[str] = set()
    self.endless: set[str] = set()
    self.endless_bytes = 0
    self.silent: set[str] = set()
    self.pause = 5.0
    self.ignores_ranges = False
    self.delay = 0.0
    self.requests: list[tuple[str, str, dict[str, str]]] = []
    self._commits: dict[tuple[str, str], dict[str, dict[str, bytes]]] = {}

  def __enter__(self) -> 'HubServer':
    handler = type('Handler', (_Handler,), {'hub': self})
    self._server = _Server(('127.0.0.1', 0), handler)
    self.port = self._server.server_address[1]
    self.url = f'http://127.0.0.1:{self.port}'
    threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
    return self

  def __exit__(self, *_) -> None:
    self._server.shutdown()
    self._server.server_close()

  def add(self, kind: str, name: str, files: dict[str, bytes]) -> str:
    """Commits `files` as the main branch of a repository; returns the commit."""
    text = json.dumps({path: git_oid(data) for path, data in sorted(files.items())})
    commit = hashlib.sha1(f'{kind} {name} {text}'.encode()).hexdigest()
    commits = self._commits.setdefault((kind, name), {})
    commits[commit] = commits['main'] = dict(files)
    self.repos[kind, name] = commits['main']
    return commit

  def commit_of(self, kind: str, name: str, revision: str) -> str | None:
    """The commit of a branch or commit; None when there is none."""
    commits = self._commits[kind, name]
    wanted = commits.get(revision)
    return next((c for c, f in commits.items() if f is wanted and c != 'main'), None)

  def files(self, kind: str, name: str, commit: str) -> dict[str, bytes]:
    return self._commits[kind, name][commit]

  def gets(self, name: str) -> int:
    """How often the contents of a file were asked for."""
    # A redirect to the other host is the same request going on.
    return sum(
      method == 'GET' and '/resolve/' in path and path.endswith(f'/{name}')
      for method, path, _ in self.requests
    )

  def forget(self) -> None:
    self.requests.clear()


class _Server(http.server.ThreadingHTTPServer):
  daemon_threads = True
  request_queue_size = 64

  def handle_error(self, request, client_address):
    """Clients that go away are part of the tests."""


class _Handler(http.server.BaseHTTPRequestHandler):
  hub: HubServer
  protocol_version = 'HTTP/1.1'

  def do_GET(self):
    self._answer()

  def do_HEAD(self):
    self._answer()

  def do_POST(self):
    self._body = self.rfile.read(int(self.headers.get('Content-Length') or 0))
    self._answer()

  def log_message(self, *_):
    pass

  def _answer(self):
    hub = self.hub
    path = urllib.parse.unquote(self.path.partition('?')[0])
    hub.requests.append((self.command, path, dict(self.headers)))
    if path.startswith('/cdn/'):
      return self._contents(path.rpartition('/')[2])
    match = re.fullmatch(
      r'/(?:api/(?P<api>models|datasets)/|(?P<plain>datasets/)?)'
      r'(?P<name>[^/]+/[^/]+)(?P<rest>/.*)?',
      path,
    )
    if match is None:
      return self._reply(404)
    kind = 'dataset' if match['api'] == 'datasets' or match['plain'] else 'model'
    name, rest = match['name'], match['rest'] or ''
    if name in hub.silent:
      time.sleep(hub.pause)
    if name in hub.answers:
      return self._reply(*hub.answers[name])
    if name in hub.moved:
      there = self.path.replace(name, hub.moved[name])
      return self._reply(307, {'Location': there})
    token = hub.private.get(name)
    if token and self.headers.get('Authorization') != f'Bearer {token}':
      return self._reply(401, {'X-Error-Code': 'RepoNotFound'})
    if (kind, name) not in hub.repos:
      return self._reply(404, {'X-Error-Code': 'RepoNotFound'})
    verb, _, rest = rest.removeprefix('/').partition('/')
    revision, _, file = rest.partition('/')
    commit = hub.commit_of(kind, name, revision or 'main')
    if commit is None:
      return self._reply(404, {'X-Error-Code': 'RevisionNotFound'})
    if verb == 'resolve':
      return self._file(kind, name, commit, file)
    files = hub.files(kind, name, commit)
    if verb == 'tree':
      return self._json(self._tree(files, file))
    if verb == 'paths-info':
      paths = urllib.parse.parse_qs(self._body.decode())['paths']
      return self._json([row for row in self._tree(files, '', True) if row['path'] in paths])
    siblings = [{'rfilename': path, **_facts(path, data)} for path, data in files.items()]
    return self._json({'id': name, 'sha': commit, 'siblings': siblings})

  def _tree(self, files, below, recursive=None):
    if recursive is None:
      recursive = 'recursive=true' in self.path.lower()
    rows, folders = [], set()
    for path, data in files.items():
      if below and not path.startswith(f'{below}/'):
        continue
      inner = path.removeprefix(f'{below}/') if below else path
      if '/' in inner:
        folders.add(f'{below}/{inner.split("/")[0]}'.removeprefix('/'))
      if '/' not in inner or recursive:
        facts = _facts(path, data)
        row = {'type': 'file', 'path': path, 'size': len(data), 'oid': facts['blobId']}
        if 'lfs' in facts:
          lfs = facts['lfs']
          row['lfs'] = {'oid': lfs['sha256'], 'size': lfs['size'], 'pointerSize': 134}
        rows.append(row)
    return rows + [{'type': 'directory', 'path': path, 'oid': '0' * 40} for path in folders]

  def _file(self, kind, name, commit, file):
    hub = self.hub
    if file in hub.silent:
      time.sleep(hub.pause)
    if file in hub.file_answers:
      return self._reply(*hub.file_answers[file])
    data = hub.files(kind, name, commit).get(file)
    if data is None:
      return self._reply(404, {'X-Error-Code': 'EntryNotFound', 'X-Repo-Commit': commit})
    if hub.flaky.get(file, 0) > 0:
      hub.flaky[file] -= 1
      return self._reply(503)
    if not file.endswith(LFS):
      return self._send(file, data, {'ETag': f'"{git_oid(data)}"', 'X-Repo-Commit': commit})
    sha = hashlib.sha256(data).hexdigest()
    headers = {'X-Linked-Size': str(len(data)), 'X-Linked-Etag': f'"{sha}"', 'ETag': '"redirect"'}
    # Another host, as far as a client can tell.
    headers['Location'] = f'http://localhost:{hub.port}/cdn/{file.replace("/", "%2F")}@{sha}'
    return self._reply(302, headers | {'X-Repo-Commit': commit})

  def _contents(self, key):
    file, _, sha = key.rpartition('@')
    for files in self.hub.repos.values():
      for path, data in files.items():
        if path.endswith(file) and hashlib.sha256(data).hexdigest() == sha:
          return self._send(path, data, {'ETag': f'"{sha}"'})
    return self._reply(404)

  def _send(self, file, data, headers):
    hub = self.hub
    if file in hub.damaged:
      data = bytes([data[0] ^ 1]) + data[1:]
    size, start, status = len(data), 0, 200
    span = re.fullmatch(r'bytes=(\d+)-', self.headers.get('Range') or '')
    if span and not hub.ignores_ranges:
      start, status = int(span[1]), 206
      if start >= size:
        return self._reply(416, {'Content-Range': f'bytes */{size}'})
      headers['Content-Range'] = f'bytes {start}-{size - 1}/{size}'
    self.send_response(status)
    for key, value in headers.items():
      self.send_header(key, value)
    if file in hub.endless:
      self.close_connection = True
      self.send_header('Connection', 'close')
      self.end_headers()
      while hub.endless_bytes < 100_000_000:
        hub.endless_bytes += self.wfile.write(bytes(65536))
      return None
    self.send_header('Content-Length', str(size - start))
    self.end_headers()
    if self.command != 'GET':
      return None
    end = min(size, start + hub.cut.get(file, size), hub.stuck.get(file, size))
    for at in range(start, end, 16384):
      if hub.delay:
        time.sleep(hub.delay)
      self.wfile.write(data[at : min(at + 16384, end)])
    if end < size:
      self.close_connection = True
    return None

  def _json(self, value):
    self._reply(200, {'Content-Type': 'application/json'}, json.dumps(value).encode())

  def _reply(self, status, headers=None, body=b''):
    self.send_response(status)
    for key, value in (headers or {}).items():
      self.send_header(key, value)
    self.send_header('Content-Length', str(len(body)))
    self.end_headers()
    if self.command != 'HEAD':
      self.wfile.write(body)


def _facts(path: str, data: bytes) -> dict:
  facts: dict = {'size': len(data), 'blobId': git_oid(data)}
  if path.endswith(LFS):
    sha = hashlib.sha256(data).hexdigest()
    facts['lfs'] = {'sha256': sha, 'size': len(data), 'pointerSize': 134}
  return facts

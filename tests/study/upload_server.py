"""A hub on this machine's loopback that takes uploads as huggingface_hub sends them.

`with UploadServer() as hub:` serves `hub.url`. Small files come inside the commit, others through
large-file storage, which refuses contents of another SHA-256 than announced.
"""

import base64
import hashlib
import http.server
import json
import threading


class UploadServer:
  """A hub; see the module.

  Attributes:
    token: The one that may write.
    files: {repository: {path: contents}} that were committed.
    seen: [(method, path, Authorization)] of all requests.
  """

  def __init__(self, token: str):
    self.token = token
    self.files: dict[str, dict[str, bytes]] = {}
    self.stored: dict[str, bytes] = {}
    self.seen: list[tuple[str, str, str]] = []

  def __enter__(self) -> 'UploadServer':
    handler = type('Handler', (_Handler,), {'hub': self})
    self._server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), handler)
    self.url = f'http://127.0.0.1:{self._server.server_address[1]}'
    threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
    return self

  def __exit__(self, *_) -> None:
    self._server.shutdown()
    self._server.server_close()


class _Handler(http.server.BaseHTTPRequestHandler):
  hub: UploadServer
  protocol_version = 'HTTP/1.1'

  def log_message(self, *_):
    pass

  def do_PUT(self):
    body = self._body()
    oid = self.path.rpartition('/')[2]
    good = hashlib.sha256(body).hexdigest() == oid
    if good:
      self.hub.stored[oid] = body
    self._reply(200 if good else 400, {})

  def do_POST(self):
    hub, body, path = self.hub, self._body(), self.path.partition('?')[0]
    if path == '/api/validate-yaml':
      return self._reply(200, {'errors': [], 'warnings': []})
    if self.headers.get('Authorization') != f'Bearer {hub.token}':
      return self._reply(401, {'error': 'who are you?'})
    if path == '/api/repos/create':
      asked = json.loads(body)
      name = f'{asked["organization"]}/{asked["name"]}'
      hub.files.setdefault(name, {})
      return self._reply(200, {'url': f'{hub.url}/{name}', 'id': name, 'name': name})
    if path.endswith('/objects/batch'):
      objects = [
        {**o, 'actions': {'upload': {'href': f'{hub.url}/store/{o["oid"]}'}}}
        for o in json.loads(body)['objects']
      ]
      return self._reply(200, {'transfer': 'basic', 'objects': objects})
    name = '/'.join(path.split('/')[3:5])
    if '/preupload/' in path:
      files = [
        {
          'path': file['path'],
          'uploadMode': 'lfs' if file['size'] > 2000 else 'regular',
          'shouldIgnore': False,
        }
        for file in json.loads(body)['files']
      ]
      return self._reply(200, {'files': files})
    if '/commit/' in path:
      for line in body.splitlines():
        entry = json.loads(line)
        value = entry['value']
        if entry['key'] == 'file':
          hub.files[name][value['path']] = base64.b64decode(value['content'])
        elif entry['key'] == 'lfsFile':
          hub.files[name][value['path']] = hub.stored[value['oid']]
      oid = 'c' * 40
      url = f'{hub.url}/{name}/commit/{oid}'
      return self._reply(200, {'success': True, 'commitOid': oid, 'commitUrl': url})
    return self._reply(404, {})

  def do_GET(self):
    self._body()
    self._reply(404, {})

  def _body(self) -> bytes:
    self.hub.seen.append((self.command, self.path, self.headers.get('Authorization') or ''))
    if self.headers.get('Transfer-Encoding') == 'chunked':
      out = b''
      while size := int(self.rfile.readline(), 16):
        out += self.rfile.read(size)
        self.rfile.readline()
      self.rfile.readline()
      return out
    return self.rfile.read(int(self.headers.get('Content-Length') or 0))

  def _reply(self, status, value):
    data = json.dumps(value).encode()
    self.send_response(status)
    self.send_header('Content-Type', 'application/json')
    self.send_header('Content-Length', str(len(data)))
    self.end_headers()
    self.wfile.write(data)

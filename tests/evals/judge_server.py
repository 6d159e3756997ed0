"""A chat-completions endpoint on this machine's loopback that answers by rule, and misbehaves.

`with JudgeServer() as server:` serves `server.url`. Switches are plain attributes; every request is
kept in `server.requests` as (body, headers).
"""

import http.server
import json
import threading
import time

HTML = '<html><body>Bad gateway</body></html>'


def rating(body: dict) -> str:
  """A rating of 1 to 10 from the length of what is asked."""
  return f'Fair enough. Rating: [[{len(body["messages"][-1]["content"]) % 10 + 1}]]'


class JudgeServer:
  """An endpoint; see the module.

  Attributes:
    rule: Request body to the text of the answer.
    top: Request body to [(token, log-probability)], or None to tell none.
    troubles: What befalls the next requests, one each, in place of an answer; see `_Handler`.
    always: What befalls all others.
    usage: Tokens that each answer claims to have used; None to claim nothing.
    retry_after: What that header says with '429'.
    pause: Seconds of 'slow'.
    drop_s: Seconds between the bytes of 'drip'.
    delay: Seconds before any answer.
    most: Most requests that were under way at once.
  """

  def __init__(self, rule=rating):
    self.rule, self.top = rule, None
    self.troubles: list[str] = []
    self.always = ''
    self.usage: int | None = None
    self.retry_after = '0'
    self.pause, self.drop_s, self.delay = 1.0, 0.3, 0.0
    self.requests: list[tuple[dict, dict[str, str]]] = []
    self.most = self.now = 0
    self.lock = threading.Lock()

  def __enter__(self) -> 'JudgeServer':
    handler = type('Handler', (_Handler,), {'judge': self})
    self._server = _Server(('127.0.0.1', 0), handler)
    self.url = f'http://127.0.0.1:{self._server.server_address[1]}/v1'
    threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
    return self

  def __exit__(self, *_) -> None:
    self._server.shutdown()
    self._server.server_close()


class _Server(http.server.ThreadingHTTPServer):
  daemon_threads = True
  request_queue_size = 64

  def handle_error(self, request, client_address):
    """Clients that go away are part of the tests."""


class _Handler(http.server.BaseHTTPRequestHandler):
  judge: JudgeServer

  def log_message(self, *_):
    pass

  def do_GET(self):
    self.do_POST()

  def do_POST(self):
    judge = self.judge
    body = json.loads(self.rfile.read(int(self.headers.get('Content-Length') or 0)) or b'{}')
    with judge.lock:
      judge.requests.append((body, dict(self.headers)))
      trouble = judge.troubles.pop(0) if judge.troubles else judge.always
      judge.now += 1
      judge.most = max(judge.most, judge.now)
    time.sleep(judge.delay)
    # Before the answer: its reader sends the next request at once.
    with judge.lock:
      judge.now -= 1
    self._answer(body, trouble)

  def _answer(self, body, trouble):
    judge = self.judge
    if trouble == 'no top' and 'top_logprobs' in body:
      return self._send(400, '{"error": {"message": "unknown field"}}')
    if trouble.isdigit():
      headers = {'Retry-After': judge.retry_after} if trouble == '429' else {}
      if trouble.startswith('3'):
        headers = {'Location': f'{judge.url}/elsewhere'}
      # As some services do: the key is in the body of the error.
      return self._send(
        int(trouble), f'{{"error": "{self.headers.get("Authorization")}"}}', headers
      )
    if trouble == 'slow':
      time.sleep(judge.pause)
    if trouble == 'html':
      return self._send(200, HTML)
    if trouble == 'wrong':
      return self._send(200, '{"object": "error"}')
    if trouble == 'list':
      return self._send(200, '[1, 2]')
    text = {'empty': ' \n', 'null': None, 'echo': f'I got {self.headers.get("Authorization")}'}
    choice = {
      'message': {'role': 'assistant', 'content': text.get(trouble, judge.rule(body))},
      'finish_reason': 'stop',
    }
    if judge.top and 'top_logprobs' in body:
      entries = [{'token': token, 'logprob': value} for token, value in judge.top(body)]
      choice['logprobs'] = {'content': [{'top_logprobs': entries}]}
    reply = {'choices': [choice]}
    if judge.usage is not None:
      reply['usage'] = {'total_tokens': judge.usage}
    self._send(200, json.dumps(reply), cut=trouble == 'cut', drip=trouble == 'drip')

  def _send(self, status, text, headers=None, cut=False, drip=False):
    data = text.encode()
    self.send_response(status)
    for name, value in {**(headers or {}), 'Content-Length': str(len(data))}.items():
      self.send_header(name, value)
    self.end_headers()
    if cut:
      data = data[: len(data) // 2]
    for i in range(0, len(data), 1 if drip else len(data)):
      self.wfile.write(data[i : i + (1 if drip else len(data))])
      time.sleep(self.judge.drop_s if drip else 0)

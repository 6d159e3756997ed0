"""One request to a chat-completions endpoint over HTTP: an answer, or why there is none.

The key is in no error. Not for how often one is asked, or what answers cost: see `endpoint.py`.
"""

import email.utils
import http.client
import json
import time
import urllib.error
import urllib.parse
import urllib.request
from typing import Any, NamedTuple

from sft_jax.evals.chats import Answer, Target, read_reply
from sft_jax.utils.errors import UserError

_RETRIED = (408, 409, 425, 429)
_MOST_BYTES = 1 << 24
_SECRET = 12  # Characters of a key that is one, and not a placeholder such as 'EMPTY'.


class Missed(NamedTuple):
  """Why there is no answer; `again`: it may come yet, after `wait` seconds at least."""

  why: str
  again: bool = True
  wait: float = 0.0


class _NoRedirects(urllib.request.HTTPRedirectHandler):
  """A redirect would carry the key to another host."""

  def redirect_request(self, *_: Any) -> None:
    return None


class Sender:
  """Sends requests to one model.

  Args:
    target: Which.
    allow_empty: Whether an empty text is an answer.
    timeout_s: From first to last byte.
  """

  def __init__(self, target: Target, allow_empty: bool, timeout_s: float):
    self._target, self._allow_empty, self._timeout_s = target, allow_empty, timeout_s
    handlers: list[Any] = [_NoRedirects()]
    if urllib.parse.urlsplit(target.url).hostname in ('127.0.0.1', 'localhost', '::1'):
      handlers.append(urllib.request.ProxyHandler({}))
    self._opener = urllib.request.build_opener(*handlers)

  def send(self, body: dict[str, Any]) -> tuple[Answer | Missed, int]:
    """Sends a request; returns the outcome, and the tokens that the endpoint says were used.

    Raises:
      UserError: the key, model or address is refused.
    """
    target = self._target
    headers = {'Content-Type': 'application/json', 'User-Agent': 'sft_jax'}
    if target.key:
      headers['Authorization'] = f'Bearer {target.key}'
    request = urllib.request.Request(
      f'{target.url}/chat/completions', json.dumps(body).encode(), headers
    )
    deadline = time.monotonic() + self._timeout_s
    try:
      with self._opener.open(request, timeout=self._timeout_s) as response:
        data = _read(response, deadline)
    except urllib.error.HTTPError as e:
      with e:
        return self._refused(e.code, e.headers), 0
    # Only the kind of an error is told: its text may hold what was sent.
    except urllib.error.URLError as e:
      reason = e.reason
      return Missed(type(reason).__name__ if isinstance(reason, Exception) else 'URLError'), 0
    except (OSError, http.client.HTTPException) as e:
      return Missed(type(e).__name__), 0
    if len(target.key) >= _SECRET:
      data = data.replace(target.key.encode(), b'[key]')
    answer, used = read_reply(data, self._allow_empty)
    return (Missed(answer) if isinstance(answer, str) else answer), used

  def _refused(self, status: int, headers: Any) -> Missed:
    """What an HTTP status other than success means."""
    target = self._target
    of_url, _, of_key = target.given_in
    if status in (401, 403):
      raise UserError(f'the key is refused (HTTP {status})', target.url, f'mend {of_key}')
    if status == 404 or status < 400:
      raise UserError(
        f'no chat completions for {target.model!r} here (HTTP {status})',
        target.url,
        f'mend {of_url} (an address up to and without /chat/completions) or the model',
      )
    if status >= 500 or status in _RETRIED:
      return Missed(f'HTTP {status}', wait=_retry_after(headers.get('Retry-After')))
    return Missed(f'HTTP {status}', again=False)


def _read(response: Any, deadline: float) -> bytes:
  """The whole body, which may come in drops but not for ever.

  Raises:
    TimeoutError: it does not end in time.
    HTTPException: it does not end at all.
  """
  parts, size = [], 0
  while part := response.read1(1 << 16):
    parts.append(part)
    size += len(part)
    if time.monotonic() > deadline:
      raise TimeoutError
    if size > _MOST_BYTES:
      raise http.client.HTTPException
  return b''.join(parts)


def _retry_after(value: str | None) -> float:
  """Seconds to wait, given as seconds or as a date; 0 for none."""
  try:
    return max(0.0, float(value or 0))
  except ValueError:
    pass
  try:
    return max(0.0, email.utils.parsedate_to_datetime(value or '').timestamp() - time.time())
  except (ValueError, OverflowError):
    return 0.0

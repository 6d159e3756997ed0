"""Failures of the Hugging Face hub in plain words: one line, what is true and what to do."""

import contextlib
import email.utils
import errno
import re
import time
import urllib.parse
from collections.abc import Iterator
from typing import Any

from sft_jax.utils import words
from sft_jax.utils.errors import UserError

# What the hub has told for good: no copy in the cache may stand in for it.
GONE = ('the hub has no such revision', 'the repository has moved')

# HTTP status -> (what, how); {page} is the repository's.
_ANSWERS = {
  401: (
    'the hub wants a login, or there is no such repository',
    'check the spelling at {page}; for a private repository set HF_TOKEN or run `hf auth login`',
  ),
  403: ('the hub refuses access', 'see {page}; set HF_TOKEN to a token that may read it'),
  404: ('no such repository or revision on the hub', 'check the spelling: {page} shows nothing'),
  407: ('the proxy wants a login', 'put it into HTTPS_PROXY'),
  429: ('the hub says too many requests', '{wait}, or set HF_TOKEN for a higher limit'),
}
# Classes of the HTTP client, whose name differs between versions of huggingface_hub, and Python's.
_CUT_OFF = ('NetworkError', 'RemoteProtocolError', 'ConnectionError')
_AGAIN = 'start again: what arrived is kept'


def page(kind: str, repo: str) -> str:
  """The address of a repository's page, below which its files lie."""
  from huggingface_hub import constants

  return f'{constants.ENDPOINT}/{"" if kind == "model" else f"{kind}s/"}{repo}'


@contextlib.contextmanager
def explained(where: str, kind: str, repo: str, tries: int = 1) -> Iterator[None]:
  """Context in which what the hub and the network raise becomes a `UserError`."""
  try:
    yield
  except UserError:
    raise
  except Exception as e:
    if error := explain(e, where, kind, repo, tries):
      raise error from e
    raise


def explain(
  error: BaseException, where: str, kind: str, repo: str, tries: int = 1
) -> UserError | None:
  """The line for an error of huggingface_hub, its HTTP client or the disk; None for any other.

  Args:
    error: Looked through down to its causes: huggingface_hub and `datasets` report a 429, for one,
      as "not in the local cache".
    where: What was asked for.
    kind: model | dataset.
    repo: org/name.
    tries: How often it was tried.
  """
  from huggingface_hub import constants

  chain = _chain(error)
  named = {cls.__name__: e for e in reversed(chain) for cls in type(e).__mro__}
  at, times = page(kind, repo), words.count(tries, 'time')
  if gated := named.get('GatedRepoError'):
    how = f'accept its licence at {at} and set HF_TOKEN'
    if _status(gated) == 403 and _token():
      how = f'ask for access at {at} with the account of this HF_TOKEN'
    return UserError(f'the {kind} is gated', where, how)
  if 'RevisionNotFoundError' in named:
    return UserError(GONE[0], where, f'see {at}/tree/main for branches and tags')
  if 'EntryNotFoundError' in named and _statuses(chain):
    return UserError('the hub has no such file', where, f'see {at}/tree/main')
  if disk := _disk(chain):
    return disk
  for status in _statuses(chain):
    what, how = _ANSWERS.get(status, (f'the hub answers {status}', 'try again later'))
    if status == 401 and _token():
      how = f'check the spelling at {at}, and HF_TOKEN: it may be wrong or expired'
    what += f' ({tries} times)' if tries > 1 else ''
    return UserError(what, where, how.format(page=at, wait=_wait(chain)))
  if 'OfflineModeIsEnabled' in named:
    return UserError(
      'HF_HUB_OFFLINE is set', where, f'unset it to fetch, or use a {kind} on this machine'
    )
  if constants.HF_HUB_OFFLINE and {'ConnectionError', 'LocalEntryNotFoundError'} & named.keys():
    return UserError(
      f'HF_HUB_OFFLINE is set and the {kind} is not in the local cache',
      where,
      'use --mode=fetch where there is a network, or give a local file',
    )
  if 'ProxyError' in named:
    return _unreached('the proxy fails', named['ProxyError'], where)
  if 'TimeoutException' in named:
    asked = _asked(named['TimeoutException'])
    whose = 'the hub' if asked == constants.ENDPOINT else asked
    return UserError(
      f'{whose} gives no answer for {constants.HF_HUB_DOWNLOAD_TIMEOUT:g} s (tried {times})',
      where,
      f'{_AGAIN}; HF_HUB_DOWNLOAD_TIMEOUT=60 waits longer',
    )
  if 'ConnectError' in named:
    failed = named['ConnectError']
    return _unreached(f'cannot reach {_asked(failed)}', failed, where)
  for name in _CUT_OFF:
    if name in named:
      text = without_token(str(named[name]))
      return UserError(f'the connection was cut off (tried {times}): {text}', where, _AGAIN)
  if 'HFValidationError' in named:
    return UserError('not a hub id', where, 'write org/name or org/name@revision')
  if 'LocalEntryNotFoundError' in named:
    return _unreached('not in the local cache, and the hub cannot be reached', error, where)
  if {'HTTPError', 'InvalidURL', 'TransportError'} & named.keys():
    return _unreached(f'{constants.ENDPOINT} does not answer as a hub does', error, where)
  return None


def _asked(error: BaseException) -> str:
  """Who was asked: the hub, or the storage that it redirects to, which firewalls often forget."""
  from huggingface_hub import constants

  try:
    url = error.request.url  # type: ignore[attr-defined]  # a property that may raise
  except (AttributeError, RuntimeError):
    return str(constants.ENDPOINT)
  hub = urllib.parse.urlsplit(constants.ENDPOINT)
  return str(constants.ENDPOINT) if url.host == hub.hostname else f'{url.scheme}://{url.host}'


def _unreached(what: str, error: BaseException, where: str) -> UserError:
  text = without_token(str(error) or type(error).__name__)
  return UserError(
    f'{what}: {text}', where, 'check the network, HTTPS_PROXY and HF_ENDPOINT, or use local files'
  )


def _disk(chain: list[BaseException]) -> UserError | None:
  from huggingface_hub import constants

  for e in chain:
    number = e.errno if isinstance(e, OSError) else None
    place = str(getattr(e, 'filename', None) or constants.HF_HUB_CACHE)
    if number in (errno.ENOSPC, errno.EDQUOT):
      return UserError('the disk is full', place, f'free space or set HF_HOME, then {_AGAIN}')
    if number in (errno.EROFS, errno.EACCES, errno.EPERM):
      return UserError('the cache cannot be written', place, 'set HF_HOME to a place that can')
    if number == errno.ENOTDIR:
      how = 'set HF_HOME to a directory, and HF_HUB_CACHE too where it is set'
      return UserError('a file stands where a directory is needed', place, how)
  return None


def passing(error: BaseException, connected: bool) -> bool:
  """Whether the same request may succeed in some seconds.

  Args:
    error: What it raised.
    connected: The hub has answered before, so that a refused connection is no wrong address.
  """
  chain = _chain(error)
  statuses = _statuses(chain)
  if statuses:
    return statuses[0] >= 500 or statuses[0] == 408
  names = {cls.__name__ for e in chain for cls in type(e).__mro__}
  if 'ConnectError' in names and not connected:
    return False
  return bool(
    names & {'TimeoutException', 'NetworkError', 'RemoteProtocolError', 'ConnectionError'}
  )


def without_token(text: str) -> str:
  """The text with any token in it blotted out."""
  token = _token()
  text = text.replace(token, '…') if token else text
  return re.sub(r'Bearer [^\'"\s]+', 'Bearer …', text)


def _token() -> str:
  from huggingface_hub import get_token

  try:
    return get_token() or ''
  except OSError:  # It cannot be read, so nothing was sent with it.
    return ''


def _chain(error: BaseException) -> list[BaseException]:
  chain = [error]
  while (cause := chain[-1].__cause__ or chain[-1].__context__) and cause not in chain:
    chain.append(cause)
  return chain


def _statuses(chain: list[BaseException]) -> list[int]:
  return [status for e in chain if (status := _status(e))]


def _status(error: BaseException) -> int:
  response: Any = getattr(error, 'response', None)
  return int(getattr(response, 'status_code', 0) or 0)


def _wait(chain: list[BaseException]) -> str:
  """How long a 429 asks to wait, from `Retry-After` (seconds or a date) or `RateLimit` (t=)."""
  for e in chain:
    headers = getattr(getattr(e, 'response', None), 'headers', None) or {}
    after = (headers.get('retry-after') or '').strip()
    limit = re.search(r't\s*=\s*(\d+)', headers.get('ratelimit') or '')
    seconds = int(after) if after.isdigit() else int(limit[1]) if limit else 0
    if after and not after.isdigit():
      with contextlib.suppress(ValueError):
        seconds = round(email.utils.parsedate_to_datetime(after).timestamp() - time.time())
    if seconds > 0:
      return f'wait {seconds} s and {_AGAIN}'
  return f'wait some minutes and {_AGAIN}'

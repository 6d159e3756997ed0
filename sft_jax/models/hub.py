"""Models from the Hugging Face hub: fetching through `huggingface_hub`, failures in plain words."""

import errno
from pathlib import Path
from typing import Any

from sft_jax.utils.errors import UserError

# Weights in a safe format, tokenizer files, the card (for its licence): nothing pickled.
PATTERNS = ('*.safetensors', '*.json', '*.model', '*.jinja', 'merges.txt', 'README.md')

# HTTP status -> (what, how).
_ANSWERS = {
  401: (
    'the hub wants a login, or there is no such repository',
    'check the spelling; for a private repository set HF_TOKEN or run `hf auth login`',
  ),
  403: ('the hub refuses access', 'set HF_TOKEN to a token that may read it'),
  404: ('no such repository or revision on the hub', 'check the spelling and the @revision'),
  429: ('the hub says too many requests', 'wait some minutes, or set HF_TOKEN for a higher limit'),
}


def fetch(spec: str) -> Path:
  """Returns the local snapshot of `org/name[@revision]`, downloading what is not cached.

  Raises:
    UserError: gated, private or missing repository, no network and no cache, rate limit.
  """
  import huggingface_hub

  repo, _, revision = spec.partition('@')
  try:
    return Path(
      huggingface_hub.snapshot_download(
        repo, revision=revision or None, allow_patterns=list(PATTERNS)
      )
    )
  except Exception as e:  # the library passes its HTTP client's errors through
    raise _explained(e, spec, repo) from e


def _explained(error: Exception, spec: str, repo: str) -> UserError:
  """Looks through the chain of causes: a 429 surfaces as "not in the local cache"."""
  from huggingface_hub import constants, errors

  chain: list[BaseException] = [error]
  while (cause := chain[-1].__cause__ or chain[-1].__context__) and cause not in chain:
    chain.append(cause)
  for e in chain:
    if isinstance(e, errors.GatedRepoError):
      return UserError(
        'the model is gated',
        spec,
        f'accept its licence at {constants.ENDPOINT}/{repo} and set HF_TOKEN',
      )
    if isinstance(e, errors.RevisionNotFoundError):
      return UserError('the hub has no such revision', spec, 'check what follows the @')
    if isinstance(e, OSError) and e.errno == errno.ENOSPC:
      return UserError('the disk is full', constants.HF_HUB_CACHE, 'free space or set HF_HOME')
  statuses = [status for e in chain if (status := _status(e))]
  if statuses:
    default = (f'the hub answers {statuses[0]}', 'try again later')
    what, how = _ANSWERS.get(statuses[0], default)
    return UserError(what, spec, how)
  if isinstance(error, errors.HFValidationError):
    return UserError('not a hub id', spec, 'write org/name or org/name@revision')
  if isinstance(error, (errors.LocalEntryNotFoundError, errors.IncompleteSnapshotError)):
    offline = 'HF_HUB_OFFLINE is set' if constants.HF_HUB_OFFLINE else 'the hub cannot be reached'
    return UserError(
      f'{offline} and the model is not in the local cache',
      spec,
      'connect to the network, or give a local directory or a wheel: model',
    )
  return UserError(f'cannot fetch the model: {error}', spec, 'check the network and try again')


def _status(error: BaseException) -> int:
  response: Any = getattr(error, 'response', None)
  return int(getattr(response, 'status_code', 0) or 0)

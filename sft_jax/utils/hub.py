"""The Hugging Face hub: what a repository holds, and what of it lies in the cache of this machine.

The cache is huggingface_hub's own, in its layout (https://huggingface.co/docs/huggingface_hub,
"Understand caching"), so that every library finds what is there. Not for bringing files:
`hub_download.py`. Failures are explained by `hub_errors.py`.
"""

import dataclasses
import json
import pathlib
import re
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from sft_jax.utils import hub_errors, io, log
from sft_jax.utils.errors import UserError

T = TypeVar('T')

# A request that failed in passing is sent again after 1, 2, 4 and 8 seconds, while nothing arrives.
TRIES, FIRST_WAIT_S = 5, 1.0
_LONGEST_NAME = 255  # bytes, of most file systems
_COMMIT = re.compile(r'[0-9a-f]{40}')


@dataclasses.dataclass(frozen=True)
class File:
  """A file of a repository.

  Attributes:
    name: Path inside the repository.
    size: Bytes.
    blob: SHA-256 of a file in large-file storage, else its git id: its name among the blobs.
  """

  name: str
  size: int
  blob: str


@dataclasses.dataclass(frozen=True)
class Snapshot:
  """Files of a repository at one commit.

  Attributes:
    kind: model | dataset.
    repo: org/name.
    revision: Branch, tag or commit that was asked for.
    commit: What that is now.
    files: The files wanted; () when the hub was not asked.
  """

  kind: str
  repo: str
  revision: str
  commit: str
  files: tuple[File, ...] = ()

  def __str__(self) -> str:
    return self.repo if self.revision == 'main' else f'{self.repo}@{self.revision}'

  @property
  def storage(self) -> pathlib.Path:
    """The repository's place in the cache."""
    return _storage(self.kind, self.repo)

  @property
  def directory(self) -> pathlib.Path:
    """Where the files stand under their names."""
    return self.storage / 'snapshots' / self.commit

  def only(self, names: Sequence[str]) -> 'Snapshot':
    """The same with the named files alone."""
    return dataclasses.replace(self, files=tuple(f for f in self.files if f.name in names))

  def blob(self, file: File) -> pathlib.Path:
    """Where the contents of a file lie."""
    return self.storage / 'blobs' / file.blob

  def partial(self, file: File) -> pathlib.Path:
    """Where they gather while they come."""
    return self.storage / 'blobs' / f'{file.blob}.sft_jax.incomplete'

  def here(self, file: File) -> bool:
    """Whether a file is in the cache, whole."""
    return size_of(self.blob(file)) == file.size

  def held(self, file: File) -> int:
    """Bytes of a file that are here already."""
    if self.here(file):
      return file.size
    return min(max(size_of(self.partial(file)), 0), file.size)

  @property
  def size(self) -> int:
    """Bytes of all files."""
    return sum(f.size for f in self.files)

  @property
  def size_held(self) -> int:
    """Bytes of them that are here."""
    return sum(self.held(f) for f in self.files)


def cache() -> pathlib.Path:
  """huggingface_hub's cache, as HF_HOME and HF_HUB_CACHE place it."""
  from huggingface_hub import constants

  return pathlib.Path(constants.HF_HUB_CACHE)


def offline() -> bool:
  """Whether HF_HUB_OFFLINE is set."""
  from huggingface_hub import constants

  return bool(constants.HF_HUB_OFFLINE)


def _storage(kind: str, repo: str) -> pathlib.Path:
  return cache() / f'{kind}s--{repo.replace("/", "--")}'


def size_of(path: pathlib.Path) -> int:
  """Bytes of a file; -1 when there is none."""
  try:
    return path.stat().st_size
  except OSError:
    return -1


def look_up(kind: str, repo: str, revision: str = 'main', tries: int = TRIES) -> Snapshot:
  """Asks the hub for the commit of a revision and for all files there.

  Args:
    kind: model | dataset.
    repo: org/name.
    revision: Branch, tag or commit.
    tries: Requests to send at most while the hub fails in passing.

  Raises:
    UserError: no access, no such thing, moved, no answer, an answer that is not a hub's.
  """
  import huggingface_hub
  from huggingface_hub import constants

  asked = Snapshot(kind, repo, revision, '')
  if not _inside(revision):
    raise UserError('not a revision', str(asked), 'write a branch, a tag or a commit')

  def ask() -> Any:
    try:
      return huggingface_hub.HfApi(library_name='sft_jax').repo_info(
        repo,
        repo_type=kind,
        revision=revision,
        files_metadata=True,
        timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT,
      )
    except (json.JSONDecodeError, KeyError, TypeError) as e:
      what = f'{constants.ENDPOINT} does not answer as a hub does'
      raise UserError(what, str(asked), 'check HF_ENDPOINT and HTTPS_PROXY') from e
    except UnicodeEncodeError as e:
      what = 'HF_TOKEN holds characters that no token has'
      raise UserError(what, str(asked), 'set it again') from e

  info = persist(ask, asked, tries)
  if info.id != repo:
    page = hub_errors.page(kind, info.id)
    raise UserError(
      f'the repository has moved to {info.id}', str(asked), f'use that name; its page: {page}'
    )
  files = tuple(_checked_file(asked, sibling) for sibling in info.siblings or ())
  if not _COMMIT.fullmatch(info.sha or '') or not files:
    raise UserError('the hub names no commit or no files', str(asked), 'check HF_ENDPOINT')
  return dataclasses.replace(asked, commit=info.sha, files=files)


def _inside(revision: str) -> bool:
  """Whether a revision, as the path of a note of ours, stays in its directory."""
  return not {'', '.', '..'} & {*revision.split('/')}


def _checked_file(asked: Snapshot, sibling: Any) -> File:
  """What a server says becomes paths on this machine: nothing may leave its directory."""
  name, size = str(sibling.rfilename), sibling.size
  blob = sibling.lfs.sha256 if sibling.lfs else sibling.blob_id
  parts = name.replace('\\', '/').split('/')
  outside = '..' in parts or '' in parts or '\0' in name
  outside |= any(len(part.encode(errors='surrogatepass')) > _LONGEST_NAME for part in parts)
  if outside or not re.fullmatch('[0-9a-f]{40}|[0-9a-f]{64}', blob or ''):
    what = f'the hub lists {name!r:.200} as {blob!r:.200}'
    raise UserError(what, str(asked), 'do not use this server')
  return File(name, int(size or 0), blob)


def resolve(kind: str, repo: str, revision: str = 'main') -> Snapshot | None:
  """`look_up`, or without the hub the commit last fetched; None when there is neither.

  Raises:
    UserError: as `look_up`, where nothing was fetched before; no such revision, moved.
  """
  kept = revision if _COMMIT.fullmatch(revision) else ''
  reference = _storage(kind, repo) / 'refs' / revision
  if not kept and _inside(revision) and reference.is_file():
    kept = reference.read_text().strip()
  mine = Snapshot(kind, repo, revision, kept) if _COMMIT.fullmatch(kept) else None
  if offline():
    return mine
  here = mine is not None and mine.directory.is_dir()
  try:
    return look_up(kind, repo, revision, tries=1 if here else TRIES)
  except UserError as e:
    if not here or e.what.startswith(hub_errors.GONE):
      raise
    log.warn(f'{e.what} ({e.where}): using commit {kept[:12]} from the cache')
    return mine


def keep(snapshot: Snapshot) -> None:
  """Notes which commit the revision is, where huggingface_hub looks when it is offline."""
  reference = snapshot.storage / 'refs' / snapshot.revision
  if snapshot.revision != snapshot.commit and not (
    reference.is_file() and reference.read_text() == snapshot.commit
  ):
    io.write_text_atomic(reference, snapshot.commit)


def persist(
  call: Callable[[], T],
  snapshot: Snapshot,
  tries: int,
  where: str = '',
  progress: Callable[[], int] = lambda: 0,
  stop: threading.Event | None = None,
) -> T:
  """Calls until it succeeds; gives up after `tries` failures in which `progress` did not grow."""
  failures, best = 0, progress()
  while True:
    try:
      return call()
    except Exception as e:  # the library passes its HTTP client's errors through
      if progress() > best:
        failures, best = 0, progress()
      failures += 1
      passing = hub_errors.passing(e, connected=stop is not None)
      if failures >= tries or not passing:
        with hub_errors.explained(where or str(snapshot), snapshot.kind, snapshot.repo, failures):
          raise
    wait = FIRST_WAIT_S * 2 ** (failures - 1)
    (stop.wait if stop else time.sleep)(wait)

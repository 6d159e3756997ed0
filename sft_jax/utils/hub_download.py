"""Bringing files of the Hugging Face hub into the cache: verified, resumable, once per machine.

We fetch them ourselves because huggingface_hub starts a cut-off file over in the next process,
hashes nothing and waits out a rate limit in silence. Which files: the callers.
"""

import concurrent.futures
import contextlib
import hashlib
import os
import pathlib
import shutil
import threading
import urllib.parse
from collections.abc import Callable, Iterable, Iterator, Sequence

from sft_jax.utils import hub, hub_errors, io, log
from sft_jax.utils.errors import UserError
from sft_jax.utils.hub import File, Snapshot, size_of
from sft_jax.utils.transfer import Transfer, as_size

_WORKERS = 4


def one_file(snapshot: Snapshot, name: str) -> pathlib.Path:
  """Where the contents of one small file lie, fetched if they are not here."""
  one = snapshot.only([name])
  _bring([one], quiet=True)
  return one.blob(one.files[0])


def check_space(needs: Iterable[tuple[pathlib.Path, int]]) -> None:
  """Refuses what will not fit, before the first byte.

  Args:
    needs: [(directory, bytes to be written there)]; directories of one disk are added up.

  Raises:
    UserError: too little disk space.
  """
  disks: dict[int, tuple[pathlib.Path, int]] = {}
  for directory, size in needs:
    place = directory.absolute()
    while not place.exists():
      place = place.parent
    device = place.stat().st_dev
    disks[device] = (directory, disks.get(device, (directory, 0))[1] + size)
  for directory, size in disks.values():
    free = io.free_bytes(directory)
    if size > free:
      raise UserError(
        f'too little disk space: {as_size(size)} are to be fetched, {as_size(free)} are free',
        str(directory),
        'free space, or set HF_HOME (and SFT_JAX_CACHE) to a larger disk',
      )


def download(snapshots: Sequence[Snapshot]) -> None:
  """Brings what is missing, under a progress bar, then puts files under their names.

  Interrupted by anything, it keeps what arrived and goes on from there when called again.

  Raises:
    UserError: the hub refuses or fails (see `hub_errors`), a file arrived damaged, a full disk.
  """
  _bring(snapshots)
  for snapshot in snapshots:
    with hub_errors.explained(str(snapshot), snapshot.kind, snapshot.repo):
      for file in snapshot.files:
        _place(snapshot, file)
      hub.keep(snapshot)


def _bring(snapshots: Sequence[Snapshot], quiet: bool = False) -> None:
  if all(s.here(f) for s in snapshots for f in s.files):
    return
  stop = threading.Event()
  with contextlib.ExitStack() as stack:
    # What is on the disk is measured: it also shows what another process brings meanwhile.
    bar = Transfer(sum(s.size for s in snapshots), quiet=quiet)
    stack.callback(bar.close)
    tell = lambda: bar.update(sum(s.size_held for s in snapshots))
    # In the same order in every process, so that no two wait for each other.
    for _, snapshot in sorted({s.storage: s for s in snapshots}.items()):
      stack.enter_context(_alone(snapshot, tell))
    missing = {s.blob(f): (s, f) for s in snapshots for f in s.files if not s.here(f)}
    pool = concurrent.futures.ThreadPoolExecutor(_WORKERS, 'hub')
    try:
      jobs = {pool.submit(_get, s, f, stop) for s, f in missing.values()}
      while jobs:
        done, jobs = concurrent.futures.wait(jobs, 0.2, concurrent.futures.FIRST_EXCEPTION)
        tell()
        for job in done:
          job.result()
    finally:
      stop.set()
      pool.shutdown(cancel_futures=True)


@contextlib.contextmanager
def _alone(snapshot: Snapshot, tell: Callable[[], None]) -> Iterator[None]:
  """One process of this machine (or file system) at a time fetches a repository."""
  from huggingface_hub.utils import WeakFileLock

  lock = hub.cache() / '.locks' / snapshot.storage.name / 'sft_jax.lock'
  waiting = False
  with contextlib.ExitStack() as stack:
    with hub_errors.explained(str(snapshot), snapshot.kind, snapshot.repo):
      lock.parent.mkdir(parents=True, exist_ok=True)
      while True:
        with contextlib.suppress(TimeoutError):
          stack.enter_context(WeakFileLock(lock, timeout=0.3))
          break
        if not waiting:
          log.say(f'another process is fetching {snapshot.repo}: waiting for it')
        waiting = True
        tell()
    yield


def _get(snapshot: Snapshot, file: File, stop: threading.Event) -> None:
  """One file, going on from what an earlier attempt left."""
  partial, where = snapshot.partial(file), f'{snapshot}: {file.name}'

  def ask() -> None:
    have = size_of(partial)
    if have != file.size and not stop.is_set():
      _stream(snapshot, file, have if 0 < have < file.size else 0, where, stop)
    if (have := size_of(partial)) < file.size and not stop.is_set():
      raise ConnectionResetError(f'{have:,} of {file.size:,} bytes')

  with hub_errors.explained(where, snapshot.kind, snapshot.repo):
    partial.parent.mkdir(parents=True, exist_ok=True)
  hub.persist(ask, snapshot, hub.TRIES, where, lambda: size_of(partial), stop)
  if stop.is_set():
    return
  size, digest = size_of(partial), _digest(partial, file)
  if (size, digest) != (file.size, file.blob):
    partial.unlink()
    name = 'SHA-256' if len(file.blob) == 64 else 'git id'
    raise UserError(
      f'the file arrived damaged: {size:,} bytes of {name} {digest[:16]}…, '
      f'not {file.size:,} of {file.blob[:16]}…',
      where,
      'it was removed; start again, and suspect a proxy or mirror if it stays so',
    )
  os.replace(partial, snapshot.blob(file))


def _stream(snapshot: Snapshot, file: File, start: int, where: str, stop: threading.Event) -> None:
  """Appends what follows byte `start`; a server that sends the whole file starts it over."""
  from huggingface_hub import constants
  from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status

  if file.size > constants.MAX_HTTP_DOWNLOAD_SIZE:
    how = f'run `hf download {snapshot.repo}` once (it needs hf_xet), then start again'
    raise UserError('the hub sends no file above 50 GB over plain HTTP', where, how)
  prefix = hub_errors.page(snapshot.kind, snapshot.repo)
  url = f'{prefix}/resolve/{snapshot.commit}/{urllib.parse.quote(file.name)}'
  headers = build_hf_headers(library_name='sft_jax') | {'Accept-Encoding': 'identity'}
  if start:
    headers['Range'] = f'bytes={start}-'
  # A redirect to another host (storage) goes without the token: the client drops it.
  with get_session().stream(
    'GET', url, headers=headers, timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT, follow_redirects=True
  ) as response:
    hf_raise_for_status(response)
    resumed = start > 0 and response.status_code == 206
    length = response.headers.get('Content-Length')
    due = file.size - start if resumed else file.size
    # A portal's page must not overwrite what is here.
    if length and 'Content-Encoding' not in response.headers and int(length) != due:
      what = f'the server sends {int(length):,} bytes where {due:,} are due'
      raise UserError(what, where, 'suspect a proxy, a mirror (HF_ENDPOINT) or a login page')
    with open(snapshot.partial(file), 'ab' if resumed else 'wb') as out:
      for chunk in response.iter_bytes():
        out.write(chunk)
        if stop.is_set() or out.tell() > file.size:  # without a length an answer may have no end
          return


def _digest(path: pathlib.Path, file: File) -> str:
  """SHA-256, or the id git gives the contents."""
  if len(file.blob) == 64:
    return io.sha256_file(path)
  head = b'blob %d\0' % size_of(path)
  return hashlib.sha1(head + path.read_bytes(), usedforsecurity=False).hexdigest()


def _place(snapshot: Snapshot, file: File) -> None:
  """Links a file's name to its contents; copies where there are no links."""
  link, blob = snapshot.directory / file.name, snapshot.blob(file)
  if link.exists():
    return
  link.parent.mkdir(parents=True, exist_ok=True)
  with contextlib.suppress(FileNotFoundError):
    link.unlink()
  try:
    os.symlink(os.path.relpath(blob, link.parent), link)
  except FileExistsError:
    pass  # another process was first
  except (OSError, NotImplementedError):
    shutil.copyfile(blob, link)

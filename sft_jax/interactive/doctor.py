"""`--mode=doctor`: what this machine can do, checked by doing it, with a remedy for what it cannot.

Nothing is trained and nothing is left behind but directories of caches. Not for a run's own input:
a run checks that itself.
"""

import dataclasses
import importlib.metadata
import importlib.util
import os
import platform
import re
import shutil
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from sft_jax import spec as spec_lib
from sft_jax.utils import caches, hub_errors, installation, io, log
from sft_jax.utils.errors import UserError

_LITTLE = 5 << 30  # Bytes of disk or memory below which a real model hardly fits.
_MARKS = {'ok': '✓', 'note': '·', 'failed': '✗'}


@dataclasses.dataclass(frozen=True)
class Check:
  """What was found.

  Attributes:
    name: What was looked at.
    state: ok | note (works, with less) | failed.
    found: In words.
    remedy: What to do about it; '' where all is well.
  """

  name: str
  state: str
  found: str
  remedy: str = ''

  @property
  def lines(self) -> list[str]:
    """For a terminal."""
    lines = [f'{_MARKS[self.state]} {self.name:<14} {self.found}']
    return lines + ([f'{"":<17}→ {self.remedy}'] if self.remedy else [])


def examine(config: Any) -> dict[str, Any]:
  """Runs all checks and prints them; returns `checks`, names of those `failed`, and `bench`.

  Args:
    config: `config.doctor`, `config.mesh`, `config.cache_dir`.

  Raises:
    UserError: only for a bad config.
  """
  spec_lib.check_settings(config)
  checks: list[Check] = []
  # What later ones need comes first: without devices there is no step.
  calls: list[tuple[str, Callable[[], list[Check]]]] = [
    ('python', _python),
    ('packages', _packages),
    ('devices', lambda: _devices(config)),
    ('memory', _memory),
    ('caches', lambda: _caches(config.cache_dir)),
    ('hub', lambda: [_hub(config.doctor.timeout)]),
    ('train step', lambda: [_UNTRIED if 'devices' in _failed(checks) else _step(config)]),
    ('sandbox', _sandbox),
    ('TensorBoard', _tensorboard),
  ]
  for name, call in calls:
    try:
      found = call()
    except UserError as e:
      found = [Check(name, 'failed', f'{e.what} ({e.where})', e.how)]
    except Exception as e:  # whatever a broken installation raises is what is looked for
      how = _INSTALL if isinstance(e, ImportError) else _REPORT
      found = [Check(name, 'failed', f'{type(e).__name__}: {e}'[:300], how)]
    checks += found
    for check in found:
      for line in check.lines:
        log.say(line)
  failed = _failed(checks)
  told = [dataclasses.asdict(check) for check in checks]
  out: dict[str, Any] = {'checks': told, 'failed': failed, 'bench': {}}
  if config.doctor.bench and not {'devices', 'train step'} & {*failed}:
    from sft_jax.interactive import doctor_bench

    out['bench'] = doctor_bench.measure(config)
    for name, value in out['bench'].items():
      log.say(f'{name:<24} {value:,.2f}')
  return out


def _failed(checks: Sequence[Check]) -> list[str]:
  return [check.name for check in checks if check.state == 'failed']


def tell_devices(config: Any) -> None:
  """Prints what `config.mesh` computes on; an accelerator that stays idle, and what to do."""
  try:
    found = _devices(config)
  except UserError as e:
    found = [Check('devices', 'failed', f'{e.what} ({e.where})', e.how)]
  for check in found:
    for line in check.lines:
      log.say(line)


_INSTALL = 'install the requirements again: pip install -r requirements.txt'
_REPORT = 'report it, with the lines above'
_UNTRIED = Check('train step', 'note', 'not tried: no devices', 'mend devices, as said above')


def _python() -> list[Check]:
  version, oldest, newest = sys.version_info[:2], installation.OLDEST, installation.NEWEST
  found = f'{platform.python_version()} on {platform.system()} {platform.machine()}'
  if version < oldest:
    return [Check('python', 'failed', found, f'use Python {oldest[0]}.{oldest[1]} or newer')]
  if version > newest:
    return [
      Check('python', 'note', found, f'it is tested up to {newest[0]}.{newest[1]}; use that one')
    ]
  return [Check('python', 'ok', found)]


def _packages() -> list[Check]:
  """Each requirement against what is installed."""
  from packaging.requirements import Requirement

  checks, shown = [], []
  for line in _requirements():
    wanted = Requirement(line)
    if wanted.marker is not None and not wanted.marker.evaluate({'extra': ''}):
      continue
    try:
      version = importlib.metadata.version(wanted.name)
    except importlib.metadata.PackageNotFoundError:
      checks.append(
        Check(wanted.name, 'failed', 'is not installed', f"pip install '{_plain(wanted)}'")
      )
      continue
    if not wanted.specifier.contains(version, prereleases=True):
      found = f'{version} is not {wanted.specifier}'
      checks.append(Check(wanted.name, 'failed', found, f"pip install '{_plain(wanted)}'"))
    if wanted.name in ('jax', 'flax', 'optax', 'transformers'):
      shown.append(f'{wanted.name} {version}')
  state = 'failed' if checks else 'ok'
  if state == 'ok':
    checks.append(Check('packages', 'ok', ', '.join(shown)))
  return checks


def _plain(requirement: Any) -> str:
  return f'{requirement.name}{requirement.specifier}'


def _requirements() -> list[str]:
  """Of the checkout this code lies in, else of the package as it was installed."""
  file = Path(__file__).resolve().parents[2] / 'requirements.txt'
  if file.is_file():
    lines = (re.sub(r'\s#.*|^#.*', '', line).strip() for line in file.read_text().splitlines())
    return [line for line in lines if line and not line.startswith('-')]
  every = importlib.metadata.requires('sft_jax') or []
  return [line for line in every if 'extra ==' not in line]


def _devices(config: Any) -> list[Check]:
  import jax

  from sft_jax.parallel import mesh as mesh_lib

  mesh_lib.check_accelerator(config.mesh.allow_idle)
  devices = jax.devices()
  kinds = ', '.join(sorted({device.device_kind for device in devices}))
  found = f'{len(devices)} × {kinds} ({jax.default_backend()})'
  sizes = [(device.memory_stats() or {}).get('bytes_limit', 0) for device in jax.local_devices()]
  if min(sizes):
    found += f', {min(sizes) / 2**30:.1f} GiB each'
  mesh_lib.make_mesh(config.mesh.data, config.mesh.fsdp, config.mesh.tensor)
  if jax.default_backend() == 'cpu':
    how = "for a GPU or TPU: pip install -e '.[cuda]' or '.[tpu]'"
    return [Check('devices', 'note', f'{found}, {os.cpu_count()} cores', how)]
  return [Check('devices', 'ok', found)]


def _memory() -> list[Check]:
  free = _free_memory()
  if free is None:
    return [Check('memory', 'note', 'this system does not say how much is free')]
  found = f'{free / 2**30:.1f} GiB free'
  if free < _LITTLE:
    how = 'close other programs; a 135M model needs 3 GiB to be trained on the CPU'
    return [Check('memory', 'note', found, how)]
  return [Check('memory', 'ok', found)]


def _free_memory() -> int | None:
  """Bytes, or less where a control group allows less."""
  try:
    with open('/proc/meminfo') as f:
      fields = dict(line.split(':', 1) for line in f)
    free = int(fields['MemAvailable'].split()[0]) * 1024
  except (OSError, KeyError):
    return None
  group = Path('/sys/fs/cgroup')
  try:
    limit = (group / 'memory.max').read_text().strip()
    used = int((group / 'memory.current').read_text())
    return free if limit == 'max' else min(free, int(limit) - used)
  except (OSError, ValueError):
    return free


def _caches(given: str) -> list[Check]:
  checks = []
  for what, place in caches.places(given).items():
    try:
      io.require_writable(place)
    except UserError as e:
      checks.append(Check('cache', 'failed', f'{what}: {e.what} ({place})', 'give --cache=DIR'))
      continue
    free = shutil.disk_usage(place).free
    found = f'{what}: {place}, {free / 2**30:.1f} GiB free'
    how = 'free some, or give --cache=DIR on a larger disk' if free < _LITTLE else ''
    checks.append(Check('cache', 'note' if how else 'ok', found, how))
  return checks


def _hub(timeout: float) -> Check:
  """Whether the hub answers, and as whom."""
  from huggingface_hub import constants, get_token

  if constants.HF_HUB_OFFLINE:
    how = 'unset it to fetch models and data'
    return Check('hub', 'note', 'HF_HUB_OFFLINE is set: not asked', how)
  with hub_errors.explained('the token', 'model', ''):
    token, ask = get_token(), 'models?limit=1'
  headers = {}
  if token:
    ask, headers = 'whoami-v2', {'Authorization': f'Bearer {token}'}
  how = 'check the connection, HTTPS_PROXY and HF_ENDPOINT; or --mode=fetch on a machine with one'
  if not constants.ENDPOINT.startswith(('http://', 'https://')):
    return Check('hub', 'failed', f'{constants.ENDPOINT} is no address', 'set HF_ENDPOINT again')
  request = urllib.request.Request(f'{constants.ENDPOINT}/api/{ask}', headers=headers)
  try:
    with urllib.request.urlopen(request, timeout=timeout) as reply:
      reply.read()
  except urllib.error.HTTPError as e:
    if e.code in (401, 403) and token:
      return Check(
        'hub', 'failed', f'the token is refused ({e.code})', 'hf auth login, or HF_TOKEN'
      )
    return Check('hub', 'failed', f'{constants.ENDPOINT} answers {e.code}', how)
  except (OSError, ValueError) as e:
    reason = getattr(e, 'reason', e)
    found = f'{constants.ENDPOINT} does not answer: {reason}'
    return Check('hub', 'note', found, f'{how}; models from wheels need no hub')
  if not token:
    how = 'gated models need hf auth login, or HF_TOKEN'
    return Check('hub', 'note', f'{constants.ENDPOINT} answers; nobody is logged in', how)
  return Check('hub', 'ok', f'{constants.ENDPOINT} answers and knows the token')


def _step(config: Any) -> Check:
  """Compiles and runs LoRA steps of a small model; a loss that does not fall is a failure."""
  from sft_jax.interactive import doctor_bench

  toy = doctor_bench.toy(config)
  first, *_, last = toy.losses(8)
  found = f'compiled in {toy.compile_s:.1f} s, loss {first:.2f} → {last:.2f} in 8 steps'
  if not last < first:
    return Check('train step', 'failed', found, _REPORT)
  return Check('train step', 'ok', found)


def _sandbox() -> list[Check]:
  from sft_jax.evals import sandbox

  missing = sandbox.capabilities()
  if not missing:
    return [Check('sandbox', 'ok', 'programs of models can be shut in (humaneval, mbpp)')]
  what = '; '.join(f'no {name}: {why}' for name, why in missing.items())
  how = 'allow user namespaces, or --config.eval.run_code=weak where that is safe enough'
  return [Check('sandbox', 'note', f'for humaneval and mbpp: {what}', how)]


def _tensorboard() -> list[Check]:
  found = [importlib.util.find_spec(name) is not None for name in ('tensorflow', 'clu')]
  if all(found):
    return [Check('TensorBoard', 'ok', 'events can be written')]
  how = 'pip install -r requirements.txt; metrics.jsonl is written all the same'
  return [Check('TensorBoard', 'note', 'tensorflow or clu is missing: no events', how)]

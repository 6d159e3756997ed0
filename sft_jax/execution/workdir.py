"""What a run leaves in its workdir, and how it is recognised there when it starts again.

Files: `config.json` (resolved config, factors, identity, provenance), `audit.json`,
`metrics.jsonl`, TensorBoard events, `checkpoints/`, `weights/`, `rows.jsonl`, `layers.jsonl`,
`samples/`, `export/`, and `done.json` once all is finished, or `failed.json` of a run that was
given up among others. While a run is at work: `lease.json`, and `evaluation.json` with the tasks of
an evaluation that are done.
"""

import contextlib
import dataclasses
import importlib.metadata
import os
import platform
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
from etils import epath

from sft_jax import spec as spec_lib
from sft_jax.results import ROW_KEY, Row
from sft_jax.utils import io, lease, peers
from sft_jax.utils.errors import UserError

# Packages whose versions can change numbers.
_RECORDED = ('jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint', 'transformers', 'tokenizers')


class Workdir:
  """The directory of one run. Only the first process writes, and what it reads all read."""

  def __init__(self, path: str):
    """Touches nothing yet."""
    self.path = epath.Path(path)

  @property
  def _writes(self) -> bool:
    # Asked late, and without a device: processes may not have met yet.
    return peers.is_first()

  def check(self, spec: spec_lib.RunSpec, run_id: str) -> None:
    """Refuses a workdir that belongs to another run.

    Raises:
      UserError: naming the factors that differ.
    """
    config = self.path / 'config.json'
    if not self.claimed():
      return
    held = io.read_json(config)
    if not isinstance(held, dict) or not {'run-id', 'factors'} <= held.keys():
      raise UserError('not a run', str(config), 'choose another --workdir')
    if held['run-id'] == run_id:
      return
    factors, before = spec.factors(), held['factors']
    changed = [
      f'{spec_lib.FACTORS[f].key} was {before.get(f)!r}, is {factors.get(f)!r}'
      for f in spec_lib.FACTORS
      if before.get(f) != factors.get(f)
    ]
    raise UserError(
      f'this workdir holds another run: {"; ".join(changed) or "the data or model has changed"}',
      str(self.path),
      'choose another --workdir, or undo the change',
    )

  @contextlib.contextmanager
  def taken(self, expiry_s: float = lease.EXPIRY_S) -> Iterator[Callable[[], None]]:
    """Makes the directory and holds it against other processes; it goes again if it stays empty.

    Args:
      expiry_s: Seconds of silence after which a process on another machine counts as dead.

    Yields:
      A check that raises UserError when it was lost to another process all the same.

    Raises:
      UserError: another process is at work there, or it cannot be written.
    """
    if not self._writes:
      yield lambda: None
      return
    made = not self.path.exists()
    io.require_writable(self.path)
    try:
      beat_s = min(lease.BEAT_S, expiry_s / 9)
      with lease.Lease(self.path / 'lease.json', beat_s, expiry_s) as held:
        yield held.check
    finally:
      if made and not any(self.path.iterdir()):
        self.path.rmdir()

  def claim(
    self,
    config: Any,
    spec: spec_lib.RunSpec,
    contents: spec_lib.Contents,
    run_id: str,
    provenance: dict[str, Any],
  ) -> None:
    """Writes `config.json`: from here on the directory belongs to this run."""
    self.check(spec, run_id)
    self.put_json(
      'config.json',
      {
        'run-id': run_id,
        'config': config.to_dict(),
        'factors': spec.factors(),
        'contents': dataclasses.asdict(contents),
        'numerics-version': spec_lib.NUMERICS_VERSION,
        'provenance': provenance,
      },
    )

  def rows(self) -> list[Row]:
    """Rows written so far, by step."""
    path = self.path / 'rows.jsonl'
    found = io.read_jsonl(path) if path.exists() else []
    return sorted(peers.from_first(found), key=lambda r: r['step'])

  def put_row(self, row: Row) -> None:
    """Adds a row, or writes the same again."""
    if self._writes:
      io.upsert_jsonl(self.path / 'rows.jsonl', [row], ROW_KEY)

  def put_layers(self, record: dict[str, Any]) -> None:
    """Adds the weight change of one snapshot."""
    if self._writes:
      io.upsert_jsonl(self.path / 'layers.jsonl', [record], ROW_KEY)

  def put_items(self, step: int, name: str, items: list[dict[str, Any]]) -> None:
    """Writes per-item records or samples of one snapshot."""
    text = ''.join(f'{io.to_json(item)}\n' for item in items)
    if self._writes:
      (self.path / 'samples').mkdir(parents=True, exist_ok=True)
      io.write_text_atomic(self.path / 'samples' / f'{name}-{step}.jsonl', text)

  def items(self, step: int, name: str) -> list[dict[str, Any]]:
    """What `put_items` wrote; [] if nothing."""
    path = self.path / 'samples' / f'{name}-{step}.jsonl'
    return io.read_jsonl(path) if path.exists() else []

  def answers(self, step: int) -> epath.Path | None:
    """Where answers to the requests of an evaluation of `step` are kept until it is done."""
    return self.path / f'answers-{step}.jsonl' if self._writes else None

  def put_json(self, name: str, value: Any) -> None:
    """Writes one JSON file."""
    if self._writes:
      io.write_json_atomic(self.path / name, value)

  def finished_tasks(self, step: int, settings: dict[str, Any]) -> dict[str, Any]:
    """Scores by task that an evaluation of `step` had when it was stopped, under equal settings."""
    path = self.path / 'evaluation.json'
    held = io.read_json(path) if path.exists() else {}
    equal = held.get('step') == step and held.get('settings') == settings
    return dict(peers.from_first(held['tasks'] if equal else {}))

  def put_finished_tasks(self, step: int, settings: dict[str, Any], tasks: dict[str, Any]) -> None:
    """Keeps what `finished_tasks` gives back."""
    self.put_json('evaluation.json', {'step': step, 'settings': settings, 'tasks': tasks})

  def begin_again(self) -> None:
    """Removes what an attempt without a state to go on from has left of its snapshots."""
    rows = self.rows()
    if self._writes and any(row['step'] for row in rows):
      base = ''.join(f'{io.to_json(row)}\n' for row in rows if not row['step'])
      io.write_text_atomic(self.path / 'rows.jsonl', base)
      (self.path / 'layers.jsonl').unlink(missing_ok=True)

  def claimed(self) -> bool:
    """Whether a run has begun here."""
    with io.explain_unreadable(self.path):
      return (self.path / 'config.json').exists()

  def finished(self) -> bool:
    """Whether the run is complete."""
    return bool(peers.from_first((self.path / 'done.json').exists()))

  def finish(self, steps: int) -> None:
    """Marks the run complete; nothing is written after this."""
    if self._writes:
      for name in ('evaluation.json', 'failed.json'):
        (self.path / name).unlink(missing_ok=True)
    self.put_json('done.json', {'steps': steps})

  def failure(self) -> str:
    """Why the run was given up; '' if it was not."""
    path = self.path / 'failed.json'
    return str(peers.from_first(io.read_json(path)['reason'] if path.exists() else ''))

  def fail(self, reason: str, step: int) -> None:
    """Marks the run as given up until `failed.json` is removed: its numbers were no numbers."""
    failure = {'kind': 'numbers', 'reason': reason, 'step': step, 'attempts': 1}
    self.put_json('failed.json', failure)


def provenance() -> dict[str, Any]:
  """Versions and machine; recorded, and no part of a run's identity."""
  versions = {}
  for package in _RECORDED:
    try:
      versions[package] = importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
      continue
  return {
    'versions': versions | {'python': platform.python_version()},
    'git-commit': _git_commit(),
    'devices': sorted({d.device_kind for d in jax.devices()}),
    'device-count': jax.device_count(),
    'processes': jax.process_count(),
    'xla-flags': os.environ.get('XLA_FLAGS', ''),
  }


def _git_commit() -> str:
  """Commit of the checkout this code runs from, '+' if it has changes; '' outside of one."""
  here = Path(__file__).resolve().parent
  git = ['git', '-C', str(here)]
  try:
    call = lambda *args: subprocess.run(
      [*git, *args], capture_output=True, text=True, timeout=10, check=True
    ).stdout.strip()
    return call('rev-parse', 'HEAD') + ('+' if call('status', '--porcelain', '-uno') else '')
  except (OSError, subprocess.SubprocessError):
    return ''

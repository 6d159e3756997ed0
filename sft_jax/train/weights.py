"""Weights of a run's snapshots: which are kept, and how they lie on disk.

Each kept step is a directory `weights/<step>`. Small weights (adapters, tiny models) are one
safetensors file in it, written at once; an Orbax checkpoint of any size costs a second and fifteen
files. Large ones, and those of several processes, are Orbax checkpoints written in the background.
Not for leaving sft_jax: `models/export.py`.
"""

import hashlib
import json
import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from etils import epath

from sft_jax.train import orbax_io
from sft_jax.utils import io, log, peers, trees
from sft_jax.utils.errors import UserError

WEIGHTS_POLICIES = ('all', 'last', 'best', 'none')
_FILE = 'weights.safetensors'
SMALL_BYTES = 64 << 20


class Weights:
  """Saves and restores the weights of a run's snapshots, bit for bit, onto any mesh."""

  def __init__(self, directory: epath.Path, run_id: str, policy: str, read_only: bool):
    """Opens `directory` and removes what was never completed; makes nothing.

    Args:
      directory: `weights` of a run's workdir.
      run_id: Identity of the run.
      policy: 'all', 'last', 'best' (and the last) or 'none' are kept.
      read_only: Change nothing on disk: a run may be at work there.

    Raises:
      UserError: an unknown policy; another run's weights.
    """
    if policy not in WEIGHTS_POLICIES:
      raise UserError(
        f'unknown policy {policy!r}',
        where='config.checkpoint.keep_weights',
        how=f'choose one of {", ".join(WEIGHTS_POLICIES)}',
      )
    self._directory, self._run_id, self._policy = directory, run_id, policy
    self._read_only = read_only
    self._manager: Any = None
    orbax_io.sweep(directory, run_id, metadata, read_only)
    held = [(path, metadata(path)) for path in orbax_io.steps(directory)]
    self._steps = {int(path.name): meta for path, meta in held if meta is not None}

  def save(self, step: int, weights: Any, score: float | None = None) -> None:
    """Saves the weights of a snapshot, as the policy says; saving a step again changes nothing.

    Args:
      step: Number of finished steps.
      weights: Nested dict of arrays.
      score: Lower is better; decides what the policy 'best' keeps.
    """
    # A resumed run comes to its snapshots again, with the same weights. One that is older than the
    # latest was kept or dropped then.
    if self._policy == 'none' or step <= max(self._steps, default=-1):
      return
    score = float(score) if score is not None and math.isfinite(score) else None
    meta = {'run_id': self._run_id, 'step': step, 'score': score}
    size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(weights))
    with io.explain_os_errors(self._directory):
      if size <= SMALL_BYTES and jax.process_count() == 1:
        _write(self._directory / str(step) / _FILE, weights, meta)
        self._steps[step] = meta
        kept = self._kept(sorted(self._steps))
        for old in set(self._steps) - set(kept):
          self._remove(old)
      else:
        self._steps[step] = meta
        orbax_io.save(self._orbax(), step, orbax_io.arguments(weights, meta))

  def _remove(self, step: int) -> None:
    # The file first: a directory without one counts as incomplete.
    (self._directory / str(step) / _FILE).unlink(missing_ok=True)
    (self._directory / str(step)).rmtree(missing_ok=True)
    del self._steps[step]

  def _orbax(self) -> Any:
    if self._manager is None:
      self._manager = orbax_io.manager(self._directory, self._kept, self._read_only)
    return self._manager

  def restore(self, step: int, abstract: Any) -> Any:
    """Restores the weights of a snapshot into the shardings of `abstract`.

    Raises:
      UserError: that step was not kept, or it does not fit `abstract`.
    """
    if step not in self.steps():
      raise UserError(
        f'no weights of step {step}',
        where=str(self._directory),
        how=f'kept are {self.steps() or "none"}; see config.checkpoint.keep_weights',
      )
    file = self._directory / str(step) / _FILE
    if file.exists():
      with orbax_io.explain_unreadable(file.parent):
        return _read(file, abstract)
    return orbax_io.restore(self._orbax(), self._directory, step, abstract)

  def steps(self) -> list[int]:
    """Steps whose weights are kept."""
    if self._manager is not None and not self._read_only:
      # What was saved last is there or on its way; the rest is as the policy left it.
      return sorted(self._manager.all_steps())
    # Who may not remove what was never completed must not take it for kept.
    return sorted(s for s in self._steps if metadata(self._directory / str(s)) is not None)

  def best(self) -> int | None:
    """The kept step of the lowest score (the latest of equals); None without scores."""
    return self._best(self.steps())

  def _best(self, steps: Sequence[int]) -> int | None:
    scores = {s: self._steps[s]['score'] for s in steps if s in self._steps}
    scored = {step: score for step, score in scores.items() if score is not None}
    return min(scored, key=lambda step: (scored[step], -step)) if scored else None

  def _kept(self, steps: Sequence[int]) -> Sequence[int | None]:
    """Which of `steps`, in order, stay when one was added."""
    if self._policy == 'all':
      return steps
    return [*steps[-1:], *([self._best(steps)] if self._policy == 'best' else [])]

  def delete(self) -> None:
    """Deletes all of them: the run begins anew."""
    self.close()
    if self._steps:
      log.say(f'removing the weights of an earlier attempt: {self._directory}')
    if peers.is_first():
      for step in list(self._steps):
        self._remove(step)
    self._steps = {}
    peers.wait_for_all('after weights were removed')

  def wait(self) -> None:
    """Returns when everything saved is complete on disk."""
    if self._manager is not None:
      self._manager.wait_until_finished()

  def close(self) -> None:
    """Waits for saves and releases threads."""
    if self._manager is not None:
      self._manager.close()
      self._manager = None


def metadata(path: epath.Path) -> dict[str, Any] | None:
  """What was saved beside the weights in a step's directory; None when they are not whole."""
  file = path / _FILE
  if not file.exists():
    return orbax_io.metadata(path)
  try:
    with file.open('rb') as f:
      header = json.loads(f.read(int.from_bytes(f.read(8), 'little')))
    meta = json.loads(header['__metadata__']['sft_jax'])
    return meta if str(meta['step']) == path.name and 'run_id' in meta else None
  except (OSError, ValueError, KeyError, TypeError):
    return None


def _write(file: epath.Path, weights: Any, meta: dict[str, Any]) -> None:
  from safetensors.numpy import save

  host = jax.device_get(weights)
  flat = {path: np.ascontiguousarray(leaf) for path, leaf in trees.flatten(host).items()}
  # numpy has no bfloat16 of its own, and safetensors does not read it into numpy.
  types = {path: leaf.dtype.name for path, leaf in flat.items() if leaf.dtype.kind == 'V'}
  flat |= {path: flat[path].view(np.uint16) for path in types}
  # One value: safetensors writes several in any order, and equal weights shall be equal files.
  about = io.to_json({**meta, 'sha256': _digest(flat), 'types': types})
  io.write_bytes_atomic(file, save(flat, {'sft_jax': about}))


def _read(file: epath.Path, abstract: Any) -> Any:
  from safetensors.numpy import load

  data = file.read_bytes()
  flat = load(data)
  about = metadata(file.parent)
  if about is None or about['sha256'] != _digest(flat):
    raise ValueError('its bytes have changed since it was written')
  flat |= {path: flat[path].view(jax.numpy.dtype(name)) for path, name in about['types'].items()}
  wanted = trees.flatten(abstract)
  if flat.keys() != wanted.keys():
    raise ValueError(f'it holds {sorted(flat)[:3]}, not {sorted(wanted)[:3]}')

  def place(path: str, want: jax.ShapeDtypeStruct) -> jax.Array:
    held = flat[path]
    if held.shape != want.shape or held.dtype != want.dtype:
      raise ValueError(f'{path} is {held.dtype}{list(held.shape)}, not {want}')
    if want.sharding is None:
      return jax.numpy.asarray(held)
    return jax.make_array_from_callback(want.shape, want.sharding, lambda index: held[index])

  return trees.map_with_path(place, abstract)


def _digest(flat: dict[str, np.ndarray]) -> str:
  digest = hashlib.sha256()
  for path in sorted(flat):
    digest.update(path.encode())
    digest.update(flat[path].tobytes())
  return digest.hexdigest()

"""Pretrained parameters, read once in a process. Not for anything that is trained.

A frozen base stays on the devices for as long as runs on it follow each other. One that is trained
itself is used up by its run, so a copy may be kept on the host for the next. Where the device is
the host both may be the same memory: jax copies what is donated and has another reader.
"""

from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from sft_jax.execution.inputs import Model
from sft_jax.models import hf
from sft_jax.models import quantize as quantize_lib
from sft_jax.utils import trees

Tree = dict[str, Any]
Key = tuple[Any, ...]


class Bases:
  """The bases of one process, one at a time."""

  def __init__(self, keep_host: bool = False):
    """Holds nothing yet.

    Args:
      keep_host: Whether a copy of what `fresh` gives is kept in the host's memory.
    """
    self._keep_host = keep_host
    self._frozen: tuple[Key, Tree] | None = None
    self._host: tuple[Key, dict[str, np.ndarray]] | None = None
    self.reads = 0  # How often weights were read from files.

  def frozen(self, model: Model, mesh: Mesh, dtype: Any, quantize: str) -> Tree:
    """Parameters that nobody changes or donates, on the devices.

    Args:
      model: Whose.
      mesh: Devices.
      dtype: Of parameters that are not quantised.
      quantize: A kind of `models/quantize.py`.
    """
    key = (model.checkpoint, model.cfg, mesh, np.dtype(dtype), quantize)
    if self._frozen is None or not _same(self._frozen[0], key):
      # Before the other is read, so that there is never room for both needed.
      self._frozen = None
      if self._host is not None and self._host[0][0] is not model.checkpoint:
        self._host = None
      self._frozen = key, self._placed(model, mesh, dtype, quantize)
    return self._frozen[1]

  def fresh(self, model: Model, mesh: Mesh, dtype: Any, quantize: str = 'none') -> Tree:
    """Parameters of one's own, which may be donated; see `frozen` for the arguments."""
    # Only one process's parts lie in its memory.
    if not self._keep_host or quantize != 'none' or jax.process_count() > 1:
      return self._read(model, mesh, dtype, quantize)
    key = _host_key(model, dtype)
    if self._host is not None and _same(self._host[0], key):
      return self._placed(model, mesh, dtype, quantize)
    self._host = None
    params = self._read(model, mesh, dtype, quantize)
    self._host = key, {path: np.asarray(leaf) for path, leaf in trees.flatten(params).items()}
    return params

  def _placed(self, model: Model, mesh: Mesh, dtype: Any, quantize: str) -> Tree:
    """From the copy on the host if there is one, else from files."""
    held = self._host
    if held is None or quantize != 'none' or not _same(held[0], _host_key(model, dtype)):
      return self._read(model, mesh, dtype, quantize)
    shardings = hf.param_shardings(model.cfg, mesh)
    return trees.unflatten(
      {
        path: jax.make_array_from_callback(leaf.shape, shardings[path], leaf.__getitem__)
        for path, leaf in held[1].items()
      }
    )

  def _read(self, model: Model, mesh: Mesh, dtype: Any, quantize: str) -> Tree:
    self.reads += 1
    return quantize_lib.load_params(model.checkpoint, model.cfg, mesh, dtype, quantize)

  def drop_frozen(self) -> None:
    """Gives the devices' memory back: what comes next trains a base itself."""
    self._frozen = None


def _host_key(model: Model, dtype: Any) -> Key:
  return model.checkpoint, model.cfg, np.dtype(dtype)


def _same(held: Key, wanted: Key) -> bool:
  """Whether two keys name the same parameters; files are told apart as objects."""
  return held[0] is wanted[0] and held[1:] == wanted[1:]

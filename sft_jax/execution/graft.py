"""Grafting: a base with one band of layers of what was trained into it, scored without training.

Whether change in some layers goes with a gain is a correlation; what those layers alone do to the
scores is its experiment. Bands are arguments of one compiled program: for an adapter a scale of
zero where a layer stays the base's, for a whole model a choice of parameters by layer. Not for
training a band only (`config.train.layers`).
"""

import contextlib
import dataclasses
import itertools
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from sft_jax.evals import compare, records
from sft_jax.evals import model as eval_model
from sft_jax.evals.probes import layer_delta
from sft_jax.utils import trees
from sft_jax.utils.errors import UserError

Tree = dict[str, Any]

FORMAT = 1
NONE, ALL, REST = 'none', 'all', 'outside'


class Graft(NamedTuple):
  """What is taken from the trained model.

  Attributes:
    name: As in the table: 'none', 'all', 'outside', or a band such as '0-9'.
    layers: bool `[L]`.
    outside: Whether also what lies in no layer: embeddings, last norm, head.
  """

  name: str
  layers: np.ndarray
  outside: bool


def grafts(text: str, num_layers: int, has_outside: bool) -> list[Graft]:
  """Nothing, each band, what lies outside of layers where it was trained, and everything.

  Args:
    text: `config.eval.graft`: bands FIRST-LAST between commas, from 0, the last layer included; or
      a number of bands of about equal size.
    num_layers: L.
    has_outside: Whether the change reaches beyond layers.

  Raises:
    UserError: not of that form, or outside the model.
  """
  where = 'config.eval.graft'
  how = f'give bands such as 0-{(num_layers - 1) // 2} within 0-{num_layers - 1}, or their number'
  bands = []
  for part in [part.strip() for part in text.split(',')]:
    found = re.fullmatch(r'(\d+)(?:-(\d+))?', part)
    if not found:
      raise UserError(f'{part!r} is no band of layers', where, how)
    bands.append((int(found[1]), int(found[2] or found[1])))
  if text.strip().isdigit():
    count = int(text)
    if not 0 < count <= num_layers:
      raise UserError(f'{count} bands of {num_layers} layers', where, how)
    ends = np.linspace(0, num_layers, count + 1).round().astype(int)
    bands = [(int(a), int(b) - 1) for a, b in itertools.pairwise(ends)]
  if wrong := [f'{a}-{b}' for a, b in bands if not a <= b < num_layers]:
    raise UserError(f'{wrong[0]} is no band of {num_layers} layers', where, how)
  if len(set(bands)) < len(bands):
    raise UserError('a band stands twice', where, how)
  at = np.arange(num_layers)
  none = np.zeros(num_layers, bool)
  out = [Graft(NONE, none, False)]
  out += [Graft(f'{a}-{b}', (at >= a) & (at <= b), False) for a, b in bands]
  if has_outside:
    out.append(Graft(REST, none, True))
  return [*out, Graft(ALL, ~none, True)]


class Change:
  """What training did to a base: an adapter, or all parameters."""

  def __init__(self, tuned: eval_model.Subject, base: Tree | None = None):
    """Holds both.

    Args:
      tuned: One trained model of ours.
      base: Parameters it was trained from, of the same structure and types; None for an adapter,
        whose base is in `tuned`.

    Raises:
      UserError: a whole model without its base.
    """
    if base is None and tuned.params['adapter'] is None:
      raise UserError(
        'nothing was trained here that could be grafted',
        'config.eval.graft',
        'give run:WORKDIR[@STEP] in config.model.path, or a base with config.model.adapter, or a '
        'whole model with its base in config.eval.graft_base',
      )
    self._tuned, self._base = tuned, base
    # Held, so that all bands are one compiled program; placed as what was trained is.
    shardings = jax.tree.map(lambda x: x.sharding, tuned.params['base'])
    self._choose = jax.jit(_chosen, out_shardings=shardings)

  def grafts(self, text: str) -> list[Graft]:
    """What `text` says of this model; see `grafts`."""
    leaves = trees.flatten(self._tuned.params['base'])
    kernel = next(leaf for path, leaf in leaves.items() if path.startswith('layers/'))
    return grafts(text, kernel.shape[0], self._base is not None)

  def subject(self, graft: Graft) -> eval_model.Subject:
    """The base with that part of the change."""
    params = self._tuned.params
    if self._base is None:
      scale = params['scale'] * jnp.asarray(graft.layers, params['scale'].dtype)
      return dataclasses.replace(self._tuned, params=params | {'scale': scale})
    layers, outside = jnp.asarray(graft.layers), jnp.asarray(graft.outside)
    made = self._choose(params['base'], self._base, layers, outside)
    return dataclasses.replace(self._tuned, params=params | {'base': made})

  def norms(self) -> np.ndarray:
    """`[L]` Frobenius norm of the change of each layer's linear modules."""
    params = self._tuned.params
    if self._base is None:
      found = layer_delta.layer_delta(
        params['base'], adapter=params['adapter'], scale=params['scale']
      )
    else:
      found = layer_delta.layer_delta(self._base, after=params['base'])
    return np.array(found['all']['norm'])


def _chosen(tuned: Tree, base: Tree, layers: jax.Array, outside: jax.Array) -> Tree:
  """Each parameter from one or the other."""
  old = trees.flatten(base)

  def one(path: str, new: jax.Array) -> jax.Array:
    mask = outside
    if path.startswith('layers/'):
      mask = layers.reshape(-1, *[1] * (new.ndim - 1))
    return jnp.where(mask, new, old[path])

  return trees.map_with_path(one, tuned)


def intervals(place: epath.PathLike, made: Sequence[Graft]) -> dict[str, dict[str, float]]:
  """How far each graft's scores lie from the base's, item by item (`evals/compare.py`).

  Args:
    place: Directory of the workdirs of the grafts.
    made: What was scored; without benchmarks there are no items, and so no intervals.

  Returns:
    {graft: {f'{column}-change-low', f'{column}-change-high': 95 % interval in the column's unit}}.
  """
  out: dict[str, dict[str, float]] = {}
  for graft in made:
    if graft.name == NONE:
      continue
    # A judge that failed everywhere leaves nothing to compare.
    with contextlib.suppress(UserError):
      before, after = (records.read(str(epath.Path(place) / name)) for name in (NONE, graft.name))
      for one in compare.compare(before, after):
        low, high = one.difference.low, one.difference.high
        if low is not None and high is not None:
          head = f'{one.about["column"]}-change'
          out.setdefault(graft.name, {}).update({f'{head}-low': low, f'{head}-high': high})
  return out


def table(
  made: Sequence[Graft], rows: Mapping[str, Mapping[str, Any]], norms: np.ndarray
) -> list[dict[str, Any]]:
  """Rows of the table of grafts.

  Args:
    made: What was scored.
    rows: {graft's name: its row of scores}.
    norms: `[L]` norm of the change of each layer.

  Returns:
    For each graft `graft`, `first` and `last` layer (empty for none), `layers`, `depth` (0 to 1, of
    the middle of the band), `change-share` (of the squared change of all layers), and the scores.
  """
  whole = max(float(np.square(norms).sum()), 1e-300)
  out = []
  for graft in made:
    inside = np.flatnonzero(graft.layers)
    one: dict[str, Any] = {'graft': graft.name, 'layers': len(inside)}
    if len(inside):
      one |= {'first': int(inside[0]), 'last': int(inside[-1])}
      one['depth'] = float(inside.mean() / max(len(norms) - 1, 1))
    one['change-share'] = float(np.square(norms[inside]).sum() / whole)
    # A run's own factor `layers` gives way.
    out.append(one | {key: value for key, value in rows[graft.name].items() if key not in one})
  return out

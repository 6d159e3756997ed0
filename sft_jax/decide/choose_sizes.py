"""The rungs of a race: how many examples at each, and how far gains there are from gains in full.

Not for running them: `choose_run.py`.
"""

import os
from collections.abc import Sequence

from sft_jax.study.race_evidence import Rung
from sft_jax.utils import io, words

# Points (standard deviation) that a gain on a share of the data moves against the others' until all
# are used, times the root of that share: 4.5 at a twentieth, the median over models and benchmarks
# of 1k against 20k examples in the published table.
_DRIFT = 1.0


def default(workdir: str, most: int, full: int, batch_size: int) -> list[int]:
  """A sixteenth, a quarter and all; what a workdir was begun with stands.

  A candidate more, even the largest, so leaves the runs of the others what they were.

  Args:
    workdir: Of the race.
    most: Examples of the largest candidate.
    full: `config.data.size`; 0 takes all.
    batch_size: Of which the first rung has at least four.
  """
  file = os.path.join(workdir, 'sizes.json')
  kept = io.read_json(file) if os.path.exists(file) else {}
  if kept and kept['full'] == full:
    return list(kept['sizes'])
  whole, least = full or most, max(4 * batch_size, 64)
  sizes = [*(whole // part for part in (16, 4) if whole // part >= least), full]
  io.write_json_atomic(file, {'full': full, 'sizes': sizes})
  return sizes


def rungs(sizes: Sequence[int], most: int, seeds: tuple[int, int]) -> list[Rung]:
  """The rungs of some sizes.

  Args:
    sizes: Examples at each, growing; 0 for all.
    most: Examples of the largest candidate.
    seeds: Runs at a rung, and at the last.
  """
  few, many = seeds
  out = []
  for number, size in enumerate(sizes, 1):
    name = words.count(size, 'example') if size else 'all examples'
    last = number == len(sizes)
    drift = 0.0 if last else _DRIFT * max((sizes[-1] or most) / size, 1.0) ** 0.5
    out.append(Rung(name, many if last else few, drift))
  return out

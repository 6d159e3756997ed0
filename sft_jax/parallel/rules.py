"""How arrays are cut over the mesh: logical axis names -> mesh axes.

An axis whose size its mesh axes do not divide stays whole, and the caller is told. Not for
choosing a mesh (`mesh.py`).
"""

from collections.abc import Mapping, Sequence

from jax.sharding import Mesh, NamedSharding, PartitionSpec

# Logical axis -> mesh axes that cut it, in order; () = never cut. Parameters are cut once over
# `fsdp` and once over `tensor`; the batch over everything that is not `tensor`.
LOGICAL_RULES: dict[str, tuple[str, ...]] = {
  'vocab': ('tensor',),
  'embed': ('fsdp',),
  'heads': ('tensor',),
  'kv_heads': ('tensor',),
  'mlp': ('tensor',),
  'norm': (),
  'head': (),
  'layers': (),
  'rank': (),
  'runs': (),
  'micro': (),
  'batch': ('data', 'fsdp'),
  'tokens': (),
}


def stacked_axes(path: str, axes: Sequence[str]) -> tuple[str, ...]:
  """Logical axes of a parameter as we keep it: those under `layers/` have a layer axis first."""
  return ('layers', *axes) if path.startswith('layers/') else tuple(axes)


def adapter_axes(axes: Sequence[str]) -> dict[str, tuple[str, ...]]:
  """Logical axes of the adapter of a kernel `[in, out]`: A [R, L, in, r] and B [R, L, r, out]."""
  fan_in, fan_out = axes
  return {
    'lora_a': ('runs', 'layers', fan_in, 'rank'),
    'lora_b': ('runs', 'layers', 'rank', fan_out),
  }


def partition_spec(
  logical_axes: Sequence[str],
  shape: Sequence[int],
  mesh: Mesh,
  fallbacks: list[str] | None = None,
  name: str = 'array',
) -> PartitionSpec:
  """Returns how an array of `shape` is cut.

  Args:
    logical_axes: One name of `LOGICAL_RULES` for each axis of the array.
    shape: Its shape.
    mesh: Mesh with the axes of `mesh.AXES`.
    fallbacks: Receives a sentence for each axis left whole because a mesh axis of more than one
      device does not divide it (or already cuts another axis of this array).
    name: What the sentence calls the array.

  Raises:
    ValueError: the numbers of axes differ, or a name stands in no rule.
  """
  if len(logical_axes) != len(shape):
    raise ValueError(f'{name}: axes {tuple(logical_axes)} do not name shape {tuple(shape)}')
  used: set[str] = set()
  spec: list[str | tuple[str, ...] | None] = []
  for logical, size in zip(logical_axes, shape, strict=True):
    if logical not in LOGICAL_RULES:
      raise ValueError(f'{name}: no rule for logical axis {logical!r}')
    taken: list[str] = []
    parts = 1
    for axis in LOGICAL_RULES[logical]:
      count = mesh.shape[axis]
      # An axis of one device cuts nothing: left out, so that equal layouts compare equal.
      if count == 1:
        continue
      if axis in used or size % (parts * count):
        if fallbacks is not None:
          why = 'is cut already' if axis in used else f'{size} is not divisible by {parts * count}'
          fallbacks.append(f'{name}: {logical} is not cut over {axis}={count} ({why})')
        continue
      taken.append(axis)
      used.add(axis)
      parts *= count
    spec.append(None if not taken else taken[0] if len(taken) == 1 else tuple(taken))
  while spec and spec[-1] is None:
    spec.pop()
  return PartitionSpec(*spec)


def shardings(
  table: Mapping[str, tuple[Sequence[str], Sequence[int]]],
  mesh: Mesh,
  fallbacks: list[str] | None = None,
) -> dict[str, NamedSharding]:
  """Returns {path: sharding} for {path: (logical axes, shape)}, axes of the array as it is kept."""
  return {
    path: NamedSharding(mesh, partition_spec(axes, shape, mesh, fallbacks, path))
    for path, (axes, shape) in table.items()
  }

"""Nested dicts of arrays, addressed by '/'-joined paths. Not for general pytrees."""

from collections.abc import Callable, Mapping
from typing import Any

Tree = dict[str, Any]


def flatten(tree: Mapping[str, Any], prefix: str = '') -> dict[str, Any]:
  """Returns {'a/b': leaf} in sorted path order (the order jax uses for dicts)."""
  flat: dict[str, Any] = {}
  for key in sorted(tree):
    value, path = tree[key], f'{prefix}{key}'
    if isinstance(value, Mapping):
      flat.update(flatten(value, f'{path}/'))
    else:
      flat[path] = value
  return flat


def unflatten(flat: Mapping[str, Any]) -> Tree:
  """Inverse of `flatten`."""
  tree: Tree = {}
  for path, leaf in flat.items():
    node = tree
    *parents, name = path.split('/')
    for parent in parents:
      node = node.setdefault(parent, {})
    node[name] = leaf
  return tree


def map_with_path(
  fn: Callable[..., Any], tree: Mapping[str, Any], *rest: Mapping[str, Any]
) -> Tree:
  """Applies `fn(path, leaf, *other_leaves)` to every leaf."""
  others = [flatten(r) for r in rest]
  return unflatten(
    {path: fn(path, leaf, *(o[path] for o in others)) for path, leaf in flatten(tree).items()}
  )

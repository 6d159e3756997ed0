"""What the `adapter_config.json` of a PEFT adapter says. Its weights are read by `peft.py`."""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from sft_jax.models import patterns
from sft_jax.utils.errors import UserError

T = TypeVar('T')

# Fields of adapter_config.json and the values under which an adapter is what we compute.
_PLAIN = {
  'use_dora': (None, False),
  'fan_in_fan_out': (None, False),
  'bias': (None, 'none'),
  'modules_to_save': (None, []),
  'lora_bias': (None, False),
  'trainable_token_indices': (None,),
  'target_parameters': (None, []),
  'layer_replication': (None,),
  # Other ways to compute with the same factors.
  'alora_invocation_tokens': (None, []),
  'arrow_config': (None,),
  'kasa_config': (None,),
  'monteclora_config': (None,),
  'use_bdlora': (None, False),
  'use_qalora': (None, False),
  # The rest of these (pissa, olora, corda, loftq, …) change the base that the factors go with.
  'init_lora_weights': (None, True, False, 'gaussian', 'eva', 'orthogonal'),
}


def check_kind(config: Mapping[str, Any], where: str) -> None:
  """Raises UserError for an adapter that is not computed as ours are."""
  if config.get('peft_type') != 'LORA':
    raise UserError(f'adapter of type {config.get("peft_type")!r:.200}', where, 'only LORA is read')
  for key, allowed in _PLAIN.items():
    if config.get(key) not in allowed:
      raise UserError(f'{key}={config[key]!r:.200} is not implemented', where, 'train without it')


def targets(config: Mapping[str, Any], keys: Sequence[str], where: str) -> list[str]:
  """Those of the full names of linear maps that the config says are adapted.

  Raises:
    UserError: none of them; a malformed field.
  """
  try:
    found = _targets(config, keys)
  except (AttributeError, KeyError, TypeError, ValueError) as e:
    raise UserError(f'malformed field: {e}', where, 'restore the file') from e
  if not found:
    raise UserError(
      f'target_modules={config["target_modules"]!r:.200} names no linear map of the base model',
      where,
      'the adapter is of another one',
    )
  return found


def _targets(config: Mapping[str, Any], keys: Sequence[str]) -> list[str]:
  """As `check_target_module_exists` of peft/tuners/tuners_utils.py decides it, key by key."""

  def named(names: Any) -> frozenset[str]:
    if isinstance(names, str):
      return patterns.fullmatches(names, keys)
    ends = tuple(f'.{name}' for name in names)
    return frozenset(key for key in keys if key in names or key.endswith(ends))

  wanted, layers = config['target_modules'], config.get('layers_to_transform')
  excluded = named(config.get('exclude_modules') or [])
  everything = isinstance(wanted, str) and wanted.lower() == 'all-linear'
  chosen = frozenset(keys) if everything else named(wanted)
  if not isinstance(wanted, str) and layers not in (None, []):
    layers = [layers] if isinstance(layers, int) else layers
    inside = _layer_numbers(config.get('layers_pattern') or '[^.]*', keys)
    chosen = frozenset(key for key in chosen if key in wanted or inside.get(key) in layers)
  return [key for key in keys if key in chosen - excluded]


def _layer_numbers(pattern: str | Sequence[str], keys: Sequence[str]) -> dict[str, int]:
  """Number of the layer of each key whose name before the number ends as a pattern says."""
  parts = {key: re.fullmatch(r'(.*?)\.(\d+)\..*', key) for key in keys}
  inside = {key: (match[1], int(match[2])) for key, match in parts.items() if match}
  names = {name for name, _ in inside.values()}
  listed = [pattern] if isinstance(pattern, str) else pattern
  found = [patterns.fullmatches(rf'(?:.*\.)?(?:{one})', names) for one in listed]
  return {key: layer for key, (name, layer) in inside.items() if name in frozenset().union(*found)}


class Scaling:
  """Ranks and scales that an adapter's config states.

  Attributes:
    alpha: Of modules without a pattern.
    scale: Likewise, alpha over rank (over its root under rsLoRA); the one the tree goes with.
    dropout: As trained with.
  """

  def __init__(self, config: Mapping[str, Any], keys: Sequence[str], where: str):
    """Reads `config`, of an adapter on linear maps whose full names are `keys`."""
    try:
      self._root = bool(config.get('use_rslora'))
      self._rank, self.alpha = int(config['r']), float(config['lora_alpha'])
      ranks = {k: int(v) for k, v in (config.get('rank_pattern') or {}).items()}
      alphas = {k: float(v) for k, v in (config.get('alpha_pattern') or {}).items()}
      self.dropout = float(config.get('lora_dropout') or 0.0)
      self.scale = self._scale(self._rank, self.alpha)
      good = min((self._rank, *ranks.values())) > 0 < self.scale
      good &= all(map(math.isfinite, (self.scale, *alphas.values())))
      self._ranks, self._alphas = _by_pattern(ranks, keys), _by_pattern(alphas, keys)
    except (KeyError, TypeError, ValueError, AttributeError, ArithmeticError) as e:
      raise UserError(f'malformed field: {e}', where, 'restore the file') from e
    if not good:
      raise UserError('impossible ranks or scales', where, 'restore the file')

  def _scale(self, rank: int, alpha: float) -> float:
    return alpha / (rank**0.5 if self._root else rank)

  def rank(self, key: str) -> int:
    """Rank of the linear map of that full name."""
    return self._ranks.get(key, self._rank)

  def relative(self, key: str) -> float:
    """Its scale over `scale`."""
    return self._scale(self.rank(key), self._alphas.get(key, self.alpha)) / self.scale


def _by_pattern(values: Mapping[str, T], keys: Sequence[str]) -> dict[str, T]:
  """Value of the first pattern that matches the end of each key, as PEFT's `get_pattern_key`."""
  found: dict[str, T] = {}
  for pattern, value in values.items():
    for key in patterns.fullmatches(rf'(?:.*\.)?(?:{pattern})', keys):
      found.setdefault(key, value)
  return found

"""What the `adapter_config.json` of a PEFT adapter says. Its weights are read by `peft.py`."""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

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
    found = [key for key in keys if _is_target(config, key)]
  except (AttributeError, KeyError, TypeError, ValueError, re.error) as e:
    raise UserError(f'malformed field: {e}', where, 'restore the file') from e
  if not found:
    raise UserError(
      f'target_modules={config["target_modules"]!r:.200} names no linear map of the base model',
      where,
      'the adapter is of another one',
    )
  return found


def _is_target(config: Mapping[str, Any], key: str) -> bool:
  """As `check_target_module_exists` of peft/tuners/tuners_utils.py decides it."""

  def named(names: Any) -> bool:
    if isinstance(names, str):
      return bool(re.fullmatch(names, key))
    return key in names or any(key.endswith(f'.{name}') for name in names)

  wanted, layers = config['target_modules'], config.get('layers_to_transform')
  if (excluded := config.get('exclude_modules')) and named(excluded):
    return False
  if isinstance(wanted, str) and wanted.lower() == 'all-linear':
    return True
  if isinstance(wanted, str) or key in wanted or layers in (None, []) or not named(wanted):
    return named(wanted)
  patterns = config.get('layers_pattern') or r'[^.]*'
  patterns = [patterns] if isinstance(patterns, str) else patterns
  found = (re.match(rf'(?:^|.*?\.){pattern}\.(?P<index>\d+)\.', key) for pattern in patterns)
  layer = next((int(match['index']) for match in found if match), None)
  return layer is not None and layer in ([layers] if isinstance(layers, int) else layers)


class Scaling:
  """Ranks and scales that an adapter's config states.

  Attributes:
    alpha: Of modules without a pattern.
    scale: Likewise, alpha over rank (over its root under rsLoRA); the one the tree goes with.
    dropout: As trained with.
  """

  def __init__(self, config: Mapping[str, Any], where: str):
    try:
      self._root = bool(config.get('use_rslora'))
      self._rank, self.alpha = int(config['r']), float(config['lora_alpha'])
      self._ranks = {k: int(v) for k, v in (config.get('rank_pattern') or {}).items()}
      self._alphas = {k: float(v) for k, v in (config.get('alpha_pattern') or {}).items()}
      self.dropout = float(config.get('lora_dropout') or 0.0)
      self.scale = self._scale(self._rank, self.alpha)
      good = min((self._rank, *self._ranks.values())) > 0 < self.scale
      good &= all(map(math.isfinite, (self.scale, *self._alphas.values())))
      for pattern in (*self._ranks, *self._alphas):
        re.compile(pattern)
    except (KeyError, TypeError, ValueError, AttributeError, ArithmeticError, re.error) as e:
      raise UserError(f'malformed field: {e}', where, 'restore the file') from e
    if not good:
      raise UserError('impossible ranks or scales', where, 'restore the file')

  def _scale(self, rank: int, alpha: float) -> float:
    return alpha / (rank**0.5 if self._root else rank)

  def rank(self, key: str) -> int:
    """Rank of the linear map of that full name."""
    return _by_pattern(self._ranks, key, self._rank)

  def relative(self, key: str) -> float:
    """Its scale over `scale`."""
    alpha = _by_pattern(self._alphas, key, self.alpha)
    return self._scale(self.rank(key), alpha) / self.scale


def _by_pattern(patterns: Mapping[str, T], key: str, default: T) -> T:
  """Value of the first pattern that matches the end of a name, as PEFT's `get_pattern_key`."""
  found = (v for pattern, v in patterns.items() if re.match(rf'(.*\.)?({pattern})$', key))
  return next(found, default)

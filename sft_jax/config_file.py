"""Config files: executed, keys and values compared with the base, what is wrong named by line.

Not for what values mean (`spec.py`).
"""

import difflib
import importlib.util
import os
import re
import traceback
from collections.abc import Mapping, Sequence
from typing import Any

from sft_jax.utils import foreign_keys
from sft_jax.utils.errors import UserError


def locate(argument: str) -> str:
  """FILE[:ARG] with the file found: as it is, else among the configs that come with the package.

  `configs/sft.py:lora`, `sft.py:lora` and `sft:lora` all name the same where no such file lies in
  the current directory, so that an installed package needs no checkout. What is nowhere stays as it
  is.
  """
  path, colon, rest = argument.partition(':')
  if os.path.isfile(path):
    return argument
  name = path.removeprefix('configs/').removesuffix('.py')
  found = os.path.join(_packaged(), *name.split('/')) + '.py'
  return found + colon + rest if name and os.path.isfile(found) else argument


def _base() -> Any:
  """The module that declares every key.

  Raises:
    UserError: another package called configs stands before ours.
  """
  try:
    from configs import base
  except ImportError as e:
    raise UserError(
      f"another package named configs hides sft_jax's: {e}",
      os.getcwd(),
      'use the command sft-jax, or start from another directory',
    ) from e
  return base


def _packaged() -> str:
  """Directory of the configs that come with the package."""
  return os.path.dirname(os.path.abspath(_base().__file__))


def with_changes(config: Any, changes: Mapping[str, Any], where: str) -> Any:
  """A config with values changed by dotted key ('train.epochs'); the config given stays as it is.

  Args:
    config: The one to start from.
    changes: {dotted key: value}; a path may be an `os.PathLike`, a number numpy's.
    where: For messages.

  Raises:
    UserError: an unknown key, or a value of another type.
  """
  if not isinstance(changes, Mapping):
    raise UserError(
      f'{changes!r:.80} are no changes', where, "give {'KEY': value}, such as {'train.epochs': 1.0}"
    )
  config = config.copy_and_resolve_references()
  for key, value in changes.items():
    key = str(key).removeprefix('config.')
    *path, last = key.split('.')
    inner = config
    for part in path:
      if not hasattr(inner, 'items') or part not in inner:
        raise unknown_key(f'config.{key}', where)
      inner = inner[part]
    if not hasattr(inner, 'items') or last not in inner:
      raise unknown_key(f'config.{key}', where)
    inner[last] = _fitting(value, inner[last], f'config.{key}', where)
  check_values(config, where)
  return config


def _fitting(value: Any, held: Any, key: str, where: str) -> Any:
  """A value as a config holds it, if it may stand where `held` does."""
  if hasattr(held, 'items'):
    if isinstance(value, Mapping):
      return value
    how = f'change its keys, such as {key}.{next(iter(held.keys()))}'
    raise UserError(f'{key} is {value!r:.80}, and a group of keys', where, how)
  if isinstance(value, os.PathLike):
    value = os.fspath(value)
  elif getattr(value, 'shape', None) == () and hasattr(value, 'item'):
    value = value.item()  # numpy, which is not imported for this
  wanted = type(held)
  if wanted is float and type(value) is int:
    return float(value)
  if not isinstance(value, wanted) or isinstance(value, bool) != isinstance(held, bool):
    raise _wrong_type(key, value, held, where)
  return value


def _wrong_type(key: str, value: Any, held: Any, where: str, otherwise: str = '') -> UserError:
  return UserError(
    f'{key} is {value!r:.80}, of type {type(value).__name__}, not {type(held).__name__}',
    where,
    f'give a value such as {held!r}{otherwise}',
  )


def completed(held: Mapping[str, Any]) -> Any:
  """A config that was kept with a run, with keys that came later at their defaults."""
  config = _base().get_config()
  known = leaves(config)
  given = {key: value for key, value in leaves(held).items() if key in known}
  return with_changes(config, given, 'config.json')


def load_config(argument: str) -> Any:
  """What a config file gives; the flag loads it again, but forgets in which line it failed.

  Args:
    argument: FILE or FILE:ARG.

  Raises:
    UserError: with file and line of what is wrong.
  """
  code, rest, path = _execute(argument)
  try:
    return code.get_config(*rest)
  except UserError:
    raise
  except Exception as e:  # a config is a program
    raise _config_error(e, path) from e


def sweep(argument: str) -> list[dict[str, Any]] | None:
  """The runs that a config file's `sweep()` yields, as overrides; None where it has none.

  Raises:
    UserError: with file and line of what is wrong.
  """
  code, rest, path = _execute(argument)
  if not hasattr(code, 'sweep'):
    return None
  try:
    return [dict(entry) for entry in code.sweep(*rest)]
  except UserError:
    raise
  except Exception as e:  # a config is a program
    raise _config_error(e, path) from e


def _execute(argument: str) -> tuple[Any, list[str], str]:
  """The module of FILE or FILE:ARG, its argument, if there is one, and its path."""
  path, *rest = locate(argument).split(':', 1)
  module = importlib.util.spec_from_file_location('config', path)
  if module is None or module.loader is None or not os.path.isfile(path):
    raise UserError(
      f'cannot read the config: no Python file {path}',
      f'--config={argument}',
      f'give a .py file, or one of {", ".join(_names())}',
    )
  code = importlib.util.module_from_spec(module)
  try:
    module.loader.exec_module(code)
  except UserError:
    raise
  except Exception as e:  # a config is a program
    raise _config_error(e, path) from e
  return code, rest, path


def _names() -> list[str]:
  """Configs that come with the package."""
  root = _packaged()
  files = [file for file in os.listdir(root) if file.endswith('.py') and not file.startswith('_')]
  return sorted(f'configs/{file}' for file in files if file != 'base.py')


def _config_error(error: Exception, path: str) -> UserError:
  """Names the line of the config (or of a file of ours that it imports) where it failed."""
  frames = traceback.extract_tb(error.__traceback__)
  if isinstance(error, SyntaxError):
    return UserError(error.msg, f'{error.filename}:{error.lineno}', 'mend the config')
  ours = [frame for frame in frames if os.path.abspath(frame.filename) == os.path.abspath(path)]
  where = f'{path}:{ours[-1].lineno}' if ours else path
  line = (ours[-1].line or '') if ours else ''
  from_config = 'ml_collections' in frames[-1].filename
  if from_config and isinstance(error, (KeyError, AttributeError)):
    part = unknown_part(error)
    keys = re.findall(r'config\.[\w.]+', line)
    return unknown_key(next((key for key in keys if part in key.split('.')), part), where)
  named = '' if isinstance(error, (ValueError, TypeError)) else f'{type(error).__name__}: '
  return UserError(f'{named}{last_line(error)}', where, 'mend the config')


def check_values(config: Any, where: str) -> None:
  """Compares keys and types with the base, whose keys are all there are.

  Raises:
    UserError: a key too many or too few, None, or a value of another type.
  """
  given, known = leaves(config, 'config'), _known()
  for key in given.keys() - known.keys():
    if given[key] is None:
      raise UserError(f'{key} is None', where, 'start from configs/base.py:get_config()')
    raise unknown_key(key, where)
  for key, default in known.items():
    if key not in given:
      raise UserError(f'{key} is missing', where, 'start from configs/base.py:get_config()')
    value = given[key]
    if not isinstance(value, type(default)) or isinstance(value, bool) != isinstance(default, bool):
      raise _wrong_type(key, value, default, where, ', or leave the key out')


def changed(config: Any) -> dict[str, Any]:
  """{'config.KEY': value} of what differs from the base."""
  known = _known()
  return {key: value for key, value in leaves(config).items() if value != known[key]}


def unknown_part(error: Exception) -> str:
  """The name that ml_collections says it does not know."""
  found = re.findall(r'[\'"]([^\'"\\]+)', re.sub(r'^[\'"]Key ', '', str(error)))
  return found[0] if found else ''


def unknown_key(key: str, where: str, prefix: str = '') -> UserError:
  """The error for a config key that does not exist: what it is called here, or the nearest one."""
  if known_elsewhere := foreign_keys.answer(key, prefix):
    return UserError(f'unknown config key {key}', where, known_elsewhere)
  known = {'.'.join(path.split('.')[-1 - key.count('.') :]): path for path in _known()}
  near = [known[name] for name in difflib.get_close_matches(key, known, 1, cutoff=0.5)]
  how = f'did you mean {prefix}{near[0]}?' if near else 'configs/base.py lists all keys'
  return UserError(f'unknown config key {key}', where, how)


def flag_for(name: str, flags: Sequence[str]) -> str:
  """What to type instead of a flag `--NAME` that does not exist; `flags` are those that do."""
  if known_elsewhere := foreign_keys.answer(name, '--'):
    return known_elsewhere
  if near := difflib.get_close_matches(name, flags, 1):
    return f'did you mean --{near[0]}?'
  by_name = {path.rpartition('.')[2]: path for path in _known()}
  near = difflib.get_close_matches(name.replace('-', '_'), by_name, 1, cutoff=0.75)
  return f'did you mean --{by_name[near[0]]}?' if near else '--helpshort lists the flags'


def _known() -> dict[str, Any]:
  """Every key there is, with its default."""
  return leaves(_base().get_config())


def leaves(config: Any, prefix: str = 'config') -> dict[str, Any]:
  """{dotted key: value}."""
  if not hasattr(config, 'items'):
    return {prefix: config}
  out: dict[str, Any] = {}
  for name, value in config.items():
    out |= leaves(value, f'{prefix}.{name}')
  return out


def last_line(error: BaseException) -> str:
  """The last line of a message, which says most."""
  lines = [line.strip() for line in str(error).splitlines() if line.strip()]
  return re.sub(r'^\w+(Error|Exception): ', '', lines[-1]) if lines else type(error).__name__

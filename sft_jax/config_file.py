"""Config files: executed, keys and values compared with the base, what is wrong named by line.

Not for what values mean (`spec.py`).
"""

import difflib
import importlib.util
import os
import re
import traceback
from typing import Any

from sft_jax.utils.errors import UserError


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
  path, *rest = argument.split(':', 1)
  module = importlib.util.spec_from_file_location('config', path)
  if module is None or module.loader is None or not os.path.isfile(path):
    raise UserError(
      f'cannot read the config: no Python file {path}', f'--config={argument}', 'give a .py file'
    )
  code = importlib.util.module_from_spec(module)
  try:
    module.loader.exec_module(code)
  except UserError:
    raise
  except Exception as e:  # a config is a program
    raise _config_error(e, path) from e
  return code, rest, path


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
  given, known = _leaves(config, 'config'), _known()
  for key in given.keys() - known.keys():
    if given[key] is None:
      raise UserError(f'{key} is None', where, 'start from configs/base.py:get_config()')
    raise unknown_key(key, where)
  for key, default in known.items():
    if key not in given:
      raise UserError(f'{key} is missing', where, 'start from configs/base.py:get_config()')
    value, wanted = given[key], type(default)
    if not isinstance(value, wanted) or isinstance(value, bool) != isinstance(default, bool):
      raise UserError(
        f'{key} is {value!r}, not of type {wanted.__name__}',
        where,
        f'give a value such as {default!r}, or leave the key out',
      )


def unknown_part(error: Exception) -> str:
  """The name that ml_collections says it does not know."""
  found = re.findall(r'[\'"]([^\'"\\]+)', re.sub(r'^[\'"]Key ', '', str(error)))
  return found[0] if found else ''


def unknown_key(key: str, where: str, prefix: str = '') -> UserError:
  """The error for a config key that does not exist, with the nearest one that does."""
  known = {'.'.join(path.split('.')[-1 - key.count('.') :]): path for path in _known()}
  near = [known[name] for name in difflib.get_close_matches(key, known, 1, cutoff=0.5)]
  how = f'did you mean {prefix}{near[0]}?' if near else 'configs/base.py lists all keys'
  return UserError(f'unknown config key {key}', where, how)


def _known() -> dict[str, Any]:
  """Every key there is, with its default."""
  from configs import base

  return _leaves(base.get_config(), 'config')


def _leaves(config: Any, prefix: str) -> dict[str, Any]:
  """{dotted key: value}."""
  if not hasattr(config, 'items'):
    return {prefix: config}
  out: dict[str, Any] = {}
  for name, value in config.items():
    out |= _leaves(value, f'{prefix}.{name}')
  return out


def last_line(error: BaseException) -> str:
  """The last line of a message, which says most."""
  lines = [line.strip() for line in str(error).splitlines() if line.strip()]
  return re.sub(r'^\w+(Error|Exception): ', '', lines[-1]) if lines else type(error).__name__

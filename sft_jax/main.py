"""Command line: `python -m sft_jax.main --config=FILE[:ARG] [--workdir=DIR] [--mode=MODE] …`.

Reads flags, dispatches, and turns what ends a run into an exit status: 0 done, 1 a defect of ours,
2 bad input (one line says what, where and how to mend it), 3 stopped after saving.
"""

import difflib
import importlib.util
import os
import re
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Any

from absl import app, flags
from ml_collections import config_flags

from sft_jax.utils.errors import Interrupted, UserError

MODES = ('run', 'eval', 'export', 'fetch')

_CONFIG = config_flags.DEFINE_config_file(
  'config', None, 'Config file, with an argument after a colon.', lock_config=True
)
_WORKDIR = flags.DEFINE_string('workdir', '', 'Directory of this run. Given again, it resumes.')
_MODE = flags.DEFINE_enum(
  'mode',
  'run',
  MODES,
  'run: what the config describes. eval: scores of a model. export: weights of a finished run. '
  'fetch: model and data of a config, to run without a network.',
)
_VERBOSE = flags.DEFINE_bool('verbose', False, 'Also show what the libraries log.')


def main(argv: Sequence[str]) -> None:
  """Dispatches on --mode."""
  if len(argv) > 1:
    raise UserError(f'what is {argv[1]!r}?', 'command line', 'flags look like --name=value')
  if _CONFIG.value is None:
    raise UserError('no config', '--config', 'for example --config=configs/quickstart.py')
  if not _WORKDIR.value and _MODE.value != 'fetch':
    raise UserError('no workdir', '--workdir', 'for example --workdir=runs/first')
  from sft_jax.utils import log

  log.setup_logging(1 if _VERBOSE.value else 0)
  if _MODE.value == 'fetch':
    from sft_jax import fetch

    fetch.fetch(_CONFIG.value)
    return
  from sft_jax import runner

  if _MODE.value == 'eval':
    from sft_jax import evaluate

    evaluate.evaluate(_CONFIG.value, _WORKDIR.value)
  elif _MODE.value == 'export':
    runner.export(_CONFIG.value, _WORKDIR.value)
  else:
    runner.run(_CONFIG.value, _WORKDIR.value)


def parse_flags(argv: Sequence[str]) -> list[str]:
  """Parses flags; what cannot be parsed ends the process with one line and status 2."""
  return _ending_well(lambda: _parse(argv))


def _parse(argv: Sequence[str]) -> list[str]:
  if config := _config_argument(argv):
    check_values(load_config(config), config)
  try:
    rest = flags.FLAGS(list(argv))
    if flags.FLAGS.config is not None:
      check_values(flags.FLAGS.config, 'command line')
    return rest
  except (KeyError, AttributeError) as e:
    part = _unknown_part(e)
    given = [match.group(1) for arg in argv if (match := re.match(r'--?(config\.[^=]+)', arg))]
    key = next((key for key in given if part in key.split('.')), part)
    raise _unknown_key(key, 'command line', '--') from e
  except flags.UnrecognizedFlagError as e:
    near = difflib.get_close_matches(e.flagname, ('config', 'workdir', 'mode', 'verbose'), 1)
    how = f'did you mean --{near[0]}?' if near else '--helpshort lists the flags'
    raise UserError(f'unknown flag --{e.flagname}', 'command line', how) from e
  except flags.Error as e:
    raise UserError(_last_line(e), 'command line', 'see the comments in configs/base.py') from e


def load_config(argument: str) -> Any:
  """What a config file gives; the flag loads it again, but forgets in which line it failed.

  Args:
    argument: FILE or FILE:ARG.

  Raises:
    UserError: with file and line of what is wrong.
  """
  path, *rest = argument.split(':', 1)
  module = importlib.util.spec_from_file_location('config', path)
  if module is None or module.loader is None or not os.path.isfile(path):
    raise UserError(
      f'cannot read the config: no Python file {path}', f'--config={argument}', 'give a .py file'
    )
  code = importlib.util.module_from_spec(module)
  try:
    module.loader.exec_module(code)
    return code.get_config(*rest)
  except UserError:
    raise
  except Exception as e:  # a config is a program
    raise _config_error(e, path) from e


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
    part = _unknown_part(error)
    keys = re.findall(r'config\.[\w.]+', line)
    return _unknown_key(next((key for key in keys if part in key.split('.')), part), where)
  named = '' if isinstance(error, (ValueError, TypeError)) else f'{type(error).__name__}: '
  return UserError(f'{named}{_last_line(error)}', where, 'mend the config')


def check_values(config: Any, where: str) -> None:
  """Compares keys and types with the base, whose keys are all there are.

  Raises:
    UserError: a key too many or too few, None, or a value of another type.
  """
  given, known = _leaves(config, 'config'), _known()
  for key in given.keys() - known.keys():
    if given[key] is None:
      raise UserError(f'{key} is None', where, 'start from configs/base.py:get_config()')
    raise _unknown_key(key, where)
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


def _unknown_part(error: Exception) -> str:
  """The name that ml_collections says it does not know."""
  found = re.findall(r'[\'"]([^\'"\\]+)', re.sub(r'^[\'"]Key ', '', str(error)))
  return found[0] if found else ''


def _unknown_key(key: str, where: str, prefix: str = '') -> UserError:
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


def _config_argument(argv: Sequence[str]) -> str:
  for i, arg in enumerate(argv):
    if re.fullmatch(r'--?config', arg) and i + 1 < len(argv):
      return argv[i + 1]
    if match := re.match(r'--?config=(.*)', arg):
      return match.group(1)
  return ''


def _last_line(error: BaseException) -> str:
  lines = [line.strip() for line in str(error).splitlines() if line.strip()]
  return re.sub(r'^\w+(Error|Exception): ', '', lines[-1]) if lines else type(error).__name__


def _ending_well(call: Callable[[], Any]) -> Any:
  try:
    return call()
  except UserError as e:
    print(f'error: {e}', file=sys.stderr, flush=True)
    sys.exit(2)
  except Interrupted as e:
    print(f'stopped by {e}', file=sys.stderr, flush=True)
    sys.exit(3)
  except KeyboardInterrupt:
    print('stopped by SIGINT, with nothing to be saved', file=sys.stderr, flush=True)
    sys.exit(3)


def cli() -> None:
  """Entry point of the process."""
  app.run(lambda argv: _ending_well(lambda: main(argv)), flags_parser=parse_flags)


if __name__ == '__main__':
  cli()

"""Command line: `python -m sft_jax.main --config=FILE[:ARG] [--workdir=DIR] [--mode=MODE] …`.

Reads flags, dispatches, and turns what ends a run into an exit status: 0 done, 1 a defect of ours,
2 bad input (one line says what, where and how to mend it), 3 stopped after saving.
"""

import difflib
import re
import sys
from collections.abc import Callable, Sequence
from typing import Any

from absl import app, flags
from ml_collections import config_flags

from sft_jax.utils.errors import Interrupted, UserError

MODES = ('run', 'export', 'fetch')

_CONFIG = config_flags.DEFINE_config_file(
  'config', None, 'Config file, with an argument after a colon.', lock_config=True
)
_WORKDIR = flags.DEFINE_string('workdir', '', 'Directory of this run. Given again, it resumes.')
_MODE = flags.DEFINE_enum(
  'mode',
  'run',
  MODES,
  'run: what the config describes. export: weights of a finished run. fetch: model and data of a '
  'config, to run without a network.',
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

  if _MODE.value == 'export':
    runner.export(_CONFIG.value, _WORKDIR.value)
  else:
    runner.run(_CONFIG.value, _WORKDIR.value)


def parse_flags(argv: Sequence[str]) -> list[str]:
  """Parses flags; what cannot be parsed ends the process with one line and status 2."""
  return _ending_well(lambda: _parse(argv))


def _parse(argv: Sequence[str]) -> list[str]:
  try:
    rest = flags.FLAGS(list(argv))
    # A config file that fails to load does so when first asked for.
    if flags.FLAGS.config is not None:
      flags.FLAGS.config.items()
    return rest
  except OSError as e:
    path = _config_argument(argv)
    raise UserError(
      f'cannot read the config: {_last_line(e)}', f'--config={path}', 'give an existing .py file'
    ) from e
  except (KeyError, AttributeError) as e:
    unknown = re.findall(r"'([^'\\]+)", str(e))
    raise _unknown_key(argv, unknown[0] if unknown else '') from e
  except flags.UnrecognizedFlagError as e:
    near = difflib.get_close_matches(e.flagname, ('config', 'workdir', 'mode', 'verbose'), 1)
    how = f'did you mean --{near[0]}?' if near else '--helpshort lists the flags'
    raise UserError(f'unknown flag --{e.flagname}', 'command line', how) from e
  except flags.Error as e:
    if 'Traceback' in str(e):
      raise UserError(_last_line(e), f'--config={_config_argument(argv)}', '') from e
    raise UserError(_last_line(e), 'command line', 'see the comments in configs/base.py') from e


def _unknown_key(argv: Sequence[str], part: str) -> UserError:
  """The error for a config key that does not exist, with the nearest one that does."""
  given = [
    match.group(1)
    for match in (re.match(r'--?(config\.[^=]+)', arg) for arg in argv)
    if match and part in match.group(1).split('.')
  ]
  known = _keys(_load_alone(argv), 'config')
  key = given[0] if given else part
  near = difflib.get_close_matches(key, known, 1, cutoff=0.5)
  how = f'did you mean --{near[0]}?' if near else 'configs/base.py lists all keys'
  return UserError(f'unknown config key {key}', 'command line', how)


def _load_alone(argv: Sequence[str]) -> Any:
  """The config without its overrides."""
  values = flags.FlagValues()
  alone = [argv[0], f'--config={_config_argument(argv)}']
  config = config_flags.DEFINE_config_file('config', None, '', flag_values=values, sys_argv=alone)
  values(alone)
  return config.value


def _keys(config: Any, prefix: str) -> list[str]:
  out = []
  for name, value in config.items():
    path = f'{prefix}.{name}'
    out += _keys(value, path) if hasattr(value, 'items') else [path]
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


def cli() -> None:
  """Entry point of the process."""
  app.run(lambda argv: _ending_well(lambda: main(argv)), flags_parser=parse_flags)


if __name__ == '__main__':
  cli()

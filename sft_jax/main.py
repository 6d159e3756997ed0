"""Command line: `python -m sft_jax.main --config=FILE[:ARG] [--workdir=DIR] [--mode=MODE] …`.

Reads flags, dispatches, and turns what ends a run into an exit status: 0 done, 1 a defect of ours,
2 bad input (one line says what, where and how to mend it), 3 stopped after saving.
"""

import difflib
import os
import re
import sys
from collections.abc import Callable, Sequence
from typing import Any

from absl import app, flags
from ml_collections import config_flags

from sft_jax import config_file
from sft_jax.utils.errors import Interrupted, UserError

MODES = ('run', 'plan', 'status', 'eval', 'compare', 'report', 'export', 'release', 'fetch')
_WITHOUT_WORKDIR = ('plan', 'compare', 'fetch')
_WITHOUT_CONFIG = ('status',)

_CONFIG = config_flags.DEFINE_config_file(
  'config', None, 'Config file, with an argument after a colon.', lock_config=True
)
_WORKDIR = flags.DEFINE_string('workdir', '', 'Directory of this run. Given again, it resumes.')
_MODE = flags.DEFINE_enum(
  'mode',
  'run',
  MODES,
  'run: what the config describes, a run or a study. plan: what a study is and takes. status: how '
  'far a study is. eval: scores of a model. compare: two rows, item by item. report: '
  'what a table of results says. '
  'export: weights of a finished run. release: models of a study, or a run, ready for the hub. '
  'fetch: model and data of a config, to run without a network.',
)
_JSON = flags.DEFINE_bool(
  'json', False, 'End with one JSON object, the last line of standard output.'
)
_VERBOSE = flags.DEFINE_bool('verbose', False, 'Also show what the libraries log.')


def main(argv: Sequence[str]) -> None:
  """Dispatches on --mode."""
  if len(argv) > 1:
    raise UserError(f'what is {argv[1]!r}?', 'command line', 'flags look like --name=value')
  if _CONFIG.value is None and _MODE.value not in _WITHOUT_CONFIG:
    raise UserError('no config', '--config', 'for example --config=configs/quickstart.py')
  if not _WORKDIR.value and _MODE.value not in _WITHOUT_WORKDIR:
    raise UserError('no workdir', '--workdir', 'for example --workdir=runs/first')
  from sft_jax.utils import io, log

  log.setup_logging(1 if _VERBOSE.value else 0)
  outcome = _CALLS[_MODE.value](_CONFIG.value, _WORKDIR.value)
  if _JSON.value:
    # The last line: whatever else is said has been said. What is not finite becomes null.
    print(io.to_json(outcome), flush=True)


# One function a mode, of config and workdir; each returns what --json tells.


def _run(config: Any, workdir: str) -> dict[str, Any]:
  entries = _entries(config)
  if entries is not None:
    from sft_jax import study_run

    return study_run.run(config, entries, workdir)
  from sft_jax import runner

  return {'workdir': workdir, 'rows': runner.run(config, workdir)}


def _entries(config: Any) -> list[dict[str, Any]] | None:
  """The runs of a study, as overrides, or None where the config describes a single run."""
  entries = config_file.sweep(_config_argument(sys.argv))
  return [{}] if entries is None and config.study.grid else entries


def _plan(config: Any, workdir: str) -> dict[str, Any]:
  from sft_jax import study_run

  return study_run.plan_mode(config, _entries(config) or [{}], workdir)


def _status(config: Any, workdir: str) -> dict[str, Any]:
  from sft_jax import study_run

  return study_run.status_mode(config, workdir)


def _eval(config: Any, workdir: str) -> dict[str, Any]:
  from sft_jax import evaluate

  return {'workdir': workdir, 'row': evaluate.evaluate(config, workdir)}


def _compare(config: Any, workdir: str) -> dict[str, Any]:
  from sft_jax import comparison

  return comparison.compare_rows(config, workdir)


def _report(config: Any, workdir: str) -> dict[str, Any]:
  from sft_jax.analysis import report

  return report.report(config, workdir)


def _export(config: Any, workdir: str) -> dict[str, Any]:
  from sft_jax import runner

  return {'workdir': workdir, 'export': runner.export(config, workdir)}


def _release(config: Any, workdir: str) -> dict[str, Any]:
  from sft_jax import delta_export
  from sft_jax.data import named
  from sft_jax.models import source
  from sft_jax.study import release

  licences = {name: row['licence'] for name, row in named.DATASETS.items() if 'licence' in row}
  bases = [path for part in config.release.bases.split(',') if (path := part.strip())]
  out = os.path.join(workdir, 'release')
  cache = source.cache_root(config.cache_dir) / delta_export.BASES
  kept = sorted(str(path) for path in cache.iterdir()) if cache.is_dir() else []
  done = release.write(workdir, out, licences, bases, kept)
  if config.release.push:
    done['pushed'] = release.push(out, config.release.push)
  return done


def _fetch(config: Any, workdir: str) -> dict[str, Any]:
  from sft_jax import fetch

  fetch.fetch(config)
  return {'fetched': True}


_CALLS = {
  'run': _run,
  'plan': _plan,
  'status': _status,
  'eval': _eval,
  'compare': _compare,
  'report': _report,
  'export': _export,
  'release': _release,
  'fetch': _fetch,
}


def parse_flags(argv: Sequence[str]) -> list[str]:
  """Parses flags; what cannot be parsed ends the process with one line and status 2."""
  return _ending_well(lambda: _parse(argv))


def _parse(argv: Sequence[str]) -> list[str]:
  if config := _config_argument(argv):
    config_file.check_values(config_file.load_config(config), config)
  try:
    rest = flags.FLAGS(list(argv))
    if flags.FLAGS.config is not None:
      config_file.check_values(flags.FLAGS.config, 'command line')
    return rest
  except (KeyError, AttributeError) as e:
    part = config_file.unknown_part(e)
    given = [match.group(1) for arg in argv if (match := re.match(r'--?(config\.[^=]+)', arg))]
    key = next((key for key in given if part in key.split('.')), part)
    raise config_file.unknown_key(key, 'command line', '--') from e
  except flags.UnrecognizedFlagError as e:
    near = difflib.get_close_matches(
      e.flagname, ('config', 'workdir', 'mode', 'json', 'verbose'), 1
    )
    how = f'did you mean --{near[0]}?' if near else '--helpshort lists the flags'
    raise UserError(f'unknown flag --{e.flagname}', 'command line', how) from e
  except flags.Error as e:
    what = config_file.last_line(e)
    raise UserError(what, 'command line', 'see the comments in configs/base.py') from e


def _config_argument(argv: Sequence[str]) -> str:
  for i, arg in enumerate(argv):
    if re.fullmatch(r'--?config', arg) and i + 1 < len(argv):
      return argv[i + 1]
    if match := re.match(r'--?config=(.*)', arg):
      return match.group(1)
  return ''


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

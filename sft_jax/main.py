"""Command line: `python -m sft_jax.main --config=FILE[:ARG] [--workdir=DIR] [--mode=MODE] …`.

Reads flags, dispatches, and turns what ends a run into an exit status: 0 done, 1 a defect of ours,
2 bad input (one line says what, where and how to mend it), 3 stopped after saving.
"""

import os
import re
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Any

from sft_jax.utils import installation
from sft_jax.utils.errors import Interrupted, UserError, no_workdir

try:
  from absl import app, flags
  from ml_collections import config_flags

  from sft_jax import command_line, config_file
  from sft_jax.utils import peers, terminal
except KeyboardInterrupt:
  print('stopped by SIGINT, with nothing to be saved', file=sys.stderr)
  sys.exit(3)
except Exception as e:  # What is imported later is told as any other end.
  if not (why := installation.fault(e)):
    raise
  print(f'error: {why}', file=sys.stderr)
  sys.exit(2)

MODES = (
  *('run', 'plan', 'status', 'eval', 'compare', 'probe', 'report', 'export', 'release', 'fetch'),
  *('choose', 'recommend', 'chat', 'show-data', 'doctor'),
)
_WITHOUT_WORKDIR = ('plan', 'compare', 'recommend', 'fetch', 'chat', 'show-data', 'doctor')
_WITHOUT_CONFIG = ('status',)
# These take configs/base.py where no config is given.
_WITH_USUAL_CONFIG = ('chat', 'doctor')
_FLAGS = ('config', 'workdir', 'mode', 'json', 'cache', 'verbose')

_CONFIG = config_flags.DEFINE_config_file(
  'config', None, 'Config file, with an argument after a colon.', lock_config=True
)
_WORKDIR = flags.DEFINE_string('workdir', '', 'Directory of this run. Given again, it resumes.')
_MODE = flags.DEFINE_enum(
  'mode',
  'run',
  MODES,
  'run: what the config describes, a run or a study. plan: what a study is and takes. status: how '
  'far a study or a run is. eval: scores of a model. compare: two rows, item by item. '
  'probe: what the report of a study reads beside its scores. '
  'report: what a table of results says. '
  'choose: which data to train on, by a race within a budget. '
  'recommend: what a table leads to expect of data. '
  'export: weights of a finished run, or of runs of a study. '
  'release: models of a study, or a run, ready for the hub. '
  'fetch: model and data of a config, to run without a network. chat: talk to a model, or to two. '
  'show-data: records as the model will see them. doctor: what this machine can do.',
)
_JSON = flags.DEFINE_bool(
  'json', False, 'End with one JSON object, the last line of standard output.'
)
_CACHE = flags.DEFINE_string(
  'cache',
  '',
  'Directory for everything that is fetched or compiled, instead of those that SFT_JAX_CACHE, '
  'HF_HOME and JAX_COMPILATION_CACHE_DIR name.',
)
_VERBOSE = flags.DEFINE_bool('verbose', False, 'Also show what the libraries log.')


def main(argv: Sequence[str]) -> None:
  """Dispatches on --mode."""
  if len(argv) > 1:
    raise UserError(f'what is {argv[1]!r}?', 'command line', 'flags look like --name=value')
  if _CONFIG.value is None and _MODE.value not in _WITHOUT_CONFIG:
    raise _no_config()
  if not _WORKDIR.value and _MODE.value not in _WITHOUT_WORKDIR:
    raise no_workdir('--workdir')
  from sft_jax.utils import caches, io, log, words

  if _CACHE.value:
    if _CONFIG.value is not None and _CONFIG.value.cache_dir:
      raise UserError('two places for caches', '--cache, config.cache_dir', 'give one of them')
    caches.use(_CACHE.value, os.environ)
  log.setup_logging(1 if _VERBOSE.value else 0)
  outcome = _CALLS[_MODE.value](_CONFIG.value, _WORKDIR.value)
  # The last line: whatever else is said has been said. What is not finite becomes null.
  if _JSON.value and not terminal.write(sys.stdout, f'{io.to_json(outcome)}\n'):
    how = 'see that somebody reads it, or that its disk has room'
    raise UserError('what --json ends with could not be written', 'standard output', how)
  if _MODE.value == 'doctor' and outcome['failed']:
    raise UserError(
      f'{len(outcome["failed"])} of {words.count(len(outcome["checks"]), "check")} failed',
      ', '.join(outcome['failed']),
      'mend them as said above',
    )


def _no_config() -> UserError:
  return UserError('no config', '--config', 'for example --config=configs/quickstart.py')


# One function a mode, of config and workdir; each returns what --json tells.


def _run(config: Any, workdir: str) -> dict[str, Any]:
  entries = _entries(config)
  if entries is not None:
    from sft_jax.execution import study_run
    from sft_jax.study import closing
    from sft_jax.utils import log

    # Nothing of processes that do not lead.
    if done := study_run.run(config, entries, workdir):
      for line in closing.lines(workdir):
        log.say(line)
    return done
  from sft_jax.execution import runner

  return {'workdir': workdir, 'rows': runner.run(config, workdir)}


def _entries(config: Any) -> list[dict[str, Any]] | None:
  """The runs of a study, as overrides, or None where the config describes a single run."""
  entries = config_file.sweep(command_line.value(sys.argv, 'config'))
  return [{}] if entries is None and config.study.grid else entries


def _plan(config: Any, workdir: str) -> dict[str, Any]:
  from sft_jax.execution import study_run

  return study_run.plan_mode(config, _entries(config) or [{}], workdir, _command(sys.argv))


def _command(argv: Sequence[str]) -> list[str]:
  """The words that run what a command line plans."""
  name = os.path.basename(argv[0])
  kept = [name] if name == 'sft-jax' else ['python', '-m', 'sft_jax.main']
  at = 1
  while at < len(argv):
    if re.match(r'--?(mode|config\.plan\.\w+)(=|$)', argv[at]):
      # Its value may be a word of its own.
      at += '=' not in argv[at] and at + 1 < len(argv) and not argv[at + 1].startswith('-')
    else:
      kept.append(argv[at])
    at += 1
  return kept if command_line.value(argv, 'workdir') else [*kept, '--workdir=WORKDIR']


def _status(config: Any, workdir: str) -> dict[str, Any]:
  from sft_jax.execution import study_run

  return study_run.status_mode(config, workdir)


def _eval(config: Any, workdir: str) -> dict[str, Any]:
  from sft_jax.execution import evaluate

  return {'workdir': workdir, 'row': evaluate.evaluate(config, workdir)}


def _compare(config: Any, workdir: str) -> dict[str, Any]:
  from sft_jax import comparison

  return comparison.compare_rows(config, workdir)


def _probe(config: Any, workdir: str) -> dict[str, Any]:
  from sft_jax.execution import probe_mode

  return probe_mode.probe(config, workdir)


def _report(config: Any, workdir: str) -> dict[str, Any]:
  from sft_jax.analysis import report

  return report.report(config, workdir)


def _choose(config: Any, workdir: str) -> dict[str, Any]:
  from sft_jax.decide import choose_mode

  return choose_mode.run(config, workdir)


def _recommend(config: Any, workdir: str) -> dict[str, Any]:
  from sft_jax.decide import recommend_mode

  return recommend_mode.run(config, workdir)


def _export(config: Any, workdir: str) -> dict[str, Any]:
  from sft_jax.execution import export_mode

  return export_mode.export(config, workdir)


def _release(config: Any, workdir: str) -> dict[str, Any]:
  from sft_jax.data import named
  from sft_jax.execution import delta_export
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

  fetch.fetch(config, _entries(config))
  return {'fetched': True}


def _chat(config: Any, workdir: str) -> dict[str, Any]:
  from sft_jax.interactive import chat

  return chat.chat(config, workdir)


def _show_data(config: Any, workdir: str) -> dict[str, Any]:
  from sft_jax.interactive import show_data

  return show_data.show(config)


def _doctor(config: Any, workdir: str) -> dict[str, Any]:
  from sft_jax.interactive import doctor

  return doctor.examine(config)


_CALLS = {
  'run': _run,
  'plan': _plan,
  'status': _status,
  'eval': _eval,
  'compare': _compare,
  'probe': _probe,
  'report': _report,
  'export': _export,
  'release': _release,
  'fetch': _fetch,
  'choose': _choose,
  'recommend': _recommend,
  'chat': _chat,
  'show-data': _show_data,
  'doctor': _doctor,
}


def parse_flags(argv: Sequence[str]) -> list[str]:
  """Parses flags; what cannot be parsed ends the process with one line and status 2."""
  return _ending_well(lambda: _parse(argv))


def _parse(argv: Sequence[str]) -> list[str]:
  if len(configs := command_line.values(argv, 'config')) > 1:
    how = 'give one; --config.KEY=VALUE changes what it says'
    raise UserError(f'{len(configs)} configs', ' '.join(f'--config={c}' for c in configs), how)
  argv = ['--help' if arg == '-h' else arg for arg in argv]
  if '--version' in argv:
    print(installation.versions())
    sys.exit(0)
  # The config has to come before the flags that change it; ml_collections looks in sys.argv too.
  sys.argv[:] = command_line.config_first(sys.argv)
  argv = command_line.with_config(argv, _WITH_USUAL_CONFIG)
  if '' in configs:
    raise _no_config()
  if config := command_line.value(argv, 'config'):
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
    if e.flagname.startswith('config.') and not config:
      how = 'add --config=FILE, such as --config=configs/sft.py, or that of the run it is about'
      raise UserError(f'--{e.flagname} changes a config, and none is given', '--config', how) from e
    how = config_file.flag_for(e.flagname, _FLAGS)
    raise UserError(f'unknown flag --{e.flagname}', 'command line', how) from e
  except flags.Error as e:
    what = config_file.last_line(e)
    how = '--helpshort lists the flags, configs/base.py the keys of a config'
    raise UserError(what, 'command line', how) from e
  except SystemExit:  # absl's own end, with 1, after --help.
    sys.exit(0)


def _ending_well(call: Callable[[], Any]) -> Any:
  """What the call returns, or the end of this process, of which the others of its program hear."""
  status = 2
  try:
    done = call()
    peers.leave(0)
    return done
  except UserError as e:
    peers.await_verdict(e)
    line = f'error: {e}'
  except Interrupted as e:
    status, line = 3, f'stopped by {e}'
  except KeyboardInterrupt:
    status, line = 3, 'stopped by SIGINT, with nothing to be saved'
  except Exception as e:
    fault = installation.fault(e)
    peers.await_verdict(e)
    line = f'error: {fault}'
    if fault is None:
      if not peers.several():
        raise
      # The process ends here: its end is no business of Python's any more.
      traceback.print_exc()
      status, line = 1, f'{type(e).__name__}: {e}'
      peers.leave(status, line)
  terminal.write(sys.stderr, f'{line}\n')
  peers.leave(status, line)
  sys.exit(status)


def cli() -> None:
  """Entry point of the process."""
  # --help tells what it knows of the script that was started, which for `sft-jax` is none of ours.
  script = sys.modules['__main__']
  script.__doc__ = script.__doc__ or __doc__
  for name in _FLAGS:
    flags.FLAGS.register_key_flag_for_module(sys.argv[0], flags.FLAGS[name])
  app.run(lambda argv: _ending_well(lambda: main(argv)), flags_parser=parse_flags)


if __name__ == '__main__':
  cli()

"""`--mode=export`: weights of a finished run, or of runs of a study, as other programs open them.

Not for the formats (`models/export.py`, `models/peft.py`, `delta_export.py`) nor for releases
(`study/release.py`).
"""

from typing import Any

from etils import epath
from ml_collections import ConfigDict

from sft_jax.execution import finished, opened, runner
from sft_jax.utils import log, words
from sft_jax.utils.errors import UserError


def export(config: Any, workdir: str) -> dict[str, Any]:
  """Writes weights kept in a workdir, as `config.export` says, below it.

  Args:
    config: That of the run; or one without model and data: then the run is whatever lies there.
    workdir: The run's, or that of a study, of which `config.export.only` chooses runs.

  Returns:
    {'workdir', 'export': directory}; of a study {'workdir', 'exports': [directory]}.

  Raises:
    UserError: as `runner.export`, and nothing finished.
    Interrupted: stopped; nothing was half-written.
  """
  if not (epath.Path(workdir) / 'study.json').exists():
    said = config.model.path or config.data.name or config.data.path
    done = runner.export(config if said else its_own(config, workdir), workdir)
    return {'workdir': workdir, 'export': done}
  if config.export.format == 'none':
    raise UserError('no format given', 'config.export.format', 'use hf, peft or delta')
  runs = finished.runs(workdir, config.export.only, 'config.export.only')
  log.say(f'{words.count(len(runs), "run")} to export')
  return {
    'workdir': workdir,
    'exports': [runner.export(its_own(config, run.path), run.path) for run in runs],
  }


def its_own(config: Any, workdir: str) -> Any:
  """The config that a run has kept, with the export, devices and caches of another.

  Raises:
    UserError: no run has begun there.
  """
  its = ConfigDict(opened.config_of(workdir)['config'])
  for key in ('export', 'mesh', 'cache_dir'):
    its[key] = config[key]
  return its

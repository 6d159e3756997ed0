"""The package from Python: configs, runs, models that answer and score, studies.

Thin: what is done is what the command line does, in the same workdirs, with the same errors
(`sft_jax.utils.errors.UserError` for bad input). Not for what any of it means: `runner.py`,
`opened.py`, `study_run.py`.
"""

import functools
import html
import os
import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ml_collections import ConfigDict

from sft_jax import config_file, results
from sft_jax import spec as spec_lib
from sft_jax.execution import opened, runner
from sft_jax.execution.workdir import Workdir
from sft_jax.interactive import show_data
from sft_jax.interactive.ask import Model, Prompt, Score, template_of
from sft_jax.utils import io, log
from sft_jax.utils.errors import UserError, no_workdir

if TYPE_CHECKING:
  import pandas as pd


def get_config(argument: str = 'sft', changes: Mapping[str, Any] | None = None) -> ConfigDict:
  """A config as the command line takes it, to be changed further as an object.

  Args:
    argument: FILE[:ARG], or the name of a config that comes with the package, such as 'sft:lora'.
    changes: {dotted key: value}, such as {'train.epochs': 1.0}.

  Raises:
    UserError: no such config, an unknown key, or a value of another type.
  """
  if not isinstance(argument, (str, os.PathLike)):
    raise _no_config(argument)
  config = config_file.load_config(os.fspath(argument))
  config_file.check_values(config, os.fspath(argument))
  return config_file.with_changes(config, {} if changes is None else changes, 'changes')


def run(config: ConfigDict, workdir: str) -> 'Run':
  """Trains and evaluates as `config` says, from where `workdir` was left.

  Raises:
    UserError: bad input; nothing was half-written.
    Interrupted: stopped after saving; the same call goes on.
  """
  _prepare(config)
  workdir = _place(workdir)
  if config.study.grid:
    raise UserError('a grid describes a study', 'config.study.grid', 'use run_study')
  runner.run(config, workdir)
  return Run(workdir, config)


def open_run(workdir: str, config: ConfigDict | None = None) -> 'Run':
  """A run that was made before, by the command line or from Python.

  Args:
    workdir: Its directory.
    config: None for its own, as it was kept.

  Raises:
    UserError: no run there.
  """
  workdir = _place(workdir)
  held = opened.config_of(workdir)
  return Run(workdir, ConfigDict(held['config']) if config is None else config)


def load_model(path: str, changes: Mapping[str, Any] | None = None) -> 'Model':
  """A model to be asked: whatever `config.model.path` takes, `run:WORKDIR[@STEP]` among it.

  Args:
    path: Hub id, directory, .gguf file, wheel:PACKAGE==VERSION, or a run's snapshot.
    changes: {dotted key: value} of the config, such as {'model.adapter': DIRECTORY}.

  Raises:
    UserError: nothing usable there.
  """
  config = config_file.with_changes(get_config('base', changes), {'model.path': path}, 'path')
  _prepare(config)
  return Model(opened.open_model(config), template_of(config))


def tell_devices(config: ConfigDict | None = None) -> None:
  """Prints what is computed on; says of an idle GPU or TPU what to do."""
  from sft_jax.interactive import doctor

  config = get_config('base') if config is None else config
  _prepare(config)
  doctor.tell_devices(config)


def view_data(config: ConfigDict) -> show_data.View:
  """Records of a config's data as its model will see them; a notebook shows them in colour.

  Raises:
    UserError: as a run would refuse them.
  """
  _prepare(config)
  return show_data.view(config)


def run_study(
  config: ConfigDict, workdir: str, entries: Sequence[Mapping[str, Any]] = ()
) -> 'pd.DataFrame':
  """Runs a study from where `workdir` was left; returns its table, one row a snapshot.

  Args:
    config: What its runs share; `config.study` says what it is.
    workdir: Of the study.
    entries: Runs, as changes by dotted key; with `config.study.grid`, each is multiplied by it.

  Raises:
    UserError: bad input.
    Interrupted: stopped after saving.
  """
  from sft_jax.execution import study_run

  _prepare(config)
  workdir = _place(workdir)
  study_run.run(config, _entries(entries), workdir)
  import pandas as pd

  return pd.read_csv(os.path.join(workdir, 'results.csv'))


def plan_study(
  config: ConfigDict, entries: Sequence[Mapping[str, Any]] = (), workdir: str = ''
) -> dict[str, Any]:
  """What a study is and takes, without loading a weight; see `run_study` for the arguments."""
  from sft_jax.execution import study_run

  _prepare(config)
  return study_run.plan_mode(config, _entries(entries), _place(workdir) if workdir else '')


def choose(config: ConfigDict, workdir: str) -> 'Page':
  """Decides which of several data sets to train on, by a race within a budget.

  Args:
    config: Such as `get_config('choose', {'choose.data': 'a.jsonl,b.jsonl', …})`.
    workdir: Of the race; given again, it goes on, and a candidate more runs only what is new.

  Returns:
    The decision page and what WORKDIR/decision.json holds: 'decision' (winner, tie, or none beats
    the base), 'pick', 'members', 'candidates' with gains and intervals, 'facts', 'command', ….

  Raises:
    UserError: bad input, a budget that is too small.
    Interrupted: stopped; the same call goes on.
  """
  from sft_jax.decide import choose_mode

  _prepare(config)
  workdir = _place(workdir)
  told = choose_mode.run(config, workdir)
  return Page(os.path.join(workdir, 'decision.html'), told)


def report(config: ConfigDict, workdir: str) -> 'Page':
  """What a study's table, or `config.report.table`, says.

  Returns:
    The report's page and what `findings.json` holds.

  Raises:
    UserError: no table, or one of which nothing can be said.
  """
  from sft_jax.analysis import report as report_lib

  _prepare(config)
  told = report_lib.report(config, _place(workdir))
  return Page(told['report'], io.read_json(told['findings']))


class Page(dict[str, Any]):
  """The numbers of a page that was written; a notebook shows the page itself.

  Attributes:
    path: Of the page, which opens without a network.
  """

  def __init__(self, path: str, numbers: Mapping[str, Any]):
    """Reads nothing."""
    super().__init__(numbers)
    self.path = path

  def __repr__(self) -> str:
    return f'<sft_jax.Page {self.path}: {", ".join(self)}>'

  def _repr_html_(self) -> str:
    with open(self.path, encoding='utf-8') as f:
      page = html.escape(f.read())
    style = 'width:100%;height:42em;border:1px solid #8888'
    return f'<iframe srcdoc="{page}" style="{style}"></iframe>'


class Run:
  """A run in its workdir: its rows, its models, its exports."""

  def __init__(self, workdir: str, config: ConfigDict):
    """Reads nothing yet."""
    self.workdir, self.config = _place(workdir), config

  def __repr__(self) -> str:
    return f'<sft_jax.Run {self.workdir}: {len(self.rows)} rows>'

  @property
  def rows(self) -> list[results.Row]:
    """One a snapshot, the untrained base's first: factors and scores."""
    return Workdir(self.workdir).rows()

  @property
  def samples(self) -> dict[int, list[dict[str, str]]]:
    """{step: held-out questions with reference and answer}, where `config.eval.samples` asks."""
    place = Workdir(self.workdir)
    return {row['step']: place.items(row['step'], 'samples') for row in self.rows}

  def table(self) -> 'pd.DataFrame':
    """The rows as a table."""
    import pandas as pd

    return pd.DataFrame(self.rows)

  @functools.cached_property
  def model(self) -> Model:
    """The last snapshot."""
    return self.at('last')

  @functools.cached_property
  def base(self) -> Model:
    """What was trained, before it was; an adapter's shares its memory."""
    held = self.model.without_adapter()
    if held is not None:
      return held
    return Model(opened.of_base(self.config), self.model.template)

  def at(self, step: str | int) -> Model:
    """A snapshot whose weights were kept: a number of steps, 'best' or 'last'.

    Raises:
      UserError: it was not kept.
    """
    _prepare(self.config)
    return Model(opened.of_run(self.config, self.workdir, str(step)))

  def generate(self, prompts: Prompt | Sequence[Prompt], **how: Any) -> list[str]:
    """See `Model.generate`, of the last snapshot."""
    return self.model.generate(prompts, **how)

  def score(self, texts: Sequence[Any]) -> list[Score]:
    """See `Model.score`, of the last snapshot."""
    return self.model.score(texts)

  def export(self, format: str, path: str = '', **how: Any) -> str:
    """Writes weights that other programs open; returns the directory.

    Args:
      format: hf (adapters merged), peft or delta.
      path: Where to; '' is `export/FORMAT` in the workdir.
      **how: dtype and snapshot, as in `config.export`.

    Raises:
      UserError: as `--mode=export`.
    """
    _prepare(self.config)
    changes = {f'export.{name}': value for name, value in {'format': format, **how}.items()}
    config = config_file.with_changes(self.config, changes, 'export')
    return runner.export(config, self.workdir, os.path.abspath(path) if path else '')


def _prepare(config: Any) -> None:
  """Checks values and makes our lines visible, unless somebody has arranged that already."""
  if not isinstance(config, ConfigDict):
    raise _no_config(config)
  config_file.check_values(config, 'config')
  spec_lib.check_settings(config)
  log.setup_logging(once=True)
  # In a notebook without ipywidgets; our own progress needs none.
  warnings.filterwarnings('ignore', message='IProgress not found')


def _no_config(given: Any) -> UserError:
  how = "give a config, such as sft_jax.get_config('quickstart')"
  return UserError(f'{given!r:.80} is no config', 'config', how)


def _place(workdir: Any) -> str:
  """A workdir as text; '' would be the current directory."""
  path = os.fspath(workdir) if isinstance(workdir, (str, os.PathLike)) else ''
  if not path or not isinstance(path, str):
    raise no_workdir('workdir')
  return path


def _entries(entries: Any) -> list[dict[str, Any]]:
  """The runs of a study; one without changes where none are given."""
  if isinstance(entries, Mapping) or not all(isinstance(entry, Mapping) for entry in entries):
    how = "give a list of changes, such as [{'lora.rank': 8}]"
    raise UserError(f'{entries!r:.80} is no list of runs', 'entries', how)
  return [dict(entry) for entry in entries] or [{}]

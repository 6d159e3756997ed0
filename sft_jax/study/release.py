"""A release: the models of a study, or of one run, as a directory that is ready for the hub.

    README.md  LICENSES.md  manifest.json  results.csv  results.parquet  restore.py  FORMAT.md
    models/KEY/    a delta, a PEFT adapter or a whole model, with its card and run.json
    bases/NAME/    bases of deltas that cannot be had from the hub

Files are linked where the disk allows, not copied. Paths of this machine do not leave it. Not for
making deltas of runs as they end: `delta.pack`.
"""

import dataclasses
import functools
import itertools
import json
import os
import re
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from sft_jax import results
from sft_jax import spec as spec_lib
from sft_jax.study import delta, release_cards, table
from sft_jax.study.release_cards import Json, Model
from sft_jax.utils import hub_errors, io, log, words
from sft_jax.utils.errors import UserError

MANIFEST = 'manifest.json'
# Forms of export, the smallest first: of several, one is released.
_FORMS = ('delta', 'peft', 'hf')


@dataclasses.dataclass(frozen=True)
class _Found:
  """A run that can be released."""

  key: str
  path: Path
  form: str
  record: Json
  rows: list[results.Row]
  card: dict[str, Any]

  @property
  def export(self) -> Path:
    return self.path / 'export' / self.form


def write(
  workdir: str | os.PathLike[str],
  out_dir: str | os.PathLike[str],
  licences: Mapping[str, str],
  bases: Sequence[str] = (),
  kept: Sequence[str] = (),
) -> Json:
  """Writes a release; it is there when it is whole.

  Args:
    workdir: Of a study, whose own tables are brought up to date, or of a run.
    out_dir: Made, or replaced when it is an earlier release.
    licences: {name of a data set: licence as published}.
    bases: Directories of bases. Whole models are released as deltas against the only one given;
      bases of deltas that the hub does not have must be among them or `kept`.
    kept: Further directories where bases may be found; looked at only if one is missing.

  Returns:
    What was done: `release`, `models`, `left-out`, `bytes`.

  Raises:
    UserError: nothing to release, a base that is missing, a full disk.
  """
  work, out = Path(workdir), Path(out_dir)
  runs, left_out = _runs(work)
  if not runs:
    why = '; '.join(f'{run}: {text}' for run, text in [*left_out.items()][:3])
    raise UserError(
      f'there is nothing to release{f" ({why})" if why else ""}',
      str(work),
      'finish runs with config.export.format=delta, peft or hf, or --mode=export them',
    )
  if out.exists() and any(out.iterdir()) and not (out / MANIFEST).exists():
    raise UserError('this directory holds something else', str(out), 'move it away')
  known = [delta.identify(path) for path in bases]
  lazily = [functools.cache(functools.partial(delta.identify, path)) for path in kept]
  with io.explain_os_errors(out):
    out.parent.mkdir(parents=True, exist_ok=True)
    with io.scratch_directory(out.parent, out.name) as scratch:
      new = scratch / 'new'
      new.mkdir()
      models = [_put_model(run, new, known, lazily, licences) for run in runs]
      # Of a study all rows, also of runs without weights.
      study = (work / 'study.json').exists()
      rows = table.collect(work) if study else [row for run in runs for row in run.rows]
      table.write(new, [_public_row(row) for row in rows])
      here = Path(__file__).parent
      for name in ('restore.py', 'FORMAT.md'):
        shutil.copyfile(here / name, new / name)
      _put_text(
        new / 'README.md', release_cards.release_card(work.absolute().name, models, left_out)
      )
      _put_text(new / 'LICENSES.md', release_cards.licence_list(models))
      size = _put_manifest(new, models)
      if out.exists():
        os.replace(out, scratch / 'old')
      os.replace(new, out)
  for run, why in left_out.items():
    log.say(f'left out {run}: {why}')
  log.say(f'{words.count(len(models), "model")}, {size / 1e6:.1f} MB, in {out}')
  return {
    'release': str(out), 'models': [m.key for m in models], 'left-out': left_out, 'bytes': size,
  }  # fmt: skip


def push(release: str | os.PathLike[str], repo: str) -> str:
  """Uploads a release to a model repository of the hub, made if there is none; returns its address.

  The token comes from HF_TOKEN and goes nowhere else.

  Raises:
    UserError: no release there, no token, no access, no answer.
  """
  import huggingface_hub

  directory = Path(release)
  if not (directory / MANIFEST).exists():
    raise UserError('no release here', str(directory), 'write it first')
  if not re.fullmatch(r'[\w.-]+/[\w.-]+', repo):
    raise UserError(f'{repo!r} is no repository', 'config.release.push', 'write ORG/NAME')
  token = os.environ.get('HF_TOKEN', '')
  if not token:
    raise UserError('no token', 'HF_TOKEN', f'set it to a token that may write to {repo}')
  api = huggingface_hub.HfApi(token=token, library_name='sft_jax')
  with hub_errors.explained(repo, 'model', repo), warnings.catch_warnings():
    # The table in two formats among models is meant.
    warnings.filterwarnings('ignore', message='It seems that you are about to commit a data file')
    api.create_repo(repo, repo_type='model', exist_ok=True)
    api.upload_folder(repo_id=repo, folder_path=directory, commit_message='Release of sft_jax')
  address = hub_errors.page('model', repo)
  log.say(f'uploaded to {address}')
  return address


def _runs(work: Path) -> tuple[list[_Found], dict[str, str]]:
  """Runs that can be released, and why others cannot."""
  with io.explain_unreadable(work):
    inner = work / 'runs'
    paths = sorted(inner.iterdir()) if inner.is_dir() else [work]
  found, left_out = [], {}
  for path in paths:
    if not (path / 'config.json').exists():
      continue
    record = io.read_json(path / 'config.json')
    key = path.name if path != work else str(record.get('run-id', path.name))
    forms = [form for form in _FORMS if (path / 'export' / form).is_dir()]
    if not (path / 'done.json').exists():
      left_out[key] = 'given up' if (path / 'failed.json').exists() else 'not finished'
    elif not forms:
      left_out[key] = 'no export'
    else:
      rows = sorted(io.read_jsonl(path / 'rows.jsonl'), key=lambda row: row['step'])
      card = _card(path / 'export' / forms[0] / 'README.md')
      found.append(_Found(key, path, forms[0], record, rows, card))
  return found, left_out


def _card(path: Path) -> dict[str, Any]:
  """What the head of an export's card says, and its `steps`."""
  if not path.exists():
    return {}
  text = path.read_text(encoding='utf-8')
  out: dict[str, Any] = {}
  for line in text.split('---')[1].splitlines() if text.startswith('---') else []:
    key, _, value = line.partition(': ')
    try:
      out[key] = json.loads(value)
    except ValueError:
      out[key] = value
  if steps := re.search(r'^\| steps \| (\d+) \|$', text, re.MULTILINE):
    out['steps'] = int(steps[1])
  return out


def _put_model(
  run: _Found,
  new: Path,
  bases: Sequence[delta.Base],
  kept: Sequence[Callable[[], delta.Base]],
  licences: Mapping[str, str],
) -> Model:
  place = new / 'models' / run.key
  place.mkdir(parents=True)
  form, base = run.form, delta.Base(Path(), '', '', {})
  if form == 'hf' and len(bases) == 1:
    base = dataclasses.replace(bases[0], hub_id=str(run.card.get('base_model', '')))
    delta.write_delta(run.export, base, place / f'model{delta.SUFFIX}')
    form = 'delta'
  else:
    for path in _files(run.export):
      _link(path, place / path.relative_to(run.export))
    if form == 'delta':
      base = _base_of(run, place / f'model{delta.SUFFIX}', bases, kept)
  base_dir = ''
  if form == 'delta' and not base.hub_id:
    base_dir = base.directory.absolute().name
    for path in _files(base.directory):
      _link(path, new / 'bases' / base_dir / path.relative_to(base.directory))
  model = _model(run, form, base, base_dir, licences)
  # The card of the export, which a delta gives back, makes room for that of the release.
  (place / 'README.md').unlink(missing_ok=True)
  _put_text(place / 'README.md', release_cards.model_card(model))
  identity = {name: run.record.get(name) for name in ('run-id', 'contents', 'numerics-version')}
  about = run.record.get('provenance')
  factors = {key: release_cards.public(value) for key, value in model.factors.items()}
  io.write_json_atomic(place / 'run.json', identity | {'factors': factors, 'provenance': about})
  return model


def _base_of(
  run: _Found,
  file: Path,
  bases: Sequence[delta.Base],
  kept: Sequence[Callable[[], delta.Base]],
) -> delta.Base:
  """The base that a delta names, with its directory where the hub does not have it."""
  if not file.exists():
    raise UserError('the delta is missing', str(run.export), 'export the run again')
  held = delta.read_header(file)['base']
  named = delta.Base(Path(), held['hub_id'], held['revision'], held['files'])
  if named.hub_id:
    return named
  for base in itertools.chain(bases, (identify() for identify in kept)):
    if dict(base.files) == named.files:
      return dataclasses.replace(named, directory=base.directory)
  raise UserError(
    f'the base of run {run.key} is not on the hub',
    'config.release.bases',
    'give the directory that its delta was made of: it goes into the release',
  )


def _model(
  run: _Found, form: str, base: delta.Base, base_dir: str, licences: Mapping[str, str]
) -> Model:
  step = run.card.get('steps', run.rows[-1]['step'])
  row = next((row for row in run.rows if row['step'] == step), run.rows[-1])
  factors = {
    spec_lib.FACTORS[name].key: value
    for name, value in run.record['factors'].items()
    if name in spec_lib.FACTORS
  }
  named = str(factors.get('data.name') or '')
  # A mixture names several.
  data = [name for name in licences if name in re.split(r'[^\w.-]+', named)]
  own = [str(release_cards.public(factors.get('data.path') or named))] if not data else []
  stated = run.card.get('datasets') or []
  return Model(
    key=run.key,
    form=form,
    base=str(row['model_name']),
    hub_id=base.hub_id or str(run.card.get('base_model', '')),
    revision=base.revision,
    base_dir=base_dir,
    base_licence=str(run.card.get('license', '')),
    data=str(row['data_name']),
    datasets=stated if isinstance(stated, list) else [stated],
    data_licences={name: licences[name] for name in data} | dict.fromkeys(own, ''),
    factors=factors,
    row=row,
    base_row=run.rows[0],
  )


def _public_row(row: results.Row) -> results.Row:
  return {column: release_cards.public(value) for column, value in row.items()}


def _files(directory: Path) -> Iterator[Path]:
  return (path for path in sorted(directory.rglob('*')) if path.is_file())


def _link(path: Path, to: Path) -> None:
  """The same file under another name; a copy where that cannot be."""
  if to.exists():
    return
  to.parent.mkdir(parents=True, exist_ok=True)
  try:
    os.link(path.resolve(), to)
  except OSError:
    shutil.copyfile(path, to)


def _put_text(path: Path, text: str) -> None:
  path.write_text(text, encoding='utf-8')


def _put_manifest(new: Path, models: Sequence[Model]) -> int:
  """Writes the manifest; returns the bytes of all files."""
  sizes = {path: path.stat().st_size for path in _files(new)}
  files = {
    path.relative_to(new).as_posix(): {'bytes': size, 'sha256': io.sha256_file(path)}
    for path, size in sizes.items()
  }
  told = {
    m.key: {
      'form': m.form, 'base': m.hub_id or m.base, 'revision': m.revision, 'data': m.data,
      'licences': m.licences,
    }
    for m in models
  }  # fmt: skip
  io.write_json_atomic(new / MANIFEST, {'format': 1, 'models': told, 'files': files})
  return sum(sizes.values())

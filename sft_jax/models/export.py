"""Writes a model as a Hugging Face directory. Adapters alone are written by `peft.py`.

A directory appears under its name only when it is complete.
"""

import contextlib
import json
import math
import os
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from etils import epath

from sft_jax.models import families, hf, hf_dir, source
from sft_jax.models import tokenizer as tokenizer_lib
from sft_jax.models.config import ModelConfig
from sft_jax.models.rows import Row
from sft_jax.utils import io, trees
from sft_jax.utils.errors import UserError

MAX_SHARD_BYTES = 5_000_000_000
DTYPES = ('bfloat16', 'float16', 'float32')

# Keys of a model card that go into its YAML head, in this order; the others make a table.
_CARD_HEAD = (
  'base_model', 'datasets', 'license', 'language', 'library_name', 'pipeline_tag', 'model_name',
  'tags',
)  # fmt: skip
# By this line of its card an export of ours is known; and it holds nothing but these files.
_MADE_HERE = re.compile(r'^Supervised fine-tuning of `.*` with sft_jax\.$', re.MULTILINE)
_MAY_HOLD = re.compile(
  r'README\.md|config\.json|generation_config\.json|adapter_(config\.json|model\.safetensors)|'
  r'model(-\d+-of-\d+)?\.safetensors|model\.sftdelta|'
  + '|'.join(map(re.escape, (hf_dir.INDEX, hf_dir.TEMPLATES, *hf_dir.TOKENIZER_FILES)))
)


def export_hf(
  out_dir: str | os.PathLike[str],
  cfg: ModelConfig,
  params: trees.Tree,
  ckpt: source.Checkpoint,
  dtype: str = 'bfloat16',
  max_shard_bytes: int = MAX_SHARD_BYTES,
  card: Mapping[str, Any] | None = None,
  stop_ids: Sequence[int] = (),
) -> None:
  """Writes config, generation config, tokenizer, chat template, safetensors and a model card.

  Every process must call it with the same arguments; the first one writes.

  Args:
    out_dir: Made, or replaced when it holds an earlier export; local or remote.
    cfg: The model.
    params: Its parameters (an adapter already merged), sharded in any way.
    ckpt: Where it came from: raw config and tokenizer are taken over.
    dtype: Stored type, one of `DTYPES`.
    max_shard_bytes: Larger models are split, with an index.
    card: Facts for the model card; keys of `_CARD_HEAD` go into its YAML head.
    stop_ids: Further tokens that end a generation.

  Raises:
    UserError: unknown dtype, a value that does not fit it, NaN or infinity, `out_dir` is something
      else, the disk is full.
  """
  if dtype not in DTYPES:
    raise UserError(f'unknown dtype {dtype!r}', 'config.export', f'use {", ".join(DTYPES)}')
  itemsize = 4 if dtype == 'float32' else 2
  sizes = {
    name: itemsize * math.prod(families.stored_shape(row, cfg))
    for row in families.rows(cfg)
    for name in hf.hf_names(row, cfg)
  }
  shards = _shards(sizes, max_shard_bytes)
  with new_directory(out_dir) as directory:
    stream = _tensors(cfg, params, dtype)
    for file, members in shards.items():
      tensors = dict(_take(stream, members))
      if directory is not None:
        save_tensors(tensors, directory / file)
    if directory is None:
      return
    if len(shards) > 1:
      index = {name: file for file, members in shards.items() for name in members}
      write_json(
        directory / hf_dir.INDEX,
        {'metadata': {'total_size': sum(sizes.values())}, 'weight_map': index},
      )
    config = {**ckpt.config, 'torch_dtype': dtype, 'dtype': dtype}
    config.pop('auto_map', None)  # code, which is not there
    write_json(directory / 'config.json', config)
    write_tokenizer(directory, ckpt)
    write_json(directory / 'generation_config.json', _generation_config(ckpt, stop_ids))
    facts = {'library_name': 'transformers', 'pipeline_tag': 'text-generation'}
    facts |= facts_of_base(ckpt) | {'tags': ['sft']} | dict(card or {})
    (directory / 'README.md').write_text(model_card(ckpt.name, facts), encoding='utf-8')


def _shards(sizes: Mapping[str, int], limit: int) -> dict[str, list[str]]:
  """{file name: tensor names}, in the order the tensors are produced."""
  groups: list[list[str]] = [[]]
  filled = 0
  for name, size in sizes.items():
    if groups[-1] and filled + size > limit:
      groups.append([])
      filled = 0
    groups[-1].append(name)
    filled += size
  if len(groups) == 1:
    return {'model.safetensors': groups[0]}
  count = len(groups)
  return {f'model-{i:05d}-of-{count:05d}.safetensors': group for i, group in enumerate(groups, 1)}


def _tensors(cfg: ModelConfig, params: trees.Tree, dtype: str) -> Iterator[tuple[str, np.ndarray]]:
  """Every Hugging Face tensor, one stack of layers in host memory at a time."""
  import ml_dtypes

  target = np.dtype(ml_dtypes.bfloat16 if dtype == 'bfloat16' else dtype)
  flat = trees.flatten(params)
  for path, shape in families.shapes(cfg).items():
    if flat[path].shape != shape:
      raise ValueError(f'{path} has shape {flat[path].shape}, not {shape}')
  pieces: dict[str, list[Row]] = {}
  for row in families.rows(cfg):
    pieces.setdefault(row.hf, []).append(row)
  for rows in pieces.values():
    values = [to_host(flat[row.path]) for row in rows]
    for layer, name in enumerate(hf.hf_names(rows[0], cfg)):
      parts = [
        _as_stored(row, cfg, value[layer] if row.path.startswith('layers/') else value)
        for row, value in zip(rows, values, strict=True)
      ]
      with np.errstate(over='ignore'):
        whole = parts[0] if len(parts) == 1 else np.concatenate(parts)
        stored = np.ascontiguousarray(whole).astype(target)
      require_finite(name, whole, stored, dtype)
      yield name, stored


def _as_stored(row: Row, cfg: ModelConfig, value: np.ndarray) -> np.ndarray:
  """One layer of a parameter in a checkpoint's orientation, without a padded vocabulary's tail."""
  return (value.T if row.transposed else value)[: families.extent(row, cfg)[1]]


def require_finite(name: str, value: np.ndarray, stored: np.ndarray, dtype: str) -> None:
  """Refuses a tensor that is not finite as it is stored, or at all."""
  if np.isfinite(stored).all():
    return
  if np.isfinite(value.astype(np.float32)).all():
    raise UserError(f'tensor {name} does not fit {dtype}', 'config.export', 'export as bfloat16')
  raise UserError(
    f'tensor {name} holds NaN or infinity',
    'config.export',
    'export another snapshot (config.export.snapshot=best), or train with a lower learning rate',
  )


def _take(
  stream: Iterator[tuple[str, np.ndarray]], names: Sequence[str]
) -> Iterator[tuple[str, np.ndarray]]:
  for expected in names:
    name, array = next(stream)
    assert name == expected, (name, expected)
    yield name, array


def save_tensors(tensors: dict[str, np.ndarray], path: Path) -> None:
  """Writes a safetensors file that whoever may read its neighbours may read: theirs is private."""
  from safetensors.numpy import save_file

  save_file(tensors, path, metadata={'format': 'pt'})
  mask = os.umask(0)
  os.umask(mask)
  path.chmod(0o666 & ~mask)


def to_host(array: Any) -> np.ndarray:
  """The whole array as numpy, gathered from all processes where no single one holds it."""
  if isinstance(array, jax.Array) and not array.is_fully_addressable:
    from jax.experimental import multihost_utils

    return np.asarray(multihost_utils.process_allgather(array, tiled=True))
  return np.asarray(array)


def write_json(path: Path, value: Mapping[str, Any]) -> None:
  path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + '\n', encoding='utf-8')


def write_tokenizer(directory: Path, ckpt: source.Checkpoint) -> None:
  """The source's tokenizer with its chat template; see `tokenizer.save`."""
  tokenizer_lib.save(ckpt.tokenizer(), ckpt.tokenizer_files(), directory)


def _generation_config(ckpt: source.Checkpoint, stop_ids: Sequence[int]) -> dict[str, Any]:
  """The source's, with every id that ends a generation: its own, the tokenizer's, `stop_ids`."""
  own = tokenizer_lib.model_stops(ckpt.generation_config, ckpt.config, ckpt.name)
  eos = ckpt.tokenizer().eos_token_id
  stops = list(dict.fromkeys([*own, *([] if eos is None else [int(eos)]), *map(int, stop_ids)]))
  config = dict(ckpt.generation_config)
  for key in ('bos_token_id', 'pad_token_id'):
    if ckpt.config.get(key) is not None:
      config.setdefault(key, ckpt.config[key])
  if stops:
    config['eos_token_id'] = stops if len(stops) > 1 else stops[0]
  return config


def facts_of_base(ckpt: source.Checkpoint) -> dict[str, Any]:
  """What a model card says of the base: its licence and, if it is from the hub, its id there."""
  return {'license': ckpt.license, 'base_model': ckpt.hub_id}


def model_card(base: str, facts: Mapping[str, Any]) -> str:
  """README.md: YAML head as the hub reads it, then the remaining facts as a table."""
  # JSON scalars and lists are YAML as well.
  lines = [f'{key}: {json.dumps(facts[key])}' for key in _CARD_HEAD if facts.get(key)]
  title = facts.get('model_name') or f'{base}, fine-tuned'
  table = [f'| {key} | {_cell(value)} |' for key, value in facts.items() if key not in _CARD_HEAD]
  body = [
    f'# {title}',
    '',
    f'Supervised fine-tuning of `{base}` with sft_jax.',
    *(['', '| training | |', '|---|---|', *table] if table else []),
  ]
  return '\n'.join(['---', *lines, '---', '', *body, ''])


def _cell(value: Any) -> str:
  text = value if isinstance(value, str) else json.dumps(value, default=str)
  return ' '.join(text.replace('|', '\\|').split())


def check_place(
  out_dir: str | os.PathLike[str], base: Sequence[str | os.PathLike[str]] = ()
) -> None:
  """Refuses what an export must not replace: all but an earlier export, and nothing.

  Only the first process looks, which is the one that writes.

  Args:
    out_dir: Where an export shall stand.
    base: Files of the model that was trained, whose directory may be an earlier export itself.

  Raises:
    UserError: the base's directory, a file, or a directory with anything that no export holds.
  """
  target = epath.Path(out_dir)
  if jax.process_index() != 0 or not target.exists():
    return
  real = lambda path: os.fspath(path) if io.is_remote(path) else os.path.realpath(path)
  if real(target) in {real(epath.Path(file).parent) for file in base}:
    raise UserError('the export directory is that of the base', str(out_dir), 'choose another')
  held = {path.name for path in target.iterdir()} if target.is_dir() else {''}
  others = sorted(name for name in held if not _MAY_HOLD.fullmatch(name))
  if others or (held and not _is_ours(target / 'README.md')):
    raise UserError(
      f'the export directory holds other files{f" ({others[0]})" if any(others) else ""}, '
      'or a model that is no export of ours',
      str(out_dir),
      'choose another, or remove it',
    )


def _is_ours(card: epath.Path) -> bool:
  try:
    return _MADE_HERE.search(card.read_bytes().decode(errors='replace')) is not None
  except OSError:  # None there.
    return False


@contextlib.contextmanager
def new_directory(out_dir: str | os.PathLike[str]) -> Iterator[Path | None]:
  """Yields a scratch directory that becomes `out_dir` when the block ends without an error.

  An earlier export of that name is replaced; anything else there is refused. Processes other than
  the first get None. In an object store, which cannot rename, config files are uploaded last.

  Raises:
    UserError: `out_dir` holds something that is no export; full or read-only disk.
  """
  check_place(out_dir)
  if jax.process_index() != 0:
    yield None
    return
  target = epath.Path(out_dir)
  remote = io.is_remote(out_dir)
  with io.explain_os_errors(out_dir):
    if not remote:
      target.parent.mkdir(parents=True, exist_ok=True)
    parent = Path(tempfile.gettempdir()) if remote else Path(target.parent)
    with io.scratch_directory(parent, target.name) as scratch:
      made = scratch / 'new'
      made.mkdir()
      yield made
      if remote:
        files = [path for path in made.rglob('*') if path.is_file()]
        for path in sorted(files, key=lambda p: p.name.endswith('config.json')):
          place = target / path.relative_to(made).as_posix()
          place.parent.mkdir(parents=True, exist_ok=True)
          epath.Path(path).copy(place, overwrite=True)
        return
      if target.exists():
        os.replace(target, scratch / 'old')
      os.replace(made, target)

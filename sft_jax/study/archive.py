"""The room a study takes: what is used, and a quota.

Works on files alone, of one run's workdir or of a study's. Not for making weights small:
`delta.py`; not for which are kept: `train/weights.py`; not for what leaves: `release.py`.
"""

import dataclasses
import math
import os
from collections.abc import Mapping
from pathlib import Path

from sft_jax.study.delta import SUFFIX
from sft_jax.utils import io
from sft_jax.utils.errors import UserError

# Directory or beginning of a name, below a run or cohort -> kind. The first that fits counts.
_KINDS = {
  'checkpoints': 'training state',
  'weights': 'weights',
  'export': 'exports',
  'release': 'releases',
  'samples': 'answers',
  'answers': 'answers',
  'metrics.jsonl': 'logs',
  'events.out': 'logs',
  'report': 'tables',
  'results': 'tables',
}
KINDS = (*dict.fromkeys(_KINDS.values()), 'deltas', 'records')


@dataclasses.dataclass
class Use:
  """Bytes and files of one kind."""

  bytes: int = 0
  files: int = 0


@dataclasses.dataclass(frozen=True)
class Quota:
  """What a workdir may take; 0 sets no limit. Files count directories too, as inodes do."""

  bytes: int = 0
  files: int = 0

  def require(
    self, workdir: str | os.PathLike[str], bytes: int, files: int = 1, what: str = ''
  ) -> None:
    """Makes sure that so much more has room; call it before anything is written.

    Args:
      workdir: Of the study, or of a run that stands alone.
      bytes: About to be written.
      files: Likewise.
      what: For the message, such as 'the export of run 1a2b'.

    Raises:
      UserError: the quota, or the disk, would be exceeded.
    """
    self.within(workdir, bytes, files, what)
    if bytes > (free := io.free_bytes(workdir)):
      raise UserError(
        f'{what or "what comes next"} takes {_number(bytes, "bytes")}, and '
        f'{_number(free, "bytes")} are free on the disk',
        str(workdir),
        'free space or choose another --workdir',
      )

  def within(
    self, workdir: str | os.PathLike[str], bytes: int, files: int = 1, what: str = ''
  ) -> None:
    """Holds so much more against the quota alone; see `require`."""
    uses = usage(workdir) if self.bytes or self.files else {}
    used = together(uses)
    largest = max(uses, key=lambda kind: uses[kind].bytes, default='')
    how = (
      'raise config.study.quota_gb or quota_files, keep less (config.checkpoint.keep_weights), or '
      f'remove {largest or "files"}'
    )
    for unit, limit, has, more in (
      ('bytes', self.bytes, used.bytes, bytes),
      ('files', self.files, used.files, files),
    ):
      if limit and has + more > limit:
        raise UserError(
          f'{what or "what comes next"} takes {_number(more, unit)}, and of the quota of '
          f'{_number(limit, unit)} {_number(max(limit - has, 0), unit)} are left',
          str(workdir),
          how,
        )


def usage(workdir: str | os.PathLike[str]) -> dict[str, Use]:
  """{kind: what it takes}, of all `KINDS`; the files of runs at work may come and go meanwhile."""
  root = os.fspath(workdir)
  found = {kind: Use() for kind in KINDS}
  for directory, inner, files in os.walk(root):
    below = Path(os.path.relpath(directory, root)).parts
    for name in inner:
      found[_kind((*below, name))].files += 1
    for name in files:
      use = found[_kind((*below, name))]
      try:
        use.bytes += os.lstat(os.path.join(directory, name)).st_size
        use.files += 1
      except FileNotFoundError:
        continue
  return found


def together(uses: Mapping[str, Use]) -> Use:
  """The sum."""
  return Use(sum(u.bytes for u in uses.values()), sum(u.files for u in uses.values()))


def lines(uses: Mapping[str, Use]) -> list[str]:
  """A table of `usage`, the largest first, and the sum."""
  shown = sorted((u.bytes, kind, u.files) for kind, u in uses.items() if u.files)[::-1]
  total = together(uses)
  rows = [*shown, (total.bytes, 'together', total.files)]
  return [
    f'{kind:<15}{_number(size, "bytes"):>10}  {files:>8,} files' for size, kind, files in rows
  ]


def _kind(parts: tuple[str, ...]) -> str:
  if parts[-1].endswith(SUFFIX):
    return 'deltas'
  if parts[0] in ('runs', 'cohorts') and len(parts) > 2:
    cohort, parts = parts[0] == 'cohorts', parts[2:]
    # A cohort keeps training state and a few small files of its own.
    if cohort and len(parts) > 1:
      return 'training state'
  return next((kind for start, kind in _KINDS.items() if parts[0].startswith(start)), 'records')


def _number(value: int, unit: str) -> str:
  if unit == 'files':
    return f'{value:,} {unit}'
  power = min(int(math.log10(max(value, 1)) / 3), 4)
  return f'{value / 1000**power:.3g} {("B", "kB", "MB", "GB", "TB")[power]}'

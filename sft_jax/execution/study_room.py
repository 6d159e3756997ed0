"""Whether there is room for what runs write: asked when a study is planned, and before a cohort."""

import os
from collections.abc import Sequence
from typing import Any

from sft_jax.execution import study_sizes
from sft_jax.study import archive, cost, disk, plan
from sft_jax.study.directory import StudyDirectory
from sft_jax.utils import io, log
from sft_jax.utils.transfer import as_size


def quota_of(config: Any) -> archive.Quota:
  """What `config.study` allows a workdir."""
  return archive.Quota(int(config.study.quota_gb * 1e9), config.study.quota_files)


def check_plan(study: plan.Study, sizes: cost.Sizes, workdir: str) -> None:
  """Holds what all runs will leave against the quota and, with a warning only, the disk here.

  Raises:
    UserError: the quota has no room for it; deltas, whose size nobody knows, are not counted.
  """
  if io.is_remote(workdir):
    return
  left = [
    disk.sure_bytes(run, sizes.models.get(run.spec.base), cost.examples_of(run, sizes))
    for run in study.runs
  ]
  there = _there(workdir, [run.key for run in study.runs])
  more = max(sum(size or 0 for size in left) - there.bytes, 0)
  quota_of(study.config).within(workdir, more, 0, 'what the runs leave')
  if more > (free := io.free_bytes(workdir)):
    log.warn(f'{workdir}: {as_size(more)} are to be left, and {as_size(free)} are free here')


class Room:
  """Makes sure that runs have room before they begin."""

  def __init__(self, study: plan.Study, workdir: str):
    self._runs = {run.key: run for run in study.runs}
    self._workdir, self._quota = workdir, quota_of(study.config)

  def __call__(self, keys: Sequence[str]) -> None:
    """Raises UserError where the disk or the quota has no room for these runs."""
    if io.is_remote(self._workdir):
      return
    runs = [self._runs[key] for key in keys]
    size = study_sizes.model_sizes(runs).get(runs[0].spec.base)
    if size is None:
      return
    there = _there(self._workdir, keys)
    more = sum(disk.written_bytes(run, size) for run in runs) - there.bytes
    files = sum(disk.files(run, size) for run in runs) - there.files
    what = runs[0].name + (f' and {len(runs) - 1} more' if runs[1:] else '')
    self._quota.require(self._workdir, max(more, 0), max(files, 0), what)


def _there(workdir: str | os.PathLike[str], keys: Sequence[str]) -> archive.Use:
  """What runs have taken so far."""
  place = StudyDirectory(workdir)
  uses = [archive.together(archive.usage(place.run(key))) for key in keys]
  return archive.Use(sum(use.bytes for use in uses), sum(use.files for use in uses))

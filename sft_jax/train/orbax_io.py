"""What states and weights share in their use of Orbax. Not for deciding what is kept."""

import contextlib
import dataclasses
import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
from etils import epath

from sft_jax.utils import io, log
from sft_jax.utils.errors import UserError

Metadata = dict[str, Any]


@dataclasses.dataclass
class _Keep:
  """Orbax preservation policy: after a save is committed, `choose(steps)` stay."""

  choose: Callable[[Sequence[int]], Sequence[int | None]]

  def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> Sequence[bool]:
    del context
    kept = self.choose([info.step for info in checkpoints])
    return [info.step in kept for info in checkpoints]


def load() -> None:
  """Imports Orbax now, which brings in parts of jax that have settings of their own.

  From jax 0.12 on they are part of what programs are known by: one that was traced before the first
  save would be traced again after it.
  """
  import orbax.checkpoint  # noqa: F401


def manager(
  directory: epath.Path, choose: Callable[[Sequence[int]], Sequence[int | None]], read_only: bool
) -> Any:
  """An Orbax manager of `directory`; after each save, the steps that `choose` gives stay."""
  # Imported here: orbax takes a second.
  import orbax.checkpoint as ocp
  from orbax.checkpoint import checkpoint_managers

  return ocp.CheckpointManager(
    directory,
    options=ocp.CheckpointManagerOptions(
      preservation_policy=_Keep(choose),
      # Every call means it: the loop decides when.
      save_decision_policy=checkpoint_managers.FixedIntervalPolicy(1),
      enable_async_checkpointing=not read_only,
      cleanup_tmp_directories=not read_only,
      create=not read_only,
      read_only=read_only,
    ),
  )


def arguments(tree: Any, meta: Metadata) -> Any:
  """What `save` takes: a pytree of arrays and a JSON object beside it."""
  import orbax.checkpoint as ocp

  return ocp.args.Composite(
    tree=ocp.args.StandardSave(tree),
    meta=ocp.args.JsonSave(json.loads(io.to_json(meta))),
  )


def save(manager: Any, step: int, args: Any) -> None:
  """Begins a save; raises RuntimeError where Orbax declines."""
  if not manager.save(step, args=args):
    raise RuntimeError(f'orbax did not save step {step}; it holds {manager.all_steps()}')


def restore(manager: Any, directory: epath.Path, step: int, abstract: Any) -> Any:
  """The pytree of a step, in the shardings of `abstract`; UserError if it cannot be read."""
  import orbax.checkpoint as ocp

  with explain_unreadable(directory / str(step)):
    args = ocp.args.Composite(tree=ocp.args.StandardRestore(abstract))
    return manager.restore(step, args=args)['tree']


@contextlib.contextmanager
def explain_unreadable(path: epath.Path) -> Iterator[None]:
  """Turns whatever is raised while a checkpoint is read into a `UserError` that names it."""
  try:
    yield
  except Exception as e:  # orbax and tensorstore raise many kinds
    reason = str(e).strip().splitlines()
    raise UserError(
      f'checkpoint cannot be read: {type(e).__name__}: {reason[0][:200] if reason else ""}',
      where=str(path),
      how='remove that directory to continue from an earlier checkpoint, or start anew elsewhere',
    ) from e


def steps(directory: epath.Path) -> list[epath.Path]:
  """Directories of steps, whole or not; not by `glob`, which takes [ in a name for a pattern."""
  entries = sorted(directory.iterdir()) if directory.exists() else []
  # Orbax removes its own temporary directories; what is not named like a step is not ours.
  return [path for path in entries if path.name.isdigit() and path.is_dir()]


def sweep(
  directory: epath.Path,
  run_id: str,
  metadata: Callable[[epath.Path], Metadata | None],
  read_only: bool,
) -> None:
  """Removes incomplete checkpoints and refuses another run's.

  Raises:
    UserError: a checkpoint of another `run_id`.
  """
  for path in steps(directory):
    meta = metadata(path)
    if meta is None:
      # Left by a kill. It would never be read, and stands where its step is saved again.
      if jax.process_index() == 0 and not read_only:
        log.say(f'removing an incomplete checkpoint: {path}')
        path.rmtree(missing_ok=True)
    elif meta['run_id'] != run_id:
      raise UserError(
        f'this workdir holds run {meta["run_id"]}, not {run_id}',
        where=str(path),
        how='choose another --workdir, or undo the change of the configuration',
      )


def metadata(path: epath.Path) -> Metadata | None:
  """The JSON saved beside a committed checkpoint; None when it is not committed."""
  try:
    committed = json.loads((path / '_CHECKPOINT_METADATA').read_text())
    meta = json.loads((path / 'meta' / 'metadata').read_text())
    if not committed['commit_timestamp_nsecs'] or not (path / 'tree' / '_METADATA').exists():
      return None
    return meta if str(meta['step']) == path.name and 'run_id' in meta else None
  except (OSError, ValueError, KeyError, TypeError):
    return None

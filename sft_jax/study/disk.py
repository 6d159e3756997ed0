"""Bytes and files that runs take on disk, from the size of their base: most, never least.

Not for what is there already: `archive.py`.
"""

import dataclasses
from collections.abc import Mapping

from sft_jax.study import plan

BYTES = {'float32': 4, 'bfloat16': 2, 'float16': 2}
# Files and directories of a run beside those of its snapshots; of an export.
_RUN_FILES, _EXPORT_FILES = 16, 16
# Weights up to so many bytes lie in one file (`train/weights.py`), larger ones in Orbax's many, of
# which one has at most so many bytes.
_ONE_FILE, _ORBAX_FILES, _ORBAX_BYTES = 64 << 20, 24, 400_000_000


@dataclasses.dataclass(frozen=True)
class ModelSize:
  """Sizes of a base model.

  Attributes:
    params: Parameters.
    matmul: Of them, those that multiply activations: with the head, without the embedding.
    layers: Decoder layers.
    width: Heads × size of a head.
    adapters: {`lora.targets`: parameters of an adapter of rank 1 on them}.
    licence: As published; '' if unknown.
  """

  params: int
  matmul: int
  layers: int
  width: int
  adapters: Mapping[str, int]
  licence: str = ''


def weight_bytes(run: plan.Planned, size: ModelSize | None) -> int | None:
  """One snapshot's weights, as they are trained; None where the base is unknown, here and below."""
  if size is None:
    return None
  if run.spec.method == 'lora':
    return size.adapters[run.spec.targets] * run.spec.rank * BYTES['float32']
  return size.params * BYTES[run.spec.param_dtype]


def delta_bytes(run: plan.Planned, size: ModelSize | None) -> int | None:
  """One snapshot's weights as a bfloat16 difference to the base, before compression."""
  if size is None or run.spec.method == 'lora':
    return weight_bytes(run, size)
  return size.params * BYTES['bfloat16']


def kept(run: plan.Planned, examples: int = 0) -> int:
  """Snapshots whose weights are kept at the end; `examples` as for `Planned.snapshots`."""
  count = len(run.snapshots(examples))
  return {'all': count, 'best': min(count, 2), 'last': 1, 'none': 0}[
    run.config.checkpoint.keep_weights
  ]


def left_bytes(run: plan.Planned, size: ModelSize | None, examples: int = 0) -> int | None:
  """Weights that are kept and `config.export`, at the end of a run."""
  one = weight_bytes(run, size)
  return None if one is None else one * kept(run, examples) + _export_bytes(run, size)


def sure_bytes(run: plan.Planned, size: ModelSize | None, examples: int = 0) -> int | None:
  """The same without deltas, whose size nobody knows beforehand."""
  left = left_bytes(run, size, examples)
  return left and left - (_export_bytes(run, size) if run.config.export.format == 'delta' else 0)


def working_bytes(run: plan.Planned, size: ModelSize | None) -> int | None:
  """What a run takes beside that while it is at work."""
  one = weight_bytes(run, size)
  if one is None:
    return None
  moments = 2 * one * BYTES['float32'] // BYTES[run.spec.param_dtype]
  states = (run.config.checkpoint.keep_states + 1) * (one + moments)
  # The whole model that a delta is made of.
  return states + (_export_bytes(run, size) if run.config.export.format == 'delta' else 0)


def written_bytes(run: plan.Planned, size: ModelSize) -> int:
  """All of it at one time."""
  return (left_bytes(run, size) or 0) + (working_bytes(run, size) or 0)


def files(run: plan.Planned, size: ModelSize | None, examples: int = 0) -> int:
  """Files and directories of a run at its end."""
  scored = len(run.snapshots(examples)) + 1
  tasks = len([task for task in run.config.eval.tasks.split(',') if task.strip()])
  one = weight_bytes(run, size) or 0
  weights = 2 if one <= _ONE_FILE else _ORBAX_FILES + one // _ORBAX_BYTES
  export = _EXPORT_FILES if run.config.export.format != 'none' else 0
  return _RUN_FILES + scored * (tasks + 1) + weights * kept(run, examples) + export


def _export_bytes(run: plan.Planned, size: ModelSize | None) -> int:
  """A delta is counted as the model it stands for."""
  form = run.config.export.format
  if form == 'none' or size is None:
    return 0
  if form == 'peft':
    return weight_bytes(run, size) or 0
  return size.params * BYTES[run.config.export.dtype]

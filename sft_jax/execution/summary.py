"""What a run says when it ends: scores before and after, answers side by side, what to do next."""

import re
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from sft_jax import results
from sft_jax import spec as spec_lib
from sft_jax.execution.workdir import Workdir

_WIDTH = 46
# What a run leaves that is worth a look, as far as it is there.
_TOLD = ('rows.jsonl', 'metrics.jsonl', 'audit.json', 'samples/')
_EVENTS = 'events.out.tfevents.*'  # Of TensorBoard.


def lines(workdir: Workdir, columns: Sequence[str], about: Mapping[str, str]) -> list[str]:
  """The closing lines of a run.

  Args:
    workdir: The run's directory.
    columns: Score columns to show.
    about: For the advice: `workdir`, export `format`, `method`, `base`, `weights` that are kept,
      and `data` where they are a path that the user gave.
  """
  rows = workdir.rows()
  compared = results.comparison(rows, columns)
  out = ['', *compared] if compared else []
  before, after = workdir.items(0, 'samples'), workdir.items(rows[-1]['step'], 'samples')
  for old, new in zip(before, after, strict=False):
    out += ['', *_side_by_side(old, new)]
  kept = [name for name in _TOLD if (workdir.path / name.rstrip('/')).exists()]
  events = any(workdir.path.glob(_EVENTS))
  return [*out, '', *_advice(about, kept, events)]


def _side_by_side(old: Mapping[str, str], new: Mapping[str, str]) -> list[str]:
  """One question with the answers of the base and of the trained model in two columns."""
  wrap = lambda text: (
    [part for line in text.splitlines() for part in textwrap.wrap(line, _WIDTH) or ['']]
    or ['(nothing)']
  )
  left, right = wrap(old['answer'])[:12], wrap(new['answer'])[:12]
  height = max(len(left), len(right))
  left += [''] * (height - len(left))
  right += [''] * (height - len(right))
  question = textwrap.shorten(old['prompt'], 2 * _WIDTH - 2, placeholder='…')
  out = [f'Q: {question}', f'{"before":<{_WIDTH}} | after', f'{"-" * _WIDTH}-+-{"-" * _WIDTH}']
  return out + [f'{a:<{_WIDTH}} | {b}' for a, b in zip(left, right, strict=True)]


def _advice(about: Mapping[str, str], kept: Sequence[str], events: bool) -> list[str]:
  workdir = about['workdir']
  out = [f'All of it is in {workdir}: {", ".join(kept)}.', 'Next:']
  if about['weights'] != 'none':
    out.append(f'  talk to both: python -m sft_jax.main --mode=chat --workdir={workdir}')
  if events:
    out.append(f'  tensorboard --logdir {workdir}')
  if about['format'] == 'delta':
    out.append(f'  the same command with --mode=release adds what rebuilds {workdir}/export/delta')
  elif about['format'] == 'peft' and about['base'].startswith('wheel:'):
    out.append(
      f'  {workdir}/export/peft is an adapter for peft; its base is in a wheel, so give it'
    )
    out.append('  that base as a directory, or take a merged model:')
  elif about['format'] != 'none':
    out.append(f'  open {workdir}/export/{about["format"]} in transformers or peft')
  if about['format'] != 'hf':
    out.append(
      f'  the same command with --mode=export --config.export.format=hf writes a '
      f'{"merged " if about["method"] == "lora" else ""}Hugging Face model'
    )
  if not about['data']:
    out.append(
      '  train on your own file: --config=configs/sft.py:lora --config.model.path=… '
      '--config.data.path=my.jsonl'
    )
  return out


def card(
  model: str,
  data: str,
  data_path: str,
  rows: Sequence[results.Row],
  spec: spec_lib.RunSpec,
  step: int,
) -> dict[str, Any]:
  """Facts for a model card; what names something on the hub only where it is from there.

  Args:
    model: Short name of the base.
    data: Short name of the data.
    data_path: Where they came from, as `config.data.path` says it.
    rows: Rows of the run.
    spec: Its factors.
    step: The snapshot that is exported.
  """
  held = [row for row in rows if row['step'] == step]
  scores = {
    name: value
    for name, value in (held[-1] if held else {}).items()
    if name.startswith(('ppl-heldout', 'builtin-em')) and not name.endswith('-stderr')
  }
  hub = re.match(r'hf:([\w.-]+(/[\w.-]+)?)', data_path)
  return {
    'datasets': [hub[1]] if hub else [],
    'tags': ['sft', 'sft_jax', spec.method],
    'model_name': f'{model}-{data}',
    'data': data,
    **{spec_lib.FACTORS[k].key: v for k, v in spec.factors().items() if k != 'base'},
    'steps': step,
    **scores,
  }

"""Tasks of lm-evaluation-harness on our engines: `lm_eval:TASK[:Kshot]` in `config.eval.tasks`.

TASK is a name that lm_eval knows (a task, tag or group), FILE.yaml, or DIR/NAME for a name that the
YAML files in a directory give; the latter two need no network if their data need none. Prompts,
shots (drawn with lm_eval's own seed), metrics and their scale are lm_eval's. Columns are
`lm_eval-TASK-METRIC`, with `-FILTER` where a task has several ways to read an answer, and
`-stderr`; `-Kshot` and `-nN` stand behind TASK where K is given or N items of more are asked. Not
for what our own benchmarks measure (`benchmarks.py`). lm_eval is needed only here.
"""

import hashlib
import json
import logging
import math
import os
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sft_jax.evals import lm_eval_model, subset
from sft_jax.evals.answers import Answers
from sft_jax.evals.benchmark import Item
from sft_jax.evals.model import Subject
from sft_jax.evals.questions import Options
from sft_jax.utils.errors import UserError

PREFIX = 'lm_eval:'

_SEED = 1234  # lm_eval's own, of shots.
_BOOTSTRAPS = 1000  # Of metrics whose standard error has no formula.
# Metrics that are shares of 1; compared in points.
_SHARES = ('acc', 'acc_norm', 'acc_bytes', 'exact_match', 'em', 'f1', 'contains', 'pass@1')
# What a task's config says of where its data lie, not of what is asked.
_PLACES = ('dataset_path', 'dataset_kwargs', 'metadata')


class LmEvalTask:
  """One task, tag or group, prepared once (`core.Task`)."""

  def __init__(self, text: str, options: Options):
    """Loads it with its data and chooses items.

    Args:
      text: The entry of `config.eval.tasks`.
      options: How it is put to a model.

    Raises:
      UserError: lm_eval is not installed or cannot load it; a template it does not know; shots it
        does not take; programs that it would run outside of a sandbox.
    """
    match = re.fullmatch(rf'{PREFIX}(.+?)(?::(\d+)shot)?', text)
    if match is None:
      raise UserError(f'{text!r} names no task', 'config.eval.tasks', 'write lm_eval:NAME')
    if options.template not in ('raw', 'chat'):
      raise UserError(
        f'{text} cannot be asked under the template {options.template!r}',
        'config.eval.template',
        "use raw or chat (the model's own)",
      )
    self.name, self._options = text, options
    self._loaded = _load(match[1])
    self._shots = None if match[2] is None else int(match[2])
    self._samples: dict[str, list[int]] = {}
    for name, task in self._loaded['tasks'].items():
      self._prepare(name, task)
    tops = [name for name, group in self._loaded['groups'].items() if group.has_aggregation]
    self.headline: tuple[str, ...] = tuple(
      f'{self._label(name)}-{_measures(self._first(name))[0]}'
      for name in tops or self._loaded['tasks']
    )

  def _prepare(self, name: str, task: Any) -> None:
    if getattr(task, 'UNSAFE_CODE', False):
      raise UserError(
        f'{name} runs programs that models wrote, and lm_eval has no sandbox',
        'config.eval.tasks',
        'use humaneval or mbpp of our own',
      )
    given = task.get_config('num_fewshot')
    if self._shots is not None:
      # lm_eval leaves tasks alone that say 0 themselves.
      if given == 0 and self._shots:
        raise UserError(f'{name} is asked without shots', self.name, 'name no shots')
      task.set_config(key='num_fewshot', value=self._shots)
    elif given is None:
      task.set_config(key='num_fewshot', value=0)
    items = [Item(str(index), {}) for index in range(len(task.eval_docs))]
    if not items:
      raise UserError(f'{name} has no items', self.name, 'check its data')
    options = self._options
    chosen = subset.choose(items, seed=options.seed, macro=False, precision=options.precision).items
    if options.limit:
      chosen = subset.order(items, options.seed, False)[: min(options.limit, len(chosen))]
    if len(chosen) < len(items):
      self._samples[name] = sorted(int(item.id) for item in chosen)

  def _first(self, name: str) -> Any:
    """A task below a name."""
    tasks = self._loaded['tasks']
    return tasks[name] if name in tasks else next(iter(tasks.values()))

  def _label(self, name: str) -> str:
    """How columns call a task or group."""
    shots = '' if self._shots is None else f'-{self._shots}shot'
    tasks = [name] if name in self._loaded['tasks'] else list(self._loaded['tasks'])
    asked = sum(len(self._samples[task]) for task in tasks if task in self._samples)
    return f'lm_eval-{name.replace("/", "_")}{shots}' + (f'-n{asked}' if asked else '')

  def run(self, subject: Subject, answers: Answers) -> dict[str, Any]:
    """See `core.Task.run`."""
    from lm_eval import evaluator

    options = self._options
    model = lm_eval_model.make(
      subject,
      options.tokenizer,
      options.stop_ids,
      tokens_per_batch=options.tokens_per_batch,
      slots=options.slots,
      answers=answers,
    )
    tasks = self._loaded['tasks']
    for task in tasks.values():
      task.set_fewshot_seed(_SEED)  # Each model gets the same shots.
    # A process of ours cannot be forked safely.
    os.environ.setdefault('DISABLE_MULTIPROC', '1')
    everything = {name: list(range(len(task.eval_docs))) for name, task in tasks.items()}
    found = evaluator.evaluate(
      model,
      self._loaded,
      samples=everything | self._samples if self._samples else None,
      bootstrap_iters=_BOOTSTRAPS,
      apply_chat_template=options.template == 'chat',
      fewshot_as_multiturn=options.template == 'chat',
    )
    if model.undefined:
      # lm_eval takes the first choice, or an empty text, for an answer.
      return dict.fromkeys(self.headline, math.nan)
    out: dict[str, Any] = {}
    for name, metrics in found['results'].items():
      out |= _columns(self._label(name), metrics)
      if name in found['versions']:
        out[f'{self._label(name)}-version'] = found['versions'][name]
    for name, samples in found['samples'].items():
      label = self._label(name)
      out[f'{label}-n'] = len({sample['doc_id'] for sample in samples})
      if records := self._records(name, samples):
        out[f'{label}-items'] = records
    return out

  def _records(self, name: str, samples: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Per-item records (`stats.py`) of one task; [] where its metrics are none of single items."""
    task, label = self._loaded['tasks'][name], self._label(name)
    merged: dict[str, dict[str, Any]] = {}
    several = len({sample['filter'] for sample in samples}) > 1
    for sample in samples:
      record = merged.setdefault(str(sample['doc_id']), self._record(task, sample))
      for metric in sample['metrics']:
        value = sample[metric]
        if isinstance(value, (bool, int, float, np.number)) and math.isfinite(value):
          measure = f'{metric}-{sample["filter"]}' if several else metric
          record['scores'][measure] = float(value)
    records = list(merged.values())
    measures = [m for m in records[0]['scores'] if all(m in r['scores'] for r in records)]
    if not measures:
      return []
    about = {
      'task': self.name if len(self._loaded['tasks']) == 1 else f'{self.name}/{name}',
      'column': label,
      'version': task.VERSION,
      'prompt-hash': _config_hash(task),
      'template': self._options.template,
      'measures': measures,
      'percent': re.split('[-,]', measures[0])[0] in _SHARES,
      'macro': False,
    }
    for record in records:
      record['about'] = about
    return records

  def _record(self, task: Any, sample: Mapping[str, Any]) -> dict[str, Any]:
    answers = sample['filtered_resps']
    text = task.doc_to_text(sample['doc'])
    record: dict[str, Any] = {
      'id': str(sample['doc_id']),
      'digest': sample['doc_hash'][:12],
      'prompt': text if isinstance(text, str) else str(text),
      'gold': str(sample['target']),
      'group': '',
      'shots': int(task.get_config('num_fewshot') or 0),
      'scores': {},
      'extracted': None,
    }
    if task.OUTPUT_TYPE == 'generate_until':
      output = sample['resps'][0][0]
      found = answers[0] if isinstance(answers[0], str) else json.dumps(answers[0])
      # What lm_eval's filters give where they find nothing.
      record['extracted'] = None if found == '[invalid]' else found
      tokens = len(self._options.tokenizer(output, add_special_tokens=False)['input_ids'])
      return record | {'output': output, 'output-tokens': tokens}
    if task.OUTPUT_TYPE == 'multiple_choice':
      choices = task.doc_to_choice(sample['doc'])
      logprobs = [float(logprob) for logprob, _ in answers[: len(choices)]]
      record['logprobs'] = [round(value, 6) for value in logprobs]
      record['extracted'] = str(choices[int(np.argmax(logprobs))])
    return record


def _load(source: str) -> dict[str, Any]:
  """What `TaskManager.load` gives for a name, FILE.yaml or DIR/NAME."""
  try:
    from lm_eval import tasks
  except ImportError as e:
    raise UserError(
      'lm_eval is not installed',
      'config.eval.tasks',
      "pip install 'lm_eval==0.4.13', or leave its tasks out",
    ) from e
  logging.getLogger('lm_eval').setLevel(logging.ERROR)
  path = pathlib.Path(source)
  own = path.suffix in ('.yaml', '.yml')
  if own and not path.is_file():
    raise UserError('no such file', source, 'mend config.eval.tasks')
  # Its own tasks are thousands of files, which a file of the user's seldom needs.
  included = str(path.parent) if path.parent.is_dir() and '/' in source and not own else None
  try:
    manager = tasks.TaskManager(include_path=included, include_defaults=not own)
    return dict(manager.load([source if own or not included else path.name]))
  except Exception as e:  # whatever a task's own code, or the reading of its data, raises
    lines = [line.strip() for line in str(e).splitlines() if line.strip()]
    raise UserError(
      f'lm_eval cannot load it: {lines[-1] if lines else type(e).__name__}',
      f'{PREFIX}{source}',
      'mend the name or file in config.eval.tasks, or put its data where it looks for them',
    ) from e


def _measures(task: Any) -> list[str]:
  """Metrics of a task as columns call them, the first in the first way to read an answer."""
  metrics = list(getattr(task, '_metric_fn_list', {})) or ['acc']
  names = [getattr(one, 'name', 'none') for one in getattr(task, '_filters', [])] or ['none']
  return [metric if name == 'none' else f'{metric}-{name}' for name in names for metric in metrics]


def _columns(label: str, metrics: Mapping[str, Any]) -> dict[str, Any]:
  """lm_eval's 'METRIC,FILTER' and 'METRIC_stderr,FILTER' as columns; what is no number is none."""
  out = {}
  for key, value in metrics.items():
    metric, comma, way = key.partition(',')
    if not comma or not isinstance(value, (int, float, np.number)):
      continue
    name, of_error = re.subn('_stderr$', '', metric)
    tail = ('' if way == 'none' else f'-{way}') + ('-stderr' if of_error else '')
    out[f'{label}-{name}{tail}'] = float(value)
  return out


def _config_hash(task: Any) -> str:
  """Short hash of everything that a task's config says but where its data lie."""
  config = {name: value for name, value in task.dump_config().items() if name not in _PLACES}
  # Functions are told by their source, where it is at hand, never by their address.
  text = json.dumps(
    config, sort_keys=True, default=lambda value: re.sub('0x[0-9a-f]+', '', str(value))
  )
  return hashlib.sha256(text.encode()).hexdigest()[:12]

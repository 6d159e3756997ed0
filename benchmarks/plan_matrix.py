"""Programs compiled for chips that are not here: `python -m benchmarks.plan_matrix`.

Shapes of public 7 to 9B models, full fine-tuning and LoRA cohorts at 4,096 tokens, scoring and
decoding, on slices of TPUs and nodes of GPUs: bytes on a chip against what it has, what each chip
sends, the roofline of a step. TPUs need libtpu; for GPUs, an environment of its own:

  python -m venv ENV && ENV/bin/pip install -r requirements.txt 'jax[cuda12]'
  ENV/bin/python -m benchmarks.plan_matrix --topologies=h100:1,h100:8,h100:2x8

Results are added to those in the file; what stands there is not compiled again.
"""

import argparse
import dataclasses
import json
import os
import time
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[1]
MODELS = ('meta-llama/Meta-Llama-3-8B', 'Qwen/Qwen2.5-7B', 'google/gemma-2-9b')
TOPOLOGIES = ('v5e:4x4', 'v5p:4x4x4', 'v6e:8x8', 'v5e:16x16')
# What is compiled: (name, method, runs, quantised base, tokens a row, topologies of its own).
KINDS: dict[str, tuple[str, int, str, int, tuple[str, ...]]] = {
  'full': ('full', 1, 'none', 4096, ()),
  'lora-16': ('lora', 16, 'none', 4096, ()),
  'score': ('lora', 1, 'none', 512, ()),
  'decode': ('lora', 1, 'none', 1024, ()),
  'lora-int8': ('lora', 1, 'int8', 1024, ('v5e:1x1',)),
}
WEAK = ('v5e:2x4', 'v5e:4x4', 'v5e:8x8', 'v5e:16x16')
GIB = 2**30


def setting(model: str, kind: str, where: str) -> Any:
  """What one program is: a row of each run on each chip, one after another; all chips in `fsdp`,
  layers computed again."""
  from configs import base
  from sft_jax import spec as spec_lib
  from sft_jax.ahead import setting as setting_lib
  from sft_jax.models import published
  from sft_jax.models.config import ModelConfig
  from sft_jax.parallel import topology

  method, runs, quantize, length, _ = KINDS[kind]
  config = base.get_config()
  config.model.path, config.data.name, config.train.method = model, 'lima', method
  config.model.quantize = quantize
  chips = topology.parse(where)
  spec = dataclasses.replace(spec_lib.from_config(config, chips.chip.platform), dropout=0.0)
  cfg = ModelConfig.from_hf(published.raw_config(model))
  count = chips.chips
  one = setting_lib.Setting(cfg, spec, chips, (1, count, 1), runs, count, 1, count, length, 'full')
  return setting_lib.steps_rows(one, 1)


def case(model: str, kind: str, where: str) -> dict[str, Any]:
  """One program, compiled."""
  from sft_jax.ahead import compiled, estimate
  from sft_jax.parallel import hlo, roofline

  one = setting(model, kind, where)
  chips = one.topology
  began, used = time.monotonic(), time.process_time()
  if kind == 'score':
    program = compiled.score(one)
  elif kind == 'decode':
    program = compiled.decode(one, max(32, chips.chips), one.length)
  else:
    program = compiled.train(one)
  row: dict[str, Any] = {
    'model': model,
    'kind': kind,
    'topology': where,
    'seconds': time.monotonic() - began,
    'cpu_seconds': time.process_time() - used,
    'peak_bytes': program.peak,
    'chip_bytes': chips.usable,
    'fits': not program.refused and program.peak <= chips.usable,
    'refused': program.refused,
    'bytes': program.kinds,
    'sent': hlo.sent_by_kind(program.collectives),
    'largest': [dataclasses.asdict(buffer) for buffer in program.largest[:5]],
  }
  if kind not in ('score', 'decode'):
    collectives = program.collectives if not program.refused else None
    bound = roofline.bound(estimate.work(one, collectives), chips)
    row |= {
      'bound_s': dataclasses.asdict(bound),
      'binding': bound.binding,
      'tokens_per_s': one.tokens / bound.seconds,
    }
  return row


def tables(rows: list[dict[str, Any]]) -> list[str]:
  """Markdown of the results."""
  out = [
    '| model | program | chips | processor time | on a chip | it has | fits | counted '
    '| sent a step | binds | tokens/s |',
    '|---|---|---|---|---|---|---|---|---|---|---|',
  ]
  gib = lambda size: f'{size / GIB:.2f} GiB'
  for row in rows:
    trains = 'bound_s' in row
    counted, sent = row.get('estimated_bytes'), sum(row['sent'].values())
    out.append(
      f'| {row["model"].split("/")[1]} | {row["kind"]} | {row["topology"]} '
      f'| {row["cpu_seconds"]:.0f} s | {gib(row["peak_bytes"])} | {gib(row["chip_bytes"])} '
      f'| {"yes" if row["fits"] else "no"} | {gib(counted) if counted else ""} '
      f'| {gib(sent) if row["sent"] else ""} | {row["binding"] if trains else ""} '
      f'| {format(row["tokens_per_s"], ",.0f") if trains else ""} |'
    )
  return [*out, *weak_scaling(rows)]


def weak_scaling(rows: list[dict[str, Any]]) -> list[str]:
  """A row a chip on ever more chips: what each sends, and the efficiency to be expected."""
  steps = [
    row
    for where in WEAK
    for row in rows
    if (row['topology'], row['kind'], row['model']) == (where, 'full', MODELS[0])
  ]
  steps = [row for row in steps if not row['refused']]
  if len(steps) < 2:
    return []
  out = [
    '',
    f'Weak scaling of {MODELS[0].split("/")[1]}, full, a row of 4,096 tokens a chip. Efficiency: '
    'time of products over the longest of products, memory and network, if all overlap; and over '
    'products and network, if nothing does.',
    '',
    '| chips | sent a chip | products | memory | network | overlapped | not |',
    '|---|---|---|---|---|---|---|',
  ]
  for row in steps:
    b = row['bound_s']
    best = b['compute'] / max(b.values())
    worst = b['compute'] / (b['compute'] + b['network'])
    out.append(
      f'| {row["topology"]} | {sum(row["sent"].values()) / GIB:.1f} GiB | {b["compute"]:.2f} s '
      f'| {b["memory"]:.2f} s | {b["network"]:.2f} s | {best:.0%} | {worst:.0%} |'
    )
  return out


def main() -> None:
  """Compiles what is asked for and not there yet, and writes the tables."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--models', default=','.join(MODELS))
  parser.add_argument('--kinds', default=','.join(KINDS))
  parser.add_argument('--topologies', default=','.join(TOPOLOGIES))
  parser.add_argument('--out', default='benchmarks/results/plan_matrix', help='without suffix')
  args = parser.parse_args()
  os.environ.setdefault('JAX_PLATFORMS', 'cpu')
  from sft_jax.ahead import estimate
  from sft_jax.parallel import topology

  place = REPOSITORY / f'{args.out}.json'
  rows = json.loads(place.read_text()) if place.exists() else []
  done = {(row['model'], row['kind'], row['topology']) for row in rows}
  for kind in args.kinds.split(','):
    for where in KINDS[kind][4] or args.topologies.split(','):
      if why := topology.unable(topology.parse(where)):
        print(f'{kind} for {where} left out: {why}', flush=True)
        continue
      for model in args.models.split(','):
        if (model, kind, where) in done:
          continue
        rows.append(case(model, kind, where))
        print(tables(rows[-1:])[-1], flush=True)
        place.write_text(json.dumps(rows, indent=1) + '\n')
  for row in rows:
    if 'bound_s' in row:
      # Counting takes no time: of the code as it is.
      one = setting(row['model'], row['kind'], row['topology'])
      row['estimated_bytes'] = sum(estimate.memory(one).values())
  place.write_text(json.dumps(rows, indent=1) + '\n')
  text = '\n'.join(tables(rows))
  place.with_suffix('.md').write_text(f'# Programs compiled ahead of time\n\n{text}\n')


if __name__ == '__main__':
  main()

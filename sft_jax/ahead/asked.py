"""What one evaluation asks of a model, in tokens, before data or tokenizer are at hand.

Questions and most new tokens are those of the benchmarks themselves; lengths of prompts are a
table. Where data and tokenizer are there, `evals/budget.py` counts exactly.
"""

import math
from typing import Any, NamedTuple

from sft_jax.evals import core, stats
from sft_jax.evals.benchmark import Generate
from sft_jax.evals.questions import Wanted
from sft_jax.evals.tasks import builtin_short

# Of a built-in question with its template.
_BUILTIN_PROMPT = 40


class Prompts(NamedTuple):
  """Tokens of a benchmark's prompts.

  Attributes:
    shared: Of beginnings that questions share, those of all its groups together.
    each: Of a question beyond them, with its choices, on average.
  """

  shared: int
  each: float


# {NAME:Kshot:READING: tokens} by `evals.budget.work` on the published files (of each benchmark a
# seeded, stratified sample of 400 questions) with Llama 3's tokenizer under the template `study`.
# Shots of exams are added up over all subjects; those of NQ and HellaSwag are usual lengths. Other
# tokenizers of this size differ by some 10 % in English, more in Chinese and Japanese.
PROMPTS: dict[str, Prompts] = {
  'alpaca_eval:0shot:gen': Prompts(0, 41.2),
  'arc_challenge:0shot:ll': Prompts(0, 51.5),
  'arc_easy:0shot:ll': Prompts(0, 42.9),
  'boolq:0shot:gen': Prompts(0, 152.9),
  'boolq:0shot:ll': Prompts(0, 143.1),
  'boolq:5shot:gen': Prompts(732, 148.9),
  'boolq:5shot:ll': Prompts(692, 139.7),
  'cmmlu:0shot:gen': Prompts(0, 138.2),
  'cmmlu:0shot:ll': Prompts(25, 88.7),
  'cmmlu:5shot:gen': Prompts(39739, 141.1),
  'cmmlu:5shot:ll': Prompts(24991, 88.7),
  'gsm8k:0shot:gen': Prompts(0, 81.9),
  'gsm8k:4shot:gen': Prompts(1294, 70.9),
  'hellaswag:0shot:gen': Prompts(0, 165.8),
  'hellaswag:0shot:ll': Prompts(0, 126.4),
  'hellaswag:10shot:gen': Prompts(2300, 165.8),
  'hellaswag:10shot:ll': Prompts(970, 126.4),
  'humaneval:0shot:gen': Prompts(0, 143.4),
  'humaneval:0shot:raw': Prompts(0, 138.3),
  'jmmlu:0shot:gen': Prompts(0, 150.7),
  'jmmlu:0shot:ll': Prompts(0, 127.9),
  'math:0shot:gen': Prompts(0, 91.2),
  'mbpp:0shot:gen': Prompts(45, 126.4),
  'mbpp:3shot:gen': Prompts(550, 117.9),
  'mmlu:0shot:gen': Prompts(72, 133.0),
  'mmlu:0shot:ll': Prompts(60, 118.5),
  'mmlu:5shot:gen': Prompts(36519, 191.4),
  'mmlu:5shot:ll': Prompts(28400, 118.5),
  'mt_bench:0shot:gen': Prompts(0, 145.4),
  'nq:0shot:gen': Prompts(0, 20.2),
  'nq:1shot:gen': Prompts(20, 20.2),
  'nq:5shot:gen': Prompts(100, 20.2),
  'nq:25shot:gen': Prompts(498, 20.2),
  'piqa:0shot:ll': Prompts(0, 52.0),
  'triviaqa:0shot:gen': Prompts(0, 31.8),
  'truthfulqa:0shot:gen': Prompts(0, 19.8),
  'truthfulqa:0shot:ll': Prompts(149, 63.6),
}


class Asked(NamedTuple):
  """Of one snapshot.

  Attributes:
    read: Tokens of prompts, what they share counted once.
    written: Tokens that may be written: every answer as long as its benchmark allows.
    unknown: Tasks that are in neither.
  """

  read: float
  written: float
  unknown: tuple[str, ...] = ()


def asked(config: Any, tokens: float) -> Asked:
  """What `config.eval` and `config.plan` ask of one snapshot.

  Args:
    config: Of the study.
    tokens: Of an example of the training data, for perplexity.

  Raises:
    UserError: a task that does not exist.
  """
  names, wanted = core.task_names(config.eval.tasks)
  limit = config.eval.limit or math.inf
  read = written = 0.0
  unknown = []
  for name in names:
    if name == 'perplexity':
      read += tokens * min(_heldout(config.data), limit)
    elif name == 'builtin':
      items = min(len(builtin_short.items(builtin_short.read_records())), limit)
      read, written = read + items * _BUILTIN_PROMPT, written + items * config.eval.max_new_tokens
    else:
      unknown.append(name)
  for one in wanted:
    if one.name not in PROMPTS:
      unknown.append(one.name)
      continue
    prompts, count = PROMPTS[one.name], min(items_for(one, config.eval.precision), limit)
    new, turns = _most_new(one)
    read += prompts.shared + count * (prompts.each + (turns - 1) * new)
    written += count * turns * new
  return Asked(config.plan.scored or read, config.plan.written or written, tuple(unknown))


def items_for(wanted: Wanted, precision: float) -> int:
  """Questions that give ± `precision` points; all for 0.

  n = N / (1 + (N − 1) (w / z)² / (p q)) with p = q = 1/2 (Cochran, Sampling Techniques, 3.2 solved
  for n): groups are taken for equally large.
  """
  whole = wanted.benchmark.size
  if not precision:
    return whole
  return math.ceil(whole / (1 + (whole - 1) * 4 * (precision / 100 / stats.Z) ** 2))


def _most_new(wanted: Wanted) -> tuple[int, int]:
  """Most new tokens of an answer, and answers to a question; (0, 1) where choices are compared."""
  reading = wanted.benchmark.readings[wanted.reading]
  if not isinstance(reading, Generate):
    return 0, 1
  item, _ = wanted.benchmark.example
  return reading.most_new(wanted.shots), 1 + len(reading.turns(item))


def _heldout(data: Any) -> float:
  """At most so many held-out examples; 0 where the config does not say."""
  return (data.heldout_max or data.heldout_share * data.size) if data.heldout_share else 0

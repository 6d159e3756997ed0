"""What parts of `evaluate_parity.py` share: what is asked of the model, how results differ."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import parity_sides as sides_lib
from benchmarks.parity_sides import Question, Sides

# Questions of each benchmark at --scale=1.
CHOICES = {
  'mmlu:5shot:ll': 40,
  'hellaswag:0shot:ll': 80,
  'arc_easy:0shot:ll': 140,
  'arc_challenge:0shot:ll': 140,
  'piqa:0shot:ll': 120,
  'boolq:0shot:ll': 60,
}
PAIRS = 200
# How far apart two passes of ours may be.
ALIKE = 1e-4

Found = dict[str, Any]


def some_choices(sides: Sides, args: argparse.Namespace, share: float) -> list[Question]:
  """Questions with choices, and random pairs; a share of all."""
  limits = {name: max(1, round(count * share)) for name, count in CHOICES.items()}
  questions = sides_lib.choices(sides, Path(args.data), limits)
  return questions + sides_lib.random_pairs(sides.cfg.vocab_size, round(PAIRS * share))


def ours(subject: Any, questions: Sequence[Question], tokens: int) -> list[tuple[Any, Any]]:
  """Our engine's sums and whether all were greedy, of each continuation."""
  from sft_jax.evals import loglik

  return [loglik.sums(one) for one in loglik.score(subject, sides_lib.texts(questions), tokens)]


def gsm8k(sides: Sides, args: argparse.Namespace, shots: int, count: int) -> list[list[int]]:
  """Prompts of some GSM8K questions; without shots in the chat template, or little is written."""
  template = 'raw' if shots else 'chat'
  name = f'gsm8k:{shots}shot:gen'
  task = sides_lib.benchmark(sides, Path(args.data), name, count, template)
  return [question.ids for question in task.questions]


def written(
  sides: Sides,
  subject: Any,
  prompts: Sequence[Sequence[int]],
  new: int,
  slots: int = 32,
  ends: bool = True,
) -> list[list[Any]]:
  """What each run of a subject writes; without `ends`, always `new` tokens."""
  from sft_jax.evals.generation import Engine, Request, detokenizer

  stops = sides.stops if ends else []
  engine = Engine(subject, detokenizer(sides.tokenizer), stops, slots=slots)
  return engine.generate([Request(tuple(ids), new) for ids in prompts])


def apart(
  what: str, questions: Sequence[Question], one: Sequence[Any], two: Sequence[Any]
) -> Found:
  """How far two passes are apart, and how many questions have another choice."""
  changed, at = 0, 0
  for question in questions:
    part = slice(at, at + len(question.continuations))
    changed += len({int(np.argmax([x[0] for x in pass_[part]])) for pass_ in (one, two)}) > 1
    at = part.stop
  greedy = sum(bool(a[1]) != bool(b[1]) for a, b in zip(one, two, strict=True))
  distance = max(abs(a[0] - b[0]) for a, b in zip(one, two, strict=True))
  return {'what': what, 'max abs Δ': float(distance), 'unequal': greedy + changed}


def unequal(one: Sequence[str], two: Sequence[str]) -> int:
  """Texts that are not the same in both."""
  return sum(a != b for a, b in zip(one, two, strict=False))


def verdict(met: bool) -> str:
  """What is said of a bar."""
  return 'met' if met else 'MISSED'

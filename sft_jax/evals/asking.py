"""Requests put to the engines: only those without an answer, with what is told while they last.

Not for which requests a benchmark makes (`suite.py`).
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from sft_jax.evals import loglik, progress
from sft_jax.evals.answers import Answers, request_key, text_key
from sft_jax.evals.generation import Engine, Request, detokenizer
from sft_jax.evals.layout import Text
from sft_jax.evals.model import Subject


def written(
  subject: Subject,
  requests: Sequence[Request],
  answers: Sequence[Answers],
  tokenizer: Any,
  stop_ids: Sequence[int],
  *,
  slots: int,
  tokens_per_batch: int,
  name: str = 'answers',
) -> list[list[Any]]:
  """Of each run, what was written for each request: {'text', 'tokens' (their number), 'finish'}."""
  keys = [request_key(request) for request in requests]
  todo = [i for i, key in enumerate(keys) if any(key not in held for held in answers)]
  with progress.telling(subject, name, len(todo)) as (asked, told):
    engine = Engine(
      asked, detokenizer(tokenizer), stop_ids, slots=slots, tokens_per_batch=tokens_per_batch
    )

    def keep(run: int, index: int, output: Any) -> None:
      value = {'text': output.text, 'tokens': len(output.ids), 'finish': output.finish}
      answers[run].put(keys[todo[index]], value)
      told()

    engine.generate([requests[i] for i in todo], keep)
  return [[held[key] for key in keys] for held in answers]


def scored(
  subject: Subject,
  texts: Sequence[Text],
  answers: Sequence[Answers],
  tokens_per_batch: int,
  name: str = 'scores',
) -> list[list[tuple[float, bool]]]:
  """Of each run, the log-likelihood of each text's scored tokens and whether all were greedy."""
  keys = [text_key(text) for text in texts]
  todo = [i for i, key in enumerate(keys) if any(key not in held for held in answers)]

  with progress.telling(subject, name, len(todo)) as (asked, told):

    def keep(index: int, one: loglik.Scored) -> None:
      totals, greedy = (np.atleast_1d(part) for part in loglik.sums(one))
      for run, held in enumerate(answers):
        held.put(keys[todo[index]], [float(totals[run]), bool(greedy[run])])
        told()

    loglik.score(asked, [texts[i] for i in todo], tokens_per_batch, keep)
  return [[tuple(held[key]) for key in keys] for held in answers]

"""Grading by a judge model: who judges, MT-Bench ratings, AlpacaEval comparisons.

Judge models differ by more than a point on MT-Bench, so a score is told with its judge's name.
Not for sending requests (`endpoint.py`), and not for means: those are the benchmarks'.
"""

import hashlib
import re
import string
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from sft_jax.evals import parse
from sft_jax.evals.benchmark import Verdict
from sft_jax.evals.chats import Amount, Chat, Messages, Target
from sft_jax.evals.endpoint import Endpoint
from sft_jax.utils.errors import UserError

_MAX_TOKENS = 2048  # FastChat's.
_TOP = 5  # AlpacaEval's.

# FastChat's two patterns, the second tried where the first finds nothing (llm_judge/common.py), and
# OpenCompass's (summarizers/subjective/mtbench.py).
_FASTCHAT = (re.compile(r'\[\[(\d+\.?\d*)\]\]'), re.compile(r'\[(\d+\.?\d*)\]'))
_OPENCOMPASS = re.compile(r'Rating:\s*\[\[([\d.]+)\]\]')
_HIGHEST = 10.0

# AlpacaEval's question, as OpenCompass puts it (alpacav2_judgeby_gpt4).
PAIR_SYSTEM = (
  'You are a highly efficient assistant, who evaluates and selects the best large language model '
  '(LLMs) based on the quality of their responses to a given instruction. This process will be '
  'used to create a leaderboard reflecting the most accurate and human-preferred answers.'
)
PAIR_TEMPLATE = """
I require a leaderboard for various large language models. I'll provide you with prompts given to \
these models and their corresponding outputs. Your task is to assess these responses, and select \
the model that produces the best output from a human perspective.

## Instruction

{
    "instruction": "{question}",
}

## Model Outputs

Here are the unordered outputs from the models. Each output is associated with a specific model, \
identified by a unique model identifier.

{
    {
        "model_identifier": "m",
        "output": "{first}"
    },
    {
        "model_identifier": "M",
        "output": "{second}"
    }
}

## Task

Evaluate the models based on the quality and relevance of their outputs, and select the model that \
generated the best output. Answer by providing the model identifier of the best model. We will use \
your output as the name of the best model, so make sure your output only contains one of the \
following model identifiers and nothing else (no quotes, no spaces, no new lines, ...): m or M.

## Best Model Identifier
"""


def judge_target(environment: Mapping[str, str]) -> Target:
  """The judge that SFT_JAX_JUDGE_URL, _MODEL and _KEY (if it needs one) name.

  Raises:
    UserError: one is missing or malformed.
  """
  for name in ('SFT_JAX_JUDGE_URL', 'SFT_JAX_JUDGE_MODEL'):
    if not environment.get(name, '').strip():
      raise UserError(
        'no judge model is named',
        name,
        'set SFT_JAX_JUDGE_URL (OpenAI-compatible), SFT_JAX_JUDGE_MODEL and SFT_JAX_JUDGE_KEY, '
        'or leave such tasks out of config.eval.tasks',
      )
  return Target(
    environment['SFT_JAX_JUDGE_URL'],
    environment['SFT_JAX_JUDGE_MODEL'],
    environment.get('SFT_JAX_JUDGE_KEY', ''),
    ('SFT_JAX_JUDGE_URL', 'SFT_JAX_JUDGE_MODEL', 'SFT_JAX_JUDGE_KEY'),
    'judge_budget',
  )


class EndpointJudge:
  """A judge behind an endpoint, greedy (`benchmark.Judge`).

  Args:
    endpoint: The model, with its cache and budget.
    seed: Of the order of what is compared.
  """

  def __init__(self, endpoint: Endpoint, seed: int = 0):
    self.name, self.seed, self.endpoint = endpoint.model, seed, endpoint

  @property
  def unanswered(self) -> int:
    """See `benchmark.Judge`."""
    return self.endpoint.unanswered

  def afford(self, requests: int) -> None:
    """See `benchmark.Judge`; tokens are reckoned when there is something to judge."""
    self.endpoint.afford(Amount(requests))

  def ask(self, conversations: Sequence[Messages]) -> list[str | None]:
    """See `benchmark.Judge`.

    Raises:
      UserError: see `Endpoint.complete`.
    """
    answers = self.endpoint.complete([Chat(part, _MAX_TOKENS) for part in conversations])
    return [None if answer is None else answer.text for answer in answers]

  def pick(self, conversations: Sequence[Messages]) -> list[Verdict | None]:
    """See `benchmark.Judge`.

    Raises:
      UserError: see `Endpoint.complete`.
    """
    answers = self.endpoint.complete([Chat(part, 1, top=_TOP) for part in conversations])
    return [None if answer is None else Verdict(answer.text, answer.top) for answer in answers]


class CallableJudge:
  """Any function from messages to text as a judge (`benchmark.Judge`); None is no judgment."""

  def __init__(self, judge: Callable[[Messages], str | None], name: str, seed: int = 0):
    self._judge, self.name, self.seed = judge, name, seed
    self.unanswered = 0

  def afford(self, requests: int) -> None:
    """See `benchmark.Judge`; a function costs nothing."""

  def ask(self, conversations: Sequence[Messages]) -> list[str | None]:
    """See `benchmark.Judge`."""
    judgments = [self._judge(part) for part in conversations]
    self.unanswered += sum(judgment is None for judgment in judgments)
    return judgments

  def pick(self, conversations: Sequence[Messages]) -> list[Verdict | None]:
    """See `benchmark.Judge`."""
    return [None if text is None else Verdict(text) for text in self.ask(conversations)]


class RatingPrompt(NamedTuple):
  """How a judge is asked for a rating: FastChat's record of `judge_prompts.jsonl`."""

  system: str
  template: str

  def messages(self, **fields: str) -> list[dict[str, str]]:
    """The conversation, with the fields put into the template."""
    return [
      {'role': 'system', 'content': self.system},
      {'role': 'user', 'content': self.template.format(**fields)},
    ]


# Name -> fields of FastChat's four prompts for a rating.
RATING_FIELDS = {
  'single-v1': {'question', 'answer'},
  'single-math-v1': {'question', 'ref_answer_1', 'answer'},
  'single-v1-multi-turn': {'question_1', 'answer_1', 'question_2', 'answer_2'},
  'single-math-v1-multi-turn': {
    *('question_1', 'ref_answer_1', 'question_2', 'ref_answer_2'),
    *('answer_1', 'answer_2'),
  },
}


def rating_prompts(rows: Sequence[tuple[Mapping[str, Any], str]]) -> dict[str, RatingPrompt]:
  """The prompts for a rating among the records of `judge_prompts.jsonl`, by name.

  Raises:
    UserError: one is missing, or its template has other fields than FastChat's.
  """
  found = {}
  for row, source in rows:
    name = parse.text(row, 'name', source)
    if name not in RATING_FIELDS:
      continue
    template = parse.text(row, 'prompt_template', source)
    try:
      fields = {field for _, field, _, _ in string.Formatter().parse(template) if field is not None}
    except ValueError:
      fields = set()
    if fields != RATING_FIELDS[name]:
      raise parse.wrong(
        source, 'prompt_template', f'has not the fields {", ".join(sorted(RATING_FIELDS[name]))}'
      )
    found[name] = RatingPrompt(parse.text(row, 'system_prompt', source), template)
  for name in RATING_FIELDS:
    if name not in found:
      raise UserError(
        f'no judge prompt {name!r}',
        rows[0][1] if rows else 'judge_prompts.jsonl',
        'take the file as FastChat publishes it',
      )
  return found


def fastchat_rating(judgment: str | None) -> float | None:
  """The rating FastChat reads: the first [[n]], else the first [n]; None for none."""
  for pattern in _FASTCHAT:
    match = pattern.search(judgment or '')
    if match:
      return _on_scale(match[1])
  return None


def opencompass_rating(judgment: str | None) -> float | None:
  """The rating OpenCompass reads: the first 'Rating: [[n]]'; None for none."""
  match = _OPENCOMPASS.search(judgment or '')
  return _on_scale(match[1]) if match else None


def _on_scale(text: str) -> float | None:
  """The number; None where it is none or above 10.

  Both tools would let 100 into the mean, and OpenCompass stops at '1.2.3'.
  """
  try:
    rating = float(text)
  except ValueError:
    return None
  return rating if rating <= _HIGHEST else None


def model_first(seed: int, item: str) -> bool:
  """Whether the model's output is put before the baseline's: a coin for each item.

  It depends on no other item, so a subset is asked what the whole set is.
  """
  return hashlib.sha256(f'{seed} {item}'.encode()).digest()[0] % 2 == 0


def pair_messages(
  question: str, output: str, baseline: str, output_first: bool
) -> list[dict[str, str]]:
  """The comparison of two outputs: 'm' is the one put first, 'M' the other."""
  first, second = (output, baseline) if output_first else (baseline, output)
  fields = {'question': question, 'first': first, 'second': second}
  # Not `format`: the template is full of braces; in one pass, so that braces in outputs stay.
  text = re.sub(r'\{(question|first|second)\}', lambda match: fields[match[1]], PAIR_TEMPLATE)
  return [{'role': 'system', 'content': PAIR_SYSTEM}, {'role': 'user', 'content': text}]


def pair_won(verdict: Verdict | None, output_first: bool) -> bool | None:
  """Whether the model's output was chosen; None where the answer begins with neither m nor M."""
  letter = verdict.text[:1] if verdict else ''
  return None if letter not in ('m', 'M') else (letter == 'm') == output_first


def pair_preference(verdict: Verdict | None, output_first: bool) -> float | None:
  """Probability of the model's output among m and M, as AlpacaEval 2 weights it.

  p(m) / (p(m) + p(M)) over the likeliest first tokens, one that is not among them counting as 0;
  None without log-probabilities, or with neither.
  """
  top = (verdict and verdict.top) or {}
  logprobs = [top.get(letter, -np.inf) for letter in ('m', 'M')]
  if max(logprobs) == -np.inf:
    return None
  weights = np.exp(np.array(logprobs) - max(logprobs))
  return float(weights[0 if output_first else 1] / weights.sum())

"""Prompts of benchmarks as texts and tokens, under a template; what gives way when they are long.

Templates: `raw` (plain text, as base models are scored), `study` and `chat` (as in training; see
`data/templates.py`). Not for what a prompt says: that is each benchmark's.
"""

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from typing import Any

from sft_jax.data import tokenize
from sft_jax.evals.benchmark import Benchmark, Choose, Item, Prompt, Round
from sft_jax.utils.errors import UserError

TEMPLATES = ('raw', *tokenize.TEMPLATES)


def raw_text(prompt: Prompt) -> str:
  """The prompt as plain text, up to where the model goes on."""
  parts = [_joined(shot, prompt.delimiter) for shot in prompt.shots]
  parts.append(_joined(prompt.question, prompt.delimiter))
  return prompt.head + prompt.separator.join(part for part in parts if part)


def _joined(rounds: Sequence[Round], delimiter: str) -> str:
  return delimiter.join(part.text for part in rounds if part.text)


def messages(prompt: Prompt) -> list[dict[str, str]]:
  """The prompt as messages that end with the user's; neighbours of one role are joined by a line
  break."""
  rounds = [part for shot in prompt.shots for part in shot] + list(prompt.question)
  while rounds and rounds[-1].role == 'assistant':
    rounds.pop()
  merged: list[dict[str, str]] = []
  for role, text in rounds:
    if not text:
      continue
    if merged and merged[-1]['role'] == role:
      merged[-1]['content'] += f'\n{text}'
    else:
      merged.append({'role': role, 'content': text})
  if prompt.head.strip() and merged:
    merged[0]['content'] = prompt.head + merged[0]['content']
  return merged


def token_ids(prompt: Prompt, tokenizer: Any, template: str) -> list[int]:
  """Token ids of the prompt under a template, with the tokenizer's own beginning of text.

  Raises:
    UserError: the template refuses the conversation.
  """
  if template == 'raw':
    ids = tokenizer(raw_text(prompt), add_special_tokens=False)['input_ids']
    return [*tokenize.bos_prefix(tokenizer), *ids]
  return tokenize.prompt_ids(messages(prompt), tokenizer, template)


def pair_ids(
  prompt: Prompt, continuations: Sequence[str], tokenizer: Any, template: str
) -> tuple[list[int], list[list[int]]]:
  """Token ids of a prompt and of each continuation as it stands behind it.

  As in lm-eval (lm_eval/api/model.py:_encode_pair), prompt and continuation are tokenised as one
  text and cut where the prompt alone ends, and white space that ends the prompt belongs to the
  continuation. Raw, the prompt's delimiter stands between the two; in the study's template, the
  space it has there; in a chat template, nothing.

  Returns:
    Ids of the prompt (of what precedes everything, if it is empty), and of the continuations.

  Raises:
    UserError: a continuation that has no tokens of its own.
  """
  encode = lambda text: list(tokenizer(text, add_special_tokens=False)['input_ids'])
  head: list[int] = []
  if template == 'raw':
    text, delimiter = raw_text(prompt), prompt.delimiter
    head = list(tokenize.bos_prefix(tokenizer))
  elif template == 'study':
    # Each question of it is a text of its own, so that what precedes the last one stands as it is.
    text, delimiter = tokenize.study_tail(messages(prompt)), ' '
    before = token_ids(prompt, tokenizer, template)
    head = before[: len(before) - len(encode(text))]
  else:
    text, delimiter = tokenize.chat_prompt(messages(prompt), tokenizer), ''
  bare = text.rstrip()
  delimiter = text[len(bare) :] + delimiter
  texts = [bare, *(bare + delimiter + continuation for continuation in continuations)]
  first, *rest = tokenizer(texts, add_special_tokens=False)['input_ids']
  after = [list(ids[len(first) :]) for ids in rest]
  for continuation, ids in zip(continuations, after, strict=True):
    if not ids:
      raise UserError(
        f'the continuation {continuation!r} has no tokens of its own',
        'tokenizer',
        'evaluate this benchmark with its other reading',
      )
  return [*head, *first] or [beginning(tokenizer)], after


def beginning(tokenizer: Any) -> int:
  """The token that stands for "nothing before": beginning, else end, of text."""
  for name in (tokenizer.bos_token_id, tokenizer.eos_token_id):
    if name is not None:
      return int(name)
  return 0


def with_shots(prompt: Prompt, count: int) -> Prompt:
  """The prompt with its first `count` shots."""
  if count >= len(prompt.shots):
    return prompt
  return dataclasses.replace(prompt, shots=prompt.shots[:count])


def prompt_hash(benchmark: Benchmark, reading: str) -> str:
  """Short SHA-256 over the prompts (and continuations) of the benchmark's own example.

  A change of any character that a model sees changes it; so the version must be raised.
  """
  chosen = benchmark.readings[reading]
  item, shots = benchmark.example
  seen: list[Any] = []
  for count in (0, len(shots)):
    prompt = chosen.ask(item, shots[:count])
    seen.append([raw_text(prompt), prompt.delimiter, messages(prompt)])
  if isinstance(chosen, Choose):
    seen.append(list(chosen.choices(item)))
  else:
    seen += [list(chosen.stops(0)), list(chosen.stops(len(shots))), list(chosen.turns(item))]
  text = json.dumps(seen, ensure_ascii=False)
  return hashlib.sha256(text.encode()).hexdigest()[:12]


def same_group(item: Item, pool: Sequence[Item], count: int) -> list[Item]:
  """The first `count` of the pool, or of the item's group where the pool has groups."""
  grouped = item.group and any(other.group for other in pool)
  group = [other for other in pool if other.group == item.group] if grouped else pool
  return list(group[:count])

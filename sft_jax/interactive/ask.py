"""A model that answers and scores, from Python.

Texts in, texts and numbers out, on the evaluation engines. Not for benchmarks (`evaluate.py`) or
for where a model comes from (`opened.py`).
"""

import math
import numbers
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from sft_jax.data import tokenize
from sft_jax.data.formats import Record
from sft_jax.evals import loglik, prompts
from sft_jax.evals.generation import Engine, Request, detokenizer
from sft_jax.evals.layout import Text
from sft_jax.evals.model import Subject
from sft_jax.execution import opened
from sft_jax.train import loop
from sft_jax.utils.errors import UserError

# A conversation that ends with the user's words: a text, or messages with a role and a content.
Prompt = str | Sequence[Mapping[str, str]]
# What is scored: a text, a pair of prompt and answer, or a conversation.
Scored = str | tuple[str, str] | Sequence[Mapping[str, str]]
# Seeds are carried as uint32.
_SEEDS = 2**32
_MEMORY_HELP = 'use more devices (config.mesh.fsdp) or config.model.quantize=int8'


class Score(NamedTuple):
  """How likely a text is.

  Attributes:
    logprob: Sum over its scored tokens, in nats.
    tokens: How many those are.
    perplexity: exp(-logprob / tokens).
  """

  logprob: float
  tokens: int
  perplexity: float


class Model:
  """A model that answers and scores. Its weights are read when it is first asked."""

  def __init__(self, one: opened.Opened, template: str = '', subject: Subject | None = None):
    """Reads nothing.

    Args:
      one: Which.
      template: chat | study | raw: how prompts are wrapped; '' is the model's own.
      subject: Its weights, where they are at hand.
    """
    self._one, self._subject = one, subject
    self.name, self.tokenizer = one.name, one.model.tokenizer
    self.template = template or own_template(one)

  def __repr__(self) -> str:
    return f'<sft_jax.Model {self.name}, template {self.template}>'

  @property
  def subject(self) -> Subject:
    """The model as the evaluation engines take it."""
    if self._subject is None:
      with loop.explain_memory('loading the model', _MEMORY_HELP):
        self._subject = self._one.load()
    return self._subject

  def without_adapter(self) -> 'Model | None':
    """The base that an adapter stands on, sharing its memory; None for any other model."""
    base = opened.without_adapter(self.subject)
    if base is None:
      return None
    model = Model(self._one, self.template, base)
    model.name = self._one.model.name
    return model

  def generate(
    self,
    prompts: Prompt | Sequence[Prompt],
    *,
    max_new_tokens: int = 256,
    temperature: float = 0.0,
    seed: int = 0,
    stops: Sequence[str] = (),
  ) -> list[str]:
    """Answers to prompts, in order.

    Args:
      prompts: Texts, or conversations; one by itself counts as a list of one.
      max_new_tokens: Most tokens of an answer.
      temperature: 0 writes the likeliest token each time.
      seed: Of what is drawn; prompt i takes `seed + i`, from 0 again after 2**32 - 1.
      stops: An answer ends before the first of these; one by itself counts as a list of one.

    Raises:
      UserError: a prompt that the template refuses, or that is too long; a number out of range.
    """
    new = _whole('max_new_tokens', max_new_tokens, 1)
    first = _whole('seed', seed, 0, _SEEDS - 1)
    heat = _temperature(temperature)
    ends_before = _stops(stops)
    requests = []
    for i, prompt in enumerate(_listed(prompts, 'prompts')):
      ids = self._prompt_ids(_prompt(prompt, f'prompts[{i}]'), new)
      requests.append(Request(ids, new, ends_before, None, heat, (first + i) % _SEEDS))
    kind = 'chat' if self.template == 'chat' else 'study'
    ends = tokenize.stop_ids(self.tokenizer, kind)
    with loop.explain_memory('generating', 'ask for fewer tokens'):
      (outputs,) = Engine(self.subject, detokenizer(self.tokenizer), ends).generate(requests)
    return [output.text.strip() for output in outputs]

  def score(self, texts: Scored | Sequence[Scored]) -> list[Score]:
    """How likely texts, or answers to prompts, are.

    Args:
      texts: A text (each of its tokens counts), a tuple of prompt and answer, or a conversation (in
        the template; the assistant's words and end-of-turn tokens count), or a list of such.

    Raises:
      UserError: a text that the template refuses or that is too long, one without tokens, or what
        is none of these.
    """
    # A tuple of texts is a pair, and never a list of texts.
    if isinstance(texts, tuple) and texts and all(isinstance(part, str) for part in texts):
      texts = [texts]
    given = _listed(texts, 'texts')
    examples = [self._example(text, f'texts[{i}]') for i, text in enumerate(given)]
    with loop.explain_memory('scoring', 'score shorter texts'):
      scored = loglik.score(
        self.subject, [Text(np.asarray(ids, np.int32), 1) for ids, _ in examples]
      )
    out = []
    for (_, weights), one in zip(examples, scored, strict=True):
      total, count = float(np.dot(one.logprobs.astype(np.float64), weights)), int(weights.sum())
      out.append(Score(total, count, math.exp(-total / count)))
    return out

  def _prompt_ids(self, prompt: Prompt, new: int) -> list[int]:
    messages = prompt if not isinstance(prompt, str) else [{'role': 'user', 'content': prompt}]
    if self.template == 'raw':
      if not isinstance(prompt, str):
        raise UserError('a conversation needs a template', 'raw', 'give a text, or template=chat')
      ids = self.tokenizer(prompt, add_special_tokens=False)['input_ids']
      ids = [*tokenize.bos_prefix(self.tokenizer), *ids] or [prompts.beginning(self.tokenizer)]
    else:
      ids = tokenize.prompt_ids([dict(m) for m in messages], self.tokenizer, self.template)
    self._fits(len(ids) + new, f'{len(ids)} tokens of the prompt and {new} new ones')
    return ids

  def _example(self, text: Any, where: str) -> tuple[list[int], np.ndarray]:
    """Token ids, and float64 weights of all but the first."""
    if isinstance(text, str):
      ids = self.tokenizer(text, add_special_tokens=False)['input_ids']
      before = tokenize.bos_prefix(self.tokenizer) or (prompts.beginning(self.tokenizer),)
      ids, weights = [*before, *ids], np.ones(len(ids))
    else:
      messages = _messages(text, where)
      kind = 'study' if self.template == 'study' else 'chat'
      example = tokenize.encode(Record(messages, '', where), self.tokenizer, kind, max_length=2**30)
      if isinstance(example, tokenize.Dropped):
        raise UserError(example.reason, where, 'give a prompt and an answer')
      ids, weights = example.ids.tolist(), example.loss_weight[1:].astype(np.float64)
    if not weights.sum():
      raise UserError('nothing to score', where, 'give a text with at least one token')
    self._fits(len(ids), where)
    return ids, weights

  def _fits(self, tokens: int, what: str) -> None:
    most = self._one.model.cfg.longest_text
    if tokens > most:
      raise UserError(f'{tokens} tokens, and the model has {most} positions', what, 'shorten it')


def template_of(config: Any) -> str:
  """`config.chat.template`; '' for the model's own."""
  return '' if config.chat.template == 'auto' else str(config.chat.template)


def own_template(one: opened.Opened) -> str:
  """What a run was trained with; of a base chat, if it has a chat template, else study."""
  if one.step:
    return one.spec.template
  return 'chat' if one.model.tokenizer.chat_template else 'study'


def _listed(given: Any, where: str) -> list[Any]:
  """What is asked, one by one: a text or a conversation by itself is one."""
  if isinstance(given, str):
    return [given]
  if isinstance(given, (bytes, Mapping)) or not hasattr(given, '__iter__'):
    raise UserError(f'{given!r} is no list of texts', where, 'give a text, or a list of texts')
  listed = list(given)
  return [listed] if listed and isinstance(listed[0], Mapping) else listed


def _prompt(given: Any, where: str) -> Prompt:
  if not isinstance(given, str):
    _conversation(given, where)
  return given


def _messages(given: Any, where: str) -> tuple[dict[str, str], ...]:
  """A pair's or a conversation's."""
  if isinstance(given, tuple) and len(given) == 2 and all(isinstance(part, str) for part in given):
    return {'role': 'user', 'content': given[0]}, {'role': 'assistant', 'content': given[1]}
  return _conversation(given, where)


def _conversation(given: Any, where: str) -> tuple[dict[str, str], ...]:
  listed = isinstance(given, (list, tuple)) and len(given) > 0
  if not listed or not all(_is_message(part) for part in given):
    raise UserError(
      f'{given!r:.80} is neither a text nor a conversation',
      where,
      "give a text, a (prompt, answer) to be scored, or [{'role': 'user', 'content': …}, …]",
    )
  return tuple({'role': part['role'], 'content': part['content']} for part in given)


def _is_message(part: Any) -> bool:
  return isinstance(part, Mapping) and all(
    isinstance(part.get(name), str) for name in ('role', 'content')
  )


def _stops(given: Any) -> tuple[str, ...]:
  stops = (given,) if isinstance(given, str) else tuple(given)
  if not all(isinstance(stop, str) and stop for stop in stops):
    raise UserError(f'{stops!r} are no texts to stop at', 'stops', "give texts, such as ['\\n']")
  return stops


def _whole(name: str, given: Any, low: int, high: float = math.inf) -> int:
  whole = isinstance(given, numbers.Integral) and not isinstance(given, bool)
  if not whole or not low <= int(given) <= high:
    most = '' if high == math.inf else f' and at most {high:.10g}'
    how = f'give a whole number, at least {low}{most}'
    raise UserError(f'{given!r} is out of range', name, how)
  return int(given)


def _temperature(given: Any) -> float:
  real = isinstance(given, numbers.Real) and not isinstance(given, bool)
  if not real or not math.isfinite(given) or given < 0:
    raise UserError(f'{given!r} is out of range', 'temperature', 'give a finite number, at least 0')
  return float(given)

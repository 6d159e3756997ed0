"""Conversations as text, with the spans that hold instructions and responses.

Rendering depends on nothing but its arguments: a chat template that asks for today's date is told
26 July 2024, so that the same command gives the same tokens tomorrow. Not for token ids:
`tokenize.py` turns the pieces made here into ids and loss weights.
"""

import dataclasses
import re
from collections.abc import Sequence
from typing import Any

from sft_jax.utils.errors import UserError

# What a character or token belongs to.
MARKUP, INSTRUCTION, RESPONSE = 0, 1, 2

TEMPLATES = {
  'study': '###Question: {instruction}\n###Answer: {response}<eos>',
  'chat': "the model's own chat template",
}

# strftime's codes for midnight of 26 July 2024, the date that Llama's templates fall back to.
DATE = {
  '%d': '26',
  '%-d': '26',
  '%e': '26',
  '%m': '07',
  '%-m': '7',
  '%b': 'Jul',
  '%h': 'Jul',
  '%B': 'July',
  '%y': '24',
  '%Y': '2024',
  '%F': '2024-07-26',
  '%D': '07/26/24',
  '%x': '07/26/24',
  '%a': 'Fri',
  '%A': 'Friday',
  '%j': '208',
  '%H': '00',
  '%I': '12',
  '%M': '00',
  '%S': '00',
  '%p': 'AM',
  '%R': '00:00',
  '%T': '00:00:00',
  '%X': '00:00:00',
  '%c': 'Fri Jul 26 00:00:00 2024',
}

Message = dict[str, str]
_Spans = list[tuple[int, int, int]]


@dataclasses.dataclass(frozen=True)
class Piece:
  """A text that is tokenised as a whole.

  Attributes:
    text: The rendered text.
    spans: (start, end, INSTRUCTION or RESPONSE) in characters; everything else is MARKUP.
    bare: Whether the tokenizer's own BOS goes before it (if it is the first), and the
      end-of-sequence id after it, as a part of the response. What a chat template rendered is
      complete as it is.
  """

  text: str
  spans: tuple[tuple[int, int, int], ...]
  bare: bool


class TemplateRefused(Exception):
  """The chat template raised for this conversation (for example, no system role)."""


@dataclasses.dataclass(frozen=True)
class Turn:
  """A question with the system text before it, and its answer (None: still to be given)."""

  system: str
  question: str
  answer: str | None

  @property
  def prompt(self) -> str:
    """The turn up to the answer, without the space that precedes it."""
    head = f'{self.system}\n' if self.system else ''
    return f'{head}###Question: {self.question}\n###Answer:'


def study_turns(messages: Sequence[Message]) -> list[Turn]:
  """Folds messages into turns.

  System text stands before the first question it precedes, neighbours of one role are joined by a
  newline, and tool output belongs to the next question.
  """
  turns: list[Turn] = []
  parts: dict[str, list[str]] = {'system': [], 'user': [], 'assistant': []}

  def close() -> None:
    answer = '\n'.join(parts['assistant']) if parts['assistant'] else None
    turns.append(Turn('\n'.join(parts['system']), '\n'.join(parts['user']), answer))
    for texts in parts.values():
      texts.clear()

  for message in messages:
    role = message['role'] if message['role'] in parts else 'user'
    if role != 'assistant' and parts['assistant']:
      close()
    parts[role].append(message['content'])
  if any(parts.values()):
    close()
  return turns


def render_study(messages: Sequence[Message]) -> list[Piece]:
  """The study's template: one Question/Answer block a turn, end of sequence after each answer."""
  pieces = []
  for turn in study_turns(messages):
    if turn.answer is None:  # nothing to learn from a question without an answer
      continue
    prompt = f'{turn.prompt} '
    asked = len(prompt) - len('\n###Answer: ')
    spans = (
      (0, len(turn.system), INSTRUCTION),
      (asked - len(turn.question), asked, INSTRUCTION),
      # With the space before it: where that is a token of its own, it must be learnt too.
      (len(prompt) - 1, len(prompt) + len(turn.answer), RESPONSE),
    )
    pieces.append(Piece(prompt + turn.answer, spans, bare=True))
  return pieces


def render_text(text: str) -> list[Piece]:
  """Plain text: all of it is learnt."""
  return [Piece(text, ((0, len(text), RESPONSE),), bare=True)]


def _dated(template: str) -> str:
  """The chat template with `strftime_now` fixed to DATE; other codes of strftime stay as written.

  It is a macro because whatever else transformers hands to a template is made plain data first.
  """
  if 'strftime_now' not in template:
    return template
  steps = ''.join(f"|replace('{code}','{text}')" for code, text in DATE.items())
  macro = '{%- macro strftime_now(format) -%}{{ format' + steps + ' }}{%- endmacro %}'
  # transformers trims one line feed after a block, and blanks before one at the start of a line.
  return f'{macro}\n{template}'


def _sentinel(index: int) -> str:
  return f'Sentinel{index}Lentines'


def render_chat(tokenizer: Any, messages: Sequence[Message], prompt: bool = False) -> str:
  """What the tokenizer's chat template makes of messages, with an opened answer if `prompt`.

  Raises:
    TemplateRefused: The template raised for these messages.
    UserError: There is no template.
  """
  if not getattr(tokenizer, 'chat_template', None):
    raise UserError(
      'the tokenizer has no chat template',
      where='config.data.template=chat',
      how='use config.data.template=study, or a checkpoint with a chat template',
    )
  try:
    template = _dated(tokenizer.get_chat_template())
  except ValueError as error:  # several templates, and none of them the default
    raise UserError(
      f'no chat template to use: {error}',
      where='tokenizer.chat_template',
      how="name one 'default', or use config.data.template=study",
    ) from error
  try:
    return tokenizer.apply_chat_template(
      list(messages), chat_template=template, add_generation_prompt=prompt, tokenize=False
    )
  except Exception as error:  # a template is a program: it may fail in any way
    reason = ' '.join(str(error).split()) or type(error).__name__
    raise TemplateRefused(reason) from error


def _common_start(texts: Sequence[str]) -> str:
  shortest = min(texts, key=len)
  ends = (i for i, char in enumerate(shortest) if any(text[i] != char for text in texts))
  return shortest[: next(ends, len(shortest))]


class ChatRenderer:
  """Renders conversations with a tokenizer's chat template and finds the spans.

  The literal text around the contents is found once for each sequence of roles, by rendering
  marker contents, and is then looked up in every rendered conversation. So `{% generation %}` is
  not needed, and templates that emit BOS or a default system block are rendered once, whole. Where
  a template changes contents (drops the reasoning of earlier turns, say), answers are found between
  the text that opens them and the one that closes them.

  Attributes:
    stop: The token that ends an answer.

  Raises:
    UserError: The tokenizer has no chat template, or the template cannot render one question, or
      ends no answer with a token of its own.
  """

  def __init__(self, tokenizer: Any):
    self._tokenizer = tokenizer
    self._layouts: dict[tuple[str, ...], tuple[list[str], list[int]] | None] = {}
    ask, answer = ('user', 'assistant')
    one = [{'role': ask, 'content': _sentinel(0)}]
    try:
      plain, prompt = self.render(one), self.render(one, prompt=True)
      answered = self.render([*one, {'role': answer, 'content': _sentinel(1)}])
    except TemplateRefused as error:
      raise UserError(
        f'the chat template fails on one question and one answer: {error}',
        where='tokenizer.chat_template',
        how='mend the template, or use config.data.template=study',
      ) from error
    # Text that opens an answer. A prompt does not keep a space at its end (see
    # `tokenize.prompt_ids`).
    self._opening = (prompt[len(plain) :] if prompt.startswith(plain) else '').rstrip(' ')
    self._asked = prompt.rpartition(_sentinel(0))[2].rstrip(' ')
    # Text that closes an answer, up to the first token that stands for itself.
    tail = answered.rpartition(_sentinel(1))[2]
    tokens = (token.content for token in tokenizer.added_tokens_decoder.values())
    marks = sorted(filter(str.strip, tokens), key=len, reverse=True)
    stop = re.search('|'.join(map(re.escape, marks)) or r'\Z.', tail)
    if stop is None:
      raise UserError(
        'the chat template ends no answer with an end-of-turn token, so the model would never '
        'learn to stop',
        where='tokenizer.chat_template',
        how="put eos_token after the template's answers, or use config.data.template=study",
      )
    self.stop, self._closing = stop[0], tail[: stop.end()]
    # What always stands between a question and its answer, in a first and in a later turn.
    twice = self._layout((ask, answer, ask, answer)) or self._layout((ask, answer))
    between = [twice[0][at + 1] for at in range(0, len(twice[1]), 2)] if twice else ['']
    self._header = _common_start([self._asked, *between]).rstrip(' ')

  def render(self, messages: Sequence[Message], prompt: bool = False) -> str:
    """See `render_chat`."""
    return render_chat(self._tokenizer, messages, prompt)

  def pieces(self, messages: Sequence[Message], source: str) -> list[Piece]:
    """One piece with the spans of all turns.

    Raises:
      TemplateRefused: The template raised for this conversation.
      UserError: No way was found to tell where the responses are.
    """
    full = self.render(messages)
    layout = self._layout(tuple(m['role'] for m in messages))
    spans = self._align(full, *layout, messages) if layout else None
    if spans is None:
      spans = self._between_marks(full, messages)
    if spans is None:
      raise UserError(
        'cannot tell where the responses are in the rendered chat template',
        where=source,
        how='use config.data.template=study, or a chat template that opens and closes every answer '
        'in the same way',
      )
    return [Piece(full, tuple(spans), bare=False)]

  def _layout(self, roles: tuple[str, ...]) -> tuple[list[str], list[int]] | None:
    """Literal text before, between and after the contents, and the order of their messages.

    None if the template refuses these roles, or some content vanishes or is repeated.
    """
    if roles not in self._layouts:
      marked = [{'role': r, 'content': _sentinel(i)} for i, r in enumerate(roles)]
      layout = None
      try:
        # A template may move a system text into a later turn.
        parts = re.split(r'Sentinel(\d+)Lentines', self.render(marked))
        order = [int(index) for index in parts[1::2]]
        if sorted(order) == list(range(len(roles))):
          layout = parts[::2], order
      except TemplateRefused:
        pass
      self._layouts[roles] = layout
    return self._layouts[roles]

  def _align(
    self, full: str, literals: list[str], order: list[int], messages: Sequence[Message]
  ) -> _Spans | None:
    """Spans by matching literals and contents (as they are, or stripped) from left to right."""
    spans = []
    cursor = 0
    for at, index in enumerate(order):
      before, after = literals[at], literals[at + 1]
      if not full.startswith(before, cursor):
        return None
      start = cursor + len(before)
      message = messages[index]
      raw = message['content']
      for content in (raw, raw.strip(), raw.lstrip(), raw.rstrip()):
        end = start + len(content)
        if full.startswith(content, start) and full.startswith(after, end):
          break
      else:
        return None
      cursor = end
      if message['role'] == 'assistant':
        # What a prompt ending here does not give is for the model to produce.
        if at and messages[order[at - 1]]['role'] == 'user' and before.startswith(self._asked):
          start -= len(before) - len(self._asked)
        elif self._opening and self._opening in before:
          start -= len(before) - before.rindex(self._opening) - len(self._opening)
        if after.startswith(self._closing):
          end += len(self._closing)
      spans.append((start, end, RESPONSE if message['role'] == 'assistant' else INSTRUCTION))
    return spans if full[cursor:] == literals[-1] else None

  def _between_marks(self, full: str, messages: Sequence[Message]) -> _Spans | None:
    """Spans from what opens and closes an answer, whatever the template did to the contents.

    None if a content has that text too, or it does not occur once for every answer.
    """
    marks = (self._header.strip(), self._closing.strip())
    if not all(marks) or any(mark in m['content'] for m in messages for mark in marks):
      return None
    opened = [found.start() for found in re.finditer(re.escape(self._header), full)]
    if len(opened) != sum(m['role'] == 'assistant' for m in messages):
      return None
    spans, cursor, turns = [], 0, iter(opened)
    limit = next(turns, len(full))
    for message in messages:
      if message['role'] != 'assistant':
        content = message['content'].strip()
        at = full.find(content, cursor, limit)
        if content and at >= 0:
          spans.append((at, at + len(content), INSTRUCTION))
          cursor = at + len(content)
        continue
      given = self._asked if full.startswith(self._asked, limit) else self._header
      start, end = limit + len(given), full.find(self._closing, limit + len(given))
      limit = next(turns, len(full))
      if not start <= end < limit:
        return None
      cursor = end + len(self._closing)
      spans.append((start, cursor, RESPONSE))
    return spans

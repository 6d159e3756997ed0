"""Conversations as text, with the spans that hold instructions and responses.

Rendering depends on nothing but its arguments: a chat template that asks for today's date is told
26 July 2024, so that the same command gives the same tokens tomorrow. Not for token ids:
`tokenize.py` turns the pieces made here into ids and loss weights.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
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


@dataclasses.dataclass(frozen=True)
class Piece:
  """A text that is tokenised as a whole.

  Attributes:
    text: The rendered text.
    spans: (start, end, INSTRUCTION or RESPONSE) in characters; everything else is MARKUP.
    eos: Whether the end-of-sequence id follows, as a part of the response.
  """

  text: str
  spans: tuple[tuple[int, int, int], ...]
  eos: bool


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
    pieces.append(Piece(prompt + turn.answer, spans, eos=True))
  return pieces


def render_text(text: str) -> list[Piece]:
  """Plain text: all of it is learnt."""
  return [Piece(text, ((0, len(text), RESPONSE),), eos=True)]


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


class ChatRenderer:
  """Renders conversations with a tokenizer's chat template and finds the spans.

  The literal text around the contents is found once for each sequence of roles, by rendering
  marker contents, and is then looked up in every rendered conversation. So `{% generation %}` is
  not needed, and templates that emit BOS or a default system block are rendered once, whole. Where
  a template changes contents, spans come from rendering prefixes of the conversation.

  Raises:
    UserError: The tokenizer has no chat template, or the template cannot render one question.
  """

  def __init__(self, tokenizer: Any):
    if not getattr(tokenizer, 'chat_template', None):
      raise UserError(
        'the tokenizer has no chat template',
        where="template 'chat'",
        how="use the template 'study', or a checkpoint with a chat template",
      )
    try:
      template = _dated(tokenizer.get_chat_template())
    except ValueError as error:  # several templates, and none of them the default
      raise UserError(
        f'no chat template to use: {error}',
        where='tokenizer.chat_template',
        how="name one 'default', or use config.data.template=study",
      ) from error
    self._apply: Callable[..., Any] = functools.partial(
      tokenizer.apply_chat_template, chat_template=template, tokenize=False
    )
    self._layouts: dict[tuple[str, ...], list[str] | None] = {}
    one = [{'role': 'user', 'content': _sentinel(0)}]
    try:
      plain, prompt = self.render(one), self.render(one, prompt=True)
      answered = self.render([*one, {'role': 'assistant', 'content': _sentinel(1)}])
    except TemplateRefused as error:
      raise UserError(
        f'the chat template fails on one question and one answer: {error}',
        where='tokenizer.chat_template',
        how='mend the template, or use config.data.template=study',
      ) from error
    # Text that opens an answer, and text that closes it (end-of-turn token, no trailing space).
    # A prompt does not keep a space at its end (see `tokenize.prompt_ids`).
    self.opening = (prompt[len(plain) :] if prompt.startswith(plain) else '').rstrip(' ')
    self._asked = prompt.rpartition(_sentinel(0))[2].rstrip(' ')
    tail = answered.rpartition(_sentinel(1))[2]
    self.closing = tail.rstrip()

  def render(self, messages: Sequence[Message], prompt: bool = False) -> str:
    """The rendered text, with an opened answer if `prompt`. Raises TemplateRefused."""
    try:
      return self._apply(list(messages), add_generation_prompt=prompt)
    except Exception as error:  # a template is somebody's program: it may raise anything
      raise TemplateRefused(str(error) or type(error).__name__) from error

  def pieces(self, messages: Sequence[Message], source: str) -> list[Piece]:
    """One piece with the spans of all turns.

    Raises:
      TemplateRefused: The template raised for this conversation.
      UserError: No way was found to tell where the responses are.
    """
    full = self.render(messages)
    layout = self._layout(tuple(m['role'] for m in messages))
    spans = self._align(full, layout, messages) if layout else None
    if spans is None:
      spans = self._by_prefixes(full, messages, source)
    return [Piece(full, tuple(spans), eos=False)]

  def _layout(self, roles: tuple[str, ...]) -> list[str] | None:
    """Literal text before, between and after the contents, or None if some content vanishes."""
    if roles not in self._layouts:
      marked = [{'role': r, 'content': _sentinel(i)} for i, r in enumerate(roles)]
      literals: list[str] | None = []
      try:
        rest = self.render(marked)
      except TemplateRefused:
        literals = None
      if literals is not None:
        for index in range(len(roles)):
          before, found, rest = rest.partition(_sentinel(index))
          if not found:
            literals = None
            break
          literals.append(before)
        else:
          literals.append(rest)
      self._layouts[roles] = literals
    return self._layouts[roles]

  def _align(
    self, full: str, literals: list[str], messages: Sequence[Message]
  ) -> list[tuple[int, int, int]] | None:
    """Spans by matching literals and contents (as they are, or stripped) from left to right."""
    spans = []
    cursor = 0
    for index, message in enumerate(messages):
      before, after = literals[index], literals[index + 1]
      if not full.startswith(before, cursor):
        return None
      start = cursor + len(before)
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
        if index and messages[index - 1]['role'] == 'user' and before.startswith(self._asked):
          start -= len(before) - len(self._asked)
        elif self.opening and self.opening in before:
          start -= len(before) - before.rindex(self.opening) - len(self.opening)
        if self.closing and after.startswith(self.closing):
          end += len(self.closing)
      spans.append((start, end, RESPONSE if message['role'] == 'assistant' else INSTRUCTION))
    return spans if full[cursor:] == literals[-1] else None

  def _by_prefixes(
    self, full: str, messages: Sequence[Message], source: str
  ) -> list[tuple[int, int, int]]:
    """Spans from the lengths of the rendered prefixes of the conversation."""
    spans = []
    start = 0
    try:
      for index, message in enumerate(messages):
        head = self.render(messages[:index], prompt=True).rstrip(' ') if index else ''
        answering = message['role'] == 'assistant'
        if answering and full.startswith(head):
          start = max(start, len(head))
        upto = self.render(messages[: index + 1])
        if not full.startswith(upto) or len(upto) < start:
          raise TemplateRefused('the text of a prefix is not a prefix of the text')
        # A content that the template changed is taken to fill its turn.
        segment, content = full[start : len(upto)], message['content'].strip()
        at = max(0, segment.rfind(content))
        length = len(content) if segment.startswith(content, at) else len(segment.rstrip())
        if answering:
          closing = segment[at + length :].rstrip()
          spans.append((start, start + at + length + len(closing), RESPONSE))
        else:
          spans.append((start + at, start + at + length, INSTRUCTION))
        start = len(upto)
    except TemplateRefused as error:
      raise UserError(
        f'cannot tell where the responses are in the rendered chat template: {error}',
        where=source,
        how="use the template 'study', or a chat template that keeps the text of earlier turns",
      ) from error
    return spans

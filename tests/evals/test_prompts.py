"""Prompts and continuations as tokens, under each template."""

import pytest

from sft_jax.data import formats, tokenize
from sft_jax.evals import prompts
from sft_jax.evals.benchmark import Prompt, Round
from sft_jax.utils.errors import UserError
from tests.models.conftest import tiny_tokenizer

CHOICES = ['Yes', 'No', '100 degrees', '世界 🙂']


@pytest.fixture(scope='module')
def tokenizer():
  return tiny_tokenizer()


def prompt(**changes):
  given = {
    'question': (Round('user', 'Is it so?\nAnswer:'),),
    'shots': ((Round('user', 'Is water wet?\nAnswer:'), Round('assistant', 'Yes')),),
    'head': 'Think first.\n\n',
    'delimiter': ' ',
    'separator': '\n\n',
  }
  return Prompt(**(given | changes))


def test_raw_text():
  assert prompts.raw_text(prompt()) == (
    'Think first.\n\nIs water wet?\nAnswer: Yes\n\nIs it so?\nAnswer:'
  )


@pytest.mark.parametrize('end', ['', ' ', '\n', ' \n '])
def test_raw_pairs_are_those_of_lm_eval(tokenizer, end):
  model = pytest.importorskip('lm_eval.api.model')

  class Theirs(model.TemplateLM):
    eot_token_id = 0
    tok_encode = staticmethod(lambda text, **_: tokenizer(text)['input_ids'])
    _loglikelihood_tokens = loglikelihood_rolling = generate_until = None

  given = prompt(question=(Round('user', f'Is it so?{end}'),))
  ids, after = prompts.pair_ids(given, CHOICES, tokenizer, 'raw')
  for choice, continuation in zip(CHOICES, after, strict=True):
    context = prompts.raw_text(given)
    assert (ids, continuation) == Theirs()._encode_pair(context, f' {choice}')


def test_chat_pairs_are_the_whole_text():
  """What the template ends with stands once, in the prompt or in the continuation."""
  tokenizer = tiny_tokenizer()
  tokenizer.chat_template = tokenizer.chat_template.replace('<|assistant|>', '<|assistant|>\n')
  text = tokenize.chat_prompt(prompts.messages(prompt()), tokenizer)
  assert text != text.rstrip(), 'the trap'
  ids, after = prompts.pair_ids(prompt(), CHOICES, tokenizer, 'chat')
  for choice, continuation in zip(CHOICES, after, strict=True):
    whole = tokenizer(text + choice, add_special_tokens=False)['input_ids']
    assert ids + continuation == whole


@pytest.mark.parametrize('template', ['study', 'chat'])
def test_pairs_are_training_examples(tokenizer, template):
  """A model meets in a benchmark what it met in training, up to the end of its answer."""
  messages = prompts.messages(prompt())
  ids, after = prompts.pair_ids(prompt(), CHOICES, tokenizer, template)
  for choice, continuation in zip(CHOICES, after, strict=True):
    record = formats.Record((*messages, {'role': 'assistant', 'content': choice}), 'test')
    trained = tokenize.encode(record, tokenizer, template).ids.tolist()
    assert trained[: len(ids) + len(continuation)] == ids + continuation


def test_an_empty_prompt_begins_somewhere(tokenizer):
  nothing = prompt(question=(Round('user', ''),), shots=(), head='')
  ids, _ = prompts.pair_ids(nothing, CHOICES, tokenizer, 'raw')
  assert ids == ([*tokenize.bos_prefix(tokenizer)] or [prompts.beginning(tokenizer)])


def test_a_continuation_of_nothing(tokenizer):
  with pytest.raises(UserError, match='no tokens of its own'):
    prompts.pair_ids(prompt(delimiter=''), [''], tokenizer, 'raw')


def test_messages():
  assert prompts.messages(prompt(question=(Round('user', 'A'), Round('assistant', 'It is')))) == [
    {'role': 'user', 'content': 'Think first.\n\nIs water wet?\nAnswer:'},
    {'role': 'assistant', 'content': 'Yes'},
    {'role': 'user', 'content': 'A'},
  ]

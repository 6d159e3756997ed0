"""Masks under chat templates of the common kinds: what is learnt is the answer and its stop."""

import datetime

import numpy as np
import pytest

from sft_jax.data import templates
from sft_jax.data.formats import Record
from sft_jax.data.tokenize import Dropped, encode, prompt_ids, stop_ids
from sft_jax.utils.errors import UserError
from tests.data import chat_templates, conftest
from tests.data.chat_templates import STYLES

ANSWERS = [
  ('Rome is in Italy.', 'In Japan.'),
  ('  two spaces, end \n', '\n\nnewlines\n'),
  ('\tdef f(x):\n\t\treturn x\n', '    if y:\n        pass'),
  ('🙂👩‍👩‍👧 ok', 'e\u0301te\u0301 ﬁn'),
  ('你好，世界。', '東京です。'),
  ('3', '(42)'),
]
QUESTIONS = ('Where is Rome?', '  And 東京? ')
SYSTEM = {'role': 'system', 'content': 'Be brief.'}


def conversation(answers, system=False):
  messages = [SYSTEM] if system else []
  for question, answer in zip(QUESTIONS, answers, strict=False):
    messages.append({'role': 'user', 'content': question})
    messages.append({'role': 'assistant', 'content': answer})
  return messages


def tokenizer_of(template, marks=(), bos=True):
  tokenizer = conftest.build_tokenizer(bos=bos, template=template, eos='</s>')
  tokenizer.add_special_tokens(
    {'additional_special_tokens': list(marks)}, replace_extra_special_tokens=False
  )
  return tokenizer


def learnt(tokenizer, example):
  """The supervised texts, one a run of supervised tokens."""
  edges = np.flatnonzero(np.diff([0, *(example.loss_weight > 0), 0]))
  return [tokenizer.decode(example.ids[a:b]) for a, b in edges.reshape(-1, 2)]


def encoded(tokenizer, messages):
  example = encode(Record(tuple(messages), 'f.jsonl:1'), tokenizer, 'chat')
  template = tokenizer.chat_template.replace("strftime_now('%d %b %Y')", "'26 Jul 2024'")
  ids = tokenizer.apply_chat_template(messages, chat_template=template, return_dict=False)
  assert list(example.ids) == ids
  return example


@pytest.mark.parametrize('system', [False, True])
@pytest.mark.parametrize('turns', [1, 2])
@pytest.mark.parametrize('name', STYLES)
def test_answers_and_stops_are_learnt(name, turns, system):
  style = STYLES[name]
  tokenizer = tokenizer_of(style.template, style.marks)
  for answers in ANSWERS:
    messages = conversation(answers[:turns], system)
    if system and not style.system:
      dropped = encode(Record(tuple(messages), 'f.jsonl:1'), tokenizer, 'chat')
      assert isinstance(dropped, Dropped) and 'System role not supported' in dropped.reason
      continue
    example = encoded(tokenizer, messages)
    said = [answer.strip() if style.strips else answer for answer in answers[:turns]]
    expected = [style.before + answer + style.stop for answer in said]
    found = learnt(tokenizer, example)
    # A token may reach over the line between prompt and answer: newlines that meet.
    assert [text.lstrip('\n') for text in found] == [text.lstrip('\n') for text in expected]
    if not any(answer.startswith('\n') for answer in said):
      assert found == expected
      prompt = tokenizer.decode(prompt_ids(messages[:-1], tokenizer, 'chat'))
      last = np.flatnonzero(np.diff([0, *example.loss_weight]) > 0)[-1]
      assert tokenizer.decode(example.ids[:last]) == prompt
  stop = tokenizer.convert_tokens_to_ids(style.stop.strip())
  assert stop in stop_ids(tokenizer, 'chat')


@pytest.mark.parametrize('name', STYLES)
def test_two_questions_in_a_row(name):
  style = STYLES[name]
  tokenizer = tokenizer_of(style.template, style.marks)
  messages = [{'role': 'user', 'content': 'Hi'}, *conversation(['Hello.'])]
  if style.alternates:
    dropped = encode(Record(tuple(messages), 'f.jsonl:1'), tokenizer, 'chat')
    assert isinstance(dropped, Dropped) and 'must alternate' in dropped.reason
  else:
    assert learnt(tokenizer, encoded(tokenizer, messages)) == [f'Hello.{style.stop}']


THOUGHT = '<think>\nItaly, I think.\n</think>\n\n'


@pytest.mark.parametrize(
  ('template', 'given'),
  [(chat_templates.REASONING, ''), (chat_templates.PROMPTED_REASONING, '<think>\n')],
)
def test_reasoning_of_earlier_turns_is_dropped(template, given):
  tokenizer = tokenizer_of(template, chat_templates._IM)
  answers = (f'{THOUGHT}Rome.', f'{THOUGHT}Japan.')
  example = encoded(tokenizer, conversation(answers))
  last = f'{THOUGHT}Japan.<|im_end|>'.removeprefix(given)
  assert learnt(tokenizer, example) == ['Rome.<|im_end|>', last]
  asked = tokenizer.decode(example.ids[example.spans == templates.INSTRUCTION])
  assert asked == 'Where is Rome?And 東京?'
  plain = encoded(tokenizer, conversation(('Rome.', 'Japan.')))
  last = '<think>\n\n</think>\n\nJapan.<|im_end|>'.removeprefix(given)
  assert learnt(tokenizer, plain) == ['Rome.<|im_end|>', last]


def test_a_system_text_that_moves_is_no_response():
  style = STYLES['mistral-v3']
  tokenizer = tokenizer_of(style.template, style.marks)
  example = encoded(tokenizer, conversation(('Rome.', 'Tokyo.'), system=True))
  text = tokenizer.decode(example.ids)
  assert text.index('Rome.') < text.index('Be brief.')
  assert learnt(tokenizer, example) == [' Rome.</s>', ' Tokyo.</s>']
  asked = tokenizer.decode(example.ids[example.spans == templates.INSTRUCTION])
  assert ''.join(asked.split()) == 'WhereisRome?Bebrief.And東京?'


def test_the_date_of_a_template_stands_still(monkeypatch):
  tokenizer = tokenizer_of(chat_templates.LLAMA3_DATED, chat_templates._HEADER)
  example = encode(Record(tuple(conversation(('a',))), 'f:1'), tokenizer, 'chat')
  assert 'Today Date: 26 Jul 2024' in tokenizer.decode(example.ids)
  today = tokenizer.apply_chat_template(conversation(('a',)), tokenize=False)
  assert f'{datetime.date.today():%Y}' in today  # transformers: the day of the run


def test_a_mark_in_a_changed_answer_is_refused():
  """Where contents are changed, an answer that holds the end-of-turn token hides its end."""
  tokenizer = tokenizer_of(chat_templates.REASONING, chat_templates._IM)
  messages = conversation((f'{THOUGHT}<|im_end|> is a token', f'{THOUGHT}Japan.'))
  with pytest.raises(UserError, match='cannot tell where the responses are'):
    encode(Record(tuple(messages), 'f:1'), tokenizer, 'chat')


@pytest.mark.parametrize(
  ('template', 'message'),
  [
    (chat_templates.ENDLESS, 'ends no answer with an end-of-turn token'),
    ("{{ raise_exception('no chat') }}", 'fails on one question and one answer: no chat'),
    ('{% for m in messages %}', 'fails on one question and one answer: Unexpected end'),
    ("{{ messages[0]['content'] + 1 }}", 'fails on one question and one answer: can only'),
    ("{{ messages[0]['content'].nothing() }}", 'fails on one question and one answer: '),
    (None, 'no chat template .*config.data.template=chat.* use config.data.template=study'),
  ],
)
def test_templates_that_cannot_serve(template, message):
  tokenizer = tokenizer_of(template)
  for use in (
    lambda: encode(Record(tuple(conversation(('a',))), 'f:1'), tokenizer, 'chat'),
    lambda: stop_ids(tokenizer, 'chat'),
  ):
    with pytest.raises(UserError, match=message) as error:
      use()
    assert '\n' not in str(error.value)


def test_no_bos_but_the_templates_own():
  """As transformers has it: what a template renders is complete."""
  messages = conversation(('Rome.',))
  example = encoded(tokenizer_of(chat_templates.CHATML, chat_templates._IM, bos=True), messages)
  assert 0 not in example.ids
  style = STYLES['llama3']
  assert list(encoded(tokenizer_of(style.template, style.marks), messages).ids).count(0) == 1
  text = Record((), 'f:1', text='plain')
  example = encode(text, tokenizer_of(chat_templates.CHATML, chat_templates._IM), 'chat')
  assert example.ids[0] == 0 and example.ids[-1] == 1

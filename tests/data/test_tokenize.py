"""Masks, BOS, EOS, spans and prompts of both templates."""

import numpy as np
import pytest

from sft_jax.data import templates
from sft_jax.data.formats import Record
from sft_jax.data.tokenize import (
  Dropped,
  bos_prefix,
  encode,
  encode_all,
  prompt_ids,
  stop_ids,
)
from sft_jax.utils.errors import UserError
from tests.data import conftest

QUESTION = {'role': 'user', 'content': 'Where is Rome?'}
ANSWER = {'role': 'assistant', 'content': '  Rome is\n\n  in Italy. 🙂'}
SECOND = ({'role': 'user', 'content': 'And 東京?'}, {'role': 'assistant', 'content': 'In Japan.'})


def record(*messages, **kwargs):
  return Record(tuple(messages), 'f.jsonl:1', **kwargs)


def supervised_text(tokenizer, example):
  return tokenizer.decode(example.ids[example.loss_weight > 0], skip_special_tokens=False)


def test_study_is_the_papers_template(plain):
  example = encode(record(QUESTION, {'role': 'assistant', 'content': 'In Italy.'}), plain)
  eos = plain.eos_token_id
  assert example.ids[-1] == eos
  assert plain.decode(example.ids[:-1]) == '###Question: Where is Rome?\n###Answer: In Italy.'
  assert list(example.ids[:-1]) == plain(plain.decode(example.ids[:-1])).input_ids
  assert supervised_text(plain, example).strip() == 'In Italy.' + plain.eos_token


@pytest.mark.parametrize('bos', [False, True])
def test_response_is_content_and_eos_whatever_the_spaces(bos):
  tokenizer = conftest.build_tokenizer(bos=bos)
  example = encode(record(QUESTION, ANSWER), tokenizer)
  # The response starts with spaces and holds blank lines: offsets trimmed of spaces lose those.
  assert supervised_text(tokenizer, example) == f' {ANSWER["content"]}{tokenizer.eos_token}'
  # Also when it ends with spaces.
  spaced = encode(record(QUESTION, {'role': 'assistant', 'content': 'x  '}), tokenizer)
  assert supervised_text(tokenizer, spaced) == f' x  {tokenizer.eos_token}'
  assert (example.ids == 0).sum() == int(bos)
  assert (example.ids[0] == 0) == bos and example.loss_weight[0] == 0


def test_study_multi_turn_and_system(plain):
  system = {'role': 'system', 'content': 'Be brief.'}
  example = encode(record(system, QUESTION, ANSWER, *SECOND), plain)
  eos = plain.eos_token
  assert plain.decode(example.ids) == (
    f'Be brief.\n###Question: Where is Rome?\n###Answer: {ANSWER["content"]}{eos}'
    f'###Question: And 東京?\n###Answer: In Japan.{eos}'
  )
  assert (example.ids[example.loss_weight > 0] == plain.eos_token_id).sum() == 2
  asked = plain.decode(example.ids[example.spans == templates.INSTRUCTION])
  assert asked.replace(' ', '') == 'Bebrief.WhereisRome?And東京?'


def test_no_bos_between_turns(with_bos):
  example = encode(record(QUESTION, ANSWER, *SECOND), with_bos)
  assert list(np.flatnonzero(example.ids == 0)) == [0]


@pytest.mark.parametrize('template', [conftest.CHATML, conftest.DEFAULT_SYSTEM, conftest.LLAMA2])
@pytest.mark.parametrize('bos', [False, True])
def test_chat_spans(template, bos):
  """Whole conversation rendered once: no repeated system block, BOS only where rendered."""
  eos = '</s>' if template == conftest.LLAMA2 else '<|im_end|>'
  tokenizer = conftest.build_tokenizer(bos=bos, template=template, eos=eos)
  messages = [QUESTION, ANSWER, *SECOND]
  example = encode(record(*messages), tokenizer, 'chat')
  rendered = tokenizer.apply_chat_template(messages, tokenize=False)
  assert list(example.ids) == tokenizer(rendered, add_special_tokens=False).input_ids
  assert example.ids[0] != example.ids[1]  # never doubled
  got = supervised_text(tokenizer, example)
  if template == conftest.LLAMA2:
    assert got == f' {ANSWER["content"].strip()} </s> In Japan. </s>'
  else:
    assert got == f'{ANSWER["content"]}<|im_end|>In Japan.<|im_end|>'
  assert rendered.count('Be kind.') == (template == conftest.DEFAULT_SYSTEM)


def test_chat_without_prefix_property():
  """An earlier turn changes when it is no longer the last; spans are found all the same."""
  tokenizer = conftest.build_tokenizer(template=conftest.THINKING)
  example = encode(record(QUESTION, ANSWER, *SECOND), tokenizer, 'chat')
  # What the generation prompt does not give, the model must produce: also the empty thought.
  assert supervised_text(tokenizer, example) == (
    f'{ANSWER["content"]}<|im_end|><think>\n\n</think>\n\nIn Japan.<|im_end|>'
  )


def test_chat_that_changes_contents():
  tokenizer = conftest.build_tokenizer(
    template=conftest.CHATML.replace("m['content']", "m['content'].replace('  ', ' ').strip()")
  )
  question = {'role': 'user', 'content': 'Where  is Rome?'}
  example = encode(record(question, ANSWER, *SECOND), tokenizer, 'chat')
  learnt = supervised_text(tokenizer, example)
  assert learnt == 'Rome is\n\n in Italy. 🙂<|im_end|>In Japan.<|im_end|>'


@pytest.mark.parametrize('template', [conftest.CHATML, conftest.DEFAULT_SYSTEM])
def test_marks_give_the_same_spans_as_literals(template):
  tokenizer = conftest.build_tokenizer(template=template)
  chat = templates.ChatRenderer(tokenizer)
  messages = [QUESTION, ANSWER, *SECOND]
  full = chat.render(messages)
  (piece,) = chat.pieces(messages, 'x')
  assert list(piece.spans) == chat._between_marks(full, messages)


def test_chat_that_hides_the_answers_is_refused():
  tokenizer = conftest.build_tokenizer(template=conftest.COUNTING + '{{ eos_token }}')
  with pytest.raises(UserError, match='cannot tell where the responses are'):
    encode(record(QUESTION, ANSWER, *SECOND), tokenizer, 'chat')


def test_template_refusal_drops_the_record():
  tokenizer = conftest.build_tokenizer(template=conftest.LLAMA2)
  system = {'role': 'system', 'content': 'Be brief.'}
  given = record(system, QUESTION, ANSWER)
  dropped = encode(given, tokenizer, 'chat')
  assert isinstance(dropped, Dropped) and dropped.record is given
  assert dropped.reason == 'the chat template refuses it: only user and assistant'


def test_a_template_may_raise_anything():
  """It is somebody's program."""
  broken = conftest.CHATML + "{% if messages[0]['content'] == 'Boom' %}{{ 1 / 0 }}{% endif %}"
  tokenizer = conftest.build_tokenizer(template=broken)
  boom = {'role': 'user', 'content': 'Boom'}
  dropped = encode(record(boom, ANSWER), tokenizer, 'chat')
  assert dropped.reason == 'the chat template refuses it: division by zero'
  with pytest.raises(UserError, match=r'refuses this conversation: .*tokenizer.chat_template'):
    prompt_ids([boom], tokenizer, 'chat')
  several = conftest.build_tokenizer(template={'a': conftest.CHATML, 'b': conftest.CHATML})
  with pytest.raises(UserError, match=r'no default .*\(tokenizer.chat_template\) — name one'):
    encode(record(QUESTION, ANSWER), several, 'chat')


DATED = "{{ 'Today: ' + strftime_now('%d %b %Y') + ', ' + strftime_now(format='%A %Q') + '\n' }}"


def test_the_date_is_the_same_every_day(monkeypatch):
  """Else the tokens, and with them a run's identity, would change at midnight."""
  import datetime

  from transformers.utils import chat_template_utils

  tokenizer = conftest.build_tokenizer(
    template='{% if strftime_now is defined %}' + DATED + '{% endif %}' + conftest.CHATML
  )
  texts = set()
  for day in (1, 2):

    class Clock(datetime.datetime):
      @classmethod
      def now(cls, tz=None, day=day):
        return cls(2031, 3, day)

    monkeypatch.setattr(chat_template_utils, 'datetime', Clock)
    assert f'0{day} Mar 2031' in tokenizer.apply_chat_template([QUESTION], tokenize=False)
    example = encode(record(QUESTION, ANSWER), tokenizer, 'chat')
    texts.add(tokenizer.decode(example.ids))
    prompt = prompt_ids([QUESTION], tokenizer, 'chat')
    assert list(example.ids[: len(prompt)]) == prompt
  (text,) = texts
  assert text.startswith('Today: 26 Jul 2024, Friday %Q\n<|im_start|>user\nWhere')
  assert supervised_text(tokenizer, example) == f'{ANSWER["content"]}<|im_end|>'
  friday = datetime.datetime(2024, 7, 26)
  assert {code: friday.strftime(code) for code in templates.DATE} == templates.DATE


@pytest.mark.parametrize(
  'start', ['', '\n', '\n\n', '  ', ' \n ', '{#- x -#}\n', '{{- "a" }}', 'a\n']
)
def test_fixing_the_date_changes_nothing_else(start):
  """Nor blanks and line feeds at the start of a template, which jinja trims around blocks."""
  for rest in (conftest.CHATML, conftest.LLAMA2, f'  {conftest.CHATML}', f'\n{conftest.CHATML}'):
    template = start + rest + '{# strftime_now #}'
    tokenizer = conftest.build_tokenizer(template=template)
    messages = [QUESTION, ANSWER]
    expected = tokenizer.apply_chat_template(messages, tokenize=False)
    assert templates.ChatRenderer(tokenizer).render(messages) == expected


def test_no_chat_template(plain):
  with pytest.raises(UserError, match='no chat template'):
    encode(record(QUESTION, ANSWER), plain, 'chat')


def test_pad_equal_to_eos_and_token_zero_are_learnt(chatml):
  assert chatml.pad_token_id == chatml.eos_token_id
  for template in ('study', 'chat'):
    example = encode(record(QUESTION, ANSWER), chatml, template)
    learnt = example.ids[example.loss_weight > 0]
    assert learnt[-1] == chatml.eos_token_id
  # <s> is token 0 here; in an answer it is a token like any other.
  example = encode(record(QUESTION, {'role': 'assistant', 'content': 'a<s>b'}), chatml)
  assert example.loss_weight[list(example.ids).index(0)] == 1


@pytest.mark.parametrize('bos', [False, True])
def test_a_question_alone_teaches_nothing(bos):
  dropped = encode(record(QUESTION), conftest.build_tokenizer(bos=bos))
  assert isinstance(dropped, Dropped) and dropped.reason == 'no supervised token'


def test_no_pad_token_is_needed(chatml):
  """Masks are by position, so nothing asks for the id of a padding token."""
  bare = conftest.build_tokenizer(template=conftest.CHATML)
  bare.pad_token = None
  for template in ('study', 'chat'):
    messages = record(QUESTION, ANSWER, *SECOND)
    example = encode(messages, bare, template)
    assert list(example.ids) == list(encode(messages, chatml, template).ids)
    assert prompt_ids([QUESTION], bare, template) and stop_ids(bare, template)


def test_loss_on_all_is_all_but_the_first(with_bos):
  example = encode(record(QUESTION, ANSWER), with_bos, loss_on='all')
  assert example.loss_weight[0] == 0 and (example.loss_weight[1:] == 1).all()


def test_plain_text(with_bos, chatml):
  text = Record((), 'f:1', text='The quick brown fox')
  for tokenizer, template in ((with_bos, 'study'), (chatml, 'chat')):
    example = encode(text, tokenizer, template)
    assert example.ids[-1] == tokenizer.eos_token_id
    assert (example.loss_weight[1:] == 1).all() and example.loss_weight[0] == 0


def test_eos_text_in_a_question_is_not_the_end(plain):
  """EOS comes by id after the answer, not by appending its text."""
  example = encode(record(QUESTION, {'role': 'assistant', 'content': 'ends with <'}), plain)
  assert list(example.ids).count(plain.eos_token_id) == 1


@pytest.mark.parametrize('template', ['study', 'chat'])
@pytest.mark.parametrize(
  'kind', [conftest.CHATML, conftest.LLAMA2, conftest.DEFAULT_SYSTEM, conftest.PLAIN_CHAT]
)
def test_prompt_ids_are_the_prefix_seen_in_training(template, kind):
  tokenizer = conftest.build_tokenizer(bos=True, template=kind)
  for answer in ('Rome is in Italy.', '(42)', '東京', '3'):
    messages = [QUESTION, {'role': 'assistant', 'content': answer}]
    example = encode(record(*messages), tokenizer, template)
    prompt = prompt_ids(messages[:1], tokenizer, template)
    assert list(example.ids[: len(prompt)]) == prompt
    assert example.loss_weight[len(prompt)] == 1 and not example.loss_weight[: len(prompt)].any()
    more = [*messages, SECOND[0]]
    example = encode(record(*more, SECOND[1]), tokenizer, template)
    prompt = prompt_ids(more, tokenizer, template)
    assert list(example.ids[: len(prompt)]) == prompt


def test_metaspace_tokenizer():
  """Spaces belong to the words after them, and offsets refer to the text before normalisation."""
  tokenizer = conftest.build_metaspace(conftest.LLAMA2)
  answer = 'I am fine, thank you.'
  messages = [QUESTION, {'role': 'assistant', 'content': answer}]
  for template, end in (('study', '</s>'), ('chat', '▁</s>')):
    example = encode(record(*messages), tokenizer, template)
    assert list(example.ids).count(1) == 1 and example.ids[0] == 1
    learnt = tokenizer.convert_ids_to_tokens(example.ids[example.loss_weight > 0])
    assert ''.join(learnt) == '▁' + answer.replace(' ', '▁') + end
    prompt = prompt_ids(messages[:1], tokenizer, template)
    assert list(example.ids[: len(prompt)]) == prompt
    assert len(prompt) == list(example.loss_weight).index(1)
    assert example.span_bytes['response'] == len(f' {answer}') + (template == 'chat')


def test_too_long_policies(plain):
  records = [
    record(QUESTION, ANSWER),
    record(QUESTION, {'role': 'assistant', 'content': 'a' * 400}),
  ]
  full, _ = encode_all(records, plain)
  limit = len(full[0])
  examples, dropped = encode_all(records, plain, max_length=limit, too_long='truncate')
  assert [e.truncated for e in examples] == [False, True] and not dropped
  assert (examples[1].ids == full[1].ids[:limit]).all()
  examples, dropped = encode_all(records, plain, max_length=limit, too_long='drop')
  assert len(examples) == 1 and dropped[0].reason == 'longer than max_length'
  with pytest.raises(UserError, match=r'more than max_length .*f.jsonl:1'):
    encode_all(records, plain, max_length=limit, too_long='error')
  examples, dropped = encode_all(records, plain, max_length=4, too_long='truncate')
  assert not examples and {d.reason for d in dropped} == {'no supervised token within max_length'}


def test_span_bytes_and_weights(plain, with_bos, chatml):
  conversation = record(QUESTION, ANSWER)
  question, answer = len(QUESTION['content']), len(f' {ANSWER["content"]}'.encode())
  whole = len(f'###Question: Where is Rome?\n###Answer: {ANSWER["content"]}'.encode())
  example = encode(conversation, with_bos)
  assert example.span_bytes == {'full': whole, 'response': answer, 'instruction': question}
  # Without BOS the first token is not predicted, so its bytes do not count either.
  example = encode(conversation, plain)
  first = len(plain.decode(example.ids[:1]).encode())
  assert example.span_bytes == {'full': whole - first, 'response': answer, 'instruction': question}
  assert example.weights('full').sum() == len(example) - 1
  assert (example.weights('response') == example.loss_weight).all()
  assert example.weights('instruction').sum() == (example.spans == templates.INSTRUCTION).sum()
  # Special tokens have no bytes.
  example = encode(conversation, chatml, 'chat')
  rendered = chatml.apply_chat_template([QUESTION, ANSWER], tokenize=False)
  text = rendered.replace('<|im_start|>', '').replace('<|im_end|>', '')
  assert example.span_bytes['full'] == len(text.encode())
  # Cut text has the bytes of the part that is left.
  cut = encode(conversation, with_bos, max_length=12, loss_on='all')
  assert cut.span_bytes['full'] == len(with_bos.decode(cut.ids[1:]).encode())


def test_batched_equals_one_by_one(with_bos):
  rng = np.random.default_rng(0)
  records = []
  for index in range(600):
    words = ' '.join(rng.choice(conftest.CORPUS[2].split(), 5))
    turns = [QUESTION, {'role': 'assistant', 'content': words}] * int(rng.integers(1, 4))
    records.append(Record(tuple(turns), f'f:{index}'))
  examples, _ = encode_all(records, with_bos)
  for index in (0, 511, 512, 599):
    assert (examples[index].ids == encode(records[index], with_bos).ids).all()
    assert examples[index].source == f'f:{index}'


def test_vocabulary(plain, with_bos, chatml):
  assert bos_prefix(plain) == () and bos_prefix(with_bos) == (0,)
  assert stop_ids(chatml, 'chat') == (chatml.convert_tokens_to_ids('<|im_end|>'),)
  other = conftest.build_tokenizer(template=conftest.CHATML, eos='</s>')
  assert stop_ids(other, 'chat') == (1, 3) and stop_ids(other, 'study') == (1,)
  other.generation_stops = (7, 1)  # as who loads a model's tokenizer notes them
  assert stop_ids(other, 'chat') == (1, 3, 7) and stop_ids(other, 'study') == (1, 7)


@pytest.mark.parametrize(
  ('choice', 'message'),
  [
    ({'template': 'x'}, "unknown template 'x' — use one of: study, chat"),
    ({'loss_on': 'x'}, "unknown loss_on 'x' — use one of: response, all"),
    ({'too_long': 'x'}, "unknown too_long 'x' — use one of: truncate, drop, error"),
    ({'max_length': 1}, 'max_length is 1 — use at least 2 tokens'),
  ],
)
def test_unknown_choices(plain, choice, message):
  with pytest.raises(UserError, match=message):
    encode(record(QUESTION, ANSWER), plain, **choice)


def test_slow_tokenizer_and_missing_eos():
  with pytest.raises(UserError, match='no character offsets'):
    encode(record(QUESTION, ANSWER), object())
  tokenizer = conftest.build_tokenizer()
  tokenizer.eos_token = None
  with pytest.raises(UserError, match='never learn to stop'):
    encode(record(QUESTION, ANSWER), tokenizer)

"""Judges: what they are asked, how their words are read, and who they are."""

import hashlib
import json
import math

import pytest

from sft_jax.evals import judge
from sft_jax.evals.benchmark import Verdict
from sft_jax.evals.chats import Target
from sft_jax.evals.endpoint import Endpoint
from sft_jax.evals.files import LocalFiles
from sft_jax.utils.errors import UserError
from tests.evals.judge_server import JudgeServer


def digest(*texts):
  return hashlib.sha256(json.dumps(texts).encode()).hexdigest()[:12]


@pytest.mark.parametrize(
  ('text', 'fastchat', 'opencompass'),
  [
    ('Good. Rating: [[7]]', 7.0, 7.0),
    ('Rating:[[8.5]] and [[3]]', 8.5, 8.5),
    ('[[6]] at first. Rating: [[4]]', 6.0, 4.0),  # FastChat takes the first, with or without word.
    ('Rating: [5]', 5.0, None),
    ('[[9]]', 9.0, None),
    ('**Rating**: [[9]]', 9.0, None),
    ('rating: [[2]]', 2.0, None),
    ('Rating:\n\n[[10]]', 10.0, 10.0),
    ('Rating: [[1.2.3]]', None, None),
    ('Rating: [[..]]', None, None),
    ('Rating: [[100]]', None, None),
    ('Rating: [[-3]]', None, None),
    ('Rating: [[rating]], 7', None, None),
    ('I would say seven.', None, None),
    ('', None, None),
    (None, None, None),
  ],
)
def test_ratings(text, fastchat, opencompass):
  assert judge.fastchat_rating(text) == fastchat
  assert judge.opencompass_rating(text) == opencompass


def records(**changed):
  rows = []
  for name, fields in judge.RATING_FIELDS.items():
    template = changed.get(name, ' '.join(f'{{{field}}}' for field in sorted(fields)))
    row = {'name': name, 'system_prompt': f'sys {name}', 'prompt_template': template}
    rows.append((row, f'judge_prompts.jsonl:{len(rows) + 1}'))
  return rows


def test_rating_prompts_are_checked():
  found = judge.rating_prompts([*records(), ({'name': 'pair-v2'}, 'x:9')])
  assert set(found) == set(judge.RATING_FIELDS)
  assert found['single-v1'].messages(question='{q}', answer='{answer}') == [
    {'role': 'system', 'content': 'sys single-v1'},
    {'role': 'user', 'content': '{answer} {q}'},
  ]
  with pytest.raises(UserError, match="no judge prompt 'single-math-v1-multi-turn'"):
    judge.rating_prompts(records()[:-1])
  for template in ('{question}', '{question} {answer} {more}', '{question} {answer'):
    with pytest.raises(UserError, match='has not the fields answer, question') as caught:
      judge.rating_prompts(records(**{'single-v1': template}))
    assert caught.value.where == 'judge_prompts.jsonl:1'


def test_fastchats_prompts_are_what_they_were(data_dir):
  rows = LocalFiles(str(data_dir / 'bench')).rows('mt_bench/judge_prompts.jsonl')
  found = judge.rating_prompts(rows)
  assert {name: digest(*prompt) for name, prompt in found.items()} == {
    'single-v1': 'dc80f787e62c',
    'single-math-v1': '707013b2a70b',
    'single-v1-multi-turn': '8951791b4dde',
    'single-math-v1-multi-turn': '4c0e2dca29ce',
  }, 'these are not the prompts of FastChat 0e6d3e4b: ratings are not comparable'


def test_the_comparison_is_pinned():
  assert digest(judge.PAIR_SYSTEM, judge.PAIR_TEMPLATE) == '133a99ea408c', (
    'the question of the comparison has changed, so win rates will'
  )


def test_the_comparison_puts_texts_in_as_they_are():
  system, user = judge.pair_messages('Q {second}', 'mine {first}', 'theirs', True)
  assert system['role'] == 'system' and user['role'] == 'user'
  text = user['content']
  assert '"instruction": "Q {second}",' in text
  assert text.index('"m",\n        "output": "mine {first}"') < text.index(
    '"M",\n        "output": "theirs"'
  )
  swapped = judge.pair_messages('Q', 'mine', 'theirs', False)[1]['content']
  assert swapped.index('theirs') < swapped.index('mine')


def test_order_is_a_seeded_coin():
  first = [judge.model_first(0, str(i)) for i in range(805)]
  assert first == [judge.model_first(0, str(i)) for i in range(805)]
  assert 350 < sum(first) < 455
  assert 300 < sum(a != judge.model_first(1, str(i)) for i, a in enumerate(first)) < 500
  # Pinned: another order asks a judge everything anew.
  assert ''.join('01'[a] for a in first[:16]) == '0111110111011111'


@pytest.mark.parametrize(
  ('text', 'first', 'won'),
  [
    ('m', True, True),
    ('M', True, False),
    ('m', False, False),
    ('M', False, True),
    ('m is best', True, True),
    (' m', True, None),
    ('"m"', True, None),
    ('', True, None),
  ],
)
def test_winner(text, first, won):
  assert judge.pair_won(Verdict(text), first) is won
  assert judge.pair_won(None, first) is None


def test_preference_by_log_probability():
  top = {'m': math.log(0.6), 'M': math.log(0.2), 'x': math.log(0.1)}
  assert judge.pair_preference(Verdict('m', top), True) == pytest.approx(0.75)
  assert judge.pair_preference(Verdict('m', top), False) == pytest.approx(0.25)
  assert judge.pair_preference(Verdict('m', {'m': -800.0}), True) == 1.0
  assert judge.pair_preference(Verdict('m', {'m': -800.0}), False) == 0.0
  for verdict in (None, Verdict('m'), Verdict('m', {}), Verdict('x', {'x': -1.0})):
    assert judge.pair_preference(verdict, True) is None


def test_who_judges():
  named = {'SFT_JAX_JUDGE_URL': 'http://h/v1', 'SFT_JAX_JUDGE_MODEL': 'm-1'}
  target = judge.judge_target({**named, 'SFT_JAX_JUDGE_KEY': 'k'})
  assert (target.url, target.model, target.key) == ('http://h/v1', 'm-1', 'k')
  assert judge.judge_target(named).key == ''
  for name in named:
    with pytest.raises(UserError, match=f'no judge model is named \\({name}\\)'):
      judge.judge_target({**named, name: ' '})
  with pytest.raises(UserError, match='SFT_JAX_JUDGE_KEY') as caught:
    judge.judge_target({**named, 'SFT_JAX_JUDGE_KEY': 'schlüssel'})
  assert 'schl' not in str(caught.value)


def test_judges_ask_greedily():
  conversation = [{'role': 'user', 'content': 'which?'}]
  with JudgeServer(lambda body: 'm') as server:
    server.top = lambda body: [('m', -0.5), ('M', -1.0)]
    chosen = judge.EndpointJudge(Endpoint(Target(server.url, 'm-1')), seed=3)
    assert (chosen.name, chosen.seed) == ('m-1', 3)
    assert chosen.ask([conversation]) == ['m']
    assert chosen.pick([conversation]) == [Verdict('m', {'m': -0.5, 'M': -1.0})]
    server.always = '400'
    other = [{'role': 'user', 'content': 'what?'}]
    assert chosen.ask([other]) == [None] and chosen.pick([other, conversation])[0] is None
  (ask, _), (pick, _) = server.requests[:2]
  assert (ask['temperature'], ask['max_tokens']) == (0.0, 2048) and 'logprobs' not in ask
  assert (pick['temperature'], pick['max_tokens'], pick['top_logprobs']) == (0.0, 1, 5)


def test_any_function_can_judge():
  chosen = judge.CallableJudge(lambda messages: messages[-1]['content'] or None, 'mine')
  conversations = [[{'role': 'user', 'content': text}] for text in ('m', '')]
  assert chosen.ask(conversations) == ['m', None]
  assert chosen.pick(conversations) == [Verdict('m'), None]

"""The client of chat endpoints, against a real server: what is asked, kept, retried and refused."""

import email.utils
import json
import math
import time

import pytest

from sft_jax.evals import endpoint as endpoint_module
from sft_jax.evals import served
from sft_jax.evals.chats import (
  Amount,
  Cache,
  Chat,
  Target,
  cost,
  guess_tokens,
  parse_budget,
  read_reply,
)
from sft_jax.evals.endpoint import Endpoint
from sft_jax.utils.errors import Interrupted, UserError
from tests.evals.judge_server import JudgeServer

KEY = 'sk-canary-0123456789'


@pytest.fixture
def server():
  with JudgeServer(lambda body: f'to {body["messages"][-1]["content"]}') as server:
    yield server


@pytest.fixture
def make(server):
  def make(cache=None, **options):
    options = {'backoff_s': 0.01, 'timeout_s': 5.0, **options}
    return Endpoint(Target(server.url, 'model-1', KEY), cache=cache, **options)

  return make


def chats(count, **options):
  options = {'max_tokens': 10, **options}
  return [Chat(({'role': 'user', 'content': f'q{i}'},), **options) for i in range(count)]


def texts(answers):
  return [answer and answer.text for answer in answers]


def test_answers_come_in_order_and_within_the_pool(server, make):
  server.delay = 0.03
  asked = chats(12)
  endpoint = make(concurrency=3)
  assert texts(endpoint.complete([*asked, asked[0]])) == [*(f'to q{i}' for i in range(12)), 'to q0']
  assert len(server.requests) == 12 and 1 < server.most <= 3
  body, headers = server.requests[0]
  assert headers['Authorization'] == f'Bearer {KEY}'
  assert body == {
    'model': 'model-1',
    'messages': [{'role': 'user', 'content': body['messages'][0]['content']}],
    'max_tokens': 10,
    'temperature': 0.0,
  }


def test_a_repeated_evaluation_asks_nothing(server, make, tmp_path):
  path = tmp_path / 'answers.jsonl'
  first = make(Cache(path)).complete(chats(20))
  assert len(server.requests) == 20
  assert make(Cache(path)).complete(chats(20)) == first
  assert len(server.requests) == 20
  # Whatever may change an answer makes another request.
  for options in ({'temperature': 0.5}, {'max_tokens': 11}, {'stops': ('x',)}, {'top': 2}):
    make(Cache(path)).complete(chats(1, **options))
  assert len(server.requests) == 24


def test_an_interrupted_evaluation_goes_on_where_it_was(server, make, tmp_path):
  path = tmp_path / 'answers.jsonl'
  server.delay = 0.02

  def check():
    if len(server.requests) >= 7:
      raise Interrupted('a signal')

  with pytest.raises(Interrupted):
    make(Cache(path), concurrency=2, check=check).complete(chats(20))
  asked = len(server.requests)
  assert 7 <= asked < 20
  assert texts(make(Cache(path)).complete(chats(20))) == [f'to q{i}' for i in range(20)]
  assert len(server.requests) == 20, 'an answer under way when it was stopped is asked for again'


def test_a_torn_line_costs_one_request(server, make, tmp_path):
  path = tmp_path / 'answers.jsonl'
  make(Cache(path)).complete(chats(4))
  path.write_bytes(path.read_bytes()[:-9])
  make(Cache(path)).complete(chats(6))
  assert len(server.requests) == 4 + 3
  make(Cache(path)).complete(chats(6))
  assert len(server.requests) == 7
  # Two that share a file: what both appended is read back.
  one, two = make(Cache(path)), make(Cache(path))
  one.complete(chats(8)), two.complete(chats(9))
  asked = len(server.requests)
  make(Cache(path)).complete(chats(9))
  assert len(server.requests) == asked


@pytest.mark.parametrize('trouble', ['500', '503', '529', '408', '429', 'html', 'wrong', 'list',
                                     'empty', 'null', 'cut'])  # fmt: skip
def test_what_may_pass_is_tried_again(server, make, trouble, capsys):
  server.troubles = [trouble] * 3
  assert texts(make().complete(chats(2))) == ['to q0', 'to q1']
  assert len(server.requests) == 5


@pytest.mark.parametrize('trouble', ['500', 'html', 'empty', 'cut'])
def test_what_stays_is_missing_and_asked_again_next_time(server, make, trouble, tmp_path, capsys):
  path = tmp_path / 'answers.jsonl'
  server.always = trouble
  assert make(Cache(path), tries=3).complete(chats(2)) == [None, None]
  assert len(server.requests) == 6
  assert not path.exists()
  server.always = ''
  assert texts(make(Cache(path)).complete(chats(2))) == ['to q0', 'to q1']


def test_a_request_of_no_avail_is_sent_once(server, make):
  server.always = '400'
  assert make().complete(chats(1)) == [None]
  assert len(server.requests) == 1


@pytest.mark.parametrize('trouble', ['slow', 'drip'])
def test_a_slow_answer_is_given_up(server, make, trouble):
  # Either would take half a minute if it were waited for.
  server.troubles, server.pause, server.drop_s = [trouble], 30.0, 0.3
  began = time.monotonic()
  assert texts(make(timeout_s=1.0).complete(chats(1))) == ['to q0']
  assert len(server.requests) >= 2 and time.monotonic() - began < 20


def test_nothing_listens(make, server):
  target = Target('http://127.0.0.1:9/v1', 'm')
  endpoint = Endpoint(target, tries=2, backoff_s=0.01)
  assert endpoint.complete(chats(3)) == [None] * 3


def test_an_endpoint_that_is_down_is_not_asked_for_ever(server, make):
  server.always = '500'
  assert make(tries=1).complete(chats(100)) == [None] * 100
  assert endpoint_module._GIVE_UP_AFTER <= len(server.requests) < 60


@pytest.mark.parametrize('form', ['seconds', 'date'])
def test_retry_after_holds_all_back(server, make, form):
  server.troubles = ['429']
  in_two = email.utils.formatdate(math.ceil(time.time()) + 1, usegmt=True)
  server.retry_after = '1' if form == 'seconds' else in_two
  began = time.monotonic()
  make(concurrency=1).complete(chats(3))
  assert time.monotonic() - began >= 0.9
  server.troubles, server.retry_after = ['429'], '1e9'
  assert make(concurrency=1).complete(chats(1)) == [None], 'no one waits that long'


@pytest.mark.parametrize(('status', 'place'), [
  ('401', 'SFT_JAX_ENDPOINT_KEY'), ('403', 'SFT_JAX_ENDPOINT_KEY'), ('404', 'config.model.path'),
  ('302', 'config.model.path'), ('307', 'config.model.path')])  # fmt: skip
def test_a_refusal_ends_it_with_one_line(server, make, status, place, tmp_path):
  path = tmp_path / 'answers.jsonl'
  make(Cache(path)).complete(chats(2))
  server.always = status
  with pytest.raises(UserError, match=f'HTTP {status}.*mend {place}') as caught:
    make(Cache(path), concurrency=1).complete(chats(9))
  assert KEY not in str(caught.value)
  assert len(server.requests) == 3, 'a redirect was followed, or a refusal tried again'


def test_the_key_is_nowhere(server, make, tmp_path, capsys, caplog):
  caplog.set_level(0)
  path = tmp_path / 'answers.jsonl'
  server.troubles = ['echo', '500', '429', 'html', 'cut']
  endpoint = make(Cache(path))
  answers = endpoint.complete(chats(6))
  server.always = '500'
  make(tries=1).complete(chats(7))
  out = capsys.readouterr()
  seen = [out.out, out.err, caplog.text, path.read_text(), repr(answers), repr(endpoint)]
  seen += [repr(endpoint.target), str(vars(endpoint))]
  assert not any(KEY in text for text in seen)
  assert 'I got Bearer [key]' in texts(answers)
  with pytest.raises(UserError) as caught:
    Target(server.url, 'm', f'{KEY}\nX-Other: 1')
  assert KEY not in str(caught.value)
  with pytest.raises(UserError) as caught:
    Target(f'http://user:{KEY}@127.0.0.1/v1', 'm')
  assert KEY not in str(caught.value)


@pytest.mark.parametrize('url', ['', 'ftp://x/v1', 'http://', 'http://h/v1?key=1', 'http://a b/',
                                 'http://u:p@h/', 'http://h:99999/v1', 'http://[x/'])  # fmt: skip
def test_bad_addresses(url):
  with pytest.raises(UserError, match=r'address \(config\.model\.path\)'):
    served.target(f'endpoint:m@{url}', {})


def test_addresses_and_models():
  assert Target(' https://h/v1/chat/completions ', 'm').url == 'https://h/v1'
  assert Target('http://[::1]:8000/v1/', 'm').url == 'http://[::1]:8000/v1'
  with pytest.raises(UserError, match=r'model \(config\.model\.path\)'):
    Target('http://h/v1', ' ')


def test_budgets():
  assert parse_budget('') == Amount(math.inf, math.inf)
  assert parse_budget('200 requests') == Amount(200, math.inf)
  assert parse_budget('3e6 tokens, 1_000requests') == Amount(1000, 3e6)
  for text in ('5', 'requests', '-1 tokens', '3 euros', '1 requests 2 tokens'):
    with pytest.raises(UserError, match='no budget'):
      parse_budget(text)
  assert guess_tokens('four') == 1 and guess_tokens('five5') == 2 and guess_tokens('日本語') == 3
  assert cost(chats(1)[0]) == Amount(1, 4 + 1 + 10)


@pytest.mark.parametrize('budget', [Amount(4, math.inf), Amount(math.inf, 5 * 15 - 1)])
def test_above_the_budget_nothing_is_sent(server, make, budget):
  with pytest.raises(UserError, match='up to 5 requests and 75 tokens, the budget is') as caught:
    make(budget=budget).complete(chats(5))
  assert not server.requests and '\n' not in str(caught.value)


def test_what_is_at_hand_costs_nothing(server, make, tmp_path):
  path = tmp_path / 'answers.jsonl'
  make(Cache(path)).complete(chats(5))
  endpoint = make(Cache(path), budget=Amount(1, math.inf))
  assert endpoint.estimate(chats(6)) == Amount(1, 15)
  endpoint.complete(chats(6))
  with pytest.raises(UserError, match=r'1 request and .* tokens are spent'):
    endpoint.complete(chats(7))


def test_tries_count_and_the_rest_is_kept(server, make, tmp_path):
  path = tmp_path / 'answers.jsonl'
  server.troubles = ['500', '500']
  with pytest.raises(UserError, match=r'is spent.*start again'):
    make(Cache(path), budget=Amount(5, math.inf), concurrency=1).complete(chats(5))
  assert len(server.requests) == 5
  make(Cache(path)).complete(chats(5))
  assert len(server.requests) == 5 + 2


def test_reported_tokens_count(server, make):
  server.usage = 12
  endpoint = make()
  endpoint.complete(chats(3))
  assert endpoint.spent == Amount(3, 36)
  server.usage = None
  endpoint.complete(chats(4))
  assert endpoint.spent == Amount(4, 36 + 5 + guess_tokens('to q3'))


def test_log_probabilities_where_the_endpoint_gives_them(server, make):
  server.top = lambda body: [('m', -0.1), ('M', -2.5)]
  (answer,) = make().complete(chats(1, top=5))
  assert answer.top == {'m': -0.1, 'M': -2.5}
  assert server.requests[0][0]['top_logprobs'] == 5
  server.always = 'no top'
  server.requests.clear()
  answers = make(concurrency=1).complete(chats(3, top=5))
  assert [answer.top for answer in answers] == [None] * 3
  assert len(server.requests) == 4, 'they were asked for again after they had been refused'


def test_half_of_a_surrogate_pair_can_be_written_down():
  """JSON may hold one, and no file of records can."""
  choice = {'message': {'content': 'so \ud83d'}, 'finish_reason': '\udc00'}
  answer, _ = read_reply(json.dumps({'choices': [choice]}).encode(), True)
  assert answer[0].encode() == b'so ?' and answer[2].encode() == b'?'


def test_a_remote_cache_is_refused():
  with pytest.raises(UserError, match='local'):
    Cache('gs://bucket/answers.jsonl')


def test_served_models():
  found = served.target('endpoint:org/model@tag@http://h:1/v1', {'SFT_JAX_ENDPOINT_KEY': KEY})
  assert (found.model, found.url, found.key) == ('org/model@tag', 'http://h:1/v1', KEY)
  assert served.target('org/model', {}) is None
  with pytest.raises(UserError, match='endpoint:MODEL@URL'):
    served.target('endpoint:http://h/v1', {})


def test_conversations_with_a_served_model(server, make):
  server.rule = lambda body: json.dumps([part['content'] for part in body['messages']]) + 'END x'
  opening = lambda text: ({'role': 'user', 'content': text},)
  answers = served.converse(
    make(), [opening('a'), opening('b')], [['more'], []], 5, [0.7, 0.0], ['x', 'END']
  )
  texts = [tuple(answer.text for answer in given) for given in answers]
  assert texts == [('["a"]', json.dumps(['a', '["a"]', 'more'])), ('["b"]',)]
  asked = [body for body, _ in server.requests]
  assert [body['temperature'] for body in asked if body['messages'][0]['content'] == 'a'] == [
    0.7,
    0.7,
  ]
  server.always = '400'
  assert served.converse(make(), [opening('c')], [['more']], 5, [0.0]) == [None]
  server.always = 'empty'
  kept = served.converse(make(allow_empty=True), [opening('d')], [[]], 5, [0.0])
  assert [answer.text for answer in kept[0]] == [' \n']


def test_numbers_that_are_none_are_no_answer_lost():
  """JSON may hold what no number type does; the text is an answer all the same."""
  reply = (
    '{"choices": [{"message": {"content": "m"}, "logprobs": {"content": [{"top_logprobs": ['
    '{"token": "m", "logprob": NaN}, {"token": "M", "logprob": -1.5},'
    '{"token": "x", "logprob": 1e999}]}]}}], "usage": {"total_tokens": %s}}'
  )
  for used in ('1e999', '-7', 'NaN', '"many"'):
    answer, tokens = read_reply((reply % used).encode(), False)
    assert (answer.text, answer.top, tokens) == ('m', {'M': -1.5}, 0)

"""A model behind an endpoint as a row: columns, records, resuming, budget, refusals."""

import functools
import re

import pytest

from sft_jax.evals import progress
from sft_jax.execution import evaluate as evaluate_lib
from sft_jax.utils import io
from sft_jax.utils.errors import UserError
from tests import tiny
from tests.evals.judge_server import JudgeServer

KEY = 'sk-0123456789abcdef'
NAME = 'gsm8k-0shot-gen-chat'


@pytest.fixture
def server():
  with JudgeServer(solve) as server:
    yield server


def solve(body):
  """Adds two numbers, but for sums of 12; says what it was asked for at the end."""
  numbers = [int(n) for n in re.findall(r'\d+', body['messages'][0]['content'])[:2]]
  total = sum(numbers)
  return f'So it is {total + (total == 12)}.' + ('\n' if len(body['messages']) == 1 else '!')


@pytest.fixture(scope='module')
def bench(tmp_path_factory):
  directory = tmp_path_factory.mktemp('bench')
  rows = [
    {'question': f'{n} birds and {n + 2} more?', 'answer': f'Sum.\n#### {2 * n + 2}'}
    for n in range(6)
  ]
  (directory / 'gsm8k_test.jsonl').write_text(''.join(f'{io.to_json(row)}\n' for row in rows))
  return directory


def config(server, bench, **changes):
  given = {
    'model__path': f'endpoint:org/m@{server.url}',
    'data__path': '',
    'eval__tasks': 'gsm8k:0shot:gen',
    'eval__template': 'chat',
    'eval__data_dir': str(bench),
  }
  return tiny.config('', '', **(given | changes))


def evaluate(workdir, given):
  return evaluate_lib.evaluate(given, str(workdir))


def test_a_row_with_columns_and_records(server, bench, tmp_path, monkeypatch):
  monkeypatch.setenv('SFT_JAX_ENDPOINT_KEY', KEY)
  row = evaluate(tmp_path / 'w', config(server, bench))
  # 5 + 7 is answered 13.
  assert row[NAME] == pytest.approx(100 * 5 / 6) and row[f'{NAME}-n'] == 6
  assert row[f'{NAME}-extracted'] == 100 and row[f'{NAME}-missing'] == row[f'{NAME}-cut'] == 0
  assert (row['model_name'], row['endpoint'], row['step']) == ('org/m', server.url, 0)
  assert tiny.read_jsonl(tmp_path / 'w' / 'rows.jsonl') == [row]
  records = tiny.read_jsonl(tmp_path / 'w' / 'samples' / f'{NAME}-0.jsonl')
  assert [record['scores']['acc'] for record in records] == [1, 1, 1, 1, 1, 0]
  assert records[0]['output'] == 'So it is 2.\n' and records[0]['about']['template'] == 'chat'
  assert records[3]['prompt'].startswith('3 birds and 5 more?')
  body, headers = server.requests[0]
  assert body['model'] == 'org/m' and body['temperature'] == 0 and body['max_tokens'] == 512
  assert headers['Authorization'] == f'Bearer {KEY}'
  assert all(KEY not in p.read_text() for p in (tmp_path / 'w').rglob('*') if p.is_file())
  # Done is done.
  assert evaluate(tmp_path / 'w', config(server, bench)) == row and len(server.requests) == 6


def test_what_was_not_answered_is_missing_and_asked_again(server, bench, tmp_path, capsys):
  server.troubles = ['400']
  row = evaluate(tmp_path / 'w', config(server, bench))
  assert row[f'{NAME}-missing'] == 1 and row[f'{NAME}-n'] == 5
  again = evaluate(tmp_path / 'w', config(server, bench))
  assert again[f'{NAME}-missing'] == 0 and again[f'{NAME}-n'] == 6
  assert len(server.requests) == 7, 'only the one that was missing'


def test_the_budget_is_for_what_is_left(server, bench, tmp_path):
  with pytest.raises(UserError, match=r'up to 6 requests .*config.eval.endpoint_budget'):
    evaluate(tmp_path / 'w', config(server, bench, eval__endpoint_budget='5 requests'))
  assert not server.requests and not (tmp_path / 'w').exists()
  server.troubles = ['400'] * 3
  evaluate(tmp_path / 'v', config(server, bench))
  row = evaluate(tmp_path / 'v', config(server, bench, eval__endpoint_budget='3 requests'))
  assert row[f'{NAME}-n'] == 6 and len(server.requests) == 9


def test_shots_are_turns_and_stops_are_kept(server, bench, tmp_path):
  row = evaluate(tmp_path / 'w', config(server, bench, eval__tasks='gsm8k:4shot'))
  body, _ = server.requests[0]
  assert [part['role'] for part in body['messages']] == ['user', 'assistant'] * 4 + ['user']
  assert body['stop'] == ['Question'] and row['gsm8k-4shot-gen-chat-n'] == 6


@pytest.mark.parametrize(
  'changes, match',
  [
    ({'eval__tasks': 'boolq:ll'}, 'boolq:0shot:ll needs log-likelihoods'),
    ({'eval__tasks': 'gsm8k,perplexity'}, 'perplexity needs log-likelihoods'),
    ({'eval__tasks': 'lm_eval:x'}, 'lm_eval:x needs'),
    ({'eval__template': 'raw'}, 'config.eval.template'),
    ({'data__name': 'builtin'}, 'config.data'),
    ({'model__adapter': 'x'}, 'config.model.adapter'),
    ({'eval__budget_seconds': 9.0}, 'config.eval.budget_seconds'),
    ({'model__path': 'endpoint:http://h/v1'}, 'endpoint:MODEL@URL'),
  ],
)
def test_what_an_endpoint_cannot_do(server, bench, tmp_path, changes, match):
  with pytest.raises(UserError, match=match) as e:
    evaluate(tmp_path / 'w', config(server, bench, **changes))
  assert '\n' not in str(e.value) and not (tmp_path / 'w').exists() and not server.requests


def test_how_far_it_is(server, bench, tmp_path, monkeypatch, capsys):
  monkeypatch.setattr(progress, 'Asked', functools.partial(progress.Asked, every_s=0.05))
  server.delay = 0.4
  evaluate(tmp_path / 'w', config(server, bench))
  assert 'gsm8k:0shot:gen: 0/6 answered' in capsys.readouterr().err.splitlines()

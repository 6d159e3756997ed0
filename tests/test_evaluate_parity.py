"""The parity benchmark's command line, its resuming, and the arithmetic that judges both sides."""

import json
import os

import numpy as np
import pytest

from benchmarks import evaluate_parity, parity_asked, parity_plans, parity_sides


@pytest.fixture(autouse=True)
def environment(monkeypatch):
  """The program takes its process off the network; what it sets ends with the test."""
  for name in ('HF_HUB_OFFLINE', 'HF_DATASETS_OFFLINE', 'TOKENIZERS_PARALLELISM'):
    monkeypatch.setenv(name, os.environ.get(name, ''))


@pytest.mark.parametrize(
  'argument, says',
  [
    ('--only=speed', 'unknown speed'),
    ('--data=absent', 'no such directory'),
    ('--scale=0', 'too small'),
  ],
)
def test_bad_arguments(argument, says, tmp_path, capsys):
  with pytest.raises(SystemExit) as stopped:
    evaluate_parity.parse([f'--data={tmp_path}', argument])
  assert stopped.value.code == 2
  assert says in capsys.readouterr().err


def test_a_part_that_is_there_is_not_done_again(tmp_path, capsys, monkeypatch):
  pytest.importorskip('lm_eval')
  calls = []

  def part(sides, args):
    calls.append(args.turns)
    return {'rows': [{'x': 1}], 'verdict': 'met', 'said': 'so'}

  monkeypatch.setattr(parity_plans, 'coverage', part)
  monkeypatch.setattr(parity_plans, 'plans', part)
  command = [f'--data={tmp_path}', f'--out={tmp_path}/found']
  evaluate_parity.main([*command, '--only=coverage'])
  evaluate_parity.main([*command, '--only=coverage,plans'])
  assert calls == [3, 3]
  evaluate_parity.main([*command, '--only=coverage', '--turns=2'])
  evaluate_parity.main([*command, '--only=coverage', '--turns=2', '--fresh'])
  assert calls == [3, 3, 2, 2]
  everything = json.loads((tmp_path / 'found.json').read_text())
  assert set(everything) == {'coverage', 'plans'}
  text = (tmp_path / 'found.md').read_text()
  assert '## Tokens to compute: met' in text and everything['plans']['command'] in text


def test_the_least_there_can_be_counts_distinct_beginnings():
  rng = np.random.default_rng(0)
  texts = [rng.integers(0, 3, rng.integers(1, 7)) for _ in range(200)]
  beginnings = {tuple(ids[:end]) for ids in texts for end in range(1, len(ids) + 1)}
  assert parity_plans._least(texts) == len(beginnings)


def test_a_text_is_judged_as_torch_does():
  torch = pytest.importorskip('torch')
  rows = np.random.default_rng(0).normal(size=(5, 11))
  best = rows.argmax(-1)
  other = np.where(np.arange(5) == 2, (best + 1) % 11, best)
  logprobs = torch.log_softmax(torch.tensor(rows), -1).numpy()
  for targets, greedy in ((best, True), (other, False)):
    found = parity_sides._judge(rows, targets)
    assert found.logprob == pytest.approx(logprobs[np.arange(5), targets].sum())
    assert found.greedy == greedy
  # As near to a tie as the position that decides: here the only one that is not the likeliest.
  assert found.margin == pytest.approx(rows[2].max() - rows[2, other[2]])
  ordered = np.sort(rows, -1)
  lead = parity_sides._judge(rows, best).margin
  assert lead == pytest.approx((ordered[:, -1] - ordered[:, -2]).min())


def test_passes_are_compared_question_by_question():
  questions = [parity_sides.Question('t', [1], [[2], [3]]), parity_sides.Question('t', [1], [[4]])]
  one = [(-1.0, True), (-2.0, False), (-3.0, False)]
  two = [(-2.5, True), (-2.0, False), (-3.0, True)]
  same = parity_asked.apart('x', questions, one, one)
  assert same == {'what': 'x', 'max abs Δ': 0.0, 'unequal': 0}
  # One question has another choice, one continuation is greedy in one pass only.
  found = parity_asked.apart('x', questions, one, two)
  assert found == {'what': 'x', 'max abs Δ': 1.5, 'unequal': 2}

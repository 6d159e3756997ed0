"""The table at the end of a study: changes from each run's own base, the best first."""

import pytest

from sft_jax import main
from sft_jax.execution import study_run
from sft_jax.study import closing
from sft_jax.utils import log
from tests.study.test_table import begin, write


def run(key, data, lora, scores, base=10.0, model='m'):
  """Rows of a base and two snapshots; `scores` are those of the last."""
  own = lambda step, values: {
    'run-id': key,
    'step': step,
    'model_name': model,
    'data_name': data if step else 'pretrain',
    'lora': lora if step else None,
    'ppl-heldout': 9.0 - step,
    **{column: value for column, value in values.items() if value is not None},
    **{f'{column}-n': 5 for column in values},
  }
  return [own(0, dict.fromkeys(scores, base)), own(2, dict.fromkeys(scores, 99.0)), own(4, scores)]


def test_means_of_runs_and_the_best_first():
  rows = [
    *run('a', 'lima', True, {'em': 12.0, 'f1': 10.5}),
    *run('b', 'lima', True, {'em': 18.0, 'f1': None}, base=14.0, model='n'),
    *run('c', 'alpaca', True, {'em': 9.0, 'f1': 9.0}),
  ]
  assert closing.changes(rows) == [
    'change from the base to the last snapshot, means over runs (the best first):',
    '         runs        em        f1',
    'lima        2     +3.00     +0.50',
    'alpaca      1     -1.00     -1.00',
  ]


def test_methods_are_told_apart_and_long_names_cut():
  mixture = f'mix:{"a" * 30},{"b" * 30}'
  rows = [*run('a', mixture, True, {'em': 12.0}), *run('b', mixture, False, {'em': 13.0})]
  _, _, full, lora = closing.changes(rows)
  assert full.endswith('b, full     +3.00') and lora.endswith('b, LoRA     +2.00')
  assert len(full) < 60 and full.startswith('mix:aaa') and '…' in full


def test_what_a_grid_varies_is_told_and_seeds_are_not():
  made = {}
  for key, rate, seed in (('a', 1e-5, 1), ('b', 1e-5, 2), ('c', 2e-5, 1)):
    made[key] = run(key, 'lima', True, {'em': 12.0 + seed})
    made[key][-1] |= {'learning-rate': rate, 'seed-data': seed, 'batch-size': 8}
  _, _, first, second = closing.changes([row for rows in made.values() for row in rows])
  assert first.split('  ')[0] == 'lima, learning-rate=1e-05' and first.split()[-2:] == [
    '2',
    '+3.50',
  ]
  assert second.split('  ')[0] == 'lima, learning-rate=2e-05'


def test_without_a_benchmark_the_lowest_perplexity_is_best():
  a, b = run('a', 'lima', True, {}), run('b', 'alpaca', True, {})
  b[-1]['ppl-heldout'] = 1.0
  _, _, first, second = closing.changes([*a, *b])
  assert first.split() == ['alpaca', '-8.00'] and second.split() == ['lima', '-4.00']


@pytest.mark.parametrize('rows', [[], run('a', 'lima', True, {'em': 1.0})[:1]])
def test_nothing_before_and_after(rows):
  assert closing.changes(rows) == []


def test_twelve_lines_at_most(tmp_path):
  rows = [row for i in range(30) for row in run(str(i), f'd{i}', True, {'em': 10.0 + i})]
  told = closing.changes(rows)
  assert len(told) == 10 and told[2].split() == ['d29', '+29.00']
  assert told[-1] == 'and 23 more rows, in results.csv'
  begin(tmp_path)
  write(tmp_path, 'a', 0, {})
  *_, advice, command = closing.lines(tmp_path)
  assert advice == 'Next:' and command.endswith(f'configs/report.py --workdir={tmp_path}')


def test_the_command_line_ends_with_it(tmp_path, monkeypatch, capsys):
  begin(tmp_path)
  write(tmp_path, 'a', 0, {'em': 1.0, 'em-n': 5})
  log.setup_logging()
  monkeypatch.setattr(main, '_entries', lambda config: [{}])
  for done, told in (({'runs': 1}, True), ({}, False)):  # {}: a process that does not lead.
    monkeypatch.setattr(study_run, 'run', lambda *given, done=done: done)
    assert main._run(None, str(tmp_path)) == done
    said = capsys.readouterr().out
    assert ('change from the base' in said and '--mode=report' in said) == told

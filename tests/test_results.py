"""Rows of the table."""

from sft_jax import results
from tests.test_spec import make


def row(step: int, **scores) -> results.Row:
  return results.make_row(
    make(train__method='lora'),
    run_id='abc',
    step=step,
    epoch=step / 10,
    data_size=100,
    names=('model', 'data'),
    scores=scores,
    counts={'train-tokens': 5},
  )


def test_header_is_the_released_one(data_dir):
  header = (data_dir / 'bench/massive_sft_evaluation_result.csv').read_text().splitlines()[0]
  assert ('', *results.RELEASED_COLUMNS) == tuple(header.split(','))


def test_base_row_claims_no_factor():
  base, trained = row(0, **{'ppl-heldout': 9.0}), row(10, **{'ppl-heldout': 8.0})
  assert (base['data_name'], base['lora'], base['data_size']) == ('pretrain', None, 0)
  assert (trained['data_name'], trained['lora'], trained['data_size']) == ('data', True, 100)
  assert 'learning-rate' in trained and 'learning-rate' not in base
  assert trained['epoch'] == 1 and isinstance(trained['epoch'], int)
  assert list(trained)[:3] == ['model_name', 'data_name', 'lora']


def test_comparison_shows_the_change():
  rows = [row(0, a=1.0), row(10, a=3.5)]
  head, line = results.comparison(rows, ['a', 'absent'])
  assert head.split() == ['base', 'epoch', '1', 'change']
  assert line.split() == ['a', '1.00', '3.50', '+2.50']
  assert results.comparison(rows, ['absent']) == []
  # Of more, the last ones, and the gap is seen.
  rows += [row(step, a=float(step)) for step in (20, 30, 40, 50)]
  head, line = results.comparison(rows, ['a'])
  assert line.split() == ['a', '1.00', '…', '20.00', '30.00', '40.00', '50.00', '+49.00']
  assert head.split()[:3] == ['base', '…', 'epoch'] and len(head) == len(line)

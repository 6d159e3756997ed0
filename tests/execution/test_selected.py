"""`config.data.select`: which examples are taken, what a run then is, and what is kept of it."""

import json
import math

import numpy as np
import pytest
import torch
import transformers

from sft_jax.data import selection
from sft_jax.evals import score
from sft_jax.execution import runner
from sft_jax.execution.job import Run
from sft_jax.execution.session import Session
from sft_jax.train import loop
from sft_jax.utils import select
from sft_jax.utils.errors import UserError
from tests import tiny


def made(tiny_files, workdir, how='ppl:low:0.5', session=None, **changes):
  """A run as it is before it begins."""
  given = tiny.config(*tiny_files, data__select=how, **changes)
  with tiny.on_devices(), loop.StopSignal() as stop:
    return Run(given, str(workdir), stop, session)


def by_transformers(tiny_files, examples):
  """Log perplexity of the response of each example, one text at a time."""
  model = transformers.AutoModelForCausalLM.from_pretrained(tiny_files[0]).eval().float()
  out = []
  for example in examples:
    ids = torch.tensor(example.ids[None].astype(np.int64))
    with torch.no_grad():
      logprobs = torch.log_softmax(model(ids).logits[0, :-1].double(), -1)
    each = -logprobs[torch.arange(len(ids[0]) - 1), ids[0, 1:]].numpy()
    out.append(each[example.weights('response')[1:] > 0].mean())
  return np.array(out)


def test_the_ends_and_the_middle():
  values = [5.0, 1.0, 3.0, 1.0, 9.0, 7.0, 2.0]
  take = lambda text: selection.by_rank(values, select.parse(text))
  assert take('ppl:low:0.3') == [1, 3]
  assert take('ppl:high:0.3') == [4, 5]
  assert take('ppl:mid:0.4') == [0, 2, 6]
  assert take('ppl:low:0.01') == [1], 'of equals the first, and never none'
  assert [len(take(f'ppl:{end}:0.6')) for end in select.ENDS] == [4, 4, 4]


@pytest.mark.parametrize(
  'bad',
  ['low', 'ppl:lowest:0.5', 'ppl:low', 'ppl:low:0', 'ppl:low:1', 'ppl:low:nan', 'ifd:low:0.5'],
)
def test_what_is_no_selection(tiny_files, tmp_path, bad):
  with pytest.raises(UserError, match=r'config.data.select.*ppl:low:SHARE, ppl:mid:SHARE'):
    made(tiny_files, tmp_path / 'run', bad)
  assert not (tmp_path / 'run').exists()


def test_one_spelling(tiny_files, tmp_path):
  assert select.canonical('ppl:mid:.250') == 'ppl:mid:0.25' and select.canonical('') == ''


@pytest.mark.parametrize('end', select.ENDS)
def test_it_takes_what_transformers_finds(tiny_files, tmp_path, end):
  """In the order of the data; what is held out stays the same."""
  whole = made(tiny_files, tmp_path / 'whole', '', cache_dir=str(tmp_path))
  some = made(tiny_files, tmp_path / 'some', f'ppl:{end}:0.4', cache_dir=str(tmp_path))
  values = by_transformers(tiny_files, whole.data.train)
  gaps = np.diff(np.sort(values))
  assert gaps[gaps > 1e-9].min() > 1e-5, 'the order must not hang on rounding'
  count = round(0.4 * len(values))
  first = {'low': 0, 'mid': (len(values) - count) // 2, 'high': len(values) - count}[end]
  wanted = sorted(np.argsort(values, kind='stable')[first : first + count])
  assert [e.source for e in some.data.train] == [whole.data.train[i].source for i in wanted]
  assert [r.source for r in some.data.train_records] == [e.source for e in some.data.train]
  assert [e.source for e in some.data.heldout] == [e.source for e in whole.data.heldout]
  assert some.sampler.steps_per_epoch == math.ceil(count / 8)
  assert some._selected['log_perplexity'] == pytest.approx(
    [values[wanted].min(), values[wanted].max()], abs=1e-4
  )


def test_a_run_says_what_it_was_trained_on(tiny_files, tmp_path):
  ids = set()
  for how in ('', 'ppl:low:0.5', 'ppl:high:0.5', 'ppl:low:0.6'):
    job = made(tiny_files, tmp_path / f'{how}x', how, cache_dir=str(tmp_path))
    ids.add(job.run_id)
  assert len(ids) == 4
  job = made(tiny_files, tmp_path / 'run', cache_dir=str(tmp_path))
  job.claim()
  job.put_row(job.total_steps, {})
  (row,) = job.workdir.rows()
  assert row['data_name'] == row['train-data'] == 'sums+ppl:low:0.5'
  assert row['data-select'] == 'ppl:low:0.5' and row['data_size'] == len(job.data.train)
  told = json.loads((tmp_path / 'run' / 'selection.json').read_text())
  assert told['select'] == 'ppl:low:0.5' and told['of'] > len(told['examples']) == row['data_size']
  with pytest.raises(UserError, match=r"data\.select was 'ppl:low:0.5', is 'ppl:high:0.5'"):
    made(tiny_files, tmp_path / 'run', 'ppl:high:0.5', cache_dir=str(tmp_path))


def test_runs_on_everything_are_what_they_were(tiny_files, tmp_path):
  job = made(tiny_files, tmp_path / 'run', '')
  assert 'data_select' not in job.spec.factors()
  job.claim()
  assert not (tmp_path / 'run' / 'selection.json').exists()


def test_a_study_scores_a_data_set_once(tiny_files, tmp_path, monkeypatch):
  """Any process of it; another length is another text, and a damaged file is made again."""
  calls, real = [], score.token_logprobs
  count = lambda *a: calls.append(len(a[1])) or real(*a)
  monkeypatch.setattr(score, 'token_logprobs', count)
  session = Session(str(tmp_path / 'prepared'))
  for how, rank in (('ppl:low:0.5', 2), ('ppl:high:0.4', 4)):
    made(tiny_files, tmp_path / how, how, session, lora__rank=rank)
  assert len(calls) == 1
  again = made(tiny_files, tmp_path / 'c', session=Session(str(tmp_path / 'prepared')))
  assert len(calls) == 1 and again.session.bases.reads == 0
  made(tiny_files, tmp_path / 'd', session=session, train__max_length=32)
  assert len(calls) == 2
  for file in (tmp_path / 'prepared' / 'perplexity').iterdir():
    file.write_text('[1.0,')
  other = made(tiny_files, tmp_path / 'e', session=Session(str(tmp_path / 'prepared')))
  assert len(calls) == 3 and other.run_id == again.run_id


def test_a_full_run_trains_on_what_was_selected(tiny_files, tmp_path):
  """From the base it was scored by, which it then changes."""
  given = tiny.config(
    *tiny_files,
    train__method='full',
    train__epochs=1.0,
    train__snapshot_at='1',
    data__select='ppl:high:0.5',
    cache_dir=str(tmp_path / 'cache'),
  )
  member, session = runner.Member(given, str(tmp_path / 'run')), Session()
  with tiny.on_devices(), loop.StopSignal() as stop:
    (done,) = runner.run_cohort([member], str(tmp_path / 'place'), session, stop)
  assert done.state == 'done', done.reason
  base, last = tiny.read_jsonl(tmp_path / 'run' / 'rows.jsonl')
  assert last['data-select'] == 'ppl:high:0.5' and last['step'] == math.ceil(last['data_size'] / 8)
  assert base['ppl-heldout'] != last['ppl-heldout']

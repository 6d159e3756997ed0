"""What is shown of data is what a run trains on."""

import json
import re
import sys

import pytest

from sft_jax.execution import runner
from sft_jax.interactive import show_data
from sft_jax.train import loop
from sft_jax.utils import log
from sft_jax.utils.errors import UserError
from tests import tiny
from tests.models.conftest import tiny_tokenizer


@pytest.fixture(scope='module')
def settings(tiny_files):
  return tiny.config(*tiny_files, show__records=2, show__first=3, show__steps=2)


@pytest.fixture(scope='module')
def job(settings, tmp_path_factory):
  with tiny.on_devices():
    return runner.Run(settings, str(tmp_path_factory.mktemp('none') / 'w'), loop.StopSignal())


@pytest.fixture(scope='module')
def view(settings):
  return show_data.view(settings)


def test_records_are_those_of_the_run(job, view):
  assert [shown.number for shown in view.records] == [3, 4]
  for shown in view.records:
    example = job.data.train[shown.number]
    assert list(shown.ids) == example.ids.tolist() and shown.source == example.source
    assert list(shown.learnt) == (example.loss_weight > 0).tolist()
    assert ''.join(shown.pieces) == job.model.tokenizer.decode(example.ids.tolist())
    answer = job.data.train_records[shown.number].messages[-1]['content']
    learnt = ''.join(text for learnt, text in shown.spans() if learnt)
    assert learnt.startswith(answer) and answer not in shown.text(False).split('⟦')[0]


def test_rows_are_those_of_the_run(job, view):
  assert view.row_length == job.loader.row_length
  for step, rows in enumerate(view.rows):
    batch = job.loader.batch(step)['segments'].reshape(-1, view.row_length)
    used = [row for row in batch if row.any()]
    assert len(rows) == len(used)
    for row, segments in zip(rows, used, strict=True):
      assert sum(tokens for _, tokens in row) == view.row_length
      assert sum(tokens for example, tokens in row if example < 0) == (segments == 0).sum()
      for example, tokens in row:
        assert example < 0 or tokens == len(job.data.train[example])
    shown = sorted(example for row in rows for example, _ in row if example >= 0)
    assert shown == sorted(job.sampler.indices(step).tolist())


def test_a_terminal_dims_and_a_file_brackets(settings, view, monkeypatch, capsys):
  log.setup_logging()
  first = view.records[0]
  seen, learnt = first.spans()[:2]
  told = show_data.show(settings)
  plain = capsys.readouterr().out
  assert '\x1b' not in plain and f'{seen[1]}⟦{learnt[1]}⟧' in plain
  legends = [line for line in plain.splitlines() if line.startswith('legend ')]
  assert len(legends) == 2 and 'between ⟦ and ⟧: learnt' in legends[0] and 'padding' in legends[1]
  assert first.head in plain and 'records      ' in plain, 'the audit is told too'
  assert json.loads(json.dumps(told))['records'][0]['ids'] == list(first.ids)
  monkeypatch.setattr(sys.stdout, 'isatty', lambda: True, raising=False)
  monkeypatch.setenv('TERM', 'xterm')
  monkeypatch.setenv('NO_COLOR', '')
  show_data.show(settings)
  said = capsys.readouterr().out
  assert f'\x1b[2m{seen[1]}\x1b[0m{learnt[1]}' in said and 'dimmed: only read' in said
  monkeypatch.setenv('NO_COLOR', '1')
  show_data.show(settings)
  assert '\x1b' not in capsys.readouterr().out


def test_data_move_no_cursor_and_are_not_taken_for_marks():
  texts = ('ask\x1b[2J ⟦x⟧', 'say\x07\x9b\r\n\t⟧')
  shown = show_data.Shown(0, 'a\x1b.jsonl:1', (1, 2), texts, (False, True), False)
  view = show_data.View((shown,), (), 8, ('about \x1b[31m',))
  plain, coloured = ('\n'.join(view.lines(colour)) for colour in (False, True))
  assert 'ask␛[2J \\u27e6x\\u27e7⟦say␇\\x9b␍\n\t\\u27e7⟧' in plain
  assert 'such marks in the data: \\u27e6 \\u27e7' in plain
  assert '\x1b[2mask␛[2J ⟦x⟧\x1b[0msay␇\\x9b␍\n\t⟧' in coloured
  for text in (plain, coloured.replace('\x1b[2m', '').replace('\x1b[0m', '')):
    assert not {*'\x1b\x07\x9b\r'} & {*text}
  assert view.as_json()['records'][0]['pieces'] == texts, 'programs get what is there'


def test_a_notebook_sees_every_token_and_no_markup_of_the_data(view):
  page = view._repr_html_()
  boxes = sum(len(shown.ids) for shown in view.records)
  assert page.count('white-space:pre-wrap') == boxes
  assert '<|im' not in page and page.count('height:14px') == sum(map(len, view.rows))


def test_the_first_example_has_a_number_and_one_is_singular():
  row = ((0, 6), (7, 1), (-1, 1))
  view = show_data.View((), ((row,),), 8, ())
  page = view._repr_html_()
  assert re.findall(r'solid #fff">(\d*)<', page) == ['0', '7', '']
  assert '"example 7, 1 token"' in page and 'step 1: 1 row of 8 tokens<' in page
  assert 'step 1: 1 row of 8 tokens' in view.lines(False)


@pytest.mark.parametrize('text', ['naïve 你好 🙂 ok', 'a  b\n\nc', ''])
def test_pieces_join_to_the_text(text):
  """Characters of several tokens are never torn, and no space is lost."""
  tokenizer = tiny_tokenizer()
  ids = tokenizer(text, add_special_tokens=False)['input_ids']
  pieces = show_data.pieces(ids, tokenizer)
  assert len(pieces) == len(ids) and ''.join(pieces) == tokenizer.decode(ids) == text
  assert not any('\ufffd' in piece for piece in pieces)


def test_records_that_there_are_not(tiny_files):
  with pytest.raises(UserError, match=r'no record 1000 of \d+ heldout records.*config.show.first'):
    show_data.view(tiny.config(*tiny_files, show__part='heldout', show__first=1000))

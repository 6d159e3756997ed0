"""Two rows, item by item: refusals, hand-computed differences, coverage, and what people see."""

import html.parser
import json
import math

import numpy as np
import pytest

from sft_jax.evals import compare, compare_text, stats
from sft_jax.evals import records as records_lib
from sft_jax.utils import io
from sft_jax.utils.errors import UserError

ABOUT = {
  'task': 'gsm8k:4shot:gen',
  'version': 1,
  'prompt-hash': 'abc',
  'template': 'raw',
  'measures': ['acc'],
  'percent': True,
  'macro': False,
}


def records(scores, found=None, about=None, **more):
  return [
    {
      'id': str(i),
      'group': '',
      'about': {**ABOUT, **(about or {})},
      'scores': {'acc': score},
      'extracted': '42' if found is None or found[i] else None,
      'output': f'output {i}',
      'output-tokens': 3,
      'shots': 4,
      **more,
    }
    for i, score in enumerate(scores)
  ]


def row(*tasks, name='run'):
  return records_lib.Row(name, {part[0]['about']['task']: part for part in tasks})


def write(path, part):
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(''.join(f'{io.to_json(record)}\n' for record in part))
  return str(path)


def test_by_hand():
  a = records([1, 1, 1, 0, 0, 0, 0, 0, 0, 0])
  b = records([1, 1, 0, 1, 1, 1, 0, 0, 0, 0])
  (one,) = compare.compare(row(a), row(b))
  assert one.n == 10 and one.left_out == 0 and one.shots_differ == 0
  assert one.scores == pytest.approx((30, 50))
  assert (one.better, one.worse) == (3, 1)
  assert one.difference.mean == pytest.approx(20)
  # Differences 1, 1, 1, −1 and six 0: sample variance (4 − 10 · 0.04) / 9.
  assert one.difference.stderr == pytest.approx(100 * math.sqrt(3.6 / 9 / 10))
  assert one.p == pytest.approx(2 * (1 + 4) / 16)
  reach = stats.Z + 0.8416212335729143
  assert one.detectable == pytest.approx(100 * reach * math.sqrt(max(0.5, reach**2 / 10) / 10))
  assert [a['id'] for a, _ in one.disagree] == ['2', '3', '4', '5']


def test_macro_by_hand():
  groups = ['x', 'x', 'x', 'y'] * 10
  a, b = records([1, 0, 0, 0] * 10), records([1, 1, 0, 1] * 10)
  for part in (a, b):
    for record, group in zip(part, groups, strict=True):
      record['group'], record['about']['macro'] = group, True
  (one,) = compare.compare(row(a), row(b))
  assert one.scores == pytest.approx((50 / 3, 250 / 3))
  assert one.difference.mean == pytest.approx(100 * (1 / 3 + 1) / 2)
  # Weights 1/60 and 1/20: as good as 30 items; 2 of 3 disagree, by weight.
  reach = stats.Z + 0.8416212335729143
  share = (30 * (1 / 6 + 1 / 2) + 2) / 32
  assert one.detectable == pytest.approx(100 * reach * math.sqrt(share / 30))


def test_form_and_ability_add_up():
  a = records([1, 0, 0, 0, 0, 1], found=[1, 1, 0, 0, 0, 1])
  b = records([1, 1, 1, 1, 0, 0], found=[1, 1, 1, 1, 1, 0])
  (one,) = compare.compare(row(a), row(b))
  split = one.split
  assert split.extracted == pytest.approx((50, 500 / 6)) and split.both == 2
  assert split.given_both.mean == pytest.approx(50)  # items 0 and 1: one gain
  assert split.ability == pytest.approx(100 / 6)
  assert split.form == pytest.approx(100 * (1 + 1 - 1) / 6)
  assert split.ability + split.form == pytest.approx(one.difference.mean)


def test_no_split_without_outputs_and_none_found():
  a, b = records([1, 0]), records([0, 0])
  for record in (*a, *b):
    del record['output']
  assert compare.compare(row(a), row(b))[0].split is None
  a, b = records([1, 0], found=[1, 0]), records([0, 0], found=[0, 0])
  split = compare.compare(row(a), row(b))[0].split
  assert split.both == 0 and split.given_both is None and split.form == -50


@pytest.mark.parametrize(
  'change, message',
  [
    ({'version': 2}, 'version differs: 1 and 2'),
    ({'prompt-hash': 'x'}, 'prompt-hash differs: abc and x'),
    ({'template': 'chat'}, 'template differs: raw and chat'),
    ({'max-new': 512}, 'max-new differs: None and 512'),
  ],
)
@pytest.mark.parametrize('common', [False, True])
def test_other_evaluations_are_refused(change, message, common):
  with pytest.raises(UserError, match=message):
    compare.compare(row(records([1, 0])), row(records([1, 0], about=change)), common)


def test_other_items_and_tasks_are_refused_unless_told():
  a, b = records([1, 0, 1]), records([0, 0, 1, 1])
  with pytest.raises(UserError, match='items differ: 1 in one only'):
    compare.compare(row(a), row(b))
  (one,) = compare.compare(row(a), row(b), common=True)
  assert one.n == 3 and one.left_out == 1 and one.difference.mean == pytest.approx(-100 / 3)
  other = records([1, 1], about={'task': 'nq'})
  with pytest.raises(UserError, match='tasks differ: only one has nq'):
    compare.compare(row(a), row(a, other))
  assert len(compare.compare(row(a), row(a, other), common=True)) == 1
  with pytest.raises(UserError, match='tasks differ'):
    compare.compare(row(a), row(other), common=True)


def test_equal_ids_of_other_data_are_refused():
  a, b = records([1, 0], digest='1'), records([1, 0], digest='2')
  with pytest.raises(UserError, match='item 0 differs in digest'):
    compare.compare(row(a), row(b), common=True)


def test_items_not_graded_in_both_are_left_out():
  a, b = records([1, 0, 1]), records([1, 1, 1])
  b[0] = {key: b[0][key] for key in ('id', 'group', 'about')} | {'missing': True}
  (one,) = compare.compare(row(a), row(b))
  assert one.n == 2 and one.left_out == 1
  a[1]['missing'] = a[2]['missing'] = True
  with pytest.raises(UserError, match='no item was graded'):
    compare.compare(row(a), row(b))


def test_reading_files_and_directories(tmp_path):
  file = write(tmp_path / 'run/samples/gsm8k-0.jsonl', records([0, 0]))
  write(tmp_path / 'run/samples/gsm8k-20.jsonl', records([1, 0]))
  write(tmp_path / 'run/samples/gsm8k-100.jsonl', records([1, 1]))
  write(tmp_path / 'run/samples/samples-200.jsonl', [{'prompt': 'p', 'answer': 'a'}])
  write(tmp_path / 'run/rows.jsonl', [{'step': 1}])
  means = lambda path: {
    task: np.mean([r['scores']['acc'] for r in part])
    for task, part in records_lib.read(str(path)).tasks.items()
  }
  run = tmp_path / 'run'
  assert means(file) == {'gsm8k:4shot:gen': 0}
  assert means(run) == means(run / 'samples') == means(f'{run}@100') == {'gsm8k:4shot:gen': 1}
  assert means(f'{run}@20') == {'gsm8k:4shot:gen': 0.5}
  with pytest.raises(UserError, match='of step 7'):
    records_lib.read(f'{run}@7')
  with pytest.raises(UserError, match='no such file'):
    records_lib.read(str(tmp_path / 'nothing'))
  write(run / 'samples/other-100.jsonl', records([1]))
  with pytest.raises(UserError, match='occurs twice'):
    records_lib.read(str(run))


@pytest.mark.parametrize(
  'change, message',
  [
    ({'id': '0'}, "second item '0'.*record 2"),
    ({'about': {**ABOUT, 'version': 2}}, 'another evaluation.*record 2'),
    ({'about': {}}, 'no task, version.*record 2'),
    ({'scores': {'acc': None}}, 'no acc.*record 2'),
    ({'scores': {}}, 'no acc.*record 2'),
    ({'about': None}, 'no task, version.*record 2'),
  ],
)
def test_broken_files(tmp_path, change, message):
  part = records([1, 0])
  part[1] |= change
  with pytest.raises(UserError, match=message):
    records_lib.read(write(tmp_path / 'a.jsonl', part))
  with pytest.raises(UserError, match='no records'):
    records_lib.read(write(tmp_path / 'b.jsonl', []))


def test_sign_test_is_exact():
  binomtest = pytest.importorskip('scipy.stats').binomtest
  for better, worse in ((0, 0), (1, 0), (3, 1), (5, 5), (30, 12), (700, 800), (0, 6)):
    want = binomtest(better, better + worse).pvalue if better + worse else 1
    assert compare.sign_test(better, worse) == pytest.approx(want, rel=1e-9)
  assert compare.sign_test(6000, 5000) < 1e-20


def test_one_group_is_tangos_interval():
  """The bounds solve the score equation, with the likelihood maximised by search."""
  for gains, losses, n in ((12, 2, 100), (3, 0, 50), (40, 41, 300), (0, 0, 20)):
    low, high = compare.paired_interval(np.array([gains]), np.array([losses]), np.array([n]))
    for delta in (float(low), float(high)):
      lost = np.linspace(max(0, -delta), (1 - delta) / 2, 400_001)[1:-1]
      with np.errstate(divide='ignore', invalid='ignore'):
        terms = [
          count * np.log(rate) if count else 0 * rate
          for count, rate in (
            (gains, lost + delta),
            (losses, lost),
            (n - gains - losses, 1 - 2 * lost - delta),
          )
        ]
      best = lost[np.nanargmax(sum(terms))]
      score = (gains - losses - n * delta) / math.sqrt(n * (2 * best + delta * (1 - delta)))
      assert abs(score) == pytest.approx(stats.Z, rel=2e-3), (gains, losses, n)


def paired(rng, totals, first, second, overlap, resamplings=4000):
  """Gains and losses `[resamplings, groups]`; `overlap` from 0, independent, to 1, nested."""
  both = first * second + overlap * (np.minimum(first, second) - first * second)
  chances = np.stack([second - both, first - both, 1 - first - second + 2 * both], -1)
  drawn = rng.multinomial(totals, chances, (resamplings, len(totals)))
  return drawn[..., 0], drawn[..., 1]


def spread(first, gain):
  return first, np.clip(first + gain, 0, 1)


MICRO = [
  # n, accuracies, overlap
  (100, 0.5, 0.55, 0.5),
  (100, 0.5, 0.5, 0.9),
  (164, 0.3, 0.45, 0.7),
  (200, 0.02, 0.02, 0.3),
  (200, 0.03, 0.06, 0.3),
  (500, 0.01, 0.01, 0.0),
  (500, 0.97, 0.98, 0.8),
  (1319, 0.05, 0.08, 0.6),
  (1319, 0.6, 0.6, 0.95),
]


@pytest.mark.parametrize('n, first, second, overlap', MICRO)
def test_micro_differences_cover(n, first, second, overlap):
  totals = np.array([n])
  gains, losses = paired(
    np.random.default_rng(5), totals, np.array([first]), np.array([second]), overlap
  )
  low, high = compare.paired_interval(gains, losses, totals)
  truth = second - first
  assert 0.93 < np.mean((low <= truth) & (truth <= high)) < 0.97


MACRO = {
  'like mmlu': lambda g: (g.integers(100, 500, 57), *spread(g.beta(4, 3, 57), 0.02), 0.8),
  'unlike models': lambda g: (g.integers(100, 300, 57), g.beta(4, 3, 57), g.beta(4, 3, 57), 0.5),
  'five each': lambda g: (np.full(57, 5), *spread(g.beta(4, 3, 57), 0.02), 0.8),
  'two to seven': lambda g: (g.integers(2, 8, 57), *spread(g.beta(4, 3, 57), 0.02), 0.8),
  'one each': lambda g: (np.ones(57, int), *spread(g.beta(4, 3, 57), 0.05), 0.5),
  'small rates': lambda g: (g.integers(2, 8, 57), *spread(g.beta(1, 30, 57), 0.02), 0.5),
  'few groups': lambda g: (g.integers(10, 200, 6), np.full(6, 0.2), np.full(6, 0.25), 0.5),
  'few, much alike': lambda g: (g.integers(10, 60, 6), np.full(6, 0.5), np.full(6, 0.45), 0.9),
}


@pytest.mark.parametrize('design', MACRO)
def test_macro_differences_cover(design):
  rng = np.random.default_rng(6)
  totals, first, second, overlap = MACRO[design](rng)
  gains, losses = paired(rng, totals, first, second, overlap)
  low, high = compare.paired_interval(gains, losses, totals)
  truth = (second - first).mean()
  assert 0.93 < np.mean((low <= truth) & (truth <= high)) < 0.97


def test_differences_of_other_scores_cover():
  rng = np.random.default_rng(7)
  inside = 0
  for _ in range(1000):
    level = rng.normal(size=60)
    values = np.stack([level + rng.normal(size=60), level + 0.3 + rng.normal(size=60)], 1)
    one = compare.difference(values, [''] * 60, macro=False)
    inside += one.low <= 0.3 <= one.high
  assert 930 < inside < 970


def test_compare_covers_end_to_end():
  """500 re-samplings through `compare`, of models that agree on four items of five."""
  rng = np.random.default_rng(8)
  inside = 0
  for _ in range(500):
    first = rng.random(150) < 0.4
    second = np.where(rng.random(150) < 0.2, rng.random(150) < 0.7, first)
    (one,) = compare.compare(row(records(first * 1.0)), row(records(second * 1.0)))
    inside += one.difference.low <= 100 * 0.2 * (0.7 - 0.4) <= one.difference.high
  assert 0.93 * 500 < inside < 0.97 * 500


@pytest.mark.parametrize('n, share', [(200, 0.3), (1319, 0.1), (1319, 0.02)])
def test_a_detectable_difference_is_found_four_times_in_five(n, share):
  values = np.zeros((n, 2))
  some = round(n * share / 2)
  values[:some, 0] = values[some : 2 * some, 1] = 1
  reach = compare.detectable(values, [''] * n, macro=False)
  chances = [(share + reach) / 2, (share - reach) / 2, 1 - share]
  drawn = np.random.default_rng(9).multinomial(n, chances, 4000)
  low, high = compare.paired_interval(drawn[:, :1], drawn[:, 1:2], np.array([n]))
  assert 0.77 < np.mean((low > 0) | (high < 0)) < 0.87


class Page(html.parser.HTMLParser):
  """Tags and text of a page."""

  def __init__(self, text):
    super().__init__()
    self.tags, self.open, self.text = [], [], ''
    self.feed(text)

  def handle_starttag(self, tag, attrs):
    self.tags.append((tag, dict(attrs)))
    if tag not in ('meta', 'br'):
      self.open.append(tag)

  def handle_endtag(self, tag):
    assert self.open.pop() == tag

  def handle_data(self, data):
    self.text += data


EVIL = '<script>alert(1)</script><img src="http://x/y"> & "quoted"'


def shown():
  a, b = records([0, 1, 0]), records([1, 1, 0], found=[1, 1, 0])
  a[0] |= {'output': EVIL, 'prompt': EVIL, 'gold': ['4', '<b>'], 'extracted': None}
  b[0] |= {'output': ['turn one', EVIL], 'id': '0'}
  return compare.compare(row(a, name=EVIL), row(b, name='second'))


def test_page_is_escaped_and_complete_in_itself():
  text = compare_text.page((EVIL, 'second'), shown())
  page = Page(text)
  assert page.open == []
  names = {tag for tag, _ in page.tags}
  assert not names & {'script', 'img', 'link', 'iframe', 'a'}
  assert not any(key in ('src', 'href') for _, attributes in page.tags for key in attributes)
  assert 'url(' not in text and '@import' not in text
  assert page.text.count(EVIL) == 5  # title, row, prompt, both outputs
  assert 'turn one' in page.text and 'no answer found' in page.text
  assert '["4", "<b>"]' in page.text
  assert 'further item' not in page.text
  assert 'Not shown: 1 further item.' in compare_text.page(('a', 'b'), shown(), most=0)


def test_lines_show_the_table_and_examples():
  text = '\n'.join(compare_text.lines(('one', 'two'), shown(), examples=1))
  assert 'A: one\nB: two' in text
  table = next(line for line in text.splitlines() if line.startswith('gsm8k'))
  assert table.split()[:5] == ['gsm8k:4shot:gen', '3', '33.33', '66.67', '+33.33']
  assert 'of +33.33: +0.00 from better or worse answers there, +33.33 from' in text
  assert 'item 0: acc 0 and 1' in text and EVIL in text and '     turn' not in text
  assert 'item 0' not in '\n'.join(compare_text.lines(('one', 'two'), shown()))


def test_lines_of_one_item_and_caveats():
  tasks = [records([1], about={'task': name}) for name in 'xy']
  others = [records([1, 0], about={'task': name}, shots=3) for name in 'xy']
  found = compare.compare(row(*tasks), row(*others), common=True)
  text = '\n'.join(compare_text.lines(('a', 'b'), found))
  assert 'one interval in 20' in text and 'x: 1 item left out' in text
  assert 'y: 1 item had different numbers of shots' in text
  assert found[0].difference.low is None and '–' in text
  assert found[0].detectable is None


def test_an_interval_of_few_items_is_not_shown_to_people():
  """It is computed all the same, for programs."""
  for count, is_shown in ((9, False), (10, True)):
    scores = [float(i % 2) for i in range(count)]
    found = compare.compare(row(records(scores)), row(records([1.0, *scores[1:]])))
    text = '\n'.join(compare_text.lines(('a', 'b'), found))
    assert ('[-' in text) == is_shown, text
    assert ('9 items, too few for an interval' in text) != is_shown
    assert found[0].difference.low is not None
    low = compare_text.report(('a', 'b'), found)['tasks']['gsm8k:4shot:gen']['difference']['low']
    assert low == found[0].difference.low


def test_report_is_json():
  made = json.loads(io.to_json(compare_text.report(('a', 'b'), shown())))
  task = made['tasks']['gsm8k:4shot:gen']
  assert task['n'] == 3 and task['difference']['mean'] == pytest.approx(100 / 3)
  assert task['disagree'] == [{'id': '0', 'scores': [0, 1]}]
  assert task['split']['both'] == 1 and task['about'] == ABOUT

"""Races of real runs of a tiny model: from the command line to the decision and its page."""

import json
import os
import shlex
import signal

import numpy as np
import pytest

import sft_jax
from configs import base
from sft_jax import config_file
from sft_jax.decide import choose_mode, choose_run, choose_told, choose_wish
from sft_jax.evals import loglik
from sft_jax.execution.workdir import Workdir
from sft_jax.study import choose, decision_page, race_budget, ray_engine
from sft_jax.study.race import Race, Trial
from sft_jax.study.race_data import Field, Observation, Scores
from sft_jax.study.race_evidence import Arm, Rung
from sft_jax.study.race_rules import Rules
from sft_jax.utils import io, log
from sft_jax.utils.errors import Interrupted, UserError
from tests import tiny
from tests.evals.judge_server import JudgeServer

LEAKED = 'one two three four five six seven eight nine ten eleven twelve thirteen fourteen'


GERMAN = 'Das ist die Antwort auf die Frage, die gestellt wurde, und sie ist richtig'


@pytest.fixture
def setting(tiny_files, tmp_path):
  """A config that asks for a race of two files, one of which holds an item of the target."""
  model, _ = tiny_files
  known = tiny.records(36)
  files = []
  for name in ('sums', 'others'):
    given = [dict(r, output=r['output'] if name == 'sums' else 'no idea') for r in known]
    files.append(str(tiny.write_records(tmp_path / f'{name}.jsonl', given)))
  (tmp_path / 'sums.md').write_text('---\nlicense: mit\n---\n')
  bench = tmp_path / 'mine.jsonl'
  asked = [
    {'question': f'how much is {i} and {i}?', 'choices': list('0123456'), 'answer': i % 7}
    for i in range(30)
  ]
  asked.append({'question': LEAKED, 'choices': ['a', 'b'], 'answer': 0})
  bench.write_text(''.join(f'{json.dumps(one)}\n' for one in asked))
  (tmp_path / 'guard.jsonl').write_text(''.join(f'{json.dumps(one)}\n' for one in asked[:8]))
  with open(files[1], 'a') as f:
    f.write(json.dumps({'instruction': LEAKED, 'input': '', 'output': 'a'}) + '\n')
  return tiny.config(
    model,
    '',
    train__epochs=1.0,
    log__tensorboard=False,
    choose__data=','.join(files),
    choose__target=str(bench),
    choose__guard=f'{tmp_path}/guard.jsonl>=-90',
    choose__sizes='8,16',
    choose__final_seeds=2,
    choose__budget='100 examples',
  )


def rows_of(workdir):
  return {p: p.stat().st_mtime_ns for p in workdir.glob('rung-*/runs/*/rows.jsonl')}


@pytest.fixture
def asked_of_base(monkeypatch):
  """[number of texts that a model without adapter has scored]."""
  score, count = loglik.score, [0]

  def counted(subject, texts, *rest):
    count[0] += len(texts) if subject.params['adapter'] is None else 0
    return score(subject, texts, *rest)

  monkeypatch.setattr(loglik, 'score', counted)
  return count


def test_a_race_of_real_runs(setting, tmp_path, asked_of_base, monkeypatch, capsys):
  workdir = tmp_path / 'race'
  with setting.unlocked():
    setting.max_seconds = 1e-3  # One step or task at a time.
  with tiny.on_devices(), pytest.raises(Interrupted):
    sft_jax.choose(setting, workdir)
  with setting.unlocked():
    setting.max_seconds = 0.0
  with tiny.on_devices():
    value = sft_jax.choose(setting, workdir)
  told = capsys.readouterr().out
  assert 'runs to do' in told and 'evaluating the base' not in told, 'its scores are taken over'
  assert 0 < value['spent'] <= value['budget'] == 100
  assert value['decision'] in (choose.WINNER, choose.TIE, choose.NONE)
  # What one candidate was trained on counts for none of them.
  assert any('1 of 31 items' in fact for fact in value['facts'])
  assert any(fact.startswith('others holds 1 item of') for fact in value['facts'])
  assert value['licences'] == {'sums': 'mit', 'others': 'not stated'}
  base = {'name': setting.model.path, 'licence': 'not stated'}
  assert value['base'] == base
  assert all(list(one['guards']) == ['guard:0shot:ll'] for one in value['candidates'])
  before = rows_of(workdir)
  assert len(before) >= 4
  # Its answers to target and guard are those of the base row of every run, at every rung.
  # The guard's items are among the target's; of what was under way at the stop some is asked again.
  (asked,) = asked_of_base
  assert 0 <= asked - (30 * 7 + 2) <= 7
  bases = [tiny.read_jsonl(path)[0] for path in before]
  (own,) = tiny.read_jsonl(workdir / 'base' / 'rows.jsonl')
  for column in ('mine-0shot-ll-chat', 'guard-0shot-ll-chat'):
    assert {row[column] for row in bases} == {own[column]}
  assert json.loads((workdir / 'decision.json').read_text()) == json.loads(io.to_json(value))
  assert decision_page.answer(value) in (workdir / 'decision.md').read_text()
  # A third candidate in two sizes, and time instead of examples: nothing is done again.
  third = tiny.write_records(tmp_path / 'third.jsonl', tiny.records(30))
  with setting.unlocked():
    setting.choose.data += f',{third},{third}#10'
    setting.choose.budget = '2h'
    setting.study.engine = 'ray'
  spread = lambda work, *_: [work.worker(False)]
  monkeypatch.setattr(ray_engine, 'spread', spread)
  with tiny.on_devices():
    again = sft_jax.choose(setting, workdir)
  after = rows_of(workdir)
  assert {'third', 'third#10'} < {one['candidate'] for one in again['candidates']}
  assert again['data']['third#10'] == {'source': str(third), 'examples': 10}
  assert before.items() <= after.items()
  assert asked_of_base == [asked], 'nor is the base asked again, by workers that Ray starts'
  own = [p for p in after if 'third' in (p.parent / 'config.json').read_text()]
  assert again['unit'] == 'seconds'
  # On 8 examples both sizes are the same runs.
  assert sum('rung-0' in str(path) for path in own) == 2
  held = json.loads((workdir / 'clock.json').read_text())['seconds']
  assert 0 < again['spent'] <= sum(held.values()) and again['spent'] < again['budget'] == 7200
  # What a run costs in tokens is known before it, of each seed by itself.
  trials = [Trial(Arm(name), 0, seed) for name in ('sums', 'third') for seed in (0, 1)]
  with tiny.on_devices():
    runs = choose_run.Runs(setting, wish(setting, budget='1e9 tokens'), str(workdir))
    cost = {trial: one.cost for trial, one in runs.evaluate(trials).items()}
    assert cost == {trial: runs.exact(trial) for trial in trials}
    for name in ('sums', 'third'):
      rows = [io.read_jsonl(f'{one}/rows.jsonl')[-1] for one in runs.workdirs(Arm(name), 0)]
      own = [amount for trial, amount in cost.items() if trial.arm.candidate == name]
      assert sorted(row['train-tokens'] for row in rows) == sorted(own)
  assert len(set(cost.values())) > 2
  # What was measured is of other questions, or of other data, than these.
  for name in ('mine.jsonl', 'sums.jsonl'):
    kept = (tmp_path / name).read_text()
    (tmp_path / name).write_text(kept.replace('how much', 'how many'))
    with tiny.on_devices(), pytest.raises(UserError, match=f'has changed since.*{name}'):
      sft_jax.choose(setting, workdir)
    (tmp_path / name).write_text(kept)


def wish(setting, **changes):
  with setting.unlocked():
    for key, value in changes.items():
      setting.choose[key] = value
  return choose_mode.wish_of(setting)


def test_what_a_config_asks(setting, tmp_path):
  found = wish(
    setting,
    data=f"{setting.choose.data},'mix:lima=0.5,alpaca_cleaned=0.5#90',lima,lima#20",
    target=f'{tmp_path}/mine.jsonl:2shot, arc_easy:ll',
    rates='1e-4,3e-4',
    sizes='8,0',
    budget='1.5h',
  )
  mixed = 'mix:lima=0.5,alpaca_cleaned=0.5'
  assert list(found.data) == ['sums', 'others', f'{mixed}#90', 'lima', 'lima#20']
  assert list(found.data.values())[2:] == [mixed, 'lima', 'lima']
  assert found.most == {f'{mixed}#90': 90, 'lima#20': 20}
  assert list(found.rules.targets) == [f'custom:{tmp_path}/mine.jsonl:2shot', 'arc_easy:ll']
  assert found.rules.guards == {f'custom:{tmp_path}/guard.jsonl': -90.0}
  assert (found.rates, found.sizes, found.seeds) == ([1e-4, 3e-4], [8, 0], (2, 2))
  assert found.budget == race_budget.Budget(5400.0, 'seconds')


@pytest.mark.parametrize(
  'text, least', [('-1', -1.0), ('-.5', -0.5), ('.5', 0.5), (' +2.', 2.0), ('-0.25', -0.25)]
)
def test_how_far_a_guard_may_fall(setting, text, least):
  (found,) = wish(setting, guard=f'mmlu:ll>={text}').rules.guards.values()
  assert found == least


@pytest.mark.parametrize(
  'changes, words',
  [
    ({'data': ''}, 'no candidates given .config.choose.data'),
    ({'data': 'lima'}, 'one candidate is no choice .config.choose.data'),
    ({'data': 'lima,lima'}, 'lima is named twice'),
    ({'data': 'lima,DIR/mine.jsonl'}, 'a target is training data too'),
    ({'data': "lima,'mix:lima=0.5,DIR/mine.jsonl=0.5'"}, 'a target is training data too'),
    ({'target': 'DIR/sums.jsonl:2shot'}, 'a target is training data too .*sums.jsonl'),
    ({'guard': 'custom:DIR/sums.jsonl >= -1'}, 'a target is training data too .*sums.jsonl'),
    ({'data': "lima,'mix:"}, 'a quote is not closed'),
    ({'data': 'lima,lima#many'}, "'many' is no number of records .config.choose.data: lima#many."),
    ({'data': 'lima,lima#0'}, 'is no number of records'),
    ({'data': 'DIR/sums.jsonl,DIR/./sums.jsonl'}, 'sums.jsonl is .*sums.jsonl .config.choose.data'),
    ({'target': ''}, 'no target given .config.choose.target'),
    ({'target': 'gsm9k'}, "no task 'gsm9k' .config.choose.target.* did you mean gsm8k"),
    ({'target': 'DIR/none.jsonl:2shot'}, 'no such file: .*none.jsonl .config.choose.target'),
    ({'target': 'perplexity'}, 'perplexity has no items to compare'),
    ({'guard': 'mmlu:ll'}, 'is no guard .config.choose.guard. — say how far'),
    ({'guard': 'mmlu:ll>=.'}, 'is no guard'),
    ({'guard': 'DIR/mine.jsonl>=-1'}, 'is named twice .config.choose.target'),
    ({'budget': ''}, 'no budget given .config.choose.budget. — give a time'),
    ({'budget': '6 weeks'}, 'is no budget'),
    ({'budget': '0h'}, 'is no budget'),
    ({'rates': '1e-4,fast'}, 'are no numbers .config.choose.rates'),
    ({'rates': '0'}, 'are no rates'),
    ({'sizes': '16,8'}, 'are no rungs .config.choose.sizes. — give growing numbers'),
    ({'sizes': '0,8'}, 'are no rungs'),
    ({'error': 1.0}, 'is no chance .config.choose.error'),
    ({'seeds': 0}, 'out of range .config.choose.seeds'),
    ({'prior': 'DIR/none.csv'}, 'no such table'),
    ({'endpoint': 'live'}, 'no model and address .config.choose.endpoint. — write MODEL@URL'),
    ({'endpoint': 'a@ftp://x'}, 'no plain http address .config.choose.endpoint. — write MODEL'),
    ({'endpoint': 'a@http://x/v1'}, 'mine.* needs log-likelihoods .* .config.choose.target'),
  ],
)
def test_bad_input(setting, tmp_path, changes, words):
  filled = {k: v.replace('DIR', str(tmp_path)) if type(v) is str else v for k, v in changes.items()}
  with pytest.raises(UserError, match=words) as caught:
    wish(setting, **filled)
  assert '\n' not in str(caught.value)


@pytest.mark.parametrize(
  'changes, words',
  [
    ({'data': 'DIR/sums.jsonl,DIR/none.jsonl'}, 'none.jsonl. — check config.choose.data'),
    ({'data': 'DIR/sums.jsonl,DIR/others.jsonl#500'}, '500 records are wanted.* after #'),
  ],
)
def test_bad_data_are_told_of_the_key_that_names_them(setting, tmp_path, changes, words):
  asked = wish(setting, **{k: v.replace('DIR', str(tmp_path)) for k, v in changes.items()})
  with tiny.on_devices(), pytest.raises(UserError, match=words) as caught:
    choose_run.Runs(setting, asked, str(tmp_path / 'race'))
  assert 'config.data.' not in str(caught.value)


def test_where_a_race_has_no_place_or_nobody_to_run(setting, tmp_path, monkeypatch):
  (tmp_path / 'run').mkdir()
  (tmp_path / 'run' / 'config.json').write_text('{}')
  with pytest.raises(UserError, match='the workdir of a run or study'):
    choose_run.Runs(setting, wish(setting), str(tmp_path / 'run'))
  tiny.write_records(
    tmp_path / 'sums.jsonl',
    [{'instruction': LEAKED, 'input': '', 'output': GERMAN + '!' * i} for i in range(9)],
  )
  with setting.unlocked():
    setting.train.max_length = 128
  warned = []
  monkeypatch.setattr(log, 'warn', warned.append)
  found = Observation({'mine:0shot:ll': Scores(('1', '31'), np.array([0.0, 100.0]))})
  monkeypatch.setattr(choose_run.Runs, 'base', lambda self: found)
  with tiny.on_devices(), pytest.raises(UserError, match=r'more than 1% of a target .* in each of'):
    choose_mode.hold(setting, wish(setting, guard='', most_leak=0.01), str(tmp_path / 'race'))
  said = 'another language than the targets and guards: de (100% of 8 records looked at), not en'
  assert warned == [f'sums is mostly in {said}']


def test_the_base_has_the_time_of_the_budget_and_no_more(setting, tmp_path):
  """Within a task too."""
  with setting.unlocked():
    setting.eval.tokens_per_batch = 256
  started = lambda seconds: choose_run.Runs(
    setting, wish(setting, budget=f'{seconds:.3f}s', guard=''), str(tmp_path / 'race')
  )
  with tiny.on_devices():
    spent = started(3600).time.before()
    with pytest.raises(UserError, match=r's are spent, the last of it on asking the base .config'):
      started(spent + 0.01).base()
    assert not (tmp_path / 'race' / 'base' / 'rows.jsonl').exists()
    answers = tmp_path / 'race' / 'base' / 'answers-0.jsonl'
    assert answers.exists(), 'what it has answered is kept'
    assert len(started(3600).base().scores) == 1


def test_questions_that_change_are_told(setting, tmp_path):
  """Of a benchmark below `eval.data_dir` too."""
  with setting.unlocked():
    setting.eval.data_dir = str(tmp_path)
  row = {'question': 'is it so', 'passage': 'It is.', 'answer': True}
  file = tmp_path / 'boolq_val.jsonl'
  asked = wish(setting, target='boolq:ll', guard='')

  def check(*rows):
    file.write_text(''.join(f'{json.dumps(one)}\n' for one in rows))
    with tiny.on_devices():
      runs = choose_run.Runs(setting, asked, str(tmp_path / 'race'))
    choose_mode.check_contents(setting, asked, str(tmp_path / 'race'), runs.candidates)

  check(row)
  check(row)
  with pytest.raises(UserError, match=r'the questions of boolq.* are others than when the race'):
    check(row, row | {'question': 'was it so'})
  # How they are put decides what is answered too.
  with setting.unlocked():
    setting.eval.template = 'raw'
  with pytest.raises(UserError, match=r"'raw' was 'train' when the race began .config.eval.templ"):
    check(row)


def test_two_races_in_one_place_are_one_too_many(setting, tmp_path):
  place = Workdir(str(tmp_path / 'race'))
  with place.taken(), pytest.raises(UserError, match='is at work here'):
    choose_mode.run(setting, str(tmp_path / 'race'))
  assert not (tmp_path / 'race' / 'clock.json').exists()


def test_a_table_gives_the_prior_of_what_it_knows(setting, tmp_path):
  rng = np.random.default_rng(0)
  rows = ['model_name,data_name,lora,epoch,data_size,lr_strategy,gsm8k-0shot']
  for model in range(5):
    names = ('lima', 'alpaca_cleaned', 'other', 'more', 'lima+ppl:low:0.25')
    for at, name in enumerate(names):
      rows.append(f'm{model},{name},True,1,9,cosine,{30 - 6 * at + rng.normal():.2f}')
  table = tmp_path / 'table.csv'
  table.write_text('\n'.join(rows) + '\n')
  data = f'lima,alpaca_cleaned,{tmp_path}/sums.jsonl'
  found = wish(setting, data=data, target='gsm8k:0shot:gen', guard='', prior=str(table)).prior
  assert list(found) == ['lima', 'alpaca_cleaned'], 'of a file of her own it knows nothing'
  assert found['lima'].mean - found['alpaca_cleaned'].mean == pytest.approx(6, abs=1.5)
  # Of what is selected the table knows runs on that alone.
  with setting.unlocked():
    setting.data.select = 'ppl:low:.25'
  selected = wish(setting, data=data, target='gsm8k:0shot:gen', guard='', prior=str(table)).prior
  assert list(selected) == ['lima'] and selected['lima'].mean < found['lima'].mean - 12
  # A measure that the table does not have is not told by another.
  assert wish(setting, target='gsm8k:4shot:gen').prior == {}


def test_a_signal_between_two_works_is_a_stop_too(setting, tmp_path, monkeypatch):
  monkeypatch.setattr(choose_mode, 'hold', lambda *_: os.kill(os.getpid(), signal.SIGTERM))
  with pytest.raises(Interrupted, match='SIGTERM'):
    choose_mode.run(setting, str(tmp_path / 'race'))


def test_the_command_trains_the_pick_in_full(setting, tmp_path):
  asked = wish(setting, rates='1e-4,3e-4', sizes='8,16')
  pick = Arm('others', 3e-4)
  decision = choose.Decision(choose.WINNER, pick, (pick,), (), (), 1.0, 2.0, ())
  given = shlex.split(choose_told.command(setting, asked, decision, 'races/my race', 16))
  assert given[:3] == ['python', '-m', 'sft_jax.main'] and '--workdir=races/my race/full' in given
  keys = config_file.leaves(base.get_config())
  flags = dict(one.removeprefix('--').split('=', 1) for one in given[3:])
  assert {key for key in flags if key.startswith('config.')} <= keys.keys()
  assert not any(key.startswith('config.choose') for key in flags)
  assert flags['config.data.path'] == asked.data['others'] and flags['config.data.size'] == '16'
  assert flags['config.train.learning_rate'] == '0.0003'
  assert flags['config.train.batch_size'] == '8' and 'guard.jsonl' in flags['config.eval.tasks']


def test_a_budget_too_small_says_what_it_would_take():
  scores = Scores(tuple('abc'), np.array([0.0, 100.0, 0.0]))
  field = Field(Observation({'t': scores}), {'t': 1.0}, {}, most_leak=0.1, ability_only=True)
  arms = [Arm('a'), Arm('b')]
  rungs, cost = [Rung('few'), Rung('all')], lambda _, rung: 3600.0
  make = lambda budget: Race(arms, rungs, Rules({'t': 1.0}), field, budget, cost, None, 'seconds')
  with pytest.raises(UserError, match=r'budget of 1 h is too small .* takes 6 h'):
    make(3600.0)
  assert make(6 * 3600.0).live == arms


def test_a_served_model_is_a_row_to_beat(tiny_files, tmp_path):
  """Its scores come through an endpoint; one that fails midway is one line, and goes on."""
  model, data = tiny_files
  rows = [{'question': f'{n} and {n}?', 'answer': str(2 * n)} for n in range(6)]
  bench = tmp_path / 'own.jsonl'
  bench.write_text(''.join(f'{json.dumps(row)}\n' for row in rows))
  task = f'custom:{bench}'
  config = tiny.config(model, '', data__path=str(data))
  answer = lambda body: str(2 * int(body['messages'][-1]['content'].split()[0]))
  with JudgeServer(answer) as server, tiny.on_devices():
    wish = choose_wish.Wish(
      {'a': str(data), 'b': str(data)},
      Rules({task: 1.0}),
      race_budget.Budget(1.0, 'examples'),
      endpoint=f'org/m@{server.url}',
      most={'b': 20},
    )
    runs = choose_run.Runs(config, wish, str(tmp_path / 'race'))
    # Too few for a first rung: all are taken at once, by as many seeds as the last rung has.
    assert runs.rungs == [Rung('all examples', 3)] and runs.candidates['a'].examples == 32
    assert runs.cost(Arm('a'), 0) == 32 * config.train.epochs and runs.size('a', 0) == 0
    assert runs.cost(Arm('b'), 0) == 20 * config.train.epochs and runs.size('b', 0) == 20
    server.troubles = ['', '', '401']
    with pytest.raises(UserError) as caught:
      runs.endpoint()
    assert '\n' not in str(caught.value)
    (scores,) = runs.endpoint().scores.values()
  assert list(scores.values) == [100.0] * 6 and scores.ids == tuple('123456')
  assert len({str(body['messages']) for body, _ in server.requests}) == 6
  assert 7 <= len(server.requests) <= 9, 'what was answered is not asked again'

"""Grafts: bands of layers of a change, against merging by hand, and with a planted cause."""

import csv

import numpy as np
import peft
import pytest
import torch
import transformers

from benchmarks import planted_grafts
from sft_jax import comparison
from sft_jax.analysis import measured_told
from sft_jax.evals import loglik
from sft_jax.execution import evaluate, graft, opened
from sft_jax.study import delta
from sft_jax.utils.errors import UserError
from tests import tiny


@pytest.fixture(scope='module')
def texts():
  rng = np.random.default_rng(0)
  return [rng.integers(0, 200, 9 + i).astype(np.int32) for i in range(4)]


@pytest.fixture(scope='module')
def pair(tiny_files, tmp_path_factory):
  """Directories of a base and of a copy in which everything is a little different."""
  place = tmp_path_factory.mktemp('tuned')
  model = transformers.AutoModelForCausalLM.from_pretrained(tiny_files[0]).float()
  torch.manual_seed(1)
  with torch.no_grad():
    for weight in model.parameters():
      weight += 0.05 * torch.randn_like(weight)
  model.save_pretrained(place)
  transformers.AutoTokenizer.from_pretrained(tiny_files[0]).save_pretrained(place)
  return tiny_files[0], place


def load(directory, tiny_files, **more):
  with tiny.on_devices():
    return opened.of_base(tiny.config(directory, tiny_files[1], **more)).load()


def ours(subject, texts):
  """Log-probabilities of all tokens, one after the other."""
  with tiny.on_devices():
    scored = loglik.score(subject, [loglik.Text(ids, 1) for ids in texts], 256)
  return np.concatenate([one.logprobs for one in scored])


def theirs(model, texts):
  out = []
  for ids in texts:
    ids = torch.tensor(ids[None].astype(np.int64))
    with torch.no_grad():
      logprobs = torch.log_softmax(model(ids).logits[0, :-1], -1)
    out.append(logprobs[torch.arange(ids.shape[1] - 1), ids[0, 1:]].numpy())
  return np.concatenate(out)


@pytest.mark.parametrize(
  'text, names',
  [
    ('0-1,2', ['none', '0-1', '2-2', 'all']),
    (' 3 ', ['none', '0-0', '1-1', '2-2', 'all']),
    ('2', ['none', '0-1', '2-2', 'all']),
    ('0-2', ['none', '0-2', 'all']),
  ],
)
def test_bands(text, names):
  made = graft.grafts(text, 3, False)
  assert [one.name for one in made] == names
  outside = graft.grafts(text, 3, True)
  assert [one.name for one in outside] == [*names[:-1], 'outside', 'all']
  if text == '2':
    assert [one.layers.tolist() for one in made][1:3] == [[True, True, False], [False, False, True]]


@pytest.mark.parametrize('text', ['0-3', '2-1', 'a', '0-1,', '4', '0', '0-1,0-1', '0:2', '-1'])
def test_bad_bands(text):
  with pytest.raises(UserError, match=r'config\.eval\.graft.*give bands such as 0-1 within 0-2'):
    graft.grafts(text, 3, True)


def test_a_whole_model_is_what_transformers_makes_of_both(pair, tiny_files, texts):
  base, tuned = (load(directory, tiny_files) for directory in pair)
  change = graft.Change(tuned, base.params['base'])
  models = [transformers.AutoModelForCausalLM.from_pretrained(d).float() for d in pair]
  # Copies: what is loaded into a model changes its own.
  old, new = ({k: v.clone() for k, v in model.state_dict().items()} for model in models)
  for one in change.grafts('0-0,1-2'):
    inside = tuple(f'model.layers.{layer}.' for layer in np.flatnonzero(one.layers))
    taken = lambda name, inside=inside, one=one: (
      name.startswith(inside) if name.startswith('model.layers.') else one.outside
    )
    models[0].load_state_dict({k: new[k] if taken(k) else old[k] for k in old})
    got = ours(change.subject(one), texts)
    np.testing.assert_allclose(got, theirs(models[0].eval(), texts), atol=2e-4, err_msg=one.name)


def test_an_adapter_is_what_peft_makes_of_it(lora_run, tiny_files, texts):
  directory = lora_run / 'export' / 'peft'
  change = graft.Change(load(tiny_files[0], tiny_files, model__adapter=str(directory)))
  base = transformers.AutoModelForCausalLM.from_pretrained(tiny_files[0]).float()
  model = peft.PeftModel.from_pretrained(base, directory).eval()
  kept = {k: v.clone() for k, v in model.named_parameters() if 'lora_B' in k}
  scores = {}
  for one in change.grafts('0-0,1-2'):
    for name, value in model.named_parameters():
      if 'lora_B' in name:
        layer = int(name.split('.layers.')[1].split('.')[0])
        value.data = kept[name] * float(one.layers[layer])
    scores[one.name] = ours(change.subject(one), texts)
    np.testing.assert_allclose(scores[one.name], theirs(model, texts), atol=2e-4)
  assert abs(scores['all'] - scores['none']).max() > 1e-2


def test_a_planted_cause_is_in_its_band_alone(pair, tiny_files, texts):
  """A change of layer 1 has its whole effect where it is, and none elsewhere."""
  base, tuned = (load(directory, tiny_files) for directory in pair)
  planted = graft.Change(tuned, base.params['base']).subject(
    graft.Graft('', np.array([False, True, False]), False)
  )
  change = graft.Change(planted, base.params['base'])
  norms = change.norms()
  assert norms[1] > 0 and norms[0] == norms[2] == 0
  before, after = ours(base, texts), ours(planted, texts)
  assert abs(after - before).max() > 0.01
  for one in change.grafts('3'):
    want = after if one.layers[1] else before
    np.testing.assert_array_equal(ours(change.subject(one), texts), want, err_msg=one.name)


def test_a_planted_cause_is_what_the_report_tells(tiny_files, tmp_path):
  """Right is what one third of the layers would say; another changed more, to no effect."""
  cause, idle = planted_grafts.write_pair(tiny_files[0], tmp_path, 0)
  items = planted_grafts.questions(0, 40)
  with tiny.on_devices():
    planted_grafts.ask(tmp_path, items, tmp_path / 'pool')
    said = planted_grafts.chosen(tmp_path / 'pool')[cause]
    items = [item | {'label': int(not first)} for item, first in zip(items, said, strict=True)]
    out = tmp_path / 'study' / 'probes' / 'a'
    column = planted_grafts.ask(tmp_path, items, out)
  told = planted_grafts.told(tmp_path / 'study', column)
  bands = {band['graft']: band for band in told['models'][0]['bands']}
  assert 0 < bands[cause]['low'] < bands[cause]['gain'] < bands[cause]['high']
  assert bands[idle]['gain'] == 0 and bands[idle]['low'] < 0 < bands[idle]['high']
  assert max(planted_grafts.BANDS, key=lambda name: bands[name]['change_share']) == idle
  first, *_ = measured_told.SAY['grafts'](told)
  assert f'layers {cause} alone {bands[cause]["gain"]:+.2f} (95 % interval +' in first
  # The same interval as between the two rows themselves, which say whose they are.
  given = {'compare__a': f'{out}/grafts/none', 'compare__b': f'{out}/grafts/{cause}'}
  found = comparison.compare_rows(tiny.config('', '', **given))
  assert [name.split(' (')[0] for name in found['rows']] == [
    f'tuned, graft {name}' for name in ('none', cause)
  ]
  (task,) = found['tasks'].values()
  assert task['scores'] == pytest.approx([100 - bands[cause]['gain'], 100])
  with pytest.raises(
    UserError, match=r'holds a row for each graft .*compare\.a.* — name one, such'
  ):
    comparison.compare_rows(tiny.config('', '', compare__a=str(out), compare__b=str(out)))


@pytest.mark.parametrize('method', ['lora', 'full'])
def test_a_run_is_grafted_in_one_program(method, request, tiny_files, tmp_path, monkeypatch):
  run = request.getfixturevalue(f'{method}_run')
  calls, score_of = [], loglik.score
  monkeypatch.setattr(loglik, 'score', lambda *a: calls.append(1) or score_of(*a))
  given = tiny.config(f'run:{run}', tiny_files[1], eval__graft='0-0,1-2', eval__train_limit=0)
  programs = lambda: loglik._score._compiled._cache_size()
  seen, subject_of = [], graft.Change.subject
  # Counted by function, of whatever was chosen from before.
  choices = lambda change: change._choose._cache_size()
  note = lambda change: seen.append((change, programs(), choices(change)))
  monkeypatch.setattr(
    graft.Change, 'subject', lambda self, one: note(self) or subject_of(self, one)
  )
  with tiny.on_devices():
    told = evaluate.evaluate(given, str(tmp_path / 'e'))
  assert {count for _, count, _ in seen[1:]} == {programs()} and programs() <= seen[0][1] + 1
  assert choices(seen[0][0]) <= seen[0][2] + (method == 'full')
  with open(tmp_path / 'e' / 'grafts.csv', newline='') as f:
    rows = {row['graft']: row for row in csv.DictReader(f)}
  outside = ['outside'] if method == 'full' else []
  assert list(rows) == ['none', '0-0', '1-2', *outside, 'all'] and len(told['rows']) == len(rows)
  assert [rows[name]['layers'] for name in ('none', '0-0', '1-2', 'all')] == ['0', '1', '2', '3']
  first, *_, last = tiny.read_jsonl(run / 'rows.jsonl')
  score = {name: float(row['ppl-heldout']) for name, row in rows.items()}
  assert score['none'] == pytest.approx(first['ppl-heldout'], rel=1e-5)
  assert score['all'] == pytest.approx(last['ppl-heldout'], rel=1e-5)
  assert min(abs(score['0-0'] - score[end]) for end in ('none', 'all')) > 1e-4
  shares = [float(rows[name]['change-share']) for name in ('none', '0-0', '1-2', 'all')]
  assert shares[0] == 0 and shares[1] + shares[2] == pytest.approx(1) == shares[3]
  layer = tiny.read_jsonl(run / 'layers.jsonl')[-1]['modules']['all']['norm']
  assert shares[1] == pytest.approx(layer[0] ** 2 / np.square(layer).sum(), rel=1e-4)
  assert (tmp_path / 'e' / 'grafts' / '1-2' / 'rows.jsonl').exists()
  # What is done is not done again; other bands are another evaluation.
  calls.clear()
  with tiny.on_devices():
    assert evaluate.evaluate(given, str(tmp_path / 'e')) == told
    given.eval.graft = '3'
    with pytest.raises(UserError, match=r"graft was '0-0,1-2', is '3'"):
      evaluate.evaluate(given, str(tmp_path / 'e'))
  assert not calls


def test_two_whole_models(pair, tiny_files, tmp_path):
  scores = {}
  with tiny.on_devices():
    for name, path in zip(('none', 'all'), pair, strict=True):
      given = tiny.config(path, tiny_files[1], eval__train_limit=0)
      scores[name] = evaluate.evaluate(given, str(tmp_path / name))['ppl-heldout']
    given.eval.graft, given.eval.graft_base = '2', str(pair[0])
    rows = evaluate.evaluate(given, str(tmp_path / 'grafts'))['rows']
    assert {r['graft']: r['ppl-heldout'] for r in rows if r['graft'] in scores} == scores
    given.model.adapter = given.eval.graft_base
    with pytest.raises(UserError, match=r'no PEFT adapter'):
      evaluate.evaluate(given, str(tmp_path / 'x'))
    # The same as a delta, which is restored by itself.
    delta.write_delta(pair[1], pair[0], tmp_path / 'd' / 'model.sftdelta')
    given.model.adapter, given.model.path = '', str(tmp_path / 'd')
    again = evaluate.evaluate(given, str(tmp_path / 'again'))['rows']
    assert [r['ppl-heldout'] for r in again] == [r['ppl-heldout'] for r in rows]
    assert {r['model_name'] for r in again} == {'d'}
    given.eval.graft_base = ''
    with pytest.raises(UserError, match=r'a delta is read together with its base'):
      evaluate.evaluate(given, str(tmp_path / 'x'))
    given.model.path, given.eval.graft_base = str(pair[1]), str(tmp_path)
    with pytest.raises(UserError):
      evaluate.evaluate(given, str(tmp_path / 'x'))
  assert not (tmp_path / 'x').exists()


def test_what_cannot_be_grafted(tiny_files, tmp_path):
  given = tiny.config(*tiny_files, eval__graft='2')
  with tiny.on_devices(), pytest.raises(UserError, match=r'nothing was trained.*run:WORKDIR'):
    evaluate.evaluate(given, str(tmp_path / 'e'))
  assert not (tmp_path / 'e').exists()

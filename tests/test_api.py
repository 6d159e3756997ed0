"""The package from Python: what it gives is what transformers computes and what runs wrote."""

import json
import pathlib
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
import transformers

import sft_jax
from sft_jax import spec
from sft_jax.data import tokenize
from sft_jax.utils.errors import UserError
from tests import tiny

ANSWER = [('how much is 3 and 4?', '7 is the answer')]


@pytest.fixture(autouse=True)
def one_device():
  with tiny.on_devices():
    yield


@pytest.fixture(scope='module')
def trained(tiny_files, lora_run):
  """The finished run, opened with its own config."""
  return sft_jax.open_run(str(lora_run))


@pytest.fixture(scope='module')
def peer(lora_run, tiny_files, tmp_path_factory):
  """The run's last snapshot in transformers, adapters merged."""
  with tiny.on_devices():
    out = tmp_path_factory.mktemp('merged') / 'model'
    given = sft_jax.open_run(str(lora_run)).export('hf', str(out), dtype='float32')
  assert given == str(out)
  return transformers.AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32).eval()


def test_importing_the_package_loads_nothing():
  code = (
    'import sys; import sft_jax; '
    'print(sorted({"jax", "flax", "numpy", "tensorflow", "torch"} & set(sys.modules))); '
    'print(sft_jax.get_config, "run" in dir(sft_jax)); '
    'print(sorted({"tensorflow", "torch", "transformers"} & set(sys.modules)))'
  )
  done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
  first, second, third = done.stdout.splitlines()
  assert first == '[]' and third == '[]' and 'get_config' in second and second.endswith('True')


def test_configs_are_found_by_name_and_changed_by_key(tmp_path, monkeypatch):
  config = sft_jax.get_config('configs/sft.py:lora', {'train.epochs': 2})
  train = config.train
  assert (train.method, train.epochs, train.learning_rate) == ('lora', 2.0, 1e-4)
  # Away from the checkout, the same names mean what came with the package.
  monkeypatch.chdir(tmp_path)
  for name in ('configs/sft.py:lora', 'sft.py:lora', 'sft:lora'):
    assert sft_jax.get_config(name).train.learning_rate == 1e-4
  (tmp_path / 'sft.py').write_text('def get_config(): raise ValueError("mine")')
  with pytest.raises(UserError, match=r'mine \(sft.py:1\)'):
    sft_jax.get_config('sft.py')


@pytest.mark.parametrize(
  'name, changes, message',
  [
    ('nothing', {}, 'no Python file nothing.*configs/quickstart.py'),
    ('sft', {'train.epohcs': 1}, 'unknown config key config.train.epohcs.*train.epochs'),
    ('sft', {'train.num_train_epochs': 1}, 'here it is config.train.epochs: .*fractions'),
    ('sft', {'train.epochs': 'two'}, "config.train.epochs is 'two', of type str, not float"),
    ('sft', {'train.epochs': True}, 'config.train.epochs is True, of type bool, not float'),
    ('sft', {'data.size': np.bool_(True)}, 'config.data.size is True, of type bool, not int'),
    ('sft', {'data.size': 1.5}, 'config.data.size is 1.5, of type float, not int'),
    ('sft', {'data.path': None}, 'config.data.path is None, of type NoneType, not str'),
    ('sft', {'train': 1}, 'config.train is 1, and a group of keys .* such as config.train.'),
    ('sft', {3: 1}, 'unknown config key config.3'),
    ('sft', [('train.epochs', 1)], 'are no changes .*{.train.epochs'),
    (None, {}, r"None is no config .* give a config, such as sft_jax.get_config\('quickstart'\)"),
    ('sft', {'train.epochs.more': 1}, 'unknown config key'),
  ],
)
def test_bad_changes_are_named(name, changes, message):
  with pytest.raises(UserError, match=message) as said:
    sft_jax.get_config(name, changes)
  assert 'override' not in str(said.value)


def test_paths_and_numbers_of_numpy_are_taken(tmp_path):
  changes = {
    'data.path': tmp_path / 'd.jsonl',
    'train.epochs': np.float32(1.5),
    'data.size': np.int64(7),
    'train.weight_decay': np.int32(1),
    'study.wait': np.bool_(True),
  }
  config = sft_jax.get_config('sft', changes)
  assert config.data.path == str(tmp_path / 'd.jsonl') and config.study.wait is True
  assert (config.train.epochs, config.data.size, config.train.weight_decay) == (1.5, 7, 1.0)
  assert type(config.data.size) is int and type(config.train.weight_decay) is float


@pytest.mark.parametrize(
  'call', ['run', 'view_data', 'run_study', 'plan_study', 'choose', 'report', 'tell_devices']
)
def test_what_is_no_config_is_said(call, tmp_path):
  takes_none = ('view_data', 'tell_devices', 'plan_study')
  given = ('quickstart',) if call in takes_none else ('quickstart', str(tmp_path))
  with pytest.raises(UserError, match=r"give a config, such as sft_jax.get_config\('quickstart'\)"):
    getattr(sft_jax, call)(*given)


@pytest.mark.parametrize('workdir', ['', None, 3])
@pytest.mark.parametrize('call', ['run', 'run_study', 'choose', 'report', 'open_run'])
def test_no_workdir_is_not_the_current_one(call, workdir, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  config = sft_jax.get_config('quickstart', {'mesh.allow_idle': True})
  given = (workdir,) if call == 'open_run' else (config, workdir)
  with pytest.raises(UserError, match=r'no workdir \(workdir\) — for example'):
    getattr(sft_jax, call)(*given)
  assert not list(tmp_path.iterdir())


def test_rows_samples_and_exports_are_the_runs(trained, lora_run, tmp_path):
  rows = tiny.read_jsonl(lora_run / 'rows.jsonl')
  assert trained.rows == rows and list(trained.table()['step']) == [row['step'] for row in rows]
  assert [len(items) for items in trained.samples.values()] == [2] * len(rows)
  before = {path: path.stat().st_mtime_ns for path in lora_run.rglob('*') if path.is_file()}
  out = trained.export('peft', str(tmp_path / 'adapter'))
  exported = pathlib.Path(out) / 'adapter_model.safetensors'
  assert exported.read_bytes() == (lora_run / 'export/peft' / exported.name).read_bytes()
  assert before == {p: p.stat().st_mtime_ns for p in lora_run.rglob('*') if p.is_file()}


def test_an_export_replaces_nothing_but_an_export(tiny_files, lora_run, tmp_path):
  shutil.copytree(lora_run, tmp_path / 'run')
  run = sft_jax.open_run(str(tmp_path / 'run'))
  adapter = tmp_path / 'run/export/peft'
  before = {path: path.read_bytes() for path in tmp_path.rglob('*') if path.is_file()}
  base = pathlib.Path(tiny_files[0])
  for form in ('peft', 'delta'):
    for place in (tmp_path / 'run', tmp_path / 'run/export', tmp_path / 'run/weights', base):
      with pytest.raises(UserError, match='the export directory'):
        run.export(form, str(place))
  assert before == {path: path.read_bytes() for path in tmp_path.rglob('*') if path.is_file()}
  assert (base / 'model.safetensors').exists()
  for form in ('peft', 'delta', 'peft'):
    assert run.export(form, str(adapter)) == str(adapter)


def test_texts_score_as_in_transformers(trained, peer):
  text = 'what is the sum of 5 and 6?'
  tokenizer = trained.model.tokenizer
  given = trained.score([text, *ANSWER])
  ids = tokenizer(text, add_special_tokens=False)['input_ids']
  # As lm-eval: after the beginning of text, though this tokenizer adds none itself.
  total, count = log_likelihood(peer, [tokenizer.bos_token_id, *ids], np.ones(len(ids)))
  assert given[0].tokens == count == len(ids)
  np.testing.assert_allclose(given[0].logprob, total, rtol=1e-4)
  assert given[0].perplexity == pytest.approx(np.exp(-given[0].logprob / count))
  # The template's own rendering, cut where the answer begins.
  messages = [
    {'role': 'user', 'content': ANSWER[0][0]},
    {'role': 'assistant', 'content': ANSWER[0][1]},
  ]
  asked = tokenizer.apply_chat_template(messages[:1], add_generation_prompt=True, tokenize=False)
  whole = tokenizer.apply_chat_template(messages, tokenize=False)
  start = len(tokenizer(asked, add_special_tokens=False)['input_ids'])
  ids = tokenizer(whole.rstrip('\n'), add_special_tokens=False)['input_ids']
  weights = (np.arange(1, len(ids)) >= start).astype(np.float64)
  total, count = log_likelihood(peer, ids, weights)
  assert given[1].tokens == count
  np.testing.assert_allclose(given[1].logprob, total, rtol=1e-4)
  assert trained.score([messages])[0].logprob == pytest.approx(given[1].logprob, rel=1e-5)


def log_likelihood(peer, ids, weights):
  with torch.no_grad():
    logits = peer(torch.tensor([ids])).logits[0, :-1].log_softmax(-1)
  each = logits[torch.arange(len(ids) - 1), torch.tensor(ids[1:])].double().numpy()
  return float(each @ weights), int(weights.sum())


def test_a_pair_and_a_conversation_are_told_from_lists(trained):
  wanted = trained.score(ANSWER)
  messages = [
    {'role': 'user', 'content': ANSWER[0][0]},
    {'role': 'assistant', 'content': ANSWER[0][1]},
  ]
  for given in (ANSWER[0], messages, tuple(messages), (ANSWER[0],), [tuple(messages)]):
    assert trained.score(given) == wanted
  assert [one.tokens for one in trained.score(list(ANSWER[0]))] != [one.tokens for one in wanted]


@pytest.mark.parametrize(
  'texts, where',
  [
    ([('a', 'b', 'c')], r'texts\[0\]'),
    (('a', 'b', 'c'), r'texts\[0\]'),
    (['a', ['b', 'c']], r'texts\[1\]'),
    (['a', 3], r'texts\[1\]'),
    ([('a', None)], r'texts\[0\]'),
    ([{'role': 'user'}], r'texts\[0\]'),
    ([{'role': 'user', 'content': 'a'}, 'b'], r'texts\[0\]'),
    (['a', []], r'texts\[1\]'),
    ({'role': 'user', 'content': 'a'}, 'texts'),
    (None, 'texts'),
  ],
)
def test_what_is_no_text_is_not_scored(trained, texts, where):
  with pytest.raises(UserError, match=rf'\({where}\) — give'):
    trained.score(texts)


@pytest.mark.parametrize(
  'how, where',
  [
    ({'seed': -1}, 'seed'),
    ({'seed': 2**32}, 'seed'),
    ({'seed': 0.5}, 'seed'),
    ({'max_new_tokens': -1}, 'max_new_tokens'),
    ({'max_new_tokens': 1.5}, 'max_new_tokens'),
    ({'max_new_tokens': True}, 'max_new_tokens'),
    ({'temperature': -1}, 'temperature'),
    ({'temperature': float('nan')}, 'temperature'),
    ({'temperature': '1'}, 'temperature'),
    ({'stops': ['']}, 'stops'),
    ({'prompts': ['a', 3], 'max_new_tokens': 4}, r'prompts\[1\]'),
  ],
)
def test_numbers_out_of_range_generate_nothing(trained, how, where):
  with pytest.raises(UserError, match=rf'\({where}\) — give'):
    trained.generate(**{'prompts': 'hello', **how})


def test_the_last_seed_has_one_after_it(trained):
  how = {'max_new_tokens': np.int64(4), 'temperature': 9.0}
  first, second = trained.generate(['hello'] * 2, seed=2**32 - 1, **how)
  assert second == trained.generate('hello', seed=0, **how)[0] != first


@pytest.mark.parametrize('key', ['chat.seed', 'eval.seed'])
def test_seeds_of_settings_have_a_bound(key):
  spec.check_settings(sft_jax.get_config('sft', {key: 2**32 - 1}))
  with pytest.raises(UserError, match=rf'out of range \(config\.{key}\) .* at most 4294967295'):
    spec.check_settings(sft_jax.get_config('sft', {key: 2**32}))


def test_answers_are_those_of_transformers(trained, peer):
  prompts = ['how much is 3 and 4?', 'please add up 10 and 2?']
  tokenizer = trained.model.tokenizer
  stops = list(tokenize.stop_ids(tokenizer, 'chat'))
  wanted = []
  for prompt in prompts:
    text = tokenizer.apply_chat_template(
      [{'role': 'user', 'content': prompt}], add_generation_prompt=True, tokenize=False
    )
    ids = tokenizer(text.rstrip(' '), return_tensors='pt', add_special_tokens=False)['input_ids']
    out = peer.generate(ids, max_new_tokens=12, do_sample=False, eos_token_id=stops, pad_token_id=0)
    wanted.append(tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True).strip())
  assert trained.generate(prompts, max_new_tokens=12) == wanted and any(wanted)
  assert trained.generate(prompts[0], max_new_tokens=12) == wanted[:1], 'one by itself'
  as_messages = [{'role': 'user', 'content': prompts[0]}]
  assert trained.generate(as_messages, max_new_tokens=12) == wanted[:1]


def test_plain_prompts_go_on_as_they_stand(tiny_files):
  peer = transformers.AutoModelForCausalLM.from_pretrained(tiny_files[0], dtype=torch.float32)
  changes = {'mesh.allow_idle': True, 'chat.template': 'raw'}
  model = sft_jax.load_model(str(tiny_files[0]), changes)
  ids = model.tokenizer('how much is', return_tensors='pt', add_special_tokens=False)['input_ids']
  out = peer.generate(ids, max_new_tokens=8, do_sample=False, pad_token_id=0)[0, ids.shape[1] :]
  wanted = model.tokenizer.decode(out, skip_special_tokens=True).strip()
  assert model.generate('how much is', max_new_tokens=8) == [wanted] and wanted
  with pytest.raises(UserError, match='a conversation needs a template'):
    model.generate([{'role': 'user', 'content': 'hello'}])


def test_the_base_is_the_untrained_model(trained, tiny_files):
  """It shares the adapter's memory, and equals the model opened by its own path."""
  alone = sft_jax.load_model(str(tiny_files[0]), {'mesh.allow_idle': True})
  assert trained.base.score(ANSWER) == alone.score(ANSWER)
  assert trained.score(ANSWER)[0].logprob > alone.score(ANSWER)[0].logprob + 1
  shared = trained.base.subject.params['base']
  assert shared is trained.model.subject.params['base']


def test_snapshots_are_told_apart(trained, lora_run):
  kept = sorted(int(path.name) for path in (lora_run / 'weights').iterdir() if path.name.isdigit())
  by_path = sft_jax.load_model(f'run:{lora_run}@{kept[-1]}', {'mesh.allow_idle': True})
  assert by_path.score(ANSWER) == trained.at(kept[-1]).score(ANSWER) == trained.score(ANSWER)
  with pytest.raises(UserError, match="'first' is no step"):
    trained.at('first')
  with pytest.raises(UserError, match=rf'no weights of step 999 .* kept are .*{kept[-1]}'):
    trained.at(999)


def test_a_full_run_answers_too(full_run):
  run = sft_jax.open_run(str(full_run))
  assert run.score(ANSWER)[0].logprob > run.base.score(ANSWER)[0].logprob + 1


def test_running_twice_does_nothing(tiny_files, lora_run, tmp_path, capsys):
  shutil.copytree(lora_run, tmp_path / 'run')
  config = tiny.config(*tiny_files, eval__samples=2, export__format='peft')
  run = sft_jax.run(config, str(tmp_path / 'run'))
  assert run.rows == tiny.read_jsonl(lora_run / 'rows.jsonl')
  assert 'already done' in capsys.readouterr().out


def test_what_cannot_be_done_is_said(trained, tiny_files, lora_run, tmp_path):
  with pytest.raises(UserError, match='no run has begun here'):
    sft_jax.open_run(str(tmp_path))
  with pytest.raises(UserError, match='a grid describes a study'):
    sft_jax.run(tiny.config(*tiny_files, study__grid='lr=1e-3,2e-3'), str(tmp_path / 'w'))
  with pytest.raises(UserError, match='positions'):
    trained.generate('word ' * 5000)
  with pytest.raises(UserError, match='nothing to score'):
    trained.score([''])
  moved = tmp_path / 'moved'
  shutil.copytree(lora_run, moved)
  held = json.loads((moved / 'config.json').read_text())
  held['contents']['base'] = '0' * 16
  (moved / 'config.json').write_text(json.dumps(held))
  with pytest.raises(UserError, match='not the one this run was trained from'):
    sft_jax.open_run(str(moved)).generate('hello')


def test_a_study_is_planned(tiny_files):
  config = tiny.config(*tiny_files, study__grid='lr=1e-3,1e-2')
  assert sft_jax.plan_study(config)['cost']['runs'] == 2
  with pytest.raises(UserError, match='is no list of runs'):
    sft_jax.plan_study(config, {'lora.rank': 2})
  assert sft_jax.plan_study(config, [{'lora.rank': 2}, {'lora.rank': 4}])['cost']['runs'] == 4

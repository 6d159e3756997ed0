"""The rules of the house, read from the syntax trees: imports, sizes, forbidden habits."""

import ast
import gc
import pathlib
import re
import subprocess
import sys
import tomllib

import pytest

from tests.conftest import REPOSITORY

PACKAGE = REPOSITORY / 'sft_jax'

# Room -> rooms (or modules) of ours it may import, besides itself; in rooms where the order within
# matters, a row a module, and a leading dot is that room. Whatever stands in no row is forbidden.
# `main` may import everything, inside functions only.
EDGES = {
  'utils': '',
  'settings': '',
  'spec': 'utils settings',
  'results': 'utils spec',
  'parallel': 'utils',
  'data': 'utils',
  'models': 'utils parallel',
  'train': 'utils parallel models',
  # data.pack: scoring lays documents into rows as training does. data.readers: benchmarks are
  # files.
  'evals': 'utils parallel models data.tokenize data.formats data.pack data.readers',
  'study': 'utils spec results',
  'analysis': 'utils spec results',
  # Programs compiled for chips that are not here: the real steps, on shapes.
  'ahead': 'utils spec parallel data.pack models train evals',
  'config_file': 'utils',
  'command_line': 'config_file',
  'comparison': 'utils results evals',
  # Cohorts, from the bottom up.
  'execution.workdir': 'utils spec results',
  'execution.summary': 'utils spec results .workdir',
  'execution.inputs': 'utils spec data models',
  'execution.selected': 'utils spec data evals train.loop .inputs',
  'execution.evaluation': 'utils data.tokenize data.formats data.overlap evals',
  'execution.bases': 'utils .inputs models',
  # What runs of one process share.
  'execution.session': 'utils spec .workdir .inputs .bases data evals .evaluation train',
  'execution.program': 'utils spec .inputs .bases parallel data models train evals',
  'execution.scoring': 'utils .inputs evals .evaluation .session train.loop .workdir',
  'execution.cohort': 'utils .program parallel models train evals',
  'execution.joint': 'utils evals .scoring train.loop',
  'execution.place': 'utils .cohort train',
  # Deltas work on files, and ask nothing of a study.
  'execution.delta_export': 'utils models study.delta',
  'execution.job': (
    'utils spec results parallel data models train evals .workdir .summary .inputs .scoring '
    '.session .program .cohort .delta_export .selected'
  ),
  'execution.driver': (
    'utils results data.loader train .scoring .session .cohort .place .joint .job'
  ),
  'execution.runner': 'utils spec results train .workdir .summary .session .job .driver',
  'execution.opened': (
    'utils config_file spec parallel models train evals .workdir .inputs .program'
  ),
  'execution.graft': 'utils evals',
  'execution.probed': 'utils analysis.predictors evals .inputs .opened',
  'execution.finished': 'utils .opened study.directory',
  'execution.probe_mode': 'utils spec evals train.loop train.checkpoint .finished .opened .probed',
  'execution.export_mode': 'utils .finished .opened .runner',
  'execution.evaluate': (
    'utils spec results parallel models train evals .workdir .inputs .scoring .runner .opened '
    '.session .graft .delta_export'
  ),
  'execution.study_sizes': 'utils parallel.mesh data models .session .inputs .program study',
  'execution.study_room': 'utils .study_sizes study',
  # Processes of one program: the first leads through a study.
  'execution.study_together': 'utils .runner .session study',
  'execution.study_run': (
    '.study_together .study_sizes .study_room utils ahead parallel.mesh parallel.topology '
    'data.datasets evals.core train.loop .session .runner study'
  ),
  'fetch': 'utils spec data models evals execution.study_run decide.choose_mode',
  'decide.choose_data': (
    'utils data.datasets data.language data.overlap data.readers evals study train.loop '
    'execution.session execution.job'
  ),
  'decide.choose_wish': 'utils evals.core study .choose_data',
  'decide.choose_time': 'utils study.race_budget',
  'decide.choose_reference': '.choose_wish execution.evaluate execution.study_run',
  'decide.choose_run': (
    'utils data.sampler evals .choose_data .choose_reference .choose_rung .choose_sizes '
    '.choose_time .choose_wish execution.session execution.study_run study'
  ),
  'decide.choose_rung': 'utils study.directory',
  'decide.choose_sizes': 'utils study',
  'decide.choose_told': (
    'utils config_file data.licences evals execution.study_sizes study .choose_data .choose_run '
    '.choose_wish'
  ),
  'decide.choose_mode': (
    'utils spec data.datasets evals study analysis train.loop execution.workdir .choose_data '
    '.choose_run .choose_told .choose_wish'
  ),
  'decide.recommend_mode': (
    'utils spec data.readers analysis evals models.source .choose_data execution.inputs '
    'execution.opened execution.selected'
  ),
  'interactive.ask': 'utils data evals train.loop execution.opened',
  'interactive.chat': 'utils spec execution.opened .ask',
  'interactive.show_data': 'utils spec execution.inputs data execution.program',
  'interactive.doctor_bench': 'utils spec parallel models train data ahead execution.program',
  'interactive.doctor': 'utils spec parallel evals .doctor_bench',
  # The package from Python does what the command line does.
  'api': (
    'utils spec results config_file execution.workdir execution.runner execution.opened '
    'interactive.ask execution.study_run interactive.show_data decide.choose_mode '
    'analysis.report interactive.doctor'
  ),
}
# Library -> the modules that may import it.
CONFINED = {
  'flax': ('models.layers', 'models.decoder', 'train.state'),
  'jax': {'not in': 'data', 'but': ('data.loader',)},
  'torch': (),
  'pickle': (),
  'dill': (),
  'cloudpickle': (),
  'joblib': (),
}
# Not needed, or not at hand, before work begins: imported inside the functions that use them.
LAZY = (
  'transformers',
  'datasets',
  'tensorflow',
  'tensorflow_datasets',
  'tensorboard',
  'clu',
  'orbax',
  'gguf',
  'tokenizers',
  'pandas',
  'pyarrow',
  'matplotlib',
  'ray',
  'lm_eval',
  'trl',
  'peft',
)
FILE_LINES, FUNCTION_LINES = 350, 80
# The loop is read from top to bottom in one piece.
LONG_FUNCTIONS = {('train.loop', 'train'): 160}

MODULES = {
  '.'.join(path.relative_to(PACKAGE).with_suffix('').parts): path
  for path in sorted(PACKAGE.rglob('*.py'))
}


def tree(name):
  # A task that the collector finds with an error nobody fetched is logged, which parses its lines;
  # Python 3.11 cannot parse within parsing (a SystemError).
  gc.disable()
  try:
    return ast.parse(MODULES[name].read_text(), str(MODULES[name]))
  finally:
    gc.enable()


def imported(root):
  """(line, dotted name) of all imports; `from a import b` gives `a.b`."""
  for node in ast.walk(root):
    if isinstance(node, ast.Import):
      yield from ((node.lineno, alias.name) for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
      assert node.level == 0, f'line {node.lineno}: relative import'
      yield from ((node.lineno, f'{node.module}.{alias.name}') for alias in node.names)


def at_module_level(root):
  """The statements that run when the module is imported."""
  for node in ast.iter_child_nodes(root):
    if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
      continue
    if isinstance(node, ast.If) and 'TYPE_CHECKING' in ast.unparse(node.test):
      continue
    yield node
    yield from at_module_level(node)


def allowed(module, target):
  # Modules of some rooms have rows of their own, and may not import whatever is beside them.
  room = module.split('.')[0]
  listed = EDGES[module].split() if module in EDGES else [*EDGES.get(room, '').split(), room]
  rooms = [f'{room}{name}' if name.startswith('.') else name for name in listed]
  return any(target == r or target.startswith(f'{r}.') for r in rooms)


def forbidden_edges(module, root):
  """Imports of our own rooms that the list does not have."""
  if module in ('main', '__init__'):
    return []
  found = []
  for line, name in imported(root):
    # What a config may hold is read off the base.
    if (name == 'configs' or name.startswith('configs.')) and module != 'config_file':
      found.append(f'{module}:{line} imports {name}')
    if not name.startswith('sft_jax.'):
      continue
    target = name.removeprefix('sft_jax.')
    if not allowed(module, target):
      found.append(f'{module}:{line} imports {target}')
  return found


def test_every_room_is_listed():
  rooms = {name.split('.')[0] for name in MODULES} - {'main', '__init__'}
  ruled = {name.split('.')[0] for name in EDGES}
  assert rooms == ruled, f'no import rule for {rooms - ruled}, or no room for {ruled - rooms}'
  split = {name.split('.')[0] for name in EDGES if '.' in name}
  alone = [
    name
    for name in MODULES
    if name.split('.')[0] in split and not name.endswith('__init__') and name not in EDGES
  ]
  assert alone == [], 'modules without a row in a room whose modules have rows'


@pytest.mark.parametrize('module', MODULES)
def test_import_direction(module):
  assert forbidden_edges(module, tree(module)) == []


@pytest.mark.parametrize('module', MODULES)
def test_confined_libraries(module):
  found = []
  for line, name in imported(tree(module)):
    rule = CONFINED.get(name.split('.')[0])
    if isinstance(rule, dict):
      if module.startswith(f'{rule["not in"]}.') and module not in rule['but']:
        found.append(f'{module}:{line} imports {name}')
    elif rule is not None and module not in rule:
      found.append(f'{module}:{line} imports {name}')
  assert found == []


@pytest.mark.parametrize('module', MODULES)
def test_heavy_imports_are_late(module):
  heavy = [
    f'{module}:{node.lineno} {ast.unparse(node)}'
    for node in at_module_level(tree(module))
    if isinstance(node, (ast.Import, ast.ImportFrom))
    for _, name in imported(ast.Module([node], []))
    if name.split('.')[0] in LAZY or (module == 'main' and name.startswith('sft_jax.'))
    if not name.startswith(('sft_jax.utils.', 'sft_jax.config_file', 'sft_jax.command_line'))
  ]
  assert heavy == []


@pytest.mark.parametrize('module', MODULES)
def test_sizes(module):
  lines = len(MODULES[module].read_text().splitlines())
  too_long = [f'{module}: {lines} lines'] if lines > FILE_LINES else []
  for node in ast.walk(tree(module)):
    if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
      cap = LONG_FUNCTIONS.get((module, node.name), FUNCTION_LINES)
      size = (node.end_lineno or node.lineno) - node.lineno + 1
      if size > cap:
        too_long.append(f'{module}.{node.name}: {size} lines')
  assert too_long == []


def gets_on_config(root):
  """Lines with `config.get(`, `self.config.train.get(` and the like."""
  return [
    node.lineno
    for node in ast.walk(root)
    if isinstance(node, ast.Call)
    and isinstance(node.func, ast.Attribute)
    and node.func.attr == 'get'
    and re.match(r'(\w+\.)*config\b', ast.unparse(node.func.value))
  ]


@pytest.mark.parametrize('module', MODULES)
def test_no_get_on_a_config(module):
  # Ours declares every key once. What models call a config is a checkpoint's own JSON, which may
  # lack keys.
  assert module.startswith('models.') or gets_on_config(tree(module)) == []


@pytest.mark.parametrize('module', MODULES)
def test_docstring_and_no_mutable_globals(module):
  root = tree(module)
  if MODULES[module].read_text().strip():
    assert ast.get_docstring(root), f'{module} has no docstring'
  writes = [n.lineno for n in ast.walk(root) if isinstance(n, ast.Global)]
  assert writes == [], 'global statement'


@pytest.mark.parametrize(
  'module, source, check',
  [
    ('data.pack', 'from sft_jax.models import decoder', forbidden_edges),
    ('train.step', 'import sft_jax.evals.score', forbidden_edges),
    ('evals.score', 'from sft_jax.data import loader', forbidden_edges),
    ('study.plan', 'def f():\n  from sft_jax.train import loop', forbidden_edges),
    ('execution.runner', 'from sft_jax import study', forbidden_edges),
    ('x', 'a = config.train.get("lr", 1)', lambda _, root: gets_on_config(root)),
  ],
)
def test_these_tests_can_fail(module, source, check):
  assert check(module, ast.parse(source))


def test_import_is_light():
  """Importing every module loads nothing that only some commands need, nor starts a backend."""
  names = [f'sft_jax.{name}'.removesuffix('.__init__') for name in MODULES]
  code = (
    'import importlib, sys\n'
    f'for name in {names}:\n'
    '  importlib.import_module(name)\n'
    f'print(sorted({{m.split(".")[0] for m in sys.modules}} & set({(*LAZY, "torch")})))\n'
    'jax = sys.modules.get("jax")\n'
    'print(jax is None or not jax._src.xla_bridge.backends_are_initialized())\n'
  )
  done = subprocess.run(
    [sys.executable, '-c', code], cwd=REPOSITORY, capture_output=True, text=True, check=False
  )
  assert done.stdout == '[]\nTrue\n', done.stdout + done.stderr


def requirements(name):
  lines = (REPOSITORY / name).read_text().splitlines()
  stripped = (line.split(' #')[0].strip() for line in lines)
  return [line for line in stripped if line and not line.startswith(('#', '-'))]


def test_extras_repeat_the_requirement_files():
  extras = tomllib.loads((REPOSITORY / 'pyproject.toml').read_text())['project'][
    'optional-dependencies'
  ]
  assert extras['dev'] == requirements('requirements-dev.txt')
  assert {'tpu', 'cuda'} <= set(extras)


def test_pre_commit_equals_ci():
  hooks = (REPOSITORY / '.pre-commit-config.yaml').read_text()
  entries = re.findall(r'entry: (.+)', hooks)
  ci = (REPOSITORY / '.ci' / 'run').read_text()
  assert entries and all(f'{entry}' in ci for entry in entries), entries


def test_the_repository_names_no_machine():
  """No absolute path of somebody's machine, and nothing of real data sets was copied in."""
  files = subprocess.run(
    ['git', 'ls-files', '-z'], cwd=REPOSITORY, capture_output=True, text=True, check=False
  ).stdout.split('\0')
  if files == ['']:
    pytest.skip('not a git checkout')
  found = []
  for name in filter(None, files):
    path = pathlib.Path(REPOSITORY / name)
    suffixes = ('.py', '.md', '.toml', '.txt', '.sh', '.yaml', '.yml', '.ipynb', '.json', '.csv')
    if path.suffix in suffixes and path.exists():
      text, words = path.read_text(), ['/home' + '/', '/root' + '/', '/work' + '/']
      # A test may speak of a place for a moment's files; a result was made at one.
      words += ['/tmp' + '/'] if name.startswith('benchmarks/results/') else []
      found += [name for word in words if word in text]
  assert found == []

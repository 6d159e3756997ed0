"""Set-up of the suite: CPU with 8 fake devices, quiet logs, a compilation cache, real data if any.

The environment is set before jax is imported, and subprocesses inherit it.
"""

import importlib.metadata
import os
import pathlib
import tempfile
from collections.abc import Iterator

os.environ['JAX_PLATFORMS'] = 'cpu'
# Sharding is a real code path in every test: never switched off on CPU.
# Programs are tiny and many: LLVM's optimiser would take most of the suite's time.
_FLAGS = ['--xla_force_host_platform_device_count=8', '--xla_backend_optimization_level=0']
if importlib.metadata.version('jaxlib') < '0.11':  # Later ones do not know it, and would stop.
  _FLAGS.append('--xla_cpu_use_fusion_emitters=false')
for _flag in _FLAGS:
  if _flag not in os.environ.get('XLA_FLAGS', ''):
    os.environ['XLA_FLAGS'] = f'{os.environ.get("XLA_FLAGS", "")} {_flag}'.strip()
os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
os.environ.setdefault('ABSL_MIN_LOG_LEVEL', '3')
os.environ.setdefault('TOKENIZERS_PARALLELISM', 'false')
# No test talks to a hub.
os.environ.setdefault('HF_HUB_OFFLINE', '1')
os.environ.setdefault('HF_HUB_DISABLE_TELEMETRY', '1')

import jax  # noqa: E402  (after the environment)
import pytest  # noqa: E402

REPOSITORY = pathlib.Path(__file__).resolve().parents[1]


def pytest_configure(config: pytest.Config) -> None:
  """Compiled programs are kept between runs of the suite, and shared by its processes."""
  del config
  cache = pathlib.Path(os.environ.get('XDG_CACHE_HOME') or tempfile.gettempdir())
  path = cache / f'sft_jax-tests-{os.getuid()}' / f'jax-{jax.__version__}'
  os.environ.setdefault('JAX_COMPILATION_CACHE_DIR', str(path))
  jax.config.update('jax_compilation_cache_dir', os.environ['JAX_COMPILATION_CACHE_DIR'])
  # Subprocesses read the variables.
  for name, value in (('min_compile_time_secs', 0.1), ('min_entry_size_bytes', -1)):
    os.environ.setdefault(f'JAX_PERSISTENT_CACHE_{name.upper()}', str(value))
    jax.config.update(f'jax_persistent_cache_{name}', value)
  # [T] + [B, T] must be written out: a silent broadcast is how masks go wrong.
  jax.config.update('jax_numpy_rank_promotion', 'raise')


@pytest.fixture(scope='module', autouse=True)
def few_programs() -> Iterator[None]:
  """A process may map so many regions of memory; the programs of all tests together have more."""
  yield
  jax.clear_caches()


@pytest.fixture(scope='session')
def data_dir() -> pathlib.Path:
  """Directory of real data sets and benchmarks; tests that need it skip where it is absent."""
  path = pathlib.Path(os.environ.get('SFT_JAX_DATA') or REPOSITORY.parent / 'shared' / 'data')
  if not path.is_dir():
    pytest.skip(f'needs real data: set SFT_JAX_DATA to its directory ({path} is absent)')
  return path


@pytest.fixture(scope='session')
def tiny_files(tmp_path_factory: pytest.TempPathFactory) -> tuple[pathlib.Path, pathlib.Path]:
  """A tiny random Llama and a JSONL file to train it on. Do not write into them."""
  from tests import tiny
  from tests.models.conftest import write_tiny_llama

  directory = tmp_path_factory.mktemp('inputs')
  return write_tiny_llama(directory / 'llama'), tiny.write_records(directory / 'sums.jsonl')


@pytest.fixture(scope='session')
def lora_run(tiny_files, tmp_path_factory) -> pathlib.Path:
  """The workdir of a finished LoRA run, with samples and a PEFT adapter. Do not write into it."""
  from tests import tiny

  workdir = tmp_path_factory.mktemp('runs') / 'lora'
  tiny.run(workdir, tiny.config(*tiny_files, eval__samples=2, export__format='peft'))
  return workdir


@pytest.fixture(scope='session')
def full_run(tiny_files, tmp_path_factory) -> pathlib.Path:
  """The workdir of a finished full run. Do not write into it."""
  from tests import tiny

  workdir = tmp_path_factory.mktemp('runs') / 'full'
  tiny.run(workdir, tiny.config(*tiny_files, train__method='full'))
  return workdir

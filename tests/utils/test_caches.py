"""One directory for every cache."""

import json
import os
import subprocess
import sys

import pytest

from sft_jax.utils import caches
from sft_jax.utils.errors import UserError

_CODE = """
import json, os, sys
from sft_jax.utils import caches
caches.use(sys.argv[1], os.environ)
from huggingface_hub import constants
import datasets
from sft_jax.models import source
from sft_jax.parallel import compile
import jax
compile.keep_programs(source.cache_root() / 'compiled')
print(json.dumps([
  constants.HF_HUB_CACHE, constants.HF_TOKEN_PATH, str(datasets.config.HF_DATASETS_CACHE),
  str(source.cache_root()), jax.config.jax_compilation_cache_dir,
  *map(str, caches.places().values())]))
"""


def test_libraries_and_ours_take_it(tmp_path):
  """Though the environment says otherwise; a login of before stays."""
  old = tmp_path / 'old'
  environ = os.environ | {
    'HF_HOME': str(old),
    'HF_HUB_CACHE': str(old / 'hub'),
    'JAX_COMPILATION_CACHE_DIR': str(old / 'jax'),
    'SFT_JAX_CACHE': str(old / 'ours'),
  }
  environ.pop('HF_TOKEN_PATH', None)
  done = subprocess.run(
    [sys.executable, '-c', _CODE, 'new'],
    capture_output=True,
    text=True,
    check=True,
    env=environ | {'PYTHONPATH': os.getcwd()},
    cwd=tmp_path,
  )
  hub, token, sets, ours, programs, *places = json.loads(done.stdout.splitlines()[-1])
  new = f'{tmp_path}/new'
  assert (hub, sets) == (f'{new}/huggingface/hub', f'{new}/huggingface/datasets')
  assert (ours, programs) == (f'{new}/sft_jax', f'{new}/sft_jax/compiled')
  assert token == f'{old}/token'
  assert places == [ours, hub, programs]


def test_a_place_that_cannot_be_written_is_refused(tmp_path):
  (tmp_path / 'file').write_text('')
  refused = {f'{tmp_path}/file': 'a file stands where a directory is needed'}
  if os.path.isdir('/proc/self'):
    refused['/proc/nope'] = 'cannot be written'
  for place, words in refused.items():
    with pytest.raises(UserError, match=f'{words}.*--cache={place}') as caught:
      caches.use(place, {})
    assert '--workdir' not in str(caught.value)


def test_two_places_are_refused(tmp_path):
  command = [sys.executable, '-m', 'sft_jax.main', '--mode=doctor', f'--cache={tmp_path}/a']
  done = subprocess.run(
    [*command, f'--config.cache_dir={tmp_path}/b'], capture_output=True, text=True, check=False
  )
  assert done.returncode == 2 and 'two places for caches' in done.stderr

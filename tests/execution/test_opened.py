"""Which snapshot of a run is meant, and what its kept config says."""

import json
import shutil

import pytest

from sft_jax.execution import evaluate, opened
from sft_jax.utils.errors import UserError
from tests import tiny


class Kept:
  """Weights of two steps."""

  def weights_steps(self):
    return [3, 7]

  def best_step(self):
    return 3


def test_steps():
  choose = lambda step: opened.choose_step(Kept(), step, 'w')
  assert [choose(step) for step in ('', 'last', 'best', '3')] == [7, 7, 3, 3]
  # The last is no digit that a number is written with.
  for step in ('first', '-1', '²'):
    with pytest.raises(UserError, match='is no step'):
      choose(step)


def test_a_run_of_an_older_version_has_keys_that_came_later(lora_run, tmp_path):
  copy = shutil.copytree(lora_run, tmp_path / 'run')
  held = json.loads((copy / 'config.json').read_text())
  del held['config']['export']['step'], held['config']['plan']
  (copy / 'config.json').write_text(json.dumps(held))
  its = opened.config_of(str(copy))['config']
  assert its['export']['step'] == 0 and its['plan']['room'] > 0
  assert its['lora'] == held['config']['lora']
  with tiny.on_devices():
    config = tiny.config('', '', eval__tasks='builtin', eval__limit=2)
    config.model.path = f'run:{copy}'
    assert evaluate.evaluate(config, str(tmp_path / 'eval'))

"""What users of other trainers type is answered with our key and the difference."""

import dataclasses
import subprocess
import sys

import pytest

from configs import base
from sft_jax import config_file, main
from sft_jax.utils import foreign_keys
from sft_jax.utils.errors import UserError

KNOWN = config_file.leaves(base.get_config())


@pytest.mark.parametrize('theirs', foreign_keys.FOREIGN)
def test_every_answer_names_a_key_that_exists(theirs):
  ours, difference = foreign_keys.FOREIGN[theirs]
  assert difference and not difference.endswith('.')
  assert not ours or ours in KNOWN or ours.removeprefix('--') in main._FLAGS
  mentioned = [part.strip('.,;()') for part in difference.split() if part.startswith('config.')]
  assert all(key in KNOWN for key in mentioned)


def test_the_names_are_theirs():
  """Each trainer's own arguments, as far as they decide what is trained."""
  transformers = pytest.importorskip('transformers')
  peft, trl = pytest.importorskip('peft'), pytest.importorskip('trl')
  names = lambda kind: {field.name for field in dataclasses.fields(kind)}
  theirs = names(transformers.TrainingArguments) | names(trl.SFTConfig) | names(trl.ModelConfig)
  theirs |= names(peft.LoraConfig)
  usual = {
    *('per_device_train_batch_size', 'num_train_epochs', 'max_length', 'learning_rate', 'bf16'),
    *('gradient_accumulation_steps', 'lora_r', 'lora_alpha', 'lora_dropout', 'r', 'packing'),
    *('lr_scheduler_type', 'max_grad_norm', 'gradient_checkpointing', 'output_dir', 'seed'),
    *('load_in_4bit', 'target_modules', 'lora_target_modules', 'model_name_or_path', 'optim'),
  }
  assert usual <= theirs, usual - theirs
  assert usual <= foreign_keys.FOREIGN.keys(), usual - foreign_keys.FOREIGN.keys()


@pytest.mark.parametrize(
  'flag, ours',
  [
    ('--per_device_train_batch_size=8', '--config.train.batch_size: it counts examples'),
    ('--num-train-epochs=3', '--config.train.epochs: the same; fractions'),
    ('--config.train.num_train_epochs=3', '--config.train.epochs'),
    ('--config.lora_r=8', '--config.lora.rank: the same'),
    ('--bf16', '--config.train.compute_dtype: auto computes'),
    ('--output_dir=out', '--workdir: started again'),
    ('--epochs=3', 'did you mean --config.train.epochs?'),
    ('--wrkdir=out', 'did you mean --workdir?'),
    ('--optim=adamw_torch', 'always AdamW'),
    ('--model=gpt2', '--config.model.path: a hub id'),
    ('--mixed_precision=bf16', '--config.train.compute_dtype: auto is'),
    ('--eval_batch_size=8', '--config.eval.tokens_per_batch: in tokens'),
    ('--config.study.grid=lora_r=4,8', 'here it is config.lora.rank: the same'),
  ],
)
def test_the_command_line_answers(flag, ours):
  command = [sys.executable, '-m', 'sft_jax.main', '--config=sft', '--workdir=never', flag]
  done = subprocess.run(command, capture_output=True, text=True, check=False)
  assert done.returncode == 2 and done.stderr.count('\n') == 1, done.stderr
  assert done.stderr.startswith('error: unknown ') and ours in done.stderr, done.stderr


def test_a_config_file_is_answered_too(tmp_path):
  path = tmp_path / 'mine.py'
  path.write_text(
    'from configs import base\n\n\ndef get_config():\n  config = base.get_config()\n'
    '  config.train.warmup_steps = 3\n  return config\n'
  )
  with pytest.raises(UserError, match=r'mine.py:6\) — here it is config.train.warmup_ratio'):
    config_file.load_config(str(path))

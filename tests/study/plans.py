"""Small studies to plan."""

from configs import base
from sft_jax.study import plan


def config(**changes):
  """LoRA on 100 records; in the names of `changes`, '__' stands for a dot."""
  out = base.get_config()
  out.model.path, out.data.name, out.data.size = 'org/model', 'lima', 100
  out.train.method = 'lora'
  out.update_from_flattened_dict({k.replace('__', '.'): v for k, v in changes.items()})
  return out


def study(sweep=(), grid='', **changes):
  """What a sweep and a grid make of that."""
  return plan.expand(config(study__grid=grid, **changes), sweep, 'cpu')

"""Controlled supervised fine-tuning at scale, in JAX.

In Python: `get_config`, `run`, `open_run`, `load_model`, `view_data`, `choose`, `plan_study`,
`run_study`, `report`; see `api.py`. Nothing is imported before it is used, so that
`import sft_jax` takes milliseconds.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
  from sft_jax.api import (
    Model,
    Page,
    Run,
    UserError,
    choose,
    get_config,
    load_model,
    open_run,
    plan_study,
    report,
    run,
    run_study,
    tell_devices,
    view_data,
  )

__version__ = '0.1.0'
__all__ = [
  'Model',
  'Page',
  'Run',
  'UserError',
  'choose',
  'get_config',
  'load_model',
  'open_run',
  'plan_study',
  'report',
  'run',
  'run_study',
  'tell_devices',
  'view_data',
]


def __getattr__(name: str) -> Any:
  if name not in __all__:
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
  from sft_jax import api

  return getattr(api, name)


def __dir__() -> list[str]:
  return [*globals(), *__all__]

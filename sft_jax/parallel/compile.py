"""Options programs are compiled with, and where they are kept."""

import functools
import os
from collections.abc import Callable
from typing import Any

import jax


def keep_programs(directory: os.PathLike[str]) -> None:
  """Compiled programs are kept across runs, unless the environment says where or not."""
  if 'JAX_COMPILATION_CACHE_DIR' not in os.environ:
    jax.config.update('jax_compilation_cache_dir', os.fspath(directory))
    jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.5)


def exact_jit(
  fn: Callable[..., Any],
  static_argnames: tuple[str, ...],
  donate_argnames: tuple[str, ...] = (),
) -> Callable[..., Any]:
  """`jax.jit` for programs whose numbers are reported: scores and answers.

  On the CPU, XLA's default kernels for float32 products lose three to six times as much to rounding
  as torch's or its own older ones, which cost up to a third more time for wide products. Logits of
  SmolLM2 differ from transformers' by 3e-4 with the former and 1e-4 with the latter.

  The backend is looked up at the first call, so this may decorate at import.
  """

  @functools.cache
  def compiled() -> Callable[..., Any]:
    on_cpu = jax.default_backend() == 'cpu'
    options = {'xla_cpu_experimental_ynn_fusion_type': ''} if on_cpu else None
    return jax.jit(
      fn,
      static_argnames=static_argnames,
      donate_argnames=donate_argnames,
      compiler_options=options,
    )

  @functools.wraps(fn)
  def call(*args: Any, **kwargs: Any) -> Any:
    return compiled()(*args, **kwargs)

  return call

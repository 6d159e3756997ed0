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


# XLA's Triton kernels for GPUs take the weights of a layer from a copy of their slice of the stack:
# written and read again, they move three times. cuBLAS's are called with the slice's address; with
# dots of one operand left apart, as merging them would copy their weights as well. (From jaxlib
# 0.11 on; before, both copy.)
_SLICES_IN_PLACE = {
  'xla_gpu_enable_triton_gemm': False,
  'xla_gpu_enable_dynamic_slice_fusion': True,
  'xla_gpu_dot_merger_threshold_mb': 0,
}


class ExactJit:
  """What `exact_jit` makes of a function."""

  def __init__(self, fn: Callable[..., Any], streams_weights: bool, **options: Any):
    functools.update_wrapper(self, fn)
    self._fn, self._streams_weights, self._options = fn, streams_weights, options

  @functools.cached_property
  def _compiled(self) -> Callable[..., Any]:
    # The backend is looked up at the first call, so this may decorate at import.
    return self._on(jax.default_backend())

  def _on(self, platform: str) -> Any:
    exact: dict[str, Any] | None = None
    if platform == 'cpu':
      exact = {'xla_cpu_experimental_ynn_fusion_type': ''}
    elif platform == 'gpu' and self._streams_weights and jax.__version_info__ >= (0, 11):
      exact = _SLICES_IN_PLACE
    return jax.jit(self._fn, compiler_options=exact, **self._options)

  def __call__(self, *args: Any, **kwargs: Any) -> Any:
    return self._compiled(*args, **kwargs)

  def lower(self, *args: Any, **kwargs: Any) -> jax.stages.Lowered:
    """The program for the devices that its arguments are laid out on, for compiling ahead."""
    first = next(x for x in jax.tree.leaves((args, kwargs)) if hasattr(x, 'sharding'))
    return self._on(next(iter(first.sharding.device_set)).platform).lower(*args, **kwargs)


def exact_jit(
  fn: Callable[..., Any],
  static_argnames: tuple[str, ...],
  donate_argnames: tuple[str, ...] = (),
  streams_weights: bool = False,
) -> ExactJit:
  """`jax.jit` for programs whose numbers are reported: scores and answers.

  On the CPU, XLA's default kernels for float32 products lose three to six times as much to rounding
  as torch's or its own older ones, which cost up to a third more time for wide products. Logits of
  SmolLM2 differ from transformers' by 3e-4 with the former and 1e-4 with the latter.

  Args:
    fn: What is compiled.
    static_argnames: As `jax.jit` has it.
    donate_argnames: As `jax.jit` has it.
    streams_weights: Whether it reads all weights for a few tokens, so that what they weigh binds.
  """
  names = {'static_argnames': static_argnames, 'donate_argnames': donate_argnames}
  return ExactJit(fn, streams_weights, **names)

"""What XLA's compiler is told of an NVIDIA GPU that is not here. TPUs are known to libtpu."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
  from sft_jax.parallel.topology import Chip

# What XLA's compiler asks of a GPU: compute capability, cores, shared memory a core and a block
# (bytes), L2 (bytes), clock (GHz), floating point units a core. NVIDIA's data sheets and CUDA's
# tables of compute capabilities.
_GPU_LIMITS: dict[str, tuple[tuple[int, int], int, int, int, int, float, int]] = {
  'NVIDIA A100-SXM4-80GB': ((8, 0), 108, 167936, 166912, 41943040, 1.41, 64),
  'NVIDIA H100 80GB HBM3': ((9, 0), 132, 233472, 232448, 52428800, 1.98, 128),
  'NVIDIA H200': ((9, 0), 132, 233472, 232448, 52428800, 1.98, 128),
  'NVIDIA B200': ((10, 0), 148, 233472, 232448, 132644864, 1.965, 128),
}


def capability(chip: 'Chip') -> float:
  """Of an NVIDIA GPU, its compute capability; 0 of a TPU."""
  if chip.platform != 'cuda':
    return 0.0
  major, minor = _GPU_LIMITS[chip.name][0]
  return major + minor / 10


def config(chip: 'Chip') -> str:
  """XLA's `GpuTargetConfig` of a GPU, as text."""
  (major, minor), cores, a_core, a_block, l2, clock, units = _GPU_LIMITS[chip.name]
  special = 'ACCELERATED_FEATURES' if major >= 9 else 'NONE'
  return f"""
gpu_device_info {{
  threads_per_block_limit: 1024
  threads_per_warp: 32
  shared_memory_per_block: 49152
  shared_memory_per_core: {a_core}
  threads_per_core_limit: 2048
  core_count: {cores}
  fpus_per_core: {units}
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  memory_bandwidth: {int(chip.bandwidth)}
  l2_cache_size: {l2}
  clock_rate_ghz: {clock}
  device_memory_size: {chip.memory}
  shared_memory_per_block_optin: {a_block}
  cuda_compute_capability {{ major: {major} minor: {minor} feature_extension: {special} }}
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
  thread_dim_limit_x: 1024
  thread_dim_limit_y: 1024
  thread_dim_limit_z: 64
  device_vendor: "NVIDIA Corporation"
  name: "{chip.name}"
  driver_version: "13.0.0"
  runtime_version: "12.8.0"
  compile_time_toolkit_version: "12.8.0"
  dnn_version: "9.10.0"
  device_interconnect_info {{ active_links: {12 if major == 8 else 18} }}
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 10 patch: 0 }}
device_description_str: "{chip.name}"
"""
